"""Matrix products: y = residual + scale * activation(x W^T + b), panel by panel of packed weights.

The second factor is cut into panels of ``width`` columns, each stored k by k, so that the tile reads it from front to
back and a panel stays in the second-level cache while the rows of x pass by.  A task is a panel and a block of rows;
it owns its part of y, and every number of y is summed over k in one order: the result does not depend on the threads.
"""

from __future__ import annotations

from numba import types
from numba.extending import overload

from .compiling import SHARES, Address, Real, Rows, kernel, routine
from .elementwise import IDENTITY, activate
from .pointers import at, beyond, given, none, pointer, seen_as
from .tasks import add_up, first_task, next_part, next_task, own_room
from .tiles import (
    AHEAD,
    LINE_VECTORS,
    ROWS,
    lanes,
    pack,
    panel_as_factors,
    panel_to_fill,
    rows_as_factors,
    steps,
    tile,
    width,
)

DEPTH = 3072  # the longest part of a sum that is done at a time: a panel of it takes 0.75 MB, less than an L2 cache
BLOCK = 256  # rows of x in a task


@routine(inline=True)
def finish(y, ldy, rows, columns, activation, scale, residual, ldr):
    """y = residual + scale * activation(y), in place, while it is in the first-level cache."""
    activate(activation, y, ldy, rows, columns)
    for i in range(rows):
        row = at(y, i * ldy)
        if given(scale):
            for j in range(columns):
                row[j] *= scale[j]
        if given(residual):
            other = at(residual, i * ldr)
            for j in range(columns):
                row[j] += other[j]


@routine(inline=True)
def panel(rows, columns, depth, x, ldx, w, first, y, ldy, edge, finishing, following, size_of_following):
    """y = finishing(first + x w) for some rows and one panel's columns.

    w (depth, columns rounded up to whole vectors), first: as many numbers.  ``edge``: room for rows x width numbers,
    for where a panel ends within a vector, so that nothing is written beyond y's columns.  ``finishing``: activation,
    scale, residual and the distance of its rows; null pointers where there is none.  ``following``: the numbers that
    are fetched meanwhile.
    """
    activation, scale, residual, ldr = finishing
    step = lanes(x)
    vectors = (columns + step - 1) // step
    ragged = columns != vectors * step
    out, ldo = (edge, width(x)) if ragged else (y, ldy)
    strips = (rows + ROWS - 1) // ROWS
    done = 0
    while True:  # once at least: a sum of nothing is what it begins with
        part = min(DEPTH, depth - done)
        last = done + part == depth
        # What needs no activation is finished in registers.
        in_registers = last and activation == IDENTITY and not ragged
        for strip in range(strips):
            begin = strip * rows // strips
            count = (strip + 1) * rows // strips - begin
            mine = at(out, begin * ldo)
            start, lds = (first, 0) if done == 0 else (mine, ldo)
            here = at(x, begin * ldx + done)
            own = at(w, done * vectors * step)
            # A panel that the next task of this thread will probably need comes from memory while this one computes:
            # some cache lines at each k, the first lines at the first strips.
            fetched = AHEAD * (strip * depth + done) * lanes(y) * LINE_VECTORS
            ahead = at(following, fetched) if fetched < size_of_following else own
            added = at(residual, begin * ldr) if given(residual) else residual
            factor, addend = (scale, added) if in_registers else (none(y), none(y))
            at_ab = here, ldx, own, vectors * step
            tile(count, vectors, part, *at_ab, mine, ldo, start, lds, ahead, factor, addend, ldr)
            if last and not in_registers:
                finish(mine, ldo, count, columns, activation, scale, added, ldr)
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


Part = tuple[Address, Address, Address, int, int]
"""Of a weight: its address, its bias', the result's with the distance of its rows, and its outputs."""


@routine(inline=True)
def place_of(parts, panel_index, wide):
    """Which weight the panel of this number is of, counted through all, and its first column; weight 3: none.

    parts: those of three weights, one after the other.
    """
    part = 0
    while part < 3:
        panels = (parts[5 * part + 4] + wide - 1) // wide
        if panel_index < panels:
            break
        panel_index -= panels
        part += 1
    return part, panel_index * wide


def all_as_factors(team, x, ld, rows, depth, out, factor):
    """All rows as factors, and their distance, as ``rows_as_factors``; what there is to do the threads share."""
    raise NotImplementedError("is compiled into kernels")


