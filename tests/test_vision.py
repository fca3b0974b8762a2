"""The vision models: what is refused and how, how pictures of other sizes are taken, and what the heads compute."""

from __future__ import annotations

import inspect
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import numpy as np
import pytest
import scipy.ndimage
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from vision_models import (
    BARE,
    CLASSES,
    CLASSIFIER,
    SEGMENTER,
    TINY,
    bare,
    build,
    config_of,
    inputs_of,
    main_output,
    pictures,
    vision_configs,
)

from d2v_ref.auto import model_class
from d2v_ref.errors import ConfigError, D2VError, InputError
from d2v_ref.ops import Ops
from d2v_ref.vision import Data2VecVisionRelativePositionBias, relative_position_index

NAN, INF = float("nan"), float("inf")
EVERYTHING = {"output_hidden_states": True, "output_attentions": True}
seeds = st.integers(0, 2**32 - 1)
models = {name: build(name) for name in CLASSES}
ANY_SIZE = (BARE, CLASSIFIER)

X = pictures()  # (2, 2, 12, 12), 3 x 3 patches
HIDDEN = np.zeros((2, 9), bool)


def refused(model: Any, words: str, /, **arguments: Any) -> None:
    with pytest.raises(InputError, match=words) as caught:
        model(**arguments)
    assert len(str(caught.value).splitlines()) == 1


def unscaled(name: str, **changes: Any) -> Any:
    """Without layer scale, so that a branch is no tenth of what it adds to."""
    return build(name, layer_scale_init_value=0.0, **changes)


# ---- wrong inputs


def spoilt(array: np.ndarray, value: float) -> np.ndarray:
    array = array.astype(float)
    array[(0,) * array.ndim] = value
    return array


MALFORMED: list[tuple[str, dict[str, Any]]] = [
    (r"^pixel_values has the wrong shape .got .2, 12, 12.; expected .batch, 2, height, width.", {"pixel_values": X[0]}),
    (r"^pixel_values has the wrong shape .got .12, 12.", {"pixel_values": X[0, 0]}),
    (r"^pixel_values has the wrong shape .got .1, 2, 2, 12, 12.", {"pixel_values": X[None]}),
    (r"^pixel_values has the wrong shape .got ..;", {"pixel_values": 0.5}),
    (r"^pixel_values has the wrong shape .got .2, 1, 12, 12.; expected .batch, 2", {"pixel_values": X[:, :1]}),
    (r"^pixel_values has the wrong shape .got .2, 4, 12, 12.", {"pixel_values": np.concatenate((X, X), 1)}),
    (r"^pixel_values has the wrong shape .got .2, 12, 12, 2.", {"pixel_values": X.transpose(0, 2, 3, 1)}),
    (r"^pixel_values has the wrong dtype .got uint8; expected floating", {"pixel_values": X.astype("u1")}),
    (r"^pixel_values has the wrong dtype .got int64", {"pixel_values": X.astype(int)}),
    (r"^pixel_values has the wrong dtype .got bool", {"pixel_values": X > 0}),
    (r"^pixel_values has the wrong dtype .got complex128", {"pixel_values": X + 0j}),
    (r"^pixel_values has the wrong dtype .got <U", {"pixel_values": "cat.png"}),
    (r"^pixel_values has the wrong dtype .got object", {"pixel_values": None}),
    (r"^pixel_values is not an array: .*expected rows of one length", {"pixel_values": [X[0], X[1, :, :8]]}),
    (r"^pixel_values is empty .got .0, 2, 12, 12.", {"pixel_values": X[:0]}),
    (r"^pixel_values is empty .got .2, 2, 0, 12.", {"pixel_values": X[:, :, :0]}),
    (r"^pixel_values: the picture is too small .got 3 x 12 pixels; expected at least a patch, 4 x 4",
     {"pixel_values": X[:, :, :3]}),
    (r"^pixel_values: the picture is too small .got 12 x 3 pixels", {"pixel_values": X[..., :3]}),
    (r"^pixel_values: the picture is too small .got 1 x 1 pixels", {"pixel_values": X[..., :1, :1]}),
    (r"^pixel_values is not finite .got nan at .0, 0, 0, 0.", {"pixel_values": spoilt(X, NAN)}),
    (r"^pixel_values is not finite .got -inf at .0, 0, 0, 0.", {"pixel_values": spoilt(X, -INF)}),
    (r"^bool_masked_pos has the wrong shape .got .2, 10.; expected .2, 9", {"bool_masked_pos": np.ones((2, 10), int)}),
    (r"^bool_masked_pos has the wrong shape .got .2, 3, 3.", {"bool_masked_pos": HIDDEN.reshape(2, 3, 3)}),
    (r"^bool_masked_pos has the wrong shape .got .1, 9.; expected .2, 9", {"bool_masked_pos": HIDDEN[:1]}),
    (r"^bool_masked_pos has the wrong shape .got ..", {"bool_masked_pos": True}),
    (r"^bool_masked_pos has the wrong dtype .got float64; expected booleans or integers",
     {"bool_masked_pos": 1.0 * HIDDEN}),
    (r"^bool_masked_pos has the wrong dtype .got <U", {"bool_masked_pos": HIDDEN.astype(str)}),
    (r"^bool_masked_pos is not an array", {"bool_masked_pos": [[1], [1, 0]]}),
    (r"^bool_masked_pos holds other numbers .got 2; expected booleans, or 0 and 1", {"bool_masked_pos": HIDDEN + 2}),
    (r"^bool_masked_pos holds other numbers .got -1;", {"bool_masked_pos": HIDDEN - 1}),
]  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(("words", "arguments"), MALFORMED)
def test_a_malformed_input_is_one_line_that_names_it(name: str, words: str, arguments: dict[str, Any]) -> None:
    refused(models[name], words, **{"pixel_values": X, **arguments})


