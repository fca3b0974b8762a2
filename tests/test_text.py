"""The text models: what they refuse and how, whatever is thrown at them; and properties of what they compute."""

from __future__ import annotations

import inspect
import re
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from text_models import CHOICE, CLASSES, TINY, build, main_output, token_ids, trained

import d2v_ref
from d2v_ref.cache import Cache
from d2v_ref.errors import D2VError, InputError
from d2v_ref.golden import tolerances
from d2v_ref.ops import Ops

MODEL, CAUSAL = "Data2VecTextModel", "Data2VecTextForCausalLM"
BATCHED = [name for name in CLASSES if name != CHOICE]  # (B, T) inputs
ENCODERS = [name for name in BATCHED if name != CAUSAL]
DECODER: dict[str, Any] = {"is_decoder": True, "add_cross_attention": True}
NAN, INF = float("nan"), float("inf")
seeds = st.integers(0, 2**32 - 1)
models = {name: build(name) for name in CLASSES}
decoder = build(MODEL, **DECODER)

IDS = token_ids(MODEL)  # (2, 5)
EMBEDS = np.zeros((2, 5, 12))
STATES = np.zeros((2, 4, 12))


def refused(model: Any, words: str, /, **arguments: Any) -> None:
    with pytest.raises(InputError, match=words) as caught:
        model(**arguments)
    assert len(str(caught.value).splitlines()) == 1


