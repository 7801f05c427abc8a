"""Answers that were paid for and whose clips are not committed yet: a run that is killed does not ask again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from captioning.requests import Reply


class Journal:
    """The answers of one stage, in a file for each video: a JSON object in each line, added as it comes in.

    Args:
        folder: where the files ``VIDEO_ID.STAGE.jsonl`` lie; None keeps nothing.
        stage: its name.
    """

    def __init__(self, folder: Path | None, stage: str) -> None:
        self._folder, self._stage = folder, stage

    def read(self, video_id: str) -> dict[str, Reply]:
        """The answers to questions on a video, by their keys."""
        path = self._path(video_id)
        if path is None or not path.exists():
            return {}
        known: dict[str, Reply] = {}
        for line in path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                key = entry.pop("key")
                known[key] = Reply(**entry)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # the run was killed while it wrote this line, or the disk lost it
        return known

    def add(self, video_id: str, key: str, reply: Reply) -> None:
        """Keep an answer."""
        path = self._path(video_id)
        if path is None:
            return
        path.parent.mkdir(exist_ok=True)
        entry: dict[str, Any] = {"key": key, **dataclasses.asdict(reply)}
        with open(path, "ab") as file:  # the break comes first, because the last line may be torn
            file.write(b"\n" + json.dumps(entry).encode())

    def _path(self, video_id: str) -> Path | None:
        return self._folder / f"{video_id}.{self._stage}.jsonl" if self._folder else None
