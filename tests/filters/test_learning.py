"""Filters learn what labels show, their figures are those of unseen videos, and mistakes in labels are named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation.errors import UsageError
from filters.learned import LearnedFilter
from filters.learning import Labelled, evaluate, figures, judge, load_labelled, read_labels, train
from tests.filters.planted import ENCODER, ids_of, planted, write_labels, write_run


@dataclasses.dataclass
class Place:
    """A run with labels."""

    run: Path
    labels: Path
    ids: list[str]
    videos: np.ndarray
    truth: np.ndarray
    embeddings: np.ndarray


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("planted")
    videos, truth, embeddings = planted()
    ids = ids_of(videos)
    run = write_run(folder / "out", ids, embeddings)
    labels = write_labels(folder / "labels.csv", ids, lecture=truth)
    return Place(run, labels, ids, videos, truth, embeddings)


@pytest.fixture(scope="module")
def lecture(place: Place) -> LearnedFilter:
    return train(place.labels, place.run)


def test_planted_classes_are_learned(place: Place, lecture: LearnedFilter) -> None:
    verdict = lecture.cross_validated
    assert (verdict.num_labels, verdict.num_positive, verdict.num_videos) == (300, place.truth.sum(), 60)
    assert verdict.at_half.f1 is not None
    assert verdict.at_half.f1 >= 0.95
    assert verdict.average_precision >= 0.95
    assert (lecture.name, lecture.column, lecture.dimension) == ("lecture", "learned_lecture", 32)
    assert lecture.encoder == ENCODER


@pytest.mark.parametrize("seed", range(3))
def test_with_shuffled_labels_the_figures_are_those_of_chance(place: Place, tmp_path: Path, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(place.truth)
    verdict = train(write_labels(tmp_path / "l.csv", place.ids, lecture=shuffled), place.run).cross_validated
    chance = float(shuffled.mean())
    assert verdict.average_precision == pytest.approx(chance, abs=0.1)
    assert verdict.at_half.precision == pytest.approx(chance, abs=0.1)
    assert verdict.at_wanted is None or (verdict.at_wanted.recall or 0) < 0.05


def test_what_only_tells_one_video_from_another_is_not_taken_for_knowledge(tmp_path: Path) -> None:
    """All clips of a video have its label, drawn by lot: were clips divided one by one, its look would give it away."""
    videos, _, embeddings = planted(num_videos=40, clips_each=8, seed=4)
    truth = np.random.default_rng(1).permutation(40) % 2
    ids = ids_of(videos)
    write_run(tmp_path / "out", ids, embeddings)
    verdict = train(write_labels(tmp_path / "l.csv", ids, odd=truth[videos]), tmp_path / "out").cross_validated
    assert verdict.average_precision < 0.7
    assert (verdict.at_half.f1 or 0) < 0.7


def test_standardisation_is_folded_into_the_coefficients(place: Place, lecture: LearnedFilter) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    seen = place.embeddings.astype(np.float32).astype(np.float64)  # as the files hold them
    regression = LogisticRegression(C=lecture.regularisation, class_weight="balanced", max_iter=10_000, tol=1e-9)
    expected = make_pipeline(StandardScaler(), regression).fit(seen, place.truth).predict_proba(seen)[:, 1]
    assert lecture.probabilities(seen) == pytest.approx(expected, abs=1e-4)
    assert np.ptp(expected) > 0.9


def test_a_file_gives_back_the_filter_and_the_same_labels_the_same_file(
    place: Place, lecture: LearnedFilter, tmp_path: Path
) -> None:
    lecture.save(tmp_path / "one.json")
    assert LearnedFilter.load(tmp_path / "one.json") == lecture
    header, *rows = place.labels.read_text().splitlines()
    (tmp_path / "reversed.csv").write_text("\n".join([header, *reversed(rows)]))
    train(tmp_path / "reversed.csv", place.run).save(tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert json.loads((tmp_path / "one.json").read_text())["cross_validated"]["num_labels"] == 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "reversed.csv", "two.json"]


def labelled(truth: list[int]) -> Labelled:
    none = np.zeros((len(truth), 1))
    return Labelled("x", np.array(truth), none, np.arange(len(truth)).astype(str), {}, 0)


def test_the_threshold_for_a_precision_is_the_one_with_the_most_recall() -> None:
    truth = [1, 1, 0, 1, 1, 0, 0, 0]
    probabilities = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    for wanted, expected in ((1.0, (0.8, 1.0, 0.5)), (0.8, (0.5, 0.8, 1.0)), (0.5, (0.5, 0.8, 1.0))):
        found = judge(labelled(truth), probabilities, wanted).at_wanted
        assert found is not None
        assert (found.threshold, found.precision, found.recall) == expected
    verdict = judge(labelled([0, *truth]), np.array([0.95, *probabilities]), 0.9)
    assert verdict.at_wanted is None
    assert verdict.average_precision == pytest.approx((1 / 2 + 2 / 3 + 3 / 5 + 4 / 6) / 4)


def test_figures_count_what_lies_at_or_above_the_threshold() -> None:
    truth, probabilities = np.array([1, 0, 1, 1]), np.array([0.9, 0.5, 0.5, 0.1])
    found = figures(truth, probabilities, 0.5)
    assert (found.precision, found.recall, found.f1) == (2 / 3, 2 / 3, 2 / 3)
    assert dataclasses.astuple(figures(truth, probabilities, 0.95)) == (0.95, None, 0.0, 0.0)


def test_a_filter_is_judged_on_other_labels_also_at_the_threshold_of_its_training(
    lecture: LearnedFilter, tmp_path: Path
) -> None:
    videos, truth, fresh = planted(seed=7)
    write_run(tmp_path / "out", ids_of(videos), fresh)
    labels = write_labels(tmp_path / "l.csv", ids_of(videos), lecture=truth, notes=truth)
    verdict = evaluate(lecture, labels, tmp_path / "out", precision=0.5)
    assert (verdict.at_half.f1 or 0) >= 0.95
    assert verdict.at_wanted is not None
    assert verdict.at_wanted.recall == 1
    trained = lecture.cross_validated.at_wanted
    assert trained is not None
    assert verdict.at_trained == figures(truth, lecture.probabilities(fresh.astype(np.float32)), trained.threshold)


def test_a_filter_is_not_judged_on_embeddings_of_another_encoder(
    lecture: LearnedFilter, place: Place, tmp_path: Path
) -> None:
    write_run(tmp_path / "out", place.ids, place.embeddings, encoder={"encoder": "another"})
    with pytest.raises(UsageError, match=r"'ViT-Tiny'.* has 32 of \{'encoder': 'another'\}; train it again"):
        evaluate(lecture, place.labels, tmp_path / "out")
    write_run(tmp_path / "less", place.ids, place.embeddings[:, :7])
    with pytest.raises(UsageError, match=r"32 dimensions .* has 7 of"):
        evaluate(lecture, place.labels, tmp_path / "less")
    ones = write_labels(tmp_path / "ones.csv", place.ids[:20], lecture=np.ones(20, int))
    with pytest.raises(UsageError, match="all labels of 'lecture' are 1"):
        evaluate(lecture, ones, place.run)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("clip_id,lecture\na,1\nb,0\nc,\n", None, ("lecture", {"a": (1, 2), "b": (0, 3)})),
        ("clip_id,lecture\na,1\n", "lecture", ("lecture", {"a": (1, 2)})),
        ("clip_id, lecture, noise\na, 1, 0\n", "noise", ("noise", {"a": (0, 2)})),
        ("video,label,clip_id\nx.mp4,1,a\n", "slides", ("slides", {"a": (1, 2)})),
        ('\ufeffclip_id,label,lecture\r\n"a",0,1\r\n\r\nb,1,0\r\n', "lecture", ("lecture", {"a": (1, 2), "b": (0, 4)})),
    ],
    ids=["one label", "named", "one of several", "a column called label", "as spreadsheets write it"],
)
def test_labels_are_read(text: str, name: str | None, expected: Any, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(text, encoding="utf-8", newline="")
    assert read_labels(tmp_path / "l.csv", name) == expected


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("clipid,lecture\na,1\n", None, "has no column 'clip_id'. Did you mean 'clipid'?"),
        ("", None, "has no column 'clip_id'"),
        ("clip_id\na\n", None, "has no labels: add a column of 0 and 1"),
        ("clip_id,lecture,noise\na,1,0\n", None, "say with --name what to train a filter for; the columns are lecture"),
        ("clip_id,label\na,1\n", None, "say with --name"),
        ("clip_id,lecture\na,1\n", "lectur", "has no column 'lectur'. Did you mean 'lecture'?"),
        ("clip_id,on screen\na,1\n", None, "the name 'on screen' becomes a column"),
        ("clip_id,x,x\na,1,0\n", "x", "has two columns 'x'"),
        ("clip_id,lecture\na,1\nb,maybe\n", None, "l.csv:3: lecture is 'maybe'; write 0, 1, or nothing"),
        ("clip_id,lecture\na,1\nb,2\n", None, "l.csv:3: lecture is '2'"),
        ("clip_id,lecture\na,1\n,1\n", None, "l.csv:3: there is no clip_id"),
        ("clip_id,lecture\na,1\nb,0\na,0\n", None, "l.csv:4: a stands in line 2 already"),
        ("clip_id,lecture\na,1,0\n", None, "l.csv:2: more cells than the header"),
        ("clip_id,lecture\na,\n", None, "nothing is labelled in the column for 'lecture'"),
        ("clip_id,lecture\nb,1\nc,0\n", None, "l.csv:2: "),
    ],
)
def test_mistakes_in_labels_are_said_with_their_line(
    text: str, name: str | None, says: str, tmp_path: Path, place: Place
) -> None:
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(UsageError) as caught:
        train(tmp_path / "l.csv", place.run, name=name)
    assert says in str(caught.value)
    assert str(tmp_path / "l.csv") in str(caught.value) or "becomes a column" in says


def test_clips_that_the_run_does_not_have_are_counted_and_the_first_is_named(place: Place, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "l.csv", [*place.ids[:3], "nobody", "none"], lecture=np.array([1, 0, 1, 0, 1]))
    with pytest.raises(UsageError, match=r"l\.csv:5: .*out has no clip 'nobody' \(nor 1 others\)"):
        train(labels, place.run)


def test_labelled_clips_without_an_embedding_are_left_out_and_counted(place: Place, tmp_path: Path) -> None:
    some = place.embeddings.copy()
    some[::10] = np.nan
    found = load_labelled(place.labels, write_run(tmp_path / "out", place.ids, some), None)
    assert (len(found.truth), found.num_unmeasured) == (270, 30)
    order = np.argsort(place.ids)
    kept = order[~np.isnan(some[order]).any(axis=1)]
    assert found.truth.tolist() == place.truth[kept].tolist()
    assert found.embeddings == pytest.approx(place.embeddings[kept], rel=1e-6)
    assert found.videos.tolist() == [place.ids[i].partition("-")[0] for i in kept]


def test_embeddings_that_are_no_numbers_are_left_out_and_counted_as_well(place: Place, tmp_path: Path) -> None:
    some = place.embeddings.copy()
    some[3, 1], some[7] = np.nan, np.inf
    found = load_labelled(place.labels, write_run(tmp_path / "out", place.ids, some), None)
    assert (len(found.truth), found.num_unmeasured) == (298, 2)
    assert np.isfinite(found.embeddings).all()


@pytest.mark.parametrize(
    ("positive", "says"),
    [
        (lambda place: np.arange(len(place.ids)) < 9, "has 9 clips labelled 1 and embedded, of 2 videos; at least 10"),
        (lambda place: place.videos < 2, "has 10 clips labelled 1 and embedded, of 2 videos; at least 10 of 3 videos"),
        (lambda place: place.videos >= 2, "has 10 clips labelled 0 and embedded, of 2 videos"),
        (lambda place: place.videos >= 0, "has 0 clips labelled 0 and embedded"),
    ],
)
def test_too_few_labels_are_refused(positive: Any, says: str, place: Place, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "l.csv", place.ids, lecture=positive(place).astype(int))
    with pytest.raises(UsageError) as caught:
        train(labels, place.run)
    assert says in str(caught.value)


def test_labels_of_the_least_allowed_number_of_videos_are_enough(place: Place, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "l.csv", place.ids, lecture=(place.videos < 3).astype(int))
    assert train(labels, place.run).num_folds == 3


def test_a_folder_without_usable_embeddings_is_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not the output of a run"):
        train(place.labels, tmp_path)
    none = write_run(tmp_path / "none", place.ids, place.embeddings, num_files=0)
    (none / "clips").rmdir()
    two = write_run(tmp_path / "two", place.ids, place.embeddings)
    first, second = sorted((two / "embeddings").iterdir())
    other = write_run(tmp_path / "other", place.ids, place.embeddings, encoder={"encoder": "another"})
    second.write_bytes((other / "embeddings" / second.name).read_bytes())
    with pytest.raises(UsageError, match="holds embeddings of different encoders"):
        train(place.labels, two)
    first.unlink()
    second.unlink()
    with pytest.raises(UsageError, match="holds no embeddings; run a pipeline that has the stage 'embedding'"):
        train(place.labels, two)


@pytest.mark.parametrize("precision", [0.0, -1.0, 1.5, float("nan")])
def test_a_precision_that_is_no_share_is_refused(precision: float, place: Place) -> None:
    with pytest.raises(UsageError, match="a share above 0"):
        train(place.labels, place.run, precision=precision)
