"""A process for each measurement: the same interpreter and import path, a number of threads for every library."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from d2v_ref import errors
from d2v_ref.bench.cases import Case
from d2v_ref.bench.engines import Ours, engine
from d2v_ref.errors import BackendError, D2VError

# What the backends, and the libraries that NumPy may have for products of matrices, read when they are loaded.
THREADS = ("D2V_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
START = "import sys; sys.path[:] = {path!r}; from d2v_ref.bench.children import main; main()"

Job = dict[str, Any]


def run(what: str, job: Job, threads: int, advance: Callable[[], None] = lambda: None) -> Any:
    """Do a job in a new process and return its result.

    Args:
        what: is measured, for messages.
        job: as ``main`` takes it.
        threads: of every library.
        advance: called at each of its steps.

    Raises:
        D2VError: the one that ended the job; BackendError if the process failed in another way.
    """
    command = [sys.executable, "-c", START.format(path=sys.path), json.dumps({**job, "threads": threads})]
    environment = {**os.environ, **dict.fromkeys(THREADS, str(threads))}
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(  # noqa: S603 - this interpreter
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
        ) as process,
    ):
        message: Job = {}
        try:
            for line in process.stdout or ():
                message = json.loads(line)
                if "step" in message:
                    advance()
        except BaseException:
            process.kill()
            raise
        code = process.wait()
        if "error" in message:
            raise _error(what, message["error"])
        if "result" not in message:
            said.seek(0)
            raise BackendError("the process that measures it failed", path=what, got=_end(code, said.read()))
    return message["result"]


def _error(what: str, values: dict[str, Any]) -> D2VError:
    """The error that a child described."""
    kind, message, path = (values.pop(name) for name in ("kind", "message", "path"))
    return getattr(errors, kind)(message, path=path or what, **values)


def _end(code: int, said: bytes) -> str:
    """How a process ended, and the last line that it said."""
    words = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    return f"{words}: {lines[-1].strip()}" if lines else words


# ---- in the new process ----------------------------------------------------------------------------------------------


def main() -> None:
    """Do the job that the last argument describes in JSON; say steps, and then a result or an error, a line each."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no part of it

    def say(**message: Any) -> None:
        print(json.dumps(message), file=lines, flush=True)

    job = json.loads(sys.argv[-1])
    try:
        result = JOBS[job["kind"]](job, lambda: say(step=1))
    except D2VError as error:
        details = {name: getattr(error, name) for name in ("path", "got", "expected", "hint")}
        spelled = {name: None if value is None else str(value) for name, value in details.items()}
        say(error={"kind": type(error).__name__, "message": error.message, **spelled})
    else:
        say(result=result)


def _time(job: Job, advance: Callable[[], None]) -> Job:
    from d2v_ref.bench.peers import share_openmp
    from d2v_ref.bench.timing import time_case

    engines = [engine(name) for name in job["engines"]]
    if any("torch" in each.packages for each in engines):
        share_openmp()  # before any of them starts its threads
    case = Case.from_dict(job["case"])
    least = job["repeat"], job["seconds"]
    return time_case(case, engines, job["threads"], *least, Path(job["folder"]), advance).as_dict()


def _count(job: Job, advance: Callable[[], None]) -> Job:
    from d2v_ref.bench.memory import count

    return asdict(count(Case.from_dict(job["case"]), cast(Ours, engine(job["engine"])), Path(job["folder"])))


def _peak(job: Job, advance: Callable[[], None]) -> Job:
    from d2v_ref.bench.memory import peak

    return asdict(peak(Case.from_dict(job["case"]), cast(Ours, engine(job["engine"])), Path(job["folder"])))


JOBS: dict[str, Callable[[Job, Callable[[], None]], Job]] = {"time": _time, "count": _count, "peak": _peak}
