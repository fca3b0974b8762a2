"""TensorFlow's weights without TensorFlow: files in Keras' layout, and safetensors with TensorFlow's names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch_zip as tz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d2v_ref.checkpoints import open_checkpoint, read_tf_h5, weight_files, write_safetensors
from d2v_ref.errors import CheckpointError, UnavailableError

Arrays = Mapping[str, np.ndarray]
MODEL = "tf_data2_vec_vision_for_semantic_segmentation"
QUERY = "data2vec_vision/encoder/layer_._3/attention/attention/query"


@pytest.fixture(scope="module")
def h5py() -> ModuleType:
    module: ModuleType = pytest.importorskip("h5py", reason="tf_model.h5 is read with h5py: pip install d2v-ref[hdf5]")
    return module


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype("f4")


# A weight of every kind: TensorFlow's name, its shape, PyTorch's name.
WEIGHTS = {
    "data2vec_vision/embeddings/cls_token:0": ((1, 1, 4), "data2vec_vision.embeddings.cls_token"),
    "data2vec_vision/embeddings/mask_token:0": ((1, 1, 4), "data2vec_vision.embeddings.mask_token"),
    "data2vec_vision/embeddings/position_embeddings:0": ((1, 5, 4), "data2vec_vision.embeddings.position_embeddings"),
    "data2vec_vision/embeddings/patch_embeddings/projection/kernel:0": (
        (2, 5, 3, 4),
        "data2vec_vision.embeddings.patch_embeddings.projection.weight",
    ),
    "data2vec_vision/encoder/relative_position_bias/relative_position_bias_table:0": (
        (12, 2),
        "data2vec_vision.encoder.relative_position_bias.relative_position_bias_table",
    ),
    f"{QUERY}/kernel:0": ((4, 6), "data2vec_vision.encoder.layer.3.attention.attention.query.weight"),
    f"{QUERY}/bias:0": ((6,), "data2vec_vision.encoder.layer.3.attention.attention.query.bias"),
    "data2vec_vision/encoder/layer_._11/lambda_1:0": ((4,), "data2vec_vision.encoder.layer.11.lambda_1"),
    "data2vec_vision/encoder/layer_._11/lambda_2:0": ((4,), "data2vec_vision.encoder.layer.11.lambda_2"),
    "data2vec_vision/pooler/layernorm/gamma:0": ((4,), "data2vec_vision.pooler.layernorm.weight"),
    "data2vec_vision/pooler/layernorm/beta:0": ((4,), "data2vec_vision.pooler.layernorm.bias"),
    "classifier/kernel:0": ((4, 3), "classifier.weight"),
    "fpn1.0/kernel:0": ((2, 2, 7, 4), "fpn1.0.weight"),
    "fpn1.1/moving_mean:0": ((4,), "fpn1.1.running_mean"),
    "fpn1.1/moving_variance:0": ((4,), "fpn1.1.running_var"),
    "decode_head/psp_modules/2.1/conv/kernel:0": ((1, 1, 4, 5), "decode_head.psp_modules.2.1.conv.weight"),
    "decode_head/lateral_convs.0/bn/gamma:0": ((5,), "decode_head.lateral_convs.0.bn.weight"),
    "decode_head/classifier/bias:0": ((3,), "decode_head.classifier.bias"),
    "auxiliary_head/convs.0/bn/beta:0": ((5,), "auxiliary_head.convs.0.bn.bias"),
    "auxiliary_head/conv_module_2/conv/kernel:0": ((3, 3, 4, 5), "auxiliary_head.convs.1.conv.weight"),
    "auxiliary_head/conv_module_11/bn/moving_mean:0": ((5,), "auxiliary_head.convs.10.bn.running_mean"),
}
ARRAYS = {name: normal(*shape) for name, (shape, _) in WEIGHTS.items()}


def save_h5(path: Path, arrays: Arrays, model: str = MODEL, parts: int = 1, **options: Any) -> None:
    """As Keras writes a model's weights: a group for each layer that lists its datasets."""
    import h5py

    with h5py.File(path, "w", **options) as file:
        layers: dict[str, list[str]] = {}
        for name, values in arrays.items():
            layer = name.partition("/")[0]
            layers.setdefault(layer, []).append(f"{model}/{name}")
            file.create_dataset(f"{layer}/{model}/{name}", data=values)
        file.attrs["layer_names"] = [*layers, "max_pooling2d"]
        for layer, names in layers.items():
            if parts == 1:
                file[layer].attrs["weight_names"] = names
            else:
                for number, part in enumerate(np.array_split(np.array(names, "S"), parts)):
                    file[layer].attrs[f"weight_names{number}"] = part
        for layer in ("max_pooling2d", "top_level_model_weights"):
            file.create_group(layer).attrs["weight_names"] = []


