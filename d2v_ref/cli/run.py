"""``d2v-ref run``: a text, a file or standard input through a model, and a readable answer."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from d2v_ref.cli.common import (
    Option,
    SectionedCommand,
    is_one_text,
    load_options,
    progress,
    read_texts,
    read_whole,
    say_json,
    visible,
)
from d2v_ref.errors import InputError

TASKS = (
    "fill-mask",
    "text-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "text-generation",
    "feature-extraction",
)
GENERATION, FEATURES = ("text-generation",), ("feature-extraction",)


option = partial(click.option, cls=Option)
count: dict[str, Any] = {"type": click.IntRange(1), "metavar": "N"}


@click.command(cls=SectionedCommand, short_help="Run a model on texts.")
@click.argument("model")
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@option("--task", metavar="TASK", type=click.Choice(TASKS), show_default="the model's own", help="What to do.")
@option("--json", "as_json", is_flag=True, help="Print JSON.")
@option("--batch-size", **count, default=8, show_default=True, help="Texts at a time.")
@option("--truncate", is_flag=True, help="Cut texts that are too long; else they are an error.")
@option(
    "--top-k",
    **count,
    show_default="5; 1 for question-answering",
    help="How many answers.",
    tasks=("fill-mask", "text-classification", "question-answering"),
)
@option("--pair", metavar="TEXT", help="The second text of a pair.", tasks=("text-classification",))
@option(
    "--aggregation",
    metavar="HOW",
    type=click.Choice(["none", "simple", "first", "average", "max"]),
    default="simple",
    show_default=True,
    help="Tokens to entities: none, simple, first, average, max.",
    tasks=("token-classification",),
)
@option("--context", metavar="TEXT|FILE", help="What holds the answer.", tasks=("question-answering",))
@option("--choice", "choices", metavar="TEXT", multiple=True, help="Give two or more.", tasks=("multiple-choice",))
@option("--max-new-tokens", **count, default=20, show_default=True, tasks=GENERATION)
@option("--num-beams", **count, default=1, show_default=True, help="Beam search.", tasks=GENERATION)
@option("--sample", is_flag=True, help="Draw tokens instead of taking the likeliest.", tasks=GENERATION)
@option(
    "--temperature", type=float, metavar="X", default=1.0, show_default=True, help="With --sample.", tasks=GENERATION
)
@option(
    "--sample-top-k",
    type=click.IntRange(0),
    metavar="N",
    default=0,
    show_default="all",
    help="With --sample: draw among so many.",
    tasks=GENERATION,
)
@option(
    "--top-p",
    type=float,
    metavar="X",
    default=1.0,
    show_default=True,
    help="With --sample: draw among the likeliest of this probability.",
    tasks=GENERATION,
)
@option(
    "--seed", type=click.IntRange(0), metavar="N", default=0, show_default=True, help="With --sample.", tasks=GENERATION
)
@option("--pooling", type=click.Choice(["first", "mean"]), help="One vector a text.", tasks=FEATURES)
@option(
    "-o",
    "--output",
    metavar="FILE.npz",
    type=click.Path(path_type=Path),
    help="Write arrays, print nothing.",
    tasks=FEATURES,
)
@option("--tokenizer", metavar="MODEL", show_default="the model's", help="Folder or hub id.", section="Loading")
@option("--decoder", is_flag=True, help="Take an encoder's weights for a decoder (is_decoder=True).", section="Loading")
@option(
    "--init-missing",
    type=click.IntRange(0),
    metavar="SEED",
    help="Draw weights that the checkpoint lacks.",
    section="Loading",
)
@option("--report", is_flag=True, help="Say on standard error what became of every weight.", section="Loading")
@load_options()
@click.pass_context
def run(
    ctx: click.Context,
    model: str,
    inputs: tuple[str, ...],
    task: str | None,
    as_json: bool,
    output: Path | None,
    tokenizer: str | None,
    decoder: bool,
    init_missing: int | None,
    report: bool,
    **options: Any,
) -> None:
    """Run MODEL, a folder or a hub id, on each INPUT: a text, a file with one text a line, or - for standard input.
    A text that begins with - goes after --.

    \b
    d2v-ref run facebook/data2vec-text-base "The capital of France is <mask>."
    d2v-ref run my-classifier reviews.txt --json
    d2v-ref run my-qa-model "Who wrote it?" --context book.txt

    The TASK is that of the model's head unless --task names one: fill-mask, text-classification,
    token-classification, question-answering, multiple-choice, text-generation or feature-extraction.
    """
    from d2v_ref.tasks import pipeline

    load = {name: options.pop(name) for name in ("backend", "dtype", "revision", "cache_dir", "local_files_only")}
    changes = {"is_decoder": True} if decoder else {}
    pipe = pipeline(task, model, tokenizer, init_missing=init_missing, **load, **changes)
    if report:
        click.echo("\n".join(visible(line) for line in str(pipe.model.load_report).split("\n")), err=True)
    _refuse_what_has_no_effect(ctx, pipe.task)
    if output is not None:
        _check_output(output)
    texts = read_texts(inputs)
    items, arguments, show = _PREPARE[pipe.task](texts, options)
    with progress(pipe.task, len(items)) as advance:
        results = pipe(items, batch_size=options["batch_size"], progress=advance, **arguments)
    results = [results] if pipe.task in ("fill-mask", "question-answering") and len(items) == 1 else results
    if output is not None:
        _save(output, results)
    elif as_json:
        say_json(results[0] if is_one_text(inputs) else results)
    else:
        for text, result in zip(texts, results, strict=True):
            if len(results) > 1:
                click.secho(f"> {visible(text)}", bold=True)
            show(result)


def _refuse_what_has_no_effect(ctx: click.Context, task: str) -> None:
    """An option that is given and means nothing here was given by mistake."""
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if not isinstance(parameter, Option) or ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        if parameter.tasks and task not in parameter.tasks:
            raise InputError(f"{parameter.opts[-1]} is not for {task}", expected=" or ".join(parameter.tasks))
        if name in ("temperature", "sample_top_k", "top_p", "seed") and not ctx.params["sample"]:
            raise InputError(f"{parameter.opts[-1]} has no effect without --sample")


# For each task: what the pipeline is given, its arguments, and how an answer is printed.
Prepared = tuple[list[Any], dict[str, Any], Callable[[Any], None]]


def _fill_mask(texts: list[str], options: dict[str, Any]) -> Prepared:
    def show(answers: Any) -> None:
        for i, group in enumerate(answers if isinstance(answers[0], list) else [answers]):
            if isinstance(answers[0], list):
                click.echo(f"mask {i + 1}")
            for answer in group:
                click.echo(f"{answer['score']:8.4f}  {visible(answer['token_str']):<16} {visible(answer['sequence'])}")

    return texts, {"top_k": options["top_k"] or 5, "truncation": options["truncate"]}, show


def _text_classification(texts: list[str], options: dict[str, Any]) -> Prepared:
    pair = options["pair"]
    items: list[Any] = texts if pair is None else [{"text": text, "text_pair": pair} for text in texts]

    def show(answers: Any) -> None:
        for answer in answers:
            click.echo(f"{answer['score']:8.4f}  {visible(answer['label'])}")

    return items, {"top_k": options["top_k"] or 5, "truncation": options["truncate"]}, show


def _token_classification(texts: list[str], options: dict[str, Any]) -> Prepared:
    def show(entities: Any) -> None:
        if not entities:
            click.echo("no entity")
        for entity in entities:
            label = entity.get("entity_group", entity.get("entity"))
            span = f"{entity['start']:>5}-{entity['end']:<5}"
            click.echo(f"{entity['score']:8.4f}  {visible(label):<12} {span} {visible(entity['word'])}")

    return texts, {"aggregation_strategy": options["aggregation"], "truncation": options["truncate"]}, show


def _question_answering(texts: list[str], options: dict[str, Any]) -> Prepared:
    if options["context"] is None:
        raise InputError("question answering needs a text to look in", expected="--context TEXT or --context FILE")
    if options["truncate"]:
        raise InputError("--truncate is not for question-answering", hint="A long context is read in windows")
    context = read_whole(options["context"])
    if not context.strip():
        raise InputError("--context is empty", expected="a text that may hold the answer")

    def show(answers: Any) -> None:
        for answer in answers if isinstance(answers, list) else [answers]:
            click.echo(f"{answer['score']:8.4f}  {answer['start']:>5}-{answer['end']:<5} {visible(answer['answer'])}")

    items = [{"question": text, "context": context} for text in texts]
    return items, {"top_k": options["top_k"] or 1}, show


def _multiple_choice(texts: list[str], options: dict[str, Any]) -> Prepared:
    if len(options["choices"]) < 2:
        raise InputError(
            "multiple choice needs choices", got=f"{len(options['choices'])}", expected="--choice A --choice B"
        )

    def show(answers: Any) -> None:
        for answer in answers:
            click.echo(f"{answer['score']:8.4f}  {visible(answer['choice'])}")

    items = [{"prompt": text, "choices": list(options["choices"])} for text in texts]
    return items, {"truncation": options["truncate"]}, show


def _text_generation(texts: list[str], options: dict[str, Any]) -> Prepared:
    settings = {
        "max_new_tokens": options["max_new_tokens"],
        "num_beams": options["num_beams"],
        "do_sample": options["sample"],
        "temperature": options["temperature"],
        "top_k": options["sample_top_k"],
        "top_p": options["top_p"],
        "seed": options["seed"],
    }

    def show(answers: Any) -> None:
        for answer in answers:
            click.echo("\n".join(visible(line) for line in answer["generated_text"].split("\n")))

    return texts, {"truncation": options["truncate"], **settings}, show


def _feature_extraction(texts: list[str], options: dict[str, Any]) -> Prepared:
    def show(features: Any) -> None:
        for row in features.reshape(-1, features.shape[-1]):
            numbers = " ".join(f"{number:9.5f}" for number in row[:6])
            click.echo(f"{numbers} ...  ({features.shape[-1]} numbers)")

    return texts, {"pooling": options["pooling"], "truncation": options["truncate"]}, show


_PREPARE: dict[str, Callable[[list[str], dict[str, Any]], Prepared]] = {
    "fill-mask": _fill_mask,
    "text-classification": _text_classification,
    "token-classification": _token_classification,
    "question-answering": _question_answering,
    "multiple-choice": _multiple_choice,
    "text-generation": _text_generation,
    "feature-extraction": _feature_extraction,
}


def _check_output(path: Path) -> None:
    """Before the model runs, what would be an error after it."""
    if path.suffix != ".npz":
        raise InputError("is no name for arrays", path=path, expected="a name in .npz")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError("can't be written", path=path, expected="a name in a folder that can be written to")


def _save(path: Path, features: list[Any]) -> None:
    import numpy as np

    from d2v_ref.checkpoints import replacing

    arrays = {f"text_{i}": array[0] for i, array in enumerate(features)}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    names = " ... ".join(dict.fromkeys((min(arrays), list(arrays)[-1])))
    click.echo(f"{visible(str(path))}: {names}", err=True)
