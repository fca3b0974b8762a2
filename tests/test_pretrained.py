"""Checkpoints in and out: every weight accounted for, ties, files of every dtype, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import audio_models
import numpy as np
import pytest
import vision_models
from safetensors.numpy import load_file, save_file
from text_models import CLASSES, LANGUAGE_MODELS, TINY, build, config_of, main_output, token_ids

import d2v_ref
from d2v_ref.checkpoints import writing
from d2v_ref.config import Config
from d2v_ref.errors import CheckpointError, ConfigError, D2VError, InputError
from d2v_ref.ops import Ops
from d2v_ref.pretrained import PreTrainedModel

# The tests read reports and weights that the types allow to be absent.
TextModel: Any = d2v_ref.Data2VecTextModel
MaskedLM: Any = d2v_ref.Data2VecTextForMaskedLM
MultipleChoice: Any = d2v_ref.Data2VecTextForMultipleChoice
load: Any = d2v_ref.load
WORDS = "data2vec_text.embeddings.word_embeddings.weight"
DECODER = "lm_head.decoder.weight"
BIAS = "lm_head.bias"
DECODER_BIAS = "lm_head.decoder.bias"


def write(folder: Path, weights: dict[str, np.ndarray], **config: Any) -> Path:
    """A checkpoint by the safetensors package and json alone, as a third party writes it."""
    folder.mkdir(exist_ok=True)
    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**TINY, "model_type": "data2vec-text", **config}))
    return folder


def weights_of(name: str, **changes: Any) -> dict[str, np.ndarray]:
    return build(name, dtype="float32", **changes).state_dict()


# ---- round trips


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_a_saved_model_comes_back(name: str, tie: bool, tmp_path: Path) -> None:
    model = build(name, tie_word_embeddings=tie, dtype="float32", other_programs=[1, {"a": "ü"}])
    model.save_pretrained(tmp_path / "deep" / "folder")
    assert sorted(path.name for path in (tmp_path / "deep" / "folder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    for again in (
        type(model).from_pretrained(tmp_path / "deep" / "folder"),
        load(str(tmp_path / "deep/folder")),
    ):
        assert type(again) is type(model)
        assert again.config.to_dict() | {"architectures": None, "dtype": None} == {
            **model.config.to_dict(), "dtype": None,
        }  # fmt: skip
        assert list(again.state_dict()) == list(model.state_dict())
        for key, value in again.state_dict().items():
            np.testing.assert_array_equal(value, model.state_dict()[key])
        ids = token_ids(name)
        np.testing.assert_array_equal(main_output(again(ids)), main_output(model(ids)))
        report = again.load_report
        assert not report.unused
        assert not report.fresh
        assert not report.absent
        assert report.used.keys() | report.tied.keys() == model.state_dict().keys()
    saved = json.loads((tmp_path / "deep" / "folder" / "config.json").read_text(encoding="utf-8"))
    assert (saved["architectures"], saved["dtype"], saved["model_type"]) == ([name], "float32", "data2vec-text")
    assert saved["other_programs"] == [1, {"a": "ü"}]


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_tied_weight_is_written_once(name: str, tmp_path: Path) -> None:
    build(name, dtype="float32").save_pretrained(tmp_path / "tied")
    build(name, dtype="float32", tie_word_embeddings=False).save_pretrained(tmp_path / "untied")
    tied, untied = (set(load_file(tmp_path / kind / "model.safetensors")) for kind in ("tied", "untied"))
    assert untied - tied == {DECODER, DECODER_BIAS}


def test_float64_is_saved_as_float64(tmp_path: Path) -> None:
    model = build("Data2VecTextModel")
    model.save_pretrained(tmp_path)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {np.dtype("float64")}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float64"


def test_saving_over_the_file_that_a_model_is_mapped_to(tmp_path: Path) -> None:
    build("Data2VecTextModel", dtype="float32", seed=1).save_pretrained(tmp_path)
    model = load(tmp_path)
    before = {name: value.copy() for name, value in model.state_dict().items()}
    build("Data2VecTextModel", dtype="float32", seed=2).save_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    model.save_pretrained(tmp_path)
    np.testing.assert_array_equal(load(tmp_path).state_dict()["pooler.dense.weight"], before["pooler.dense.weight"])


@pytest.mark.parametrize("fails", ["save_file", "replace"])
def test_an_interrupted_save_leaves_nothing(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Any, target: Any, *rest: Any) -> None:
        raise OSError(28, "No space left on device")

    if fails == "save_file":
        monkeypatch.setattr("safetensors.numpy.save_file", full)
    else:
        monkeypatch.setattr(writing.os, "replace", full)
    with pytest.raises(CheckpointError, match=r"model.safetensors: can't be written .got No space left on device"):
        build("Data2VecTextModel").save_pretrained(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupted_save_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("Data2VecTextModel", seed=1).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build("Data2VecTextModel", seed=2).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(CheckpointError, match=r"taken: can't be made a folder"):
        build("Data2VecTextModel").save_pretrained(tmp_path / "taken")


def test_a_model_without_weights_says_so(tmp_path: Path) -> None:
    for name in (*CLASSES, *audio_models.CLASSES):
        cls = getattr(d2v_ref, name)
        model = cls(audio_models.config_of(name) if "Audio" in name else config_of(name))
        for use in (lambda m=model: m([[0, 2]]), model.state_dict, lambda m=model: m.save_pretrained(tmp_path / "x"),
                    lambda m=model: m.record([[0, 2]]), lambda m=model: m.with_ops(Ops())):  # fmt: skip
            with pytest.raises(InputError, match=rf"{name} has no weights yet.*from_pretrained"):
                use()
        assert model.num_parameters() > 0  # names and shapes it has
    assert not (tmp_path / "x" / "model.safetensors").exists()


@pytest.mark.parametrize("name", audio_models.CLASSES)
def test_a_saved_audio_model_comes_back(name: str, tmp_path: Path) -> None:
    """With its lists of numbers, an adapter, and what other programs keep in its configuration."""
    changes: dict[str, Any] = {"ctc_loss_reduction": "mean", "other_programs": [1, {"a": "ü"}], "conv_bias": True}
    if name in audio_models.WEIGHTED:
        changes["use_weighted_layer_sum"] = True
    if name not in audio_models.NO_ADAPTER:
        changes["add_adapter"] = True
    model = audio_models.build(name, dtype="float32", **changes)
    model.save_pretrained(tmp_path / "folder")
    x = audio_models.samples()
    mask = audio_models.mask_of([150, 100], 150)
    for again in (type(model).from_pretrained(tmp_path / "folder"), load(str(tmp_path / "folder"))):
        assert type(again) is type(model)
        assert again.config.to_dict() | {"architectures": None} == {**model.config.to_dict(), "dtype": "float32"}
        assert again.config.conv_dim == [4, 6, 5]
        assert list(again.state_dict()) == list(model.state_dict())
        for key, value in again.state_dict().items():
            np.testing.assert_array_equal(value, model.state_dict()[key])
        got, want = (audio_models.main_output(one(x, mask)) for one in (again, model))
        np.testing.assert_array_equal(got, want)
        report = again.load_report
        assert (report.unused, report.fresh, report.absent, report.tied) == ({}, [], [], {})
        assert report.used.keys() == model.state_dict().keys()
    saved = json.loads((tmp_path / "folder" / "config.json").read_text(encoding="utf-8"))
    assert (saved["architectures"], saved["model_type"], saved["padding"]) == ([name], "data2vec-audio", "hf")
    assert saved["other_programs"] == [1, {"a": "ü"}]


@pytest.mark.parametrize("name", audio_models.CLASSES)
def test_exact_padding_is_asked_for_where_a_model_is_loaded(name: str, tmp_path: Path) -> None:
    audio_models.build(name, dtype="float64").save_pretrained(tmp_path / "hf")
    x, mask = audio_models.samples(), audio_models.mask_of([150, 100], 150)
    hf, exact = load(tmp_path / "hf", dtype="float64"), load(tmp_path / "hf", dtype="float64", padding="exact")
    a, b, alone = (audio_models.main_output(out)[-1] for out in (hf(x, mask), exact(x, mask), exact(x[1:, :100])))
    frames = slice(None) if alone.ndim == 1 else slice(len(alone))
    np.testing.assert_allclose(b[frames], alone, atol=1e-12)
    assert np.abs(a[frames] - alone).max() > 1e-3
    assert "padding=hf" in hf.load_report.quirks
    assert "quirk padding=hf: an utterance's output depends on the padding of its batch" in str(hf.load_report)
    assert "quirk padding=exact: an utterance's output is the one that it has alone" in str(exact.load_report)
    exact.save_pretrained(tmp_path / "exact")
    assert load(tmp_path / "exact").config.padding == "exact"  # and stays
    assert load(tmp_path / "exact", padding="hf").config.padding == "hf"
    with pytest.raises(ConfigError, match=r"config.json: unknown padding .got none; expected hf or exact"):
        load(tmp_path / "hf", padding="none")


@pytest.mark.parametrize("value", [True, False, None])
def test_a_setting_that_has_no_effect_is_reported(value: bool | None, tmp_path: Path) -> None:
    """That of the published configurations; where it is false nobody asks for anything."""
    model = audio_models.build(audio_models.BARE, dtype="float32", do_stable_layer_norm=value)
    plain = audio_models.build(audio_models.BARE, dtype="float32")
    x = audio_models.samples()
    np.testing.assert_array_equal(model(x).last_hidden_state, plain(x).last_hidden_state)
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert ("do_stable_layer_norm" in again.load_report.quirks) == bool(value)
    assert ("quirk do_stable_layer_norm: has no effect" in str(again.load_report)) == bool(value)
    again.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["do_stable_layer_norm"] is value


# ---- a head's checkpoint in a bare model, and the other way round


@pytest.mark.parametrize("name", audio_models.CLASSES[1:])
def test_audio_heads_and_bare_models_load_each_others_checkpoints(name: str, tmp_path: Path) -> None:
    cls, x = getattr(d2v_ref, name), audio_models.samples()
    bare = audio_models.build(audio_models.BARE, dtype="float32")
    bare.save_pretrained(tmp_path / "bare")
    saved = audio_models.build(name, dtype="float32")
    head = [key for key in saved.state_dict() if not key.startswith("data2vec_audio.")]
    with pytest.raises(
        CheckpointError, match=rf"{len(head)} of \d+ weights are missing .*{head[0]}.*init_missing=SEED"
    ):
        cls.from_pretrained(tmp_path / "bare")
    drawn = cls.from_pretrained(tmp_path / "bare", init_missing=1)
    assert drawn.load_report.fresh == head
    np.testing.assert_array_equal(
        drawn(x, output_hidden_states=True).hidden_states[-1], bare(x, output_hidden_states=True).hidden_states[-1]
    )
    saved.save_pretrained(tmp_path / "head")
    inner = d2v_ref.Data2VecAudioModel.from_pretrained(tmp_path / "head")
    np.testing.assert_array_equal(inner(x).last_hidden_state, saved(x, output_hidden_states=True).hidden_states[-1])
    report: Any = inner.load_report
    assert sorted(report.unused) == sorted(head)
    assert set(report.unused.values()) == {"Data2VecAudioModel has no weight of this name"}


def test_weights_of_audio_that_do_not_fit_are_named(tmp_path: Path) -> None:
    audio_models.build(audio_models.CTC, dtype="float32").save_pretrained(tmp_path)
    first = "data2vec_audio.feature_extractor.conv_layers.0.conv.weight"
    with pytest.raises(CheckpointError, match=rf"{first} has another shape .got .4, 1, 8.; expected .4, 1, 10."):
        load(tmp_path, conv_kernel=[10, 3, 2])
    position = "data2vec_audio.encoder.pos_conv_embed.layers.0.conv.weight"
    with pytest.raises(CheckpointError, match=rf"{position} has another shape .got .12, 3, 5.; expected .12, 12, 5."):
        load(tmp_path, num_conv_pos_embedding_groups=1)
    with pytest.raises(CheckpointError, match=r"3 of \d+ weights are missing .got no data2vec_audio.*conv.bias"):
        load(tmp_path, conv_bias=True)
    with pytest.raises(ConfigError, match="conv_dim, conv_stride, conv_kernel do not fit together"):
        load(tmp_path, conv_dim=[4, 6])
    unmasked = load(tmp_path, mask_time_prob=0.0)  # a model that never masks has no vector to mask with
    assert list(unmasked.load_report.unused) == ["data2vec_audio.masked_spec_embed"]
    shallow = load(tmp_path, num_conv_pos_embeddings=1)
    assert all("pos_conv_embed.layers.1" in name for name in shallow.load_report.unused)


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in ("Data2VecTextModel", *LANGUAGE_MODELS)])
def test_a_missing_head_is_an_error_or_drawn(name: str, tmp_path: Path) -> None:
    cls = getattr(d2v_ref, name)
    build("Data2VecTextModel", dtype="float32").save_pretrained(tmp_path)
    changes = cls.needs
    head = [key for key in build(name).state_dict() if not key.startswith("data2vec_text.")]
    with pytest.raises(
        CheckpointError, match=rf"{len(head)} of \d+ weights are missing .*{head[0]}.*init_missing=SEED"
    ):
        cls.from_pretrained(tmp_path, **changes)
    a, b, c = (cls.from_pretrained(tmp_path, init_missing=seed, **changes) for seed in (1, 1, 2))
    assert a.load_report.fresh == head
    for key, value in a.state_dict().items():
        np.testing.assert_array_equal(value, b.state_dict()[key])
        assert (key in head) == (not np.array_equal(value, c.state_dict()[key]))
    for key in head:
        assert f"fresh {key}: missing from the checkpoint" in str(a.load_report)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_language_head_that_is_drawn_is_tied_like_any_other(name: str, tmp_path: Path) -> None:
    cls = getattr(d2v_ref, name)
    build("Data2VecTextModel", dtype="float32").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"6 of \d+ weights are missing"):
        cls.from_pretrained(tmp_path, **cls.needs)
    model = cls.from_pretrained(tmp_path, init_missing=0, **cls.needs)
    assert model.load_report.tied == {DECODER: WORDS, DECODER_BIAS: BIAS}
    assert model.lm_head.decoder.bias is model.lm_head.bias
    assert DECODER_BIAS not in model.load_report.fresh
    untied = cls.from_pretrained(tmp_path, init_missing=0, tie_word_embeddings=False, **cls.needs)
    assert {DECODER, BIAS} <= set(untied.load_report.fresh)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_heads_checkpoint_in_the_bare_model(name: str, tmp_path: Path) -> None:
    saved = build(name, dtype="float32")
    saved.save_pretrained(tmp_path)
    bare = TextModel.from_pretrained(tmp_path)
    report = bare.load_report
    assert bare.pooler is None
    assert report.absent == ["pooler"]
    assert sorted(report.unused) == [BIAS, "lm_head.dense.bias", "lm_head.dense.weight", "lm_head.layer_norm.bias",
                                     "lm_head.layer_norm.weight"]  # fmt: skip
    assert set(report.unused.values()) == {"Data2VecTextModel has no weight of this name"}
    assert report.used["embeddings.word_embeddings.weight"] == WORDS
    ids = token_ids(name)
    np.testing.assert_array_equal(bare(ids).last_hidden_state, saved(ids, output_hidden_states=True).hidden_states[-1])
    assert "pooler_output" not in bare(ids)
    for line in (f"unused {BIAS}: ", "left out pooler: ", "5 unused"):
        assert line in str(report)
    with pytest.raises(CheckpointError, match=r"2 of \d+ weights are missing .got no pooler.dense.weight"):
        TextModel.from_pretrained(tmp_path, add_pooling_layer=True)
    drawn = TextModel.from_pretrained(tmp_path, init_missing=3)
    assert drawn.load_report.fresh == ["pooler.dense.weight", "pooler.dense.bias"]
    assert not drawn.load_report.absent


def test_a_pooler_that_is_there_can_be_left_out(tmp_path: Path) -> None:
    build("Data2VecTextModel", dtype="float32").save_pretrained(tmp_path)
    model = TextModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert sorted(model.load_report.unused) == ["pooler.dense.bias", "pooler.dense.weight"]
    assert model.load_report.absent == []
    assert model.with_ops(Ops("float64")).pooler is None
    with pytest.raises(ConfigError, match="add_pooling_layer"):  # not an argument of this class, nor a setting
        MultipleChoice.from_pretrained(tmp_path, add_pooling_layer=False)


def test_a_bare_checkpoint_of_the_whole_model_with_a_pooler_head(tmp_path: Path) -> None:
    bare = build("Data2VecTextModel", dtype="float32")
    bare.save_pretrained(tmp_path)
    model = MultipleChoice.from_pretrained(tmp_path, init_missing=0)
    assert model.load_report.fresh == ["classifier.weight", "classifier.bias"]
    np.testing.assert_array_equal(model.data2vec_text.pooler.dense.weight, bare.pooler.dense.weight)


# ---- ties


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(
    ("left_out", "tied_if_tied"),
    [
        ([DECODER, DECODER_BIAS], {DECODER: WORDS, DECODER_BIAS: BIAS}),
        ([DECODER, BIAS], {DECODER: WORDS, BIAS: DECODER_BIAS}),
        ([WORDS, BIAS], {WORDS: DECODER, BIAS: DECODER_BIAS}),
        ([WORDS, DECODER_BIAS], {WORDS: DECODER, DECODER_BIAS: BIAS}),
        ([], {DECODER: WORDS, DECODER_BIAS: BIAS}),
    ],
)
def test_either_name_of_a_tied_weight_serves(
    tie: bool, left_out: list[str], tied_if_tied: dict[str, str], tmp_path: Path
) -> None:
    weights = weights_of("Data2VecTextForMaskedLM")
    folder = write(tmp_path, {name: value for name, value in weights.items() if name not in left_out},
                   tie_word_embeddings=tie)  # fmt: skip
    matrices = [name for name in left_out if name in (WORDS, DECODER)]
    if not tie and matrices:
        with pytest.raises(CheckpointError, match=rf"1 of \d+ weights are missing .got no {matrices[0]}"):
            MaskedLM.from_pretrained(folder)
        return
    model = MaskedLM.from_pretrained(folder)
    assert model.load_report.tied == (tied_if_tied if tie else {})
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, weights[name])


@pytest.mark.parametrize(("left_out", "kept"), [(BIAS, DECODER_BIAS), (DECODER_BIAS, BIAS)])
def test_a_bias_under_one_name_serves_untied_models_too(left_out: str, kept: str, tmp_path: Path) -> None:
    weights = weights_of("Data2VecTextForMaskedLM", tie_word_embeddings=False)
    folder = write(tmp_path, {name: value for name, value in weights.items() if name != left_out},
                   tie_word_embeddings=False)  # fmt: skip
    model = MaskedLM.from_pretrained(folder)
    assert model.load_report.tied == {left_out: kept}
    np.testing.assert_array_equal(model.state_dict()[left_out], weights[kept])


def test_names_with_different_values_stay_two(tmp_path: Path) -> None:
    weights = weights_of("Data2VecTextForMaskedLM")
    weights[DECODER] = weights[DECODER] + 1
    weights[DECODER_BIAS] = weights[DECODER_BIAS] + 1
    for again in ("given", "saved"):
        model = MaskedLM.from_pretrained(write(tmp_path / again, weights))
        assert model.load_report.tied == {}
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(value, weights[name])
        model.save_pretrained(tmp_path / "saved")


def test_the_decoder_computes_with_decoder_bias() -> None:
    """lm_head.bias is its other name: what it holds where the two differ changes nothing."""
    weights = weights_of("Data2VecTextForMaskedLM")
    config, ids = config_of("Data2VecTextForMaskedLM"), token_ids("Data2VecTextForMaskedLM")
    logits = [MaskedLM(config, {**weights, name: weights[name] + 1})(ids).logits for name in (BIAS, DECODER_BIAS)]
    np.testing.assert_allclose(logits[1] - logits[0], 1, atol=1e-5)


# ---- what files hold


def test_tables_that_files_carry_are_ignored_for_a_reason(tmp_path: Path) -> None:
    weights = weights_of("Data2VecTextModel")
    tables = {f"embeddings.{name}": np.arange(20)[None] for name in ("position_ids", "token_type_ids")}
    model = load(write(tmp_path, {**weights, **tables}, architectures=["Data2VecTextModel"]))
    assert list(model.load_report.unused) == list(tables)
    assert all("older transformers versions saved" in why for why in model.load_report.unused.values())
    other = {**weights, "embeddings.position_ids_of_mine": np.zeros(1)}
    model = load(write(tmp_path, other, architectures=["Data2VecTextModel"]))
    assert model.load_report.unused == {
        "embeddings.position_ids_of_mine": "Data2VecTextModel has no weight of this name"
    }


@pytest.mark.parametrize("stored", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("dtype", Ops.dtypes)
def test_weights_of_every_floating_type_are_converted_exactly(stored: str, dtype: str, tmp_path: Path) -> None:
    weights = weights_of("Data2VecTextModel")
    write(tmp_path, weights, architectures=["Data2VecTextModel"])
    if stored == "bfloat16":  # the upper halves of float32's bits; NumPy has no name for it
        halves = {name: (value.view(np.uint32) >> 16).astype(np.uint16) for name, value in weights.items()}
        header = {}
        data = b""
        for name, bits in halves.items():
            header[name] = {
                "dtype": "BF16",
                "shape": list(bits.shape),
                "data_offsets": [len(data), len(data) + bits.nbytes],
            }
            data += bits.tobytes()
        text = json.dumps(header).encode()
        (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
        want = {name: (bits.astype(np.uint32) << 16).view(np.float32) for name, bits in halves.items()}
    else:
        want = {name: value.astype(stored) for name, value in weights.items()}
        save_file(want, tmp_path / "model.safetensors")
    model = load(tmp_path, dtype=dtype)
    for name, value in model.state_dict().items():
        assert value.dtype == dtype
        np.testing.assert_array_equal(value, want[name].astype(dtype))
    assert main_output(model(token_ids("Data2VecTextModel"))).dtype == dtype


def test_a_wrong_shape_or_integers_are_named(tmp_path: Path) -> None:
    weights = weights_of("Data2VecTextModel")
    with pytest.raises(
        CheckpointError, match=r"word_embeddings.weight has another shape .got .19, 12.; expected .20, 12."
    ):
        TextModel.from_pretrained(write(tmp_path, weights, vocab_size=20))
    for bad in ("int32", "bool", "uint8"):
        broken = {**weights, "pooler.dense.bias": np.zeros(12, bad)}
        with pytest.raises(CheckpointError, match=rf"pooler.dense.bias is not floating-point .got {bad}") as caught:
            TextModel.from_pretrained(write(tmp_path, broken))
        assert str(tmp_path) in str(caught.value)
    with pytest.raises(CheckpointError, match=r"^given weights: .* has another shape"):
        TextModel(config_of("Data2VecTextModel", vocab_size=20), weights)


def test_missing_weights_are_named_and_counted(tmp_path: Path) -> None:
    weights = weights_of("Data2VecTextModel")
    for name in [name for name in weights if "layer.1." in name]:
        del weights[name]
    words = r"16 of 39 weights are missing .got no encoder.layer.1.attention.self.query.weight, .* and 13 more"
    with pytest.raises(CheckpointError, match=words):
        TextModel.from_pretrained(write(tmp_path, weights))
    with pytest.raises(CheckpointError, match=r"39 of 39 weights are missing"):
        TextModel(config_of("Data2VecTextModel"), {})
    fewer = TextModel.from_pretrained(write(tmp_path, weights), num_hidden_layers=1)
    assert not fewer.load_report.unused


def test_weights_are_given_as_arrays_too() -> None:
    weights = weights_of("Data2VecTextModel")
    model = TextModel(config_of("Data2VecTextModel"), weights, dtype="float64")
    assert model.load_report.origin == "given weights"
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, weights[name].astype(np.float64))


# ---- choosing the class, the configuration


@pytest.mark.parametrize(
    "architectures",
    [
        None,
        [],
        ["BertModel"],
        ["Data2VecTextModel", "Data2VecTextForMaskedLM"],
        "Data2VecTextModel",
        [["x"]],
        [None],
        3,
    ],
)
def test_architectures_that_name_no_model_here(architectures: Any, tmp_path: Path) -> None:
    write(tmp_path, weights_of("Data2VecTextModel"), architectures=architectures)
    with pytest.raises(ConfigError, match="architectures names no model that is known here") as caught:
        load(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    if architectures is None or (isinstance(architectures, list) and all(isinstance(x, str) for x in architectures)):
        assert isinstance(TextModel.from_pretrained(tmp_path), PreTrainedModel)  # the class does not mind


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    cases: list[tuple[type[D2VError], str, Any]] = [
        (CheckpointError, "there is no such folder", tmp_path / "nothing"),
        (ConfigError, "config.json: can't be read: No such file", tmp_path),
    ]
    for loading in (load, TextModel.from_pretrained):
        for error, words, folder in cases:
            with pytest.raises(error, match=words):
                loading(folder)
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "architectures": ["Data2VecTextModel"]}))
    with pytest.raises(CheckpointError, match="holds no weights"):
        load(tmp_path)


def test_a_configuration_is_given_or_changed_not_both(tmp_path: Path) -> None:
    folder = write(tmp_path, weights_of("Data2VecTextModel"), architectures=["Data2VecTextModel"])
    given: Config = config_of("Data2VecTextModel", output_hidden_states=True)
    assert load(folder, config=given).config is given
    changed = load(folder, output_hidden_states=True, num_labels=4)
    assert (changed.config.output_hidden_states, changed.config.num_labels) == (True, 4)
    with pytest.raises(ConfigError, match=r"settings were given beside a config .got is_decoder, num_labels"):
        load(folder, config=given, is_decoder=True, num_labels=3)
    assert load(folder, config=given, add_pooling_layer=False).pooler is None  # no setting but an argument
    with pytest.raises(ConfigError, match=r"no setting of this name .got local_file_only"):
        load(folder, local_file_only=True)


def test_question_answering_needs_two_labels(tmp_path: Path) -> None:
    build("Data2VecTextForQuestionAnswering").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"scores a start and an end .got 3 labels; expected 2"):
        load(tmp_path, num_labels=3)


# ---- the same model elsewhere, its size


@pytest.mark.parametrize("name", CLASSES)
def test_with_ops_is_the_same_model_computed_by_others(name: str) -> None:
    class Negative(Ops):
        def tanh(self, x: Any) -> Any:
            return -super().tanh(x)

    model = build(name, dtype="float32")
    ids = token_ids(name)
    again = model.with_ops(Ops("float64"))
    assert again.config is model.config
    assert [key for key, *_ in again.named_parameters()] == [key for key, *_ in model.named_parameters()]
    got = main_output(again(ids))
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, main_output(model(ids)), atol=1e-4)
    assert main_output(model(ids)).dtype == np.float32  # as it was
    other = model.with_ops(Negative())(ids)
    tanh = name.endswith(("Model", "Choice", "SequenceClassification"))
    key = "pooler_output" if name == "Data2VecTextModel" else "logits" if "logits" in other else "start_logits"
    assert np.array_equal(other[key], model(ids)[key]) != tanh


@pytest.mark.parametrize("name", audio_models.CLASSES)
def test_with_ops_is_the_same_audio_model_computed_by_others(name: str) -> None:
    class Open(Ops):
        def gelu(self, x: Any) -> Any:
            return x

    model, x = audio_models.build(name, dtype="float32", seed=3), audio_models.samples()
    again = model.with_ops(Ops("float64"))
    assert again.config is model.config
    got, want = audio_models.main_output(again(x)), audio_models.main_output(model(x))
    assert (got.dtype, want.dtype) == (np.float64, np.float32)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert np.abs(audio_models.main_output(model.with_ops(Open())(x)) - want).max() > 1e-3


def base_parameters(vocabulary: int = 50265, positions: int = 514, types: int = 1, d: int = 768, f: int = 3072) -> int:
    """Tables and their LayerNorm; 12 layers of q, k, v, output and their LayerNorm, two linears and theirs."""
    tables = (vocabulary + positions + types) * d + 2 * d
    layer = 4 * (d * d + d) + 2 * d + (d * f + f) + (f * d + d) + 2 * d
    return tables + 12 * layer


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("Data2VecTextModel", 768 * 768 + 768),
        ("Data2VecTextForMaskedLM", 768 * 768 + 768 + 2 * 768 + 50265),  # the decoder's matrix is the embeddings'
        ("Data2VecTextForCausalLM", 768 * 768 + 768 + 2 * 768 + 50265),
        ("Data2VecTextForSequenceClassification", 768 * 768 + 768 + 768 * 2 + 2),
        ("Data2VecTextForMultipleChoice", 768 * 768 + 768 + 768 + 1),
        ("Data2VecTextForTokenClassification", 768 * 2 + 2),
        ("Data2VecTextForQuestionAnswering", 768 * 2 + 2),
    ],
)
def test_the_base_model_has_as_many_numbers_as_published(name: str, head: int) -> None:
    cls = getattr(d2v_ref, name)
    config = cls.config_class(**cls.config_class.sizes["base"], **cls.needs)
    assert cls(config).num_parameters() == base_parameters() + head
    assert base_parameters() == 124_055_040  # RoBERTa base without its pooler
    untied = cls.config_class(**cls.config_class.sizes["base"], **cls.needs, tie_word_embeddings=False)
    twice = 50265 * 768 + 50265 if name in LANGUAGE_MODELS else 0
    assert cls(untied).num_parameters() == base_parameters() + head + twice


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("Data2VecAudioModel", 0),
        ("Data2VecAudioForCTC", 768 * 32 + 32),
        ("Data2VecAudioForSequenceClassification", 768 * 256 + 256 + 256 * 2 + 2),
        ("Data2VecAudioForAudioFrameClassification", 768 * 2 + 2),
        (
            "Data2VecAudioForXVector",
            (768 * 512 + 512)
            + (512 * (5 + 3 + 3 + 1) * 512 + 4 * 512 + 512 * 1500 + 1500)
            + (3000 * 512 + 512 + 512 * 512 + 512 + 512 * 2),
        ),
    ],
)
def test_the_base_audio_model_has_as_many_numbers_as_published(name: str, head: int) -> None:
    convolutions = 512 * (10 + 512 * (4 * 3 + 2 * 2)) + 7 * 2 * 512
    projection = 2 * 512 + 512 * 768 + 768 + 768  # and the vector of masked frames
    positions = 5 * (768 * 48 * 19 + 768) + 2 * 768
    layer = 4 * (768 * 768 + 768) + 2 * 2 * 768 + 2 * 768 * 3072 + 3072 + 768
    cls = getattr(d2v_ref, name)
    model = cls(cls.config_class(**cls.config_class.sizes["base"]))
    assert model.num_parameters() == convolutions + projection + positions + 12 * layer + head


def test_state_dict_has_what_num_parameters_counts() -> None:
    for name in (*CLASSES, *audio_models.CLASSES):
        model = audio_models.build(name) if "Audio" in name else build(name)
        arrays = {id(value): value.size for value in model.state_dict().values()}
        assert model.num_parameters() == sum(arrays.values())


# ---- vision


@pytest.mark.parametrize("name", vision_models.CLASSES)
def test_a_saved_vision_model_comes_back(name: str, tmp_path: Path) -> None:
    model, x = vision_models.build(name, dtype="float32", pooler=False), vision_models.pictures()
    model.save_pretrained(tmp_path)
    again: Any = d2v_ref.load(tmp_path)
    assert type(again) is type(model)
    assert again.config.to_dict() == {**model.config.to_dict(), "architectures": [name], "dtype": "float32"}
    got, want = (vision_models.main_output(one(x)) for one in (again, model))
    np.testing.assert_array_equal(got, want)
    assert not again.load_report.unused


def test_a_segmentation_head_under_its_older_names(tmp_path: Path) -> None:
    model = vision_models.build(vision_models.SEGMENTER, dtype="float32", auxiliary_concat_input=True)
    model.save_pretrained(tmp_path)
    weights = {vision_models.older(key): value for key, value in load_file(tmp_path / "model.safetensors").items()}
    assert {"decode_head.psp_modules.0.1.conv.weight", "decode_head.bottleneck.bn.running_var"} <= set(weights)
    assert not any("convolution" in key or "normalization" in key for key in weights)
    extra = {
        "decode_head.bottleneck.bn.num_batches_tracked": np.array(7),
        "data2vec_vision.encoder.relative_position_bias.relative_position_index": np.zeros((10, 10), np.int64),
    }
    save_file({**weights, **extra}, tmp_path / "model.safetensors")
    again: Any = d2v_ref.load(tmp_path)
    x = vision_models.pictures()
    np.testing.assert_array_equal(again(x).logits, model(x).logits)
    report = again.load_report
    assert report.unused == {
        "decode_head.bottleneck.bn.num_batches_tracked": "a count of training steps",
        "data2vec_vision.encoder.relative_position_bias.relative_position_index": "a table that follows from the size "
        "of the picture",
    }
    assert report.used["decode_head.psp_bottleneck.convolution.weight"] == "decode_head.bottleneck.conv.weight"
    assert not report.fresh
    # Both names of one weight: neither is chosen in silence.
    twice = {**weights, "decode_head.psp_bottleneck.convolution.weight": weights["decode_head.bottleneck.conv.weight"]}
    save_file(twice, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"psp_bottleneck.convolution.weight is there twice .got .* and "):
        d2v_ref.load(tmp_path)


@pytest.mark.parametrize("name", vision_models.CLASSES[1:])
def test_vision_heads_and_bare_models_load_each_others_checkpoints(name: str, tmp_path: Path) -> None:
    cls, bare, x = getattr(d2v_ref, name), d2v_ref.Data2VecVisionModel, vision_models.pictures()
    vision_models.build(vision_models.BARE, dtype="float32", pooler=False).save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match="weights are missing"):
        cls.from_pretrained(tmp_path / "bare")
    drawn = cls.from_pretrained(tmp_path / "bare", init_missing=1, num_labels=3)
    assert drawn.load_report.fresh
    assert not any("encoder" in key for key in drawn.load_report.fresh)
    drawn.save_pretrained(tmp_path / "head")
    inner: Any = bare.from_pretrained(tmp_path / "head")
    want = bare.from_pretrained(tmp_path / "bare")
    np.testing.assert_array_equal(inner(x).last_hidden_state, want(x).last_hidden_state)
    assert set(inner.load_report.unused.values()) == {"Data2VecVisionModel has no weight of this name"}


def test_the_pooler_of_a_vision_model_is_asked_for(tmp_path: Path) -> None:
    bare, x = d2v_ref.Data2VecVisionModel, vision_models.pictures()
    model = vision_models.build(vision_models.BARE, dtype="float32")
    model.save_pretrained(tmp_path / "with")
    vision_models.build(vision_models.BARE, dtype="float32", pooler=False).save_pretrained(tmp_path / "without")
    assert bare.from_pretrained(tmp_path / "with").pooler is None
    pooled = bare.from_pretrained(tmp_path / "with", add_pooling_layer=True)
    np.testing.assert_array_equal(pooled(x).pooler_output, model(x).pooler_output)
    assert bare.from_pretrained(tmp_path / "without").pooler is None
    with pytest.raises(CheckpointError, match=r"2 of \d+ weights are missing .got no pooler.layernorm"):
        bare.from_pretrained(tmp_path / "without", add_pooling_layer=True)
    token: Any = bare.from_pretrained(tmp_path / "without", add_pooling_layer=True, init_missing=0)
    assert len(token.load_report.fresh) == 2
