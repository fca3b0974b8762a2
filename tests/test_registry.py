"""Backends by name: a third party's is found, and one that can't run says why."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text_models import build, main_output, token_ids

from d2v_ref.errors import BackendError
from d2v_ref.ops import Ops, backends, get_ops
from d2v_ref.ops.registry import GROUP

MODULES = {
    "good_backend": """
from d2v_ref.ops import Ops
class GoodOps(Ops):
    name = "good"
    dtypes = ("float64",)
    calls = 0
    def gelu(self, x):
        type(self).calls += 1
        return super().gelu(x)
not_a_class = Ops("float64")
def a_function(dtype): return Ops(dtype)
""",
    "needs_a_package": "import a_package_that_nobody_has",
    "needs_a_driver": "raise OSError('libcuda.so.1: cannot open\\nshared object file')",
    "is_broken": "1 +",
}
POINTS = {
    "good": "good_backend:GoodOps",
    "no-package": "needs_a_package:Ops",
    "no-driver": "needs_a_driver:Ops",
    "broken": "is_broken:Ops",
    "absent": "module_that_is_not_there:Ops",
    "no-attribute": "good_backend:Missing",
    "instance": "good_backend:not_a_class",
    "function": "good_backend:a_function",
    "other-class": "decimal:Decimal",
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which all these backends are installed."""
    for name, code in MODULES.items():
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    points = metadata.EntryPoints(metadata.EntryPoint(name, value, GROUP) for name, value in POINTS.items())
    monkeypatch.setattr(metadata, "entry_points", lambda **wanted: points.select(**wanted))


@pytest.mark.usefixtures("installed")
def test_a_third_partys_backend_computes_a_model() -> None:
    ops = get_ops("good", "float64")
    assert (ops.name, ops.overrides()) == ("good", ["gelu"])
    model = build("Data2VecTextForMaskedLM", ops=ops)
    ids = token_ids("Data2VecTextForMaskedLM")
    np.testing.assert_array_equal(main_output(model(ids)), main_output(build("Data2VecTextForMaskedLM")(ids)))
    assert type(ops).calls == 3  # type: ignore[attr-defined]  # both layers' and the head's
    with pytest.raises(BackendError, match=r"good does not compute .*got float32; expected float64"):
        get_ops("good", "float32")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no-package", r"no-package can't be imported here: .*a_package_that_nobody_has.*pip install"),
        ("no-driver", r"no-driver can't be imported here: OSError: libcuda.so.1: cannot open shared object file"),
        ("broken", r"broken can't be imported here: SyntaxError"),
        ("absent", r"absent can't be imported here: .*module_that_is_not_there"),
        ("no-attribute", r"no-attribute can't be imported here: AttributeError.*Missing"),
        ("instance", r"instance is not a backend .got good_backend:not_a_class; expected a subclass"),
        ("function", r"function is not a backend .got good_backend:a_function"),
        ("other-class", r"other-class is not a backend .got decimal:Decimal"),
        ("fast", r"no backend is called 'fast' .expected numpy or absent or broken or"),
        ("", r"no backend is called ''"),
        ("NumPy", r"no backend is called 'NumPy'"),
    ],
)
def test_a_backend_that_can_not_run_says_why(name: str, words: str) -> None:
    with pytest.raises(BackendError, match=words) as caught:
        get_ops(name)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("installed")
def test_backends_lists_all_and_none_of_them_breaks_the_list() -> None:
    found = {info.name: info for info in backends()}
    assert list(found) == ["numpy", *sorted(POINTS)]
    assert {name for name, info in found.items() if info.available} == {"numpy", "good"}
    assert found["good"].overrides == ("gelu",)
    assert found["numpy"].overrides == ()
    assert "a_package_that_nobody_has" in found["no-package"].reason
    assert all(info.reason for info in found.values() if not info.available)


def test_nothing_is_imported_before_it_is_asked_for(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "good_backend", raising=False)
    get_ops("numpy")
    assert "good_backend" not in sys.modules
    get_ops("good", "float64")
    assert "good_backend" in sys.modules


def test_numpy_needs_no_entry_point_and_none_can_take_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    points = metadata.EntryPoints([metadata.EntryPoint("numpy", "decimal:Decimal", GROUP)])
    monkeypatch.setattr(metadata, "entry_points", lambda **wanted: points.select(**wanted))
    assert type(get_ops()) is Ops
    assert get_ops().dtype == np.float32
    assert type(get_ops("numpy", "float64")) is Ops


def test_an_ops_is_taken_as_it_is() -> None:
    ops: Any = Ops("float64")
    assert get_ops(ops, "float32") is ops
