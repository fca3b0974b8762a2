"""All cases: one process after the other, and what came of it as JSON and as tables in Markdown."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from d2v_ref.bench import children, machine, memory
from d2v_ref.bench.cases import SEED, Case
from d2v_ref.bench.engines import Engine, Ours, engine
from d2v_ref.bench.memory import Needed
from d2v_ref.bench.timing import Timed, Timing
from d2v_ref.errors import BackendError, D2VError, InputError
from d2v_ref.synthesis import write_checkpoint

Advance = Callable[[float], None]


@dataclass
class Report:
    """What was measured, where, and with what.

    Attributes:
        ours: the names of our engines.
        left_out: engines that can't run here, and why.
        failed: cases that could not be measured, and why.
    """

    threads: int
    processor: str
    cores: int
    versions: dict[str, str]
    ours: list[str]
    left_out: dict[str, str]
    timings: list[Timing] = field(default_factory=list)
    memory: list[Needed] = field(default_factory=list)
    failed: dict[str, D2VError] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {**asdict(self), "failed": {name: str(error) for name, error in self.failed.items()}}


def choose(names: Sequence[str]) -> tuple[list[Engine], dict[str, str]]:
    """The engines of these names that can run here, each once, and why the others can't.

    Raises:
        InputError: a name is nobody's.
        BackendError: none is left.
    """
    chosen: dict[str, Engine] = {}
    left_out: dict[str, str] = {}
    for one in [engine(name) for name in names]:
        try:
            one.check()
        except D2VError as error:
            left_out[one.name] = str(error)
        else:
            chosen[one.name] = one
    if not chosen:
        name, reason = next(iter(left_out.items()))
        raise BackendError(f"no engine is left that can run here; {name}: {reason}")
    return list(chosen.values()), left_out


def time_cases(
    cases: Sequence[Case],
    engines: list[Engine],
    left_out: dict[str, str],
    threads: int,
    repeat: int,
    seconds: float,
    advance: Advance,
) -> Report:
    """Time every case; one that fails does not keep the others from being measured."""
    report = _report(engines, left_out, threads)
    names = [one.name for one in engines]
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            least = {"repeat": repeat, "seconds": seconds}
            job = {"kind": "time", "case": case.as_dict(), "engines": names, **least, "folder": folder}
            try:
                result = children.run(case.name, job, threads, lambda: advance(1))
            except D2VError as error:
                report.failed[case.name] = error
            else:
                report.timings.append(Timing.from_dict(result))
    return report


def measure_cases(
    cases: Sequence[Case], engines: list[Engine], left_out: dict[str, str], threads: int, advance: Advance
) -> Report:
    """Measure the memory of every case with each of our engines.

    Raises:
        InputError: an engine is not ours.
    """
    memory.check()
    for one in engines:
        if not isinstance(one, Ours):
            hint = "Name backends only"
            raise InputError("memory is measured of our backends", got=one.name, hint=hint)
    report = _report(engines, left_out, threads)
    with tempfile.TemporaryDirectory() as temporary:
        for case in cases:
            folder = Path(temporary, f"{case.model}-{case.size}")
            if not folder.exists():
                write_checkpoint(case.cls, case.size, SEED, folder, num_labels=case.settings.get("num_labels"))
            for one in engines:
                try:
                    report.memory.append(_needed(case, one, folder, threads))
                except D2VError as error:
                    report.failed[f"{case.name}, {one.name}"] = error
                advance(1)
    return report


def _needed(case: Case, one: Engine, folder: Path, threads: int) -> Needed:
    """Counted first: a backend that compiles does it then, and not in the process whose peak is measured."""
    found: dict[str, int] = {}
    for kind in ("count", "peak"):
        job = {"kind": kind, "case": case.as_dict(), "engine": one.name, "folder": str(folder)}
        found.update(children.run(f"{case.name} with {one.name}", job, threads))
    return Needed(case.name, one.name, **found)


def _report(engines: list[Engine], left_out: dict[str, str], threads: int) -> Report:
    ours = [one.name for one in engines if isinstance(one, Ours)]
    return Report(threads, machine.processor(), machine.cores(), machine.versions(engines), ours, left_out)


# ---- Markdown --------------------------------------------------------------------------------------------------------


def markdown(report: Report) -> Iterator[str]:
    """The report as Markdown, line by line."""
    yield from _where(report)
    if report.timings:
        names = [timed.engine for timed in report.timings[0].engines]
        yield from _times(report, names)
        for name in report.ours:
            yield from _ratios(report, name, [other for other in names if other not in report.ours])
        if len(names) > 1:
            yield from _differences(report, names)
    if report.memory:
        yield from _memory(report)
    for name, reason in report.left_out.items():
        yield from ("", f"Left out: {name}: {reason}")


def _where(report: Report) -> Iterator[str]:
    yield f"{report.processor}, {report.cores} cores, {report.threads} threads"
    yield ", ".join(f"{name} {version}" for name, version in report.versions.items())


def _times(report: Report, names: list[str]) -> Iterator[str]:
    title = "Milliseconds, medians of so many runs in turns; what other processes took of the processor then:"
    yield from ("", title, "")
    rows = []
    for timing in report.timings:
        others = "-" if timing.others is None else f"{timing.others:.0%}"
        runs = str(len(timing.engines[0].times))
        medians = [_milliseconds(timed.median) for timed in timing.engines]
        rows.append([timing.case, f"{_gflop(timing):.3g}", *medians, runs, others])
    yield from _table(["case", "GFLOP", *names, "runs", "others"], rows)


def _ratios(report: Report, name: str, others: list[str]) -> Iterator[str]:
    """One of our engines: its time as a share of each peer's, its speed, and its share of the peak."""
    rows = []
    for timing in report.timings:
        found = {timed.engine: timed for timed in timing.engines}
        speed = _gflop(timing) / found[name].median
        ratios = [f"{found[name].median / found[other].median:.2f}" for other in others]
        rows.append([timing.case, *ratios, f"{speed:.0f}", *_peak(found[name], speed)])
    title = f"{name}: its time as a share of the others', its speed, and that as a share of the processor's peak:"
    yield from ("", title, "")
    yield from _table(["case", *(f"/ {other}" for other in others), "GFLOP/s", "peak", "share"], rows)


