"""Matrix products: y = residual + scale * activation(x W^T + b), panel by panel of packed weights.

The second factor is cut into panels of ``width`` columns, each stored k by k, so that the tile reads it from front to
back and a panel stays in the second-level cache while the rows of x pass by.  A task is a panel and a block of rows;
it owns its part of y, and every number of y is summed over k in one order: the result does not depend on the threads.
"""

from __future__ import annotations

import numpy as np

from .compiling import Real, Rows, kernel, routine
from .elementwise import activate
from .pointers import at, next_task, pointer, seen_as
from .tiles import (
    LINE_VECTORS,
    ROWS,
    lanes,
    pack,
    pair_row,
    panel_as_factors,
    steps,
    tile,
    width,
)

DEPTH = 3072  # the longest part of a sum that is done at a time: a panel of it takes 0.75 MB, less than an L2 cache
BLOCK = 512  # rows of x in a task


@routine(inline=True)
def finish(y, ldy, rows, columns, activation, scale, scaled, residual, ldr, added):
    """y = residual + scale * activation(y), in place, while it is in the first-level cache."""
    for i in range(rows):
        row = at(y, i * ldy)
        activate(activation, row, columns)
        if scaled:
            for j in range(columns):
                row[j] *= scale[j]
        if added:
            other = at(residual, i * ldr)
            for j in range(columns):
                row[j] += other[j]


@routine(inline=True)
def panel(rows, columns, depth, x, ldx, w, first, y, ldy, edge, finishing, following):
    """y = finishing(first + x w) for some rows and one panel's columns.

    w (depth, columns rounded up to whole vectors), first: as many numbers.  ``edge``: room for rows x width numbers,
    for where a panel ends within a vector, so that nothing is written beyond y's columns.
    """
    activation, scale, scaled, residual, ldr, added = finishing
    step = lanes(x)
    vectors = (columns + step - 1) // step
    ragged = columns != vectors * step
    out, ldo = (edge, width(x)) if ragged else (y, ldy)
    strips = (rows + ROWS - 1) // ROWS
    done = 0
    while True:  # once at least: a sum of nothing is what it begins with
        part = min(DEPTH, depth - done)
        last = done + part == depth
        for strip in range(strips):
            begin = strip * rows // strips
            count = (strip + 1) * rows // strips - begin
            mine = at(out, begin * ldo)
            start, lds = (first, 0) if done == 0 else (mine, ldo)
            here = at(x, begin * ldx + done)
            own = at(w, done * vectors * step)
            # A panel that the next task of this thread will probably need comes from memory while this one computes:
            # a cache line at each k, the first lines at the first strips.
            fetched = (strip * depth + done) * lanes(y) * LINE_VECTORS
            ahead = at(following, fetched) if fetched < depth * vectors * step else own
            tile(count, vectors, part, here, ldx, own, vectors * step, mine, ldo, start, lds, ahead)
            if last:
                finish(mine, ldo, count, columns, activation, scale, scaled, at(residual, begin * ldr), ldr, added)
        done += part
        if last:
            break
    if ragged:
        for i in range(rows):
            for j in range(columns):
                y[i * ldy + j] = edge[i * ldo + j]


@routine(inline=True)
def begin_with(first, bias, given, columns):
    """What the sums of a panel begin with: the bias where there is one, and 0 up to the panel's width."""
    for j in range(width(first)):
        first[j] = 0
    if given:
        for j in range(columns):
            first[j] = bias[j]


Parts = tuple[int, int, int, int, int, int, int, int, int, int, int, int, int, int, int]
"""For each of three weights: its address, its bias', the result's with the distance of its rows, and its outputs."""


@routine(inline=True)
def place_of(parts, panel_index, wide):
    """Which weight the panel of this number is of, counted through all, and its first column; weight 3: none."""
    part = 0
    while part < 3:
        panels = (parts[5 * part + 4] + wide - 1) // wide
        if panel_index < panels:
            break
        panel_index -= panels
        part += 1
    return part, panel_index * wide


