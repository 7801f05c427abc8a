"""How fast the picture moves, what of it is the camera, and how much of the time it stands still."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
import pyarrow as pa

from curation.frames import Frames
from curation.stage import Filter
from filters import camera, similarity

_CHANGED_LEVELS = 10  # a pixel has changed when its grey level differs by more (of 255); less is noise
_CHANGED_SHARE = 0.001  # two frames are the same when fewer pixels have changed
_MOVED = 0.0023  # frame heights a step; and it moved by less: a slow pan over soft ground changes few pixels
_WINDOW = 8  # intervals between frames (a second)
_SLOW_PX = 0.35  # a step below this is too short to measure: the flow is off by up to 0.03 px
_FAST_PX = 2.0  # the flow of a step above this may have lost its way: it finds up to 7 px by itself
_FAR_PX = 3.0  # a shift below this it finds by itself
_PATCH_PX = 8  # of the flow, on pictures of half the size: a narrower picture has no room for one


class _Step(NamedTuple):
    """Two frames compared; speeds over the picture in pixels."""

    first: int
    last: int
    flow: np.ndarray
    median_px: float
    tail_px: float


@dataclasses.dataclass(kw_only=True)
class Motion(Filter):
    """Dense optical flow over an eighth of a second, four times a second; over a whole second where little moves.

    Writes:
        motion_score: median speed over the picture, averaged over time, in frame heights per second.
        motion_p90: the same for the 90th percentile of the picture: what the fastest tenth does.
        still_share: share (0..1) of the time in which nothing visibly changes.
        camera_motion: what the camera does: ``static``, or some of ``pan_left``, ``pan_right``, ``tilt_up``,
            ``tilt_down``, ``zoom_in``, ``zoom_out``, ``roll_cw``, ``roll_ccw`` and ``shake``, or ``undetermined``.
            Directions are the camera's: the picture moves to the left in ``pan_right``. A camera that moves is named
            by what its picture does: one that goes forward zooms in.
        camera_confidence: share (0..1) of the picture's detail that moves as the camera's motion says, median over
            time; towards 0 where there is hardly any detail.
        camera_speed: mean over the picture of the speed that the camera's motion gives it, median over time, in frame
            heights per second. Unknown where the camera is undetermined.
        object_motion: speed against the camera's motion, in frame heights per second: averaged over all parts of the
            picture that have texture, where those that follow the camera (within the error of the flow) count as 0. A
            thing on a tenth of the picture that moves at 0.5 gives about 0.05. Unknown likewise.

    Frames are taken on a time grid and speeds divided by the true time between them, so the frame rate does not matter;
    pictures are scaled to one size, so the resolution does not. Pictures more than six times as wide as they are high,
    or as high as wide, are not measured. Flow: DIS (Kroeger et al., ECCV 2016), OpenCV's.
    """

    name: ClassVar[str] = "motion"
    version: ClassVar[int] = 4
    frames: ClassVar[Frames] = Frames(fps=8, long_side_px=96)
    writes: ClassVar[pa.Schema] = pa.schema(
        [
            ("motion_score", pa.float32()),
            ("motion_p90", pa.float32()),
            ("still_share", pa.float32()),
            ("camera_motion", pa.list_(pa.string())),
            ("camera_confidence", pa.float32()),
            ("camera_speed", pa.float32()),
            ("object_motion", pa.float32()),
        ]
    )

    def score(self, frames: np.ndarray, times: np.ndarray) -> dict[str, Any]:
        if len(frames) < 2 or min(frames.shape[1:]) < 2 * _PATCH_PX:
            return dict.fromkeys(self.writes.names)
        halves = np.stack([_halved(frame) for frame in frames])
        windows = list(_windows(halves))
        speeds = [_window_speeds(steps, times, halves.shape[1]) for steps in windows]
        spans = [times[max(step.last for step in steps)] - times[steps[0].first] for steps in windows]
        still = [
            _unchanged(frames[i], frames[i + 1]) and median * (times[i + 1] - times[i]) < _MOVED
            for number, (median, _) in enumerate(speeds)
            for i in _firsts(number, len(frames))
        ]
        median, tail = np.average(speeds, axis=0, weights=spans)
        return {
            "motion_score": float(median),
            "motion_p90": float(tail),
            "still_share": float(np.mean(still)),
            **_camera(windows, halves, times),
        }


def _firsts(window: int, count: int) -> range:
    """The first frames of a window's short steps: every other one of ``count`` frames."""
    return range(window * _WINDOW, min((window + 1) * _WINDOW, count - 1), 2)