def _peak(timed: Timed, speed: float) -> list[str]:
    if timed.peak is None:
        return ["-", "-"]
    return [f"{timed.peak / 1e9:.0f}", f"{speed * 1e9 / timed.peak:.2f}"]


def _differences(report: Report, names: list[str]) -> Iterator[str]:
    title = f"Largest difference from the outputs of {names[0]}, as a share of the output's largest number:"
    yield from ("", title, "")
    rows = [[timing.case, *(f"{timed.difference:.0e}" for timed in timing.engines[1:])] for timing in report.timings]
    yield from _table(["case", *names[1:]], rows)


def _memory(report: Report) -> Iterator[str]:
    title = "Megabytes: what a model needs, and the most that a process had which loads a checkpoint and runs it:"
    yield from ("", title, "")
    rows = [
        [
            needed.case,
            needed.engine,
            *(f"{x / 1e6:.0f}" for x in (needed.weights, needed.activations, needed.before, needed.peak)),
            f"{needed.share:.2f}",
            f"{needed.own_share:.2f}",
        ]
        for needed in report.memory
    ]
    columns = ["case", "engine", "weights", "activations", "before loading", "peak"]
    columns += ["peak / (weights + activations)", "without what was there before"]
    yield from _table(columns, rows)


def _gflop(timing: Timing) -> float:
    return 2e-9 * timing.multiply_adds


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def _table(columns: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Markdown's, with columns of one width, so that a terminal shows a table too."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, ["-" * width for width in widths], *rows):
        yield f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
