"""``d2v-ref audit``: what a model is made of, what it computes, and where it surprises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from d2v_ref.cli.common import SectionedCommand, load_options, to_json, visible
from d2v_ref.errors import InputError


@click.command(cls=SectionedCommand, short_help="Say what a model is made of and computes.")
@click.argument("model")
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@click.option("--class", "class_name", metavar="CLASS", show_default="as in config.json", help="The model's class.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, every weight and module apart.")
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Write a page as well.")
@click.option("--precision", is_flag=True, help="Say instead where INPUT loses precision in smaller formats.")
@click.option("--plots", metavar="FOLDER", type=click.Path(path_type=Path), help="Write plots of INPUT's outputs, too.")
@load_options()
def audit(
    model: str,
    inputs: tuple[str, ...],
    class_name: str | None,
    as_json: bool,
    html: Path | None,
    precision: bool,
    plots: Path | None,
    backend: str,
    dtype: str,
    **where: Any,
) -> None:
    """Say what MODEL is made of: every weight and what became of it, parameters, operations and memory of every module
    for INPUT, the equations of every layer, and what one may not expect of its configuration.

    INPUT is what `d2v-ref golden record` takes.  Without one, operations and memory are those of 128 tokens, of one
    second, or of one picture of the model's size.

    \b
    d2v-ref audit tiny-text
    d2v-ref audit my-speech-model speech.wav --html audit.html
    d2v-ref audit my-model "A text." --precision
    """
    if (precision or plots is not None) and not inputs:
        option = "--precision" if precision else "--plots"
        raise InputError(f"{option} needs an INPUT", hint="Give a text, a sound, a picture or a file of arrays")
    from d2v_ref.auto import architecture, model_class
    from d2v_ref.checkpoints import open_checkpoint, resolve
    from d2v_ref.cli.inputs import read_inputs
    from d2v_ref.golden.arguments import forward_arguments

    folder = resolve(model, **where)
    cls = model_class(class_name or architecture(folder))
    loaded = cls.from_pretrained(folder, backend=backend, dtype=dtype)
    given = read_inputs(inputs, folder, loaded) if inputs else None
    arguments = None if given is None else forward_arguments(loaded, given.arrays, {})
    if plots is not None and given is not None:
        from d2v_ref.audit.plots import write_plots

        for path in write_plots(loaded, given.arrays, plots):
            click.echo(visible(str(path)), err=True)
    if precision and given is not None:
        from d2v_ref.cli.precision import say_precision

        say_precision(loaded, given, as_json=as_json, html=html)
        return
    _say_audit(loaded, open_checkpoint(folder), model, arguments, as_json, html)


def _say_audit(
    model: Any, tensors: Any, name: str, arguments: dict[str, Any] | None, as_json: bool, html: Path | None
) -> None:
    from dataclasses import asdict

    from d2v_ref.audit.lines import audit_lines
    from d2v_ref.audit.page import write_audit
    from d2v_ref.audit.report import audit as audit_model

    found = audit_model(model, tensors, name, arguments)
    if html is not None:
        write_audit(found, html)
    if as_json:
        click.echo(to_json(asdict(found)))
        return
    for line in audit_lines(found):
        click.echo(visible(line))
