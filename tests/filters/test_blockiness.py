"""Blockiness of pictures that were compressed on the spot."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from curation.config import load_plan
from curation.decode import decode_video
from curation.footage import Film, Shot, write_film
from curation.painting import paint
from filters.blockiness import Blockiness


def score(*frames: np.ndarray) -> float | None:
    value: float | None = Blockiness().score(np.stack(frames), np.arange(len(frames)) * 2.0)
    return value


def picture() -> np.ndarray:
    grey = cv2.cvtColor(paint(640, 360, "green meadow", seed=4), cv2.COLOR_RGB2GRAY)
    noise = np.random.default_rng(0).normal(0, 2, grey.shape)
    return np.clip(grey + noise, 0, 255).astype(np.uint8)


def compressed(quality: int) -> np.ndarray:
    data = cv2.imencode(".jpg", picture(), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))


def test_stronger_compression_is_blockier() -> None:
    values = [score(picture()), *(score(compressed(quality)) for quality in (40, 15, 5))]
    assert values == sorted(values)  # type: ignore[type-var]
    assert values[0] < 0.1  # type: ignore[operator]
    assert values[-1] > 0.3  # type: ignore[operator]


def test_it_makes_no_difference_where_the_grid_begins() -> None:
    whole = compressed(10)
    assert score(whole[3:, 5:]) == pytest.approx(score(whole), rel=0.1)


def test_one_strong_edge_is_no_grid() -> None:
    frame = picture()
    frame[:, 320:] = 255 - frame[:, 320:] // 4
    assert score(frame) < 0.1  # type: ignore[operator]


def test_blocks_of_one_colour_are_nothing_but_blocks() -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (45, 80)).astype(np.uint8)
    assert score(np.repeat(np.repeat(blocks, 8, axis=0), 8, axis=1)) == 1.0


@pytest.mark.parametrize("frame", [np.full((360, 640), 90, np.uint8), np.full((8, 8), 90, np.uint8)])
def test_a_flat_or_tiny_picture_is_unknown(frame: np.ndarray) -> None:
    assert score(frame) is None


@pytest.mark.parametrize(
    ("longest_s", "seen_s"),
    [(0.75, [[0], [1], [1.5], [2.5], [3], [4], [4.5], [5.5]]), (1.5, [[0], [1.5], [3], [4.5]]), (6.0, [[0, 2, 4]])],
)
def test_a_clip_is_looked_at_where_it_begins_and_then_every_two_seconds(
    longest_s: float, seen_s: list[list[float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short it is and wherever it lies."""
    given: list[list[float]] = []
    score = Blockiness.score

    def watched(self: Blockiness, frames: np.ndarray, times: np.ndarray) -> float | None:
        given.append(times.tolist())
        value: float | None = score(self, frames, times)
        return value

    monkeypatch.setattr(Blockiness, "score", watched)
    film = Film(name="pan.mp4", shots=(Shot(seconds=6.0, camera="pan_right"),), fps=12, width=160, height=96)
    write_film(tmp_path / film.name, film)
    decode = f"{{detector: none, max_clip_s: {longest_s}, isolate: false}}"
    (tmp_path / "p.yaml").write_text(f"p:\n  stages:\n    - decode: {decode}\n    - blockiness\n")
    plan = load_plan("p", tmp_path / "p.yaml")
    row = {"video": film.name, "video_id": "0" * 24}
    clips = decode_video(str(tmp_path / film.name), row, plan.decode, plan.dense, score_rejected=False).clips
    assert given == seen_s
    assert None not in clips["blockiness"].to_pylist()
