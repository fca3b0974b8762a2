"""Recording a bundle: one run of a model, and how far another run of it may be off."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import d2v_ref
from d2v_ref import checks
from d2v_ref.checkpoints import new_folder, weight_files, write_safetensors
from d2v_ref.golden.arguments import forward_arguments
from d2v_ref.golden.bounds import PROBES, tolerances
from d2v_ref.golden.bundle import (
    FORMAT,
    INPUTS,
    MANIFEST,
    TAPS,
    VERSION,
    Bundle,
    describe,
    describe_file,
    read_bundle,
    write_manifest,
)
from d2v_ref.golden.forms import FINGERPRINT, FULL, kept, moments
from d2v_ref.ops import Ops
from d2v_ref.pretrained import PreTrainedModel

Progress = Callable[[int], None]

RUNS = 2 + PROBES  # the recorded one, the exact one, and those with random errors


def record(
    model: PreTrainedModel,
    inputs: dict[str, Any],
    bundle: str | Path,
    *,
    name: str | Path,
    folder: Path,
    arguments: dict[str, Any] | None = None,
    fingerprint: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Run a model and write a bundle of what every module computes.

    Args:
        model: what to run.
        inputs: arrays, by the names of the forward pass's arguments (``golden/arguments.py``).
        bundle: the folder to write; it must not exist.  It appears whole or not at all.
        name: what the model is called: a hub id or a path.
        folder: where its weights lie, for their hashes.
        arguments: further arguments of the forward pass, such as use_cache.
        fingerprint: whether to keep samples and moments of every array in the place of all of it
            (``golden/bundle.py``): some kilobytes, which a repository can hold.
        progress: called with 1 after each of ``RUNS`` runs: one is recorded, the others are for the tolerances.
    """
    flags, form = arguments or {}, FINGERPRINT if fingerprint else FULL
    arrays = {key: checks.anything(key, value) for key, value in inputs.items()}
    given = forward_arguments(model, arrays, flags)

    def taps_of(runner: PreTrainedModel) -> dict[str, np.ndarray]:
        taps = runner.record(**given)[1]
        if progress is not None:
            progress(1)
        return taps

    def run(ops: Ops) -> dict[str, np.ndarray]:
        return taps_of(model.with_ops(ops))

    with new_folder(bundle) as temporary, np.errstate(all="ignore"):  # the manifest says what isn't finite
        taps = taps_of(model)
        allowed = tolerances(run, run(Ops("float64")), str(model.ops.dtype))
        write_safetensors(temporary / INPUTS, arrays, None)
        write_safetensors(temporary / TAPS, {key: kept(array, form) for key, array in taps.items()}, None)
        manifest = {
            "format": FORMAT,
            "format_version": VERSION,
            "form": form,
            "model": {
                "name": str(name),
                "class": type(model).__name__,
                "config": model.config.to_dict(),
                "weights": weight_hashes(folder),
            },
            "dtype": str(model.ops.dtype),
            "backend": {"name": model.ops.name, "overrides": model.ops.overrides()},
            "environment": environment(),
            "arguments": flags,
            "files": [describe_file(temporary / file) for file in (INPUTS, TAPS)],
            "inputs": [describe(key, array) for key, array in arrays.items()],
            "taps": _describe_taps(model, taps, allowed),
        }
        write_manifest(temporary / MANIFEST, manifest)
    return read_bundle(bundle)


def _describe_taps(
    model: PreTrainedModel, taps: dict[str, np.ndarray], allowed: dict[str, float]
) -> list[dict[str, Any]]:
    classes = {path: type(module).__name__ for path, module in model.named_modules()}
    return [
        {
            **describe(name, array),
            "module": classes[name.partition("#")[0]],
            "tolerance": float(f"{allowed[name]:.2e}"),  # of an estimate three digits say all
            "moments": moments(array),
        }
        for name, array in taps.items()
    ]


def weight_hashes(folder: Path) -> list[dict[str, Any]]:
    """Name, length and SHA-256 of every weight file of a checkpoint."""
    return [describe_file(path) for path in weight_files(folder)]


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
