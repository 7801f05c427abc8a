"""Fingerprints of files that change while they are read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pytest

import curation.fingerprint
from curation.fingerprint import Fingerprint, hash_file
from curation.table import VIDEOS, Part


class Growing:
    """A hash; the file that it is fed grows with every piece of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.digest = path, hashlib.md5()

    def update(self, data: bytes, /) -> None:
        self.digest.update(data)
        with self.path.open("ab") as file:
            file.write(data)

    def hexdigest(self) -> str:
        return self.digest.hexdigest()


def test_a_file_that_grows_as_fast_as_it_is_read_comes_to_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(3_000_000)
    path = tmp_path / "live.ts"
    path.write_bytes(data)
    assert hash_file(path, Growing(path)) == hashlib.md5(data).hexdigest()
    monkeypatch.setattr(curation.fingerprint, "fingerprint", lambda path: hash_file(path, Growing(Path(path))))
    part = Part("0", pa.Table.from_pylist([{"video": "live.ts"}], schema=VIDEOS))
    row = Fingerprint(str(tmp_path))(part).videos.to_pylist()[0]
    assert (row["status"], row["video_id"]) == ("failed", None)
    assert "is still being written" in row["error"]
