"""A bundle: a folder that holds a golden run, whole or as a fingerprint, which is small enough for a repository.

    manifest.json         what was run, on what, by whom, and how far another run may be off
    inputs.safetensors    the arguments of the forward pass that are arrays, by Hugging Face's names
    taps.safetensors      every module's output and every tap, by name: all of it, or samples

``golden/FORMAT.md`` is the format, for a reader in any language: the manifest's members, the names of arrays, which
samples a fingerprint holds, and what an array has to be to pass.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref.checkpoints import read_safetensors, replacing
from d2v_ref.config import fits, spell
from d2v_ref.errors import CheckpointError, InputError
from d2v_ref.golden.bounds import FORMATS
from d2v_ref.golden.forms import FORMS, FULL, SIZES, counts, differing, kept_shape, moments
from d2v_ref.golden.report import INPUT, OUTPUT, VALUE

FORMAT, VERSION = "d2v-golden", 1
MANIFEST, INPUTS, TAPS = "manifest.json", "inputs.safetensors", "taps.safetensors"
LARGEST = sys.float_info.max
KINDS = (OUTPUT, VALUE, INPUT)
AGAIN = "The bundle is damaged or was edited: record it again"


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read: its manifest and its arrays; of a fingerprint ``taps`` holds samples."""

    folder: Path
    manifest: dict[str, Any]
    inputs: dict[str, np.ndarray]
    taps: dict[str, np.ndarray]


def sha256(array: np.ndarray) -> str:
    """Of an array's bytes, little-endian and row-major."""
    return hashlib.sha256(np.asarray(array, array.dtype.newbyteorder("<"), order="C").tobytes()).hexdigest()


def describe(name: str, array: np.ndarray) -> dict[str, Any]:
    """The manifest's entry of an array."""
    return {"name": name, "shape": list(array.shape), "dtype": array.dtype.name, "sha256": sha256(array)}


