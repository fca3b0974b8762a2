"""A bundle: a folder that holds a golden run.

    manifest.json         what was run, on what, by whom, and how far another run may be off
    inputs.safetensors    the arguments of the forward pass that are arrays, by Hugging Face's names
    taps.safetensors      every module's output and every tap, by name

``manifest.json`` is an object with the members

    format, format_version   "d2v-golden", 1
    model                    name as given, class, config (as config.json), weights: [{name, bytes, sha256}], the files
    dtype, backend           of the run that is recorded, and which operations the backend computed itself
    environment              versions and processor of the machine that recorded
    arguments                the arguments of the forward pass that are not arrays
    inputs                   [{name, shape, dtype, sha256}]
    taps                     the same, with module (the class), finite (whether every number is) and tolerance: the
                             largest absolute error that another implementation in this dtype may have
                             (``golden/bounds.py``); in the order of computation

``sha256`` is of the array's bytes, little-endian and row-major.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref.checkpoints import read_safetensors
from d2v_ref.config import fits, spell
from d2v_ref.errors import InputError
from d2v_ref.golden.bounds import UNIT_ROUNDOFF

FORMAT, VERSION = "d2v-golden", 1
MANIFEST, INPUTS, TAPS = "manifest.json", "inputs.safetensors", "taps.safetensors"


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read: its manifest and its arrays."""

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
    inputs, taps = (
        _read_arrays(folder / file, manifest[member], path) for member, file in (("inputs", INPUTS), ("taps", TAPS))
    )
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
        raise InputError(f"is not JSON in UTF-8: {error}", path=path, hint="Record the bundle again") from None


_ARRAY = {"name": str, "shape": list[int], "dtype": str, "sha256": str}
_MEMBERS: dict[str, dict[str, Any]] = {
    "": {"model": dict, "dtype": str, "backend": dict, "environment": dict, "arguments": dict}
    | {"inputs": list, "taps": list},
    "model": {"name": str, "class": str, "config": dict, "weights": list},
    "model.weights": {"name": str, "bytes": int, "sha256": str},
    "inputs": _ARRAY,
    "taps": {**_ARRAY, "module": str, "finite": bool, "tolerance": float},
}


def _check_members(manifest: dict[str, Any], path: Path) -> None:
    """Every member is there and of its type, names come once, something was recorded, tolerances are sizes."""
    for place, members in _MEMBERS.items():
        value: Any = manifest
        for step in place.split(".") if place else ():
            value = value[step]
        for entry in value if isinstance(value, list) else [value]:
            for name, kind in members.items():
                if not isinstance(entry, dict) or not fits(entry.get(name), kind):
                    got = repr(entry.get(name) if isinstance(entry, dict) else entry)[:60]
                    raise _damaged(path, f"{place}.{name}".lstrip("."), got, spell(kind))
        if isinstance(value, list) and len({entry["name"] for entry in value}) != len(value):
            raise _damaged(path, place, "a name that comes twice", "each name once")
    if not manifest["taps"]:
        raise _damaged(path, "taps", "none", "at least one")
    if manifest["dtype"] not in UNIT_ROUNDOFF:
        raise _damaged(path, "dtype", manifest["dtype"], " or ".join(UNIT_ROUNDOFF))
    for tap in manifest["taps"]:
        if not 0 <= tap["tolerance"] < math.inf:  # 1e999 is a number of JSON
            raise _damaged(path, "taps.tolerance", tap["tolerance"], "a finite number, 0 or more")


def _damaged(path: Path, member: str, got: object, expected: str) -> InputError:
    hint = "The bundle is damaged or was edited: record it again"
    return InputError(f"its member {member} is damaged", path=path, got=got, expected=expected, hint=hint)


def _read_arrays(path: Path, entries: list[dict[str, Any]], manifest: Path) -> dict[str, np.ndarray]:
    tensors = read_safetensors(path)
    extra = sorted(set(tensors) - {entry["name"] for entry in entries})
    if extra:
        raise InputError("holds arrays that the manifest does not name", path=path, got=", ".join(extra[:3]))
    arrays = {}
    for entry in entries:
        name = entry["name"]
        if name not in tensors:
            raise InputError(f"{name} is missing", path=path, hint="The bundle is damaged: record it again")
        arrays[name] = tensors[name].numpy()
        found = describe(name, arrays[name]) | {"finite": bool(np.isfinite(arrays[name]).all())}
        wrong = [member for member, value in found.items() if member in entry and entry[member] != value]
        if wrong:
            raise InputError(
                f"{name} is not what was recorded: another {', '.join(wrong)}",
                path=path,
                hint="The bundle is damaged or was edited: record it again",
            )
    return arrays
