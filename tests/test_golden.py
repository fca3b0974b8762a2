"""Golden bundles: every class records and checks, a planted fault is named, a damaged bundle is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import audio_models
import numpy as np
import pytest
import vision_models
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import d2v, disk, refused
from text_models import CHOICE

from d2v_ref import golden
from d2v_ref.audit import storage
from d2v_ref.auto import MODELS, load, model_class
from d2v_ref.checkpoints import read_safetensors, write_safetensors
from d2v_ref.errors import D2VError, InputError
from d2v_ref.golden import recording
from d2v_ref.golden.report import INPUT, OUTPUT
from d2v_ref.ops import Ops, registry
from d2v_ref.synthesis import write_checkpoint

ROOT = Path(__file__).parents[1]
MASKED, CAUSAL, BARE = "Data2VecTextForMaskedLM", "Data2VecTextForCausalLM", "Data2VecTextModel"
IDS = np.array([[0, 9, 8, 7, 2], [0, 5, 2, 1, 1]])
MASK = (IDS != 1).astype(np.int64)
SPEECH: dict[str, np.ndarray] = {
    "input_values": audio_models.samples(0, 2, 8000).astype(np.float32),
    "attention_mask": audio_models.mask_of([8000, 6000], 8000),
}
PICTURES: dict[str, np.ndarray] = {"pixel_values": vision_models.pictures(0, 2, 64, 64, 3).astype(np.float32)}
# What a model of each modality is recorded with, by a word of the class's name.
INPUTS = {"Text": {"input_ids": IDS, "attention_mask": MASK}, "Audio": SPEECH, "Vision": PICTURES}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    for name in MODELS:
        write_checkpoint(model_class(name), "tiny", 4, root / name)
    return {name: root / name for name in MODELS}


@pytest.fixture(scope="session")
def bundles(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of every class, of two texts or utterances of different lengths, or two pictures."""
    root = tmp_path_factory.mktemp("bundles")
    for name, folder in checkpoints.items():
        arrays = next(arrays for modality, arrays in INPUTS.items() if modality in name)
        if name == CHOICE:
            arrays = {key: array[None] for key, array in arrays.items()}
        golden.record(load(folder), arrays, root / name, name=folder, folder=folder)
    return {name: root / name for name in MODELS}


