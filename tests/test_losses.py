"""Losses against scipy, their limits, and labels of every kind of wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from d2v_ref import losses
from d2v_ref.errors import InputError

seeds = st.integers(0, 2**32 - 1)
DTYPES = ("float32", "float64")


def nll(row: np.ndarray, label: Any) -> float:
    """-log of the probability of one label."""
    return float(scipy.special.logsumexp(row) - row[label])


@given(seed=seeds, count=st.integers(1, 8), classes=st.integers(1, 6), scale=st.sampled_from([0.1, 3.0, 500.0]))
def test_cross_entropy(seed: int, count: int, classes: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    logits, labels = scale * random.normal(size=(count, classes)), random.integers(0, classes, count)
    want = np.mean([nll(row, label) for row, label in zip(logits, labels, strict=True)])
    assert losses.cross_entropy(logits, labels) == pytest.approx(want, rel=1e-12, abs=1e-12)
    # What is ignored might as well not be there, whatever number marks it.
    labels[random.random(count) < 0.4] = -100
    kept = labels != -100
    got = losses.cross_entropy(logits, labels)
    if kept.any():
        assert got == losses.cross_entropy(logits[kept], labels[kept])
    else:
        assert np.isnan(got)
    np.testing.assert_equal(losses.cross_entropy(logits, np.where(kept, labels, 77), ignore_index=77), got)
    order = random.permutation(count)
    np.testing.assert_allclose(losses.cross_entropy(logits[order], labels[order]), got, rtol=1e-12)


@given(seed=seeds, batch=st.integers(1, 3), length=st.integers(1, 5))
def test_causal_lm_loss_holds_each_position_against_the_next_label(seed: int, batch: int, length: int) -> None:
    random = np.random.default_rng(seed)
    logits, labels = random.normal(size=(batch, length, 4)), random.integers(0, 4, (batch, length))
    labels[random.random(labels.shape) < 0.3] = -100
    pairs = [(b, t) for b in range(batch) for t in range(length - 1) if labels[b, t + 1] != -100]
    got = losses.causal_lm_loss(logits, labels)
    if not pairs:
        assert np.isnan(got)
        return
    assert got == pytest.approx(np.mean([nll(logits[b, t], labels[b, t + 1]) for b, t in pairs]), rel=1e-12)
    labels[:, 0] = random.integers(0, 4)  # the first label is never predicted, nor the last position held to one
    logits[:, -1] = 0
    assert losses.causal_lm_loss(logits, labels) == got


@given(seed=seeds, batch=st.integers(1, 3), length=st.integers(1, 5))
def test_token_loss_counts_tokens_not_texts(seed: int, batch: int, length: int) -> None:
    random = np.random.default_rng(seed)
    logits, labels = random.normal(size=(batch, length, 4)), random.integers(0, 4, (batch, length))
    labels[0, 1:] = -100
    terms = [nll(logits[index], labels[index]) for index in np.ndindex(batch, length) if labels[index] >= 0]
    assert losses.token_loss(logits, labels) == pytest.approx(np.mean(terms), rel=1e-12)


@given(seed=seeds, batch=st.integers(1, 4), classes=st.integers(1, 4), scale=st.sampled_from([1.0, 300.0]))
def test_bce_is_the_cross_entropy_of_two_classes_with_logits_0_and_x(
    seed: int, batch: int, classes: int, scale: float
) -> None:
    random = np.random.default_rng(seed)
    logits, targets = scale * random.normal(size=(batch, classes)), random.integers(0, 2, (batch, classes))
    pairs = np.stack((np.zeros_like(logits), logits), -1).reshape(-1, 2)
    want = losses.cross_entropy(pairs, targets.reshape(-1))
    assert losses.bce_with_logits_loss(logits, targets.astype(float)) == pytest.approx(want, rel=1e-12, abs=1e-12)
    soft = random.random((batch, classes))  # linear in the targets
    zeros, ones = np.zeros_like(soft), np.ones_like(soft)
    between = [losses.bce_with_logits_loss(logits[i : i + 1], soft[i : i + 1]) for i in range(batch)]
    assert losses.bce_with_logits_loss(logits, soft) == pytest.approx(np.mean(between), rel=1e-12)
    difference = losses.bce_with_logits_loss(logits, zeros) - losses.bce_with_logits_loss(logits, ones)
    assert difference == pytest.approx(logits.mean(), rel=1e-9, abs=1e-9)


@given(seed=seeds, batch=st.integers(1, 4), classes=st.integers(1, 4))
def test_mse(seed: int, batch: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(2, batch, classes))
    want = np.linalg.norm(a - b) ** 2 / a.size
    assert losses.mse_loss(a, b) == pytest.approx(want, rel=1e-12)
    assert losses.sequence_classification_loss(a, b, "regression") == pytest.approx(want, rel=1e-12)


@given(seed=seeds, batch=st.integers(1, 3), length=st.integers(1, 5), classes=st.integers(1, 4))
def test_frame_loss_is_of_each_frames_first_largest_label(seed: int, batch: int, length: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(batch, length, classes))
    labels = random.integers(0, 3, (batch, length, classes))  # of several that are equal, the first
    chosen = [[frame.index(max(frame)) for frame in row] for row in labels.tolist()]
    want = np.mean([nll(logits[index], chosen[index[0]][index[1]]) for index in np.ndindex(batch, length)])
    for form in (labels, labels.tolist(), labels / 2, labels.astype("u1")):
        assert losses.frame_loss(logits, form) == pytest.approx(want, rel=1e-12)
    one_hot = np.eye(classes, dtype=bool)[np.array(chosen)]
    assert losses.frame_loss(logits, one_hot) == pytest.approx(want, rel=1e-12)
    assert losses.frame_loss(logits, one_hot) == pytest.approx(losses.token_loss(logits, np.array(chosen)), rel=1e-12)


@given(seed=seeds, batch=st.integers(1, 4), classes=st.integers(1, 5), margin=st.sampled_from([0.0, 0.4, 1.5]))
def test_am_softmax_takes_a_margin_off_the_cosine_of_the_label(
    seed: int, batch: int, classes: int, margin: float
) -> None:
    random = np.random.default_rng(seed)
    cosines, labels = random.uniform(-1, 1, (batch, classes)), random.integers(0, classes, batch)
    terms = []
    for row, label in zip(cosines, labels, strict=True):
        # Of the others' scores over the label's own, which the margin makes e^(30 margin) as large.
        others = sum(math.exp(30 * (c - row[label])) for i, c in enumerate(row) if i != label)
        terms.append(math.log1p(others * math.exp(30 * margin)))
    got = losses.am_softmax_loss(cosines, labels, margin=margin)
    assert got == pytest.approx(np.mean(terms), rel=1e-10, abs=1e-12)
    np.testing.assert_equal(losses.am_softmax_loss(cosines, labels[:, None], margin=margin), got)
    if margin == 0:
        assert got == pytest.approx(losses.cross_entropy(30 * cosines, labels), rel=1e-12)
    elif margin == 0.4:
        assert got == losses.am_softmax_loss(cosines, labels)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_logits_neither_overflow_nor_vanish(dtype: str) -> None:
    logits = np.array([[1e4, 0.0], [0.0, 1e4], [-1e4, -1e4]], dtype)
    assert losses.cross_entropy(logits[:2], [0, 1]) == 0
    assert losses.cross_entropy(logits[:2], [1, 0]) == 1e4
    assert losses.cross_entropy(logits[2:], [0]) == pytest.approx(math.log(2))
    assert losses.bce_with_logits_loss(logits[:2], np.array([[1, 0.5], [0.5, 1]], dtype)) == pytest.approx(
        math.log(2) / 2
    )
    assert losses.bce_with_logits_loss(logits[:1, :1], np.zeros((1, 1), dtype)) == 1e4


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loss_is_a_scalar_of_the_logits_dtype(dtype: str) -> None:
    logits = np.zeros((2, 3), dtype)
    found = [
        losses.cross_entropy(logits, [0, 1]),
        losses.cross_entropy(logits, [-100, -100]),
        losses.causal_lm_loss(logits[None], [[0, 1]]),
        losses.token_loss(logits[None], [[0, 1]]),
        losses.sequence_classification_loss(logits, [0, 1], None),
        losses.sequence_classification_loss(logits, np.zeros((2, 3)), None),
        losses.sequence_classification_loss(logits, np.zeros((2, 3), int), "regression"),
        losses.sequence_classification_loss(logits, np.zeros((2, 3), bool), "multi_label_classification"),
        losses.question_answering_loss(logits, logits, [0, 1], [1, 2]),
        losses.frame_loss(logits[None], np.ones((1, 2, 3))),
        losses.frame_loss(logits[None], np.ones((1, 2, 3), bool)),
        losses.am_softmax_loss(logits, [0, 1]),
    ]
    for loss in found:
        assert np.shape(loss) == ()
        assert loss.dtype == dtype
    assert found[0] == pytest.approx(math.log(3))


@given(seed=seeds, batch=st.integers(1, 4), length=st.integers(1, 5))
def test_question_answering_ignores_what_is_past_the_text(seed: int, batch: int, length: int) -> None:
    random = np.random.default_rng(seed)
    start, end = random.normal(size=(2, batch, length))
    starts, ends = random.integers(-3, length + 3, (2, batch))
    both = []
    for logits, positions in ((start, starts), (end, ends)):
        terms = [nll(row, max(p, 0)) for row, p in zip(logits, positions.tolist(), strict=True) if p < length]
        both.append(sum(terms) / len(terms) if terms else math.nan)
    got = losses.question_answering_loss(start, end, starts, ends)
    np.testing.assert_allclose(got, sum(both) / 2, rtol=1e-12)
    np.testing.assert_equal(losses.question_answering_loss(start, end, starts[:, None], ends.astype("i1")), got)


@pytest.mark.parametrize(
    ("classes", "labels", "problem_type", "meaning"),
    [
        (1, [1, 2], None, "regression"),
        (1, [1.5, 2.5], None, "regression"),
        (1, [[1.5], [2.5]], None, "regression"),
        (3, [1, 2], None, "single_label_classification"),
        (3, [[1], [2]], None, "single_label_classification"),
        (3, [[1.0, 0, 1], [0, 0, 1]], None, "multi_label_classification"),
        (3, [[1, 0, 1], [0, 0, 1]], "multi_label_classification", "multi_label_classification"),
        (3, [[1, 0, 1], [0, 0, 1]], "regression", "regression"),
        (1, [[1], [0]], "multi_label_classification", "multi_label_classification"),
    ],
)
def test_what_labels_mean(classes: int, labels: Any, problem_type: str | None, meaning: str) -> None:
    logits = np.random.default_rng(0).normal(size=(2, classes))
    targets = np.asarray(labels)
    want = {
        "regression": lambda: losses.mse_loss(logits, targets.reshape(2, classes)),
        "single_label_classification": lambda: losses.cross_entropy(logits, targets.reshape(2)),
        "multi_label_classification": lambda: losses.bce_with_logits_loss(logits, targets.reshape(2, classes)),
    }[meaning]()
    assert losses.sequence_classification_loss(logits, labels, problem_type) == want


two, three = np.zeros((2, 3)), np.zeros((2, 4, 3))
RAGGED = [[1], [1, 2]]
ERRORS: dict[str, Callable[[], Any]] = {
    "labels is out of range .got 3 at .1,.; expected 0 ... 2.. -100 marks": lambda: losses.cross_entropy(two, [0, 3]),
    "labels is out of range .got -1 at": lambda: losses.cross_entropy(two, [-1, 0]),
    "labels is out of range .got -101 at .0, 0.": lambda: losses.token_loss(three, np.full((2, 4), -101)),
    "labels is out of range .got 3 at .1, 3.": lambda: losses.causal_lm_loss(three, [[0, 0, 0, 0], [0, 0, 0, 3]]),
    "labels has the wrong dtype .got float64; expected integers": lambda: losses.cross_entropy(two, [0.0, 1.0]),
    "labels has the wrong dtype .got bool": lambda: losses.token_loss(three, np.zeros((2, 4), bool)),
    "labels has the wrong dtype .got <U1": lambda: losses.causal_lm_loss(three, np.full((2, 4), "a")),
    "labels has the wrong dtype .got object": lambda: losses.cross_entropy(two, [None, 1]),
    "labels is not an array": lambda: losses.cross_entropy(two, RAGGED),
    "labels has the wrong shape .got .3,.; expected .2,.": lambda: losses.cross_entropy(two, [0, 1, 2]),
    "labels has the wrong shape .got .2, 3.; expected .2, 4.": lambda: losses.token_loss(three, np.zeros((2, 3), int)),
    "labels has the wrong shape .got .8,.": lambda: losses.causal_lm_loss(three, np.zeros(8, int)),
    "labels has the wrong shape .got ..; expected .2,.": lambda: losses.sequence_classification_loss(two, 1, None),
    "labels .regression. has the wrong shape .got .2,.; expected .2, 3.": lambda: losses.sequence_classification_loss(
        two, [0.0, 1.0], "regression"
    ),
    "labels .multi_label_classification. has the wrong dtype .got <U1": lambda: losses.sequence_classification_loss(
        two, np.full((2, 3), "a"), None
    ),
    "labels .multi_label_classification. is not finite": lambda: losses.sequence_classification_loss(
        two, np.full((2, 3), np.nan), None
    ),
    "labels .regression. is not finite .got 1e.300 at .0, 0.; expected finite numbers in float32": lambda: (
        losses.sequence_classification_loss(two.astype("f4"), np.full((2, 3), 1e300), "regression")
    ),
    "labels is not an array.*": lambda: losses.sequence_classification_loss(two, RAGGED, None),
    "start_positions has the wrong shape .got .3,.; expected .2,.": lambda: losses.question_answering_loss(
        two, two, [0, 1, 2], [0, 1]
    ),
    "end_positions has the wrong shape .got .1, 2.": lambda: losses.question_answering_loss(two, two, [0, 1], [[0, 1]]),
    "end_positions has the wrong dtype .got float64": lambda: losses.question_answering_loss(
        two, two, [0, 1], [0, 1.0]
    ),
    "labels has the wrong shape .got .2, 4.; expected .2, 4, 3.": lambda: losses.frame_loss(three, np.zeros((2, 4))),
    "labels has the wrong dtype .got <U1; expected booleans": lambda: losses.frame_loss(three, np.full((2, 4, 3), "a")),
    "labels is not finite .got nan at .0, 0, 0.": lambda: losses.frame_loss(three, np.full((2, 4, 3), np.nan)),
    "labels is not an array: .*rows of one length": lambda: losses.frame_loss(three, RAGGED),
    "labels is empty .got .2, 4, 0.": lambda: losses.frame_loss(three[..., :0], np.zeros((2, 4, 0))),
    "labels is out of range .got 3 at .1,.; expected 0 ... 2": lambda: losses.am_softmax_loss(two, [0, 3]),
    "labels is out of range .got -100 at .0,.": lambda: losses.am_softmax_loss(two, [-100, 0]),
    "labels has the wrong shape .got .4,.; expected .2,.": lambda: losses.am_softmax_loss(two, [[0, 1], [1, 2]]),
    "labels has the wrong dtype .got float64; expected integers.*": lambda: losses.am_softmax_loss(two, [0.0, 1.0]),
    "labels has the wrong dtype .got object.*": lambda: losses.am_softmax_loss(two, [None, 1]),
    "start_positions is not an array": lambda: losses.question_answering_loss(two, two, RAGGED, [0, 1]),
}


@pytest.mark.parametrize("words", ERRORS)
def test_labels_that_do_not_serve(words: str) -> None:
    with pytest.raises(InputError, match=f"^{words}") as caught:
        ERRORS[words]()
    assert len(str(caught.value).splitlines()) == 1
