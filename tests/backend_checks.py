"""What is asked of a backend's operations: each is a function that raises AssertionError where a backend fails it."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from allowances import Allowances, outside
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from operands import Call, in_format, placed
from operation_calls import CALLS, calls

from d2v_ref.nn import Embedding, Linear, Module
from d2v_ref.ops import Ops

Array = Any
EXACT = Ops("float64")
# What may give back what it is given, or a view of it.
PASSED_ON = ("activation", "asarray", "constant", "identity", "split_heads", "to_numpy")
SIZES = (8, 16, 32, 64, 100, 128, 256, 400, 512, 1000, 4096, 10_000, 40_000, 100_000)  # bytes


def arrays_of(value: Any) -> Iterator[Array]:
    """Every array in what an operation is given or gives."""
    if isinstance(value, Module):
        for _, _, _, weight in value.named_parameters():
            yield weight
    elif isinstance(value, dict | tuple | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from arrays_of(item)
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        yield value


def memory(x: Array, ops: Ops) -> np.ndarray:
    """The numbers of an array, and those that lie around them."""
    while isinstance(x, np.ndarray) and isinstance(x.base, np.ndarray):
        x = x.base
    return ops.to_numpy(x)


def bits(value: Any, ops: Ops) -> list[bytes]:
    return [np.ascontiguousarray(ops.to_numpy(x)).tobytes() for x in arrays_of(value)]


@functools.cache
def _mallopt() -> Callable[[int, int], int] | None:
    """The C library's switch for what new memory holds, where it is glibc's."""
    return getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None


@contextmanager
def poisoned(*like: Array) -> Iterator[None]:
    """Memory that is made within, but not set, holds NaN in every format: all bits are ones.

    glibc can be told so (M_PERTURB).  Small blocks are kept aside by it and by NumPy, and other C libraries have no
    such switch: blocks of many sizes, and of those of these arrays, are filled and given back.
    """
    blocks, walls = [], []
    for size in [*SIZES, *(x.nbytes for x in like)]:
        blocks += [np.full(size, 0xFF, np.uint8) for _ in range(4)]
        walls.append(np.empty(16))  # which keep the memory from going back to the system
    del blocks
    switch = _mallopt()
    if switch is not None:
        switch(-6, 0x100)  # its lower byte is what freed memory is set to, and the complement what new memory is
    try:
        yield
    finally:
        if switch is not None:
            switch(-6, 0)
        del walls


# ---- one call


def hold(call: Call, ops: Ops, bounds: Allowances, form: str) -> None:
    """An operation is its definition, changes nothing that it is given, gives new arrays, and the same ones again."""
    want = bounds.of(call.operation, placed(call.args, EXACT), placed(call.options, EXACT))
    args, options = call.place(ops)
    before = [memory(x, ops).tobytes() for x in arrays_of((args, options))]
    operation = getattr(ops, call.operation)
    with nullcontext() if call.plain else np.errstate(all="ignore"):
        given = [ops.to_numpy(x) for x in arrays_of((args, options))]
        try:
            with poisoned(*given):
                first = operation(*args, **options)
            was = bits(first, ops)
            with poisoned(*given, *(ops.to_numpy(x) for x in arrays_of(first))):
                second = operation(*args, **options)
        except RuntimeWarning as warning:
            raise AssertionError(f"{call.operation} warns: {warning} in {call}") from None
    results = list(first) if isinstance(first, tuple) else [first]
    for result, within in zip(results, want, strict=True):
        if within is None:
            assert result is None, f"{call.operation} gives what was not asked for"
            continue
        got = ops.to_numpy(result)
        assert ops.dtype.kind != "f" or got.dtype == ops.dtype, f"{call.operation} gives {got.dtype}"
        wrong = outside(got, within, form)
        assert wrong is None, f"{call.operation}: {wrong} in {call}"
    assert bits(first, ops) == was, f"{call.operation} changes what it gave before"
    assert bits(second, ops) == was, f"{call.operation} gives other bits the second time"
    after = [memory(x, ops).tobytes() for x in arrays_of((args, options))]
    assert before == after, f"{call.operation} changes what it is given"
    if call.operation not in PASSED_ON:
        apart([*arrays_of(first)], [*arrays_of((args, options)), *arrays_of(second)], call.operation)


def apart(mine: list[Array], others: list[Array], operation: str) -> None:
    for x in mine:
        for y in others:
            if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
                assert not np.may_share_memory(x, y), f"{operation} gives memory that is in use"


# A call is made of one seed, and a smaller seed makes no smaller call.
PHASES = (Phase.explicit, Phase.generate)


def examine(operation: str, ops: Ops, form: str, examples: int) -> None:
    """Drawn calls of an operation."""
    bounds = Allowances(form)

    @settings(max_examples=examples, phases=PHASES)
    @given(call=calls(operation, form))
    def run(call: Call) -> None:
        hold(call, ops, bounds, form)

    run()


# ---- calls after and beside each other


def in_turn(ops: Ops, form: str, examples: int, operations: Sequence[str] = tuple(CALLS)) -> None:
    """Whatever was computed before, and wherever memory comes from, a call gives the same bits."""
    some = st.lists(st.sampled_from(operations).flatmap(lambda name: calls(name, form)), min_size=2, max_size=5)
    found: list[str] = []  # and no assertion in the run: what depends on memory may not happen when it is repeated

    @settings(max_examples=examples, phases=PHASES)
    @given(drawn=some)
    def run(drawn: list[Call]) -> None:
        with np.errstate(all="ignore"):
            first = [bits(call.run(ops), ops) for call in drawn]
            for call, was in zip(reversed(drawn), reversed(first), strict=True):
                args, options = call.place(ops)
                with poisoned(*(ops.to_numpy(x) for x in arrays_of((args, options)))):
                    again = getattr(ops, call.operation)(*args, **options)
                if bits(again, ops) != was:
                    found.append(f"{call.operation} gives other bits after other calls: {call} of {drawn}")

    run()
    assert not found, found[0]


def at_once(drawn: list[Call], ops: Ops, workers: int = 4) -> None:
    """From several Python threads at a time, beside itself and beside others, a call gives the bits it gives alone."""
    alone = [bits(call.run(ops), ops) for call in drawn]

    def differs(i: int) -> bool:
        return bits(drawn[i].run(ops), ops) != alone[i]

    turns = [turn for i in range(len(drawn)) for turn in (i, i - 1) * workers]
    with ThreadPoolExecutor(workers) as pool:
        found = {drawn[i].operation for i, wrong in zip(turns, pool.map(differs, turns), strict=True) if wrong}
    assert not found, f"other bits from several threads at once: {', '.join(sorted(found))}"


def same_for_threads(kind: type[Any], drawn: list[Call], dtype: str) -> None:
    """One thread and two give the same bits."""
    one, two = kind(dtype, threads=1), kind(dtype, threads=2)
    for call in drawn:
        assert bits(call.run(one), one) == bits(call.run(two), two), f"{call.operation} gives other bits with 2 threads"


def come_and_go(ops: Ops, form: str, rounds: int = 30) -> None:
    """Weights that are bound, used and forgotten, others in their place in memory: none is taken for another."""
    bounds, random = Allowances(form), np.random.default_rng(0)
    for turn in range(rounds):
        # Small ones: NumPy gives the next array of the same size their memory.
        x, weight = (in_format(random.normal(size=shape), form) for shape in ((3, 10), (12, 10)))
        if turn % 3:
            module = Linear(10, 12, bias=False)
            module.bind({"weight": weight.astype(ops.dtype)}, ops)
            got = ops.linear(ops.asarray(x), module.weight)
            del module
        else:
            got = ops.linear(ops.asarray(x), ops.asarray(weight))
        wrong = outside(ops.to_numpy(got), bounds.linear(x, weight), form)
        assert wrong is None, f"weights of turn {turn}: {wrong}"
        if turn % 15 == 0:
            gc.collect()


class Tied(Module):
    """A vocabulary whose embeddings are the weights of its scores, as a language model has it."""

    def __init__(self, count: int, width: int) -> None:
        self.word_embeddings = Embedding(count, width)
        self.decoder = Linear(width, count)


def tied(ops: Ops, form: str, count: int, width: int) -> None:
    """One array under two names serves both, and comes back bit for bit under each."""
    random = np.random.default_rng(count)
    table, bias, x = (in_format(random.normal(size=shape), form) for shape in ((count, width), (count,), (2, 3, width)))
    ids, module = random.integers(0, count, (2, 5)), Tied(count, width)
    held = table.astype(ops.dtype)
    weights = {"word_embeddings.weight": held, "decoder.weight": held, "decoder.bias": bias.astype(ops.dtype)}
    module.bind(weights, ops)
    bounds = Allowances(form)
    rows, scores = module.word_embeddings(ids), module.decoder(ops.asarray(x))
    for got, want in (
        (rows, bounds.of("embedding", (ids, table), {})[0]),
        (scores, bounds.linear(x, table, bias)),
    ):
        assert want is not None
        assert outside(ops.to_numpy(got), want, form) is None
    for name, _, _, weight in module.named_parameters():
        assert ops.to_numpy(weight).tobytes() == weights[name].tobytes(), f"{name} is not what was given"
