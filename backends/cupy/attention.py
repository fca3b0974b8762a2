"""Attention on a card: which kernel, how many blocks, and what they are given.

``kernels/attention.cu`` never has the scores in memory; head sizes above 128, factors of the probabilities and
probabilities that are wanted are for ``kernels/attention_rows.cu``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from d2v_ref.errors import InputError
from d2v_ref.ops.definitions import check_attention, check_relative_key_bias

from .rows import own, pointer

if TYPE_CHECKING:
    from .device import Device

Array = Any

# The head sizes of tiles, and the keys of one by a number's bytes and a warp's tiles of 16 queries: what fits in 96 KiB
# of shared memory, and leaves all sums in registers.
KEYS = {
    (4, 1): {32: 32, 64: 32, 80: 32, 128: 16},
    (2, 1): {32: 64, 64: 64, 80: 64, 128: 32},
    (2, 2): {64: 32},
}
THREADS, WARPS = 128, 4
ROW_QUERIES, ROW_THREADS = 4, 128  # of a block of attention_rows
EDGE = 16  # of a tile of relative_keys


class Tiles(NamedTuple):
    """What a block of ``attention`` has at a time.

    Attributes:
        size: of a head, of which some numbers may be 0.
        queries: of a block.
        keys: of a tile.
        warp: tiles of 16 queries that a warp has.
        products: whether tensor cores multiply.
    """

    size: int
    queries: int
    keys: int
    warp: int
    products: bool

    @property
    def defines(self) -> dict[str, int]:
        found = {"D": self.size, "KEYS": self.keys, "MMA": int(self.products)}
        return found | {"TILES": self.warp} if self.products else found

    def shared_memory(self, itemsize: int) -> int:
        """Bytes: two stages of keys and values, the queries, and probabilities on their way between threads."""
        tiles = (4 * self.keys + self.queries) * (self.size * itemsize + 16)
        return tiles if self.products else tiles + self.queries * (self.keys + 8) * itemsize


def tiles_for(device: Device, batch: int, heads: int, length: int, size: int) -> Tiles:
    """The tiles for a head size of up to 128.

    Two tiles of queries a warp read keys and values once for both; they need enough queries to busy the whole card, and
    few that the last block has for nothing.
    """
    itemsize = device.storage.itemsize
    once, twice = -(-length // (16 * WARPS)), -(-length // (32 * WARPS))
    many = twice * batch * heads >= device.limits.multiprocessors and 2 * twice <= 1.15 * once
    wide = next(wide for wide in KEYS[itemsize, 1] if wide >= size)
    warp = 2 if many and wide in KEYS.get((itemsize, 2), {}) else 1
    return Tiles(wide, 16 * WARPS * warp, KEYS[itemsize, warp][wide], warp, device.format != "float32")


# ---- operands


def _rows(device: Device, x: Array) -> tuple[Array, np.int64, np.int64]:
    """(B, T, D) with rows that have no gaps, and the distances of batch and row in numbers."""
    if x.dtype != device.storage or x.strides[2] != x.itemsize or any(step % x.itemsize for step in x.strides):
        x = own(device, "attention", x)
    return x, np.int64(x.strides[0] // x.itemsize), np.int64(x.strides[1] // x.itemsize)


def _spread(device: Device, x: Array, full: tuple[int, ...], dtype: Any) -> tuple[Any, ...]:
    """An operand that broadcasts to (B, H, T, S), and the four distances of its numbers, 0 where it is broadcast."""
    if x is None:
        return pointer(None), *[np.int64(0)] * 3, np.int32(0)
    if x.dtype != dtype:
        raise InputError("attention: another dtype than it takes", got=x.dtype, expected=dtype)
    if any(step % x.itemsize for step in x.strides) or full[3] * abs(x.strides[-1] if x.ndim else 0) >= 1 << 31:
        x = device.xp.ascontiguousarray(x)
    strides = device.xp.broadcast_to(x, full).strides
    steps = [step // x.itemsize if length > 1 else 0 for step, length in zip(strides, full, strict=True)]
    return x, *map(np.int64, steps[:3]), np.int32(steps[3])


# ---- operations, with the names and the meaning that Ops has


def attention(
    device: Device,
    q: Array,
    k: Array,
    v: Array,
    heads: int,
    *,
    mask: Array = None,
    causal: bool = False,
    bias: Array = None,
    head_mask: Array = None,
    probs: bool = False,
) -> tuple[Array, Array]:
    """softmax(q k^T / sqrt(d) + bias) v, head by head, and the probabilities or None.

    q (B, T, D), k and v (B, S, D), the others broadcasting to (B, H, T, S) -> (B, T, D), (B, H, T, S).
    """
    full = check_attention(q, k, v, heads, mask, bias, head_mask)
    batch, _, length, keys = full
    size = q.shape[2] // heads
    context = device.empty((batch, length, heads * size))
    p = device.empty(full) if probs else None
    if not context.size:
        return context, p
    if not keys:
        raise InputError("attention: no key to attend to", got=k.shape, expected="(B, 1 or more, D)")
    sizes = (np.int32(length), np.int32(keys), np.int32(size), np.float32(size**-0.5), np.int32(causal))
    operands = (*_rows(device, q), *_rows(device, k), *_rows(device, v), context, *sizes)
    spread = (*_spread(device, bias, full, device.storage), *_spread(device, mask, full, np.dtype(bool)))
    if p is None and head_mask is None and size <= max(KEYS[4, 1]):
        tiles = tiles_for(device, batch, heads, length, size)
        kernel = device.kernel("attention", "attention", **tiles.defines)
        grid = (-(-length // tiles.queries), heads, batch)
        kernel(grid, (THREADS,), (*operands, *spread), shared_mem=tiles.shared_memory(device.storage.itemsize))
        return context, None
    factors = _spread(device, head_mask, full, device.storage)
    kernel = device.kernel("attention_rows", "attention_rows")
    grid = (-(-length // ROW_QUERIES), heads * -(-size // ROW_THREADS), batch)
    kernel(grid, (ROW_THREADS,), (*operands, *spread, *factors, pointer(p), np.int32(heads)))
    return context, p


def relative_key_bias(device: Device, q: Array, k: Array, heads: int, weight: Array, with_key: bool) -> Array:
    """q_t . E[t - s] / sqrt(d), plus k_s . E[t - s] / sqrt(d) if ``with_key``.

    q (B, T, D), k (B, S, D), weight (2 P - 1, d), the row of distance 0 in the middle -> (B, H, T, S).
    """
    check_relative_key_bias(q, k, heads, weight)
    batch, length, keys, size = q.shape[0], q.shape[1], k.shape[1], q.shape[2] // heads
    least, most = (weight.shape[0] // 2 + distance for distance in (1 - length, keys - 1))
    if length and keys and (least < 0 or most >= weight.shape[0]):
        got, expected = f"{least} ... {most}", f"0 ... {weight.shape[0] - 1}"
        raise InputError("embedding: an index is outside the table", got=got, expected=expected)
    bias = device.empty((batch, heads, length, keys))
    if not bias.size:
        return bias
    table = own(device, "relative_key_bias", weight)
    scalars = (np.int32(length), np.int32(keys), np.int32(size), np.float32(size**-0.5), np.int32(with_key))
    grid = (-(-length // EDGE) * -(-keys // EDGE), heads, batch)
    args = (*_rows(device, q), *_rows(device, k), table, np.int32(weight.shape[0]), bias, *scalars)
    device.kernel("relative_keys", "relative_keys")(grid, (EDGE, EDGE), args)
    return bias
