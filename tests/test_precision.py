"""Where a model loses precision: the 16-bit storage of every operation, and what the audit says of errors and
attentions.  ``conformance/test_storage.py`` holds the rounding against torch.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import audio_models
import numpy as np
import pytest
import scipy.stats
import text_models
import vision_models
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import _here, d2v, disk, refused  # noqa: F401 - a fixture

from d2v_ref import InputError, models, pages
from d2v_ref.audit import attentions, storage
from d2v_ref.audit.precision import COMPARED, Deviation, Precision, Row, measure
from d2v_ref.audit.storage import FORMATS, LARGEST, StorageOps, rounded
from d2v_ref.errors import BackendError
from d2v_ref.golden.bounds import LOSSES, Exact
from d2v_ref.ops import ACTIVATIONS, Ops

EACH = pytest.mark.parametrize("form", FORMATS)


def is_rounded(x: np.ndarray, form: str) -> bool:
    return np.array_equal(rounded(np.asarray(x, np.float32), form), x, equal_nan=True)


# ---- 16-bit storage -------------------------------------------------------------------------------------------------


def _from_bits(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


BETWEEN = st.integers(0, 0x7F7F).map(lambda bits: _from_bits(bits << 16 | 0x8000))  # as far from one as from the other


@settings(max_examples=500)
@given(x=st.floats(width=32, allow_nan=False) | BETWEEN, form=st.sampled_from(FORMATS))
def test_rounding_takes_the_nearest(x: float, form: str) -> None:
    """No number of the format is nearer, and of two that are as near it is the one whose last bit is 0."""
    got = float(rounded(np.array([x], np.float32), form)[0])
    if form == "float16":
        try:
            want = struct.unpack("<e", struct.pack("<e", x))[0]  # Python's own rounding
        except OverflowError:
            want = math.copysign(math.inf, x)
        assert got == want
        assert math.copysign(1, got) == math.copysign(1, want)
        return
    bits = struct.unpack("<I", struct.pack("<f", abs(x)))[0] >> 16
    below, above = (_from_bits((bits + i) << 16) for i in (0, 1))
    if math.isinf(above) or math.isinf(x):
        assert abs(got) in (below, above)
        return
    near = min((below, above), key=lambda y: (abs(abs(x) - y), (bits + (y == above)) % 2))
    assert abs(got) == near
    assert math.copysign(1, got) == math.copysign(1, x)


def _calls() -> dict[str, Callable[[Any], Any]]:
    """One call of every operation."""
    random = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype("f4")

    x, signal, image, even = array(2, 5, 6), array(1, 40, 4), array(1, 6, 6, 4), array(3, 8)
    weight, bias, six = array(6, 6), array(6), [array(6) for _ in range(4)]
    variance = 0.5 + np.square(six[3])
    linear, table = SimpleNamespace(weight=weight, bias=bias), SimpleNamespace(weight=weight)
    conv = SimpleNamespace(weight=array(6, 4, 3), bias=bias, stride=2, padding=1, groups=1)
    conv2d = SimpleNamespace(weight=array(6, 4, 3, 3), bias=None, stride=(1, 1), padding=1)
    norm = SimpleNamespace(weight=six[0], bias=six[1], eps=1e-5)
    batch = SimpleNamespace(weight=six[0], bias=six[1], running_mean=six[2], running_var=variance, eps=1e-5)
    maps = {"max_pool2d": (image, 2), "adaptive_avg_pool2d": (image, 4), "resize": (image, (7, 9), "bicubic")}
    arguments: dict[str, tuple[Any, ...]] = {
        "concatenate": ((x, x), 1),
        "activation": ("silu", x),
        "glu": (even,),
        "where": (x > 0, x, array(6)),
        "add": (x, array(6)),
        "embedding": (np.array([[0, 3]]), weight),
        "embed_norm": ((np.array([[0, 3]]), np.array([[1, 2]])), (table, table), norm),
        "linear": (x, weight, bias, "gelu", x, bias),
        "project": (x, linear, linear),
        "layer_norm": (x, *six[:2], 1e-5),
        "conv1d": (signal, array(6, 4, 3), bias),
        "conv_norm_act": (signal, conv, norm, "gelu"),
        "statistics_pooling": (x, [5, 3]),
        "softmax": (x,),
        "log_softmax": (x,),
        "split_heads": (x, 3),
        "relative_key_bias": (x, x, 2, array(21, 3), True),
        "conv2d": (image, array(6, 4, 3, 3), bias),
        "conv2d_norm_act": (image, conv2d, batch, "relu"),
        "conv_transpose2d": (image, array(4, 3, 2, 2), array(3)),
        "batch_norm": (x, six[0], variance, *six[1:3], 1e-5),
        **maps,
    }
    arguments.update(dict.fromkeys((*ACTIVATIONS.values(), "softplus"), (x,)))

    def call(name: str) -> Callable[[Any], Any]:
        return lambda ops: getattr(ops, name)(*arguments[name])

    def attend(ops: Any) -> Any:
        return ops.attention(x, x, x, 2, probs=True, causal=True)

    return {**{name: call(name) for name in arguments}, "attention": attend}


CALLS = _calls()


@EACH
def test_every_operation_rounds(form: str) -> None:
    """None is forgotten, and each gives what the definition gives in float32, rounded: within a few units."""
    movers = {"asarray", "constant", "weight", "to_numpy", "prepare", "replay"}
    public = {name for name in dir(Ops) if not name.startswith("_") and callable(getattr(Ops, name))} - {
        "overrides",
        "kernels",
        "lacks",
    }
    assert set(storage.operations()) == public - movers == set(CALLS)
    assert set(StorageOps.overrides()) == public - {"constant", "weight", "prepare", "replay"}
    for name, call in CALLS.items():
        got, want = call(StorageOps(form)), call(Ops("float32"))
        for mine, exact in zip(*(part if isinstance(part, tuple) else (part,) for part in (got, want)), strict=True):
            assert isinstance(mine, storage.Stored), name
            assert mine.dtype == np.float32
            assert is_rounded(StorageOps(form).to_numpy(mine), form), name
            unit = 2.0**-8 if form == "bfloat16" else 2.0**-11
            assert np.abs(mine - exact).max() <= 16 * unit * max(1, np.abs(exact).max()), name


def test_an_operation_that_is_added_to_ops_rounds_too() -> None:
    """The class is made of whatever operations there are."""

    def double(self: Ops, x: np.ndarray) -> np.ndarray:
        """2 x."""
        return x + x

    with mock.patch.object(Ops, "double", double, create=True):
        assert "double" in storage.operations()


@EACH
@pytest.mark.parametrize("name", [*text_models.CLASSES, *audio_models.CLASSES, *vision_models.CLASSES])
def test_everything_in_a_model_is_stored(name: str, form: str) -> None:
    """Every output of every module, sums between operations included; all but losses, which no operation computes."""
    model, inputs = build(name)
    taps = model.with_ops(StorageOps(form)).record(**inputs)[1]
    assert [tap for tap, value in taps.items() if not is_rounded(value, form) and tap not in LOSSES] == []
    assert {type(value) for value in taps.values()} <= {np.ndarray, np.float32}


def build(name: str, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """A model of any class and inputs for it."""
    if "Text" in name:
        return text_models.build(name, dtype="float32", **changes), {"input_ids": text_models.token_ids(name)}
    kind = audio_models if "Audio" in name else vision_models
    model = kind.build(name, dtype="float32", **changes)
    return model, {key: x for key, x in kind.inputs_of(model).items() if key != "labels"}


@EACH
def test_a_hidden_score_is_the_formats_lowest_number(form: str) -> None:
    """A row that sees nothing attends evenly, as in float32, and does not become NaN."""
    q = np.random.default_rng(0).normal(size=(1, 3, 4)).astype("f4")
    mask = np.array([[True, False, False], [False, False, False], [True, True, True]])
    p = StorageOps(form).attention(q, q, q, 2, mask=mask, probs=True)[1]
    np.testing.assert_array_equal(p[0, :, 0], [[1, 0, 0]] * 2)
    np.testing.assert_allclose(p[0, :, 1], 1 / 3, rtol=2.0**-8)
    lowest = StorageOps(form).asarray(np.array([np.finfo("f4").min]))
    assert float(lowest[0]) == -LARGEST[form]


@EACH
def test_scores_that_are_too_large_overflow(form: str) -> None:
    """They are stored between the product and the softmax."""
    q = np.full((1, 2, 4), 600.0, np.float32)
    with np.errstate(invalid="ignore"):
        p = StorageOps(form).attention(q, q, q, 1, probs=True)[1]
    assert np.isnan(p).all() == (form == "float16")  # infinity less itself


@EACH
def test_an_operations_own_constants_are_not_stored(form: str) -> None:
    """The weights of an interpolation are computed where they are used."""
    x = StorageOps(form).asarray(np.random.default_rng(0).normal(size=(1, 5, 5, 2)))
    got = StorageOps(form).resize(x, (7, 4), "bicubic")
    want = Ops("float32").resize(x.view(np.ndarray), (7, 4), "bicubic")
    np.testing.assert_array_equal(got, rounded(want, form))


@EACH
def test_arithmetic_in_place_rounds(form: str) -> None:
    a = StorageOps(form).asarray(np.array([1.0, 3.0]))
    view = a
    a += np.float32(2.0**-12)
    assert a is view
    np.testing.assert_array_equal(a, [1.0, 3.0])


def test_a_format_that_is_none() -> None:
    with pytest.raises(BackendError, match=r"no such format of storage \(got float8; expected float16 or bfloat16\)"):
        StorageOps("float8")


# ---- deviations -----------------------------------------------------------------------------------------------------


def found_in(name: str, **changes: Any) -> tuple[Any, dict[str, Any], Precision]:
    model, inputs = build(name, **changes)
    return model, inputs, measure(model, inputs)


@pytest.mark.parametrize("name", ["Data2VecTextForMaskedLM", audio_models.CTC, vision_models.SEGMENTER])
def test_rows_are_what_a_recorded_run_shows(name: str) -> None:
    model, inputs, found = found_in(name)
    exact = model.with_ops(Exact()).record(**inputs)[1]
    single = model.with_ops(Ops("float32")).record(**inputs)[1]
    assert [row.name for row in found.rows] == list(exact)
    for row in found.rows:
        want, got = exact[row.name], row.deviations["float32"]
        assert row.shape == want.shape
        assert row.rms == pytest.approx(np.linalg.norm(want) / math.sqrt(want.size))
        assert row.largest == np.abs(want).max()
        assert row.headroom == pytest.approx(65504 / row.largest) or row.largest == 0
        assert got.error == pytest.approx(np.abs(single[row.name] - want).max())
        assert got.relative == pytest.approx(got.error / row.rms)
        assert row.deviations["bfloat16"].relative > row.deviations["float16"].relative > got.relative or not got.error
    classes = {path: type(module).__name__ for path, module in model.named_modules()}
    parents = {path.rpartition(".")[0] for path in classes}
    for row in found.rows:
        path, _, tap = row.name.partition("#")
        assert row.module == classes[path]
        if row.leaf:
            assert not tap
            assert path not in parents
    assert any(row.leaf for row in found.rows)


def test_growth_is_the_error_out_by_the_error_in() -> None:
    _, _, found = found_in("Data2VecTextForMaskedLM")
    rows = {row.name: row for row in found.rows}
    layer = "data2vec_text.encoder.layer.1"
    chain = {
        f"{layer}.intermediate.dense": [f"{layer}.attention"],
        f"{layer}.intermediate.intermediate_act_fn": [f"{layer}.intermediate.dense"],
        f"{layer}.output.dense": [f"{layer}.intermediate"],
        f"{layer}.output": [f"{layer}.intermediate", f"{layer}.attention"],
        f"{layer}.attention.output.dense": [f"{layer}.attention.self"],
        layer: ["data2vec_text.encoder.layer.0"],
    }
    for name, inputs in chain.items():
        for form in FORMATS:
            before = max(rows[other].deviations[form].relative for other in inputs)
            got = rows[name].deviations[form]
            assert got.growth == pytest.approx(got.relative / before)
    for name in ("data2vec_text.embeddings.word_embeddings", "#logits"):  # of integers, and no module
        assert rows[name].deviations["bfloat16"].growth is None
    for form in FORMATS:
        losses = found.losses(form)
        growths = [row.deviations[form].growth or 0.0 for row in losses]
        assert growths == sorted(growths, reverse=True)
        assert all(row.leaf for row in losses)
        assert min(growths) > 1


def test_a_sum_between_modules_is_an_input_too() -> None:
    """A LayerNorm's, of a residual: what cancels there makes the error grow, though a module before it has none."""
    model, inputs = build("Data2VecTextModel", num_hidden_layers=1)
    weights = model.state_dict()
    dense = "encoder.layer.0.attention.output.dense"
    weights[f"{dense}.weight"][:] = 0
    weights[f"{dense}.bias"][:] = 4096.0  # a bias that the LayerNorm takes away, and what it rounded with it
    found = measure(type(model)(model.config, weights, backend=model.ops), inputs)
    rows = {row.name: row for row in found.rows}
    assert found.losses("float16")[0].name == "encoder.layer.0.attention.output.LayerNorm"
    assert rows[dense].deviations["float16"].relative == 0


