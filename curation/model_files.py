"""Where the weights of models come from: a path on this machine, or a repository on the Hugging Face hub."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from curation.errors import UsageError, nearest, one_line
from curation.fingerprint import hash_file

_INDEX = "model.safetensors.index.json"
_ANSWER_S = 10.0  # for the hub to say whether it has a file


class MissingWeightsError(UsageError):
    """Weights are neither here nor to be had. The message says what was looked for, and how to get it."""


def is_path(source: str) -> bool:
    """Whether a source is a file or folder and not the name ``ORGANISATION/NAME`` of a repository on the hub."""
    spelt_as_path = source.startswith((".", "~", os.sep)) or source.count("/") != 1
    return spelt_as_path or Path(source).exists()


def check_weights(source: str, files: Sequence[str]) -> None:
    """Make sure that ``fetch_weights`` would succeed, without a download.

    Args:
        source: a path, or the id of a repository.
        files: names in the folder or repository, of which each must be there.

    Raises:
        MissingWeightsError: it would not. UsageError: a name is none within the folder or repository.
    """
    for name in files:
        _check_name(source, name)
    if is_path(source):
        for name in files:
            _local(source, name)
        return
    absent = [name for name in files if not is_here(source, name)]
    if not absent:
        return
    from huggingface_hub import HfApi

    try:
        known = HfApi().model_info(source, timeout=_ANSWER_S).siblings or []
    except Exception as error:  # offline, no such repository, not allowed: whatever it is, there are no weights
        raise _unreachable(source, absent[0], error) from error
    names = [file.rfilename for file in known]
    for name in absent:
        if name not in names:
            raise MissingWeightsError(f"{source} on the Hugging Face hub has no {name!r}.{nearest(name, names)}")


def is_here(source: str, name: str) -> bool:
    """Whether a file is on this machine; no network is asked."""
    if is_path(source):
        return (Path(located(source)) / name).exists()
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(source, name), str)


def fetch_weights(source: str, name: str) -> Path:
    """The path of one file, downloaded first where it must be.

    Raises:
        MissingWeightsError: it is not there. UsageError: the name is none within the folder or repository.
    """
    _check_name(source, name)
    if is_path(source):
        return _local(source, name)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, name))
    except Exception as error:  # as in check_weights
        raise _unreachable(source, name, error) from error


def _check_name(source: str, name: str) -> None:
    if Path(name).is_absolute():
        raise UsageError(f"{name} is a path of its own; name a file within {source}, or give the path for it")


def _local(source: str, name: str) -> Path:
    root = Path(source).expanduser()
    path = root / name if root.is_dir() else root
    if not path.exists():
        raise MissingWeightsError(f"no weights at {path}; give the path of a file, or ORGANISATION/NAME on the hub")
    return path


def _unreachable(source: str, name: str, error: Exception) -> MissingWeightsError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return MissingWeightsError(
        f"the weights {source} ({name}) are not on this machine, and the Hugging Face hub gave: {why.rstrip('.')}. "
        f"Get them where there is a network, with `hf download {source}`, or give the path of a copy"
    )


def check_safetensors(source: str) -> None:
    """Make sure of the weights of a transformers model, in one file or, as an index says, in several.

    Raises:
        MissingWeightsError: they are not there. UsageError: the index does not say where they are.
    """
    try:
        check_weights(source, ["model.safetensors"])
    except MissingWeightsError:
        try:
            check_weights(source, [_INDEX])
        except MissingWeightsError:
            pass  # the single file is what to ask for
        else:
            check_weights(source, _indexed(fetch_weights(source, _INDEX)))
            return
        raise


def _indexed(path: Path) -> list[str]:
    """The files of weights that an index names."""
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise UsageError(f"{path} is no index of weights: {one_line(error)}") from error
    if not names or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path} is no index of weights: it names {names[:3] or 'none'}")
    return names


def located(source: str) -> str:
    """A path made absolute, because workers may start in other folders; the id of a repository as it is."""
    return str(Path(source).expanduser().absolute()) if is_path(source) else source


def identity(source: str, *patterns: str) -> str:
    """What a resume key knows a model by: what is in its folder or file, wherever that lies; the id of a repository.

    Args:
        source: as of ``check_weights``.
        patterns: of the files in the folder that decide: names, or globs where there is no such file.
    """
    if not is_path(source):
        return source
    root = Path(located(source))
    if not root.is_dir():
        return f"{root.name}#{content_digest([root])}"
    found = ([root / name] if (root / name).is_file() else root.glob(name) for name in patterns)
    files = sorted(path for path in itertools.chain.from_iterable(found) if path.is_file())
    return f"{root.name}#{content_digest(files)}"


def content_digest(files: Sequence[Path]) -> str:
    """Name what is in files, so that a resume key can depend on it and not on where they lie."""
    whole = hashlib.blake2b(digest_size=8)
    for file in files:
        stat = file.stat()
        whole.update(_digest(file, stat.st_size, stat.st_mtime_ns))
    return whole.hexdigest()


@functools.lru_cache(maxsize=256)
def _digest(file: Path, size: int, mtime_ns: int) -> bytes:
    """Of one file; as long as size and time stay, it is read only once."""
    return bytes.fromhex(hash_file(file, hashlib.blake2b(digest_size=16)))
