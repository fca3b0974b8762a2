from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from d2v_ref.checkpoints import read_safetensors, read_safetensors_metadata, write_json, write_safetensors
from d2v_ref.errors import CheckpointError


def test_arrays_come_back(tmp_path: Path) -> None:
    base = np.arange(12, dtype="f4").reshape(3, 4)
    arrays = {
        "transposed": base.T,
        "sliced": base[:, 1::2],
        "expanded": np.broadcast_to(base[0], (2, 4)),
        "reversed": base[::-1],
        "scalar": np.array(3.5),
        "empty": np.empty((0, 2), "i4"),
        "big-endian": np.arange(3, dtype=">i4"),
        "bool": np.array([True, False]),
        "half": np.ones(3, "f2"),
    }
    path = tmp_path / "model.safetensors"
    write_safetensors(path, arrays)
    found = read_safetensors(path)
    assert found.keys() == arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name].data, values)
        assert found[name].shape == values.shape
    assert read_safetensors_metadata(path) == {"format": "pt"}
    write_safetensors(path, {}, {"made by": "us"})
    assert read_safetensors_metadata(path) == {"made by": "us"}
    write_safetensors(path, {}, None)
    assert read_safetensors_metadata(path) == {}


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_safetensors(tmp_path / "a", {"w": np.ones(1)})
        write_json(tmp_path / "b", {})
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"] == [0o640, 0o640]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"w": np.ones(1)})
    old = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"can't be written \(got No space left on device\)"):
            write_safetensors(path, {"w": np.zeros(1)})
    with pytest.raises(CheckpointError, match="complex"):
        write_safetensors(path, {"w": np.zeros(1, "c16")})
    with pytest.raises(CheckpointError, match="metadata"):
        write_safetensors(path, {"w": np.zeros(1)}, {"a": 1})  # type: ignore[dict-item]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == old
    with pytest.raises(CheckpointError, match="No such file"):
        write_safetensors(tmp_path / "nowhere" / "w", {})


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_json(path, {"b": [1, 2.5, None], "a": "ä"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": [1, 2.5, None], "a": "ä"}
    assert path.read_bytes().endswith(b"}\n")
    for value in (float("nan"), {1, 2}, "\ud800"):
        with pytest.raises(CheckpointError, match="can't be written as JSON"):
            write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8"))["a"] == "ä"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