TEXT_LAYER = "data2vec_text.encoder.layer.1"


@pytest.mark.parametrize("path", ["intermediate.dense", "attention.self.query", "attention.output.dense"])
def test_a_planted_overflow_is_named(path: str) -> None:
    model, inputs = build("Data2VecTextForMaskedLM")
    weights = model.state_dict()
    weights[f"{TEXT_LAYER}.{path}.weight"] *= np.float32(1e6)
    with np.errstate(all="ignore"):
        found = measure(type(model)(model.config, weights, backend=model.ops), inputs)
    first = found.overflow("float16")
    assert first is not None
    assert first.name == f"{TEXT_LAYER}.{path}"
    assert first.headroom < 1
    assert first.deviations["float16"].not_finite > 0
    assert found.overflow("bfloat16") is found.overflow("float32") is None
    worst = found.worst("float16")
    assert worst is not None
    assert not worst.deviations["float16"].not_finite
    assert found.rows.index(worst) < found.rows.index(first)


def test_the_worst_error_is_one_of_finite_numbers() -> None:
    """What has overflowed has no error that could be compared."""

    def row(name: str, relative: float, not_finite: int) -> Row:
        return Row(name, "Linear", True, (1,), 1.0, 1.0, 0.0, {"float16": Deviation(1.0, relative, None, not_finite)})

    found = Precision([row("a", 0.1, 0), row("b", 0.2, 0), row("c", 0.3, 1)], [])
    worst, overflow = found.worst("float16"), found.overflow("float16")
    assert worst is not None
    assert overflow is not None
    assert (worst.name, overflow.name) == ("b", "c")
    assert Precision([row("c", 0.3, 1)], []).worst("float16") is None


