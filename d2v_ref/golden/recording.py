"""Recording a bundle: one run of a model, and how far another run of it may be off."""

from __future__ import annotations

import hashlib
import platform
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np

import d2v_ref
from d2v_ref.checkpoints import weight_files, write_json, write_safetensors
from d2v_ref.errors import InputError
from d2v_ref.golden.bounds import tolerances
from d2v_ref.golden.bundle import FORMAT, INPUTS, MANIFEST, TAPS, VERSION, Bundle, describe, read_bundle
from d2v_ref.ops import Ops
from d2v_ref.pretrained import PreTrainedModel


def record(
    model: PreTrainedModel,
    inputs: dict[str, Any],
    bundle: str | Path,
    *,
    name: str | Path,
    folder: Path,
    arguments: dict[str, Any] | None = None,
) -> Bundle:
    """Run a model once and write a bundle of what every module computes.

    Args:
        model: what to run.
        inputs: arrays, by the names of the forward pass's arguments.
        bundle: the folder to write; it must not exist.  It appears whole or not at all.
        name: what the model is called: a hub id or a path.
        folder: where its weights lie, for their hashes.
        arguments: further arguments of the forward pass, such as output_attentions.
    """
    target = Path(bundle)
    if target.exists():
        raise InputError("exists already", path=target, hint="Choose another folder, or remove this one")
    arguments = arguments or {}
    arrays = {key: np.asarray(value) for key, value in inputs.items()}
    _, taps = model.record(**arrays, **arguments)
    manifest = {
        "format": FORMAT,
        "format_version": VERSION,
        "model": {
            "name": str(name),
            "class": type(model).__name__,
            "config": model.config.to_dict(),
            "weights": fingerprints(folder),
        },
        "dtype": str(model.ops.dtype),
        "backend": {"name": model.ops.name, "overrides": model.ops.overrides()},
        "environment": environment(),
        "arguments": arguments,
        "inputs": describe(arrays),
        "taps": _describe_taps(model, arrays, arguments, taps),
    }
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        write_safetensors(temporary / INPUTS, arrays, None)
        write_safetensors(temporary / TAPS, taps, None)
        write_json(temporary / MANIFEST, manifest)
        temporary.rename(target)
    except OSError as error:
        raise InputError(f"can't be written: {error.strerror}", path=target) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_bundle(target)


def _describe_taps(
    model: PreTrainedModel, inputs: dict[str, Any], arguments: dict[str, Any], taps: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    def run(ops: Ops) -> dict[str, np.ndarray]:
        return model.with_ops(ops).record(**inputs, **arguments)[1]

    allowed = tolerances(run, run(Ops("float64")), str(model.ops.dtype))
    classes = {path: type(module).__name__ for path, module in model.named_modules()}
    return [
        {
            **entry,
            "module": classes[entry["name"].partition("#")[0]],
            "finite": bool(np.isfinite(taps[entry["name"]]).all()),
            "tolerance": allowed[entry["name"]],
        }
        for entry in describe(taps)
    ]


def fingerprints(folder: Path) -> list[dict[str, Any]]:
    """Name, length and SHA-256 of every weight file of a checkpoint."""
    found = []
    for path in weight_files(folder):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found.append({"name": path.name, "bytes": path.stat().st_size, "sha256": digest})
    return found


def environment() -> dict[str, str]:
    """What may change a number's last bits: versions, the BLAS that NumPy calls, the processor."""
    import scipy

    built: Any = np.show_config(mode="dicts")
    blas = built.get("Build Dependencies", {}).get("blas", {})
    return {
        "d2v_ref": d2v_ref.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "blas": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
        "system": platform.system(),
        "machine": platform.machine(),
    }
