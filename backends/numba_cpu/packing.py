"""Weights as the products read them: panels of columns, packed once when a model is bound."""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np

from .compiling import address_of
from .operands import aligned, for_long
from .products import pack_panels
from .target import TARGET

SMALL = 1 << 15  # numbers that one thread has packed before others have begun


class Packed:
    """A weight of a Linear or a convolution, (O, ...) as torch has it, kept as panels only.

    Attributes:
        shape, dtype: of the weight.
        groups: of the convolution, each a matrix of its own.
        paired: whether the panels hold pairs of bfloat16, which the weight was rounded to.
        panels: 1-D, the groups' panels one after the other.
        address: of the first.
        products: what a backend keeps ready for operands that it has had.
    """

    def __init__(self, weight: np.ndarray, groups: int, threads: int, paired: bool = False) -> None:
        self.shape, self.dtype, self.groups, self.paired = weight.shape, weight.dtype, groups, paired
        matrices = np.ascontiguousarray(np.moveaxis(weight, 1, -1)).reshape(groups, weight.shape[0] // groups, -1)
        _, rows, depth = matrices.shape
        step, wide = TARGET.lanes(self.dtype.itemsize), TARGET.width(self.dtype.itemsize)
        steps = -(-depth // 2) if paired else depth
        self.panels = for_long(groups * -(-rows // step) * step * steps, np.dtype(np.int32) if paired else self.dtype)
        self.address = address_of(self.panels)
        self.products: dict[Any, Any] = {}
        scratch, like = aligned(threads * wide * depth, self.dtype), self.dtype.type(0)
        for matrix, out in zip(matrices, self.panels.reshape(groups, -1), strict=True):
            few = 1 if matrix.size < SMALL else threads
            given = address_of(matrix), address_of(out), rows, depth, address_of(scratch), wide * depth
            pack_panels(few, *given, np.int32(0) if paired else like, like)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Of the panels, which may be a little wider than the weight, and half of it in bfloat16."""
        return self.panels.nbytes

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The weight again: bit for bit, or as it was rounded."""
        rows, wide = self.shape[0] // self.groups, TARGET.width(self.dtype.itemsize)
        moved = (self.shape[0], *self.shape[2:], self.shape[1])
        weight = np.empty((self.groups, rows, math.prod(moved[1:])), self.dtype)
        for panels, matrix in zip(self.panels.reshape(self.groups, -1), weight, strict=True):
            steps = panels.size // (-(-rows // (step := TARGET.lanes(self.dtype.itemsize))) * step) if rows else 0
            for column in range(0, rows, wide):
                count = min(wide, rows - column)
                whole = -(-count // step) * step
                panel = panels[column * steps : (column + whole) * steps].reshape(steps, whole)
                matrix[column : column + count] = (_unpaired(panel)[: matrix.shape[1]] if self.paired else panel)[
                    :, :count
                ].T
        return np.moveaxis(weight.reshape(moved), -1, 1).astype(dtype or self.dtype, copy=False)


def _unpaired(panel: np.ndarray) -> np.ndarray:
    """Pairs of bfloat16 along the depth as float32: (steps, columns) -> (2 steps, columns)."""
    bits = panel.view(np.uint32)
    return np.stack((bits << 16, bits & 0xFFFF0000), axis=1).reshape(-1, panel.shape[1]).view(np.float32)


def release(weight: np.ndarray) -> None:
    """Gives back the memory of a weight that is a map of a file and was copied: the system reads it again if asked."""
    base: Any = weight
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if not isinstance(base, mmap.mmap) or weight.flags.writeable or not hasattr(mmap, "MADV_DONTNEED"):
        return
    begin = address_of(weight) - address_of(np.frombuffer(base, np.uint8))
    first, last = -(-begin // mmap.PAGESIZE), (begin + weight.nbytes) // mmap.PAGESIZE
    if last > first and weight.flags.c_contiguous:
        base.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)