def test_scores_that_overflow_are_named_at_their_attention() -> None:
    """No output of a module is too large; the products of queries and keys are."""
    model, inputs = build("Data2VecTextModel")
    weights = model.state_dict()
    for kind in ("query", "key"):
        weights[f"encoder.layer.0.attention.self.{kind}.bias"][:] = 3e3
    found = measure(type(model)(model.config, weights, backend=model.ops), inputs)
    first = found.overflow("float16")
    assert first is not None
    assert first.name == "encoder.layer.0.attention.self#probs"
    assert found.overflow("bfloat16") is None


def test_numbers_below_the_smallest_normal_are_counted() -> None:
    model, inputs = build("Data2VecTextModel")
    weights = model.state_dict()
    table = weights["embeddings.token_type_embeddings.weight"]
    table[0] = [2.0**-14, -(2.0**-15), 1e-30, 0, *[1.0] * (table.shape[1] - 4)]
    rows = measure(type(model)(model.config, weights, backend=model.ops), inputs).rows
    row = next(row for row in rows if row.name == "embeddings.token_type_embeddings")
    assert row.tiny == 2 / table.shape[1]


def test_an_output_that_is_not_finite_in_float64_is_no_overflow() -> None:
    """The standard deviation of one frame."""
    model = audio_models.build(audio_models.XVECTOR, dtype="float32")
    found = measure(model, {"input_values": audio_models.samples(length=model.least_samples - 12).astype("f4")})
    row = next(row for row in found.rows if row.name == "feature_extractor")
    assert (row.largest, row.headroom) == (0, math.inf)
    assert all(deviation.not_finite == 0 for deviation in row.deviations.values())


