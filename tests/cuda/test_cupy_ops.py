"""Every operation of the backend "cupy", computed on the processor, against its definition in float64."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cupy", reason="the CUDA packages are not installed: pip install 'd2v-ref[cuda-test]'")

import emulator
from backend_checks import come_and_go, hold, tied
from d2v_backends.cupy import CupyOps
from formats import bounds_of, calls_of
from kernel_checks import numbers_of
from operation_calls import CALLS
from standin import StandIn
from wrong_operands import wrong_calls

from d2v_ref.errors import BackendError, InputError
from d2v_ref.nn import Linear
from d2v_ref.ops import Ops, get_ops

pytestmark = pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))

EXAMPLES = {"attention": 6, "linear": 12, "project": 6, "conv1d": 8, "conv_norm_act": 6, "conv2d": 6}


@functools.cache
def ops_of(form: str) -> CupyOps:
    return CupyOps(form, StandIn(form))


@pytest.mark.parametrize("form", CupyOps.dtypes)
@pytest.mark.parametrize("operation", sorted(CALLS))
def test_an_operation_is_its_definition(operation: str, form: str) -> None:
    bounds = bounds_of(form, operation)
    for call in calls_of(operation, form, range(EXAMPLES.get(operation, 4))):
        hold(call, ops_of(form), bounds, numbers_of(form))


@pytest.mark.parametrize("words", wrong_calls(Ops()))
def test_what_does_not_fit_is_the_definitions_error(words: str) -> None:
    with pytest.raises(InputError, match=f"^{words}"):
        wrong_calls(ops_of("float32"))[words]()


@pytest.mark.parametrize("form", ["float32", "bfloat16"])
def test_weights_come_and_go(form: str) -> None:
    come_and_go(ops_of(form), form, rounds=8)


@pytest.mark.parametrize("form", ["float32", "float16"])
def test_tied_weights_are_one(form: str) -> None:
    tied(ops_of(form), form, 19, 12)


def bound(ops: Ops, outputs: int, inputs: int, seed: int, bias: bool = True) -> Linear:
    random, linear = np.random.default_rng(seed), Linear(inputs, outputs, bias=bias)
    arrays = {"weight": random.normal(size=(outputs, inputs)).astype(np.float32)}
    linear.bind(arrays | ({"bias": random.normal(size=outputs).astype(np.float32)} if bias else {}), ops)
    return linear


def test_projections_are_one_product_of_weights_that_are_kept_once() -> None:
    ops, exact = ops_of("float32"), Ops("float32")
    mine, theirs = ([bound(one, n, 12, n, bias=n != 8) for n in (16, 8, 4)] for one in (ops, exact))
    before = [ops.to_numpy(linear.weight) for linear in mine]
    x = np.random.default_rng(0).normal(size=(2, 3, 12)).astype(np.float32)
    q, k, v = ops.project(ops.asarray(x), *mine)
    for got, want in zip((q, k, v), exact.project(x, *theirs), strict=True):
        np.testing.assert_allclose(ops.to_numpy(got), want, atol=1e-5)
    assert k.data.ptr - q.data.ptr == 16 * 4  # side by side
    assert [linear.weight.data.ptr - mine[0].weight.data.ptr for linear in mine] == [0, 16 * 48, 24 * 48]
    assert mine[1].bias is None
    for linear, was in zip(mine, before, strict=True):
        np.testing.assert_array_equal(ops.to_numpy(linear.weight), was)
    mine[2].bind({"weight": before[2] * 2, "bias": before[2][:, 0]}, ops)  # a module that gets other weights
    theirs[2].bind({"weight": before[2] * 2, "bias": before[2][:, 0]}, exact)
    for got, want in zip(ops.project(ops.asarray(x), *mine), exact.project(x, *theirs), strict=True):
        np.testing.assert_allclose(ops.to_numpy(got), want, atol=1e-5)


def test_a_layers_scale_is_in_its_weights_once() -> None:
    ops, exact = CupyOps("float32", StandIn("float32")), Ops("float32")
    linear, random = bound(ops, 5, 7, 0), np.random.default_rng(1)
    x, residual = (random.normal(size=(3, n)).astype(np.float32) for n in (7, 5))
    scale = random.normal(size=5).astype(np.float32)
    kept = ops.weight(scale)
    for _ in range(2):
        got = ops.linear(ops.asarray(x), linear.weight, linear.bias, None, ops.asarray(residual), kept)
        weight, bias = ops.to_numpy(linear.weight), ops.to_numpy(linear.bias)
        np.testing.assert_allclose(ops.to_numpy(got), exact.linear(x, weight, bias, None, residual, scale), atol=1e-5)
    assert len(ops.weights._made) == 1
    del kept
    assert not ops.weights._made


def test_numbers_that_float16_does_not_hold() -> None:
    """An additive mask of float32 hides as much as float16 can say; an infinity is one."""
    given = np.array([1e30, -3.4e38, np.inf, -np.inf, np.nan, 65504.0, 1e-9], np.float32)
    got = ops_of("float16").to_numpy(ops_of("float16").asarray(given))
    np.testing.assert_array_equal(got, np.array([65504, -65504, np.inf, -np.inf, np.nan, 65504, 0], np.float32))


@pytest.mark.parametrize("form", CupyOps.dtypes)
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_arrays_of_any_layout_come_and_go(form: str, axes: tuple[int, ...]) -> None:
    ops, x = ops_of(form), np.arange(24, dtype=np.float64).reshape(2, 3, 4).transpose(axes)
    for given in (x, x[::-1], x.astype(np.int64), x > 3, np.broadcast_to(x[:1], x.shape)):
        brought = ops.asarray(given)
        assert brought.flags.c_contiguous
        back = ops.to_numpy(brought.transpose(1, 2, 0)[:, 1:])
        assert back.dtype == (np.float32 if given.dtype.kind == "f" else given.dtype)
        np.testing.assert_array_equal(back, given.transpose(1, 2, 0)[:, 1:])


def test_a_dtype_that_there_is_not() -> None:
    with pytest.raises(
        BackendError, match=r"cupy does not compute in this dtype .got float64; expected float32 or tf32"
    ):
        CupyOps("float64", StandIn("float32"))


def test_without_a_card_the_backend_says_what_is_missing() -> None:
    missing: Any = CupyOps.lacks()
    if missing is None:
        pytest.skip("there is a card")
    with pytest.raises(BackendError, match=r"^backend cupy needs .* 'd2v-ref\[cuda13x\]'") as caught:
        get_ops("cupy")
    assert str(caught.value) == str(missing)
    assert CupyOps.kernels("float32") is None