@pytest.fixture
def bundle(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(bundles[MASKED], tmp_path / "bundle")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def edit(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def strange(tap: dict[str, Any]) -> int:
    """How many elements of a tap are not finite."""
    return sum(golden.counts(tap["moments"]))


# ---- recording and checking -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_class_records_and_checks(name: str, bundles: dict[str, Path], checkpoints: dict[str, Path]) -> None:
    made, model = golden.read_bundle(bundles[name]), load(checkpoints[name])
    out, taps = model.record(**made.inputs)
    entries = {tap["name"]: tap for tap in made.manifest["taps"]}
    assert list(taps) == [key for key in entries if entries[key]["kind"] != INPUT]  # in the order of computation
    assert all(np.array_equal(taps[key], made.taps[key]) for key in taps)
    outputs = [key for key, value in out.items() if hasattr(value, "shape")]
    assert outputs == [key[1:] for key in taps if key.startswith("#")]
    assert made.manifest["model"]["class"] == name
    for tap in entries.values():
        allowed = [tap["tolerances"][form] for form in ("float32", "float16", "bfloat16")]
        assert 1.99 * tap["gap"] <= allowed[0] < 1e-3
        assert allowed == sorted(set(allowed)) or (not any(allowed) and tap["dtype"] in ("int64", "bool"))
        assert not strange(tap)

    report = golden.check(bundles[name])
    assert report.passed
    assert report.first is None
    assert [row.name for row in report.rows] == [*entries, *(f"#{key} (fused)" for key in outputs)]
    assert golden.check(bundles[name], dtype="float64").passed


@pytest.mark.parametrize("form", storage.FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_storage_in_16_bits_is_within_its_tolerances(
    name: str, form: str, bundles: dict[str, Path], checkpoints: dict[str, Path]
) -> None:
    """Emulated; and float32's tolerances are too small for it."""
    made, model = golden.read_bundle(bundles[name]), load(checkpoints[name]).with_ops(storage.StorageOps(form))
    taps = model.record(**made.inputs)[1]
    report = golden.compare(made, taps, form)
    assert not report.having(golden.FAILED), report.verdict()
    assert len(report.having(golden.PASSED)) == len(taps)
    assert golden.compare(made, taps, "float32").having(golden.FAILED)


def test_the_manifest_says_what_an_array_is(bundles: dict[str, Path]) -> None:
    made = golden.read_bundle(bundles[CAUSAL])
    first = next(tap for tap in made.manifest["taps"] if tap["kind"] == "output")
    assert first["name"] == "data2vec_text.embeddings.word_embeddings"
    assert first["inputs"] == {"input": "input_ids"}
    assert (first["module"], first["shape"], first["dtype"]) == ("Embedding", [2, 5, 64], "float32")
    assert [entry["name"] for entry in made.manifest["inputs"]] == ["input_ids", "attention_mask"]


def past(seed: int = 0, pairs: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, pairs, 2, 4, 3, 16)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        (CAUSAL, {"past_key_values": past()}),
        (CAUSAL, {"past_key_values": past(), "attention_mask": np.ones((2, 8), bool)}),
        (CAUSAL, {"labels": IDS, "head_mask": np.array([1, 0.5, 0, 1])}),
        (MASKED, {"labels": np.full_like(IDS, -100)}),  # a loss of nothing is NaN
        (MASKED, {"position_ids": IDS[:1], "attention_mask": np.ones((2, 1, 5, 5), bool)}),
        ("Data2VecTextForQuestionAnswering", {"start_positions": np.array([1, 2]), "end_positions": np.array([3, 2])}),
    ],
)
@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_arrays_from_a_file(name: str, arrays: dict[str, Any], ending: str, checkpoints: dict[str, Path]) -> None:
    given = {"input_ids": IDS, **arrays}
    if ending == "npz":
        np.savez_compressed("in.npz", **given)
    else:
        write_safetensors("in.safetensors", given)
    result = d2v("golden", "record", checkpoints[name], f"in.{ending}", "-o", "b")
    assert result.code == 0, result
    nothing = "labels" in arrays and (arrays["labels"] == -100).all()
    assert result.err == ("1 of them hold NaN or infinity, the first is #loss\n" if nothing else "")
    assert d2v("golden", "check", "b").code == 0
    read = golden.read_bundle("b").inputs
    assert all(np.array_equal(read[key], value) for key, value in given.items())


def audio_checkpoint(name: str, folder: str = "audio", **changes: Any) -> Path:
    audio_models.build(name, dtype="float32", **changes).save_pretrained(folder)
    return Path(folder)


def vision_held(name: str, arrays: dict[str, Any], flags: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A bundle of a small vision model, which its own check passes."""
    vision_models.build(name, dtype="float32", pooler=False, **changes).save_pretrained("vision")
    golden.record(load("vision"), arrays, "v", name="vision", folder=Path("vision"), arguments=flags)
    assert golden.check("v").passed
    assert golden.check("v", dtype="float64").passed
    return Path("v")


@pytest.mark.parametrize("name", vision_models.CLASSES)
def test_vision_with_masks_labels_and_options(name: str) -> None:
    arrays = vision_models.inputs_of(vision_models.build(name), 3)
    assert len(arrays) == (2 if name == vision_models.BARE else 3)
    bundle = vision_held(name, arrays, {"output_attentions": True, "interpolate_pos_encoding": True})
    made = golden.read_bundle(bundle)
    assert ("#loss" in made.taps) == ("labels" in arrays)
    assert made.taps[f"{vision_models.bare(name)}encoder.relative_position_bias"].shape[:2] == (1, 3)
    for flag in (1, "yes", None):
        with pytest.raises(InputError, match=r"takes no such argument .got interpolate_pos_encoding="):
            golden.record(load("vision"), arrays, "w", name="v", folder=Path("vision"),
                          arguments={"interpolate_pos_encoding": flag})  # fmt: skip
    with pytest.raises(InputError, match=r"takes no array of this name .got interpolate_pos_encoding; expected "):
        golden.record(load("vision"), {**arrays, "interpolate_pos_encoding": np.ones(3)}, "w", name="v",
                      folder=Path("vision"))  # fmt: skip
    assert not Path("w").exists()


def held(name: str, arrays: dict[str, Any], flags: dict[str, Any] | None = None, **changes: Any) -> golden.Bundle:
    """A bundle of a small audio model, which its own check passes."""
    folder = audio_checkpoint(name, **changes)
    made = golden.record(load(folder), arrays, "b", name=folder, folder=folder, arguments=flags)
    assert golden.check("b").passed
    assert golden.check("b", dtype="float64").passed
    return made


@pytest.mark.parametrize("name", audio_models.CLASSES)
@pytest.mark.parametrize("padding", ["hf", "exact"])
def test_audio_with_labels_and_options(name: str, padding: str) -> None:
    """Masked frames and labels are arrays of a bundle like any other."""
    changes: dict[str, Any] = {"padding": padding}
    if name in audio_models.WEIGHTED:
        changes["use_weighted_layer_sum"] = True
    if name not in audio_models.NO_ADAPTER:
        changes["add_adapter"] = True
    model = audio_models.build(name, **changes)
    arrays = audio_models.inputs_of(model, 3)
    frames = model.frame_lengths(arrays["input_values"].shape[1], add_adapter=False)
    arrays["mask_time_indices"] = np.random.default_rng(0).random((2, frames)) < 0.3
    made = held(name, arrays, {"output_attentions": True, "output_hidden_states": True}, **changes)
    assert made.inputs.keys() == arrays.keys()
    assert ("#loss" in made.taps) == ("labels" in arrays)
    assert made.manifest["model"]["config"]["padding"] == padding
    assert made.manifest["model"]["config"]["conv_dim"] == [4, 6, 5]


def test_what_is_infinite_or_nan_in_audio_is_recorded_and_compared() -> None:
    """The loss of labels that do not fit; the deviation of one frame."""
    x = audio_models.samples(0, 1, 80).astype("f4")
    made = held(audio_models.CTC, {"input_values": x, "labels": np.array([[1, 1, 1, 1, 1, 1]])})
    assert np.isposinf(made.taps["#loss"])
    shutil.rmtree("b")
    made = held(audio_models.XVECTOR, {"input_values": x[:, :79]})
    assert np.isnan(made.taps["#embeddings"]).all()
    assert next(tap["name"] for tap in made.manifest["taps"] if strange(tap)) == "feature_extractor#input"


def test_texts_from_the_command_line(checkpoints: dict[str, Path]) -> None:
    for name, shape in ((MASKED, (2, 6)), (CHOICE, (1, 2, 6))):
        result = d2v("golden", "record", checkpoints[name], "-", "-o", name, stdin=b"abc\nabcd\n")
        made = golden.read_bundle(name)
        size = sum(path.stat().st_size for path in Path(name).iterdir()) / 1e6
        assert result.out == f"{name}: {len(made.taps)} arrays of {name}, {size:.1f} MB\n"
        assert made.inputs["attention_mask"].shape == shape
        assert d2v("golden", "check", name).out.endswith("arrays passed\n")


def test_the_class_can_be_another_than_the_checkpoints(checkpoints: dict[str, Path]) -> None:
    assert d2v("golden", "record", checkpoints[MASKED], "A", "-o", "b", "--class", BARE).code == 0
    assert d2v("golden", "check", "b").code == 0


def test_a_float64_bundle_is_a_yardstick_for_every_format(checkpoints: dict[str, Path]) -> None:
    assert d2v("golden", "record", checkpoints[BARE], "A", "-o", "b", "--dtype", "float64").code == 0
    for dtype in ("float64", "float32"):
        assert d2v("golden", "check", "b", "--dtype", dtype).code == 0
    assert not golden.check("b", dtype="float64", backend=HalfPrecisionProducts("float64")).passed
    tolerances = golden.read_bundle("b").manifest["taps"][-1]["tolerances"]
    assert list(tolerances) == ["float64", "float32", "float16", "bfloat16"]
    refused("golden", "check", "b", "--dtype", "float16", says="does not compute in this dtype", code=3)


def test_numbers_that_are_not_finite_are_recorded_and_compared(checkpoints: dict[str, Path]) -> None:
    folder = shutil.copytree(checkpoints[MASKED], Path("model"))
    path = folder / "model.safetensors"
    arrays = {name: tensor.numpy().copy() for name, tensor in read_safetensors(path).items()}
    arrays["lm_head.dense.bias"][:2] = np.inf, np.nan
    write_safetensors(path, arrays)
    result = d2v("golden", "record", "model", "A", "-o", "b")
    assert (result.code, result.err) == (0, "6 of them hold NaN or infinity, the first is lm_head.dense\n")
    assert d2v("golden", "check", "b").code == 0
    made = golden.read_bundle("b")
    for value, counts in ((np.nan, "nan; inf"), (-np.inf, "inf; -inf"), (1.0, "inf")):
        changed = {name: np.where(np.isposinf(tap), np.float32(value), tap) for name, tap in made.taps.items()}
        first = golden.compare(made, changed).first
        assert first is not None
        assert (first.name, first.where, first.error) == ("lm_head.dense", (0, 0, 0), None)
        assert first.reason == f"sample at (0, 0, 0): {value}, recorded inf; {counts}"


def test_progress_counts_the_runs(checkpoints: dict[str, Path]) -> None:
    folder, seen = checkpoints[BARE], [0]
    golden.record(load(folder), {"input_ids": IDS}, "b", name="x", folder=folder, progress=seen.append)
    assert sum(seen) == golden.runs("float32")


# ---- comparing ------------------------------------------------------------------------------------------------------


def test_what_is_missing_or_has_another_shape_does_not_pass(bundles: dict[str, Path]) -> None:
    made = golden.read_bundle(bundles[BARE])
    report = golden.compare(made, {**made.taps, "pooler": made.taps["pooler"][:1]})
    assert report.first is not None
    assert (report.first.name, report.first.module, report.first.status) == ("pooler", "Data2VecTextPooler", "failed")
    assert report.first.reason == "shape (1, 64), recorded (2, 64)"
    report = golden.compare(made, {name: tap for name, tap in made.taps.items() if name != "encoder"})
    assert report.first is not None
    assert (report.first.name, report.first.status) == ("encoder", "missing")
    assert not golden.Report([]).passed


def test_the_largest_error_is_named_with_its_place(bundles: dict[str, Path]) -> None:
    made = golden.read_bundle(bundles[BARE])
    wrong = made.taps["pooler"].copy()
    wrong[1, 7] += 0.5
    wrong[0, 3] += 0.25
    row = golden.compare(made, {**made.taps, "pooler": wrong}).first
    assert row is not None
    assert (row.where, row.error) == ((1, 7), pytest.approx(0.5, rel=1e-5))
    assert row.reason.startswith(f"sample at (1, 7): {wrong[1, 7]}, recorded {made.taps['pooler'][1, 7]}; mean; rms")


# ---- planted faults -------------------------------------------------------------------------------------------------


class TanhGelu(Ops):
    def gelu(self, x: Any) -> Any:
        return self.gelu_tanh(x)


class WrongEps(Ops):
    def layer_norm(self, x: Any, weight: Any, bias: Any, eps: float) -> Any:
        return super().layer_norm(x, weight, bias, 1e-12)


class UnbiasedVariance(Ops):
    def layer_norm(self, x: Any, weight: Any, bias: Any, eps: float) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(x.var(-1, keepdims=True, ddof=1) + eps) * weight + bias


class NoScale(Ops):
    def attention(self, q: Any, k: Any, v: Any, heads: int, **options: Any) -> Any:
        return super().attention(q * np.float32((q.shape[-1] // heads) ** 0.5), k, v, heads, **options)


class NoMask(Ops):
    def attention(self, q: Any, k: Any, v: Any, heads: int, *, mask: Any = None, **options: Any) -> Any:
        return super().attention(q, k, v, heads, **options)


class CausalOffByOne(Ops):
    def attention(self, q: Any, k: Any, v: Any, heads: int, *, causal: bool = False, **options: Any) -> Any:
        allowed = np.tri(q.shape[1], k.shape[1], 1, bool)
        mask = options.pop("mask", None)
        return super().attention(q, k, v, heads, mask=allowed if mask is None else mask & allowed, **options)


class HeadsInterleaved(Ops):
    def split_heads(self, x: Any, heads: int) -> Any:
        return x.reshape(*x.shape[:2], -1, heads).transpose(0, 3, 1, 2)


class PositionsOffByOne(Ops):
    def embedding(self, ids: Any, weight: Any) -> Any:
        return super().embedding(ids - 1 if len(weight) == 130 else ids, weight)


class NoBias(Ops):
    def linear(
        self, x: Any, weight: Any, bias: Any = None, activation: Any = None, residual: Any = None, scale: Any = None
    ) -> Any:
        return super().linear(x, weight, None, activation, residual, scale)


class HalfPrecisionProducts(Ops):
    def linear(self, x: Any, weight: Any, *rest: Any) -> Any:
        return super().linear(x, weight.astype(np.float16).astype(np.float32), *rest)


class WrongTanh(Ops):
    def tanh(self, x: Any) -> Any:
        return x / (1 + np.abs(x))


class FusionWithoutResidual(Ops):
    def linear(
        self, x: Any, weight: Any, bias: Any = None, activation: Any = None, residual: Any = None, scale: Any = None
    ) -> Any:
        return super().linear(x, weight, bias, activation)


class FusionSwapsKeyAndValue(Ops):
    def project(self, x: Any, *linears: Any) -> Any:
        query, key, value = super().project(x, *linears)
        return query, value, key


class LastFrameLost(Ops):
    """Of the first convolution; what follows does not need it."""

    def conv1d(self, x: Any, weight: Any, *rest: Any, **named: Any) -> Any:
        return super().conv1d(x, weight, *rest, **named)[:, : -1 if weight.shape[1] == 1 else None]


class FrameLost(Ops):
    """Of the last convolution, before a mask of the frames is applied."""

    def conv1d(self, x: Any, weight: Any, *rest: Any, **named: Any) -> Any:
        y = super().conv1d(x, weight, *rest, **named)
        return y[:, :-1] if y.shape[1] == 24 and weight.shape[2] == 2 else y


class Broken(Ops):
    def softmax(self, x: Any) -> Any:
        raise InputError("no memory")


class NoDilation(Ops):
    def conv1d(self, x: Any, weight: Any, bias: Any = None, *rest: Any, **named: Any) -> Any:
        return super().conv1d(x, weight, bias, *rest, **{**named, "dilation": 1})


class NoPadding(Ops):
    """Of the positional convolution: its frames are those in the middle, and the ends are made up."""

    def conv1d(
        self, x: Any, weight: Any, bias: Any = None, stride: int = 1, padding: int = 0, *rest: Any, **named: Any
    ) -> Any:
        x = np.pad(x, ((0, 0), (padding, padding), (0, 0)), mode="edge")
        return super().conv1d(x, weight, bias, stride, 0, *rest, **named)


class FusionWithoutNorm(Ops):
    def conv_norm_act(self, x: Any, conv: Any, norm: Any, activation: str) -> Any:
        y = self.conv1d(x, conv.weight, conv.bias, conv.stride, conv.padding, groups=conv.groups)
        return self.activation(activation, y)


class LooseEps(Ops):
    """Of a 1e-6 in the place of the 1e-12 that vision models have."""

    def layer_norm(self, x: Any, weight: Any, bias: Any, eps: float) -> Any:
        return super().layer_norm(x, weight, bias, max(eps, 1e-6))


class SoftmaxOverQueries(Ops):
    def softmax(self, x: Any) -> Any:
        return super().softmax(x.swapaxes(-1, -2)).swapaxes(-1, -2)


class Corners(Ops):
    """align_corners=True."""

    def _interpolation(self, length: int, out: int, mode: str) -> Any:
        at = np.arange(out) * (length - 1) / max(out - 1, 1)
        return self.asarray(np.maximum(1 - np.abs(at[:, None] - np.arange(length)), 0))


class BatchEps(Ops):
    def batch_norm(self, x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Any:
        return super().batch_norm(x, mean, var, weight, bias, 1e-3)


class FusionWithoutScale(Ops):
    def linear(self, x: Any, weight: Any, bias: Any = None, activation: Any = None, residual: Any = None,
               scale: Any = None) -> Any:  # fmt: skip
        return super().linear(x, weight, bias, activation, residual)


class FusionWithoutBatchNorm(Ops):
    def conv2d_norm_act(self, x: Any, conv: Any, norm: Any, activation: str) -> Any:
        return self.activation(activation, self.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding))


class NoGate(Ops):
    def glu(self, x: Any) -> Any:
        return x[..., : x.shape[-1] // 2]


LAYER = "data2vec_text.encoder.layer.0"
CTC, XVECTOR = audio_models.CTC, audio_models.XVECTOR
CLASSIFIER, SEGMENTER = vision_models.CLASSIFIER, vision_models.SEGMENTER
VISION = "data2vec_vision.encoder.layer.0"
CONV = "data2vec_audio.feature_extractor.conv_layers.0"
POSITION = "data2vec_audio.encoder.pos_conv_embed.layers.0"


@pytest.mark.parametrize(
    ("fault", "name", "first", "module"),
    [
        (TanhGelu, MASKED, f"{LAYER}.intermediate.intermediate_act_fn", "Activation"),
        (WrongEps, MASKED, "data2vec_text.embeddings.LayerNorm", "LayerNorm"),
        (UnbiasedVariance, MASKED, "data2vec_text.embeddings.LayerNorm", "LayerNorm"),
        (NoScale, MASKED, f"{LAYER}.attention.self#probs", "Data2VecTextSelfAttention"),
        (NoMask, MASKED, f"{LAYER}.attention.self#probs", "Data2VecTextSelfAttention"),
        (CausalOffByOne, CAUSAL, f"{LAYER}.attention.self#probs", "Data2VecTextSelfAttention"),
        (HeadsInterleaved, CHOICE, f"{LAYER}.attention.self#probs", "Data2VecTextSelfAttention"),
        (PositionsOffByOne, MASKED, "data2vec_text.embeddings.position_embeddings", "Embedding"),
        (NoBias, MASKED, f"{LAYER}.attention.self.query", "Linear"),
        (HalfPrecisionProducts, MASKED, f"{LAYER}.attention.self.query", "Linear"),
        (WrongTanh, BARE, "pooler.activation", "Activation"),
        (FusionWithoutResidual, MASKED, "#logits (fused)", MASKED),
        (FusionSwapsKeyAndValue, MASKED, "#logits (fused)", MASKED),
        (TanhGelu, CTC, f"{CONV}.activation", "Activation"),
        (WrongEps, CTC, f"{CONV}.layer_norm", "LayerNorm"),
        (NoPadding, CTC, f"{POSITION}.conv", "Conv1d"),
        (NoMask, CTC, "data2vec_audio.encoder.layers.0.attention#probs", "Data2VecAudioAttention"),
        (NoDilation, XVECTOR, "tdnn.1.activation#input", "Activation"),
        (FusionWithoutNorm, CTC, "#logits (fused)", CTC),
        (TanhGelu, CLASSIFIER, f"{VISION}.intermediate.intermediate_act_fn", "Activation"),
        (LooseEps, CLASSIFIER, f"{VISION}.layernorm_before", "LayerNorm"),
        (NoScale, CLASSIFIER, f"{VISION}.attention.attention#probs", "Data2VecVisionSelfAttention"),
        (SoftmaxOverQueries, SEGMENTER, f"{VISION}.attention.attention#probs", "Data2VecVisionSelfAttention"),
        (BatchEps, SEGMENTER, "fpn1.1", "BatchNorm2d"),
        (Corners, SEGMENTER, "decode_head.psp_modules.blocks.1", "Data2VecVisionPyramidPoolingBlock"),
        (FusionWithoutScale, CLASSIFIER, "#logits (fused)", CLASSIFIER),
        (FusionWithoutBatchNorm, SEGMENTER, "#logits (fused)", SEGMENTER),
        (FusionWithoutResidual, CTC, "#logits (fused)", CTC),
    ],
)
def test_a_planted_fault_is_named_by_its_module(
    fault: type[Ops], name: str, first: str, module: str, bundles: dict[str, Path]
) -> None:
    report = golden.check(bundles[name], backend=fault())
    assert not report.passed
    assert report.first is not None
    assert (report.first.name, report.first.module, report.first.status) == (first, module, "failed")
    assert all(row.status == golden.PASSED for row in report.rows[: report.rows.index(report.first)])


@pytest.mark.parametrize("name", MODELS)
def test_of_every_class_each_module_alone_passes(name: str, bundles: dict[str, Path]) -> None:
    for dtype in Ops.dtypes:
        report = golden.check(bundles[name], dtype=dtype, isolate=True)
        assert report.passed, report.verdict()
        # NumPy beside NumPy: the same numbers; and a fault as small as an eighth of a percent shows in every product.
        assert all(row.error == 0 for row in report.having(golden.PASSED))

    class Off(Ops):
        def linear(self, x: Any, weight: Any, bias: Any = None, *rest: Any) -> Any:
            return super().linear(x, weight * weight.dtype.type(1.00125), bias, *rest)

    failed = {row.name for row in golden.check(bundles[name], backend=Off(), isolate=True).having(golden.FAILED)}
    entries = golden.read_bundle(bundles[name]).manifest["taps"]
    products = {tap["name"] for tap in entries if tap["module"] == "Linear" and tap["kind"] == OUTPUT}
    assert products <= failed


def test_a_fault_of_an_audio_model_is_named_by_its_module(bundles: dict[str, Path]) -> None:
    """Padding that is not emptied, in the model itself; a convolution that is a frame short; an adapter's gate."""
    with mock.patch("d2v_ref.audio.emptied", lambda ops, x, mask: x):
        report = golden.check(bundles[CTC])
    assert report.first is not None
    assert report.first.name == "data2vec_audio.encoder.pos_conv_embed#input"
    assert report.culprit == "data2vec_audio.encoder"
    speech = audio_models.samples().astype("f4")
    made = held(audio_models.BARE, {"input_values": speech}, add_adapter=True)
    report = golden.check("b", backend=NoGate())
    assert report.first is not None
    assert (report.first.name, report.first.module) == ("adapter.layers.0", "Data2VecAudioAdapterLayer")
    report = golden.compare(made, load("audio").with_ops(LastFrameLost()).record(speech)[1])
    assert report.first is not None
    assert report.first.name == "feature_extractor.conv_layers.0.conv"
    assert report.first.reason == "shape (2, 4, 47), recorded (2, 4, 48)"


def test_a_run_that_breaks_off_after_a_difference_is_reported(bundles: dict[str, Path]) -> None:
    """A frame that is lost fits nowhere later; without a difference before it, an error stays an error."""
    report = golden.check(bundles[CTC], backend=FrameLost())
    assert report.first is not None
    assert (report.first.name, report.first.status) == ("data2vec_audio.feature_extractor.conv_layers.6.conv", "failed")
    assert report.first.reason == "shape (2, 32, 23), recorded (2, 32, 24)"
    assert report.rows[-1].status == "missing"
    with pytest.raises(InputError, match="no memory"):
        golden.check(bundles[CTC], backend=Broken())


def test_a_mismatch_on_the_command_line(bundles: dict[str, Path]) -> None:
    """With a backend that a third party's package registers."""
    point = metadata.EntryPoint("tanh", f"{__name__}:TanhGelu", registry.GROUP)
    first = f"{LAYER}.intermediate.intermediate_act_fn"
    with mock.patch.object(registry.metadata, "entry_points", return_value=(point,)):
        assert "  computes itself: gelu\n" in d2v("backends").out
        result = d2v("golden", "check", bundles[MASKED], "--backend", "tanh")
        assert (result.code, result.err) == (1, "")
        lines = result.out.splitlines()
        assert lines[0].startswith(f"failed    {first} ")
        assert any(line.startswith(f"the first that differs: {first} (Activation), at (") for line in lines)
        assert lines[-1] == f"so look at: {first}"
        everything = d2v("golden", "check", bundles[MASKED], "--backend", "tanh", "--all").out.splitlines()
        assert everything[0].startswith("passed    data2vec_text.embeddings#token_type_ids")
        result = d2v("golden", "check", bundles[MASKED], "--backend", "tanh", "--json")
        found = json.loads(result.out)
        assert (result.code, found["passed"], found["first"]) == (1, False, first)
        assert len(found["rows"]) == sum(line.startswith(("passed ", "failed ")) for line in everything)
        refused("golden", "check", bundles[MASKED], "--backend", "nope", says="expected numpy or tanh", code=3)


# ---- what is wrong with a record ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"input_idz": IDS}, "takes no array of this name (got input_idz; expected attention_mask or"),
        ({"input_ids": IDS, "use_cache": np.array(True)}, "takes no array of this name (got use_cache"),
        ({"input_ids": IDS, "self": IDS}, "takes no array of this name (got self"),
        ({"input_ids": IDS, "options": IDS}, "takes no array of this name (got options"),
        ({"input_ids": IDS.astype(str)}, "has a dtype that can't be stored"),
        ({"input_ids": IDS.astype(complex)}, "has a dtype that can't be stored"),
        ({"input_ids": IDS.astype(float)}, "has the wrong dtype"),
        ({"input_ids": IDS[0]}, "has the wrong shape"),
        ({"input_ids": IDS[:, :0]}, "is empty"),
        ({"input_ids": IDS + 1020}, "is out of range"),
        ({"input_ids": np.full((1, 500), 5)}, "is too long"),
        ({"input_ids": IDS, "attention_mask": MASK[:, 1:]}, "has the wrong shape"),
        ({"inputs_embeds": np.full((1, 2, 64), np.nan)}, "is not finite"),
        ({"input_ids": IDS, "past_key_values": np.array(3.0)}, "past_key_values has the wrong shape"),
        ({"input_ids": IDS, "past_key_values": past(pairs=3)}, "past_key_values holds"),
        ({"input_ids": IDS, "past_key_values": past()[..., :5]}, "past_key_values has the wrong shape"),
        ({}, "give input_ids or inputs_embeds"),
    ],
)
def test_wrong_arrays(arrays: dict[str, Any], says: str, checkpoints: dict[str, Path]) -> None:
    np.savez("in.npz", **arrays)
    refused("golden", "record", checkpoints[CAUSAL], "in.npz", "-o", "b", says=says)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"input_ids": IDS}, "takes no array of this name (got input_ids; expected attention_mask or input_values"),
        ({**SPEECH, "generator": np.array(3)}, "takes no array of this name (got generator"),
        ({"input_values": SPEECH["input_values"][0]}, "input_values has the wrong shape"),
        (
            {"input_values": SPEECH["input_values"][:, :399]},
            "too short for a frame (got 399 samples; expected at least",
        ),
        ({"input_values": np.full((1, 500), np.nan)}, "input_values is not finite"),
        ({**SPEECH, "labels": np.array([[32], [1]])}, "labels is out of range (got 32 at (0, 0); expected 0 ... 31)"),
        ({**SPEECH, "mask_time_indices": np.zeros((2, 8000), bool)}, "mask_time_indices has the wrong shape"),
    ],
)
def test_wrong_arrays_of_audio(arrays: dict[str, Any], says: str, checkpoints: dict[str, Path]) -> None:
    with pytest.raises(InputError) as caught:
        golden.record(load(checkpoints[CTC]), arrays, "b", name="x", folder=checkpoints[CTC])
    assert says in str(caught.value)
    assert disk(Path()) == {}


