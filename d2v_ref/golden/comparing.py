"""Comparing arrays with a bundle's, one at a time as they come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from d2v_ref.golden.bundle import Bundle
from d2v_ref.golden.exact_run import matches
from d2v_ref.golden.forms import COUNTS, FULL, SIZES, differing, kept, moments, positions
from d2v_ref.golden.report import FAILED, INPUT, MISSING, PASSED, UNOBSERVABLE, Report, Row


class Comparison:
    """Holds arrays by name against a bundle's; of a fingerprint, their samples and moments (``golden/FORMAT.md``).

    Args:
        golden: what they are held against.
        dtype: the format that they were computed in.
        taps: patterns of the names to compare.
        hidden: names that can't be seen.
        alone: whether modules ran each on its own, so that nothing else than their outputs can be seen.
    """

    def __init__(
        self,
        golden: Bundle,
        dtype: str,
        taps: Sequence[str] = (),
        hidden: Iterable[str] = (),
        alone: bool = False,
    ) -> None:
        self.golden, self.dtype, self.alone = golden, dtype, alone
        self.entries = {entry["name"]: entry for entry in golden.manifest["taps"]}
        self.names = {name for name in self.entries if matches(name, taps)}.difference(hidden)
        self.rows: dict[str, Row] = {}

    def see(self, name: str, value: np.ndarray, dtype: str | None = None, want: np.ndarray | None = None) -> None:
        """Compare an array, with what was recorded or with ``want``; names that the bundle lacks are passed over."""
        if name in self.names:
            self.rows[name] = self.row(name, value, dtype, want)

    def row(self, name: str, value: np.ndarray, dtype: str | None = None, want: np.ndarray | None = None) -> Row:
        """What becomes of an array."""
        entry = self.entries[name]
        allowed = entry.get("alone", entry["tolerances"]) if self.alone else entry["tolerances"]
        # A run in a wider format than the golden's is off by what the golden is off.
        tolerance = allowed.get(dtype or self.dtype, allowed["float32"])
        if want is not None:
            return _row({**entry, "shape": want.shape, "moments": moments(want)}, want, value, FULL, tolerance)
        return _row(entry, self.golden.taps[name], value, self.golden.manifest["form"], tolerance)

    def report(self, source: str, optional: bool = False) -> Report:
        """The rows of all arrays.

        Args:
            source: who computed.
            optional: whether what modules were given may be left out.
        """
        rows = []
        for name, entry in self.entries.items():
            hidden = name not in self.names or self.alone or (optional and entry["kind"] == INPUT)
            reason = "" if hidden else "nothing of this name was computed"
            absent = Row(name, entry["module"], UNOBSERVABLE if hidden else MISSING, reason=reason, kind=entry["kind"])
            rows.append(self.rows.get(name, absent))
        given = {name: entry["inputs"] for name, entry in self.entries.items() if "inputs" in entry}
        return Report(rows, source, self.dtype, given, isolated=self.alone)


def compare(golden: Bundle, taps: Mapping[str, np.ndarray], dtype: str | None = None) -> Report:
    """Hold arrays by name against a bundle's, in the recorded format if no other is said."""
    comparison = Comparison(golden, dtype or golden.manifest["dtype"])
    for name, value in taps.items():
        comparison.see(name, value)
    return comparison.report("")


def _row(entry: dict[str, Any], want: np.ndarray, got: np.ndarray, form: str, tolerance: float) -> Row:
    name, module, kind, shape = entry["name"], entry["module"], entry["kind"], tuple(entry["shape"])
    if got.shape != shape:
        return Row(name, module, FAILED, reason=f"shape {got.shape}, recorded {shape}", kind=kind)
    samples = kept(got, form)
    errors = _errors(samples, want)
    worst, place = float(errors.max(initial=0.0)), int(errors.argmax()) if errors.size else 0
    flat = place if form == FULL or not errors.size else int(positions(got.size)[place])
    where = tuple(int(i) for i in np.unravel_index(flat, shape)) if errors.size else ()
    found, recorded = moments(got), entry["moments"]
    others = differing(found, recorded, tolerance)
    finite = math.isfinite(worst) and not set(others) & set(COUNTS)
    if not worst <= tolerance:
        reason = _reason(f"sample at {where}", samples.flat[place], want.flat[place], others)
        return Row(name, module, FAILED, _size(worst), tolerance, where, reason, kind, finite)
    if others:
        moment, *others = others
        now, then = found.get(moment, 0), recorded.get(moment, 0)
        error = abs(now - then) if moment in SIZES else None
        return Row(
            name, module, FAILED, _size(error), tolerance, None, _reason(moment, now, then, others), kind, finite
        )
    return Row(name, module, PASSED, worst, tolerance, where, kind=kind)


def _reason(first: str, got: Any, recorded: Any, others: list[str]) -> str:
    """What failed: the first with its values."""
    return f"{first}: {got}, recorded {recorded}" + "".join(f"; {name}" for name in others)


def _errors(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """|got - want|; where one of the two is not finite 0 if the other is the same, else infinity."""
    finite = np.isfinite(got) & np.isfinite(want)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(over="ignore"):
        size = np.abs(np.subtract(np.where(finite, got, 0), np.where(finite, want, 0), dtype=np.float64))
    return np.where(finite, size, np.where(same, 0.0, np.inf))


def _size(error: float | None) -> float | None:
    return error if error is not None and math.isfinite(error) else None
