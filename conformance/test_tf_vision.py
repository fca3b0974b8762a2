"""The TensorFlow classes against what TensorFlow computed (legacy/tf), in float32, within the computed bound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.compare import compare, flatten
from conformance.oracle import tolerances_of
from d2v_ref.auto import model_class
from d2v_ref.checkpoints import read_safetensors, read_safetensors_metadata
from d2v_ref.ops import Ops

FILES = sorted((Path(__file__).parent / "legacy" / "tf").glob("*.safetensors"))


def read(path: Path) -> tuple[dict[str, str], dict[str, dict[str, np.ndarray]]]:
    """A golden's metadata, and its weights, inputs and outputs."""
    arrays: dict[str, dict[str, np.ndarray]] = {"weight": {}, "input": {}, "output": {}}
    for name, tensor in read_safetensors(path).items():
        kind, key = name.split(".", 1)
        arrays[kind][key] = tensor.numpy()
    return read_safetensors_metadata(path), arrays


def run(facts: dict[str, str], arrays: dict[str, dict[str, np.ndarray]], ops: Ops, prefix: str = "") -> dict[str, Any]:
    """What our class gives, by the golden's names; ``prefix`` "TF" for TensorFlow's class, "" for PyTorch's."""
    cls: Any = model_class(prefix + facts["class"].removeprefix("TF"))
    config = cls.config_class(**json.loads(facts["config"]))
    model = cls(config, arrays["weight"], backend=ops, **json.loads(facts["constructor"]))
    arguments = json.loads(facts["arguments"])
    inputs = {**arrays["input"], **arguments}
    out = model(**inputs)
    if arguments.get("return_dict", True):
        return flatten(out)
    return flatten(dict(zip(json.loads(facts["tuple_order"]), out, strict=True)))


def test_the_goldens_are_there() -> None:
    assert len(FILES) == 34
    assert {read_safetensors_metadata(path)["class"] for path in FILES} == {
        "TFData2VecVisionModel",
        "TFData2VecVisionForImageClassification",
        "TFData2VecVisionForSemanticSegmentation",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path: Path, tally: dict[str, Any]) -> None:
    facts, arrays = read(path)

    def ours(ops: Ops) -> dict[str, Any]:
        return run(facts, arrays, ops, "TF")

    bounds = tolerances_of(ours)
    compare(ours(Ops("float32")), arrays["output"], bounds, tally[f"{facts['class']}, goldens of TensorFlow"])


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.startswith("segmentation.")], ids=str)
def test_it_is_not_the_pytorch_class(path: Path) -> None:
    """The same weights and pictures in the PyTorch class: another function, not another rounding."""
    facts, arrays = read(path)
    got = run(facts, arrays, Ops("float64"))
    assert np.abs(got["logits"] - arrays["output"]["logits"]).max() > 1e-2
