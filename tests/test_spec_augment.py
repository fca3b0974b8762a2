"""Spans to mask: where they may lie, how many they are, and that nothing but the generator decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v_ref.errors import InputError
from d2v_ref.spec_augment import compute_mask_indices

seeds = st.integers(0, 2**32 - 1)


def runs(row: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], row, [False]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@settings(max_examples=300)
@given(data=st.data(), seed=seeds, prob=st.floats(0, 1), min_masks=st.integers(0, 5))
def test_spans_lie_in_their_rows_and_are_whole(data: st.DataObject, seed: int, prob: float, min_masks: int) -> None:
    batch, length = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 30))
    span = data.draw(st.integers(1, length))
    lengths = np.array(data.draw(st.lists(st.integers(1, length), min_size=batch, max_size=batch)))
    mask = compute_mask_indices(
        (batch, length), prob, span, np.random.default_rng(seed), lengths=lengths, min_masks=min_masks
    )
    assert (mask.shape, mask.dtype) == ((batch, length), np.bool_)
    for row, room in zip(mask, lengths, strict=True):
        if room < span or (room < length and not min_masks):  # Hugging Face marks a row of no span at its padded end
            if runs(row) == [(length - 1, length)]:
                continue
            assert room >= span or not row.any()
        assert all(end - start >= span for start, end in runs(row))
        assert not row[room:].any()
        most = max(prob * room / span + 1, min_masks)
        assert row.sum() <= most * span
        if min_masks and room >= span:
            assert row.any()


@settings(max_examples=100)
@given(seed=seeds, length=st.integers(1, 40), prob=st.floats(0, 1), min_masks=st.integers(0, 50))
def test_of_single_elements_the_number_is_a_rounded_share(seed: int, length: int, prob: float, min_masks: int) -> None:
    """Rounded up or down at random, in all rows alike; the least is kept as far as there are elements."""
    mask = compute_mask_indices((4, length), prob, 1, np.random.default_rng(seed), min_masks=min_masks)
    counts = mask.sum(1)
    assert len(set(counts.tolist())) == 1
    floor = min(max(int(prob * length), min_masks), length)
    assert floor <= counts[0] <= max(floor, min(int(prob * length) + 1, length))


def test_the_share_is_right_on_average_and_every_place_as_likely() -> None:
    """0.3 of 20 single elements is 6; of 17 it is 5.1, rounded up in a tenth of the draws."""
    generator = np.random.default_rng(0)
    twenty = np.array([compute_mask_indices((1, 20), 0.3, 1, generator)[0] for _ in range(3000)])
    assert (twenty.sum(1) == 6).all()
    assert np.abs(twenty.mean(0) - 0.3).max() < 0.04  # five standard deviations of a place's share
    seventeen = [compute_mask_indices((1, 17), 0.3, 1, generator).sum() for _ in range(3000)]
    assert set(seventeen) == {5, 6}
    assert np.mean(seventeen) == pytest.approx(5.1, abs=0.03)
    starts = np.array([runs(row) for row in compute_mask_indices((3000, 12), 1e-9, 5, generator, min_masks=1)])
    assert starts.shape == (3000, 1, 2)  # one span a row
    places = np.bincount(starts[:, 0, 0], minlength=12)
    assert (places[8:] == 0).all()
    assert np.abs(places[:8] / 3000 - 1 / 8).max() < 0.03


def test_a_padded_row_of_no_span_is_marked_at_its_end() -> None:
    """As in Hugging Face's rectangle of starts, which the last element fills up; a full row of no span is not."""
    mask = compute_mask_indices((3, 10), 0.0, 4, np.random.default_rng(0), lengths=np.array([10, 3, 9]), min_masks=1)
    assert mask[0].sum() == mask[2].sum() == 4
    assert runs(mask[1]) == [(9, 10)]
    none = compute_mask_indices((2, 10), 0.0, 4, np.random.default_rng(0), lengths=np.array([10, 3]))
    assert not none.any()


def test_more_spans_than_have_room_are_as_many_as_fit_side_by_side() -> None:
    for seed in range(20):
        mask = compute_mask_indices((4, 11), 1.0, 5, np.random.default_rng(seed), min_masks=9)
        assert ((mask.sum(1) >= 6) & (mask.sum(1) <= 10)).all()  # two of 5 at different places


def test_the_ends_of_the_range() -> None:
    generator = np.random.default_rng(0)
    assert not compute_mask_indices((3, 10), 0.0, 2, generator).any()
    assert compute_mask_indices((3, 10), 1.0, 1, generator).all()
    assert compute_mask_indices((3, 10), 0.0, 10, generator, min_masks=7).all()
    assert compute_mask_indices((1, 1), 1.0, 1, generator).all()
    few = compute_mask_indices((2, 10), 1.0, 1, generator, lengths=np.array([10, 4]))
    np.testing.assert_array_equal(few.sum(1), [10, 4])


@pytest.mark.parametrize("kind", [np.random.default_rng, np.random.RandomState])
def test_only_the_generator_decides(kind: Any) -> None:
    masks = [compute_mask_indices((4, 50), 0.4, 3, kind(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()
    before = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002 - the global one
    compute_mask_indices((4, 50), 0.4, 3, kind(1))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize(("span", "length"), [(11, 10), (0, 10), (-1, 10), (1, 0)])
def test_a_span_that_does_not_fit(span: int, length: int) -> None:
    with pytest.raises(InputError, match=rf"a span to mask does not fit .got {span} of {length}; expected 1 ... "):
        compute_mask_indices((2, length), 0.5, span, np.random.default_rng(0))
