"""``d2v-ref run`` with a model of texts: its options, and what each of its tasks is given and prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import click

from d2v_ref.cli.common import (
    Job,
    Option,
    is_one_text,
    label_lines,
    options,
    read_texts,
    read_whole,
    vector_lines,
    visible,
)
from d2v_ref.errors import InputError

GENERATION = ("text-generation",)
SAMPLING: dict[str, Any] = {"tasks": GENERATION, "needs": ("--sample",)}

option = partial(click.option, cls=Option)
count: dict[str, Any] = {"type": click.IntRange(1), "metavar": "N"}

OPTIONS = options(
    option("--truncate", is_flag=True, help="Cut texts that are too long; else they are an error.", modality="text"),
    option(
        "--decoder", is_flag=True, help="Take an encoder's weights for a decoder (is_decoder=True).", modality="text"
    ),
    option("--pair", metavar="TEXT", help="The second text of a pair.", tasks=("text-classification",)),
    option(
        "--aggregation",
        metavar="HOW",
        type=click.Choice(["none", "simple", "first", "average", "max"]),
        default="simple",
        show_default=True,
        help="Tokens to entities: none, simple, first, average, max.",
        tasks=("token-classification",),
    ),
    option("--context", metavar="TEXT|FILE", help="What holds the answer.", tasks=("question-answering",)),
    option("--choice", "choices", metavar="TEXT", multiple=True, help="Give two or more.", tasks=("multiple-choice",)),
    option("--max-new-tokens", **count, default=20, show_default=True, tasks=GENERATION),
    option("--num-beams", **count, default=1, show_default=True, help="Beam search.", tasks=GENERATION),
    option("--sample", is_flag=True, help="Draw tokens instead of taking the likeliest.", tasks=GENERATION),
    option("--temperature", type=float, metavar="X", default=1.0, show_default=True, help="With --sample.", **SAMPLING),
    option(
        "--sample-top-k",
        type=click.IntRange(0),
        metavar="N",
        default=0,
        show_default="all",
        help="With --sample: draw among so many.",
        **SAMPLING,
    ),
    option(
        "--top-p",
        type=float,
        metavar="X",
        default=1.0,
        show_default=True,
        help="With --sample: draw among the likeliest of this probability.",
        **SAMPLING,
    ),
    option(
        "--seed", type=click.IntRange(0), metavar="N", default=0, show_default=True, help="With --sample.", **SAMPLING
    ),
)


def prepare(pipe: Any, inputs: tuple[str, ...], options: dict[str, Any]) -> Job:
    """What ``pipe`` has to do for INPUT... ."""
    texts = read_texts(inputs)
    items, arguments, lines = _PREPARE[pipe.task](texts, options)

    def run(advance: Callable[[float], None]) -> list[Any]:
        results = pipe(items, batch_size=options["batch_size"] or 8, progress=advance, **arguments)
        # These unwrap a list of one themselves.
        return [results] if pipe.task in ("fill-mask", "question-answering") and len(items) == 1 else results

    arrays = _arrays if pipe.task == "feature-extraction" else None
    return Job(texts, len(items), run, lines, is_one_text(inputs), arrays)


# For each task: what the pipeline is given, its arguments, and the lines of a readable answer.
Prepared = tuple[list[Any], dict[str, Any], Callable[[Any], Iterator[str]]]


def _fill_mask(texts: list[str], options: dict[str, Any]) -> Prepared:
    def lines(answers: Any) -> Iterator[str]:
        for i, group in enumerate(answers if isinstance(answers[0], list) else [answers]):
            if isinstance(answers[0], list):
                yield f"mask {i + 1}"
            for answer in group:
                yield f"{answer['score']:8.4f}  {visible(answer['token_str']):<16} {visible(answer['sequence'])}"

    return texts, {"top_k": options["top_k"] or 5, "truncation": options["truncate"]}, lines


def _text_classification(texts: list[str], options: dict[str, Any]) -> Prepared:
    pair = options["pair"]
    items: list[Any] = texts if pair is None else [{"text": text, "text_pair": pair} for text in texts]

    return items, {"top_k": options["top_k"] or 5, "truncation": options["truncate"]}, label_lines


def _token_classification(texts: list[str], options: dict[str, Any]) -> Prepared:
    def lines(entities: Any) -> Iterator[str]:
        if not entities:
            yield "no entity"
        for entity in entities:
            label = entity.get("entity_group", entity.get("entity"))
            span = f"{entity['start']:>5}-{entity['end']:<5}"
            yield f"{entity['score']:8.4f}  {visible(label):<12} {span} {visible(entity['word'])}"

    return texts, {"aggregation_strategy": options["aggregation"], "truncation": options["truncate"]}, lines


def _question_answering(texts: list[str], options: dict[str, Any]) -> Prepared:
    if options["context"] is None:
        raise InputError("question answering needs a text to look in", expected="--context TEXT or --context FILE")
    if options["truncate"]:
        raise InputError("--truncate is not for question-answering", hint="A long context is read in windows")
    context = read_whole(options["context"])
    if not context.strip():
        raise InputError("--context is empty", expected="a text that may hold the answer")

    def lines(answers: Any) -> Iterator[str]:
        for answer in answers if isinstance(answers, list) else [answers]:
            yield f"{answer['score']:8.4f}  {answer['start']:>5}-{answer['end']:<5} {visible(answer['answer'])}"

    items = [{"question": text, "context": context} for text in texts]
    return items, {"top_k": options["top_k"] or 1}, lines


def _multiple_choice(texts: list[str], options: dict[str, Any]) -> Prepared:
    if len(options["choices"]) < 2:
        raise InputError(
            "multiple choice needs choices", got=f"{len(options['choices'])}", expected="--choice A --choice B"
        )

    def lines(answers: Any) -> Iterator[str]:
        for answer in answers:
            yield f"{answer['score']:8.4f}  {visible(answer['choice'])}"

    items = [{"prompt": text, "choices": list(options["choices"])} for text in texts]
    return items, {"truncation": options["truncate"]}, lines


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

    def lines(answers: Any) -> Iterator[str]:
        for answer in answers:
            yield from map(visible, answer["generated_text"].split("\n"))

    return texts, {"truncation": options["truncate"], **settings}, lines


def _feature_extraction(texts: list[str], options: dict[str, Any]) -> Prepared:
    return texts, {"pooling": options["pooling"], "truncation": options["truncate"]}, vector_lines


def _arrays(features: list[Any]) -> dict[str, Any]:
    return {f"text_{i}": array[0] for i, array in enumerate(features)}


_PREPARE: dict[str, Callable[[list[str], dict[str, Any]], Prepared]] = {
    "fill-mask": _fill_mask,
    "text-classification": _text_classification,
    "token-classification": _token_classification,
    "question-answering": _question_answering,
    "multiple-choice": _multiple_choice,
    "text-generation": _text_generation,
    "feature-extraction": _feature_extraction,
}
TASKS = tuple(_PREPARE)
