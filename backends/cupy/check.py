"""``python -m d2v_backends.cupy.check --out FILE``: all that needs a card, in one run of less than ten minutes.

Each section has a number of seconds, and leaves out what it does not come to.  The file, JSON, is written anew, whole,
after every section; one that fails is recorded, and the next one begins.  Exit codes are those of ``d2v-ref``: 0
everything held, 1 something did not, 2 a wrong use, 3 no card.
"""

from __future__ import annotations

import json
import math
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

import d2v_ref
from d2v_ref.cli.common import say_error
from d2v_ref.errors import BackendError, D2VError, InputError

from ..kept import write
from . import CupyOps

TOTAL = 570  # seconds


@dataclass
class Run:
    """What a section computes with, and what it has found.

    Attributes:
        seed: of all random numbers.
        tests: the checkout's folder of tests, whose cases the operations are held against.
        make: a format -> operations in it.
        end: when the section is to end, by ``time.monotonic``.
        failures: what did not hold, in words.
        left_out: what the time did not suffice for.
    """

    seed: int
    tests: Path
    make: Callable[..., CupyOps] = CupyOps
    end: float = math.inf
    failures: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def time_for(self, what: str, seconds: float = 0.0) -> bool:
        """Whether there is time for something that takes so long; what there is none for is noted down."""
        if time.monotonic() + seconds < self.end:
            return True
        self.left_out.append(what)
        return False

    def hold(self, holds: bool, what: str) -> None:
        """Notes down what does not hold."""
        if not holds:
            self.failures.append(what)

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """An error of the block is a failure, and what comes after the block goes on."""
        try:
            yield
        except Exception as error:  # of the driver, of PyTorch, of a kernel: whatever it is
            self.failures.append(f"{what}: {type(error).__name__}: {error}"[:1000])


@dataclass(frozen=True)
class Section:
    """A part of the check: how many seconds it may take, and what finds its result, which JSON can hold."""

    seconds: float
    find: Callable[[Run], Any]


def perform(sections: Mapping[str, Section], run: Run, out: Path, total: float = TOTAL) -> dict[str, Any]:
    """Performs sections one after the other, and writes what they have found after each.

    Raises:
        BackendError: the file can't be written.
    """
    begin = time.monotonic()
    report: dict[str, Any] = {
        "format": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "d2v_ref": d2v_ref.__version__,
        "seed": run.seed,
        "sections": {},
    }
    for name, section in sections.items():
        start = time.monotonic()
        run.end = min(start + section.seconds, begin + total)
        run.failures, run.left_out = [], []
        found: dict[str, Any] = {"status": "out of time", "result": None, "error": None}
        if run.end > start:
            found = _found(section, run)
        found |= {"seconds": round(time.monotonic() - start, 2), "failures": run.failures, "left_out": run.left_out}
        report["sections"][name] = found
        report["seconds"] = round(time.monotonic() - begin, 2)
        text = json.dumps(report, indent=1, allow_nan=False, default=float) + "\n"
        if reason := write(out, text.encode()):
            raise BackendError("the results can't be written", path=out, got=reason)
        click.echo(f"{name}: {found['status']}, {found['seconds']} s", err=True)
    return report


def _found(section: Section, run: Run) -> dict[str, Any]:
    try:
        result = section.find(run)
        json.dumps(result, allow_nan=False, default=float)
    except Exception as error:  # whatever it is, the next section is to begin
        return {"status": "error", "result": None, "error": traceback.format_exception(error)[-12:]}
    return {"status": "failed" if run.failures else "passed", "result": result, "error": None}


def exit_code(report: Mapping[str, Any]) -> int:
    """0 if every section passed, else 1."""
    return 0 if all(found["status"] == "passed" for found in report["sections"].values()) else 1


def chosen(names: str | None, sections: Mapping[str, Section]) -> dict[str, Section]:
    """Sections by their names, which commas part; all of them if there are none."""
    if names is None:
        return dict(sections)
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in sections:
            raise InputError("no such section", got=repr(name), expected=" or ".join(sections))
    return {name: sections[name] for name in sections if name in wanted}


def every_section() -> dict[str, Section]:
    """The sections in order: what the later ones need comes first."""
    from . import checking_card, checking_numbers, checking_speed

    return {
        "environment": Section(60, checking_card.environment),
        "probes": Section(10, checking_card.probes),
        "operations": Section(80, checking_numbers.operations),
        "models": Section(80, checking_numbers.models),
        "tuning": Section(30, checking_card.tuning),
        "latency": Section(180, checking_speed.latency),
        "throughput": Section(130, checking_speed.throughput),
    }


@click.command(help=__doc__.split("\n\n")[1])
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file of results.")
@click.option("--sections", metavar="NAMES", help="Some of the sections, parted by commas; all by default.")
@click.option("--seconds", type=float, default=TOTAL, show_default=True, help="For everything together.")
@click.option("--seed", type=int, help="Of the random numbers; a fresh one by default.")
@click.option(
    "--tests",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(__file__).resolve().parents[2] / "tests",
    help="The checkout's folder of tests, whose cases operations are held against.",
)
def command(out: Path, sections: str | None, seconds: float, seed: int | None, tests: Path) -> None:
    if (lacks := CupyOps.lacks()) is not None:
        raise lacks
    run = Run(secrets.randbits(31) if seed is None else seed, tests)
    report = perform(chosen(sections, every_section()), run, out, seconds)
    raise SystemExit(exit_code(report))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    try:
        command.main(arguments, prog_name="python -m d2v_backends.cupy.check", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except D2VError as error:
        return say_error(error)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
