"""The generated world: what is true is what is drawn and said, and no single frame tells the direction."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from captioning.world import ATTRIBUTES, DIRECTIONS, Scene, attributes_of, draw, make_world, read_truth, scenes, unseen
from curation.painting import COLOURS
from curation.table import Store

SCENE = Scene(shape="bar", colour="red", direction="left", background="blue sky", camera="static", letters=False)


def covered(frame: np.ndarray) -> np.ndarray:
    """Where the red shape is, H W bool."""
    return np.abs(frame.astype(int) - np.array(COLOURS["red"])).sum(axis=2) < 90


def test_captions_can_be_read_back() -> None:
    for values in itertools.product(*ATTRIBUTES.values(), (True, False)):
        truth = dict(zip((*ATTRIBUTES, "letters"), values, strict=True))
        assert attributes_of(Scene(**truth).caption) == {name: str(value) for name, value in truth.items()}
    assert attributes_of("A red bar or a ring")["shape"] is None
    assert attributes_of("")["background"] is None


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_shapes_move_where_the_caption_says(direction: str) -> None:
    frames = draw(dataclasses.replace(SCENE, direction=direction), seed=3)
    first, second = (covered(frame) for frame in frames[:2])
    shifts = {
        name: max(
            (np.roll(first, (dy * step, dx * step), (0, 1)) & second).sum() for step in (2, 3, 4)
        )
        for name, (dx, dy) in DIRECTIONS.items()
    }  # fmt: skip
    assert max(shifts, key=lambda name: shifts[name]) == direction


@pytest.mark.parametrize("place", [0, 7])
def test_a_single_frame_tells_nothing_of_the_direction(place: int) -> None:
    """The shape is everywhere equally often, whichever way it goes: shares of 8 x 8 px blocks, of 600 clips each."""
    for direction in DIRECTIONS:
        scene = dataclasses.replace(SCENE, direction=direction)
        share = np.mean([covered(draw(scene, seed=seed)[place]) for seed in range(600)], axis=0)
        blocks = share.reshape(6, 8, 6, 8).mean(axis=(1, 3))
        assert abs(blocks.mean() - 0.11) < 0.02
        assert blocks.std() < 0.015
        assert abs(blocks[:, :3].mean() - blocks[:, 3:].mean()) < 0.015
        assert abs(blocks[:3].mean() - blocks[3:].mean()) < 0.015


@pytest.mark.parametrize("colours", [6, 12])
def test_some_combinations_are_kept_for_later(colours: int) -> None:
    known = {scene.look for scene in scenes(3000, seed=1, colours=colours)}
    new = {scene.look for scene in scenes(300, seed=1, new=True, colours=colours)}
    assert len(known) + len(new) == 4 * colours
    assert len(new) == 4 * colours / 6
    assert not known & new
    assert all(map(unseen, new))
    shapes = collections.Counter(shape for _, shape in new)
    assert shapes == dict.fromkeys(ATTRIBUTES["shape"], colours // 6)  # each shape alike and no colour twice
    assert len({colour for colour, _ in new}) == len(new)


def test_the_same_seed_makes_the_same_tables(tmp_path: Path) -> None:
    first, second, third = (make_world(tmp_path / name, 12, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    for kind in ("videos", "clips", "frames"):
        one, other = (next(store.parts(kind))[1] for store in (first, second))
        assert one.equals(other)
    clips = first.clips().to_pylist()
    truth = read_truth(tmp_path / "a")
    assert {clip["clip_id"]: clip["caption"] for clip in clips} == {key: s.caption for key, s in truth.items()}
    assert len({clip["video_id"] for clip in clips}) == 3
    assert not set(truth) & set(read_truth(tmp_path / "c"))
    frames = next(Store(third.root).parts("frames"))[1]
    assert frames.num_rows == 12 * 8
