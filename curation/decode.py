"""The decode pass: one decode of a video gives its shots, clips, contact sheets and every score that needs motion."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, NamedTuple

import cv2
import pyarrow as pa
from annotated_types import Ge, Gt, Le

from curation.clips import ClipMaker, Range
from curation.errors import VideoError, one_line
from curation.plan import Step
from curation.sheets import SheetFile, take_sheets
from curation.shots import DetectorName
from curation.stage import Stage, operational
from curation.table import CLIPS, FRAMES, extend
from curation.video import Video


@dataclasses.dataclass(kw_only=True)
class Decode(Stage):
    """The first stage of every pipeline: videos -> shots -> clips with contact sheets."""

    name: ClassVar[str] = "decode"
    version: ClassVar[int] = 5
    writes: ClassVar[pa.Schema] = CLIPS

    detector: DetectorName = "adaptive"
    threshold: float | None = None  # the detector's own; null is its default
    max_clip_s: Annotated[float, Gt(0)] | None = 10.0  # longer shots are divided into equal pieces; null: never
    grid_s: Annotated[float, Gt(0)] = 120.0  # very long shots are divided at multiples; ranges of films begin there
    exact: bool = False  # true: deblock frames too that no other frame needs; scores differ by 2% at most
    sheet_fps: Annotated[float, Gt(0)] = 2.0
    sheet_long_side_px: Annotated[int, Ge(16), Le(4096)] = 640
    sheet_quality: Annotated[int, Ge(1), Le(100)] = 90  # JPEG quality
    threads: Annotated[int, Ge(1)] = operational(1)  # per worker; more workers use the CPUs better than more threads
    stall_s: Annotated[float, Gt(0)] = operational(60.0)  # a decoder that shows no progress for so long is stopped
    # What the decoder's process may hold beyond its models. Measured: 8K HEVC of 10 bits takes 900 MB with 2 threads
    # and 1700 MB with 8, 8K H.264 600 MB, 4K 200 MB.
    memory_mb: Annotated[int, Ge(256)] = operational(2048)
    isolate: bool = operational(True)  # decode in a child process; false only for debugging

    def __post_init__(self) -> None:
        self.grid_s = max(self.grid_s, 2 * (self.max_clip_s or 0.0))  # room for two clips

    def process(self, clips: pa.Table) -> pa.Table:
        raise TypeError("decode works on videos, not on clips: see Decoder")


class Decoded(NamedTuple):
    """What decoding a video gives: its row, its clips and their contact sheets."""

    video: dict[str, Any]
    clips: pa.Table
    frames: pa.Table


class Piece(NamedTuple):
    """What decoding one range of a video gives; the contact sheets are in a file of their own."""

    clips: pa.Table
    facts: dict[str, Any]  # of the video as a whole: size, codec, whether it has sound, the length it declares
    end_s: float  # how far it was read
    num_frames: int
    num_shots: int
    transitions: list[dict[str, float]]
    losses: list[str]


@dataclasses.dataclass
class Decoder:
    """Decodes videos for one plan; lives in the process that decodes, with its filters set up once."""

    first: Step
    dense: list[Step]
    score_rejected: bool = False

    def setup(self) -> None:
        for step in self.dense:
            step.stage.setup()

    def __call__(self, path: str, row: dict[str, Any], span: Range, sheets: str) -> Piece:
        """Decode one range of a video.

        Args:
            path: where the video lies.
            row: its row of the video table, with ``video`` and ``video_id``.
            span: the range; clips that begin in it are made.
            sheets: file to write their contact sheets to.

        Raises:
            VideoError: the file cannot be decoded. One that ends early gives what was readable, and losses.
        """
        settings = self.first.stage
        assert isinstance(settings, Decode)
        with (
            Video(path, threads=settings.threads, exact=settings.exact) as video,
            SheetFile(sheets) as sheet,
        ):
            if span.start_s > 0 and not video.seekable:
                raise VideoError("cannot be decoded from the middle on")
            work = ClipMaker(
                video,
                row,
                first=self.first,
                dense=self.dense,
                score_rejected=self.score_rejected,
                sheet=sheet,
                span=span,
            )
            with contextlib.closing(work), _one_thread():
                work.run()
            if span != Range() and not video.seekable:  # where the others begin and end, nobody knows
                raise VideoError("its timestamps had to be mended, so it cannot be decoded in ranges")
            facts = {name: getattr(video, name) for name in ("width", "height", "codec", "has_audio")}
            facts["seekable"] = video.seekable
            facts["declared_s"] = video.declared_duration_s()
            clips = pa.concat_tables([self.clip_schema.empty_table(), *work.clips])
            return Piece(
                clips, facts, video.end_s, work.num_frames, work.num_shots, work.transitions, list(video.losses)
            )

    @property
    def clip_schema(self) -> pa.Schema:
        return extend(CLIPS, *(step.stage.writes for step in self.dense))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep OpenCV to one thread: engines run one worker per CPU, and optical flow depends on how it is shared out."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def decode_video(path: str, row: dict[str, Any], first: Step, dense: list[Step], score_rejected: bool) -> Decoded:
    """Decode one video in this process and in one pass.

    A file that cannot be decoded gives a ``failed`` row and no clips; one that ends early gives what was readable and
    says in ``error`` what was lost.
    """
    decoder = Decoder(first, dense, score_rejected)
    with tempfile.TemporaryDirectory(prefix="cutroom-") as folder:
        sheets = os.path.join(folder, "sheets.arrow")
        try:
            piece = decoder(path, row, Range(), sheets)
        except VideoError as error:
            return failed(row, error, first.mark)
        return join(row, first.mark, [piece], [take_sheets(sheets)])


def join(row: dict[str, Any], mark: str, pieces: list[Piece], frames: list[pa.Table]) -> Decoded:
    """Put the ranges of a video together, in order."""
    facts = dict(pieces[0].facts)
    declared_s = facts.pop("declared_s")
    duration_s = max(piece.end_s for piece in pieces)
    losses = list(dict.fromkeys(loss for piece in pieces for loss in piece.losses))
    if declared_s is not None and duration_s < declared_s - max(0.5, 0.02 * declared_s):
        losses.append(f"ended early: {duration_s:.2f} s of {declared_s:.2f} s could be read")
    num_frames = sum(piece.num_frames for piece in pieces)
    clips = pa.concat_tables([piece.clips for piece in pieces])
    video = {
        **_blank(row, mark),
        **facts,
        "error": "; ".join(losses) or None,
        "duration_s": duration_s,
        "num_frames": num_frames,
        "fps": num_frames / duration_s if duration_s else None,
        "num_shots": sum(piece.num_shots for piece in pieces),
        "num_clips": clips.num_rows,
        "transitions": [transition for piece in pieces for transition in piece.transitions],
    }
    return Decoded(video, clips, pa.concat_tables(frames))


def failed(row: dict[str, Any], error: BaseException, mark: str) -> Decoded:
    """The result for a video whose decoder crashed, hung or raised something unforeseen."""
    message = str(error) if isinstance(error, VideoError) else one_line(error)
    return Decoded(
        {**_blank(row, mark), "status": "failed", "error": message}, CLIPS.empty_table(), FRAMES.empty_table()
    )


def _blank(row: dict[str, Any], mark: str) -> dict[str, Any]:
    """The video's row before anything is known but the file itself."""
    about = {name: row.get(name) for name in ("video", "video_id", "bytes", "mtime_ns")}
    return {**about, "status": "done", "measured": [mark], "num_clips": 0, "num_shots": 0, "transitions": []}
