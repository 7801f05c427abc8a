"""Prompts: text files with a version in their name, and a digest in every caption that they led to."""

from __future__ import annotations

import dataclasses
import hashlib
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from curation.errors import UsageError, nearest

_SHIPPED = Path(__file__).parent / "prompts"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A text with ``$names`` in it; ``$$`` is a dollar."""

    name: str
    text: str

    @property
    def mark(self) -> str:
        """``frames-1#3f09ab17``: the name, and a digest of the text."""
        return f"{self.name}#{hashlib.blake2b(self.text.encode(), digest_size=4).hexdigest()}"

    @property
    def names(self) -> set[str]:
        """The names that are to be filled."""
        found = (match["named"] or match["braced"] for match in string.Template.pattern.finditer(self.text))
        return {name for name in found if name}

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with its names replaced. What is put in is never looked at for further names."""
        return string.Template(self.text).substitute(values).strip()


def load_prompt(source: str, names: Sequence[str] = ()) -> Prompt:
    """Read a prompt.

    Args:
        source: the name of one that comes with Cutroom, or a path that ends in ``.txt``.
        names: what may stand in it as ``$name``.

    Raises:
        UsageError: there is no such prompt, or it has names that nobody fills.
    """
    shipped = {path.stem: path for path in _SHIPPED.glob("*.txt")}
    path = Path(source).expanduser() if source.endswith(".txt") else shipped.get(source)
    if path is None:
        raise UsageError(f"no prompt {source!r}.{nearest(source, shipped)} Or the path of a .txt file of your own.")
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the prompt {path} cannot be read: {error}") from error
    if not text:
        raise UsageError(f"the prompt {path} is empty")
    if any(match["invalid"] is not None for match in string.Template.pattern.finditer(text)):
        raise UsageError(f"the prompt {path} has a $ that begins no name; write $$ for a dollar")
    prompt = Prompt(path.stem, text)
    for name in sorted(prompt.names - set(names)):
        raise UsageError(f"the prompt {path} has ${name}, which nobody fills.{nearest(name, names)}")
    return prompt
