"""The audit: every weight is accounted for, counts add up, memory is measured, and what is said of a model is so.

That multiply-adds are right is for conformance/test_audit.py to show, which has torch's own count.
"""

from __future__ import annotations

import inspect
import json
import re
import tracemalloc
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import audio_models
import numpy as np
import pytest
import text_models
import vision_models
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import _here, d2v, refused  # noqa: F401 - a fixture

import d2v_ref
from d2v_ref.audit.counts import FORMULAS, Cost, ModuleCount, count_modules
from d2v_ref.audit.folding import ranges
from d2v_ref.audit.memory import measure
from d2v_ref.audit.report import Audit, audit, default_arguments
from d2v_ref.auto import MODELS, model_class
from d2v_ref.checkpoints import open_checkpoint, write_safetensors
from d2v_ref.errors import InputError
from d2v_ref.models import NAMES
from d2v_ref.ops import Ops

MOVING = (
    "asarray",
    "constant",
    "weight",
    "to_numpy",
    "prepare",
    "replay",
    "split_heads",
    "where",
)  # they compute nothing and are not counted


def build(name: str, **changes: Any) -> Any:
    """A tiny model of any class, with all that its modality has in the way of modules."""
    if "Text" in name:
        if name.endswith("CausalLM"):
            changes = {"add_cross_attention": True, **changes}
        return text_models.build(name, **changes)
    if "Audio" in name:
        return audio_models.build(name, **{"add_adapter": name not in audio_models.NO_ADAPTER, **changes})
    if name.startswith("TF"):
        config = vision_models.config_of(**changes)
        return model_class(name)(config, {}, init_missing=0, backend=Ops("float64"))
    return vision_models.build(name, pooler=False, **changes)  # as it is loaded


def inputs(name: str, batch: int = 2, length: int = 5) -> dict[str, Any]:
    if "Text" in name:
        return {"input_ids": text_models.token_ids(name, batch=batch, length=length)}
    if "Audio" in name:
        return {"input_values": audio_models.samples(batch=batch, length=600)}
    return {"pixel_values": vision_models.pictures(batch=batch)}


def inside(path: str, modules: list[ModuleCount]) -> list[ModuleCount]:
    return [module for module in modules if not path or module.path == path or module.path.startswith(f"{path}.")]


# ---- counts ----------------------------------------------------------------------------------------------------------