@pytest.mark.parametrize("backend", [Ops("float64"), StorageOps("bfloat16")])
def test_the_models_own_operations_do_not_matter(backend: Ops) -> None:
    model, inputs = build("Data2VecTextModel")
    weights = {name: rounded(value, "bfloat16") for name, value in model.state_dict().items()}
    first, second = (
        measure(type(model)(model.config, weights, backend=ops), inputs) for ops in (Ops("float32"), backend)
    )
    assert first == second


# ---- attentions -----------------------------------------------------------------------------------------------------

T, S = 4, 6
LOWEST = [-math.inf, float(np.finfo("f4").min), float(np.finfo("f8").min), -65504.0]


def rows_that_see_nothing(visible: np.ndarray) -> int:
    return sum(not any(row) for row in visible.reshape(-1, visible.shape[-1]).tolist())


def hidden(model: Any, **inputs: Any) -> list[tuple[int, int]]:
    found = measure(model, inputs)
    assert [each.name for each in found.attentions] == [row.name for row in found.rows if row.name.endswith("#probs")]
    return [(each.hidden_rows, each.rows) for each in found.attentions]


HEADS = text_models.TINY["num_attention_heads"]


@settings(max_examples=25)
@given(seed=st.integers(0, 999), share=st.sampled_from([0.0, 0.2, 0.5]), axes=st.integers(2, 4), causal=st.booleans())
def test_hidden_rows_of_text_are_counted(seed: int, share: float, axes: int, causal: bool) -> None:
    """Masks of every form, in an encoder and in a decoder, against a count of their own zeros."""
    random, batch, length = np.random.default_rng(seed), 2, 5
    name = "Data2VecTextForCausalLM" if causal else "Data2VecTextModel"
    model = text_models.build(name, dtype="float32", num_hidden_layers=1)
    shape = {2: (batch, length), 3: (batch, length, length), 4: (batch, HEADS, length, length)}[axes]
    mask = random.random(shape) < share
    visible = mask if axes == 4 else mask.reshape(batch, 1, -1, length)
    if causal and axes == 2:
        visible = visible & np.tri(length, dtype=bool)
    full = np.broadcast_to(visible, (batch, HEADS, length, length))
    ids = text_models.token_ids(name, seed)
    assert hidden(model, input_ids=ids, attention_mask=mask) == [(rows_that_see_nothing(full), full[..., 0].size)]
    if axes == 4:
        biases = np.where(mask, random.normal(size=shape), random.choice(LOWEST, size=shape))
        assert hidden(model, input_ids=ids, attention_mask=biases)[0][0] == rows_that_see_nothing(full)