def test_a_number_too_large_for_the_dtype_is_refused_in_that_dtype_only() -> None:
    words = r"^pixel_values is not finite .got 1e.300 at .0, 0, 0, 0.; expected finite numbers in float32"
    refused(build(BARE, dtype="float32"), words, pixel_values=spoilt(X, 1e300))
    with np.errstate(over="ignore"):
        assert models[BARE](spoilt(X, 1e300)).last_hidden_state.shape == (2, 10, 12)


@pytest.mark.parametrize("name", CLASSES)
def test_masked_patches_need_the_token_that_they_become(name: str) -> None:
    model = build(name, use_mask_token=False)
    words = "^bool_masked_pos: the model has no mask token. Build the model with use_mask_token=True"
    refused(model, words, pixel_values=X, bool_masked_pos=HIDDEN)
    assert f"{bare(name)}embeddings.mask_token" not in model.state_dict()
    assert f"{bare(name)}embeddings.mask_token" in models[name].state_dict()


GRID = np.zeros((2, 12, 12), int)
LABELS: list[tuple[str, str, Any]] = [
    (CLASSIFIER, r"labels is out of range .got 3 at .1,.; expected 0 ... 2", [0, 3]),
    (CLASSIFIER, r"labels is out of range .got -1 at .0,.", [-1, 0]),
    (CLASSIFIER, r"labels has the wrong shape .got .3,.; expected .2,.", [0, 1, 2]),
    (CLASSIFIER, r"labels .multi_label_classification. has the wrong shape .got .2,.; expected .2, 3.", [0.0, 1.0]),
    (CLASSIFIER, r"labels .multi_label_classification. has the wrong dtype .got <U", ["cat", "dog"]),
    (CLASSIFIER, r"labels .multi_label_classification. is not finite .got nan", np.full((2, 3), NAN)),
    (CLASSIFIER, r"labels is not an array", [[1], [1, 2]]),
    (SEGMENTER, r"labels is out of range .got 3 at .\d+,.; expected 0 ... 2.*255", GRID + 3),
    (SEGMENTER, r"labels is out of range .got -1 at", GRID - 1),
    (SEGMENTER, r"labels is out of range .got -100 at", GRID - 100),
    (SEGMENTER, r"labels is out of range .got 254 at", (GRID + 254).astype("u1")),
    (SEGMENTER, r"labels has the wrong shape .got .12, 12.; expected .2, height, width", GRID[0]),
    (SEGMENTER, r"labels has the wrong shape .got .1, 12, 12.; expected .2, height, width", GRID[:1]),
    (SEGMENTER, r"labels has the wrong shape .got .2, 1, 12, 12.", GRID[:, None]),
    (SEGMENTER, r"labels is empty .got .2, 0, 12.", GRID[:, :0]),
    (SEGMENTER, r"labels has the wrong dtype .got float64; expected integers", GRID * 1.0),
    (SEGMENTER, r"labels has the wrong dtype .got bool; expected integers", GRID > 0),
    (SEGMENTER, r"labels is not an array", [[[1]], [[1, 2]]]),
]


@pytest.mark.parametrize(("name", "words", "labels"), LABELS)
def test_labels_that_do_not_serve(name: str, words: str, labels: Any) -> None:
    refused(models[name], f"^{words}", pixel_values=X, labels=labels)


def test_models_without_classes_give_what_there_is_and_take_no_labels() -> None:
    """As transformers, whose classifier is then the identity."""
    model = build(CLASSIFIER, num_labels=0)
    pooled = build(BARE)(X).pooler_output
    assert not [key for key in model.state_dict() if key.startswith("classifier")]
    assert model(X).logits.shape == pooled.shape == (2, 12)
    for labels in ([0, 1], np.zeros((2, 12))):
        refused(model, "^labels: the model has no classes. Build it with num_labels", pixel_values=X, labels=labels)
    for count in (0, 1):
        model = build(SEGMENTER, num_labels=count)
        assert model(X).logits.shape == (2, count, 12, 12)
        words = rf"^labels: without two classes there is nothing to learn .got num_labels={count}; expected a model"
        refused(model, words, pixel_values=X, labels=GRID)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (12, 16), (16, 12), (24, 24), (8, 18), (36, 4)])
