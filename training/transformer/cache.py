"""Tensors kept under the name of their content: what has been encoded once is not encoded again.

A cache is a folder of safetensors files, each beside a Parquet file of the same name that lists what is in it and is
written last. A file without its list is as if it were not there, so that a kill at any moment costs at most one file.
Nothing in it is ever changed: who has the key has the content. Several processes may write at the same time.
"""

from __future__ import annotations

import collections
import hashlib
import json
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from curation.files import aside

BAD = "bad-"
_OPEN_FILES = 32
_STALE_S = 24 * 3600.0  # what is aside for so long is of a process that was killed
_INDEX = pa.schema(
    [
        ("key", pa.string()),
        ("shape", pa.list_(pa.int32())),  # of its first tensor
        ("bad", pa.string()),  # why there is no tensor; null where there is
    ]
)


def content_key(*parts: Any) -> str:
    """The name of what is made of ``parts`` (plain values, themselves names of content where they are large)."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


class Entry(NamedTuple):
    """What is known of a key without reading its tensors."""

    file: str  # without suffix
    shape: tuple[int, ...]
    bad: str | None


class Cache:
    """A folder of tensors by content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[str, Entry] = {}
        self._read: set[str] = set()
        self._files: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> None:
        """Take in what other processes have written."""
        for path in sorted(self.folder.glob("*.parquet")):
            if path.stem not in self._read:
                self._read.add(path.stem)
                for row in pq.read_table(path, schema=_INDEX).to_pylist():
                    entry = Entry(path.stem, tuple(row["shape"] or ()), row["bad"])
                    if entry.bad is None or row["key"] not in self._entries:  # what one could not read another could
                        self._entries[row["key"]] = entry

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __getitem__(self, key: str) -> Entry:
        return self._entries[key]

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that are not here, each once, in their order."""
        return [key for key in dict.fromkeys(keys) if key not in self._entries]

    def write(self, tensors: Mapping[str, Sequence[Tensor]]) -> None:
        """Keep the tensors of each key. All or nothing."""
        if not tensors:
            return
        name = content_key(sorted(tensors))
        self.folder.mkdir(parents=True, exist_ok=True)
        named = {f"{key}.{i}": t.contiguous() for key, parts in tensors.items() for i, t in enumerate(parts)}
        with aside(self.folder / f"{name}.safetensors") as file:
            save_file(named, file)
        self._list(name, [{"key": key, "shape": list(parts[0].shape), "bad": None} for key, parts in tensors.items()])

    def note_bad(self, bad: Mapping[str, str]) -> None:
        """Keep why there are no tensors of some keys, in a file whose name begins with ``BAD``."""
        if bad:
            self.folder.mkdir(parents=True, exist_ok=True)
            rows = [{"key": key, "shape": None, "bad": why} for key, why in bad.items()]
            self._list(f"{BAD}{content_key(sorted(bad))}", rows)

    def _list(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        with aside(self.folder / f"{name}.parquet") as file:
            pq.write_table(pa.Table.from_pylist(list(rows), _INDEX), file)
        self.refresh()

    def read(self, key: str) -> list[Tensor]:
        """The tensors of a key. May be called from several threads."""
        entry = self._entries[key]
        count = 0
        with self._lock:
            file = self._open(entry.file)
            found = []
            names = set(file.keys())
            while f"{key}.{count}" in names:
                found.append(file.get_tensor(f"{key}.{count}"))
                count += 1
        return found

    def _open(self, name: str) -> Any:
        if name in self._files:
            self._files.move_to_end(name)
        else:
            while len(self._files) >= _OPEN_FILES:
                self._files.popitem(last=False)
            self._files[name] = safe_open(self.folder / f"{name}.safetensors", framework="pt")
        return self._files[name]

    def sweep(self) -> None:
        """Remove what killed processes have left, once it is a day old."""
        listed = {path.stem for path in self.folder.glob("*.parquet")}
        for path in self.folder.glob("*"):
            left = path.name.startswith(".") or (path.suffix == ".safetensors" and path.stem not in listed)
            if left and time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink(missing_ok=True)
