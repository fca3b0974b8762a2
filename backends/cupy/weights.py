"""What is made of weights once and used in every pass: side by side, or with a scale in them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

from d2v_ref.nn import Linear

from .device import Device

Array = Any


class Weights:
    """The weights of models on a device, and what is made of them.

    An array that somebody else made may change, so that nothing is kept of it.  What is made of a weight goes when the
    weight does.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._known: dict[int, ref] = {}
        self._made: dict[tuple[int, ...], Any] = {}
        self._joined: WeakKeyDictionary[Linear, Joined] = WeakKeyDictionary()
        self._lock = threading.RLock()

    def add(self, weight: Array) -> Array:
        """Takes note of a weight, and returns it."""
        key = id(weight)

        def forget(gone: ref) -> None:
            if self._known.get(key) is gone:
                del self._known[key]
            for keys in list(self._made):
                if key in keys:
                    self._made.pop(keys, None)

        self._known[key] = ref(weight, forget)
        return weight

    def __contains__(self, x: Array) -> bool:
        known = self._known.get(id(x))
        return known is not None and known() is x

    def have(self, *arrays: Array) -> bool:
        """Whether all of these are weights, as far as they are there."""
        return all(x is None or x in self for x in arrays)

    def scaled(self, weight: Array, bias: Array, scale: Array) -> tuple[Array, Array]:
        """scale W and scale b, so that scale (x W^T + b) is one product: weight (N, K), bias and scale (N,).

        They are multiplied in float32 and rounded once.
        """

        def make() -> tuple[Array, Array]:
            factor = scale.astype("float32")
            folded = (weight.astype("float32") * factor[:, None]).astype(weight.dtype)
            return folded, None if bias is None else (bias.astype("float32") * factor).astype(bias.dtype)

        return self._of((weight, scale) if bias is None else (weight, bias, scale), make)

    def _of(self, sources: Sequence[Array], make: Callable[[], Any]) -> Any:
        key = tuple(map(id, sources))
        found = self._made.get(key)
        if found is None:
            with self._lock:
                found = self._made.get(key)
                if found is None:
                    self.device.refuse_capture("a weight is prepared")
                    found = self._made[key] = make()
        return found

    def joined(self, linears: tuple[Linear, ...]) -> Joined | None:
        """The weights of several Linear modules one below the other, or None if they are not all weights of models.

        The modules then have views of them: nothing is twice on the card.
        """
        found = self._joined.get(linears[0])
        if found is None or not found.serves(linears):
            if not all(linear.weight in self for linear in linears):
                return None
            with self._lock:
                found = self._joined.get(linears[0])  # another thread may have been here
                if found is None or not found.serves(linears):
                    found = self._joined[linears[0]] = self._join(linears)
        return found

    def _join(self, linears: tuple[Linear, ...]) -> Joined:
        self.device.refuse_capture("a weight is prepared")
        joined = Joined(self.device, linears)
        for linear, weight, bias in zip(linears, joined.weights, joined.biases, strict=True):
            linear.weight = self.add(weight)
            if linear.bias is not None:
                linear.bias = self.add(bias)
        return joined


class Joined:
    """The weights and biases of several Linear modules one below the other: (N_1 + N_2 + ..., K).

    Attributes:
        weight, bias: all of them; 0 for a bias that there is not, and None if there is none at all.
        weights, biases: views, one a module.
        ends: where each module's rows end.
    """

    def __init__(self, device: Device, linears: tuple[Linear, ...]) -> None:
        rows = [linear.weight.shape[0] for linear in linears]
        self.ends = [sum(rows[: i + 1]) for i in range(len(rows))]
        self.weight = device.empty((self.ends[-1], linears[0].weight.shape[1]))
        self.bias = device.xp.zeros((self.ends[-1],), device.storage)
        parts = [slice(end - count, end) for end, count in zip(self.ends, rows, strict=True)]
        for part, linear in zip(parts, linears, strict=True):
            self.weight[part] = linear.weight
            if linear.bias is not None:
                self.bias[part] = linear.bias
        self.weights, self.biases = [self.weight[part] for part in parts], [self.bias[part] for part in parts]
        if all(linear.bias is None for linear in linears):
            self.bias = None

    def serves(self, linears: tuple[Linear, ...]) -> bool:
        """Whether these modules still have the views that they were given."""
        return len(linears) == len(self.weights) and all(
            linear.weight is weight for linear, weight in zip(linears, self.weights, strict=True)
        )
