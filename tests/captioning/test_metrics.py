"""Metrics of captions, on cases that were computed by hand."""

from __future__ import annotations

import pytest

from captioning.metrics import average, chrf, compare, distinct, has_failed, rouge_l, says, token_f1


@pytest.mark.parametrize(
    ("caption", "other", "f1", "rouge"),
    [
        ("A dog runs.", "a dog runs", 1, 1),
        ("a red dog runs", "a dog runs left", 3 / 4, 3 / 4),  # in common, and in this order: a dog runs
        ("runs dog a", "a dog runs", 1, 1 / 3),
        ("dog dog dog", "dog cat", 2 * 1 / 5, 2 * 1 / 5),
        ("a dog", "two cats", 0, 0),
        ("", "a dog", 0, 0),
        ("狗在跑", "狗跑", 2 * 2 / 5, 2 * 2 / 5),
    ],
)
def test_words_in_common(caption: str, other: str, f1: float, rouge: float) -> None:
    assert token_f1(caption, other) == pytest.approx(f1)
    assert rouge_l(caption, other) == pytest.approx(rouge)


def test_characters_in_common() -> None:
    # Of one character 2 of 2 and 2 of 3, of two 1 of 1 and 1 of 2; no three. P = 1, R = (2/3 + 1/2) / 2 = 7/12;
    # F2 = 5 P R / (4 P + R) = 7/11.
    assert chrf("ab", "abc") == pytest.approx(7 / 11)
    assert chrf("A dog runs.", "A dog runs.") == pytest.approx(1)
    assert chrf("", "A dog runs.") == 0


def test_distinct_counts_runs_of_words_within_captions_over_all_of_them() -> None:
    assert distinct(["a dog a dog"], 1) == 2 / 4
    assert distinct(["a dog a dog"], 2) == 2 / 3
    assert distinct(["A dog.", "a cat"], 1) == 3 / 4
    assert distinct(["A dog.", "a cat"], 2) == 1
    assert distinct(["dog"], 2) is None
    assert distinct([], 1) is None


@pytest.mark.parametrize(
    ("caption", "word", "said"),
    [
        ("A Red ball.", "red", True),
        ("A bored dog.", "red", False),
        ("The camera will pan left.", "pan left", True),
        ("The left pan.", "pan left", False),
        ("", "red", False),
    ],
)
def test_a_caption_says_a_word_or_does_not(caption: str, word: str, said: bool) -> None:
    assert says(caption, word) is said


def test_no_caption_no_words_and_a_refusal_are_failures() -> None:
    captions = [None, "", "...", "I'm sorry, but I can't help with that.", "A dog runs."]
    assert [has_failed(caption) for caption in captions] == [True, True, True, True, False]


def test_a_pair_has_all_scores() -> None:
    scores = compare("a red dog runs", "a dog runs left", {"colour": "red", "direction": "left"})
    assert scores.token_f1 == pytest.approx(3 / 4)
    assert scores.rouge_l == pytest.approx(3 / 4)
    assert scores.chrf == chrf("a red dog runs", "a dog runs left")
    assert (scores.words, scores.distinct_1, scores.distinct_2, scores.failed) == (4, 1, 1, False)
    assert scores.attributes == {"colour": True, "direction": False}
    assert scores.attribute_recall == 1 / 2


def test_without_a_caption_nothing_agrees_and_without_another_agreement_is_unknown() -> None:
    none = compare(None, "a dog", {"kind": "dog"})
    assert (none.token_f1, none.chrf, none.rouge_l, none.words, none.failed) == (0, 0, 0, 0, True)
    assert (none.distinct_1, none.attributes) == (None, {"kind": False})
    alone = compare("a dog", None)
    assert (alone.token_f1, alone.chrf, alone.rouge_l, alone.words, alone.failed) == (None, None, None, 2, False)
    assert alone.attribute_recall is None


def test_averages_are_over_what_is_known() -> None:
    mean = average(
        [
            compare("a red dog runs", "a dog runs left", {"colour": "red", "direction": "left"}),
            compare("a dog", None, {"colour": "brown"}),
            compare(None, "a dog"),
        ]
    )
    assert (mean.pairs, mean.failures) == (3, 1)
    assert mean.token_f1 == pytest.approx((3 / 4 + 0) / 2)
    assert mean.rouge_l == pytest.approx((3 / 4 + 0) / 2)
    assert mean.words == pytest.approx((4 + 2 + 0) / 3)
    assert mean.distinct_1 == pytest.approx(4 / 6)
    assert mean.distinct_2 == pytest.approx(4 / 4)
    assert mean.attributes == {"colour": 1 / 2, "direction": 0}
    assert mean.attribute_recall == pytest.approx(1 / 3)


def test_of_no_pairs_nothing_is_known() -> None:
    mean = average([])
    assert (mean.pairs, mean.failures, mean.token_f1, mean.words, mean.attributes) == (0, 0, None, None, {})