@given(mask=st.lists(st.booleans(), min_size=6, max_size=6), length=st.integers(1, 6), causal=st.booleans())
def test_the_causal_rule_counts_from_the_last_key(mask: list[bool], length: int, causal: bool) -> None:
    """With a cache there are more keys than queries."""
    visible = np.array(mask)[None, None, None, :]
    got = attentions.hidden_rows((2, 3, length, 6), visible, causal, None)
    assert got.shape == (2, 3, length)
    for query in range(length):
        seen = [mask[key] for key in range(6) if not causal or key <= query + 6 - length]
        assert (got[:, :, query] == (not any(seen))).all()


def test_hidden_rows_of_a_cross_attention_are_counted() -> None:
    changes: dict[str, Any] = {"is_decoder": True, "add_cross_attention": True, "num_hidden_layers": 1}
    model = text_models.build("Data2VecTextModel", dtype="float32", **changes)
    states = np.random.default_rng(0).normal(size=(2, S, 12)).astype("f4")
    mask = np.array([[1] * S, [0] * S])
    inputs = {"input_ids": text_models.token_ids("", length=T), "encoder_hidden_states": states}
    counts = hidden(model, **inputs, encoder_attention_mask=mask)
    assert counts == [(0, 2 * HEADS * T), (HEADS * T, 2 * HEADS * T)]


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_learned_biases_hide_nothing_and_those_of_a_mask_still_do(kind: str) -> None:
    model = text_models.build("Data2VecTextModel", dtype="float32", position_embedding_type=kind, num_hidden_layers=1)
    ids = text_models.token_ids("", length=T)
    assert hidden(model, input_ids=ids) == [(0, 2 * HEADS * T)]
    bias = np.zeros((2, 1, T, T))
    bias[1, :, 2] = -65504.0
    assert hidden(model, input_ids=ids, attention_mask=bias)[0][0] == HEADS


