"""Bad samples: counted by reason, the first ones named, and too many of them an error."""

from __future__ import annotations

import collections
from typing import Any, NoReturn

from curation.errors import CutroomError
from shards.read import Catalogue
from shards.scan import Fault

_NAMED = 20  # of each reason


class BadDataError(CutroomError, RuntimeError):
    """More samples are bad than the settings bear."""


class Faults:
    """What was wrong with the samples that one rank was to read.

    Args:
        max_bad: share of bad samples beyond which reading stops.
        at_least: so many are borne whatever their share.
    """

    def __init__(self, max_bad: float, at_least: int) -> None:
        self._max_bad, self._at_least = max_bad, at_least
        self.num_good = self.num_bad = 0
        self.reasons: collections.Counter[str] = collections.Counter()
        self.first: dict[str, list[Fault]] = {}

    def note(self, catalogue: Catalogue) -> None:
        """Take in what was found when the shards were opened.

        Raises:
            BadDataError: it is more than is borne.
        """
        for fault in catalogue.faults:
            self._add(fault)
        self._judge(sum(self.reasons.values()), len(catalogue))

    def good(self) -> None:
        self.num_good += 1

    def bad(self, reason: str, name: str, why: str) -> None:
        """A sample that could not be read.

        Raises:
            BadDataError: there are more than is borne.
        """
        self.num_bad += 1
        self._add(Fault(reason, name, why))
        self._judge(self.num_bad, self.num_good)

    def stop(self, why: str) -> NoReturn:
        """Give up.

        Raises:
            BadDataError: always.
        """
        raise BadDataError(f"training stops: {why}. {self}")

    def summary(self) -> dict[str, Any]:
        """For logs: counts by reason, and the first names of each with what is wrong."""
        return {"bad": dict(self.reasons), "named": {reason: self.named(reason) for reason in self.first}}

    def named(self, reason: str) -> list[str]:
        """The first that are bad for this reason, with what is wrong."""
        return [f"{fault.name}: {fault.why}" for fault in self.first[reason]]

    def __str__(self) -> str:
        parts = []
        for reason, count in self.reasons.most_common():
            names = "; ".join(f"{fault.name} ({fault.why})" for fault in self.first[reason][:5])
            parts.append(f"{count} {reason}: {names}")
        return " | ".join(parts) or "nothing is bad"

    def _add(self, fault: Fault) -> None:
        self.reasons[fault.reason] += fault.num_samples
        named = self.first.setdefault(fault.reason, [])
        if len(named) < _NAMED:
            named.append(fault)

    def _judge(self, bad: int, good: int) -> None:
        if bad > self._at_least and bad > self._max_bad * (bad + good):
            self.stop(f"{bad} of {bad + good} samples are bad, and `max_bad` is {self._max_bad:g}")
