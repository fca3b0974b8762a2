"""Checkpoints that TensorFlow wrote (legacy/tf_checkpoints), read without TensorFlow: bit for bit what it held, and
transformers 5.23 computes with them what TensorFlow computed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from conformance.compare import compare
from d2v_ref.checkpoints import open_checkpoint, read_safetensors, read_safetensors_metadata

FOLDERS = sorted((Path(__file__).parent / "legacy" / "tf_checkpoints").iterdir())
SINGLE = 2e-6  # two float32 computations: TensorFlow's and torch's


def golden(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    parts: dict[str, dict[str, np.ndarray]] = {"weight": {}, "input": {}, "output": {}}
    for name, tensor in read_safetensors(folder / "golden.safetensors").items():
        kind, key = name.split(".", 1)
        parts[kind][key] = tensor.numpy()
    return parts


def opened(folder: Path) -> dict[str, np.ndarray]:
    if (folder / "tf_model.h5").is_file():
        pytest.importorskip("h5py", reason="tf_model.h5 is read with h5py: pip install d2v-ref[hdf5]")
    return {name: tensor.numpy() for name, tensor in open_checkpoint(folder).items()}


def test_the_checkpoints_are_there() -> None:
    kinds = ("classification", "model", "segmentation")
    assert [folder.name for folder in FOLDERS] == [f"{kind}_{form}" for kind in kinds for form in ("h5", "safetensors")]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_weights_are_those_that_tensorflow_held(folder: Path, tally: dict[str, Any]) -> None:
    compare(opened(folder), golden(folder)["weight"], 0.0, tally["checkpoints of TensorFlow, bit for bit"])


@pytest.mark.parametrize(
    "folder", [folder for folder in FOLDERS if "segmentation" not in folder.name], ids=lambda folder: folder.name
)
def test_pytorch_computes_the_same_with_them(folder: Path, tally: dict[str, Any]) -> None:
    """Of segmentation the class of TensorFlow is another function, and 5.23 has other names."""
    weights, parts = opened(folder), golden(folder)
    facts = read_safetensors_metadata(folder / "golden.safetensors")
    config = transformers.Data2VecVisionConfig(**json.loads(facts["config"]))
    model = getattr(transformers, facts["class"].removeprefix("TF"))(config).eval()
    arrays = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    missing, unexpected = model.load_state_dict(arrays, strict=False)
    assert not unexpected
    assert all(name.endswith("relative_position_index") for name in missing)
    with torch.no_grad():
        output = model(torch.from_numpy(np.array(parts["input"]["pixel_values"])))
    name = "logits" if "logits" in parts["output"] else "last_hidden_state"
    got, want = {name: output[name].numpy()}, {name: parts["output"][name]}
    compare(got, want, SINGLE, tally["checkpoints of TensorFlow in PyTorch, float32"])