def test_arrays_that_are_pickles() -> None:
    np.savez("in.npz", input_ids=np.array([None, IDS], object), allow_pickle=True)
    write_checkpoint(model_class(BARE), "tiny", 0, "m")
    refused("golden", "record", "m", "in.npz", "-o", "b", says="Object arrays cannot be loaded")
    Path("in.npz").write_bytes(b"\x80\x04.")
    refused("golden", "record", "m", "in.npz", "-o", "b", says="not a zip file")
    refused("golden", "record", "m", "nope.npz", "-o", "b", says="there is no such file")


def _random_array(shape: list[int], dtype: str, seed: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(scale=3, size=shape)).astype(dtype)


ANY_ARRAY = st.builds(
    _random_array,
    st.lists(st.integers(0, 6), max_size=6),
    st.sampled_from(["i1", "i8", "u2", "f2", "f4", "f8", "?", "c8", "S3", "M8[s]"]),
    st.integers(0, 9),
)
NAMES = ["input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "encoder_hidden_states"]
NAMES += ["encoder_attention_mask", "labels", "past_key_values", "head_mask", "logits_to_keep", "x"]
VISION_NAMES = ["pixel_values", "bool_masked_pos", "labels", "interpolate_pos_encoding"]
AUDIO_NAMES = ["input_values", "attention_mask", "mask_time_indices", "labels"]


@settings(max_examples=150)
@given(name=st.sampled_from([CAUSAL, CHOICE, BARE]), arrays=st.dictionaries(st.sampled_from(NAMES), ANY_ARRAY))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the draws, cast to their dtype
def test_any_arrays_are_recorded_or_refused(
    name: str, arrays: dict[str, np.ndarray], checkpoints: dict[str, Path]
) -> None:
    given = {"input_ids": IDS, **arrays}
    with suppress(D2VError):
        golden.record(load(checkpoints[name]), given, "b", name="x", folder=checkpoints[name])
        shutil.rmtree("b")
    assert disk(Path()) == {}


@settings(max_examples=60)
@given(
    name=st.sampled_from(audio_models.CLASSES),
    arrays=st.dictionaries(st.sampled_from(AUDIO_NAMES), ANY_ARRAY),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the draws, cast to their dtype
def test_any_arrays_of_audio_are_recorded_or_refused(name: str, arrays: dict[str, np.ndarray]) -> None:
    model = audio_models.build(name, dtype="float32")
    model.save_pretrained("m")
    given = {"input_values": audio_models.samples().astype("f4"), **arrays}
    with suppress(D2VError):
        golden.record(model, given, "b", name="x", folder=Path("m"))
        shutil.rmtree("b")
    assert sorted(disk(Path())) == ["m", "m/config.json", "m/model.safetensors"]


@settings(max_examples=40)
@given(
    name=st.sampled_from(vision_models.CLASSES),
    arrays=st.dictionaries(st.sampled_from(VISION_NAMES), ANY_ARRAY),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the draws, cast to their dtype
def test_any_arrays_of_vision_are_recorded_or_refused(name: str, arrays: dict[str, np.ndarray]) -> None:
    model = vision_models.build(name, dtype="float32")
    model.save_pretrained("m")
    given = {"pixel_values": vision_models.pictures().astype("f4"), **arrays}
    with suppress(D2VError):
        golden.record(model, given, "b", name="x", folder=Path("m"))
        shutil.rmtree("b")
    assert sorted(disk(Path())) == ["m", "m/config.json", "m/model.safetensors"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"use_cache": 1}, "got use_cache=1; expected"),
        ({"logits_to_keep": True}, "got logits_to_keep=True"),
        ({"input_ids": [[1]]}, "takes no such argument"),
        ({"return_dict": False}, "takes no such argument"),
        ({"logits_to_keep": -1}, "logits_to_keep"),
    ],
)
def test_wrong_arguments(flags: dict[str, Any], says: str, checkpoints: dict[str, Path]) -> None:
    folder = checkpoints[CAUSAL]
    with pytest.raises(InputError) as caught:
        golden.record(load(folder), {"input_ids": IDS}, "b", name="x", folder=folder, arguments=flags)
    assert says in str(caught.value)
    assert disk(Path()) == {}


