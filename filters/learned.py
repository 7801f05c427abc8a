"""Scores by filters that were trained on a user's own labels: the stage, and the file that holds such a filter."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import ConfigDict, FiniteFloat, TypeAdapter, ValidationError

from curation.errors import UsageError
from curation.files import aside, flush
from curation.model_files import content_digest
from curation.stage import Stage

_STRICT: ConfigDict = {"extra": "forbid", "strict": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """How well a filter tells clips that it was not trained on, at one threshold. None where nothing is counted."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    threshold: FiniteFloat
    precision: FiniteFloat | None  # of the clips at or above the threshold, the share labelled 1
    recall: FiniteFloat | None  # of the clips labelled 1, the share at or above the threshold
    f1: FiniteFloat | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What labels say of a filter's probabilities.

    Attributes:
        average_precision: area under precision over recall; chance is the share of positives.
        at_half: figures at the threshold 0.5.
        wanted_precision: what ``at_wanted`` is for: the threshold of the highest recall with at least this precision.
            None where no threshold has it.
        at_trained: figures at the threshold for the precision wanted when the filter was trained, on other labels.
        num_unmeasured: labelled clips left out, because the run has no embedding of them.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    num_labels: int
    num_positive: int
    num_videos: int
    num_unmeasured: int
    average_precision: FiniteFloat
    at_half: Figures
    wanted_precision: FiniteFloat
    at_wanted: Figures | None
    at_trained: Figures | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedFilter:
    """A logistic regression on the embedding of a clip, as plain numbers in a JSON file.

    Attributes:
        name: its score is the column ``learned_<name>``.
        encoder: what made the embeddings, as their files say it (key -> value). Empty if they do not.
        coefficients: D numbers, for embeddings as they are (standardisation is folded in).
        cross_validated: how well it did on videos that it had not seen; the final one is trained on all labels.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    format: Literal["cutroom-learned-filter/1"] = "cutroom-learned-filter/1"
    name: str
    encoder: dict[str, str]
    dimension: int
    intercept: FiniteFloat
    coefficients: list[FiniteFloat]
    regularisation: FiniteFloat  # C, the inverse of its strength
    num_folds: int
    cross_validated: Verdict

    @property
    def column(self) -> str:
        return f"learned_{self.name}"

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """How probable the label is for embeddings N D: N, 0..1. It does not depend on how many are asked for at once.

        Raises:
            ValueError: the embeddings have another number of dimensions.
        """
        if embeddings.shape[1] != self.dimension:
            raise ValueError(f"the embedding has {embeddings.shape[1]} numbers, {self.name!r} needs {self.dimension}")
        logits = (embeddings.astype(np.float64) * np.array(self.coefficients)).sum(axis=1) + self.intercept
        return np.asarray(0.5 + 0.5 * np.tanh(logits / 2))  # the logistic function, without overflow

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file aside, then rename it into place."""
        try:
            with aside(Path(path)) as file:
                file.write_bytes(TypeAdapter(LearnedFilter).dump_json(self, indent=1) + b"\n")
                flush(file)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LearnedFilter:
        """Read and check a file.

        Raises:
            UsageError: it is missing, or not what ``cutroom filter train`` wrote.
        """
        try:
            found: LearnedFilter = TypeAdapter(cls).validate_json(Path(path).read_bytes())
        except OSError as error:
            fix = "train it with `cutroom filter train`"
            raise UsageError(f"cannot read the filter {path}: {error.strerror}; {fix}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            why = f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}"
            raise UsageError(f"{path} holds no filter of `cutroom filter train` ({why})") from error
        check_name(found.name)
        if len(found.coefficients) != found.dimension:
            counts = f"{len(found.coefficients)} coefficients for {found.dimension} dimensions"
            raise UsageError(f"{path} holds no filter of `cutroom filter train` ({counts})")
        return found


def check_name(name: str) -> None:
    """Raise UsageError unless ``name`` can be part of a column's name."""
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise UsageError(f"the name {name!r} becomes a column (learned_{name}): use letters, digits and _ only")


@dataclasses.dataclass(kw_only=True)
class Learned(Stage):
    """The probability of a label that a filter was trained for with ``cutroom filter train``.

    Reads ``embedding``, and writes for each filter the column ``learned_<name>``: 0..1, unknown without an embedding.
    CogVideoX's authors (https://arxiv.org/abs/2408.06072) trained filters for six kinds of bad footage on 20,000
    labelled clips, on a video-language model; these are logistic regressions on an image encoder's embedding.

    Args:
        model: the file of a filter, or several.
    """

    model: str | list[str]

    name: ClassVar[str] = "learned"
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("embedding",)

    @functools.cached_property
    def filters(self) -> list[LearnedFilter]:
        """The filters. They travel to the workers with the stage, which need not see the files."""
        return [LearnedFilter.load(file) for file in self._files]

    @property
    def _files(self) -> list[Path]:
        return [Path(file).expanduser() for file in ([self.model] if isinstance(self.model, str) else self.model)]

    @property
    def writes(self) -> pa.Schema:  # the columns depend on the files
        return pa.schema([(one.column, pa.float32()) for one in self.filters])

    def settings(self) -> dict[str, Any]:
        """What the filters are, wherever their files lie."""
        return {one.name: content_digest([file]) for one, file in zip(self.filters, self._files, strict=True)}

    def check(self) -> None:
        names = [one.name for one in self.filters]
        if not names:
            raise UsageError("model: name the file of a filter")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"two of the filters are called {twice[0]!r}; train one of them with another --name")
        first, *others = self.filters
        for other in others:
            if (other.dimension, other.encoder) != (first.dimension, first.encoder):
                raise UsageError(
                    f"{first.name!r} was trained on {_kind(first.dimension, first.encoder)}, "
                    f"{other.name!r} on {_kind(other.dimension, other.encoder)}; train both on the same"
                )

    def check_inputs(self, columns: pa.Schema) -> None:
        """Compare what is known of the embeddings beforehand: a fixed size, an encoder in the column's metadata."""
        field = columns.field("embedding")
        trained = self.filters[0]
        size = field.type.list_size if pa.types.is_fixed_size_list(field.type) else trained.dimension
        encoder = decode_metadata(field.metadata) or trained.encoder
        if size != trained.dimension or (trained.encoder and encoder != trained.encoder):
            raise UsageError(
                f"{trained.name!r} was trained on {_kind(trained.dimension, trained.encoder)}, and this pipeline has "
                f"{_kind(size, encoder)}; train it again on a run of this pipeline"
            )

    def process(self, clips: pa.Table) -> pa.Table:
        values = clips["embedding"].to_pylist()
        known = [i for i, value in enumerate(values) if value is not None]
        columns = []
        for one in self.filters:
            found = np.full(len(values), np.nan, np.float32)
            if known:
                found[known] = one.probabilities(np.array([values[i] for i in known], np.float64))
            columns.append(pa.array(found, from_pandas=True))  # NaN is unknown
        return pa.table(columns, schema=self.writes)


def decode_metadata(metadata: dict[bytes, bytes] | None) -> dict[str, str]:
    """What the metadata of embeddings says about their encoder, without what Arrow itself writes there."""
    found = {key.decode(): value.decode() for key, value in sorted((metadata or {}).items())}
    return {key: value for key, value in found.items() if key not in ("ARROW:schema", "PARQUET:field_id", "pandas")}


def _kind(dimension: int, encoder: dict[str, str]) -> str:
    named = ", ".join(encoder.values())
    return f"embeddings of {dimension} dimensions" + (f" by {named}" if named else "")
