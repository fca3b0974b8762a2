"""``d2v-ref diff``: hold two checkpoints against each other."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from d2v_ref.cli.common import SectionedCommand, load_options, progress, to_json, visible

if TYPE_CHECKING:
    from d2v_ref.audit.diff import Checkpoint, Diff, Difference
    from d2v_ref.pages import Markup

SHOWN = 12  # weights or outputs in the terminal's lists


@click.command(cls=SectionedCommand, short_help="Name what differs between two checkpoints.")
@click.argument("model_a")
@click.argument("model_b")
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@click.option("--class", "class_name", metavar="CLASS", show_default="as in config.json", help="The class of both.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Write a page.")
@load_options()
@click.pass_context
def diff(
    ctx: click.Context,
    model_a: str,
    model_b: str,
    inputs: tuple[str, ...],
    class_name: str | None,
    as_json: bool,
    html: Path | None,
    backend: str,
    dtype: str,
    **where: Any,
) -> None:
    """Compare two checkpoints: settings, weights one by one, and for INPUT every module's output.

    Exit code 0 if nothing differs, 1 if something does.  Weights are matched as loading matches them: older names, and
    names with and without the prefix of the bare model.  Both models are run on what MODEL_A's tokenizer, feature
    extractor or image processor makes of INPUT, which may be whatever `d2v-ref golden record` takes.

    \b
    d2v-ref diff my-model my-model-in-half-precision
    d2v-ref diff tiny-text my-finetuned-model "A text."
    """
    from d2v_ref.audit.diff import Checkpoint, Diff, diff_settings, diff_weights
    from d2v_ref.checkpoints import resolve
    from d2v_ref.pages import write_page

    a, b = (Checkpoint.open(resolve(model, **where), class_name) for model in (model_a, model_b))
    settings = diff_settings(a, b)
    weights = list(diff_weights(a, b))
    outputs = _run_both(a, b, inputs, backend, dtype) if inputs else []
    found = Diff(settings, weights, outputs)
    if html is not None:
        write_page(html, f"{model_a} and {model_b}", *_page(found, model_a, model_b))
    if as_json:
        click.echo(to_json(as_dict(found)))
    else:
        for line in lines(found, model_a, model_b):
            click.echo(visible(line))
    ctx.exit(0 if found.equal else 1)


def _run_both(a: Checkpoint, b: Checkpoint, inputs: tuple[str, ...], backend: str, dtype: str) -> list[Difference]:
    from d2v_ref.audit.diff import diff_outputs
    from d2v_ref.cli.inputs import read_inputs

    with progress("diff", 3) as advance:
        first = a.cls.from_pretrained(a.folder, backend=backend, dtype=dtype)
        given = read_inputs(inputs, a.folder, first)
        advance(1)
        second = b.cls.from_pretrained(b.folder, backend=backend, dtype=dtype)
        advance(1)
        rows = diff_outputs(first, second, given.arrays)
        advance(1)
    return rows


def lines(found: Diff, model_a: str, model_b: str) -> Iterator[str]:
    """What differs, as text."""
    yield f"A {model_a}"
    yield f"B {model_b}"
    yield f"settings: {len(found.settings)} differ" if found.settings else "settings: equal"
    for name, (mine, theirs) in found.settings.items():
        yield f"  {name}: A {_short(mine)}, B {_short(theirs)}"
    yield f"weights: {_counts(found.weights)}"
    yield from _rows(found.weights, by_size=True)
    if found.outputs:
        yield f"outputs: {_counts(found.outputs)}"
        yield from _rows(found.outputs, by_size=False)
    if found.first is not None:
        yield f"the first output that differs: {found.first.name}"


def _counts(rows: list[Difference]) -> str:
    counts = Counter(row.status for row in rows)
    dtypes = Counter(row.dtypes for row in rows if None not in row.dtypes and row.dtypes[0] != row.dtypes[1])
    parts = [f"{count} {status}" for status, count in counts.items()]
    return ", ".join([*parts, *(f"{count} {mine} in A and {theirs} in B" for (mine, theirs), count in dtypes.items())])


def _rows(rows: list[Difference], *, by_size: bool) -> Iterator[str]:
    """Those that differ: first what is missing or of another shape, if by size, and then the largest differences."""
    found = [row for row in rows if not row.equal]
    alike = len({row.dtypes for row in rows}) == 1  # and have been said
    if by_size:
        found.sort(key=lambda row: -math.inf if row.rms is None else -row.rms)
    if any(row.absolute is not None for row in found):
        yield "  absolute  relative       rms      cosine"
    for row in found[:SHOWN]:
        if row.absolute is None or row.relative is None or row.rms is None:
            yield f"  {_words(row):40}  {row.name}"
        else:
            cosine = " " * 10 if row.cosine is None else f"{row.cosine:10.7f}"
            dtypes = "" if alike or row.dtypes[0] == row.dtypes[1] else f" ({row.dtypes[0]}, {row.dtypes[1]})"
            yield f"  {row.absolute:8.2e}  {row.relative:8.2e}  {row.rms:8.2e}  {cosine}  {row.name}{dtypes}"
    if len(found) > SHOWN:
        yield f"  ... and {len(found) - SHOWN} more"


def _words(row: Difference) -> str:
    """What is to say of arrays that can't be compared number by number."""
    shapes = ", ".join(str(shape) for shape in row.shapes if shape is not None)
    return f"{row.status} {shapes}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_dict(found: Diff) -> dict[str, Any]:
    """Everything as JSON takes it; what is not finite is null."""

    def row(difference: Difference) -> dict[str, Any]:
        values = asdict(difference)
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }

    return {
        "equal": found.equal,
        "settings": {name: {"a": mine, "b": theirs} for name, (mine, theirs) in found.settings.items()},
        "weights": [row(difference) for difference in found.weights],
        "outputs": [row(difference) for difference in found.outputs],
        "first": None if found.first is None else found.first.name,
    }


def _page(found: Diff, model_a: str, model_b: str) -> Iterator[Markup]:
    from d2v_ref import pages

    yield pages.paragraph("Nothing differs." if found.equal else "They differ.")
    yield pages.heading("Settings")
    settings = [[name, _short(mine), _short(theirs)] for name, (mine, theirs) in found.settings.items()]
    yield pages.table(["setting", model_a, model_b], settings) if settings else pages.paragraph("All are equal.")
    for title, rows in (("Weights", found.weights), ("Outputs", found.outputs)):
        if rows:
            yield pages.heading(title)
            yield pages.paragraph(_counts(rows))
            columns = ["name", "status", "shape A", "shape B", "dtype A", "dtype B"]
            columns += ["absolute", "relative", "rms", "cosine"]
            marks = ["dim" if row.equal else "bad" for row in rows]
            yield pages.table(columns, map(_cells, rows), marks)


def _cells(row: Difference) -> list[Any]:
    shapes = [None if shape is None else str(shape) for shape in row.shapes]
    cosine = None if row.cosine is None else f"{row.cosine:.7f}"
    return [row.name, row.status, *shapes, *row.dtypes, row.absolute, row.relative, row.rms, cosine]
