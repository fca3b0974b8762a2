"""``d2v-ref run``: a text, a file or standard input through a model, and a readable answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from d2v_ref.cli.common import load_options, progress, read_texts, read_whole, say_json, visible
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


@click.command()
@click.argument("model")
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@click.option("--task", type=click.Choice(TASKS), help="What to do.  [the model's own task]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="feature-extraction: write arrays to this .npz.")
@click.option("--top-k", type=click.IntRange(1), help="How many answers.  [5; 1 for question-answering]")
@click.option("--pair", help="text-classification: the second text of a pair.")
@click.option("--context", help="question-answering: the text, or file, that holds the answer.")
@click.option("--choice", "choices", multiple=True, help="multiple-choice: an ending; give two or more.")
@click.option(
    "--aggregation",
    type=click.Choice(["none", "simple", "first", "average", "max"]),
    default="simple",
    show_default=True,
    help="token-classification: how tokens become entities.",
)
@click.option("--pooling", type=click.Choice(["first", "mean"]), help="feature-extraction: one vector a text.")
@click.option("--max-new-tokens", type=click.IntRange(1), default=20, show_default=True, help="text-generation.")
@click.option("--num-beams", type=click.IntRange(1), default=1, show_default=True, help="text-generation: beam search.")
@click.option("--sample", is_flag=True, help="text-generation: draw tokens instead of taking the likeliest.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="With --sample.")
@click.option("--sample-top-k", type=click.IntRange(0), default=0, help="With --sample: draw among so many; 0 for all.")
@click.option("--top-p", type=float, default=1.0, help="With --sample: draw among the likeliest of this probability.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="With --sample.")
@click.option("--decoder", is_flag=True, help="Run an encoder's weights as a decoder (is_decoder=True).")
@click.option("--truncate", is_flag=True, help="Cut texts that are too long; else they are an error.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Texts at a time.")
@click.option("--tokenizer", help="Folder or hub id of the tokenizer.  [the model's]")
@click.option("--init-missing", type=click.IntRange(0), metavar="SEED", help="Draw weights that the checkpoint lacks.")
@click.option("--report", is_flag=True, help="Say on standard error what became of every weight.")
@load_options
def run(
    model: str,
    inputs: tuple[str, ...],
    task: str | None,
    as_json: bool,
    output: Path | None,
    tokenizer: str | None,
    decoder: bool,
    init_missing: int | None,
    report: bool,
    dtype: str | None,
    **options: Any,
) -> None:
    """Run MODEL, a folder or a hub id, on each INPUT: a text, a file with one text a line, or - for standard input.

    The task is that of the model's head unless --task names one.

    \b
    d2v-ref run facebook/data2vec-text-base "The capital of France is <mask>."
    d2v-ref run my-classifier reviews.txt --json
    d2v-ref run my-qa-model "Who wrote it?" --context book.txt
    """
    from d2v_ref.tasks import pipeline

    load = {name: options.pop(name) for name in ("backend", "revision", "cache_dir", "local_files_only")}
    changes = {"is_decoder": True} if decoder else {}
    pipe = pipeline(task, model, tokenizer, dtype=dtype or "float32", init_missing=init_missing, **load, **changes)
    if report:
        click.echo(str(pipe.model.load_report), err=True)
    if output is not None and (pipe.task != "feature-extraction" or output.suffix != ".npz"):
        raise InputError(
            "--output is for features", path=output, got=pipe.task, expected="feature-extraction and a name in .npz"
        )
    texts = read_texts(inputs)
    items, arguments, show = _PREPARE[pipe.task](texts, options)
    with progress(pipe.task, len(items)) as advance:
        results = pipe(items, batch_size=options["batch_size"], progress=advance, **arguments)
    results = [results] if pipe.task in ("fill-mask", "question-answering") and len(items) == 1 else results
    if output is not None:
        _save(output, results)
    elif as_json:
        say_json(results[0] if len(results) == 1 else results)
    else:
        for text, result in zip(texts, results, strict=True):
            if len(results) > 1:
                click.secho(f"> {visible(text)}", bold=True)
            show(result)


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
    context = read_whole(options["context"])

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


def _save(path: Path, features: list[Any]) -> None:
    import numpy as np

    from d2v_ref.checkpoints.writing import replacing

    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{f"text_{i}": array[0] for i, array in enumerate(features)})
    click.echo(f"{path}: text_0 ... text_{len(features) - 1}", err=True)
