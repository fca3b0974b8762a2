from __future__ import annotations

import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch_zip as tz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d2v_ref.checkpoints import pickle_data, read_torch_file, stored_zip
from d2v_ref.errors import CheckpointError

NUMBERS = np.arange(12, dtype="<f4")
FLOATS = tz.storage("FloatStorage", "0", 12)


def save(path: Path, entries: dict[str, bytes], storages: dict[str, bytes] | None = None) -> Path:
    return tz.archive(path / "pytorch_model.bin", tz.state_dict(entries), storages or {"0": NUMBERS.tobytes()})


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_torch_file(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def pickle_refusal(tmp_path: Path, pickle: bytes) -> str:
    return refusal(tz.archive(tmp_path / "pytorch_model.bin", pickle, {"0": NUMBERS.tobytes()}))


def test_views_of_one_storage(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        {
            "whole": tz.tensor(FLOATS, (3, 4), (4, 1)),
            "transposed": tz.tensor(FLOATS, (4, 3), (1, 4)),
            "slice": tz.tensor(FLOATS, (2, 2), (4, 1), offset=5),
            "expanded": tz.tensor(FLOATS, (5, 4), (0, 1), offset=8),
            "scalar": tz.tensor(FLOATS, (), (), offset=11),
            "empty": tz.tensor(FLOATS, (0, 7), (7, 1)),
            "odd stride": tz.tensor(FLOATS, (1, 2), (2**80, 1)),
        },
    )
    tensors = read_torch_file(path)
    whole = NUMBERS.reshape(3, 4)
    expected = {
        "whole": whole,
        "transposed": whole.T,
        "slice": whole[1:, 1:3],
        "expanded": np.broadcast_to(whole[2], (5, 4)),
        "scalar": whole[2, 3],
        "empty": np.empty((0, 7), "f4"),
        "odd stride": whole[:1, :2],
    }
    assert tensors.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(tensors[name].numpy(), values, strict=True)
        assert tensors[name].dtype == "float32"
        assert not tensors[name].data.flags.writeable
        assert tensors[name].file == path
    assert np.shares_memory(tensors["whole"].data, tensors["transposed"].data)
    assert tensors["slice"].data.ctypes.data == tensors["whole"].data.ctypes.data + 20


@pytest.mark.parametrize(
    ("kind", "dtype", "bits"),
    [
        ("DoubleStorage", "float64", "<f8"),
        ("FloatStorage", "float32", "<f4"),
        ("HalfStorage", "float16", "<f2"),
        ("BFloat16Storage", "bfloat16", "<u2"),
        ("LongStorage", "int64", "<i8"),
        ("IntStorage", "int32", "<i4"),
        ("ShortStorage", "int16", "<i2"),
        ("CharStorage", "int8", "i1"),
        ("ByteStorage", "uint8", "u1"),
        ("BoolStorage", "bool", "?"),
    ],
)
@pytest.mark.parametrize("padding", range(8))
def test_dtypes_at_every_alignment(tmp_path: Path, kind: str, dtype: str, bits: str, padding: int) -> None:
    values = np.array([1, 0, 1], bits)
    pickle = tz.state_dict({"w" * (padding + 1): tz.tensor(tz.storage(kind, "0", 3), (3,), (1,))})
    (found,) = read_torch_file(tz.archive(tmp_path / "w.bin", pickle, {"0": values.tobytes()})).values()
    assert found.dtype == dtype
    assert found.data.flags.aligned
    assert not found.data.flags.writeable
    np.testing.assert_array_equal(found.data, values, strict=True)


def test_a_dtype_without_a_storage_type(tmp_path: Path) -> None:
    untyped = tz.storage("UntypedStorage", "0", 6, module="torch.storage")
    parts = tz.group(untyped, *map(tz.integer, [1]), tz.integers([2]), tz.integers([1]), tz.FALSE, tz.ORDERED_DICT)
    v3 = tz.name("torch._utils", "_rebuild_tensor_v3") + parts[:-1] + tz.name("torch", "uint16") + b"tR"
    found = read_torch_file(save(tmp_path, {"w": v3}, {"0": np.array([7, 8, 9], "<u2").tobytes()}))
    np.testing.assert_array_equal(found["w"].data, np.array([8, 9], "u2"), strict=True)


def test_protocol_4_and_metadata(tmp_path: Path) -> None:
    def short(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode() + b"\x94"

    body = short("collections") + short("OrderedDict") + b"\x93\x94)R\x94"
    state = b"}" + tz.text("_metadata") + tz.ORDERED_DICT + b"s"
    pickle = b"\x80\x04" + body + tz.text("w") + tz.tensor(FLOATS, (1,), (1,)) + b"s" + state + b"b."
    assert list(read_torch_file(tz.archive(tmp_path / "w.bin", pickle, {"0": NUMBERS.tobytes()}))) == ["w"]


def test_an_empty_state_dict(tmp_path: Path) -> None:
    assert read_torch_file(save(tmp_path, {})) == {}


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "message"),
    [
        ((13,), (1,), 0, "reaches to byte 52"),
        ((3, 4), (4, 1), 1, "reaches to byte 52"),
        ((2,), (2**61,), 0, "reaches to byte"),
        ((2**62, 2**62), (0, 0), 0, "more elements than can be addressed"),
        ((0, 2**70), (1, 1), 0, "more elements than can be addressed"),
        ((-1,), (1,), 0, "negative"),
        ((2,), (-1,), 5, "negative"),
        ((2,), (1,), -1, "negative"),
        ((2,), (1, 1), 0, "1 dimensions and 2 strides"),
        ((1,) * 65, (1,) * 65, 0, "65 dimensions"),
    ],
)
def test_a_view_outside_its_storage(
    tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, message: str
) -> None:
    assert message in refusal(save(tmp_path, {"w": tz.tensor(FLOATS, shape, strides, offset)}))


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (tz.storage("FloatStorage", "0", 13), "has 48 bytes, and not 13 times float32"),
        (tz.storage("FloatStorage", "0", -1), "not a storage"),
        (tz.storage("FloatStorage", "9", 12), "is not in the archive"),
        (tz.storage("FloatStorage", "../data.pkl", 12), "is not in the archive"),
        (tz.storage("float32", "0", 12), "not a storage"),
        (tz.text("storage") + b"Q", "not a storage"),
    ],
)
def test_a_storage_that_is_not_there(tmp_path: Path, of: bytes, message: str) -> None:
    assert message in refusal(save(tmp_path, {"w": tz.tensor(of, (12,), (1,))}))


