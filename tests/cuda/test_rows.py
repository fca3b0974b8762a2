"""The kernels of rows.cu and embeddings.cu against the definitions in ``Ops``, in every storage type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from allowances import Within, outside
from backend_checks import PHASES, hold
from d2v_backends.cupy import CupyOps, rows
from emulator import KERNELS, SCHEDULES, VARIANTS, compiled_as, scheduled
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import bounds_in, compilable, examine_in_every_order, hold_in_every_order, normal, ops_in
from operands import Call, Draw, Operand, Part, in_format
from standin import StandIn

from d2v_ref.errors import InputError
from d2v_ref.nn import Embedding, LayerNorm
from d2v_ref.ops import ACTIVATIONS

pytestmark = compilable
FORMS = ("float32", "float16", "bfloat16")
every_form = pytest.mark.parametrize("form", FORMS)
# How many calls of each are drawn.
OPERATIONS = {
    "activation": 30, "softplus": 5, "layer_norm": 50, "softmax": 30, "log_softmax": 30, "glu": 20, "embedding": 20,
    "embed_norm": 30,
}  # fmt: skip


@every_form
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_its_definition(operation: str, form: str) -> None:
    examine_in_every_order(operation, form, OPERATIONS[operation])


@every_form
@pytest.mark.parametrize("width", [1, 2, 7, 33, 129, 1000, 1024, 2047, 4096, 8200, 30001])
def test_rows_of_any_width(width: int, form: str) -> None:
    """From fewer numbers than a warp has lanes to more than a block takes at a time."""
    x, weight, bias = normal(form, 3, width), normal(form, width, seed=1), normal(form, width, seed=2)
    ids, tables = np.array([[4, 0, 4]]), normal(form, 5, width, seed=3)
    part = Part(Embedding, {"count": 5, "width": width}, {"weight": tables})
    norm = Part(LayerNorm, {"width": width, "eps": 1e-5}, {"weight": weight, "bias": bias})
    vectors = [Operand(weight), Operand(bias)]
    for call in (
        Call("layer_norm", (Operand(x), *vectors, 1e-5)),
        Call("softmax", (Operand(x),)),
        Call("log_softmax", (Operand(x, "padded"),)),
        Call("glu", (Operand(np.concatenate((x, x[::-1]), 1)),)),
        Call("gelu", (Operand(x),)),
        Call("embedding", (Operand(ids, host=True), Operand(tables))),
        Call("embed_norm", ((Operand(ids, host=True),) * 3, (part,) * 3, norm)),
    ):
        with scheduled(3):
            hold(call, ops_in(form), bounds_in(form), form)


@every_form
@pytest.mark.parametrize("name", rows.CODES)
def test_an_activation_of_numbers_of_every_size(name: str, form: str) -> None:
    exponents = np.arange(-150, 128) if form != "float16" else np.arange(-24, 16)
    numbers = np.outer([1.0, 1.37, -1.0, -1.9], 2.0**exponents).ravel()
    dense = np.linspace(-25, 25, 1001)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan])
    x = in_format(np.concatenate((numbers, dense, special)), form)
    hold(Call(name, (Operand(x),), plain=False), ops_in(form), bounds_in(form), form)


# ---- what is fused beyond the operations of Ops


def sums(d: Draw, form: str) -> tuple[np.ndarray, np.ndarray]:
    shape = (*d.lead(20, empty=False), d.length(70, 300))
    return d.numbers(*shape), d.numbers(*shape)


def placed(form: str, *arrays: np.ndarray, d: Draw | None = None) -> list[Any]:
    ops = ops_in(form)
    return [
        (Operand(x) if d is None else d.operand(x, "plain", "padded", "strided", "offset")).place(ops) for x in arrays
    ]


@every_form
def test_layer_norm_of_a_sum_and_an_activation_after_it(form: str) -> None:
    bounds, ops = bounds_in(form), ops_in(form)

    @settings(max_examples=40, phases=PHASES)
    @given(seed=st.integers(0, 2**32 - 1))
    def run(seed: int) -> None:
        d = Draw(seed, form)
        x, residual = sums(d, form)
        width, name = x.shape[-1], d.one_of("gelu", *ACTIVATIONS)
        affine = [d.numbers(width), d.numbers(width)] if d.often() else []
        weight, bias = affine or (None, None)
        want = bounds._activated(name, bounds._normalised(Within.exactly(x + residual), (weight, bias, 1e-5)))
        operands, affine = placed(form, x, residual, d=d), placed(form, *affine, d=d) or [None, None]
        for order in SCHEDULES:
            with scheduled(order):
                got = rows.layer_norm(ops.device, operands[0], *affine, 1e-5, name, operands[1])
            assert outside(ops.to_numpy(got), want, form) is None

    run()


@every_form
def test_an_activation_of_a_sum_with_a_bias_and_in_place(form: str) -> None:
    bounds, ops = bounds_in(form), ops_in(form)

    @settings(max_examples=40, phases=PHASES)
    @given(seed=st.integers(0, 2**32 - 1))
    def run(seed: int) -> None:
        d = Draw(seed, form)
        x, _ = sums(d, form)
        bias, name = d.numbers(x.shape[-1]), d.one_of("gelu", *ACTIVATIONS)
        total = x + bias
        want = bounds._activated(name, Within(total, 2 * bounds.u * np.abs(total)))
        given_x, given_bias = placed(form, x, bias, d=d)
        code = rows.activation_code(name)
        got = rows.elementwise(ops.device, code, given_x, given_bias)
        assert outside(ops.to_numpy(got), want, form) is None
        (given_x,) = placed(form, x)
        assert rows.elementwise(ops.device, code, given_x, given_bias, out=given_x) is given_x
        assert ops.to_numpy(given_x).tobytes() == ops.to_numpy(got).tobytes()

    run()


@every_form
@pytest.mark.parametrize("unlike", range(4))
def test_tables_that_begin_anywhere_in_memory(unlike: int, form: str) -> None:
    """One of three tables, or the weight of the LayerNorm, begins beside a multiple of 16 bytes."""
    ops, table, vector = ops_in(form), normal(form, 5, 64), normal(form, 64, seed=1)
    ids = np.array([4, 0, 3])
    modules = [Embedding(5, 64) for _ in range(3)]
    norm = LayerNorm(64, 1e-5)
    views = ["offset" if i == unlike else "plain" for i in range(4)]
    for module, view in zip(modules, views, strict=False):
        module.weight = Operand(table, view).place(ops)
    norm.weight = Operand(vector, views[-1]).place(ops)
    norm.bias = Operand(vector).place(ops)
    got = ops.embed_norm((ids,) * 3, tuple(modules), norm)
    want = bounds_in(form)._normalised(Within.exactly(3 * table[ids]), (vector, vector, norm.eps))
    assert outside(ops.to_numpy(got), want, form) is None


@every_form
def test_more_rows_than_a_grid_has(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks go down the rows."""
    monkeypatch.setattr(rows, "MOST_ROWS", 2)
    ids, table = np.array([4, 0, 3, 3, 1]), normal(form, 5, 33)
    for call in (
        Call("glu", (Operand(normal(form, 5, 66)),)),
        Call("gelu", (Operand(normal(form, 5, 33), "padded"),)),
        Call("embedding", (Operand(ids, host=True), Operand(table))),
    ):
        hold_in_every_order(call, form)


