"""``d2v-ref synth``: a checkpoint with deterministic weights."""

from __future__ import annotations

from pathlib import Path

import click

from d2v_ref.cli.common import visible


@click.command(short_help="Write a checkpoint with synthetic weights.")
@click.argument("class_name", metavar="CLASS")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--size", type=click.Choice(["tiny", "base", "large"]), default="tiny", show_default=True, help="Of the model."
)
@click.option("--seed", type=click.IntRange(0), metavar="N", default=0, show_default=True, help="Of the weights.")
@click.option("--num-labels", type=click.IntRange(1), metavar="N", help="Of a classification head.")
def synth(class_name: str, out: Path, size: str, seed: int, num_labels: int | None) -> None:
    """Write a checkpoint of CLASS, such as Data2VecTextForMaskedLM, to the folder OUT.

    The weights come from integers that any language can compute again (see the docstring of d2v_ref.synth), so that a
    golden of them can be shared without the checkpoint.  The model has learned nothing: its answers mean nothing.
    """
    from d2v_ref.auto import model_class
    from d2v_ref.synthesis import write_checkpoint

    config = write_checkpoint(model_class(class_name), size, seed, out, num_labels=num_labels)
    layers, width = config.num_hidden_layers, config.hidden_size  # type: ignore[attr-defined]
    click.echo(f"{visible(str(out))}: {class_name}, {layers} layers of width {width}, seed {seed}")
