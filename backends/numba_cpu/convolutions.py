"""Convolutions as matrix products, and what follows them while a block of their output is in the cache.

Channels last, the window of an output frame is one run of memory: a row of the product's first factor, with the
stride as the distance of rows.  So nothing is copied where there is one group, no padding and no dilation; otherwise a
block's frames, or its windows, are laid out in a thread's scratch first.
"""

from __future__ import annotations

from .compiling import Address, Real, Spread, kernel, routine
from .elementwise import IDENTITY, activate, layer_norm_row
from .pointers import at, none, pointer, seen_as
from .products import begin_with, panel
from .tasks import next_task, own_room
from .tiles import as_factors, lanes, steps, width

WINDOWS = 1 << 20  # numbers of a block's windows in scratch


@routine(inline=True)
def products_of_windows(rows, outputs, depth, x, ldx, weight, bias, given, y, ldy, first, edge):
    """y = bias + windows W^T for all panels of a group.  x (rows, depth) at distances of ldx, y (rows, outputs)."""
    for column in range(0, outputs, width(x)):
        columns = min(width(x), outputs - column)
        begin_with(first, at(bias, column), given, columns)
        w, out = at(weight, column * depth), at(y, column)
        panel(rows, columns, depth, x, ldx, w, first, out, ldy, edge, (IDENTITY, none(y), none(y), 0), w, 0)


@routine(inline=True)
def clear(target, count):
    for i in range(count):
        target[i] = 0


@routine
def frame(x, frames, channels, index, target, count, factor):
    """The numbers of a frame as factors, 0 outside the signal."""
    if 0 <= index < frames:
        as_factors(at(x, index * channels), count, target, factor)
    else:
        clear(target, steps(count, factor))


@kernel
def conv1d(
    team,
    x: Address,
    batch: int,
    frames: int,
    channels: int,
    weight: Address,
    bias: Address,
    outputs: int,
    taps: int,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    normalised: int,
    norm_weight: Address,
    norm_bias: Address,
    eps: float,
    activation: int,
    y: Address,
    made: int,
    blocks: int,
    scratch: Address,
    room: int,
    factor: Real,
    like: Real,
):
    """y = conv1d(x), and activation(layer_norm(conv1d(x))) if ``normalised``.

    x (batch, frames, channels), y (batch, made, outputs), both without gaps.  ``weight``: the panels of each group,
    (outputs / groups, taps channels / groups), in ``factor``'s type: int32 for pairs of bfloat16, of which a group then
    has whole ones in a frame, and else that of ``like``.  ``bias``, ``norm_weight`` with ``norm_bias``: 0 where there
    is none.  A task is one of ``blocks`` parts of the frames that are made of one signal.
    """
    inside, across = channels // groups, outputs // groups
    part = steps(inside, factor)
    depth = taps * part
    size = (across + lanes(like) - 1) // lanes(like) * lanes(like) * depth
    first = own_room(team, scratch, room, like)
    edge = at(first, width(like))
    laid_out = seen_as(at(edge, ((made + blocks - 1) // blocks) * width(like)), factor)
    copied = dilation > 1 or groups > 1 or padding > 0 or part < inside
    while True:
        task, _ = next_task(team, batch * blocks)
        if task == batch * blocks:
            break
        place, block = task // blocks, task % blocks
        signal = at(pointer(x, like), place * frames * channels)
        begin, end = block * made // blocks, (block + 1) * made // blocks
        rows, offset = end - begin, begin * stride - padding
        out = at(pointer(y, like), (place * made + begin) * outputs)
        for group in range(groups):
            source = at(signal, group * inside)
            windows, ld = laid_out, stride * part
            if dilation > 1:
                ld = depth
                for i in range(rows):
                    for tap in range(taps):
                        target = at(laid_out, i * depth + tap * part)
                        frame(source, frames, channels, offset + i * stride + tap * dilation, target, inside, factor)
            elif copied:
                for i in range((rows - 1) * stride + taps):
                    frame(source, frames, channels, offset + i, at(laid_out, i * part), inside, factor)
            else:
                windows = seen_as(at(source, offset * channels), factor)
            w, b = at(pointer(weight, factor), group * size), at(pointer(bias, like), group * across)
            made_of = at(out, group * across)
            products_of_windows(rows, across, depth, windows, ld, w, b, bias != 0, made_of, outputs, first, edge)
        if normalised:
            scale, shift = pointer(norm_weight, like), pointer(norm_bias, like)
            for i in range(rows):
                row = at(out, i * outputs)
                layer_norm_row(row, row, outputs, scale, shift, norm_weight != 0, eps)
                activate(activation, row, outputs, 1, outputs)


def conv1d_room(rows: int, inside: int, taps: int, stride: int, dilated: bool, wide: int) -> int:
    """The numbers of scratch that a thread of ``conv1d`` needs for a block of so many rows."""
    laid_out = rows * taps if dilated else (rows - 1) * stride + taps
    return wide * (1 + rows) + laid_out * inside


@kernel
def conv2d(
    team,
    x: Spread,
    height: int,
    across: int,
    channels: int,
    weight: Address,
    bias: Address,
    outputs: int,
    kernel_i: int,
    kernel_j: int,
    stride_i: int,
    stride_j: int,
    padding: int,
    normalised: int,
    mean: Address,
    norm_weight: Address,
    norm_bias: Address,
    activation: int,
    y: Address,
    made_i: int,
    made_j: int,
    pixels: int,
    blocks: int,
    scratch: Address,
    room: int,
    like: Real,
):
    """y = conv2d(x), and activation((conv2d(x) - mean) * norm_weight + norm_bias) if ``normalised``.

    x (batch, height, across, channels): its address and the distances along each axis; y (pixels, outputs) without
    gaps, its pixels counted through the batch.  A task is one of ``blocks`` parts of the pixels.
    """
    x, x_b, x_i, x_j, x_c = x
    depth = kernel_i * kernel_j * channels
    first = own_room(team, scratch, room, like)
    edge = at(first, width(like))
    laid_out = at(edge, ((pixels + blocks - 1) // blocks) * width(like))
    while True:
        task, _ = next_task(team, blocks)
        if task == blocks:
            break
        begin, end = task * pixels // blocks, (task + 1) * pixels // blocks
        for pixel in range(begin, end):
            b, place = pixel // (made_i * made_j), pixel % (made_i * made_j)
            top, left = place // made_j * stride_i - padding, place % made_j * stride_j - padding
            target = at(laid_out, (pixel - begin) * depth)
            for i in range(top, top + kernel_i):
                for j in range(left, left + kernel_j):
                    if 0 <= i < height and 0 <= j < across:
                        source = at(pointer(x, like), b * x_b + i * x_i + j * x_j)
                        for c in range(channels):
                            target[c] = source[c * x_c]
                    else:
                        clear(target, channels)
                    target = at(target, channels)
        rows, out = end - begin, at(pointer(y, like), begin * outputs)
        w, given = pointer(weight, like), pointer(bias, like)
        products_of_windows(rows, outputs, depth, laid_out, depth, w, given, bias != 0, out, outputs, first, edge)
        if normalised:
            middle, scale, shift = pointer(mean, like), pointer(norm_weight, like), pointer(norm_bias, like)
            for i in range(rows):
                row = at(out, i * outputs)
                for j in range(outputs):
                    row[j] = (row[j] - middle[j]) * scale[j] + shift[j]
                activate(activation, row, outputs, 1, outputs)


def conv2d_room(rows: int, depth: int, wide: int) -> int:
    """The numbers of scratch that a thread of ``conv2d`` needs for a block of so many pixels."""
    return wide * (1 + rows) + rows * depth