def save_tf(folder: Path, arrays: Arrays) -> None:
    write_safetensors(folder / "model.safetensors", dict(arrays), {"format": "tf"})


def refusal(path: Path, read: Callable[[Path], object] = read_tf_h5) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def of_both(folder: Path, arrays: Arrays) -> dict[str, np.ndarray]:
    """What a tf_model.h5 and a safetensors file of the same weights give: the same."""
    folder.mkdir(exist_ok=True)
    save_tf(folder, arrays)
    found = {name: tensor.numpy() for name, tensor in open_checkpoint(folder).items()}
    save_h5(folder / "tf_model.h5", arrays)
    other = read_tf_h5(folder / "tf_model.h5")
    assert set(other) == set(found)
    for name, tensor in other.items():
        np.testing.assert_array_equal(tensor.numpy(), found[name], strict=True)
    return found


def test_a_weight_of_every_kind(h5py: ModuleType, tmp_path: Path) -> None:
    assert set(of_both(tmp_path, ARRAYS)) == {name for _, name in WEIGHTS.values()}


sizes = st.integers(1, 4)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.tuples(sizes, sizes, sizes, sizes))
def test_kernels_compute_the_same(h5py: ModuleType, tmp_path: Path, shape: tuple[int, int, int, int]) -> None:
    """Each layer's definition, once in TensorFlow's layout and once in PyTorch's."""
    height, width, inputs, outputs = shape
    dense, conv, up = normal(inputs, outputs), normal(*shape), normal(height, width, outputs, inputs)
    found = of_both(
        tmp_path / "model",
        {"classifier/kernel:0": dense, "decode_head/classifier/kernel:0": conv, "fpn2.0/kernel:0": up},
    )
    patch = normal(height, width, inputs)
    planes = np.moveaxis(patch, -1, 0)
    np.testing.assert_allclose(patch @ dense, patch @ found["classifier.weight"].T, rtol=1e-6)
    want = np.einsum("hwi,hwio->o", patch, conv)
    got = np.einsum("ihw,oihw->o", planes, found["decode_head.classifier.weight"])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    want = np.einsum("i,hwoi->hwo", patch[0, 0], up)
    got = np.einsum("i,iohw->ohw", planes[:, 0, 0], found["fpn2.0.weight"])
    np.testing.assert_allclose(np.moveaxis(got, 0, -1), want, rtol=1e-4, atol=1e-6)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.sets(st.sampled_from(sorted(ARRAYS)), min_size=1),
    model=st.sampled_from([MODEL, f"{MODEL}_1", "tf_data2_vec_vision_model_12", "mine"]),
    parts=st.integers(1, 4),
    userblock=st.sampled_from([0, 512, 2048]),
    dtype=st.sampled_from(["f2", "f4", "f8"]),
)
def test_any_weights(
    h5py: ModuleType, tmp_path: Path, names: set[str], model: str, parts: int, userblock: int, dtype: str
) -> None:
    """Whatever the model is called, however Keras divides the lists, wherever the file's contents begin."""
    path = tmp_path / "tf_model.h5"
    save_h5(path, {name: ARRAYS[name].astype(dtype) for name in names}, model, parts, userblock_size=userblock)
    found = read_tf_h5(path)
    bare = all(name.startswith("data2vec_vision/") for name in names)
    for name in names:
        tensor = found.pop(WEIGHTS[name][1].removeprefix("data2vec_vision." if bare else ""))
        assert tensor.dtype == np.dtype(dtype).name
        assert tensor.file == path
        assert not tensor.data.flags.writeable
        np.testing.assert_array_equal(np.sort(tensor.data, axis=None), np.sort(ARRAYS[name].astype(dtype), axis=None))
    assert not found


def test_a_file_of_pytorch_comes_first(h5py: ModuleType, tmp_path: Path) -> None:
    save_h5(tmp_path / "tf_model.h5", {"classifier/bias:0": normal(3)})
    assert weight_files(tmp_path) == [tmp_path / "tf_model.h5"]
    assert open_checkpoint(tmp_path)["classifier.bias"].shape == (3,)
    save_tf(tmp_path, {"classifier/bias:0": normal(4)})
    assert open_checkpoint(tmp_path)["classifier.bias"].shape == (4,)
    tensor = tz.tensor(tz.storage("FloatStorage", "0", 5), (5,), (1,))
    tz.archive(tmp_path / "pytorch_model.bin", tz.state_dict({"classifier.bias": tensor}), {"0": normal(5).tobytes()})
    assert weight_files(tmp_path) == [tmp_path / "pytorch_model.bin"]
    assert open_checkpoint(tmp_path)["classifier.bias"].shape == (5,)
    write_safetensors(tmp_path / "model.safetensors", {"classifier.bias": normal(6)}, {"format": "pt"})
    assert open_checkpoint(tmp_path)["classifier.bias"].shape == (6,)


