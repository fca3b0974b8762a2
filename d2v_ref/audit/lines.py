"""An audit as text for a terminal of 100 columns: layers that are alike stand once."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

from d2v_ref.audit.folding import Branch, ranges, tree
from d2v_ref.audit.report import Audit
from d2v_ref.audit.weights import StoredWeight

WIDTH = 100
_NAME = 43  # columns of a module's name


def audit_lines(audit: Audit) -> Iterator[str]:
    """The whole audit, a line at a time."""
    yield f"{audit.name}: {audit.kind}, {short(audit.totals.parameters)} parameters; {audit.dtype}, {audit.backend}"
    for section in (_weights, _counts, _memory, _quirks, _equations):
        yield ""
        yield from section(audit)


def short(number: int, unit: str = "") -> str:
    """A count to three digits."""
    for step in ("", "k", "M", "G", "T"):
        if number < 999.5 or step == "T":
            break
        number /= 1000  # type: ignore[assignment]
    digits = f"{number:.3g}" if step else str(number)
    return f"{digits} {step}{unit}".rstrip() if step or unit else digits


def _wrapped(text: str, indent: str) -> list[str]:
    return _filled(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")


_SHAPE = re.compile(r"\([\d, ]+\)")


def _filled(text: str, width: int, **indents: str) -> list[str]:
    """Lines of a text, none of which ends within a shape."""
    glued = _SHAPE.sub(lambda shape: shape[0].replace(" ", "\xa0"), text)
    lines = textwrap.wrap(glued, width, break_long_words=False, break_on_hyphens=False, **indents)  # type: ignore[arg-type]
    return [line.replace("\xa0", " ") for line in lines]


# ---- weights ---------------------------------------------------------------------------------------------------------


def _weights(audit: Audit) -> Iterator[str]:
    totals = audit.totals
    yield (
        f"Weights: {totals.used} used, {short(totals.used_bytes, 'B')}; "
        f"{totals.unused} unused, {short(totals.unused_bytes, 'B')}; {totals.tied} tied"
    )
    used = [(weight.used_by[0].parameter, weight) for weight in audit.weights if weight.used_by]
    yield from _weight_tree(used, 0)
    for weight in audit.weights:
        if len(weight.used_by) > 1:
            first, *others = (use.parameter for use in weight.used_by)
            yield from _wrapped(f"tied {', '.join(others)}: the same as {first}", "  ")
    reasons: dict[str, list[tuple[str, StoredWeight]]] = {}
    for weight in audit.weights:
        if not weight.used_by:
            reasons.setdefault(weight.unused, []).append((weight.name, weight))
    for reason, unused in reasons.items():
        yield from _wrapped(f"unused, {len(unused)} of them: {reason}", "  ")
        yield from _weight_tree(unused, 1)
    for name in ranges(audit.fresh):
        yield from _wrapped(f"fresh {name}: missing from the checkpoint, drawn anew", "  ")
    for name in audit.absent:
        yield from _wrapped(f"left out {name}: the checkpoint has no weights for it", "  ")


def _weight_tree(weights: list[tuple[str, StoredWeight]], depth: int) -> Iterator[str]:
    """A row for each module that holds some of these weights, which are given by name."""
    owned: dict[str, list[tuple[str, StoredWeight]]] = {}
    for name, weight in weights:
        module, _, own = name.rpartition(".")
        owned.setdefault(module, []).append((own, weight))
    yield from _weight_rows(tree((path, _cells_of(own)) for path, own in owned.items()), depth, 1)


def _cells_of(weights: list[tuple[str, StoredWeight]]) -> tuple[str, int, str]:
    """(dtypes, bytes, names and shapes) of a module's weights; names of one shape together."""
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, weight in weights:
        shapes.setdefault(weight.shape, []).append(name)
    named = ", ".join(f"{', '.join(names)} {shape}" for shape, names in shapes.items())
    dtypes = "/".join(dict.fromkeys(weight.dtype for _, weight in weights))
    return dtypes, sum(weight.bytes for _, weight in weights), named


