"""Attention's kernels against its definition in ``Ops``, in every format and with every kind of tile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from backend_checks import PHASES, hold
from d2v_backends.cupy import CupyOps
from d2v_backends.cupy.attention import KEYS, Tiles, tiles_for
from d2v_backends.cupy.compiling import TYPES, Variant, variant, variants
from emulator import SCHEDULES, compiled_as, emulated, scheduled
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import FORMS, bounds_in, compilable, hold_in_every_order, normal, numbers_of, operand, ops_in
from operands import Call, Operand
from operation_calls import LOWEST, calls
from standin import StandIn

from d2v_ref.errors import InputError

pytestmark = compilable
every_form = pytest.mark.parametrize("form", FORMS)
EXAMPLES = {"attention": 20, "relative_key_bias": 5}
KERNELS = ("attention", "attention_rows", "relative_keys")
# What each of them is compiled for where it is watched.
WATCHED = [
    variant("attention", {"T": "float", "MMA": 0, "D": 32, "KEYS": 32}),
    variant("attention", {"T": "__half", "MMA": 1, "TILES": 1, "D": 32, "KEYS": 64}),
    variant("attention_rows", {"T": "float"}),
    variant("relative_keys", {"T": "float"}),
]
LEAST_SHARED = 99 << 10  # bytes that a block may have on cards of compute capability 8.6, 8.9 and 12.0


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """Everything that this file launches, compiled two at a time."""

    def compile_for(which: Variant, watch: str) -> None:
        defines: dict[str, Any] = dict(which.defines)
        emulated(which.file, defines.pop("T"), {name: int(value) for name, value in defines.items()}, watch)

    plain = [(which, "plain") for which in variants() if which.file in KERNELS]
    with ThreadPoolExecutor(2) as pool:
        list(
            pool.map(compile_for, *zip(*plain, *((w, v) for w in WATCHED for v in ("races", "sanitized")), strict=True))
        )


class Beside(Operand):
    """A third of longer rows, as q, k and v of one product are; what lies beside it is NaN."""

    def place(self, ops: Any) -> Any:
        width, gap = self.values.shape[-1], np.full_like(self.values, np.nan)
        return ops.asarray(np.concatenate((gap, self.values, gap), -1))[..., width : 2 * width]


def of_one_product(form: str, batch: int, queries: int, keys: int, width: int) -> tuple[Operand, ...]:
    """q, k and v."""
    return tuple(Beside(normal(form, batch, n, width, seed=i)) for i, n in enumerate((queries, keys, keys)))


def mask_of(*lengths: int, keys: int) -> Operand:
    """(B, 1, 1, S): the first keys of each sequence."""
    return Operand(np.arange(keys) < np.array(lengths)[:, None, None, None])


def held(call: Call, form: str, ops: CupyOps | None = None) -> None:
    hold(call, ops or ops_in(form), bounds_in(form), numbers_of(form))


# ---- the definition


@every_form
@pytest.mark.parametrize("operation", EXAMPLES)
def test_an_operation_is_its_definition(operation: str, form: str) -> None:
    @settings(max_examples=EXAMPLES[operation], phases=PHASES)
    @given(call=calls(operation, numbers_of(form)), order=st.sampled_from(SCHEDULES))
    def run(call: Call, order: int) -> None:
        with scheduled(order):
            held(call, form)

    run()


@every_form
def test_every_order_of_threads_gives_the_same_bits(form: str) -> None:
    options: dict[str, Any] = {"bias": operand(form, 2, 66, 70), "mask": mask_of(70, 33, keys=70)}
    hold_in_every_order(Call("attention", (*of_one_product(form, 2, 66, 70, 128), 2), options), form)
    options |= {"head_mask": operand(form, 2, 1, 1), "probs": True, "causal": True}
    hold_in_every_order(Call("attention", (*of_one_product(form, 2, 5, 70, 12), 2), options | {"bias": None}), form)
    table = operand(form, 59, 33)
    hold_in_every_order(Call("relative_key_bias", (*of_one_product(form, 2, 18, 20, 66)[:2], 2, table, True)), form)


@every_form
@pytest.mark.parametrize("size", [1, 7, 32, 40, 64, 80, 128, 160])
def test_a_head_of_any_size(size: int, form: str) -> None:
    """Of 16 bytes at a time or not; a bias whose rows may be read by pairs, and one whose rows are odd."""
    q, k, v = of_one_product(form, 2, 9, 35, size)
    for bias in (operand(form, 9, 35), Operand(normal(form, 9, 36)[:, :35], "padded"), operand(form, 2, 1, 1, 1)):
        held(Call("attention", (q, k, v, 1), {"bias": bias}), form)


@every_form
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 65), (64, 64), (65, 63), (130, 33), (3, 129)])
def test_lengths_at_the_edges_of_tiles(queries: int, keys: int, form: str) -> None:
    operands = of_one_product(form, 1, queries, keys, 64)
    held(Call("attention", (*operands, 2 if queries == 130 else 1), {"causal": queries <= keys}), form)


def rows_that_see_nothing(form: str) -> list[Call]:
    """Hidden by the mask, by the order, by both together; in tiles that are gone through and in those that are not."""
    apart = Operand(~np.tri(70, dtype=bool))
    late = Operand(np.arange(70) >= 60)
    lowest = Operand(np.where(np.arange(70) % 5, LOWEST[numbers_of(form)], 0.0) * (np.arange(70)[:, None] < 3))
    odd = Operand(np.broadcast_to(np.arange(70) % 5 > 0, (70, 70)).copy())
    each: list[tuple[int, int, dict[str, Any]]] = [
        (9, 150, {"mask": mask_of(150, 0, keys=150)}),
        (70, 40, {"causal": True}),
        (70, 70, {"causal": True, "mask": apart}),
        (70, 70, {"causal": True, "mask": late}),
        (70, 70, {"causal": True, "bias": lowest, "mask": odd}),
        (9, 40, {"bias": Operand(np.where(np.arange(40) < 35, -np.inf, 0.0))}),
    ]
    return [
        Call("attention", (*of_one_product(form, 2, queries, keys, 32), 1), options) for queries, keys, options in each
    ]


@every_form
def test_a_query_that_sees_nothing_attends_evenly_to_all_keys(form: str) -> None:
    for call in rows_that_see_nothing(form):
        held(call, form)
        held(Call("attention", call.args, call.options | {"probs": True}), form)


@every_form
def test_a_row_of_nothing_but_infinities_is_not_a_number(form: str) -> None:
    bias = np.where(np.arange(9)[:, None] == 4, -np.inf, 0.0)
    for probs in (False, True):
        held(
            Call(
                "attention",
                (*of_one_product(form, 1, 9, 70, 32), 1),
                {"bias": Operand(bias), "probs": probs},
                plain=False,
            ),
            form,
        )


@pytest.mark.parametrize(("multiprocessors", "warp"), [(1, 2), (100, 1)])
@pytest.mark.parametrize("form", ["float16", "bfloat16"])
def test_a_warp_has_twice_the_queries_where_there_are_enough(form: str, multiprocessors: int, warp: int) -> None:
    ops = CupyOps(form, StandIn(form), graphs=False)
    ops.device.limits = ops.device.limits._replace(multiprocessors=multiprocessors)
    assert tiles_for(ops.device, 1, 2, 70, 64).warp == warp
    options = {"bias": operand(form, 70, 70), "mask": Operand(np.tri(70, dtype=bool))}
    held(Call("attention", (*of_one_product(form, 1, 70, 70, 128), 2), options), form, ops)


@pytest.mark.parametrize("watch", ["races", "sanitized"])
def test_kernels_under_watch(watch: str) -> None:
    """No two threads meet in memory, nothing is read or written outside of operands, no behaviour is undefined."""
    masks = {"mask": Operand(np.tri(9, 70, 30, dtype=bool)), "causal": True}
    with compiled_as(watch):
        for form in ("float32", "float16"):
            ops = CupyOps(form, StandIn(form), graphs=False)
            for size in (32, 7):
                held(Call("attention", (*of_one_product(form, 1, 9, 70, size), 1), masks), form, ops)
            held(Call("attention", (*of_one_product(form, 1, 9, 70, 32), 1), {"bias": operand(form, 9, 70)}), form, ops)
        ops = CupyOps("float32", StandIn("float32"), graphs=False)
        options = {"probs": True, "head_mask": operand(form, 1, 1, 1), **masks}
        held(Call("attention", (*of_one_product("float32", 1, 9, 70, 7), 1), options), "float32", ops)
        table = operand("float32", 39, 33)
        held(Call("relative_key_bias", (*of_one_product("float32", 1, 18, 20, 33)[:2], 1, table, True)), "float32", ops)


# ---- host code


def every_tiles(form: str) -> set[Tiles]:
    device = StandIn(form)
    return {tiles_for(device, batch, 1, 70, size) for size in range(1, max(KEYS[4, 1]) + 1) for batch in (1, 2)}


def test_the_tiles_that_are_chosen_are_those_that_are_compiled() -> None:
    types = {"float32": TYPES[0], "tf32": TYPES[0], "float16": TYPES[1], "bfloat16": TYPES[2]}
    chosen = {variant("attention", tiles.defines | {"T": types[form]}) for form in FORMS for tiles in every_tiles(form)}
    assert chosen == {which for which in variants() if which.file == "attention"}


@every_form
def test_tiles_fit_in_the_shared_memory_of_every_card(form: str) -> None:
    beside = 2 << 10  # what a kernel has without asking is less
    for tiles in every_tiles(form):
        assert tiles.shared_memory(StandIn(form).storage.itemsize) <= LEAST_SHARED - beside


def test_wrong_operands_are_named() -> None:
    ops = ops_in("float32")
    q, none, table = (ops.asarray(np.ones(shape)) for shape in ((1, 3, 4), (1, 0, 4), (5, 4)))
    with pytest.raises(InputError, match=r"attention: no key to attend to .got .1, 0, 4"):
        ops.attention(q, none, none, 1)
    with pytest.raises(InputError, match=r"attention: another dtype than it takes .got int64; expected bool"):
        ops.attention(q, q, q, 1, mask=ops.asarray(np.ones((3, 3), np.int64)))
    with pytest.raises(InputError, match=r"embedding: an index is outside the table .got -1 ... 3; expected 0 ... 2"):
        ops.relative_key_bias(q, q, 1, table[:3], False)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4)])
def test_of_no_query_there_is_nothing(shape: tuple[int, ...]) -> None:
    ops = ops_in("float16")
    q, k = ops.asarray(np.ones(shape)), ops.asarray(np.ones((shape[0], 3, 4)))
    context, p = ops.attention(q, k, k, 2, probs=True)
    assert (context.shape, p.shape) == (shape, (shape[0], 2, shape[1], 3))