def test_segmentation_takes_as_many_patches_as_image_size_has(height: int, width: int) -> None:
    x = pictures(0, 2, height, width)
    patches = (height // 4) * (width // 4)
    model = models[SEGMENTER]
    if patches != 9:
        words = rf"^pixel_values: segmentation takes one size of picture .got {patches} patches; expected 9, as"
        refused(model, words, pixel_values=x)
    else:  # counted, not compared, as in transformers
        assert model(x).logits.shape == (2, 3, 12, 12)
    edges = model(np.pad(X, ((0, 0), (0, 0), (0, 3), (0, 2)))).logits  # which fill no patch
    np.testing.assert_array_equal(edges, model(X).logits)


# ---- configurations

WRONG: list[tuple[str, dict[str, Any]]] = [
    ("image_size is out of range .got 0; expected 1 ... 2", {"image_size": 0}),
    ("image_size is out of range .got -12", {"image_size": -12}),
    (r"image_size is out of range .got \[12, 0\]", {"image_size": [12, 0]}),
    ("image_size is out of range .got 2147483648", {"image_size": 2**31}),
    (r"image_size is no size .got \[12\]; expected one number, or height and width", {"image_size": [12]}),
    (r"image_size is no size .got \[12, 12, 12\]", {"image_size": [12, 12, 12]}),
    (r"image_size is no size .got \[\]", {"image_size": []}),
    ("image_size has the wrong type .got 12.0; expected int", {"image_size": 12.0}),
    ("image_size has the wrong type .got '12'", {"image_size": "12"}),
    ("image_size has the wrong type .got None", {"image_size": None}),
    ("image_size has the wrong type .got {'height': 12, 'width': 12}", {"image_size": {"height": 12, "width": 12}}),
    (r"image_size has the wrong type .got \[12, 12.0\]", {"image_size": [12, 12.0]}),
    (r"image_size does not fit patch_size .got \(0, 0\); expected an image of 1", {"image_size": 3}),
    (r"image_size does not fit patch_size .got \(3, 0\)", {"image_size": [12, 3]}),
    (r"image_size does not fit patch_size .got \(536870911, 536870911\)", {"image_size": 2**31 - 1}),
    ("patch_size is out of range .got 0", {"patch_size": 0}),
    (r"patch_size is out of range .got \[4, -4\]", {"patch_size": [4, -4]}),
    (r"patch_size is no size .got \[4, 4, 4\]", {"patch_size": [4, 4, 4]}),
    ("num_channels is out of range .got 0", {"num_channels": 0}),
    ("hidden_size is out of range .got 0", {"hidden_size": 0}),
    ("intermediate_size is out of range .got -1", {"intermediate_size": -1}),
    ("num_attention_heads is out of range .got 0", {"num_attention_heads": 0}),
    ("hidden_size does not divide among the heads .got 12; expected .*=5", {"num_attention_heads": 5}),
    ("num_hidden_layers is out of range .got -1; expected 0 ... 1000", {"num_hidden_layers": -1}),
    ("num_hidden_layers is out of range .got 1001", {"num_hidden_layers": 1001}),
    ("auxiliary_num_convs is out of range .got 1000000", {"auxiliary_num_convs": 10**6}),
    ("auxiliary_channels is out of range .got 0", {"auxiliary_channels": 0}),
    (r"pool_scales is out of range .got \[1, 0\]", {"pool_scales": [1, 0]}),
    (r"pool_scales is out of range .got \[-2\]", {"pool_scales": [-2]}),
    ("pool_scales has the wrong type .got 3; expected list", {"pool_scales": 3}),
    ("too many pool_scales .got 1001", {"pool_scales": [1] * 1001}),
    ("out_indices has the wrong type .got None", {"out_indices": None}),
    (r"out_indices has the wrong type .got \['1'\]", {"out_indices": ["1"]}),
    ("layer_norm_eps is out of range .got -1e-12", {"layer_norm_eps": -1e-12}),
    ("layer_norm_eps is out of range .got nan", {"layer_norm_eps": NAN}),
    ("unknown hidden_act .got gelo", {"hidden_act": "gelo"}),
    ("num_labels does not serve .got -1", {"num_labels": -1}),
    (
        "a single-label problem needs classes to choose from .got 0 labels",
        {"num_labels": 0, "problem_type": "single_label_classification"},
    ),
    ("use_mask_token has the wrong type .got 1; expected bool", {"use_mask_token": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "changes"), WRONG)
def test_configurations_that_no_model_can_be_built_from(words: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{words}") as caught:
        config_of(**changes)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "indices",
    [[], [1], [1, 2, 3], [1, 2, 3, 4, 4], [1, 2, 3, 3], [0, 1, 2, 3], [2, 3, 4, 5], [1, 2, 3, -1], [3, 5, 7, 11]],
)
def test_out_indices_choose_four_layers_that_are_there(indices: list[int]) -> None:
    words = f"^out_indices does not choose four features .got {re.escape(str(indices))}; expected four different layers"
    with pytest.raises(ConfigError, match=f"{words}, 1 ... 4"):
        build(SEGMENTER, out_indices=indices)
    for name in ANY_SIZE:
        build(name, out_indices=indices)  # which take no notice


def test_out_indices_are_taken_in_the_layers_order() -> None:
    for indices in ([4, 2, 1, 3], (1, 2, 3, 4)):
        np.testing.assert_array_equal(build(SEGMENTER, out_indices=indices)(X).logits, models[SEGMENTER](X).logits)


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (r"image_size is no square of patches .got .3, 4.; expected as many down as across", {"image_size": [12, 16]}),
        (r"image_size is no square of patches .got .3, 2.", {"patch_size": [4, 6]}),
        (r"auxiliary_channels does not fit .got 5; expected hidden_size=12", {"auxiliary_num_convs": 0}),
    ],
)
def test_configurations_that_segmentation_can_not_be_built_from(words: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{words}"):
        build(SEGMENTER, **changes)
    for name in ANY_SIZE:
        build(name, **changes)
    build(SEGMENTER, use_auxiliary_head=False, auxiliary_num_convs=0)
    square = build(SEGMENTER, image_size=[12, 18], patch_size=[4, 6])  # as many down as across
    assert square(pictures(0, 2, 12, 18)).logits.shape == (2, 3, 12, 12)


def test_a_map_too_small_to_be_halved_is_named() -> None:
    words = r"^max_pool2d: the map is smaller than a tile .got .1, 1, 1, 12.; expected 2 x 2"
    refused(build(SEGMENTER, image_size=4), words, pixel_values=X[:1, :, :4, :4])


ABSURD: list[dict[str, Any]] = [
    {"num_channels": 1},
    {"hidden_size": 1, "num_attention_heads": 1, "auxiliary_channels": 1},
    {"num_attention_heads": 12},
    {"intermediate_size": 1},
    {"patch_size": 1, "image_size": 2},
    {"patch_size": 12, "image_size": 24},
    {"image_size": [13, 14], "patch_size": [4, 4]},
    {"layer_norm_eps": 0, "hidden_act": "quick_gelu"},
    {"layer_norm_eps": 1},
    {"layer_scale_init_value": 0},
    {"layer_scale_init_value": -1.0},
    {"use_relative_position_bias": False, "use_shared_relative_position_bias": False},
    {"use_absolute_position_embeddings": True},
    {"use_mean_pooling": False},
    {"pool_scales": []},
    {"pool_scales": [9]},  # more cells than pixels
    {"pool_scales": [1, 1, 1]},
    {"auxiliary_num_convs": 0, "auxiliary_channels": 12, "auxiliary_concat_input": True},
    {"auxiliary_num_convs": 3, "auxiliary_loss_weight": 0},
    {"semantic_loss_ignore_index": -1},
    {"num_labels": 1},
]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("changes", ABSURD)
def test_absurd_but_legal_configurations(name: str, changes: dict[str, Any]) -> None:
    model = build(name, **changes)
    (down, across), (height, width) = model.config.patch, model.config.window
    x = pictures(1, 2, height * down, width * across, model.config.num_channels)
    out = model(x, **EVERYTHING)
    assert np.isfinite(main_output(out)).all()
    assert len(out.hidden_states) == 4
    assert [p.shape[2:] for p in out.attentions] == [(height * width + 1,) * 2] * 3
    np.testing.assert_allclose(main_output(model.record(x)[0]), main_output(out), atol=1e-12)


def test_a_model_of_no_layer_is_its_embeddings() -> None:
    model = build(BARE, num_hidden_layers=0, use_mean_pooling=True)
    out, taps = model.record(X, **EVERYTHING)
    np.testing.assert_array_equal(out.last_hidden_state, taps["embeddings"])
    assert len(out.hidden_states) == 1
    assert out.attentions == ()


# ---- whatever is thrown at it

strange: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([X, X[0], X[:, :1], X[..., :3], X[..., :5], X > 0, X.astype("f2"), X[None], HIDDEN, GRID]),
    st.sampled_from([pictures(0, 2, 13, 8), pictures(0, 1, 40, 4)]),
    hnp.arrays(
        st.sampled_from(["i8", "u1", "u8", "?", "f2", "f4", "f8", "g", "c16", "U2", "S2", "M8[s]", "m8[s]", "O"]),
        hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=12),
    ),
    hnp.arrays(np.int64, st.sampled_from([(2, 9), (2, 12, 12), (2,), (2, 3), (2, 1, 1)]), elements=st.integers(-1, 3)),
    hnp.arrays(np.float64, st.sampled_from([(2, 2, 4, 4), (2, 3), (2, 2, 12, 12)]), elements=st.floats(-9, 9)),
    st.sampled_from([None, True, 0, 1, -1, 2.5, NAN, "text", b"bytes", (), [], {}, [[]], [[1, 2], [3]], object(), ...]),
    st.recursive(
        st.integers(-2, 30) | st.none() | st.text(max_size=2), lambda x: st.lists(x, max_size=3), max_leaves=9
    ),
)
FLAGS = {"output_attentions", "output_hidden_states", "interpolate_pos_encoding", "options"}  # for their truth only
fuzzed = {name: [models[name]] for name in CLASSES}
for name in ANY_SIZE:
    fuzzed[name] += [build(name, image_size=[8, 12], use_absolute_position_embeddings=True, use_mean_pooling=False)]