@pytest.mark.parametrize("target", ["there", "link", "a file/b", "nope/b", "x" * 300])
def test_places_that_can_not_be_written_to(target: str, checkpoints: dict[str, Path]) -> None:
    Path("there").mkdir()
    Path("link").symlink_to("nowhere")
    Path("a file").write_bytes(b"")
    says = "exists already" if target in ("there", "link") else "can't be written"
    refused("golden", "record", checkpoints[BARE], "A", "-o", target, says=says)


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (MemoryError(), 3), (OSError(28, "full"), 3)])
def test_a_record_that_breaks_off_leaves_nothing(error: BaseException, code: int, checkpoints: dict[str, Path]) -> None:
    for step in ("tolerances", "write_safetensors", "write_manifest"):
        with mock.patch.object(recording, step, side_effect=error):
            assert d2v("golden", "record", checkpoints[BARE], "A", "-o", "b").code == code
        assert disk(Path()) == {}


def test_a_record_that_is_killed_leaves_no_folder_of_its_name(checkpoints: dict[str, Path]) -> None:
    """Killed when the manifest is about to be written, the last file of all."""
    code = f"""
import os, signal
from unittest import mock
from d2v_ref.cli import main
from d2v_ref.golden import recording
from d2v_ref.golden.report import INPUT, OUTPUT
with mock.patch.object(recording, "write_manifest", lambda *_: os.kill(os.getpid(), signal.SIGKILL)):
    main(["golden", "record", {str(checkpoints[BARE])!r}, "A", "-o", "b"])
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name[:3] for path in Path().iterdir()] == [".b."]


# ---- what is wrong with a check -------------------------------------------------------------------------------------


def test_another_checkpoint_is_refused(bundles: dict[str, Path], checkpoints: dict[str, Path]) -> None:
    refused("golden", "check", bundles[MASKED], "--model", checkpoints[BARE], says="these are not the weights")
    assert d2v("golden", "check", bundles[MASKED], "--model", checkpoints[MASKED]).code == 0


def test_a_checkpoint_that_has_moved(checkpoints: dict[str, Path]) -> None:
    folder = shutil.copytree(checkpoints[BARE], Path("model"))
    assert d2v("golden", "record", "./model", "A", "-o", "b").code == 0
    folder.rename("moved")
    assert "--model" in refused("golden", "check", "b", says="model: there is no such folder")
    assert d2v("golden", "check", "b", "--model", "moved").code == 0
    edit(Path("b"), lambda manifest: manifest["model"].update(name="owner/name"))
    where = ("--local-files-only", "--cache-dir", "cache")
    assert "--model" in refused("golden", "check", "b", *where, says="owner/name", code=3)


def _rewrite(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def rewrite(bundle: Path) -> None:
        path = bundle / "taps.safetensors"
        arrays = {name: tensor.numpy().copy() for name, tensor in read_safetensors(path).items()}
        change(arrays)
        write_safetensors(path, arrays, None)

    return rewrite


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda bundle: edit(bundle, change)


def _write(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda bundle: (bundle / name).write_bytes(content)


def _nothing_recorded(bundle: Path) -> None:
    write_safetensors(bundle / "taps.safetensors", {}, None)
    edit(bundle, lambda manifest: manifest.update(taps=[]))


NO_MOMENTS = dict.fromkeys(("mean", "rms", "min", "max"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda bundle: shutil.rmtree(bundle), "can't be read"),
        (lambda bundle: (bundle / "manifest.json").unlink(), "can't be read"),
        (lambda bundle: (bundle / "taps.safetensors").unlink(), "taps.safetensors"),
        (lambda bundle: (bundle / "inputs.safetensors").unlink(), "inputs.safetensors"),
        (lambda bundle: os.truncate(bundle / "taps.safetensors", 5000), "cut short"),
        (lambda bundle: os.truncate(bundle / "manifest.json", 500), "is not JSON"),
        (_write("manifest.json", b"\xff"), "is not JSON in UTF-8"),
        (_write("manifest.json", b"[]"), "is not a golden's manifest"),
        (_write("manifest.json", b"[" * 100_000), "is not JSON"),
        (_write("manifest.json", b"9" * 5000), "is not JSON"),
        (_write("taps.safetensors", b""), "is empty"),
        (_rewrite(lambda arrays: arrays.pop("#logits")), "#logits is missing"),
        (_rewrite(lambda arrays: arrays.update(x=IDS)), "does not name (got x)"),
        (_rewrite(lambda arrays: arrays["#logits"].__setitem__(0, 1)), "another sha256"),
        (_rewrite(lambda arrays: arrays["#logits"].fill(np.nan)), "another sha256, nan"),
        (_manifest(lambda m: m.update(format="x")), "is not a golden's manifest"),
        (_manifest(lambda m: m.update(format_version=2)), "another format version"),
        (_manifest(lambda m: m.update(dtype="float8")), "dtype is damaged"),
        (_manifest(lambda m: m.pop("form")), "form is damaged"),
        (_manifest(lambda m: m.update(form="short")), "form is damaged (got short; expected full or fingerprint)"),
        (_manifest(lambda m: m.update(form="fingerprint")), "another shape"),
        (_manifest(lambda m: m["files"].pop()), "taps.safetensors: is not the file that was recorded"),
        (_manifest(lambda m: m["files"][0].update(sha256="0")), "inputs.safetensors: is not the file"),
        (_manifest(lambda m: m["taps"][3]["moments"].pop("rms")), "taps.moments.rms is damaged"),
        (_manifest(lambda m: m["taps"][3]["moments"].update(mean=0.5)), "another mean"),
        (_manifest(lambda m: m["taps"][3]["moments"].update(inf=1)), "another inf"),
        (_manifest(lambda m: m.pop("taps")), "taps is damaged"),
        (_nothing_recorded, "taps is damaged"),
        (_manifest(lambda m: m["taps"].append(m["taps"][0])), "a name that comes twice"),
        (_manifest(lambda m: m["taps"].append(7)), "taps.name is damaged"),
        (_manifest(lambda m: m["taps"][3].update(shape=[2, 5, 65])), "another shape"),
        (_manifest(lambda m: m["taps"][3].update(shape=[0], moments=NO_MOMENTS)), "another shape"),
        (_manifest(lambda m: m["taps"][3].update(dtype="float64")), "another dtype"),
        (_manifest(lambda m: m["taps"][3]["tolerances"].update(float32=-1.0)), "taps.tolerances is damaged"),
        (_manifest(lambda m: m["taps"][3]["tolerances"].update(float32=float("nan"))), "NaN is no number"),
        (_manifest(lambda m: m["taps"][3].update(gap=float("inf"))), "Infinity is no number"),
        (_manifest(lambda m: m["taps"][3]["tolerances"].pop("float32")), "taps.tolerances is damaged"),
        (_manifest(lambda m: m["taps"][3]["tolerances"].update(float8=1)), "taps.tolerances is damaged"),
        (_manifest(lambda m: m["taps"][3].update(kind="x")), "taps.kind is damaged (got x; expected output or value"),
        (_manifest(lambda m: m["taps"][3].update(inputs={"input": 1})), "taps.inputs is damaged"),
        (_manifest(lambda m: m["taps"][3].update(inputs={"input": "x"})), "taps.inputs is damaged"),
        (_manifest(lambda m: m["backend"].pop("numerics")), "backend.numerics is damaged"),
        (_manifest(lambda m: m["inputs"][0].update(sha256="0")), "another sha256"),
        (_manifest(lambda m: m["model"].update(weights=[])), "these are not the weights"),
        (_manifest(lambda m: m["model"].update(**{"class": "X"})), "no model of this name"),
        (_manifest(lambda m: m["model"].update(name="./nope")), "--model"),
        (_manifest(lambda m: m["model"]["config"].update(hidden_size=0)), "hidden_size"),
        (_manifest(lambda m: m["model"]["config"].update(num_hidden_layers=3)), "weights are missing"),
        (_manifest(lambda m: m.update(arguments={"x": 1})), "takes no such argument"),
        (_manifest(lambda m: m.update(arguments={"input_ids": [[1]]})), "takes no such argument"),
    ],
)
def test_a_damaged_bundle_is_refused(damage: Callable[[Path], Any], says: str, bundle: Path) -> None:
    damage(bundle)
    refused("golden", "check", bundle, says=says)
    with pytest.raises(D2VError):
        golden.check(bundle)


def test_a_tolerance_that_json_reads_as_infinite(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["taps"][3]["tolerances"].update(float32=12345.5))
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace("12345.5", "1e999"))
    refused("golden", "check", bundle, says="taps.tolerances is damaged (got inf")


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of everything in a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    return [step for key, child in children for step in [(*path, key), *paths(child, (*path, key))]]


LEAF = st.none() | st.booleans() | st.integers(-3, 9) | st.floats(-2, 2) | st.text(max_size=3)
LEAVES = LEAF | st.lists(LEAF, max_size=2) | st.dictionaries(st.text(max_size=3), LEAF, max_size=2)
JSON = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(st.text(max_size=3), LEAVES, max_size=2)


def refused_or_reported(data: st.DataObject, bundle: Path) -> None:
    """A manifest with one member left out or replaced, whichever, ends in an error of ours or a report."""
    changed = Path("changed")
    shutil.rmtree(changed, ignore_errors=True)
    shutil.copytree(bundle, changed)
    manifest = json.loads((changed / "manifest.json").read_text())
    *path, key = data.draw(st.sampled_from(paths(manifest)))
    place = manifest
    for step in path:
        place = place[step]
    if data.draw(st.booleans()):
        del place[key]
    else:
        place[key] = data.draw(JSON)
    (changed / "manifest.json").write_text(json.dumps(manifest))
    before = disk(Path())
    with suppress(D2VError):
        assert golden.check(changed, local_files_only=True).rows
    assert disk(Path()) == before


@settings(max_examples=300)
@given(data=st.data())
def test_any_change_of_the_manifest_is_refused_or_reported(data: st.DataObject, bundles: dict[str, Path]) -> None:
    refused_or_reported(data, bundles[BARE])
