"""Where a model loses precision: every module's output in float32, float16 and bfloat16 against float64.

float64, of the weights as they were loaded, is the yardstick.  The 16-bit formats are those of ``StorageOps``: stored
in the format, computed in float32.  The yardstick's arrays go to a temporary file and are read back one at a time.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref.audit.attentions import Attention, Watching, look_at
from d2v_ref.audit.storage import FORMATS, LARGEST, SMALLEST_NORMAL, StorageOps
from d2v_ref.golden.flow import Flow
from d2v_ref.golden.recording import tell_arrays
from d2v_ref.golden.spool import Spool
from d2v_ref.ops import Ops
from d2v_ref.pretrained import PreTrainedModel

COMPARED = ("float32", *FORMATS)
RUNS = 1 + len(COMPARED)


@dataclass(frozen=True)
class Deviation:
    """How far an array in one format is from the yardstick's.

    Attributes:
        error: the largest absolute difference between numbers that are finite in both.
        relative: ``error`` divided by the root mean square of the yardstick's array; infinite if that is 0.
        growth: ``relative`` divided by the largest ``relative`` of the module's inputs; None of a tap, and of a module
            whose inputs have no error or are no floating-point arrays.
        not_finite: how many numbers are NaN or infinite that are finite in float64.
    """

    error: float
    relative: float
    growth: float | None
    not_finite: int


@dataclass(frozen=True)
class Row:
    """One module's output or tap, in the order of computation.

    Attributes:
        name, module: of the tap, and the class that it is of.
        leaf: whether the module has no modules of its own; False of a tap.
        shape: of the array.
        rms, largest: root mean square and largest magnitude of its finite numbers, in float64.
        tiny: the share of its numbers that are not 0 and below float16's smallest normal number, 2^-14.
        deviations: by format.
    """

    name: str
    module: str
    leaf: bool
    shape: tuple[int, ...]
    rms: float
    largest: float
    tiny: float
    deviations: dict[str, Deviation]

    @property
    def headroom(self) -> float:
        """How often the largest magnitude goes into 65504, float16's largest number; below 1 it overflows."""
        return LARGEST["float16"] / self.largest if self.largest else math.inf


@dataclass(frozen=True)
class Precision:
    """All rows and all attentions, in the order of computation."""

    rows: list[Row]
    attentions: list[Attention]

    def worst(self, form: str) -> Row | None:
        """The largest relative error among the arrays that are finite in a format as they are in float64."""
        finite = [row for row in self.rows if not row.deviations[form].not_finite]
        return max(finite, key=lambda row: row.deviations[form].relative, default=None)

    def overflow(self, form: str) -> Row | None:
        """The first array that holds NaN or infinity in a format and not in float64."""
        return next((row for row in self.rows if row.deviations[form].not_finite), None)

    def losses(self, form: str) -> list[Row]:
        """Modules without parts of their own whose error grows, the largest growth first."""
        found = {row.name: row.deviations[form].growth for row in self.rows if row.leaf}
        grown = {name: growth for name, growth in found.items() if growth is not None and growth > 1}
        return sorted((row for row in self.rows if row.name in grown), key=lambda row: -grown[row.name])

    @property
    def largest(self) -> Row | None:
        """The row of the largest magnitude."""
        return max(self.rows, key=lambda row: row.largest, default=None)


def measure(
    model: PreTrainedModel, arguments: dict[str, Any], progress: Callable[[int], None] | None = None
) -> Precision:
    """Run a model in float64 and in each of ``COMPARED``.

    Args:
        model: in any backend and dtype; computed by NumPy's definitions.
        arguments: of its forward pass.
        progress: called with 1 after each of ``RUNS`` runs.

    Raises:
        InputError: the model does not take the arguments.
    """
    advance = progress or (lambda _: None)
    with tempfile.TemporaryDirectory() as folder, Spool(Path(folder, "exact")) as spool, np.errstate(all="ignore"):
        yardstick = _Yardstick(spool)
        yardstick.run(model, arguments)
        advance(1)
        deviations = {}
        for form in COMPARED:
            ops = Ops("float32") if form == "float32" else StorageOps(form)
            deviations[form] = yardstick.compare(model.with_ops(ops), arguments)
            advance(1)
        rows = list(_rows(model, yardstick, deviations))
    return Precision(rows, yardstick.attentions)


@dataclass(frozen=True)
class _Size:
    shape: tuple[int, ...]
    rms: float
    largest: float
    tiny: float


class _Yardstick:
    """The float64 run: its arrays in a file, and for each module the names of the arrays that it is given."""

    def __init__(self, spool: Spool) -> None:
        self.arrays, self.flow = spool, Flow(self._keep)
        self.sizes: dict[str, _Size] = {}
        self.attentions: list[Attention] = []
        self._ops = Watching()

    def run(self, model: PreTrainedModel, arguments: dict[str, Any]) -> None:
        self.flow.run(model.with_ops(self._ops), arguments)

    def compare(self, model: PreTrainedModel, arguments: dict[str, Any]) -> dict[str, Deviation]:
        """Every array of another run against the yardstick's."""
        found: dict[str, tuple[float, float, int]] = {}

        def see(name: str, value: np.ndarray) -> None:
            found[name] = _deviation(value, self.arrays[name], self.sizes[name].rms)

        tell_arrays(model, arguments, see, self.arrays)
        return {
            name: Deviation(error, relative, self._growth(name, relative, found), not_finite)
            for name, (error, relative, not_finite) in found.items()
        }

    def _keep(self, name: str, value: np.ndarray) -> bool:
        if value.dtype.kind != "f":
            return False
        self.arrays.add(name, value)
        self.sizes[name] = _size(value)
        if name.endswith("#probs"):
            self.attentions.append(look_at(name, value, self._ops.hidden))
        return True

    def _growth(self, name: str, relative: float, found: dict[str, tuple[float, float, int]]) -> float | None:
        given = self.flow.given.get(name, {})
        before = [found[other][1] for other in given.values() if other in found]
        if not before or not 0 < max(before) < math.inf:
            return None
        return relative / max(before)


def _size(x: np.ndarray) -> _Size:
    size = np.abs(x[np.isfinite(x)])
    tiny = float(np.count_nonzero((size > 0) & (size < SMALLEST_NORMAL)) / size.size) if size.size else 0.0
    rms = math.sqrt(float(np.square(size).mean())) if size.size else 0.0
    return _Size(x.shape, rms, float(size.max(initial=0.0)), tiny)


def _deviation(got: np.ndarray, want: np.ndarray, rms: float) -> tuple[float, float, int]:
    """The largest error, relative to rms, and how many numbers are not finite that should be."""
    wanted = np.isfinite(want)
    finite = wanted & np.isfinite(got)
    error = float(np.abs(got[finite] - want[finite]).max(initial=0.0))
    relative = error / rms if rms else (math.inf if error else 0.0)
    return error, relative, int(np.count_nonzero(wanted) - np.count_nonzero(finite))


def _rows(model: PreTrainedModel, yardstick: _Yardstick, deviations: dict[str, dict[str, Deviation]]) -> Iterator[Row]:
    modules = dict(model.named_modules())
    parents = {path.rpartition(".")[0] for path in modules}
    for name, size in yardstick.sizes.items():
        if name in yardstick.flow.handed:
            continue
        path, _, point = name.partition("#")
        leaf = not point and not any(parent == path or parent.startswith(f"{path}.") for parent in parents)
        of_formats = {form: found[name] for form, found in deviations.items()}
        yield Row(name, type(modules[path]).__name__, leaf, size.shape, size.rms, size.largest, size.tiny, of_formats)