def _windows(frames: np.ndarray) -> Iterator[list[_Step]]:
    """Compare pictures T h w: in each window four pairs of neighbours, or three and its two ends where little moves."""
    flow, guided = _dis(), _dis()  # two, as one that was given a start once does not forget it
    for window in range((len(frames) - 2) // _WINDOW + 1):
        pairs = [(i, i + 1) for i in _firsts(window, len(frames))]
        steps = [_compare(frames, *pair, flow, guided) for pair in pairs[:3]]
        first, last = window * _WINDOW, min((window + 1) * _WINDOW, len(frames) - 1)
        slow = statistics.median(step.median_px for step in steps) < _SLOW_PX and last - first > 2
        yield steps + [_compare(frames, *pair, flow, guided) for pair in ([(first, last)] if slow else pairs[3:])]


def _halved(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape
    return np.asarray(cv2.resize(frame, ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA))


def _dis() -> cv2.DISOpticalFlow:
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow.setVariationalRefinementIterations(0)  # refinement only makes it slower
    flow.setFinestScale(0)
    flow.setPatchStride(5)  # of 8: 4 gives the same within 1%, for a fifth more
    flow.setGradientDescentIterations(12)
    return flow


def _compare(frames: np.ndarray, first: int, last: int, flow: cv2.DISOpticalFlow, guided: cv2.DISOpticalFlow) -> _Step:
    """Flow from one frame to another; begun from where the whole picture went, if that is far."""
    before, after = frames[first], frames[last]
    found = flow.calc(before, after, None)
    median_px, tail_px = _speeds(found)
    if tail_px > _FAST_PX:
        # No window over the pictures: at large shifts it would hide most of what they have in common.
        shift, _ = cv2.phaseCorrelate(before.astype(np.float32), after.astype(np.float32))
        if np.hypot(*shift) > _FAR_PX:
            start = np.empty_like(found)
            start[...] = np.round(shift)
            other = guided.calc(before, after, start)
            found = min(found, other, key=lambda vectors: _mismatch(before, after, vectors))
            median_px, tail_px = _speeds(found)
    return _Step(first, last, found, median_px, tail_px)


def _mismatch(before: np.ndarray, after: np.ndarray, flow: np.ndarray) -> float:
    """Grey levels by which the later picture, brought back along the flow, differs: their sum."""
    rows, columns = before.shape
    x, y = np.meshgrid(np.arange(columns, dtype=np.float32), np.arange(rows, dtype=np.float32))
    back = cv2.remap(after, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return float(cv2.norm(before, back, cv2.NORM_L1))


def _speeds(flow: np.ndarray) -> tuple[float, float]:
    """Median and 90th percentile of the lengths of the vectors h w 2."""
    # Not cv2.magnitude: its last bit depends on where in memory the vectors lie.
    along, down = flow[..., 0], flow[..., 1]
    lengths = np.sqrt(along * along + down * down).ravel()
    median, tail = len(lengths) // 2, int(0.9 * (len(lengths) - 1))
    ranked = np.partition(lengths, (median, tail))  # percentiles without sorting everything
    return float(ranked[median]), float(ranked[tail])


def _window_speeds(steps: list[_Step], times: np.ndarray, height: int) -> tuple[float, float]:
    """Median and 90th percentile over the picture, frame heights a second; each from the step that measures it best."""

    def speed(of: Callable[[_Step], float]) -> float:
        *short, last = steps
        whole = last.last - last.first > 1 and statistics.median(of(step) for step in short) < _SLOW_PX
        best = [last] if whole else short if last.last - last.first > 1 else steps
        return statistics.fmean(of(step) / height / (times[step.last] - times[step.first]) for step in best)

    return speed(lambda step: step.median_px), speed(lambda step: step.tail_px)


def _unchanged(before: np.ndarray, after: np.ndarray) -> bool:
    changed = np.count_nonzero(cv2.absdiff(before, after) > _CHANGED_LEVELS)
    return bool(changed < _CHANGED_SHARE * before.size)


def _camera(windows: list[list[_Step]], pictures: np.ndarray, times: np.ndarray) -> dict[str, Any]:
    """The columns about the camera."""
    every = [step for steps in windows for step in steps]
    firsts, lasts = (np.array(at) for at in zip(*((step.first, step.last) for step in every), strict=True))
    steps = camera.Steps(
        flows=np.stack([similarity.sampled(step.flow) for step in every]),
        texture=np.stack([similarity.texture(pictures[i]) for i in firsts]),
        before=pictures[firsts],
        after=pictures[lasts],
        starts_s=times[firsts],
        steps_s=times[lasts] - times[firsts],
        windows=np.repeat(np.arange(len(windows)), [len(steps) for steps in windows]),
    )
    path = camera.follow(steps)
    labels = camera.labels(path, steps)
    known = labels != ["undetermined"]
    return {
        "camera_motion": labels,
        "camera_confidence": camera.confidence(path, steps),
        "camera_speed": float(np.median(path.speed[path.leads])) if known else None,
        "object_motion": float(np.mean(path.objects[steps.short])) if known else None,
    }
