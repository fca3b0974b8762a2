"""The CTC loss against the sum over all paths that it is, its invariances, and arguments of every kind of wrong."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v_ref.ctc import ctc_loss
from d2v_ref.errors import InputError

seeds = st.integers(0, 2**32 - 1)


def collapse(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    """The labels that a path stands for: repeats merged, then blanks dropped."""
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def label_probabilities(logits: np.ndarray, blank: int) -> dict[tuple[int, ...], float]:
    """The probability of every label sequence that some path through the frames stands for, path by path."""
    frames = scipy.special.softmax(logits, axis=-1)
    total: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        labels = collapse(path, blank)
        total[labels] = total.get(labels, 0.0) + float(np.prod([row[i] for row, i in zip(frames, path, strict=True)]))
    return total


def padded(rows: list[tuple[int, ...]]) -> np.ndarray:
    out = np.full((len(rows), max(map(len, rows))), -100)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return out


@settings(max_examples=60)
@given(seed=seeds, frames=st.integers(1, 5), vocabulary=st.integers(1, 4), scale=st.sampled_from([0.3, 3.0, 40.0]))
def test_it_sums_over_the_paths_that_collapse_to_the_labels(
    seed: int, frames: int, vocabulary: int, scale: float
) -> None:
    random = np.random.default_rng(seed)
    blank = int(random.integers(vocabulary))
    logits = scale * random.normal(size=(frames, vocabulary))
    want = label_probabilities(logits, blank)
    batch = np.broadcast_to(logits, (len(want), frames, vocabulary))
    losses = ctc_loss(batch, padded(list(want)), [frames] * len(want), blank=blank, reduction="none")
    np.testing.assert_allclose(losses, -np.log(list(want.values())), rtol=1e-11, atol=1e-12)
    # These are all that the frames can say.
    assert np.exp(-losses).sum() == pytest.approx(1, rel=1e-12)


def drawn(seed: int, batch: int = 4, frames: int = 7, vocabulary: int = 5) -> tuple[Any, ...]:
    """Logits, labels (some of them ignored, some blank, some equal neighbours), lengths and the blank."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, vocabulary, (batch, 4))
    labels[random.random(labels.shape) < 0.3] = -100
    logits = 3 * random.normal(size=(batch, frames, vocabulary))
    return logits, labels, random.integers(0, frames + 1, batch), int(random.integers(vocabulary))


@given(seed=seeds)
def test_a_batch_is_its_rows_and_the_reductions_are_of_them(seed: int) -> None:
    logits, labels, lengths, blank = drawn(seed)
    losses = ctc_loss(logits, labels, lengths, blank=blank, reduction="none")
    for i, loss in enumerate(losses):
        alone = logits[i : i + 1, : max(lengths[i], 1)]
        np.testing.assert_array_equal(ctc_loss(alone, labels[i : i + 1], lengths[i : i + 1], blank=blank), loss)
    counts = ((labels != -100) & (labels != blank)).sum(1)
    finite = np.where(np.isinf(losses), 0, losses)
    for zero_infinity, rows in ((False, losses), (True, finite)):
        options: dict[str, Any] = {"blank": blank, "zero_infinity": zero_infinity}
        np.testing.assert_array_equal(ctc_loss(logits, labels, lengths, reduction="none", **options), rows)
        np.testing.assert_allclose(ctc_loss(logits, labels, lengths, **options), sum(rows), rtol=1e-14)
        mean = np.mean([loss / max(count, 1) for loss, count in zip(rows, counts, strict=True)])
        np.testing.assert_allclose(ctc_loss(logits, labels, lengths, reduction="mean", **options), mean, rtol=1e-14)


