"""The fingerprints in tests/goldens: what the shipped checkpoints compute is what every backend computes here."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_golden import TanhGelu

import d2v_ref
from d2v_ref import golden, models
from d2v_ref.ops import Ops

FOLDER = Path(__file__).parent / "goldens"
BUNDLES = sorted(path.parent for path in FOLDER.glob("*/*/manifest.json"))
BACKENDS = [backend.name for backend in d2v_ref.backends() if backend.available]


def name_of(bundle: Path) -> str:
    return str(bundle.relative_to(FOLDER))


def test_every_checkpoint_has_two_heads() -> None:
    for name in models.NAMES:
        found = [golden.read_bundle(bundle).manifest for bundle in BUNDLES if bundle.parent.name == name]
        assert {manifest["model"]["name"] for manifest in found} == {name}
        assert {manifest["form"] for manifest in found} == {"fingerprint"}
        assert {manifest["dtype"] for manifest in found} == {"float64"}
        assert len({manifest["model"]["class"] for manifest in found}) == len(found) == 2


def test_they_fit_a_repository() -> None:
    assert 0 < sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 1_000_000


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", Ops.dtypes)
@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
def test_every_backend_computes_what_was_recorded(bundle: Path, dtype: str, backend: str) -> None:
    report = golden.check(bundle, backend=backend, dtype=dtype)
    assert report.passed, report.verdict()


@pytest.mark.parametrize("dtype", Ops.dtypes)
@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
def test_a_fault_is_found(bundle: Path, dtype: str) -> None:
    """The tanh form of GELU, in the place of the exact one: not before the first activation, and at one or soon after.

    Between the samples an error may be too small to move a moment; what is computed of it shows it.
    """
    report = golden.check(bundle, backend=TanhGelu(dtype), dtype=dtype)
    modules = [row.module for row in report.rows]
    assert report.first is not None
    assert 0 <= report.rows.index(report.first) - modules.index("Activation") <= 5
