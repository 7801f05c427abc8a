"""The decode pass: one decode of a video gives its shots, clips, contact sheets and every score that needs motion.

The video is read front to back once. What a shot needs later (small frames for filters, JPEG for the contact sheet) is
kept aside until the shot ends, in memory while small and in a temporary file beyond that. Filters are then given one
clip at a time, so that memory depends on ``max_clip_s`` and not on how long a shot is.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
from typing import Annotated, Any, ClassVar, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from annotated_types import Ge, Gt, Le

from curation.errors import VideoError, one_line
from curation.fingerprint import clip_id
from curation.frames import PACKED
from curation.isolate import alive
from curation.plan import Step
from curation.rules import judge
from curation.shots import LONG_SIDE_PX, DetectorName, ShotDetector
from curation.spool import Spool
from curation.stage import Filter, Stage, operational, run_stage
from curation.table import CLIPS, FRAMES, conform, extend
from curation.video import Frame, Video

_RECENT_FRAMES = 4  # detectors report a cut at most 2 frames late


@dataclasses.dataclass(kw_only=True)
class Decode(Stage):
    """The first stage of every pipeline: videos -> shots -> clips with contact sheets."""

    name: ClassVar[str] = "decode"
    writes: ClassVar[pa.Schema] = CLIPS

    detector: DetectorName = "adaptive"
    threshold: float | None = None  # the detector's own; null is its default
    max_clip_s: Annotated[float, Gt(0)] | None = 10.0  # longer shots are divided into equal pieces; null: never
    sheet_fps: Annotated[float, Gt(0)] = 2.0
    sheet_long_side_px: Annotated[int, Ge(16), Le(4096)] = 640
    sheet_quality: Annotated[int, Ge(1), Le(100)] = 90  # JPEG quality
    threads: Annotated[int, Ge(1)] = operational(2)  # decoder threads per worker
    stall_s: Annotated[float, Gt(0)] = operational(60.0)  # a decoder that shows no progress for so long is stopped
    isolate: bool = operational(True)  # decode in a child process; false only for debugging

    def process(self, clips: pa.Table) -> pa.Table:
        raise TypeError("decode works on videos; the run calls decode_video")


class Decoded(NamedTuple):
    """What one decode gives: the video's row, its clips and their contact sheets."""

    video: dict[str, Any]
    clips: pa.Table
    frames: pa.Table


@dataclasses.dataclass
class Decoder:
    """Decodes videos for one plan; lives in the process that decodes, with its filters set up once."""

    first: Step
    dense: list[Step]
    score_rejected: bool = False

    def setup(self) -> None:
        for step in self.dense:
            step.stage.setup()

    def __call__(self, path: str, row: dict[str, Any]) -> Decoded:
        return decode_video(path, row, self.first, self.dense, self.score_rejected)


def decode_video(path: str, row: dict[str, Any], first: Step, dense: list[Step], score_rejected: bool) -> Decoded:
    """Decode one video once.

    Args:
        path: where the file lies.
        row: its row of the video table, with ``video`` and ``video_id``.
        first: the decode stage with its mark and the rules on its columns.
        dense: the filters that need decoded frames, in order.
        score_rejected: score clips too that a rule has rejected.

    A file that cannot be decoded gives a ``failed`` row and no clips; one that ends early gives what was readable and
    says in ``error`` what was lost.
    """
    assert isinstance(first.stage, Decode)
    schema = extend(CLIPS, *(step.stage.writes for step in dense))
    row = _blank(row, first.mark)
    try:
        with Video(path, threads=first.stage.threads) as video:
            work = _Pass(video, row, first, dense, score_rejected)
            with contextlib.closing(work):
                work.run()
            losses = _losses(video)
    except VideoError as error:
        return Decoded({**row, "status": "failed", "error": str(error)}, schema.empty_table(), FRAMES.empty_table())
    row.update(
        error="; ".join(losses) or None,
        duration_s=video.end_s,
        num_frames=video.num_frames,
        fps=video.num_frames / video.end_s if video.end_s else None,
        width=video.width,
        height=video.height,
        codec=video.codec,
        has_audio=video.has_audio,
        num_shots=work.num_shots,
        num_clips=len(work.clips),
    )
    clips = pa.concat_tables([conform(clip, schema) for clip in work.clips] or [schema.empty_table()])
    return Decoded(row, clips, pa.Table.from_pylist(work.sheet, schema=FRAMES))


def _losses(video: Video) -> list[str]:
    losses = list(video.losses)
    declared_s = video.declared_duration_s()
    if declared_s is not None and video.end_s < declared_s - max(0.5, 0.02 * declared_s):
        losses.append(f"ended early: {video.end_s:.2f} s of {declared_s:.2f} s could be read")
    return losses


