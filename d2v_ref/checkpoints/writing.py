"""Writing files and folders so that one is either there as a whole, or not there."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import numpy as np

from d2v_ref.errors import CheckpointError, InputError

# Hugging Face's mark of weights in PyTorch's layout, without which transformers 4 does not load them.
PYTORCH_FORMAT: Mapping[str, str] = MappingProxyType({"format": "pt"})


def write_safetensors(
    path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = PYTORCH_FORMAT
) -> None:
    """Write named arrays as a safetensors file, with PyTorch's mark unless told otherwise."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = Path(path)
    # The safetensors package writes the memory from an array's address on, so its elements have to lie there in a row.
    # np.asarray, as np.ascontiguousarray would give a scalar a dimension.
    rows = {name: np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C") for name, array in arrays.items()}
    with replacing(path) as temporary:
        try:
            save_file(rows, temporary, dict(metadata) if metadata is not None else None)
        except (SafetensorError, TypeError) as error:
            raise CheckpointError("can't be written", path=path, got=str(error)) from None


def write_json(path: str | Path, value: object) -> None:
    """Write a value as indented JSON in UTF-8.  NaN and infinity are refused: JSON has none."""
    path = Path(path)
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        data = text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError("can't be written as JSON", path=path, got=str(error)) from None
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder that takes the path's place if the block ends well, and is removed if not."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # what the user's umask gives; the safetensors package makes its files private
        _flush(temporary)
        os.replace(temporary, path)
        if os.name == "posix":  # elsewhere a folder can't be opened
            _flush(path.parent)
    except OSError as error:
        raise CheckpointError("can't be written", path=path, got=error.strerror or error) from None
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Have the system put it on the disk now, so that a power cut can't leave the new name on an empty file."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        with _unwritable(path):
            temporary.mkdir()
        yield temporary
        with _unwritable(path):
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _unwritable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"can't be written: {error.strerror}", path=path) from None
