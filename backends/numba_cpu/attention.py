"""Attention as one operation: softmax(q k^T / sqrt(d) + bias) v for a head and a block of queries at a time.

The scores of a block stay in the second-level cache between the product with the keys, the softmax and the product
with the values; they are never an array in memory, unless the probabilities are asked for.
"""

from __future__ import annotations

import numpy as np

from .compiling import Address, Real, Rows, Spread, kernel, routine
from .elementwise import exp_sum, largest
from .pointers import at, cast, lowest, none, pointer, seen_as
from .tasks import next_task, own_room
from .tiles import ROWS, lanes, pack, panel_as_factors, panel_to_fill, rows_as_factors, steps, tile, width

QUERIES = 48  # in a block


@routine
def strips(rows, columns, depth, a, lda, b, c, ldc, zero):
    """C = A B for one panel, its columns in whole vectors."""
    count = (rows + ROWS - 1) // ROWS
    for strip in range(count):
        begin = strip * rows // count
        height = (strip + 1) * rows // count - begin
        rows_of_a, rows_of_c = at(a, begin * lda), at(c, begin * ldc)
        tile(
            height,
            columns // lanes(a),
            depth,
            rows_of_a,
            lda,
            b,
            columns,
            rows_of_c,
            ldc,
            zero,
            0,
            b,
            none(c),
            none(c),
            0,
        )


@routine(inline=True)
def times_panels(rows, outputs, depth, a, lda, panels, c, ldc, zero):
    """c = a b, of a b that is packed in panels; beyond its columns, up to a whole vector, c is 0."""
    for column in range(0, outputs, width(a)):
        columns = (min(width(a), outputs - column) + lanes(a) - 1) // lanes(a) * lanes(a)
        strips(rows, columns, depth, a, lda, at(panels, column * depth), at(c, column), ldc, zero)


@routine(inline=True)
def pack_keys(k, ldk, keys, size, panels, own, factor):
    """Panels of k^T, for k (keys, size)."""
    terms = steps(size, factor)
    for key in range(0, keys, width(k)):
        count = min(width(k), keys - key)
        columns = (count + lanes(k) - 1) // lanes(k) * lanes(k)
        panel = at(panels, key * terms)
        filled = panel_to_fill(own, panel, factor)
        pack(at(k, key * ldk), ldk, count, size, filled, columns)
        panel_as_factors(filled, size, columns, panel, factor)


@routine(inline=True)
def pack_values(v, ldv, keys, size, panels, own, factor):
    """Panels of v (keys, size) over its columns, the last one filled with zeros to a whole vector."""
    terms = steps(keys, factor)
    for column in range(0, size, width(v)):
        count = min(width(v), size - column)
        columns = (count + lanes(v) - 1) // lanes(v) * lanes(v)
        panel = at(panels, column * terms)
        filled = panel_to_fill(own, panel, factor)
        for key in range(keys):
            row, mine = at(v, key * ldv + column), at(filled, key * columns)
            for j in range(count):
                mine[j] = row[j]
            for j in range(count, columns):
                mine[j] = 0
        panel_as_factors(filled, keys, columns, panel, factor)


@routine(inline=True)
def add_bias(scores, keys, scale, bias, stride):
    """scores = scale * scores + bias."""
    if stride == 1:
        for j in range(keys):
            scores[j] = scores[j] * scale + bias[j]
    else:
        for j in range(keys):
            scores[j] = scores[j] * scale + bias[j * stride]


@routine(inline=True)
def hide(scores, keys, scale, mask, stride):
    """scores = scale * scores where the mask is True, and the lowest number elsewhere."""
    least = lowest(scores)
    if stride == 1:
        for j in range(keys):
            scores[j] = scores[j] * scale if mask[j] else least
    else:
        for j in range(keys):
            scores[j] = scores[j] * scale if mask[j * stride] else least


