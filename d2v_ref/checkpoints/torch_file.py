"""Reading the state dict of a ``torch.save`` file (``pytorch_model.bin``) without PyTorch, and without running it.

The format (https://docs.pytorch.org/docs/stable/notes/serialization.html, and torch/serialization.py) is a ZIP archive
with stored entries in one folder, whose name is free:

- ``data.pkl``: the object, as a pickle in which each tensor's storage is a persistent id
  ``("storage", torch.FloatStorage, key, location, number of elements)``;
- ``data/<key>``: the bytes of a storage.  Tensors may share one: each has an offset, a shape and strides in elements;
- ``byteorder``: ``little`` or ``big``; files from before PyTorch 2.0 lack it;
- ``version`` and others, on which no value depends.

Files of PyTorch before 1.6 are another format (several pickles one after the other, and before 0.2 a tar archive).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from d2v_ref.checkpoints.mapped import (
    DOWNLOAD_AGAIN,
    ELEMENT_TYPES,
    ElementType,
    aligned,
    open_weights,
    short,
    view,
)
from d2v_ref.checkpoints.pickle_data import MAX_PICKLE, SAVE_AGAIN, Name, RefusedError, read_pickle
from d2v_ref.checkpoints.stored_zip import Entry, zip_entries
from d2v_ref.checkpoints.tensors import Tensor
from d2v_ref.errors import CheckpointError

_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the integer 0x1950a86a20f9469cfc6c, as a pickle has it

_STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.storage.UntypedStorage": "uint8",  # its tensors name their own dtype
}
_DTYPES = {f"torch.{name}": element for name, element in ELEMENT_TYPES.items()}


@dataclass(frozen=True)
class _Storage:
    region: np.ndarray
    element: ElementType


@dataclass(frozen=True)
class _Parts:
    """A tensor that has no name yet."""

    storage: _Storage
    element: ElementType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_file(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a state dict that ``torch.save`` wrote, by name, as a read-only view of the mapped file.

    Tensors that share a storage in the file (tied weights, slices, transposes, expanded tensors) share its bytes here.
    """
    path = Path(path)
    with open_weights(path) as (file, data):
        _refuse_other_formats(file.read(512), path)
        archive = _Archive(zip_entries(file, path), file, data, path)
        pickle = archive.small("data.pkl", MAX_PICKLE)
        if "byteorder" in archive.entries and archive.small("byteorder", 16) != b"little":
            raise CheckpointError("was written on a big-endian machine", path=path, hint=SAVE_AGAIN)
    found = read_pickle(pickle, path, {**_MENTIONED, **_CALLED}, _Storages(archive).of_persistent_id)
    _check_state_dict(found, path)
    return {
        name: view(parts.storage.region, parts.element, parts.shape, parts.strides, parts.offset, path, name)
        for name, parts in found.items()
    }


def _refuse_other_formats(head: bytes, path: Path) -> None:
    if head.startswith(b"PK\3\4"):
        return
    if _LEGACY_MAGIC in head[:32]:
        message, hint = "is in the format of PyTorch before 1.6, which is not read here", SAVE_AGAIN
    elif head[257:262] == b"ustar":
        message, hint = "is a tar archive, the format of PyTorch before 0.2, which is not read here", SAVE_AGAIN
    elif head.startswith(b"\x80"):
        message, hint = "is a bare pickle, not a torch.save file", SAVE_AGAIN
    elif head[8:9] == b"{":
        message, hint = "is a safetensors file, not a torch.save file", "Name it model.safetensors."
    else:
        message, hint = "is not a torch.save file", DOWNLOAD_AGAIN
    raise CheckpointError(message, path=path, got=head[:8], expected="a ZIP archive", hint=hint)


class _Archive:
    """The entries of the archive's one folder."""

    def __init__(self, entries: dict[str, Entry], file: BinaryIO, data: np.ndarray, path: Path) -> None:
        self.file, self.data, self.path = file, data, path
        roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise CheckpointError(
                "is a ZIP archive, but not one that torch.save wrote",
                path=path,
                got=f"{len(roots)} entries named <folder>/data.pkl",
                expected=1,
            )
        root = roots[0] + "/"
        self.entries = {name.removeprefix(root): entry for name, entry in entries.items() if name.startswith(root)}
        if "constants.pkl" in self.entries:
            raise CheckpointError(
                "is a TorchScript program, not a state dict",
                path=path,
                hint="If you trust it, load it with torch.jit.load and save its state_dict() with safetensors.",
            )
        packed = next((name for name, entry in self.entries.items() if not entry.stored), None)
        if packed is not None:
            raise CheckpointError(
                f"its entry {short(packed)} is compressed or encrypted, so it can't be used where it lies",
                path=path,
                expected="entries that are stored as they are, as torch.save writes them",
                hint="Pack the archive again without compression (zip -0 -r), or save it with torch again.",
            )

    def small(self, name: str, limit: int) -> bytes:
        """The bytes of an entry that is read as a whole."""
        entry = self.entries[name]
        if entry.size > limit:
            raise CheckpointError(
                f"its entry {name} is too large", path=self.path, got=entry.size, expected=f"at most {limit} bytes"
            )
        self.file.seek(entry.start)
        return self.file.read(entry.size)


