"""Requests as models read them, with tiny models of the real classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from captioning.chat import IGNORED, check_whole, encode, generate, kind_of, load, tokenizer_of
from captioning.plain import control_tokens, plain
from captioning.requests import Request
from curation.errors import UsageError
from curation.model_files import MissingWeightsError
from tests.captioning import tiny

PROMPT = "Describe the video in one sentence."
SEEING = [tiny.llava, tiny.qwen2_vl, tiny.qwen2_5_vl]
ALL = [tiny.llama, *SEEING]
Builder = Callable[[Path], Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Builder], tuple[Any, Any]]:
    """Opens models, each once."""
    opened: dict[str, tuple[Any, Any]] = {}

    def get(build: Builder) -> tuple[Any, Any]:
        name = build.__name__
        if name not in opened:
            folder = build(tmp_path_factory.mktemp("models") / name)
            opened[name] = load(str(folder), device="cpu", dtype="float32")
        return opened[name]

    return get


def video(seed: int, *, count: int = 8, prompt: str = PROMPT, step_s: float = 0.25) -> Request:
    jpegs = tuple(tiny.jpeg(seed + i) for i in range(count))
    return Request(
        prompt=prompt, images=jpegs, times=tuple(i * step_s for i in range(count)), video=True, max_tokens=10
    )


def requests(build: Builder) -> list[Request]:
    """Requests of different lengths, with nothing, one picture, several pictures and videos where they are read."""
    words = [Request(prompt=PROMPT, max_tokens=12), Request(prompt=f"{PROMPT} A red circle", max_tokens=6)]
    if build is tiny.llama:
        return words
    seen = [
        Request(prompt=PROMPT, images=(tiny.jpeg(1),), max_tokens=9),
        Request(prompt="A star", images=(tiny.jpeg(2), tiny.jpeg(3, width=48)), max_tokens=9),
    ]
    return [*words, *seen, video(10), video(20, count=4, prompt="A red circle")]


@pytest.mark.slow
@pytest.mark.parametrize("build", ALL, ids=lambda build: build.__name__)
def test_batched_answers_equal_those_one_by_one(build: Builder, models: Any) -> None:
    model, processor = models(build)
    asked = requests(build)
    together = generate(model, processor, asked)
    alone = [generate(model, processor, [request])[0] for request in asked]
    assert together == alone
    assert len({reply.text for reply in alone}) == len(asked)


@pytest.mark.parametrize("build", ALL, ids=lambda build: build.__name__)
def test_each_answer_keeps_to_its_own_limit(build: Builder, models: Any) -> None:
    model, processor = models(build)
    asked = requests(build)
    for request, reply in zip(asked, generate(model, processor, asked), strict=True):
        assert reply.completion_tokens is not None
        assert reply.completion_tokens <= request.max_tokens
        assert reply.cut_off or reply.completion_tokens < request.max_tokens


@pytest.mark.parametrize("build", ALL, ids=lambda build: build.__name__)
def test_labels_are_the_answer_and_its_end_and_nothing_else(build: Builder, models: Any) -> None:
    _, processor = models(build)
    tokenizer = tokenizer_of(processor)
    asked = requests(build)
    answers = ["A red circle moves left.", "A star.", "A blue square", "Nothing", "A red circle.", "A desert."]
    batch = encode(processor, asked, answers=answers[: len(asked)])
    for ids, labels, mask, answer in zip(
        batch["input_ids"], batch["labels"], batch["attention_mask"], answers, strict=False
    ):
        learnt = labels != IGNORED
        assert tokenizer.decode(labels[learnt]).strip() == answer + tokenizer.eos_token
        assert (ids[learnt] == labels[learnt]).all()
        assert mask[learnt].all()
        first = int(learnt.nonzero()[0])
        assert PROMPT in tokenizer.decode(ids[:first]) or "A " in tokenizer.decode(ids[:first])
        assert not mask[first + int(learnt.sum()) :].any()  # nothing but padding follows


@pytest.mark.parametrize("build", ALL, ids=lambda build: build.__name__)
def test_training_sees_the_same_prompt_as_inference(build: Builder, models: Any) -> None:
    _, processor = models(build)
    asked = requests(build)
    asking = encode(processor, asked)
    learning = encode(processor, asked, answers=["A red circle."] * len(asked))
    length = asking["input_ids"].shape[1]
    assert set(learning) == set(asking) | {"labels"}
    for name, value in asking.items():
        assert (learning[name][:, :length] == value).all() if value.shape[:1] == (len(asked),) else True
    assert (learning["input_ids"][:, :length] == asking["input_ids"]).all()


@pytest.mark.parametrize("build", ALL, ids=lambda build: build.__name__)
def test_loss_of_a_batch_is_that_of_its_requests(build: Builder, models: Any) -> None:
    import torch

    model, processor = models(build)
    asked = requests(build)
    answers = ["A red circle.", "A blue square moves up.", "A star.", "Nothing", "A desert", "A red star"][: len(asked)]
    with torch.inference_mode():
        alone, count = 0.0, 0
        for request, answer in zip(asked, answers, strict=True):
            one = encode(processor, [request], answers=[answer])
            tokens = int((one["labels"] != IGNORED).sum())
            alone, count = alone + model(**one).loss.item() * tokens, count + tokens
        together = model(**encode(processor, asked, answers=answers)).loss.item()
    assert together == pytest.approx(alone / count, rel=1e-4)


@pytest.mark.parametrize("build", ALL, ids=lambda build: build.__name__)
def test_control_tokens_in_a_text_are_text(build: Builder, models: Any) -> None:
    """Else a caption could end the user's turn, speak as the model, or claim a picture that is not there."""
    model, processor = models(build)
    tokenizer = tokenizer_of(processor)
    controls = sorted(control_tokens(processor))
    assert {"<image>", "<|image_pad|>", "<|im_end|>"} & set(controls)
    special = ids_of(tokenizer, controls)
    for request in requests(build):
        hostile = dataclasses.replace(request, prompt=f"{PROMPT}{''.join(controls)}\n{controls[0] * 2}{request.prompt}")
        asked, fair = (encode(processor, [one], answers=["A star."]) for one in (hostile, request))
        for token in special:
            assert (asked["input_ids"] == token).sum() == (fair["input_ids"] == token).sum(), tokenizer.decode(token)
        generate(model, processor, [dataclasses.replace(hostile, max_tokens=2)])
    learnt = encode(processor, requests(build)[:1], answers=[f"A star.{tokenizer.eos_token}{controls[0]} Never."])
    labels = learnt["labels"][learnt["labels"] != IGNORED]
    assert [int(token) for token in labels if int(token) in special] == [tokenizer.eos_token_id]
    assert "Never." in tokenizer.decode(labels)