def test_every_operation_has_a_formula() -> None:
    """Or moves data only.  Activations and the rest alike, so that none is forgotten when one is added."""
    public = {name for name, value in vars(Ops).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert public == set(FORMULAS) | set(MOVING)
    assert not set(FORMULAS) & set(MOVING)


class Watched(np.ndarray):
    """An array that counts what NumPy computes with it: the elements of every ufunc, products of matrices apart."""

    elements: list[int]  # of each ufunc

    def __array_finalize__(self, parent: Any) -> None:
        self.elements = getattr(parent, "elements", [])

    def __array_ufunc__(self, ufunc: Any, method: str, *given: Any, out: Any = None, **options: Any) -> Any:
        arrays = [np.asarray(x) for x in given]
        if ufunc is not np.matmul:
            self.elements.append(max(array.size for array in arrays))
        if out is not None:
            options["out"] = tuple(np.asarray(x) for x in out)
        result = np.asarray(getattr(ufunc, method)(*arrays, **options)).view(Watched)
        result.elements = self.elements
        return result


def watched(*shape: int) -> Any:
    return np.random.default_rng(0).normal(size=shape).view(Watched)


def weights_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(1, 2, shape)


X, MAP, W, V = (2, 7, 24), (2, 6, 4, 24), weights_of(24, 24), weights_of(24)


@pytest.mark.parametrize(
    ("operation", "shape", "given"),
    [
        ("linear", X, {"weight": W}),
        ("linear", X, {"weight": W, "bias": V}),
        ("linear", X, {"weight": W, "bias": V, "activation": "relu", "scale": V, "residual": weights_of(*X)}),
        ("activation", X, {"name": "tanh"}),
        ("relu", X, {}),
        ("layer_norm", X, {"weight": V, "bias": V, "eps": 1e-5}),
        ("layer_norm", X, {"weight": None, "bias": None, "eps": 1e-5}),
        ("batch_norm", MAP, {"mean": V, "var": V, "weight": V, "bias": V, "eps": 1e-5}),
        ("softmax", X, {}),
        ("log_softmax", X, {}),
        ("glu", X, {}),
        ("max_pool2d", MAP, {"size": 2}),
        ("embedding", (9, 24), {}),
        ("attention", X, {"heads": 3}),
        ("attention", X, {"heads": 3, "bias": weights_of(2, 3, 7, 7), "head_mask": weights_of(3, 1, 1)}),
    ],
)
def test_element_operations_are_what_numpy_does_in_the_definition(
    operation: str, shape: tuple[int, ...], given: dict[str, Any]
) -> None:
    """Apart from what is done once a row, a channel or a call."""
    x, ops = watched(*shape), Ops("float64")
    given = {"x": x, **given}
    if operation == "embedding":
        given = {"ids": np.array([[1, 2], [3, 8]]), "weight": given["x"]}
    elif operation == "attention":
        given = {"q": given.pop("x"), "k": weights_of(*X), "v": weights_of(*X), **given}
    y = getattr(ops, operation)(**given)
    done = list(x.elements)
    call = inspect.signature(getattr(Ops, operation)).bind(ops, **given)
    call.apply_defaults()
    counted = sum((step.cost for step in FORMULAS[operation](call.arguments, y)), Cost())
    least = 2 * 3 * 7 * 7 if operation == "attention" else min(x.size, y.size)  # of a score, a number
    assert counted.element_operations == sum(size for size in done if size >= least)


@pytest.mark.parametrize("name", MODELS)
def test_a_module_costs_what_it_calls_and_what_is_inside_it(name: str) -> None:
    model = build(name)
    modules = count_modules(model, inputs(name))
    assert [(module.path, module.kind) for module in modules] == [
        (path, type(module).__name__) for path, module in model.named_modules()
    ]
    for module in modules:
        own = [cost for one in inside(module.path, modules) for cost in one.operations.values()]
        assert module.total == sum(own, Cost())
    assert modules[0].all_parameters == model.num_parameters()
    assert all(getattr(modules[0].total, field.name) > 0 for field in fields(Cost))


@pytest.mark.parametrize("name", MODELS)
def test_three_times_the_batch_computes_three_times_as_much(name: str) -> None:
    one, three = (count_modules(build(name), inputs(name, batch)) for batch in (1, 3))
    for a, b in zip(one, three, strict=True):
        assert b.total.multiply_adds == 3 * a.total.multiply_adds
        assert b.total.bytes_read <= 3 * a.total.bytes_read  # weights are read once for all
        if "relative_position_bias" not in a.path and not inside_has_bias(a, one):
            assert b.total.element_operations == 3 * a.total.element_operations
            assert b.total.bytes_written == 3 * a.total.bytes_written


def inside_has_bias(module: ModuleCount, modules: list[ModuleCount]) -> bool:
    """What depends on the size of the picture alone, or on the weights, is computed once for a batch."""
    once = ("relative_position_bias", "softmax")
    return any(word in one.path or word in one.operations for one in inside(module.path, modules) for word in once)


@pytest.mark.parametrize("name", MODELS)
def test_an_operation_writes_its_modules_output(name: str) -> None:
    """The recorder's arrays are the yardstick, where a module calls one operation and fuses nothing."""
    model, alone = build(name), {"layer_norm", "batch_norm", "conv1d", "conv2d", "conv_transpose2d", "embedding"}
    taps = model.record(**inputs(name))[1]
    held = 0
    for module in count_modules(model, inputs(name)):
        if list(module.operations.values()) == [module.total] and set(module.operations) <= alone:
            assert module.total.bytes_written == taps[module.path].nbytes, module.path
            held += 1
    assert held > 2


def test_what_a_linear_reads_and_writes() -> None:
    """x (2, 5, 12) and W (10, 12) with a bias in float64; the activation reads and writes the result once more."""
    dense = next(
        module
        for module in count_modules(build("Data2VecTextModel"), inputs("Data2VecTextModel"))
        if module.path == "encoder.layer.0.intermediate.dense"
    )
    assert dense.operations == {
        "linear": Cost(1, 2 * 5 * 10 * 12, 100, 8 * (120 + 120 + 10), 800),
        "gelu": Cost(1, 0, 100, 800, 800),
    }


def cost_of(operation: str, **given: Any) -> Cost:
    ops = Ops("float64")
    call = inspect.signature(getattr(Ops, operation)).bind(ops, **given)
    call.apply_defaults()
    return sum((step.cost for step in FORMULAS[operation](call.arguments, getattr(ops, operation)(**given))), Cost())


def test_operations_counted_by_hand() -> None:
    q = weights_of(1, 3, 8)  # two heads of four numbers; distances -2 ... 2 take five rows of the table
    table = weights_of(19, 4)
    alone, both = (cost_of("relative_key_bias", q=q, k=q, heads=2, weight=table, with_key=key) for key in (False, True))
    assert alone == Cost(1, 2 * 9 * 4, 2 * 9, q.nbytes + 5 * 32, 2 * 9 * 8)
    assert both == Cost(1, 4 * 9 * 4, 4 * 9, 2 * q.nbytes + 5 * 32, 2 * 9 * 8)
    # Rows 0-2, 1-4, 3-5 of five are 7, in each of 4 columns; columns 0-2, 1-3, 2-4 of four are 6, in each of 3 rows.
    assert cost_of("adaptive_avg_pool2d", x=weights_of(1, 5, 4, 1), size=3).element_operations == 7 * 4 + 3 * 6
    # 4 x 3 and then 4 x 5 sums of two products, or of four.
    given: dict[str, Any] = {"x": weights_of(1, 2, 3, 1), "size": (4, 5)}
    assert cost_of("resize", mode="bilinear", **given).element_operations == (12 + 20) * 2 * 2
    assert cost_of("resize", mode="bicubic", **given).element_operations == (12 + 20) * 4 * 2
    # Two frames, all six of nine, and all but the last, of two channels.
    pooled = cost_of("statistics_pooling", x=weights_of(3, 6, 2), lengths=[2, 9, -1])
    assert pooled.element_operations == 4 * (2 + 6 + 5) * 2


def test_masks_and_biases_are_counted_once_a_score() -> None:
    name = "Data2VecTextModel"
    scores = 2 * 3 * 5 * 5  # (B, H, T, S)

    def elements(given: dict[str, Any], **changes: Any) -> int:
        modules = count_modules(build(name, **changes), {**inputs(name), **given})
        return sum(m.operations["attention"].element_operations for m in modules if "attention" in m.operations)

    plain, heads = elements({}), np.ones(3)
    assert elements({"attention_mask": np.ones((2, 5), int)}) == plain + 2 * scores  # of two layers
    assert elements({"head_mask": heads}) == plain + 2 * scores
    assert elements({"attention_mask": np.zeros((2, 1, 5, 5))}) == plain + 2 * scores  # added to the scores
    assert elements({}, is_decoder=True) == plain + 2 * scores
    assert elements({"head_mask": heads, "attention_mask": np.ones((2, 5), int)}) == plain + 4 * scores


def test_chunks_compute_the_same_and_read_the_weights_more_often() -> None:
    name = "Data2VecTextModel"
    whole, chunks = (count_modules(build(name, chunk_size_feed_forward=n), inputs(name, length=6)) for n in (0, 2))
    for a, b in zip(whole, chunks, strict=True):
        assert a.total.multiply_adds == b.total.multiply_adds
    a, b = (next(m for m in ms if m.path == "encoder.layer.1.output.dense") for ms in (whole, chunks))
    assert b.operations["linear"].calls == 3 * a.operations["linear"].calls
    weights = 8 * (12 * 10 + 12)
    assert b.total.bytes_read - a.total.bytes_read == 2 * weights


@pytest.mark.parametrize("name", ["Data2VecTextForMaskedLM", "Data2VecVisionModel"])
def test_counting_and_measuring_leave_the_model_as_it_was(name: str) -> None:
    model, given = build(name), inputs(name)
    before = text_models.main_output(model(**given)).copy()
    ops = [module.ops for _, module in model.named_modules()]
    first = count_modules(model, given)
    a, b = measure(model, given), measure(model, given)
    assert (a.module, a.operation, a.weights) == (b.module, b.operation, b.weights)
    assert abs(a.activations - b.activations) < 20_000  # objects of Python's own
    assert count_modules(model, given) == first  # nothing is kept from the run before
    assert all(a is module.ops for a, (_, module) in zip(ops, model.named_modules(), strict=True))
    np.testing.assert_array_equal(text_models.main_output(model(**given)), before)
    assert not tracemalloc.is_tracing()


def test_a_recorder_is_not_told_and_changes_no_count() -> None:
    name, seen = "Data2VecVisionForImageClassification", []
    model = build(name)
    want = count_modules(model, inputs(name))
    with d2v_ref.nn.recorder(lambda path, value: seen.append(path)):
        assert count_modules(model, inputs(name)) == want
        measure(model, inputs(name))
    assert seen == []


# ---- memory ----------------------------------------------------------------------------------------------------------


class Greedy(Ops):
    """Allocates 40 MB in one operation."""

    def __init__(self, dtype: str, operation: str) -> None:
        super().__init__(dtype)
        define = getattr(super(), operation)

        def waste(*args: Any, **kwargs: Any) -> Any:
            np.ones(5_000_000)
            return define(*args, **kwargs)

        setattr(self, operation, waste)


@pytest.mark.parametrize(
    ("name", "operation", "kind"),
    [
        ("Data2VecTextModel", "embed_norm", "Data2VecTextEmbeddings"),
        ("Data2VecTextModel", "attention", "Data2VecTextSelfAttention"),
        ("Data2VecAudioModel", "conv_norm_act", "Data2VecAudioPositionalConvLayer"),
        ("Data2VecAudioModel", "glu", "Data2VecAudioAdapterLayer"),
        ("Data2VecVisionForSemanticSegmentation", "max_pool2d", "MaxPool2d"),
    ],
)
def test_the_peak_is_where_the_memory_is_taken(name: str, operation: str, kind: str) -> None:
    found = measure(build(name, ops=Greedy("float64", operation)), inputs(name))
    assert (found.kind, found.operation) == (kind, operation)
    assert 40_000_000 <= found.activations < 42_000_000


def test_the_peak_of_a_module_that_calls_no_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    from d2v_ref.audio import Data2VecAudioPadLayer

    def forward(self: Any, x: Any) -> Any:
        return x + np.ones(5_000_000)[0]

    monkeypatch.setattr(Data2VecAudioPadLayer, "forward", forward)
    found = measure(build("Data2VecAudioModel"), inputs("Data2VecAudioModel"))
    assert (found.kind, found.operation) == ("Data2VecAudioPadLayer", "")
    assert re.fullmatch(r"encoder\.pos_conv_embed\.layers\.[01]\.padding", found.module)


@pytest.mark.parametrize("after", [False, True])
def test_the_peak_between_the_modules_that_a_layer_calls(after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes before it calls the first, or after the last, is its own and not theirs."""
    from d2v_ref.text import Data2VecTextLayer

    define = Data2VecTextLayer.forward

    def forward(self: Any, x: Any, run: Any) -> Any:
        y = define(self, x, run) if after else None
        np.ones(5_000_000)
        return y if after else define(self, x, run)

    monkeypatch.setattr(Data2VecTextLayer, "forward", forward)
    found = measure(build("Data2VecTextModel"), inputs("Data2VecTextModel"))
    assert (found.kind, found.operation) == ("Data2VecTextLayer", "")


@pytest.mark.parametrize("name", ["Data2VecTextForMaskedLM", "Data2VecAudioForCTC", "Data2VecVisionModel"])
def test_the_peak_holds_the_largest_output_and_grows_with_the_input(name: str) -> None:
    model = build(name)
    small, large = (measure(model, inputs(name, batch)) for batch in (2, 40))
    largest = max(tap.nbytes for tap in model.record(**inputs(name, 40))[1].values())
    assert large.activations >= largest
    assert large.activations > 4 * small.activations
    assert small.weights == large.weights == 8 * model.num_parameters()
    assert small.module in dict(model.named_modules())


def test_somebody_elses_tracing_goes_on() -> None:
    name = "Data2VecTextModel"
    model = build(name)
    alone = measure(model, inputs(name)).activations
    tracemalloc.start()
    try:
        held = np.ones(1_000_000)
        traced = measure(model, inputs(name)).activations
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()
    assert traced < alone + held.nbytes / 2


# ---- weights ---------------------------------------------------------------------------------------------------------


def audited(folder: Path, name: str | None = None, **options: Any) -> tuple[Any, Audit]:
    model: Any = (
        d2v_ref.load(folder, **options) if name is None else model_class(name).from_pretrained(folder, **options)
    )
    return model, audit(model, open_checkpoint(folder), str(folder))


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_of_a_checkpoint_is_there_once(name: str, tmp_path: Path) -> None:
    build(name, dtype="float32") if not name.startswith("TF") else None
    build(name).save_pretrained(tmp_path)
    model, found = audited(tmp_path, name, dtype="float64")
    stored = open_checkpoint(tmp_path)
    assert sorted(weight.name for weight in found.weights) == sorted(stored)
    modules = {path: type(module).__name__ for path, module in model.named_modules()}
    parameters = {name: value for name, _, _, value in model.named_parameters()}
    for weight in found.weights:
        assert (weight.shape, weight.dtype) == (stored[weight.name].shape, stored[weight.name].dtype)
        assert weight.bytes == stored[weight.name].data.nbytes
        assert weight.file == "model.safetensors"
        assert weight.unused == ""
        for use in weight.used_by:
            assert modules[use.module] == use.kind
            np.testing.assert_array_equal(parameters[use.parameter], stored[weight.name].numpy())
    assert sorted(use.parameter for weight in found.weights for use in weight.used_by) == sorted(parameters)
    assert found.totals.used_bytes == sum(tensor.data.nbytes for tensor in stored.values())
    assert (found.totals.unused, found.fresh, found.totals.tied) == (0, [], len(model.load_report.tied))


def test_a_tied_weight_names_every_module() -> None:
    model = text_models.build("Data2VecTextForMaskedLM")
    model.save_pretrained(Path())
    uses = {w.name: [use.module for use in w.used_by] for w in audited(Path())[1].weights if len(w.used_by) > 1}
    assert uses == {
        "data2vec_text.embeddings.word_embeddings.weight": [
            "data2vec_text.embeddings.word_embeddings",
            "lm_head.decoder",
        ],
        "lm_head.bias": ["lm_head", "lm_head.decoder"],
    }


@pytest.mark.parametrize("both", [True, False])
def test_a_weight_under_its_other_name_and_under_both(both: bool) -> None:
    """As transformers 4 saved it: the file has one name of the two, or a copy under each."""
    model = text_models.build("Data2VecTextForMaskedLM")
    model.save_pretrained(Path())
    weights = model.state_dict()
    if not both:
        del weights["data2vec_text.embeddings.word_embeddings.weight"]
    write_safetensors(Path("model.safetensors"), weights, {"format": "pt"})
    _, found = audited(Path())
    assert sorted(weight.name for weight in found.weights) == sorted(weights)
    decoder = next(weight for weight in found.weights if weight.name == "lm_head.decoder.weight")
    assert "lm_head.decoder" in [use.module for use in decoder.used_by]
    assert both or "data2vec_text.embeddings.word_embeddings" in [use.module for use in decoder.used_by]


def test_what_is_unused_fresh_and_left_out() -> None:
    text_models.build("Data2VecTextForSequenceClassification").save_pretrained(Path())
    _, found = audited(Path(), "Data2VecTextModel")
    assert {weight.name for weight in found.weights if weight.unused} == {
        f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")
    }
    assert all(bool(weight.unused) != bool(weight.used_by) for weight in found.weights)
    assert (found.absent, found.fresh) == (["pooler"], [])
    _, found = audited(Path(), "Data2VecTextForTokenClassification", init_missing=1)
    assert found.fresh == ["classifier.weight", "classifier.bias"]


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(InputError, match="Data2VecTextModel has no weights yet"):
        audit(model_class("Data2VecTextModel")(text_models.config_of("Data2VecTextModel")), {}, "none")


# ---- paths -----------------------------------------------------------------------------------------------------------


def spelt(path: str) -> list[str]:
    """Every path that a range stands for."""
    found = re.search(r"(?:^|\.)(\d+)-(\d+)(?=\.|$)", path)
    if found is None:
        return [path]
    (start, _), (_, end) = found.span(1), found.span(2)
    numbers = range(int(found[1]), int(found[2]) + 1)
    return [one for number in numbers for one in spelt(f"{path[:start]}{number}{path[end:]}")]


STEPS = st.lists(st.sampled_from(["a", "b", "0", "1", "2", "3", "7", "10", "layer"]), min_size=1, max_size=5)


@given(st.lists(STEPS.map(".".join), unique=True))
def test_ranges_stand_for_the_same_paths(paths: list[str]) -> None:
    short = ranges(paths)
    assert sorted(one for path in short for one in spelt(path)) == sorted(paths)
    assert len(short) <= len(paths)


def test_layers_that_are_alike_stand_once() -> None:
    layers = [f"encoder.layer.{i}.{part}" for i in range(12) for part in ("q", "k")]
    assert ranges(["embeddings", *layers, "pooler"]) == [
        "embeddings",
        "encoder.layer.0-11.q",
        "encoder.layer.0-11.k",
        "pooler",
    ]
    assert ranges([path for path in layers if path != "encoder.layer.5.k"])[0] == "encoder.layer.0-4.q"
    assert len(ranges([".".join(["x"] * 5000)])) == 1  # no name is too deep


# ---- equations and quirks --------------------------------------------------------------------------------------------

FORMULA = re.compile(r"\w\(\w|[=+]|\w\[")  # f(x), a sum, an equation, a row of a table


@pytest.mark.parametrize("name", MODELS)
def test_every_class_says_what_it_computes_and_of_what_shape(name: str) -> None:
    model = build(name)
    model.save_pretrained(Path())
    found = audited(Path(), name, dtype="float64")[1].equations
    assert [one.kind for one in found] == list(dict.fromkeys(type(m).__name__ for _, m in model.named_modules()))
    modules = dict(model.named_modules())
    for equation in found:
        cls = type(modules[equation.places[0].paths[0]])
        assert cls.__dict__.get("__doc__"), f"{equation.kind} has no docstring of its own"
        assert "->" in equation.text, f"{equation.kind} names no shapes: {equation.text}"
        words = " ".join((equation.text, *equation.operations.values()))
        assert FORMULA.search(words), f"{equation.kind} gives no formula: {words}"
    places = [path for equation in found for place in equation.places for path in place.paths]
    assert sorted(places) == sorted(path for path, _ in model.named_modules())


def test_the_numbers_of_a_class_are_the_models() -> None:
    model = build("Data2VecAudioModel", layer_norm_eps=1e-3)
    model.save_pretrained(Path())
    found = {equation.kind: equation for equation in audited(Path())[1].equations}
    assert {place.settings["eps"] for place in found["LayerNorm"].places} == {1e-5, 1e-3}
    (attention,) = found["Data2VecAudioAttention"].places
    assert (attention.settings, len(attention.paths)) == ({"heads": 3}, 2)
    first = found["Conv1d"].places[0]
    assert first.settings == {"stride": 3, "padding": 0, "groups": 1, "weight": (4, 1, 8)}
    assert list(found["Data2VecAudioAttention"].operations) == ["attention"]


QUIRKS: list[tuple[str, dict[str, Any], str, bool]] = [
    ("Data2VecTextModel", {}, "max_position_embeddings", True),
    ("Data2VecTextModel", {"position_embedding_type": "relative_key"}, "max_position_embeddings", False),
    ("Data2VecTextModel", {"position_embedding_type": "relative_key"}, "position_embedding_type=relative_key", True),
    ("Data2VecTextModel", {"position_embedding_type": "relative_key"}, "is_decoder", False),
    ("Data2VecTextModel", {"position_embedding_type": "relative_key", "is_decoder": True}, "is_decoder", True),
    ("Data2VecTextModel", {}, "inputs_embeds", False),
    ("Data2VecTextModel", {"is_decoder": True}, "inputs_embeds", True),
    ("Data2VecTextModel", {"chunk_size_feed_forward": 2}, "chunk_size_feed_forward", True),
    ("Data2VecTextModel", {}, "chunk_size_feed_forward", False),
    ("Data2VecTextForMaskedLM", {"hidden_act": "relu"}, "hidden_act", True),
    ("Data2VecTextForMaskedLM", {"hidden_act": "gelu_python"}, "hidden_act", False),
    ("Data2VecTextModel", {"hidden_act": "relu"}, "hidden_act", False),
    ("Data2VecTextForCausalLM", {}, "generate", True),
    ("Data2VecTextForCausalLM", {"position_embedding_type": "relative_key"}, "generate", False),
    ("Data2VecAudioModel", {"do_stable_layer_norm": True}, "do_stable_layer_norm", True),
    ("Data2VecAudioModel", {"layer_norm_eps": 1e-5}, "layer_norm_eps", False),
    ("Data2VecAudioModel", {"layer_norm_eps": 1e-12}, "layer_norm_eps", True),
    ("Data2VecAudioModel", {"apply_spec_augment": False}, "apply_spec_augment", True),
    ("Data2VecAudioModel", {}, "apply_spec_augment", False),
    ("Data2VecAudioModel", {}, "attention_mask", True),
    ("Data2VecAudioModel", {"padding": "exact"}, "attention_mask", False),
    ("Data2VecAudioModel", {"padding": "exact"}, "padding=exact", True),
    ("Data2VecAudioModel", {"adapter_kernel_size": 2}, "adapter_kernel_size", True),
    ("Data2VecAudioModel", {}, "adapter_kernel_size", False),
    ("Data2VecAudioForCTC", {}, "ctc_target_rule=v5", True),
    ("Data2VecAudioForCTC", {"ctc_target_rule": "v4"}, "ctc_target_rule=v4", True),
    ("Data2VecAudioForXVector", {}, "logits", True),
    ("Data2VecAudioForXVector", {"use_weighted_layer_sum": True}, "use_weighted_layer_sum", True),
    ("Data2VecVisionModel", {"use_mean_pooling": False}, "use_mean_pooling", False),
    ("Data2VecVisionModel", {"use_mean_pooling": True}, "use_mean_pooling", True),
    ("Data2VecVisionModel", {"layer_scale_init_value": 0.0}, "layer_scale_init_value", False),
    ("Data2VecVisionModel", {"image_size": 13}, "image_size and patch_size", True),
    ("Data2VecVisionModel", {}, "image_size and patch_size", False),
    ("Data2VecVisionModel", {"image_size": [8, 12]}, "use_absolute_position_embeddings", False),
    (
        "Data2VecVisionModel",
        {"image_size": [8, 12], "use_absolute_position_embeddings": True},
        "use_absolute_position_embeddings",
        True,
    ),
    ("Data2VecVisionForSemanticSegmentation", {}, "out_indices", True),
    ("Data2VecVisionForSemanticSegmentation", {"use_auxiliary_head": False}, "use_auxiliary_head", False),
    ("Data2VecVisionForSemanticSegmentation", {}, "pool_scales", False),
    ("TFData2VecVisionForSemanticSegmentation", {}, "pool_scales", True),
    ("TFData2VecVisionForSemanticSegmentation", {"pool_scales": [2]}, "pool_scales", False),
    ("TFData2VecVisionModel", {}, "interpolate_pos_encoding", False),
    ("Data2VecVisionModel", {}, "interpolate_pos_encoding", True),
    ("TFData2VecVisionModel", {"image_size": [12, 8]}, "image_size", True),
    ("TFData2VecVisionForImageClassification", {}, "loss", True),
]


@pytest.mark.parametrize(("name", "changes", "setting", "active"), QUIRKS)
def test_a_quirk_is_named_where_it_is_active(name: str, changes: dict[str, Any], setting: str, active: bool) -> None:
    quirks = build(name, **changes).load_report.quirks
    assert (setting in quirks) == active
    assert all(quirk.what and quirk.source for quirk in quirks.values())


@settings(max_examples=60)
@given(
    st.sampled_from(audio_models.CLASSES),
    st.integers(0, 3),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 2),
    st.booleans(),
    st.lists(st.integers(1, 2), min_size=2, max_size=2),
)
def test_padding_is_said_to_leak_where_it_does(
    name: str, layers: int, kernel: int, adapter: bool, adapters: int, weighted: bool, dilation: list[int]
) -> None:
    """An utterance alone, with a mask of ones, against the same one in a longer batch."""
    model = audio_models.build(
        name,
        num_conv_pos_embeddings=layers,
        conv_pos_kernel_size=kernel,
        add_adapter=adapter and name not in audio_models.NO_ADAPTER,
        num_adapter_layers=adapters,
        use_weighted_layer_sum=weighted,
        tdnn_dilation=dilation,
    )
    model = audio_models.trained(model)
    differs = False
    for short in range(600, 612, 3):  # where the utterance ends in a frame, and a frame in the strides of an adapter
        x, mask = audio_models.samples(batch=2, length=800), audio_models.mask_of([800, short], 800)
        alone = audio_models.main_output(model(x[1:, :short], mask[1:, :short]))[0]
        padded = audio_models.main_output(model(x, mask))[1]
        own = padded if alone.ndim == 1 else padded[: len(alone)]
        differs |= bool(np.abs(own - alone).max() > 1e-9)
    assert differs == ("padding=hf" in model.quirks())


# ---- the command -----------------------------------------------------------------------------------------------------


def test_help_fits_a_terminal() -> None:
    result = d2v("audit", "--help")
    assert result.code == 0
    assert all(len(line) <= 100 for line in result.out.splitlines())
    assert "..." not in result.out.replace("]...", "")


@pytest.mark.parametrize("name", MODELS)
def test_the_report_of_every_class_fits_a_terminal(name: str) -> None:
    build(name).save_pretrained("m")
    result = d2v("audit", "m", "--class", name)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].startswith(f"m: {name}, ")
    assert all(len(line) <= 100 and line.isprintable() and line == line.rstrip() for line in lines)
    for heading in ("Weights: ", "Operations for ", "Memory for ", "Quirks of ", "Equations:"):
        assert sum(line.startswith(heading) for line in lines) == 1
    for kind in {type(module).__name__ for _, module in build(name).named_modules()}:
        assert f"  {kind}" in lines


@pytest.mark.parametrize(("name", "given"), [*[(name, None) for name in NAMES], ("tiny-text", "a <mask> of light")])
def test_json_holds_what_the_audit_found(name: str, given: str | None) -> None:
    result = d2v("audit", name, *([given] if given else []), "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    model: Any = d2v_ref.load(name)
    assert [module["path"] for module in found["modules"]] == [path for path, _ in model.named_modules()]
    assert len(found["weights"]) == len(model.load_report.used) + len(model.load_report.unused)
    assert found["totals"]["parameters"] == model.num_parameters()
    assert found["quirks"].keys() == model.load_report.quirks.keys()
    assert ("default" in found["input"]["what"]) == (given is None)
    assert set(found["input"]["arrays"]) >= set(default_arguments(model)[1])


class Cells(HTMLParser):
    """The text of every cell of a page's tables, and whether all that was opened was closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag != "meta":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_a_row_for_every_weight_and_module(name: str) -> None:
    result = d2v("audit", name, "--html", "audit.html")
    assert (result.code, result.err) == (0, "")
    page = Cells(Path("audit.html").read_text(encoding="utf-8"))
    assert page.open == []
    model: Any = d2v_ref.load(name)
    assert set(page.cells) >= {path for path, _ in model.named_modules() if path}
    assert set(page.cells) >= {*model.load_report.used.values(), *model.load_report.unused}
    assert not re.search(r"(src|href)=", Path("audit.html").read_text(encoding="utf-8"))


STRANGE = [
    "<b>bold</b>",
    "a\"&amp;'",
    "new\nline\x1b[31m",
    "half \udc80 surrogate",
    "..",
    ".".join("x" * 3000),
    "ü" * 300,
]


def test_strange_names_do_no_harm() -> None:
    model = text_models.build("Data2VecTextModel", dtype="float32")
    model.save_pretrained("m")
    strange = {name: np.ones(2, np.float32) for name in STRANGE if "\udc80" not in name}
    write_safetensors(Path("m/model.safetensors"), {**model.state_dict(), **strange}, {"format": "pt"})
    result = d2v("audit", "m", "--html", "page.html")
    assert (result.code, result.err) == (0, "")
    assert all(line.isprintable() for line in result.out.splitlines())
    page = Path("page.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "<b>bold</b>" in Cells(page).cells
    assert {weight["name"] for weight in json.loads(d2v("audit", "m", "--json").out)["weights"]} >= set(strange)


def test_a_name_that_utf8_has_no_bytes_for() -> None:
    model = text_models.build("Data2VecTextModel", dtype="float32")
    model.save_pretrained("m")
    found = audit(d2v_ref.load("m"), open_checkpoint("m"), "caf\udce9")
    from d2v_ref.audit.page import write_audit

    write_audit(found, "page.html")
    assert "caf\\udce9" in Path("page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("option", [["--precision"], ["--plots", "plots"], ["--precision", "--plots", "plots"]])
def test_precision_and_plots_need_an_input(option: list[str]) -> None:
    refused("audit", "tiny-text", *option, says=f"{option[0]} needs an INPUT. Give a text")


def test_wrong_inputs_end_in_one_line() -> None:
    refused("audit", "tiny-txt", says="Did you mean tiny-text?")
    refused("audit", "tiny-text", "--class", "Nothing", says="no model of this name")
    refused("audit", "tiny-text", "--class", "Data2VecAudioModel", says="model_type is another model's")
    refused("audit", "tiny-text", "missing.txt", says="there is no such file")
    refused("audit", "tiny-text", "--html", "nowhere/page.html", says="nowhere")
    np.savez("ids.npz", wrong=np.ones((1, 2), int))
    refused("audit", "tiny-text", "ids.npz", says="takes no array of this name (got wrong;")
    np.savez("ids.npz", input_ids=np.full((1, 2), 10**6))
    refused("audit", "tiny-text", "ids.npz", says="input_ids is out of range")
    refused("audit", "tiny-text", "--backend", "nothing", says="no backend is called 'nothing'", code=3)


def test_damaged_and_unsupported_checkpoints_end_in_one_line() -> None:
    text_models.build("Data2VecTextModel", dtype="float32").save_pretrained("m")
    weights = Path("m/model.safetensors")
    whole = weights.read_bytes()
    for damaged, says in (
        (whole[: len(whole) // 2], "m/model.safetensors: "),
        (b"", "the file is empty"),
        (b"\xff" * 100, "m/model.safetensors: "),
    ):
        weights.write_bytes(damaged)
        refused("audit", "m", says=says)
    weights.unlink()
    refused("audit", "m", says="the folder holds no weights")
    Path("m/flax_model.msgpack").write_bytes(b"")
    refused("audit", "m", says="Flax")
    Path("m/pytorch_model.bin").write_bytes(b"no pickle")
    refused("audit", "m", says="pytorch_model.bin")
    Path("m/config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    refused("audit", "m", says="architectures names no model that is known here")
    Path("m/config.json").write_text("{")
    refused("audit", "m", says="is not JSON")