@given(seed=seeds)
def test_what_does_not_count_might_as_well_not_be_there(seed: int) -> None:
    logits, labels, lengths, blank = drawn(seed)
    random = np.random.default_rng(seed)
    want = ctc_loss(logits, labels, lengths, blank=blank, reduction="none")
    # Ignored labels and blanks, wherever they are.
    kept = [tuple(row[(row != -100) & (row != blank)].tolist()) for row in labels]
    np.testing.assert_array_equal(ctc_loss(logits, padded(kept), lengths, blank=blank, reduction="none"), want)
    # Frames behind the last.
    behind = np.arange(logits.shape[1]) >= lengths[:, None]
    garbage = np.where(behind[..., None], np.nan, logits)
    np.testing.assert_array_equal(ctc_loss(garbage, labels, lengths, blank=blank, reduction="none"), want)
    # A number added to all logits of a frame, and the numbers that the tokens go by.
    shifted = logits + random.normal(size=(*logits.shape[:2], 1))
    np.testing.assert_allclose(ctc_loss(shifted, labels, lengths, blank=blank, reduction="none"), want, rtol=1e-12)
    order = random.permutation(logits.shape[2])
    renamed = np.where(labels == -100, -100, np.argsort(order)[np.maximum(labels, 0)])
    got = ctc_loss(logits[..., order], renamed, lengths, blank=int(np.argsort(order)[blank]), reduction="none")
    np.testing.assert_allclose(got, want, rtol=1e-12)


@given(seed=seeds)
def test_the_rules_of_targets_differ_in_blanks_and_negative_labels_only(seed: int) -> None:
    logits, labels, lengths, blank = drawn(seed)
    old: dict[str, Any] = {"blank": blank, "reduction": "none", "target_rule": "v4"}
    without = np.where(labels == blank, -100, labels)
    want = ctc_loss(logits, without, lengths, blank=blank, reduction="none")
    np.testing.assert_array_equal(ctc_loss(logits, without, lengths, **old), want)
    np.testing.assert_array_equal(ctc_loss(logits, np.where(without == -100, -3, without), lengths, **old), want)


@settings(max_examples=50)
@given(seed=seeds, frames=st.integers(0, 4), labels=st.lists(st.integers(0, 1), max_size=3))
def test_a_blank_among_v4_targets_is_aligned_like_any_label(seed: int, frames: int, labels: list[int]) -> None:
    """Every walk over the labels with blanks around them counts, even where two of them spell the same path."""
    logits = np.random.default_rng(seed).normal(size=(1, max(frames, 1), 2))
    states = [0, *(token for label in labels for token in (label, 0))]
    log_probs = scipy.special.log_softmax(logits[0], axis=-1)

    def walks(walk: list[int]) -> list[list[int]]:
        if len(walk) == frames:
            return [walk]
        here = walk[-1] if walk else -1
        steps = [state for state in (here, here + 1, here + 2) if 0 <= state < len(states)]
        steps = [state for state in steps if state < here + 2 or here < 0 or states[state] != states[here]]
        return [whole for state in steps if state < 2 or walk for whole in walks([*walk, state])]

    ends = {len(states) - 1, len(states) - 2}
    sums = [sum(log_probs[t, states[s]] for t, s in enumerate(w)) for w in walks([]) if frames and w[-1] in ends]
    want = -scipy.special.logsumexp(sums) if sums else (0 if not labels and not frames else np.inf)
    padded_labels = np.array([labels]).reshape(1, -1)
    got = ctc_loss(logits, padded_labels, [frames], blank=0, target_rule="v4")
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_labels_that_do_not_fit_are_impossible() -> None:
    logits = np.zeros((3, 3, 4), np.float32)
    labels = [[1, 1, -100], [1, 1, 2], [1, 2, 3]]  # two equal ones need a blank between them
    losses = ctc_loss(logits, labels, [3, 3, 3], blank=0, reduction="none")
    assert np.isfinite(losses).tolist() == [True, False, True]
    assert losses[1] == np.inf
    assert ctc_loss(logits, labels, [3, 3, 3], blank=0) == np.inf
    assert ctc_loss(logits, labels, [3, 3, 3], blank=0, zero_infinity=True) == losses[0] + losses[2]
    assert ctc_loss(logits, labels, [0, 0, 0], blank=0, zero_infinity=True, reduction="mean") == 0
    assert ctc_loss(logits, np.full((3, 1), -100), [0, 0, 0], blank=0) == 0


