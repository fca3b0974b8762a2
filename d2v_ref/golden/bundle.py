"""A bundle: a folder that holds a golden run.

    manifest.json         what was run, on what, by whom, and how far another run may be off
    inputs.safetensors    the arguments of the forward pass that are arrays, by Hugging Face's names
    taps.safetensors      every module's output and every tap, by name

``manifest.json`` is an object with the members

    format, format_version   "d2v-golden", 1
    model                    name as given, class, config (as config.json), weights: [{name, bytes, sha256}] of its files
    dtype, backend           of the run that is recorded, and which operations the backend computed itself
    environment              versions and processor of the machine that recorded
    arguments                the arguments of the forward pass that are not arrays
    inputs                   [{name, shape, dtype, sha256}]
    taps                     the same, with module (the class), finite (whether every number is) and tolerance: the largest
                             absolute error that another implementation in this dtype may have (``golden/bounds.py``);
                             in the order of computation

``sha256`` is of the array's bytes, little-endian and row-major.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref.checkpoints import read_safetensors
from d2v_ref.errors import InputError

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


def describe(arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The manifest's entry of each array."""
    return [
        {"name": name, "shape": list(array.shape), "dtype": str(array.dtype), "sha256": sha256(array)}
        for name, array in arrays.items()
    ]


def read_bundle(folder: str | Path) -> Bundle:
    """Read a bundle and check that it is whole: every array of the manifest is there with the bytes that were recorded."""
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "A bundle is a folder that `d2v-ref golden record` made"
        raise InputError(f"can't be read: {error.strerror}", path=path, hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON in UTF-8: {error}", path=path, hint="Record the bundle again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError("is not a golden's manifest", path=path, expected=f'"format": "{FORMAT}"')
    if manifest.get("format_version") != VERSION:
        hint = "Use the version of d2v-ref that recorded it, or a later one"
        raise InputError(
            "another format version", path=path, got=manifest.get("format_version"), expected=VERSION, hint=hint
        )
    inputs = _arrays(folder / INPUTS, manifest.get("inputs"), path)
    return Bundle(folder, manifest, inputs, _arrays(folder / TAPS, manifest.get("taps"), path))


def _arrays(path: Path, entries: Any, manifest: Path) -> dict[str, np.ndarray]:
    tensors = read_safetensors(path)
    arrays = {}
    try:
        for entry in entries:
            name, wanted = entry["name"], entry["sha256"]
            if name not in tensors or sha256(tensors[name].numpy()) != wanted:
                hint = "The bundle is damaged or was edited: record it again"
                raise InputError(f"{name} is not what was recorded", path=path, hint=hint)
            arrays[name] = tensors[name].numpy()
    except (TypeError, KeyError) as error:
        raise InputError(f"its list of arrays is damaged: {error}", path=manifest, hint="Record it again") from None
    if len(arrays) != len(tensors):
        extra = sorted(set(tensors) - set(arrays))
        raise InputError("holds arrays that the manifest does not name", path=path, got=", ".join(extra[:3]))
    return arrays
