"""Which spans of time or features a training pass masks (SpecAugment; Park et al. 2019, as wav2vec 2.0 has it)."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from d2v_ref.errors import InputError


class Generator(Protocol):
    """Who draws: a ``numpy.random.Generator``, or a ``RandomState`` for transformers' draws of the same seed."""

    def random(self) -> float: ...

    def choice(self, a: np.ndarray, size: int, replace: bool) -> np.ndarray: ...


def compute_mask_indices(
    shape: tuple[int, int],
    mask_prob: float,
    mask_length: int,
    generator: Generator,
    *,
    lengths: np.ndarray | None = None,
    min_masks: int = 0,
) -> np.ndarray:
    """Spans of ``mask_length`` at random places, about ``mask_prob`` of a row in all if none overlapped.

    A row of L elements has ``int(mask_prob L / mask_length + u)`` spans, u uniform in [0, 1) and the same for all rows,
    at least ``min_masks``, and no more than have room (Baevski et al. 2020, sec. 3.2; HF _compute_mask_indices).

    Args:
        shape: (B, T).
        lengths: (B,), how many elements of each row may be masked; all if None.

    Returns:
        (B, T) booleans, True where masked.

    Raises:
        InputError: ``mask_length`` does not fit a row.
    """
    batch, length = shape
    if not 1 <= mask_length <= length:
        hint = "A longer signal, or smaller mask_time_length and mask_feature_length, would do"
        raise InputError(
            "a span to mask does not fit", got=f"{mask_length} of {length}", expected=f"1 ... {length}", hint=hint
        )
    rounding = generator.random()  # drawn once: how a share of a span is rounded

    def spans(room: int) -> int:
        count = max(int(mask_prob * room / mask_length + rounding), min_masks)
        count = min(count, length // mask_length)
        return max(min(count, room - (mask_length - 1)), 0)

    mask = np.zeros(shape, bool)
    most = spans(length)
    if most == 0:
        return mask
    for row, room in zip(mask, [length] * batch if lengths is None else lengths.tolist(), strict=True):
        count = spans(room)
        starts = generator.choice(np.arange(room - (mask_length - 1)), count, replace=False)
        for start in starts:
            row[start : start + mask_length] = True
        if count == 0:  # HF fills up its rectangle of starts with the last element, which is padding
            row[-1] = True
    return mask
