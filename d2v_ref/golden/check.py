"""Checking a bundle: the same inputs again, every array against the recorded one, the first that differs by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref.auto import model_class
from d2v_ref.checkpoints import resolve
from d2v_ref.errors import CheckpointError, InputError
from d2v_ref.golden.bundle import Bundle, read_bundle
from d2v_ref.golden.recording import fingerprints
from d2v_ref.ops import Ops

PASSED, FAILED, MISSING = "passed", "failed", "missing"


@dataclass(frozen=True)
class Row:
    """One recorded array: what became of it, its largest absolute error, where, and what is allowed."""

    name: str
    module: str
    status: str
    error: float | None = None
    tolerance: float | None = None
    where: tuple[int, ...] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """All rows, in the order of computation."""

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

    Args:
        bundle: a folder that ``record`` wrote.
        model: where the checkpoint is; where it was when it was recorded if None.  Its weights must be the recorded ones.
        backend: who computes.
        dtype: the recorded one if None; a float64 golden's tolerances hold in float64 only.
        where: revision, cache_dir, local_files_only and token of the hub.
    """
    golden = read_bundle(bundle)
    try:
        facts = golden.manifest["model"]
        name, class_name, config, weights = model or facts["name"], facts["class"], facts["config"], facts["weights"]
        dtype, arguments = dtype or golden.manifest["dtype"], golden.manifest["arguments"]
    except (TypeError, KeyError) as error:
        raise InputError(f"its manifest is damaged: {error}", path=golden.folder, hint="Record it again") from None
    folder = resolve(name, **where)
    _same_weights(folder, weights)
    cls = model_class(class_name)
    loaded = cls.from_pretrained(folder, config=cls.config_class.from_dict(config), backend=backend, dtype=dtype)
    _, taps = loaded.record(**golden.inputs, **arguments)
    return compare(golden, taps)


def _same_weights(folder: Path, recorded: list[dict[str, Any]]) -> None:
    for now, then in zip(fingerprints(folder), recorded, strict=False):
        if now["sha256"] != then["sha256"]:
            hint = "Check against the checkpoint that was recorded (--model), or record a new bundle"
            raise CheckpointError(
                "these are not the weights that the bundle was made of", path=folder / now["name"], hint=hint
            )


def compare(golden: Bundle, taps: dict[str, np.ndarray]) -> Report:
    """Hold arrays by name against a bundle's."""
    return Report(
        [_row(entry, golden.taps[entry["name"]], taps.get(entry["name"])) for entry in golden.manifest["taps"]]
    )


def _row(entry: dict[str, Any], want: np.ndarray, got: np.ndarray | None) -> Row:
    name, module, tolerance = entry["name"], entry["module"], entry["tolerance"]
    if got is None:
        return Row(name, module, MISSING, reason="nothing of this name was computed")
    if got.shape != want.shape:
        return Row(name, module, FAILED, reason=f"shape {got.shape}, recorded {want.shape}")
    finite = np.isfinite(want)
    strange = ~np.where(finite, np.isfinite(got), (got == want) | (np.isnan(got) & np.isnan(want)))
    if strange.any():
        at = _first(strange)
        return Row(name, module, FAILED, None, tolerance, at, f"{got[at]}, recorded {want[at]}")
    errors = np.where(finite, np.abs(np.where(finite, got, 0) - np.where(finite, want, 0).astype(np.float64)), 0.0)
    at = tuple(int(i) for i in np.unravel_index(int(errors.argmax()), errors.shape)) if errors.size else ()
    worst = float(errors.max(initial=0.0))
    status = PASSED if worst <= tolerance else FAILED
    reason = "" if status == PASSED else f"{got[at]}, recorded {want[at]}"
    return Row(name, module, status, worst, tolerance, at, reason)


def _first(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])
