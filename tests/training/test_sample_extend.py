"""Samples that begin, end or close with given frames: those come through untouched, and the rest follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from curation.errors import UsageError
from curation.video import Video
from tests.training.test_sample import FAST, asked, first_video, picture, saved
from tests.training.test_sampling import tiny_vae
from tests.training.transformer_helpers import apart, noise, tiny
from tests.training.vae_helpers import video
from training.pictures import to_frames, write_video
from training.transformer.diffusion import Diffusion
from training.transformer.extend import Shape, Window, conditions, make, plan
from training.transformer.given import fit, read_picture, read_video
from training.transformer.models import Models
from training.transformer.produce import run
from training.transformer.requests import prepare
from training.transformer.sampling import scaled

SHAPE = Shape(height=64, width=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("pipeline"))


def models(name: str = "5b", dtype: torch.dtype = torch.float32) -> Models:
    return Models(tiny(name).eval().to(dtype), tiny_vae().to(dtype), Diffusion(), torch.device("cpu"))


def made(
    windows: list[Window], text: Tensor, *, name: str = "5b", dtype: torch.dtype = torch.float32, **changes: Any
) -> Tensor:
    seeds = list(range(len(text)))
    return make(
        models(name, dtype), text, **({"windows": windows, "shape": SHAPE, "seeds": seeds, "settings": FAST} | changes)
    )


def test_windows_take_over_what_they_overlap_and_reach_the_length() -> None:
    assert plan(49, frames=49) == [Window(49, kept=49)]
    assert plan(None, frames=1) == [Window(1, kept=1)]  # a picture
    assert plan(30, frames=49) == [Window(33, kept=30)]  # 4k+1 are made, and no more than are asked for are kept
    assert plan(100, frames=49, overlap=13, have=40) == [Window(49, head=13, kept=36), Window(37, head=13, kept=24)]
    assert plan(61, frames=49, overlap=13) == [Window(49, kept=49), Window(25, head=13, kept=12)]
    assert plan(None, frames=49, have=20, overlap=13) == [Window(49, head=13, kept=36)]
    from_picture = [Window(49, head=1, kept=48), Window(49, head=9, kept=40), Window(21, head=9, kept=11)]
    assert plan(100, frames=49, have=1) == from_picture
    assert plan(None, frames=49, loop=True) == [Window(49, kept=49), Window(49, head=9, tail=8)]


@pytest.mark.parametrize("have", [0, 1, 3, 14])
@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("overlap", [1, 5])
def test_plans_make_what_is_asked_for(have: int, loop: bool, overlap: int) -> None:
    for length in range(have + 9, have + 60):
        if loop and (length - (have or 1)) % 4:
            with pytest.raises(UsageError, match="a loop can have"):
                plan(length, frames=17, overlap=overlap, have=have, loop=loop)
            continue
        windows = plan(length, frames=17, overlap=overlap, have=have, loop=loop)
        assert have + sum(window.new for window in windows) == length
        grown = have
        for window in windows:
            assert window.frames % 4 == 1
            assert window.frames <= 17
            assert window.new > 0
            assert window.head <= grown
            assert window.tail <= grown
            grown += window.new
        assert [window.tail for window in windows if window.tail] == ([4] if loop else [])
        assert not loop or windows[-1].tail


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"overlap": 4}, "--overlap 4: 4k\\+1 below"),
        ({"overlap": 17}, "--overlap 17"),
        ({"have": 40}, "has 40 frames already"),
        ({"loop": True, "overlap": 13}, "no room"),
        ({"loop": True, "length": 32}, "can have 33 frames"),
    ],
)
def test_windows_that_cannot_be_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan(**({"length": 30, "frames": 17} | changes))


def test_what_a_window_makes_beyond_the_length_is_dropped() -> None:
    text = noise(2, 5, 12)
    whole = made(plan(9, frames=9), text)
    assert torch.equal(made(plan(6, frames=9), text), whole[:, :, :6])


@pytest.mark.parametrize("name", ["5b", "5b_v1_5", "5b_i2v"])
def test_a_continued_video_keeps_its_frames_and_depends_on_its_overlap(name: str) -> None:
    text, given = noise(1, 5, 12), video(1, 3, 11, 64, 64)
    shape = Shape(height=64, width=96) if name == "5b_i2v" else SHAPE  # it learned its positions for this size
    given = video(1, 3, 11, shape.height, shape.width)
    windows = plan(19, frames=9, overlap=5, have=11)
    out = made(windows, text, name=name, head=given, shape=shape)
    assert out.shape[2] == 19
    assert torch.equal(out[:, :, :11], given)
    outside, inside = given.clone(), given.clone()
    outside[:, :, :6] = 0
    inside[:, :, 10:] = 0
    assert torch.equal(made(windows, text, name=name, head=outside, shape=shape)[:, :, 11:], out[:, :, 11:])
    assert apart(made(windows, text, name=name, head=inside, shape=shape)[:, :, 11:], out[:, :, 11:]) > 1e-2


@pytest.mark.slow
def test_a_batch_of_two_equals_two_alone_and_seeds_repeat() -> None:
    text, given = noise(2, 5, 12), video(2, 3, 9, 64, 64)
    windows = plan(25, frames=13, overlap=5, have=9, loop=True)
    # In float64: in float32 kernels round a batch of two and of one differently, and sampling makes that larger.
    exact = torch.float64
    both = made(windows, text, head=given, seeds=[4, 9], dtype=exact)
    assert both.shape == (2, 3, 25, 64, 64)
    for index, seed in enumerate([4, 9]):
        alone = made(windows, text[index : index + 1], head=given[index : index + 1], seeds=[seed], dtype=exact)
        assert apart(both[index : index + 1], alone) < 1e-4
    assert torch.equal(made(windows, text, head=given, seeds=[4, 9], dtype=exact), both)
    assert apart(made(windows, text, head=given, seeds=[4, 8], dtype=exact)[1], both[1]) > 1e-2


def test_given_latents_stay_clean_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from training.transformer import extend

    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    denoise = extend.denoise

    def watching(*words: Any, given: Tensor, clean: Tensor, **named: Any) -> Tensor:
        out = denoise(*words, given=given, clean=clean, **named)
        seen.append((given, clean, out))
        return out

    monkeypatch.setattr(extend, "denoise", watching)
    made([Window(13, head=5, tail=4)], noise(1, 5, 12), head=video(1, 3, 9, 64, 64))
    given, clean, out = seen[0]
    assert clean.tolist() == [[True, True, False, True]]  # 1 + 4 frames, 4 new, 4 to lead to
    assert torch.equal(out[clean], given[clean])


def test_what_comes_before_and_after_is_encoded_where_it_stands() -> None:
    vae, frames = tiny_vae(), video(1, 3, 9, 64, 64)
    with torch.no_grad():
        given, clean = conditions(vae, Window(13, head=5, tail=4), frames[:, :, -5:], frames[:, :, :4], shape=SHAPE)
        head = scaled(vae.encode(frames[:, :, 4:]).mean, vae.config)
        behind = torch.cat([frames[:, :, :1], frames[:, :, :4]], dim=2)
        tail = scaled(vae.encode(behind).mean, vae.config)[:, 1:]
        picture, _ = conditions(vae, Window(9, head=1, tail=1), frames[:, :, :1], frames[:, :, 3:4], shape=SHAPE)
        still = scaled(vae.encode(frames[:, :, 3:4].expand(-1, -1, 5, -1, -1)).mean, vae.config)[:, 1:]
    assert clean.tolist() == [[True, True, False, True]]
    assert torch.equal(given[:, :2], head)
    assert torch.equal(given[:, 3:], tail)
    assert torch.equal(given[:, 2], torch.zeros_like(given[:, 2]))
    assert torch.equal(picture[:, 2:], still)


def test_between_two_pictures_both_are_kept_and_both_matter() -> None:
    text, first, last = noise(1, 5, 12), video(1, 3, 1, 64, 64), video(1, 3, 1, 64, 64, seed=5)
    windows = [Window(13, head=1, tail=1)]
    out = made(windows, text, head=first, tail=last)
    assert out.shape[2] == 13
    assert torch.equal(out[:, :, :1], first)
    assert torch.equal(out[:, :, -1:], last)
    assert apart(made(windows, text, head=first, tail=first)[:, :, 1:-1], out[:, :, 1:-1]) > 1e-2
    assert apart(made(windows, text, head=last, tail=last)[:, :, 1:-1], out[:, :, 1:-1]) > 1e-2


def test_a_loop_depends_on_where_it_leads() -> None:
    text, given = noise(1, 5, 12), video(1, 3, 13, 64, 64)
    windows = plan(17, frames=13, overlap=5, have=13, loop=True)
    assert windows == [Window(13, head=5, tail=4)]
    out = made(windows, text, head=given)
    assert out.shape[2] == 17
    assert torch.equal(out[:, :, :13], given)
    start = given.clone()
    start[:, :, :4] *= -1
    assert apart(made(windows, text, head=start)[:, :, 13:], out[:, :, 13:]) > 1e-2


def test_the_command_continues_a_video_with_its_very_frames(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "given.mp4"
    write_video(file, to_frames(video(3, 12, 64, 96)), fps=12)
    frames, fps = read_video(file)
    assert (frames.shape, round(fps, 3)) == ((12, 64, 96, 3), 12.0)
    prepared = prepare(asked(model, extend=file, overlap=5))
    assert (prepared.shape.height, prepared.shape.width, round(prepared.fps, 3)) == (64, 96, 12.0)
    out = to_frames(first_video(prepared))
    assert len(out) == 16
    assert np.array_equal(out[:12], frames)
    with pytest.raises(UsageError, match=r"given\.mp4 has only 12 frames"):
        prepare(asked(model, extend=file, overlap=13, frames=17))
    made = list(run(prepared, tmp_path / "out"))
    with Video(tmp_path / "out" / f"{made[0].name}.mp4") as written:
        assert len(list(written.frames())) == 16


def test_the_command_fills_between_pictures_and_loops(model: Path, tmp_path: Path) -> None:
    first, last = picture(tmp_path / "first.png"), picture(tmp_path / "last.png", value=10)
    out = to_frames(first_video(prepare(asked(model, first=first, last=last, frames=13))))
    assert len(out) == 13
    assert np.array_equal(out[:1], read_picture(first))
    assert np.array_equal(out[-1:], read_picture(last))
    assert np.array_equal(to_frames(first_video(prepare(asked(model, first=first))))[:1], read_picture(first))
    assert len(to_frames(first_video(prepare(asked(model, last=last))))) == 9
    assert sum(window.new for window in prepare(asked(model, loop=True)).windows) == 13
    assert sum(window.new for window in prepare(asked(model, loop=True, length=29)).windows) == 29
    for wrong in ({"last": last, "loop": True}, {"last": last, "length": 30}, {"last": last, "frames": 1}):
        with pytest.raises(UsageError, match=r"--loop and --last|--length out|--frames 1"):
            prepare(asked(model, **wrong))


def test_pictures_cover_the_size_and_are_cut_from_the_middle() -> None:
    wide = np.zeros((1, 10, 40, 3), np.uint8)
    wide[:, :, 14:26] = 200
    assert np.array_equal(fit(wide, 10, 10), np.full((1, 10, 10, 3), 200, np.uint8))
    assert fit(wide, 30, 30).shape == (1, 30, 30, 3)
    assert abs(float(fit(wide, 5, 5).mean()) - 200) < 1
