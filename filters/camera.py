"""What the camera does in a clip: its motion step by step, and names for what the steps do together."""

from __future__ import annotations

import dataclasses

import numpy as np

from filters.similarity import Pixels, Vectors, displacement

# What the camera does where the picture's rate of (x, y, zoom, roll) is negative, and where it is positive. The camera
# goes the other way: when everything moves to the left, it turns to the right; when everything turns clockwise, it
# rolls counter-clockwise.
_NAMES = (("pan_right", "pan_left"), ("tilt_down", "tilt_up"), ("zoom_out", "zoom_in"), ("roll_cw", "roll_ccw"))
LABELS = ("static", *(name for pair in _NAMES for name in pair), "shake", "undetermined")

_BATCH = 64  # windows fitted at once, about a minute of footage
_TOLERANCE_PX, _TOLERANCE_SHARE = 0.15, 0.1  # what a vector may differ from the model: the flow's own error
_CLEAR = 0.75  # share of the vectors that leaves no doubt about the model
_ALIKE = 0.08  # how much less of the picture may follow the course of the clip than follows the best model
_COVERED = 0.06  # share of the picture with texture that is as good as all of it

_SURE = 0.5  # confidence below which nothing is said
_DRIFT = 0.008  # heights a second: slower is a tripod's creep, or the flow's error over a second
_BESIDE = 0.3  # of the strongest drift: less is the fit's error, or nothing anyone would mention
_RETURN = 0.5  # of the drift one way, for its opposite to be named too
_LASTS = 0.3  # of the time: what is seen for less is an accident of the fit
_SHAKES = 0.05  # heights a second by which the speed leaves its course from step to step
_OVER_SHAKE, _OVER_DRIFT = 0.25, 0.35  # of the shake, for a drift, and of the drift, for a shake: less is chance


@dataclasses.dataclass(frozen=True)
class Steps:
    """Pairs of frames of a clip, compared, in order of time.

    Attributes:
        flows: S N 2, pixels, at the points of ``similarity.places``.
        texture: S N, of the first frame.
        before, after: S h w uint8, the pictures.
        starts_s, steps_s: S, when a step begins and how long it takes.
        windows: S, steps of one window are of one course; its longest step says most about it.
    """

    flows: np.ndarray
    texture: np.ndarray
    before: np.ndarray
    after: np.ndarray
    starts_s: np.ndarray
    steps_s: np.ndarray
    windows: np.ndarray

    @property
    def short(self) -> np.ndarray:
        return np.asarray(self.steps_s < 2 * self.steps_s.min())

    @property
    def longest(self) -> np.ndarray:
        """The longest steps of each window."""
        longest = np.zeros(self.windows.max() + 1)
        np.maximum.at(longest, self.windows, self.steps_s)
        return np.asarray(self.steps_s > longest[self.windows] / 2)


@dataclasses.dataclass(frozen=True)
class Path:
    """The camera's motion in each step.

    Attributes:
        rates: S 4, of the picture: x and y (heights a second, at the middle), zoom (1 / s), roll (radians a second,
            clockwise).
        speed: S, mean over the picture of what the model gives, heights a second.
        objects: S, mean over the texture of what vectors differ from the model by beyond the flow's error, heights a
            second.
        confidence: S, share of the picture's detail that the model explains; less where there is hardly any.
        leads: S, whether the step's rates are the best there are for its window.
    """

    rates: np.ndarray
    speed: np.ndarray
    objects: np.ndarray
    confidence: np.ndarray
    leads: np.ndarray


