"""What a check found: a row for every recorded array, the first that diverges, and the module that is to blame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PASSED, FAILED, MISSING, UNOBSERVABLE = "passed", "failed", "missing", "not observable"

# What an array is to its module: its output, a value inside it (or of a model's output), or what it was given.
OUTPUT, VALUE, INPUT = "output", "value", "input"


@dataclass(frozen=True)
class Row:
    """One recorded array: what became of it, its largest absolute error, where, and what is allowed.

    Attributes:
        status: passed, failed, missing (it should have been there), or not observable (nobody said that it would be).
        error: of a moment the difference, and there is no ``where``; None if it is no finite number.
        reason: what failed, a sample or a moment, with both values, and which moments failed beside it: "sample at (0,
            3, 5): 1.5, recorded 1.25; mean; rms".
        finite: False if it failed since NaN or infinity is where there was none, or is not where it was.
    """

    name: str
    module: str
    status: str
    error: float | None = None
    tolerance: float | None = None
    where: tuple[int, ...] | None = None
    reason: str = ""
    kind: str = OUTPUT
    finite: bool = True

    @property
    def path(self) -> str:
        """The module's."""
        return self.name.partition("#")[0]


@dataclass(frozen=True)
class Report:
    """All rows, in the order of computation; of our backends then the outputs of a run that was not recorded.

    Attributes:
        source: who was checked.
        dtype: the format whose tolerances were taken.
        given: module -> parameter -> the name of the array that it was given.
        names: the port's names of arrays that were matched by shape and value.
        isolated: whether each module was given the golden's input, so that no row inherits an error.
    """

    rows: list[Row]
    source: str = ""
    dtype: str = "float32"
    given: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    isolated: bool = False

    @property
    def passed(self) -> bool:
        """Whether at least one array was compared, and none failed or is missing."""
        return bool(self.having(PASSED)) and not self.having(FAILED, MISSING)

    def having(self, *statuses: str) -> list[Row]:
        """The rows of these statuses."""
        return [row for row in self.rows if row.status in statuses]

    @property
    def first(self) -> Row | None:
        """The first array that failed, or else that is missing: what comes later may only have inherited its error."""
        return next(iter(self.having(FAILED) + self.having(MISSING)), None)

    @property
    def first_not_finite(self) -> Row | None:
        """The first array with NaN or infinity that the golden does not have there."""
        return next((row for row in self.rows if not row.finite), None)

    @property
    def culprit(self) -> str | None:
        """The path of the module that holds the fault: the one whose code made the first array that failed.

        What a module was given is made by the module around it.
        """
        row = self.first
        if row is None or row.status != FAILED:
            return None
        return self._around(row.path) if row.kind == INPUT else row.path

    def _around(self, path: str) -> str:
        """The module that a module is a part of."""
        known = {row.path for row in self.rows}
        while "." in path:
            path = path.rpartition(".")[0]
            if path in known:
                return path
        return ""

    def upstream(self) -> list[tuple[str, Row]]:
        """What the first array that failed was computed from, as far as it was compared: (what it is, its row)."""
        row = self.first
        if row is None:
            return []
        by_name = {each.name: each for each in self.rows}
        if row.kind != INPUT:
            given = self.given.get(row.path, {})
            return [(parameter, by_name[name]) for parameter, name in given.items() if name in by_name]
        around = self._around(row.path)
        before = self.rows[: self.rows.index(row)]
        parts = [each for each in before if each.kind == OUTPUT and self._around(each.path) == around != each.path]
        given = self.given.get(around, {})
        return [
            *((f"{parameter} of {around}", by_name[name]) for parameter, name in given.items() if name in by_name),
            *(("a part of it", each) for each in parts),
        ]

    def verdict(self) -> list[str]:
        """Sentences: what diverged first, by how much, where, and what lies upstream."""
        row, odd = self.first, self.first_not_finite
        lines = [f"the first that is not finite: {odd.name} ({odd.module}): {odd.reason}"] if odd is not None else []
        if row is None:
            return lines if self.passed else [*lines, "no array was compared"]
        if row.status == MISSING:
            hint = "what can't be shown is left out with --taps '!name'"
            return [*lines, f"missing: {row.name} ({row.module}) was not given; {hint}"]
        at = "" if row.where is None else f", at {row.where}"
        lines.append(f"the first that differs: {row.name} ({row.module}){at}")
        if row.error is not None and row.tolerance:
            lines.append(f"  off by {row.error:.3g}, {row.error / row.tolerance:.3g} times what is allowed")
        lines += [f"  upstream: {what}, {each.name}: {each.status}" for what, each in self.upstream()]
        if self.culprit != row.path:
            lines.append(f"  it was computed in {self.culprit or 'the model itself'}")
        elif self._unseen_input(row):
            hint = "" if self.isolated else "; --isolate tells"
            lines.append(f"  its input was not seen: the fault is there, or in {self._around(row.path)}{hint}")
        return lines

    def _unseen_input(self, row: Row) -> bool:
        return row.kind == OUTPUT and any(each.status == UNOBSERVABLE for _, each in self.upstream())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        from dataclasses import asdict

        return {
            "passed": self.passed,
            "against": self.source,
            "dtype": self.dtype,
            "isolated": self.isolated,
            "counts": {status: len(self.having(status)) for status in (PASSED, FAILED, MISSING, UNOBSERVABLE)},
            "first": None if self.first is None else self.first.name,
            "first_not_finite": None if self.first_not_finite is None else self.first_not_finite.name,
            "culprit": self.culprit,
            "upstream": [{"what": what, "name": row.name, "status": row.status} for what, row in self.upstream()],
            "names": dict(self.names),
            "rows": [asdict(row) for row in self.rows],
        }
