"""Two checkpoints held against each other: every form of weights, every kind of difference, the command's answers."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import text_models
import vision_models
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_cli import _config, _cut, _here, _weights, d2v, disk, refused  # noqa: F401 - a fixture

from d2v_ref import ConfigError, InputError
from d2v_ref.audit import diff as diffs
from d2v_ref.audit.diff import (
    BITS,
    ONLY_A,
    ONLY_B,
    OTHER,
    SHAPE,
    VALUES,
    Checkpoint,
    Difference,
    diff_outputs,
    diff_settings,
    diff_weights,
)
from d2v_ref.checkpoints import Tensor, read_safetensors, write_safetensors

MASKED, BARE, QUESTIONS = "Data2VecTextForMaskedLM", "Data2VecTextModel", "Data2VecTextForQuestionAnswering"
DENSE = "data2vec_text.encoder.layer.1.intermediate.dense.weight"


def tensor(x: Any, dtype: str | None = None) -> Tensor:
    x = np.asarray(x)
    return Tensor(x, dtype or x.dtype.name, Path("file"))


def compared(a: Any, b: Any) -> Difference:
    return diffs._difference("x", tensor(a), tensor(b))


def save(name: str, folder: str, **options: Any) -> Path:
    text_models.build(name, dtype="float32", **options).save_pretrained(folder)
    return Path(folder)


def weights_of(a: Path | str, b: Path | str) -> dict[str, Difference]:
    return {row.name: row for row in diff_weights(Checkpoint.open(Path(a)), Checkpoint.open(Path(b)))}


# ---- two arrays -----------------------------------------------------------------------------------------------------

FLOATS = st.sampled_from(["float16", "float32", "float64"])


@settings(max_examples=200)
@given(data=st.data(), piece=st.sampled_from([1, 7, 1 << 20]))
def test_numbers_are_compared_as_one_array_whatever_the_pieces(data: st.DataObject, piece: int) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    elements = st.floats(-100, 100, width=16)
    a, b = (data.draw(hnp.arrays(data.draw(FLOATS), shape, elements=elements)) for _ in range(2))
    with mock.patch.object(diffs, "_PIECE", piece):
        row = compared(a, b)
    x, y = a.astype(np.float64), b.astype(np.float64)
    off = np.abs(x - y)
    assert row.absolute == off.max(initial=0)
    assert row.rms == pytest.approx(np.linalg.norm(off) / math.sqrt(max(off.size, 1)))
    largest = np.maximum(np.abs(x), np.abs(y))
    assert row.relative == pytest.approx(np.divide(off, largest, where=off > 0, out=np.zeros(shape)).max(initial=0))
    assert row.relative is not None
    assert 0 <= row.relative <= 2
    lengths = np.linalg.norm(x) * np.linalg.norm(y)
    assert (row.cosine is None) == (lengths == 0)
    if row.cosine is not None:
        assert row.cosine == pytest.approx(float((x * y).sum() / lengths), abs=1e-12)
    bits = a.dtype == b.dtype and a.tobytes() == b.tobytes()
    assert row.status == (BITS if bits else VALUES if np.array_equal(x, y) else OTHER)
    assert row.equal == (np.array_equal(x, y) and a.dtype == b.dtype)


def test_what_is_equal_and_what_is_not() -> None:
    one, nan, inf = np.array([[1.0, 2.0]]), math.nan, math.inf
    single = one.astype(np.float32)
    assert compared(one, one).status == BITS
    assert compared([0.0], [-0.0]).status == VALUES
    assert compared([0.0], [-0.0]).equal
    assert compared([nan, inf, -inf], [nan, inf, -inf]).status == BITS
    assert compared(single, one).status == VALUES
    assert not compared(single, one).equal
    for a, b in (([nan], [1.0]), ([inf], [1.0]), ([inf], [-inf]), ([1.0], [nan])):
        row = compared(a, b)
        assert (row.status, row.absolute, row.relative, row.cosine) == (OTHER, inf, inf, None)
    assert compared([1, 2**60], [1, 2**60 + 1]).status == OTHER  # equal as floating-point numbers
    assert compared([[1.0]], [1.0]).status == SHAPE
    assert compared([[1.0]], [1.0]).absolute is None
    half = diffs._difference("x", tensor(np.array([0x3F80], np.uint16), "bfloat16"), tensor(single[0, :1]))
    assert (half.status, half.dtypes, half.equal) == (VALUES, ("bfloat16", "float32"), False)
    assert compared([1.0, 2.0], [-1.0, -2.0]).cosine == pytest.approx(-1)


# ---- two checkpoints ------------------------------------------------------------------------------------------------


def test_a_weight_that_is_changed_is_named(tmp_path: Path) -> None:
    save(MASKED, "a")
    shutil.copytree("a", "b")
    _weights(lambda arrays: arrays[DENSE].__setitem__((3, 4), arrays[DENSE][3, 4] + 0.5))(Path("b"))
    rows = weights_of("a", "b")
    assert [row.name for row in rows.values() if row.status != BITS] == [DENSE]
    assert rows[DENSE].absolute == pytest.approx(0.5)
    assert rows[DENSE].rms == pytest.approx(0.5 / math.sqrt(120))
    result = d2v("diff", "a", "b")
    assert (result.code, result.err) == (1, "")
    assert f"1 {OTHER}" in result.out
    assert any(line.startswith("  5.00e-01") and line.endswith(DENSE) for line in result.out.splitlines())


def test_the_same_model_in_every_form_of_files(tmp_path: Path) -> None:
    """One file and shards hold the same weights, and names of older versions are the same names."""
    model = vision_models.build(vision_models.SEGMENTER, dtype="float32")
    model.save_pretrained("a")
    arrays = {name: value.numpy() for name, value in read_safetensors(Path("a/model.safetensors")).items()}
    shutil.copytree("a", "old")
    write_safetensors(Path("old/model.safetensors"), {vision_models.older(name): x for name, x in arrays.items()})
    shutil.copytree("a", "shards")
    Path("shards/model.safetensors").unlink()
    halves = {"one.safetensors": list(arrays)[::2], "two.safetensors": list(arrays)[1::2]}
    for file, names in halves.items():
        write_safetensors(Path("shards", file), {name: arrays[name] for name in names})
    index = {"weight_map": {name: file for file, names in halves.items() for name in names}}
    Path("shards/model.safetensors.index.json").write_text(json.dumps(index))
    assert read_safetensors(Path("old/model.safetensors")).keys() != arrays.keys()
    for other in ("old", "shards"):
        rows = weights_of("a", other)
        assert {row.status for row in rows.values()} == {BITS}
        assert rows.keys() == arrays.keys()
        assert d2v("diff", "a", other).code == d2v("diff", other, "a").code == 0


def test_a_bare_model_and_one_with_a_head(tmp_path: Path) -> None:
    bare = text_models.build(BARE, dtype="float32")
    bare.save_pretrained("bare")
    head = text_models.build(MASKED, dtype="float32", seed=4)
    own = bare.state_dict()
    weights = {name: own.get(name.removeprefix("data2vec_text."), x) for name, x in head.state_dict().items()}
    head = type(head)(head.config, weights)
    head.save_pretrained("head")
    for a, b, only, other in (("head", "bare", ONLY_A, ONLY_B), ("bare", "head", ONLY_B, ONLY_A)):
        rows = weights_of(a, b)
        missing = {name for name, row in rows.items() if row.status == only}
        assert missing
        assert all("lm_head." in name for name in missing)
        poolers = {name for name, row in rows.items() if row.status == other}
        assert poolers
        assert all("pooler." in name for name in poolers)
        assert {row.status for name, row in rows.items() if name not in missing | poolers} == {BITS}
    np.savez("ids.npz", input_ids=text_models.token_ids(MASKED))
    found = json.loads(d2v("diff", "head", "bare", "ids.npz", "--json").out)
    assert found["first"] is None  # all that both compute is the same
    shared = {row["name"] for row in found["outputs"] if row["status"] == BITS}
    assert {"embeddings", "encoder.layer.1", "#last_hidden_state"} <= shared


def test_tied_weights_under_one_name_or_two() -> None:
    save(MASKED, "a")
    shutil.copytree("a", "b")
    assert "lm_head.decoder.weight" not in weights_of("a", "b")  # as neither file has it
    words = "data2vec_text.embeddings.word_embeddings.weight"
    _weights(lambda arrays: arrays.update({"lm_head.decoder.weight": arrays[words].copy()}))(Path("b"))
    for a, b in (("a", "b"), ("b", "a")):
        rows = weights_of(a, b)
        assert rows["lm_head.decoder.weight"].status == BITS
        assert all(row.equal for row in rows.values())
    _weights(lambda arrays: arrays["lm_head.decoder.weight"].__iadd__(1))(Path("b"))
    assert [row.name for row in weights_of("a", "b").values() if not row.equal] == ["lm_head.decoder.weight"]
    assert [row.name for row in weights_of("b", "a").values() if not row.equal] == ["lm_head.decoder.weight"]


def test_without_tying_two_names_are_two_weights() -> None:
    for folder in ("a", "b"):
        save(MASKED, folder, tie_word_embeddings=False)
    _weights(lambda arrays: arrays.pop("lm_head.decoder.weight"))(Path("b"))
    rows = weights_of("a", "b")
    assert [row.name for row in rows.values() if row.status == ONLY_A] == ["lm_head.decoder.weight"]


def test_shapes_and_dtypes() -> None:
    save(MASKED, "a")
    save(MASKED, "b", vocab_size=23)
    rows = weights_of("a", "b")
    words = rows["data2vec_text.embeddings.word_embeddings.weight"]
    assert (words.status, words.shapes) == (SHAPE, ((19, 12), (23, 12)))
    shutil.copytree("a", "half")
    _weights(lambda arrays: arrays.update({DENSE: arrays[DENSE].astype(np.float16)}))(Path("half"))
    row = weights_of("a", "half")[DENSE]
    assert (row.status, row.dtypes) == (OTHER, ("float32", "float16"))
    said = d2v("diff", "a", "half")
    assert said.code == 1
    assert ", 1 float32 in A and float16 in B" in said.out
    assert f"{DENSE} (float32, float16)" in said.out
    _weights(lambda arrays: arrays.update({name: x.astype(np.float16) for name, x in arrays.items()}))(Path("half"))
    said = d2v("diff", "a", "half")
    assert f", {len(rows)} float32 in A and float16 in B" in said.out
    assert "(float32, float16)" not in said.out
    said = d2v("diff", "a", "b")
    assert "other shape (19, 12), (23, 12)" in said.out
    assert "vocab_size: A 19, B 23" in said.out


def test_settings_are_compared_with_their_defaults() -> None:
    save(MASKED, "a")
    shutil.copytree("a", "b")
    path = Path("b/config.json")
    values = json.loads(path.read_text())
    del values["hidden_dropout_prob"]  # 0.1 is the default
    path.write_text(json.dumps({**values, "layer_norm_eps": 1e-12, "note": "x"}))
    a, b = (Checkpoint.open(Path(folder)) for folder in "ab")
    assert diff_settings(a, b) == {"layer_norm_eps": (1e-5, 1e-12), "note": (None, "x")}
    result = d2v("diff", "a", "b")
    assert (result.code, result.out.splitlines()[2:5]) == (
        1,
        ["settings: 2 differ", "  layer_norm_eps: A 1e-05, B 1e-12", '  note: A null, B "x"'],
    )


def test_models_of_different_kinds() -> None:
    save(MASKED, "a")
    vision_models.build(vision_models.BARE, dtype="float32").save_pretrained("b")
    refused("diff", "a", "b", says="models of different kinds can't be compared (got data2vec-text and data2vec-vision")
    a, b = (Checkpoint.open(Path(folder)) for folder in "ab")
    with pytest.raises(ConfigError, match="different kinds"):
        diff_settings(a, b)


def test_weights_are_compared_a_piece_at_a_time() -> None:
    """However large they are: neither of the two is ever held as a whole."""
    import tracemalloc

    save(MASKED, "a", vocab_size=60_000)
    shutil.copytree("a", "b")
    Checkpoint.open(Path("a"))
    with mock.patch.object(diffs, "_PIECE", 1 << 12):
        tracemalloc.start()
        rows = weights_of("a", "b")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert {row.status for row in rows.values()} == {BITS}
    assert peak < Path("a/model.safetensors").stat().st_size / 2


# ---- outputs --------------------------------------------------------------------------------------------------------


def test_the_first_output_that_differs() -> None:
    """Everything before it is the same, and it is the one whose weight was changed."""
    a = text_models.build(MASKED, dtype="float32")
    weights = {name: x.copy() for name, x in a.state_dict().items()}
    weights[DENSE][0] += 1
    b = type(a)(a.config, weights, backend=a.ops)
    arrays = {"input_ids": text_models.token_ids(MASKED)}
    found = diffs.Diff({}, [], diff_outputs(a, b, arrays))
    names = [row.name for row in found.outputs]
    assert found.first is not None
    assert found.first.name == "encoder.layer.1.intermediate.dense"
    at = names.index(found.first.name)
    assert {row.status for row in found.outputs[:at]} == {BITS}
    assert {row.status for row in found.outputs[at:]} == {OTHER}
    taps = a.record(**arrays)[1]
    assert names == [re.sub(r"^data2vec_text(\.|(?=#))", "", name) for name in taps]
    assert all(row.equal for row in diff_outputs(a, a, arrays))


def test_an_input_that_only_one_of_them_takes() -> None:
    save(MASKED, "a", vocab_size=30)
    save(MASKED, "b")
    np.savez("ids.npz", input_ids=[[25]])
    refused("diff", "a", "b", "ids.npz", says="B does not take the input that A takes: input_ids is out of range")
    refused("diff", "b", "a", "ids.npz", says="error: input_ids is out of range")
    save(BARE, "bare")
    np.savez("labels.npz", input_ids=[[5]], labels=[[5]])
    refused("diff", "b", "bare", "labels.npz", says="takes no array of this name (got labels")
    model = text_models.build(BARE)
    with pytest.raises(InputError, match="out of range"):
        diff_outputs(model, model, {"input_ids": np.array([[99]])})


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> None:
    """Two checkpoints of one class."""
    assert d2v("synth", QUESTIONS, "a").code == d2v("synth", QUESTIONS, "b", "--seed", "1").code == 0


def test_equal_checkpoints(pair: None) -> None:
    shutil.copytree("a", "c")
    said = d2v("diff", "a", "c", "Some text.", "--html", "page.html")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[:4] == ["A a", "B c", "settings: equal", "weights: 39 equal bits"]
    assert lines[4].startswith("outputs: ")
    assert lines[4].endswith(" equal bits")
    assert len(lines) == 5
    assert "Nothing differs." in Path("page.html").read_text()
    found = json.loads(d2v("diff", "a", "c", "--json").out)
    assert found["equal"] is True
    assert found["outputs"] == []


def test_json_and_page_hold_everything(pair: None) -> None:
    said = d2v("diff", "a", "b", "Some text.", "--json", "--html", "page.html")
    assert (said.code, said.err) == (1, "")
    found = json.loads(said.out)
    assert found["equal"] is False
    assert found["first"] == "embeddings.word_embeddings"
    page = Path("page.html").read_text()
    for row in (*found["weights"], *found["outputs"]):
        assert f"<td>{row['name']}</td>" in page
        assert row["status"] == OTHER
        assert 0 < row["relative"] <= 2
        assert -1 <= row["cosine"] <= 1
    text = d2v("diff", "a", "b", "Some text.").out
    assert "... and 27 more" in text
    assert text.splitlines()[-1] == "the first output that differs: embeddings.word_embeddings"
    assert max(map(len, text.splitlines())) <= 120


def test_numbers_that_are_not_finite_are_null(pair: None) -> None:
    name = "qa_outputs.bias"
    _weights(lambda arrays: arrays[name].fill(np.inf))(Path("b"))
    found = json.loads(d2v("diff", "a", "b", "--json").out)
    row = next(row for row in found["weights"] if row["name"] == name)
    assert (row["absolute"], row["relative"], row["rms"], row["cosine"]) == (None, None, None, None)


def test_the_class_of_both(pair: None) -> None:
    found = json.loads(d2v("diff", "a", "b", "Some text.", "--class", BARE, "--json").out)
    assert [row["name"] for row in found["outputs"]][-1] == "#last_hidden_state"  # and no head's
    refused("diff", "a", "a", "--class", "Nope", says="no model of this name")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_cut("model.safetensors"), "cut short"),
        (_cut("config.json"), "is not JSON"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "the file is empty"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (_config(architectures=["Data3VecModel"]), "architectures names no model that is known here"),
        (_config(hidden_size="64"), "hidden_size has the wrong type"),
        (_config(hidden_size=63), "hidden_size does not divide"),
    ],
)
def test_damaged_checkpoints(damage: Callable[[Path], Any], says: str, pair: None) -> None:
    damage(Path("b"))
    for models in (("a", "b"), ("b", "a")):
        refused("diff", *models, says=says)
        refused("diff", *models, "--json", "--html", "page.html", says=says)


def test_a_weight_under_an_old_and_a_new_name() -> None:
    vision_models.build(vision_models.SEGMENTER, dtype="float32").save_pretrained("a")
    shutil.copytree("a", "b")
    new = "decode_head.psp_bottleneck.convolution.weight"
    _weights(lambda arrays: arrays.update({vision_models.older(new): arrays[new]}))(Path("b"))
    refused("diff", "a", "b", says=f"{new} is there twice")


def test_what_else_is_refused(pair: None) -> None:
    refused("diff", "a", "./nope", says="there is no such folder")
    refused("diff", "a", "b", "nope.txt", says="there is no such file")
    refused("diff", "a", "b", "--html", "nope/page.html", says="can't be written")
    refused("diff", "owner/name", "a", "--local-files-only", "--cache-dir", "cache", says="not in the cache", code=3)
    assert sorted(path.name for path in Path().iterdir()) == ["a", "b"]
    assert disk(Path("a"))