fuzzed[CLASSIFIER] += [build(CLASSIFIER, num_labels=1), build(CLASSIFIER, num_labels=0)]
fuzzed[SEGMENTER] += [build(SEGMENTER, image_size=4), build(SEGMENTER, num_labels=1), build(SEGMENTER, num_labels=0)]


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=80)
@given(data=st.data())
def test_outputs_come_back_or_one_error_of_ours(name: str, data: st.DataObject) -> None:
    model = data.draw(st.sampled_from(fuzzed[name]))
    known = {*inspect.signature(type(model).forward).parameters, *inspect.signature(models[BARE].forward).parameters}
    keys = data.draw(st.sets(st.sampled_from(sorted(known - FLAGS - {"self"})), min_size=1, max_size=3))
    arguments: dict[str, Any] = {"pixel_values": X}
    for key in sorted(keys):
        arguments[key] = data.draw(strange, label=key)
    error = out = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # finite numbers of 1e300 do overflow on the way, as in torch
        try:
            out = model(**arguments)
        except D2VError as caught:
            error = str(caught)
    if error is None:
        assert isinstance(main_output(out), np.ndarray)
    else:
        assert len(error.splitlines()) == 1
        assert len(error) < 700
        assert re.match(r"\w+", error)


@pytest.mark.parametrize("name", ANY_SIZE)
@pytest.mark.parametrize("flag", [0, 1, None, "yes", [1], []])
def test_a_flag_is_asked_for_its_truth(name: str, flag: Any) -> None:
    x = pictures(0, 1, 8, 20)
    got = models[name](x, interpolate_pos_encoding=flag, output_attentions=flag)
    np.testing.assert_array_equal(main_output(got), main_output(models[name](x)))
    assert ("attentions" in got) == bool(flag)


# ---- sizes and positions


def test_relative_position_index_counts_distances() -> None:
    """Two pairs of patches share a row if and only if they are as far apart; the class token has its own three."""
    for window in ((1, 1), (1, 4), (3, 2), (3, 3)):
        index, patches = relative_position_index(window), list(np.ndindex(*window))
        rows = (2 * window[0] - 1) * (2 * window[1] - 1)
        apart: dict[Any, Any] = {}
        for i, a in enumerate(patches):
            for j, b in enumerate(patches):
                assert apart.setdefault((a[0] - b[0], a[1] - b[1]), index[i + 1, j + 1]) == index[i + 1, j + 1]
        assert sorted(apart.values()) == list(range(rows))
        assert (index[0, 0], set(index[0, 1:]), set(index[1:, 0])) == (rows + 2, {rows}, {rows + 1})