def _weight_rows(branch: Branch, depth: int, times: int) -> Iterator[str]:
    times *= branch.times
    if branch.name or branch.value is not None:
        depth += 1
        name = "  " * depth + (branch.name or "(the model itself)")
        if branch.value is None:
            yield name
        else:
            dtype, size, named = branch.value
            amount = short(size, "B") if times == 1 else f"{times} x {short(size, 'B')}"
            yield from _table_row(name, f"{dtype:8} {amount:>13}  ", named)
    for inner in branch.inner:
        yield from _weight_rows(inner, depth, times)


def _table_row(name: str, cells: str, last: str) -> Iterator[str]:
    """A row whose name may be too long for its column, and whose last cell for what is left of the line."""
    if len(name) > _NAME:
        yield name
        name = ""
    before = f"{name:{_NAME}} {cells}"
    parts = _filled(last, WIDTH - len(before)) or [""]
    yield f"{before}{parts[0]}".rstrip()
    for part in parts[1:]:
        yield " " * len(before) + part


# ---- counts ----------------------------------------------------------------------------------------------------------

_COLUMNS = ("parameters", "multiply-adds", "elements", "read", "written")


def _counts(audit: Audit) -> Iterator[str]:
    arrays = ", ".join(f"{name} {what}" for name, what in audit.input.arrays.items())
    yield from _wrapped(f"Operations for {audit.input.what}: {arrays}", "")
    yield "  A module's include those of the modules in it.  A multiply-add is two FLOPs; elements are those"
    yield "  that other operations compute.  Layers that are alike stand once."
    yield _count_row("", *_COLUMNS)
    rows = ((row.path, (row.kind, row.all_parameters, row.total)) for row in audit.modules)
    yield from _count_rows(tree(rows), 0)


def _count_rows(branch: Branch, depth: int) -> Iterator[str]:
    """A branch and what is in it; of modules that are alike the sum first, and then one of them."""
    value = branch.value
    if value is not None and not any((value[1], value[2].calls)):
        return  # an activation that is fused, a module that does nothing
    name = "  " * (depth + 1) + (branch.name or "(the model)")
    if value is None:
        yield name
    elif branch.times == 1:
        yield _count_row(name, *_cells(value, 1))
    else:
        yield _count_row(f"{name}, all {branch.times}", *_cells(value, branch.times))
        yield _count_row(f"{name}, each", *_cells(value, 1))
    for inner in branch.inner:
        yield from _count_rows(inner, depth + 1)


def _cells(value: tuple[str, int, Any], times: int) -> list[str]:
    _, parameters, cost = value
    numbers = (parameters, cost.multiply_adds, cost.element_operations)
    moved = (cost.bytes_read, cost.bytes_written)
    return [short(times * n) for n in numbers] + [short(times * n, "B") for n in moved]


def _count_row(name: str, *cells: str) -> str:
    row = " ".join(f"{cell:>{max(len(title), 9)}}" for title, cell in zip(_COLUMNS, cells, strict=True))
    return f"{name:{_NAME}} {row}" if len(name) <= _NAME else f"{name}\n{'':{_NAME}} {row}"


# ---- memory, quirks, equations ---------------------------------------------------------------------------------------


def _memory(audit: Audit) -> Iterator[str]:
    memory = audit.memory
    where = f"{memory.module or 'the model'} ({memory.kind}{', ' if memory.operation else ''}{memory.operation})"
    yield "Memory for this input, measured:"
    yield f"  weights      {short(memory.weights, 'B'):>9}  in {audit.dtype}"
    yield f"  activations  {short(memory.activations, 'B'):>9}  at most at a time,"
    yield from _wrapped(f"in {where}", " " * 26)


def _quirks(audit: Audit) -> Iterator[str]:
    yield "Quirks of this configuration:" if audit.quirks else "Quirks of this configuration: none"
    for name, quirk in audit.quirks.items():
        yield from _wrapped(f"{name}: {quirk}", "  ")


def _equations(audit: Audit) -> Iterator[str]:
    yield "Equations:"
    for equation in audit.equations:
        yield f"  {equation.kind}"
        yield from _wrapped(equation.text, "    ")
        for name, text in equation.operations.items():
            yield from _wrapped(f"{name}: {text}", "    ")
        for place in equation.places:
            settings = ", ".join(f"{name} {value}" for name, value in place.settings.items())
            paths = ", ".join(path or "the model itself" for path in ranges(place.paths))
            yield from _wrapped(f"at {paths}" + (f": {settings}" if settings else ""), "    ")
