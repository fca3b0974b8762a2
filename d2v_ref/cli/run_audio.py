"""``d2v-ref run`` with a model of speech: its options, and what each of its tasks is given and prints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import click

from d2v_ref.cli.common import Job, Option, label_lines, options, spoken, vector_lines, visible
from d2v_ref.cli.files import SOUNDS, files, is_one
from d2v_ref.errors import InputError

SPEECH = ("automatic-speech-recognition",)

option = partial(click.option, cls=Option)

OPTIONS = options(
    option(
        "--padding",
        type=click.Choice(["hf", "exact"]),
        help="hf: as transformers, where recordings of a batch change each other's results a little. exact: they "
        "don't.  [default: (as in config.json, else hf)]",
        modality="audio",
    ),
    option("--timestamps", type=click.Choice(["word", "char"]), help="When each was said.", tasks=SPEECH),
    option(
        "--format",
        "form",
        type=click.Choice(["text", "srt", "vtt"]),
        default="text",
        show_default=True,
        help="Subtitles: one line of up to 42 characters and 7 s a cue, a new one after a pause of 0.8 s.",
        tasks=SPEECH,
    ),
    option(
        "--chunk-length",
        type=click.FloatRange(0),
        metavar="S",
        default=30.0,
        show_default=True,
        help="Cut recordings that are longer into overlapping pieces of so many seconds, which bounds memory and time. "
        "0: never.",
        tasks=SPEECH,
    ),
    option(
        "--stride",
        type=click.FloatRange(0),
        metavar="S",
        show_default="a sixth of it",
        help="Seconds of a piece on either side that only give context.",
        tasks=SPEECH,
    ),
    option(
        "--beam-width",
        type=click.IntRange(1),
        metavar="N",
        show_default="100 with --lm or --hot-word, else none",
        help="Search for the likeliest text among so many, instead of the likeliest token of each frame.",
        tasks=SPEECH,
    ),
    option(
        "--lm", metavar="FILE.arpa", help="An n-gram language model, also as .arpa.gz, for beam search.", tasks=SPEECH
    ),
    option(
        "--lm-weight", type=float, metavar="X", show_default="0.5", help="Of the model.", tasks=SPEECH, needs=("--lm",)
    ),
    option(
        "--word-bonus",
        type=float,
        metavar="X",
        show_default="1.5",
        help="For each word, which the model makes dear.",
        tasks=SPEECH,
        needs=("--lm",),
    ),
    option(
        "--hot-word", "hot_words", metavar="WORD", multiple=True, help="A word to expect; several times.", tasks=SPEECH
    ),
    option("--hot-word-weight", type=float, metavar="X", show_default="10", tasks=SPEECH, needs=("--hot-word",)),
    option(
        "--threshold",
        type=float,
        metavar="X",
        show_default="0.7 for speaker-verification",
        help="The least cosine of one speaker; the least probability of a label, several of which then may hold at a "
        "time.",
        tasks=("audio-frame-classification", "speaker-verification"),
    ),
)


def prepare(pipe: Any, inputs: tuple[str, ...], options: dict[str, Any]) -> Job:
    """What ``pipe`` has to do for INPUT... ."""
    from d2v_ref.tasks.audio import Recording

    paths = files(SOUNDS, inputs)
    names = [spoken(path) for path in paths]
    items = [Recording.of(path, pipe.sampling_rate) for path in paths]
    arguments, lines = _PREPARE[pipe.task](options)
    arguments["batch_size"] = options["batch_size"] or 1
    if options["form"] != "text" and len(paths) != 1:
        raise InputError(f"--format {options['form']} is for one recording", got=len(paths))
    if pipe.task == "speaker-verification" and len(paths) != 2:
        raise InputError("speaker-verification is of two recordings", got=len(paths), expected="2")

    def run(advance: Callable[[float], None]) -> list[Any]:
        if pipe.task == "speaker-verification":
            return [pipe(*items, progress=advance, **arguments)]
        return pipe(items, progress=advance, **arguments)

    single = is_one(inputs)
    if pipe.task == "speaker-verification":
        names, single = [" and ".join(names)], True
    arrays = _arrays if pipe.task in ("feature-extraction", "speaker-embedding") else None
    return Job(names, sum(item.seconds for item in items), run, lines, single, arrays)


# For each task: the pipeline's arguments, and the lines of a readable answer.
Prepared = tuple[dict[str, Any], Callable[[Any], Iterable[str]]]


def _speech_recognition(options: dict[str, Any]) -> Prepared:
    form, stamps = options["form"], options["timestamps"]
    if form != "text" and stamps == "char":
        raise InputError(f"--timestamps char has no effect with --format {form}", hint="Subtitles are made of words")
    if form != "text" and options["as_json"]:
        raise InputError(f"--json and --format {form} ask for different things", expected="one of them")
    arguments = {
        "chunk_length_s": options["chunk_length"] or None,
        "stride_length_s": options["stride"],
        "return_timestamps": "word" if form != "text" else stamps,
        "beam_width": options["beam_width"],
        "scorer": options["lm"],
        "hot_words": options["hot_words"],
        "decoder_kwargs": {
            name: options[option]
            for name, option in (("alpha", "lm_weight"), ("beta", "word_bonus"), ("hot_word_weight", "hot_word_weight"))
            if options[option] is not None
        },
    }

    def lines(answer: Any) -> Iterator[str]:
        if form != "text":
            from d2v_ref.tasks import subtitles

            yield from map(visible, (subtitles.srt if form == "srt" else subtitles.vtt)(answer["chunks"]))
        elif stamps is None:
            yield visible(answer["text"])
        else:
            for chunk in answer["chunks"]:
                yield f"{_span(chunk)}  {visible(chunk['text'])}"

    return arguments, lines


def _classification(options: dict[str, Any]) -> Prepared:
    return {"top_k": options["top_k"] or 5}, label_lines


def _frame_classification(options: dict[str, Any]) -> Prepared:
    def lines(segments: Any) -> Iterator[str]:
        if not segments:
            yield "no label"
        for segment in segments:
            yield f"{_span(segment)}  {segment['score']:.4f}  {visible(segment['label'])}"

    return {"threshold": options["threshold"]}, lines


def _embedding(options: dict[str, Any]) -> Prepared:
    return {}, vector_lines


def _verification(options: dict[str, Any]) -> Prepared:
    def lines(answer: Any) -> Iterator[str]:
        yield f"{answer['score']:8.4f}  {'same speaker' if answer['same_speaker'] else 'different speakers'}"

    return ({} if options["threshold"] is None else {"threshold": options["threshold"]}), lines


def _feature_extraction(options: dict[str, Any]) -> Prepared:
    return {"pooling": options["pooling"]}, vector_lines


def _span(entry: Any) -> str:
    start, end = entry["timestamp"]
    return f"{start:10.3f} {end:10.3f}"


def _arrays(answers: list[Any]) -> dict[str, Any]:
    return {f"audio_{i}": array for i, array in enumerate(answers)}


_PREPARE: dict[str, Callable[[dict[str, Any]], Prepared]] = {
    "automatic-speech-recognition": _speech_recognition,
    "audio-classification": _classification,
    "audio-frame-classification": _frame_classification,
    "speaker-embedding": _embedding,
    "speaker-verification": _verification,
    "feature-extraction": _feature_extraction,
}
TASKS = tuple(_PREPARE)
