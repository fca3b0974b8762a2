"""The directory of a ZIP archive: where the bytes of each entry lie, so that stored ones can be used in place.

This is the outer form of a ``torch.save`` file.  Only what PyTorch's writer makes is taken, and what two readers could
read differently is refused.  The format is PKWARE's APPNOTE 6.3.10; the sections are named below.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from d2v_ref.checkpoints.mapped import DOWNLOAD_AGAIN, short
from d2v_ref.errors import CheckpointError

MAX_ENTRIES = 100_000
MAX_DIRECTORY = 64 << 20

_LOCAL = struct.Struct("<4s5H3I2H")  # 4.3.7 local file header, b"PK\3\4"
_CENTRAL = struct.Struct("<4s6H3I5H2I")  # 4.3.12 central directory header, b"PK\1\2"
_END64 = struct.Struct("<4sQ2H2I4Q")  # 4.3.14 zip64 end of central directory record, b"PK\6\6"
_LOCATOR64 = struct.Struct("<4sIQI")  # 4.3.15 zip64 end of central directory locator, b"PK\6\7"
_END = struct.Struct("<4s4H2IH")  # 4.3.16 end of central directory record, b"PK\5\6"

_ENCRYPTED, _SIZES_FOLLOW = 1 << 0, 1 << 3  # 4.4.4 general purpose flags
_STORED = 0
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "see the zip64 record instead"


class Entry(NamedTuple):
    start: int
    size: int
    stored: bool  # as it is, neither compressed nor encrypted


class _Header(NamedTuple):
    """What the directory says of an entry."""

    name: str
    flags: int
    method: int
    size: int
    offset: int


def zip_entries(file: BinaryIO, path: Path) -> dict[str, Entry]:
    """Where the bytes of each entry lie in the file."""
    count, start, end = _directory(file, path)
    headers = _headers(_read(file, start, end - start, path), count, path)
    entries: dict[str, Entry] = {}
    position = 0
    for header in sorted(headers, key=lambda header: header.offset):
        if header.offset < position:
            _damaged(path, f"the entry {short(header.name)} overlaps the one before it")
        entry = _locate(file, header, path)
        position = entry.start + entry.size
        if position > start:
            _damaged(path, f"the entry {short(header.name)} reaches beyond the archive's data")
        if header.name in entries:
            _damaged(path, f"the entry {short(header.name)} comes twice")
        entries[header.name] = entry
    return entries


def _directory(file: BinaryIO, path: Path) -> tuple[int, int, int]:
    """How many entries the directory has, where it starts and where it ends."""
    # PyTorch writes no archive comment, so the end record is the last thing in the file and has not to be searched for.
    end = file.seek(0, 2) - _END.size
    if end < 0:
        _damaged(path, "the archive is cut short")
    signature, *fields, comment = _END.unpack(_read(file, end, _END.size, path))
    if signature != b"PK\5\6" or comment:
        _damaged(path, "the archive's directory is not at the end, so the file is cut short or something follows it")
    locator = _read(file, end - _LOCATOR64.size, _LOCATOR64.size, path) if end >= _LOCATOR64.size else b""
    if locator.startswith(b"PK\6\7"):
        end, fields = _directory64(file, end - _LOCATOR64.size, locator, fields, path)
    disk, first_disk, here, count, length, start = fields
    too_large = count > MAX_ENTRIES or length > MAX_DIRECTORY
    if disk or first_disk or here != count or too_large or start + length != end:
        _damaged(path, f"the archive's end record is wrong: {count} entries in {length} bytes at {start}, up to {end}")
    return count, start, end


def _directory64(
    file: BinaryIO, locator_at: int, locator: bytes, short_fields: list[int], path: Path
) -> tuple[int, list[int]]:
    """4.3.14: the same fields with more bits, right before their locator.  A short field is the same, or full."""
    _, _, end, _ = _LOCATOR64.unpack(locator)
    if end + _END64.size != locator_at:
        _damaged(path, "the archive's zip64 record is not where it should be")
    signature, _, _, _, *fields = _END64.unpack(_read(file, end, _END64.size, path))
    full = (_FULL16, _FULL16, _FULL16, _FULL16, _FULL32, _FULL32)
    agree = all(a in (b, most) for a, b, most in zip(short_fields, fields, full, strict=True))
    if signature != b"PK\6\6" or not agree:
        _damaged(path, "the archive's two end records disagree")
    return end, fields


def _headers(directory: bytes, count: int, path: Path) -> list[_Header]:
    headers = []
    position = 0
    for _ in range(count):
        fixed = directory[position : position + _CENTRAL.size]
        if len(fixed) < _CENTRAL.size:
            _damaged(path, "the archive's directory is cut short")
        fields = _CENTRAL.unpack(fixed)
        signature, _, _, flags, method, _, _, _, packed, size, *lengths, disk, _, _, offset = fields
        name_length, extra_length, comment_length = lengths
        position += _CENTRAL.size
        name = _text(directory[position : position + name_length], path)
        extra = directory[position + name_length : position + name_length + extra_length]
        position += name_length + extra_length + comment_length
        if signature != b"PK\1\2" or disk or position > len(directory):
            _damaged(path, "the archive's directory is damaged")
        packed, size, offset = _widen(extra, packed, size, offset, path)
        if method == _STORED and packed != size:
            _damaged(path, f"the stored entry {short(name)} has two sizes, {packed} and {size}")
        headers.append(_Header(name, flags, method, packed, offset))
    if position != len(directory):
        _damaged(path, "the archive's directory holds more than its entries")
    return headers


def _widen(extra: bytes, packed: int, size: int, offset: int, path: Path) -> tuple[int, int, int]:
    """4.5.3: each number that does not fit in 32 bits comes from the zip64 extra field, in this order."""
    numbers = iter(_zip64_numbers(extra))
    try:
        size = next(numbers) if size == _FULL32 else size
        packed = next(numbers) if packed == _FULL32 else packed
        offset = next(numbers) if offset == _FULL32 else offset
    except StopIteration:
        _damaged(path, "an entry's zip64 field is missing")
    return packed, size, offset


def _zip64_numbers(extra: bytes) -> list[int]:
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        body = extra[position + 4 : position + 4 + length]
        if kind == 1:
            return [int.from_bytes(body[at : at + 8], "little") for at in range(0, len(body) - 7, 8)]
        position += 4 + length
    return []


def _locate(file: BinaryIO, header: _Header, path: Path) -> Entry:
    """Read the entry's own header, which has to say the same as the directory, and go past it."""
    fields = _LOCAL.unpack(_read(file, header.offset, _LOCAL.size, path))
    signature, _, flags, method, _, _, _, packed, size, name_length, extra_length = fields
    name = _text(_read(file, header.offset + _LOCAL.size, name_length, path), path)
    same = (flags, method, name) == (header.flags, header.method, header.name)
    # The sizes are 0 if they follow the data, as PyTorch writes them; large ones are in this header's zip64 field.
    allowed = {header.size, _FULL32} | ({0} if flags & _SIZES_FOLLOW else set())
    stored = method == _STORED and not flags & _ENCRYPTED
    if signature != b"PK\3\4" or not same or packed not in allowed or (stored and size not in allowed):
        _damaged(path, f"the entry {short(header.name)} is described in two ways that disagree")
    start = header.offset + _LOCAL.size + name_length + extra_length
    return Entry(start, header.size, stored)


def _read(file: BinaryIO, offset: int, length: int, path: Path) -> bytes:
    # compared first, because seek and read take 63-bit integers only and read allocates what it is asked for
    if offset + length > file.seek(0, 2):
        _damaged(path, "the archive points beyond its own end")
    file.seek(offset)
    return file.read(length)


def _text(name: bytes, path: Path) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        _damaged(path, f"an entry's name is not UTF-8: {short(name)}")


def _damaged(path: Path, message: str) -> NoReturn:
    raise CheckpointError(message, path=path, hint=DOWNLOAD_AGAIN)
