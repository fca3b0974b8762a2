from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_zip as tz

from d2v_ref.checkpoints import open_checkpoint, weight_files, write_safetensors
from d2v_ref.errors import CheckpointError

ONE, TWO = np.ones(1, "f4"), np.full(2, 2, "f4")


def save_bin(path: Path, names: dict[str, np.ndarray]) -> None:
    entries = {
        name: tz.tensor(tz.storage("FloatStorage", name, len(values)), (len(values),), (1,))
        for name, values in names.items()
    }
    tz.archive(path, tz.state_dict(entries), {name: values.tobytes() for name, values in names.items()})


def save_index(path: Path, shards: Any) -> None:
    path.write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


def test_the_order_of_hugging_face(tmp_path: Path) -> None:
    save_bin(tmp_path / "shard.bin", {"w": ONE})
    save_index(tmp_path / "pytorch_model.bin.index.json", {"w": "shard.bin"})
    assert weight_files(tmp_path) == [tmp_path / "shard.bin"]
    assert open_checkpoint(tmp_path)["w"].shape == (1,)
    save_bin(tmp_path / "pytorch_model.bin", {"w": TWO})
    assert weight_files(tmp_path) == [tmp_path / "pytorch_model.bin"]
    assert open_checkpoint(str(tmp_path))["w"].shape == (2,)
    write_safetensors(tmp_path / "shard.safetensors", {"w": np.ones(3, "f4")})
    save_index(tmp_path / "model.safetensors.index.json", {"w": "shard.safetensors"})
    assert open_checkpoint(tmp_path)["w"].shape == (3,)
    write_safetensors(tmp_path / "model.safetensors", {"w": np.ones(4, "f4")})
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    assert open_checkpoint(tmp_path)["w"].shape == (4,)


def test_shards(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    write_safetensors(tmp_path / "a.safetensors", {"a": ONE, "unlisted": TWO})
    write_safetensors(tmp_path / "more" / "b.safetensors", {"b": TWO})
    index = tmp_path / "model.safetensors.index.json"
    save_index(index, {"b": "more/b.safetensors", "a": "a.safetensors"})
    tensors = open_checkpoint(tmp_path)
    assert {name: tensor.file.name for name, tensor in tensors.items()} == {
        "a": "a.safetensors",
        "unlisted": "a.safetensors",
        "b": "b.safetensors",
    }
    save_index(index, {"b": "a.safetensors", "a": "a.safetensors"})
    assert "'b' is not in the shard that the index names (expected it in a.safetensors)" in refusal(tmp_path)
    save_index(index, {"b": "more/b.safetensors", "a": "more/b.safetensors", "unlisted": "a.safetensors"})
    assert "'a' is not in the shard" in refusal(tmp_path)
    save_index(index, {"b": "more/b.safetensors", "c": "c.safetensors"})
    assert "1 of the 2 shards that it names are missing (got no c.safetensors)" in refusal(tmp_path)
    write_safetensors(tmp_path / "c.safetensors", {"b": ONE, "c": ONE})
    assert "'b' is in two shards (got c.safetensors and b.safetensors)" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["../out.safetensors", "/out.safetensors", "a/../../b", "..\\out", "C:out", ""])
def test_an_index_can_not_leave_its_folder(tmp_path: Path, name: str) -> None:
    save_index(tmp_path / "model.safetensors.index.json", {"w": name})
    assert "outside its folder" in refusal(tmp_path)


def test_a_shard_may_be_a_link_as_in_the_cache(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    write_safetensors(tmp_path / "blob", {"w": ONE})
    (folder / "a.safetensors").symlink_to("../blob")
    save_index(folder / "model.safetensors.index.json", {"w": "a.safetensors"})
    assert open_checkpoint(folder)["w"].shape == (1,)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"w": 1}}', '{"weight_map": []}']
)
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "the index" in refusal(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_bytes(b"\xff")
    assert "the index is not JSON" in refusal(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "nothing")
    assert "got an empty folder" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    text = refusal(tmp_path)
    assert "the folder holds no weights (got config.json; expected model.safetensors or" in text
    assert "pytorch_model.bin.index.json" in text
    (tmp_path / "tf_model.h5.index.json").touch()
    assert "weights for TensorFlow in shards (tf_model.h5.index.json) only" in refusal(tmp_path)
    (tmp_path / "tf_model.h5").touch()
    assert "tf_model.h5: the file is empty" in refusal(tmp_path)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, d2v_ref.checkpoints as c; c.resolve('.');"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub', 'safetensors', 'h5py') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
