"""How far a computation in a smaller floating-point format may be off: bounds that are computed, not chosen.

Every operation is run in float64, and to its result is added a random share of the rounding error that the operation
could make in the smaller format.  The model carries the errors to every later output as it would carry real ones,
ill-conditioned places included; this is Monte Carlo arithmetic (Parker 1997) with the operations as its grain.

For a sum of n products in float32 or float64 the share is ``u sqrt(n) sum |x_i w_i|``: the dot-product bound, which is
the operation's own definition run on absolute values (Higham 2002, sec. 3.1), with sqrt(n) for n as roundings of either
sign add up (Higham & Mary 2019).

In float16 and bfloat16 an implementation is taken to store weights, inputs and every operation's result in that format
and to compute in float32, as accelerators and frameworks do.  The share of a sum of products is that of its stored
factors, ``u sqrt(sum (x_i w_i)^2)``, each of which is off on its own, and then of storing the result, ``u |y|``; beside
these the rounding of float32 is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from d2v_ref.ops import Ops

Array = Any
Tell = Callable[[str, np.ndarray], None]


class Format(NamedTuple):
    """A floating-point format that a port may compute in."""

    unit_roundoff: float
    smallest_normal: float  # below it numbers are spaced evenly
    stored: bool  # whether only what is stored is in this format, and arithmetic in float32
    probes: int  # how many runs with random errors


FORMATS = {
    "float64": Format(2.0**-53, 2.0**-1022, False, 8),
    "float32": Format(2.0**-24, 2.0**-126, False, 8),
    "float16": Format(2.0**-11, 2.0**-14, True, 4),
    "bfloat16": Format(2.0**-8, 2.0**-126, True, 4),
}
_PIECE = 1 << 22  # numbers of a weight that are converted at a time
LOSSES = ("loss", "#loss", "objective")  # the names of those that are computed of the logits, by no operation

RULE = (
    "tolerance in a format = 2 max(d, 2 u m, g). d: the largest deviation from the float64 run over several float64 "
    "runs in which each operation's result is off by a random share, uniform in -1 ... 1, of twice its rounding error "
    "in the format: u sqrt(n) sum |x_i w_i| for a sum of n products in float64 or float32; in float16 and bfloat16, "
    "where arrays are stored in the format and operations computed in float32, u sqrt(sum (x_i w_i)^2) for what the "
    "factors were stored as, and u |y| for the result y. Errors come through the model to all later arrays. m: the "
    "largest magnitude in the float64 run. g: gap, the largest difference between the recorded and the float64 run. "
    "u: 2^-53, 2^-24, 2^-11, 2^-8 for float64, float32, float16, bfloat16. Of integers and booleans: 0."
)


class Exact(Ops):
    """The definitions in float64, of weights as they are stored.

    NumPy converts a weight where it is used, so that a second copy of a model is never held.
    """

    name: ClassVar[str] = "exact"

    def __init__(self) -> None:
        super().__init__("float64")

    def weight(self, x: np.ndarray) -> Array:
        return x

    def linear(self, x: Array, weight: Array, bias: Array = None, *fused: Any, **named: Any) -> Array:
        rows, step = weight.shape[0], max(1, _PIECE // weight.shape[1])
        if rows <= step or fused or named:  # a recorded run does not fuse
            return super().linear(x, weight, bias, *fused, **named)
        # A vocabulary's matrix in float64 is as large as the rest of the model: some outputs at a time.
        starts, product = range(0, rows, step), super().linear
        biases = [None if bias is None else bias[i : i + step] for i in starts]
        parts = [product(x, weight[i : i + step], b) for i, b in zip(starts, biases, strict=True)]
        return np.concatenate(parts, axis=-1)

    # Where weights meet weights, NumPy would compute in their own dtype.

    def embedding(self, ids: np.ndarray, weight: Array) -> Array:
        return super().embedding(ids, weight).astype(self.dtype, copy=False)

    def softmax(self, x: Array) -> Array:
        return super().softmax(x.astype(self.dtype, copy=False))

    def resize(self, x: Array, size: tuple[int, int], mode: str) -> Array:
        return super().resize(x.astype(self.dtype, copy=False), size, mode)

    def batch_norm(self, x: Array, mean: Array, var: Array, weight: Array, bias: Array, eps: float) -> Array:
        return super().batch_norm(x, mean, var.astype(self.dtype, copy=False), weight, bias, eps)


class RoundingProbe(Exact):
    """The definitions in float64, each result off by a random share of the rounding error of a smaller format."""

    name: ClassVar[str] = "rounding-probe"

    def __init__(self, port: Format, seed: int) -> None:
        super().__init__()
        self.format = port
        self.u = FORMATS["float32"].unit_roundoff if port.stored else port.unit_roundoff
        self.random = np.random.default_rng(seed)

    def _off(self, size: Array, terms: float = 1.0) -> Array:
        """A random error of a sum of so many terms whose absolute values add up to ``size``."""
        return self._share(size, 2 * self.u * math.sqrt(terms))  # a rounding each for product and sum

    def _share(self, size: Array, factor: float) -> Array:
        share = np.asarray(self.random.uniform(-factor, factor, np.shape(size)))
        share *= size
        return share

    def _stored(self, y: Array) -> Array:
        """A result as it is stored."""
        if not self.format.stored:
            return y
        return y + self._stored_off(np.maximum(np.abs(y), self.format.smallest_normal))

    def _stored_off(self, size: Array) -> Array:
        """A random error of what is stored in a smaller format than it is computed in."""
        return self._share(size, 2 * self.format.unit_roundoff) if self.format.stored else 0.0

    def _sum_off(self, definition: Callable[..., Array], factors: tuple[Array, ...], terms: float) -> Array:
        """A random error of sums of so many products, which ``definition`` makes of factors; a factor may be None."""
        if self.format.stored:
            return self._stored_off(np.sqrt(definition(*(None if x is None else np.square(x) for x in factors))))
        return self._off(definition(*(None if x is None else np.abs(x) for x in factors)), terms)

    def asarray(self, x: Any) -> Array:
        y = super().asarray(x)
        return self._stored(y) if y.dtype.kind == "f" else y

    def embedding(self, ids: np.ndarray, weight: Array) -> Array:
        return self._stored(super().embedding(ids, weight))

    def activation(self, name: str, x: Array) -> Array:
        y = super().activation(name, x)
        return self._stored(y + self._off(np.abs(x) + np.abs(y), 4))

    def linear(
        self,
        x: Array,
        weight: Array,
        bias: Array = None,
        activation: str | None = None,
        residual: Array = None,
        scale: Array = None,
    ) -> Array:
        product = super().linear
        y = self._stored(product(x, weight, bias) + self._sum_off(product, (x, weight, bias), x.shape[-1] + 1))
        if activation is not None:
            y = self.activation(activation, y)
        if scale is not None:
            y = self._stored(scale * y)
        return y if residual is None else self._stored(residual + y)

    def conv1d(self, x: Array, weight: Array, bias: Array = None, *shape: int, **named: int) -> Array:
        define = super().conv1d

        def convolve(x: Array, weight: Array, bias: Array) -> Array:
            return define(x, weight, bias, *shape, **named)

        off = self._sum_off(convolve, (x, weight, bias), weight.shape[1] * weight.shape[2] + 1)
        return self._stored(convolve(x, weight, bias) + off)

    def conv2d(self, x: Array, weight: Array, bias: Array = None, *shape: Any) -> Array:
        define = super().conv2d

        def convolve(x: Array, weight: Array, bias: Array) -> Array:
            return define(x, weight, bias, *shape)

        off = self._sum_off(convolve, (x, weight, bias), math.prod(weight.shape[1:]) + 1)
        return self._stored(convolve(x, weight, bias) + off)

    def conv_transpose2d(self, x: Array, weight: Array, bias: Array) -> Array:
        define = super().conv_transpose2d
        off = self._sum_off(define, (x, weight, bias), weight.shape[0] + 1)
        return self._stored(define(x, weight, bias) + off)

    def batch_norm(self, x: Array, mean: Array, var: Array, weight: Array, bias: Array, eps: float) -> Array:
        size = super().batch_norm(np.abs(x), -np.abs(mean), var, np.abs(weight), np.abs(bias), eps)
        y = super().batch_norm(x, mean, var, weight, bias, eps)
        return self._stored(y + self._stored_off(size) + self._off(size, 4))

    def adaptive_avg_pool2d(self, x: Array, size: int) -> Array:
        cell = math.prod(-(-length // size) + 1 for length in x.shape[1:3])
        y = super().adaptive_avg_pool2d(x, size)
        return self._stored(y + self._off(super().adaptive_avg_pool2d(np.abs(x), size), cell))

    def resize(self, x: Array, size: tuple[int, int], mode: str) -> Array:
        # Bicubic weights add up to less than 2 in each direction, and a coordinate rounds as one of the long side does.
        largest = 4 * np.abs(x).max((1, 2), keepdims=True)
        return self._stored(super().resize(x, size, mode) + self._off(largest, max(*x.shape[1:3], 16)))

    def glu(self, x: Array) -> Array:
        y = super().glu(x)
        return self._stored(y + self._off(np.abs(y) * (1 + np.abs(x[..., y.shape[-1] :])), 4))

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        largest = np.abs(x).max(-1, keepdims=True)  # (..., 1)
        deviation = np.sqrt(x.var(-1, keepdims=True) + eps)
        y = super().layer_norm(x + self._off(np.abs(x)), weight, bias, eps)
        # A mean that is off by what the large values round to shifts all of the row: much, if they are nearly equal.
        shift = self._off(largest, x.shape[-1]) / deviation * (1.0 if weight is None else weight)
        size = np.abs(y) + (0.0 if bias is None else np.abs(bias))
        return self._stored(y + shift + self._stored_off(size) + self._off(size, 4))

    def statistics_pooling(self, x: Array, lengths: list[int]) -> Array:
        y = super().statistics_pooling(x + self._off(np.abs(x)), lengths)
        # A mean that is off adds to a deviation that is nothing, and hardly to another.
        largest = np.abs(x).max((1, 2), initial=0.0)[:, None]
        return self._stored(y + self._off(np.abs(y), 4) + self._off(largest, x.shape[1]))

    def relative_key_bias(self, q: Array, k: Array, heads: int, weight: Array, with_key: bool) -> Array:
        define = super().relative_key_bias
        size = define(np.abs(q), np.abs(k), heads, np.abs(weight), with_key)
        y = define(q, k, heads, weight, with_key) + self._off(size, q.shape[-1] // heads)
        return self._stored(y + self._stored_off(size))

    def attention(
        self, q: Array, k: Array, v: Array, heads: int, *, bias: Array = None, probs: bool = False, **masks: Any
    ) -> Any:
        off = self._scores_off(q, k, heads, bias)
        if bias is not None:
            off += bias
        context, p = super().attention(q, k, v, heads, bias=off, probs=True, **masks)
        del off  # as large as the probabilities
        terms = k.shape[1] + 4

        def mix(p: Array, v: Array) -> Array:
            mixed = (p @ self.split_heads(v, heads)).swapaxes(1, 2)
            return mixed.reshape(context.shape)

        context = self._stored(context + self._sum_off(mix, (p, v), terms))
        if not probs:
            return context, None
        p += self._off(p, terms)
        return context, self._stored(p)

    def _scores_off(self, q: Array, k: Array, heads: int, bias: Array) -> Array:
        """A random error of attention's scores."""
        head_size = q.shape[-1] // heads
        q, k = self.split_heads(q, heads) * head_size**-0.5, self.split_heads(k, heads).swapaxes(-1, -2)
        shown = None if bias is None else np.where(np.abs(bias) < 1e30, bias, 0)  # the lowest number hides a score
        if not self.format.stored:
            size = np.abs(q) @ np.abs(k)
            return self._off(size if shown is None else size + np.abs(shown), head_size + 2)
        scores = q @ k
        off = self._stored_off(np.abs(scores))
        if shown is not None:
            off += self._stored_off(np.abs(scores + shown))
        return off