def test_a_forbidden_token_a_lost_frame_and_huge_logits_warn_of_nothing() -> None:
    logits = np.zeros((1, 3, 3))
    logits[:, :, 2] = -np.inf
    assert ctc_loss(logits, [[1]], [3], blank=0) == pytest.approx(-np.log(6 / 8))
    assert ctc_loss(logits, [[2]], [3], blank=0) == np.inf
    assert np.isnan(ctc_loss(np.full((1, 2, 3), -np.inf), [[1]], [2], blank=0))
    logits[0, 1] = np.nan
    assert np.isnan(ctc_loss(logits, [[1]], [3], blank=0, zero_infinity=True))
    huge = np.array([[[1e308, -1e308], [-1e308, 1e308]]])
    assert ctc_loss(huge, [[1]], [2], blank=0) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_is_computed_in_the_dtype_of_the_logits(dtype: str) -> None:
    logits, labels, lengths, blank = drawn(5)
    for reduction in ("sum", "mean", "none"):
        options: dict[str, Any] = {"blank": blank, "reduction": reduction, "zero_infinity": True}
        got = ctc_loss(logits.astype(dtype), labels, lengths, **options)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, ctc_loss(logits, labels, lengths, **options), rtol=1e-5)


@pytest.mark.parametrize("labels", [np.zeros((2, 0), int), [[], []], [[-100], [-100]], [[0, -100], [0, 0]]])
def test_no_targets(labels: Any) -> None:
    """Only blanks are left to be said."""
    logits = np.random.default_rng(0).normal(size=(2, 3, 4))
    want = -scipy.special.log_softmax(logits, axis=-1)[:, :, 0].sum(1)
    np.testing.assert_allclose(ctc_loss(logits, labels, [3, 3], blank=0, reduction="none"), want, rtol=1e-12)
    np.testing.assert_allclose(ctc_loss(logits, labels, [3, 3], blank=0, reduction="mean"), want.mean(), rtol=1e-12)


LOGITS = np.zeros((2, 3, 4), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": LOGITS[0]}, "logits have the wrong shape"),
        ({"logits": LOGITS[:, :0]}, "logits have the wrong shape"),
        ({"logits": LOGITS.astype(np.float16)}, "logits have the wrong dtype"),
        ({"logits": LOGITS.astype(int)}, "logits have the wrong dtype"),
        ({"logits": LOGITS.tolist()}, "logits have the wrong dtype"),
        ({"labels": [[1], [4]]}, "labels is out of range"),
        ({"labels": [[1], [-1]]}, "labels is out of range"),
        ({"labels": [[1], [9]], "target_rule": "v4"}, "labels is out of range"),
        ({"labels": np.array([[1], [2**64 - 100]], np.uint64)}, "labels is out of range"),
        ({"labels": [1, 2]}, "labels has the wrong shape"),
        ({"labels": [[1]]}, "labels has the wrong shape"),
        ({"labels": [[1.0], [2.0]]}, "labels has the wrong dtype"),
        ({"labels": [[True], [False]]}, "labels has the wrong dtype"),
        ({"labels": [[1], [2, 3]]}, "labels is not an array"),
        ({"labels": None}, "labels has the wrong dtype"),
        ({"input_lengths": [3, 4]}, "input_lengths is out of range"),
        ({"input_lengths": [3, -1]}, "input_lengths is out of range"),
        ({"input_lengths": [3]}, "input_lengths has the wrong shape"),
        ({"input_lengths": 3}, "input_lengths has the wrong shape"),
        ({"input_lengths": [3.0, 3.0]}, "input_lengths has the wrong dtype"),
        ({"input_lengths": None}, "input_lengths has the wrong dtype"),
        ({"blank": 4}, "blank is out of range"),
        ({"blank": -1}, "blank is out of range"),
        ({"blank": None}, "blank has the wrong dtype"),
        ({"blank": [0, 1]}, "blank has the wrong shape"),
        ({"reduction": "median"}, "reduction is unknown"),
        ({"target_rule": "v6"}, "target_rule is unknown"),
        ({"target_rule": []}, "target_rule is unknown"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"logits": LOGITS, "labels": [[1], [2]], "input_lengths": [3, 3], "blank": 0, **change}
    with pytest.raises(InputError, match=message) as raised:
        ctc_loss(arguments.pop("logits"), arguments.pop("labels"), arguments.pop("input_lengths"), **arguments)
    assert "\n" not in str(raised.value)