@pytest.mark.parametrize(
    ("module", "attribute"),
    [("posix", "system"), ("builtins", "eval"), ("torch", "load"), ("os\nx", "y"), ("torch._utils", "__import__")],
)
def test_a_name_that_is_code(tmp_path: Path, module: str, attribute: str) -> None:
    called = tz.name(module, attribute) + tz.group(tz.text(f"touch {tmp_path / 'ran'}")) + b"R"
    text = refusal(save(tmp_path, {"w": called}))
    assert "asks to run code" in text
    assert f"{module}.{attribute}".partition("\n")[0] in text
    assert not (tmp_path / "ran").exists()


def test_a_name_from_the_stack_that_is_code(tmp_path: Path) -> None:
    text = pickle_refusal(tmp_path, b"\x80\x04" + tz.text("posix") + tz.text("sys\ud800tem") + b"\x93.")
    assert "asks to run code, 'posix.sys\\ud800tem'" in text


@pytest.mark.parametrize(
    ("module", "attribute", "kind"),
    [
        ("torch._utils", "_rebuild_qtensor", "quantized"),
        ("torch._utils", "_rebuild_sparse_tensor", "sparse"),
        ("torch", "ComplexFloatStorage", "complex"),
        ("torch._tensor", "_rebuild_from_type_v2", "attributes of its own"),
    ],
)
def test_kinds_of_tensors_that_are_not_read(tmp_path: Path, module: str, attribute: str, kind: str) -> None:
    assert kind in refusal(save(tmp_path, {"w": tz.name(module, attribute)}))


