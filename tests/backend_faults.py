"""Backends with a fault each, of the kinds that are made when operations are written anew for speed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from backends_here import half

from d2v_ref.nn import Linear, Module
from d2v_ref.ops import Ops

Array = Any


class RowNotWritten(Ops):
    """The last row of the last block: whatever was in memory."""

    def linear(self, x: Array, weight: Array, *rest: Any, **named: Any) -> Array:
        y = super().linear(x, weight, *rest, **named)
        out = np.empty(y.shape, y.dtype)
        if y.ndim > 1:
            out[..., :-1, :] = y[..., :-1, :]
            return out
        return y


class PixelsNotWritten(Ops):
    """The last column of a map, where its width is no even number."""

    def conv2d(self, x: Array, *rest: Any, **named: Any) -> Array:
        y = super().conv2d(x, *rest, **named)
        out = np.empty(y.shape, y.dtype)
        whole = y.shape[2] // 2 * 2
        out[:, :, :whole] = y[:, :, :whole]
        return out


class OddDepth(Ops):
    """A loop over pairs that leaves out the last of an odd number."""

    def linear(self, x: Array, weight: Array, *rest: Any, **named: Any) -> Array:
        even = x.shape[-1] // 2 * 2
        return super().linear(x[..., :even], weight[:, :even], *rest, **named)


class ReadsPastOdd(Ops):
    """A loop over pairs that reads one number too many of an odd number: memory of others times nothing."""

    def linear(self, x: Array, weight: Array, *rest: Any, **named: Any) -> Array:
        if x.shape[-1] % 2 and x.ndim > 1:
            room = np.empty((*x.shape[:-1], x.shape[-1] + 1), x.dtype)
            room[..., :-1] = x
            x, weight = room, np.pad(weight, ((0, 0), (0, 1)))
        return super().linear(x, weight, *rest, **named)


class StaleScratch(Ops):
    """Rows are copied to a buffer that is as wide as the widest yet, and all of the buffer is multiplied."""

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.room = np.zeros(1 << 16, dtype)

    def linear(self, x: Array, weight: Array, *rest: Any, **named: Any) -> Array:
        width, wide = x.shape[-1], x.shape[-1] // 16 * 16 + 16
        rows = x.size // width if width else 0
        if not 0 < rows * wide <= self.room.size:
            return super().linear(x, weight, *rest, **named)
        room = self.room[: rows * wide].reshape(rows, wide)
        room[:, :width] = x.reshape(rows, width)
        filled = np.concatenate((weight, np.ones((len(weight), wide - width), weight.dtype)), 1)
        return super().linear(room.reshape(*x.shape[:-1], wide), filled, *rest, **named)


class OneBuffer(Ops):
    """Results are written where the ones before are."""

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.room = np.zeros(1 << 18, dtype)

    def silu(self, x: Array) -> Array:
        out = self.room[: x.size].reshape(x.shape)
        out[...] = super().silu(x)
        return out


class InPlace(Ops):
    def relu(self, x: Array) -> Array:
        return np.maximum(x, 0, out=x) if x.flags.writeable else super().relu(x)


class NoStrides(Ops):
    """Memory is read from the first number on, whatever the strides are."""

    def softmax(self, x: Array) -> Array:
        first = x
        while isinstance(first.base, np.ndarray):
            first = first.base
        if first.size > x.size:
            x = first.reshape(-1)[: x.size].reshape(x.shape)
        return super().softmax(x)


class InOrderOfMemory(Ops):
    """Numbers of a view that was broadcast, or turned, are read as if they lay in order."""

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        return super().layer_norm(x.ravel("K").reshape(x.shape), weight, bias, eps)


class SampleVariance(Ops):
    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        factor = ((x.shape[-1] - 1) / x.shape[-1]) ** 0.5
        return super().layer_norm(x, None if weight is None else weight * factor, bias, eps)


class OnePass(Ops):
    """The variance as the mean of squares less the square of the mean."""

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        mean = x.mean(-1, keepdims=True)
        var = np.maximum(np.square(x).mean(-1, keepdims=True) - np.square(mean), 0)
        y = (x - mean) / np.sqrt(var + eps)
        return y if weight is None else y * weight + bias


class Flushed(Ops):
    """Denormal numbers are nothing before a product that makes them large."""

    def linear(self, x: Array, weight: Array, *rest: Any, **named: Any) -> Array:
        tiny = np.finfo(x.dtype).tiny
        return super().linear(np.where(np.abs(x) < tiny, 0, x).astype(x.dtype), weight, *rest, **named)


class FiniteMath(Ops):
    """Compiled under the promise that no number is NaN."""

    def relu(self, x: Array) -> Array:
        return np.where(x > 0, x, 0).astype(x.dtype)

    def max_pool2d(self, x: Array, size: int) -> Array:
        return super().max_pool2d(np.where(np.isnan(x), -np.inf, x).astype(x.dtype), size)


class MaskIgnored(Ops):
    def attention(self, *args: Any, mask: Array = None, **named: Any) -> Any:
        return super().attention(*args, **named)


class _HiddenRows(Ops):
    """Something of its own for a query that sees nothing."""

    given: float

    def attention(
        self, q: Array, k: Array, v: Array, heads: int, *, mask: Array = None, causal: bool = False, **named: Any
    ) -> Any:
        context, p = super().attention(q, k, v, heads, mask=mask, causal=causal, **named)
        full = (len(q), heads, q.shape[1], k.shape[1])
        seen = np.ones(full, bool) if mask is None else np.broadcast_to(mask, full)
        seen = seen & np.tri(*full[2:], k=full[3] - full[2], dtype=bool) if causal else seen
        empty = ~seen.any(-1)  # (B, H, T)
        context = self.split_heads(context, heads).copy()
        context[empty] = self.given
        if p is not None:
            p[empty] = self.given
        return context.swapaxes(1, 2).reshape(q.shape), p


class HiddenRowsNaN(_HiddenRows):
    given = np.nan


class HiddenRowsZero(_HiddenRows):
    given = 0.0


class AddedMask(Ops):
    """A large number is added to a score that is hidden: what was there still counts where all are, and NaN stays."""

    def attention(
        self, q: Array, k: Array, v: Array, heads: int, *, mask: Array = None, bias: Array = None, **named: Any
    ) -> Any:
        if mask is not None:
            hiding = np.where(mask, 0, -1e4).astype(q.dtype)
            bias = hiding if bias is None else bias + hiding
        return super().attention(q, k, v, heads, bias=bias, **named)


class CausalFromTheStart(Ops):
    """The triangle aligned at the first key, where a cache has put keys before."""

    def attention(
        self, q: Array, k: Array, v: Array, heads: int, *, mask: Array = None, causal: bool = False, **named: Any
    ) -> Any:
        if causal:
            seen = np.tri(q.shape[1], k.shape[1], dtype=bool)
            mask = seen if mask is None else mask & seen
        return super().attention(q, k, v, heads, mask=mask, **named)


class BiasOfTheFirst(Ops):
    """One bias for all of a batch and all heads."""

    def attention(self, *args: Any, bias: Array = None, **named: Any) -> Any:
        if bias is not None and bias.ndim == 4:
            bias = bias[:1, :1]
        return super().attention(*args, bias=bias, **named)


class MaskOfTheFirstHead(Ops):
    def attention(self, *args: Any, mask: Array = None, **named: Any) -> Any:
        if mask is not None and mask.ndim >= 3:
            mask = mask[..., :1, :, :]
        return super().attention(*args, mask=mask, **named)


class HeadMaskBeforeSoftmax(Ops):
    def attention(self, q: Array, k: Array, v: Array, heads: int, *, head_mask: Array = None, **named: Any) -> Any:
        if head_mask is not None and head_mask.shape == (heads, 1, 1):
            v = (self.split_heads(v, heads) * head_mask).swapaxes(1, 2).reshape(v.shape) * 2
        return super().attention(q, k, v, heads, **named)


class NoShift(Ops):
    """exp of the scores as they are."""

    def softmax(self, x: Array) -> Array:
        with np.errstate(all="ignore"):
            e = np.exp(x)
            return e / e.sum(-1, keepdims=True)


class NextLength(Ops):
    """A length that counts from the end is taken for none."""

    def statistics_pooling(self, x: Array, lengths: list[int]) -> Array:
        with np.errstate(all="ignore"):
            return super().statistics_pooling(x, [max(length, 0) for length in lengths])


class RoundedProducts(Ops):
    """bfloat16 factors under the name of float32."""

    def linear(self, x: Array, weight: Array, *rest: Any, **named: Any) -> Array:
        return super().linear(half(x.astype("f4")).astype(x.dtype), weight, *rest, **named)


class PackedByAddress(Ops):
    """What was prepared of a weight is found by where the weight is, which another may be by then."""

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.packed: dict[int, Array] = {}

    def prepare(self, module: Module) -> None:
        if isinstance(module, Linear):
            self.packed[module.weight.ctypes.data] = module.weight.copy()

    def linear(self, x: Array, weight: Array, *rest: Any, **named: Any) -> Array:
        packed = self.packed.get(weight.ctypes.data)
        return super().linear(x, weight if packed is None or packed.shape != weight.shape else packed, *rest, **named)


class PackedInPlace(Ops):
    """A weight that is kept in another order, under all of its names."""

    def prepare(self, module: Module) -> None:
        if isinstance(module, Linear):
            module.weight[:] = module.weight[::-1].copy()

    def linear(self, x: Array, weight: Array, *rest: Any, **named: Any) -> Array:
        return super().linear(x, weight[::-1], *rest, **named)


class SharedScratch(Ops):
    """A buffer that calls of several threads write to at once."""

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.room = np.zeros(1 << 20, dtype)

    def gelu(self, x: Array) -> Array:
        room = self.room[: x.size].reshape(x.shape)
        room[...] = x
        time.sleep(1e-3)
        return super().gelu(room)


class ThreadsAddUp(Ops):
    """Every thread sums its part of a product, so that how many there are shows in the last bits."""

    def __init__(self, dtype: str, threads: int = 1) -> None:
        super().__init__(dtype)
        self.threads = threads

    def linear(self, x: Array, weight: Array, bias: Array = None, *rest: Any, **named: Any) -> Array:
        cut = x.shape[-1] * (self.threads - 1) // self.threads // 2
        product = super().linear(x[..., :cut], weight[:, :cut]) + super().linear(x[..., cut:], weight[:, cut:])
        return super().linear(product, np.eye(len(weight), dtype=x.dtype), bias, *rest, **named)