@pytest.mark.parametrize("name", ANY_SIZE)
@settings(max_examples=25)
@given(data=st.data(), seed=seeds, height=st.integers(1, 17), width=st.integers(1, 17))
def test_pictures_of_any_size(name: str, data: st.DataObject, seed: int, height: int, width: int) -> None:
    config = data.draw(vision_configs(name))
    model, (down, across) = build(name, seed=seed, config=config), config.patch
    height, width = height + down - 1, width + across - 1
    x = pictures(seed, 2, height, width, config.num_channels)
    with np.errstate(all="ignore"):
        out = model(x, **EVERYTHING)
        tokens = (height // down) * (width // across) + 1
        assert {state.shape for state in out.hidden_states} == {(2, tokens, config.hidden_size)}
        assert {p.shape[2:] for p in out.attentions} == {(tokens, tokens)}
        square = height == width
        cut = x[:, :, : height // down * down, : width // across * across]
        if not config.use_absolute_position_embeddings or square == (cut.shape[2] == cut.shape[3]):
            np.testing.assert_array_equal(main_output(model(cut)), main_output(out))  # the rest fills no patch
        alone = main_output(model(x[1:]))
    np.testing.assert_allclose(alone, main_output(out)[1:], rtol=1e-9, atol=1e-9)


def test_without_positions_patches_have_no_order() -> None:
    """And with any kind of positions they have one."""

    def order_counts(**changes: Any) -> bool:
        off: dict[str, Any] = {"use_relative_position_bias": False, "use_shared_relative_position_bias": False}
        model = unscaled(BARE, use_mean_pooling=True, **{**off, **changes})
        tiles = X.reshape(2, 2, 3, 4, 3, 4)
        moved = tiles[:, :, ::-1, :, [1, 2, 0]].reshape(X.shape)
        return bool(np.abs(model(moved).pooler_output - model(X).pooler_output).max() > 1e-6)

    assert not order_counts()
    for kind in ("relative_position_bias", "shared_relative_position_bias", "absolute_position_embeddings"):
        assert order_counts(**{f"use_{kind}": True})


def test_a_relative_bias_sees_distances_only() -> None:
    """A picture of one patch repeated, but for one odd patch: where that stands, the bias is that of its distance."""
    model = build(BARE)
    _, taps = model.record(X)
    bias = taps["encoder.relative_position_bias"]
    assert bias.shape == (1, 3, 10, 10)
    table = model.state_dict()["encoder.relative_position_bias.relative_position_bias_table"]
    np.testing.assert_array_equal(
        bias[0, :, 1:, 1:], table[relative_position_index((3, 3))].transpose(2, 0, 1)[:, 1:, 1:]
    )
    grid = table[:-3].reshape(5, 5, 3)
    for i, (y, x) in enumerate(np.ndindex(3, 3)):
        for j, (v, u) in enumerate(np.ndindex(3, 3)):
            np.testing.assert_array_equal(bias[0, :, i + 1, j + 1], grid[y - v + 2, x - u + 2])
    np.testing.assert_array_equal(bias[0, :, 0, 0], table[-1])
    np.testing.assert_array_equal(bias[0, :, 0, 1:], table[-3][:, None].repeat(9, 1))
    np.testing.assert_array_equal(bias[0, :, 1:, 0], table[-2][:, None].repeat(9, 1))


def test_own_and_shared_biases_add_up() -> None:
    both, weights = models[BARE], models[BARE].state_dict()
    own = {key: value for key, value in weights.items() if not key.startswith("encoder.relative")}
    shared = weights["encoder.relative_position_bias.relative_position_bias_table"]
    for key in own:
        if key.endswith("relative_position_bias_table"):
            own[key] = own[key] + shared
    config = config_of(use_shared_relative_position_bias=False)
    summed = type(both)(config, own, dtype="float64", add_pooling_layer=True)
    np.testing.assert_allclose(summed(X).last_hidden_state, both(X).last_hidden_state, atol=1e-12)


def test_tables_for_pictures_of_another_size_are_resized() -> None:
    """The relative table (5 x 5 for 3 x 3 patches) bilinearly to the distances of the new ones, for a square window."""
    model = build(BARE)
    bias = model.record(pictures(0, 1, 8, 16))[1]["encoder.relative_position_bias"]
    table = model.state_dict()["encoder.relative_position_bias.relative_position_bias_table"]
    at = np.meshgrid(*(np.clip((np.arange(n) + 0.5) * 5 / n - 0.5, 0, 4) for n in (3, 7)), indexing="ij")
    for head in range(3):
        grid = scipy.ndimage.map_coordinates(table[:-3, head].reshape(5, 5), at, order=1)
        for i, (y, x) in enumerate(np.ndindex(2, 4)):
            for j, (v, u) in enumerate(np.ndindex(2, 4)):
                assert bias[0, head, i + 1, j + 1] == pytest.approx(grid[y - v + 1, x - u + 3], abs=1e-12)
        np.testing.assert_array_equal(bias[0, head, [0, 0, 1], [0, 1, 0]], table[[-1, -3, -2], head])


@pytest.mark.parametrize("name", ANY_SIZE)
def test_absolute_positions_of_a_table_that_is_no_square(name: str) -> None:
    """6 rows serve no picture; 2 x 8 = 16 are taken for 4 x 4, as transformers takes them."""
    model = build(name, image_size=[8, 12], use_absolute_position_embeddings=True)
    words = r"^the table of positions is no square and can't be resized .got 6 rows.. Give square pictures"
    for height, width in ((8, 12), (12, 12), (12, 8), (24, 4)):
        refused(model, words, pixel_values=pictures(0, 1, height, width))
    lucky = build(name, image_size=[8, 32], use_absolute_position_embeddings=True)
    for height, width in ((8, 32), (16, 16), (4, 4), (20, 12)):
        assert np.isfinite(main_output(lucky(pictures(0, 1, height, width)))).all()


def test_absolute_positions_are_kept_or_resized() -> None:
    model = build(BARE, use_absolute_position_embeddings=True, use_mean_pooling=False)
    table = model.state_dict()["embeddings.position_embeddings"]
    w = model.state_dict()

    def added(x: np.ndarray) -> np.ndarray:
        taps = model.record(x)[1]
        patches = taps["embeddings"].copy()
        patches[:, 1:] -= taps["embeddings.patch_embeddings"]
        patches[:, 0] -= w["embeddings.cls_token"][0, 0]
        return patches[0]

    np.testing.assert_allclose(added(X), table[0], atol=1e-14)
    np.testing.assert_allclose(added(pictures(0, 1, 12, 13)), table[0], atol=1e-14)  # resized to what it is
    wide = added(pictures(0, 1, 12, 24))
    np.testing.assert_allclose(wide[0], table[0, 0], atol=1e-14)
    grid, want = wide[1:].reshape(3, 6, 12), table[0, 1:].reshape(3, 3, 12)
    np.testing.assert_allclose(grid, Ops("float64").resize(want[None], (3, 6), "bicubic")[0], atol=1e-14)
    one = added(pictures(0, 1, 4, 4))
    np.testing.assert_allclose(one[1], want[1, 1], atol=1e-14)  # the middle


def test_a_window_that_is_not_square_is_a_quirk_and_said_to_be_one() -> None:
    model = build(BARE, image_size=[8, 12])
    words = "the table of relative positions is read with width and height exchanged"
    assert model.load_report.quirks["image_size"].what == words
    assert f"quirk image_size: {words} (HF " in str(model.load_report)
    off: dict[str, Any] = {"use_relative_position_bias": False, "use_shared_relative_position_bias": False}
    assert "image_size" not in build(BARE, image_size=[8, 12], **off).load_report.quirks
    assert "image_size" not in models[BARE].load_report.quirks
    table = model.state_dict()["encoder.relative_position_bias.relative_position_bias_table"]
    bias = model.record(pictures(0, 1, 8, 12))[1]["encoder.relative_position_bias"]
    assert np.abs(bias - table[relative_position_index((2, 3))].transpose(2, 0, 1)).max() > 1e-2


# ---- the bias is made once for each size


@pytest.fixture
def makes() -> Any:
    """Every (window, interpolate) that a bias is made for."""
    seen: list[Any] = []
    real = Data2VecVisionRelativePositionBias.make

    def counted(self: Any, *args: Any) -> Any:
        seen.append(args)
        return real(self, *args)

    with mock.patch.object(Data2VecVisionRelativePositionBias, "make", counted):
        yield seen


@pytest.mark.parametrize("name", CLASSES)
def test_a_bias_is_made_once_for_each_size(name: str, makes: list[Any]) -> None:
    model, others = build(name), 3 + 1  # the layers' and the shared one
    for _ in range(3):
        first = main_output(model(X))
        model.record(X)
        model(X[:1])
    assert makes == [((3, 3), False)] * others
    np.testing.assert_array_equal(main_output(model(X)), first)
    makes.clear()
    again = model.with_ops(Ops("float32"))
    assert main_output(again(X)).dtype == np.float32
    again.record(X)
    assert len(makes) == others  # its own, in its own dtype
    assert again.record(X)[1][f"{bare(name)}encoder.relative_position_bias"].dtype == np.float32
    assert model.record(X)[1][f"{bare(name)}encoder.relative_position_bias"].dtype == np.float64
    makes.clear()
    np.testing.assert_array_equal(main_output(model(X, interpolate_pos_encoding=True)), first)
    assert makes == [((3, 3), True)] * others


def test_biases_of_the_last_two_sizes_are_kept(makes: list[Any]) -> None:
    model = build(BARE, use_relative_position_bias=False)
    x = [pictures(0, 1, 4, 4 * width) for width in (1, 2, 3)]
    want = [model(one).last_hidden_state for one in x[:2]]
    for one, state in zip(x[:2], want, strict=True):
        np.testing.assert_array_equal(model(one).last_hidden_state, state)
    assert len(makes) == 2
    model(x[2])
    model(x[1])
    assert len(makes) == 3
    np.testing.assert_array_equal(model(x[0]).last_hidden_state, want[0])  # the oldest had gone
    assert len(makes) == 4
    assert len(model.encoder.relative_position_bias._made) == 2


def test_threads_share_a_model() -> None:
    """More sizes than are kept, so that biases come and go under every thread."""
    model = build(BARE, num_hidden_layers=1)
    x = [
        pictures(seed, 1, 4 * height, 4 * width)
        for seed, (height, width) in enumerate(np.ndindex(3, 4))
        if height * width
    ]
    x += [pictures(9, 1, 4, 4 * width) for width in range(1, 10)]
    want = [main_output(model(one)) for one in x]
    start = threading.Barrier(4)

    def run(thread: int) -> None:
        start.wait()
        for i in np.random.default_rng(thread).permutation(np.arange(3 * len(x)) % len(x)):
            got = model.record(x[i])[0] if i % 3 == 0 else model(x[i])
            np.testing.assert_allclose(main_output(got), want[i], atol=1e-12)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(run, thread) for thread in range(4)]:
            done.result()


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_recorded_can_not_change_the_model(name: str) -> None:
    model = build(name)
    want = main_output(model(X))
    taps = model.record(X)[1]
    for value in taps.values():
        if value.flags.writeable:
            value[...] = NAN
    np.testing.assert_array_equal(main_output(model(X)), want)


# ---- masked patches


def test_masked_patches_become_the_token() -> None:
    model, hidden = models[BARE], np.random.default_rng(0).random((2, 9)) < 0.4
    taps = model.record(X, hidden)[1]
    token = model.state_dict()["embeddings.mask_token"]
    want = np.where(hidden[:, :, None], token, taps["embeddings.patch_embeddings"])
    np.testing.assert_allclose(taps["embeddings"][:, 1:], want, atol=1e-15)
    for name in CLASSES:
        plain, masked = main_output(models[name](X)), main_output(models[name](X, bool_masked_pos=hidden))
        assert np.abs(masked - plain).max() > 1e-4
        np.testing.assert_array_equal(main_output(models[name](X, bool_masked_pos=HIDDEN)), plain)
        for form in (hidden.astype("i8"), hidden.astype("u1"), hidden.tolist()):
            np.testing.assert_array_equal(main_output(models[name](X, bool_masked_pos=form)), masked)
        # What was there does not count.
        covered = np.where(hidden.reshape(2, 1, 3, 1, 3, 1), 7.0, X.reshape(2, 2, 3, 4, 3, 4)).reshape(X.shape)
        np.testing.assert_allclose(main_output(models[name](covered, bool_masked_pos=hidden)), masked, atol=1e-12)


# ---- heads


def test_a_picture_is_classified_by_its_mean_or_its_class_token() -> None:
    for mean in (True, False):
        model = build(CLASSIFIER, use_mean_pooling=mean)
        out, w = model(X, labels=[2, 0], output_hidden_states=True), model.state_dict()
        state = out.hidden_states[-1]
        pooled = state[:, 1:].mean(1) if mean else state[:, 0]  # a LayerNorm follows or went before
        pooled = (pooled - pooled.mean(-1, keepdims=True)) / pooled.std(-1, keepdims=True)
        norm = "data2vec_vision.pooler.layernorm" if mean else "data2vec_vision.layernorm"
        assert (f"{norm}.weight" in w, sum(".layernorm." in key for key in w)) == (True, 2)
        pooled = pooled * w[f"{norm}.weight"] + w[f"{norm}.bias"]
        logits = pooled @ w["classifier.weight"].T + w["classifier.bias"]
        np.testing.assert_allclose(out.logits, logits, atol=1e-9)  # but for eps
        p = scipy.special.log_softmax(logits, -1)
        assert out.loss == pytest.approx(-(p[0, 2] + p[1, 0]) / 2, rel=1e-9)


def test_losses_of_a_classifier_by_problem_type() -> None:
    model = models[CLASSIFIER]
    logits = model(X).logits
    targets = np.array([[1.0, 0, 1], [0, 0, 1]])
    p = scipy.special.expit(logits)
    want = -np.where(targets == 1, np.log(p), np.log1p(-p)).mean()
    assert model(X, labels=targets).loss == pytest.approx(want, rel=1e-12)
    assert build(CLASSIFIER, problem_type="regression")(X, labels=targets).loss == pytest.approx(
        np.mean((logits - targets) ** 2), rel=1e-12
    )
    one = build(CLASSIFIER, num_labels=1)
    assert one(X, labels=[1, 3]).loss == pytest.approx(np.mean((one(X).logits[:, 0] - [1, 3]) ** 2), rel=1e-12)


def test_features_are_the_states_that_out_indices_choose() -> None:
    """Counted from 1 for the embeddings: every one of the four moves the logits, and no other state does."""
    model = build(SEGMENTER, num_hidden_layers=5, out_indices=[1, 3, 4, 5])
    _, taps = model.record(X, output_hidden_states=True)
    states = [taps["data2vec_vision.embeddings"]] + [taps[f"data2vec_vision.encoder.layer.{i}"] for i in range(5)]
    maps = [states[i][:, 1:].reshape(2, 3, 3, 12).transpose(0, 3, 1, 2) for i in (0, 2, 3, 4)]
    np.testing.assert_array_equal(taps["fpn3"], maps[2])
    np.testing.assert_array_equal(taps["fpn4"], maps[3][:, :, :2, :2].max((2, 3), keepdims=True))
    assert {name: taps[name].shape for name in ("fpn1", "fpn2", "decode_head", "auxiliary_head")} == {
        "fpn1": (2, 12, 12, 12), "fpn2": (2, 12, 6, 6), "decode_head": (2, 3, 12, 12), "auxiliary_head": (2, 3, 3, 3),
    }  # fmt: skip
    kernel, bias = (model.state_dict()[f"fpn2.0.{kind}"] for kind in ("weight", "bias"))
    tiles = np.einsum("bchw,couv->bohuwv", maps[1], kernel).reshape(2, 12, 6, 6) + bias[:, None, None]
    np.testing.assert_allclose(taps["fpn2"], tiles, atol=1e-12)


def test_a_loss_of_pixels_by_hand() -> None:
    """Scores at the labels' pixels, cross entropy over those that count, and 0.4 of the auxiliary head's."""
    model, random = models[SEGMENTER], np.random.default_rng(0)
    for shape in ((12, 12), (7, 30), (1, 1)):
        labels = random.integers(0, 3, (2, *shape))
        labels[random.random(labels.shape) < 0.3] = 255
        labels[0, 0, 0] = 1
        out, taps = model.record(X, labels=labels)

        def loss(scores: np.ndarray, labels: np.ndarray) -> float:
            at = [np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1)
                  for n, m in zip(labels.shape[1:], scores.shape[2:], strict=True)]  # fmt: skip
            grid = np.meshgrid(*at, indexing="ij")
            terms = []
            for b in range(2):
                maps = np.stack(
                    [scipy.ndimage.map_coordinates(one, grid, order=1, mode="nearest") for one in scores[b]]
                )
                p = scipy.special.log_softmax(maps, 0)
                terms += [-p[labels[b, i, j], i, j] for i, j in np.ndindex(*labels.shape[1:]) if labels[b, i, j] != 255]
            return float(np.mean(terms))

        want = loss(taps["decode_head"], labels) + 0.4 * loss(taps["auxiliary_head"], labels)
        assert out.loss == pytest.approx(want, rel=1e-10)
        for form in (labels.astype("u1"), labels.astype("i2"), labels.tolist()):
            assert model(X, labels=form).loss == out.loss
    # The main head's loss is the whole one without the other head.
    alone = build(SEGMENTER, use_auxiliary_head=False)
    assert alone(X, labels=labels).loss == pytest.approx(loss(taps["decode_head"], labels), rel=1e-10)
    assert not [key for key in alone.state_dict() if key.startswith("auxiliary")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert np.isnan(model(X, labels=GRID + 255).loss)  # of no pixel
    zero = build(SEGMENTER, semantic_loss_ignore_index=0)
    counted = np.where(labels == 255, 0, np.maximum(labels, 1))
    assert zero(X, labels=counted).loss == pytest.approx(
        model(X, labels=np.where(labels == 255, 255, np.maximum(labels, 1))).loss, rel=1e-12
    )


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=6)
@given(seed=seeds, batch=st.integers(1, 4))
def test_pictures_of_a_batch_do_not_see_each_other(name: str, seed: int, batch: int) -> None:
    x = pictures(seed, batch)
    order = np.random.default_rng(seed).permutation(batch)
    want = main_output(models[name](x))
    np.testing.assert_allclose(main_output(models[name](x[order])), want[order], atol=1e-12)
    np.testing.assert_allclose(main_output(models[name](x[:1])), want[:1], atol=1e-12)