def spoilt(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array[(0,) * array.ndim] = value
    return array


# ---- malformed inputs of every class

MALFORMED: list[tuple[str, dict[str, Any]]] = [
    (r"^input_ids is out of range .got 19 at .1, 2.; expected 0 ... 18", {"input_ids": [[2, 3, 4], [2, 3, 19]]}),
    (r"^input_ids is out of range .got -1 at .0, 1.", {"input_ids": [[2, -1, 4]]}),
    (r"^input_ids is out of range .got 18446744073709551615 at", {"input_ids": np.array([[2**64 - 1]], "u8")}),
    (r"^input_ids has the wrong dtype .got float64; expected integers", {"input_ids": [[2.0, 3.0]]}),
    (r"^input_ids has the wrong dtype .got bool", {"input_ids": [[True, False]]}),
    (r"^input_ids has the wrong dtype .got <U", {"input_ids": "Hello world"}),
    (r"^input_ids has the wrong dtype .got object", {"input_ids": [[None, 2]]}),
    (r"^input_ids has the wrong dtype .got object", {"input_ids": [[10**30]]}),
    (r"^input_ids has the wrong dtype .got complex128", {"input_ids": [[2j]]}),
    (r"^input_ids is not an array: .*expected rows of one length", {"input_ids": [[2, 3], [2]]}),
    (r"^input_ids has the wrong shape .got .3,.; expected .batch, tokens", {"input_ids": [2, 3, 4]}),
    (r"^input_ids has the wrong shape .got ..;", {"input_ids": 2}),
    (r"^input_ids has the wrong shape .got .2, 5, 1.", {"input_ids": IDS[..., None]}),
    (r"^input_ids is empty .got .0, 5.", {"input_ids": IDS[:0]}),
    (r"^input_ids is empty .got .2, 0.", {"input_ids": IDS[:, :0]}),
    (
        r"^input_ids: the sequence is too long .got 19 tokens.*This model takes 18 tokens",
        {"input_ids": np.full((1, 19), 5)},
    ),
    (r"^inputs_embeds: the sequence is too long .got 19 tokens.*takes 18", {"inputs_embeds": np.zeros((1, 19, 12))}),
    (r"^give input_ids or inputs_embeds, one of them .got neither", {}),
    (r"^give input_ids or inputs_embeds, one of them .got both", {"input_ids": IDS, "inputs_embeds": EMBEDS}),
    (
        r"^inputs_embeds has the wrong shape .got .2, 5, 11.; expected .batch, tokens, 12",
        {"inputs_embeds": EMBEDS[..., 1:]},
    ),
    (r"^inputs_embeds has the wrong shape .got .5, 12.", {"inputs_embeds": EMBEDS[0]}),
    (r"^inputs_embeds has the wrong dtype .got int64; expected floating", {"inputs_embeds": EMBEDS.astype(int)}),
    (r"^inputs_embeds has the wrong dtype .got complex", {"inputs_embeds": EMBEDS + 0j}),
    (r"^inputs_embeds is not finite .got nan at .0, 0, 0.", {"inputs_embeds": spoilt(EMBEDS, NAN)}),
    (r"^inputs_embeds is not finite .got -inf at .0, 0, 0.", {"inputs_embeds": spoilt(EMBEDS, -INF)}),
    (r"^inputs_embeds is empty", {"inputs_embeds": EMBEDS[:, :0]}),
    (r"^attention_mask has the wrong shape .got .2, 4.; expected .2, 5", {"attention_mask": np.ones((2, 4))}),
    (r"^attention_mask has the wrong shape .got .1, 5.; expected .2, 5", {"attention_mask": np.ones((1, 5))}),
    (r"^attention_mask has the wrong shape .got .5,.; expected .2, 5", {"attention_mask": np.ones(5)}),
    (r"^attention_mask has the wrong shape .got ..", {"attention_mask": 1}),
    (r"^attention_mask has the wrong dtype .got <U1", {"attention_mask": np.full((2, 5), "1")}),
    (r"^attention_mask has the wrong dtype .got object", {"attention_mask": np.full((2, 5), None)}),
    (r"^attention_mask is not an array", {"attention_mask": [[1, 1], [1]]}),
    (r"^attention_mask is not finite .got nan", {"attention_mask": np.full((2, 5), NAN)}),
    (r"^attention_mask has the wrong shape .got .2, 5, 4.; expected .2, 5, 5", {"attention_mask": np.ones((2, 5, 4))}),
    (r"^attention_mask has the wrong shape .got .2, 1, 5.", {"attention_mask": np.ones((2, 1, 5))}),
    (r"^attention_mask has the wrong shape .got .1, 5, 5.", {"attention_mask": np.ones((1, 5, 5))}),
    (
        r"^attention_mask has the wrong shape .got .2, 2, 5, 5.; expected .2, 3, 5, 5",
        {"attention_mask": np.zeros((2, 2, 5, 5))},
    ),
    (r"^attention_mask has the wrong shape .got .3, 1, 5, 5.", {"attention_mask": np.zeros((3, 1, 5, 5))}),
    (r"^attention_mask has the wrong shape .got .2, 1, 1, 5.", {"attention_mask": np.zeros((2, 1, 1, 5))}),
    (
        r"^attention_mask has the wrong dtype .got int64; expected booleans or",
        {"attention_mask": np.ones((2, 1, 5, 5), int)},
    ),
    (r"^attention_mask is not finite .got inf", {"attention_mask": np.full((2, 1, 5, 5), INF)}),
    (r"^attention_mask is not finite .got nan", {"attention_mask": np.full((2, 1, 5, 5), NAN)}),
    (r"^attention_mask has the wrong shape .got .1, 1, 1, 5, 5.", {"attention_mask": np.ones((1, 1, 1, 5, 5))}),
    (r"^token_type_ids is out of range .got 2 at .0, 0.; expected 0 ... 1", {"token_type_ids": np.full((2, 5), 2)}),
    (r"^token_type_ids has the wrong shape .got .2, 4.", {"token_type_ids": np.zeros((2, 4), int)}),
    (r"^token_type_ids has the wrong batch size .got 3; expected 1 or 2", {"token_type_ids": np.zeros((3, 5), int)}),
    (r"^token_type_ids has the wrong dtype .got float64", {"token_type_ids": np.zeros((2, 5))}),
    (r"^position_ids is out of range .got 20 at .0, 0.; expected 0 ... 19", {"position_ids": np.full((2, 5), 20)}),
    (r"^position_ids is out of range .got -1", {"position_ids": np.full((2, 5), -1)}),
    (r"^position_ids has the wrong shape .got .2, 6.", {"position_ids": np.zeros((2, 6), int)}),
    (r"^position_ids has the wrong batch size .got 3", {"position_ids": np.zeros((3, 5), int)}),
    (r"^position_ids is not an array", {"position_ids": [[1], [1, 2]]}),
    (r"^head_mask has the wrong shape .got .4,.; expected .3,.", {"head_mask": np.ones(4)}),
    (r"^head_mask has the wrong shape .got .3, 3.; expected .2, 3.", {"head_mask": np.ones((3, 3))}),
    (r"^head_mask has the wrong shape .got ..", {"head_mask": 1.0}),
    (r"^head_mask has the wrong shape .got .2, 1, 3, 1, 1.", {"head_mask": np.ones((2, 1, 3, 1, 1))}),
    (r"^head_mask is not finite .got nan", {"head_mask": [1.0, NAN, 1.0]}),
    (r"^head_mask has the wrong dtype", {"head_mask": ["a", "b", "c"]}),
    (r"^head_mask is not an array", {"head_mask": [[1], [1, 2]]}),
]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(("words", "arguments"), MALFORMED)
def test_a_malformed_input_is_one_line_that_names_it(name: str, words: str, arguments: dict[str, Any]) -> None:
    known = inspect.signature(models[MODEL].forward).parameters
    arguments = dict(arguments)
    if not {"input_ids", "inputs_embeds"} & arguments.keys() and arguments:
        arguments["input_ids"] = IDS
    assert arguments.keys() <= known.keys()
    if name == CHOICE:  # the same with an axis of choices, where there can be one
        with pytest.raises(InputError) as caught:
            models[name](**{key: with_choices(key, value) for key, value in arguments.items()})
        assert len(str(caught.value).splitlines()) == 1
        assert any(key in str(caught.value) or "multiple choice" in str(caught.value) for key in known)
    else:
        refused(models[name], words, **arguments)


def with_choices(name: str, value: Any) -> Any:
    """(B, ...) as (B, 1, ...); what is no array, or is of no batch, as it is."""
    array = isinstance(value, np.ndarray) and value.ndim > 1 and name != "head_mask"
    return value[:, None] if array else value


@pytest.mark.parametrize("lowest", [-INF, np.finfo(np.float64).min, np.finfo(np.float32).min])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_additive_mask_hides_with_any_lowest_number(lowest: float, dtype: str) -> None:
    """As booleans do: also where a query sees nothing, and whatever dtype the number was the lowest of."""
    model = build(MODEL, dtype=dtype)
    seen = np.random.default_rng(0).random((2, 1, 5, 5)) < 0.6
    seen[0, 0, 1] = False
    want = model(IDS, attention_mask=seen).last_hidden_state
    got = model(IDS, attention_mask=np.where(seen, 0.0, lowest)).last_hidden_state
    np.testing.assert_array_equal(got, want)


def test_a_number_too_large_for_the_dtype_is_refused_in_that_dtype_only() -> None:
    single = build(MODEL, dtype="float32")
    words = r"inputs_embeds is not finite .got 1e.300 at .0, 0, 0.; expected finite numbers in float32"
    refused(single, words, inputs_embeds=spoilt(EMBEDS, 1e300))
    largest = np.full((2, 1, 5, 5), 1e300)
    refused(single, r"attention_mask is not finite .*float32", input_ids=IDS, attention_mask=largest)
    assert models[MODEL](IDS, attention_mask=largest).last_hidden_state.shape == (2, 5, 12)
    refused(single, "head_mask is not finite", input_ids=IDS, head_mask=[1e300, 1, 1])


@pytest.mark.parametrize("name", BATCHED)
def test_the_longest_sequence_passes_and_one_more_token_does_not(name: str) -> None:
    ids = np.full((1, 18), 5)
    assert main_output(models[name](ids)).shape[0] == 1
    refused(models[name], "takes 18 tokens at a time", input_ids=np.full((1, 19), 5))
    # Padding takes no position, so there may be more tokens than positions.
    padded = np.pad(ids, ((0, 0), (0, 3)), constant_values=1)
    got, want = main_output(models[name](padded, padded != 1)), main_output(models[name](ids))
    np.testing.assert_allclose(got[:, :18] if got.shape[1:2] == (21,) else got, want, atol=1e-12)
    relative = build(name, position_embedding_type="relative_key")
    assert main_output(relative(np.full((1, 20), 5))).shape[0] == 1
    refused(relative, "too long .got 21 tokens.*takes 20 tokens", input_ids=np.full((1, 21), 5))


@pytest.mark.parametrize("name", CLASSES)
def test_a_sequence_that_does_not_divide_into_chunks(name: str) -> None:
    model = build(name, chunk_size_feed_forward=3)
    refused(model, r"does not divide into chunks .got 5 tokens; .*chunk_size_feed_forward=3", input_ids=token_ids(name))
    model(token_ids(name, length=6))


CROSS: list[tuple[str, dict[str, Any]]] = [
    (r"^encoder_attention_mask without encoder_hidden_states", {"encoder_attention_mask": np.ones((2, 4))}),
    (r"^encoder_hidden_states has the wrong shape .got .1, 4, 12.", {"encoder_hidden_states": STATES[:1]}),
    (r"^encoder_hidden_states has the wrong shape .got .2, 4, 11.", {"encoder_hidden_states": STATES[..., 1:]}),
    (r"^encoder_hidden_states has the wrong shape .got .4, 12.", {"encoder_hidden_states": STATES[0]}),
    (r"^encoder_hidden_states has the wrong dtype .got int64", {"encoder_hidden_states": STATES.astype(int)}),
    (r"^encoder_hidden_states is not finite .got nan", {"encoder_hidden_states": spoilt(STATES, NAN)}),
    (r"^encoder_hidden_states is empty", {"encoder_hidden_states": STATES[:, :0]}),
    (r"^encoder_attention_mask has the wrong shape .got .2, 5.; expected .2, 4",
     {"encoder_hidden_states": STATES, "encoder_attention_mask": np.ones((2, 5))}),
    (r"^encoder_attention_mask has the wrong shape .got .2, 4, 4.; expected .2, 5, 4",
     {"encoder_hidden_states": STATES, "encoder_attention_mask": np.ones((2, 4, 4))}),
    (r"^encoder_attention_mask is not an array",
     {"encoder_hidden_states": STATES, "encoder_attention_mask": [[1], [1, 2]]}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "arguments"), CROSS)
@pytest.mark.parametrize("name", [MODEL, CAUSAL])
def test_malformed_states_of_an_encoder(name: str, words: str, arguments: dict[str, Any]) -> None:
    refused(build(name, **DECODER), words, input_ids=IDS, **arguments)


@pytest.mark.parametrize("name", CLASSES)
def test_states_of_an_encoder_need_cross_attention(name: str) -> None:
    ids = token_ids(name)
    states = np.zeros((ids[..., 0].size, 4, 12))
    words = r"encoder_hidden_states given to a model without cross attention.*add_cross_attention=True"
    refused(models[name], words, input_ids=ids, encoder_hidden_states=states)


def pairs(batch: int = 2, heads: int = 3, length: int = 2, size: int = 4, arrays: int = 2, layers: int = 2) -> Any:
    return [tuple(np.zeros((batch, heads, length, size)) for _ in range(arrays)) for _ in range(layers)]


uneven, other_lengths, broken = pairs(), pairs(), pairs()
uneven[0] = (uneven[0][0], np.zeros((2, 3, 1, 4)))
other_lengths[1] = pairs(length=1)[0]
broken[1] = (broken[1][0], np.full((2, 3, 2, 4), NAN))
PASTS: list[tuple[str, Any]] = [
    (r"is another model's .got 1 layers; expected 2 layers", pairs(layers=1)),
    (r"is another model's .got 3 layers", build(CAUSAL, num_hidden_layers=3)(IDS).past_key_values),
    (r"is another model's .got 0 layers", ()),
    (r"past_key_values has the wrong shape .got .1, 3, 2, 4.; expected .2, 3, length, 4", pairs(batch=1)),
    (r"past_key_values has the wrong shape .got .2, 2, 2, 4.", pairs(heads=2)),
    (r"past_key_values has the wrong shape .got .2, 3, 2, 5.", pairs(size=5)),
    (r"past_key_values is of another batch or model .got .1, 5, 12.; expected .2, 5, 12",
     build(CAUSAL)(IDS[:1]).past_key_values),
    (r"past_key_values is of another batch or model .got .2, 5, 24.",
     build(CAUSAL, hidden_size=24)(IDS).past_key_values),
    (r"past_key_values is of another batch or model .got .2, 1, 12.", uneven),
    (r"past_key_values is of another batch or model", other_lengths),
    (r"past_key_values is not finite .got nan", broken),
    (r"holds a layer that is none .got 3 arrays; expected .key, value., or", pairs(arrays=3)),
    (r"holds a layer that is none .got ndarray", np.zeros((2, 2, 2, 3, 2, 4)).tolist() and [np.zeros(3), np.zeros(3)]),
    (r"past_key_values is no cache .got int", 3),
    (r"past_key_values is no cache .got ndarray", np.zeros((2, 2, 2, 3, 2, 4))),
    (r"past_key_values is no cache .got str", "ab"),
    (r"past_key_values has the wrong dtype .got <U", [("a", "b"), ("c", "d")]),
    (r"past_key_values has the wrong dtype .got object", [(None, None), (None, None)]),
    (r"past_key_values is empty", pairs(length=0)),
    (r"the sequence is too long .got 19 tokens.*takes 18 tokens", pairs(length=14)),
]  # fmt: skip


@pytest.mark.parametrize(("words", "past"), PASTS)
@pytest.mark.parametrize("name", [MODEL, CAUSAL])
def test_a_cache_that_is_not_of_this_model_and_batch(name: str, words: str, past: Any) -> None:
    refused(build(name, is_decoder=True), words, input_ids=IDS, past_key_values=past)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_cache_needs_a_decoder(name: str) -> None:
    refused(models[name], "past_key_values needs a decoder", input_ids=IDS, past_key_values=pairs())


def test_the_states_behind_a_cache_must_be_those_of_its_making() -> None:
    past = decoder(IDS, encoder_hidden_states=STATES).past_key_values
    words = r"encoder_hidden_states has the wrong shape .got .2, 3, 12.; expected .2, 4, 12"
    refused(decoder, words, input_ids=IDS, past_key_values=past, encoder_hidden_states=STATES[:, :3])


@pytest.mark.parametrize("keep", [-1, 1.5, "2", None, [1]])
def test_logits_to_keep_is_a_number_of_tokens(keep: Any) -> None:
    refused(models[CAUSAL], "^logits_to_keep does not serve", input_ids=IDS, logits_to_keep=keep)


LABELS: dict[str, list[tuple[str, Any]]] = {
    "tokens": [
        (r"labels is out of range .got 99 at .0, 1.", [[1, 99, 0, 0, 0]] * 2),
        (r"labels is out of range .got -1 at .1, 4.; .*-100 marks", [[0] * 5, [0, 0, 0, 0, -1]]),
        (r"labels has the wrong shape .got .2, 4.; expected .2, 5", np.zeros((2, 4), int)),
        (r"labels has the wrong shape .got .10,.", np.zeros(10, int)),
        (r"labels has the wrong dtype .got float64", np.zeros((2, 5))),
        (r"labels has the wrong dtype .got bool", np.zeros((2, 5), bool)),
        (r"labels is not an array", [[1, 2], [1]]),
    ],
    "choice": [
        (r"labels is out of range .got 3 at .0,.; expected 0 ... 2", [3, 0]),
        (r"labels has the wrong shape .got .2, 1.; expected .2,.", [[0], [0]]),
        (r"labels has the wrong shape .got .6,.", np.zeros(6, int)),
        (r"labels has the wrong dtype .got float64", [0.0, 1.0]),
        (r"labels is not an array", [[1, 2], [1]]),
    ],
    "sequence": [
        (r"labels is out of range .got 2 at .1,.; expected 0 ... 1", [0, 2]),
        (r"labels has the wrong shape .got .3,.; expected .2,.", [0, 1, 0]),
        (r"labels .multi_label_classification. has the wrong shape .got .2,.", [0.0, 1.0]),
        (r"labels .multi_label_classification. has the wrong dtype .got <U1", ["a", "b"]),
        (r"labels is not an array", [[1, 2], [1]]),
    ],
}
HEADS = {
    CAUSAL: "tokens", "Data2VecTextForMaskedLM": "tokens", "Data2VecTextForTokenClassification": "tokens",
    CHOICE: "choice", "Data2VecTextForSequenceClassification": "sequence",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words", "labels"), [(name, *case) for name, head in HEADS.items() for case in LABELS[head]]
)
def test_labels_that_do_not_serve(name: str, words: str, labels: Any) -> None:
    refused(models[name], f"^{words}", input_ids=token_ids(name), labels=labels)


@pytest.mark.parametrize("which", ["start_positions", "end_positions"])
@pytest.mark.parametrize(
    ("words", "positions"),
    [
        ("has the wrong shape .got .3,.; expected .2,.", [0, 1, 2]),
        ("has the wrong shape .got .2, 2.", [[0, 1], [1, 2]]),
        ("has the wrong dtype .got float64", [0.0, 1.0]),
        ("has the wrong dtype .got <U1", ["a", "b"]),
        ("is not an array", [[1, 2], [1]]),
    ],
)
def test_positions_of_an_answer_that_do_not_serve(which: str, words: str, positions: Any) -> None:
    right = {"start_positions": [0, 1], "end_positions": [1, 2]}
    refused(
        models["Data2VecTextForQuestionAnswering"], f"^{which} {words}", input_ids=IDS, **right | {which: positions}
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"input_ids": IDS},
        {"input_ids": np.zeros((1, 0, 3), int)},
        {"input_ids": 3},
        {"input_ids": [[[1, 2]], [[1]]]},
        {"inputs_embeds": EMBEDS},
        {"input_ids": token_ids(CHOICE), "attention_mask": np.ones((2, 2, 5))},
        {"input_ids": token_ids(CHOICE), "attention_mask": np.ones((2, 3))},
        {"input_ids": token_ids(CHOICE), "token_type_ids": np.ones((6, 5), int)},
        {"input_ids": token_ids(CHOICE), "position_ids": [[1], [1, 2]]},
    ],
)
def test_multiple_choice_needs_its_axis_of_choices(arguments: dict[str, Any]) -> None:
    refused(models[CHOICE], r"axis of choices|has the wrong shape|is not an array", **arguments)


