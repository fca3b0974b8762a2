"""What ``import d2v_ref`` costs, what it gives, and that a model needs none of the heavy packages."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from text_models import build

import d2v_ref

FRAMEWORKS = ("torch", "transformers", "tensorflow", "jax", "numba", "cupy", "h5py")
HEAVY = (*FRAMEWORKS, "numpy", "scipy", "tokenizers", "huggingface_hub", "safetensors", "rich", "click")


def imported(code: str, watched: tuple[str, ...]) -> list[str]:
    """Which of the watched packages a fresh interpreter has after running the code."""
    tail = f"\nimport json, sys; print(json.dumps([n for n in {watched!r} if n in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_import_brings_nothing_along() -> None:
    assert imported("import d2v_ref; d2v_ref.__all__; dir(d2v_ref); d2v_ref.__version__", HEAVY) == []


def test_an_error_class_costs_nothing_either() -> None:
    assert imported("import d2v_ref; d2v_ref.D2VError", HEAVY) == []


def test_the_import_takes_less_than_0_3_seconds() -> None:
    """The best of five: a busy machine slows some runs, a heavy import slows them all."""
    code = "import time; start = time.perf_counter(); import d2v_ref; print(time.perf_counter() - start)"
    best = float("inf")
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        best = min(best, float(done.stdout))
        if best < 0.3:
            return
    pytest.fail(f"the fastest of five imports took {best:.2f} s")


def test_a_model_is_saved_loaded_and_run_without_a_framework(tmp_path: Path) -> None:
    build("Data2VecTextForCausalLM").save_pretrained(tmp_path / "model")
    code = f"""
import d2v_ref
model = d2v_ref.load({str(tmp_path / "model")!r})
model.record([[0, 5, 6, 2]], labels=[[0, 5, 6, 2]])
model.generate([[0, 5]], max_new_tokens=2)
model.save_pretrained({str(tmp_path / "again")!r})
"""
    assert imported(code, (*FRAMEWORKS, "tokenizers", "huggingface_hub", "rich", "click")) == []
    assert (tmp_path / "again" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", d2v_ref.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(d2v_ref, name)
    if name != "__version__":
        assert value.__name__ == name
        assert value.__module__.startswith("d2v_ref.")


def test_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse(Path(d2v_ref.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(seen) == sorted(set(d2v_ref.__all__) - {"__version__"})
    for name, module in seen.items():
        assert getattr(import_module(str(module)), name) is getattr(d2v_ref, name)
    assert dir(d2v_ref) == sorted(d2v_ref.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'd2v_ref' has no attribute 'Data2VecTextForEverything'"):
        _ = d2v_ref.Data2VecTextForEverything
    with pytest.raises(ImportError):
        exec("from d2v_ref import nothing_of_this_name")  # noqa: S102 - a type checker would refuse it in the open