# ---- outputs


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=15)
@given(data=st.data(), seed=seeds)
def test_recorded_and_fused_are_one(name: str, data: st.DataObject, seed: int) -> None:
    model = build(name, seed=seed, config=data.draw(vision_configs(name)))
    inputs = inputs_of(model, seed, any_size=not model.config.use_absolute_position_embeddings)
    with np.errstate(all="ignore"):
        fused, recorded = model(**inputs), model.record(**inputs)[0]
    assert fused.keys() == recorded.keys()
    for key, value in fused.items():
        np.testing.assert_allclose(recorded[key], value, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_are_a_tuple_without_return_dict(name: str) -> None:
    out = models[name](X, **EVERYTHING)
    for got in (models[name](X, return_dict=False, **EVERYTHING), build(name, return_dict=False)(X, **EVERYTHING)):
        assert type(got) is tuple
        assert len(got) == len(out)
        np.testing.assert_array_equal(got[0], out[0])
    asked = build(name, output_attentions=True, output_hidden_states=True)
    assert asked(X).keys() == out.keys()
    assert asked(X, output_attentions=False, output_hidden_states=False).keys() == models[name](X).keys()


@pytest.mark.parametrize("name", CLASSES)
def test_states_and_probabilities_come_if_asked_for(name: str) -> None:
    assert not {"hidden_states", "attentions"} & set(models[name](X))
    assert not {"hidden_states", "attentions"} & set(models[name].record(X)[0])
    assert "hidden_states" not in models[name](X, output_attentions=True)
    assert "attentions" not in models[name](X, output_hidden_states=True)
    out = models[name](X, **EVERYTHING)
    assert [state.shape for state in out.hidden_states] == [(2, 10, 12)] * 4
    assert [p.shape for p in out.attentions] == [(2, 3, 10, 10)] * 3
    for p in out.attentions:
        np.testing.assert_allclose(p.sum(-1), 1, atol=1e-12)
    assert all(type(array) is np.ndarray for array in (*out.hidden_states, *out.attentions, main_output(out)))


def test_without_its_pooler_a_model_gives_no_pooler_output() -> None:
    model = build(BARE, pooler=False)
    assert "pooler_output" not in model(X)
    assert not [key for key in model.state_dict() if key.startswith("pooler")]
    want = models[BARE](X)
    np.testing.assert_array_equal(model(X).last_hidden_state, want.last_hidden_state)
    np.testing.assert_array_equal(want.pooler_output, models[BARE].with_ops(Ops("float64"))(X).pooler_output)
    assert model.with_ops(Ops("float32")).pooler is None
    token = build(BARE, use_mean_pooling=False)
    np.testing.assert_array_equal(token(X).pooler_output, token(X).last_hidden_state[:, 0])


@pytest.mark.parametrize("name", CLASSES)
def test_no_input_is_changed(name: str) -> None:
    arguments: dict[str, Any] = {"pixel_values": X.copy(), "bool_masked_pos": HIDDEN.copy()}
    if name != BARE:
        arguments["labels"] = {CLASSIFIER: np.array([0, 1]), SEGMENTER: GRID.copy()}[name]
    for array in arguments.values():
        array.flags.writeable = False
    models[name](**arguments)
    models[name].record(**arguments)


@pytest.mark.parametrize("name", CLASSES)
def test_a_float32_model_takes_pictures_of_any_floats_and_layout(name: str) -> None:
    model, x = build(name, dtype="float32"), X.astype("f4")
    want = model(x, **EVERYTHING)
    assert {array.dtype.name for array in (*want.hidden_states, *want.attentions, main_output(want))} == {"float32"}
    assert {value.dtype.name for value in model.record(x)[1].values()} == {"float32"}
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for form in (x.astype("f8"), np.asfortranarray(x), last, np.repeat(x, 2, 3)[..., ::2], x.tolist(), x.astype(">f4")):
        np.testing.assert_array_equal(main_output(model(form)), main_output(want))
    assert TINY["image_size"] == 12  # which the other tests rely on


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("dtype", Ops.dtypes)
def test_pictures_of_one_colour_have_finite_outputs(name: str, dtype: str) -> None:
    for colour in (0.0, 1.0, -1e-30, 1e4):
        assert np.isfinite(main_output(build(name, dtype=dtype)(np.full((1, 2, 12, 12), colour)))).all()


def test_the_classes_are_those_of_the_module() -> None:
    assert [model_class(name).__name__ for name in CLASSES] == list(CLASSES)
    assert {model_class(name).__module__ for name in CLASSES} == {"d2v_ref.vision"}
