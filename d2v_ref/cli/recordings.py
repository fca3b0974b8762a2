"""The recordings that INPUT... names."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from d2v_ref.cli.common import STANDARD_INPUT
from d2v_ref.errors import InputError

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")


def recordings(inputs: Sequence[str]) -> list[Path]:
    """Sound files: those given, those in a folder that is given, and standard input for "-" or for nothing."""
    found: list[Path] = []
    for given in inputs or ("-",):
        if given == "-":
            found.append(_standard_input(waiting=not inputs))
        elif os.path.isdir(given):  # False for what no name can be, where pathlib has an error
            found += _in_folder(Path(given))
        else:
            found.append(Path(given))
    return found


def _in_folder(folder: Path) -> list[Path]:
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror}", path=folder) from None
    if not files:
        raise InputError("the folder holds no recording", path=folder, expected=f"files in {' '.join(SUFFIXES)}")
    return files


def is_one_recording(inputs: Sequence[str]) -> bool:
    """Whether INPUT... is one recording, which has an answer; a folder has a list of them, be it of one file."""
    return len(inputs) <= 1 and not any(given != "-" and os.path.isdir(given) for given in inputs)


def _standard_input(waiting: bool) -> Path:
    """A copy of standard input that lives as long as the command: a decoder has to go back and forth in it."""
    if sys.stdin is None or (waiting and sys.stdin.isatty()):
        raise InputError("no recording was given", hint="Give a sound file, or - for one on standard input")
    folder = click.get_current_context().with_resource(tempfile.TemporaryDirectory())
    path = Path(folder, STANDARD_INPUT)
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror}", path=STANDARD_INPUT) from None
    return path