def tolerances(
    run: Callable[[Ops, Tell], None],
    exact: Mapping[str, np.ndarray],
    port: Format = FORMATS["float32"],
    gaps: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The largest absolute error that each output may have: ``RULE``.

    Args:
        run: computes every output with the operations that it is given, and tells it by name; other names than those
            of ``exact`` are passed over.
        exact: the same outputs in float64.
        port: one of ``FORMATS``: that of the implementation that will be checked.
        gaps: how far the run that it will be held against is off.
    """
    u, gaps = port.unit_roundoff, gaps or {}
    worst = {name: 2 * u * largest(value) for name, value in exact.items() if value.dtype.kind == "f"}
    worst.update({name: _rounding_of_a_loss(name, exact, u) for name in LOSSES if name in exact})
    worst = {name: max(least, gaps.get(name, 0.0)) for name, least in worst.items()}

    def see(name: str, value: np.ndarray) -> None:
        if name in worst:
            worst[name] = max(worst[name], gap(value, exact[name]))

    for seed in range(port.probes):
        run(RoundingProbe(port, seed), see)
    return {name: 2 * worst.get(name, 0.0) for name in exact}


def gap(value: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference; infinity less itself is none."""
    with np.errstate(invalid="ignore"):
        return largest(np.subtract(value, exact, dtype=np.float64))


def _rounding_of_a_loss(name: str, exact: Mapping[str, np.ndarray], u: float) -> float:
    """A loss is made of numbers as large as itself, as the logits, and as 1, which a softmax takes the logarithm of.

    They are added up along the classes, the frames or the batch, each term a few roundings.
    """
    logits = [exact[key] for key in exact if key.endswith("logits")]
    terms = max((length for value in logits for length in value.shape), default=1)
    size = largest(exact[name]) + max((largest(value) for value in logits), default=0.0) + 1
    return 4 * u * math.sqrt(terms) * size


def largest(x: np.ndarray) -> float:
    """max |x|; what isn't finite (the loss of no label, or of labels that don't fit) has no size."""
    size = np.abs(x)
    found = float(size.max(initial=0.0))
    return found if math.isfinite(found) else float(size[np.isfinite(size)].max(initial=0.0))
