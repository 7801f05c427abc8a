"""Training filters on labels, and judging them: ``cutroom filter train`` and ``cutroom filter eval``.

N clips, D dimensions of their embeddings.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.errors import UsageError, nearest
from curation.table import Store
from filters.learned import Figures, LearnedFilter, Verdict, check_name, decode_metadata

LABEL = "label"  # a column that does not say what it is the label of
_FEWEST_LABELS, _FEWEST_VIDEOS = 10, 3  # of each kind
_FOLDS, _INNER_FOLDS = 5, 3
_STRENGTHS = tuple(float(c) for c in 10.0 ** np.arange(-5, 2))  # C, the inverse of regularisation


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Labelled clips with their embeddings."""

    name: str  # of the column
    truth: np.ndarray  # N, 0 or 1
    embeddings: np.ndarray  # N D, float64
    videos: np.ndarray  # N, the video_id of each
    encoder: dict[str, str]
    num_unmeasured: int  # labelled clips without an embedding, or with one that is no numbers


def train(
    labels: str | os.PathLike[str], run: str | os.PathLike[str], *, name: str | None = None, precision: float = 0.9
) -> LearnedFilter:
    """Train a filter on labelled clips: standardisation and logistic regression, both classes weighing the same.

    How well it does is found by cross-validation in which all clips of a video stand on one side; the strength of
    regularisation is chosen anew inside each fold, so the clips a fold is judged by had no say in it.

    Args:
        labels: a CSV file, see ``read_labels``.
        run: the output directory of a run whose pipeline has the stage ``embedding``.
        name: of the label's column and the filter; not needed where the file has a single named label.
        precision: find a threshold for this.

    Raises:
        UsageError: the labels or embeddings cannot be used. The message says which and why.
    """
    _check_request(precision)
    found = load_labelled(labels, run, name)
    _check_enough(found, labels)
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    with threadpool_limits(1):  # many small fits: threads that wait for each other make them thirty times slower
        probabilities, num_folds = _cross_validate(found)
        strength = _choose_strength(found.embeddings, found.truth, found.videos, _INNER_FOLDS)
        scaler, regression = _fit(found.embeddings, found.truth, strength)
    coefficients = regression.coef_[0] / scaler.scale_
    return LearnedFilter(
        name=found.name,
        encoder=found.encoder,
        dimension=len(coefficients),
        intercept=float(regression.intercept_[0] - coefficients @ scaler.mean_),
        coefficients=coefficients.tolist(),
        regularisation=strength,
        num_folds=num_folds,
        cross_validated=judge(found, probabilities, precision),
    )


def evaluate(
    model: LearnedFilter, labels: str | os.PathLike[str], run: str | os.PathLike[str], *, precision: float = 0.9
) -> Verdict:
    """Judge a filter by labels, which it should not have been trained on. Arguments and errors as for ``train``."""
    _check_request(precision)
    found = load_labelled(labels, run, model.name)
    if found.embeddings.shape[1] != model.dimension or (model.encoder and found.encoder != model.encoder):
        raise UsageError(
            f"{model.name!r} was trained on {model.dimension} dimensions of {model.encoder or 'an unnamed encoder'}, "
            f"and {run} has {found.embeddings.shape[1]} of {found.encoder or 'an unnamed encoder'}; train it again"
        )
    if not 0 < found.truth.sum() < len(found.truth):
        raise UsageError(f"{labels}: all labels of {found.name!r} are {found.truth[0]}; there is nothing to tell apart")
    probabilities, trained = model.probabilities(found.embeddings), model.cross_validated.at_wanted
    at_trained = figures(found.truth, probabilities, trained.threshold) if trained else None
    return dataclasses.replace(judge(found, probabilities, precision), at_trained=at_trained)


def _check_request(precision: float) -> None:
    if not 0 < precision <= 1:
        raise UsageError(f"precision {precision:g}: a share above 0 and up to 1 is meant")
    if importlib.util.find_spec("sklearn") is None:
        raise UsageError("training and judging filters needs scikit-learn: pip install 'cutroom[learn]'")


def read_labels(file: str | os.PathLike[str], name: str | None = None) -> tuple[str, dict[str, tuple[int, int]]]:
    """Read one label of a CSV file with a header.

    The column ``clip_id`` names clips; any other may be a label: 1 for clips of that kind, 0 for others, empty where
    nobody looked. A column called ``label`` is the label of whatever ``name`` says.

    Returns:
        The name, and for each labelled clip_id the label and its line.

    Raises:
        UsageError: with the line, where there is one.
    """
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True, skipinitialspace=True)
            header = reader.fieldnames or []
            name, column = _choose_column(str(file), list(header), name)
            return name, _read_rows(str(file), reader, column)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is no CSV file in UTF-8: {error}") from error


