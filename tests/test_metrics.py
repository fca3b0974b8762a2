"""Word error rate and mean intersection over union, against definitions that nobody would compute with."""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2v_ref.errors import InputError
from d2v_ref.tasks.metrics import edit_distance, mean_iou, word_error_rate

words = st.lists(st.sampled_from("abc"), max_size=6)
texts = st.lists(st.sampled_from(["one", "two", "three"]), max_size=5).map(" ".join)
maps = st.lists(st.integers(0, 3), min_size=6, max_size=6).map(lambda row: np.array(row).reshape(2, 3))


@cache
def alignments(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """The cheapest of all alignments, by trying what becomes of the first word."""
    if not a or not b:
        return len(a) + len(b)
    return min(
        alignments(a[1:], b) + 1, alignments(a, b[1:]) + 1, alignments(a[1:], b[1:]) + (0 if a[0] == b[0] else 1)
    )


@given(a=words, b=words)
def test_edit_distance_is_the_cheapest_alignment(a: list[str], b: list[str]) -> None:
    assert edit_distance(a, b) == alignments(tuple(a), tuple(b)) == edit_distance(b, a)


@given(a=words, b=words, c=words)
def test_edit_distance_is_a_metric(a: list[str], b: list[str], c: list[str]) -> None:
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


@given(pairs=st.lists(st.tuples(texts, texts), max_size=4))
def test_the_word_error_rate_counts_all_words_together(pairs: list[tuple[str, str]]) -> None:
    rate = word_error_rate([a for a, _ in pairs], [b for _, b in pairs])
    said = sum(len(truth.split()) for _, truth in pairs)
    if said == 0:
        assert math.isnan(rate)
    else:
        assert rate * said == pytest.approx(sum(edit_distance(a.split(), b.split()) for a, b in pairs))


def test_the_word_error_rate_of_an_example() -> None:
    assert word_error_rate(["three hundred five", "two"], ["three hundred and five", "to"]) == 2 / 5
    assert word_error_rate(["  a  b "], ["a b"]) == 0
    assert word_error_rate(["a b c"], ["a"]) == 2


@given(pairs=st.lists(st.tuples(maps, maps), min_size=1, max_size=3))
def test_mean_iou_in_sets_of_pixels(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    def pixels(side: int, label: int) -> set[Any]:
        places = product(range(len(pairs)), range(2), range(3))
        return {(i, y, x) for i, y, x in places if pairs[i][side][y, x] == label}

    ratios = []
    for label in range(4):
        given, true = pixels(0, label), pixels(1, label)
        if given | true:
            ratios.append(len(given & true) / len(given | true))
    assert mean_iou([a for a, _ in pairs], [b for _, b in pairs]) == pytest.approx(sum(ratios) / len(ratios))


def test_mean_iou_at_its_ends() -> None:
    x = np.array([[0, 1], [2, 2]])
    assert mean_iou([x, x.T], [x, x.T]) == 1
    assert mean_iou([x], [x + 3]) == 0
    assert math.isnan(mean_iou([], []))
    with pytest.raises(InputError, match="different shapes"):
        mean_iou([x], [x[:1]])
