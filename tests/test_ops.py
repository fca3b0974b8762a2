"""Every operation of ``Ops`` against facts about it: invariances, limits, scipy, ``math`` on scalars, slow loops."""

from __future__ import annotations

import functools
import inspect
import math
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from wrong_operands import wrong_calls

from d2v_ref.errors import BackendError, InputError
from d2v_ref.nn import BatchNorm2d, Conv1d, Conv2d, Embedding, LayerNorm, Linear, Module
from d2v_ref.ops import ACTIVATIONS, Ops, definitions

OPS = Ops("float64")
seeds = st.integers(0, 2**32 - 1)
rows = hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6), elements=st.floats(-50, 50))


def close(got: Any, want: Any, atol: float = 1e-12) -> None:
    assert np.shape(got) == np.shape(want)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=atol)


def dot(a: np.ndarray, b: np.ndarray) -> float:
    """The sum of products without any rounding but the last."""
    return float(sum(Fraction(x) * Fraction(y) for x, y in zip(a.tolist(), b.tolist(), strict=True)))


# ---- softmax


@given(x=rows, shift=st.floats(-1e3, 1e3), seed=seeds)
def test_softmax_is_a_distribution_that_no_shift_changes(x: np.ndarray, shift: float, seed: int) -> None:
    p = OPS.softmax(x)
    assert p.shape == x.shape
    assert (p >= 0).all()
    close(p.sum(-1), np.ones(x.shape[:-1]))
    close(OPS.softmax(x + shift), p)
    order = np.random.default_rng(seed).permutation(x.shape[-1])
    close(OPS.softmax(x[..., order]), p[..., order])
    close(p, scipy.special.softmax(x, -1))
    # The ratio of two probabilities is e to the difference of their scores.
    close(p[..., 0] * np.exp(x[..., -1] - x.max(-1)), p[..., -1] * np.exp(x[..., 0] - x.max(-1)))


@given(x=rows)
def test_log_softmax(x: np.ndarray) -> None:
    close(OPS.log_softmax(x), scipy.special.log_softmax(x, -1))
    close(np.exp(OPS.log_softmax(x)), OPS.softmax(x))


@pytest.mark.parametrize("dtype", Ops.dtypes)
def test_softmax_of_numbers_that_exp_can_not_take(dtype: str) -> None:
    ops = Ops(dtype)
    x = np.array([1e4, 0.0, -1e4], dtype)
    np.testing.assert_array_equal(ops.softmax(x), [1, 0, 0])
    np.testing.assert_array_equal(ops.log_softmax(x), [0, -1e4, -2e4])
    lowest = np.full(3, np.finfo(dtype).min, dtype)
    np.testing.assert_allclose(ops.softmax(lowest), np.full(3, 1 / 3), rtol=1e-6)


# ---- layer_norm