# ---- nothing but what belongs to it


def of_every_kernel(form: str) -> Iterator[Call]:
    """Calls that launch every kernel, of rows at multiples of 16 bytes and of others."""
    d = Draw(0, form)
    for width, view in ((64, "plain"), (37, "plain"), (64, "padded"), (64, "offset")):
        x, weight, bias = (d.operand(d.numbers(*shape), view) for shape in ((5, width), (width,), (width,)))
        ids = Operand(np.array([[3], [0]]), host=True)
        table = Part(Embedding, {"count": 4, "width": width}, {"weight": d.numbers(4, width)})
        norm = Part(LayerNorm, {"width": width, "eps": 1e-5}, {"weight": d.numbers(width), "bias": d.numbers(width)})
        yield Call("layer_norm", (x, weight, bias, 1e-5))
        yield Call("softmax", (x,))
        yield Call("glu", (d.operand(d.numbers(5, 2 * width), view),))
        yield Call("gelu", (x,))
        yield Call("embedding", (ids, d.operand(d.numbers(4, width), view)))
        yield Call("embed_norm", ((ids, Operand(np.arange(4)[None], host=True)), (table, table), norm))


@pytest.mark.parametrize("variant", VARIANTS)
def test_kernels_under_watch(variant: str) -> None:
    """No two threads meet in memory, nothing is read or written outside of operands, no behaviour is undefined."""
    form = "float16"
    with compiled_as(variant):
        ops = CupyOps(form, StandIn(form), graphs=False)
        for call in of_every_kernel(form):
            hold(call, ops, bounds_in(form), form)
    launched = {name for _, name, *_ in ops.device._kernels}
    texts = [(KERNELS / f"{file}.cu").read_text() for file in ("rows", "embeddings")]
    assert launched == {name for text in texts for name in re.findall(r"__launch_bounds__\(256\) (\w+)", text)}


@every_form
def test_ids_outside_of_their_table_read_nothing_else(form: str) -> None:
    """Ids that are on the card can't be looked at before a launch."""
    ops, table = ops_in(form), normal(form, 4, 9)
    ids = ops.device.upload(np.array([-1, 4, 2**62, -(2**62), 2]))
    (weight,) = placed(form, table)
    np.testing.assert_array_equal(ops.to_numpy(ops.embedding(ids, weight)), table[[0, 3, 3, 0, 2]])


# ---- host code


def test_codes_are_those_of_the_kernels() -> None:
    (words,) = re.findall(r"enum Activation \{([^}]*)\}", (KERNELS / "common.cuh").read_text())
    assert [word.strip().lower() for word in words.split(",")] == list(rows.CODES)
    assert list(rows.CODES)[:-1] == list(dict.fromkeys(ACTIVATIONS.values()))


def test_what_does_not_fit_is_an_error() -> None:
    ops = ops_in("float32")
    (x,) = placed("float32", normal("float32", 2, 3))
    with pytest.raises(InputError, match=r"^activation: no such activation"):
        rows.activation(ops.device, "gelu_tanh", x)
    other = ops.device.upload(np.zeros((2, 3), np.float16))
    for operation in (rows.softmax, rows.log_softmax):
        with pytest.raises(InputError, match=f"^{operation.__name__}: another dtype"):
            operation(ops.device, other)
        with pytest.raises(InputError, match=f"^{operation.__name__}: nothing on the last axis"):
            operation(ops.device, x[:, :0])
