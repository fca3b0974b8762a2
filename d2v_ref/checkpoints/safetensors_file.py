"""Reading safetensors files: a header of JSON, then the bytes of the tensors.

The format (https://github.com/huggingface/safetensors, README, "Format"):

- 8 bytes: N, the length of the header, an unsigned little-endian integer; the reference reader takes at most 100 MB;
- N bytes: the header, a JSON object in UTF-8 that starts with ``{`` and may end in spaces.  Each name has
  ``{"dtype": "F16", "shape": [1, 16], "data_offsets": [begin, end]}``; the name ``__metadata__`` has a map from text to
  text instead.  No name comes twice;
- the rest: the tensors, little-endian, row-major.  Offsets count from here, and tensors cover the rest without a hole.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from d2v_ref.checkpoints.mapped import (
    DOWNLOAD_AGAIN,
    ELEMENT_TYPES,
    MAX_DIMS,
    aligned,
    open_weights,
    short,
    view,
)
from d2v_ref.checkpoints.tensors import Tensor
from d2v_ref.errors import CheckpointError

MAX_HEADER = 100_000_000

_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
DTYPES = {code: ELEMENT_TYPES[name] for code, name in _NAMES.items()}


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, by name, as a read-only view of the mapped file."""
    path = Path(path)
    with open_weights(path) as (file, data):
        header, start = _read_header(file, data.size, path)
    header.pop("__metadata__", None)
    for name, entry in header.items():
        _check_entry(name, entry, path)
    _check_cover({name: entry["data_offsets"] for name, entry in header.items()}, data.size - start, path)
    return {name: _tensor(data[start:], name, entry, path) for name, entry in header.items()}


def read_safetensors_metadata(path: str | Path) -> dict[str, str]:
    """The ``__metadata__`` of a safetensors file, such as ``{"format": "pt"}``.  Empty where the file has none."""
    path = Path(path)
    with open_weights(path) as (file, data):
        header, _ = _read_header(file, data.size, path)
    metadata: dict[str, str] = header.get("__metadata__", {})
    return metadata


def _read_header(file: BinaryIO, size: int, path: Path) -> tuple[dict[str, Any], int]:
    """The header's object, and where the tensors start."""
    head = file.read(8)
    length = int.from_bytes(
        head, "little"
    )  # its lowest byte may be anything, so that other formats' first bytes prove nothing yet
    if len(head) < 8 or length > size - 8 or length > MAX_HEADER:
        if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
            raise CheckpointError(
                "is a PyTorch file, not a safetensors file", path=path, hint="Name it pytorch_model.bin."
            )
        raise CheckpointError(
            "the file is cut short, or is no safetensors file",
            path=path,
            got=f"{size} bytes, and {length} for its header",
            expected=f"the 8 bytes of a length, and a header of that length, at most {MAX_HEADER}",
            hint=DOWNLOAD_AGAIN,
        )
    return _parse_header(file.read(length), path), 8 + length


def _parse_header(raw: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise CheckpointError("a name comes twice in the header", path=path, got=short(name))
            found[name] = value
        return found

    if not raw.startswith(b"{"):
        raise CheckpointError(
            "the header is not JSON, so this is no safetensors file", path=path, got=raw[:16], expected="{...}"
        )
    try:
        header: dict[str, Any] = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of 5000 digits, nested 1000 deep
        raise CheckpointError(
            "the header is not JSON", path=path, got=_first_line(error), hint=DOWNLOAD_AGAIN
        ) from None
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("__metadata__ has the wrong form", path=path, expected="a map from text to text")
    return header


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _check_entry(name: str, entry: object, path: Path) -> None:
    """One entry by itself: its keys, its dtype, and that its bytes are as many as its shape has elements."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"the entry of {short(name)} has the wrong form", path=path, expected="dtype, shape and data_offsets"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"the tensor {short(name)} has a dtype that can't be read",
            path=path,
            got=short(dtype),
            expected=", ".join(DTYPES),
            hint="Convert the checkpoint to one of these.",
        )
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        raise CheckpointError(
            f"the shape of {short(name)} has the wrong form",
            path=path,
            got=short(shape),
            expected=f"a list of at most {MAX_DIMS} integers from 0 to {sys.maxsize}",
        )
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(
            f"the data_offsets of {short(name)} have the wrong form",
            path=path,
            got=short(offsets),
            expected="[begin, end]",
        )
    expected = math.prod(shape) * DTYPES[dtype].layout.itemsize
    if offsets[1] - offsets[0] != expected:
        raise CheckpointError(
            f"the data of {short(name)} do not fit its shape",
            path=path,
            got=f"{offsets[1] - offsets[0]} bytes",
            expected=f"{expected} for {dtype} {shape}",
        )


def _are_sizes(numbers: object) -> bool:
    # type, not isinstance: JSON's true is a bool, which Python counts among the integers
    return isinstance(numbers, list) and all(type(number) is int and 0 <= number <= sys.maxsize for number in numbers)


def _check_cover(offsets: dict[str, Sequence[int]], size: int, path: Path) -> None:
    """Tensors follow one another without a hole and without sharing bytes, from the first byte to the last."""
    position = 0
    for name, (begin, end) in sorted(offsets.items(), key=lambda item: tuple(item[1])):
        if begin != position:
            fault = "overlap those before them" if begin < position else "leave a hole before them"
            raise CheckpointError(
                f"the data of {short(name)} {fault}",
                path=path,
                got=f"begin {begin}",
                expected=position,
            )
        position = end
    if position != size:
        raise CheckpointError(
            "the file is cut short" if position > size else "the file holds bytes that belong to no tensor",
            path=path,
            got=f"{size} bytes of tensors",
            expected=position,
            hint=DOWNLOAD_AGAIN,
        )


def _tensor(data: np.ndarray, name: str, entry: dict[str, Any], path: Path) -> Tensor:
    element = DTYPES[entry["dtype"]]
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    # row-major: a step along one axis passes over all elements of the axes behind it
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return view(aligned(data[begin:end], element.layout), element, shape, strides, 0, path, name)
