"""Answers that were paid for and whose clips are not committed yet: a run that is killed does not ask again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from captioning.requests import Reply
from curation.errors import StageError, one_line


class Journal:
    """The answers to one kind of stage, in a file for each video: a JSON object in each line, added as it comes in.

    Args:
        folder: where the files ``VIDEO_ID.KIND.jsonl`` lie; None keeps nothing.
        kind: the stage's name up to a bracket.
    """

    def __init__(self, folder: Path | None, kind: str) -> None:
        self._folder, self._kind = folder, kind

    def read(self, video_id: str) -> dict[str, Reply]:
        """The answers to questions on a video, by their keys.

        Raises:
            StageError: the file is there and cannot be read.
        """
        path = self._path(video_id)
        known: dict[str, Reply] = {}
        try:
            lines = path.read_bytes().splitlines() if path and path.exists() else []
        except OSError as error:
            raise StageError(f"{path} cannot be read ({one_line(error)}); mend that and run again") from error
        for line in lines:
            try:
                entry = json.loads(line)
                key = entry.pop("key")
                known[key] = Reply(**entry)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # the run was killed while it wrote this line, or the disk lost it
        return known

    def add(self, video_id: str, key: str, reply: Reply) -> None:
        """Keep an answer.

        Raises:
            StageError: the disk takes no more. It stops the run, which would go on to pay for what it cannot keep.
        """
        path = self._path(video_id)
        if path is None:
            return
        entry: dict[str, Any] = {"key": key, **dataclasses.asdict(reply)}
        try:
            path.parent.mkdir(exist_ok=True)
            with open(path, "ab") as file:  # the break comes first, because the last line may be torn
                file.write(b"\n" + json.dumps(entry).encode())
        except OSError as error:
            raise StageError(f"{path} cannot keep an answer ({one_line(error)}); mend that and run again") from error

    def _path(self, video_id: str) -> Path | None:
        return self._folder / f"{video_id}.{self._kind}.jsonl" if self._folder else None
