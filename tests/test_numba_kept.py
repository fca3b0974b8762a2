"""Calls of the Numba backend that are kept ready, by the form of their operands, and run again for other operands.

A backend that keeps nothing, and so decides everything anew, has to give the same bits.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba", reason="backend numba needs the package numba")

from d2v_backends.numba_cpu import NumbaOps
from d2v_backends.numba_cpu.compiling import KEPT
from d2v_backends.numba_cpu.packing import Packed

from d2v_ref.errors import BackendError, InputError
from d2v_ref.nn import Linear

ROWS, DEPTH, OUTPUTS = 7, 40, 24
random = np.random.default_rng(0)


def drawn(*shape: int) -> np.ndarray:
    return random.standard_normal(shape, np.float32)


def layouts(*shape: int) -> list[np.ndarray]:
    """Arrays of one shape: two without gaps, one that can't be written, with gaps between rows, with gaps in a row."""
    frozen = drawn(*shape)
    frozen.flags.writeable = False
    wide = drawn(*shape[:-1], 2 * shape[-1])
    return [drawn(*shape), drawn(*shape), frozen, wide[..., : shape[-1]], wide[..., ::2], drawn(*shape[::-1]).T]


INPUTS, RESIDUALS = layouts(ROWS, DEPTH), [None, *layouts(ROWS, OUTPUTS)]
VECTORS = [None, drawn(OUTPUTS), drawn(OUTPUTS), drawn(2 * OUTPUTS)[::2]]
WEIGHTS = [drawn(OUTPUTS, DEPTH) for _ in range(3)]
NORMS = [(None, None), (drawn(DEPTH), drawn(DEPTH)), (drawn(DEPTH), drawn(DEPTH))]
SEQUENCES = [x[None] for x in layouts(ROWS, DEPTH)]
MASKS = [None, random.random((1, 1, 1, ROWS)) > 0.3, random.random((1, 1, ROWS, ROWS)) > 0.3]
BIASES = [None, drawn(1, 4, ROWS, ROWS), drawn(4, ROWS, ROWS)]
any_of = st.sampled_from
linears = st.tuples(
    st.just("linear"),
    *(any_of(range(len(pool))) for pool in (INPUTS, WEIGHTS, VECTORS, RESIDUALS, VECTORS)),
    any_of([None, "gelu", "relu"]),
)
projections = st.tuples(st.just("project"), any_of(range(len(INPUTS))), any_of([1, 2, 3]), any_of([0, 1]))
norms = st.tuples(st.just("layer_norm"), any_of(range(len(INPUTS))), any_of([0, 1, 2]), any_of([1e-5, 1e-3]))
attentions = st.tuples(
    st.just("attention"),
    *(any_of(range(len(pool))) for pool in (SEQUENCES, SEQUENCES, MASKS, BIASES)),
    *(st.booleans(), st.booleans()),
)


class Computing:
    """Runs the calls that are drawn, with weights that are packed once."""

    def __init__(self, dtype: str) -> None:
        self.ops = NumbaOps(dtype)
        self.packed = [Packed(weight, 1, self.ops.threads, self.ops.paired) for weight in WEIGHTS]

    def __call__(self, name: str, *drawn: Any) -> list[np.ndarray]:
        return [np.array(y) for y in getattr(self, name)(*drawn) if y is not None]

    def linear(self, x: int, weight: int, bias: int, residual: int, scale: int, activation: str | None) -> Any:
        vectors = VECTORS[bias], activation, RESIDUALS[residual], VECTORS[scale]
        return (self.ops.linear(INPUTS[x], self.packed[weight], *vectors),)

    def project(self, x: int, count: int, first: int) -> Any:
        modules = [Linear(DEPTH, OUTPUTS) for _ in range(count)]
        for i, module in enumerate(modules):
            module.weight, module.bias = self.packed[(first + i) % 3], VECTORS[i]
        return self.ops.project(INPUTS[x], *modules)

    def layer_norm(self, x: int, norm: int, eps: float) -> Any:
        return (self.ops.layer_norm(INPUTS[x], *NORMS[norm], eps),)

    def attention(self, q: int, k: int, mask: int, bias: int, causal: bool, probs: bool) -> Any:
        queries, keys = SEQUENCES[q], SEQUENCES[k]
        options = {"mask": MASKS[mask], "bias": BIASES[bias], "causal": causal, "probs": probs}
        return self.ops.attention(queries, keys, queries, 4, **options)


def dtypes() -> list[Any]:
    found = []
    for dtype in NumbaOps.dtypes:
        try:
            NumbaOps(dtype)
        except BackendError as error:
            found.append(pytest.param(dtype, marks=pytest.mark.skip(reason=str(error))))
        else:
            found.append(dtype)
    return found


@pytest.mark.parametrize("dtype", [dtype for dtype in dtypes() if dtype != "float64"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_call_that_was_kept_gives_the_bits_of_a_new_one(dtype: str, data: st.DataObject) -> None:
    calls = data.draw(st.lists(st.one_of(linears, projections, norms, attentions), min_size=2, max_size=12))
    keeping = Computing(dtype)
    for call in calls:
        got, want = keeping(*call), Computing(dtype)(*call)
        assert [y.tobytes() for y in got] == [y.tobytes() for y in want], call


@pytest.mark.parametrize("order", ["<", ">"])
def test_what_is_kept_serves_no_other_order_of_bytes(order: str) -> None:
    ops, x = NumbaOps(), INPUTS[0]
    packed = Packed(WEIGHTS[0], 1, ops.threads)
    runs: list[Callable[[np.ndarray], Any]] = [
        lambda x: ops.linear(x, packed),
        lambda x: ops.layer_norm(x, None, None, 1e-5),
        lambda x: ops.attention(x[None], x[None], x[None], 4),
    ]
    for run in runs:
        run(x)
        other = x.astype(f"{order}f4")
        if other.dtype.isnative:
            run(other)
        else:
            with pytest.raises(InputError, match="another dtype than"):
                run(other)


def test_what_is_kept_does_not_grow_with_every_length() -> None:
    ops = NumbaOps()
    packed = Packed(WEIGHTS[0], 1, ops.threads)
    for rows in range(1, 3 * KEPT):
        x = drawn(rows, DEPTH)
        ops.linear(x, packed)
        ops.layer_norm(x, None, None, 1e-5)
    assert len(packed.products) <= KEPT
    assert len(ops.kept) <= KEPT


def test_weights_are_freed_when_their_model_is() -> None:
    """At once, and not when Python next looks for cycles: they are the largest arrays there are."""
    ops = NumbaOps()
    freed: list[bool] = []
    linears = [Linear(DEPTH, OUTPUTS) for _ in range(2)]
    for linear, weight in zip(linears, WEIGHTS, strict=False):
        linear.weight, linear.bias = Packed(weight, 1, ops.threads), drawn(OUTPUTS)
        weakref.finalize(linear.weight, freed.append, True)
    gc.disable()
    try:
        ops.linear(INPUTS[0], linears[0].weight, linears[0].bias)
        ops.project(INPUTS[0], *linears)
        del linear, linears
        assert freed == [True, True]
    finally:
        gc.enable()