def _choose_column(file: str, header: list[str], name: str | None) -> tuple[str, str]:
    """The name of the filter and the column of its labels."""
    if "clip_id" not in header:
        raise UsageError(f"{file} has no column 'clip_id'.{nearest('clip_id', header)}")
    if twice := sorted({column for column in header if header.count(column) > 1}):
        raise UsageError(f"{file} has two columns {twice[0]!r}")
    others = [column for column in header if column != "clip_id"]
    if not others:
        raise UsageError(f"{file} has no labels: add a column of 0 and 1, named for what they say")
    if name is None and (len(others) > 1 or others == [LABEL]):
        raise UsageError(f"{file}: say with --name what to train a filter for; the columns are {', '.join(others)}")
    name = name or others[0]
    check_name(name)
    if name not in others and LABEL not in others:
        raise UsageError(f"{file} has no column {name!r}.{nearest(name, others)}")
    return name, name if name in others else LABEL


def _read_rows(file: str, reader: csv.DictReader[str], column: str) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for row in reader:
        if None in row:
            raise UsageError(f"{file}:{reader.line_num}: more cells than the header has columns")
        clip_id, value = ((row[key] or "").strip() for key in ("clip_id", column))
        if value not in ("0", "1", ""):
            raise UsageError(f"{file}:{reader.line_num}: {column} is {value!r}; write 0, 1, or nothing if not labelled")
        if not clip_id:
            raise UsageError(f"{file}:{reader.line_num}: there is no clip_id")
        if clip_id in found:
            raise UsageError(f"{file}:{reader.line_num}: {clip_id} stands in line {found[clip_id][1]} already")
        if value:
            found[clip_id] = int(value), reader.line_num
    return found


def read_embeddings(run: str | os.PathLike[str], clip_ids: set[str]) -> tuple[list[str], np.ndarray, dict[str, str]]:
    """The embeddings of these clips in a run's output directory, as far as it has them and they are numbers.

    Returns:
        The clip_ids in order, their embeddings N D, and what the files say about the encoder.

    Raises:
        UsageError: there are none, or they are not all of one encoder.
    """
    encoder: dict[str, str] | None = None
    rows: dict[str, np.ndarray] = {}
    for _, table in Store(run).apart("embedding"):
        named = decode_metadata(table.schema.metadata)
        if encoder not in (None, named):
            raise UsageError(f"{run} holds embeddings of different encoders; run the pipeline again to its end")
        encoder = named
        table = table.filter(pc.is_in(table["clip_id"], pa.array(sorted(clip_ids), pa.string()))).drop_null()
        vectors = (np.asarray(vector.values) for vector in table["embedding"])
        found = zip(table["clip_id"].to_pylist(), vectors, strict=True)
        rows.update({clip_id: vector for clip_id, vector in found if np.isfinite(vector).all()})
    if encoder is None:
        raise UsageError(f"{run} holds no embeddings; run a pipeline that has the stage 'embedding'")
    known = sorted(rows)
    if len({len(rows[clip_id]) for clip_id in known}) > 1:
        raise UsageError(f"{run} holds embeddings of different dimensions; run the pipeline again to its end")
    return known, np.array([rows[clip_id] for clip_id in known], np.float64), encoder


def load_labelled(labels: str | os.PathLike[str], run: str | os.PathLike[str], name: str | None) -> Labelled:
    """Labels and embeddings together, in the order of clip_id. Labelled clips without an embedding are counted."""
    name, found = read_labels(labels, name)
    if not found:
        raise UsageError(f"{labels}: nothing is labelled in the column for {name!r}")
    store = Store(run)
    if not (store.root / "clips").is_dir():
        raise UsageError(f"{run} is not the output of a run: it holds no clips")
    existing = set(store.clips(["clip_id"])["clip_id"].to_pylist())
    if unknown := [(line, clip_id) for clip_id, (_, line) in found.items() if clip_id not in existing]:
        more = f" (nor {len(unknown) - 1} others)" if len(unknown) > 1 else ""
        raise UsageError(f"{labels}:{unknown[0][0]}: {run} has no clip {unknown[0][1]!r}{more}")
    ids, embeddings, encoder = read_embeddings(run, set(found))
    if not ids:
        raise UsageError(f"{run} has an embedding of none of the {len(found)} labelled clips")
    truth = np.array([found[clip_id][0] for clip_id in ids])
    videos = np.array([clip_id.partition("-")[0] for clip_id in ids])
    return Labelled(name, truth, embeddings, videos, encoder, len(found) - len(ids))