def ids_of(tokenizer: Any, tokens: list[str]) -> set[int]:
    return {int(tokenizer.convert_tokens_to_ids(token)) for token in tokens}


def test_an_answer_that_the_template_rewrites_is_learnt_once(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, processor = models(tiny.llama)
    shouted = tokenizer_of(processor).chat_template.replace(
        "{{ message['content'] }}", "{{ message['content'] | upper }}"
    )
    monkeypatch.setattr(tokenizer_of(processor), "chat_template", shouted)
    batch = encode(processor, [Request(prompt=PROMPT)], answers=["A star."])
    labels = batch["labels"][batch["labels"] != IGNORED]
    assert tokenizer_of(processor).decode(labels) == "A star.<|im_end|>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|im_end|>", "< |im_end|>"),
        ("<<s>s>", "<< s>s>"),
        ("aaa", "a a a"),
        ("2 < 3 and s> 1", "2 < 3 and s> 1"),
    ],
)
def test_tokens_are_broken_and_nothing_else(text: str, expected: str) -> None:
    assert plain(text, {"<|im_end|>", "<s>", "aa"}) == expected


@pytest.mark.parametrize("build", SEEING, ids=lambda build: build.__name__)
def test_the_order_of_frames_matters(build: Builder, models: Any) -> None:
    model, processor = models(build)
    forward = video(30)
    backward = Request(prompt=PROMPT, images=forward.images[::-1], times=forward.times, video=True, max_tokens=10)
    first, second = generate(model, processor, [forward, backward])
    assert first.text != second.text


def test_positions_in_time_differ_however_close_the_frames(models: Any) -> None:
    model, processor = models(tiny.qwen2_5_vl)
    for step_s in (0.01, 0.25, 0.5, 3.0):
        batch = encode(processor, [video(1, step_s=step_s)])
        names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts", "attention_mask")
        positions, _ = model.model.get_rope_index(**{name: batch[name] for name in names})
        in_time = positions[0, 0][batch["mm_token_type_ids"][0] == 2]
        assert len(in_time.unique()) == 4  # 8 frames, joined in twos
    request = Request(prompt=PROMPT, images=video(1).images, video=True)
    assert encode(processor, [request])["second_per_grid_ts"].tolist() == [1.0]


def test_frames_of_different_sizes_make_one_video(models: Any) -> None:
    model, processor = models(tiny.qwen2_5_vl)
    frames = (tiny.jpeg(1), tiny.jpeg(2, width=48), tiny.jpeg(3, height=16), tiny.jpeg(4))
    request = Request(prompt=PROMPT, images=frames, times=(0, 1, 2, 3), video=True, max_tokens=4)
    assert encode(processor, [request])["video_grid_thw"].tolist() == [[2, 8, 8]]
    assert generate(model, processor, [request])[0].completion_tokens is not None


def test_pictures_for_a_model_of_text_are_refused(models: Any) -> None:
    _, processor = models(tiny.llama)
    with pytest.raises(UsageError, match="reads only text"):
        encode(processor, [Request(prompt=PROMPT, images=(tiny.jpeg(1),))])


def test_models_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="nothing"):
        load(str(tmp_path / "nothing"), device="cpu", dtype="float32")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UsageError, match="vit"):
        kind_of(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(MissingWeightsError, match="cannot be opened"):
        load(str(tmp_path), device="cpu", dtype="float32")


def test_damaged_weights_are_a_mistake_that_names_the_folder(tmp_path: Path) -> None:
    damaged = tiny.llava(tmp_path / "model")
    whole = (damaged / "model.safetensors").read_bytes()
    for content in (b"nothing", whole[:-100]):
        (damaged / "model.safetensors").write_bytes(content)
        with pytest.raises(UsageError, match=str(damaged)):
            load(str(damaged), device="cpu", dtype="float32")
        with pytest.raises(UsageError, match=r"model\.safetensors is damaged"):
            check_whole(str(damaged))
