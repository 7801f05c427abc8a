"""The captions: of single frames, of the motion, and of the whole, from both (version 1) or at once (version 2)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from annotated_types import Ge

from captioning.camera import camera_phrase
from captioning.captioner import Captioner
from captioning.prompts import Prompt
from captioning.question import Question, is_distilled, read_question
from captioning.requests import Reply, Request
from curation.errors import UsageError
from curation.table import CAPTIONS, USAGE


@dataclasses.dataclass(kw_only=True)
class FrameCaptions(Captioner):
    """Dense captions of single frames of the contact sheet, by an image-language model: version 1, first stage.

    Writes:
        frame_captions: time and text of each frame that was described, in time order.
        frame_captions_usage: the model, the prompt and what it took.

    Args:
        max_frames: of a clip, spread over it.

    After CogVideoX (Yang et al. 2024, section 3.4), whose frames are captioned by CogVLM.
    """

    name: ClassVar[str] = "frame_captions"
    reads: ClassVar[tuple[str, ...]] = ("frames", "clip_id", "video_id")
    writes: ClassVar[pa.Schema] = pa.schema([CAPTIONS.field("frame_captions"), ("frame_captions_usage", USAGE)])

    prompt: str = "frames-1"
    max_frames: Annotated[int, Ge(1)] = 4

    def requests(self, clip: dict[str, Any]) -> list[Request]:
        frames = spread(readable(clip["frames"]), self.max_frames)
        text = self.filled.fill({})
        return [
            Request(prompt=text, images=(cell["jpeg"],), times=(cell["t_s"],), max_tokens=self.max_tokens)
            for cell in frames
        ]

    def result(self, clip: dict[str, Any], replies: list[Reply]) -> dict[str, Any]:
        frames = spread(clip["frames"], self.max_frames)
        captions = [
            {"t_s": cell["t_s"], "text": reply.text.strip()} for cell, reply in zip(frames, replies, strict=True)
        ]
        return {"frame_captions": captions, "frame_captions_usage": self.usage(replies)}


@dataclasses.dataclass(kw_only=True)
class ShortCaption(Captioner):
    """A short caption of what happens in the clip, by a video-language model: version 1, second stage.

    Writes:
        short_caption: a sentence or two, mostly on motion.
        short_caption_usage: the model, the prompt and what it took.

    Args:
        max_frames: of a clip, spread over it.
        see: the frames as one video, or as several images, which every endpoint takes; vLLM and SGLang take videos.

    After CogVideoX (Yang et al. 2024, section 3.4), whose short captions are Panda-70M's.
    """

    name: ClassVar[str] = "short_caption"
    reads: ClassVar[tuple[str, ...]] = ("frames", "clip_id", "video_id")
    writes: ClassVar[pa.Schema] = pa.schema([CAPTIONS.field("short_caption"), ("short_caption_usage", USAGE)])

    prompt: str = "short-1"
    max_tokens: Annotated[int, Ge(1)] = 96
    max_frames: Annotated[int, Ge(1)] = 16
    see: Literal["video", "images"] = "video"

    @property
    def asks_for_video(self) -> bool:
        return self.see == "video"

    def requests(self, clip: dict[str, Any]) -> list[Request]:
        question = Question(
            prompt=self.filled.fill({}), frames=self.max_frames, long_side_px=None, max_tokens=self.max_tokens
        )
        return about_all(question, readable(clip["frames"]), video=self.asks_for_video)

    def result(self, clip: dict[str, Any], replies: list[Reply]) -> dict[str, Any]:
        return {"short_caption": replies[0].text.strip() or None, "short_caption_usage": self.usage(replies)}


@dataclasses.dataclass(kw_only=True)
class Caption(Captioner):
    """The caption of the clip, which goes into the shards.

    Writes:
        caption: the text.
        caption_version: v1, v2 or direct.
        caption_model, caption_prompt: what wrote it; the prompt with a digest of its text.
        caption_usage: the same, and what it took.

    Args:
        version: v1: a language model writes it from ``frame_captions`` and ``short_caption``. v2: a video-language
            model sees the clip; meant for one that ``cutroom caption distill`` has taught what v1 writes, which is then
            asked as it was taught (prompt, frames, max_tokens; video or images, but behind an endpoint ``see`` says).
            An endpoint names a model so if it serves the folder by its path, and that is here too. direct: the same by
            a model as it comes, a single step as in Open-Sora.
        camera: v1 only: hand the camera's motion, as the stage ``motion`` has measured it, to the language model.
        max_frames, long_side_px: v2 and direct: how many frames, spread over the clip, and to what size larger ones are
            scaled down. By default 8 of 420 px for v2, as ``distill`` teaches it; 16 as they are for direct.
        see: v2 and direct: the frames as one video, or as several images, as for ``short_caption``.
        prompt: by version: summary-1, video-1, or images-1 where images are seen.

    After CogVideoX (Yang et al. 2024, section 3.4); its prompts were not published, these are ours.
    """

    name: ClassVar[str] = "caption"

    version: Literal["v1", "v2", "direct"] = "v1"  # type: ignore[assignment,misc]  # hides the number of the class
    prompt: str = ""
    max_tokens: Annotated[int, Ge(1)] = 320
    camera: bool = False
    max_frames: Annotated[int, Ge(1)] | None = None
    long_side_px: Annotated[int, Ge(28)] | None = None
    see: Literal["video", "images"] = "video"

    def __post_init__(self) -> None:
        taught = self.version == "v2"
        self.max_frames = self.max_frames or (Question.frames if taught else _FRAMES)
        self.long_side_px = self.long_side_px or (Question.long_side_px if taught else None)
        self._own_prompt = bool(self.prompt)
        self.prompt = self.prompt or ("summary-1" if self.version == "v1" else _OF_FRAMES[self.see])
        super().__post_init__()

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on the arguments
        given = ("frame_captions", "short_caption") if self.version == "v1" else ("frames",)
        return (*given, "clip_id", "video_id", *(("camera_motion",) if self.camera else ()))

    @property
    def writes(self) -> pa.Schema:
        names = ("caption", "caption_version", "caption_model", "caption_prompt")
        return pa.schema([*(CAPTIONS.field(name) for name in names), ("caption_usage", USAGE)])

    @property
    def vocabulary(self) -> dict[str, list[str]]:  # type: ignore[override]
        return {"caption_version": [self.version]}

    @property
    def fills(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("frame_captions", "short_caption", "camera") if self.version == "v1" else ()

    @property
    def asks_for_video(self) -> bool:
        return self.version != "v1" and self.see == "video" and not self._finds_out

    @property
    def _finds_out(self) -> bool:
        """Whether the model is opened here, and asked by video or images as it takes them."""
        return self._as_taught and not self.endpoint

    def check(self) -> None:
        if self.camera and self.version != "v1":
            raise UsageError(f"camera: true is for version v1; in {self.version} the model sees the camera itself")
        if self._as_taught:
            self._check_taught()
        if self.camera and "camera" not in self.filled.names:
            raise UsageError(f"camera: true, and the prompt {self.prompt} has no $camera")
        if self.version == "v1" and not {"frame_captions", "short_caption"} & self.filled.names:
            raise UsageError(
                f"the prompt {self.prompt} has neither $frame_captions nor $short_caption: nothing to sum up"
            )
        super().check()

    def _check_taught(self) -> None:
        """Refuse what would be dropped, because the model is asked as it was taught."""
        taught = self.question
        for name, known, default in (
            ("max_frames", taught.frames, Question.frames),
            ("long_side_px", taught.long_side_px, Question.long_side_px),
            ("max_tokens", taught.max_tokens, Caption.max_tokens),
        ):
            if getattr(self, name) not in (known, default):
                raise UsageError(
                    f"{name}: {getattr(self, name)}, and the model was taught with {known}; leave it out, or ask "
                    "otherwise with a prompt of your own"
                )

    @functools.cached_property
    def filled(self) -> Prompt:
        return Prompt("distilled", self.question.prompt) if self._as_taught else super().filled

    @functools.cached_property
    def question(self) -> Question:
        """What a model that sees the clip is asked."""
        if self._as_taught:
            return read_question(Path(self.model))
        return Question(
            prompt=super().filled.fill({}),
            frames=self.max_frames or _FRAMES,
            long_side_px=self.long_side_px,
            max_tokens=self.max_tokens,
        )

    @property
    def _as_taught(self) -> bool:
        """Whether the model is asked what it was asked when it was taught."""
        return self.version == "v2" and not self._own_prompt and is_distilled(Path(self.model))

    def requests(self, clip: dict[str, Any]) -> list[Request]:
        if self.version != "v1":
            video = self.asks_for_video or self._finds_out
            return about_all(self.question, readable(clip["frames"]), video=video)
        frames = [frame for frame in clip["frame_captions"] or () if frame["text"]]
        if not frames and not clip["short_caption"]:
            return []  # of nothing a language model writes something all the same
        phrase = camera_phrase(clip["camera_motion"]) if self.camera else ""
        notes = {
            "short_caption": clip["short_caption"] or "(not known)",
            "frame_captions": "\n".join(f"{frame['t_s']:.1f}: {' '.join(frame['text'].split())}" for frame in frames)
            or "(none)",
            "camera": f"As measured, {phrase}." if phrase else "",
        }
        return [Request(prompt=self.filled.fill(notes), max_tokens=self.max_tokens)]

    def result(self, clip: dict[str, Any], replies: list[Reply]) -> dict[str, Any]:
        usage = self.usage(replies)
        return {
            "caption": replies[0].text.strip() or None,
            "caption_version": self.version,
            "caption_model": usage["model"],
            "caption_prompt": usage["prompt"],
            "caption_usage": usage,
        }


_FRAMES = 16  # of a clip that is seen whole, by a model as it comes
_OF_FRAMES = {"video": "video-1", "images": "images-1"}


def about_all(question: Question, frames: Sequence[dict[str, Any]], *, video: bool) -> list[Request]:
    """A question about frames of a contact sheet together; none without frames."""
    if not frames:
        return []
    return [dataclasses.replace(question.of([(cell["t_s"], cell["jpeg"]) for cell in frames]), video=video)]


def spread(frames: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """At most ``count`` of the frames, evenly spread, each standing in the middle of its share of the time.

    Unlike ``Question.of``, which takes the first and the last frame, because motion is seen between them.
    """
    if len(frames) <= count:
        return list(frames)
    return [frames[int((i + 0.5) * len(frames) / count)] for i in range(count)]


def readable(frames: Sequence[dict[str, Any]] | None) -> Sequence[dict[str, Any]]:
    """The cells of a contact sheet.

    Raises:
        ValueError: one is no JPEG; better no caption than one of other pictures.
    """
    for cell in frames or ():
        if not cell["jpeg"].startswith(b"\xff\xd8"):
            raise ValueError(f"the frame at {cell['t_s']:.3f} s of the contact sheet is no JPEG")
    return frames or ()
