"""Configurations: what goes in comes out, what no model can be built from is refused, files of every kind of wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import audio_models
import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_models import TINY

from d2v_ref.audio import Data2VecAudioConfig
from d2v_ref.config import Config
from d2v_ref.errors import ConfigError
from d2v_ref.ops import ACTIVATIONS
from d2v_ref.text import Data2VecTextConfig

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=6,
)
ours = set(Data2VecTextConfig.fields()) | {"num_labels", "model_type", "pruned_heads"}
of_audio = set(Data2VecAudioConfig.fields()) | {"num_labels", "model_type"}


@st.composite
def settings_of_a_config(draw: st.DrawFn) -> dict[str, Any]:
    heads, pad = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    values: dict[str, Any] = {
        "vocab_size": draw(st.integers(pad + 1, 60000)),
        "num_attention_heads": heads,
        "hidden_size": heads * draw(st.integers(1, 64)),
        "num_hidden_layers": draw(st.integers(0, 30)),
        "max_position_embeddings": draw(st.integers(pad + 1, 600)),
        "pad_token_id": pad,
        "layer_norm_eps": draw(st.floats(0, 1) | st.just(0) | st.just(1)),
        "hidden_act": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "classifier_dropout": draw(st.none() | st.floats(0, 1)),
        "eos_token_id": draw(st.none() | st.integers(0, 9) | st.lists(st.integers(0, 9))),
        "tie_word_embeddings": draw(st.booleans()),
        "architectures": draw(st.none() | st.lists(st.text())),
    }
    if draw(st.booleans()):
        values["id2label"] = {i: draw(st.text()) for i in range(draw(st.integers(1, 4)))}
    elif draw(st.booleans()):
        values["num_labels"] = draw(st.integers(0, 5))
    return values


@given(values=settings_of_a_config(), extra=st.dictionaries(st.text().filter(lambda n: n not in ours), json_values))
def test_json_gives_back_the_same_configuration(values: dict[str, Any], extra: dict[str, Any]) -> None:
    config = Data2VecTextConfig(**values, **extra)
    for name in values.keys() - {"num_labels", "id2label"}:
        assert getattr(config, name) == values[name]
    assert config.extra == extra
    again = Data2VecTextConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.extra == extra
    assert again.id2label == config.id2label
    assert all(isinstance(index, int) for index in again.id2label or {})


@given(values=st.dictionaries(st.sampled_from(sorted(ours)), json_values, max_size=4))
def test_any_json_object_is_a_configuration_or_one_config_error(values: dict[str, Any]) -> None:
    config = error = None
    try:
        config = Data2VecTextConfig.from_dict(values)
    except ConfigError as caught:
        error = str(caught)
    if error is not None:
        assert len(error.splitlines()) == 1
    else:
        assert all(getattr(config, name) == values[name] for name in values.keys() & {"vocab_size", "hidden_act"})


@given(
    data=st.data(),
    name=st.sampled_from(audio_models.CLASSES),
    extra=st.dictionaries(st.text().filter(lambda n: n not in of_audio), json_values),
)
def test_json_gives_back_the_same_configuration_of_audio(data: st.DataObject, name: str, extra: dict[str, Any]) -> None:
    drawn = data.draw(audio_models.audio_configs(name))
    config = Data2VecAudioConfig(**{**drawn.to_dict(), **extra})
    assert config.extra == extra
    again = Data2VecAudioConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert {key: value for key, value in again.to_dict().items() if key not in extra} == drawn.to_dict()


@given(values=st.dictionaries(st.sampled_from(sorted(of_audio)), json_values | st.lists(st.integers()), max_size=4))
def test_any_json_object_is_a_configuration_of_audio_or_one_config_error(values: dict[str, Any]) -> None:
    config = error = None
    try:
        config = Data2VecAudioConfig.from_dict(values)
    except ConfigError as caught:
        error = str(caught)
    if error is not None:
        assert len(error.splitlines()) == 1
    else:
        assert all(getattr(config, name) == values[name] for name in values.keys() & {"vocab_size", "conv_dim"})


@given(values=settings_of_a_config(), other=settings_of_a_config())
def test_two_configurations_are_equal_if_their_settings_are(values: dict[str, Any], other: dict[str, Any]) -> None:
    a, b = Data2VecTextConfig(**values), Data2VecTextConfig(**other)
    assert (a == b) == (a.to_dict() == b.to_dict())
    assert a != a.to_dict()
    assert a != Config()


def test_defaults_and_types_are_inherited() -> None:
    assert list(Config.fields()) == list(Data2VecTextConfig.fields())[: len(Config.fields())]
    assert Config().pad_token_id is None
    assert Data2VecTextConfig().pad_token_id == 1
    assert "sizes" not in Config.fields()


def test_a_name_of_python_is_a_setting_like_any_other() -> None:
    extra = {"self": 1, "cls": 2, "class": 3, "values": 4, "extra": 5, "sizes": 6, "validate": 7}
    config = Data2VecTextConfig.from_dict(extra)
    assert config.extra == extra
    assert Data2VecTextConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", "30522"),
        ("vocab_size", 30522.0),
        ("vocab_size", True),
        ("vocab_size", None),
        ("layer_norm_eps", "1e-5"),
        ("layer_norm_eps", False),
        ("is_decoder", 1),
        ("is_decoder", None),
        ("hidden_act", None),
        ("hidden_act", ["gelu"]),
        ("eos_token_id", [1, "2"]),
        ("eos_token_id", 1.5),
        ("architectures", "Data2VecTextModel"),
        ("architectures", [1]),
        ("id2label", ["a"]),
        ("id2label", {"a": "b"}),
        ("id2label", {"0": "a", "2": "b"}),
        ("id2label", {"-1": "a"}),
        ("label2id", ["a"]),
        ("problem_type", 3),
    ],
)
def test_a_wrong_type_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        Data2VecTextConfig(**{name: value})
    assert caught.value.got is not None
    assert caught.value.expected is not None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_size": 10, "num_attention_heads": 3}, "multiple of num_attention_heads=3"),
        ({"vocab_size": 0}, "vocab_size is out of range"),
        ({"hidden_size": 0}, "hidden_size is out of range"),
        ({"num_attention_heads": 0}, "num_attention_heads is out of range"),
        ({"intermediate_size": -1}, "intermediate_size is out of range"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is out of range"),
        ({"type_vocab_size": 0}, "type_vocab_size is out of range"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is out of range"),
        ({"vocab_size": 2**31}, "vocab_size is out of range"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is out of range"),
        ({"num_labels": 10**9}, "num_labels does not serve"),
        ({"chunk_size_feed_forward": -1}, "chunk_size_feed_forward is negative"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
        ({"layer_norm_eps": 10**400}, "layer_norm_eps"),
        ({"hidden_act": "gelo"}, "unknown hidden_act .got gelo; expected .*gelu"),
        ({"position_embedding_type": "rotary"}, "position_embedding_type .*relative_key_query"),
        ({"problem_type": "ranking"}, "problem_type .*regression"),
        ({"problem_type": "single_label_classification", "num_labels": 1}, "One label is a regression"),
        ({"pad_token_id": None}, "pad_token_id"),
        ({"pad_token_id": -1}, "pad_token_id"),
        ({"pad_token_id": 30522}, "pad_token_id"),
        ({"pad_token_id": 9, "max_position_embeddings": 9}, "row of the position table"),
        ({"add_cross_attention": True}, "is_decoder=True"),
        ({"pruned_heads": {"0": [1]}}, "head_mask"),
        ({"model_type": "data2vec-audio"}, "got data2vec-audio; expected data2vec-text"),
        ({"model_type": None}, "model_type"),
        ({"num_labels": 3, "id2label": {0: "a"}}, "disagree .got 3; expected 1"),
        ({"num_labels": -1}, "num_labels"),
        ({"num_labels": "2"}, "num_labels"),
        ({"num_labels": True}, "num_labels"),
    ],
)
def test_what_no_model_can_be_built_from(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Data2VecTextConfig(**values)


SIZES = ["vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "num_conv_pos_embedding_groups"]
SIZES += ["conv_pos_kernel_size", "mask_time_length", "mask_feature_length", "classifier_proj_size"]
SIZES += ["xvector_output_dim", "adapter_kernel_size", "adapter_stride"]
LISTS = ("conv_dim", "conv_stride", "conv_kernel", "tdnn_dim", "tdnn_kernel", "tdnn_dilation")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        *(({name: value}, f"^{name} is out of range .got {value}; expected 1 ... 2.31 - 1")
          for name in SIZES for value in (0, -1, 2**31)),
        *(({name: value}, f"^{name} has the wrong type .got {value!r}; expected ")
          for name in SIZES for value in (1.0, "1", True, None)),
        *(({name: [1, 0]}, rf"^{name} is out of range .got .1, 0.; expected 1 ... ") for name in LISTS),
        *(({name: [2**31]}, rf"^{name} is out of range") for name in LISTS),
        *(({name: value}, rf"^{name} has the wrong type") for name in LISTS for value in (3, None, "5", [1.5], [[1]])),
        *(({name: [4]}, rf"{name}.* do not fit together .*expected as many numbers in each") for name in LISTS),
        ({name: [] for name in LISTS}, r"conv_dim, conv_stride, conv_kernel do not fit together .got .0, 0, 0."),
        ({name: [1] * 1001 for name in LISTS[:3]}, "do not fit together .got .1001, 1001, 1001."),
        ({name: [] for name in LISTS[3:]}, r"tdnn_dim, tdnn_kernel, tdnn_dilation do not fit together .got .0, 0, 0."),
        *(({name: value}, f"^{name} is out of range .got {value}; expected 0 ... 1000")
          for name in ("num_hidden_layers", "num_conv_pos_embeddings", "num_adapter_layers")
          for value in (-1, 1001, 10**12)),
        ({"hidden_size": 10}, r"divide among the heads .got 10; .*a multiple of num_attention_heads=12"),
        ({"hidden_size": 12}, r"among the groups .got 12; .*a multiple of num_conv_pos_embedding_groups=16"),
        ({"output_hidden_size": -1}, "output_hidden_size is out of range .got -1"),
        ({"output_hidden_size": 2**31}, "output_hidden_size is out of range"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps is out of range"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is out of range"),
        ({"layer_norm_eps": 10**400}, "layer_norm_eps is out of range"),
        ({"hidden_act": "gelo"}, "unknown hidden_act .got gelo; expected .*gelu"),
        ({"feat_extract_activation": ""}, "unknown feat_extract_activation"),
        ({"ctc_loss_reduction": "max"}, "unknown ctc_loss_reduction .got max; expected sum or mean or none"),
        ({"ctc_target_rule": "v3"}, "unknown ctc_target_rule .got v3; expected v5 or v4"),
        ({"padding": "right"}, "unknown padding .got right; expected hf or exact"),
        ({"padding": True}, "padding has the wrong type"),
        ({"mask_time_prob": 1.1}, "mask_time_prob is no probability .got 1.1; expected 0 ... 1"),
        ({"mask_feature_prob": -0.1}, "mask_feature_prob is no probability"),
        ({"mask_feature_prob": float("nan")}, "mask_feature_prob is no probability"),
        ({"ctc_zero_infinity": 1}, "ctc_zero_infinity has the wrong type"),
        ({"conv_bias": "no"}, "conv_bias has the wrong type"),
        ({"model_type": "wav2vec2"}, "got wav2vec2; expected data2vec-audio"),
        ({"num_labels": 10**9}, "num_labels does not serve"),
    ],
)  # fmt: skip
def test_what_no_audio_model_can_be_built_from(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Data2VecAudioConfig(**values)
    assert len(str(caught.value).splitlines()) == 1


def test_the_edge_of_each_rule_of_audio_passes() -> None:
    Data2VecAudioConfig(num_hidden_layers=0, num_conv_pos_embeddings=0, num_adapter_layers=0, layer_norm_eps=0)
    Data2VecAudioConfig(num_hidden_layers=1000, mask_time_prob=1, mask_feature_prob=0, output_hidden_size=0)
    ones: dict[str, Any] = {**dict.fromkeys(SIZES, 1), **{name: [1] for name in LISTS}}
    tuples: dict[str, Any] = dict.fromkeys(LISTS, (2, 3))
    Data2VecAudioConfig(**ones)
    Data2VecAudioConfig(**tuples, padding="exact", ctc_loss_reduction="none")
    Data2VecAudioConfig(pad_token_id=None, mask_time_min_masks=0)  # only CTC needs a blank


def test_sizes_of_audio() -> None:
    base, large = (Data2VecAudioConfig(**Data2VecAudioConfig.sizes[size]) for size in ("base", "large"))
    assert base == Data2VecAudioConfig()
    assert base.inputs_to_logits_ratio == large.inputs_to_logits_ratio == 320  # 20 ms at 16 kHz
    assert (large.hidden_size, large.num_hidden_layers, large.num_attention_heads) == (1024, 24, 16)
    adapted = {"add_adapter": True, "output_hidden_size": 5}
    assert Data2VecAudioConfig(**adapted).output_size == 5
    assert Data2VecAudioConfig(output_hidden_size=5).output_size == 768  # without an adapter it has no say
    assert Data2VecAudioConfig(add_adapter=True).output_size == 768


def test_the_edge_of_each_rule_passes() -> None:
    Data2VecTextConfig(pad_token_id=8, max_position_embeddings=9, vocab_size=9, num_hidden_layers=0, layer_norm_eps=0)
    Data2VecTextConfig(add_cross_attention=True, is_decoder=True, pruned_heads={})
    Data2VecTextConfig(problem_type="single_label_classification", num_labels=2)
    Data2VecTextConfig(problem_type="regression", num_labels=1)


@pytest.mark.parametrize(("kind", "pad", "fit"), [("absolute", 1, 10), ("absolute", 0, 11), ("relative_key", 1, 12)])
def test_how_many_tokens_fit(kind: str, pad: int, fit: int) -> None:
    config = Data2VecTextConfig(max_position_embeddings=12, pad_token_id=pad, position_embedding_type=kind)
    assert config.max_length == fit


# ---- labels


def test_labels_have_names() -> None:
    assert Data2VecTextConfig().id2label == {0: "LABEL_0", 1: "LABEL_1"}  # two labels unless told otherwise, as HF
    config = Data2VecTextConfig(num_labels=3)
    assert config.num_labels == 3
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    named = Data2VecTextConfig(id2label={"1": "good", "0": "bad"})
    assert (named.num_labels, named.label(0), named.label(1)) == (2, "bad", "good")
    assert named.label2id == {"bad": 0, "good": 1}
    assert named.to_dict()["id2label"] == {"0": "bad", "1": "good"}


def test_changes_of_labels_leave_no_old_names() -> None:
    file = Data2VecTextConfig(id2label={0: "a", 1: "b", 2: "c"}).to_dict()
    fewer = Data2VecTextConfig.from_dict(file, num_labels=2)
    assert (fewer.id2label, fewer.label2id) == ({0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1})
    others = Data2VecTextConfig.from_dict(file, id2label={0: "x"})
    assert (others.id2label, others.label2id) == ({0: "x"}, {"x": 0})
    kept = Data2VecTextConfig.from_dict(file, num_labels=None)  # None is no change
    assert kept.id2label == {0: "a", 1: "b", 2: "c"}
    own = Data2VecTextConfig.from_dict(file, id2label={0: "x"}, label2id={"X": 0})
    assert own.label2id == {"X": 0}
    with pytest.raises(ConfigError, match="disagree"):
        Data2VecTextConfig.from_dict(file, id2label={0: "x"}, num_labels=2)


def test_changes_override_the_file_and_unknown_ones_are_refused() -> None:
    file = {**TINY, "of_another_program": 1}
    config: Any = Data2VecTextConfig.from_dict(file, is_decoder=True, vocab_size=7, of_another_program=2)
    assert (config.is_decoder, config.vocab_size, config.extra) == (True, 7, {"of_another_program": 2})
    assert file == {**TINY, "of_another_program": 1}  # not changed
    with pytest.raises(ConfigError, match=r"no setting of this name .got is_decodr"):
        Data2VecTextConfig.from_dict(file, is_decodr=True)


# ---- files


def test_a_file_round_trip(tmp_path: Path) -> None:
    config = Data2VecTextConfig(**TINY, id2label={0: "gut", 1: "übel", 2: "混合"}, other=[1, {"a": None}])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict(), ensure_ascii=False), encoding="utf-8")
    assert Data2VecTextConfig.from_json_file(path) == config
    assert Data2VecTextConfig.from_json_file(str(path), num_labels=2).num_labels == 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "can't be read: No such file"),
        (b'{"a": "\xff"}', "not JSON in UTF-8"),
        ("﻿{}".encode(), "not JSON in UTF-8"),
        (b"", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b"[1, 2]", "got list; expected a JSON object"),
        (b"null", "got NoneType"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"hidden_size": "768"}', "hidden_size has the wrong type"),
        (b'{"model_type": "bert"}', "another model's"),
        (b'{"num_labels": "3"}', "num_labels"),
        (b'{"layer_norm_eps": NaN}', "layer_norm_eps"),
    ],
)
def test_an_unusable_file_is_named(tmp_path: Path, data: bytes | None, words: str) -> None:
    path = tmp_path / "config.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=words) as caught:
        Data2VecTextConfig.from_json_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 600


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        Data2VecTextConfig.from_json_file(tmp_path)


def test_repr_shows_what_differs_from_the_defaults() -> None:
    text = repr(Data2VecTextConfig(vocab_size=7, pad_token_id=2, other="x"))
    assert text.startswith("Data2VecTextConfig(")
    for part in ("vocab_size=7", "pad_token_id=2", "other='x'"):
        assert part in text
    assert "hidden_size" not in text
