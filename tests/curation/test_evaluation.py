"""``cutroom eval``: figures of videos whose truth is known, what is left out, and mistakes."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from curation.cli import app
from curation.decode import Decoder
from curation.errors import UsageError
from curation.evaluation import Measures, choose, means, measure, samples
from curation.isolate import Isolated
from curation.painting import paint
from filters import clip, consistency
from filters.flicker import Flicker
from tests.filters import tiny
from training.pictures import write_video

HEIGHT, WIDTH, COUNT, FPS = 96, 160, 17, 8.0


def frames(px: float = 0.0, *, levels: float = 0.0, cut: bool = False) -> np.ndarray:
    """A pan of so many px a frame; every other frame brighter; another world from the middle on."""
    worlds = [paint(WIDTH + round(px * COUNT) + 2, HEIGHT, name, 3) for name in ("green meadow", "grey harbour")]
    shown = []
    for i in range(COUNT):
        left = round(px * i)
        picture = worlds[cut and i >= COUNT // 2][:, left : left + WIDTH]
        shown.append(np.clip(picture * 0.8 + 20 + (levels if i % 2 else -levels), 0, 255))
    return np.stack(shown).round().astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Samples as ``cutroom sample`` writes them: one pans, one flickers, one falls apart; a torn one."""
    place = tmp_path / "samples"
    place.mkdir()
    kinds = {"pans": frames(8.0), "flickers": frames(levels=5.0), "cuts": frames(cut=True)}
    for name, video in kinds.items():
        write_video(place / f"{name}.mp4", video, fps=FPS)
        (place / f"{name}.json").write_text(json.dumps({"prompt": f"it {name}", "seed": 0}))
    (place / "torn.mp4").write_bytes(b"no film")
    return place


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("models")
    return {"clip": str(tiny.clip(place / "clip")), "dino": str(tiny.dino(place / "dino"))}


def cutroom(*words: object) -> Any:
    return CliRunner().invoke(app, ["eval", *map(str, words)])


