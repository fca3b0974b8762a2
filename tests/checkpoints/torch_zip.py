"""torch.save files made by hand: a pickle from its instructions, and a ZIP archive around it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

FALSE = b"\x89"


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + len(data).to_bytes(4, "little") + data


def integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + len(data).to_bytes(1, "little") + data


def group(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def integers(values: Sequence[int]) -> bytes:
    return group(*map(integer, values))


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


ORDERED_DICT = name("collections", "OrderedDict") + b")R"


def storage(kind: str, key: str, count: int, module: str = "torch") -> bytes:
    return group(text("storage"), name(module, kind), text(key), text("cpu"), integer(count)) + b"Q"


def tensor(of: bytes, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> bytes:
    parts = group(of, integer(offset), integers(shape), integers(strides), FALSE, ORDERED_DICT)
    return name("torch._utils", "_rebuild_tensor_v2") + parts + b"R"


def state_dict(entries: Mapping[str, bytes]) -> bytes:
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u."


def archive(
    path: Path,
    pickle: bytes,
    storages: Mapping[str, bytes],
    *,
    others: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    entries = {"data.pkl": pickle, **(others or {}), **{f"data/{key}": data for key, data in storages.items()}}
    with zipfile.ZipFile(path, "w", compression) as file:
        for entry, data in entries.items():
            file.writestr(f"archive/{entry}", data)
    return path
