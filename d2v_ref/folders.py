"""A folder of files that is there as a whole, or not there."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from d2v_ref.errors import InputError


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its name if the block ends well, and is removed if not.

    It is made first, so that a place that can't be written to is found before anything is computed.
    """
    path = Path(path)
    if os.path.lexists(path):  # Path.exists has an error of its own for a name that is too long
        raise InputError("exists already", path=path, hint="Choose another folder, or remove this one")
    temporary = path.parent / f".{path.name[:40]}.{uuid.uuid4().hex}.tmp"
    try:
        with _said(path):
            temporary.mkdir()
        yield temporary
        with _said(path):
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"can't be written: {error.strerror}", path=path) from None