# ---- whatever is thrown at it

strange: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [IDS, EMBEDS, STATES, IDS > 5, IDS[:, :4], IDS[0], IDS.astype("u1"), IDS.astype("f2"), IDS[..., None]]
    ),
    hnp.arrays(
        st.sampled_from(
            ["i8", "u1", "u8", "?", "f2", "f4", "f8", "g", "c16", "U2", "S2", "M8[s]", "m8[s]", "O", "i4,f4"]
        ),
        hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5),
    ),
    hnp.arrays(np.int64, st.sampled_from([(2, 5), (2, 5, 5), (2,), (2, 3, 5)]), elements=st.integers(-2, 3)),
    hnp.arrays(np.float64, st.sampled_from([(2, 5, 12), (2, 4, 12), (2, 1, 5, 5), (3,)]), elements=st.floats(-9, 9)),
    st.sampled_from([None, True, 0, 1, -1, 2.5, NAN, "text", b"bytes", (), [], {}, [[]], [[1, 2], [3]], object(), ...]),
    st.recursive(
        st.integers(-2, 30) | st.none() | st.text(max_size=2), lambda x: st.lists(x, max_size=3), max_leaves=9
    ),
    st.lists(st.tuples(*[hnp.arrays(np.float64, st.sampled_from([(2, 3, 2, 4), (2, 3, 4)]))] * 2), max_size=2),
)
# return_dict and the output_ flags are asked for their truth only, and progress no array.
FLAGS = {"output_attentions", "output_hidden_states", "use_cache", "options"}
fuzzed = {name: [models[name]] for name in CLASSES}
fuzzed[MODEL].append(decoder)
fuzzed[CAUSAL].append(build(CAUSAL, position_embedding_type="relative_key_query", **DECODER))


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=250)
@given(data=st.data())
def test_outputs_come_back_or_one_error_of_ours(name: str, data: st.DataObject) -> None:
    model = data.draw(st.sampled_from(fuzzed[name]))
    known = [*inspect.signature(type(model).forward).parameters, *inspect.signature(models[MODEL].forward).parameters]
    arguments: dict[str, Any] = {}
    names = st.sampled_from(sorted(set(known) - FLAGS - {"self"}))
    keys = data.draw(st.sets(names, min_size=1, max_size=3))
    if "inputs_embeds" not in keys or not data.draw(st.integers(0, 9)):
        arguments["input_ids"] = token_ids(name)
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


