"""Checking a bundle: the same inputs again, every array against the recorded one, the first that differs by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref.auto import model_class
from d2v_ref.checkpoints import resolve
from d2v_ref.config import Config
from d2v_ref.errors import CheckpointError, ConfigError, InputError
from d2v_ref.golden.arguments import forward_arguments
from d2v_ref.golden.bundle import MANIFEST, Bundle, read_bundle
from d2v_ref.golden.forms import FULL, SIZES, differing, kept, moments, positions
from d2v_ref.golden.recording import weight_hashes
from d2v_ref.nn.module import recorder
from d2v_ref.ops import Ops
from d2v_ref.pretrained import PreTrainedModel

PASSED, FAILED, MISSING = "passed", "failed", "missing"


@dataclass(frozen=True)
class Row:
    """One recorded array: what became of it, its largest absolute error, where, and what is allowed.

    ``reason`` says what failed, a sample or a moment, with both values, and which moments failed beside it:
    "sample at (0, 3, 5): 1.5, recorded 1.25; mean; rms".  Of a moment ``error`` is the difference, and there is no
    ``where``.
    """

    name: str
    module: str
    status: str
    error: float | None = None
    tolerance: float | None = None
    where: tuple[int, ...] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """All rows, in the order of computation; then the outputs of a run that was not recorded."""

    rows: list[Row]

    @property
    def passed(self) -> bool:
        """Every array was compared and is within its tolerance; a bundle without arrays does not pass."""
        return bool(self.rows) and all(row.status == PASSED for row in self.rows)

    @property
    def first(self) -> Row | None:
        """The first array that did not pass: whatever comes later may only have inherited its error."""
        return next((row for row in self.rows if row.status != PASSED), None)


def check(
    bundle: str | Path,
    *,
    model: str | Path | None = None,
    backend: str | Ops = "numpy",
    dtype: str | None = None,
    **where: Any,
) -> Report:
    """Run a bundle's model again on its inputs and compare everything that it recorded.

    It runs twice: recorded, where every module's output can be seen, and as it would for anybody else, where a backend
    may fuse operations and only the outputs can be seen; these are the rows "#logits (fused)".  If it breaks off after
    an array that differs, the report says which; what it did not come to is missing.

    Args:
        bundle: a folder that ``record`` wrote.
        model: where the checkpoint is; None for the recorded place.  Its weights must be the recorded ones.
        backend: who computes.
        dtype: the recorded one if None; a float64 bundle's tolerances hold in float64 only.
        where: revision, cache_dir, local_files_only and token of the hub.
    """
    golden = read_bundle(bundle)
    recorded = golden.manifest["dtype"]
    folder = _checkpoint(golden, model, where)
    _same_weights(folder, golden.manifest["model"]["weights"])
    cls, config = _model(golden)
    loaded = cls.from_pretrained(folder, config=config, backend=backend, dtype=dtype or recorded)
    if recorded == "float64" != str(loaded.ops.dtype):
        hint = "Check it in float64, or record a bundle in float32"
        raise InputError("was recorded in float64", path=golden.folder, got=f"a run in {loaded.ops.dtype}", hint=hint)
    given = forward_arguments(loaded, golden.inputs, golden.manifest["arguments"])
    taps: dict[str, np.ndarray] = {}
    with np.errstate(all="ignore"):  # a number that isn't finite is compared like any other
        try:
            with recorder(lambda name, value: taps.__setitem__(name, loaded.ops.to_numpy(value))):
                loaded(**given)
            out = loaded(**given, return_dict=True)
        except Exception:
            # Arrays of a wrong shape may fit nowhere later.  What was wrong first is the answer, if it was seen.
            report = compare(golden, taps)
            if report.first is None or report.first.status == MISSING:
                raise
            return report
    fused = compare(golden, {f"#{name}": value for name, value in out.items()}).rows
    return Report(compare(golden, taps).rows + [_unrecorded(row) for row in fused if row.name.startswith("#")])


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


def _unrecorded(row: Row) -> Row:
    """The row of an output of a run that nobody records: there a backend may fuse what a recorded run keeps apart."""
    return replace(row, name=f"{row.name} (fused)")


def compare(golden: Bundle, taps: dict[str, np.ndarray]) -> Report:
    """Hold arrays by name against a bundle's; of a fingerprint, their samples and moments (``golden/bundle.py``)."""
    form = golden.manifest["form"]
    return Report(
        [_row(entry, golden.taps[entry["name"]], taps.get(entry["name"]), form) for entry in golden.manifest["taps"]]
    )


def _row(entry: dict[str, Any], want: np.ndarray, got: np.ndarray | None, form: str) -> Row:
    name, module, tolerance, shape = entry["name"], entry["module"], entry["tolerance"], tuple(entry["shape"])
    if got is None:
        return Row(name, module, MISSING, reason="nothing of this name was computed")
    if got.shape != shape:
        return Row(name, module, FAILED, reason=f"shape {got.shape}, recorded {shape}")
    samples = kept(got, form)
    errors = _errors(samples, want)
    worst, place = float(errors.max(initial=0.0)), int(errors.argmax()) if errors.size else 0
    flat = place if form == FULL or not errors.size else int(positions(got.size)[place])
    where = tuple(int(i) for i in np.unravel_index(flat, shape)) if errors.size else ()
    found, recorded = moments(got), entry["moments"]
    others = differing(found, recorded, tolerance)
    if not worst <= tolerance:
        reason = _reason(f"sample at {where}", samples.flat[place], want.flat[place], others)
        return Row(name, module, FAILED, _size(worst), tolerance, where, reason)
    if others:
        moment, *others = others
        now, then = found.get(moment, 0), recorded.get(moment, 0)
        error = abs(now - then) if moment in SIZES else None
        return Row(name, module, FAILED, _size(error), tolerance, None, _reason(moment, now, then, others))
    return Row(name, module, PASSED, worst, tolerance, where)


def _reason(first: str, got: Any, recorded: Any, others: list[str]) -> str:
    """What failed: the first with its values."""
    return f"{first}: {got}, recorded {recorded}" + "".join(f"; {name}" for name in others)


def _errors(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """|got - want|; where one of the two is not finite 0 if the other is the same, else infinity."""
    finite = np.isfinite(got) & np.isfinite(want)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(over="ignore"):
        size = np.abs(np.where(finite, got, 0) - np.where(finite, want, 0).astype(np.float64))
    return np.where(finite, size, np.where(same, 0.0, np.inf))


def _size(error: float | None) -> float | None:
    return error if error is not None and math.isfinite(error) else None
