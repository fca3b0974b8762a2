"""Checkpoints pass between transformers and d2v_ref in both directions, in every format, without losing a bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import d2v_ref
from conformance import draws, oracle
from d2v_ref.auto import model_class
from d2v_ref.pretrained import PreTrainedModel
from d2v_ref.text import Data2VecTextConfig

SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 30,
}
IDS = np.random.default_rng(0).integers(4, 60, (2, 9))


def config_for(name: str, tie: bool) -> Data2VecTextConfig:
    return Data2VecTextConfig(**SMALL, tie_word_embeddings=tie, is_decoder=name.endswith("CausalLM"))


def ids_for(name: str) -> np.ndarray:
    return IDS[:, None] if name.endswith("MultipleChoice") else IDS


def same_outputs(a: PreTrainedModel, b: PreTrainedModel, name: str) -> None:
    for key, value in oracle.everything(a(ids_for(name)), {}).items():
        np.testing.assert_array_equal(value, oracle.everything(b(ids_for(name)), {})[key])


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", draws.TEXT_HEADS)
def test_transformers_loads_what_we_save(name: str, tie: bool, tmp_path: Path) -> None:
    ours, _ = oracle.pair(name, config_for(name, tie), 3, "float32")
    ours.save_pretrained(tmp_path)
    cls = getattr(transformers, name)
    theirs, info = cls.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not any(info.values()), info
    for key, value in theirs.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), ours.state_dict()[key])
    assert type(theirs).__name__ == json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    assert theirs.config.tie_word_embeddings is tie
    again = d2v_ref.load(tmp_path)
    assert type(again) is type(ours)
    same_outputs(again, ours, name)


def write_bin(theirs: Any, folder: Path, shards: int) -> None:
    """As transformers 4 wrote pytorch_model.bin: torch.save of the state dict, tied weights under both names."""
    theirs.config.save_pretrained(folder)
    state = theirs.state_dict()
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    names = list(state)
    parts = [names[i::shards] for i in range(shards)]
    where = {}
    for i, part in enumerate(parts):
        file = f"pytorch_model-{i + 1:05}-of-{shards:05}.bin"
        torch.save({key: state[key] for key in part}, folder / file)
        where.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", draws.TEXT_HEADS)
@pytest.mark.parametrize("form", ["safetensors", "sharded safetensors", "bin", "sharded bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_we_load_what_transformers_saves(name: str, form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    _, theirs = oracle.pair(name, config_for(name, True), 5, "float32")
    theirs = theirs.to(dtype)
    if form.endswith("safetensors"):
        theirs.save_pretrained(tmp_path, max_shard_size="8KB" if form.startswith("sharded") else "1GB")
    else:
        theirs.config.architectures = [name]
        write_bin(theirs, tmp_path, 3 if form.startswith("sharded") else 1)
    if form.startswith("sharded"):
        assert len(list(tmp_path.glob("*-of-*"))) > 1
    ours = d2v_ref.load(tmp_path)
    assert type(ours).__name__ == name
    report = ours.load_report
    assert report is not None
    assert not report.unused
    for key, value in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[key], value.float().numpy())
    full = {key: value.float().numpy() for key, value in theirs.state_dict().items()}
    same_outputs(ours, model_class(name)(ours.config, full), name)


def test_a_bare_model_and_a_head_exchange_weights(tmp_path: Path) -> None:
    """As transformers does it: the prefix is added or taken away; what is missing is said, not drawn silently."""
    _, theirs = oracle.pair("Data2VecTextForMaskedLM", config_for("Data2VecTextForMaskedLM", True), 5, "float32")
    theirs.save_pretrained(tmp_path / "headed")
    bare = d2v_ref.Data2VecTextModel.from_pretrained(tmp_path / "headed")
    want = transformers.Data2VecTextModel.from_pretrained(
        tmp_path / "headed", add_pooling_layer=False, attn_implementation="eager"
    )
    with torch.no_grad():
        states = want(torch.from_numpy(IDS)).last_hidden_state.numpy()
    np.testing.assert_allclose(bare(IDS).last_hidden_state, states, atol=1e-5)
    assert bare.load_report is not None
    assert bare.load_report.absent == ["pooler"]
    assert bare.load_report.unused
    assert all(name.startswith("lm_head.") for name in bare.load_report.unused)

    want.save_pretrained(tmp_path / "bare")
    with pytest.raises(d2v_ref.CheckpointError, match="missing"):
        d2v_ref.Data2VecTextForMaskedLM.from_pretrained(tmp_path / "bare")
    headed = d2v_ref.Data2VecTextForMaskedLM.from_pretrained(tmp_path / "bare", init_missing=1)
    np.testing.assert_array_equal(headed(IDS, output_hidden_states=True).hidden_states[-1], bare(IDS).last_hidden_state)
