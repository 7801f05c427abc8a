"""How fast the picture moves, what of it is the camera, and how much of the time it stands still."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from annotated_types import Ge

from curation.errors import UsageError
from curation.frames import Frames
from curation.isolate import alive
from curation.stage import Filter, Needs, operational
from filters import camera, raft, similarity

_CHANGED_LEVELS = 10  # a pixel has changed when its grey level differs by more (of 255); less is noise
_CHANGED_SHARE = 0.001  # two frames are the same when fewer pixels have changed
_MOVED = 0.0023  # frame heights a step; and it moved by less: a slow pan over soft ground changes few pixels
_WINDOW = 8  # intervals between frames (a second)
# Where short steps begin in a window, and in one cut short. Footage of one rate shown at another repeats or drops
# frames: a step of the time grid then covers more or less time than it says, but four in a row (half a second, a whole
# number of frames at 24, 30 or 60 fps) cover what they say. So each of the four is taken once, though not in a row.
_STARTS, _STARTS_CUT = (0, 3, 5, 6), (0, 2, 4, 6)
_SLOW_PX = 0.35  # a step below this is too short to measure: the flow is off by up to 0.03 px
_IRREGULAR, _IRREGULAR_PX = 0.25, 0.15  # of the mean shift, and pixels, by which a steady step lies off it at most
_FAST_PX = 2.0  # the flow of a step above this may have lost its way: it finds up to 7 px by itself
_FAR_PX = 3.0  # a shift below this it finds by itself
_PATCH_PX = 8  # of the flow, on the small pictures: a narrower one has no room for it
_HALF, _EIGHTH = 2, 8  # what the small pictures are of those decoded, for DIS and for RAFT: the same size for both


_Pair = tuple[int, int]


class _Step(NamedTuple):
    """Two frames compared; speeds over the picture in pixels."""

    first: int
    last: int
    flow: np.ndarray
    median_px: float
    tail_px: float


@dataclasses.dataclass(kw_only=True)
class Motion(Filter):
    """Dense optical flow over an eighth of a second, four times a second; over a whole second where little moves, and
    eight times a second where the picture starts, stops or shakes.

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
        camera_speed: mean over the picture of the speed that the camera's motion gives it, averaged over time by how
            much of the picture follows it, in frame heights per second. Unknown where the camera is undetermined.
        object_motion: speed against the camera's motion, in frame heights per second: averaged over all parts of the
            picture that have texture, where those that follow the camera (within the error of the flow) count as 0. A
            thing on a tenth of the picture that moves at 0.5 gives about 0.05. Unknown likewise.

    Frames are taken on a time grid, and a speed is the way of all steps of a second over the time of all: so the frame
    rate does not matter, nor that frames were repeated or dropped to reach it. Pictures are scaled to one size, so the
    resolution does not. Pictures more than six times as wide as they are high, or as high as wide, are not measured.

    Args:
        flow: dis (Kroeger et al., ECCV 2016), OpenCV's, without weights and fast; or raft (Teed & Deng, ECCV 2020),
            torchvision's (extra ``models``), a network on pictures four times as large and in colour.
        weights: for raft: raft_large or raft_small, which torchvision downloads, or the file of a state dict of either.
        gpus: for raft: GPUs, or the share of one, for each worker that decodes. 0 is the CPU, which takes 1.4 s
            (raft_small) or 5.3 s (raft_large) for each second of footage, on one core.
        batch_size: for raft: pairs of frames at a time, of one clip. A GPU wants more.
        threads: for raft: what it may use on a CPU.

    RAFT's flow is averaged over squares of 8 by 8 pixels, which gives a field of the size of DIS's; all that follows is
    the same for both: which frames are compared, what counts as still, how the camera is fitted, and all units. The
    bounds in it were found with DIS on real and generated footage. RAFT has been run here with random weights and with
    known fields in its place, not with trained weights, and not on a GPU.
    """

    flow: Literal["dis", "raft"] = "dis"
    weights: str | None = None
    gpus: Annotated[float, Ge(0)] = operational(0.0)
    batch_size: Annotated[int, Ge(1)] = operational(4)
    threads: Annotated[int, Ge(1)] = operational(1)

    name: ClassVar[str] = "motion"
    version: ClassVar[int] = 5
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

    vocabulary: ClassVar[Mapping[str, Sequence[str]]] = {"camera_motion": camera.LABELS}

    def __post_init__(self) -> None:
        self.weights = raft.placed(self.weights) if self.weights else None

    @property
    def frames(self) -> Frames:  # type: ignore[override]  # depends on the arguments
        if self.flow == "raft":
            return Frames(fps=8, long_side_px=384, colour="rgb")
        return Frames(fps=8, long_side_px=96)

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs(gpus=self.gpus)

    def settings(self) -> dict[str, Any]:
        """Nothing for DIS, whose results are known by that since before there was a choice."""
        return {"flow": "raft", "weights": raft.known_as(self.weights)} if self.flow == "raft" and self.weights else {}

    def check(self) -> None:
        if self.flow == "dis":
            if self.weights or self.gpus:
                raise UsageError("weights and gpus are for flow: raft; DIS has no weights and runs on the CPU")
            return
        if absent := [name for name in ("torch", "torchvision") if importlib.util.find_spec(name) is None]:
            needed = " and ".join(absent)
            raise UsageError(f"flow: raft needs {needed}, not installed here: pip install 'cutroom[models]'")
        if not self.weights:
            raise UsageError(f"flow: raft needs weights: {', '.join(raft.NAMES)}, or the path of a state dict")
        raft.check(self.weights)

    def setup(self) -> None:
        if self.flow == "raft" and self.weights:
            self._raft = raft.Raft(self.weights, gpu=self.gpus > 0, threads=self.threads)

    def score(self, frames: np.ndarray, times: np.ndarray) -> dict[str, Any]:
        share = _EIGHTH if self.flow == "raft" else _HALF
        if len(frames) < 2 or min(frames.shape[1:3]) < share * _PATCH_PX:
            return dict.fromkeys(self.writes.names)
        small = np.stack([_shrunk(frame, share) for frame in frames])
        windows = _windows(small, self._comparing(frames, small))
        speeds = [_window_speeds(steps, times, small.shape[1]) for steps in windows]
        spans = [times[max(step.last for step in steps)] - times[steps[0].first] for steps in windows]
        still = [
            _unchanged(*self._grey(frames[i : i + 2])) and median * (times[i + 1] - times[i]) < _MOVED
            for number, (median, _) in enumerate(speeds)
            for i in _firsts(number, len(frames))
        ]
        median, tail = np.average(speeds, axis=0, weights=spans)
        return {
            "motion_score": float(median),
            "motion_p90": float(tail),
            "still_share": float(np.mean(still)),
            **_camera(windows, small, times),
        }

    def _comparing(self, frames: np.ndarray, small: np.ndarray) -> Callable[[Sequence[_Pair]], Iterator[_Step]]:
        """What compares pairs of a clip's frames, which are given small and grey as well."""
        if self.flow == "raft":
            return functools.partial(self._by_raft, frames, small.shape[1:])
        return functools.partial(_by_dis, small, _dis(), _dis())  # two: one that was given a start does not forget it

    def _by_raft(self, frames: np.ndarray, shape: tuple[int, int], pairs: Sequence[_Pair]) -> Iterator[_Step]:
        for (first, last), flow in zip(pairs, self._raft.flows(frames, pairs, batch_size=self.batch_size), strict=True):
            field = _averaged(flow, shape)
            yield _Step(first, last, field, *_speeds(field))

    def _grey(self, frames: np.ndarray) -> Iterable[np.ndarray]:
        """Frames as pictures of 96 pixels, on which it is judged what stands still."""
        return (_shrunk(frame, _EIGHTH // _HALF) for frame in frames) if self.flow == "raft" else frames


def unexplained(pictures: np.ndarray) -> np.ndarray:
    """What of the change from each picture to the next no motion explains: T h w uint8 to T - 1, in grey levels.

    The mean absolute difference to the next picture after that was brought back along the flow.
    """
    flow, guided = _dis(), _dis()
    found = []
    for i in range(len(pictures) - 1):
        alive()  # of a clip that is minutes long this takes minutes
        found.append(_mismatch(pictures[i], pictures[i + 1], _compare(pictures, i, i + 1, flow, guided).flow))
    return np.array(found) / max(1, pictures[0].size)


def _firsts(window: int, count: int) -> list[int]:
    """The first frames of a window's short steps, of ``count`` frames: no more than four."""
    begin = window * _WINDOW
    room = min(_WINDOW, count - 1 - begin)
    starts = _STARTS if room == _WINDOW else _STARTS_CUT
    return [begin + start for start in starts if start < room]


def _windows(frames: np.ndarray, compare: Callable[[Sequence[_Pair]], Iterable[_Step]]) -> list[list[_Step]]:
    """Compare pictures T h w: in each window four pairs of neighbours; three and its two ends where little moves; all
    where steps differ, since four would be a lottery. Steps are in order of time, the two ends come last.

    What is compared is asked for twice, for all windows at once: a network computes many pairs together.
    """
    pairs = [[(i, i + 1) for i in _firsts(window, len(frames))] for window in range((len(frames) - 2) // _WINDOW + 1)]
    begun = iter(compare([pair for some in pairs for pair in some[:3]]))
    windows = [list(itertools.islice(begun, len(some[:3]))) for some in pairs]
    for window, steps in enumerate(windows):
        first, last = window * _WINDOW, min((window + 1) * _WINDOW, len(frames) - 1)
        slow = max(step.median_px for step in steps) < _SLOW_PX and last - first > 2
        if slow:
            pairs[window] = [(first, last)]
        elif _irregular(steps):
            begun_at = {step.first for step in steps}
            pairs[window] = [(i, i + 1) for i in range(first, last) if i not in begun_at]
        else:
            pairs[window] = pairs[window][3:]
    rest = iter(compare([pair for some in pairs for pair in some]))
    whole = [steps + list(itertools.islice(rest, len(some))) for steps, some in zip(windows, pairs, strict=True)]
    return [sorted(steps, key=lambda step: (step.last - step.first, step.first)) for steps in whole]


def _irregular(steps: Sequence[_Step]) -> bool:
    """Whether the picture as a whole goes elsewhere or at another pace from step to step."""
    flows = np.stack([similarity.sampled(step.flow) for step in steps])
    middle = flows.shape[1] // 2
    shifts = np.partition(flows, middle, axis=1)[:, middle]  # the median each way
    course = shifts.mean(axis=0)
    off = np.linalg.norm(shifts - course, axis=1).max()
    return bool(off > _IRREGULAR * np.linalg.norm(course) + _IRREGULAR_PX)


def _shrunk(frame: np.ndarray, share: int) -> np.ndarray:
    """A frame h w or h w 3 as a grey picture of so small a share of its sides."""
    if frame.ndim == 3:
        frame = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    height, width = ((side + share // 2) // share for side in frame.shape)
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA))


def _averaged(flow: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A flow H W 2 on a picture of another size h w, in pixels of that, by its height, as speeds are: h w 2."""
    height, width = shape
    smaller = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(smaller * np.float32(height / flow.shape[0]))


def _by_dis(
    frames: np.ndarray, flow: cv2.DISOpticalFlow, guided: cv2.DISOpticalFlow, pairs: Sequence[_Pair]
) -> Iterator[_Step]:
    for pair in pairs:
        alive()
        yield _compare(frames, *pair, flow, guided)


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
        whole = last.last - last.first > 1 and max(of(step) for step in short) < _SLOW_PX
        best = [last] if whole else short if last.last - last.first > 1 else steps
        # Over the time they take together: that of each alone is off where frames were repeated or dropped.
        return sum(of(step) for step in best) / height / sum(times[step.last] - times[step.first] for step in best)

    return speed(lambda step: step.median_px), speed(lambda step: step.tail_px)


def _unchanged(before: np.ndarray, after: np.ndarray) -> bool:
    changed = np.count_nonzero(cv2.absdiff(before, after) > _CHANGED_LEVELS)
    return bool(changed < _CHANGED_SHARE * before.size)


def _camera(windows: list[list[_Step]], pictures: np.ndarray, times: np.ndarray) -> dict[str, Any]:
    """The columns about the camera."""
    every = [step for steps in windows for step in steps]
    firsts, lasts = (np.array(at) for at in zip(*((step.first, step.last) for step in every), strict=True))
    begun, which = np.unique(firsts, return_inverse=True)  # a window and its first step begin with one picture
    steps = camera.Steps(
        flows=np.stack([similarity.sampled(step.flow) for step in every]),
        texture=np.stack([similarity.texture(pictures[i]) for i in begun])[which],
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
        "camera_speed": camera.speed(path, steps) if known else None,
        "object_motion": camera.against(path, steps) if known else None,
    }
