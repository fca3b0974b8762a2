"""A port's names for what a bundle recorded: one to one, by a file, or by shape and value."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from d2v_ref.errors import InputError
from d2v_ref.golden.bundle import Bundle
from d2v_ref.golden.forms import FINGERPRINT, FULL, kept

Names = Mapping[str, str | None]

CLOSE = 0.1  # the largest root mean square of a difference, of the recorded samples', that makes two arrays one


def read_names(path: str | Path, golden: Bundle) -> dict[str, str | None]:
    """A JSON object: the name in the bundle -> the port's name, or null if the port can't show it."""
    path = Path(path)
    expected = '{"encoder.layer.0": "my name", "encoder.layer.1": null}'
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror}", path=path, expected=expected) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON in UTF-8: {error}", path=path, expected=expected) from None
    if not isinstance(names, dict) or not all(value is None or isinstance(value, str) for value in names.values()):
        raise InputError("is no table of names", path=path, expected=expected)
    unknown = [name for name in names if name not in golden.taps]
    if unknown:
        raise InputError("names an array that the bundle does not hold", path=path, got=unknown[0])
    return names


def suggest(golden: Bundle, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Names for what has none: the array of the same shape and nearly the same values; then, of those that are left,
    one of the same shape, if there are as many of it on either side: the first for the first.

    Returns:
        The name in the bundle -> the port's.
    """
    shapes = {entry["name"]: tuple(entry["shape"]) for entry in golden.manifest["taps"]}
    ours, theirs = defaultdict(list), defaultdict(list)  # shape -> names
    for name, shape in shapes.items():
        if name not in arrays:
            ours[shape].append(name)
    for name, array in arrays.items():
        if name not in shapes:
            theirs[array.shape].append(name)
    found: dict[str, str] = {}
    for shape, names in ours.items():
        found.update(_pairs(golden, names, {name: arrays[name] for name in theirs[shape]}))
    return {name: found[name] for name in shapes if name in found}


def _pairs(golden: Bundle, names: list[str], arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Of one shape: the nearest first, each array once."""
    form = golden.manifest["form"]
    wants = {name: kept(golden.taps[name], FINGERPRINT) if form == FULL else golden.taps[name] for name in names}
    gots = {name: kept(array, FINGERPRINT) for name, array in arrays.items()}
    distances = [(_distance(got, want), name, other) for name, want in wants.items() for other, got in gots.items()]
    found: dict[str, str] = {}
    for distance, name, other in sorted(distances, key=lambda item: item[0]):
        if distance <= CLOSE and name not in found and other not in found.values():
            found[name] = other
    left, others = [n for n in names if n not in found], [n for n in arrays if n not in found.values()]
    if len(left) == len(others):
        found.update(zip(left, others, strict=True))
    return found


def _distance(got: np.ndarray, want: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        difference = np.sqrt(np.mean(np.square(np.subtract(got, want, dtype=np.float64))))
        size = np.sqrt(np.mean(np.square(want, dtype=np.float64)))
        ratio = float(difference / size) if size else float(difference)
    return ratio if np.isfinite(ratio) else np.inf
