"""What ``check`` holds against float64: every operation on random numbers, and whole models."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from d2v_ref.bench.cases import Case, case
from d2v_ref.errors import InputError
from d2v_ref.ops import Ops

from . import CupyOps, checking_torch
from .device import Device

if TYPE_CHECKING:
    from .check import Run

# The largest relative error (L2, of float64) that a model's output may have, and how many times that of PyTorch in the
# same format.
GATES = {"float32": 1e-5, "tf32": 1e-3, "float16": 2e-3, "bfloat16": 1.5e-2}
TORCHS = 1.2
NOTHING_HOLDS = 1e9  # which JSON holds
TURNS, MOST_FAULTS = 200, 50  # how often every operation is called at most, and how many faults are recorded
MODELS = (
    Case("text", "Data2VecTextModel", "base", (2, 128)),
    Case("vision", "Data2VecVisionForImageClassification", "base", (1, 3, 224, 224), {"num_labels": 1000}),
    Case("audio", "Data2VecAudioForCTC", "base", (1, 80000)),
    case("text-large-1x128"),
    case("vision-large-1"),
    case("audio-large-5s"),
)


def weights_of(one: Case) -> dict[str, np.ndarray]:
    """The weights of a case, which those of the same model and size share."""
    return _weights(one.model, one.size, tuple(sorted(one.settings.items())))


@functools.cache
def _weights(model: str, size: str, settings: tuple[tuple[str, Any], ...]) -> dict[str, np.ndarray]:
    return Case("", model, size, (), dict(settings)).weights()


@contextmanager
def poisoned(device: Device) -> Iterator[None]:
    """While the block runs, an array that is not set holds NaN in every format: all bits are ones."""
    cuda = device.xp.cuda
    allocator = cuda.get_allocator()

    def allocate(count: int) -> Any:
        memory = allocator(count)
        memory.memset_async(0xFF, count, device.stream)
        return memory

    with cuda.using_allocator(allocate):
        yield


def operations(run: Run) -> dict[str, Any]:
    """Calls of every operation in every format, drawn as the tests draw them: how many were held, and the first faults.

    A seed after the other, so that a section that ends early has seen every operation.
    """
    if not (run.tests / "operation_calls.py").is_file():
        hint = "Run from a checkout, or name its folder with --tests"
        raise InputError("the cases of operations are those of the tests", path=run.tests, hint=hint)
    sys.path[:0] = [str(run.tests), str(run.tests / "cuda")]
    import formats
    from backend_checks import hold
    from kernel_checks import numbers_of
    from operation_calls import CALLS, large_calls

    every = {form: run.make(form) for form in CupyOps.dtypes}
    held = dict.fromkeys(every, 0)

    def examine(form: str, operation: str, calls: Any) -> None:
        bounds = formats.bounds_of(form, operation)
        for call in calls:
            with poisoned(every[form].device):
                try:
                    hold(call, every[form], bounds, numbers_of(form))
                except AssertionError as error:
                    run.hold(False, f"{form}: {str(error)[:500]}")
            held[form] += 1

    for form in every:
        for call in large_calls(numbers_of(form)):
            if run.time_for(f"{form}: large {call.operation}"):
                examine(form, call.operation, [call])
    turn = 0
    for turn, operation, form in itertools.product(range(TURNS), sorted(CALLS), every):
        if len(run.failures) > MOST_FAULTS or not run.time_for(f"turn {turn} from {operation}, {form} on"):
            break
        seeds = range(run.seed + turn, run.seed + turn + 1)
        examine(form, operation, formats.calls_of(operation, form, seeds))
    if turn:
        run.left_out = []  # every operation was seen
    return {"calls": held, "turns": turn}


def models(run: Run) -> dict[str, Any]:
    """Models with synthetic weights: the relative error of each format, ours and, where it is there, PyTorch's."""
    found: dict[str, Any] = {}
    for one in MODELS:
        if not run.time_for(one.name, 15):
            continue
        given: dict[str, Any] = {one.argument: one.given()}
        exact = main_output(one.cls(one.config(), weights_of(one), backend=Ops("float64"))(**given))
        found[one.name] = {}
        for form in CupyOps.dtypes:
            if run.time_for(f"{one.name}, {form}"):
                with run.noting(f"{one.name}, {form}"):
                    found[one.name][form] = _held(run, one, form, exact)
    return found


def _held(run: Run, one: Case, form: str, exact: np.ndarray) -> dict[str, float | None]:
    """The largest error of a model that is run plain, captured and replayed, and PyTorch's, held against the gates."""
    model = one.cls(one.config(), weights_of(one), backend=run.make(form))
    given: dict[str, Any] = {one.argument: one.given()}
    error = max(distance(main_output(model(**given)), exact) for _ in range(3))
    del model
    theirs, what = torch_error(one, form, exact), f"{one.name}, {form}: error {error:.2e}"
    run.hold(error <= GATES[form], f"{what} of {GATES[form]:.0e}")
    run.hold(theirs is None or error <= TORCHS * theirs, f"{what}, PyTorch's {theirs or 0:.2e}")
    return {"error": error, "torch": theirs, "gate": GATES[form]}


def main_output(out: Any) -> np.ndarray:
    """What the class is for: logits, or the last hidden state."""
    return out["logits" if "logits" in out else "last_hidden_state"]


def distance(got: np.ndarray, exact: np.ndarray) -> float:
    """||got - exact|| / ||exact||; ``NOTHING_HOLDS`` if a number is not finite."""
    error = float(np.linalg.norm(np.subtract(got, exact, dtype=np.float64)) / np.linalg.norm(exact))
    return error if np.isfinite(error) else NOTHING_HOLDS


def torch_error(one: Case, form: str, exact: np.ndarray) -> float | None:
    """The relative error of transformers' model on the card, or None where there is none."""
    if checking_torch.why_not() is not None:
        return None
    peer = checking_torch.Peer(one, weights_of(one), form)
    try:
        return distance(peer.output(one.given()), exact)
    finally:
        peer.close()
