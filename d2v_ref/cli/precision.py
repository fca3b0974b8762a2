"""``d2v-ref audit --precision``: where a model loses precision, as text, JSON or a page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from d2v_ref.cli.common import progress, to_json, visible
from d2v_ref.cli.inputs import Inputs
from d2v_ref.pretrained import PreTrainedModel

if TYPE_CHECKING:
    from d2v_ref.audit.attentions import Attention
    from d2v_ref.audit.precision import Precision, Row
    from d2v_ref.pages import Markup

SHOWN = 6  # modules in the terminal's list of losses


def say_precision(model: PreTrainedModel, inputs: Inputs, *, as_json: bool, html: Path | None) -> None:
    """Run the model in every format and say where precision is lost.

    Args:
        model: loaded, in any backend and dtype.
        inputs: of its forward pass.
        as_json: print JSON, everything that was measured.
        html: a page to write, with plots (extra ``plots``).
    """
    from d2v_ref import pages
    from d2v_ref.audit.precision import RUNS, measure
    from d2v_ref.golden.arguments import forward_arguments

    if html is not None:
        pages.new_figure()  # before anything is computed: a package may be missing
    arguments = forward_arguments(model, inputs.arrays, {})
    with progress("precision", RUNS) as advance:
        found = measure(model, arguments, advance)
    if html is not None:
        pages.write_page(html, f"Precision of {type(model).__name__}", *page(found))
    if as_json:
        click.echo(to_json(as_dict(found)))
        return
    click.echo(f"{type(model).__name__}: {len(found.rows)} outputs of modules and taps, against float64")
    for line in (*sentences(found), *_losses(found), *_entropies(found)):
        click.echo(visible(line))


def sentences(found: Precision) -> Iterator[str]:
    """What there is to say of each format, a line each."""
    from d2v_ref.audit.precision import COMPARED

    for form in COMPARED:
        worst, overflow = found.worst(form), found.overflow(form)
        words = [] if worst is None else [f"worst relative error {_relative(worst, form)} at {worst.name}"]
        if overflow is not None:
            count = overflow.deviations[form].not_finite
            words.insert(0, f"overflows first at {overflow.name} ({count} of {math.prod(overflow.shape)} numbers)")
        yield f"{form}: {'; '.join(words)}"
    largest = found.largest
    if largest is not None:
        headroom = f"{largest.headroom:,.0f}" if largest.headroom >= 100 else f"{largest.headroom:.2g}"
        yield f"largest magnitude {largest.largest:.4g} (65504 / {headroom}) at {largest.name}"


def _losses(found: Precision) -> Iterator[str]:
    """The modules whose errors grow most in either of the 16-bit formats."""
    from d2v_ref.audit.storage import FORMATS

    rows = {row.name: row for form in FORMATS for row in found.losses(form)}
    growths = {name: max(row.deviations[form].growth or 0.0 for form in FORMATS) for name, row in rows.items()}
    first = sorted(rows.values(), key=lambda row: -growths[row.name])[:SHOWN]
    if first:
        yield "where precision is lost: growth = error out / error in, and the relative errors"
        yield "  growth   float32  float16 bfloat16 module"
    for row in first:
        errors = " ".join(f"{_relative(row, form):>8}" for form in row.deviations)
        yield f"  {growths[row.name]:6.1f}  {errors} {row.name}"


def _relative(row: Row, form: str) -> str:
    """The relative error, or that there is none to speak of."""
    deviation = row.deviations[form]
    return "overflow" if deviation.not_finite else f"{deviation.relative:.1e}"


def _entropies(found: Precision) -> Iterator[str]:
    from d2v_ref.audit.attentions import ONE_HOT

    if found.attentions:
        yield f"attention: entropy in nats; rows with a probability of {ONE_HOT} or more; rows that see no key"
        yield "     min    mean     max  of log S  one-hot  hidden rows"
    for attention in found.attentions:
        spreads = [head for head in attention.heads if head.mean is not None]
        least = min((head.least or 0.0 for head in spreads), default=math.nan)
        most = max((head.most or 0.0 for head in spreads), default=math.nan)
        mean = sum(head.mean or 0.0 for head in spreads) / len(spreads) if spreads else math.nan
        hidden = f"{attention.hidden_rows} of {attention.rows}"
        yield (
            f"  {least:6.3f}  {mean:6.3f}  {most:6.3f}    {attention.log_keys:6.3f}  {attention.one_hot:7.1%}  "
            f"{hidden:>11}  {attention.name.removesuffix('#probs')}"
        )


def as_dict(found: Precision) -> dict[str, Any]:
    """Everything as JSON takes it; what is not finite is null."""
    from d2v_ref.audit.precision import COMPARED

    formats = {}
    for form in COMPARED:
        worst, overflow = found.worst(form), found.overflow(form)
        formats[form] = {
            "worst": None if worst is None else worst.name,
            "overflow": None if overflow is None else overflow.name,
            "losses": [row.name for row in found.losses(form)],
        }
    rows = [{**asdict(row), "headroom": row.headroom} for row in found.rows]
    attentions = [{**asdict(attention), "log_keys": attention.log_keys} for attention in found.attentions]
    return _finite({"formats": formats, "outputs": rows, "attentions": attentions})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- the page -------------------------------------------------------------------------------------------------------


def page(found: Precision) -> Iterator[Markup]:
    """The parts of the page: what there is to say, the plots, and every number."""
    from d2v_ref import pages
    from d2v_ref.audit.precision import COMPARED

    for line in sentences(found):
        yield pages.paragraph(line)
    yield pages.heading("Relative error")
    words = "The largest error of each output, divided by its root mean square in float64, in the order of computation."
    yield pages.paragraph(f"{words} A line that breaks off has overflowed.")
    yield pages.picture(_errors_figure(found))
    yield pages.heading("Magnitude")
    yield pages.picture(_magnitudes_figure(found))
    if found.attentions:
        yield pages.heading("Entropy of the attention probabilities")
        words = "Mean over the rows that see a key, divided by log S: 1 is even attention to all S keys."
        yield pages.paragraph(words)
        yield pages.picture(_entropies_figure(found.attentions))
        yield _attention_table(found.attentions)
    yield pages.heading("Every output")
    columns = ["output", "module", "shape", "rms", "largest", "headroom", "below 2^-14"]
    columns += [f"{form} {what}" for form in COMPARED for what in ("error", "relative", "growth")]
    marks = [
        "bad" if row.headroom < 1 or any(d.not_finite for d in row.deviations.values()) else "" for row in found.rows
    ]
    yield pages.table(columns, map(_cells, found.rows), marks)


def _cells(row: Row) -> list[Any]:
    cells: list[Any] = [row.name, row.module, "x".join(map(str, row.shape)), row.rms, row.largest, row.headroom]
    cells.append(f"{row.tiny:.1%}")
    for deviation in row.deviations.values():
        overflown = f"{deviation.not_finite} not finite" if deviation.not_finite else deviation.error
        cells += [overflown, deviation.relative, deviation.growth]
    return cells


def _attention_table(attentions: list[Attention]) -> Markup:
    from d2v_ref import pages

    columns = ["attention", "head", "least", "mean", "most", "log S", "nearly one-hot", "hidden rows"]
    rows = []
    for attention in attentions:
        shared = [attention.log_keys, f"{attention.one_hot:.1%}", f"{attention.hidden_rows} of {attention.rows}"]
        for i, head in enumerate(attention.heads):
            rows.append([attention.name, i, head.least, head.mean, head.most, *(shared if i == 0 else [None] * 3)])
    return pages.table(columns, rows)


def _errors_figure(found: Precision) -> Any:
    from d2v_ref.audit.precision import COMPARED

    figure, axes = _by_depth(found, "largest error / rms")
    for form in COMPARED:
        errors = [row.deviations[form] for row in found.rows]
        # Nothing is drawn where there is no error: a logarithmic axis has no zero.
        axes.plot([d.relative if d.relative > 0 and not d.not_finite else math.nan for d in errors], label=form, lw=1.2)
    figure.legend(loc="outside upper center", ncols=len(COMPARED))
    return figure


def _magnitudes_figure(found: Precision) -> Any:
    from d2v_ref.audit.storage import LARGEST, SMALLEST_NORMAL

    figure, axes = _by_depth(found, "magnitude in float64")
    axes.plot([row.largest or math.nan for row in found.rows], label="largest", lw=1.2)
    axes.plot([row.rms or math.nan for row in found.rows], label="root mean square", lw=1.2)
    axes.axhline(LARGEST["float16"], color="tab:red", ls="--", lw=1, label="float16's largest, 65504")
    axes.axhline(SMALLEST_NORMAL, color="tab:gray", ls="--", lw=1, label="float16's smallest normal, 2^-14")
    figure.legend(loc="outside upper center", ncols=4)
    return figure


def _by_depth(found: Precision, label: str) -> tuple[Any, Any]:
    """A logarithmic plot over all outputs, the large parts of the model named below."""
    from d2v_ref import pages

    figure = pages.new_figure(11.0, 4.5)
    axes = figure.add_subplot()
    axes.set_yscale("log")
    axes.set_ylabel(label)
    axes.set_xlim(-0.5, max(len(found.rows) - 0.5, 0.5))
    starts = _parts([row.name for row in found.rows])
    axes.set_xticks(list(starts), list(starts.values()), rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    axes.grid(axis="both", alpha=0.3)
    return figure, axes


def _parts(names: list[str]) -> dict[int, str]:
    """Where the layers and the other large parts of the model begin, without those that others leave no room for."""
    parts: dict[str, int] = {}
    for i, name in enumerate(names):
        path = re.sub(r"^data2vec_[a-z]+\.", "", name.partition("#")[0])
        layer = re.match(r".*?\.\d+(?=\.|$)", path)
        if path:
            parts.setdefault(layer[0] if layer else path.partition(".")[0], i)
    kept: dict[int, str] = {}
    for part, i in sorted(parts.items(), key=lambda item: not item[0][-1].isdigit()):  # layers first
        if all(abs(i - other) >= len(names) / 32 for other in kept):
            kept[i] = part
    return kept


def _entropies_figure(attentions: list[Attention]) -> Any:
    from d2v_ref import pages

    heads = max(len(attention.heads) for attention in attentions)
    rows = []
    for attention in attentions:
        shares = [math.nan if head.mean is None else head.mean / (attention.log_keys or 1) for head in attention.heads]
        rows.append(shares + [math.nan] * (heads - len(shares)))
    figure = pages.new_figure(3.5 + 0.5 * heads, 1.2 + 0.35 * len(rows))
    axes = figure.add_subplot()
    image = axes.imshow(rows, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xlabel("head")
    axes.set_xticks(range(heads))
    axes.set_yticks(range(len(rows)), [attention.name.removesuffix("#probs") for attention in attentions], fontsize=8)
    figure.colorbar(image, label="entropy / log S")
    return figure
