"""``d2v-ref run``: texts, recordings or pictures through a model, and a readable answer."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from d2v_ref.cli import run_audio, run_text, run_vision
from d2v_ref.cli.common import EVERY_DTYPE, Job, Option, SectionedCommand, load_options, progress, to_json, visible
from d2v_ref.errors import InputError

option = partial(click.option, cls=Option)
TASKS = tuple(dict.fromkeys((*run_text.TASKS, *run_audio.TASKS, *run_vision.TASKS)))
MODALITIES = {"text": run_text, "audio": run_audio, "vision": run_vision}


@click.command(cls=SectionedCommand, short_help="Run a model on texts, sounds, pictures.")
@click.argument("model")
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@option("--task", metavar="TASK", type=click.Choice(TASKS), show_default="the model's own", help="What to do.")
@option("--json", "as_json", is_flag=True, help="Print JSON.")
@option("--batch-size", type=click.IntRange(1), metavar="N", show_default="8 texts, else 1", help="How many at a time.")
@option(
    "--top-k",
    type=click.IntRange(1),
    metavar="N",
    show_default="5; 1 for question-answering",
    help="How many answers.",
    tasks=("fill-mask", "text-classification", "question-answering", "audio-classification", "image-classification"),
)
@option(
    "--pooling",
    type=click.Choice(["first", "mean"]),
    help="One vector an input; first is not for recordings.",
    tasks=("feature-extraction", "image-feature-extraction"),
)
@option(
    "--output",
    "-o",
    metavar="FILE|FOLDER",
    type=click.Path(path_type=Path),
    help="Arrays go to a FILE.npz, a transcript to any FILE, and nothing is printed. Of image-segmentation it is the "
    "FOLDER for the maps.  [default: (the current folder for maps)]",
    tasks=(
        "feature-extraction",
        "image-feature-extraction",
        "speaker-embedding",
        "automatic-speech-recognition",
        "image-segmentation",
    ),
)
@run_text.OPTIONS
@run_audio.OPTIONS
@option("--tokenizer", metavar="MODEL", show_default="the model's", help="As MODEL.", section="Loading")
@option("--init-missing", type=click.IntRange(0), metavar="SEED", help="Draw missing weights.", section="Loading")
@option("--report", is_flag=True, help="Say on standard error what became of every weight.", section="Loading")
@load_options(dtypes=EVERY_DTYPE)
@click.pass_context
def run(
    ctx: click.Context,
    model: str,
    inputs: tuple[str, ...],
    task: str | None,
    output: Path | None,
    tokenizer: str | None,
    report: bool,
    **options: Any,
) -> None:
    """Run MODEL on each INPUT.

    MODEL is a folder, a hub id, or tiny-text, tiny-audio or tiny-vision, which come with the package.

    For a model of texts an INPUT is a text, a file with one text a line, or - for standard input; a text that
    begins with - goes after --.

    \b
    d2v-ref run facebook/data2vec-text-base "The capital of France is <mask>."
    d2v-ref run my-classifier reviews.txt --json
    d2v-ref run my-qa-model "Who wrote it?" --context book.txt

    For a model of speech it is an audio file (wav, flac, ogg or mp3, of any sampling rate), or - for one on standard
    input.

    \b
    d2v-ref run facebook/data2vec-audio-base-960h speech.wav
    d2v-ref run facebook/data2vec-audio-base-960h lecture.mp3 --format srt -o lecture.srt
    d2v-ref run my-speaker-model --task speaker-verification alice.wav unknown.wav

    For a model of pictures it is a picture (png, jpeg, webp, bmp, gif or tiff), a folder of them, or - for one on
    standard input.  A segmentation model writes two files for each: NAME-map.png, whose palette shows the classes and
    whose pixels are their numbers, and NAME-overlay.png, the picture with the classes in colour and a legend.  It
    replaces those of an earlier run, but never an INPUT.

    \b
    d2v-ref run facebook/data2vec-vision-base-ft1k cat.jpg
    d2v-ref run my-segmentation-model photos/ -o maps

    The TASK is that of the model's head unless --task names one.

    \b
    Texts: fill-mask, text-classification, token-classification, question-answering,
           multiple-choice, text-generation, feature-extraction.
    Audio: automatic-speech-recognition, audio-classification, audio-frame-classification,
           speaker-embedding, speaker-verification, feature-extraction.
    Vision: image-classification, image-segmentation, image-feature-extraction.
    """
    from d2v_ref.tasks import pipeline

    names = ("backend", "dtype", "revision", "cache_dir", "local_files_only", "init_missing")
    load = {name: options.pop(name) for name in names}
    changes = {"is_decoder": options.pop("decoder") or None, "padding": options.pop("padding")}
    load |= {name: value for name, value in changes.items() if value is not None}
    pipe = pipeline(task, model, tokenizer, **load)
    if report:
        click.echo("\n".join(visible(line) for line in str(pipe.model.load_report).split("\n")), err=True)
    _refuse_what_has_no_effect(ctx, pipe.task, pipe.modality)
    job = MODALITIES[pipe.modality].prepare(pipe, inputs, {**options, "output": output})
    if job.own_files:
        output = None
    if output is not None:
        _check_output(output, job, options["as_json"])
    with progress(pipe.task, job.total) as advance:
        answers = job.run(advance)
    if output is None:
        click.echo(_written(job, answers, options["as_json"]))
    elif job.arrays is not None:
        _save_arrays(output, job.arrays(answers))
    else:
        _save_text(output, click.unstyle(_written(job, answers, options["as_json"])))


def _refuse_what_has_no_effect(ctx: click.Context, task: str, modality: str) -> None:
    """An option that is given and means nothing here was given by mistake."""
    given = [
        parameter
        for parameter in ctx.command.params
        if isinstance(parameter, Option)
        and ctx.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]
    for parameter in given:
        name = max(parameter.opts, key=len)
        if parameter.tasks and task not in parameter.tasks:
            raise InputError(f"{name} is not for {task}", expected=" or ".join(parameter.tasks))
        if parameter.modality not in (None, modality):
            raise InputError(f"{name} is not for {modality} models", expected=f"{parameter.modality} models")
        if parameter.needs and not any(set(parameter.needs) & set(other.opts) for other in given):
            raise InputError(f"{name} has no effect without {' or '.join(parameter.needs)}")


def _written(job: Job, answers: list[Any], as_json: bool) -> str:
    """The answers as they are printed."""
    if as_json:
        return to_json(answers[0] if job.single else answers)
    lines: list[str] = []
    for name, answer in zip(job.names, answers, strict=True):
        if len(answers) > 1:
            lines.append(click.style(f"> {visible(name)}", bold=True))
        lines += job.lines(answer)
    return "\n".join(lines)


def _check_output(path: Path, job: Job, as_json: bool) -> None:
    """Before the model runs, what would be an error after it."""
    if job.arrays is not None and as_json:
        raise InputError("--json has no effect with --output", hint="Arrays are written as .npz, or printed as JSON")
    if job.arrays is not None and path.suffix != ".npz":
        raise InputError("is no name for arrays", path=path, expected="a name in .npz")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError("can't be written", path=path, expected="a name in a folder that can be written to")


def _save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    import numpy as np

    from d2v_ref.checkpoints import replacing

    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    names = " ... ".join(dict.fromkeys((min(arrays), list(arrays)[-1])))
    click.echo(f"{visible(str(path))}: {names}", err=True)


def _save_text(path: Path, text: str) -> None:
    from d2v_ref.checkpoints import replacing

    with replacing(path) as temporary:
        temporary.write_bytes(f"{text}\n".encode())