class _Storages:
    """The storages of an archive; each is looked up once, so that the tensors that share it share its bytes."""

    def __init__(self, archive: _Archive) -> None:
        self.archive = archive
        self.regions: dict[str, np.ndarray] = {}

    def of_persistent_id(self, found: Any) -> _Storage:
        match found:
            # The location (cpu, cuda:0) says where the tensor was, and matters to no value.
            case ("storage", Name(kind), str(key), str(), int(count)) if kind in _STORAGES and count >= 0:
                element = ELEMENT_TYPES[_STORAGES[kind]]
            case _:
                raise RefusedError("a persistent id is not a storage")
        region = self.region(key)
        if count * element.layout.itemsize != region.size:
            raise RefusedError(
                f"the storage {short(key)} has {region.size} bytes, and not {count} times {element.name}"
            )
        return _Storage(region, element)

    def region(self, key: str) -> np.ndarray:
        if key not in self.regions:
            entry = self.archive.entries.get(f"data/{key}")
            if entry is None:
                raise RefusedError(f"the storage {short(key)} is not in the archive")
            # Aligned for elements of 8 bytes, the largest, as an untyped storage does not say which it has.
            region = self.archive.data[entry.start : entry.start + entry.size]
            self.regions[key] = aligned(region, ELEMENT_TYPES["int64"].layout)
        return self.regions[key]


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise RefusedError("an OrderedDict is made from something")
    return {}


def _tensor_v2(arguments: tuple[Any, ...]) -> _Parts:
    """``torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks[, metadata])``"""
    match arguments:
        case (_Storage() as storage, offset, shape, strides, bool(), dict(), *metadata) if not any(metadata):
            return _parts(storage, storage.element, offset, shape, strides)
    raise RefusedError("a tensor has parts of the wrong kind, or a conjugate or negative bit")


def _tensor_v3(arguments: tuple[Any, ...]) -> _Parts:
    """``_rebuild_tensor_v3`` has the dtype behind the hooks: how PyTorch writes the dtypes without a storage type."""
    match arguments:
        case (_Storage() as storage, offset, shape, strides, bool(), dict(), Name(dtype), *metadata) if (
            dtype in _DTYPES and not any(metadata)
        ):
            return _parts(storage, _DTYPES[dtype], offset, shape, strides)
    raise RefusedError("a tensor has parts of the wrong kind, or a conjugate or negative bit")


def _parts(storage: _Storage, element: ElementType, offset: Any, shape: Any, strides: Any) -> _Parts:
    tuples = isinstance(shape, tuple) and isinstance(strides, tuple)
    if not tuples or any(type(number) is not int for number in (offset, *shape, *strides)):
        raise RefusedError("a tensor's offset, shape or strides are not integers")
    return _Parts(storage, element, offset, shape, strides)


def _parameter(arguments: tuple[Any, ...]) -> _Parts:
    """``_rebuild_parameter(tensor, requires_grad, hooks)``; ``..._with_state`` adds Python attributes of no concern."""
    match arguments:
        case (_Parts() as parts, bool(), dict(), *_):
            return parts
    raise RefusedError("a parameter is made from something else than a tensor")


_MENTIONED = dict.fromkeys([*_STORAGES, *_DTYPES])
_CALLED = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}


def _check_state_dict(found: Any, path: Path) -> None:
    """Names and tensors only.  Whatever else a file holds, the weights are then not where we would look for them."""
    if not isinstance(found, dict):
        raise CheckpointError(
            "holds no state dict", path=path, got=_kind(found), expected="a dict of names and tensors", hint=SAVE_AGAIN
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, _Parts):
            raise CheckpointError(
                f"holds more than a state dict: the entry {short(name)} is not a tensor",
                path=path,
                got=_kind(value),
                expected="a dict of names and tensors",
                hint="If it is a training checkpoint, save the model's state_dict() by itself.",
            )


def _kind(value: object) -> str:
    return "a tensor" if isinstance(value, _Parts) else type(value).__name__
