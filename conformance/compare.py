"""Holding two computations against each other: every array by name, largest error against the largest value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from d2v_ref.errors import ConformanceError


def relative_error(got: np.ndarray, want: np.ndarray, scale: float | None = None) -> float:
    """max |got - want| / max |want|: an error is measured against the array's own size.

    NaN must meet NaN, and infinity the same infinity.
    """
    if got.shape != want.shape:
        raise ConformanceError("shapes differ", got=got.shape, expected=want.shape)
    got, want = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return float("inf")
    got, want = np.where(finite, got, 0.0), np.where(finite, want, 0.0)
    largest = np.abs(want).max(initial=0.0) if scale is None else scale
    difference = np.abs(got - want).max(initial=0.0)
    return float(difference / largest) if largest else float(difference)


def compare(got: Mapping[str, Any], want: Mapping[str, Any], bound: float | Mapping[str, float], tally: Any) -> None:
    """Every name must be in both, and every array within its bound; the first that isn't is named.

    One number bounds every array's error relative to its largest value; a table bounds each array's absolute error.
    """
    if sorted(got) != sorted(want):
        raise ConformanceError("names differ", got=sorted(set(got) - set(want)), expected=sorted(set(want) - set(got)))
    tally.cases += 1
    for name in want:
        scale: float | None
        if isinstance(bound, Mapping):
            allowed, scale = bound[name], 1.0
        else:
            allowed, scale = bound, _scale(name, want)
        error = relative_error(np.asarray(got[name]), np.asarray(want[name]), scale)
        tally.arrays += 1
        tally.worst = max(tally.worst, error / allowed if allowed else float(error > 0))
        if not error <= allowed:
            raise ConformanceError(f"{name} differs", got=f"an error of {error:.3g}", expected=f"at most {allowed:.3g}")


def _scale(name: str, arrays: Mapping[str, Any]) -> float | None:
    """A loss is a difference of logits: its rounding is that of numbers of their size, however small it is itself."""
    if name not in ("loss", "#loss"):
        return None
    sizes = [np.abs(np.asarray(value)) for key, value in arrays.items() if key.endswith("logits") or key == name]
    return float(max(np.nan_to_num(size, nan=0.0, posinf=0.0).max(initial=0.0) for size in sizes))


def flatten(outputs: Any) -> dict[str, np.ndarray]:
    """Every array of a model's output by name: torch's or NumPy's, nested tuples and caches as ``name.i``."""
    flat: dict[str, np.ndarray] = {}

    def add(name: str, value: Any) -> None:
        if hasattr(value, "detach"):
            value = value.detach().numpy()
        if isinstance(value, np.ndarray | np.generic):
            flat[name] = np.asarray(value)
        elif isinstance(value, tuple | list):
            for i, item in enumerate(value):
                add(f"{name}.{i}", item)
        elif value is not None:
            raise TypeError(f"{name}: {type(value)}")

    for name, value in outputs.items():
        add(name, cache_arrays(value) if name == "past_key_values" else value)
    return flat


def cache_arrays(cache: Any) -> list[tuple[Any, ...]]:
    """(key, value[, cross key, cross value]) of every layer, of transformers' caches and of ours."""
    if hasattr(cache, "self_attention_cache"):
        pairs = zip(cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True)
        return [(a.keys, a.values, c.keys, c.values) for a, c in pairs]
    if hasattr(cache, "get_seq_length"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return [tuple(layer) for layer in cache]
