"""Damaged and lying video files: sound ones of many codecs and containers, mutated by a seeded generator."""

from __future__ import annotations

import dataclasses
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, FPS, NUM_FRAMES = 96, 64, 24, 36


@dataclasses.dataclass(frozen=True)
class Kind:
    """A codec in a container.

    Attributes:
        has_end: the container says where it ends or how long it plays, so that a cut is noticed.
    """

    name: str
    codec: str
    pix_fmt: str = "yuv420p"
    format: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    muxer: tuple[tuple[str, str], ...] = ()
    has_end: bool = True


FASTSTART = (("movflags", "+faststart"),)
FRAGMENTS = (("movflags", "+frag_keyframe+empty_moov"),)
REALTIME = (("deadline", "realtime"), ("cpu-used", "8"))
FAST = (("preset", "ultrafast"), ("bf", "2"), ("g", "12"))
HEVC = (("preset", "ultrafast"), ("x265-params", "log-level=none:keyint=12:pools=none:frame-threads=1"))
KINDS = (
    Kind("h264_fast.mp4", "libx264", options=FAST, muxer=FASTSTART),
    Kind("h264_fragments.mp4", "libx264", options=FAST, muxer=FRAGMENTS),
    Kind("hevc_fast.mov", "libx265", options=HEVC, muxer=FASTSTART),
    Kind("av1_fast.mp4", "libsvtav1", options=(("preset", "12"), ("svtav1-params", "lp=1")), muxer=FASTSTART),
    Kind("h264.mkv", "libx264", options=FAST),
    Kind("vp8.webm", "libvpx", options=REALTIME),
    Kind("vp9.webm", "libvpx-vp9", options=REALTIME),
    Kind("mpeg4.avi", "mpeg4", options=(("bf", "2"),)),
    Kind("mjpeg.avi", "mjpeg", pix_fmt="yuvj420p"),
    Kind("mpeg2.ts", "mpeg2video", options=(("bf", "2"),)),
    Kind("mpeg1.mpg", "mpeg1video", options=(("bf", "2"),), has_end=False),
    Kind("h264.flv", "libx264", options=FAST),
    Kind("flv1.flv", "flv"),
    Kind("mpeg2.mxf", "mpeg2video", options=(("bf", "2"),)),
    Kind("prores_fast.mov", "prores_ks", pix_fmt="yuv422p10le", muxer=FASTSTART),
    Kind("wmv2.wmv", "wmv2", format="asf"),
    Kind("mpeg4_fast.mp4", "mpeg4", muxer=FASTSTART),
    Kind("vp8.ogv", "libvpx", format="ogg", options=REALTIME),
    Kind("picture.gif", "gif", pix_fmt="rgb8"),
    Kind("raw.h264", "libx264", options=FAST, has_end=False),
    Kind("raw.hevc", "libx265", options=HEVC, has_end=False),
    Kind("raw.m2v", "mpeg2video", format="mpeg2video", has_end=False),
    Kind("ffv1.mkv", "ffv1"),
    Kind("vp9.ivf", "libvpx-vp9", options=REALTIME),
    Kind("plain.y4m", "wrapped_avframe", format="yuv4mpegpipe", has_end=False),
)  # fmt: skip


