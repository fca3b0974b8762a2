"""The backends that are installed here, each in every dtype that it offers, and two that are known to be right."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import numpy as np
import pytest

from d2v_ref.audit.storage import rounded
from d2v_ref.errors import BackendError
from d2v_ref.golden.bounds import FORMATS
from d2v_ref.ops import Ops, backends, get_ops

Array = Any


class Reordered(Ops):
    """The definitions, with sums in another order: as right as any."""

    name: ClassVar[str] = "reordered"

    def linear(self, x: Array, weight: Array, *rest: Any, **named: Any) -> Array:
        return super().linear(x[..., ::-1], weight[:, ::-1], *rest, **named)

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        weight, bias = (None if vector is None else vector[::-1] for vector in (weight, bias))
        return super().layer_norm(np.ascontiguousarray(x[..., ::-1]), weight, bias, eps)[..., ::-1]

    def softmax(self, x: Array) -> Array:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e * (1 / (e[..., ::2].sum(-1, keepdims=True) + e[..., 1::2].sum(-1, keepdims=True)))

    def conv1d(self, x: Array, weight: Array, bias: Array = None, stride: int = 1, *rest: Any, **named: Any) -> Array:
        return super().conv1d(x[::-1], weight, bias, stride, *rest, **named)[::-1]

    def conv2d(self, x: Array, weight: Array, *rest: Any, **named: Any) -> Array:
        return super().conv2d(x[..., ::-1], weight[:, ::-1], *rest, **named)

    def attention(self, q: Array, k: Array, v: Array, heads: int, *, mask: Array = None, **options: Any) -> Any:
        """The values' sum before the division, as fused kernels have it."""
        context, p = super().attention(q, k, v, heads, mask=mask, **{**options, "probs": True})
        context = p @ np.ascontiguousarray(self.split_heads(v, heads)[..., ::-1, :])[..., ::-1, :]
        return context.swapaxes(1, 2).reshape(q.shape), p if options.get("probs") else None


class Halved(Ops):
    """Products of bfloat16 numbers, summed in float32, as processors with such instructions make them."""

    name: ClassVar[str] = "halved"
    dtypes: ClassVar[tuple[str, ...]] = ("bfloat16",)

    def __init__(self, dtype: str = "bfloat16") -> None:
        if dtype not in self.dtypes:
            raise BackendError("backend halved does not compute in this dtype", got=dtype, expected="bfloat16")
        self.dtype = np.dtype("float32")

    def linear(self, x: Array, weight: Array, *rest: Any, **named: Any) -> Array:
        return super().linear(half(x), half(weight), *rest, **named)

    def conv1d(self, x: Array, weight: Array, *rest: Any, **named: Any) -> Array:
        return super().conv1d(half(x), half(weight), *rest, **named)

    def conv2d(self, x: Array, weight: Array, *rest: Any, **named: Any) -> Array:
        return super().conv2d(half(x), half(weight), *rest, **named)

    def attention(self, q: Array, k: Array, v: Array, *rest: Any, **named: Any) -> Any:
        return super().attention(half(q), half(k), half(v), *rest, **named)


def half(x: Array) -> Array:
    return rounded(np.asarray(x), "bfloat16")


KNOWN: dict[str, type[Ops]] = {kind.name: kind for kind in (Reordered, Halved)}
RIGHT = [(kind.name, dtype) for kind in KNOWN.values() for dtype in kind.dtypes]


@functools.cache
def ops_of(backend: str, dtype: str) -> Ops:
    return KNOWN[backend](dtype) if backend in KNOWN else get_ops(backend, dtype)


def _installed() -> list[Any]:
    """(backend, dtype) of every backend but NumPy's; one that can't run here is skipped, and says why."""
    found: list[Any] = []
    for info in backends():
        if info.name == Ops.name:
            continue
        if not info.available:
            found.append(pytest.param(info.name, "", marks=pytest.mark.skip(reason=info.reason), id=info.name))
            continue
        errors: dict[str, str] = {}
        offered: set[str] = set()
        for dtype in FORMATS:
            try:
                offered.update(type(ops_of(info.name, dtype)).dtypes)
            except BackendError as error:
                errors[dtype] = str(error)
        for dtype in FORMATS:
            if dtype in offered:
                marks = [pytest.mark.skip(reason=errors[dtype])] if dtype in errors else []
                found.append(pytest.param(info.name, dtype, marks=marks, id=f"{info.name}-{dtype}"))
    return found


INSTALLED = _installed()
BACKENDS = [*(pytest.param(*pair, id="-".join(pair)) for pair in RIGHT), *INSTALLED]