# ---- properties

lengths = st.integers(1, 6)


@pytest.mark.parametrize("name", BATCHED)
@settings(max_examples=20)
@given(seed=seeds, length=lengths, padding=st.integers(1, 6), kind=st.sampled_from(["absolute", "relative_key_query"]))
def test_padding_on_the_right_changes_nothing(name: str, seed: int, length: int, padding: int, kind: str) -> None:
    model = trained(build(name, position_embedding_type=kind), seed=seed % 7)
    ids = token_ids(name, seed, length=length)
    padded = np.pad(ids, ((0, 0), (0, padding)), constant_values=1)
    want, got = main_output(model(ids)), main_output(model(padded, attention_mask=padded != 1))
    np.testing.assert_allclose(got if name.endswith("SequenceClassification") else got[:, :length], want, atol=1e-12)


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=15)
@given(seed=seeds, batch=st.integers(1, 4))
def test_texts_of_a_batch_do_not_see_each_other(name: str, seed: int, batch: int) -> None:
    model = trained(models[name])
    ids = token_ids(name, seed, batch=batch)
    mask = np.random.default_rng(seed).random(ids.shape) < 0.8
    order = np.random.default_rng(seed).permutation(batch)
    want = main_output(model(ids, attention_mask=mask))
    np.testing.assert_allclose(main_output(model(ids[order], attention_mask=mask[order])), want[order], atol=1e-12)
    one = main_output(model(ids[:1], attention_mask=mask[:1]))
    np.testing.assert_allclose(one, want[:1], atol=1e-12)


