"""What the processor could do at most: the register tile on data that never leaves the first-level cache."""

from __future__ import annotations

import time

import numpy as np

from .compiling import Address, Real, address_of, kernel
from .operands import aligned
from .pointers import at, none, seen_as
from .target import TARGET
from .tasks import next_task, own_room
from .tiles import ROWS, lanes, tile, width

DEPTH, REPEATS = 96, 2000  # factors of one task: 24 kB in a format of 4 bytes


@kernel
def tiles_again(team, scratch: Address, room: int, tasks: int, depth: int, repeats: int, factor: Real, like: Real):
    """Each task: ``repeats`` tiles of the same factors."""
    first = own_room(team, scratch, room, like)
    c = at(first, width(like))
    a = seen_as(at(c, ROWS * width(like)), factor)
    b = at(a, ROWS * depth)
    while True:
        if next_task(team, tasks)[0] == tasks:
            break
        for _ in range(repeats):
            vectors = width(like) // lanes(like)
            tile(ROWS, vectors, depth, a, depth, b, width(like), c, width(like), first, 0, b, none(c), none(c), 0)


def fma_peak(threads: int, dtype: np.dtype, paired: bool = False, repeat: int = 5) -> float:
    """Operations a second of all threads together, two for a product and its sum: the best of a few runs.

    ``paired``: of dot products of bfloat16, which do two products in a step.
    """
    wide = TARGET.width(dtype.itemsize)
    room = (ROWS + wide) * DEPTH + wide * (ROWS + 1)
    scratch = aligned(threads * room, dtype)
    scratch[:] = 0
    like = dtype.type(0)
    best = 0.0
    for _ in range(repeat + 1):
        start = time.perf_counter()
        tasks = 4 * threads
        tiles_again(threads, address_of(scratch), room, tasks, DEPTH, REPEATS, np.int32(0) if paired else like, like)
        taken = time.perf_counter() - start
        done = 2.0 * tasks * REPEATS * ROWS * wide * DEPTH * (2 if paired else 1)
        best = max(best, done / taken)
    return best
