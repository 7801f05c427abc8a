"""Turning decoded frames into shots, clips, contact sheets and dense scores, in one pass over the frames.

What a shot needs later (small frames for filters, JPEG for the contact sheet) is kept aside until the shot ends, in
memory while small and in a temporary file beyond that. Filters are then given one clip at a time. A shot that goes on
and on is divided at a grid of presentation time, so that what is kept aside is bounded, and so that a film can
be worked on in ranges with the same result.
"""

from __future__ import annotations

import bisect
import collections
import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa

from curation.fingerprint import clip_id
from curation.frames import PACKED, Frames
from curation.isolate import alive
from curation.likeness import SIZE
from curation.picture import Frame, upright
from curation.plan import Step
from curation.rules import judge
from curation.sheets import SheetFile
from curation.shots import Cut, ShotDetector
from curation.spool import Spool
from curation.stage import Filter, run_stage
from curation.table import CLIPS
from curation.video import Video

if TYPE_CHECKING:
    from curation.decode import Decode

CONTEXT_S = 10.0  # shot detection looks no farther back
_MOST_SKETCHES = 2048  # kept for clips that lie between two points of the contact sheet's grid; 14 MB
_MOST_TABLES = 64  # a table of one row takes 25 KB, a film has a thousand clips


class Range(NamedTuple):
    """The part of a video that one pass is for: the clips that begin in it. Presentation seconds, half open."""

    start_s: float = 0.0
    end_s: float = float("inf")


