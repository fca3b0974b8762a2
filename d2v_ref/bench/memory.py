"""How much memory a process needs that loads one of our engines from a checkpoint and runs it, and nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2v_ref.audit.memory import measure
from d2v_ref.bench.cases import Case
from d2v_ref.bench.engines import Ours
from d2v_ref.errors import BackendError
from d2v_ref.ops import get_ops

RUNS = 3  # a pass that is plain, one that is recorded, one that is done again
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Counted:
    """Bytes of the weights and of the activations, as ``d2v_ref.audit.memory`` counts them."""

    weights: int
    activations: int


@dataclass(frozen=True)
class Peak:
    """The bytes that a process had in memory before it loaded the model, and the most that it had in all."""

    before: int
    peak: int


@dataclass(frozen=True)
class Needed:
    """What a case needs with one of our engines; all in bytes."""

    case: str
    engine: str
    weights: int
    activations: int
    before: int
    peak: int

    @property
    def share(self) -> float:
        """The peak, as a share of weights and activations."""
        return self.peak / (self.weights + self.activations)

    @property
    def own_share(self) -> float:
        """The same without what the process had before: Python, NumPy, and what a backend is made with."""
        return (self.peak - self.before) / (self.weights + self.activations)


def check() -> None:
    """Nothing, or BackendError: the peak can't be read on this system."""
    if not STATUS.is_file():
        raise BackendError("peak memory can't be measured here", got=f"no {STATUS}", expected="Linux")


def count(case: Case, engine: Ours, folder: Path) -> Counted:
    """Load the model and have its memory counted while it runs."""
    model = _load(case, engine, folder)
    found = measure(model, {case.argument: case.given()})
    return Counted(found.weights, found.activations)


def peak(case: Case, engine: Ours, folder: Path) -> Peak:
    """Load the model and run it until a backend has recorded what it does, and does that again."""
    import scipy.special  # noqa: F401 - as a part of what was there before

    get_ops(engine.backend, engine.dtype)
    given, before = case.given(), resident("VmRSS")
    model = _load(case, engine, folder)
    for _ in range(RUNS):
        model(given)
    return Peak(before, resident("VmHWM"))


def _load(case: Case, engine: Ours, folder: Path) -> Any:
    return case.cls.from_pretrained(folder, backend=engine.backend, dtype=engine.dtype)


def resident(what: str) -> int:
    """The memory that this process has ("VmRSS"), or the most that it has had ("VmHWM"), in bytes.

    (getrusage tells its parent's too.)
    """
    found = re.search(rf"{what}:\s+(\d+) kB", STATUS.read_text(encoding="utf-8"))
    if found is None:
        raise BackendError("peak memory can't be measured here", got=f"no {what} in {STATUS}", expected="Linux")
    return int(found.group(1)) * 1024