@pytest.mark.parametrize(
    ("pickle", "message"),
    [
        (b"", "pickle is damaged"),
        (b"\x80\x02", "pickle is damaged"),
        (b"\x80\x02.", "ends too early"),
        (b"\x80\x02}}.", "ends too early"),
        (b"\x80\x02]N\x85a.", "no state dict (got list"),
        (b"\x80\x02(i os\nsystem\n.", "instruction INST"),
        (b"\x80\x02c__main__\nX\n)\x81.", "asks to run code"),
        (tz.ORDERED_DICT + b")\x81.", "instruction NEWOBJ"),
        (b"P0\n.", "instruction PERSID"),
        (b"\x82\x01.", "instruction EXT1"),
        (b"S'\\z'\n.", "its pickle"),
        (b"R.", "not there"),
        (b"(R.", "not there"),
        (b"t.", "a mark is missing"),
        (b"q\x00.", "keeps an object that is not there"),
        (b"h\x05.", "no object was kept as number 5"),
        (b"N)R.", "calls an object"),
        (tz.name("torch", "FloatStorage") + b")R.", "calls torch.FloatStorage, which is not a function"),
        (tz.name("collections", "OrderedDict") + b"N\x85R.", "an OrderedDict is made from something"),
        (tz.name("collections", "OrderedDict") + b"NR.", "calls collections.OrderedDict"),
        (tz.name("torch._utils", "_rebuild_tensor_v2") + b")R.", "a tensor has parts"),
        (tz.name("torch._utils", "_rebuild_tensor_v3") + b")R.", "a tensor has parts"),
        (tz.name("torch._utils", "_rebuild_parameter") + b")R.", "a parameter is made"),
        (b"}Ns.", "expected a dict to fill"),
        (b"s.", "not there"),
        (b"NNNs.", "expected a dict to fill"),
        (b"}(Nu.", "a key without a value"),
        (b"}NNs.", "a key is a NoneType"),
        (b"})Ns.", "a key is a tuple"),
        (b"}(" + 2 * (tz.text("w") + b"N") + b"u.", "the key 'w' comes twice"),
        (b"}}b.", "sets attributes"),
        (b"}" + tz.integer(3) + b"Ns.", "the entry 3 is not a tensor"),
        (b"NN\x93.", "a name is not text"),
        (b"}" + tz.text("epoch") + tz.integer(3) + b"s.", "the entry 'epoch' is not a tensor (got int"),
        (b"}" + tz.text("model") + b"}s.", "the entry 'model' is not a tensor (got dict"),
        (tz.tensor(FLOATS, (1,), (1,)) + b".", "no state dict (got a tensor"),
        (tz.tensor(FLOATS, (1,), (1,)).replace(tz.integers([1]), b"N", 1) + b".", "are not integers"),
    ],
)
def test_pickles_that_are_no_state_dict(tmp_path: Path, pickle: bytes, message: str) -> None:
    assert message in pickle_refusal(tmp_path, pickle)


def test_metadata_of_a_tensor_is_refused(tmp_path: Path) -> None:
    negative = b"}" + tz.text("neg") + b"\x88s"
    parts = tz.group(FLOATS, tz.integer(0), tz.integers([1]), tz.integers([1]), tz.FALSE, tz.ORDERED_DICT, negative)
    assert "negative bit" in refusal(
        save(tmp_path, {"w": tz.name("torch._utils", "_rebuild_tensor_v2") + parts + b"R"})
    )


def test_deep_nesting_and_many_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = b"\x80\x02)" + b"\x85" * 200_000 + b"."
    assert "no state dict (got tuple" in pickle_refusal(tmp_path, deep)
    monkeypatch.setattr(pickle_data, "MAX_STEPS", 1000)
    assert "more than 1000 instructions" in pickle_refusal(tmp_path, deep)


def test_limits_on_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, {"w": tz.tensor(FLOATS, (1,), (1,))})
    monkeypatch.setattr("d2v_ref.checkpoints.torch_file.MAX_PICKLE", 10)
    assert "data.pkl is too large" in refusal(path)
    monkeypatch.setattr(stored_zip, "MAX_ENTRIES", 1)
    assert "end record is wrong" in refusal(path)


def test_other_files_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    assert "no such file" in refusal(path)
    for content, message in {
        b"": "is empty",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n": "git lfs pull",
        b"\n<!DOCTYPE html><html>": "is a web page",
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.": "PyTorch before 1.6",
        b"\x80\x04}.": "a bare pickle",
        b"\x08\0\0\0\0\0\0\0{}      ": "a safetensors file",
        b"hello": "not a torch.save file",
        b"PK\3\4": "cut short",
        b"PK\3\4" + bytes(100): "cut short",
    }.items():
        path.write_bytes(content)
        assert message in refusal(path)
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("storages"))
    assert "a tar archive" in refusal(path)
    path.unlink()
    path.mkdir()
    assert "is a folder" in refusal(path)


