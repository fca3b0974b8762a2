"""Operands as the kernels take them: of one dtype, without gaps in a row, the rows at one distance."""

from __future__ import annotations

import itertools
import math
import mmap
from contextlib import suppress
from typing import Any

import numpy as np

from d2v_ref.errors import InputError

from .compiling import address_of, tracing

PAGE, PADDING, LINE, HUGE = 4096, 192, 64, 1 << 21  # bytes


def own(operation: str, x: Any, dtype: np.dtype, contiguous: bool = False) -> np.ndarray:
    """An operand in the backend's dtype, at whole distances of its numbers."""
    if x.dtype != dtype:
        raise InputError(f"{operation}: another dtype than the backend's", got=x.dtype, expected=dtype)
    if x.flags.c_contiguous:
        return x
    if contiguous or any(stride % dtype.itemsize for stride in x.strides):
        x = np.ascontiguousarray(x)
    return x


def rows_of(operation: str, x: Any, dtype: np.dtype) -> np.ndarray:
    """An operand (..., K) whose rows are without gaps and lie at one distance from each other."""
    x = own(operation, x, dtype)
    if x.flags.c_contiguous:
        return x
    steps = [(n, stride) for n, stride in zip(x.shape[:-1], x.strides[:-1], strict=True) if n > 1]
    even = all(outer == inner * n for (_, outer), (n, inner) in itertools.pairwise(steps))
    forwards = not steps or steps[-1][1] >= 0
    return x if x.strides[-1] == x.itemsize and even and forwards else np.ascontiguousarray(x)


def spread_of(operation: str, x: Any, full: tuple[int, ...], dtype: np.dtype) -> Any:
    """An operand that broadcasts to ``full``, at whole distances of its numbers; None stays None."""
    if x is None:
        return None
    if x.dtype != dtype:
        raise InputError(f"{operation}: another dtype than it takes", got=x.dtype, expected=dtype)
    strides = np.broadcast_to(x, full).strides
    return np.ascontiguousarray(x) if any(stride % dtype.itemsize for stride in strides) else x


def strides_of(x: Any, full: tuple[int, ...]) -> tuple[int, ...]:
    """The distances of the numbers of an operand that broadcasts to ``full``, along its axes."""
    if x is None:
        return (0,) * len(full)
    return tuple(stride // x.itemsize for stride in np.broadcast_to(x, full).strides)


def distance(x: np.ndarray) -> int:
    """The distance of the rows of an operand that ``rows_of`` gave, in numbers."""
    if x.flags.c_contiguous:
        return x.shape[-1]
    steps = [stride for n, stride in zip(x.shape[:-1], x.strides[:-1], strict=True) if n > 1]
    return steps[-1] // x.itemsize if steps else x.shape[-1]


def aligned(count: int, dtype: np.dtype) -> np.ndarray:
    """So many numbers that begin at a cache line, not set."""
    return _aligned(count, dtype) if tracing.now is None else tracing.now.empty((count,), dtype)


def _aligned(count: int, dtype: np.dtype) -> np.ndarray:
    memory = np.empty(count * dtype.itemsize + LINE, np.uint8)
    skip = -address_of(memory) % LINE
    return memory[skip : skip + count * dtype.itemsize].view(dtype)


def for_long(count: int, dtype: np.dtype) -> np.ndarray:
    """As ``aligned``, in memory of its own that is the system's again with the array, if it is large.

    In pages of 2 MB as far as it fills them, where Linux has them, for what is read again and again: a product that
    goes through its weights once meets a new page at every step, and waits for its address.
    """
    size = count * dtype.itemsize
    if size < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return _aligned(count, dtype)
    memory = mmap.mmap(-1, size + HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    begin = -address_of(np.frombuffer(memory, np.uint8)) % HUGE
    with suppress(OSError):  # a system without them
        memory.madvise(mmap.MADV_HUGEPAGE, begin, size // HUGE * HUGE)
    return np.frombuffer(memory, dtype, count, begin)


def form(x: Any) -> tuple[Any, ...] | None:
    """What a kernel's arguments depend on, beside where the operand lies; the order of its bytes is in the dtype's."""
    return None if x is None else (x.shape, x.strides, x.dtype.str)


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Room for numbers that a kernel will write, not set."""
    return np.empty(shape, dtype) if tracing.now is None else tracing.now.empty(shape, dtype)


def result(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Room for a result, not set.

    Rows whose distance would be a multiple of a page lie a little further apart: at the same place of their pages they
    would all share a few places in the cache.
    """
    width = shape[-1]
    if not width or width * dtype.itemsize % PAGE:
        return empty(shape, dtype)
    return empty((*shape[:-1], width + PADDING // dtype.itemsize), dtype)[..., :width]


def address(x: Any) -> int:
    """Where the numbers begin; 0 for None."""
    return 0 if x is None else address_of(x)


def count(shape: tuple[int, ...]) -> int:
    """How many rows (..., K) has."""
    return math.prod(shape[:-1])
