"""The published sizes, 86 and 304 million parameters: every module against transformers, and a picture's labels from
one end to the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import d2v_ref
from conformance import oracle
from conformance.compare import compare
from d2v_ref.synthesis import write_checkpoint

NAME = "Data2VecVisionForImageClassification"


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["base", "large"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision") / request.param
    write_checkpoint(d2v_ref.Data2VecVisionForImageClassification, request.param, 3, folder, num_labels=20)
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A landscape of a kind: a sky that shades off, a sun, hills and noise; 333 x 250 pixels."""
    y, x = np.mgrid[0:250, 0:333]
    sky = np.stack((120 + y * 0.3, 160 + y * 0.2, 230 - y * 0.1), axis=-1)
    sky[(x - 250) ** 2 + (y - 60) ** 2 < 900] = (250, 230, 120)
    sky[y > 170 + 20 * np.sin(x / 40)] = (60, 120, 50)
    noisy = sky + np.random.default_rng(0).normal(size=sky.shape) * 6
    path = tmp_path_factory.mktemp("pictures") / "landscape.png"
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_module(checkpoint: Path, picture: Path, dtype: str, tally: dict[str, Any]) -> None:
    inputs = {**d2v_ref.BeitImageProcessor.from_pretrained(checkpoint)(picture).arrays(), "labels": np.array([7])}
    theirs = transformers.Data2VecVisionForImageClassification.from_pretrained(checkpoint, attn_implementation="eager")
    theirs = theirs.to(oracle.DTYPES[dtype]).eval()
    ours = d2v_ref.Data2VecVisionForImageClassification.from_pretrained(checkpoint, dtype=dtype)
    want = oracle.everything(*oracle.run_recorded(theirs, inputs, dtype))
    got = oracle.observable(oracle.everything(*ours.record(**inputs)), want)
    bound: Any = oracle.EXACT if dtype == "float64" else oracle.bounds(ours, inputs, probes=2)
    compare(got, want, bound, tally[f"{NAME}, {checkpoint.name} size, {dtype}"])


def test_a_picture_gets_the_same_labels(checkpoint: Path, picture: Path, tally: dict[str, Any]) -> None:
    """transformers' processor and model, and our pipeline, from the same folder and file."""
    processor = transformers.BeitImageProcessorPil.from_pretrained(checkpoint)
    model = transformers.Data2VecVisionForImageClassification.from_pretrained(checkpoint).eval()
    with Image.open(picture) as opened, torch.no_grad():
        logits = model(**processor(opened, return_tensors="pt")).logits[0].softmax(-1).numpy()
    got = d2v_ref.pipeline("image-classification", checkpoint)(picture, top_k=20)
    scores = {answer["label"]: answer["score"] for answer in got}
    want = {model.config.id2label[i]: float(score) for i, score in enumerate(logits)}
    assert [answer["label"] for answer in got[:3]] == sorted(want, key=lambda label: -want[label])[:3]
    for label, score in want.items():
        assert scores[label] == pytest.approx(score, abs=1e-5)
    tally[f"{NAME}, {checkpoint.name} size, labels of a picture"].cases += 1
