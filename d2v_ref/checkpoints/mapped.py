"""Weight files as read-only memory maps, and tensors as checked views of them: what every reader here stands on."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from d2v_ref.checkpoints.tensors import Tensor
from d2v_ref.errors import CheckpointError

DOWNLOAD_AGAIN = "Download the file again."
MAX_DIMS = 64  # NumPy's own limit


class ElementType(NamedTuple):
    """How an element lies in a file (always little-endian), and what ``Tensor.dtype`` calls it."""

    layout: np.dtype
    name: str


def _element_type(name: str) -> ElementType:
    layout = np.dtype("uint16" if name == "bfloat16" else name)
    return ElementType(layout.newbyteorder("<"), name)


_FLOATS = ("float64", "float32", "float16", "bfloat16")
_INTEGERS = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")
ELEMENT_TYPES = {name: _element_type(name) for name in (*_FLOATS, *_INTEGERS, "bool")}


@contextmanager
def open_weights(path: Path) -> Iterator[tuple[BinaryIO, np.ndarray]]:
    """The open file, for its headers, and its bytes as a read-only map, for its tensors.

    The headers are read through the file and not through the map: a read brings in the bytes asked for, while touching
    a map makes the system bring in the pages around them as well.
    """
    try:
        with path.open("rb") as file:
            _refuse_what_is_no_weight_file(path, file.read(512))
            data = np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)
            file.seek(0)
            yield file, data
    except FileNotFoundError:
        raise CheckpointError("there is no such file", path=path) from None
    except IsADirectoryError:
        raise CheckpointError("is a folder", path=path, expected="a weight file") from None
    except OSError as error:
        raise CheckpointError("the file can't be read", path=path, got=error.strerror or error) from None


def _refuse_what_is_no_weight_file(path: Path, head: bytes) -> None:
    """What often lies in a weight file's place: nothing, a Git LFS pointer, or the page a server sent instead."""
    if not head:
        raise CheckpointError("the file is empty", path=path, hint=DOWNLOAD_AGAIN)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            "is a Git LFS pointer, which stands for the weights but does not hold them",
            path=path,
            hint="Run `git lfs pull` in its repository, or download the file itself.",
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError("is a web page, not weights", path=path, hint=DOWNLOAD_AGAIN)


def short(name: object) -> str:
    """A name from a file, fit for a message: unprintable characters escaped, and not a megabyte of it."""
    text = repr(name)
    return text if len(text) <= 100 else text[:100] + "..."


def aligned(region: np.ndarray, layout: np.dtype) -> np.ndarray:
    """The same bytes at an address where elements of ``layout`` may start: the region itself, or else a copy of it."""
    if region.size == 0 or region.ctypes.data % layout.alignment == 0:
        return region
    # NumPy's allocations are aligned for every element type there is.
    copy = region.copy()
    copy.flags.writeable = False
    return copy


def view(
    region: np.ndarray,
    element: ElementType,
    shape: Sequence[int],
    strides: Sequence[int],
    offset: int,
    file: Path,
    name: str,
) -> Tensor:
    """The tensor that starts ``offset`` elements into ``region`` (aligned bytes); ``strides`` count elements too.

    Every number comes from a file, so every number is checked.  Python's integers do not overflow.
    """
    fault = _view_fault(region.size, element.layout.itemsize, shape, strides, offset)
    if fault is not None:
        raise CheckpointError(f"the tensor {short(name)} {fault}", path=file, hint=DOWNLOAD_AGAIN)
    size = element.layout.itemsize
    data: np.ndarray
    if 0 in shape:
        data = np.empty(tuple(shape), element.layout)  # nothing of it lies in the file
        data.flags.writeable = False
    else:
        # A stride along an axis of length 1 is never taken, so it may be any number, also one too large for NumPy.
        steps = [step * size if length > 1 else 0 for length, step in zip(shape, strides, strict=True)]
        data = np.ndarray(tuple(shape), element.layout, buffer=region, offset=offset * size, strides=steps)
    return Tensor(data, element.name, file)


def _view_fault(available: int, size: int, shape: Sequence[int], strides: Sequence[int], offset: int) -> str | None:
    if len(shape) != len(strides) or len(shape) > MAX_DIMS:
        return f"has {len(shape)} dimensions and {len(strides)} strides (expected equal numbers, at most {MAX_DIMS})"
    if any(number < 0 for number in (*shape, *strides, offset)):
        return f"has a negative number in shape {tuple(shape)}, strides {tuple(strides)} or offset {offset}"
    # Expanded tensors have stride 0 and may have far more elements than the file has; NumPy counts bytes in 63 bits.
    if math.prod(max(length, 1) for length in shape) * size > sys.maxsize:
        return f"has more elements than can be addressed: shape {tuple(shape)}"
    if 0 in shape:
        return None
    last = offset + sum((length - 1) * step for length, step in zip(shape, strides, strict=True))
    if (last + 1) * size > available:
        return f"reaches to byte {(last + 1) * size} of its data (expected at most {available})"
    return None
