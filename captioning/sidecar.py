"""Captions that already lie beside the videos.

For ``videos/name.mp4`` these are looked for, the first that exists is used:

* ``videos/name.json``, where it holds one of these keys: ``{"caption": "..."}`` for the whole video, or a list of spans
  ``{"captions": [{"start_s": 0, "end_s": 2.5, "text": "..."}]}``, of which a clip takes the one that covers most of it
  (and at least half);
* ``videos/name.txt``: the whole text is the caption of every clip of the video;
* ``labels/name.txt`` beside the folder ``videos``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from curation.stage import Stage
from curation.table import CAPTIONS


@dataclasses.dataclass(kw_only=True)
class SidecarCaptions(Stage):
    """Take captions from files beside the video. A clip without one keeps a null caption."""

    name: ClassVar[str] = "sidecar_captions"
    reads: ClassVar[tuple[str, ...]] = ("video_path", "start_s", "end_s")
    writes: ClassVar[pa.Schema] = pa.schema(
        [CAPTIONS.field(name) for name in ("caption", "caption_version", "caption_model")]
    )
    cached: ClassVar[bool] = False  # the files may have changed since the last run

    def process(self, clips: pa.Table) -> pa.Table:
        rows = []
        for clip in clips.to_pylist():
            text = caption_for(Path(clip["video_path"]), clip["start_s"], clip["end_s"])
            source = "sidecar" if text is not None else None
            rows.append({"caption": text, "caption_version": None, "caption_model": source})
        return pa.Table.from_pylist(rows, schema=self.writes)


def caption_for(video: Path, start_s: float, end_s: float) -> str | None:
    """The caption of one span of a video, or None where no file offers one.

    Raises:
        ValueError: a caption file exists but cannot be understood.
    """
    about = video.with_suffix(".json")
    if about.is_file() and (content := _read_json(about)) is not None:
        return _from_json(about, content, start_s, end_s)
    for text in (video.with_suffix(".txt"), video.parent.parent / "labels" / f"{video.stem}.txt"):
        if text.is_file():
            return text.read_text(encoding="utf-8-sig").strip() or None
    return None


def _read_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file says, or None where it is about something else than captions."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    return content if isinstance(content, dict) and {"caption", "captions"} & set(content) else None


def _from_json(path: Path, content: dict[str, Any], start_s: float, end_s: float) -> str | None:
    try:
        if "captions" in content:
            content = {"caption": _best_span(content["captions"], start_s, end_s)}
        caption = content["caption"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is not a caption file: {type(error).__name__}: {error}") from error
    if caption is not None and not isinstance(caption, str):
        raise ValueError(f"{path.name}: the caption must be a text, got {type(caption).__name__}")
    return (caption or "").strip() or None


def _best_span(spans: list[dict[str, Any]], start_s: float, end_s: float) -> str | None:
    overlaps = [min(span["end_s"], end_s) - max(span["start_s"], start_s) for span in spans]
    best = max(range(len(spans)), key=overlaps.__getitem__, default=None)
    if best is None or overlaps[best] < (end_s - start_s) / 2:
        return None
    text: str = spans[best]["text"]
    return text