def test_shards_of_tensorflow(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"classifier/bias:0": normal(3)}, {"format": "tf"})
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"classifier/bias:0": "a.safetensors"}}')
    with pytest.raises(CheckpointError, match="is a shard of a TensorFlow model"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *("kernel:0", "classifier:0", "classifier/:0", "classifier//kernel:0", "classifier/kernel:0/", "bert/kernel:0"),
        *("model/bert/classifier/kernel:0", "classifier/weight", "classifier/kernel:", "classifier/gamma_1:0", ":0"),
    ],
)
def test_names_of_no_weight(tmp_path: Path, name: str) -> None:
    save_tf(tmp_path, {"classifier/bias:0": normal(3), name: normal(4, 3)})
    with pytest.raises(CheckpointError, match="is no weight of a TFData2VecVision class"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        *((name, rank) for name in ("kernel", "relative_position_bias_table") for rank in (0, 1, 3, 5)),
        *((name, rank) for name in ("bias", "gamma", "moving_variance", "lambda_2") for rank in (0, 2)),
        *((name, rank) for name in ("cls_token", "mask_token", "position_embeddings") for rank in (2, 4)),
    ],
)
def test_ranks_that_no_weight_has(tmp_path: Path, name: str, rank: int) -> None:
    save_tf(tmp_path, {f"classifier/{name}:0": np.ones((2,) * rank, "f4")})
    with pytest.raises(CheckpointError, match=rf"has the wrong rank \(got \({', '.join('2' * rank)}"):
        open_checkpoint(tmp_path)


def test_two_weights_of_one_name(tmp_path: Path) -> None:
    save_tf(tmp_path, {"fpn1.1/gamma:0": normal(3), "fpn1.1/kernel:0": normal(3, 3)})
    with pytest.raises(CheckpointError, match=r"two weights are 'fpn1\.1\.weight' in PyTorch"):
        open_checkpoint(tmp_path)


def test_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UnavailableError, match=r"tf_model.h5: reading it needs h5py.*pip install d2v-ref\[hdf5\]"):
        open_checkpoint(tmp_path)


