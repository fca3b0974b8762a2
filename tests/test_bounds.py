"""Tolerances: a faithful float32 run stays within them, and a fault in one operation does not."""

from __future__ import annotations

import functools
import itertools
from typing import Any
from unittest import mock

import audio_models
import numpy as np
import pytest
import vision_models
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import CHOICE, CLASSES, build, token_ids, trained

import d2v_ref.audio
import d2v_ref.ops.definitions
import d2v_ref.vision
from d2v_ref.golden import tolerances
from d2v_ref.golden.bounds import FORMATS, Exact, Format, RoundingProbe
from d2v_ref.ops import ACTIVATIONS, Ops

MODEL = "Data2VecTextModel"
EXACT = Ops("float64")


def record(model: Any, ops: Ops, **inputs: Any) -> dict[str, np.ndarray]:
    return model.with_ops(ops).record(**inputs)[1]


def bounds(model: Any, exact: dict[str, np.ndarray], dtype: str = "float32", **inputs: Any) -> dict[str, float]:
    def run(ops: Ops, tell: Any) -> None:
        for name, value in record(model, ops, **inputs).items():
            tell(name, value)

    return tolerances(run, exact, FORMATS[dtype])


def first_outside(got: dict[str, np.ndarray], exact: dict[str, np.ndarray], allowed: dict[str, float]) -> str | None:
    """The first array, in the order of computation, that is off by more than it may be.

    NaN and infinity must be where they are.
    """
    for name, want in exact.items():
        finite = np.isfinite(want)
        if not np.array_equal(got[name][~finite], want[~finite], equal_nan=True):
            return name
        with np.errstate(invalid="ignore"):  # an infinite loss less itself
            if not np.abs(got[name] - want)[finite].max(initial=0) <= allowed[name]:
                return name
    return None


# ---- no false alarm


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    factor=st.sampled_from([0.0, 1.0, 4.0]),
    kind=st.sampled_from(["absolute", "relative_key_query"]),
    act=st.sampled_from(["gelu", "relu", "silu"]),
)
def test_float32_stays_within(name: str, seed: int, factor: float, kind: str, act: str) -> None:
    """Sharp attention and large weights included: both errors grow together."""
    model = trained(build(name, seed=seed, dtype="float32", position_embedding_type=kind, hidden_act=act), factor, seed)
    ids = token_ids(name, seed % 997)
    mask = np.random.default_rng(seed).random(ids.shape) < 0.8
    exact = record(model, EXACT, input_ids=ids, attention_mask=mask)
    allowed = bounds(model, exact, input_ids=ids, attention_mask=mask)
    assert first_outside(model.record(ids, attention_mask=mask)[1], exact, allowed) is None


def test_a_larger_model_in_float32_stays_within() -> None:
    shape: dict[str, Any] = {
        "hidden_size": 96,
        "num_attention_heads": 4,
        "intermediate_size": 192,
        "num_hidden_layers": 6,
    }
    for seed in range(3):
        model = build(MODEL, seed=seed, dtype="float32", **shape)
        ids = token_ids(MODEL, seed, length=16)
        exact = record(model, EXACT, input_ids=ids)
        assert first_outside(model.record(ids)[1], exact, bounds(model, exact, input_ids=ids)) is None


@pytest.mark.parametrize("name", audio_models.CLASSES)
@settings(max_examples=20)
@given(data=st.data(), seed=st.integers(0, 2**32), factor=st.sampled_from([0.0, 1.0, 4.0]))
def test_audio_in_float32_stays_within(name: str, data: st.DataObject, seed: int, factor: float) -> None:
    """With padding of both kinds, adapters, weighted layers; the losses included."""
    padding = data.draw(st.sampled_from(["hf", "exact"]))
    config = data.draw(audio_models.audio_configs(name, padding=padding))
    model = audio_models.trained(audio_models.build(name, seed=seed, dtype="float32", config=config), factor, seed)
    inputs = audio_models.inputs_of(model, seed)
    exact = record(model, EXACT, **inputs)
    assert first_outside(model.record(**inputs)[1], exact, bounds(model, exact, **inputs)) is None


