"""Rules: a range over a score. They decide what is kept; stages only measure."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A condition on one column, as written under ``keep:``.

    An unknown score (null) does not satisfy a rule, as in SQL, unless ``unknown: keep`` is given.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    min: float | None = None
    max: float | None = None
    any_of: list[str] | None = None
    none_of: list[str] | None = None
    unknown: Literal["keep", "reject"] = "reject"

    def keeps(self, value: Any) -> bool:
        """Whether a clip with this value stays. Both ends of the range belong to it."""
        if value is None or value != value:  # NaN is unknown too
            return self.unknown == "keep"
        if self.min is not None and not (value >= self.min or value == _as_stored(self.min)):
            return False
        if self.max is not None and not (value <= self.max or value == _as_stored(self.max)):
            return False
        words = set(value) if isinstance(value, list) else {value}
        if self.any_of is not None and not words & set(self.any_of):
            return False
        return self.none_of is None or not words & set(self.none_of)

    def __str__(self) -> str:
        ends = ("" if end is None else f"{end:g}" for end in (self.min, self.max))
        parts = [":".join(ends)] if (self.min, self.max) != (None, None) else []
        parts += [f"any of {self.any_of}"] if self.any_of is not None else []
        parts += [f"none of {self.none_of}"] if self.none_of is not None else []
        return ", ".join(parts) or "known"


def _as_stored(end: float) -> float:
    """An end of a range as it is in float32, in which most scores are stored: 0.3 is a little more there."""
    with np.errstate(over="ignore"):
        stored = float(np.float32(end))
    return stored if math.isfinite(stored) else end


def judge(clips: pa.Table, rules: dict[str, Rule]) -> pa.Table:
    """Reject the kept clips that break one of ``rules`` (column -> rule); the first broken rule is the reason."""
    if not rules:
        return clips
    status, reason = clips["status"].to_pylist(), clips["reason"].to_pylist()
    for column, rule in rules.items():
        values = clips[column].to_pylist()
        for i, value in enumerate(values):
            if status[i] == "kept" and not rule.keeps(value):
                status[i], reason[i] = "rejected", column
    for name, values in (("status", status), ("reason", reason)):
        clips = clips.set_column(clips.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return clips
