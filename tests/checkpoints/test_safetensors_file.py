from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from d2v_ref.checkpoints import read_safetensors, read_safetensors_metadata
from d2v_ref.errors import CheckpointError

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def write(tmp_path: Path, header: Any, data: bytes = b"", raw: bytes | None = None) -> Path:
    raw = json.dumps(header).encode() if raw is None else raw
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_safetensors(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


@pytest.mark.parametrize("low_byte", range(256))
def test_a_header_of_any_length(tmp_path: Path, low_byte: int) -> None:
    """The first byte of the file is that of the length: 0x80 begins a pickle too, 0x50 ("P") a ZIP archive."""
    raw = json.dumps({"w": entry()}).encode()
    raw += b" " * ((low_byte - len(raw)) % 256)
    found = read_safetensors(write(tmp_path, None, np.array([1, 2], "float32").tobytes(), raw))["w"]
    np.testing.assert_array_equal(found.numpy(), [1, 2])


@pytest.mark.parametrize("padding", range(4))
@pytest.mark.parametrize(("code", "dtype"), DTYPES.items())
def test_dtypes_at_every_alignment(tmp_path: Path, code: str, dtype: str, padding: int) -> None:
    values = np.array([[1, 0, 1]], "uint16" if dtype == "bfloat16" else dtype)
    raw = json.dumps({"w": entry(code, [1, 3], [0, values.nbytes])}).encode()
    raw += b" " * (-len(raw) % 8 + padding)
    found = read_safetensors(write(tmp_path, None, values.tobytes(), raw))["w"]
    assert found.dtype == dtype
    assert not found.data.flags.writeable
    assert found.data.flags.aligned
    np.testing.assert_array_equal(found.data, values, strict=True)


def test_views_are_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    arrays = {"b": np.arange(6, dtype="f4").reshape(2, 3), "a": np.array(2.5), "c": np.empty((0, 4), "i4")}
    save_file(arrays, path, {"format": "tf"})
    found = read_safetensors(path)
    assert found.keys() == arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name].numpy(), values, strict=True)
    assert isinstance(found["b"].data.base, np.ndarray)
    assert found["b"].file == path
    assert read_safetensors_metadata(path) == {"format": "tf"}


def test_no_tensors_and_no_metadata(tmp_path: Path) -> None:
    assert read_safetensors(write(tmp_path, {})) == {}
    assert read_safetensors_metadata(write(tmp_path, {})) == {}


def test_bfloat16_has_the_values_of_float32(tmp_path: Path) -> None:
    path = write(tmp_path, {"w": entry("BF16", [3], [0, 6])}, np.array([0x3F80, 0xC000, 0x7F80], "<u2").tobytes())
    np.testing.assert_array_equal(read_safetensors(path)["w"].numpy(), np.array([1, -2, np.inf], "f4"), strict=True)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ([], b"", "not JSON"),
        ({"w": entry()}, bytes(7), "cut short"),
        ({"w": entry()}, bytes(9), "belong to no tensor"),
        ({"w": entry(offsets=[1, 9])}, bytes(9), "leave a hole"),
        ({"v": entry(), "w": entry()}, bytes(8), "overlap"),
        ({"v": entry(), "w": entry(offsets=[4, 12])}, bytes(12), "overlap"),
        ({"w": entry(offsets=[8, 0])}, bytes(8), "do not fit its shape"),
        ({"w": entry(shape=[3])}, bytes(8), "got 8 bytes; expected 12"),
        ({"w": entry(shape=[2**40, 2**40])}, bytes(8), "do not fit its shape"),
        ({"w": entry(shape=[2**63 - 1] * 64)}, bytes(8), "do not fit its shape"),
        ({"w": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}, b"", "more elements than can be addressed"),
        ({"w": entry(shape=[1] * 65, offsets=[0, 4])}, bytes(4), "at most 64"),
        ({"w": entry(shape=[-2])}, bytes(8), "shape of 'w'"),
        ({"w": entry(shape=[2.0])}, bytes(8), "shape of 'w'"),
        ({"w": entry(shape=[True, 2])}, bytes(8), "shape of 'w'"),
        ({"w": entry(shape="2")}, bytes(8), "shape of 'w'"),
        ({"w": entry(shape=[10**4000], offsets=[0, 10**4200])}, bytes(8), "shape of 'w'"),
        ({"w": entry(offsets=[0])}, bytes(8), "data_offsets of 'w'"),
        ({"w": entry(offsets=[0, 8, 8])}, bytes(8), "data_offsets of 'w'"),
        ({"w": entry(offsets=None)}, bytes(8), "data_offsets of 'w'"),
        ({"w": entry("F8_E4M3")}, bytes(8), "got 'F8_E4M3'; expected F64"),
        ({"w": entry(["F32"])}, bytes(8), "dtype that can't be read"),
        ({"w": [1]}, b"", "the entry of 'w'"),
        ({"w": {"dtype": "F32", "shape": []}}, b"", "the entry of 'w'"),
        ({"w": entry() | {"more": 1}}, bytes(8), "the entry of 'w'"),
        ({"__metadata__": {"format": 1}}, b"", "__metadata__"),
        ({"__metadata__": "pt"}, b"", "__metadata__"),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    assert message in refusal(write(tmp_path, header, data))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "not JSON"),
        (b'{"\xff": 1}', "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b' {"a": 1}', "not JSON"),
        (b"[]", "not JSON"),
        (b'{"w": {}, "w": {}}', "a name comes twice in the header (got 'w')"),
        (b'{"w": {"dtype": "F32", "dtype": "F32"}}', "comes twice"),
        (b'{"w": NaN}', "the entry of 'w'"),
        (b'{"w\\ud800": NaN}', "the entry of 'w\\ud800'"),
    ],
)
def test_headers_that_are_not_json(tmp_path: Path, raw: bytes, message: str) -> None:
    assert message in refusal(write(tmp_path, None, b"", raw))


def test_other_files_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    assert "no such file" in refusal(path)
    for content, message in {
        b"": "is empty",
        b"version https://git-lfs.github.com/spec/v1\n": "git lfs pull",
        b"<html>": "is a web page",
        b"PK\3\4" + bytes(50): "is a PyTorch file",
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9": "is a PyTorch file",
        b"\1\0\0": "cut short",
        b"\xff" * 9: "cut short",
        (200_000_000).to_bytes(8, "little") + b"{": "cut short",
    }.items():
        path.write_bytes(content)
        assert message in refusal(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.arange(4), "b": np.ones((2, 2), "f4")}, path)
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        refusal(path)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_never_escape(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.arange(4), "b": np.ones((2, 2), "f4")}, path, {"format": "pt"})
    data = bytearray(path.read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    path.write_bytes(data)
    try:
        tensors = read_safetensors(path)
    except CheckpointError:
        return
    assert sum(tensor.data.nbytes for tensor in tensors.values()) == 48
