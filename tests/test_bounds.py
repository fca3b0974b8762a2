"""Tolerances: a faithful float32 run stays within them, and a fault in one operation does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import CLASSES, build, token_ids, trained

from d2v_ref.golden import tolerances
from d2v_ref.golden.bounds import UNIT_ROUNDOFF, RoundingProbe
from d2v_ref.ops import ACTIVATIONS, Ops

MODEL = "Data2VecTextModel"
EXACT = Ops("float64")


def record(model: Any, ops: Ops, **inputs: Any) -> dict[str, np.ndarray]:
    return model.with_ops(ops).record(**inputs)[1]


def bounds(model: Any, exact: dict[str, np.ndarray], dtype: str = "float32", **inputs: Any) -> dict[str, float]:
    return tolerances(lambda ops: record(model, ops, **inputs), exact, dtype)


def first_outside(got: dict[str, np.ndarray], exact: dict[str, np.ndarray], allowed: dict[str, float]) -> str | None:
    """The first array, in the order of computation, that is off by more than it may be."""
    return next((name for name in exact if not np.abs(got[name] - exact[name]).max() <= allowed[name]), None)


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
    def linear(self, x: Any, weight: Any, bias: Any = None, activation: Any = None, residual: Any = None) -> Any:
        return super().linear(x, weight, None, activation, residual)


class HalfPrecisionProducts(Ops):
    """What a GPU's TF32 does: 10 bits of the factors."""

    def linear(self, x: Any, weight: Any, bias: Any = None, activation: Any = None, residual: Any = None) -> Any:
        def cut(a: Any) -> Any:
            return (a.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(a.dtype)

        return super().linear(cut(x), cut(weight), bias, activation, residual)


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


def test_tolerances_are_of_the_order_of_the_rounding_and_no_more() -> None:
    """Not above a thousand units of the largest value, in a model of two layers, and in the order of the dtypes."""
    model, ids = build(MODEL), token_ids(MODEL)
    exact = record(model, EXACT, input_ids=ids)
    by_dtype = [bounds(model, exact, dtype, input_ids=ids) for dtype in ("float64", "float32", "float16", "bfloat16")]
    for name, value in exact.items():
        scale = np.abs(value).max()
        for allowed, dtype in zip(by_dtype[:2], ("float64", "float32"), strict=True):
            assert 4 * UNIT_ROUNDOFF[dtype] * scale <= allowed[name] < 1000 * UNIT_ROUNDOFF[dtype] * max(scale, 1)
        ordered = [allowed[name] for allowed in by_dtype]
        assert ordered == sorted(ordered)
        assert len(set(ordered)) == 4


def test_tolerances_are_the_same_every_time() -> None:
    model, ids = build(MODEL), token_ids(MODEL)
    exact = record(model, EXACT, input_ids=ids)
    assert bounds(model, exact, input_ids=ids) == bounds(model, exact, input_ids=ids)


def test_a_probe_without_rounding_is_the_definition() -> None:
    model, ids = trained(build("Data2VecTextForCausalLM", position_embedding_type="relative_key_query")), [[5, 6, 7]]
    exact, probed = record(model, EXACT, input_ids=ids), record(model, RoundingProbe(0.0, 1), input_ids=ids)
    assert list(probed) == list(exact)
    for name, value in exact.items():
        np.testing.assert_allclose(probed[name], value, atol=1e-13)


def test_every_operation_that_rounds_is_probed() -> None:
    """Those that move or choose numbers do not round, and the fused ones are made of the others."""
    exact = {"asarray", "to_numpy", "prepare", "concatenate", "split_heads", "embedding", "identity", "project"}
    parts = {"softmax", "log_softmax", "softplus"}  # inside attention and activations, or not in a model
    elementwise = set(ACTIVATIONS.values())
    every = {name for name, value in vars(Ops).items() if callable(value) and not name.startswith("_")} - {"overrides"}
    assert set(RoundingProbe.overrides()) == every - exact - parts - elementwise


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