def follow(steps: Steps) -> Path:
    """Fit the camera's motion in each step."""
    batches = np.split(np.arange(len(steps.flows)), np.flatnonzero(np.diff(steps.windows // _BATCH)) + 1)
    parts = [_follow(steps, batch) for batch in batches]
    return Path(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _follow(steps: Steps, batch: np.ndarray) -> tuple[np.ndarray, ...]:
    """The fields of ``Path`` for some of the steps, all of their windows."""
    steps_s, shape = steps.steps_s[batch], steps.before.shape[1:]
    vectors = Vectors(steps.flows[batch], steps.texture[batch], shape)
    model = vectors.fitted().astype(np.float64)
    share, _, _ = _agreement(vectors, model)
    textured = vectors.weights.mean(axis=1) / _COVERED
    _, window = np.unique(steps.windows[batch], return_inverse=True)
    keys = np.append(np.flatnonzero(np.diff(window)), len(batch) - 1)  # the last step of each window speaks for it
    keys = keys[(share[keys] < _CLEAR) & (textured[keys] > 0.1)]
    if len(keys):
        model[keys], share[keys] = _on_pixels(steps, batch[keys], model[keys])
        doubt = np.flatnonzero((share < _CLEAR) & np.isin(window, window[keys]))
        doubt = np.setdiff1d(doubt, keys)
        lead = keys[np.searchsorted(window[keys], window[doubt])]
        others = Vectors(steps.flows[batch[doubt]], steps.texture[batch[doubt]], shape)
        led = others.fitted_from(model[lead] * (steps_s[doubt] / steps_s[lead])[:, None])
        agree, _, _ = _agreement(others, led)
        better = agree > 0.8 * share[doubt]
        model[doubt[better]] = led[better]
        share[doubt[better]] = agree[better]
    _, lengths, beyond = _agreement(vectors, model)
    tx, ty, a, b = model.T
    rates = np.stack([tx, ty, np.log(np.hypot(1 + a, b)), np.arctan2(b, 1 + a)], axis=1) / steps_s[:, None]
    leads = steps.longest[batch] & ~np.isin(window, window[keys])
    leads[keys] = True
    return rates, lengths / steps_s, beyond / steps_s, share * np.minimum(1, textured), leads


def _on_pixels(steps: Steps, which: np.ndarray, model: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Better models for some of the steps, and how much of the pictures they explain."""
    vectors = Vectors(steps.flows[which], steps.texture[which], steps.before.shape[1:])
    pixels = Pixels(steps.before[which], steps.after[which])
    starts = np.concatenate([model[None], vectors.from_parts()])
    best = np.stack([pixels.support(start) for start in starts]).argmax(axis=0)
    refined = pixels.refined(starts[best, np.arange(len(which))])
    support = pixels.support(refined)
    # Most windows of a clip are right, and the camera seldom changes its course from one to the next.
    steps_s = steps.steps_s[which, None]
    common = np.median(refined / steps_s, axis=0) * steps_s
    near = pixels.support(common) > support - _ALIKE
    refined = np.where(near[:, None], pixels.refined(common), refined)
    return refined, np.maximum(support, pixels.support(refined))


def _agreement(vectors: Vectors, model: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of vectors that follow the model, mean displacement it gives, mean excess of the rest: S each."""
    along, down = displacement(model, vectors.x, vectors.y)
    lengths = np.sqrt(along * along + down * down)
    rest = np.sqrt((vectors.u - along) ** 2 + (vectors.v - down) ** 2)
    excess = rest - (_TOLERANCE_PX / vectors.shape[0] + _TOLERANCE_SHARE * lengths)
    total = np.maximum(vectors.weights.sum(axis=1), 1e-9)
    share = (vectors.weights * (excess < 0)).sum(axis=1) / total
    return share, lengths.mean(axis=1), (vectors.weights * np.maximum(excess, 0)).sum(axis=1) / total


def confidence(path: Path, steps: Steps) -> float:
    """How much of the clip the fitted motion explains, 0..1."""
    return float(np.median(path.confidence[path.leads]))


def speed(path: Path, steps: Steps) -> float:
    """How fast the camera is, heights a second, mean over windows.

    Of a window it is the way over the time of its longest steps together, since the time of each alone may be off; a
    step counts as far as the model explains it.
    """
    worth = steps.longest * np.maximum(path.confidence, 1e-6)
    way, time = (np.bincount(steps.windows, of * worth) for of in (path.speed * steps.steps_s, steps.steps_s))
    return float(np.mean(way / time))


def against(path: Path, steps: Steps) -> float:
    """How fast things move against the camera, heights a second, mean over the time of the short steps."""
    return float(np.average(path.objects[steps.short], weights=steps.steps_s[steps.short]))


def labels(path: Path, steps: Steps) -> list[str]:
    """Name what the camera does, some of ``LABELS``.

    A drift is named where a window's course goes that way for long enough, whatever it does before and after.
    """
    if confidence(path, steps) < _SURE:
        return ["undetermined"]
    aspect = steps.before.shape[2] / steps.before.shape[1]
    reach = np.hypot(aspect, 1) * 0.25  # about the mean distance from the middle: makes zoom and roll speeds
    rates = path.rates * np.array([1, 1, reach, reach])
    shake = _shake(rates, path.confidence, steps)
    # Of a steady camera the best step says most, of one that shakes their mean.
    course, spans = _course(rates, path.leads if shake < _SHAKES else steps.longest, steps)
    both = np.stack([np.maximum(-course, 0), np.maximum(course, 0)], axis=-1)  # windows, axes, negative and positive
    drift = np.average(both, axis=0, weights=spans)
    least = max(_DRIFT, _BESIDE * drift.max(), _OVER_SHAKE * shake)
    lasts = np.average(both > least / 2, axis=0, weights=spans) > _LASTS
    named = (drift >= least) & lasts & (drift >= _RETURN * drift.max(axis=1, keepdims=True))
    found = [
        name for pair, which in zip(_NAMES, named, strict=True) for name, yes in zip(pair, which, strict=True) if yes
    ]
    if shake >= max(_SHAKES, _OVER_DRIFT * drift.max()):
        found.append("shake")
    return found or ["static"]


def _course(rates: np.ndarray, leads: np.ndarray, steps: Steps) -> tuple[np.ndarray, np.ndarray]:
    """Where each window goes on the whole, heights a second, windows 4, and how long it is, seconds."""
    courses, spans = [], []
    for window in range(steps.windows.max() + 1):
        of = steps.windows == window
        courses.append(np.average(rates[of & leads], axis=0, weights=steps.steps_s[of & leads]))
        spans.append((steps.starts_s + steps.steps_s)[of].max() - steps.starts_s[of].min())
    return np.array(courses), np.array(spans)


def _shake(rates: np.ndarray, confidence: np.ndarray, steps: Steps) -> float:
    """How far the speed in a short step typically lies from the middle of its neighbours', heights a second.

    A camera that starts, stops or turns leaves its course for a step or two; one that shakes, in most.
    """
    short = np.flatnonzero(steps.short & (confidence > _SURE))
    before, here, after = short[:-2], short[1:-1], short[2:]
    spans = steps.starts_s[after] - steps.starts_s[before]
    near = spans < 5.5 * np.median(steps.steps_s[steps.short])
    if not near.any():
        return 0.0
    between = ((steps.starts_s[here] - steps.starts_s[before]) / spans)[:, None]
    off = rates[here] - (1 - between) * rates[before] - between * rates[after]
    return float(np.median(np.linalg.norm(off[near], axis=1)))
