"""Maps, channels last, (B, H, W, C): normalisation, pooling and other resolutions, on a card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from d2v_ref.ops.definitions import check_batch_norm, check_map, check_max_pool2d, check_resize

from .rows import activation_code, own

if TYPE_CHECKING:
    from .device import Device

Array = Any
Pair = tuple[int, int]

THREADS = 256  # of a block whose rows have a pixel each
SPLITS = 16  # threads that add up one channel, as maps.cu has it


def vectors(*arrays: Array) -> np.int32:
    """Whether every row (..., C) of these arrays is made of 16 bytes at multiples of 16."""
    return np.int32(
        all(
            x.data.ptr % 16 == 0
            and x.shape[-1] * x.itemsize % 16 == 0
            and x.strides[-1] == x.itemsize
            and all(step % 16 == 0 for step in x.strides[:-1])
            for x in arrays
        )
    )


def over_pixels(pixels: int, numbers: int, whole: np.int32, itemsize: int) -> tuple[tuple[int], Pair]:
    """Grid and block whose rows of threads have a pixel of so many numbers each."""
    packs = numbers * itemsize // 16 if whole else numbers
    wide = min(THREADS, 1 << (packs - 1).bit_length())
    rows = THREADS // wide
    return (-(-pixels // rows),), (wide, rows)


class Windows(NamedTuple):
    """The windows of a convolution: sizes along H and W, in tuples; ``dilation`` along H; ``made``: H' and W'."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: int
    made: Pair


def windows(device: Device, x: Array, which: Windows, begin: int, end: int) -> Array:
    """What a convolution's weight meets at the pixels begin ... end: (end - begin, kh kw C), 0 outside of the map.

    x (B, H, W, C) may be any view.  The pixels are counted through the batch.
    """
    kernel, stride, padding, dilation, made = which
    depth = kernel[0] * kernel[1] * x.shape[3]
    y = device.empty((end - begin, depth))
    pixel = x.shape[3] * x.itemsize
    if padding[1] == 0 and x.strides[2:] == (pixel, x.itemsize):  # a window's row is one run of memory, as if one pixel
        shape, steps = (*x.shape[:2], made[1], depth // kernel[0]), (*x.strides[:2], stride[1] * pixel, x.itemsize)
        x = device.xp.lib.stride_tricks.as_strided(x, shape, steps)
        kernel, stride = (kernel[0], 1), (stride[0], 1)
    whole = vectors(x, y[:, : x.shape[3]])
    grid, block = over_pixels(end - begin, depth, whole, x.itemsize)
    distances = (np.int64(step // x.itemsize) for step in x.strides)
    sizes = (*x.shape[1:], *kernel, *stride, *padding, dilation, *made)
    arguments = (x, *distances, *map(np.int32, sizes), np.int64(begin), np.int64(end), y, whole)
    device.kernel("maps", "windows")(grid, block, arguments)
    return y


def tiles(device: Device, x: Array, batch: int, height: int, across: int, side: int) -> Array:
    """Tiles (B H W, side side C) put where they belong: (B, side H, side W, C)."""
    channels = x.shape[1] // side**2
    y = device.empty((batch, side * height, side * across, channels))
    _by_pixel(device, "tiles", y, (height, across, side, channels), x[:, :channels], x)
    return y


def _by_pixel(device: Device, name: str, y: Array, sizes: tuple[int, ...], rows: Array, x: Array) -> None:
    """Launches a kernel (x, pixels, *sizes, y, vectors) in which a row of threads has a pixel of y each."""
    whole = vectors(rows, y)
    pixels = y.size // y.shape[-1] if y.size else 0
    if pixels:
        grid, block = over_pixels(pixels, y.shape[-1], whole, y.itemsize)
        device.kernel("maps", name)(grid, block, (x, np.int64(pixels), *map(np.int32, sizes), y, whole))


def batch_norm(
    device: Device,
    x: Array,
    mean: Array,
    var: Array,
    weight: Array,
    bias: Array,
    eps: float,
    activation: str = "linear",
    out: Array = None,
) -> Array:
    """activation(``Ops.batch_norm``).  ``out`` is where it goes, and may be x; a new array if None."""
    check_batch_norm(x, weight)
    x, *vectors_of = (own(device, "batch_norm", each) for each in (x, mean, var, weight, bias))
    y = device.empty(x.shape) if out is None else out
    if y.size:
        channels, whole = x.shape[-1], vectors(x, y)
        rows = y.size // channels
        grid, block = over_pixels(rows, channels, whole, x.itemsize)
        grid = (min(grid[0], 8 * device.limits.multiprocessors),)
        scalars = (np.float32(eps), np.int32(activation_code(activation)))
        arguments = (x, np.int64(rows), np.int32(channels), *vectors_of, *scalars, y, whole)
        device.kernel("maps", "batch_norm")(grid, block, arguments)
    return y


def max_pool2d(device: Device, x: Array, size: int) -> Array:
    """``Ops.max_pool2d``."""
    check_max_pool2d(x, size)
    x = own(device, "max_pool2d", x)
    batch, height, width, channels = x.shape
    y = device.empty((batch, height // size, width // size, channels))
    _by_pixel(device, "max_pool", y, (height, width, channels, size), x, x)
    return y


def adaptive_avg_pool2d(device: Device, x: Array, size: int) -> Array:
    """``Ops.adaptive_avg_pool2d``."""
    check_map("adaptive_avg_pool2d", x)
    x = own(device, "adaptive_avg_pool2d", x)
    batch, *shape = x.shape
    y = device.empty((batch, size, size, shape[2]))
    if y.size:
        grid = (batch * size**2, -(-shape[2] // 32))
        device.kernel("maps", "average_pool")(grid, (32, SPLITS), (x, *map(np.int32, (*shape, size)), y))
    return y


def resize(device: Device, x: Array, size: Pair, mode: str) -> Array:
    """``Ops.resize``; the kernels are named as the modes."""
    check_resize(x, size, mode)
    x = own(device, "resize", x)
    y = device.empty((x.shape[0], *size, x.shape[3]))
    _by_pixel(device, mode, y, (*x.shape[1:], *size), x, x)
    return y


def statistics_pooling(device: Device, x: Array, lengths: list[int]) -> Array:
    """``Ops.statistics_pooling``."""
    x = own(device, "statistics_pooling", x)
    batch, frames, channels = x.shape
    counts = [len(range(frames)[:length]) for _, length in zip(range(batch), lengths, strict=True)]
    y = device.empty((batch, 2 * channels))
    if y.size:
        grid, sizes = (batch, -(-channels // 32)), (np.int32(frames), np.int32(channels))
        arguments = (x, device.upload(np.array(counts, np.int32)), *sizes, y)
        device.kernel("maps", "statistics")(grid, (32, SPLITS), arguments)
    return y