@kernel
def linear(
    counter,
    x: Rows,
    parts: Parts,
    packed: int,
    activation: int,
    scale: int,
    residual: Rows,
    rows: int,
    depth: int,
    panels: int,
    blocks: int,
    threads: int,
    scratch: int,
    room: int,
    factor: Real,
    like: Real,
):
    """y = residual + scale * activation(x W^T + b), for up to three W of one x.

    x (rows, depth), y and residual (rows, outputs).  ``factor``: the type of x and of the panels, int32 for pairs of
    bfloat16 and else that of ``like``, the result.  The weights are panels if ``packed``, else W (outputs, depth)
    itself, of which a thread packs a panel when it needs it.  ``scale``, ``residual``, a bias: 0 where there is none.
    ``scratch``: ``room`` numbers for each thread.
    """
    (x, ldx), (residual, ldr) = x, residual
    wide = width(like)
    first = at(pointer(scratch, like), next_task(at(counter, 8)) * room)
    edge = at(first, wide)
    own = at(edge, wide * ((rows + blocks - 1) // blocks))
    terms = steps(depth, factor)
    while True:
        task = next_task(counter)
        if task >= panels * blocks:
            break
        block = task // panels
        part, column = place_of(parts, task % panels, wide)
        weight, bias, y, ldy, outputs = (
            parts[5 * part],
            parts[5 * part + 1],
            parts[5 * part + 2],
            parts[5 * part + 3],
            parts[5 * part + 4],
        )
        columns = min(wide, outputs - column)
        begin, end = block * rows // blocks, (block + 1) * rows // blocks
        w = at(pointer(weight, factor), column * terms)
        following = w
        if packed:
            later, there = place_of(parts, task % panels + threads, wide)
            if later < 3:
                following = at(pointer(parts[5 * later], factor), there * terms)
        else:
            given = at(pointer(weight, like), column * depth)
            whole = (columns + lanes(like) - 1) // lanes(like) * lanes(like)
            pack(given, depth, columns, depth, own, whole)
            w = seen_as(at(own, depth * whole), factor)
            panel_as_factors(own, depth, whole, w, factor)
            following = w
        begin_with(first, at(pointer(bias, like), column), bias != 0, columns)
        added = at(pointer(residual, like), begin * ldr + column)
        last = (activation, at(pointer(scale, like), column), scale != 0, added, ldr, residual != 0)
        out = at(pointer(y, like), begin * ldy + column)
        x_rows = at(pointer(x, factor), begin * ldx)
        panel(end - begin, columns, terms, x_rows, ldx, w, first, out, ldy, edge, last, following)


def linear_room(rows: int, depth: int, blocks: int, wide: int, packed: bool) -> int:
    """The numbers of scratch that a thread of ``linear`` needs."""
    return wide * (1 + -(-rows // blocks)) + (0 if packed else 2 * depth * wide)


@kernel
def pair_all(counter, x: Rows, out: int, rows: int, depth: int, like: Real):
    """x (rows, depth) as pairs of bfloat16 along each row."""
    while True:
        begin = next_task(counter) * 8
        if begin >= rows:
            break
        for i in range(begin, min(begin + 8, rows)):
            pair_row(at(pointer(x[0], like), i * x[1]), depth, at(pointer(out, np.int32(0)), i * ((depth + 1) // 2)))


@kernel
def pack_panels(counter, w: int, out: int, outputs: int, depth: int, scratch: int, room: int, factor: Real, like: Real):
    """The panels of W (outputs, depth), one after the other; the last one as wide as its whole vectors."""
    wide, step = width(like), lanes(like)
    own = at(pointer(scratch, like), next_task(at(counter, 8)) * room)
    while True:
        column = next_task(counter) * wide
        if column >= outputs:
            break
        columns = min(wide, outputs - column)
        whole = (columns + step - 1) // step * step
        pack(at(pointer(w, like), column * depth), depth, columns, depth, own, whole)
        panel_as_factors(own, depth, whole, at(pointer(out, factor), column * steps(depth, factor)), factor)
