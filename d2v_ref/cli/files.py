"""The recordings or pictures that INPUT... names."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from d2v_ref.cli.common import STANDARD_INPUT
from d2v_ref.errors import InputError


class Kind(NamedTuple):
    """A kind of file: what messages call it, and which files of a folder are of it."""

    word: str
    name: str
    suffixes: tuple[str, ...]


SOUNDS = Kind("recording", "a sound file", (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"))
PICTURES = Kind("picture", "a picture", (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"))


def files(kind: Kind, inputs: Sequence[str]) -> list[Path]:
    """Files: those given, those in a folder that is given, and standard input for "-" or for nothing."""
    found: list[Path] = []
    for given in inputs or ("-",):
        if given == "-":
            found.append(_standard_input(kind, waiting=not inputs))
        elif os.path.isdir(given):  # False for what no name can be, where pathlib has an error
            found += _in_folder(kind, Path(given))
        else:
            found.append(Path(given))
    return found


def is_one(inputs: Sequence[str]) -> bool:
    """Whether INPUT... is one file, which has an answer; a folder has a list of them, be it of one file."""
    return len(inputs) <= 1 and not any(given != "-" and os.path.isdir(given) for given in inputs)


def _in_folder(kind: Kind, folder: Path) -> list[Path]:
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in kind.suffixes)
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror}", path=folder) from None
    if not found:
        expected = f"files in {' '.join(kind.suffixes)}"
        raise InputError(f"the folder holds no {kind.word}", path=folder, expected=expected)
    return found


def _standard_input(kind: Kind, waiting: bool) -> Path:
    """A copy of standard input that lives as long as the command: a decoder has to go back and forth in it."""
    if sys.stdin is None or (waiting and sys.stdin.isatty()):
        hint = f"Give {kind.name}, or - for one on standard input"
        raise InputError(f"no {kind.word} was given", hint=hint)
    folder = click.get_current_context().with_resource(tempfile.TemporaryDirectory())
    path = Path(folder, STANDARD_INPUT)
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror}", path=STANDARD_INPUT) from None
    return path
