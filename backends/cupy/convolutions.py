"""Convolutions on a card, most of them as matrix products of their windows.

Channels last, the window of a frame is one run of memory, and that of the next frame begins ``stride`` frames on.  So a
convolution over time of one group, with no padding and no dilation, is a product whose first factor is a view of the
signal, with rows that may overlap.  A padded signal is copied with its zeros; other windows are laid out, some at a
time.  Two have kernels of their own: a signal of one channel (one_channel.cu), and several groups (grouped.cu).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from d2v_ref.nn import BatchNorm2d, Conv1d, Conv2d, LayerNorm
from d2v_ref.ops.definitions import check_conv1d, check_conv2d, check_conv_transpose2d

from . import maps, rows
from .maps import Pair, Windows, vectors, windows
from .rows import own, pointer

if TYPE_CHECKING:
    from .device import Device

Array = Any

WINDOWS = 1 << 25  # numbers of windows that are laid out at a time
WARPS, SUMS = 4, 64  # of one_channel.cu: warps of a block, and outputs of a frame that a lane can have
STAGES = 4  # of grouped.cu


class Packed:
    """A convolution's weight, kept as the matrix (N, K) that a product takes.

    Attributes:
        shape, dtype: of the weight as torch has it.
        matrix: (O, k C / g) or (O, kh kw C); (k k O, C) of a transposed convolution.
    """

    def __init__(self, device: Device, weight: Array, axes: tuple[int, ...], depth: int) -> None:
        self.shape, self.dtype, self._axes = weight.shape, weight.dtype, axes
        moved = own(device, "a convolution", weight.transpose(axes))
        self._moved, self.matrix = moved.shape, moved.reshape(-1, depth)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes

    def unpacked(self) -> Array:
        """The weight as torch has it: a view."""
        return self.matrix.reshape(self._moved).transpose(tuple(int(axis) for axis in np.argsort(self._axes)))


def packed_conv1d(device: Device, weight: Array | Packed) -> Packed:
    """(O, C / g, k) as (O, k C / g)."""
    if isinstance(weight, Packed):
        return weight
    return Packed(device, weight, (0, 2, 1), math.prod(weight.shape[1:]))


def packed_conv2d(device: Device, weight: Array | Packed) -> Packed:
    """(O, C, kh, kw) as (O, kh kw C)."""
    if isinstance(weight, Packed):
        return weight
    return Packed(device, weight, (0, 2, 3, 1), math.prod(weight.shape[1:]))


def packed_conv_transpose2d(device: Device, weight: Array | Packed) -> Packed:
    """(C, O, k, k) as (k k O, C)."""
    if isinstance(weight, Packed):
        return weight
    return Packed(device, weight, (2, 3, 1, 0), weight.shape[0])


# ---- over time


class Window(NamedTuple):
    """Which frames of a signal a convolution makes a frame of."""

    taps: int
    stride: int
    padding: int
    dilation: int

    def span(self, made: int) -> int:
        """How many frames so many, one after the other, are made of."""
        return (made - 1) * self.stride + (self.taps - 1) * self.dilation + 1

    def made(self, frames: int) -> int:
        """How many frames are made of a signal."""
        return (frames + 2 * self.padding - self.span(1)) // self.stride + 1


def conv1d(
    device: Device,
    x: Array,
    weight: Array | Packed,
    bias: Array = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Array:
    """``Ops.conv1d``."""
    check_conv1d("conv1d", x, weight, bias, padding, dilation, groups)
    return _conv1d(device, x, weight, bias, Window(weight.shape[2], stride, padding, dilation), groups)


def conv_norm_act(device: Device, x: Array, conv: Conv1d, norm: LayerNorm, activation: str) -> Array:
    """``Ops.conv_norm_act``, in one kernel for a signal of one channel."""
    check_conv1d("conv_norm_act", x, conv.weight, conv.bias, conv.padding, 1, conv.groups)
    code = rows.activation_code(activation)
    window = Window(conv.weight.shape[2], conv.stride, conv.padding, 1)
    packs = _packs(device, x, conv.weight, window)
    if not packs:
        y = _conv1d(device, x, conv.weight, conv.bias, window, conv.groups)
        return rows.layer_norm(device, y, norm.weight, norm.bias, norm.eps, activation)
    gelu, identity = (code == rows.activation_code(name) for name in ("gelu", "linear"))
    y = _one_channel(device, x, conv.weight, conv.bias, window, packs, norm, gelu)
    return y if gelu or identity else rows.elementwise(device, code, y, out=y)


def _conv1d(device: Device, x: Array, weight: Array | Packed, bias: Array, window: Window, groups: int) -> Array:
    packs = _packs(device, x, weight, window)
    if packs:
        return _one_channel(device, x, weight, bias, window, packs)
    x, weight = own(device, "conv1d", x), packed_conv1d(device, weight)
    bias = None if bias is None else own(device, "conv1d", bias)
    outputs, inside, _ = weight.shape
    y = device.empty((x.shape[0], window.made(x.shape[1]), outputs))
    if not y.size or (groups > 1 and _grouped(device, x, weight, bias, window, groups, y)):
        return y
    across = outputs // groups
    for group in range(groups):
        own_inputs, own_outputs = (slice(group * n, (group + 1) * n) for n in (inside, across))
        term = None if bias is None else bias[own_outputs]
        _products(device, x[:, :, own_inputs], weight.matrix[own_outputs], term, window, y[:, :, own_outputs])
    return y


def _products(device: Device, x: Array, matrix: Array, bias: Array, window: Window, y: Array) -> None:
    """y (B, T', O) = the windows of x (B, T, C) times matrix (O, k C), transposed, + bias."""
    taps, stride, padding, dilation = window
    batch, made, outputs = y.shape
    frames, channels = x.shape[1:]
    if taps > 1 and dilation > 1:
        flat = device.xp.lib.stride_tricks.as_strided(y, (batch * made, outputs), y.strides[1:])
        which = Windows((taps, 1), (stride, 1), (padding, 0), dilation, (made, 1))
        _product_of_windows(device, x[:, :, None], which, matrix, bias, flat)
        return
    if padding or x.strides[1] != channels * x.itemsize:  # of several groups
        frames += 2 * padding
        which = Windows((1, 1), (1, 1), (padding, 0), 1, (frames, 1))
        x = windows(device, x[:, :, None], which, 0, batch * frames).reshape(batch, frames, channels)
    steps = (frames * channels, stride * channels, 1)
    strides = tuple(step * x.itemsize for step in steps)
    runs = device.xp.lib.stride_tricks.as_strided(x, (batch, made, taps * channels), strides)
    device.product(runs, matrix, y, bias)


def _packs(device: Device, x: Array, weight: Array | Packed, window: Window) -> int:
    """The variant of one_channel.cu that computes this convolution: packs of outputs of a lane; 0 if none does."""
    lanes = 16 // device.storage.itemsize
    packs = 1 << (-(-weight.shape[0] // (32 * lanes)) - 1).bit_length()
    fits = packs * lanes <= SUMS and _one_channel_shared(packs * lanes, window) <= device.limits.shared_memory
    return packs if x.shape[2] == 1 and fits else 0


def _frames_of_warp(outputs_of_lane: int) -> int:
    return min(8, SUMS // outputs_of_lane)


def _one_channel_shared(outputs_of_lane: int, window: Window) -> int:
    """Bytes of shared memory that a block takes."""
    filters = window.taps * 32 * outputs_of_lane
    return 4 * (filters + window.span(WARPS * _frames_of_warp(outputs_of_lane)))


def _one_channel(
    device: Device,
    x: Array,
    weight: Array | Packed,
    bias: Array,
    window: Window,
    packs: int,
    norm: LayerNorm | None = None,
    gelu: bool = False,
) -> Array:
    """conv1d, a LayerNorm and a GELU of a signal (B, T, 1) -> (B, T', O)."""
    x, weight = own(device, "conv1d", x), packed_conv1d(device, weight)
    vectors_of = (bias, None, None) if norm is None else (bias, norm.weight, norm.bias)
    bias, scale, shift = (pointer(None if v is None else own(device, "conv1d", v)) for v in vectors_of)
    batch, frames, _ = x.shape
    made, outputs = window.made(frames), weight.shape[0]
    y = device.empty((batch, made, outputs))
    if y.size:
        of_lane = packs * 16 // x.itemsize
        pieces = batch * -(-made // (WARPS * _frames_of_warp(of_lane)))
        grid = (min(pieces, 4 * device.limits.multiprocessors),)
        launch = device.kernel("one_channel", "one_channel", PACKS=packs)
        arguments = (
            *(x, np.int32(batch), np.int32(frames), weight.matrix, bias),
            *map(np.int32, (outputs, *window, norm is not None)),
            *(scale, shift, np.float32(0 if norm is None else norm.eps), np.int32(gelu), y, np.int32(made)),
        )
        launch(grid, (32 * WARPS,), arguments, shared_mem=_one_channel_shared(of_lane, window))
    return y


def _grouped(device: Device, x: Array, weight: Packed, bias: Array, window: Window, groups: int, y: Array) -> bool:
    """conv1d of several groups in one kernel; False if a block's window is too large for its shared memory."""
    inside, (batch, made, outputs) = weight.shape[1], y.shape
    across = outputs // groups
    size = x.itemsize
    # A chunk of channels has at most 128 bytes, in 32's, and a part of the outputs at most 64 numbers, in 16's.
    chunks, parts = -(-inside * size // 128), -(-across // 64)
    chunk = -(-inside * size // (32 * chunks)) * 32 // size
    pairs = -(-across // (16 * parts))
    blocks = batch * -(-made // 64) * groups * parts
    for tiles in (2, 1) if blocks >= 4 * device.limits.multiprocessors else (1,):
        shared = (window.span(64 * tiles) + STAGES * 16 * pairs) * (chunk * size + 16)
        if shared <= device.limits.shared_memory:
            mma = int(device.format != "float32")
            launch = device.kernel("grouped", "grouped", PAIRS=pairs, TILES=tiles, MMA=mma)
            arguments = (
                *(x, *map(np.int32, (x.shape[1], groups, inside)), weight.matrix, pointer(bias)),
                *map(np.int32, (across, *window)),
                *(y, np.int32(made), np.int32(chunk), vectors(x[:, :, :inside], weight.matrix[:, :inside])),
            )
            grid = (batch * -(-made // (64 * tiles)), groups * parts)
            launch(grid, (128,), arguments, shared_mem=shared)
            return True
    return False


# ---- of maps


def conv2d(
    device: Device, x: Array, weight: Array | Packed, bias: Array = None, stride: Pair = (1, 1), padding: int = 0
) -> Array:
    """``Ops.conv2d``."""
    check_conv2d(x, weight, bias, padding)
    weight = packed_conv2d(device, weight)
    outputs, channels, *kernel = weight.shape
    pixel = (*kernel, *stride, padding) == (1, 1, 1, 1, 0)  # a window is a pixel
    if pixel or x.dtype != device.storage:
        x = own(device, "conv2d", x)
    bias = None if bias is None else own(device, "conv2d", bias)
    height, width = ((n + 2 * padding - k) // step + 1 for n, k, step in zip(x.shape[1:3], kernel, stride, strict=True))
    y = device.empty((x.shape[0], height, width, outputs))
    if y.size and pixel:
        device.product(x.reshape(-1, channels), weight.matrix, y.reshape(-1, outputs), bias)
    elif y.size:
        which = Windows((kernel[0], kernel[1]), stride, (padding, padding), 1, (height, width))
        _product_of_windows(device, x, which, weight.matrix, bias, y.reshape(-1, outputs))
    return y


def _product_of_windows(device: Device, x: Array, which: Windows, matrix: Array, bias: Array, y: Array) -> None:
    """y (B H' W', O) = windows of x (B, H, W, C) times matrix (O, kh kw C), transposed, + bias."""
    step = max(1, WINDOWS // matrix.shape[1])
    for begin in range(0, len(y), step):
        end = min(begin + step, len(y))
        device.product(windows(device, x, which, begin, end), matrix, y[begin:end], bias)


def conv2d_norm_act(device: Device, x: Array, conv: Conv2d, norm: BatchNorm2d, activation: str) -> Array:
    """``Ops.conv2d_norm_act``."""
    y = conv2d(device, x, conv.weight, conv.bias, conv.stride, conv.padding)
    statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return maps.batch_norm(device, y, *statistics, norm.eps, activation, out=y)


def conv_transpose2d(device: Device, x: Array, weight: Array | Packed, bias: Array) -> Array:
    """``Ops.conv_transpose2d``: a product makes all tiles, and a kernel puts them where they belong."""
    check_conv_transpose2d(x, weight)
    x, weight = own(device, "conv_transpose2d", x), packed_conv_transpose2d(device, weight)
    channels, outputs, side, _ = weight.shape
    batch, height, width, _ = x.shape
    made = device.empty((batch * height * width, side**2 * outputs))
    if made.size:
        terms = device.empty((side**2, outputs))
        terms[...] = bias
        device.product(x.reshape(-1, channels), weight.matrix, made, terms.reshape(-1))
    return maps.tiles(device, made, batch, height, width, side)
