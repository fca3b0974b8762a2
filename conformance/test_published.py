"""The published checkpoints, where they are on this machine or may be downloaded.

D2V_DOWNLOAD=1 pytest conformance/test_published.py      # downloads what is missing: 9 GB
D2V_LIBRISPEECH=FOLDER                                   # where LibriSpeech's dev-clean lies, for the transcripts
D2V_COCO=FOLDER                                          # where COCO's val2017 lies, for the pictures
"""

from __future__ import annotations

import os
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import d2v_ref
from conformance.conftest import Tally
from d2v_ref import synth
from d2v_ref.auto import MODELS, model_class
from d2v_ref.checkpoints import resolve
from d2v_ref.errors import UnavailableError
from d2v_ref.pretrained import PreTrainedModel
from d2v_ref.synthesis import write_checkpoint

LIST = tomllib.loads(Path(__file__).with_name("published.toml").read_text(encoding="utf-8"))["checkpoint"]
DOWNLOAD = os.environ.get("D2V_DOWNLOAD") == "1"
LIBRISPEECH, COCO = os.environ.get("D2V_LIBRISPEECH"), os.environ.get("D2V_COCO")
HERE = [entry for entry in LIST if entry["class"] in MODELS]


def take(array: np.ndarray, index: str) -> np.ndarray:
    """``array[index]`` for an index as it is written: "0, :3, :3"."""
    parts = [part.strip() for part in index.split(",")]
    return array[tuple(slice(None, int(part[1:])) if part.startswith(":") else int(part) for part in parts)]


def meet(model: PreTrainedModel, inputs: dict[str, Any], entry: dict[str, Any], tally: dict[str, Any]) -> None:
    """Every published value of an entry, within its tolerance."""
    out = model(**inputs)
    for value in entry["values"]:
        got, want = take(out[value["output"]], value["index"]), np.array(value["numbers"])
        np.testing.assert_allclose(got, want, rtol=0, atol=value["atol"])
        t = tally["published values"]
        t.cases, t.arrays = t.cases + 1, t.arrays + 1
        t.worst = max(t.worst, float(np.abs(got - want).max()) / value["atol"])


def transcribe(folder: Path, transcripts: dict[str, str], corpus: Path, tally: dict[str, Any]) -> None:
    """Every published transcript of an entry, letter by letter."""
    listen = d2v_ref.pipeline("automatic-speech-recognition", folder)
    for name, text in transcripts.items():
        speaker, chapter, _ = name.split("-")
        path = next(corpus.glob(f"**/{speaker}/{chapter}/{name}.flac"))
        assert listen(path)["text"].lower() == text
        tally["published transcripts"].cases += 1


def found(entry: dict[str, Any]) -> Path:
    """The folder of a published checkpoint, or a skip that says how to get it."""
    if entry["class"] not in MODELS:
        pytest.skip(f"{entry['id']}: this version has no {entry['class']}")
    try:
        return resolve(entry["id"], local_files_only=not DOWNLOAD)
    except UnavailableError as error:
        pytest.skip(f"{entry['id']}: {error.message}; set D2V_DOWNLOAD=1 to download it")


def test_the_list_is_whole() -> None:
    """Thirteen checkpoints, and of every modality that this version has, something to meet."""
    assert len({entry["id"] for entry in LIST}) == 13
    for prefix in {entry["class"].partition("For")[0].removesuffix("Model") for entry in HERE}:
        assert any(entry.get("values") or entry.get("transcripts") for entry in HERE if prefix in entry["class"])
    for entry in HERE:
        assert bool(entry.get("values")) == ("inputs" in entry or "picture" in entry), entry["id"]
        assert entry.get("source") or not (entry.get("values") or entry.get("transcripts")), entry["id"]


@pytest.mark.parametrize(
    "entry", [entry for entry in HERE if entry.get("values")], ids=lambda entry: str(entry["class"])
)
def test_other_weights_do_not_meet_them(entry: dict[str, Any]) -> None:
    """The comparison itself, where no published checkpoint is at hand: synthetic weights must fail it."""
    cls = model_class(entry["class"])
    config = cls.config_class(**{**cls.config_class.sizes["base"], "num_hidden_layers": 1})
    weights = synth.weights({name: value.shape for name, _, _, value in cls(config).named_parameters()}, 0)
    picture = {"pixel_values": np.zeros((1, 3, 224, 224), np.float32)}
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        meet(cls(config, weights), entry.get("inputs", picture), entry, defaultdict(Tally))


def test_other_weights_do_not_transcribe(tmp_path: Path) -> None:
    """The same of the transcripts."""
    write_checkpoint(d2v_ref.Data2VecAudioForCTC, "tiny", 0, tmp_path / "model")
    transcripts = next(entry["transcripts"] for entry in HERE if "transcripts" in entry)
    for name in transcripts:
        folder = tmp_path / "dev-clean" / Path(*name.split("-")[:2])
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{name}.flac", np.random.default_rng(0).normal(size=16000) / 9, 16000)
    with pytest.raises(AssertionError):
        transcribe(tmp_path / "model", transcripts, tmp_path, defaultdict(Tally))


@pytest.mark.parametrize("entry", LIST, ids=lambda entry: f"{entry['id']}-{entry['class']}")
def test_published_values(entry: dict[str, Any], tally: dict[str, Any]) -> None:
    folder = found(entry)
    model = model_class(entry["class"]).from_pretrained(folder)
    report = model.load_report
    assert report is not None
    unknown = [name for name, why in report.unused.items() if why.endswith("has no weight of this name")]
    assert entry["class"].endswith("Model") or not unknown  # a bare model may leave a head's weights unused
    if "inputs" in entry:
        meet(model, entry["inputs"], entry, tally)


@pytest.mark.parametrize("entry", [entry for entry in HERE if "picture" in entry], ids=lambda entry: str(entry["id"]))
def test_published_values_of_a_picture(entry: dict[str, Any], tally: dict[str, Any]) -> None:
    folder = found(entry)
    if COCO is None:
        pytest.skip("COCO: set D2V_COCO to the folder that holds val2017")
    picture = next(Path(COCO).glob(f"**/{entry['picture']}"))
    inputs = d2v_ref.BeitImageProcessor.from_pretrained(folder)(picture).arrays()
    meet(model_class(entry["class"]).from_pretrained(folder), inputs, entry, tally)


@pytest.mark.parametrize(
    "entry", [entry for entry in HERE if "transcripts" in entry], ids=lambda entry: str(entry["id"])
)
def test_published_transcripts(entry: dict[str, Any], tally: dict[str, Any]) -> None:
    folder = found(entry)
    if LIBRISPEECH is None:
        pytest.skip("LibriSpeech: set D2V_LIBRISPEECH to the folder that holds dev-clean")
    transcribe(folder, entry["transcripts"], Path(LIBRISPEECH), tally)
