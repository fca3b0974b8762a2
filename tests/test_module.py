"""Names, order, recording and binding of modules."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import audio_models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import CHOICE, CLASSES, build, main_output, token_ids

from d2v_ref.nn import Linear, Module, Parameter, recorder, recording
from d2v_ref.ops import Ops


def words(text: str) -> list[str]:
    return text.split()


# One layer's modules, as transformers names them, in the order of declaration.
LAYER = words("""
attention attention.self attention.self.query attention.self.key attention.self.value attention.output
attention.output.dense attention.output.LayerNorm intermediate intermediate.dense intermediate.intermediate_act_fn
output output.dense output.LayerNorm
""")
EMBEDDINGS = words("""
embeddings embeddings.word_embeddings embeddings.token_type_embeddings embeddings.LayerNorm
embeddings.position_embeddings
""")
# What a run of one layer computes, in this order: a module's output is known after those of its children.
COMPUTED = words("""
embeddings.word_embeddings embeddings.token_type_embeddings embeddings.position_embeddings embeddings.LayerNorm
embeddings encoder.layer.0.attention.self.query encoder.layer.0.attention.self.key encoder.layer.0.attention.self.value
encoder.layer.0.attention.self#probs encoder.layer.0.attention.self encoder.layer.0.attention.output.dense
encoder.layer.0.attention.output.LayerNorm encoder.layer.0.attention.output encoder.layer.0.attention
encoder.layer.0.intermediate.dense encoder.layer.0.intermediate.intermediate_act_fn encoder.layer.0.intermediate
encoder.layer.0.output.dense encoder.layer.0.output.LayerNorm encoder.layer.0.output encoder.layer.0 encoder
pooler.dense pooler.activation pooler #last_hidden_state #pooler_output
""")


# One layer of each kind of an audio model, as transformers names its modules, in the order of declaration.
AUDIO = words("""
feature_extractor feature_extractor.conv_layers.0 feature_extractor.conv_layers.0.conv
feature_extractor.conv_layers.0.layer_norm feature_extractor.conv_layers.0.activation
feature_projection feature_projection.layer_norm feature_projection.projection
encoder encoder.pos_conv_embed encoder.pos_conv_embed.layers.0 encoder.pos_conv_embed.layers.0.conv
encoder.pos_conv_embed.layers.0.padding encoder.pos_conv_embed.layers.0.activation
encoder.pos_conv_embed.layers.0.layer_norm encoder.layer_norm
encoder.layers.0 encoder.layers.0.attention encoder.layers.0.attention.k_proj encoder.layers.0.attention.v_proj
encoder.layers.0.attention.q_proj encoder.layers.0.attention.out_proj encoder.layers.0.layer_norm
encoder.layers.0.feed_forward encoder.layers.0.feed_forward.intermediate_dense
encoder.layers.0.feed_forward.intermediate_act_fn encoder.layers.0.feed_forward.output_dense
encoder.layers.0.final_layer_norm
adapter adapter.proj adapter.proj_layer_norm adapter.layers.0 adapter.layers.0.conv
""")
AUDIO_COMPUTED = words("""
feature_extractor.conv_layers.0.conv feature_extractor.conv_layers.0.layer_norm
feature_extractor.conv_layers.0.activation feature_extractor.conv_layers.0 feature_extractor
feature_projection.layer_norm feature_projection.projection feature_projection
encoder.pos_conv_embed.layers.0.conv encoder.pos_conv_embed.layers.0.padding
encoder.pos_conv_embed.layers.0.layer_norm encoder.pos_conv_embed.layers.0.activation encoder.pos_conv_embed.layers.0
encoder.pos_conv_embed encoder.layer_norm
encoder.layers.0.attention.q_proj encoder.layers.0.attention.k_proj encoder.layers.0.attention.v_proj
encoder.layers.0.attention#probs encoder.layers.0.attention.out_proj encoder.layers.0.attention
encoder.layers.0.layer_norm encoder.layers.0.feed_forward.intermediate_dense
encoder.layers.0.feed_forward.intermediate_act_fn encoder.layers.0.feed_forward.output_dense
encoder.layers.0.feed_forward encoder.layers.0.final_layer_norm encoder.layers.0 encoder
adapter.proj adapter.proj_layer_norm adapter.layers.0.conv adapter.layers.0 adapter
#last_hidden_state #extract_features
""")
ONE_OF_EACH: dict[str, Any] = {
    "num_hidden_layers": 1,
    "num_conv_pos_embeddings": 1,
    "conv_dim": [4],
    "conv_kernel": [8],
    "conv_stride": [3],
    "add_adapter": True,
    "num_adapter_layers": 1,
    "output_hidden_size": 5,
}


def test_modules_have_hugging_faces_names_in_the_order_of_declaration() -> None:
    model = build("Data2VecTextModel", num_hidden_layers=1)
    layer = ["encoder.layer.0", *(f"encoder.layer.0.{name}" for name in LAYER)]
    pooler = ["pooler", "pooler.dense", "pooler.activation"]
    assert [path for path, _ in model.named_modules()] == ["", *EMBEDDINGS, "encoder", *layer, *pooler]
    assert all(module.path == path for path, module in model.named_modules())
    audio = audio_models.build(audio_models.BARE, **ONE_OF_EACH)
    assert [path for path, _ in audio.named_modules()] == ["", *AUDIO]
    headed = audio_models.build(audio_models.XVECTOR, tdnn_dim=[3], tdnn_kernel=[1], tdnn_dilation=[1])
    head = words("projector tdnn.0 tdnn.0.kernel tdnn.0.activation feature_extractor classifier objective")
    assert [path for path, _ in headed.named_modules()][-7:] == head


def test_parameters_have_the_names_of_the_checkpoint() -> None:
    model = build("Data2VecTextForMaskedLM", num_hidden_layers=0)
    assert [name for name, *_ in model.named_parameters()] == [
        "data2vec_text.embeddings.word_embeddings.weight",
        "data2vec_text.embeddings.token_type_embeddings.weight",
        "data2vec_text.embeddings.LayerNorm.weight",
        "data2vec_text.embeddings.LayerNorm.bias",
        "data2vec_text.embeddings.position_embeddings.weight",
        "lm_head.bias",
        "lm_head.dense.weight",
        "lm_head.dense.bias",
        "lm_head.layer_norm.weight",
        "lm_head.layer_norm.bias",
        "lm_head.decoder.weight",
        "lm_head.decoder.bias",
    ]
    for name, module, attribute, value in model.named_parameters():
        assert getattr(module, attribute) is value
        assert name.endswith(f".{attribute}")


def test_records_are_in_the_order_of_computation() -> None:
    _, taps = build("Data2VecTextModel", num_hidden_layers=1).record([[0, 5, 2]])
    assert list(taps) == COMPUTED
    _, taps = audio_models.build(audio_models.BARE, **ONE_OF_EACH).record(audio_models.samples())
    assert list(taps) == AUDIO_COMPUTED


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=15)
@given(seed=st.integers(0, 999), chunk=st.sampled_from([0, 1, 4]), dtype=st.sampled_from(Ops.dtypes))
def test_a_recorded_run_gives_the_same_outputs(name: str, seed: int, chunk: int, dtype: str) -> None:
    model = build(name, seed=seed, chunk_size_feed_forward=chunk, dtype=dtype)
    options = {"output_attentions": True, "output_hidden_states": True}
    ids = token_ids(name, seed, length=4)
    plain, (recorded, taps) = model(ids, **options), model.record(ids, **options)
    atol = 1e-14 if dtype == "float64" else 2e-6
    assert plain.keys() == recorded.keys()
    np.testing.assert_allclose(main_output(recorded), main_output(plain), atol=atol)
    prefix = "" if name == "Data2VecTextModel" else "data2vec_text."
    for i, (state, p) in enumerate(zip(recorded.hidden_states[1:], recorded.attentions, strict=True)):
        np.testing.assert_array_equal(state, taps[f"{prefix}encoder.layer.{i}"])
        np.testing.assert_array_equal(p, taps[f"{prefix}encoder.layer.{i}.attention.self#probs"])
    whole = model if not chunk else build(name, seed=seed, dtype=dtype)
    for key, value in whole.record(ids)[1].items():  # a record shows the whole sequence, whatever the chunks
        np.testing.assert_allclose(taps[key], value, atol=atol)
    for key, value in recorded.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(taps[f"#{key}"], value)
    assert {path for path, _ in model.named_modules()} >= {tap.partition("#")[0] for tap in taps}


@pytest.mark.parametrize("name", audio_models.CLASSES)
@settings(max_examples=15)
@given(data=st.data(), seed=st.integers(0, 999), dtype=st.sampled_from(Ops.dtypes))
def test_a_recorded_run_of_audio_gives_the_same_outputs(name: str, data: st.DataObject, seed: int, dtype: str) -> None:
    """Of float32 all is float32, whatever the inputs are of."""
    padding = data.draw(st.sampled_from(["hf", "exact"]))
    config = data.draw(audio_models.audio_configs(name, padding=padding))
    model = audio_models.build(name, seed=seed, config=config, dtype=dtype)
    inputs: dict[str, Any] = {**audio_models.inputs_of(model, seed), "output_hidden_states": True}
    plain, (recorded, taps) = model(**inputs), model.record(**inputs, output_attentions=True)
    assert {*plain.keys(), "attentions"} == set(recorded.keys())  # a recorder asks for nothing
    for key, value in plain.items():
        for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (value, recorded[key])), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12 if dtype == "float64" else 1e-4)
    prefix = audio_models.bare(name)
    for i, (state, p) in enumerate(zip(recorded.hidden_states[1:], recorded.attentions, strict=True)):
        np.testing.assert_array_equal(state, taps[f"{prefix}encoder.layers.{i}"])
        np.testing.assert_array_equal(p, taps[f"{prefix}encoder.layers.{i}.attention#probs"])
    assert {value.dtype for value in taps.values()} == {np.dtype(dtype)}
    assert {array.dtype for array in (*recorded.hidden_states, audio_models.main_output(plain))} == {np.dtype(dtype)}
    assert {path for path, _ in model.named_modules()} >= {tap.partition("#")[0] for tap in taps}


def test_audio_is_recorded_as_hugging_face_lays_it_out() -> None:
    """Channels before frames in convolutions, behind them elsewhere."""
    model = audio_models.build(audio_models.BARE, add_adapter=True, conv_pos_kernel_size=4, num_adapter_layers=1)
    out, taps = model.record(audio_models.samples(length=150))
    shapes = {name: tap.shape for name, tap in taps.items()}
    for i, shape in enumerate([(2, 4, 48), (2, 6, 23), (2, 5, 11)]):
        for module in ("", ".conv", ".layer_norm", ".activation"):
            wanted = (shape[0], shape[2], shape[1]) if module == ".layer_norm" else shape
            assert shapes[f"feature_extractor.conv_layers.{i}{module}"] == wanted
    position = "encoder.pos_conv_embed.layers.1"
    assert shapes["feature_extractor"] == (2, 5, 11)
    assert shapes["feature_projection"] == shapes["encoder.pos_conv_embed"] == shapes["encoder"] == (2, 11, 12)
    assert shapes[f"{position}.conv"] == (2, 12, 12)  # one frame too many, of an even kernel
    assert shapes[f"{position}.padding"] == shapes[position] == (2, 12, 11)
    assert shapes[f"{position}.layer_norm"] == (2, 11, 12)
    assert shapes["adapter.layers.0.conv"] == (2, 24, 6)
    assert shapes["adapter.layers.0"] == (2, 12, 6)
    assert shapes["adapter"] == out.last_hidden_state.shape == (2, 6, 12)
    np.testing.assert_array_equal(taps["adapter.layers.0"].swapaxes(1, 2), taps["adapter"])
    features = taps["feature_extractor.conv_layers.2.activation"].swapaxes(1, 2)
    weight, bias = (model.state_dict()[f"feature_projection.layer_norm.{kind}"] for kind in ("weight", "bias"))
    np.testing.assert_array_equal(Ops("float64").layer_norm(features, weight, bias, 1e-5), out.extract_features)


def test_an_attention_and_a_feed_forward_are_recorded_without_their_residual() -> None:
    model = audio_models.build(audio_models.BARE)
    taps, norm = model.record(audio_models.samples())[1], Ops("float64").layer_norm
    w, layer = model.state_dict(), "encoder.layers.0"
    for module, normed, residual in (
        ("attention", "layer_norm", "encoder.layer_norm"),
        ("feed_forward", "final_layer_norm", f"{layer}.layer_norm"),
    ):
        weight, bias = (w[f"{layer}.{normed}.{kind}"] for kind in ("weight", "bias"))
        got = norm(taps[residual] + taps[f"{layer}.{module}"], weight, bias, 1e-5)
        np.testing.assert_allclose(taps[f"{layer}.{normed}"], got, atol=1e-13)


def test_every_module_that_computes_is_recorded() -> None:
    """All but those that HF too only holds: the root, whose output is recorded by its fields' names."""
    for name in CLASSES:
        model = build(name)
        _, taps = model.record(token_ids(name))
        silent = {path for path, _ in model.named_modules()} - set(taps)
        bare = "" if name == "Data2VecTextModel" else "data2vec_text"
        assert silent == {"", bare}
        assert f"{bare}#last_hidden_state" in taps
    for name in audio_models.CLASSES:
        model = audio_models.build(name)
        inputs = audio_models.inputs_of(model)
        taps = model.record(**inputs)[1]
        silent = {path for path, _ in model.named_modules()} - set(taps)
        bare = audio_models.bare(name).rstrip(".")
        # transformers too computes with the weights of a TDNN layer's kernel, and does not call it.
        assert silent == {"", bare} | {f"tdnn.{i}.kernel" for i in range(2) if name == audio_models.XVECTOR}
        assert f"{bare}#last_hidden_state" in taps
        without = {key: value for key, value in inputs.items() if key != "labels"}
        assert set(taps) - set(model.record(**without)[1]) <= {"#loss", "objective"}