def _check_enough(found: Labelled, labels: str | os.PathLike[str]) -> None:
    for value in (1, 0):
        mine = found.truth == value
        videos = len(set(found.videos[mine]))
        if mine.sum() < _FEWEST_LABELS or videos < _FEWEST_VIDEOS:
            raise UsageError(
                f"{labels}: {found.name!r} has {mine.sum()} clips labelled {value} and embedded, of {videos} videos; "
                f"at least {_FEWEST_LABELS} of {_FEWEST_VIDEOS} videos are needed"
            )


def _cross_validate(found: Labelled) -> tuple[np.ndarray, int]:
    """The probability of each clip from a filter that never saw its video, N, and the number of folds."""
    x, y, videos = found.embeddings, found.truth, found.videos
    num_folds = min(_FOLDS, *(len(set(videos[y == value])) for value in (0, 1)))
    probabilities = np.empty(len(y))
    for known, held_out in _folds(y, videos, num_folds):
        strength = _choose_strength(x[known], y[known], videos[known], _INNER_FOLDS)
        scaler, regression = _fit(x[known], y[known], strength)
        probabilities[held_out] = regression.predict_proba(scaler.transform(x[held_out]))[:, 1]
    return probabilities, num_folds


def _folds(truth: np.ndarray, videos: np.ndarray, num_folds: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Divide clips so that no video stands on both sides and the shares of 1 and 0 are about the same."""
    from sklearn.model_selection import StratifiedGroupKFold

    num_folds = min(num_folds, *(len(set(videos[truth == value])) for value in (0, 1)))
    if num_folds < 2:
        raise UsageError("nearly all clips of one kind are of one video; label more videos")
    split = StratifiedGroupKFold(num_folds, shuffle=True, random_state=0).split(truth, truth, videos)
    for known, held_out in split:
        if len(set(truth[known])) < 2:
            raise UsageError("the labels are too unevenly spread over videos to be divided; label more videos")
        yield known, held_out


def _choose_strength(x: np.ndarray, y: np.ndarray, videos: np.ndarray, num_folds: int) -> float:
    """The C with the least loss on held out videos, both classes weighing the same; of equals the strongest."""
    from sklearn.metrics import log_loss
    from sklearn.utils.class_weight import compute_sample_weight

    weights = compute_sample_weight("balanced", y)
    folds = list(_folds(y, videos, num_folds))
    losses = []
    for strength in _STRENGTHS:
        probabilities = np.empty(len(y))
        for known, held_out in folds:
            scaler, regression = _fit(x[known], y[known], strength)
            probabilities[held_out] = regression.predict_proba(scaler.transform(x[held_out]))[:, 1]
        losses.append(log_loss(y, probabilities, sample_weight=weights, labels=[0, 1]))
    return _STRENGTHS[int(np.argmin(losses))]


def _fit(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[Any, Any]:
    """The fitted StandardScaler and LogisticRegression of scikit-learn."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    regression = LogisticRegression(C=strength, class_weight="balanced", tol=1e-6, max_iter=10_000)
    return scaler, regression.fit(scaler.transform(x), y)


def judge(found: Labelled, probabilities: np.ndarray, precision: float) -> Verdict:
    """Compare probabilities N with the labels."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    precisions, recalls, thresholds = precision_recall_curve(found.truth, probabilities)
    enough = np.flatnonzero((precisions[:-1] >= precision) & (recalls[:-1] > 0))
    best = max(enough, key=lambda i: (recalls[i], precisions[i]), default=None)
    return Verdict(
        num_labels=len(found.truth),
        num_positive=int(found.truth.sum()),
        num_videos=len(set(found.videos)),
        num_unmeasured=found.num_unmeasured,
        average_precision=float(average_precision_score(found.truth, probabilities)),
        at_half=figures(found.truth, probabilities, 0.5),
        wanted_precision=precision,
        at_wanted=None if best is None else figures(found.truth, probabilities, float(thresholds[best])),
    )


def figures(truth: np.ndarray, probabilities: np.ndarray, threshold: float) -> Figures:
    """Precision, recall and F1 of calling 1 what is at or above the threshold."""
    said = probabilities >= threshold
    right, called, all_ones = int((said & (truth == 1)).sum()), int(said.sum()), int(truth.sum())
    return Figures(
        threshold=threshold,
        precision=right / called if called else None,
        recall=right / all_ones if all_ones else None,
        f1=2 * right / (called + all_ones) if called + all_ones else None,
    )
