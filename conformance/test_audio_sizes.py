"""The published sizes, 95 and 317 million parameters: every module against transformers, and a sound file's transcript
from one end to the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers

import d2v_ref
from conformance import oracle
from conformance.compare import compare
from d2v_ref.synthesis import write_checkpoint

NAME = "Data2VecAudioForCTC"
RATE = 16000


def voice(seconds: float) -> np.ndarray:
    """Something like speech: harmonics of a gliding pitch, louder and softer, and noise.  (N,) float32."""
    t = np.arange(int(RATE * seconds)) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.9 * t)) / RATE
    harmonics = sum(np.sin(k * phase) / k for k in range(1, 20))
    noise = np.random.default_rng(0).normal(size=t.size)
    return (0.1 * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t)) * harmonics + 0.005 * noise).astype(np.float32)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["base", "large"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio") / request.param
    write_checkpoint(d2v_ref.Data2VecAudioForCTC, request.param, 3, folder)
    model = d2v_ref.Data2VecAudioForCTC.from_pretrained(folder)
    weights = model.state_dict()
    # Centred, so that the likeliest token changes from frame to frame and a transcript has many.
    weights["lm_head.bias"] = weights["lm_head.bias"] - model(voice(2.5)[None]).logits.mean((0, 1))
    d2v_ref.Data2VecAudioForCTC(model.config, weights).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "voice.wav"
    soundfile.write(path, voice(2.5), RATE, subtype="PCM_16")
    return path


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_module(checkpoint: Path, dtype: str, tally: dict[str, Any]) -> None:
    """Two utterances, one of them padded, as the feature extractor pads it."""
    extractor = d2v_ref.Wav2Vec2FeatureExtractor.from_pretrained(checkpoint)
    features = extractor([voice(1.2), voice(0.8)], padding=True)
    inputs = {**features.arrays(), "labels": np.array([[5, 6, 7, 7, 8], [9, 9, 4, -100, -100]])}
    theirs = transformers.Data2VecAudioForCTC.from_pretrained(checkpoint, attn_implementation="eager")
    theirs = theirs.to(oracle.DTYPES[dtype]).eval()
    ours = d2v_ref.Data2VecAudioForCTC.from_pretrained(checkpoint, dtype=dtype)
    want = oracle.everything(*oracle.run_recorded(theirs, inputs, dtype))
    got = oracle.everything(*ours.record(**inputs))
    bound: Any = oracle.EXACT if dtype == "float64" else oracle.bounds(ours, inputs, probes=2)
    compare(got, want, bound, tally[f"{NAME}, {checkpoint.name} size, {dtype}"])


def test_a_file_becomes_the_same_text(checkpoint: Path, recording: Path, tally: dict[str, Any]) -> None:
    """transformers' pipeline and ours, each with its own feature extractor, model and tokenizer of one folder."""
    samples, rate = soundfile.read(recording, dtype="float32")
    theirs = transformers.pipeline("automatic-speech-recognition", str(checkpoint), framework="pt")
    want = theirs({"raw": samples, "sampling_rate": rate}, return_timestamps="char")
    got = d2v_ref.pipeline("automatic-speech-recognition", checkpoint)(recording, return_timestamps="char")
    assert got["text"] == want["text"]
    assert [chunk["text"] for chunk in got["chunks"]] == [chunk["text"] for chunk in want["chunks"]]
    for mine, its in zip(got["chunks"], want["chunks"], strict=True):
        assert mine["timestamp"] == pytest.approx(its["timestamp"], abs=1e-9)
    assert len(got["text"]) > 20, "synthetic weights speak gibberish, but they do speak"
    tally[f"{NAME}, {checkpoint.name} size, transcript of a file"].cases += 1