@settings(max_examples=25)
@given(seed=seeds, length=st.integers(2, 6), data=st.data())
def test_a_causal_model_does_not_see_later_tokens(seed: int, length: int, data: st.DataObject) -> None:
    ids = token_ids(CAUSAL, seed, length=length)
    cut = data.draw(st.integers(1, length - 1))
    changed = ids.copy()
    changed[:, cut:] = (ids[:, cut:] - 2 + 5) % 17 + 2
    model = trained(models[CAUSAL])
    a, b = model(ids).logits, model(changed).logits
    np.testing.assert_allclose(a[:, :cut], b[:, :cut], atol=1e-12)
    assert np.abs(a[:, cut:] - b[:, cut:]).max() > 1e-6
    encoder = trained(models["Data2VecTextForMaskedLM"])  # which sees all
    assert np.abs(encoder(ids).logits - encoder(changed).logits)[:, :cut].max() > 1e-6


@settings(max_examples=25)
@given(seed=seeds, first=st.integers(1, 4), rest=st.integers(1, 4), kind=st.sampled_from(["absolute", "relative_key"]))
def test_a_cache_changes_nothing_and_is_not_changed(seed: int, first: int, rest: int, kind: str) -> None:
    model = trained(build(CAUSAL, position_embedding_type=kind, **DECODER))
    ids = token_ids(CAUSAL, seed, length=first + rest)
    states = np.random.default_rng(seed).normal(size=(2, 3, 12))
    whole = model(ids, encoder_hidden_states=states)
    start = model(ids[:, :first], encoder_hidden_states=states)
    for past in (start.past_key_values, tuple(start.past_key_values)):
        before = [array.copy() for layer in past for array in layer]
        again = model(ids[:, first:], past_key_values=past, encoder_hidden_states=states)
        np.testing.assert_allclose(again.logits, whole.logits[:, first:], atol=1e-12)
        for array, was in zip([array for layer in past for array in layer], before, strict=True):
            np.testing.assert_array_equal(array, was)
        for mine, full in zip(again.past_key_values, whole.past_key_values, strict=True):
            for a, b in zip(mine, full, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-12)
    cache: Cache = whole.past_key_values
    assert (len(cache), cache.length(), cache.cross_length()) == (2, first + rest, 3)
    assert [array.shape for array in cache[0]] == [(2, 3, first + rest, 4)] * 2 + [(2, 3, 3, 4)] * 2
    np.testing.assert_array_equal(cache.reorder(np.array([1, 1]))[1][0][0], cache[1][0][1])