def asked(*words: object) -> dict[str, Any]:
    done = cutroom(*words, "--json")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def named(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {Path(one["video"]).stem: one for one in content["videos"]}


def test_figures_say_what_moves_flickers_and_falls_apart(folder: Path, models: dict[str, str]) -> None:
    content = asked(folder, "--clip", models["clip"], "--dino", models["dino"])
    assert content["left_out"] == {}
    figures = {name: one["figures"] for name, one in named(content).items()}
    # 8 px of 96 in an eighth of a second
    assert figures["pans"]["motion_p90"] == pytest.approx(8 / HEIGHT * FPS, rel=0.05)
    assert [figures[name]["dynamic_degree"] for name in ("pans", "flickers")] == [1.0, 0.0]
    assert figures["flickers"]["flicker"] == pytest.approx(10 / 255, rel=0.05)
    assert figures["pans"]["flicker"] < 0.01
    for name in ("subject_consistency", "frame_consistency"):
        assert figures["cuts"][name] < figures["flickers"][name] < 1
    flat = [one["dynamic_degree"] for one in figures.values() if one]
    assert content["mean"]["dynamic_degree"] == pytest.approx(sum(flat) / 3)


@pytest.mark.slow
def test_a_file_that_cannot_be_read_is_a_row_with_the_reason_and_status_1(folder: Path) -> None:
    done = cutroom(folder, "--json")
    assert done.exit_code == 1
    content = json.loads(done.stdout)
    torn = named(content)["torn"]
    assert torn["status"] == "failed"
    assert "cannot be opened" in torn["error"]
    assert (content["num_videos"], content["num_failed"]) == (4, 1)
    (folder / "torn.mp4").unlink()
    assert cutroom(folder).exit_code == 0


def test_scores_by_clip_are_what_open_clip_says_of_the_prompt_and_frames(
    folder: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = clip.embed_pictures

    def watched(model: str, jpegs: list[bytes], **others: Any) -> Any:
        seen.append(jpegs)
        return real(model, jpegs, **others)

    monkeypatch.setattr(clip, "embed_pictures", watched)
    (one,) = measure(samples(str(folder / "pans.mp4")), Measures(clip=models["clip"]))
    (jpegs,) = seen
    assert len(jpegs) == COUNT  # all frames of a video of 8 a second
    pixels = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB) for jpeg in jpegs]
    shown = np.stack([cv2.resize(one, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for one in pixels])
    assert np.abs(shown.astype(float) - frames(8.0)).mean() < 6
    vectors = np.stack(list(real(models["clip"], jpegs)))
    (text,) = clip.embed_texts(models["clip"], ["it pans"])
    assert one.prompt == "it pans"
    assert one.figures["match_score"] == pytest.approx(float(np.mean(vectors @ text)), abs=1e-5)
    to_first = [float(v @ vectors[0]) for v in vectors[1:]]
    to_before = [float(v @ w) for v, w in zip(vectors[1:], vectors, strict=False)]
    expected = np.mean([(max(a, 0) + max(b, 0)) / 2 for a, b in zip(to_first, to_before, strict=True)])
    assert one.figures["frame_consistency"] == pytest.approx(expected, abs=1e-5)


def test_dino_is_what_transformers_says_of_each_frame(models: dict[str, str]) -> None:
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, ViTModel

    jpegs = [cv2.imencode(".png", picture)[1].tobytes() for picture in frames(8.0)[:3]]
    network = ViTModel.from_pretrained(models["dino"], add_pooling_layer=False).eval()
    processor = AutoImageProcessor.from_pretrained(models["dino"], backend="pil")
    for jpeg, found in zip(jpegs, consistency.embed_pictures(models["dino"], jpegs, batch=2), strict=True):
        with torch.no_grad():
            inputs = processor(images=Image.open(io.BytesIO(jpeg)).convert("RGB"), return_tensors="pt")
            vector = network(**inputs).last_hidden_state[0, 0]
        assert found == pytest.approx((vector / vector.norm()).numpy(), abs=1e-5)


def test_consistency_is_one_for_what_stands_still_and_unknown_for_one_frame() -> None:
    still = np.tile(np.array([[0.6, 0.8]]), (4, 1))
    assert consistency.consistency(still) == pytest.approx(1.0)
    assert consistency.consistency(still[:1]) is None
    back_and_forth = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert consistency.consistency(back_and_forth) == pytest.approx((0 + 0 + 1 + 0) / 4)
    assert consistency.consistency(np.array([[1.0, 0.0], [-1.0, 0.0]])) == 0.0  # as VBench counts opposites


def test_without_weights_it_says_what_it_leaves_out_and_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (clip, consistency):
        monkeypatch.setattr(module, "is_here", lambda model: False)
    done = cutroom(folder)
    assert "left out: frame_consistency, match_score: " in done.stdout
    assert f"hf download {clip.DEFAULT}" in done.stdout
    assert f"hf download {consistency.DINO}" in done.stdout
    content = json.loads((folder / "eval.json").read_text())
    assert set(content["left_out"]) == {"frame_consistency", "match_score", "subject_consistency"}
    assert set(content["mean"]) == {"dynamic_degree", "motion_p90", "flicker"}


def test_captions_beside_videos_stand_for_prompts_and_a_torn_one_costs_the_match_only(
    folder: Path, models: dict[str, str]
) -> None:
    (folder / "pans.json").unlink()
    (folder / "pans.txt").write_text("a meadow\nof two lines\n")
    (folder / "cuts.json").write_text("{torn")
    found = {one.video: one for one in measure(samples(str(folder)), Measures(clip=models["clip"]))}
    by_name = {Path(name).stem: one for name, one in found.items()}
    assert by_name["pans"].prompt == "a meadow\nof two lines"
    assert by_name["pans"].figures["match_score"] is not None
    assert by_name["cuts"].status == "done"
    assert "cuts.json is not JSON" in (by_name["cuts"].error or "")
    assert by_name["cuts"].figures["match_score"] is None
    assert by_name["cuts"].figures["flicker"] is not None


@pytest.mark.slow
def test_real_videos_stand_beside_samples_from_a_folder_or_from_shards(folder: Path, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    write_video(real / "walks.mp4", frames(4.0), fps=FPS)
    (real / "walks.txt").write_text("a walk")
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "000000.tar", "w") as tar:
        for name in ("walks.mp4", "walks.txt"):
            tar.add(real / name, name)
    by_folder, by_shards = (asked(folder, "--against", place)["against"] for place in (real, shards))
    assert by_folder["mean"] == by_shards["mean"]
    assert by_shards["mean"]["motion_p90"] == pytest.approx(4 / HEIGHT * FPS, rel=0.05)
    assert [(one["video"], one["prompt"]) for one in by_shards["videos"]] == [("walks", "a walk")]
    said = cutroom(folder, "--against", real).stdout
    assert "mean of real videos" in said


@pytest.mark.slow
def test_the_status_is_1_where_no_real_video_can_be_measured(folder: Path, tmp_path: Path) -> None:
    (folder / "torn.mp4").unlink()
    real = tmp_path / "real"
    real.mkdir()
    (real / "torn.mp4").write_bytes(b"no film")
    assert cutroom(folder, "--against", real, "--limit", 1).exit_code == 1
    write_video(real / "walks.mp4", frames(4.0), fps=FPS)
    assert cutroom(folder, "--against", real).exit_code == 0


def test_a_video_that_memory_does_not_bear_is_a_row_that_says_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Isolated, "_is_too_large", lambda self: True)
    monkeypatch.setattr("curation.isolate._POLL_S", 1e-3)  # it is asked before so short a video is done
    (one,) = measure(samples(str(folder / "pans.mp4")), Measures())
    assert one.status == "failed"
    assert one.error is not None
    assert "needed more than 2048 MB" in one.error
    assert one.error.endswith(": cut it first with `cutroom run`, and give its shards")