@pytest.mark.parametrize("name", [audio_models.CTC, audio_models.SEQUENCE, audio_models.XVECTOR])
def test_longer_audio_in_float32_stays_within(name: str) -> None:
    """Some 300 frames: sums over time, and the steps of CTC."""
    model = audio_models.build(name, dtype="float32")
    inputs = audio_models.inputs_of(model, 2, longest=4000)
    assert model.frame_lengths(inputs["input_values"].shape[1]) > 250
    exact = record(model, EXACT, **inputs)
    assert first_outside(model.record(**inputs)[1], exact, bounds(model, exact, **inputs)) is None


@pytest.mark.parametrize("name", vision_models.CLASSES)
@settings(max_examples=8)
@given(data=st.data(), seed=st.integers(0, 2**32), factor=st.sampled_from([0.0, 1.0, 4.0]))
def test_vision_in_float32_stays_within(name: str, data: st.DataObject, seed: int, factor: float) -> None:
    """Pictures of other sizes, every kind of position, masked patches; the losses included."""
    config = data.draw(vision_models.vision_configs(name))
    model = vision_models.trained(vision_models.build(name, seed=seed, dtype="float32", config=config), factor, seed)
    inputs = vision_models.inputs_of(model, seed)
    exact = record(model, EXACT, **inputs)
    assert first_outside(model.record(**inputs)[1], exact, bounds(model, exact, **inputs)) is None


def test_a_larger_vision_model_in_float32_stays_within() -> None:
    """96 patches and 6 layers, for a table of 5 x 5 patches: sums over patches, and tables that are resized."""
    shape: dict[str, Any] = {
        "hidden_size": 48,
        "num_hidden_layers": 6,
        "image_size": 20,
        "use_absolute_position_embeddings": True,
    }
    model = vision_models.build(vision_models.CLASSIFIER, dtype="float32", **shape)
    inputs: dict[str, Any] = {"pixel_values": vision_models.pictures(0, 1, 48, 32).astype("f4")}
    exact = record(model, EXACT, **inputs)
    assert first_outside(model.record(**inputs)[1], exact, bounds(model, exact, **inputs)) is None


HEADS: dict[str, dict[str, Any]] = {
    "Data2VecTextForMaskedLM": {"labels": token_ids("Data2VecTextForMaskedLM", 1)},
    "Data2VecTextForSequenceClassification": {"labels": [0, 1]},
    "Data2VecTextForQuestionAnswering": {"start_positions": [0, 1], "end_positions": [1, 2]},
    CHOICE: {"labels": [0, 2]},
}


@pytest.mark.parametrize("name", [*HEADS, *audio_models.CLASSES[1:]])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_a_loss_may_round_as_the_logits_that_it_is_made_of(name: str, scale: float) -> None:
    """However small it is itself, as where the model is sure; and a fault of a hundredth is none of rounding."""
    for seed in range(5):
        if name in HEADS:
            made, inputs = build(name, seed=seed, dtype="float32"), {"input_ids": token_ids(name), **HEADS[name]}
        else:
            made = audio_models.build(name, seed=seed, dtype="float32")
            inputs = audio_models.inputs_of(made, seed)
        head = [key for key, value in made.state_dict().items() if value.ndim == 2][-1]
        weights = {key: value * np.float32(scale if key == head else 1) for key, value in made.state_dict().items()}
        model = type(made)(made.config, weights, backend=made.ops)
        exact = record(model, EXACT, **inputs)
        allowed = bounds(model, exact, **inputs)
        assert first_outside(model.record(**inputs)[1], exact, allowed) is None
        assert allowed["#loss"] < 1e-4 * (abs(exact["#loss"]) + scale)


# ---- no fault passes


class TanhGelu(Ops):
    """The usual mistake: the tanh form for the exact one.  It is off by 5e-4 at most."""

    def gelu(self, x: Any) -> Any:
        return self.gelu_tanh(x)