@pytest.mark.parametrize("name", CLASSES)
def test_a_mask_of_ones_in_any_form_is_no_mask(name: str) -> None:
    ids = token_ids(name)
    want = main_output(models[name](ids))
    masks: list[Any] = [np.ones(ids.shape, dtype) for dtype in ("i8", "?", "f4", "u1")]
    masks.append(np.ones(ids.shape).tolist())
    if name not in (CAUSAL, CHOICE):  # these replace the causal rule
        masks += [np.ones((2, 5, 5)), np.ones((2, 1, 5, 5), bool), np.zeros((2, 3, 5, 5)), np.zeros((1, 1, 5, 5))]
    for mask in masks:
        np.testing.assert_allclose(main_output(models[name](ids, attention_mask=mask)), want, atol=1e-14)


@settings(max_examples=25)
@given(seed=seeds, causal=st.booleans())
def test_the_same_mask_in_all_its_forms(seed: int, causal: bool) -> None:
    model = trained(build(MODEL, is_decoder=causal))
    seen = np.random.default_rng(seed).random((2, 5)) < 0.6
    seen[:, 0] = True
    square = seen[:, None, :] & (np.tri(5, dtype=bool) if causal else np.ones((5, 5), bool))
    want = model(IDS, attention_mask=seen).last_hidden_state
    forms: list[Any] = [square, square.astype(int), square[:, None], np.repeat(square[:, None], 3, 1)]
    forms.append(np.where(square[:, None], 0.0, np.finfo(np.float64).min))
    for mask in forms:
        np.testing.assert_allclose(model(IDS, attention_mask=mask).last_hidden_state, want, atol=1e-12)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("chunk", [1, 2, 3, 6])
