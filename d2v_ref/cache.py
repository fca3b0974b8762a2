"""Keys and values of earlier tokens, so that a decoder computes each token once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from d2v_ref import checks
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
    def of(
        cls, past: Cache | Sequence[Sequence[Any]], ops: Ops, layers: int, heads: int, head_size: int, batch: int
    ) -> Cache:
        """A copy of a cache, or one made of Hugging Face's nested tuples, for a forward pass to extend."""
        given: Any = past.layers if isinstance(past, Cache) else past
        if not isinstance(given, list | tuple):
            expected = "a Cache, or a tuple of (key, value) for each layer"
            raise InputError("past_key_values is no cache", got=type(past).__name__, expected=expected)
        if len(given) != layers:
            raise InputError(
                "past_key_values is another model's", got=f"{len(given)} layers", expected=f"{layers} layers"
            )
        cache = cls(ops, layers, heads)
        for mine, theirs in zip(cache.layers, given, strict=True):
            if isinstance(theirs, LayerCache):
                mine.__dict__.update(vars(theirs))  # arrays are shared: they are replaced, never written to
            else:
                arrays = cache._joined(theirs, (batch, heads, "length", head_size))
                mine.__dict__.update(zip(vars(mine), arrays, strict=False))
        cache._agree((batch, heads * head_size))
        return cache

    def _joined(self, arrays: Any, shape: tuple[int | str, ...]) -> list[Array]:
        """Hugging Face's arrays of a layer (B, H, S, d) as ours (B, S, D)."""
        if not isinstance(arrays, list | tuple) or len(arrays) not in (2, 4):
            got = f"{len(arrays)} arrays" if isinstance(arrays, list | tuple) else type(arrays).__name__
            expected = "(key, value), or (key, value, cross key, cross value)"
            raise InputError("past_key_values holds a layer that is none", got=got, expected=expected)
        checked = [checks.array("past_key_values", array, shape, "f", self.ops.dtype) for array in arrays]
        return [self.ops.asarray(x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)) for x in checked]

    def _agree(self, ends: tuple[int, int]) -> None:
        """Every array must be of this batch and width, and as long as the others of its kind."""
        for kind, lengths in (("", set[int]()), ("cross_", set[int]())):
            for layer in self.layers:
                for array in (getattr(layer, f"{kind}key"), getattr(layer, f"{kind}value")):
                    if array is not None:
                        lengths.add(array.shape[1])
                    if array is not None and ((array.shape[0], array.shape[2]) != ends or len(lengths) > 1):
                        expected = f"({ends[0]}, {min(lengths)}, {ends[1]}), heads side by side"
                        message = "past_key_values is of another batch or model"
                        raise InputError(message, got=tuple(array.shape), expected=expected)

    def length(self) -> int:
        """How many tokens it has seen."""
        key = self.layers[0].key if self.layers else None
        return 0 if key is None else key.shape[1]

    def cross_length(self) -> int | None:
        """How many of the encoder's states it holds, if any."""
        key = self.layers[0].cross_key if self.layers else None
        return None if key is None else key.shape[1]

    def reorder(self, rows: np.ndarray) -> Cache:
        """The cache of other sequences: row i becomes what row ``rows[i]`` was (beam search)."""
        other = Cache(self.ops, len(self.layers), self.heads)
        for mine, theirs in zip(other.layers, self.layers, strict=True):
            for name, array in vars(theirs).items():
                setattr(mine, name, None if array is None else array[self.ops.asarray(rows)])
        return other

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> tuple[np.ndarray, ...]:
        arrays = (self.ops.to_numpy(array) for array in vars(self.layers[layer]).values() if array is not None)
        return tuple(a.reshape(*a.shape[:2], self.heads, -1).transpose(0, 2, 1, 3) for a in arrays)

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        return (self[layer] for layer in range(len(self)))
