"""Keys and values of earlier tokens, so that a decoder computes each token once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from d2v_ref.errors import InputError
from d2v_ref.ops import Ops

Array = Any


@dataclass
class LayerCache:
    """One layer's projections, heads side by side: (B, S, D).

    The cross pair is computed once, from the encoder's states.
    """

    key: Array = None
    value: Array = None
    cross_key: Array = None
    cross_value: Array = None

    def append(self, ops: Ops, key: Array, value: Array) -> tuple[Array, Array]:
        """Add the new tokens' key and value (B, T, D); returns all of them (B, S + T, D)."""
        if self.key is not None:
            key = ops.concatenate((self.key, key), axis=1)
            value = ops.concatenate((self.value, value), axis=1)
        self.key, self.value = key, value
        return key, value


class Cache:
    """``past_key_values``: what HF's DynamicCache and EncoderDecoderCache hold.

    A forward pass never changes the cache that it is given: it returns a longer one.  ``cache[layer]`` is Hugging
    Face's tuple (key, value[, cross key, cross value]) of NumPy arrays (B, heads, S, head size).
    """

    def __init__(self, ops: Ops, layers: int, heads: int) -> None:
        self.ops, self.heads = ops, heads
        self.layers = [LayerCache() for _ in range(layers)]

    @classmethod
    def of(cls, past: Cache | Sequence[Sequence[Any]], ops: Ops, layers: int, heads: int) -> Cache:
        """A copy of a cache, or one made of Hugging Face's nested tuples, for a forward pass to extend."""
        if len(past) != layers:
            raise InputError(
                "past_key_values is another model's", got=f"{len(past)} layers", expected=f"{layers} layers"
            )
        cache = cls(ops, layers, heads)
        given: Sequence[Any] = past.layers if isinstance(past, Cache) else past
        for mine, theirs in zip(cache.layers, given, strict=True):
            if isinstance(theirs, LayerCache):
                mine.__dict__.update(vars(theirs))  # arrays are shared: they are replaced, never written to
            else:
                mine.__dict__.update(zip(vars(mine), (cache._join(array) for array in theirs), strict=False))
        return cache

    def _join(self, array: Any) -> Array:
        array = np.asarray(array)
        if array.ndim != 4 or array.shape[1] != self.heads:
            expected = f"(batch, {self.heads}, length, head size)"
            raise InputError("past_key_values holds an array of the wrong shape", got=array.shape, expected=expected)
        batch, heads, length, size = array.shape
        return self.ops.asarray(array.transpose(0, 2, 1, 3).reshape(batch, length, heads * size))

    def length(self) -> int:
        """How many tokens it has seen."""
        key = self.layers[0].key if self.layers else None
        return 0 if key is None else key.shape[1]

    def cross_length(self) -> int | None:
        """How many of the encoder's states it holds, if any."""
        key = self.layers[0].cross_key if self.layers else None
        return None if key is None else key.shape[1]

    def batch(self) -> int | None:
        key = self.layers[0].key if self.layers else None
        return None if key is None else key.shape[0]

    def reorder(self, rows: np.ndarray) -> Cache:
        """The cache of other sequences: row i becomes what row ``rows[i]`` was (beam search)."""
        other = Cache(self.ops, len(self.layers), self.heads)
        for mine, theirs in zip(other.layers, self.layers, strict=True):
            for name, array in vars(theirs).items():
                setattr(mine, name, None if array is None else array[rows])
        return other

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> tuple[np.ndarray, ...]:
        arrays = (self.ops.to_numpy(array) for array in vars(self.layers[layer]).values() if array is not None)
        return tuple(a.reshape(*a.shape[:2], self.heads, -1).transpose(0, 2, 1, 3) for a in arrays)

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        return (self[layer] for layer in range(len(self)))