def test_nothing_is_recorded_outside_the_block() -> None:
    model, seen = build("Data2VecTextModel"), []
    with recorder(lambda name, value: seen.append(name)):
        assert recording()
        model([[0, 5, 2]])
        inside = len(seen)
    assert not recording()
    model([[0, 5, 2]])
    assert len(seen) == inside > 0
    with pytest.raises(ZeroDivisionError), recorder(lambda name, value: 1 / 0):  # type: ignore[arg-type]
        model([[0, 5, 2]])
    assert not recording()


def test_an_inner_recorder_takes_over_until_it_ends() -> None:
    model = build("Data2VecTextModel")
    outer: list[str] = []
    with recorder(lambda name, value: outer.append(name)):
        model.record([[0, 5, 2]])
        assert outer == []
        model([[0, 5, 2]])
    assert outer[-1] == "#pooler_output"


def test_threads_record_apart() -> None:
    """All four runs are under way at once: each waits, at its first record, for the others to have begun."""
    names = ["Data2VecTextModel", "Data2VecTextForMaskedLM", "Data2VecTextForTokenClassification", CHOICE]
    models = [build(name, seed=i) for i, name in enumerate(names)]
    alone = [model.record(token_ids(name))[1] for model, name in zip(models, names, strict=True)]
    barrier = threading.Barrier(len(names), timeout=30)

    def run(job: tuple[Any, str]) -> list[tuple[str, np.ndarray]]:
        model, name = job
        taps: list[tuple[str, np.ndarray]] = []

        def sink(path: str, value: np.ndarray) -> None:
            if not taps:
                barrier.wait()
            taps.append((path, value))

        with recorder(sink):
            model(token_ids(name))
        barrier.wait()
        return taps

    with ThreadPoolExecutor(len(names)) as pool:
        together = list(pool.map(run, zip(models, names, strict=True)))
    for got, want in zip(together, alone, strict=True):
        assert [path for path, _ in got] == list(want)
        for path, value in got:
            np.testing.assert_array_equal(value, want[path])