@pytest.mark.parametrize("padding", ["hf", "exact"])
def test_frames_of_audio_see_at_least_their_utterance(padding: str) -> None:
    """Keys in the padding are hidden, rows are not."""
    model = audio_models.build(audio_models.BARE, dtype="float32", padding=padding)
    longest = 150
    mask = audio_models.mask_of([longest, 40], longest)
    found = measure(model, {"input_values": audio_models.samples(), "attention_mask": mask})
    assert [each.hidden_rows for each in found.attentions] == [0, 0]
    frames = model.frame_lengths(longest)
    assert found.attentions[0].rows == 2 * 3 * frames


def test_pictures_have_no_masks() -> None:
    """Biases that were learned are none, nor is a patch that the mask token stands for."""
    _, _, found = found_in(vision_models.CLASSIFIER)
    assert [each.hidden_rows for each in found.attentions] == [0, 0, 0]


@pytest.mark.parametrize("name", ["Data2VecTextModel", audio_models.CTC, vision_models.CLASSIFIER])
def test_entropies_are_scipys(name: str) -> None:
    """Of each head over the rows that see a key."""
    model, inputs = build(name)
    kind: Any = text_models if "Text" in name else audio_models if "Audio" in name else vision_models
    model = kind.trained(model, 6.0)
    seen: Any = None
    if "Text" in name:
        mask = np.zeros((2, 5, 5))
        mask[0, :, :3] = mask[1, 1:3] = 1
        inputs["attention_mask"], seen = mask, mask.any(-1)
    found = measure(model, inputs)
    probs = {tap: p for tap, p in model.with_ops(Exact()).record(**inputs)[1].items() if tap.endswith("#probs")}
    assert len(probs) == len(found.attentions) > 1
    for each in found.attentions:
        p = probs[each.name]
        entropy = scipy.stats.entropy(p, axis=-1)
        assert each.log_keys == pytest.approx(scipy.stats.entropy(np.ones(p.shape[-1])))
        rows = np.broadcast_to(True if seen is None else seen[:, None], entropy.shape)
        for head, spread in enumerate(each.heads):
            own = entropy[:, head][rows[:, head]]
            assert (spread.least, spread.mean, spread.most) == pytest.approx(
                (own.min(), own.mean(), own.max()), abs=1e-12
            )
        assert each.one_hot == pytest.approx(float((p.max(-1) >= 0.99)[rows].mean()))
        assert each.rows - each.hidden_rows == rows.sum()


def test_an_attention_that_sees_nothing_at_all() -> None:
    model = text_models.build("Data2VecTextModel", num_hidden_layers=1)
    found = measure(model, {"input_ids": [[5, 6]], "attention_mask": [[0, 0]]})
    assert found.attentions[0].hidden_rows == found.attentions[0].rows == 2 * HEADS
    assert found.attentions[0].heads == (attentions.Spread(None, None, None),) * HEADS
    assert found.attentions[0].one_hot == 0


def test_no_layers_have_no_attentions() -> None:
    _, _, found = found_in("Data2VecTextModel", num_hidden_layers=0)
    assert found.attentions == []
    assert found.rows[-1].name == "#pooler_output"