def make(path: Path, kind: Kind) -> None:
    """Write a sound file: two shots of 0.75 s, each a picture that moves by two pixels a frame."""
    rng = np.random.default_rng(7)
    blocks = rng.integers(0, 256, (2, HEIGHT // 16, WIDTH // 16, 3), np.uint8)
    worlds = blocks.repeat(16, axis=1).repeat(16, axis=2)
    with av.open(str(path), "w", format=kind.format, options=dict(kind.muxer)) as out:
        stream = out.add_stream(kind.codec, rate=FPS, options=dict(kind.options))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, kind.pix_fmt
        stream.codec_context.thread_count = 1
        for i in range(NUM_FRAMES):
            pixels = np.roll(worlds[2 * i // NUM_FRAMES], 2 * i, axis=1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels))))
        out.mux(stream.encode(None))


def make_all(folder: Path) -> dict[str, bytes]:
    """One sound file of each kind, as bytes by name."""
    for kind in KINDS:
        make(folder / kind.name, kind)
    return {kind.name: (folder / kind.name).read_bytes() for kind in KINDS}


def mutants(seeds: dict[str, bytes], count: int, seed: int = 1) -> Iterator[tuple[str, bytes]]:
    """``count`` damaged files, the same ones for the same seeds: names that say what was done, and contents.

    Kinds and damages take turns, so that a few hundred hold every pair of them.
    """
    rng = random.Random(seed)
    names = sorted(seeds)
    for i in range(count):
        name = names[i % len(names)]
        damage = DAMAGES[(i // len(names) + i) % len(DAMAGES)]
        other = seeds[rng.choice(names)]
        data = damage(bytearray(seeds[name]), bytearray(other), rng)
        suffix = Path(rng.choice(names) if damage is rename else name).suffix
        yield f"{i:04d}_{Path(name).stem}_{damage.__name__}{suffix}", bytes(data)


def flip(data: bytearray, other: bytearray, rng: random.Random) -> bytearray:
    """Turn a few bits anywhere."""
    for _ in range(2 ** rng.randrange(7)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def flip_edges(data: bytearray, other: bytearray, rng: random.Random) -> bytearray:
    """Turn a few bits where headers and indices lie."""
    reach = min(len(data), 1024)
    for _ in range(2 ** rng.randrange(5)):
        at = rng.randrange(reach)
        data[at if rng.random() < 0.7 else len(data) - 1 - at] ^= 1 << rng.randrange(8)
    return data


def cut(data: bytearray, other: bytearray, rng: random.Random) -> bytearray:
    """Keep the beginning only."""
    return data[: rng.randrange(1, len(data))]


def cut_out(data: bytearray, other: bytearray, rng: random.Random) -> bytearray:
    """Lose a piece of the middle, or its content."""
    start = rng.randrange(len(data))
    length = rng.randrange(1, max(2, len(data) // 3))
    length = min(length, len(data) - start - 1)
    data[start : start + length] = bytes(length if rng.random() < 0.5 else 0)
    return data or bytearray(b"\0")


def splice(data: bytearray, other: bytearray, rng: random.Random) -> bytearray:
    """Put another file's head before the rest of this one."""
    return other[: rng.randrange(8, 1024)] + data[rng.randrange(min(len(data), 1024)) :]


def rename(data: bytearray, other: bytearray, rng: random.Random) -> bytearray:
    """Leave the content alone; the name will lie."""
    return data


def resize(data: bytearray, other: bytearray, rng: random.Random) -> bytearray:
    """Make numbers in the headers lie up or down: sizes, counts, durations, dimensions, times."""
    marks = [m for m in MARKS if m in data] or [b""]
    for _ in range(rng.randrange(1, 4)):
        at = data.find(rng.choice(marks)) + 4 * rng.randrange(-1, 12)
        at = max(0, min(at if marks != [b""] else rng.randrange(len(data)), len(data) - 4))
        order = rng.choice("<>")
        (value,) = struct.unpack_from(order + "I", data, at)
        lie = rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, value * 1000, value // 7, value + 1, 0x00FFFFFF, 0x80000000])
        struct.pack_into(order + "I", data, at, lie & 0xFFFFFFFF)
    return data


def stutter(data: bytearray, other: bytearray, rng: random.Random) -> bytearray:
    """Repeat a piece of the file many times."""
    start = rng.randrange(len(data))
    piece = data[start : start + rng.randrange(16, 4096)]
    return data[:start] + piece * rng.randrange(2, 40) + data[start:]


def noise(data: bytearray, other: bytearray, rng: random.Random) -> bytearray:
    """Overwrite a piece with noise."""
    start = rng.randrange(len(data))
    length = min(rng.randrange(1, 2048), len(data) - start)
    data[start : start + length] = rng.randbytes(length)
    return data


DAMAGES: tuple[Callable[[bytearray, bytearray, random.Random], bytearray], ...] = (
    flip, flip_edges, cut, cut_out, splice, rename, resize, stutter, noise,
)  # fmt: skip

# Where numbers stand that readers are tempted to believe: MP4 boxes, AVI chunks, Matroska elements, others.
MARKS = (
    *(b"moov mvhd tkhd mdhd stsd stts ctts stsc stsz stco stss elst mdat trun tfhd tfdt avcC hvcC av1C".split()),
    *(b"avih strh strf idx1 movi LIST onMetaData GIF8".split()),
    *(b"\x2a\xd7\xb1", b"\x44\x89", b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75", b"\x1c\x53\xbb\x6b"),
)
