"""Files that were cut off: what is readable is used, and the loss is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curation.config import load_plan
from curation.decode import decode_video
from curation.endings import cut_off
from tests.mutants import KINDS, NUM_FRAMES, Kind, make

PLAN = load_plan("as_is")  # no shots, no filters: only reading counts here


def decode(path: Path) -> dict[str, Any]:
    return decode_video(str(path), {"video": path.name, "video_id": "0" * 24}, PLAN.decode, PLAN.dense, False).video


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_a_file_cut_off_is_used_as_far_as_it_goes_and_says_so(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / kind.name
    make(path, kind)
    whole = decode(path)
    assert (whole["status"], whole["error"], whole["num_frames"]) == ("done", None, NUM_FRAMES)
    data = path.read_bytes()
    by_duration = kind.name in ("mpeg2.mxf", "vp9.ivf")  # told by nothing else, and then half a second is not missed
    path.write_bytes(data[: int(len(data) * (0.6 if by_duration else 0.85))])
    cut = decode(path)
    assert cut["status"] == "done"
    assert 0 < cut["num_frames"] < NUM_FRAMES
    assert cut["num_clips"] >= 1
    if kind.has_end:
        assert cut["error"]


def test_sound_real_files_are_whole(real_videos: Path) -> None:
    cut = [path.name for path in sorted(real_videos.iterdir()) if cut_off(path)]
    assert cut == []


def test_a_recording_without_its_index_cannot_be_read(tmp_path: Path) -> None:
    """MP4 that is not faststart keeps its index at the end: without it nobody knows where the frames are."""
    path = tmp_path / "late.mp4"
    make(path, Kind("late.mp4", "mpeg4"))
    path.write_bytes(path.read_bytes()[:-400])
    video = decode(path)
    assert video["status"] == "failed"
    assert "cannot be opened" in video["error"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", None),
        (b"\0\0\0\x08ftyp" * 300_000, None),  # boxes without end are not counted to the end
        (b"\0\0\0\x10ftypisom\0\0\0\0" + b"\xff\xff\xff\xffmdat", "at least 4294967287 bytes"),
        (b"\0\0\0\x01ftyp" + b"\xff" * 8, "at least"),
        (b"RIFF\xff\xff\xff\xffAVI ", "at least 4294967291 bytes"),
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\xff" + bytes(7), None),  # a live stream
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x8f" + bytes(7), "at least 8 bytes"),
        (b"OggS", "at least 23 bytes"),
        (b"GIF89a", "the end mark"),
        (b"G" + bytes(187) + b"G" + bytes(100), "at least 87 bytes"),
    ],
)
def test_sizes_that_lie_are_only_compared(data: bytes, said: str | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    found = cut_off(path)
    assert (found is None) == (said is None)
    assert said is None or said in str(found)
