"""The operations that work number by number or row by row."""

from __future__ import annotations

from operator import is_
from typing import Any

import numpy as np

from d2v_ref.errors import InputError
from d2v_ref.nn import Embedding, LayerNorm
from d2v_ref.ops import Ops
from d2v_ref.ops.definitions import check_embedding, check_layer_norm, check_map

from ..activations import add_activations
from . import rows
from .compiling import LATER, keep
from .elementwise import CODES
from .operands import address, count, distance, empty, form, own, rows_of, spread_of, strides_of
from .threads import number_of_threads

Array = Any

SMALL = 1 << 12  # numbers that one thread has done before others have begun


class RowOps(Ops):
    """``Ops`` with the kernels of rows.py."""

    def __init__(self, dtype: str = "float32", threads: int | None = None) -> None:
        super().__init__(dtype)
        self.threads = number_of_threads(threads)
        self.like = self.dtype.type(0)
        self.kept: dict[Any, Any] = {}  # calls of kernels, by the form of their operands

    def _split(self, x: np.ndarray) -> tuple[int, int]:
        """How many threads, and rows of a task, for this many numbers."""
        return 1 if x.size < SMALL else self.threads, max(1, rows.TASK // max(x.shape[-1], 1))

    def _four(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape of up to four axes, as kernels take it."""
        return (*(1,) * (4 - len(shape)), *shape)

    def _apart(self, x: Any, full: tuple[int, ...]) -> tuple[int, ...]:
        """An operand that broadcasts to four axes, as kernels take it."""
        return address(x), *strides_of(x, full)

    def _copy(self, x: np.ndarray, y: np.ndarray) -> None:
        """y = x, of the same shape of up to four axes."""
        if y.size:
            full = self._four(y.shape)
            threads, step = self._split(y)
            rows.copy(threads, self._apart(x, full), self._apart(y, full), full, step, self.like)

    def concatenate(self, arrays: tuple[Array, ...], axis: int) -> Array:
        first = arrays[0]
        alike = all(x.dtype == self.dtype and 0 < x.ndim == first.ndim <= 4 for x in arrays)
        axis = axis % first.ndim if alike else axis
        others = {x.shape[:axis] + x.shape[axis + 1 :] for x in arrays}
        if not alike or len(others) > 1:
            return super().concatenate(arrays, axis)
        lengths = [x.shape[axis] for x in arrays]
        y = empty((*first.shape[:axis], sum(lengths), *first.shape[axis + 1 :]), self.dtype)
        start = 0
        for x, length in zip(arrays, lengths, strict=True):
            x = spread_of("concatenate", x, x.shape, self.dtype)
            self._copy(x, y[(slice(None),) * axis + (slice(start, start + length),)])
            start += length
        return y

    def where(self, mask: Array, x: Array, y: Array) -> Array:
        shape = np.broadcast_shapes(*(np.shape(one) for one in (mask, x, y)))
        if len(shape) > 4:
            return super().where(mask, x, y)
        numbers = [0.0 if isinstance(one, np.ndarray) else float(one) for one in (x, y)]
        x, y = (one if isinstance(one, np.ndarray) else None for one in (x, y))
        mask = spread_of("where", mask, shape, np.dtype(bool))
        x, y = (spread_of("where", one, shape, self.dtype) for one in (x, y))
        out = empty(shape, self.dtype)
        if out.size:
            full = self._four(shape)
            threads, step = self._split(out)
            apart = [self._apart(one, full) for one in (mask, x, y)]
            rows.where(
                threads, apart[0], apart[1], numbers[0], apart[2], numbers[1], address(out), full, step, self.like
            )
        return out

    def add(self, x: Array, y: Array) -> Array:
        shape = np.broadcast_shapes(x.shape, y.shape)
        if len(shape) > 4:
            return super().add(x, y)
        x, y = (spread_of("add", one, shape, self.dtype) for one in (x, y))
        out = empty(shape, self.dtype)
        if out.size:
            full = self._four(shape)
            threads, step = self._split(out)
            rows.add(threads, self._apart(x, full), self._apart(y, full), address(out), full, step, self.like)
        return out

    def adaptive_avg_pool2d(self, x: Array, size: int) -> Array:
        check_map("adaptive_avg_pool2d", x)
        x = spread_of("adaptive_avg_pool2d", x, x.shape, self.dtype)
        y = empty((x.shape[0], size, size, x.shape[3]), self.dtype)
        if y.size:
            threads = 1 if x.size < SMALL else self.threads
            rows.means(threads, self._apart(x, x.shape), address(y), x.shape, size, 1, self.like)
        return y

    def _activation(self, name: str, x: Array) -> Array:
        y = np.array(own(name, x, self.dtype), order="C")
        if y.size:
            threads = 1 if y.size < SMALL else self.threads
            rows.activation(threads, CODES[name], address(y), y.size, self.like)
        return y

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        key = "layer_norm", form(x), form(weight), form(bias), eps
        call = self.kept.get(key)
        if call is None:
            check_layer_norm(x, weight)
            given = x, weight, bias
            x = rows_of("layer_norm", x, self.dtype)
            weight, bias = (None if p is None else own("layer_norm", p, self.dtype, True) for p in (weight, bias))
            if not x.size:
                return empty(x.shape, self.dtype)
            threads, step = self._split(x)
            at_x, shape = (LATER, distance(x)), (count(x.shape), x.shape[-1])
            call = rows.layer_norm.ready(threads, at_x, LATER, *shape, LATER, LATER, eps, step, self.like)
            if all(map(is_, given, (x, weight, bias))):
                keep(self.kept, key, call)
        y = empty(x.shape, self.dtype)
        call(address(x), address(y), address(weight), address(bias))
        return y

    def embed_norm(self, ids: tuple[Array, ...], tables: tuple[Embedding, ...], norm: LayerNorm) -> Array:
        weights = [own("embed_norm", table.weight, self.dtype) for table in tables]
        if len(tables) > 3 or not all(weight.flags.c_contiguous for weight in weights):
            return super().embed_norm(ids, tables, norm)
        for rows_, weight in zip(ids, weights, strict=True):
            check_embedding(rows_, weight)
        at = [np.ascontiguousarray(rows_, np.int64) for rows_ in np.broadcast_arrays(*ids)]
        y = empty((*at[0].shape, weights[0].shape[1]), self.dtype)
        check_layer_norm(y, norm.weight)
        if y.size:
            scale = [None if p is None else own("embed_norm", p, self.dtype, True) for p in (norm.weight, norm.bias)]
            threads, step = self._split(y)
            absent = (0,) * (3 - len(tables))
            rows.embed_norm(
                threads,
                *((*map(address, at), *absent), (*map(address, weights), *absent)),
                *(address(y), count(y.shape), y.shape[-1], *map(address, scale), norm.eps, step, self.like),
            )
        return y

    def softmax(self, x: Array) -> Array:
        return self._softmax("softmax", x, False)

    def log_softmax(self, x: Array) -> Array:
        return self._softmax("log_softmax", x, True)

    def _softmax(self, operation: str, x: Array, logarithm: bool) -> Array:
        x = rows_of(operation, x, self.dtype)
        if not x.shape[-1]:
            raise InputError(f"{operation}: nothing on the last axis", got=x.shape, expected="1 number or more")
        y = empty(x.shape, self.dtype)
        if y.size:
            threads, step = self._split(y)
            shape = count(y.shape), y.shape[-1]
            rows.softmax(threads, (address(x), distance(x)), address(y), *shape, logarithm, step, self.like)
        return y

    def glu(self, x: Array) -> Array:
        if x.shape[-1] % 2:
            return super().glu(x)  # which says what does not fit
        x = rows_of("glu", x, self.dtype)
        half = x.shape[-1] // 2
        y = empty((*x.shape[:-1], half), self.dtype)
        if y.size:
            threads, step = self._split(y)
            rows.glu(threads, (address(x), distance(x)), address(y), count(y.shape), half, step, self.like)
        return y


add_activations(RowOps, CODES)
