"""A case's times: every engine in turns with the others, in this process.

The threads of some libraries go on looking for work when a run is over, and whoever runs next has to share the cores
with them.  Measured on two cores: OpenBLAS's take 40 ms of them, libgomp's (torch's and Numba's) 10 ms, ONNX Runtime's
and OpenVINO's less than 3 ms; torch, straight after NumPy, took 131 ms for what takes it 53 ms alone.  To forbid them
that would slow their own next step, so each run waits ``PAUSE`` after the one before.  Then the fastest runs of NumPy,
torch and ONNX Runtime among the others were within 5 % of those alone in a process, and another run straight before
the timed one made no difference beyond the noise.  Whoever came straight after NumPy still took 1 ms more of 17: each
turn has an order of its own, so that nobody always follows the same one.  `d2v-ref bench --engine NAME` tells what an
engine takes alone.

Medians of five runs of 20 ms differed by 5 to 10 % from one process to another: short cases take turns for as many
seconds as are asked for.

Processes that compute beside it do more harm than that, to engines that wait for each of their threads the most; the
table says how much of the processor they took.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref.audit.counts import count_modules
from d2v_ref.bench.cases import Case
from d2v_ref.bench.engines import Engine, Loaded, Outputs, Setup
from d2v_ref.bench.machine import Others
from d2v_ref.errors import ConformanceError

PAUSE = 0.1  # seconds

# Of an output's largest number.  Rounding makes 3e-6 of it in float32, and GELU's tanh form or another epsilon in
# LayerNorm 2e-5 to 1e-3; rounding to bfloat16, whose numbers are off by up to 2^-9, makes 1e-2 to 3e-2.
ALLOWED = {"float32": 2e-5, "float64": 2e-5, "bfloat16": 0.1}


@dataclass(frozen=True)
class Timed:
    """What was measured of an engine.

    Attributes:
        engine, dtype: its name, and what it computes in.
        times: of its runs, in seconds.
        median: of them.
        difference: the largest of an output from the first engine's, as a share of the output's largest number.
        peak: the floating-point operations a second that its dtype can have at most here, the median of what an engine
            told between the turns; None where none can tell.
    """

    engine: str
    dtype: str
    times: list[float]
    median: float
    difference: float
    peak: float | None


@dataclass(frozen=True)
class Timing:
    """A case and its engines, in the order given.

    Attributes:
        multiply_adds: as ``d2v-ref audit`` counts them, biases apart.
        others: the share of the processor that other processes took meanwhile; None where the system does not tell.
    """

    case: str
    multiply_adds: int
    others: float | None
    engines: list[Timed]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Timing:
        return cls(**{**values, "engines": [Timed(**timed) for timed in values["engines"]]})


def steps(engines: int, repeat: int) -> int:
    """How often ``time_case`` says that it has advanced."""
    return 1 + engines + 1 + repeat


def time_case(
    case: Case,
    engines: list[Engine],
    threads: int,
    repeat: int,
    seconds: float,
    folder: Path,
    advance: Callable[[], None],
) -> Timing:
    """Load every engine, hold its outputs against the first one's, and time them.

    Args:
        repeat, seconds: the least turns, and how long they take at least.

    Raises:
        ConformanceError: an engine computes something else.
        D2VError: whatever keeps an engine from loading.
    """
    setup = Setup(case, threads, folder)
    multiply_adds = count(setup)
    advance()
    loaded: dict[str, Loaded] = {}
    differences: dict[str, float] = {}
    for engine in engines:
        loaded[engine.name] = engine.load(setup)
        outputs = {name: np.array(value) for name, value in loaded[engine.name].run().items()}
        if not differences:
            first, yardstick = engine, outputs
        differences[engine.name] = _compared(engine, outputs, first, yardstick)
        advance()
    del setup.weights
    others = Others()
    times, told = in_turns(loaded, repeat, seconds, advance)
    peaks = {engine.dtype: statistics.median(told[engine.name]) for engine in engines if told[engine.name]}
    found = [
        Timed(name, engine.dtype, taken, statistics.median(taken), differences[name], peaks.get(engine.dtype))
        for engine, (name, taken) in zip(engines, times.items(), strict=True)
    ]
    return Timing(case.name, multiply_adds, others.share(), found)


def count(setup: Setup) -> int:
    """The multiply-adds of the definition."""
    model = setup.case.cls(setup.config, setup.weights)
    return count_modules(model, {setup.case.argument: setup.given})[0].total.multiply_adds


def in_turns(
    loaded: Mapping[str, Loaded], repeat: int, seconds: float, advance: Callable[[], None]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The times of each engine, and the peaks that it tells; a first turn warms up and does not count.

    It advances after the first turn, and then ``repeat`` times, however many turns the seconds take.
    """
    times: dict[str, list[float]] = {name: [] for name in loaded}
    peaks: dict[str, list[float]] = {name: [] for name in loaded}
    orders = np.random.default_rng(0)  # the same ones every time
    gc.collect()
    gc.freeze()  # a collection that walks through all of torch would be in somebody's time
    start = time.perf_counter()
    _turn(loaded, orders, peaks)
    advance()
    taken = time.perf_counter() - start
    turns = max(repeat, math.ceil(seconds / taken))
    for turn in range(turns):
        for name, run in _turn(loaded, orders, peaks).items():
            times[name].append(run)
        for _ in range(turn * repeat // turns, (turn + 1) * repeat // turns):
            advance()
    return times, peaks


def _turn(loaded: Mapping[str, Loaded], orders: np.random.Generator, peaks: dict[str, list[float]]) -> dict[str, float]:
    """The time of each engine, in some order; then the peaks, which are added to the others."""
    names = list(loaded)
    times = {names[i]: timed(loaded[names[i]].run) for i in orders.permutation(len(names))}
    for name, engine in loaded.items():
        if engine.peak is not None:
            time.sleep(PAUSE)
            peaks[name].append(engine.peak())
    return times


def timed(run: Callable[[], object]) -> float:
    """The seconds of a run."""
    time.sleep(PAUSE)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _compared(engine: Engine, got: Outputs, first: Engine, want: Outputs) -> float:
    """The largest difference of an output, which must be what rounding explains."""
    found = {name: difference(got[name], want[name]) if name in got else np.inf for name in want}
    worst = max(found, key=lambda name: found[name])
    allowed = max(ALLOWED[engine.dtype], ALLOWED[first.dtype])
    if not found[worst] <= allowed:
        raise ConformanceError(
            f"{engine.name} computes another {worst} than {first.name}",
            got=f"a difference of {found[worst]:.2g} of its largest number",
            expected=f"at most {allowed:g}",
        )
    return found[worst]


def difference(got: np.ndarray, want: np.ndarray) -> float:
    """max |got - want| / max |want|; infinity where either is not finite, or of another shape."""
    if got.shape != want.shape or not (np.isfinite(got).all() and np.isfinite(want).all()):
        return float("inf")
    largest = float(np.abs(want).max())
    off = float(np.abs(got.astype(np.float64) - want).max())
    return off / largest if largest else off
