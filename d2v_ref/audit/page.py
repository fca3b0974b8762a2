"""An audit as an HTML page: every weight and every module has a row."""

from __future__ import annotations

from pathlib import Path

from d2v_ref.audit.folding import ranges
from d2v_ref.audit.report import Audit
from d2v_ref.pages import Markup, heading, paragraph, table, write_page


def write_audit(audit: Audit, path: str | Path) -> None:
    """Write the page, whole or not at all."""
    sections = (_weights, _modules, _memory, _quirks, _equations)
    title = f"{audit.name}: {audit.kind}"
    parts = [paragraph(f"{audit.totals.parameters:,} parameters, computed in {audit.dtype} by {audit.backend}")]
    write_page(path, title, *parts, *(part for section in sections for part in section(audit)))


def _weights(audit: Audit) -> list[Markup]:
    totals = audit.totals
    rows = [
        (
            weight.name,
            str(weight.shape),
            weight.dtype,
            weight.bytes,
            weight.file,
            ", ".join(f"{use.parameter} ({use.kind})" for use in weight.used_by) or f"unused: {weight.unused}",
        )
        for weight in audit.weights
    ]
    marks = tuple("" if weight.used_by else "dim" for weight in audit.weights)
    words = f"{totals.used} used, {totals.used_bytes:,} bytes; {totals.unused} unused, {totals.unused_bytes:,} bytes"
    parts = [heading("Weights"), paragraph(f"{words}; {totals.tied} tied.")]
    parts.append(table(("name", "shape", "dtype", "bytes", "file", "used by"), rows, marks))
    if audit.fresh:
        parts.append(paragraph(f"Missing from the checkpoint, drawn anew: {', '.join(audit.fresh)}"))
    if audit.absent:
        parts.append(paragraph(f"Left out, as the checkpoint has no weights for it: {', '.join(audit.absent)}"))
    return parts


def _modules(audit: Audit) -> list[Markup]:
    rows = []
    for module in audit.modules:
        cost = module.total
        numbers = (cost.multiply_adds, cost.element_operations, cost.bytes_read, cost.bytes_written)
        row = (module.path or "(the model)", module.kind, module.parameters, module.all_parameters, *numbers)
        rows.append((*row, ", ".join(module.operations)))
    counted = ("own parameters", "parameters", "multiply-adds", "element operations", "bytes read", "bytes written")
    columns = ("module", "class", *counted, "own operations")
    arrays = ", ".join(f"{name} {what}" for name, what in audit.input.arrays.items())
    words = f"For {audit.input.what}: {arrays}. Those of a module are the sum of its own and of those inside it."
    return [heading("Modules and operations"), paragraph(words), table(columns, rows)]


def _memory(audit: Audit) -> list[Markup]:
    memory = audit.memory
    peak = (memory.activations, memory.module or "(the model)", memory.kind, memory.operation)
    rows = [("weights", memory.weights, "", "", ""), ("activations, at most at a time", *peak)]
    return [heading("Memory"), table(("", "bytes", "module running then", "class", "operation"), rows)]


def _quirks(audit: Audit) -> list[Markup]:
    rows = [(name, quirk.what, quirk.source) for name, quirk in audit.quirks.items()]
    found = table(("setting", "what", "source"), rows) if rows else paragraph("None.")
    return [heading("Quirks of this configuration"), found]


def _equations(audit: Audit) -> list[Markup]:
    rows = []
    for equation in audit.equations:
        operations = "; ".join(f"{name}: {text}" for name, text in equation.operations.items())
        for i, place in enumerate(equation.places):
            words = (equation.kind, equation.text, operations) if i == 0 else ("", "", "")
            settings = ", ".join(f"{name} {value}" for name, value in place.settings.items())
            rows.append((*words, settings, ", ".join(path or "(the model)" for path in ranges(place.paths))))
    return [heading("Equations"), table(("class", "what", "operations", "with", "at"), rows)]
