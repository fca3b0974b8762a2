"""What ``check`` times: models on the card, ours with and without graphs, and PyTorch's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from d2v_ref.bench.cases import Case, case

from . import checking_torch
from .checking_numbers import weights_of
from .checking_torch import Peer

if TYPE_CHECKING:
    from .check import Run

INPUTS = 4  # different ones, in turn
LEAST, SECONDS = 10, 0.5  # calls that are timed: as many as this time takes, and no fewer
MODES = ("default", "reduce-overhead")  # of torch.compile
COMPILING = 25.0  # seconds that torch.compile takes of a model, about
OURS = (("bfloat16", True), ("bfloat16", False), ("float16", True), ("tf32", True), ("float32", True))  # with graphs?
EAGER = ("bfloat16", "tf32", "float32")


def _case(name: str, model: str, shape: tuple[int, ...], size: str = "base", **settings: Any) -> Case:
    return Case(name, f"Data2Vec{model}", size, shape, settings)


LATENCY = (
    case("text-1x128"),
    case("vision-1"),
    case("audio-15s"),
    case("text-large-1x128"),
    case("vision-large-1"),
    _case("audio-large-15s", "AudioForCTC", (1, 240000), "large"),
)
THROUGHPUT = (
    _case("text-64x128", "TextModel", (64, 128)),
    _case("text-32x512", "TextModel", (32, 512)),
    _case("vision-64", "VisionForImageClassification", (64, 3, 224, 224), num_labels=1000),
    _case("audio-16x15s", "AudioForCTC", (16, 240000)),
)
GFLOP = {  # floating-point operations of a pass, in 10^9; those of a pooler are nothing beside them
    "text-1x128": 22.3, "vision-1": 35.1, "audio-15s": 227, "text-large-1x128": 78.9, "vision-large-1": 123,
    "audio-large-15s": 591, "text-64x128": 1430, "text-32x512": 3092, "vision-64": 2248, "audio-16x15s": 3638,
}  # fmt: skip


def latency(run: Run) -> dict[str, Any]:
    """Milliseconds from a NumPy array to a NumPy array, the median of calls that wait for each other."""
    return _every(run, LATENCY, alone=True)


def throughput(run: Run) -> dict[str, Any]:
    """Milliseconds a call, of calls that are ordered one after the other and waited for at the end."""
    return _every(run, THROUGHPUT, alone=False)


def _every(run: Run, cases: tuple[Case, ...], alone: bool) -> dict[str, Any]:
    found: dict[str, Any] = {one.name: {"gflop": GFLOP[one.name]} for one in cases}
    lacks = checking_torch.why_not()
    if lacks is not None:
        found["torch"] = lacks
    steps = (_ours, *((_eager, _compiled) if lacks is None else ()))  # the quick ones of all cases first
    for step in steps:
        for one in cases:
            if not run.time_for(f"{one.name}: {step.__name__.strip('_')}"):
                continue
            with run.noting(one.name):
                for name, timed in step(run, one, weights_of(one), inputs(one), alone):
                    found[one.name][name] = round(1000 * timed, 4)
    return found


def inputs(one: Case) -> list[np.ndarray]:
    """Several inputs of a case's shape."""
    first = one.given()
    return [np.roll(first, turn, axis=-1) for turn in range(INPUTS)]


Timed = Iterator[tuple[str, float]]


def _ours(run: Run, one: Case, weights: dict[str, np.ndarray], given: list[np.ndarray], alone: bool) -> Timed:
    for form, graphs in OURS:
        name = f"{form}, graphs {'on' if graphs else 'off'}"
        if not run.time_for(f"{one.name}: {name}", 2):
            continue
        ops = run.make(form, graphs=graphs)
        model = one.cls(one.config(), weights, backend=ops)
        call = model if alone else model.forward  # which leaves its output on the card
        yield name, _time(partial(_call, call, one.argument), given, ops.device.synchronize, alone)
        del model, call
        ops.device.free()


def _call(model: Callable[..., Any], argument: str, x: np.ndarray) -> Any:
    return model(**{argument: x})


def _eager(run: Run, one: Case, weights: dict[str, np.ndarray], given: list[np.ndarray], alone: bool) -> Timed:
    for form in EAGER:
        if run.time_for(f"{one.name}: torch {form}", 2):
            yield f"torch {form}", _peer(Peer(one, weights, form), given, alone)


def _compiled(run: Run, one: Case, weights: dict[str, np.ndarray], given: list[np.ndarray], alone: bool) -> Timed:
    for mode in MODES:
        if run.time_for(f"{one.name}: torch bfloat16, compile {mode}", COMPILING):
            yield f"torch bfloat16, compile {mode}", _peer(Peer(one, weights, "bfloat16", mode), given, alone)


def _peer(peer: Peer, given: list[np.ndarray], alone: bool) -> float:
    try:
        return _time(peer.output if alone else peer.order, given, peer.synchronize, alone)
    finally:
        peer.close()


def _time(call: Callable[[np.ndarray], Any], given: list[np.ndarray], wait: Callable[[], None], alone: bool) -> float:
    """Seconds a call."""
    for x in given:  # which compiles, measures and captures
        call(x)
    wait()
    start = time.perf_counter()
    call(given[0])
    wait()
    count = max(LEAST, int(SECONDS / max(time.perf_counter() - start, 1e-6)))
    count = min(count, 1000)
    times = []
    begin = time.perf_counter()
    for turn in range(count):
        start = time.perf_counter()
        call(given[turn % len(given)])
        times.append(time.perf_counter() - start)
    wait()
    return statistics.median(times) if alone else (time.perf_counter() - begin) / count
