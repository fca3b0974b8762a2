"""Recording a bundle: one run of a model, and how far another run of it may be off."""

from __future__ import annotations

import platform
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import d2v_ref
from d2v_ref import checks
from d2v_ref.checkpoints import new_folder, weight_files, write_safetensors
from d2v_ref.golden.arguments import forward_arguments
from d2v_ref.golden.bounds import FORMATS, RULE, Tell, gap, tolerances
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
from d2v_ref.golden.exact_run import ExactRun
from d2v_ref.golden.forms import FINGERPRINT, FULL, kept, moments
from d2v_ref.golden.report import INPUT, OUTPUT, VALUE
from d2v_ref.golden.spool import Spool
from d2v_ref.nn import Module, recorder
from d2v_ref.ops import Ops
from d2v_ref.pretrained import PreTrainedModel

Progress = Callable[[int], None]


def ports(dtype: str) -> tuple[str, ...]:
    """The formats that a run in ``dtype`` can be a yardstick for: its own and the smaller ones."""
    return tuple(FORMATS)[tuple(FORMATS).index(dtype) :]


def runs(dtype: str) -> int:
    """How often ``record`` runs the model: exactly, as it is, and with random errors for each format."""
    return 2 + sum(FORMATS[port].probes for port in ports(dtype))


def record(
    model: PreTrainedModel,
    inputs: dict[str, Any],
    bundle: str | Path,
    *,
    name: str | Path,
    folder: Path,
    arguments: dict[str, Any] | None = None,
    fingerprint: bool = False,
    taps: Sequence[str] = (),
    recipe: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Run a model and write a bundle of what every module is given and computes.

    Arrays go to the disk as they are produced.

    Args:
        model: what to run.
        inputs: arrays, by the names of the forward pass's arguments (``golden/arguments.py``).
        bundle: the folder to write; it must not exist.  It appears whole or not at all.
        name: what the model is called: a hub id or a path.
        folder: where its weights lie, for their hashes.
        arguments: further arguments of the forward pass, such as use_cache.
        fingerprint: whether to keep samples and moments of every array in the place of all of it
            (``golden/FORMAT.md``): some kilobytes, which a repository can hold.
        taps: patterns of the names to record, as the shell's: ``encoder.layer.*``, all if there is none.  A pattern
            stands for a whole name or for the end of one after a dot; with ! before it, for what is left out.
        recipe: how the inputs came about, for the manifest.
        progress: called with 1 after each of ``runs`` runs: one is recorded, the others are for the tolerances.

    Raises:
        InputError: the folder exists, no name matches a pattern, the model does not take the inputs.
    """
    flags, form = arguments or {}, FINGERPRINT if fingerprint else FULL
    arrays = {key: checks.anything(key, value) for key, value in inputs.items()}
    given = forward_arguments(model, arrays, flags)

    def run(ops: Ops, tell: Tell) -> None:
        tell_arrays(model.with_ops(ops), given, tell, exact)
        advance(1)

    def see(tap: str, value: np.ndarray) -> None:
        entries[tap] = {**describe(tap, value), "gap": gap(value, exact[tap]), "moments": moments(value)}
        stored.add(tap, kept(value, form))

    advance = progress or (lambda _: None)
    dtype, entries = str(model.ops.dtype), dict[str, dict[str, Any]]()
    with (
        new_folder(bundle) as temporary,
        np.errstate(all="ignore"),  # the manifest says what isn't finite
        Spool(temporary / "exact") as exact,
        Spool(temporary / "stored") as stored,
    ):
        yardstick = ExactRun(model, ports(dtype), arrays, taps, exact)
        yardstick.follow(given)
        advance(1)
        tell_arrays(model, given, see, exact)
        advance(1)
        gaps = {tap: entry["gap"] for tap, entry in entries.items()}
        allowed = {port: tolerances(run, exact, FORMATS[port], gaps) for port in ports(dtype)}
        stored.save(temporary / TAPS)
        write_safetensors(temporary / INPUTS, arrays, None)
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
            "dtype": dtype,
            "backend": {
                "name": model.ops.name,
                "overrides": model.ops.overrides(),
                "numerics": model.ops.numerics,
            },
            "environment": environment(),
            "recipe": recipe or {},
            "arguments": flags,
            "tolerance_rule": RULE,
            "files": [describe_file(temporary / file) for file in (INPUTS, TAPS)],
            "inputs": [describe(key, array) for key, array in arrays.items()],
            "taps": _describe_taps(model, entries, allowed, yardstick),
        }
        write_manifest(temporary / MANIFEST, manifest)
        for spool in ("exact", "stored"):
            (temporary / spool).unlink()
    return read_bundle(bundle)


def tell_arrays(model: PreTrainedModel, given: dict[str, Any], tell: Tell, names: Container[str]) -> None:
    """Run a model and tell the arrays of these names: modules' outputs, taps, and what modules are given."""
    to_numpy = model.ops.to_numpy

    def see(name: str, value: Any) -> None:
        if name in names:
            tell(name, to_numpy(value))

    def witness(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for parameter, value in module.arguments(args, kwargs).items():
            see(f"{module.path}#{parameter}", value)

    with recorder(see, witness):
        model(**given)


def _describe_taps(
    model: PreTrainedModel,
    entries: dict[str, dict[str, Any]],
    allowed: dict[str, dict[str, float]],
    yardstick: ExactRun,
) -> list[dict[str, Any]]:
    classes = {path: type(module).__name__ for path, module in model.named_modules()}
    taps = []
    for name, entry in entries.items():
        path, _, point = name.partition("#")
        tolerances = {port: _short(table[name]) for port, table in allowed.items()}
        kind = OUTPUT if not point else INPUT if name in yardstick.handed else VALUE
        entry["gap"] = _short(entry["gap"])
        tap = {**entry, "module": classes[path], "kind": kind, "tolerances": tolerances}
        if kind == OUTPUT and path in yardstick.given:
            tap["inputs"] = yardstick.given[path]
        if name in yardstick.alone:
            tap["alone"] = {port: _short(error) for port, error in yardstick.alone[name].items()}
        taps.append(tap)
    return taps


def _short(size: float) -> float:
    """Of an estimate three digits say all."""
    return float(f"{size:.2e}")


def weight_hashes(folder: Path) -> list[dict[str, Any]]:
    """Name, length and SHA-256 of every weight file of a checkpoint."""
    return [describe_file(path) for path in weight_files(folder)]


def environment() -> dict[str, Any]:
    """What may change a number's last bits: versions, the BLAS and its threads, the processor."""
    import scipy
    from threadpoolctl import threadpool_info

    built: Any = np.show_config(mode="dicts")
    return {
        "d2v_ref": d2v_ref.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "blas": [
            {
                "name": blas["internal_api"],
                "version": blas["version"],
                "core": blas.get("architecture"),  # whose kernels it chose
                "threads": blas["num_threads"],
            }
            for blas in threadpool_info()
            if blas["user_api"] == "blas"
        ],
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu_features": built.get("SIMD Extensions", {}).get("found", []),
    }
