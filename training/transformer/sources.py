"""Where the text encoder comes from: its folders, and the name of what is in them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from curation.errors import UsageError
from curation.files import aside
from curation.fingerprint import hash_file
from training.pretrained import fetch
from training.weights import read_json, read_shapes

WORDS = "words"


class TextFolders(NamedTuple):
    """A text encoder's two folders; they may be the same."""

    encoder: Path
    tokenizer: Path

    @property
    def width(self) -> int:
        """Numbers of an embedding.

        Raises:
            UsageError: the encoder does not say.
        """
        values = read_json(self.encoder / "config.json")
        width = values.get("d_model", values.get("hidden_size"))
        if not isinstance(width, int):
            raise UsageError(f"{self.encoder}/config.json says no d_model: is it a T5 encoder?")
        return width


def find_text(source: str) -> TextFolders:
    """The folders of a text encoder; from the hub they are downloaded once.

    Raises:
        UsageError: there is none, or its weights are not whole.
    """
    folder = fetch(source, "text_encoder", "tokenizer")
    both = TextFolders(folder / "text_encoder", folder / "tokenizer")
    found = both if all(part.is_dir() for part in both) else TextFolders(folder, folder)
    if not (found.encoder / "config.json").is_file():
        raise UsageError(
            f"text.start {source}: no text_encoder/ with tokenizer/ beside it, and no config.json; give the folder of "
            f"a CogVideoX pipeline or of a T5 encoder, or `{WORDS}` for small models of a small world"
        )
    if not any(found.encoder.glob("*.bin")):  # which transformers reads too
        read_shapes(found.encoder, file="model.safetensors")
    return found


def digest_of_files(folders: TextFolders, *, notes: Path) -> str:
    """The name of all files of a text encoder by their bytes. Large ones are read once and noted in ``notes``."""
    known = _read_notes(notes)
    digest, before = hashlib.blake2b(digest_size=16), dict(known)
    for folder in dict.fromkeys(folders):
        for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
            stat = path.stat()
            version = json.dumps([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
            if version not in known:
                known[version] = hash_file(path, hashlib.blake2b(digest_size=16))
            digest.update(json.dumps([path.name, known[version]]).encode())
    if known != before:
        notes.parent.mkdir(parents=True, exist_ok=True)
        with aside(notes) as file:
            file.write_text(json.dumps(known, indent=0), encoding="utf-8")
    return digest.hexdigest()


def _read_notes(notes: Path) -> dict[str, str]:
    try:
        values: Any = json.loads(notes.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