class Here:
    """Stands for the child process, so that what it does can be watched."""

    def __init__(self, worker: Decoder, **limits: Any) -> None:
        self.call = worker
        worker.setup()

    def close(self) -> None:
        pass


@pytest.mark.slow
def test_a_long_film_is_measured_in_pieces_and_a_short_one_whole(
    tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    score, embed = Flicker.score, clip.embed_pictures
    given: list[int] = []
    shown: list[int] = []

    def scores(self: Flicker, pictures: np.ndarray, times: np.ndarray) -> float | None:
        given.append(len(pictures))
        return score(self, pictures, times)

    def embeds(model: str, jpegs: list[bytes], **others: Any) -> Any:
        shown.append(len(jpegs))
        return embed(model, jpegs, **others)

    monkeypatch.setattr(Flicker, "score", scores)
    monkeypatch.setattr(clip, "embed_pictures", embeds)
    monkeypatch.setattr("curation.evaluation.Isolated", Here)
    once = frames(4.0, levels=5.0)
    there_and_back = np.concatenate([once, once[::-1]])
    for name, times in (("long", 8), ("short", 3)):  # 136 s and 51 s, at 2 frames a second
        write_video(tmp_path / f"{name}.mp4", np.concatenate([there_and_back] * times), fps=2.0)
    long, short = measure(samples(str(tmp_path)), Measures(clip=models["clip"]))
    *pieces, whole = given
    assert (sum(pieces), whole) == (34 * 8, 34 * 3)
    assert max(pieces) <= 2 * 60 + 1
    assert (sum(shown), max(shown)) == (34 * 11, 64)
    for name in ("motion_p90", "flicker", "frame_consistency"):
        assert long.figures[name] == pytest.approx(short.figures[name], rel=0.05)


@pytest.mark.slow
def test_the_limit_of_a_dynamic_video_can_be_moved(folder: Path) -> None:
    assert named(asked(folder, "--dynamic-above", 2))["pans"]["figures"]["dynamic_degree"] == 0.0


def test_a_limit_takes_videos_spread_over_all(folder: Path) -> None:
    assert [Path(one.video).stem for one in samples(str(folder), limit=2)] == ["cuts", "pans"]


@pytest.mark.slow
def test_means_are_over_the_videos_that_have_a_figure(folder: Path) -> None:
    found = list(measure(samples(str(folder)), Measures()))
    assert means(found)["flicker"] == pytest.approx(np.mean([one.figures["flicker"] for one in found if one.figures]))  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["absent"], "absent: no such file or folder"),
        (["{folder}", "--clip", "absent/clip.d/x"], "--clip: no weights at"),
        (["{folder}", "--dino", "./absent"], "--dino: no weights at"),
        (["{folder}", "--against", "absent"], "absent: neither videos nor shards are there"),
        (["{folder}", "--output", "absent/eval.json"], "in a folder that exists"),
        (["{folder}", "--output", "{folder}/pans.json"], "is no report of `cutroom eval`"),
    ],
)
def test_mistakes_are_said_before_work(
    folder: Path, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> Any:
        raise AssertionError("work has begun")

    monkeypatch.setattr("curation.evaluation.measure", never)
    done = cutroom(*(word.format(folder=folder) for word in words))
    assert isinstance(done.exception, UsageError)
    assert says in str(done.exception)
    assert not (folder / "eval.json").exists()


def test_a_named_model_without_its_package_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--clip x/y: open_clip and torch and torchvision not installed: pip install"):
        choose("x/y", None)
    assert "pip install 'cutroom[models]'" in choose(None, None)[1]["match_score"]
