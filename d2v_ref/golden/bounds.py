"""How far a computation in a smaller floating-point format may be off: bounds that are computed, not chosen.

Every operation is run in float64, and to its result is added a random share of the rounding error that the operation
could make in the smaller format.  For a sum of n products that share is ``u sqrt(n) sum |x_i w_i|``: the dot-product
bound, which is the operation's own definition run on absolute values (Higham 2002, sec. 3.1), with sqrt(n) for n as
roundings of either sign add up (Higham & Mary 2019). The model carries the errors to every later output as it would
carry real ones, ill-conditioned places included; this is Monte Carlo arithmetic (Parker 1997) with the operations as
its grain.

An output's tolerance is twice the largest deviation over several such runs: an implementation that is checked and the
one that it is checked against both round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from d2v_ref.ops import Ops

Array = Any

UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
PROBES = 8
LOSSES = ("loss", "#loss", "objective")  # the names of those that are computed of the logits, by no operation


class RoundingProbe(Ops):
    """The definitions in float64, each result off by a random share of the rounding error of a smaller format."""

    name: ClassVar[str] = "rounding-probe"

    def __init__(self, unit_roundoff: float, seed: int) -> None:
        super().__init__("float64")
        self.u, self.random = unit_roundoff, np.random.default_rng(seed)

    def _off(self, size: Array, terms: float = 1.0) -> Array:
        """A random error of a sum of so many terms whose absolute values add up to ``size``."""
        return (
            self.random.uniform(-1, 1, np.shape(size)) * (2 * self.u * math.sqrt(terms)) * size
        )  # a rounding each for product and sum

    def activation(self, name: str, x: Array) -> Array:
        y = super().activation(name, x)
        return y + self._off(np.abs(x) + np.abs(y), 4)

    def linear(
        self,
        x: Array,
        weight: Array,
        bias: Array = None,
        activation: str | None = None,
        residual: Array = None,
        scale: Array = None,
    ) -> Array:
        y = super().linear(x, weight, bias)
        y = y + self._off(
            super().linear(np.abs(x), np.abs(weight), None if bias is None else np.abs(bias)), x.shape[-1] + 1
        )
        if activation is not None:
            y = self.activation(activation, y)
        if scale is not None:
            y = scale * y
        return y if residual is None else residual + y

    def conv1d(self, x: Array, weight: Array, bias: Array = None, *shape: int, **named: int) -> Array:
        size = super().conv1d(np.abs(x), np.abs(weight), None if bias is None else np.abs(bias), *shape, **named)
        y = super().conv1d(x, weight, bias, *shape, **named)
        return y + self._off(size, weight.shape[1] * weight.shape[2] + 1)

    def conv2d(self, x: Array, weight: Array, bias: Array = None, *shape: Any) -> Array:
        size = super().conv2d(np.abs(x), np.abs(weight), None if bias is None else np.abs(bias), *shape)
        return super().conv2d(x, weight, bias, *shape) + self._off(size, math.prod(weight.shape[1:]) + 1)

    def conv_transpose2d(self, x: Array, weight: Array, bias: Array) -> Array:
        size = super().conv_transpose2d(np.abs(x), np.abs(weight), np.abs(bias))
        return super().conv_transpose2d(x, weight, bias) + self._off(size, weight.shape[0] + 1)

    def batch_norm(self, x: Array, mean: Array, var: Array, weight: Array, bias: Array, eps: float) -> Array:
        size = super().batch_norm(np.abs(x), -np.abs(mean), var, np.abs(weight), np.abs(bias), eps)
        return super().batch_norm(x, mean, var, weight, bias, eps) + self._off(size, 4)

    def adaptive_avg_pool2d(self, x: Array, size: int) -> Array:
        cell = math.prod(-(-length // size) + 1 for length in x.shape[1:3])
        return super().adaptive_avg_pool2d(x, size) + self._off(super().adaptive_avg_pool2d(np.abs(x), size), cell)

    def resize(self, x: Array, size: tuple[int, int], mode: str) -> Array:
        # Bicubic weights add up to less than 2 in each direction, and a coordinate rounds as one of the long side does.
        return super().resize(x, size, mode) + self._off(
            4 * np.abs(x).max((1, 2), keepdims=True), max(*x.shape[1:3], 16)
        )

    def glu(self, x: Array) -> Array:
        y = super().glu(x)
        return y + self._off(np.abs(y) * (1 + np.abs(x[..., y.shape[-1] :])), 4)

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        largest = np.abs(x).max(-1, keepdims=True)  # (..., 1)
        deviation = np.sqrt(x.var(-1, keepdims=True) + eps)
        y = super().layer_norm(x + self._off(np.abs(x)), weight, bias, eps)
        # A mean that is off by what the large values round to shifts all of the row: much, if they are nearly equal.
        shift = self._off(largest, x.shape[-1]) / deviation * (1.0 if weight is None else weight)
        return y + shift + self._off(np.abs(y) + (0.0 if bias is None else np.abs(bias)), 4)

    def statistics_pooling(self, x: Array, lengths: list[int]) -> Array:
        y = super().statistics_pooling(x + self._off(np.abs(x)), lengths)
        # A mean that is off adds to a deviation that is nothing, and hardly to another.
        return y + self._off(np.abs(y), 4) + self._off(np.abs(x).max((1, 2), initial=0.0)[:, None], x.shape[1])

    def relative_key_bias(self, q: Array, k: Array, heads: int, weight: Array, with_key: bool) -> Array:
        size = super().relative_key_bias(np.abs(q), np.abs(k), heads, np.abs(weight), with_key)
        return super().relative_key_bias(q, k, heads, weight, with_key) + self._off(size, q.shape[-1] // heads)

    def attention(
        self, q: Array, k: Array, v: Array, heads: int, *, bias: Array = None, probs: bool = False, **masks: Any
    ) -> Any:
        head_size = q.shape[-1] // heads
        size = (
            self.split_heads(np.abs(q), heads) @ self.split_heads(np.abs(k), heads).swapaxes(-1, -2) * head_size**-0.5
        )
        if bias is not None:
            size = size + np.where(
                np.abs(bias) < 1e30, np.abs(bias), 0
            )  # a lowest finite number hides a score, it doesn't round it
        scores_off = self._off(size, head_size + 2)
        bias = scores_off if bias is None else bias + scores_off
        context, p = super().attention(q, k, v, heads, bias=bias, probs=probs, **masks)
        context_size, _ = super().attention(q, k, np.abs(v), heads, bias=bias, **masks)
        return context + self._off(context_size, k.shape[1] + 4), None if p is None else p + self._off(
            p, k.shape[1] + 4
        )


def tolerances(
    run: Callable[[Ops], dict[str, np.ndarray]],
    exact: dict[str, np.ndarray],
    dtype: str = "float32",
    probes: int = PROBES,
) -> dict[str, float]:
    """The largest absolute error that each output may have in ``dtype``.

    Args:
        run: computes every output by name with the operations that it is given.
        exact: the same outputs in float64.
        dtype: "float32", "float16" or "bfloat16": the format of the implementation that will be checked.
        probes: how many runs.

    Returns:
        For every name: twice the largest deviation of any element over all runs, and at least four units of rounding
            of the largest value.
    """
    u = UNIT_ROUNDOFF[dtype]
    worst = {name: 2 * u * _largest(value) for name, value in exact.items()}
    worst.update({name: _rounding_of_a_loss(name, exact, u) for name in LOSSES if name in exact})
    for seed in range(probes):
        for name, value in run(RoundingProbe(u, seed)).items():
            with np.errstate(invalid="ignore"):  # infinity less itself
                worst[name] = max(worst[name], _largest(value - exact[name]))
    return {name: 2 * error for name, error in worst.items()}


def _rounding_of_a_loss(name: str, exact: dict[str, np.ndarray], u: float) -> float:
    """A loss is made of numbers as large as itself, as the logits, and as 1, which a softmax takes the logarithm of.

    They are added up along the classes, the frames or the batch, each term a few roundings.
    """
    logits = [value for key, value in exact.items() if key.endswith("logits")]
    terms = max((length for value in logits for length in value.shape), default=1)
    size = _largest(exact[name]) + max((_largest(value) for value in logits), default=0.0) + 1
    return 4 * u * math.sqrt(terms) * size


def _largest(x: np.ndarray) -> float:
    """max |x|; what isn't finite (the loss of no label, or of labels that don't fit) has no size."""
    return float(np.nan_to_num(np.abs(x), nan=0.0, posinf=0.0).max(initial=0.0))
