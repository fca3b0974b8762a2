"""Checking a bundle: the same inputs again, every array against the recorded one, the first that differs by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref.auto import model_class
from d2v_ref.checkpoints import resolve
from d2v_ref.config import Config
from d2v_ref.errors import CheckpointError, ConfigError, InputError
from d2v_ref.golden.arguments import forward_arguments
from d2v_ref.golden.bounds import FORMATS
from d2v_ref.golden.bundle import MANIFEST, Bundle, read_bundle
from d2v_ref.golden.comparing import Comparison
from d2v_ref.golden.forms import FULL
from d2v_ref.golden.names import Names, read_names, suggest
from d2v_ref.golden.ports import Port, open_port
from d2v_ref.golden.recording import tell_arrays, weight_hashes
from d2v_ref.golden.report import MISSING, Report
from d2v_ref.nn import Module, recorder, unrecorded
from d2v_ref.nn.module import is_array
from d2v_ref.ops import Ops
from d2v_ref.pretrained import PreTrainedModel

Progress = Callable[[int], None]


def check(
    bundle: str | Path,
    *,
    model: str | Path | None = None,
    backend: str | Ops = "numpy",
    dtype: str | None = None,
    taps: Sequence[str] = (),
    isolate: bool = False,
    **where: Any,
) -> Report:
    """Run a bundle's model again on its inputs, with one of our backends, and compare everything that it recorded.

    It runs twice: recorded, where every module's output can be seen, and as it would for anybody else, where a backend
    may fuse operations and only the outputs can be seen; these are the rows "#logits (fused)".  If it breaks off after
    an array that differs, the report says which; what it did not come to is missing.

    Args:
        bundle: a folder that ``record`` wrote.
        model: where the checkpoint is; None for the recorded place.  Its weights must be the recorded ones.
        backend: who computes.
        dtype: the recorded one if None.  Its tolerances are taken.
        taps: patterns of the names to compare, as ``record`` takes them.
        isolate: give each module, as it would run for anybody else, what NumPy's definitions give it in the same run,
            so that one wrong module doesn't hide the next.
        where: revision, cache_dir, local_files_only and token of the hub.
    """
    golden = read_bundle(bundle)
    folder = _checkpoint(golden, model, where)
    _same_weights(folder, golden.manifest["model"]["weights"])
    cls, config = _model(golden)
    loaded = cls.from_pretrained(folder, config=config, backend=backend, dtype=dtype or golden.manifest["dtype"])
    given = forward_arguments(loaded, golden.inputs, golden.manifest["arguments"])
    source = f"backend {loaded.ops.name}"
    with np.errstate(all="ignore"):  # a number that isn't finite is compared like any other
        if isolate:
            return _isolated(loaded, given, Comparison(golden, str(loaded.ops.dtype), taps, alone=True), source)
        return _run(loaded, given, Comparison(golden, str(loaded.ops.dtype), taps), source)


def check_port(
    bundle: str | Path,
    against: str | Path | Callable[..., Any],
    *,
    dtype: str | None = None,
    taps: Sequence[str] = (),
    names: Names | str | Path | None = None,
    match: bool = False,
    isolate: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Hold another implementation's arrays against a bundle's.

    An array that a module was given may be left out by a port: it is then not observable.

    Args:
        bundle: a folder that ``record`` wrote.
        against: see ``golden.ports.open_port``.
        dtype: the format that the port computes in, whose tolerances are taken; the smallest among its arrays if None.
        taps: patterns of the names to compare, as ``record`` takes them: what the port can show.
        names: the port's names of arrays, or the file that holds them; None or a name that is left out: the same name.
        match: whether what has no name among the port's arrays is matched by shape and value.
        isolate: have the port run each module alone on what the bundle says it was given.
        progress: called with 1 after each module that ran alone.
    """
    golden, port = read_bundle(bundle), open_port(against)
    table = read_names(names, golden) if isinstance(names, str | Path) else names or {}
    if dtype is not None and dtype not in FORMATS:
        raise InputError("there is no such format", got=dtype, expected=", ".join(FORMATS))
    if isolate:
        return _isolated_port(golden, port, dtype, taps, progress or (lambda _: None))
    arrays, found = port.arrays(golden.inputs)
    arrays = renamed(arrays, table)
    suggested = suggest(golden, {name: array for name, array in arrays.items() if name not in table}) if match else {}
    comparison = Comparison(
        golden, dtype or found, taps, hidden=[name for name, other in table.items() if other is None]
    )
    for name, array in renamed(arrays, suggested).items():
        comparison.see(name, array)
    return replace(comparison.report(port.source, optional=True), names=suggested)


def renamed(arrays: Mapping[str, np.ndarray], names: Names) -> dict[str, np.ndarray]:
    """A port's arrays under a bundle's names."""
    wanted = {other: name for name, other in names.items() if other is not None}
    absent = [other for other in wanted if other not in arrays]
    if absent:
        raise InputError("the port has no array of this name", got=absent[0], expected=", ".join(list(arrays)[:5]))
    mapped = {name: arrays[other] for other, name in wanted.items()}
    return {**{name: array for name, array in arrays.items() if name not in wanted and name not in names}, **mapped}


