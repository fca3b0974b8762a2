"""What the commands share: options, reading texts, progress, results."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from d2v_ref.errors import D2VError, InputError

Command = TypeVar("Command", bound=Callable[..., Any])

STANDARD_INPUT = "standard input"

# One word with such an ending is meant as a file: if there is none, a typing error would otherwise be run as a text.
_FILE_NAME = re.compile(
    r"\S+\.(txt|text|md|csv|tsv|json|jsonl|npy|npz|safetensors|wav|flac|ogg|mp3|png|jpg|jpeg)", re.IGNORECASE
)


class Option(click.Option):
    """An option that says where in the help it goes, and where it means something: for which tasks, for which kind of
    model, and beside which other option.
    """

    def __init__(
        self,
        *args: Any,
        section: str | None = None,
        tasks: Sequence[str] = (),
        modality: str | None = None,
        needs: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.tasks, self.modality, self.needs = tasks, modality, needs
        meant = ", ".join(tasks) or (f"{modality} models" if modality else "")
        self.section = section or (f"For {meant}" if meant else "Options")


@dataclass
class Job:
    """What ``d2v-ref run`` has to do.

    Attributes:
        names: what each answer is the answer to.
        total: of the steps that ``run`` reports.
        run: the answers, given whom to tell of each step.
        lines: a readable answer.
        single: whether JSON is one answer and no list.
        arrays: the arrays that go to a file by name, for a task that has them.
        own_files: whether ``run`` writes files, and --output is where.
    """

    names: list[str]
    total: float
    run: Callable[[Callable[[float], None]], list[Any]]
    lines: Callable[[Any], Iterable[str]]
    single: bool
    arrays: Callable[[list[Any]], dict[str, Any]] | None = None
    own_files: bool = False


class SectionedCommand(click.Command):
    """A command with more options than one list of them can show."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if row is not None:  # None for an argument, which the usage line shows
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(row)
        for title, rows in sections.items():
            lines = textwrap.wrap(title, formatter.width - 1, subsequent_indent="  ", break_on_hyphens=False)
            with formatter.section("\n".join(lines)):
                formatter.write_dl(rows)


DTYPES = ("float32", "float64")
EVERY_DTYPE = (*DTYPES, "tf32", "float16", "bfloat16")  # of some backend; which one takes which it says itself


def load_options(dtype: str | None = "float32", dtypes: Sequence[str] = DTYPES) -> Callable[[Command], Command]:
    """Where a model comes from and who computes: the options of every command that loads one."""
    option = partial(click.option, cls=Option, section="Loading")
    return options(
        computing_options(dtype, dtypes),
        option("--revision", metavar="NAME", help="Branch, tag or commit of a hub id."),
        option("--cache-dir", metavar="FOLDER", type=click.Path(path_type=Path), help="huggingface_hub's cache."),
        option("--local-files-only", is_flag=True, help="Download nothing."),
    )


def computing_options(dtype: str | None = "float32", dtypes: Sequence[str] = DTYPES) -> Callable[[Command], Command]:
    """Who computes."""
    option = partial(click.option, cls=Option, section="Loading")
    return options(
        option("--backend", metavar="NAME", default="numpy", show_default=True, help="See `d2v-ref backends`."),
        option(
            "--dtype",
            type=click.Choice(dtypes),
            default=dtype,
            show_default=dtype is not None or "the recorded one",
            help="To compute in.",
        ),
    )


def options(*adders: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator; the help shows them in this order."""

    def decorate(command: Command) -> Command:
        for add in reversed(adders):
            command = add(command)
        return command

    return decorate


def say_error(error: D2VError) -> int:
    """The one line of an error, on standard error, and the exit code."""
    error.path = error.path and spoken(error.path)
    click.echo(f"d2v-ref: {click.style('error', fg='red', bold=True)}: {visible(str(error))}", err=True)
    return error.exit_code


def read_texts(inputs: Sequence[str]) -> list[str]:
    """The texts that INPUT... names: texts, files with one text a line, and standard input for "-" or for nothing."""
    texts: list[str] = []
    for given in inputs or ("-",):
        if given == "-":
            texts += _lines(_standard_input(waiting=not inputs), STANDARD_INPUT)
        elif is_file(given):
            texts += _lines(read_bytes(Path(given)), given)
        else:
            texts.append(given)
    return texts


def is_one_text(inputs: Sequence[str]) -> bool:
    """Whether INPUT... is one text itself, which has an answer; a file has a list of them, be it of one line."""
    return len(inputs) == 1 and inputs[0] != "-" and not is_file(inputs[0])


def read_whole(given: str) -> str:
    """One text: the contents of a file, or what was given."""
    return _decode(read_bytes(Path(given)), given) if is_file(given) else given


def is_file(given: str) -> bool:
    """Whether an argument is a file or a text; what was meant as a file and is none is an InputError."""
    hint = "If it is the text itself, give it on standard input"
    exists = os.path.exists(given)  # a pipe too, of `<(command)`; False for what no name can be
    if os.path.isdir(given):
        raise InputError("is a folder", path=given, expected="a text or a file", hint=hint)
    if not exists and _FILE_NAME.fullmatch(given):
        raise InputError("there is no such file", path=given, hint=hint)
    return exists


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror}", path=path) from None


def _standard_input(waiting: bool) -> bytes:
    if sys.stdin is None or (waiting and sys.stdin.isatty()):
        raise InputError("no text was given", hint="Give a text, a file, or - for standard input")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror}", path=STANDARD_INPUT) from None


def _lines(data: bytes, name: str) -> list[str]:
    text = _decode(data, name).replace("\r\n", "\n").replace("\r", "\n")
    lines = [line for line in text.split("\n") if line.strip()]  # str.splitlines would split at U+2028 and others too
    if not lines:
        raise InputError("the text is empty", path=name, expected="one text a line")
    return lines


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")  # a byte order mark is no part of the text
    except UnicodeDecodeError as error:
        got = f"byte 0x{data[error.start]:02x} at {error.start}"
        hint = "Convert it, for example with iconv -f latin1 -t utf-8"
        raise InputError("is not UTF-8", path=name, got=got, expected="text in UTF-8", hint=hint) from None


def spoken(path: str | Path) -> str:
    """A path as the user knows it; the copy of what came on standard input is in a temporary folder."""
    return STANDARD_INPUT if Path(path).name == STANDARD_INPUT else str(path)


@contextmanager
def progress(what: str, total: float) -> Iterator[Callable[[float], None]]:
    """A progress bar on a terminal's standard error, for work of more than one step."""
    if total <= 1 or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def visible(text: str) -> str:
    """A text on one line of a terminal: control characters, which a terminal would obey, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def to_json(value: Any) -> str:
    """A result as JSON: NumPy's arrays and numbers as lists and numbers, letters beyond ASCII as escapes."""
    return json.dumps(value, indent=2, allow_nan=False, default=lambda x: x.tolist())


def label_lines(answers: Any) -> Iterator[str]:
    """Labels and their scores."""
    for answer in answers:
        yield f"{answer['score']:8.4f}  {visible(answer['label'])}"


def vector_lines(vectors: Any) -> Iterator[str]:
    """The first numbers of each vector of an array (..., D)."""
    for row in vectors.reshape(-1, vectors.shape[-1]):
        yield f"{' '.join(f'{number:9.5f}' for number in row[:6])} ...  ({vectors.shape[-1]} numbers)"
