"""Self-contained HTML pages: headings, tables and pictures in one file that asks for nothing else.

Pictures are matplotlib's (extra ``plots``), drawn as SVG into the page.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from d2v_ref.checkpoints import replacing
from d2v_ref.errors import MissingPackageError

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto; max-width: 76rem;
  padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; font-size: 13px } .wide { overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .2rem .7rem .2rem 0; text-align: left; vertical-align: top }
th { position: sticky; top: 0; background: #fff } td.number { text-align: right; white-space: nowrap }
tr.bad td { background: #fdecea } tr.dim td { color: #777 } code { font-size: 13px }
svg { max-width: 100%; height: auto }
"""


class Markup(str):
    """HTML as it is; everything else that comes into a page is escaped."""

    __slots__ = ()


def text(value: object) -> Markup:
    """A value as it reads: of a float three significant digits, and as escapes what UTF-8 has no bytes for."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup("")
    words = f"{value:.3g}" if isinstance(value, float) else str(value)
    return Markup(html.escape(words.encode("utf-8", "backslashreplace").decode()))


def heading(words: str) -> Markup:
    return Markup(f"<h2>{text(words)}</h2>")


def paragraph(words: str) -> Markup:
    return Markup(f"<p>{text(words)}</p>")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], marks: Sequence[str] = ()) -> Markup:
    """A table; numbers stand to the right.

    Args:
        columns: their titles.
        rows: the cells of each.
        marks: a word for each row: "bad", "dim" or "".
    """
    head = "".join(f"<th>{text(column)}</th>" for column in columns)
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td{_number(cell)}>{text(cell)}</td>" for cell in row)
        lines.append(f'<tr class="{marks[i]}">{cells}</tr>' if i < len(marks) and marks[i] else f"<tr>{cells}</tr>")
    body = "\n".join(lines)
    return Markup(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>')


def _number(cell: object) -> str:
    return ' class="number"' if isinstance(cell, int | float) and not isinstance(cell, bool) else ""


def new_figure(width: float = 10.0, height: float = 4.0) -> Any:
    """An empty matplotlib figure, in inches.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        hint = "Install it: pip install 'd2v-ref[plots]'"
        raise MissingPackageError("plots need matplotlib, which is not installed", hint=hint) from None
    return Figure(figsize=(width, height), layout="constrained")


def picture(figure: Any) -> Markup:
    """A matplotlib figure as SVG, the same for the same figure."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.hashsalt": "d2v_ref", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return Markup(re.sub(r"^.*?(?=<svg)", "", file.getvalue(), flags=re.DOTALL))  # without the head of an XML file


def write_page(path: str | Path, title: str, *parts: Markup) -> None:
    """Write a page, whole or not at all."""
    head = f'<meta charset="utf-8"><title>{text(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body><h1>{text(title)}</h1>\n{body}\n</body></html>\n'
    )
    with replacing(Path(path)) as temporary:
        temporary.write_text(page, encoding="utf-8")
