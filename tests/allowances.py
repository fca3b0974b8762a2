"""How far each number of an operation's result may be off in a format: ``golden.bounds``, number by number.

``RoundingProbe`` adds to a result a random share of the rounding error that the operation could make.  Here the whole
of what it takes a share of is noted down and nothing is added.  Where one operation follows in another, as in attention
or a fused convolution, an error that comes in is carried on by the derivative of what it meets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from d2v_ref.golden.bounds import FORMATS, Format, RoundingProbe
from d2v_ref.nn import BatchNorm2d, Conv1d, Conv2d, Embedding, LayerNorm, Linear
from d2v_ref.ops import ACTIVATIONS, Ops

Array = np.ndarray

# Twice the error that the probe takes a share of, as the tolerances of a golden are: the definition in float64, which a
# float64 backend is held against, is off itself, and errors of storage add up to a normal distribution's tails.
ROOM = 2.0
# Beyond it every activation is a straight line, or nears one so fast that how x was rounded does not show.
STRAIGHT = 32.0


class Within(NamedTuple):
    """What the definition gives in float64, and how far each number may be off."""

    value: Array
    error: Array

    @classmethod
    def exactly(cls, value: Array) -> Within:
        return cls(value, np.zeros(value.shape))


class _Shares(RoundingProbe):
    """Notes down every error that a probe takes a share of; its operands are numbers of the format already."""

    def __init__(self, port: Format) -> None:
        super().__init__(port, seed=0)
        self.noted: list[Array] = []

    def _share(self, size: Any, factor: float) -> Any:
        self.noted.append(factor * np.asarray(size))
        return np.zeros(np.shape(size))

    def asarray(self, x: Any) -> Any:
        return Ops.asarray(self, x)

    def embedding(self, ids: Array, weight: Array) -> Array:
        return Ops.embedding(self, ids, weight)

    def taken(self) -> Any:
        """The sum of what was noted since the last time."""
        noted, self.noted = self.noted, []
        return sum(noted, start=np.zeros(()))


class Allowances:
    """Every operation of ``Ops``: what it gives, and how far it may be off in a format.

    Arguments are float64 arrays; modules are bound to ``Ops("float64")``.
    """

    def __init__(self, form: str) -> None:
        self.format = FORMATS[form]
        self.probe = _Shares(self.format)
        self.exact = Ops("float64")
        self.u = self.probe.u
        self.tiny = self.format.smallest_normal  # what is smaller may be rounded to nothing

    def of(self, operation: str, args: Sequence[Any], options: dict[str, Any]) -> list[Within | None]:
        """The results of an operation, in order."""
        rule: Callable[..., Any] | None = getattr(self, operation, None)
        with np.errstate(all="ignore"):
            if rule is not None:
                found = rule(*args, **options)
            elif operation in _PROBED:
                found = self._probed(operation, *args, **options)
            elif operation in _EXACT:
                found = self._moved(operation, *args, **options)
            else:
                found = self._elementwise(operation, Within.exactly(args[0]))
        return list(found) if isinstance(found, tuple) and not isinstance(found, Within) else [found]

    def _moved(self, operation: str, *args: Any, **options: Any) -> Within:
        """Of numbers that are chosen or moved, and stored again where the format is one of storage."""
        y = getattr(self.exact, operation)(*args, **options)
        return Within(y, 2 * self.format.unit_roundoff * np.abs(y) if self.format.stored else np.zeros(y.shape))

    def _probed(self, operation: str, *args: Any, terms: int = 1, **options: Any) -> Within:
        self.probe.taken()
        y = getattr(self.probe, operation)(*args, **options)
        error = np.broadcast_to(self.probe.taken(), y.shape) + terms * self.tiny
        return Within(y, np.where(np.isfinite(y), error, 0.0))  # an infinity is off by nothing

    def add(self, x: Array, y: Array) -> Within:
        return self._rounded(Within(self.exact.add(x, y), 2 * self.u * (np.abs(x) + np.abs(y)) + self.tiny))

    # ---- what follows on another operation

    def _elementwise(self, name: str, x: Within) -> Within:
        """One of the activations' functions of what may be off."""
        define: Callable[[Array], Array] = getattr(self.exact, name)
        y, off = define(x.value), np.zeros(x.value.shape)
        if x.error.any():
            for step in (-1.0, -0.5, 0.5, 1.0):
                off = np.maximum(off, np.abs(define(x.value + step * x.error) - y))
        size = np.minimum(np.abs(x.value), STRAIGHT) + np.abs(y)
        own = 4 * self.u * (size + 1 if name == "laplace" else size)  # whose mean and 1 are numbers like x
        stored = 2 * self.format.unit_roundoff * np.abs(y) if self.format.stored else 0.0
        return Within(y, off + own + stored + self.tiny)

    def _activated(self, name: str, x: Within) -> Within:
        return self._elementwise(ACTIVATIONS[name], x)

    def _normalised(self, x: Within, norm: tuple[Array | None, Array | None, float]) -> Within:
        """A LayerNorm of what may be off: the derivative by each number of the row, and the probe's own terms."""
        weight, bias, eps = norm
        y = self.exact.layer_norm(x.value, weight, bias, eps)
        if not y.size:
            return Within.exactly(y)
        factor = np.abs(1.0 if weight is None else weight)
        deviation = np.sqrt(x.value.var(-1, keepdims=True) + eps)
        unit = np.abs(x.value - x.value.mean(-1, keepdims=True)) / deviation
        own = x.error + 2 * self.u * np.abs(x.value) + self.tiny
        spread = (own + own.mean(-1, keepdims=True) + unit * (unit * own).mean(-1, keepdims=True)) / deviation
        width, largest = x.value.shape[-1], np.abs(x.value).max(-1, keepdims=True)
        shift = 2 * self.u * math.sqrt(width) * largest / deviation  # of a mean that is off
        # A shift adds its square to the variance; whatever happens, no number leaves a row by more than its width does.
        off = np.minimum(spread + shift + unit * np.minimum(1.0, np.square(spread + shift)), math.sqrt(width) + unit)
        size = np.abs(y) + (0.0 if bias is None else np.abs(bias))
        stored = 2 * self.format.unit_roundoff * (size + np.abs(y)) if self.format.stored else 0.0
        return Within(y, factor * off + 4 * self.u * size + stored + self.tiny)

    # ---- operations

    def activation(self, name: str, x: Array) -> Within:
        return self._activated(name, Within.exactly(x))

    def glu(self, x: Array) -> Within:
        y = self.exact.glu(x)
        gate = x[..., y.shape[-1] :]
        slope = 1 + np.where(gate > 0, np.minimum(gate, STRAIGHT), -gate)  # a gate that is open stays so
        size = np.where(y == 0, 0.0, np.abs(y) * slope)
        stored = 2 * self.format.unit_roundoff * np.abs(y) if self.format.stored else 0.0
        return Within(y, 4 * self.u * size + stored + self.tiny * (1 + np.abs(x[..., : y.shape[-1]])))

    def linear(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        activation: str | None = None,
        residual: Array | None = None,
        scale: Array | None = None,
    ) -> Within:
        if weight.shape[1]:
            y = self._probed("linear", x, weight, bias, terms=x.shape[-1] + 1)
        else:
            y = Within.exactly(self.exact.linear(x, weight, bias))
        if activation is not None:
            y = self._activated(activation, y)
        if scale is not None:
            y = self._rounded(Within(scale * y.value, np.abs(scale) * y.error))
        return y if residual is None else self._rounded(Within(residual + y.value, y.error))

    def _rounded(self, y: Within) -> Within:
        roundoff = self.format.unit_roundoff if self.format.stored else self.u
        return Within(y.value, y.error + 2 * roundoff * np.abs(y.value) + self.tiny)

    def project(self, x: Array, *linears: Linear) -> tuple[Within, ...]:
        return tuple(self.linear(x, linear.weight, linear.bias) for linear in linears)

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Within:
        return self._normalised(Within.exactly(x), (weight, bias, eps))

    def embed_norm(self, ids: tuple[Array, ...], tables: tuple[Embedding, ...], norm: LayerNorm) -> Within:
        x = Within.exactly(self.exact.embedding(ids[0], tables[0].weight))
        for rows, table in zip(ids[1:], tables[1:], strict=True):
            x = self._rounded(Within(x.value + self.exact.embedding(rows, table.weight), x.error))
        return self._normalised(x, (norm.weight, norm.bias, norm.eps))

    def conv1d(self, x: Array, weight: Array, *rest: Any, **named: Any) -> Within:
        return self._probed("conv1d", x, weight, *rest, terms=weight[0].size + 1, **named)

    def conv2d(self, x: Array, weight: Array, *rest: Any, **named: Any) -> Within:
        return self._probed("conv2d", x, weight, *_in_order(rest, named), terms=weight[0].size + 1)

    def conv_transpose2d(self, x: Array, weight: Array, bias: Array) -> Within:
        return self._probed("conv_transpose2d", x, weight, bias, terms=len(weight) + 1)

    def conv_norm_act(self, x: Array, conv: Conv1d, norm: LayerNorm, activation: str) -> Within:
        y = self.conv1d(x, conv.weight, conv.bias, conv.stride, conv.padding, groups=conv.groups)
        return self._activated(activation, self._normalised(y, (norm.weight, norm.bias, norm.eps)))

    def conv2d_norm_act(self, x: Array, conv: Conv2d, norm: BatchNorm2d, activation: str) -> Within:
        y = self.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
        z = self._probed("batch_norm", y.value, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
        carried = y.error * np.abs(norm.weight) / np.sqrt(norm.running_var + norm.eps)
        return self._activated(activation, Within(z.value, z.error + carried))

    def resize(self, x: Array, size: tuple[int, int], mode: str) -> Within:
        y = self._probed("resize", x, size, mode)
        if not self.format.stored:
            return y
        largest = 4 * np.abs(x).max((1, 2), keepdims=True)  # as the probe has it
        return Within(y.value, y.error + 4 * self.format.unit_roundoff * largest)  # weights of two directions

    def statistics_pooling(self, x: Array, lengths: list[int]) -> Within:
        y = self.exact.statistics_pooling(x, lengths)
        error = 4 * self.u * np.abs(y) + self.tiny
        for row, values, length in zip(error, np.abs(x), lengths, strict=True):
            own = 2 * self.u * values[:length]
            mean = own.sum(0) / max(len(own), 1)
            # A deviation moves by no more than the numbers do: by the root of their squares' mean.
            deviation = np.sqrt(np.square(own).sum(0) / max(len(own) - 1, 1))
            shift = math.sqrt(len(own)) * own.max(0, initial=0.0)  # of a mean that is off
            row += np.concatenate((mean + shift, deviation + shift))
        return Within(y, error + (2 * self.format.unit_roundoff * np.abs(y) if self.format.stored else 0.0))

    def softmax(self, x: Array) -> Within:
        off = 2 * self.u * np.abs(x - x.max(-1, keepdims=True))
        return self._distribution(Within(x, np.where(np.isfinite(off), off, 0.0)))

    def _distribution(self, x: Within) -> Within:
        """exp(x) over its sum: a number changes by its own error and by the mean of all errors, in the exponent."""
        p, log = self.exact.softmax(x.value), self.exact.log_softmax(x.value)
        mean = np.log(np.sum(p * np.exp(np.minimum(x.error, 700.0)), -1, keepdims=True))
        shift = x.error + np.maximum(mean, 0.0)
        off = np.maximum(np.exp(np.minimum(log + shift, 0.0)) - p, -p * np.expm1(-shift))
        own = 2 * self.u * math.sqrt(x.value.shape[-1] + 4) * p
        stored = 2 * self.format.unit_roundoff * p if self.format.stored else 0.0
        return Within(p, off + own + stored + self.tiny)

    def log_softmax(self, x: Array) -> Within:
        y = self.exact.log_softmax(x)
        off = 2 * self.u * np.abs(x - x.max(-1, keepdims=True))
        mean = np.sum(np.exp(y) * np.where(np.isfinite(off), off, 0.0), -1, keepdims=True)
        own = 4 * self.u * np.abs(y) + 2 * self.u * (math.sqrt(x.shape[-1]) + np.log(x.shape[-1]))
        stored = 2 * self.format.unit_roundoff * np.abs(y) if self.format.stored else 0.0
        return Within(y, np.where(np.isfinite(off), off, 0.0) + mean + own + stored)

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        heads: int,
        *,
        mask: Array | None = None,
        causal: bool = False,
        bias: Array | None = None,
        head_mask: Array | None = None,
        probs: bool = False,
    ) -> tuple[Within, Within | None]:
        self.probe.taken()
        self.probe._scores_off(q, k, heads, bias)
        q, k, v = (self.exact.split_heads(x, heads) for x in (q, k, v))
        scores = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)  # (B, H, T, S)
        if self.format.stored:  # what the scaled queries are stored as
            scaled = np.sqrt(np.square(q) @ np.square(k.swapaxes(-1, -2)) / q.shape[-1])
            self.probe._stored_off(scaled)
        off = np.broadcast_to(self.probe.taken(), scores.shape)
        scores = scores if bias is None else scores + bias
        seen = np.ones(scores.shape, bool) if mask is None else np.broadcast_to(mask, scores.shape)
        if causal:
            queries, keys = scores.shape[-2:]
            seen = seen & np.tri(queries, keys, k=keys - queries, dtype=bool)
        lowest = np.finfo(np.float32 if self.format is not FORMATS["float64"] else np.float64).min
        p = self._distribution(Within(np.where(seen, scores, lowest), np.where(seen, off, 0.0)))
        if head_mask is not None:
            p = self._rounded(Within(p.value * head_mask, p.error * np.abs(head_mask)))
        terms = scores.shape[-1] + 4
        mixed = self.probe._sum_off(np.matmul, (p.value, v), terms)
        error = p.error @ np.abs(v) + np.broadcast_to(self.probe.taken(), mixed.shape) + terms * self.tiny
        context = self._rounded(Within(_joined(p.value @ v), _joined(error)))
        return context, p if probs else None


