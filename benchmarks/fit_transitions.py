"""Fit the weights by which gradual transitions are told (curation/weights.py); needs ``pip install scikit-learn``.

    python -m benchmarks.fit_transitions FOLDER [--seed N]... [--videos DIR] > new.py && mv new.py curation/weights.py

(The shell would empty curation/weights.py before it is read.)

Every window that no single measure rules out is measured on the films of ``benchmarks.transitions`` and labelled by the
truth: one that covers most of a transition and little else is a transition, one that touches none is not; the others,
and fades, which are found otherwise, are left out. The sum of a step function of each measure is then fitted (boosted
stumps on logistic loss), so that each number in the table can be read alone. Films that are known for light that
changes and fast cameras count more. The weights in use were fitted on seeds 0 and 1, on pictures scaled with care
instead of sketches; a fit on sketches was no better.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.annotated import annotated
from benchmarks.transitions import Film, corpus, real_corpus
from curation import evidence
from curation.likeness import SIZE
from curation.shots import ShotDetector
from curation.video import Video

Row = tuple[int, bool, dict[str, float]]  # 1 transition, 0 none; whether it counts more; measures
Table = dict[str, tuple[list[float], list[float]]]

COVERED = 0.5  # share of window and transition that both have in common
CAUTIOUS = {"exposure ramp", "exposure jump", "shadow", "stage light", "zoom", "titles", "fast tilt", "fast pan"}
STEPS, ROUNDS, RATE = 8, 250, 0.15
WEIGHT_OF_CAUTION, TRANSITIONS_TO_OTHERS = 3.0, 0.25
# Added to the limits; chosen on seeds 0 and 1, where higher ones lose more transitions than they spare gaps. With a
# lower one for mixtures, a piece of an annotated clip is taken for a dissolve.
MARGIN = {"moving": -0.55, "mixed": -0.1}


def measured(film: Film) -> list[Row]:
    """The windows of a film."""
    rows: list[Row] = []

    def note(window: evidence.Window) -> float:
        label = label_of(film, window.looks[window.first].frame + 1, window.looks[window.last].frame)
        values = evidence.measured(window) if label is not None else None
        if values is not None and label is not None:
            rows.append((label, film.theme in CAUTIOUS, values))
        return -1.0

    verdict, evidence.verdict = evidence.verdict, note
    shots = ShotDetector()
    with Video(film.path) as video:
        for frame in video.frames():
            shots.push(frame.index, frame.t_s, frame.sketch(*SIZE))
    shots.finish()
    evidence.verdict = verdict
    return rows


def label_of(film: Film, first: int, end: int) -> int | None:
    """1 for the frames of a transition, 0 for none of any; None where it is neither, or not judged."""
    if any(first < b and end > a for a, b in film.unsure):
        return None
    touched = [t for t in film.transitions if not t.hard and first < t.end and end > t.first]
    if not touched:
        return 0
    if any("fade" in t.kind for t in touched):
        return None
    common = [
        (min(end, t.core_end) - max(first, t.core_first)) / (max(end, t.core_end) - min(first, t.core_first))
        for t in touched
    ]
    return 1 if max(common) >= COVERED else None


def steps_of(values: np.ndarray, labels: np.ndarray) -> list[float]:
    """Where a step function of a measure may step: at quantiles of both classes."""
    shares = np.linspace(0, 1, STEPS // 2 + 1)[1:-1]
    edges = np.unique(np.concatenate([np.quantile(values[labels == k], shares) for k in (0, 1)]).round(2))
    kept: list[float] = []
    for edge in edges.tolist():
        if not kept or edge - kept[-1] > 0.08 * float(values.std()):
            kept.append(edge)
    return kept


def fit(rows: list[Row]) -> tuple[float, Table]:
    """The limit, and for each measure where it steps and what it counts between."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    labels, caution = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    values = np.array([list(row[2].values()) for row in rows])
    steps = [steps_of(column, labels) for column in values.T]
    places = np.stack([np.searchsorted(edges, column) for edges, column in zip(steps, values.T, strict=True)], 1)
    counts = np.where(labels == 1, TRANSITIONS_TO_OTHERS * (labels == 0).sum() / (labels == 1).sum(), 1.0)
    counts = counts * np.where(caution & (labels == 0), WEIGHT_OF_CAUTION, 1.0)
    model = HistGradientBoostingClassifier(
        max_iter=ROUNDS, learning_rate=RATE, max_leaf_nodes=2, l2_regularization=20, min_samples_leaf=30, random_state=0
    ).fit(places.astype(float), labels, sample_weight=counts)
    return table_of(model, steps)


