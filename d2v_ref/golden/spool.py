"""Arrays that are written to a file as they are produced, and read back one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from d2v_ref.checkpoints.safetensors_file import DTYPES
from d2v_ref.errors import InputError

_CODES = {element.name: code for code, element in DTYPES.items()}
_PIECE = 1 << 20  # bytes that are copied at a time


class _Entry(NamedTuple):
    begin: int
    dtype: np.dtype
    shape: tuple[int, ...]
    size: int  # bytes


class Spool(Mapping[str, np.ndarray]):
    """Named arrays in a file: none of them is held in memory.

    Args:
        path: of a new file, which the caller removes.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._entries: dict[str, _Entry] = {}

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, array: np.ndarray) -> None:
        """Write an array; a name comes once."""
        if name in self._entries:
            raise InputError("is computed twice in one run, and recorded by name", got=name)
        array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        begin = self._file.seek(0, 2)
        self._file.write(array.data.cast("B") if array.size else b"")
        self._entries[name] = _Entry(begin, array.dtype, array.shape, array.nbytes)

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        self._file.seek(entry.begin)
        return np.frombuffer(self._file.read(entry.size), entry.dtype).reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def save(self, path: Path) -> None:
        """Write all of them to a safetensors file, those of large elements first, so that each is aligned."""
        order = sorted(self._entries.items(), key=lambda item: -item[1].dtype.itemsize)
        header, end = {}, 0
        for name, entry in order:
            code = _CODES[entry.dtype.name]
            header[name] = {"dtype": code, "shape": entry.shape, "data_offsets": [end, end + entry.size]}
            end += entry.size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with path.open("xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, entry in order:
                self._file.seek(entry.begin)
                for left in range(entry.size, 0, -_PIECE):
                    file.write(self._file.read(min(left, _PIECE)))