def describe_file(path: Path) -> dict[str, Any]:
    """The manifest's entry of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with a line for every member, and for every entry of a list."""

    def spelt(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    def lines(value: Any) -> str:
        return "[\n" + ",\n".join(map(spelt, value)) + "\n]" if isinstance(value, list) else spelt(value)

    try:
        text = "{\n" + ",\n".join(f"{spelt(name)}: {lines(value)}" for name, value in manifest.items()) + "\n}\n"
        data = text.encode("utf-8")
    except (ValueError, RecursionError) as error:  # of a configuration with NaN, for which JSON has no number
        raise CheckpointError("can't be written as JSON", path=path, got=str(error)) from None
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_bundle(folder: str | Path) -> Bundle:
    """Read a bundle and check that it is whole: the manifest has every member, and every array is what it says."""
    folder = Path(folder)
    path = folder / MANIFEST
    manifest = _read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError("is not a golden's manifest", path=path, expected=f'"format": "{FORMAT}"')
    if manifest.get("format_version") != VERSION:
        hint = "Use the version of d2v-ref that recorded it, or a later one"
        got = manifest.get("format_version")
        raise InputError("another format version", path=path, got=got, expected=VERSION, hint=hint)
    _check_members(manifest, path)
    inputs = _read_arrays(folder / INPUTS, manifest["inputs"], FULL)
    taps = _read_arrays(folder / TAPS, manifest["taps"], manifest["form"])
    _check_files(folder, manifest["files"])
    return Bundle(folder, manifest, inputs, taps)


def _read_json(path: Path) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no number of JSON")  # Python's reader would take NaN and Infinity

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except OSError as error:
        hint = "A bundle is a folder that `d2v-ref golden record` made"
        raise InputError(f"can't be read: {error.strerror}", path=path, hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON in UTF-8: {error}", path=path, hint=AGAIN) from None


_ARRAY = {"name": str, "shape": list[int], "dtype": str, "sha256": str}
_FILE = {"name": str, "bytes": int, "sha256": str}
_MEMBERS: dict[str, dict[str, Any]] = {
    "": {"form": str, "model": dict, "dtype": str, "backend": dict, "environment": dict, "arguments": dict}
    | {"recipe": dict, "tolerance_rule": str, "files": list, "inputs": list, "taps": list},
    "model": {"name": str, "class": str, "config": dict, "weights": list},
    "model.weights": _FILE,
    "backend": {"name": str, "numerics": str},
    "files": _FILE,
    "inputs": _ARRAY,
    "taps": {**_ARRAY, "module": str, "kind": str, "gap": float, "tolerances": dict, "moments": dict},
    "taps.moments": dict.fromkeys(SIZES, float | None),
}


def _check_members(manifest: dict[str, Any], path: Path) -> None:
    """Every member is there and of its type, names come once, something was recorded, numbers are possible."""
    for place, members in _MEMBERS.items():
        entries: list[Any] = [manifest]
        for step in place.split(".") if place else ():
            entries = [child for entry in entries for child in _items(entry[step])]
        for entry in entries:
            for name, kind in members.items():
                if not isinstance(entry, dict) or not fits(entry.get(name, ...), kind):
                    got = repr(entry.get(name) if isinstance(entry, dict) else entry)[:60]
                    raise _damaged(path, f"{place}.{name}".lstrip("."), got, spell(kind))
        if "name" in members and len({entry["name"] for entry in entries}) != len(entries):
            raise _damaged(path, place, "a name that comes twice", "each name once")
    if not manifest["taps"]:
        raise _damaged(path, "taps", "none", "at least one")
    for member, choices in (("form", FORMS), ("dtype", tuple(FORMATS))):
        if manifest[member] not in choices:
            raise _damaged(path, member, manifest[member], " or ".join(choices))
    names = {entry["name"] for entry in (*manifest["inputs"], *manifest["taps"])}
    for tap in manifest["taps"]:
        if tap["kind"] not in KINDS:
            raise _damaged(path, "taps.kind", tap["kind"], " or ".join(KINDS))
        given = tap.get("inputs", {})
        if not fits(given, dict) or not all(fits(name, str) and name in names for name in given.values()):
            raise _damaged(path, "taps.inputs", given, "names of arrays by parameters")
        _check_numbers(tap, path)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_numbers(tap: dict[str, Any], path: Path) -> None:
    """A tap's tolerances, shape and moments are possible; 1e999 is a number of JSON too."""
    if not fits(tap.get("alone", {}), dict):
        raise _damaged(path, "taps.alone", tap["alone"], "tolerances by format")
    for size in (*tap["tolerances"].values(), *tap.get("alone", {}).values(), tap["gap"]):
        if not fits(size, float) or not 0 <= size <= LARGEST:
            raise _damaged(path, "taps.tolerances", size, "finite numbers, 0 or more")
    for table in (tap["tolerances"], tap.get("alone", tap["tolerances"])):
        if "float32" in table and set(table) <= set(FORMATS):
            continue
        raise _damaged(path, "taps.tolerances", list(table), f"float32 and others of {', '.join(FORMATS)}")
    if min(tap["shape"], default=0) < 0:
        raise _damaged(path, "taps.shape", tap["shape"], "lengths of 0 or more")
    strange, sizes = counts(tap["moments"]), [tap["moments"][name] for name in SIZES]
    if not all(fits(count, int) and count >= 0 for count in strange) or sum(strange) > math.prod(tap["shape"]):
        raise _damaged(path, "taps.moments", strange, "how many elements of the array are nan, inf and -inf")
    finite = sum(strange) < math.prod(tap["shape"])
    if not all(size is not None and abs(size) <= LARGEST if finite else size is None for size in sizes):
        raise _damaged(path, "taps.moments", sizes, "finite numbers, or null if no element is finite")


def _damaged(path: Path, member: str, got: object, expected: str) -> InputError:
    return InputError(f"its member {member} is damaged", path=path, got=got, expected=expected, hint=AGAIN)


def _read_arrays(path: Path, entries: list[dict[str, Any]], form: str) -> dict[str, np.ndarray]:
    tensors = read_safetensors(path)
    extra = sorted(set(tensors) - {entry["name"] for entry in entries})
    if extra:
        raise InputError("holds arrays that the manifest does not name", path=path, got=", ".join(extra[:3]))
    arrays = {}
    for entry in entries:
        name = entry["name"]
        if name not in tensors:
            raise InputError(f"{name} is missing", path=path, hint=AGAIN)
        arrays[name] = tensors[name].numpy()
        wrong = _differences(entry, arrays[name], form)
        if wrong:
            message = f"{name} is not what was recorded: another {', '.join(wrong)}"
            raise InputError(message, path=path, hint=AGAIN)
    return arrays


def _differences(entry: dict[str, Any], stored: np.ndarray, form: str) -> list[str]:
    """What the manifest says of an array and is not so, as far as what is stored of it tells."""
    wrong = [] if stored.shape == kept_shape(entry["shape"], form) else ["shape"]
    found = describe(entry["name"], stored)
    for member in ("dtype", "sha256") if form == FULL else ("dtype",):
        wrong += [member] if entry[member] != found[member] else []
    if form == FULL and "moments" in entry and "shape" not in wrong:
        wrong += differing(moments(stored), entry["moments"], 0.0)
    return wrong


def _check_files(folder: Path, entries: list[dict[str, Any]]) -> None:
    """The files are those that were written: samples have no other hash."""
    for name in (INPUTS, TAPS):
        if describe_file(folder / name) not in entries:
            raise InputError("is not the file that was recorded", path=folder / name, hint=AGAIN)