def table_of(model: Any, steps: list[list[float]]) -> tuple[float, Table]:
    """Add up the stumps of a fitted model, measure by measure; the least that each can count is 0."""
    limit, weights = -float(np.ravel(model._baseline_prediction)[0]), [np.zeros(len(s) + 1) for s in steps]
    for (tree,) in model._predictors:
        root = tree.nodes[0]
        if root["is_leaf"]:
            limit -= root["value"]
            continue
        below, above = (tree.nodes[root[side]]["value"] for side in ("left", "right"))
        column = weights[root["feature_idx"]]
        column += np.where(np.arange(len(column)) <= root["num_threshold"], below, above)
    table = {}
    for name, edges, column in zip(evidence.MEASURES, steps, weights, strict=True):
        limit -= float(column.min())
        table[name] = joined(edges, (column - column.min()).tolist())
    return limit, table


def joined(edges: list[float], weights: list[float]) -> tuple[list[float], list[float]]:
    """Without steps that make hardly any difference."""
    kept: tuple[list[float], list[float]] = ([], weights[:1])
    for edge, weight in zip(edges, weights[1:], strict=True):
        if abs(weight - kept[1][-1]) > 0.05:
            kept[0].append(edge)
            kept[1].append(weight)
    return kept


def written(tables: dict[str, tuple[float, Table]]) -> Iterator[str]:
    """The lines of curation/weights.py."""
    yield '"""What each measure counts for a gradual transition, by kind; written by benchmarks/fit_transitions.py.\n'
    yield "``name: (steps, weights)``: weights[0] below the first step, weights[1] up to the second, and so on.\n"
    yield 'A transition counts more than the limit in all.\n"""\n'
    yield "Table = dict[str, tuple[tuple[float, ...], tuple[float, ...]]]"
    for kind, (limit, table) in tables.items():
        yield f"\n{kind.upper()}_LIMIT = {limit + MARGIN[kind]:.2f}"
        yield f"{kind.upper()}: Table = {{"
        for name, (steps, weights) in table.items():
            yield f'    "{name}": ({tuple(round(s, 2) for s in steps)}, {tuple(round(w, 1) for w in weights)}),'
        yield "}"


def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description="Fit the weights of curation/weights.py.")
    parser.add_argument("folder", help="where the films lie or are to be made")
    parser.add_argument("--seed", type=int, action="append", help="of films; may be repeated; default 0")
    parser.add_argument("--videos", type=Path, help="a folder of real clips with INDEX.csv")
    parser.add_argument("--jobs", type=int, help="processes; one per CPU")
    arguments = parser.parse_args()
    films: list[Film] = []
    for seed in arguments.seed or [0]:
        films += corpus(arguments.folder, seed=seed, jobs=arguments.jobs)
        if arguments.videos:
            films += real_corpus(arguments.folder, arguments.videos, seed=seed, jobs=arguments.jobs)
    if arguments.videos:
        films += annotated(arguments.videos, Path(arguments.folder))
    with ProcessPoolExecutor(arguments.jobs) as pool:
        rows = [row for some in pool.map(measured, films) for row in some]
    kinds = {kind: [row for row in rows if evidence.kind_of(row[2]) == kind] for kind in evidence.KINDS}
    print("\n".join(written({kind: fit(some) for kind, some in kinds.items()})))


if __name__ == "__main__":
    main()
