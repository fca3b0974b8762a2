"""What computed: the processor, and the version of everything that takes part."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import d2v_ref
from d2v_ref.bench.engines import Engine


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Others:
    """How much of the processor other processes take from when this is made, where the system tells (Linux)."""

    def __init__(self) -> None:
        self.busy, self.own, self.start = self._busy(), time.process_time(), time.perf_counter()

    def share(self) -> float | None:
        """Of all cores' time until now; None if the system does not tell."""
        busy = self._busy()
        if busy is None or self.busy is None:
            return None
        others = (busy - self.busy) - (time.process_time() - self.own)
        passed = (time.perf_counter() - self.start) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, others / passed))  # the system counts in hundredths of a second

    @staticmethod
    def _busy() -> float | None:
        """Seconds that all cores have computed (proc_stat(5)), what a host took from a virtual one included."""
        try:
            user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
        except (OSError, ValueError):
            return None
        return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def versions(engines: Iterable[Engine]) -> dict[str, str]:
    """The version of Python, of d2v_ref, of NumPy and its library for products, and of what the engines need."""
    from threadpoolctl import threadpool_info

    found = {"Python": platform.python_version(), "d2v_ref": d2v_ref.__version__, "numpy": metadata.version("numpy")}
    for library in threadpool_info():
        if library["user_api"] == "blas":
            found.setdefault(str(library["internal_api"]), str(library["version"]))
    for package in dict.fromkeys(package for engine in engines for package in engine.packages):
        with suppress(metadata.PackageNotFoundError):  # a backend is not always called as what it is made with
            found[package] = metadata.version(package)
    return found
