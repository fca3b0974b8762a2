"""What a bundle keeps of an array: all of it, or samples; and moments, which the elements between them move."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

FULL, FINGERPRINT = "full", "fingerprint"
FORMS = (FULL, FINGERPRINT)

SIZES = ("mean", "rms", "min", "max")  # of the finite elements; None if there are none
COUNTS = ("nan", "inf", "-inf")  # how many elements are; left out if none is

_FIRST, _SPREAD = 8, 24  # samples at the beginning, and over the rest

Moments = dict[str, Any]


def positions(size: int) -> np.ndarray:
    """The flat, row-major positions of the samples of an array of ``size`` elements (see ``golden/FORMAT.md``)."""
    if size <= _FIRST + _SPREAD:
        return np.arange(size)
    spread = [_FIRST + k * (size - 1 - _FIRST) // (_SPREAD - 1) for k in range(_SPREAD)]
    return np.array([*range(_FIRST), *spread])


def kept(array: np.ndarray, form: str) -> np.ndarray:
    """What ``taps.safetensors`` holds of a tap: the array, or its samples (n,)."""
    return array if form == FULL else array.reshape(-1)[positions(array.size)]


def kept_shape(shape: list[int], form: str) -> tuple[int, ...]:
    """The shape of what is kept of an array of ``shape``."""
    return tuple(shape) if form == FULL else (min(math.prod(shape), _FIRST + _SPREAD),)


def moments(array: np.ndarray) -> Moments:
    """``SIZES`` and ``COUNTS`` of an array, in float64."""
    x = np.asarray(array, np.float64).reshape(-1)
    masks = {"nan": np.isnan(x), "inf": np.isposinf(x), "-inf": np.isneginf(x)}
    return {**_sizes(x[np.isfinite(x)]), **{name: int(mask.sum()) for name, mask in masks.items() if mask.any()}}


def counts(found: Moments) -> list[int]:
    """How many elements are NaN, infinity and -infinity."""
    return [found.get(name, 0) for name in COUNTS]


def _sizes(x: np.ndarray) -> Moments:
    if x.size == 0:
        return dict.fromkeys(SIZES)
    largest = float(np.abs(x).max())
    y = x / largest if largest else x  # so that no square and no sum overflows or vanishes
    low, high = float(x.min()), float(x.max())
    mean, rms = float(y.mean()) * largest, min(math.sqrt(np.square(y).mean()), 1.0) * largest
    return {"mean": min(max(mean, low), high), "rms": rms, "min": low, "max": high}


def differing(got: Moments, want: Moments, tolerance: float) -> list[str]:
    """The moments that differ by more than elements make them that are each off by ``tolerance`` at most."""
    others = [name for name in COUNTS if got.get(name, 0) != want.get(name, 0)]
    if others or got["mean"] is None:
        return others  # the sizes are of other elements
    # What computing in float64 rounds, where each sum is off by at most 64 units of rounding of its absolute values.
    rounding = 2.0**-47 * (got["rms"] + want["rms"]) + sys.float_info.min
    allowed = {"mean": tolerance + rounding, "rms": tolerance + rounding, "min": tolerance, "max": tolerance}
    return [name for name in SIZES if not abs(got[name] - want[name]) <= allowed[name]]
