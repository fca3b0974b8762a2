"""``d2v-ref golden``: record what a model computes, and check a run against a record."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from d2v_ref.cli.common import SectionedCommand, load_options, progress, to_json, visible


@click.group(short_help="Record what a model computes; check a run against a record.")
def golden() -> None:
    """Golden outputs: every module's output, to hold other implementations against."""


@golden.command(cls=SectionedCommand, short_help="Write every module's output to a bundle.")
@click.argument("model")
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@click.option(
    "-o",
    "--output",
    "bundle",
    required=True,
    metavar="BUNDLE",
    type=click.Path(path_type=Path),
    help="Folder to write.",
)
@click.option("--fingerprint", is_flag=True, help="Keep samples and moments, not every number: for a repository.")
@click.option("--class", "class_name", metavar="CLASS", show_default="as in config.json", help="The model's class.")
@load_options()
def record(
    model: str,
    inputs: tuple[str, ...],
    bundle: Path,
    fingerprint: bool,
    class_name: str | None,
    backend: str,
    dtype: str,
    **where: Any,
) -> None:
    """Run MODEL on INPUT and write every module's output to a bundle.

    INPUT is a text, several (a batch; the choices of a multiple-choice model), a file with one text a line, - for
    standard input, or an .npz or .safetensors file with the arrays of the forward pass by Hugging Face's names.  For a
    model of speech it is a sound file, or several (a batch, padded as the model's feature extractor pads it); for a
    model of pictures a picture, or several.

    \b
    d2v-ref golden record my-model "A text." -o my-bundle
    d2v-ref golden record my-speech-model speech.wav -o my-bundle
    d2v-ref golden record my-vision-model photo.png -o my-bundle
    d2v-ref golden record my-model input_ids.npz -o my-bundle
    d2v-ref golden record my-model "A text." -o tests/golden --fingerprint
    """
    from d2v_ref import golden as goldens
    from d2v_ref.auto import architecture, model_class
    from d2v_ref.checkpoints import resolve
    from d2v_ref.cli.inputs import read_inputs

    folder = resolve(model, **where)
    cls = model_class(class_name or architecture(folder))
    loaded = cls.from_pretrained(folder, backend=backend, dtype=dtype)
    given = read_inputs(inputs, folder, loaded)
    with progress("golden record", goldens.RUNS) as advance:
        made = goldens.record(
            loaded, given.arrays, bundle, name=model, folder=folder, fingerprint=fingerprint, progress=advance
        )
    size = sum(path.stat().st_size for path in bundle.iterdir())
    amount = f"{size / 1e6:.1f} MB" if size > 1e5 else f"{size / 1e3:.0f} kB"
    click.echo(f"{visible(str(bundle))}: {len(made.taps)} outputs of {cls.__name__}, {amount}")
    strange = [tap["name"] for tap in made.manifest["taps"] if any(goldens.counts(tap["moments"]))]
    if strange:
        click.echo(f"{len(strange)} of them hold NaN or infinity, the first is {strange[0]}", err=True)


@golden.command(cls=SectionedCommand, short_help="Run a bundle again and name the first output that differs.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--model",
    metavar="MODEL",
    show_default="as it was recorded",
    help="The checkpoint: folder, shipped name or hub id.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--all", "everything", is_flag=True, help="Print every output, not only those that differ.")
@load_options(dtype=None)
@click.pass_context
def check(
    ctx: click.Context,
    bundle: Path,
    model: str | None,
    as_json: bool,
    everything: bool,
    backend: str,
    dtype: str | None,
    **where: Any,
) -> None:
    """Run a BUNDLE's model again and name the first output that differs.  Exit code 1 if one does.

    Outputs marked (fused) are of a second run, which nobody records: there a backend may fuse operations.
    """
    from d2v_ref import golden as goldens

    report = goldens.check(bundle, model=model, backend=backend, dtype=dtype, **where)
    if as_json:
        first = None if report.first is None else report.first.name
        click.echo(to_json({"passed": report.passed, "first": first, "rows": [asdict(row) for row in report.rows]}))
    else:
        _say_report(report, everything)
    ctx.exit(0 if report.passed else 1)


def _say_report(report: Any, everything: bool) -> None:
    from d2v_ref.golden import PASSED

    passed = [row for row in report.rows if row.status == PASSED]
    for row in report.rows:
        if everything or row.status != PASSED:
            error = "" if row.error is None else f"  error {row.error:.2e}, allowed {row.tolerance:.2e}"
            click.echo(visible(f"{row.status:8} {row.name}{error}  {row.reason}".rstrip()))
    click.echo(f"{len(passed)} of {len(report.rows)} outputs passed")
    if report.first is not None:
        at = "" if report.first.where is None else f", at {report.first.where}"
        click.echo(visible(f"the first that differs: {report.first.name} ({report.first.module}){at}"))
