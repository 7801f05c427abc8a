"""Captioned clips of a run as examples to learn from: which there are, which are held out, and what is asked.

B requests, L tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from captioning.chat import IGNORED, encode, tokenizer_of
from captioning.checks import was_stopped
from captioning.phrases import is_refusal
from captioning.pictures import is_whole
from captioning.question import Question
from captioning.requests import Request
from curation.errors import UsageError
from curation.table import Store, caption_columns, caption_of

_ABOUT = ("clip_id", "video_id", "caption_version", "caption_model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A clip and its caption. ``flaw``: why it is not to be learnt, such as ``is a refusal``; None where it is."""

    clip_id: str
    video_id: str
    caption: str
    caption_version: str | None
    caption_model: str | None
    flaw: str | None = None


def read_examples(run: str | os.PathLike[str]) -> list[Example]:
    """Every clip of a run that was kept and has a caption, in the order of clip_id.

    Raises:
        UsageError: there is none.
    """
    store = Store(run)
    if not (store.root / "clips").is_dir():
        raise UsageError(f"{run} is not the output of a run: it holds no clips")
    examples: dict[str, Example] = {}
    for _, clips in store.parts("clips"):
        columns = [*(name for name in (*_ABOUT, "caption_usage") if name in clips.column_names)]
        columns += caption_columns(clips.column_names)
        for row in clips.select([*columns, "status"]).to_pylist():
            caption = (caption_of(row) or "").strip()
            if row["status"] == "kept" and caption:
                flaw = "breaks off" if was_stopped(row) else "is a refusal" if is_refusal(caption) else None
                about = {name: row.get(name) for name in _ABOUT}
                examples[row["clip_id"]] = Example(**about, caption=caption, flaw=flaw)
    if not examples:
        raise UsageError(f"{run} has no kept clip with a caption; run a pipeline with a stage that writes captions")
    return [examples[clip_id] for clip_id in sorted(examples)]


def without_long(examples: Sequence[Example], processor: Any, most: int) -> list[Example]:
    """The same, but a caption of more than ``most`` tokens, with the one that ends it, has a flaw.

    A model that has learnt one would not come to its end within what it may write.
    """
    tokenizer = tokenizer_of(processor)
    ids = tokenizer([example.caption for example in examples], add_special_tokens=False)["input_ids"]
    long = [not example.flaw and len(tokens) >= most for example, tokens in zip(examples, ids, strict=True)]
    flaw = f"is longer than {most} tokens (--max-tokens)"
    return [dataclasses.replace(e, flaw=flaw) if is_long else e for e, is_long in zip(examples, long, strict=True)]


def split(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """Those to learn from, and those held out: whole videos, chosen by their ids alone.

    A video stays on its side when others come to the run. Where no video falls into the share, one is taken.

    Raises:
        UsageError: all clips are of one video.
    """
    places = {example.video_id: _place(example.video_id) for example in examples}
    if len(places) < 2:
        raise UsageError("all captioned clips are of one video, so that none can be held out; caption a second one")
    held_out = {video for video, place in places.items() if place < share} or {min(places, key=lambda v: places[v])}
    if len(held_out) == len(places):
        held_out.remove(max(places, key=lambda v: places[v]))
    learnt = [example for example in examples if example.video_id not in held_out]
    return learnt, [example for example in examples if example.video_id in held_out]


def _place(video_id: str) -> float:
    """0 to 1, evenly spread over videos and always the same for one."""
    return int.from_bytes(hashlib.blake2b(video_id.encode(), digest_size=8).digest(), "big") / 2**64


def digest(examples: Sequence[Example]) -> str:
    """A name of everything that is learnt."""
    whole = hashlib.blake2b(digest_size=16)
    for example in examples:
        for part in (example.clip_id, example.video_id, example.caption):
            whole.update(len(part.encode()).to_bytes(8, "big") + part.encode())
    return whole.hexdigest()


class Sheets:
    """Contact sheets by clip_id, in a file of their own: shuffled clips cannot be read out of Parquet one by one."""

    def __init__(self, run: str | os.PathLike[str], clip_ids: Sequence[str], path: Path) -> None:
        """Copy the sheets of these clips, part by part, into ``path``, which is overwritten."""
        self._places: dict[str, list[tuple[float, int, int]]] = {}
        wanted = pa.array(clip_ids, pa.string())
        offset = 0
        with open(path, "wb") as file:
            for _, frames in Store(run).parts("frames"):
                chosen = frames.filter(pc.is_in(frames["clip_id"], wanted))
                for batch in chosen.to_batches():
                    columns = (batch.column(name) for name in ("clip_id", "t_s", "jpeg"))
                    for clip_id, t_s, jpeg in zip(*columns, strict=True):
                        data = jpeg.as_buffer()
                        file.write(data)
                        self._places.setdefault(clip_id.as_py(), []).append((t_s.as_py(), offset, data.size))
                        offset += data.size
        self._file = open(path, "rb")  # noqa: SIM115

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._places

    def __getitem__(self, clip_id: str) -> list[tuple[float, bytes]]:
        """The time and JPEG of each frame, in the order of time."""
        handle = self._file.fileno()
        return [(t_s, os.pread(handle, size, offset)) for t_s, offset, size in sorted(self._places[clip_id])]

    def is_whole(self, clip_id: str, question: Question) -> bool:
        """Whether every frame that the question takes can be decoded."""
        return all(is_whole(jpeg) for _, jpeg in question.seen(self[clip_id]))

    def close(self) -> None:
        self._file.close()


class Encoder:
    """Examples as tensors. What was prepared once is kept, as far as memory was granted."""

    def __init__(self, processor: Any, sheets: Sheets, question: Question, *, cache_mb: int) -> None:
        self._processor, self._sheets, self._question = processor, sheets, question
        self._kept: dict[str, dict[str, Any]] = {}
        self._room = cache_mb * 2**20

    def request(self, example: Example) -> Request:
        return self._question.of(self._sheets[example.clip_id])

    def batch(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Padded on the right; padding is masked and not learnt. See ``chat.encode``."""
        import torch
        from torch.nn.functional import pad

        singles = [self._single(example) for example in examples]
        length = max(single["input_ids"].shape[1] for single in singles)
        fillers = {"input_ids": tokenizer_of(self._processor).pad_token_id, "labels": IGNORED}
        batch = {}
        for name in singles[0]:
            values = [single[name] for single in singles]
            if all(v.dim() == 2 and v.shape == s["input_ids"].shape for v, s in zip(values, singles, strict=True)):
                filler = fillers.get(name, 0)
                values = [pad(value, (0, length - value.shape[1]), value=filler) for value in values]  # B L
            elif values[0].dim() > 3:  # LLaVA-NeXT: pictures, tiles, ...; it takes as many tiles as image_sizes say
                tiles = max(value.shape[1] for value in values)
                values = [pad(v, (*(0, 0) * (v.dim() - 2), 0, tiles - v.shape[1])) for v in values]
            batch[name] = torch.cat(values)
        return batch

    def _single(self, example: Example) -> dict[str, Any]:
        if example.clip_id in self._kept:
            return self._kept[example.clip_id]
        single = dict(encode(self._processor, [self.request(example)], answers=[example.caption]))
        size = sum(value.nbytes for value in single.values())
        if size <= self._room:
            self._kept[example.clip_id] = single
            self._room -= size
        return single