def _model(golden: Bundle) -> tuple[type[PreTrainedModel], Config]:
    """The class and the configuration that the manifest names."""
    facts = golden.manifest["model"]
    try:
        cls = model_class(facts["class"])
        return cls, cls.config_class.from_dict(facts["config"])
    except ConfigError as error:
        error.path = golden.folder / MANIFEST
        raise


def _checkpoint(golden: Bundle, model: str | Path | None, where: dict[str, Any]) -> Path:
    """Where the checkpoint is now."""
    if model is not None:
        return resolve(model, **where)
    name = golden.manifest["model"]["name"]
    try:
        return resolve(name, **where)
    except CheckpointError as error:
        hint = "Say where the checkpoint of the bundle is now: --model (model=)"
        raise type(error)(error.message, path=error.path, got=error.got, expected=error.expected, hint=hint) from None


def _same_weights(folder: Path, recorded: list[dict[str, Any]]) -> None:
    found = weight_hashes(folder)
    if [file["sha256"] for file in found] != [file["sha256"] for file in recorded]:
        raise CheckpointError(
            "these are not the weights that the bundle was made of",
            path=folder,
            got=", ".join(f"{file['name']} of {file['bytes']} bytes" for file in found),
            hint="Check against the checkpoint that was recorded (--model, --revision), or record a new bundle",
        )


# ---- our backends ----------------------------------------------------------------------------------------------------


def _run(model: PreTrainedModel, given: dict[str, Any], comparison: Comparison, source: str) -> Report:
    try:
        tell_arrays(model, given, comparison.see, comparison.names)
        out = model(**given, return_dict=True)
    except Exception:
        # Arrays of a wrong shape may fit nowhere later.  What was wrong first is the answer, if it was seen.
        report = comparison.report(source)
        if report.first is None or report.first.status == MISSING:
            raise
        return report
    report = comparison.report(source)
    fused = [comparison.row(f"#{name}", value) for name, value in out.items() if f"#{name}" in comparison.names]
    return replace(report, rows=report.rows + [replace(row, name=f"{row.name} (fused)") for row in fused])


def _isolated(model: PreTrainedModel, given: dict[str, Any], comparison: Comparison, source: str) -> Report:
    """NumPy's definitions run the model; beside each of their modules the backend's runs on the same arrays."""
    definition = model.with_ops(Ops(str(model.ops.dtype)))
    twins = dict(model.named_modules())
    computed: dict[str, np.ndarray] = {}  # by modules that run now

    def witness(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        twin = twins[module.path]
        if module.path not in comparison.names or isinstance(twin, PreTrainedModel):
            return
        args, kwargs = (_moved(value, definition.ops, model.ops) for value in (args, kwargs))
        with unrecorded():
            computed[module.path] = model.ops.to_numpy(twin.shown(twin.forward(*args, **kwargs)))

    def see(name: str, value: np.ndarray) -> None:
        if name in computed:  # the golden's own numbers may be another machine's
            comparison.see(name, computed.pop(name), want=value)

    with recorder(see, witness):
        definition(**given)
    return comparison.report(source)


def _moved(value: Any, source: Ops, target: Ops) -> Any:
    """What a module was called with, on another backend: copies, as modules leave things behind in what they share."""
    if is_array(value):
        array = source.to_numpy(value)
        return target.asarray(array) if array.dtype.kind in "fb" else array  # indices stay with NumPy
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, source, target) for item in value)
    if isinstance(value, dict):
        return {key: _moved(item, source, target) for key, item in value.items()}
    if hasattr(value, "__dict__"):
        made = copy.copy(value)
        vars(made).update(_moved(vars(value), source, target))
        return made
    return value


# ---- ports -----------------------------------------------------------------------------------------------------------


def _isolated_port(golden: Bundle, port: Port, dtype: str | None, taps: Sequence[str], advance: Progress) -> Report:
    """Every module of the port alone; a module that it returns nothing for is not observable."""
    if golden.manifest["form"] != FULL:
        hint = "Record it without --fingerprint"
        raise InputError("is a fingerprint, which does not hold what modules were given", path=golden.folder, hint=hint)
    if not port.alone:
        expected = "a function with an argument module, or a command with {module}"
        raise InputError("can't run a module alone", path=port.source, expected=expected)
    comparison = Comparison(golden, dtype or "float32", taps, alone=True)
    held = {**golden.inputs, **golden.taps}
    for entry in golden.manifest["taps"]:
        name = entry["name"]
        if name not in comparison.names or "inputs" not in entry:
            continue
        inputs = {**golden.inputs, **{parameter: held[other] for parameter, other in entry["inputs"].items()}}
        arrays, found = port.arrays(inputs, name)
        if name in arrays:
            comparison.see(name, arrays[name], dtype or found)
        advance(1)
    return comparison.report(port.source)
