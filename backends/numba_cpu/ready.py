"""Calls that are ready to run: all that the form of the operands decides is decided once.

A forward pass has a hundred small calls, and to check operands, choose a grid and pack arguments takes Python longer
than some of them run.  A model's operands have the same few forms at each pass, so what was decided is kept, a product
with its weight and the others with the operations, and only where the operands lie is told anew.
"""

from __future__ import annotations

import math
from operator import is_
from typing import TYPE_CHECKING, Any

import numpy as np

from . import attention as attending
from . import products
from .compiling import LATER
from .operands import address, aligned, distance, empty, result, strides_of
from .packing import Packed
from .target import TARGET

if TYPE_CHECKING:
    from . import NumbaOps

NO_PANELS = 0, 0, 1, 0  # in the place of a product's address, numbers in one, count, and blocks
SMALL = 1 << 17  # multiply-adds that one thread has done before others have begun


class Product:
    """Up to three products of one x, each with its weight and its bias, in one parallel loop.

    ``product(x, residual)`` gives them, for operands of the form of those that it was made for.  It holds no weight: it
    is kept by one.
    """

    def __init__(
        self,
        ops: NumbaOps,
        x: np.ndarray,
        weights: list[Any],
        biases: list[Any],
        activation: int = 0,
        residual: Any = None,
        scale: Any = None,
    ) -> None:
        self.ops, self.given = ops, (*weights[1:], *biases, scale)
        depth, wide = x.shape[-1], TARGET.width(ops.dtype.itemsize)
        rows = math.prod(x.shape[:-1])
        packed = isinstance(weights[0], Packed)
        outputs = [weight.shape[0] for weight in weights]
        self.shapes = [(*x.shape[:-1], n) for n in outputs]
        threads = 1 if rows * sum(outputs) * depth < SMALL else ops.threads
        terms = (depth + 1) // 2 if ops.paired else depth
        self.pairs = rows * terms if ops.paired else 0
        table: list[Any] = []
        for weight, bias, shape in zip(weights, biases, self.shapes, strict=True):
            at = weight.address if packed else address(weight)
            table.append((at, address(bias), LATER, distance(result(shape, ops.dtype)), shape[-1]))
        panels = sum(-(-n // wide) for n in outputs)
        blocks = min(-(-rows // products.ROWS), max(-(-rows // products.BLOCK), -(-4 * threads // panels)))
        room = products.linear_room(rows, depth, blocks, wide, packed)
        self.room = threads * room
        self.panels = (weights[0].address, wide * terms, panels, blocks) if packed else NO_PANELS
        self.afterwards = [NO_PANELS]  # the panels of the product that came next the last time
        self.call = products.linear.ready(
            threads,
            (LATER, distance(x)),
            LATER,
            *table,
            *((0,) * 5,) * (3 - len(table)),
            *(packed, activation, address(scale)),
            (0, 0) if residual is None else (LATER, distance(residual)),
            *(rows, depth, panels, blocks, (LATER,) * 4, LATER, room),
            *(np.int32(0) if ops.paired else ops.like, ops.like),
        )

    def suits(self, ops: NumbaOps, *given: Any) -> bool:
        """Whether it was made for these: the other weights than the first, the biases, the scale."""
        return ops is self.ops and all(map(is_, given, self.given))

    def __call__(self, x: np.ndarray, residual: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        made = tuple([result(shape, self.ops.dtype) for shape in self.shapes])
        pairs = aligned(self.pairs, np.dtype(np.int32)) if self.pairs else None
        later = [address(x), address(pairs), *map(address, made)]
        if residual is not None:
            later.append(address(residual))
        self.ops.comes_now(self)
        self.call(*later, *self.afterwards[0], self.ops.scratch(self.room))
        return made


class Attention:
    """Attention, ready for operands of a form: ``attention(ops, q, k, v, bias, mask, head_mask)``."""

    def __init__(
        self,
        ops: NumbaOps,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        bias: Any,
        mask: Any,
        head_mask: Any,
        full: tuple[int, int, int, int],
        causal: bool,
        probs: bool,
    ) -> None:
        self.shape, self.full = q.shape, full if probs else None
        batch, heads, length, keys = full
        size = q.shape[2] // heads
        threads = 1 if 2 * math.prod(full) * size < SMALL else ops.threads
        pieces = min(-(-length // attending.QUERIES), -(-4 * threads // (batch * heads)))
        lanes, wide = TARGET.lanes(ops.dtype.itemsize), TARGET.width(ops.dtype.itemsize)
        room = attending.attention_room(keys, size, lanes, wide)
        self.room = threads * room
        self.call = attending.attention.ready(
            threads,
            *((LATER, distance(x)) for x in (q, k, v)),
            *(batch, heads, length, keys, size),
            size**-0.5,
            causal,
            *((LATER, *strides_of(x, full)) for x in (bias, mask, head_mask)),
            *(LATER, LATER),
            *(pieces, LATER, room),
            *(np.int32(0) if ops.paired else ops.like, ops.like),
        )

    def __call__(self, ops: NumbaOps, *operands: Any) -> tuple[np.ndarray, np.ndarray | None]:
        context = empty(self.shape, ops.dtype)
        p = None if self.full is None else empty(self.full, ops.dtype)
        self.call(*map(address, (*operands, p, context)), ops.scratch(self.room))
        return context, p