def test_what_the_model_does_not_take() -> None:
    model, _ = build("Data2VecTextModel")
    with pytest.raises(InputError, match="input_ids is out of range"):
        measure(model, {"input_ids": [[1000]]})


# ---- the command ----------------------------------------------------------------------------------------------------

SAMPLES: dict[str, str] = {
    "tiny-text": "a large flightless <mask>",
    "tiny-audio": str(models.folder("tiny-audio") / "samples" / "minus-fifty.flac"),
    "tiny-vision": str(models.folder("tiny-vision") / "samples" / "digit-00.png"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_audit_as_text_json_and_page(name: str) -> None:
    said = d2v("audit", name, SAMPLES[name], "--precision", "--html", "page.html")
    assert (said.code, said.err) == (0, "")
    for form in COMPARED:
        assert re.search(rf"^{form}: worst relative error \d\.\de-\d\d at \S+$", said.out, re.MULTILINE)
    assert len(said.out.splitlines()) <= 25
    measured = json.loads(d2v("audit", name, SAMPLES[name], "--precision", "--json").out)
    assert list(measured) == ["formats", "outputs", "attentions"]
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    for row in measured["outputs"]:
        assert f"<td>{row['name']}</td>" in page
        assert row["deviations"]["float16"]["error"] >= 0
    assert measured["formats"]["float16"]["overflow"] is None
    d2v("audit", name, SAMPLES[name], "--precision", "--html", "again.html")
    assert Path("again.html").read_text(encoding="utf-8") == page
    assert sorted(disk(Path())) == ["again.html", "page.html"]


def test_an_overflow_is_said_first() -> None:
    model, _ = build("Data2VecTextForMaskedLM")
    weights = model.state_dict()
    weights[f"{TEXT_LAYER}.intermediate.dense.bias"][3] = 7e4
    type(model)(model.config, weights, backend=model.ops).save_pretrained("model")
    np.savez("ids.npz", input_ids=text_models.token_ids("Data2VecTextForMaskedLM"))
    said = d2v("audit", "model", "ids.npz", "--precision")
    assert said.code == 0
    assert f"float16: overflows first at {TEXT_LAYER}.intermediate.dense (10 of 100 numbers); worst" in said.out
    assert f"largest magnitude 7e+04 (65504 / 0.94) at {TEXT_LAYER}.intermediate.dense" in said.out
    measured = json.loads(d2v("audit", "model", "ids.npz", "--precision", "--json").out)
    assert measured["formats"]["float16"]["overflow"] == f"{TEXT_LAYER}.intermediate.dense"
    assert measured["formats"]["bfloat16"]["overflow"] is None


def test_what_the_command_refuses() -> None:
    shutil.copytree(models.folder("tiny-text"), "cut")
    weights = Path("cut/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:9999])
    refused("audit", "cut", "a <mask>", "--precision", says="cut short")
    Path("bad.npz").write_bytes(b"PK\3\4 no zip")
    refused("audit", "tiny-text", "bad.npz", "--precision", says="can't be read as .npz")
    np.savez("ids.npz", input_ids=[[99999]])
    refused("audit", "tiny-text", "ids.npz", "--precision", says="input_ids is out of range")
    np.savez("other.npz", input_values=[[0.5]])
    refused("audit", "tiny-text", "other.npz", "--precision", says="takes no array of this name")
    refused("audit", "tiny-text", "a <mask>", "--precision", "--html", "nope/page.html", says="can't be written")


def test_a_page_needs_matplotlib_and_says_so_before_it_computes() -> None:
    with mock.patch.dict("sys.modules", {"matplotlib.figure": None}):
        with mock.patch("d2v_ref.audit.precision.measure", side_effect=AssertionError):
            options = ("--precision", "--html", "page.html")
            refused("audit", "tiny-text", "a <mask>", *options, says="pip install 'd2v-ref[plots]'", code=3)
        assert d2v("audit", "tiny-text", "a <mask>", "--precision").code == 0
    assert pages.new_figure() is not None
