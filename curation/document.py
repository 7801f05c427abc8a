"""A YAML file of the user's: read safely, checked against a dataclass, every mistake said with its place."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from curation.errors import ConfigError, UsageError, nearest


class YamlLoader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as YAML 1.2 has it and everybody means; YAML 1.1 wants 1.0e-4."""


YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


EXPECTED = "expected"  # in a field's metadata: what its entries have to be, in words


class Document:
    """A YAML file with the position of everything in it."""

    def __init__(self, file: Path, *, holds: str = "pipeline names to pipelines") -> None:
        self.file = file
        try:
            text = file.read_text(encoding="utf-8")
            loader = YamlLoader(text)
            self._root = loader.get_single_node()
            if self._root is not None:
                self._refuse_duplicates(self._root, set())
            content = loader.construct_document(self._root) if self._root else None
        except OSError as error:
            raise UsageError(f"cannot read {file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{file} is not UTF-8 text") from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            raise ConfigError(
                f"not valid YAML: {error.problem}", file=str(file), line=place[0], column=place[1]
            ) from error
        except (yaml.YAMLError, RecursionError) as error:
            raise ConfigError(f"not valid YAML: {error}", file=str(file), line=1, column=1) from error
        if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
            raise self.error((), f"expected a mapping from {holds}")
        self.content: dict[str, Any] = content

    def _refuse_duplicates(self, node: yaml.Node, visited: set[int]) -> None:
        if id(node) in visited:  # an alias
            return
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                    wrong = "stands here twice; remove one" if isinstance(key, yaml.ScalarNode) else "is no name"
                    mark, name = key.start_mark, key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                    raise ConfigError(
                        f"{name!r} {wrong}", file=str(self.file), line=mark.line + 1, column=mark.column + 1
                    )
                seen.add(key.value)
                self._refuse_duplicates(value, visited)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                self._refuse_duplicates(value, visited)

    def at(self, path: tuple[Hashable, ...]) -> Any:
        """The value at a path of keys and indices."""
        value: Any = self.content
        for key in path:
            value = value[key]
        return value

    def error(self, path: tuple[Hashable, ...], message: str, kind: type[ConfigError] = ConfigError) -> ConfigError:
        """An error that points to the deepest place on ``path`` that exists in the file."""
        node, mark = self._root, self._root.start_mark if self._root else None
        for key in path:
            if isinstance(node, yaml.MappingNode):
                pair = next(((k, v) for k, v in node.value if k.value == str(key)), None)
                if pair is None:
                    break
                mark, node = pair[0].start_mark, pair[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
                mark = node.start_mark
            else:
                break
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        return kind(message, file=str(self.file), line=line, column=column)

    def validate(
        self, kind: type, path: tuple[Hashable, ...], value: Any = None, *, beside: tuple[Hashable, ...] | None = None
    ) -> Any:
        """Make a ``kind`` (a dataclass) of the value at ``path``; unknown keys and wrong types are errors.

        ``beside``: a second place that ``value`` was put together from; errors point to whichever holds the mistake.
        """
        try:
            # By way of JSON, because pydantic's strict mode takes mappings for dataclasses only there.
            text = json.dumps(self.at(path) if value is None else value, default=str, allow_nan=False)
            return TypeAdapter(kind).validate_json(text)
        except ValidationError as error:
            # A misspelt key is both unknown and missing; the first says more.
            first = min(error.errors(), key=lambda error: error["type"].startswith("missing"))
            inside = tuple(first["loc"])
            if beside is not None and not self._holds((*path, *inside)) and self._holds((*beside, *inside)):
                path = beside
            raise self.error((*path, *inside), _explain(kind, inside, first)) from error
        except ValueError as error:
            raise self.error(path, "a number in here is infinite or not a number") from error

    def _holds(self, path: tuple[Hashable, ...]) -> bool:
        try:
            self.at(path)
        except (KeyError, IndexError, TypeError):
            return False
        return True


def _explain(kind: type, inside: tuple[int | str, ...], error: Mapping[str, Any]) -> str:
    """Say a pydantic error in our words: what is wrong, with the value and the valid names."""
    name = ".".join(str(part) for part in inside) or "this"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner = _kind_at(kind, inside[:-1])
        names = [field.name for field in dataclasses.fields(owner)] if dataclasses.is_dataclass(owner) else []
        return f"unknown key {inside[-1]!r}.{nearest(str(inside[-1]), names)}"
    if error["type"] in ("missing", "missing_argument"):
        return f"{name!r} is missing"
    fields = {field.name: field for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
    if len(inside) > 1 and (expected := fields[str(inside[0])].metadata.get(EXPECTED) if fields else None):
        return f"{expected}, got {error['input']!r}"
    return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


def _kind_at(kind: Any, inside: tuple[int | str, ...]) -> Any:
    """The type that is meant at a place inside ``kind``; None where the way leads through something unknown."""
    for key in inside:
        inner = [arm for arm in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(arm)]
        if isinstance(key, str) and inner and key in (hints := typing.get_type_hints(inner[0])):
            kind = hints[key]
        else:  # into a list or mapping
            kind = next(reversed(typing.get_args(kind)), None)
    return next((arm for arm in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(arm)), None)