@given(seed=seeds, width=st.integers(2, 40), scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_layer_norm_has_mean_0_and_variance_1_whatever_comes_in(
    seed: int, width: int, scale: float, shift: float
) -> None:
    random = np.random.default_rng(seed)
    x, one, zero = random.normal(size=(3, width)), np.ones(width), np.zeros(width)
    y = OPS.layer_norm(x, one, zero, 0.0)
    close(y.mean(-1), np.zeros(3))
    close(y.var(-1), np.ones(3))
    np.testing.assert_allclose(OPS.layer_norm(scale * x + shift, one, zero, 0.0), y, atol=1e-8)
    np.testing.assert_allclose(y, scipy.stats.zscore(x, axis=-1), atol=1e-10)
    weight, bias = random.normal(size=(2, width))
    z = OPS.layer_norm(x, weight, bias, 0.0)
    close((z - bias), y * weight)


@given(eps=st.floats(1e-12, 1), spread=st.floats(1e-3, 10))
def test_eps_is_added_to_the_variance_under_the_root(eps: float, spread: float) -> None:
    """Of (-s, s), variance s^2: the output's variance is s^2 / (s^2 + eps), by the definition of eps."""
    y = OPS.layer_norm(np.array([-spread, spread]), np.ones(2), np.zeros(2), eps)
    assert y.var() == pytest.approx(spread**2 / (spread**2 + eps), rel=1e-9)


@pytest.mark.parametrize("dtype", Ops.dtypes)
def test_layer_norm_of_equal_numbers_is_the_bias(dtype: str) -> None:
    x, bias = np.full((2, 8), 0.1, dtype), np.arange(8, dtype=dtype)
    np.testing.assert_allclose(Ops(dtype).layer_norm(x, np.ones(8, dtype), bias, 1e-5)[0], bias, atol=1e-4)


def test_layer_norm_of_one_row_does_not_see_the_others() -> None:
    x = np.random.default_rng(0).normal(size=(4, 3, 6))
    y = OPS.layer_norm(x, np.ones(6), np.zeros(6), 1e-5)
    close(OPS.layer_norm(x[2, 1], np.ones(6), np.zeros(6), 1e-5), y[2, 1])


@given(seed=seeds, width=st.integers(1, 12), eps=st.floats(1e-12, 1))
def test_layer_norm_without_weights_is_with_one_and_zero(seed: int, width: int, eps: float) -> None:
    x = np.random.default_rng(seed).normal(size=(2, 3, width))
    close(OPS.layer_norm(x, None, None, eps), OPS.layer_norm(x, np.ones(width), np.zeros(width), eps))
    if width > 1:
        np.testing.assert_allclose(OPS.layer_norm(x, None, None, 0.0), scipy.stats.zscore(x, axis=-1), atol=1e-10)


# ---- convolutions


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    random, groups = np.random.default_rng(draw(seeds)), draw(st.integers(1, 3))
    taps, stride, dilation, padding = (draw(st.integers(low, 4)) for low in (1, 1, 1, 0))
    width, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    least = max(dilation * (taps - 1) + 1 - 2 * padding, 1)
    return {
        "x": random.normal(size=(draw(st.integers(1, 3)), least + draw(st.integers(0, 12)), width)),
        "weight": random.normal(size=(outputs, width // groups, taps)),
        "bias": random.normal(size=outputs) if draw(st.booleans()) else None,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }


blocks = st.sampled_from([1, 7, 60, 1 << 20])  # elements at a time: a frame, a few, all


@settings(max_examples=60)
@given(c=convolutions(), size=blocks)
def test_conv1d_in_a_slow_loop(c: dict[str, Any], size: int) -> None:
    with mock.patch.object(definitions, "_BLOCK", size):
        y = OPS.conv1d(**c)
    (batch, length), (outputs, group_width, taps) = c["x"].shape[:2], c["weight"].shape
    frames = (length + 2 * c["padding"] - c["dilation"] * (taps - 1) - 1) // c["stride"] + 1
    assert y.shape == (batch, frames, outputs)
    for b, t, o in np.ndindex(y.shape):
        first = o // (outputs // c["groups"]) * group_width  # of the input channels of o's group
        want = 0.0 if c["bias"] is None else float(c["bias"][o])
        for channel, j in np.ndindex(group_width, taps):
            at = t * c["stride"] + j * c["dilation"] - c["padding"]
            want += float(c["weight"][o, channel, j] * c["x"][b, at, first + channel]) if 0 <= at < length else 0.0
        assert y[b, t, o] == pytest.approx(want, abs=1e-12)


@settings(max_examples=60)
@given(c=convolutions())
def test_conv1d_is_a_correlation(c: dict[str, Any]) -> None:
    """scipy's, of the padded signal and a kernel with zeros between its taps, every stride-th value of it."""
    x = np.pad(c["x"], ((0, 0), (c["padding"], c["padding"]), (0, 0)))
    outputs, width, taps = c["weight"].shape
    kernel = np.zeros((outputs, width, c["dilation"] * (taps - 1) + 1))
    kernel[:, :, :: c["dilation"]] = c["weight"]
    y = OPS.conv1d(**{**c, "bias": None})
    for b, o in np.ndindex(y.shape[0], outputs):
        group = o // (outputs // c["groups"])
        both = scipy.signal.correlate(x[b, :, group * width : (group + 1) * width], kernel[o].T, "valid", "direct")
        close(y[b, :, o], both[:: c["stride"], 0])
    if c["bias"] is not None:
        close(OPS.conv1d(**c), y + c["bias"])


@settings(max_examples=30)
@given(c=convolutions(), size=blocks)
def test_conv1d_of_views_is_that_of_their_copies(c: dict[str, Any], size: int) -> None:
    spread, turned = np.repeat(np.repeat(c["x"], 2, 1), 3, 2)[:, ::2, ::3], c["weight"].T.copy().T
    assert c["x"].size == 1 or not spread.flags.c_contiguous
    with mock.patch.object(definitions, "_BLOCK", size):
        close(OPS.conv1d(**{**c, "x": spread, "weight": turned}), OPS.conv1d(**c))
        backwards = OPS.conv1d(**{**c, "x": c["x"][::-1]})
    close(backwards[::-1], OPS.conv1d(**c))


@settings(max_examples=60)
@given(c=convolutions(), size=blocks, activation=st.sampled_from(["gelu", "relu", "tanh"]), affine=st.booleans())
def test_conv_norm_act_is_its_parts_for_any_block(c: dict[str, Any], size: int, activation: str, affine: bool) -> None:
    weight, bias, c = c["weight"], c["bias"], {**c, "dilation": 1}
    options = {name: c[name] for name in ("stride", "padding", "groups")}
    conv = Conv1d(c["x"].shape[2], len(weight), weight.shape[2], bias=bias is not None, **options)
    conv.weight, conv.bias = weight, bias
    norm = LayerNorm(len(weight), 1e-3, elementwise_affine=affine)
    if affine:
        norm.weight, norm.bias = np.random.default_rng(0).normal(size=(2, len(weight)))
    want = OPS.activation(activation, OPS.layer_norm(OPS.conv1d(**c), norm.weight, norm.bias, norm.eps))
    with mock.patch.object(definitions, "_BLOCK", size):
        close(OPS.conv_norm_act(c["x"], conv, norm, activation), want)


@given(x=rows)
def test_glu_is_one_half_through_the_gate_of_the_other(x: np.ndarray) -> None:
    a, b = x, x[..., ::-1] / 7
    y = OPS.glu(np.concatenate((a, b), -1))
    close(y, a * scipy.special.expit(b))
    close(OPS.glu(np.concatenate((a, np.zeros_like(a)), -1)), a / 2)
    close(OPS.glu(np.concatenate((a, np.full_like(a, 800.0)), -1)), a)  # open, and no overflow
    assert (OPS.glu(np.concatenate((a, np.full_like(a, -800.0)), -1)) == 0).all()


@given(seed=seeds, batch=st.integers(1, 4), length=st.integers(1, 7), data=st.data())
def test_statistics_pooling_is_mean_and_sample_deviation(
    seed: int, batch: int, length: int, data: st.DataObject
) -> None:
    """Of the frames that a slice of the length keeps, which may be more than there are, or fewer than none."""
    x = np.random.default_rng(seed).normal(size=(batch, length, 3)) + 5
    lengths = data.draw(st.lists(st.integers(-length - 2, length + 3), min_size=batch, max_size=batch))
    got = OPS.statistics_pooling(x, lengths)
    assert got.shape == (batch, 6)
    for row, values, count in zip(got, x, lengths, strict=True):
        frames = values[: max(length + count, 0) if count < 0 else min(count, length)]
        want = np.full(6, np.nan)
        if len(frames):
            want[:3] = np.mean(frames, axis=0)
        if len(frames) > 1:
            want[3:] = np.std(frames, axis=0, ddof=1)
        np.testing.assert_allclose(row, want, rtol=1e-12, atol=1e-14)


MEASURE = """
import re
import numpy as np
import scipy.special
from d2v_ref.nn import Conv1d, LayerNorm
from d2v_ref.ops import Ops

def peak():  # of this process; getrusage would count its parent's as well
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) * 1024

ops, random = Ops(), np.random.default_rng(0)
weight = random.normal(size=(4, 64, 16)).astype("f4")
ops.conv1d(random.normal(size=(1, 99, 64)).astype("f4"), weight)  # whatever a first call loads
x = np.ones((1, 50_000, 64), "f4")
before = peak()
y = ops.conv1d(x, weight, padding=8)
print(peak() - before, x.nbytes)

conv, norm = Conv1d(1, 64, 10, 5, bias=False), LayerNorm(64, 1e-5)
conv.weight = random.normal(size=(64, 1, 10)).astype("f4")
norm.weight, norm.bias = np.ones((2, 64), "f4")
x = np.ones((1, 1_500_000, 1), "f4")
before = peak()
y = ops.conv_norm_act(x, conv, norm, "gelu")
print(peak() - before, y.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
def test_convolutions_of_a_long_signal_copy_no_windows() -> None:
    """conv1d needs its padded signal, where all windows would be 16 times that; conv_norm_act hardly more than its
    output, where its parts one after the other take more than twice that.
    """
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    for line in done.stdout.splitlines():
        used, needed = map(int, line.split())
        assert 0.5 * needed < used < 1.3 * needed + 2**25, line  # a block and its copies are a few megabytes


# ---- attention


def heads_first(x: np.ndarray, heads: int) -> list[np.ndarray]:
    """The heads of (B, T, D), as a list of (B, T, d): D is the heads side by side."""
    return np.split(x, heads, axis=-1)


@st.composite
def attentions(draw: st.DrawFn) -> dict[str, Any]:
    heads, batch, queries, keys = (draw(st.integers(1, n)) for n in (3, 2, 5, 6))
    width = heads * draw(st.integers(1, 4))
    random = np.random.default_rng(draw(seeds))
    q, k, v = (random.normal(size=(batch, length, width)) for length in (queries, keys, keys))
    mask = random.random((batch, 1, queries, keys)) < 0.7
    mask[..., random.integers(keys)] = True  # every query sees something
    return {"q": q, "k": k, "v": v, "heads": heads, "mask": mask, "random": random}


def attend(a: dict[str, Any], ops: Ops = OPS, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    given_ = {name: options.pop(name, a[name]) for name in ("q", "k", "v", "heads")}
    return ops.attention(**given_, probs=True, **options)


@given(a=attentions())
def test_attention_of_one_head_is_the_same_as_of_the_head_among_others(a: dict[str, Any]) -> None:
    context, p = attend(a, mask=a["mask"])
    single = [
        OPS.attention(q, k, v, 1, mask=a["mask"], probs=True)
        for q, k, v in zip(*(heads_first(a[name], a["heads"]) for name in "qkv"), strict=True)
    ]
    close(context, np.concatenate([c for c, _ in single], -1))
    close(p, np.concatenate([q for _, q in single], 1))


@given(a=attentions())
def test_context_is_the_mean_of_the_values_with_probabilities_for_weights(a: dict[str, Any]) -> None:
    context, p = attend(a, mask=a["mask"])
    close(p.sum(-1), np.ones(p.shape[:-1]))
    values = np.stack(heads_first(a["v"], a["heads"]), 1)
    assert (context.min((0, 1)) >= values.min((0, 2)).ravel() - 1e-12).all()  # a mean is within what it is of
    for b, t in np.ndindex(context.shape[:2]):
        want = [np.average(values[b, h], axis=0, weights=p[b, h, t]) for h in range(a["heads"])]
        close(context[b, t], np.concatenate(want))
    assert OPS.attention(a["q"], a["k"], a["v"], a["heads"])[1] is None


@given(a=attentions())
def test_scores_are_products_over_the_root_of_the_head_size(a: dict[str, Any]) -> None:
    """The log of the ratio of two probabilities is the difference of their scores."""
    _, p = attend(a)
    for h, (q, k) in enumerate(zip(heads_first(a["q"], a["heads"]), heads_first(a["k"], a["heads"]), strict=True)):
        for b, t in np.ndindex(q.shape[:2]):
            scores = [dot(q[b, t], key) / math.sqrt(q.shape[-1]) for key in k[b]]
            got = np.log(p[b, h, t]) - np.log(p[b, h, t, 0])
            close(got, np.array(scores) - scores[0], 1e-10)


@given(a=attentions())
def test_keys_and_values_have_no_order(a: dict[str, Any]) -> None:
    order = a["random"].permutation(a["k"].shape[1])
    context, p = attend(a, mask=a["mask"])
    moved, q = attend(a, k=a["k"][:, order], v=a["v"][:, order], mask=a["mask"][..., order])
    close(moved, context)
    close(q, p[..., order])


@given(a=attentions())
def test_a_hidden_key_might_as_well_not_be_there(a: dict[str, Any]) -> None:
    if a["k"].shape[1] == 1:
        return
    gone = int(a["random"].integers(a["k"].shape[1]))
    mask = np.arange(a["k"].shape[1]) != gone
    context, p = attend(a, mask=mask)
    removed, q = attend(a, k=np.delete(a["k"], gone, 1), v=np.delete(a["v"], gone, 1))
    close(context, removed)
    close(np.delete(p, gone, -1), q)
    assert (p[..., gone] == 0).all()


@given(a=attentions())
def test_causal_is_a_lower_triangle_aligned_at_the_end(a: dict[str, Any]) -> None:
    queries, keys = a["q"].shape[1], a["k"].shape[1]
    triangle = np.array([[s <= t + keys - queries for s in range(keys)] for t in range(queries)])
    for mask in (None, a["mask"]):
        close(attend(a, causal=True, mask=mask)[0], attend(a, mask=triangle if mask is None else mask & triangle)[0])


@given(a=attentions(), dtype=st.sampled_from(Ops.dtypes))
def test_a_query_that_sees_nothing_attends_evenly(a: dict[str, Any], dtype: str) -> None:
    mask = a["mask"].copy()
    mask[0, 0, 0] = False
    inputs = {name: a[name].astype(dtype) for name in "qkv"}
    context, p = attend(a, Ops(dtype), mask=mask, **inputs)
    np.testing.assert_allclose(context[0, 0], inputs["v"][0].mean(0), atol=1e-6)
    np.testing.assert_allclose(p[0, :, 0], 1 / mask.shape[-1], rtol=1e-6)


@given(a=attentions())
def test_a_head_mask_of_zero_silences_its_head_only(a: dict[str, Any]) -> None:
    factors = np.ones((a["heads"], 1, 1))
    factors[0] = 0
    factors[-1] *= 0.5
    context, _ = attend(a, mask=a["mask"])
    masked, _ = attend(a, mask=a["mask"], head_mask=factors)
    for h, (got, was) in enumerate(zip(heads_first(masked, a["heads"]), heads_first(context, a["heads"]), strict=True)):
        close(got, was * factors[h, 0, 0])


@given(a=attentions(), shift=st.floats(-100, 100))
def test_a_bias_is_added_to_the_scores(a: dict[str, Any], shift: float) -> None:
    bias = a["random"].normal(size=(a["q"].shape[0], a["heads"], a["q"].shape[1], a["k"].shape[1]))
    plain, p = attend(a)
    shifted, _ = attend(a, bias=np.full_like(bias, shift))
    close(shifted, plain, 1e-10)  # a constant changes no softmax
    _, biased = attend(a, bias=bias)
    weighted = p * np.exp(bias)  # and a factor of e^bias before the sum is what it does
    close(biased, weighted / weighted.sum(-1, keepdims=True))
    close(attend(a, bias=np.where(a["mask"], 0, -1e300))[0], attend(a, mask=a["mask"])[0])


@given(
    seed=seeds,
    heads=st.integers(1, 3),
    size=st.integers(1, 3),
    queries=st.integers(1, 4),
    past=st.integers(0, 3),
    with_key=st.booleans(),
)
def test_relative_key_bias_in_a_slow_double_loop(
    seed: int, heads: int, size: int, queries: int, past: int, with_key: bool
) -> None:
    random = np.random.default_rng(seed)
    keys, positions = queries + past, 8
    q = random.normal(size=(2, queries, heads * size))
    k = random.normal(size=(2, keys, heads * size))
    table = random.normal(size=(2 * positions - 1, size))
    got = OPS.relative_key_bias(q, k, heads, table, with_key)
    assert got.shape == (2, heads, queries, keys)
    for b, h, t, s in np.ndindex(got.shape):
        here = slice(h * size, (h + 1) * size)
        distance = (past + t) - s
        e = table[positions - 1 + distance]
        want = float(q[b, t, here] @ e) + (float(k[b, s, here] @ e) if with_key else 0.0)
        assert got[b, h, t, s] == pytest.approx(want / math.sqrt(size), abs=1e-12)


# ---- activations

SCALAR: dict[str, Callable[[float], float]] = {
    "gelu": lambda x: x * math.erfc(-x / math.sqrt(2)) / 2,
    "gelu_10": lambda x: min(max(x * math.erfc(-x / math.sqrt(2)) / 2, -10.0), 10.0),
    # (1 + tanh y) / 2 = 1 / (1 + exp(-2 y)): another form of the same function
    "gelu_tanh": lambda x: x * scipy.special.expit(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "gelu_fast": lambda x: x * scipy.special.expit(2 * 0.7978845608 * (x + 0.044715 * x**3)),
    "quick_gelu": lambda x: x * (1 + math.tanh(0.851 * x)) / 2,
    "hardswish": lambda x: 0.0 if x <= -3 else x if x >= 3 else x * (x + 3) / 6,
    "laplace": lambda x: scipy.special.ndtr((x - 0.707107) / 0.282095),
    "leaky_relu": lambda x: x if x > 0 else x / 100,
    "identity": lambda x: x,
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))) if x < 20 else x,
    "relu": lambda x: x if x > 0 else 0.0,
    "relu2": lambda x: x * x if x > 0 else 0.0,
    "relu6": lambda x: sorted((0.0, x, 6.0))[1],
    "sigmoid": lambda x: (1 + math.tanh(x / 2)) / 2,
    "silu": lambda x: x * (1 + math.tanh(x / 2)) / 2,
    "sqrtsoftplus": lambda x: math.sqrt(math.log1p(math.exp(x)) if x < 20 else x),
    "tanh": lambda x: 1 - 2 / (math.exp(2 * x) + 1),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@given(x=st.lists(st.floats(-30, 30), min_size=1, max_size=20))
def test_activations_on_scalars(name: str, x: list[float]) -> None:
    want = [SCALAR[ACTIVATIONS[name]](value) for value in x]
    np.testing.assert_allclose(OPS.activation(name, np.array(x)), want, rtol=1e-7, atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", Ops.dtypes)
def test_activations_at_the_ends_are_finite_and_keep_dtype_and_shape(name: str, dtype: str) -> None:
    """No overflow either: a warning of NumPy is an error in these tests."""
    x = np.array([[-1e4, -88.8, -20.0, -1e-30, -0.0], [0.0, 1e-30, 20.0, 88.8, 1e4]], dtype)
    y = Ops(dtype).activation(name, x)
    assert y.dtype == dtype
    assert y.shape == x.shape
    assert np.isfinite(y).all()
    # All of them but the identity and the leaky one are flat at one end or both.
    if name not in ("linear", "leaky_relu"):
        assert abs(y[0, 0]) <= 1


def test_gelu_is_x_times_the_normal_distribution() -> None:
    x = np.linspace(-9, 9, 4001)
    np.testing.assert_allclose(OPS.gelu(x), x * scipy.special.ndtr(x), rtol=1e-9, atol=1e-15)
    close(OPS.gelu(x) - OPS.gelu(-x), x)  # Phi(x) + Phi(-x) = 1
    difference = np.abs(OPS.gelu(x) - OPS.gelu_tanh(x)).max()
    assert 1e-4 < difference < 1e-3  # the tanh form is another function


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(InputError, match=r"activation: no such activation .got gelo; expected gelu, "):
        OPS.activation("gelo", np.ones(1))


# ---- linear, project, embedding


@given(
    seed=seeds, lead=hnp.array_shapes(min_dims=0, max_dims=3, max_side=4), activation=st.sampled_from(["gelu", None])
)
def test_a_fused_linear_is_what_it_fuses(seed: int, lead: tuple[int, ...], activation: str | None) -> None:
    random = np.random.default_rng(seed)
    x, weight, bias = random.normal(size=(*lead, 4)), random.normal(size=(3, 4)), random.normal(size=3)
    residual = random.normal(size=(*lead, 3))
    product = OPS.linear(x, weight)
    for index in np.ndindex(product.shape):
        assert product[index] == pytest.approx(dot(x[index[:-1]], weight[index[-1]]), abs=1e-12)
    y = product + bias
    close(OPS.linear(x, weight, bias), y)
    y = y if activation is None else OPS.activation(activation, y)
    close(OPS.linear(x, weight, bias, activation), y)
    close(OPS.linear(x, weight, bias, activation, residual), y + residual)
    close(OPS.linear(x, weight, residual=residual), product + residual)
    scale = random.normal(size=3)
    close(OPS.linear(x, weight, bias, activation, residual, scale), scale * y + residual)
    close(OPS.linear(x, weight, scale=scale), scale * product)


def test_project_is_each_linear_in_turn() -> None:
    random = np.random.default_rng(0)
    x, linears = random.normal(size=(2, 3, 4)), [Linear(4, n) for n in (2, 5, 1)]
    for linear in linears:
        linear.weight, linear.bias = random.normal(size=linear.weight.shape), random.normal(size=linear.bias.shape)
    for got, linear in zip(OPS.project(x, *linears), linears, strict=True):
        np.testing.assert_array_equal(got, OPS.linear(x, linear.weight, linear.bias))
    assert OPS.project(x) == ()


@given(ids=hnp.arrays(np.int64, hnp.array_shapes(min_dims=0, max_dims=3), elements=st.integers(-3, 8)))
def test_embedding_takes_rows_and_refuses_others(ids: np.ndarray) -> None:
    table = np.random.default_rng(0).normal(size=(6, 3))
    if ids.min() < 0 or ids.max() > 5:
        with pytest.raises(InputError, match=rf"embedding: .*got {ids.min()} ... {ids.max()}; expected 0 ... 5"):
            OPS.embedding(ids, table)
        return
    got = OPS.embedding(ids, table)
    assert got.shape == (*ids.shape, 3)
    for index in np.ndindex(ids.shape):
        np.testing.assert_array_equal(got[index], table[ids[index]])


def test_concatenate_and_split_heads() -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(OPS.concatenate((x[:, :1], x[:, 1:]), 1), x)
    split = OPS.split_heads(x, 2)
    assert split.shape == (2, 2, 3, 2)
    for h, part in enumerate(heads_first(x, 2)):
        np.testing.assert_array_equal(split[:, h], part)


# ---- maps


@st.composite
def maps(draw: st.DrawFn, least: int = 1) -> np.ndarray:
    """(B, H, W, C), laid out in memory in one of several ways."""
    batch, channels = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    height, width = draw(st.integers(least, 7)), draw(st.integers(least, 7))
    random = np.random.default_rng(draw(seeds))
    forms: dict[str, Any] = {
        "contiguous": lambda: random.normal(size=(batch, height, width, channels)),
        "channels first": lambda: random.normal(size=(batch, channels, height, width)).transpose(0, 2, 3, 1),
        "every other": lambda: random.normal(size=(batch, 2 * height, 2 * width, channels))[:, ::2, ::-2],
        "turned": lambda: random.normal(size=(width, height, batch, channels)).transpose(2, 1, 0, 3),
    }
    return forms[draw(st.sampled_from(sorted(forms)))]()


@settings(max_examples=60)
@given(
    x=maps(), kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)), padding=st.integers(0, 2),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)), outputs=st.integers(1, 3), seed=seeds,
    block=st.sampled_from([1, 10, 50, 1 << 20]),
)  # fmt: skip
def test_conv2d_in_a_slow_loop(
    x: np.ndarray, kernel: Any, padding: int, stride: Any, outputs: int, seed: int, block: int
) -> None:
    """Pixel by pixel and tap by tap, in pieces of any size."""
    batch, height, width, channels = x.shape
    random = np.random.default_rng(seed)
    weight, bias = random.normal(size=(outputs, channels, *kernel)), random.normal(size=outputs)
    spans = [(length + 2 * padding - taps) for length, taps in zip((height, width), kernel, strict=True)]
    with mock.patch.object(definitions, "_BLOCK", block):
        if min(spans) < 0:
            with pytest.raises(InputError, match=r"^conv2d: the map is smaller than the kernel"):
                OPS.conv2d(x, weight, bias, stride, padding)
            return
        got = OPS.conv2d(x, weight, bias, stride, padding)
        close(OPS.conv2d(x, weight, None, stride, padding), got - bias)
    down, across = (span // step + 1 for span, step in zip(spans, stride, strict=True))
    want = np.zeros((batch, down, across, outputs))
    for b, i, j, o in np.ndindex(want.shape):
        want[b, i, j, o] = bias[o]
        for u, v in np.ndindex(*kernel):
            y, z = i * stride[0] + u - padding, j * stride[1] + v - padding
            if 0 <= y < height and 0 <= z < width:
                want[b, i, j, o] += weight[o, :, u, v] @ x[b, y, z]
    close(got, want)


@given(x=maps(least=3), seed=seeds)
def test_conv2d_is_a_correlation(x: np.ndarray, seed: int) -> None:
    kernel = np.random.default_rng(seed).normal(size=(1, x.shape[3], 3, 2))
    want = sum(scipy.signal.correlate2d(x[0, :, :, c], kernel[0, c], "valid") for c in range(x.shape[3]))
    close(OPS.conv2d(x, kernel)[0, :, :, 0], want)


@given(x=maps(), size=st.integers(1, 3), outputs=st.integers(1, 3), seed=seeds)
def test_conv_transpose2d_is_the_transpose_of_the_convolution(
    x: np.ndarray, size: int, outputs: int, seed: int
) -> None:
    """<conv_transpose(x), y> = <x, conv(y)> with one weight; and each tile comes of its pixel alone."""
    random = np.random.default_rng(seed)
    weight, bias = random.normal(size=(x.shape[3], outputs, size, size)), random.normal(size=outputs)
    got = OPS.conv_transpose2d(x, weight, np.zeros(outputs))
    y = random.normal(size=got.shape)
    close((got * y).sum(), (x * OPS.conv2d(y, weight, None, (size, size))).sum(), atol=1e-10)
    close(OPS.conv_transpose2d(x, weight, bias), got + bias)
    for b, i, j, _ in np.ndindex(x.shape):
        tile = np.einsum("c,couv->uvo", x[b, i, j], weight)
        close(got[b, i * size : (i + 1) * size, j * size : (j + 1) * size], tile)


@given(x=maps(), seed=seeds, eps=st.sampled_from([1e-5, 0.1]))
def test_batch_norm_by_the_statistics_of_the_batch_itself(x: np.ndarray, seed: int, eps: float) -> None:
    """Then mean 0 and a variance that eps makes smaller; other statistics shift and stretch."""
    random, width = np.random.default_rng(seed), x.shape[3]
    weight, bias = random.normal(size=width), random.normal(size=width)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    y = OPS.batch_norm(x, mean, var, np.ones(width), np.zeros(width), eps)
    close(y.mean((0, 1, 2)), np.zeros(width))
    close(y.var((0, 1, 2)), var / (var + eps))
    close(OPS.batch_norm(x, mean, var, weight, bias, eps), y * weight + bias)
    # A channel of three times the spread has nine times the variance, and one that is moved has another mean.
    close(OPS.batch_norm(3 * x + 1, 3 * mean + 1, 9 * var, weight, bias, 9 * eps), y * weight + bias, atol=1e-10)


@given(x=maps(), padding=st.integers(0, 1), seed=seeds, activation=st.sampled_from(["relu", "gelu"]))
def test_conv2d_norm_act_is_its_parts(x: np.ndarray, padding: int, seed: int, activation: str) -> None:
    random, width = np.random.default_rng(seed), x.shape[3]
    conv, norm = Conv2d(width, 2, (1, 1), padding=padding), BatchNorm2d(2, 0.1)
    conv.weight, conv.bias = random.normal(size=(2, width, 1, 1)), random.normal(size=2)
    norm.weight, norm.bias, norm.running_mean = random.normal(size=(3, 2))
    norm.running_var = random.random(2)
    y = OPS.conv2d(x, conv.weight, conv.bias, (1, 1), padding)
    y = OPS.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, 0.1)
    close(OPS.conv2d_norm_act(x, conv, norm, activation), OPS.activation(activation, y))


@given(x=maps(), size=st.integers(1, 4))
def test_pools_of_every_tile_and_cell(x: np.ndarray, size: int) -> None:
    batch, height, width, channels = x.shape
    if min(height, width) < size:
        with pytest.raises(InputError, match=r"^max_pool2d: the map is smaller than a tile"):
            OPS.max_pool2d(x, size)
    else:
        got = OPS.max_pool2d(x, size)
        assert got.shape == (batch, height // size, width // size, channels)
        for i, j in np.ndindex(got.shape[1:3]):
            tile = x[:, i * size : (i + 1) * size, j * size : (j + 1) * size]
            np.testing.assert_array_equal(got[:, i, j], tile.reshape(batch, -1, channels, order="A").max(1))
    got = OPS.adaptive_avg_pool2d(x, size)
    for i, j in np.ndindex(size, size):  # a pixel belongs to every cell that it overlaps
        rows_ = [y for y in range(height) if y < Fraction(i + 1, size) * height and y + 1 > Fraction(i, size) * height]
        columns = [z for z in range(width) if z < Fraction(j + 1, size) * width and z + 1 > Fraction(j, size) * width]
        close(got[:, i, j], x[:, rows_][:, :, columns].mean((1, 2)))
    close(OPS.adaptive_avg_pool2d(x, 1)[:, 0, 0], x.mean((1, 2)))
    if size * size == height * width and height == width:
        np.testing.assert_array_equal(got, x)


MODES = ("bilinear", "bicubic")
sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))


@pytest.mark.parametrize("mode", MODES)
@given(x=maps(), size=sizes, constant=st.floats(-1e3, 1e3))
def test_resize_keeps_what_it_may_not_change(mode: str, x: np.ndarray, size: Any, constant: float) -> None:
    for ops in (OPS, Ops("float32")):
        same = x.astype(ops.dtype)
        np.testing.assert_array_equal(ops.resize(same, x.shape[1:3], mode), same)  # not a bit
        assert ops.resize(same, size, mode).dtype == ops.dtype
    close(OPS.resize(np.full(x.shape, constant), size, mode), np.full((len(x), *size, x.shape[3]), constant), 1e-10)
    got = OPS.resize(x, size, mode)
    close(OPS.resize(x[:, ::-1, ::-1], size, mode), got[:, ::-1, ::-1])  # it has no preferred end
    close(OPS.resize(x.swapaxes(1, 2), size[::-1], mode), got.swapaxes(1, 2))
    close(OPS.resize(np.ascontiguousarray(x), size, mode), got)
    close(OPS.resize(x[:, :1, :1], size, mode), np.broadcast_to(x[:, :1, :1], got.shape))  # one pixel is everywhere


@given(length=st.integers(4, 9), out=st.integers(1, 30), a=st.floats(-5, 5), b=st.floats(-5, 5))
def test_resize_of_a_polynomial_is_that_polynomial_inside(length: int, out: int, a: float, b: float) -> None:
    """At output pixels' centres, where no tap lies beyond the border.

    Bilinear reproduces a line.  Bicubic does so, and squares too, with Keys' own a = -1/2 only; with -3/4 it meets a
    line at the pixels and half-way between them.
    """
    pixels, centres = (np.arange(length) + 0.5) / length, (np.arange(out) + 0.5) / out

    def resized(y: np.ndarray, mode: str) -> tuple[np.ndarray, np.ndarray]:
        """The output, and where it sees no border."""
        taps = {"bilinear": 0.5, "bicubic": 1.5}[mode] / length
        inside = (centres >= taps) & (centres <= 1 - taps)
        return OPS.resize(y[None, :, None, None], (out, 1), mode)[0, :, 0, 0], inside

    got, inside = resized(a * pixels + b, "bilinear")
    close(got[inside], (a * centres + b)[inside])
    assert np.abs(got - np.clip(got, (a * pixels + b).min() - 1e-12, (a * pixels + b).max() + 1e-12)).max() == 0
    got, inside = resized(a * pixels + b, "bicubic")
    inside &= length * (2 * np.arange(out) + 1) % out == 0
    close(got[inside], (a * centres + b)[inside])
    with mock.patch.object(definitions, "_keys", functools.partial(definitions._keys, a=-0.5)):
        got, inside = resized(a * pixels * pixels + b * pixels, "bicubic")
    close(got[inside], (a * centres * centres + b * centres)[inside])


@given(x=maps(), size=sizes)
def test_bilinear_resize_is_scipys_interpolation_at_the_centres(x: np.ndarray, size: Any) -> None:
    at = [(np.arange(out) + 0.5) * length / out - 0.5 for out, length in zip(size, x.shape[1:3], strict=True)]
    grid = np.meshgrid(*(np.clip(axis, 0, length - 1) for axis, length in zip(at, x.shape[1:3], strict=True)),
                       indexing="ij")  # fmt: skip
    got = OPS.resize(x, size, "bilinear")
    for b, c in np.ndindex(x.shape[0], x.shape[3]):
        close(got[b, :, :, c], scipy.ndimage.map_coordinates(x[b, :, :, c], grid, order=1, mode="nearest"))


def test_bicubic_resize_of_one_bright_pixel() -> None:
    """Twice the size: Keys' kernel with a = -3/4 at quarters, worked out by hand; and not at the border's half."""
    x = np.zeros((1, 9, 1, 1))
    x[0, 4] = 1
    half = [-0.03515625, -0.10546875, 0.26171875, 0.87890625]
    got = OPS.resize(x, (18, 1), "bicubic")[0, :, 0, 0]
    np.testing.assert_allclose(got[5:13], [*half, *half[::-1]], atol=1e-15)
    assert not got[:5].any()
    assert not got[13:].any()
    x[0, :] = 0
    x[0, 0] = 1  # which stands beyond the border as well
    got = OPS.resize(x, (18, 1), "bicubic")[0, :, 0, 0]
    # Output 0 lies a quarter before pixel 0: all taps but the last, at 1, are pixel 0; output 1 has two beyond it.
    np.testing.assert_allclose(got[:2], [half[0] + half[2] + half[3], half[1] + half[3]], atol=1e-15)


# ---- errors, dtypes, purity

SHAPE_ERRORS = wrong_calls(OPS)


@pytest.mark.parametrize("words", SHAPE_ERRORS)
def test_what_does_not_fit_is_an_error_that_names_the_operation(words: str) -> None:
    with pytest.raises(InputError, match=f"^{words}"):
        SHAPE_ERRORS[words]()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "f4", ""])
def test_a_dtype_that_it_does_not_compute_in(dtype: str) -> None:
    with pytest.raises(BackendError, match=r"backend numpy does not compute in this dtype .*float32 or float64"):
        Ops(dtype)


@pytest.mark.parametrize("dtype", Ops.dtypes)
def test_asarray_converts_floats_only_and_copies_where_it_must(dtype: str) -> None:
    ops = Ops(dtype)
    for given_ in ("float16", "float32", "float64", ">f4"):
        assert ops.asarray(np.ones(3, given_)).dtype == np.dtype(dtype)
    for kept in ("int64", "bool", "int8"):
        assert ops.asarray(np.ones(3, kept)).dtype == np.dtype(kept)
    x = np.ones((2, 3), dtype)
    assert ops.asarray(x) is x
    assert ops.asarray(x.T).flags.c_contiguous
    np.testing.assert_array_equal(ops.to_numpy(ops.asarray([[1.5, 2.5]])), [[1.5, 2.5]])


def some_arguments(dtype: str) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments for every operation, with all the optional ones."""
    random = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(dtype)

    x, linear, conv, norm = array(2, 3, 4), Linear(4, 4), Conv1d(4, 4, 2, 1, 1, 2, bias=True), LayerNorm(4, 1e-5)
    linear.weight, linear.bias, norm.weight, norm.bias = array(4, 4), array(4), array(4), array(4)
    conv.weight, conv.bias = array(4, 2, 2), array(4)
    picture, conv2d, batch_norm = array(2, 3, 5, 4), Conv2d(4, 4, (2, 2)), BatchNorm2d(4)
    conv2d.weight, conv2d.bias = array(4, 4, 2, 2), array(4)
    for name in ("weight", "bias", "running_mean"):
        setattr(batch_norm, name, array(4))
    batch_norm.running_var = np.abs(array(4))
    table = Embedding(4, 4)
    table.weight = array(4, 4)
    unary: dict[str, Any] = {
        name: ((x,), {})
        for name in {
            *ACTIVATIONS.values(),
            "softplus",
            "softmax",
            "log_softmax",
            "asarray",
            "constant",
            "weight",
            "glu",
        }
    }
    options = {
        "mask": random.random((2, 1, 3, 3)) < 0.5,
        "causal": True,
        "bias": array(2, 2, 3, 3),
        "head_mask": array(2, 1, 1),
        "probs": True,
    }
    return {
        **unary,
        "to_numpy": ((x,), {}),
        "prepare": ((linear,), {}),
        "concatenate": (((x, x),), {"axis": 1}),
        "activation": (("gelu_10", x), {}),
        "replay": ((lambda x: x, x), {}),
        "where": ((random.random(4) < 0.5, x, array(3, 1)), {}),
        "add": ((x, array(3, 1)), {}),
        "embedding": ((np.array([[0, 3]]), array(4, 2)), {}),
        "embed_norm": (((np.array([[0, 3]]), np.array([[1, 2]])), (table, table), norm), {}),
        "linear": ((x, linear.weight, linear.bias, "gelu", array(2, 3, 4), array(4)), {}),
        "project": ((x, linear, linear), {}),
        "layer_norm": ((x, array(4), array(4), 1e-5), {}),
        "conv1d": ((x, conv.weight, conv.bias, 2, 1, 2, 2), {}),
        "conv_norm_act": ((x, conv, norm, "gelu"), {}),
        "statistics_pooling": ((x, [3, 2]), {}),
        "split_heads": ((x, 2), {}),
        "attention": ((x, array(2, 3, 4), array(2, 3, 4), 2), options),
        "relative_key_bias": ((x, array(2, 3, 4), 2, array(7, 2), True), {}),
        "conv2d": ((picture, conv2d.weight, conv2d.bias, (2, 1), 1), {}),
        "conv_transpose2d": ((picture, array(4, 3, 2, 2), array(3)), {}),
        "batch_norm": ((picture, array(4), np.abs(array(4)), array(4), array(4), 1e-5), {}),
        "conv2d_norm_act": ((picture, conv2d, batch_norm, "relu"), {}),
        "max_pool2d": ((picture, 2), {}),
        "adaptive_avg_pool2d": ((picture, 2), {}),
        "resize": ((picture, (4, 2), "bicubic"), {}),
    }


OPERATIONS = [name for name, value in vars(Ops).items() if inspect.isfunction(value) and not name.startswith("_")]


def arrays_in(value: Any) -> list[np.ndarray]:
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, Module):
        names = ("weight", "bias", "running_mean", "running_var")
        return [getattr(value, name) for name in names if hasattr(value, name)]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [array for item in value for array in arrays_in(item)] if isinstance(value, tuple) else []


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", Ops.dtypes)
def test_an_operation_keeps_the_dtype_and_changes_no_input(name: str, dtype: str) -> None:
    args, kwargs = some_arguments(dtype)[name]
    inputs = arrays_in((args, kwargs))
    before = [array.copy() for array in inputs]
    for array in inputs:
        array.flags.writeable = False  # whoever writes to an input fails here
    out = getattr(Ops(dtype), name)(*args, **kwargs)
    assert all(array.dtype == dtype for array in arrays_in(out if isinstance(out, tuple) else (out,)))
    for array, was in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(array, was)


@settings(max_examples=30)
@given(changed=st.sets(st.sampled_from(OPERATIONS)))
def test_overrides_are_those_of_the_subclass(changed: set[str]) -> None:
    body = {name: (lambda self, *args, **kwargs: None) for name in changed}
    middle: Any = type("Middle", (Ops,), {**body, "_helper": lambda self: None, "pack": lambda self: None})
    assert middle.overrides() == sorted(changed)
    leaf: Any = type("Leaf", (middle,), {"gelu": lambda self, x: x})
    assert leaf.overrides() == sorted({*changed, "gelu"})
    assert Ops.overrides() == []


def test_an_override_serves_the_fused_operations_too() -> None:
    class Doubled(Ops):
        def gelu(self, x: Any) -> Any:
            return 2 * super().gelu(x)

    x, weight = np.random.default_rng(0).normal(size=(2, 2, 3))
    close(Doubled("float64").linear(x, weight, None, "gelu"), 2 * OPS.linear(x, weight, None, "gelu"))