def test_files_that_are_none(h5py: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "tf_model.h5"
    assert "there is no such file" in refusal(path)
    for content, message in (
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html>", "is a web page"),
        (b"PK\x03\x04" + bytes(600), "the file is damaged, or is no HDF5 file"),
    ):
        path.write_bytes(content)
        assert message in refusal(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short(h5py: ModuleType, tmp_path: Path, share: float) -> None:
    save_h5(tmp_path / "whole.h5", ARRAYS)
    whole = (tmp_path / "whole.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: int(share * len(whole))])
    refusal(tmp_path / "cut.h5")


@pytest.fixture
def changed(h5py: ModuleType, tmp_path: Path) -> Callable[[Callable[[Any, Any], None]], str]:
    """What is said of a file after a change to it and to the group of its one weight."""

    def change(edit: Callable[[Any, Any], None]) -> str:
        path = tmp_path / "tf_model.h5"
        save_h5(path, {"classifier/kernel:0": normal(3, 4)}, model="m")
        with h5py.File(path, "r+") as file:
            edit(file, file["classifier/m/classifier"])
        return refusal(path)

    return change


def set_attribute(name: str, value: Any) -> Callable[[Any, Any], None]:
    def edit(file: Any, _: Any) -> None:
        group, _, attribute = name.rpartition("/")
        owner = file[group] if group else file
        del owner.attrs[attribute]
        if value is not None:
            owner.attrs[attribute] = value

    return edit


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layer_names", None, "'/' has no attribute layer_names"),
        ("classifier/weight_names", None, "'/classifier' has no attribute weight_names"),
        ("layer_names", 3, "the attribute layer_names of '/' has the wrong form (got int64 of shape ();"),
        ("layer_names", "classifier", "of shape ()"),
        ("layer_names", [1.5], "got float64 of shape (1,)"),
        ("layer_names", [["classifier"]], "of shape (1, 1)"),
        ("layer_names", ["nothing"], "'nothing' is listed but not there"),
        ("layer_names", ["classifier/m/classifier/kernel:0"], "has no attribute weight_names"),
        ("layer_names", [], "the file holds no weights"),
        ("layer_names", [""], "'' is listed but not there"),
        ("layer_names", ["."], "tf_model.h5"),
        ("layer_names", np.array([b"\xff"]), "tf_model.h5"),
        ("classifier/weight_names", ["m/classifier/bias:0"], "'m/classifier/bias:0' is listed but not there"),
        ("classifier/weight_names", ["m/classifier"], "'m/classifier' is a group (expected a dataset)"),
        ("classifier/weight_names", ["m/classifier/kernel:0/x"], "is listed but not there"),
        ("classifier/weight_names", ["/classifier/m/classifier/kernel:0"], "is listed but not there"),
        ("classifier/weight_names", ["m/classifier/kernel:0"] * 2, "'m/classifier/kernel:0' is listed twice"),
    ],
)
def test_lists_that_are_wrong(
    changed: Callable[[Callable[[Any, Any], None]], str], name: str, value: Any, message: str
) -> None:
    assert message in changed(set_attribute(name, value))


def test_a_list_without_end(h5py: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "tf_model.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["layer_names"] = np.zeros(100_001, "S1")
    assert "has the wrong form (got |S1 of shape (100001,); expected a list of at most 100000 names)" in refusal(path)


def test_weights_of_no_layer_count_too(changed: Callable[[Callable[[Any, Any], None]], str]) -> None:
    text = changed(set_attribute("top_level_model_weights/weight_names", ["loose:0"]))
    assert "'loose:0' is listed but not there" in text


def stored(**options: Any) -> Callable[[Any, Any], None]:
    def edit(_: Any, group: Any) -> None:
        del group["kernel:0"]
        group.create_dataset("kernel:0", **options)

    return edit


VALUES = np.ones((3, 4), "f4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": VALUES.astype(">f4")}, "has a dtype that can't be read (got >f4; expected little-endian float64"),
        ({"data": VALUES.astype("i4")}, "has a dtype that can't be read (got int32"),
        ({"data": VALUES.astype(bool)}, "has a dtype that can't be read (got bool"),
        ({"data": VALUES.astype("c8")}, "has a dtype that can't be read (got complex64"),
        ({"data": "text"}, "has a dtype that can't be read (got object"),
        ({"data": VALUES, "chunks": (1, 4)}, "is not stored as one piece of this file"),
        ({"data": VALUES, "compression": "gzip"}, "is not stored as one piece of this file"),
        ({"shape": (1 << 20, 1 << 30), "dtype": "f4"}, "is not stored as one piece of this file"),
        ({"shape": (3, 4), "dtype": "f4", "external": "other.raw"}, "is not stored as one piece of this file"),
    ],
)
def test_storage_that_is_not_read(
    changed: Callable[[Callable[[Any, Any], None]], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: Any,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.raw").write_bytes(bytes(100))
    assert message in changed(stored(**options))


def test_a_virtual_dataset(h5py: ModuleType, changed: Callable[[Callable[[Any, Any], None]], str]) -> None:
    def edit(_: Any, group: Any) -> None:
        layout = h5py.VirtualLayout((3, 4), "f4")
        layout[...] = h5py.VirtualSource("other.h5", "w", (3, 4))
        del group["kernel:0"]
        group.create_virtual_dataset("kernel:0", layout)

    assert "is not stored as one piece of this file" in changed(edit)


@pytest.mark.parametrize("moved", ["classifier", "classifier/m", "classifier/m/classifier/kernel:0"])
@pytest.mark.parametrize("external", [False, True])
def test_links_are_not_followed(
    h5py: ModuleType,
    changed: Callable[[Callable[[Any, Any], None]], str],
    tmp_path: Path,
    moved: str,
    external: bool,
) -> None:
    """A file beside it holds the same objects; nobody may look."""
    save_h5(tmp_path / "other.h5", {"classifier/kernel:0": normal(3, 4)}, model="m")

    def edit(file: Any, _: Any) -> None:
        file.move(moved, "elsewhere")
        file[moved] = h5py.ExternalLink(str(tmp_path / "other.h5"), moved) if external else h5py.SoftLink("/elsewhere")

    assert "is behind a soft or external link, which is not followed" in changed(edit)


@pytest.mark.parametrize("rows", [1 << 12, 1 << 40, (1 << 60) - 1])
def test_a_shape_that_is_larger_than_the_file(h5py: ModuleType, tmp_path: Path, rows: int) -> None:
    """The header of a dataset of 3 x 4 is made to say more rows: refused, by HDF5 or here, and nothing is allocated."""
    path = tmp_path / "tf_model.h5"
    save_h5(path, {"classifier/kernel:0": normal(3, 4)})
    with h5py.File(path) as file:
        offset = file[f"classifier/{MODEL}/classifier/kernel:0"].id.get_offset()
    data = path.read_bytes()
    for before, after in (((3, 4), (rows, 4)), ((offset, 48), (offset, rows * 16))):
        old, new = (b"".join(number.to_bytes(8, "little") for number in numbers) for numbers in (before, after))
        assert old in data
        data = data.replace(old, new)
    path.write_bytes(data)
    refusal(path)