def test_one_thread_records_while_another_does_not() -> None:
    model = build("Data2VecTextModel")
    with (
        recorder(lambda name, value: pytest.fail(f"{name} was recorded from another thread")),
        ThreadPoolExecutor(1) as pool,
    ):
        assert pool.submit(recording).result() is False
        pool.submit(model, [[0, 5, 2]]).result()


class Two(Module):
    def __init__(self) -> None:
        self.layers = [Linear(2, 3), Linear(2, 3)]
        self.scale: Any = Parameter((3,))
        self.absent = None
        self.number = 3

    def forward(self, x: Any) -> Any:
        return self.layers[1](x) * self.scale


def test_bind_keeps_one_array_one_and_prepares_every_module() -> None:
    class Watching(Ops):
        def __init__(self) -> None:
            super().__init__("float64")
            self.prepared: list[str] = []

        def prepare(self, module: Module) -> None:
            assert all(isinstance(getattr(module, name), np.ndarray) for name in module.parameters())
            self.prepared.append(module.path)

    model, ops = Two(), Watching()
    assert [name for name, *_ in model.named_parameters()] == [
        "scale", "layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias",
    ]  # fmt: skip
    shared, equal = np.ones((3, 2), np.float32), np.ones(3, np.float32)
    arrays = {"scale": equal, "layers.0.weight": shared, "layers.1.weight": shared}
    arrays |= {"layers.0.bias": equal.copy(), "layers.1.bias": equal.copy()}
    model.bind(arrays, ops)
    assert ops.prepared == ["", "layers.0", "layers.1"]
    assert model.layers[0].weight is model.layers[1].weight  # tied: converted once
    assert model.layers[0].weight.dtype == np.float64
    assert model.layers[0].bias is not model.layers[1].bias  # equal is not the same
    assert next(name for name, *_ in model.named_parameters()) == "scale"  # bound weights are still weights
    np.testing.assert_array_equal(model(np.ones(2)), [3, 3, 3])


def test_tied_weights_are_one_array_in_a_model() -> None:
    model = build("Data2VecTextForMaskedLM")
    assert model.lm_head.decoder.weight is model.data2vec_text.embeddings.word_embeddings.weight
    assert model.lm_head.decoder.bias is model.lm_head.bias
    untied = build("Data2VecTextForMaskedLM", tie_word_embeddings=False)
    assert untied.lm_head.decoder.weight is not untied.data2vec_text.embeddings.word_embeddings.weight


def test_a_parameter_that_is_not_loaded_has_a_size() -> None:
    assert [Parameter(shape).size for shape in ((), (3,), (2, 3, 4), (0, 5))] == [1, 3, 24, 0]


def test_a_module_without_mathematics_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"Module\.forward"):
        Module()()
