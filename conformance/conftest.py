"""Conformance: the same draws every time, one line of counts at the end, of all processes that took part."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

settings.register_profile(
    "conformance",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("conformance")


@dataclass
class Tally:
    """What a suite compared: cases, arrays, and the worst error in units of what was allowed."""

    cases: int = 0
    arrays: int = 0
    worst: float = 0.0

    def add(self, other: Tally) -> None:
        self.cases, self.arrays = self.cases + other.cases, self.arrays + other.arrays
        self.worst = max(self.worst, other.worst)


_tallies: dict[str, Tally] = defaultdict(Tally)


@pytest.fixture(scope="session")
def tally() -> dict[str, Tally]:
    """Counts by suite, printed when the session ends."""
    return _tallies


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of pytest-xdist's hands its counts to the one that prints."""
    handed: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if handed is not None:
        handed["tallies"] = {name: (t.cases, t.arrays, float(t.worst)) for name, t in _tallies.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for name, counts in getattr(node, "workeroutput", {}).get("tallies", {}).items():
        _tallies[name].add(Tally(*counts))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _tallies:
        return
    terminalreporter.section("what was compared")
    for name, t in sorted(_tallies.items()):
        count = f"{t.cases} cases, {t.arrays} arrays" if t.arrays else f"{t.cases} cases"
        terminalreporter.line(f"{name}: {count}, worst error {t.worst:.2g} of the bound")
    cases, arrays = sum(t.cases for t in _tallies.values()), sum(t.arrays for t in _tallies.values())
    terminalreporter.line(f"in all: {cases} cases, {arrays} arrays")
