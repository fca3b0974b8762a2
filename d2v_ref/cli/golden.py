"""``d2v-ref golden``: record what a model computes, and check a run against a record."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from d2v_ref.cli.common import Option, SectionedCommand, load_options, progress, to_json, visible
from d2v_ref.errors import InputError

if TYPE_CHECKING:
    from d2v_ref.golden import Report

option = partial(click.option, cls=Option)
FILE = click.Path(path_type=Path)
SHOWN = 10  # rows, unless all are asked for
FORMATS = ("float32", "float64", "float16", "bfloat16")  # of ports; those of our backends they say themselves


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
@click.option(
    "--taps", metavar="PATTERN", multiple=True, help="Record these arrays; with ! before it, leave these out."
)
@click.option("--fingerprint", is_flag=True, help="Keep samples and moments, not every number: for a repository.")
@click.option("--class", "class_name", metavar="CLASS", show_default="as in config.json", help="The model's class.")
@load_options()
def record(
    model: str,
    inputs: tuple[str, ...],
    bundle: Path,
    taps: tuple[str, ...],
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
    d2v-ref golden record my-model "A text." -o last --taps 'encoder.layer.11*' --taps '#*'
    """
    from d2v_ref import golden as goldens
    from d2v_ref.auto import architecture, model_class
    from d2v_ref.checkpoints import resolve
    from d2v_ref.cli.inputs import read_inputs

    folder = resolve(model, **where)
    cls = model_class(class_name or architecture(folder))
    loaded = cls.from_pretrained(folder, backend=backend, dtype=dtype)
    given = read_inputs(inputs, folder, loaded)
    with progress("golden record", goldens.runs(dtype)) as advance:
        made = goldens.record(
            loaded,
            given.arrays,
            bundle,
            name=model,
            folder=folder,
            fingerprint=fingerprint,
            taps=taps,
            recipe=given.recipe,
            progress=advance,
        )
    size = sum(path.stat().st_size for path in bundle.iterdir())
    amount = f"{size / 1e6:.1f} MB" if size > 1e5 else f"{size / 1e3:.0f} kB"
    click.echo(f"{visible(str(bundle))}: {len(made.taps)} arrays of {cls.__name__}, {amount}")
    strange = [tap["name"] for tap in made.manifest["taps"] if any(goldens.counts(tap["moments"]))]
    if strange:
        click.echo(f"{len(strange)} of them hold NaN or infinity, the first is {strange[0]}", err=True)


