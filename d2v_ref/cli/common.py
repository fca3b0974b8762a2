"""What the commands share: options, reading texts, progress, results."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from d2v_ref.errors import D2VError, InputError

Command = TypeVar("Command", bound=Callable[..., Any])


def say_error(error: D2VError) -> None:
    """The one line of an error, on standard error."""
    click.echo(f"d2v-ref: {click.style('error', fg='red', bold=True)}: {error}", err=True)


def load_options(command: Command) -> Command:
    """Where a model comes from and who computes: the options of every command that loads one."""
    for option in reversed(
        (
            click.option("--backend", default="numpy", show_default=True, help="Who computes; see `d2v-ref backends`."),
            click.option("--dtype", type=click.Choice(["float32", "float64"]), help="Of the computation. [float32]"),
            click.option("--revision", help="Branch, tag or commit of a hub id."),
            click.option("--cache-dir", type=click.Path(path_type=Path), help="huggingface_hub's cache."),
            click.option("--local-files-only", is_flag=True, help="Download nothing."),
        )
    ):
        command = option(command)
    return command


def read_texts(inputs: tuple[str, ...]) -> list[str]:
    """The texts that INPUT... names: texts, files with one text a line, and standard input for "-" or for nothing."""
    texts: list[str] = []
    for given in inputs or ("-",):
        if given == "-":
            if not inputs and sys.stdin.isatty():
                raise InputError("no text was given", hint="Give a text, a file, or - for standard input")
            texts += _lines(sys.stdin.buffer.read(), "standard input")
        elif is_file(given):
            texts += _lines(read_bytes(Path(given)), given)
        else:
            texts.append(given)
    return texts


def read_whole(given: str) -> str:
    """One text: the contents of a file, or what was given."""
    return _decode(read_bytes(Path(given)), given) if is_file(given) else given


def is_file(given: str) -> bool:
    """Whether an argument names a file; a text may be too long or hold what no name can."""
    try:
        return os.path.isfile(given)
    except (OSError, ValueError):
        return False


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror}", path=path) from None


def _lines(data: bytes, name: str) -> list[str]:
    lines = [line for line in _decode(data, name).splitlines() if line.strip()]
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


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal's standard error, for work of more than one step."""
    if total < 2 or not sys.stderr.isatty():
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


def say_json(value: Any) -> None:
    """A result as JSON: NumPy's arrays and numbers as lists and numbers."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=lambda x: x.tolist()))
