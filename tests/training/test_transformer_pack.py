"""A pack gives each sample what it gets alone, and no sample anything of another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from curation.errors import UsageError
from tests.training.transformer_helpers import TINY, apart, gradient_apart, gradients, noise, tiny
from training.transformer.attention import ATTENTION, Segments, attention
from training.transformer.model import Transformer, checkpoint_blocks

EXACT = {torch.float32: 1e-5, torch.float64: 1e-10}
GRIDS = [(3, 8, 12), (1, 6, 6), (2, 4, 10), (1, 8, 12)]
WORDS = [5, 3, 1, 4]


class Samples:
    """Of different sizes, texts and timesteps; the second of 1.5 is filled to two frames."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        config = TINY[name]
        grids = [(frames * config.time_patch, h, w) for frames, h, w in GRIDS]
        if config.use_learned_positional_embeddings:
            grids = [(frames, 8, 12) for frames, _, _ in grids]
        self.latents = [noise(f, config.in_channels, h, w, seed=i, dtype=dtype) for i, (f, h, w) in enumerate(grids)]
        self.text = [noise(words, config.text_embed_dim, seed=9 + i, dtype=dtype) for i, words in enumerate(WORDS)]
        self.t = torch.tensor([999, 0, 431, 20])
        self.clean = [torch.zeros(f, dtype=torch.bool) for f, _, _ in grids]
        self.clean[0][: config.time_patch] = True
        self.clean[2][-config.time_patch :] = True

    def alone(self, transformer: Transformer, i: int, *, clean: bool = True) -> Tensor:
        mask = self.clean[i][None] if clean else None
        return transformer(self.latents[i][None], self.text[i][None], self.t[i : i + 1], clean=mask)[0]

    def packed(self, transformer: Transformer, *, clean: bool = True) -> list[Tensor]:
        return transformer(self.latents, self.text, self.t, clean=self.clean if clean else None)


def loss(outs: list[Tensor], targets: list[Tensor]) -> Tensor:
    return torch.stack([(out - target).square().mean() for out, target in zip(outs, targets, strict=True)]).mean()


@pytest.mark.parametrize("clean", [False, True], ids=["plain", "clean frames"])
@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("way", ["split", "mask"])
@pytest.mark.parametrize("name", ["2b", "5b", "5b_i2v", "5b_v1_5_i2v"])
def test_a_pack_gives_outputs_loss_and_gradients_of_its_samples_alone(
    name: str, way: str, dtype: torch.dtype, clean: bool
) -> None:
    transformer, samples = tiny(name, dtype=dtype), Samples(name, dtype)
    transformer.attention = attention(way)
    packed = samples.packed(transformer, clean=clean)
    targets = [noise(*out.shape, seed=30 + i, dtype=dtype) for i, out in enumerate(packed)]
    together = loss(packed, targets)
    together.backward()
    of_pack = gradients(transformer)
    alone = [samples.alone(transformer, i, clean=clean) for i in range(len(GRIDS))]
    for a, b in zip(packed, alone, strict=True):
        assert apart(a, b) < EXACT[dtype]
    separate = loss(alone, targets)
    separate.backward()
    assert abs((together - separate).item()) < EXACT[dtype]
    of_each = gradients(transformer)
    assert of_pack.keys() == of_each.keys() == dict(transformer.named_parameters()).keys()
    for key, gradient in of_pack.items():
        assert gradient_apart(gradient, of_each[key]) < EXACT[dtype], key


@pytest.mark.parametrize("change", ["latents", "text", "t", "clean"])
@pytest.mark.parametrize("way", ["split", "mask"])
def test_changing_one_sample_changes_no_bit_of_another(way: str, change: str) -> None:
    transformer, samples = tiny(), Samples("5b", torch.float32)
    transformer.attention = attention(way)
    before = samples.packed(transformer)
    changed: Any = getattr(samples, change)
    changed[1] = ~changed[1] if change == "clean" else changed[1] * 3 + 7
    if change == "clean":
        samples.t[1] = 800
        before[1] = samples.alone(transformer, 1, clean=False)
    after = samples.packed(transformer)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, True, True]


def test_what_is_no_number_in_one_sample_reaches_no_other() -> None:
    transformer, samples = tiny(), Samples("5b", torch.float32)
    before = samples.packed(transformer)
    samples.latents[2][:] = torch.nan
    after = samples.packed(transformer)
    assert torch.isnan(after[2]).all()
    assert all(torch.equal(before[i], after[i]) for i in (0, 1, 3))


def test_a_pack_of_equal_samples_is_a_batch() -> None:
    transformer = tiny()
    latents, text, t = noise(3, 2, 4, 8, 12), noise(3, 5, 12, seed=2), torch.tensor([999, 500, 1])
    batch, pack = transformer(latents, text, t), transformer(list(latents), list(text), t)
    assert apart(torch.stack(pack), batch) < 1e-5


def test_checkpointed_blocks_give_a_pack_the_same_gradients() -> None:
    samples = Samples("5b", torch.float64)
    found = []
    for saving in (False, True):
        transformer = tiny(dtype=torch.float64)
        if saving:
            checkpoint_blocks(transformer)
        loss(samples.packed(transformer), [torch.zeros(())] * 4).backward()
        found.append(gradients(transformer))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_segments_come_apart_as_they_were_and_name_the_sample_of_each_token() -> None:
    segments = Segments(text=(2, 1), video=(3, 2))
    assert segments.ids(torch.device("cpu")).tolist() == [0, 0, 1, 0, 0, 0, 1, 1]
    x = torch.arange(8)[None, :, None]
    together = segments.together(x)
    assert [sample[0, :, 0].tolist() for sample in together] == [[0, 1, 3, 4, 5], [2, 6, 7]]
    assert torch.equal(segments.apart(together), x)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_attention_agrees_forward() -> None:
    # No backward pass on a CPU: torch has none.
    transformer, samples = tiny(), Samples("5b", torch.float32)
    expected = samples.packed(transformer)
    transformer.attention = attention("flex")
    with torch.no_grad():
        packed = samples.packed(transformer)
    assert all(apart(a, b) < 1e-5 for a, b in zip(packed, expected, strict=True))


def test_attention_is_chosen_by_name_and_refused_where_it_cannot_run() -> None:
    transformer, samples = tiny(), Samples("5b", torch.float32)
    transformer.attention = attention("varlen")
    with pytest.raises(UsageError, match="on a GPU only; choose 'split'"):
        samples.packed(transformer)
    with pytest.raises(UsageError, match="Did you mean 'varlen'"):
        attention("varlens")
    assert set(ATTENTION) == {"split", "mask", "flex", "varlen"}


def test_packs_and_batches_of_unequal_parts_are_refused() -> None:
    samples = Samples("5b", torch.float32)
    with pytest.raises(ValueError, match="2 latents, 2 texts and 1 timesteps"):
        tiny()(noise(2, 1, 4, 4, 4), noise(2, 5, 12), torch.tensor([5]))
    with pytest.raises(ValueError, match="4 latents, 3 texts and 4 timesteps"):
        tiny()(samples.latents, samples.text[:3], samples.t)