@golden.command(cls=SectionedCommand, short_help="Hold a port, or a run of ours, against a bundle.")
@click.argument("bundle", type=click.Path(path_type=Path))
@option("--against", metavar="PORT", show_default="our own backend", help="Another implementation: see above.")
@option("--taps", metavar="PATTERN", multiple=True, help="Compare these arrays; with ! before it, leave these out.")
@option(
    "--isolate", is_flag=True, help="Give each module what the golden's was given, so that no fault hides the next."
)
@option("--all", "everything", is_flag=True, help="Print every array, not only those that differ.")
@option("--json", "as_json", is_flag=True, help="Print JSON.")
@option("--junit", metavar="FILE", type=FILE, help="Write JUnit XML, a test case for each array.")
@option("--html", metavar="FILE", type=FILE, help="Write a page with the error by depth.")
@option("--names", metavar="FILE", type=FILE, help="The port's names: JSON, {our name: the port's, or null}.")
@option("--suggest", metavar="FILE", type=FILE, help="Match names by shape and value, and write them there.")
@option(
    "--model",
    metavar="MODEL",
    show_default="as it was recorded",
    help="The checkpoint, for a run of ours.",
    section="Loading",
)
@load_options(dtype=None, dtypes=FORMATS)
@click.pass_context
def check(
    ctx: click.Context,
    bundle: Path,
    against: str | None,
    taps: tuple[str, ...],
    isolate: bool,
    everything: bool,
    as_json: bool,
    junit: Path | None,
    html: Path | None,
    names: Path | None,
    suggest: Path | None,
    **run: Any,
) -> None:
    """Hold another implementation against a BUNDLE and name the first module that differs.

    PORT is a file of its outputs by Hugging Face's module names (.safetensors, .npz, .npy), a folder of such files,
    a Python function, or a command.  A function is called with the inputs by name and returns arrays by name; in a
    command {inputs} is a safetensors file and {outputs} a folder to write files to.  For --isolate a function takes
    module=PATH, and a command has {module}: it then runs that module alone on the array "input".  Without --against it
    is the bundle's own model, run by --backend; what is marked (fused) is a second run, which nobody records.

    \b
    d2v-ref golden check my-bundle --against outputs.safetensors
    d2v-ref golden check my-bundle --against my_port.model:run --dtype bfloat16
    d2v-ref golden check my-bundle --against './my_port {inputs} {outputs}' --junit report.xml
    d2v-ref golden check my-bundle --backend numba

    Exit code 0 if every array passed, 1 if one differs, is missing, or none was compared, 2 for wrong use, 3 if the
    port or a package can't be run.
    """
    from d2v_ref import pages
    from d2v_ref.checkpoints import write_json
    from d2v_ref.golden import check, check_port, output

    if html is not None:
        pages.new_figure()  # before anything is computed: a package may be missing
    own = {"model": run["model"], "revision": run["revision"], "cache_dir": run["cache_dir"]}
    given = [f"--{name.replace('_', '-')}" for name, value in own.items() if value is not None]
    if against is None:
        if names is not None or suggest is not None:
            raise InputError("--names and --suggest are for --against")
        report = check(bundle, taps=taps, isolate=isolate, **run)
    elif given or ctx.get_parameter_source("backend") is not ParameterSource.DEFAULT:
        raise InputError("are for a run of ours, not for --against", got=", ".join(given) or "--backend")
    else:
        sys.path.insert(0, os.getcwd())  # where the user's own modules lie, as with python -m
        with progress("golden check", _modules(bundle) if isolate else 1) as advance:
            report = check_port(bundle, against, dtype=run["dtype"], taps=taps, names=names,
                                match=suggest is not None, isolate=isolate, progress=advance)  # fmt: skip
    if suggest is not None:
        write_json(suggest, dict(report.names))
    if junit is not None:
        output.write_junit(junit, report)
    if html is not None:
        output.write_html(html, report, bundle)
    if as_json:
        click.echo(to_json(report.to_dict()))
    else:
        _say_report(report, everything)
    ctx.exit(0 if report.passed else 1)


def _modules(bundle: Path) -> int:
    from d2v_ref.golden import read_bundle

    return sum("inputs" in tap for tap in read_bundle(bundle).manifest["taps"])


def _say_report(report: Report, everything: bool) -> None:
    differing = report.having("failed", "missing")
    shown = report.rows if everything else differing[:SHOWN]
    width = max((len(row.name) for row in shown), default=0)
    for row in shown:
        error = "" if row.error is None else f"  error {row.error:.2e}, allowed {row.tolerance:.2e}"
        click.echo(visible(f"{row.status:8}  {row.name:{width}}{error}  {row.reason.partition(';')[0]}".rstrip()))
    if len(differing) > SHOWN and not everything:
        click.echo(f"and {len(differing) - SHOWN} more that differ, which --all shows")
    unseen = len(report.having("not observable"))
    click.echo(
        f"{len(report.having('passed'))} of {len(report.rows) - unseen} arrays passed"
        + (f", {unseen} not observable" if unseen else "")
    )
    for name, other in report.names.items():
        click.echo(visible(f"matched by shape and value: {name} = {other}"))
    for line in report.verdict():
        click.echo(visible(line))
    if report.culprit is not None:
        click.echo(visible(f"so look at: {report.culprit or 'the model itself'}"))
