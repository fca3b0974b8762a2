"""A check's report as JUnit XML, which a port's CI reads, and as a page with the error by depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

from d2v_ref import pages
from d2v_ref.checkpoints import replacing
from d2v_ref.golden.report import FAILED, MISSING, PASSED, UNOBSERVABLE, Report, Row

_MARKS = {FAILED: "bad", MISSING: "bad", UNOBSERVABLE: "dim"}


def write_junit(path: str | Path, report: Report) -> None:
    """A test case for every array, of its module's path as class; what is not observable is skipped.

    No array compared is a failed case of its own.
    """
    failures, skipped = report.having(FAILED, MISSING), report.having(UNOBSERVABLE)
    nothing = not report.having(PASSED, FAILED, MISSING)
    counts = {
        "tests": len(report.rows) + nothing,
        "failures": len(failures) + nothing,
        "errors": 0,
        "skipped": len(skipped),
    }
    name = f"golden check against {report.source}"
    suite = Xml.Element("testsuite", {"name": _text(name), **{key: str(count) for key, count in counts.items()}})
    for row in report.rows:
        case = Xml.SubElement(suite, "testcase", classname=_text(row.path or row.module), name=_text(row.name))
        if row in failures:
            Xml.SubElement(case, "failure", message=_text(_sentence(row)), type=row.status).text = (
                _text("\n".join(report.verdict())) if row is report.first else None
            )
        elif row in skipped:
            Xml.SubElement(case, "skipped", message=row.status)
    if nothing:
        case = Xml.SubElement(suite, "testcase", classname="golden", name="an array was compared")
        Xml.SubElement(case, "failure", message="no array was compared", type=MISSING)
    Xml.indent(suite)
    with replacing(Path(path)) as temporary:
        Xml.ElementTree(suite).write(temporary, encoding="utf-8", xml_declaration=True)


def _text(text: str) -> str:
    """Without the characters that XML can't hold."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _sentence(row: Row) -> str:
    size = "" if row.error is None else f"off by {row.error:.3g}, allowed {row.tolerance:.3g}; "
    return f"{row.status}: {size}{row.reason}"


def write_html(path: str | Path, report: Report, bundle: Path) -> None:
    """One page: the verdict, the error of every array by depth, and a row for each.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    counts = ", ".join(f"{len(report.having(status))} {status}" for status in (PASSED, FAILED, MISSING, UNOBSERVABLE))
    what = f"{bundle} against {report.source}, within the tolerances of {report.dtype}" + (
        ", each module alone" if report.isolated else ""
    )
    rows = [_cells(row) for row in report.rows]
    pages.write_page(
        path,
        f"golden check: {'passed' if report.passed else 'failed'}",
        pages.paragraph(what),
        pages.paragraph(counts),
        *(pages.paragraph(line) for line in report.verdict()),
        pages.picture(error_by_depth(report)),
        pages.heading("Every array, in the order of computation"),
        pages.table(
            ("", "array", "module", "largest error", "allowed", "of that", "where", ""),
            rows,
            [_MARKS.get(row.status, "") for row in report.rows],
        ),
    )


def _cells(row: Row) -> tuple[Any, ...]:
    share = row.error / row.tolerance if row.error is not None and row.tolerance else None
    return row.status, row.name, row.module, row.error, row.tolerance, share, row.where or None, row.reason


def error_by_depth(report: Report) -> Any:
    """A figure: of each array its largest error and what is allowed, in the order of computation."""
    figure = pages.new_figure(11, 4.5)
    axes = figure.subplots()
    seen = [(i, row) for i, row in enumerate(report.rows) if row.tolerance is not None]
    for status, color in ((PASSED, "tab:green"), (FAILED, "tab:red")):
        points = [(i, row.error) for i, row in seen if row.status == status and row.error]
        if points:
            axes.plot(*zip(*points, strict=True), ".", color=color, label=status)
    allowed = [(i, row.tolerance) for i, row in seen if row.tolerance]
    if allowed:
        axes.plot(*zip(*allowed, strict=True), "-", color="0.6", linewidth=1, label="allowed", zorder=0)
    odd = [i for i, row in enumerate(report.rows) if not row.finite]
    if odd:
        axes.plot(
            odd, [0.97] * len(odd), "x", color="tab:red", transform=axes.get_xaxis_transform(), label="not finite"
        )
    first = report.first
    if first is not None:
        place = report.rows.index(first)
        axes.axvline(place, color="tab:red", linewidth=0.8, linestyle=":")
        side = {"ha": "right", "xytext": (-4, -4)} if place > len(report.rows) / 2 else {"xytext": (4, -4)}
        axes.annotate(_text(first.name), (place, 0.02), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                      va="bottom", fontsize=8, color="tab:red", **side)  # fmt: skip
    if allowed or any(row.error for _, row in seen):
        axes.set_yscale("log")
        axes.legend(loc="best", fontsize=8)
    axes.set_xlabel("array, in the order of computation")
    axes.set_ylabel("largest absolute error")
    axes.set_xlim(-1, max(len(report.rows), 1))
    return figure