def test_archives_that_torch_did_not_write(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    pickle, storages = tz.state_dict({"w": tz.tensor(FLOATS, (1,), (1,))}), {"0": NUMBERS.tobytes()}
    tz.archive(path, pickle, storages, compression=zipfile.ZIP_DEFLATED)
    assert "is compressed" in refusal(path)
    tz.archive(path, pickle, storages, others={"constants.pkl": b"", "code/a.py": b""})
    assert "TorchScript" in refusal(path)
    tz.archive(path, pickle, storages, others={"byteorder": b"big"})
    assert "big-endian" in refusal(path)
    tz.archive(path, pickle, storages, others={"byteorder": b"little"})
    assert list(read_torch_file(path)) == ["w"]
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", b"")
    assert "0 entries named <folder>/data.pkl" in refusal(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"")
        file.writestr("b/data.pkl", b"")
    assert "2 entries" in refusal(path)


def test_archives_that_two_readers_would_read_differently(tmp_path: Path) -> None:
    path = save(tmp_path, {"w": tz.tensor(FLOATS, (1,), (1,))})
    good = path.read_bytes()
    central = good.index(b"PK\1\2")
    second = good.index(b"PK\1\2", central + 1)

    def changed(position: int, data: bytes) -> str:
        path.write_bytes(good[:position] + data + good[position + len(data) :])
        return refusal(path)

    path.write_bytes(good + b"x")
    assert "something follows it" in refusal(path)
    path.write_bytes(b"PK\3\4" + good)
    assert "end record is wrong" in refusal(path)
    assert "disagree" in changed(30, b"X")  # the name in the local header
    assert "disagree" in changed(8, b"\x08")  # its method
    assert "disagree" in changed(18, b"\x01")  # its size
    assert "two sizes" in changed(central + 20, b"\x01")
    assert "overlaps" in changed(second + 42, b"\x01")
    assert "zip64 field is missing" in changed(central + 42, b"\xff\xff\xff\xff")
    assert "points beyond its own end" in changed(second + 42, b"\xff\xff\xff\x7f")
    assert "directory is damaged" in changed(central + 34, b"\x01")  # on another disk
    assert "not UTF-8" in changed(central + 46, b"\xff")
    duplicated = good[:second] + good[central : central + 46] + good[second + 46 :]
    path.write_bytes(duplicated)
    refusal(path)


def test_zip64(tmp_path: Path) -> None:
    """PyTorch always writes the zip64 end record, zipfile only if it must: one made by hand, and made wrong."""
    path = save(tmp_path, {"w": tz.tensor(FLOATS, (12,), (1,))})
    good = path.read_bytes()
    *_, count, length, start, _ = struct.unpack("<4s4H2IH", good[-22:])
    end = len(good) - 22

    def wide(shift: int = 0, count64: int = count) -> None:
        record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count64, count64, length, start)
        locator = struct.pack("<4sIQI", b"PK\6\7", 0, end + shift, 1)
        short = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, count, 0xFFFFFFFF, start, 0)
        path.write_bytes(good[:end] + record + locator + short)

    wide()
    np.testing.assert_array_equal(read_torch_file(path)["w"].data, NUMBERS)
    wide(shift=1)
    assert "not where it should be" in refusal(path)
    wide(count64=count + 1)
    assert "disagree" in refusal(path)


def small_file(tmp_path: Path) -> tuple[Path, bytes]:
    path = save(tmp_path, {"a": tz.tensor(FLOATS, (3, 4), (4, 1)), "b": tz.tensor(FLOATS, (2,), (3,), offset=2)})
    return path, path.read_bytes()


def reads_or_refuses(path: Path) -> None:
    try:
        tensors = read_torch_file(path)
    except CheckpointError:
        return
    for tensor in tensors.values():
        assert tensor.data.size == 0 or np.isscalar(tensor.data.flat[-1].item())


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path, good = small_file(tmp_path)
    for length in range(len(good)):
        path.write_bytes(good[:length])
        refusal(path)


FUZZ = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_never_escape(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    path, good = small_file(tmp_path)
    data = bytearray(good)
    for position, value in changes:
        data[position % len(data)] = value
    path.write_bytes(data)
    reads_or_refuses(path)


_PIECES = [
    b"(",
    b"t",
    b"}",
    b"]",
    b")",
    b"u",
    b"s",
    b"e",
    b"a",
    b"R",
    b"b",
    b"Q",
    b"N",
    b"\x85",
    b"\x86",
    b"\x93",
    b"\x94",
]
_PIECES += [b"h\x00", b"q\x00", FLOATS, tz.ORDERED_DICT, tz.text("_metadata"), tz.tensor(FLOATS, (1,), (1,))]
_PIECES += [
    tz.name("torch._utils", name) for name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")
]


@FUZZ
@given(pieces=st.lists(st.one_of(st.sampled_from(_PIECES), st.binary(max_size=3)), max_size=20))
def test_any_instructions_never_escape(tmp_path: Path, pieces: list[bytes]) -> None:
    reads_or_refuses(tz.archive(tmp_path / "w.bin", b"".join(pieces) + b".", {"0": NUMBERS.tobytes()}))
