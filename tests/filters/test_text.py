"""Text of known place and kind: how much of the picture it covers, what it says, whether it was laid over."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from benchmarks.filters import decode, sheets, unpack
from benchmarks.lettered import OVERLAYS, SCENE, SENTENCES, Kind, clip, letter, page, scenery
from curation.frames import fit
from curation.run import run
from curation.table import Store
from filters.overlay import tracks
from filters.reading import Line, Reader
from filters.text import Text, covered, has_strokes, same, to_grey

SIDE = Text.frames.long_side_px
# The index names no text in these, but they show key caps, a brand name and a test picture's counter.
LETTERED = ("decord_video", "colour_chart", "broken_decord_corrupted")
SIZES = {"720p": (1280, 720), "360p": (640, 360), "portrait": (360, 640)}


@pytest.fixture(scope="module")
def stage() -> Text:
    text = Text()
    text.setup()
    return text


@pytest.mark.parametrize(("width", "strings"), [(10, ["A"]), (40, ["A"]), (90, [])])
def test_a_scene_taken_for_one_wide_letter_is_no_text(width: int, strings: list[str]) -> None:
    corners = np.array([[2, 2], [2 + width, 2], [2 + width, 42], [2, 42]])
    reader = Reader.__new__(Reader)
    reader._models = lambda picture, use_det, use_rec, use_cls: (
        SimpleNamespace(boxes=[corners], scores=[0.8]) if use_det else SimpleNamespace(txts=["A"], scores=[0.95])
    )
    assert [line.string for line in reader.lines(np.zeros((60, 100, 3), np.uint8))] == strings


def on_sheet(frames: np.ndarray) -> np.ndarray:
    """Frames T H W 3 as they come off a contact sheet: scaled, and once through JPEG."""
    small = [cv2.cvtColor(fit(frame, SIDE), cv2.COLOR_RGB2BGR) for frame in frames]
    jpegs = [cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 90])[1] for frame in small]
    return np.stack([cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB) for jpeg in jpegs])


def score(stage: Text, frames: np.ndarray) -> dict[str, Any]:
    return stage.score(on_sheet(frames), np.arange(len(frames)) / 2)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("script", SENTENCES)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_area_is_that_of_the_boxes_around_the_letters(
    stage: Text, size: tuple[int, int], script: str, share: float
) -> None:
    random = np.random.default_rng([int(share * 100), size[0], len(script)])
    pages, truths = zip(*(page(random, size, share, script) for _ in range(3)), strict=True)
    measured = score(stage, np.stack(pages))
    assert measured["text_area"] == pytest.approx(np.mean(truths), rel=0.15)


def test_lines_are_read_in_their_order_and_each_string_is_listed_once(stage: Text) -> None:
    picture = np.full((360, 640, 3), 60, np.uint8)
    letter(picture, "Breaking news tonight", (60, 80), 30, "sans")
    letter(picture, "今日新闻报道", (60, 180), 30, "uni")
    letter(picture, "Open until 21:30", (60, 280), 30, "sans")
    other = np.full((360, 640, 3), 90, np.uint8)
    letter(other, "Open until 21:30", (100, 200), 30, "sans")
    letter(other, "EXIT 7", (100, 300), 30, "sans")
    read = score(stage, np.stack([picture, other]))["text"]
    assert read == ["Breaking news tonight", "今日新闻报道", "Open until 21:30", "EXIT 7"]


def test_a_picture_without_text_has_none(stage: Text) -> None:
    frames = np.stack([np.full((360, 640, 3), 40 + 20 * i, np.uint8) for i in range(3)])
    assert score(stage, frames) == {"text_area": 0.0, "overlay_text_area": 0.0, "text": []}


def test_no_frames_are_unknown(stage: Text) -> None:
    assert set(stage.score(np.empty((0, 0, 0), np.uint8), np.empty(0)).values()) == {None}


@pytest.mark.parametrize("count", [1, 3])
def test_text_in_a_picture_that_stands_still_may_be_laid_over_or_not(stage: Text, count: int) -> None:
    picture, truth = page(np.random.default_rng(1), (640, 360), 0.1, "latin")
    measured = score(stage, np.stack([picture] * count))
    assert measured["text_area"] == pytest.approx(truth, rel=0.15)
    assert measured["overlay_text_area"] is None


def test_the_same_frames_give_the_same_scores(stage: Text) -> None:
    frames = clip(np.random.default_rng(3), "title", count=2)
    again = Text()
    again.setup()
    assert score(stage, frames) == score(again, frames) == score(stage, frames)


def test_the_models_use_as_many_threads_as_they_are_given(stage: Text) -> None:
    score(stage, clip(np.random.default_rng(3), "title", count=1))
    for model in (stage._reader._models.text_det, stage._reader._models.text_rec):
        options = model.session.session.get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def test_text_shown_for_a_second_is_found_though_no_frame_between_two_empty_ones_is_read(stage: Text) -> None:
    """Frames 0.5 s apart; with ``shown`` of them lettered, from every offset."""
    for shown, start in [(2, 1), (2, 2), (3, 5)]:
        frames = np.stack([np.full((360, 640, 3), 60 + i % 2 * 30, np.uint8) for i in range(9)])
        for i in range(start, start + shown):
            letter(frames[i], "EXIT 7", (100, 300), 30, "sans")
        found = stage.find(frames, to_grey(frames), np.arange(9) / 2)
        assert [i for i, lines in enumerate(found) if lines] == list(range(start, start + shown))


def test_what_did_not_change_is_not_read_again_and_a_single_other_letter_is(stage: Text) -> None:
    frames = np.stack([np.full((360, 640, 3), 60, np.uint8) for _ in range(3)])
    for i, frame in enumerate(frames):
        letter(frame, "Breaking news tonight", (60, 80), 30, "sans")
        letter(frame, f"Chapter {i + 1}", (60, 180), 30, "sans")
    reader, read = stage._reader, []
    recognise = reader._read
    reader._read = lambda *line: read.append(recognise(*line)) or read[-1]  # type: ignore[method-assign, func-returns-value]
    measured = score(stage, frames)
    del reader._read  # type: ignore[method-assign]
    assert measured["text"] == ["Breaking news tonight", "Chapter 1", "Chapter 2", "Chapter 3"]
    assert [string for string, _ in read].count("Breaking news tonight") == 1


def test_letters_are_strokes_and_soft_shades_are_not() -> None:
    picture = cv2.GaussianBlur(scenery(np.random.default_rng(1), (640, 360)), (0, 0), 12)
    assert not has_strokes(to_grey(picture[None])[0])
    letter(picture, "ok", (300, 200), 12, "sans")
    assert has_strokes(to_grey(picture[None])[0])


def box(x0: float, y0: float, x1: float, y1: float, string: str = "text") -> Line:
    return Line(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float32), string)


@pytest.mark.parametrize("size", [(640, 6), (6, 640), (1, 1)])
def test_a_picture_of_any_shape_can_be_looked_at(stage: Text, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, size[1], size[0], 3), np.uint8)
    assert score(stage, noise)["text_area"] is not None


def test_where_boxes_lie_over_each_other_the_area_counts_once() -> None:
    assert covered([box(0, 0, 49, 49), box(0, 0, 49, 49), box(25, 0, 74, 49)], (100, 100)) == pytest.approx(0.375)
    assert covered([], (100, 100)) == 0.0


def test_a_few_new_letters_are_another_picture_and_compression_is_not() -> None:
    picture = scenery(np.random.default_rng(0), (640, 360))
    grey, compressed = (cv2.cvtColor(p, cv2.COLOR_RGB2GRAY) for p in (picture, on_sheet(picture[None])[0]))
    assert same(grey, compressed)
    letter(picture, "ok", (300, 200), 12, "sans")
    assert not same(grey, cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))


def verdict(frames: list[np.ndarray], lines: list[Line]) -> list[float]:
    """What is made of each text, of one line per frame: 1 laid over, -1 of the scene, 0 cannot tell."""
    return [float(np.sign(track.votes)) for track in tracks(np.stack(frames), [[line] for line in lines])]


def moving(x: int, over: int | None = None) -> np.ndarray:
    """A pan by ``x`` pixels over noise, with a bright box at (100 - x, 100), or laid over at ``over``."""
    noise = cv2.resize(np.random.default_rng(0).integers(0, 200, (40, 100), np.uint8), (800, 320))
    left = 100 - x if over is None else over
    picture = noise[:, 50 + x : 50 + x + 400].copy()
    cv2.putText(picture, "text", (left, 120), cv2.FONT_HERSHEY_DUPLEX, 1.0, 255, 2)
    return picture


def test_text_that_stands_before_a_moving_picture_is_laid_over() -> None:
    assert verdict([moving(20 * i, over=100) for i in range(4)], [box(100, 98, 168, 121)] * 4) == [1.0]


def test_text_that_goes_with_the_picture_is_of_the_scene() -> None:
    lines = [box(100 - 20 * i, 98, 168 - 20 * i, 121) for i in range(4)]
    assert verdict([moving(20 * i) for i in range(4)], lines) == [-1.0]


def test_text_that_drifts_by_less_than_its_height_with_the_picture_is_of_the_scene() -> None:
    lines = [box(100 - 4 * i, 98, 168 - 4 * i, 121) for i in range(4)]
    assert verdict([moving(4 * i) for i in range(4)], lines) == [-1.0]


def test_text_that_changes_in_its_place_is_laid_over_though_nothing_else_moves() -> None:
    said = ["first line", "quite another", "third sentence"]
    lines = [box(100, 98, 168 + 10 * i, 121, string) for i, string in enumerate(said)]
    assert verdict([moving(0)] * 3, lines) == [1.0]


def test_subtitles_in_a_script_that_was_not_read_are_laid_over() -> None:
    lines = [box(100 - 15 * (i // 2), 98, 168 + 15 * (i // 2), 121, "") for i in range(6)]
    assert verdict([moving(20 * i, over=100) for i in range(6)], lines) == [1.0]


def test_nothing_is_told_where_nothing_moves() -> None:
    assert verdict([moving(0)] * 3, [box(100, 98, 168, 121)] * 3) == [0.0]


@pytest.fixture(scope="module")
def told(stage: Text) -> dict[tuple[Kind, int], float]:
    """Generated clip -> how much of its text counts as laid over, 0..1, or NaN where that is unknown."""
    shares = {}
    for kind in (*OVERLAYS, *SCENE):
        for seed in range(50, 56):
            measured = score(stage, clip(np.random.default_rng([seed, len(kind)]), kind, count=6))
            overlay = measured["overlay_text_area"]
            shares[kind, seed] = np.nan if overlay is None else overlay / max(measured["text_area"], 1e-9)
    return shares


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_text_laid_over_is_told_from_text_of_the_scene(told: dict[tuple[Kind, int], float]) -> None:
    right = {key: share > 0.5 if key[0] in OVERLAYS else share < 0.5 for key, share in told.items()}
    wrong = {key: told[key] for key in told if not right[key]}
    assert len(wrong) <= 0.05 * len(told), wrong


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_real_clips_without_text_have_none(real_videos: Path, stage: Text) -> None:
    with (real_videos / "INDEX.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if not row["text_on_screen"]]
    rows = [row for row in rows if not row["file"].startswith(LETTERED)]
    num_frames, wrong = 0, []
    for row in rows:
        for sheet in sheets(decode(real_videos / row["file"])):
            frames, times = unpack(stage, sheet)
            found = stage.find(frames, to_grey(frames), times)
            num_frames += len(frames)
            wrong += [(row["file"], [line.string for line in lines]) for lines in found if lines]
    assert num_frames > 400
    assert len(wrong) <= 0.02 * num_frames, wrong


def test_the_demo_s_large_text_is_found_read_and_rejected(footage: Path, tmp_path: Path) -> None:
    run("offline", [str(footage / "large_text.mp4")], tmp_path / "out", engine="local", shards=False)
    with_text, without = Store(tmp_path / "out").clips().to_pylist()
    assert (with_text["reason"], with_text["text"]) == ("text_area", ["BREAKING NEWS"])
    assert (without["status"], without["text"], without["overlay_text_area"]) == ("kept", [], 0.0)