@kernel
def attention(
    team,
    q: Rows,
    k: Rows,
    v: Rows,
    batch: int,
    heads: int,
    length: int,
    keys: int,
    size: int,
    scale: float,
    causal: int,
    bias: Spread,
    mask: Spread,
    factors: Spread,
    probs: Address,
    context: Address,
    pieces: int,
    scratch: Address,
    room: int,
    factor: Real,
    like: Real,
):
    """context = softmax(scale q k^T + bias) v, and the probabilities where ``probs`` is not 0.

    q and context (batch, length, heads size), k and v (batch, keys, heads size).  bias, mask (bytes) and factors of the
    probabilities: an address, 0 where there is none, and the distances of batch, head, query and key, which are 0 where
    it is broadcast.  A task is a head and one of ``pieces`` parts of the queries.
    """
    (q, ldq), (k, ldk), (v, ldv) = q, k, v
    bias, bias_b, bias_h, bias_t, bias_s = bias
    mask, mask_b, mask_h, mask_t, mask_s = mask
    factors, factors_b, factors_h, factors_t, factors_s = factors
    step, wide = lanes(like), width(like)
    size_up, keys_up = (size + step - 1) // step * step, (keys + step - 1) // step * step
    lds = keys_up + step  # a step more: rows at powers of two would share their cache lines
    size_terms, key_terms = steps(size, factor), steps(keys, factor)
    zero = own_room(team, scratch, room, like)
    own = at(zero, wide)
    packed_k = seen_as(at(own, max(size, keys) * wide), factor)
    packed_v = at(packed_k, keys_up * size)
    q_terms = at(packed_v, keys * size_up)
    p_terms = at(q_terms, QUERIES * size)
    scores = seen_as(at(p_terms, QUERIES * lds), like)
    edge = at(scores, QUERIES * lds)
    inverse = at(edge, QUERIES * size_up)
    for j in range(wide):
        zero[j] = 0
    one, unscaled = cast(1.0, like), cast(scale, like)
    width_all = heads * size
    ready, tasks = -1, batch * heads * pieces
    while True:
        task, _ = next_task(team, tasks)
        if task == tasks:
            break
        place, piece = task // pieces, task % pieces
        b, h = place // heads, place % heads
        if place != ready:
            pack_keys(at(pointer(k, like), b * keys * ldk + h * size), ldk, keys, size, packed_k, own, factor)
            pack_values(at(pointer(v, like), b * keys * ldv + h * size), ldv, keys, size, packed_v, own, factor)
            ready = place
        for begin in range(piece * length // pieces, (piece + 1) * length // pieces, QUERIES):
            rows = min(QUERIES, (piece + 1) * length // pieces - begin)
            mine = at(pointer(q, like), (b * length + begin) * ldq + h * size)
            given, ldg = rows_as_factors(mine, ldq, rows, size, q_terms, factor)
            times_panels(rows, keys, size_terms, given, ldg, packed_k, scores, lds, zero)
            for i in range(rows):
                row, t, left = at(scores, i * lds), begin + i, unscaled
                if bias:
                    added = at(pointer(bias, like), b * bias_b + h * bias_h + t * bias_t)
                    add_bias(row, keys, left, added, bias_s)
                    left = one
                if mask:
                    seen = at(pointer(mask, np.uint8(0)), b * mask_b + h * mask_h + t * mask_t)
                    hide(row, keys, left, seen, mask_s)
                    left = one
                if causal:
                    if left != one:
                        for j in range(keys):
                            row[j] *= left
                        left = one
                    for j in range(max(0, t + keys - length + 1), keys):
                        row[j] = lowest(row)
                total = exp_sum(row, keys, left, largest(row, keys) * left)
                inverse[i] = one / total
                if factors or probs:
                    for j in range(keys):
                        row[j] *= inverse[i]
                    inverse[i] = one
                if factors:
                    kept = at(pointer(factors, like), b * factors_b + h * factors_h + t * factors_t)
                    for j in range(keys):
                        row[j] *= kept[j * factors_s]
                if probs:
                    shown = at(pointer(probs, like), (place * length + t) * keys)
                    for j in range(keys):
                        shown[j] = row[j]
            out = at(pointer(context, like), (b * length + begin) * width_all + h * size)
            target, ldt = (out, width_all) if size_up == size else (edge, size_up)
            weights, ldw = rows_as_factors(scores, lds, rows, keys, p_terms, factor)
            times_panels(rows, size, key_terms, weights, ldw, packed_v, target, ldt, zero)
            for i in range(rows):
                row, weighted = at(out, i * width_all), at(target, i * ldt)
                for j in range(size):
                    row[j] = weighted[j] * inverse[i]


def attention_room(keys: int, size: int, lanes_: int, wide: int) -> int:
    """The numbers of scratch that a thread of ``attention`` needs."""
    keys_up, size_up = (-(-n // lanes_) * lanes_ for n in (keys, size))
    panels = max(size, keys) * wide + keys_up * size + keys * size_up
    return wide + panels + QUERIES * (size + 2 * (keys_up + lanes_) + size_up + 1)
