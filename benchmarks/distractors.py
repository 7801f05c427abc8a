"""Takes without a cut that look as if they had some: flashes, strobe, fast pans, exposure jumps, passers-by, fire."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from benchmarks.scenes import Effect, Take, grainy, make_take, make_thing, paste, sway, there_and_back
from benchmarks.worlds import WORDS, Size, octaves

Maker = Callable[[np.random.Generator, Size, int, int], Take]  # (random, size, number of frames, fps)


def _moments(random: np.random.Generator, count: int, fps: int, *, every_s: float = 1.6) -> list[int]:
    """Frames at which something happens, a little irregular."""
    steps = random.uniform(0.5, 1.5, int(count / fps / every_s) + 2) * every_s * fps
    return [int(at) for at in np.cumsum(steps) if at < count - 4]


def _scaled(gain: np.ndarray, towards: float = 0.0) -> Effect:
    """Multiply frame i by ``gain[i]`` around the level ``towards``."""
    return lambda frame, i: np.asarray(cv2.addWeighted(frame, gain[i], frame, 0, towards * (1 - gain[i])))


def _flash(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    """One to three white or nearly white frames."""
    take, gain = make_take(random, size, count=count, fps=fps), np.ones(count)
    for at in _moments(random, count, fps):
        gain[at : at + random.integers(1, 4)] = random.choice([0.0, 0.1, 0.3])
    take.effects.append(_scaled(gain, 255))
    return take


def _camera_flash(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    """Bright at once, then dying away over a few frames."""
    take, gain = make_take(random, size, count=count, fps=fps, brightness=random.choice([1.0, 0.4])), np.ones(count)
    for at in _moments(random, count, fps, every_s=1.2):
        fading = 1 - random.uniform(0.5, 1) * random.uniform(0.3, 0.6) ** np.arange(8)
        gain[at : at + 8] = np.minimum(gain[at : at + 8], fading[: count - at])
    take.effects.append(_scaled(gain, 255))
    return take


def _strobe(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    """Spells of light going on and off every few frames."""
    take, gain = make_take(random, size, count=count, fps=fps), np.ones(count)
    for at in _moments(random, count, fps, every_s=3):
        period, other = int(random.integers(2, 9)), random.choice([0.05, 0.3])
        spell = np.arange(min(fps * 2, count - at))
        gain[at : at + len(spell)] = np.where(spell % period < max(1, period // 2), other, 1.0)
    take.effects.append(_scaled(gain, random.choice([0, 255])))
    return take


def _whip_pan(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    """Now and then the camera is thrown round by one to two picture widths within a few frames."""
    take, shift = make_take(random, size, count=count, fps=fps), np.zeros(count)
    for at in _moments(random, count, fps, every_s=2):
        ramp = np.clip((np.arange(count) - at) / random.integers(6, 14), 0, 1)
        shift += random.choice([-1, 1]) * random.uniform(0.8, 1.8) * size[0] * ramp * ramp * (3 - 2 * ramp)
    room = take.world.shape[1] - size[0]
    take.path[:, 0] = size[0] / 2 + there_and_back(take.path[:, 0] + shift, room)
    return take


def _fast_pan(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    return make_take(random, size, count=count, fps=fps, speed=(random.uniform(0.7, 2.2), random.uniform(-0.2, 0.2)))


def _fast_tilt(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    return make_take(random, size, count=count, fps=fps, speed=(random.uniform(-0.2, 0.2), random.uniform(0.5, 2.0)))


def _zoom(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    """Fast zooms with pauses between them."""
    take, power = make_take(random, size, count=count, fps=fps), np.zeros(count)
    at_end = 0.0
    for at in _moments(random, count, fps):
        ramp = np.clip((np.arange(count) - at) / random.integers(6, 30), 0, 1)
        aim = random.uniform(-0.9, 0.6)
        power, at_end = power + (aim - at_end) * ramp * ramp * (3 - 2 * ramp), aim
    take.path[:, 2] *= np.exp(power)
    return take


def _shake(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    take = make_take(random, size, count=count, fps=fps)
    strength = 0.06 * np.clip(sway(random, count, fps) + 0.3, 0, 1)[:, None] * size
    take.path[:, :2] += strength * np.stack([sway(random, count, 2.5), sway(random, count, 2.5)], 1)
    take.path[:, 3] += 4 * strength[:, 0] / size[0] * sway(random, count, 3) / 0.06
    return take


def _exposure_jump(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    take, gain = make_take(random, size, count=count, fps=fps), np.ones(count)
    for at in _moments(random, count, fps):
        gain[at:] = random.choice([0.45, 0.65, 0.85, 1.0, 1.25, 1.6])
        gain[at - 1] = (gain[at - 1] + gain[at]) / 2 if random.random() < 0.5 else gain[at - 1]
    take.effects.append(_scaled(gain))
    return take


def _exposure_ramp(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    """Auto-exposure hunting; never down to black."""
    take = make_take(random, size, count=count, fps=fps)
    take.effects.append(_scaled(1.0 + 0.5 * sway(random, count, fps * random.uniform(0.4, 1.2))))
    return take


def _passer_by(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    """Something large crosses close before the camera."""
    take = make_take(random, size, count=count, fps=fps)
    crossings = []
    for at in _moments(random, count, fps, every_s=2):
        thing = make_thing(random, size, share=random.uniform(0.8, 1.8))
        crossings.append((at, int(random.integers(7, 30)), thing, random.choice([-1, 1]), random.uniform(0.3, 0.8)))

    def draw(frame: np.ndarray, i: int) -> np.ndarray:
        for at, length, thing, way, height in crossings:
            if at <= i < at + length:
                reach = size[0] / 2 + thing.picture.shape[1] / 2
                x = size[0] / 2 + way * reach * (2 * (i - at + 0.5) / length - 1)
                paste(frame, thing.picture, thing.opacity, at=np.array([x, height * size[1]]))
        return frame

    take.effects.append(draw)
    return take


def _flicker(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    """Lamps that flicker with the mains: the whole picture, or bands that run through it."""
    take = make_take(random, size, count=count, fps=fps)
    depth = random.uniform(0.05, 0.22)
    if random.random() < 0.5:
        take.effects.append(_scaled(1 - depth * random.random(count)))
        return take
    rows, pace = np.arange(size[1])[:, None, None] / size[1], random.uniform(0.1, 2.5)

    def bands(frame: np.ndarray, i: int) -> np.ndarray:
        light = 1 - depth * (0.5 + 0.5 * np.sin(2 * np.pi * (2 * rows + pace * i)))
        return np.asarray(frame * light.astype(np.float32)).astype(np.uint8)

    take.effects.append(bands)
    return take


def _grain(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    take = make_take(random, size, count=count, fps=fps)
    take.effects.append(grainy(random, size, random.uniform(10, 28)))
    return take


def _dark(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    return make_take(random, size, count=count, fps=fps, brightness=random.uniform(0.05, 0.22))


def _titles(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    """Words that pop up, fade in or stand on a band, and go again."""
    take = make_take(random, size, count=count, fps=fps)
    shows = []
    for at in _moments(random, count, fps, every_s=2):
        text, scale = " ".join(random.choice(WORDS, random.integers(1, 5))).upper(), size[1] / 180
        shows.append((at, int(random.integers(12, 50)), text, scale * random.uniform(0.5, 1.6), random.random(3)))

    def draw(frame: np.ndarray, i: int) -> np.ndarray:
        for at, length, text, scale, (x, y, style) in shows:
            if not at <= i < at + length:
                continue
            over, where = frame.copy(), (int(x * size[0] / 3), int((0.2 + 0.7 * y) * size[1]))
            if style < 0.4:
                cv2.rectangle(
                    over, (0, where[1] - int(26 * scale)), (size[0], where[1] + int(12 * scale)), (40, 20, 90), -1
                )
            cv2.putText(over, text, where, cv2.FONT_HERSHEY_DUPLEX, scale, (250, 250, 250), 2, cv2.LINE_AA)
            strength = min(1.0, (i - at + 1) / (8 if style > 0.6 else 1))
            frame = np.asarray(cv2.addWeighted(frame, 1 - strength, over, strength, 0))
        return frame

    take.effects.append(draw)
    return take


def _fire(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    """Flames over a large part of the picture: bright, and different in every frame."""
    take = make_take(random, size, count=count, fps=fps, brightness=random.choice([0.3, 1.0]))
    noise = octaves(random, (size[0], size[1] * 3), coarsest=12, count=4, stretch=0.5)
    height = np.linspace(-0.75, random.uniform(0.3, 0.7), size[1], dtype=np.float32)[:, None]
    flicker = 0.25 * sway(random, count, 3)

    def burn(frame: np.ndarray, i: int) -> np.ndarray:
        rise = int(i * size[1] * 0.09) % (2 * size[1])
        heat = noise[rise : rise + size[1]] + 0.7 * noise[size[1] * 2 - rise :][: size[1]] - 0.35
        heat = np.clip((heat + height + flicker[i]) * 255, 0, 255).astype(np.uint8)
        flames = cv2.applyColorMap(heat, cv2.COLORMAP_HOT)
        return np.asarray(cv2.add(frame, flames))

    take.effects.append(burn)
    return take


def _water(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    """The whole picture ripples."""
    take = make_take(random, size, count=count, fps=fps)
    y, x = np.mgrid[: size[1], : size[0]].astype(np.float32)
    waves = random.uniform(0.03, 0.25, (3, 2)).astype(np.float32)
    depth, pace = size[1] * random.uniform(0.01, 0.04), random.uniform(0.2, 0.8)

    def ripple(frame: np.ndarray, i: int) -> np.ndarray:
        shift = sum(np.sin(x * u + y * v + pace * i * (k + 1)) for k, (u, v) in enumerate(waves)) * np.float32(
            depth / 3
        )
        shining = cv2.remap(frame, x + shift, y + shift, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        return np.asarray(cv2.add(shining, cv2.merge([np.clip(shift * 12, 0, 60).astype(np.uint8)] * 3)))

    take.effects.append(ripple)
    return take


def _shadow(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    """A large soft shadow that crosses again and again."""
    take = make_take(random, size, count=count, fps=fps)
    wide = octaves(random, (size[0] * 4, size[1]), coarsest=1, count=3)
    wide = 1 - random.uniform(0.5, 0.8) * np.clip((wide - 0.5) * 6, 0, 1)
    pace = size[0] / fps * random.uniform(0.4, 2.5)

    def cast(frame: np.ndarray, i: int) -> np.ndarray:
        left = int(there_and_back(np.array(i * pace), size[0] * 3.0 - 1))
        return np.asarray(frame * wide[:, left : left + size[0], None]).astype(np.uint8)

    take.effects.append(cast)
    return take


def _stage_light(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    """The colour of the light changes, at once or within a few frames."""
    take, tint = make_take(random, size, count=count, fps=fps), np.ones((count, 3))
    for at in _moments(random, count, fps, every_s=1.2):
        tint[at:] = random.uniform(0.25, 1.3, 3)
    for _ in range(int(random.integers(0, 4))):
        tint[1:] = (tint[1:] + tint[:-1]) / 2

    def shine(frame: np.ndarray, i: int) -> np.ndarray:
        return np.asarray(cv2.multiply(frame, (*tint[i], 1.0)))

    take.effects.append(shine)
    return take


def _confetti(random: np.random.Generator, size: Size, count: int, fps: int) -> Take:
    """Snow, rain or confetti: many small things that fall fast."""
    take, amount = make_take(random, size, count=count, fps=fps), int(random.integers(60, 300))
    start, speed = random.random((amount, 2)) * size, random.uniform(0.01, 0.08, (amount, 2)) * size * (0.2, 1)
    colours = random.integers(150, 256, (amount, 3)) if random.random() < 0.5 else np.full((amount, 3), 235)
    width = random.integers(1, 5, amount)

    def fall(frame: np.ndarray, i: int) -> np.ndarray:
        for at, colour, radius in zip((start + i * speed) % size, colours.tolist(), width.tolist(), strict=True):
            cv2.circle(frame, (int(at[0]), int(at[1])), radius, colour, -1)
        return frame

    take.effects.append(fall)
    return take


DISTRACTORS: dict[str, Maker] = {
    "flash": _flash,
    "camera flash": _camera_flash,
    "strobe": _strobe,
    "whip pan": _whip_pan,
    "fast pan": _fast_pan,
    "fast tilt": _fast_tilt,
    "zoom": _zoom,
    "shake": _shake,
    "exposure jump": _exposure_jump,
    "exposure ramp": _exposure_ramp,
    "passer-by": _passer_by,
    "flicker": _flicker,
    "grain": _grain,
    "dark": _dark,
    "titles": _titles,
    "fire": _fire,
    "water": _water,
    "shadow": _shadow,
    "stage light": _stage_light,
    "confetti": _confetti,
}
