"""Recording a bundle: one run of a model, and how far another run of it may be off."""

from __future__ import annotations

import difflib
import platform
from collections.abc import Callable, Container, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

import d2v_ref
from d2v_ref import checks
from d2v_ref.checkpoints import new_folder, weight_files, write_safetensors
from d2v_ref.errors import InputError
from d2v_ref.golden.arguments import forward_arguments
from d2v_ref.golden.bounds import FORMATS, RULE, Exact, Tell, gap, tolerances
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
    sha256,
    write_manifest,
)
from d2v_ref.golden.forms import FINGERPRINT, FULL, kept, moments
from d2v_ref.golden.report import INPUT, OUTPUT, VALUE
from d2v_ref.golden.spool import Spool
from d2v_ref.nn import Module, recorder
from d2v_ref.ops import Ops
from d2v_ref.pretrained import PreTrainedModel

Progress = Callable[[int], None]
Given = dict[str, dict[str, str]]  # module -> parameter -> the name of the array that it was given


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
        graph, handed = _run_exactly(model.with_ops(Exact()), given, arrays, taps, exact)
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
            "taps": _describe_taps(model, entries, allowed, graph, handed),
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


def _run_exactly(
    model: PreTrainedModel, given: dict[str, Any], arrays: dict[str, np.ndarray], taps: Sequence[str], exact: Spool
) -> tuple[Given, set[str]]:
    """Run in float64, keep the arrays that match a pattern, and find out which array each module was given.

    Returns:
        Of each module whose arrays are all recorded, their names by parameter; and the names of those that are recorded
            for having been given.

    What a module is given is an array of its own, ``path#parameter``, only where it is none that was there before.
    """
    passed_over: dict[str, None] = {}
    graph: Given = {}
    handed: set[str] = set()
    places: dict[tuple[Any, ...], str] = {}  # what an array holds -> its name
    for name, array in arrays.items():
        places[_contents(array)] = name
        if array.dtype.kind == "f":
            places[_contents(array.astype(np.float64))] = name

    def see(name: str, value: np.ndarray) -> None:
        if not matches(name, taps):
            passed_over[name] = None
            return
        exact.add(name, value)
        places[_contents(value)] = name

    def witness(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not module.path:  # what the model itself is given are the inputs
            return
        given = {}
        arrays = module.arguments(args, kwargs)
        for parameter, value in arrays.items():
            contents = _contents(value)
            if contents not in places:
                see(f"{module.path}#{parameter}", value)
                handed.add(f"{module.path}#{parameter}")
            if contents in places:
                given[parameter] = places[contents]
        if len(given) == len(arrays):
            graph[module.path] = given

    with recorder(see, witness):
        model(**given)
    if not exact:
        close = difflib.get_close_matches(taps[0], passed_over, 3, 0.3) or list(passed_over)[:3]
        raise InputError("no array's name matches", got=", ".join(taps), expected=f"such as {', '.join(close)}")
    return graph, handed


def _contents(array: np.ndarray) -> tuple[Any, ...]:
    return array.shape, array.dtype.name, sha256(array)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns stands for the name, or for its end after a dot; and none that begins with !."""

    def one_of(those: Sequence[str]) -> bool:
        return any(fnmatchcase(name, each) or fnmatchcase(name, f"*.{each}") for each in those)

    wanted = [each for each in patterns if not each.startswith("!")]
    return (not wanted or one_of(wanted)) and not one_of([each[1:] for each in patterns if each.startswith("!")])


def _describe_taps(
    model: PreTrainedModel,
    entries: dict[str, dict[str, Any]],
    allowed: dict[str, dict[str, float]],
    graph: Given,
    handed: set[str],
) -> list[dict[str, Any]]:
    classes = {path: type(module).__name__ for path, module in model.named_modules()}
    taps = []
    for name, entry in entries.items():
        path, _, point = name.partition("#")
        tolerances = {port: _short(table[name]) for port, table in allowed.items()}
        kind = OUTPUT if not point else INPUT if name in handed else VALUE
        given = {"inputs": graph[path]} if kind == OUTPUT and path in graph else {}
        entry["gap"] = _short(entry["gap"])
        taps.append({**entry, "module": classes[path], "kind": kind, "tolerances": tolerances, **given})
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