def test_chunks_of_the_feed_forward_change_nothing(name: str, chunk: int) -> None:
    ids = token_ids(name, length=6)
    got = main_output(trained(build(name, chunk_size_feed_forward=chunk))(ids))
    np.testing.assert_allclose(got, main_output(trained(build(name))(ids)), atol=1e-13)


@pytest.mark.parametrize("name", CLASSES)
@given(seed=seeds)
@settings(max_examples=10)
def test_embeddings_of_the_ids_serve_for_the_ids(name: str, seed: int) -> None:
    """Where there is no padding: positions are counted from ids only."""
    model, ids = models[name], token_ids(name, seed)
    table = model.state_dict()[("" if name == MODEL else "data2vec_text.") + "embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(main_output(model(inputs_embeds=table[ids])), main_output(model(ids)))
    padded = ids.copy()
    padded[..., 0] = 1
    assert not np.allclose(main_output(model(inputs_embeds=table[padded])), main_output(model(padded)))


def test_defaults_are_what_they_stand_for() -> None:
    model, ids = models[MODEL], IDS.copy()
    ids[0, 3:] = 1
    positions = np.array([[2, 3, 4, 1, 1], [2, 3, 4, 5, 6]])
    want = model(ids).last_hidden_state
    for arguments in (
        {"token_type_ids": np.zeros((2, 5), int)},
        {"token_type_ids": np.zeros((1, 5), int)},
        {"position_ids": positions},
        {"head_mask": np.ones(3)},
        {"head_mask": np.ones((2, 3), bool)},
        {"input_ids": ids.astype("u1")},
        {"input_ids": ids.tolist()},
    ):
        np.testing.assert_array_equal(model(**{"input_ids": ids} | arguments).last_hidden_state, want)
    row = model(IDS, position_ids=positions[1:]).last_hidden_state  # one row of positions for all texts
    np.testing.assert_array_equal(row, model(IDS).last_hidden_state)


def test_multiple_choice_is_the_model_on_flattened_choices_and_a_linear_classifier() -> None:
    model, ids = trained(models[CHOICE]), token_ids(CHOICE)
    bare = d2v_ref.Data2VecTextModel(
        model.config, {name.removeprefix("data2vec_text."): value for name, value in model.state_dict().items()},
        dtype="float64",
    )  # fmt: skip
    weights = model.state_dict()
    pooled = bare(ids.reshape(6, 5)).pooler_output
    want = pooled @ weights["classifier.weight"][0] + weights["classifier.bias"]
    np.testing.assert_allclose(model(ids).logits, want.reshape(2, 3), atol=1e-13)
    order = [2, 0, 1]
    np.testing.assert_allclose(model(ids[:, order]).logits, model(ids).logits[:, order], atol=1e-13)


def test_a_head_mask_has_a_row_for_each_layer() -> None:
    """A layer without its attention's probabilities has a context of zeros; the others compute as before."""
    model = trained(decoder)
    plain = model.record(IDS, encoder_hidden_states=STATES + 1)[1]
    for layer, other in ((0, 1), (1, 0)):
        head_mask = np.ones((2, 3))
        head_mask[layer] = 0
        taps = model.record(IDS, encoder_hidden_states=STATES + 1, head_mask=head_mask)[1]
        for kind in ("attention", "crossattention"):
            assert (taps[f"encoder.layer.{layer}.{kind}.self"] == 0).all()
            assert (taps[f"encoder.layer.{other}.{kind}.self"] != 0).any()
        if layer == 1:
            np.testing.assert_array_equal(taps["encoder.layer.0"], plain["encoder.layer.0"])
    one_head = model.record(IDS, head_mask=[0, 1, 1])[1]["encoder.layer.1.attention.self"]
    assert (one_head[..., :4] == 0).all()
    assert (one_head[..., 4:] != 0).any()


def test_token_0_alone_decides_a_sequences_class() -> None:
    model = trained(models["Data2VecTextForSequenceClassification"])
    bare = model.data2vec_text(IDS).last_hidden_state
    np.testing.assert_allclose(model(IDS).logits, model.classifier(np.repeat(bare[:, :1], 5, 1)), atol=1e-13)


def test_logits_to_keep_are_the_last() -> None:
    model = models[CAUSAL]
    for keep in range(8):
        want = model(IDS).logits[:, -keep:] if keep else model(IDS).logits
        np.testing.assert_allclose(model(IDS, logits_to_keep=np.int64(keep)).logits, want, atol=1e-13)


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_are_a_tuple_without_return_dict(name: str) -> None:
    ids = token_ids(name)
    options = {"output_attentions": True, "output_hidden_states": True}
    out = models[name](ids, **options)
    for got in (models[name](ids, return_dict=False, **options), build(name, return_dict=False)(ids, **options)):
        assert type(got) is tuple
        assert len(got) == len(out)
        np.testing.assert_array_equal(got[0], out[0])
    assert build(name, return_dict=False)(ids, return_dict=True, **options).keys() == out.keys()
    asked = build(name, output_attentions=True, output_hidden_states=True)
    assert asked(ids).keys() == out.keys()
    assert asked(ids, output_attentions=False, output_hidden_states=False).keys() == models[name](ids).keys()


@pytest.mark.parametrize("name", CLASSES)
def test_states_and_probabilities_have_the_shapes_of_their_text(name: str) -> None:
    ids = token_ids(name)
    rows, tokens = ids[..., 0].size, ids.shape[-1]
    out = models[name](ids, output_attentions=True, output_hidden_states=True)
    assert [state.shape for state in out.hidden_states] == [(rows, tokens, 12)] * 3
    assert [p.shape for p in out.attentions] == [(rows, 3, tokens, tokens)] * 2
    for p in out.attentions:
        np.testing.assert_allclose(p.sum(-1), 1, atol=1e-12)
    assert all(type(array) is np.ndarray for array in (*out.hidden_states, *out.attentions, main_output(out)))


@pytest.mark.parametrize("name", [MODEL, CAUSAL])
def test_a_cache_comes_back_from_decoders_that_want_one(name: str) -> None:
    decoding = build(name, is_decoder=True)
    assert "past_key_values" in decoding(IDS)
    assert "past_key_values" not in decoding(IDS, use_cache=False)
    assert "past_key_values" not in build(name, is_decoder=True, use_cache=False)(IDS)
    assert "past_key_values" in build(name, is_decoder=True, use_cache=False)(IDS, use_cache=True)
    assert "past_key_values" not in build(name, is_decoder=False)(IDS, use_cache=True)
    if name == CAUSAL:
        assert "past_key_values" not in decoding(IDS, labels=IDS)


@pytest.mark.parametrize("name", CLASSES)
def test_no_input_is_changed(name: str) -> None:
    arguments: dict[str, Any] = {"input_ids": token_ids(name), "attention_mask": np.ones(token_ids(name).shape)}
    arguments |= {"token_type_ids": np.zeros(token_ids(name).shape, int), "head_mask": np.full(3, 0.5)}
    for array in arguments.values():
        array.flags.writeable = False
    models[name](**arguments)
    embeds = np.zeros((*token_ids(name).shape, 12))
    embeds.flags.writeable = False
    models[name](inputs_embeds=embeds)


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32))
def test_float32_is_within_its_bound_of_float64(name: str, seed: int) -> None:
    """Every module's output, not only the last; the bound is computed, not chosen (golden/bounds.py)."""
    model, ids = build(name, seed=seed, dtype="float32"), token_ids(name, seed % 1000)
    exact = model.with_ops(Ops("float64")).record(ids)[1]

    def run(ops: Ops, tell: Any) -> None:
        for name, value in model.with_ops(ops).record(ids)[1].items():
            tell(name, value)

    allowed = tolerances(run, exact)
    for key, value in model.record(ids)[1].items():
        assert value.dtype == np.float32
        assert np.abs(value - exact[key]).max() <= allowed[key], key


def test_no_layers_at_all_is_a_model_too() -> None:
    model = build(MODEL, num_hidden_layers=0, is_decoder=True)
    out = model(IDS, output_hidden_states=True)
    np.testing.assert_array_equal(out.last_hidden_state, out.hidden_states[0])
    assert TINY["num_hidden_layers"] == 2  # which the other tests rely on