_PROBED = ("batch_norm", "adaptive_avg_pool2d", "relative_key_bias")
_EXACT = (
    "embedding",
    "concatenate",
    "where",
    "split_heads",
    "identity",
    "max_pool2d",
    "asarray",
    "constant",
    "weight",
    "to_numpy",
)


def _joined(x: Array) -> Array:
    """(B, H, T, d) -> (B, T, H d)."""
    x = x.swapaxes(1, 2)
    return x.reshape(*x.shape[:2], -1)


def _in_order(rest: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """bias, stride and padding, which the probe takes by position."""
    defaults = {"bias": None, "stride": (1, 1), "padding": 0}
    return tuple({**defaults, **dict(zip(defaults, rest, strict=False)), **named}.values())


def outside(got: Array, want: Within, form: str) -> str | None:
    """The number that is furthest outside of what it may be, in words.

    NaN must meet NaN, and an infinity the same.  A number that may be beyond the largest of the format may be infinite.
    """
    got = np.asarray(got, np.float64)
    if got.shape != want.value.shape:
        return f"shape {got.shape}, not {want.value.shape}"
    value = want.value
    largest = float(np.finfo(np.float64 if form == "float64" else np.float32).max) if form != "float16" else 65504.0
    with np.errstate(all="ignore"):
        allowed = ROOM * want.error
        near = np.abs(got - value) <= allowed
        same = (got == value) | (np.isnan(got) & np.isnan(value))
        beyond = np.isinf(got) & (np.sign(got) == np.sign(value)) & (np.abs(value) + allowed >= largest)
        wrong = ~(same | near & np.isfinite(value) | beyond)
    if not wrong.any():
        return None
    with np.errstate(all="ignore"):
        excess = np.where(wrong, np.nan_to_num(np.abs(got - value) / allowed, nan=np.inf, posinf=np.inf), -1.0)
    at = tuple(int(i) for i in np.unravel_index(np.argmax(excess), excess.shape))
    return (
        f"{int(wrong.sum())} of {wrong.size} numbers are off, worst at {at}: {got[at]!r}, not {value[at]!r} "
        f"within {allowed[at]:.3g}"
    )
