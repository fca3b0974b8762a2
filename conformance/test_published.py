"""The published checkpoints, where they are on this machine or may be downloaded.

D2V_DOWNLOAD=1 pytest conformance/test_published.py      # downloads what is missing: 0.5 GB for the text model
"""

from __future__ import annotations

import os
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.conftest import Tally
from d2v_ref import synth
from d2v_ref.auto import MODELS, model_class
from d2v_ref.checkpoints import resolve
from d2v_ref.errors import UnavailableError
from d2v_ref.pretrained import PreTrainedModel

LIST = tomllib.loads(Path(__file__).with_name("published.toml").read_text(encoding="utf-8"))["checkpoint"]
DOWNLOAD = os.environ.get("D2V_DOWNLOAD") == "1"


def take(array: np.ndarray, index: str) -> np.ndarray:
    """``array[index]`` for an index as it is written: "0, :3, :3"."""
    parts = [part.strip() for part in index.split(",")]
    return array[tuple(slice(None, int(part[1:])) if part.startswith(":") else int(part) for part in parts)]


def meet(model: PreTrainedModel, entry: dict[str, Any], tally: dict[str, Any]) -> None:
    """Every published value of an entry, within its tolerance."""
    out = model(**entry["inputs"])
    for value in entry["values"]:
        got, want = take(out[value["output"]], value["index"]), np.array(value["numbers"])
        np.testing.assert_allclose(got, want, rtol=0, atol=value["atol"])
        t = tally["published values"]
        t.cases, t.arrays = t.cases + 1, t.arrays + 1
        t.worst = max(t.worst, float(np.abs(got - want).max()) / value["atol"])


def test_the_list_is_whole() -> None:
    """Thirteen checkpoints, and for every class that this version has, values to meet."""
    assert len({entry["id"] for entry in LIST}) == 13
    for entry in LIST:
        if entry["class"] in MODELS:
            assert entry["inputs"], entry["id"]
            assert entry["values"], entry["id"]


@pytest.mark.parametrize(
    "entry", [entry for entry in LIST if entry["class"] in MODELS], ids=lambda entry: entry["class"]
)
def test_other_weights_do_not_meet_them(entry: dict[str, Any]) -> None:
    """The comparison itself, where no published checkpoint is at hand: synthetic weights must fail it."""
    cls = model_class(entry["class"])
    config = cls.config_class(**{**cls.config_class.sizes["base"], "num_hidden_layers": 1})
    weights = synth.weights({name: value.shape for name, _, _, value in cls(config).named_parameters()}, 0)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        meet(cls(config, weights), entry, defaultdict(Tally))


@pytest.mark.parametrize("entry", LIST, ids=lambda entry: f"{entry['id']}-{entry['class']}")
def test_published_values(entry: dict[str, Any], tally: dict[str, Any]) -> None:
    if entry["class"] not in MODELS:
        pytest.skip(f"{entry['id']}: this version has no {entry['class']}")
    try:
        folder = resolve(entry["id"], local_files_only=not DOWNLOAD)
    except UnavailableError as error:
        pytest.skip(f"{entry['id']}: {error.message}; set D2V_DOWNLOAD=1 to download it")
    meet(model_class(entry["class"]).from_pretrained(folder), entry, tally)
