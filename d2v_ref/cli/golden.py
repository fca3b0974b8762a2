"""``d2v-ref golden``: record what a model computes, and check a run against a record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from d2v_ref.cli.common import is_file, load_options, read_texts, say_json
from d2v_ref.errors import InputError

ARRAYS = (".npz", ".safetensors")


@click.group()
def golden() -> None:
    """Golden outputs: every module's output, to hold other implementations against."""


@golden.command()
@click.argument("model")
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@click.option("-o", "--output", "bundle", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--class", "class_name", help="The model's class.  [the one that config.json names]")
@click.option("--attentions", is_flag=True, help="Return the attentions among the outputs as well.")
@load_options
def record(
    model: str,
    inputs: tuple[str, ...],
    bundle: Path,
    class_name: str | None,
    attentions: bool,
    backend: str,
    dtype: str | None,
    **where: Any,
) -> None:
    """Run MODEL on INPUT once and write every module's output to a bundle.

    INPUT is a text, several (a batch; the choices of a multiple-choice model), a file with one text a line, - for
    standard input, or an .npz or .safetensors file with the arrays of the forward pass by Hugging Face's names.
    """
    from d2v_ref import golden as goldens
    from d2v_ref.auto import architecture, model_class
    from d2v_ref.checkpoints import resolve

    if bundle.exists():
        raise InputError("exists already", path=bundle, hint="Choose another folder, or remove this one")
    folder = resolve(model, **where)
    cls = model_class(class_name or architecture(folder))
    loaded = cls.from_pretrained(folder, backend=backend, dtype=dtype or "float32")
    arrays = _arrays(inputs, folder, loaded)
    arguments = {"output_attentions": True} if attentions else {}
    made = goldens.record(loaded, arrays, bundle, name=model, folder=folder, arguments=arguments)
    size = sum(array.nbytes for array in made.taps.values())
    click.echo(f"{bundle}: {len(made.taps)} outputs of {cls.__name__}, {size / 1e6:.1f} MB")


def _arrays(inputs: tuple[str, ...], folder: Path, model: Any) -> dict[str, Any]:
    if len(inputs) == 1 and is_file(inputs[0]) and inputs[0].endswith(ARRAYS):
        return _read_arrays(Path(inputs[0]))
    from d2v_ref.processing import TextTokenizer

    encoding = TextTokenizer.from_pretrained(folder)(read_texts(inputs), max_length=model.config.max_length)
    arrays = {"input_ids": encoding.input_ids, "attention_mask": encoding.attention_mask}
    if type(model).__name__.endswith("ForMultipleChoice"):
        arrays = {name: array[None] for name, array in arrays.items()}  # (1, choices, T)
    return arrays


def _read_arrays(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from d2v_ref.checkpoints import read_safetensors

        return {name: tensor.numpy() for name, tensor in read_safetensors(path).items()}
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"can't be read as .npz: {error}", path=path, expected="arrays written by numpy.savez"
        ) from None


@golden.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--model", help="Folder or hub id of the checkpoint.  [as it was recorded]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--all", "everything", is_flag=True, help="Print every output, not only those that differ.")
@load_options
def check(
    bundle: Path, model: str | None, as_json: bool, everything: bool, backend: str, dtype: str | None, **where: Any
) -> None:
    """Run a BUNDLE's model again and name the first output that differs.  Exit code 1 if one does."""
    import sys
    from dataclasses import asdict

    from d2v_ref import golden as goldens

    report = goldens.check(bundle, model=model, backend=backend, dtype=dtype, **where)
    if as_json:
        first = None if report.first is None else report.first.name
        say_json({"passed": report.passed, "first": first, "rows": [asdict(row) for row in report.rows]})
        sys.exit(not report.passed)
    for row in report.rows:
        if everything or row.status != goldens.PASSED:
            error = "" if row.error is None else f"error {row.error:.2e}, allowed {row.tolerance:.2e}"
            click.echo(f"{row.status:8} {row.name or '(model)'}  {error}  {row.reason}".rstrip())
    passed = sum(row.status == goldens.PASSED for row in report.rows)
    click.echo(f"{passed} of {len(report.rows)} outputs passed")
    if report.first is not None:
        at = "" if report.first.where is None else f", at {report.first.where}"
        click.echo(f"the first that differs: {report.first.name} ({report.first.module}){at}")
    sys.exit(not report.passed)
