"""What is asked of an operation's kernels: the definition, and the same bits in every order of threads."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import standin
from allowances import Allowances
from backend_checks import PHASES, bits, hold
from d2v_backends.cupy import CupyOps
from emulator import SCHEDULES, emulated, missing, scheduled
from hypothesis import given, settings
from operands import Call, Operand, in_format
from operation_calls import calls

from d2v_ref.golden.bounds import FORMATS

FORMS = ("float32", "tf32", "float16", "bfloat16")

compilable = pytest.mark.skipif(missing() is not None, reason=missing() or "")


def numbers_of(form: str) -> str:
    """The format of the numbers that a format's arrays hold."""
    return "float32" if form == "tf32" else form


@functools.cache
def ops_in(form: str) -> CupyOps:
    return CupyOps(form, standin.StandIn(form), graphs=False)


@functools.cache
def bounds_in(form: str) -> Allowances:
    """TF32 rounds the factors of products as float16 does, and leaves float32's range."""
    if form != "tf32":
        return Allowances(form)
    bounds = Allowances("float16")
    bounds.format = bounds.probe.format = FORMATS["float16"]._replace(
        smallest_normal=FORMATS["float32"].smallest_normal
    )
    bounds.tiny = bounds.format.smallest_normal
    return bounds


def hold_in_every_order(call: Call, form: str, ops: CupyOps | None = None) -> None:
    """One call, which gives what the definition gives, whatever order the threads run in."""
    ops = ops or ops_in(form)
    with scheduled(SCHEDULES[0]):
        hold(call, ops, bounds_in(form), numbers_of(form))
        was = bits(call.run(ops), ops)
    for order in SCHEDULES[1:]:
        with scheduled(order):
            assert bits(call.run(ops), ops) == was, f"{call.operation} gives other bits in order {order} of threads"


def examine_in_every_order(operation: str, form: str, examples: int) -> None:
    """Drawn calls of an operation."""

    @settings(max_examples=examples, phases=PHASES)
    @given(call=calls(operation, numbers_of(form)))
    def run(call: Call) -> None:
        hold_in_every_order(call, form)

    run()


def watched(form: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> CupyOps:
    """A backend whose kernels are compiled as another variant of ``emulated``, which watches what they do."""
    monkeypatch.setattr(standin, "emulated", functools.partial(emulated, variant=variant))
    return CupyOps(form, standin.StandIn(form), graphs=False)


def normal(form: str, *shape: int, seed: int = 0) -> np.ndarray:
    """Numbers that the format holds, as float64."""
    return in_format(np.random.default_rng(seed).normal(size=shape), numbers_of(form))


def operand(form: str, *shape: int, seed: int = 0) -> Operand:
    """An array of such numbers."""
    return Operand(normal(form, *shape, seed=seed))
