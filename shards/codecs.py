"""The codecs that clips can be encoded with: what their settings mean, and what makes their output repeat.

All of them run on one thread. Measured with PyAV 18.1 (FFmpeg 8.1, libvpx 1.16, SVT-AV1 4.1): ten encodes of the same
frames give the same bytes with each of them, on a busy machine too.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction

from curation.plan import ShardSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codec:
    """One codec as FFmpeg's encoder for it wants to be told. Defaults are of about the same quality in all codecs."""

    encoder: str
    presets: tuple[str | int, ...]  # from fast to slow
    preset: str | int  # by default
    preset_option: str = "preset"
    max_crf: int
    crf: int  # by default
    tag: str | None = None  # in MP4, where FFmpeg's own choice is not what players expect
    options: dict[str, str] = dataclasses.field(default_factory=dict)


_X26X = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")

CODECS: dict[str, Codec] = {
    "h264": Codec(
        encoder="libx264",
        presets=_X26X,
        preset="veryfast",
        max_crf=51,
        crf=18,
        # Without it x264's assembly gives other bits in about one run of ten, and on other CPUs.
        options={"x264-params": "cpu-independent=1"},
    ),
    "hevc": Codec(
        encoder="libx265",
        presets=_X26X,
        preset="fast",
        max_crf=51,
        crf=20,
        tag="hvc1",  # parameter sets outside of the pictures, which Apple's players insist on
        # No thread pool, one frame at a time, no text about the encoder in the stream, and keyframes that nothing
        # before them is needed for: x265's default is an open GOP.
        options={"x265-params": "pools=none:frame-threads=1:wpp=0:info=0:open-gop=0:log-level=none"},
    ),
    "vp9": Codec(
        encoder="libvpx-vp9",
        presets=tuple(range(5, -1, -1)),
        preset=4,
        preset_option="cpu-used",
        max_crf=63,
        crf=28,
        options={"deadline": "good", "b": "0", "row-mt": "0"},  # constant quality needs a bit rate of 0
    ),
    "av1": Codec(
        encoder="libsvtav1",
        presets=tuple(range(10, -1, -1)),  # with 12, small things that change between frames were left as they were
        preset=8,
        max_crf=63,
        crf=30,
        options={"svtav1-params": "lp=1:irefresh-type=2"},  # one thread; closed GOPs
    ),
}


def misfit(settings: ShardSettings) -> tuple[str, str] | None:
    """(setting, why) for the first setting that does not go with the others or with this machine; None if all is well.

    The types of the settings are pydantic's to check; this is about what they mean together.
    """
    import av

    codec, name = CODECS[settings.codec], settings.codec
    if codec.encoder not in av.codecs_available:
        return "codec", f"the FFmpeg of this PyAV has no {codec.encoder}, which encodes {name}; use codec: h264"
    if settings.preset is not None and settings.preset not in codec.presets:
        valid = ", ".join(repr(preset) for preset in codec.presets)
        return "preset", f"should be one of {valid} (fast to slow) for {name}, got {settings.preset!r}"
    if settings.crf is not None and not 0 <= settings.crf <= codec.max_crf:
        return "crf", f"should be 0 or more and less than or equal to {codec.max_crf} for {name}, got {settings.crf}"
    if settings.video == "remux" and settings.fps is not None:
        return "fps", "copied packets keep their times; use `video: encode`, or leave fps out"
    return None


def crf_of(settings: ShardSettings) -> int:
    return CODECS[settings.codec].crf if settings.crf is None else settings.crf


def preset_of(settings: ShardSettings) -> str | int:
    return CODECS[settings.codec].preset if settings.preset is None else settings.preset


def encoder_options(settings: ShardSettings, rate: Fraction) -> dict[str, str]:
    """FFmpeg's options for the encoder, at ``rate`` frames per second."""
    codec = CODECS[settings.codec]
    return {
        "crf": str(crf_of(settings)),
        codec.preset_option: str(preset_of(settings)),
        "g": str(max(1, round(settings.gop_s * rate))),
        "flags": "+bitexact",  # leaves the encoder's version out
        **codec.options,
    }