class _Pass:
    """The state of one decode: the shot being read and what has come out so far."""

    def __init__(self, video: Video, row: dict[str, Any], first: Step, dense: list[Step], score_rejected: bool) -> None:
        assert isinstance(first.stage, Decode)
        self.video, self.row, self.first, self.dense = video, row, first, dense
        self.settings = first.stage
        self.score_rejected = score_rejected
        self.detector = ShotDetector(self.settings.detector, self.settings.threshold)
        self.times: list[float] = []  # of the frames of the current shot
        self.shot_start = 0  # index of its first frame
        self.recent: collections.deque[Frame] = collections.deque(maxlen=_RECENT_FRAMES)
        requests = {step.stage.frames for step in dense if isinstance(step.stage, Filter)}
        self.kept = {request: Spool(request.fps or 1.0) for request in sorted(requests, key=lambda r: r.column)}
        self.sheet_kept = Spool(self.settings.sheet_fps)
        self.clips: list[pa.Table] = []
        self.sheet: list[dict[str, Any]] = []
        self.num_shots = 0

    def close(self) -> None:
        """Remove the temporary files."""
        for kept in (*self.kept.values(), self.sheet_kept):
            kept.file.close()

    def run(self) -> None:
        for frame in self.video.frames():
            alive()
            self.recent.append(frame)
            self.times.append(frame.t_s)
            pictures = _Pictures(frame, self.video)
            for request, kept in self.kept.items():
                if kept.wants(frame.t_s):
                    kept.add(frame.index, frame.t_s, pictures.get(request.long_side_px, request.colour).tobytes())
                    kept.shape = pictures.get(request.long_side_px, request.colour).shape
            if self.sheet_kept.wants(frame.t_s):
                self._keep_for_sheet(frame, pictures)
            for cut in self.detector.push(frame.index, pictures.get(LONG_SIDE_PX, "bgr")):
                self._close_shot(cut)
        for cut in self.detector.finish():
            self._close_shot(cut)
        self._close_shot(self.shot_start + len(self.times))

    def _keep_for_sheet(self, frame: Frame, pictures: _Pictures) -> None:
        picture = pictures.get(self.settings.sheet_long_side_px, "bgr")
        _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, self.settings.sheet_quality])
        self.sheet_kept.add(frame.index, frame.t_s, jpeg.tobytes())

    def _close_shot(self, cut: int) -> None:
        """End the current shot before frame ``cut``, and turn it into clips."""
        count = cut - self.shot_start
        if count <= 0:
            return
        times, self.times = self.times[:count], self.times[count:]
        end_s = self.times[0] if self.times else self.video.end_s
        for low, high in divide(times, end_s, self.settings.max_clip_s):
            self._make_clip(self.shot_start + low, times[low:high], times[high] if high < count else end_s)
        self.num_shots += 1
        self.shot_start = cut
        for kept in (*self.kept.values(), self.sheet_kept):
            kept.drop_before(cut)
        # A clip shorter than the grid has a contact sheet too.
        if self.times and not any(entry.frame == cut for entry in self.sheet_kept.entries):
            for frame in self.recent:
                if frame.index == cut:
                    self._keep_for_sheet(frame, _Pictures(frame, self.video))

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
        for request, kept in self.kept.items():
            clip = clip.append_column(request.column, pa.array([kept.packed(start, start + count)], PACKED))
        for step in self.dense:
            clip = run_stage(step.stage, clip, mark=step.mark, score_rejected=self.score_rejected)
            clip = judge(clip, step.rules)
            alive()
        self.clips.append(clip)
        for entry in self.sheet_kept.between(start, start + count):
            self.sheet.append({"clip_id": identity, "t_s": entry.t_s, "jpeg": self.sheet_kept.read(entry)})


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
    nearer_before = (at > 0) & (
        wanted - np.take(times, at - 1) < np.take(times, np.minimum(at, len(times) - 1)) - wanted
    )
    bounds = sorted({0, len(times), *(at - nearer_before).tolist()})
    return list(itertools.pairwise(bounds))


class _Pictures:
    """The sizes of one frame that are asked for, each converted once."""

    def __init__(self, frame: Frame, video: Video) -> None:
        self._frame, self._video = frame, video
        self._done: dict[tuple[int, str], np.ndarray] = {}

    def get(self, long_side_px: int, colour: str) -> np.ndarray:
        """H W (grey) or H W 3 (``rgb`` or ``bgr``)."""
        key = (long_side_px, colour)
        if key not in self._done:
            if colour == "bgr":
                self._done[key] = self._frame.picture(*self._video.size(long_side_px))
            else:
                code = cv2.COLOR_BGR2GRAY if colour == "grey" else cv2.COLOR_BGR2RGB
                self._done[key] = cv2.cvtColor(self.get(long_side_px, "bgr"), code)
        return self._done[key]


def failed(row: dict[str, Any], error: BaseException, mark: str) -> Decoded:
    """The result for a video whose decoder crashed, hung or raised something unforeseen."""
    message = str(error) if isinstance(error, VideoError) else one_line(error)
    return Decoded(
        {**_blank(row, mark), "status": "failed", "error": message}, CLIPS.empty_table(), FRAMES.empty_table()
    )


def _blank(row: dict[str, Any], mark: str) -> dict[str, Any]:
    """The video's row before anything is known but the file itself."""
    about = {name: row.get(name) for name in ("video", "video_id", "bytes", "mtime_ns")}
    return {**about, "status": "done", "measured": [mark], "num_clips": 0, "num_shots": 0}