class ClipMaker:
    """The state of one pass: the shot being read and what has come out so far.

    Args:
        video: where the frames come from.
        row: the video's row, with ``video`` and ``video_id``.
        first: the decode stage with its mark and the rules on its columns.
        dense: the filters that need decoded frames, in order.
        score_rejected: score clips too that a rule has rejected.
        sheet: where contact sheets go.
        span: the range of this pass.

    Attributes:
        clips: tables of one row or more, in order.
        transitions: (start_s, end_s) of gradual transitions; no clip has any part of them.
        num_frames: shown frames in the range.
        num_shots: shots that begin in the range.
    """

    def __init__(
        self,
        video: Video,
        row: dict[str, Any],
        *,
        first: Step,
        dense: list[Step],
        score_rejected: bool,
        sheet: SheetFile,
        span: Range = Range(),  # noqa: B008 - immutable
    ) -> None:
        self.video, self.row, self.first, self.dense = video, row, first, dense
        self.settings: Decode = first.stage  # type: ignore[assignment]
        self.score_rejected = score_rejected
        self.span = span
        self.clips: list[pa.Table] = []
        self.sheet = sheet
        self.transitions: list[dict[str, float]] = []
        self.num_frames = self.num_shots = 0
        self._detector = ShotDetector(self.settings.detector, self.settings.threshold)
        dense_names = [name for step in dense for name in step.stage.writes.names]
        self._columns = list(dict.fromkeys([*CLIPS.names, *dense_names]))
        self._times: list[float] = []  # of the frames since the current shot began
        self._start = 0  # index of its first frame
        self._new_shot = True  # whether it begins here, or goes on from a point of the grid
        requests = {step.stage.frames for step in dense if isinstance(step.stage, Filter)}
        self._kept = {request: Spool(request.fps or 1.0) for request in sorted(requests, key=lambda r: r.column)}
        self._sheet_kept = Spool(self.settings.sheet_fps)
        self._sketches: collections.deque[tuple[float, np.ndarray]] = collections.deque(maxlen=_MOST_SKETCHES)

    def close(self) -> None:
        """Remove the temporary files."""
        for kept in (*self._kept.values(), self._sheet_kept):
            kept.close()

    def run(self) -> None:
        """Read the frames until all clips of the range are made."""
        lead_s = CONTEXT_S + (self.settings.max_clip_s or 0.0)
        for frame in self.video.frames(max(0.0, self.span.start_s - lead_s)):
            alive()
            self._take(frame)
            if self._times and self._times[0] >= self.span.end_s:
                return
        for cut in self._detector.finish():
            self._end_shot(cut)
        last = self._start + len(self._times)
        self._end_shot(Cut(last, last))

    def _take(self, frame: Frame) -> None:
        self._times.append(frame.t_s)
        self.num_frames += self.span.start_s <= frame.t_s < self.span.end_s
        for request, kept in self._kept.items():
            if kept.wants(frame.t_s):
                kept.add(frame.index, frame.t_s, self._picture(frame, request))
        if self._sheet_kept.wants(frame.t_s):
            picture = frame.picture(*self.video.size(self.settings.sheet_long_side_px))
            self._sheet_kept.add(frame.index, frame.t_s, self._jpeg(picture))
        sketch = frame.sketch(*SIZE)
        self._sketches.append((frame.t_s, sketch))
        for cut in self._detector.push(frame.index, frame.t_s, sketch):
            self._end_shot(cut)
        self._divide_on_grid(self._time(max(self._start, self._detector.settled)))

    def _picture(self, frame: Frame, request: Frames) -> np.ndarray:
        size = self.video.size(request.long_side_px)
        return frame.grey(*size) if request.colour == "grey" else cv2.cvtColor(frame.picture(*size), cv2.COLOR_BGR2RGB)

    def _jpeg(self, picture: np.ndarray) -> np.ndarray:
        return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, self.settings.sheet_quality])[1]

    def _time(self, index: int) -> float:
        """When the frame with this index is shown; for one that is yet to come, the end of what was read."""
        position = index - self._start
        return self._times[position] if position < len(self._times) else self.video.end_s

    def _end_shot(self, cut: Cut) -> None:
        """End the current shot, turn it into clips, and begin the next one."""
        end_s = self._time(cut.end)
        self._divide_on_grid(end_s)
        self._make_clips(self._times[: cut.end - self._start], end_s)
        if cut.start > cut.end and self._is_ours(end_s):
            self.transitions.append({"start_s": end_s, "end_s": self._time(cut.start)})
        self._go_on_from(cut.start)
        self._new_shot = True

    def _go_on_from(self, index: int) -> None:
        """Forget what is kept of the frames before this one."""
        self._times = self._times[index - self._start :]
        self._start = index
        for kept in (*self._kept.values(), self._sheet_kept):
            kept.drop_before(index)

    def _divide_on_grid(self, settled_s: float) -> None:
        """Divide the current shot at each point of the grid that lies far enough from both of its ends.

        Both sides must be long enough to be divided further into pieces of nearly equal length. The rule looks no
        farther than that, so a pass that starts in the middle of a film divides it at the same points.

        Args:
            settled_s: the shot does not end before this.
        """
        margin_s = self.settings.max_clip_s
        while margin_s is not None and self._times:
            grid_s = self.settings.grid_s * math.ceil((self._times[0] + margin_s) / self.settings.grid_s)
            if settled_s < grid_s + margin_s:
                return
            count = bisect.bisect_left(self._times, grid_s)
            if count in (0, len(self._times)):
                return
            self._make_clips(self._times[:count], self._times[count])
            self._go_on_from(self._start + count)
            self._new_shot = False

    def _is_ours(self, t_s: float) -> bool:
        return self.span.start_s <= t_s < self.span.end_s

    def _make_clips(self, times: list[float], end_s: float) -> None:
        if not times or not self._is_ours(times[0]):
            return
        self.num_shots += self._new_shot
        for low, high in divide(times, end_s, self.settings.max_clip_s):
            self._make_clip(self._start + low, times[low:high], times[high] if high < len(times) else end_s)

    def _make_clip(self, start: int, times: list[float], end_s: float) -> None:
        start_s, count = times[0], len(times)
        identity = clip_id(self.row["video_id"], start_s, end_s)
        row = {
            "clip_id": identity,
            "video": self.row["video"],
            "video_id": self.row["video_id"],
            "start_s": start_s,
            "end_s": end_s,
            "duration_s": end_s - start_s,
            "num_frames": count,
            "fps": count / (end_s - start_s),
            "width": self.video.width,
            "height": self.video.height,
            "codec": self.video.codec,
            "has_audio": self.video.has_audio,
            "status": "kept",
            "measured": [self.first.mark],
        }
        clip = judge(pa.Table.from_pylist([row], schema=CLIPS), self.first.rules)
        for request, kept in self._kept.items():
            packed = kept.packed(start, start + count, request.every)
            clip = clip.append_column(request.column, pa.array([packed], PACKED))
        for step in self.dense:
            clip = run_stage(step.stage, clip, mark=step.mark, score_rejected=self.score_rejected)
            clip = judge(clip, step.rules)
            alive()
        self.clips.append(clip.select(self._columns))
        if len(self.clips) > _MOST_TABLES:
            self.clips = [pa.concat_tables(self.clips).combine_chunks()]
        for t_s, jpeg in self._sheet_of(start, start + count, start_s, end_s):
            self.sheet.add(identity, t_s, jpeg)

    def _sheet_of(self, start: int, end: int, start_s: float, end_s: float) -> Iterator[tuple[float, bytes]]:
        entries = self._sheet_kept.between(start, end)
        for entry in entries:
            yield entry.t_s, self._sheet_kept.read(entry)
        if not entries:  # shorter than the grid: what there is
            for t_s, sketch in self._sketches:
                if start_s <= t_s < end_s:
                    picture = cv2.resize(upright(sketch, self.video.rotation), self.video.size(2 * SIZE[0]))
                    yield t_s, self._jpeg(picture).tobytes()
                    return


def divide(times: list[float], end_s: float, max_s: float | None) -> list[tuple[int, int]]:
    """Divide a shot into the fewest pieces of nearly equal length, none longer than ``max_s`` by more than a frame.

    Args:
        times: of its frames, in seconds.
        end_s: where the shot ends.
        max_s: longest piece; None keeps the shot whole.

    Returns:
        (first, end) frame positions of the pieces, which partition ``range(len(times))``.
    """
    length_s = end_s - times[0]
    pieces = 1 if max_s is None else max(1, int(np.ceil(length_s / max_s - 1e-6)))
    wanted = times[0] + length_s * np.arange(1, pieces) / pieces
    at = np.searchsorted(times, wanted)
    edges = np.array([*times, end_s])  # behind the last frame too: it may be shown for long
    nearer_before = (at > 0) & (wanted - edges[at - 1] < edges[at] - wanted)
    bounds = sorted({0, len(times), *(at - nearer_before).tolist()})
    return list(itertools.pairwise(bounds))
