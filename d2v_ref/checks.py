"""What a caller may pass to a model: arrays of the right kind, shape and range.  Anything else is one InputError."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v_ref.errors import InputError

Shape = tuple[int | str, ...]


def anything(name: str, value: Any) -> np.ndarray:
    """``value`` as a NumPy array of any dtype and shape, for a caller that chooses by its axes what to check next."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:  # rows of different lengths
        raise InputError(f"{name} is not an array: {error}", expected="rows of one length, or an array") from None


def array(name: str, value: Any, shape: Shape, kinds: str, dtype: np.dtype | None = None) -> np.ndarray:
    """``value`` as a NumPy array of one of ``kinds`` (NumPy's letters) whose axes fit ``shape``.

    A number in ``shape`` must be the axis' length, a word may be any.  Floating values are converted to ``dtype`` if it
    is given, and must be finite in it.
    """
    x = anything(name, value)
    if x.dtype.kind not in kinds:
        wanted = " or ".join(
            word
            for letter, word in (("b", "booleans"), ("i", "integers"), ("f", "floating-point numbers"))
            if letter in kinds
        )
        raise InputError(f"{name} has the wrong dtype", got=x.dtype, expected=wanted)
    if x.ndim != len(shape) or any(
        isinstance(want, int) and want != got for want, got in zip(shape, x.shape, strict=True)
    ):
        raise InputError(f"{name} has the wrong shape", got=x.shape, expected=_spell(shape))
    if x.size == 0:
        raise InputError(f"{name} is empty", got=x.shape, expected="at least one element")
    if x.dtype.kind != "f":
        return x
    with np.errstate(over="ignore"):
        converted = x if dtype is None else x.astype(dtype, copy=False)
    if not np.isfinite(converted).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(converted))[0])
        expected = f"finite numbers in {converted.dtype}"
        raise InputError(f"{name} is not finite", got=f"{x[where]} at {where}", expected=expected)
    return converted


def indices(name: str, value: Any, shape: Shape, count: int, hint: str | None = None) -> np.ndarray:
    """Integers 0 ... count - 1, as int64."""
    x = array(name, value, shape, "iu")
    outside = (x < 0) | (x >= count)
    if outside.any():
        where = tuple(int(i) for i in np.argwhere(outside)[0])
        raise InputError(
            f"{name} is out of range", got=f"{x[where]} at {where}", expected=f"0 ... {count - 1}", hint=hint
        )
    return x.astype(np.int64, copy=False)


def _spell(shape: Shape) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