class OtherEps(Ops):
    def layer_norm(self, x: Any, weight: Any, bias: Any, eps: float) -> Any:
        return super().layer_norm(x, weight, bias, 1e-12 if eps == 1e-5 else 1e-5)


class SampleVariance(Ops):
    def layer_norm(self, x: Any, weight: Any, bias: Any, eps: float) -> Any:
        n = x.shape[-1]
        return (super().layer_norm(x, weight, bias, eps) - bias) * ((n - 1) / n) ** 0.5 + bias


class NoScale(Ops):
    def attention(self, q: Any, k: Any, v: Any, heads: int, **options: Any) -> Any:
        return super().attention(q * (q.shape[-1] // heads) ** 0.5, k, v, heads, **options)


class ShiftedCausal(Ops):
    """Each query sees one key more than it may."""

    def attention(
        self, q: Any, k: Any, v: Any, heads: int, *, causal: bool = False, mask: Any = None, **rest: Any
    ) -> Any:
        seen = np.tri(q.shape[1], k.shape[1], k=k.shape[1] - q.shape[1] + 1, dtype=bool)
        if causal:
            mask = seen if mask is None else mask & seen
        return super().attention(q, k, v, heads, mask=mask, **rest)


class NoBias(Ops):
    def linear(
        self, x: Any, weight: Any, bias: Any = None, activation: Any = None, residual: Any = None, scale: Any = None
    ) -> Any:
        return super().linear(x, weight, None, activation, residual)


class HalfPrecisionProducts(Ops):
    """What a GPU's TF32 does: 10 bits of the factors."""

    def linear(self, x: Any, weight: Any, *rest: Any) -> Any:
        def cut(a: Any) -> Any:
            return (a.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(a.dtype)

        return super().linear(cut(x), cut(weight), *rest)


LAYER = "encoder.layer.0."
FAULTS = [
    (TanhGelu, f"{LAYER}intermediate.intermediate_act_fn", {}),
    (OtherEps, "embeddings.LayerNorm", {}),
    (OtherEps, "embeddings.LayerNorm", {"layer_norm_eps": 1e-12}),
    (SampleVariance, "embeddings.LayerNorm", {}),
    (NoScale, f"{LAYER}attention.self#probs", {}),
    (ShiftedCausal, f"{LAYER}attention.self#probs", {"is_decoder": True}),
    (NoBias, f"{LAYER}attention.self.query", {}),
    (HalfPrecisionProducts, f"{LAYER}attention.self.query", {}),
]


@pytest.mark.parametrize(("fault", "where", "changes"), FAULTS)
@pytest.mark.parametrize("dtype", Ops.dtypes)
def test_a_fault_shows_at_the_module_that_has_it(
    fault: type[Ops], where: str, changes: dict[str, Any], dtype: str
) -> None:
    ids = token_ids(MODEL, length=7)
    for seed in range(10):
        model = build(MODEL, seed=seed, dtype="float32", **changes)
        exact = record(model, EXACT, input_ids=ids)
        allowed = bounds(model, exact, input_ids=ids)
        assert first_outside(record(model, fault(dtype), input_ids=ids), exact, allowed) == where
        assert first_outside(record(model, Ops(dtype), input_ids=ids), exact, allowed) is None


class TorchsEps(Ops):
    """The eps of the convolutions' LayerNorm for all, whatever the configuration says."""

    def layer_norm(self, x: Any, weight: Any, bias: Any, eps: float) -> Any:
        return super().layer_norm(x, weight, bias, 1e-5)


class TrueConvolution(Ops):
    """The taps in the order of the mathematicians' convolution."""

    def conv1d(self, x: Any, weight: Any, *rest: Any, **named: Any) -> Any:
        return super().conv1d(x, weight[..., ::-1], *rest, **named)


class OneFrameLate(Ops):
    """Padding that is off by one: before the signal one zero too few, behind it one too many."""

    def conv1d(
        self, x: Any, weight: Any, bias: Any = None, stride: int = 1, padding: int = 0, *rest: Any, **named: Any
    ) -> Any:
        if padding:
            x = np.concatenate((x[:, 1:], np.zeros_like(x[:, :1])), 1)
        return super().conv1d(x, weight, bias, stride, padding, *rest, **named)


class NoGroups(Ops):
    """The groups' channels interleaved, where they lie side by side."""

    def conv1d(self, x: Any, weight: Any, *rest: Any, **named: Any) -> Any:
        x = x.reshape(*x.shape[:2], -1, named.get("groups", 1)).swapaxes(2, 3).reshape(x.shape)
        return super().conv1d(x, weight, *rest, **named)


class NoDilation(Ops):
    def conv1d(self, x: Any, weight: Any, *rest: Any, **named: Any) -> Any:
        frames = super().conv1d(x, weight, *rest, **named).shape[1]
        return super().conv1d(x, weight, *rest, **{**named, "dilation": 1})[:, :frames]


class NoConvBias(Ops):
    def conv1d(self, x: Any, weight: Any, bias: Any = None, *rest: Any, **named: Any) -> Any:
        return super().conv1d(x, weight, None, *rest, **named)


class NoGate(Ops):
    def glu(self, x: Any) -> Any:
        return x[..., : x.shape[-1] // 2]


class GateFirst(Ops):
    def glu(self, x: Any) -> Any:
        return super().glu(np.roll(x, x.shape[-1] // 2, axis=-1))


class PopulationDeviation(Ops):
    def statistics_pooling(self, x: Any, lengths: list[int]) -> Any:
        return np.stack(
            [np.concatenate((row[:n].mean(0), row[:n].std(0))) for row, n in zip(x, lengths, strict=True)]
        ).astype(x.dtype)


BARE, XVECTOR = audio_models.BARE, audio_models.XVECTOR
CONV, POSITION = "feature_extractor.conv_layers.0.", "encoder.pos_conv_embed.layers.0."
ADAPTER: dict[str, Any] = {"add_adapter": True}
AUDIO_FAULTS: list[tuple[Any, str, str, dict[str, Any]]] = [
    (TanhGelu, BARE, f"{CONV}activation", {}),
    (OtherEps, BARE, f"{CONV}layer_norm", {}),
    (TorchsEps, BARE, "feature_projection.layer_norm", {"layer_norm_eps": 1e-3}),
    (TrueConvolution, BARE, f"{CONV}conv", {}),
    (NoConvBias, BARE, f"{CONV}conv", {"conv_bias": True}),
    (NoConvBias, BARE, f"{POSITION}conv", {}),
    (OneFrameLate, BARE, f"{POSITION}conv", {}),
    (NoGroups, BARE, f"{POSITION}conv", {}),
    (NoScale, BARE, "encoder.layers.0.attention#probs", {}),
    (NoGate, BARE, "adapter.layers.0", ADAPTER),
    (GateFirst, BARE, "adapter.layers.0", ADAPTER),
    (NoDilation, XVECTOR, "tdnn.1.activation", {}),
    (PopulationDeviation, XVECTOR, "feature_extractor", {}),
]


@pytest.mark.parametrize(("fault", "name", "where", "changes"), AUDIO_FAULTS)
@pytest.mark.parametrize("dtype", Ops.dtypes)
def test_a_fault_of_audio_shows_at_the_module_that_has_it(
    fault: type[Ops], name: str, where: str, changes: dict[str, Any], dtype: str
) -> None:
    for seed in range(3):
        model = audio_models.build(name, seed=seed, dtype="float32", **changes)
        inputs = audio_models.inputs_of(model, seed)
        exact = record(model, EXACT, **inputs)
        allowed = bounds(model, exact, **inputs)
        assert first_outside(record(model, fault(dtype), **inputs), exact, allowed) == where
        assert first_outside(record(model, Ops(dtype), **inputs), exact, allowed) is None


class LooseEps(Ops):
    """1e-6, as in the original models, in the place of the 1e-12 of transformers."""

    def layer_norm(self, x: Any, weight: Any, bias: Any, eps: float) -> Any:
        return super().layer_norm(x, weight, bias, max(eps, 1e-6))


class BatchEps(Ops):
    def batch_norm(self, x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Any:
        return super().batch_norm(x, mean, var, weight, bias, 1e-3)


class NoVariance(Ops):
    def batch_norm(self, x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Any:
        return super().batch_norm(x, mean, np.square(var), weight, bias, eps)


class TurnedKernel(Ops):
    """Rows for columns."""

    def conv2d(self, x: Any, weight: Any, *rest: Any) -> Any:
        return super().conv2d(x, weight.swapaxes(2, 3), *rest)


class TurnedTiles(Ops):
    def conv_transpose2d(self, x: Any, weight: Any, bias: Any) -> Any:
        return super().conv_transpose2d(x, weight.swapaxes(2, 3), bias)


class Corners(Ops):
    """align_corners=True, bilinear for bicubic as well."""

    def _interpolation(self, length: int, out: int, mode: str) -> Any:
        at = np.arange(out) * (length - 1) / max(out - 1, 1)
        return self.asarray(np.maximum(1 - np.abs(at[:, None] - np.arange(length)), 0))


class OtherCubic(Ops):
    """Keys' own a, as PIL has it."""

    def resize(self, x: Any, size: Any, mode: str) -> Any:
        with mock.patch.object(d2v_ref.ops.definitions, "_keys", functools.partial(KEYS, a=-0.5)):
            return super().resize(x, size, mode)


class NarrowCells(Ops):
    """Cells that do not overlap, as of an average pool of a fixed size."""

    def adaptive_avg_pool2d(self, x: Any, size: int) -> Any:
        edges = [[i * length // size for i in range(size + 1)] for length in x.shape[1:3]]
        if not all(a < b for line in edges for a, b in itertools.pairwise(line)):
            return super().adaptive_avg_pool2d(x, size)
        cells = [[x[:, a:b, c:d].mean((1, 2)) for c, d in itertools.pairwise(edges[1])]
                 for a, b in itertools.pairwise(edges[0])]  # fmt: skip
        return np.array(cells).transpose(2, 0, 1, 3)


class SoftmaxOverQueries(Ops):
    def softmax(self, x: Any) -> Any:
        return super().softmax(x.swapaxes(-1, -2)).swapaxes(-1, -2)


KEYS = d2v_ref.ops.definitions._keys
CLASSIFIER, SEGMENTER = vision_models.CLASSIFIER, vision_models.SEGMENTER
VISION, LARGER = "data2vec_vision.encoder.layer.0.", {"image_size": 24}
VISION_FAULTS: list[tuple[Any, str, str, dict[str, Any]]] = [
    (TanhGelu, CLASSIFIER, f"{VISION}intermediate.intermediate_act_fn", {}),
    (LooseEps, CLASSIFIER, f"{VISION}layernorm_before", {}),
    (SampleVariance, CLASSIFIER, f"{VISION}layernorm_before", {}),
    (NoScale, CLASSIFIER, f"{VISION}attention.attention#probs", {}),
    (SoftmaxOverQueries, SEGMENTER, f"{VISION}attention.attention#probs", {}),
    (TurnedKernel, CLASSIFIER, "data2vec_vision.embeddings.patch_embeddings.projection", {}),
    (TurnedTiles, SEGMENTER, "fpn1.0", {}),
    (BatchEps, SEGMENTER, "fpn1.1", {}),
    (NoVariance, SEGMENTER, "fpn1.1", {}),
    (Corners, SEGMENTER, "decode_head.psp_modules.blocks.2", LARGER),
    (NarrowCells, SEGMENTER, "decode_head.psp_modules.blocks.1.pooling", LARGER),
    (Corners, CLASSIFIER, "data2vec_vision.encoder.relative_position_bias", {"height": 16}),
    (Corners, CLASSIFIER, "data2vec_vision.embeddings", {"height": 16, "use_absolute_position_embeddings": True}),
    (OtherCubic, CLASSIFIER, "data2vec_vision.embeddings", {"height": 16, "use_absolute_position_embeddings": True}),
]


def vision_case(name: str, seed: int, height: int | None = None, **changes: Any) -> tuple[Any, dict[str, Any]]:
    model = vision_models.build(name, seed=seed, dtype="float32", **changes)
    inputs = vision_models.inputs_of(model, seed, any_size=False)
    if height is not None:
        inputs = {"pixel_values": vision_models.pictures(seed, 2, height).astype("f4")}
    return model, inputs


@pytest.mark.parametrize(("fault", "name", "where", "changes"), VISION_FAULTS)
@pytest.mark.parametrize("dtype", Ops.dtypes)
def test_a_fault_of_vision_shows_at_the_module_that_has_it(
    fault: type[Ops], name: str, where: str, changes: dict[str, Any], dtype: str
) -> None:
    for seed in range(2):
        model, inputs = vision_case(name, seed, **changes)
        exact = record(model, EXACT, **inputs)
        allowed = bounds(model, exact, **inputs)
        assert first_outside(record(model, fault(dtype), **inputs), exact, allowed) == where
        assert first_outside(record(model, Ops(dtype), **inputs), exact, allowed) is None


def _without_scale(self: Any, x: Any, run: Any) -> Any:
    x = self.attention(self.layernorm_before(x), run, residual=x)
    return self.output(self.intermediate(self.layernorm_after(x)), residual=x)


INDEX = d2v_ref.vision.relative_position_index
FAULTS_OF_VISION: dict[str, tuple[str, Any, str, dict[str, Any]]] = {
    "no lambda": ("Data2VecVisionLayer.forward", _without_scale, f"{VISION}layernorm_after", {}),
    "a window that is turned": (
        "relative_position_index", lambda window: INDEX(window[::-1]), "data2vec_vision.encoder.relative_position_bias",
        {"height": 16},
    ),
    "keys for queries": (
        "relative_position_index", lambda window: INDEX(window).T, "data2vec_vision.encoder.relative_position_bias", {},
    ),
    "the class token in the mean": (
        "Data2VecVisionPooler.forward", lambda self, x: self.layernorm(x.mean(1)), "data2vec_vision.pooler.layernorm",
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS_OF_VISION)
def test_a_fault_of_a_vision_model_shows_at_the_module_that_has_it(fault: str) -> None:
    place, wrong, where, changes = FAULTS_OF_VISION[fault]
    for seed in range(3):
        model, inputs = vision_case(CLASSIFIER, seed, **changes)
        exact = record(model, EXACT, **inputs)
        allowed = bounds(model, exact, **inputs)
        assert first_outside(record(model, Ops(), **inputs), exact, allowed) is None
        with mock.patch(f"d2v_ref.vision.{place}", wrong):
            assert first_outside(record(model, Ops(), **inputs), exact, allowed) == where


FAULTS_OF_MODELS: dict[str, tuple[str, Any, str, dict[str, Any]]] = {
    "padding that is not emptied": ("emptied", lambda ops, x, mask: x, f"{POSITION}conv", {}),
    "the first frame dropped for the last": (
        "Data2VecAudioPadLayer.forward", lambda self, x: x[:, 1:] if self.even else x, f"{POSITION}padding",
        {"conv_pos_kernel_size": 4},
    ),
    "a frame too many in the mask": (
        "sample_counts", lambda mask: (np.asarray(mask) != 0).sum(1) + 12, f"{POSITION}conv", {},
    ),
    "padding emptied between the convolutions": (
        "Data2VecAudioPositionalConvEmbedding.forward", lambda self, x, run: _emptying(self, x, run),
        "encoder.pos_conv_embed.layers.1.conv", {},
    ),
}  # fmt: skip


def _emptying(self: Any, x: Any, run: Any) -> Any:
    for layer in self.layers:
        x = layer(d2v_ref.audio.emptied(self.ops, x, run.mask))
    return x


@pytest.mark.parametrize("fault", FAULTS_OF_MODELS)
def test_a_fault_of_a_model_shows_at_the_module_that_has_it(fault: str) -> None:
    place, wrong, where, changes = FAULTS_OF_MODELS[fault]
    for seed in range(3):
        model = audio_models.build(BARE, seed=seed, dtype="float32", **changes)
        inputs = audio_models.inputs_of(model, seed)
        inputs["attention_mask"][0, -60:] = 0  # some of the padding is whole frames
        exact = record(model, EXACT, **inputs)
        allowed = bounds(model, exact, **inputs)
        assert first_outside(record(model, Ops(), **inputs), exact, allowed) is None
        with mock.patch(f"d2v_ref.audio.{place}", wrong):
            assert first_outside(record(model, Ops(), **inputs), exact, allowed) == where


def test_a_weight_that_is_off_in_its_tenth_bit_shows() -> None:
    model, ids = build(MODEL, dtype="float32"), token_ids(MODEL)
    exact = record(model, EXACT, input_ids=ids)
    allowed = bounds(model, exact, input_ids=ids)
    weights = model.state_dict()
    for name in (
        "encoder.layer.1.output.dense.weight",
        "encoder.layer.0.attention.self.value.bias",
        "pooler.dense.weight",
    ):
        changed = type(model)(model.config, {**weights, name: weights[name] * np.float32(1.001)})
        assert first_outside(changed.record(ids)[1], exact, allowed) == name.rpartition(".")[0]


def test_a_weight_of_audio_that_is_off_in_its_tenth_bit_shows() -> None:
    model = audio_models.build(BARE, dtype="float32", conv_bias=True)
    inputs = audio_models.inputs_of(model)
    exact = record(model, EXACT, **inputs)
    allowed = bounds(model, exact, **inputs)
    weights = model.state_dict()
    for name in (
        "feature_extractor.conv_layers.2.conv.weight",
        "feature_extractor.conv_layers.1.conv.bias",
        "encoder.pos_conv_embed.layers.1.conv.weight",
        "encoder.layers.0.final_layer_norm.weight",
    ):
        changed = type(model)(model.config, {**weights, name: weights[name] * np.float32(1.001)})
        assert first_outside(changed.record(**inputs)[1], exact, allowed) == name.rpartition(".")[0]


def test_tolerances_are_of_the_order_of_the_rounding_and_no_more() -> None:
    """Not above a thousand units of the largest value, in a model of two layers, and in the order of the dtypes."""
    model, ids = build(MODEL), token_ids(MODEL)
    exact = record(model, EXACT, input_ids=ids)
    by_dtype = [bounds(model, exact, dtype, input_ids=ids) for dtype in ("float64", "float32", "float16", "bfloat16")]
    for name, value in exact.items():
        scale = np.abs(value).max()
        for allowed, dtype in zip(by_dtype[:2], ("float64", "float32"), strict=True):
            assert (
                4 * FORMATS[dtype].unit_roundoff * scale
                <= allowed[name]
                < 1000 * FORMATS[dtype].unit_roundoff * max(scale, 1)
            )
        ordered = [allowed[name] for allowed in by_dtype]
        assert ordered == sorted(ordered)
        assert len(set(ordered)) == 4


def test_tolerances_are_the_same_every_time() -> None:
    model, ids = build(MODEL), token_ids(MODEL)
    exact = record(model, EXACT, input_ids=ids)
    assert bounds(model, exact, input_ids=ids) == bounds(model, exact, input_ids=ids)


@pytest.mark.parametrize(("stored", "off"), [(False, 1e-13), (True, 1e-4)])  # then float32 still rounds
def test_a_probe_without_rounding_is_the_definition(stored: bool, off: float) -> None:
    model, ids = trained(build("Data2VecTextForCausalLM", position_embedding_type="relative_key_query")), [[5, 6, 7]]
    exact = record(model, EXACT, input_ids=ids)
    probed = record(model, RoundingProbe(Format(0.0, 0.0, stored, 1), 1), input_ids=ids)
    assert list(probed) == list(exact)
    for name, value in exact.items():
        np.testing.assert_allclose(probed[name], value, atol=off)


@pytest.mark.parametrize("name", [*CLASSES, *audio_models.CLASSES, *vision_models.CLASSES])
def test_weights_as_they_are_stored_give_what_weights_in_float64_give(name: str) -> None:
    """In no layer are two weights combined in the smaller format."""
    inputs: dict[str, Any]
    if name in CLASSES:
        model, inputs = build(name, dtype="float32"), {"input_ids": token_ids(name)}
    elif name in audio_models.CLASSES:
        options: dict[str, Any] = {"use_weighted_layer_sum": True} if name in audio_models.WEIGHTED else {}
        model = audio_models.build(name, dtype="float32", **options)
        inputs = audio_models.inputs_of(model)
    else:
        model = vision_models.build(name, dtype="float32", use_absolute_position_embeddings=True)
        inputs = vision_models.inputs_of(model)
    want, got = record(model, EXACT, **inputs), record(model, Exact(), **inputs)
    for key, value in want.items():
        assert got[key].dtype == value.dtype, key
        np.testing.assert_allclose(got[key], value, rtol=1e-11, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("piece", [1, 7, 30, 1000])
def test_a_large_product_is_computed_in_pieces(piece: int) -> None:
    random = np.random.default_rng(0)
    x, weight = random.normal(size=(2, 3, 5)), random.normal(size=(11, 5)).astype("f4")
    for bias in (None, random.normal(size=11).astype("f4")):
        want = EXACT.linear(x, weight.astype("f8"), None if bias is None else bias.astype("f8"))
        with mock.patch("d2v_ref.golden.bounds._PIECE", piece):
            np.testing.assert_allclose(Exact().linear(x, weight, bias), want, rtol=1e-14, atol=1e-14)


def test_every_operation_that_rounds_is_probed() -> None:
    """Those that move or choose numbers do not round, and the fused ones are made of the others.

    A sum rounds once; the LayerNorm or the attention that it goes into is off by as much for its operand's sake.
    """
    exact = {
        "to_numpy",
        "constant",
        "prepare",
        "replay",
        "concatenate",
        "where",
        "split_heads",
        "identity",
        "max_pool2d",
    }
    fused = {"project", "embed_norm", "conv_norm_act", "conv2d_norm_act"}
    parts = {"log_softmax", "softplus"}  # inside attention and activations, or not in a model
    followed = {"add"}
    elementwise = set(ACTIVATIONS.values())
    every = {name for name, value in vars(Ops).items() if callable(value) and not name.startswith("_")} - {"overrides"}
    assert set(RoundingProbe.overrides()) == every - exact - fused - parts - followed - elementwise


def test_a_hidden_score_does_not_widen_the_tolerance() -> None:
    """An additive mask's lowest number hides a score: it is not a number of that size that was rounded."""
    model, ids = build(MODEL, dtype="float32"), token_ids(MODEL)
    seen = np.tri(5, dtype=bool)[None, None].repeat(2, 0)
    seen[1, 0, 2] = False  # one query sees nothing and attends evenly: there the hidden scores do count
    forms = [seen, np.where(seen, 0, np.finfo(np.float32).min).astype(np.float32)]
    tables = []
    for mask in forms:
        exact = record(model, EXACT, input_ids=ids, attention_mask=mask)
        tables.append(bounds(model, exact, input_ids=ids, attention_mask=mask))
        assert first_outside(model.record(ids, attention_mask=mask)[1], exact, tables[-1]) is None
    for name in tables[0]:
        assert tables[1][name] <= 3 * tables[0][name]


def test_the_loss_of_no_label_has_a_tolerance() -> None:
    model, ids = build("Data2VecTextForMaskedLM"), token_ids("Data2VecTextForMaskedLM")
    labels = np.full(ids.shape, -100)
    exact = record(model, EXACT, input_ids=ids, labels=labels)
    assert np.isnan(exact["#loss"])
    assert np.isfinite(list(bounds(model, exact, input_ids=ids, labels=labels).values())).all()
