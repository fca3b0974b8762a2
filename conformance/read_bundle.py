"""A golden bundle read with Python's standard library alone, as d2v_ref/golden/FORMAT.md describes it.

python read_bundle.py BUNDLE [OUTPUTS.safetensors [FORMAT]]

Checks that the bundle is whole; then, if there are outputs of a port, holds them against it in a format ("float32" if
none is named).  Prints what fails and how many do; exit code 1 if something fails.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import sys
from pathlib import Path
from typing import Any

# safetensors' dtype -> the manifest's, and the struct module's letter
DTYPES = {
    **{"F64": ("float64", "d"), "F32": ("float32", "f"), "F16": ("float16", "e"), "BOOL": ("bool", "?")},
    **{"I64": ("int64", "q"), "I32": ("int32", "i"), "I16": ("int16", "h"), "I8": ("int8", "b")},
    **{"U64": ("uint64", "Q"), "U32": ("uint32", "I"), "U16": ("uint16", "H"), "U8": ("uint8", "B")},
}


def read_safetensors(path: Path) -> dict[str, dict[str, Any]]:
    """name -> shape, dtype (the manifest's name), data (bytes), values (floats, flat)."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype, letter = DTYPES[entry["dtype"]]
        part = data[8 + length + begin : 8 + length + end]
        values = [float(value) for (value,) in struct.iter_unpack(f"<{letter}", part)]
        arrays[name] = {"shape": entry["shape"], "dtype": dtype, "data": part, "values": values}
    return arrays


def positions(size: int) -> list[int]:
    """Where the samples of an array of so many elements are, flat and row-major."""
    if size <= 32:
        return list(range(size))
    return [*range(8), *(8 + k * (size - 9) // 23 for k in range(24))]


def moments(values: list[float]) -> dict[str, Any]:
    finite = [value for value in values if math.isfinite(value)]
    counts = {"nan": sum(map(math.isnan, values)), "inf": values.count(math.inf), "-inf": values.count(-math.inf)}
    if not finite:
        return {**counts, "mean": None, "rms": None, "min": None, "max": None}
    largest = max(map(abs, finite)) or 1.0  # so that no square overflows or vanishes
    mean = math.fsum(value / largest for value in finite) / len(finite) * largest
    rms = math.sqrt(math.fsum((value / largest) ** 2 for value in finite) / len(finite)) * largest
    return {**counts, "mean": mean, "rms": rms, "min": min(finite), "max": max(finite)}


def close(got: float, want: float, tolerance: float) -> bool:
    if math.isfinite(got) and math.isfinite(want):
        return abs(got - want) <= tolerance
    return got == want or (math.isnan(got) and math.isnan(want))


def differing(got: dict[str, Any], want: dict[str, Any], tolerance: float) -> list[str]:
    """The moments that are further apart than elements within the tolerance make them."""
    counts = [name for name in ("nan", "inf", "-inf") if got[name] != want.get(name, 0)]
    if counts or got["mean"] is None:
        return counts
    rounding = 2.0**-47 * (got["rms"] + want["rms"]) + 2.0**-1022
    allowed = {"mean": tolerance + rounding, "rms": tolerance + rounding, "min": tolerance, "max": tolerance}
    return [name for name in allowed if not abs(got[name] - want[name]) <= allowed[name]]


def whole(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """What of a bundle is not what its manifest says."""
    wrong = [
        file["name"]
        for file in manifest["files"]
        if hashlib.sha256((folder / file["name"]).read_bytes()).hexdigest() != file["sha256"]
    ]
    for member, samples in (("inputs", False), ("taps", manifest["form"] == "fingerprint")):
        arrays = read_safetensors(folder / f"{member}.safetensors")
        if arrays.keys() != {entry["name"] for entry in manifest[member]}:
            wrong.append(f"the names in {member}.safetensors")
            continue
        for entry in manifest[member]:
            array = arrays[entry["name"]]
            same = array["dtype"] == entry["dtype"]
            if samples:
                same &= array["shape"] == [min(math.prod(entry["shape"]), 32)]
            else:
                same &= array["shape"] == entry["shape"]
                same &= hashlib.sha256(array["data"]).hexdigest() == entry["sha256"]
                same &= member == "inputs" or not differing(moments(array["values"]), entry["moments"], 0.0)
            wrong += [] if same else [entry["name"]]
    return wrong


def held(folder: Path, manifest: dict[str, Any], outputs: Path, form: str) -> list[str]:
    """The outputs of a port that do not pass, with what is wrong, in the order of computation."""
    recorded, computed, failed = read_safetensors(folder / "taps.safetensors"), read_safetensors(outputs), []
    for tap in manifest["taps"]:
        name, got = tap["name"], computed.get(tap["name"])
        tolerance = tap["tolerances"].get(form, tap["tolerances"]["float32"])
        if got is None:
            failed += [f"{name}: missing"] if tap["kind"] != "input" else []
        elif got["shape"] != tap["shape"]:
            failed.append(f"{name}: shape")
        else:
            values, want = got["values"], recorded[name]["values"]
            samples = [values[i] for i in positions(len(values))] if manifest["form"] == "fingerprint" else values
            far = not all(close(a, b, tolerance) for a, b in zip(samples, want, strict=True))
            wrong = [*(["sample"] if far else []), *differing(moments(values), tap["moments"], tolerance)]
            failed += [f"{name}: {', '.join(wrong)}"] if wrong else []
    return failed


def main(folder: str, outputs: str | None = None, form: str = "float32") -> int:
    manifest = json.loads(Path(folder, "manifest.json").read_text(encoding="utf-8"))
    wrong = [f"{name}: not what was recorded" for name in whole(Path(folder), manifest)]
    if not wrong and outputs is not None:
        wrong = held(Path(folder), manifest, Path(outputs), form)
    for line in wrong:
        print(line)
    count = len(manifest["taps"])
    print(f"{len(wrong)} of {count} arrays failed" if outputs else f"{count} arrays of {manifest['dtype']}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