@overload(all_as_factors)
def _all_as_factors(team, x, ld, rows, depth, out, factor):
    def floats(team, x, ld, rows, depth, out, factor):
        return x, ld

    def pairs(team, x, ld, rows, depth, out, factor):
        terms, (counters, thread, threads) = (depth + 1) // 2, team
        done = at(counters, 2 * SHARES)
        while True:
            begin, end = next_part((at(counters, SHARES), thread, threads), rows, 4)
            if begin == end:
                break
            rows_as_factors(at(x, begin * ld), ld, end - begin, depth, at(out, begin * terms), factor)
            add_up(done, end - begin)
        while add_up(done, 0) < rows:  # whoever has begun with some rows will end
            pass
        return out, terms

    return pairs if factor == types.int32 else floats


@kernel
def linear(
    team,
    x: Rows,
    pairs: Address,
    part_0: Part,
    part_1: Part,
    part_2: Part,
    packed: int,
    activation: int,
    scale: Address,
    residual: Rows,
    rows: int,
    depth: int,
    panels: int,
    blocks: int,
    afterwards: tuple[int, int, int, int],
    scratch: Address,
    room: int,
    factor: Real,
    like: Real,
):
    """y = residual + scale * activation(x W^T + b), for up to three W of one x.

    x (rows, depth), y and residual (rows, outputs).  ``factor``: the type of the panels, int32 for pairs of bfloat16,
    which x becomes at ``pairs``, and else that of ``like``, the result.  The weights are panels if ``packed``, else W
    (outputs, depth) itself, of which a thread packs a panel when it needs it.  ``scale``, ``residual``, a bias: 0 where
    there is none.  ``afterwards``: of the product that will probably be next the address of its panels, the numbers
    in one, how many there are, and its blocks; with its last task here a thread fetches the first that will be its own
    there, which may be gone.  ``scratch``: ``room`` numbers for each thread.  A task is a panel and one of ``blocks``
    parts of the rows.
    """
    (x, ldx), (residual, ldr) = x, residual
    parts = part_0 + part_1 + part_2
    wide = width(like)
    given_x, at_pairs = pointer(x, like), pointer(pairs, factor)
    x_factors, ldx = all_as_factors(team, given_x, ldx, rows, depth, at_pairs, factor)
    first = own_room(team, scratch, room, like)
    edge = at(first, wide)
    own = at(edge, wide * ((rows + blocks - 1) // blocks))
    terms = steps(depth, factor)
    next_panels, next_size, next_count, next_blocks = afterwards
    first_of_next = first_task(team, next_count * next_blocks) % next_count * next_size
    tasks = panels * blocks
    while True:
        task, later = next_task(team, tasks)
        if task == tasks:
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
        following, size = w, 0
        if packed:
            if later < tasks:
                part, there = place_of(parts, later % panels, wide)
                following, size = at(pointer(parts[5 * part], factor), there * terms), wide * terms
            else:
                following, size = at(pointer(next_panels, factor), first_of_next), next_size
        else:
            given = at(pointer(weight, like), column * depth)
            whole = (columns + lanes(like) - 1) // lanes(like) * lanes(like)
            w = seen_as(at(own, depth * whole), factor)
            filled = panel_to_fill(own, w, factor)
            pack(given, depth, columns, depth, filled, whole)
            panel_as_factors(filled, depth, whole, w, factor)
        begin_with(first, at(pointer(bias, like), column), bias != 0, columns)
        added = beyond(residual, begin * ldr + column, like)
        last = (activation, beyond(scale, column, like), added, ldr)
        out = at(pointer(y, like), begin * ldy + column)
        x_rows = at(x_factors, begin * ldx)
        panel(end - begin, columns, terms, x_rows, ldx, w, first, out, ldy, edge, last, following, size)


def linear_room(rows: int, depth: int, blocks: int, wide: int, packed: bool) -> int:
    """The numbers of scratch that a thread of ``linear`` needs."""
    return wide * (1 + -(-rows // blocks)) + (0 if packed else 2 * depth * wide)


@kernel
def pack_panels(
    team, w: Address, out: Address, outputs: int, depth: int, scratch: Address, room: int, factor: Real, like: Real
):
    """The panels of W (outputs, depth), one after the other; the last one as wide as its whole vectors."""
    wide, step = width(like), lanes(like)
    own = own_room(team, scratch, room, like)
    while True:
        column, end = next_part(team, outputs, wide)
        if column == end:
            break
        columns = end - column
        whole = (columns + step - 1) // step * step
        place = at(pointer(out, factor), column * steps(depth, factor))
        filled = panel_to_fill(own, place, factor)
        pack(at(pointer(w, like), column * depth), depth, columns, depth, filled, whole)
        panel_as_factors(filled, depth, whole, place, factor)
