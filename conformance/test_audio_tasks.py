"""Audio pipelines against transformers 5.23's: the same folder in, the same answers out.

transformers has no pipeline for frame classification, for speakers and for audio features: their place take the
examples of its documentation, with its own models and feature extractors.
"""

from __future__ import annotations

from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance import oracle
from conformance.test_tasks import DTYPES, clear, hold
from d2v_ref import synth
from d2v_ref.audio import Data2VecAudioConfig
from d2v_ref.auto import model_class
from d2v_ref.errors import InputError
from d2v_ref.processing.ctc_tokenizer import Wav2Vec2CTCTokenizer, character_vocabulary
from d2v_ref.processing.feature_extractor import Wav2Vec2FeatureExtractor
from d2v_ref.tasks import pipeline

RATE = 16000
SMALL: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "conv_dim": [8, 8, 8],
    "conv_stride": [5, 2, 2],  # 20 samples a frame, so that short signals have many
    "conv_kernel": [10, 3, 2],
    "num_conv_pos_embedding_groups": 4,
    "conv_pos_kernel_size": 5,
    "num_conv_pos_embeddings": 2,
    "classifier_proj_size": 12,
    "tdnn_dim": [12, 12, 16],
    "tdnn_kernel": [3, 2, 1],
    "tdnn_dilation": [1, 2, 1],
    "xvector_output_dim": 10,
}


def save(folder: Path, name: str, *, masked: bool = True, **values: Any) -> Path:
    """A tiny checkpoint with synthetic weights, some of them larger, so that the answers are not all alike."""
    config = Data2VecAudioConfig(**{**SMALL, **values})
    declared = model_class(name)(config)
    weights = synth.weights({key: value.shape for key, _, _, value in declared.named_parameters()}, 5)
    for key in weights:
        if key.endswith(("lm_head.weight", "classifier.weight")):
            weights[key] = weights[key] * 8
        if "conv_layers" in key and key.endswith("conv.weight"):
            weights[key] = weights[key] * 4
    model_class(name)(config, weights, dtype="float64").save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=masked).save_pretrained(folder)
    if name == "Data2VecAudioForCTC":
        Wav2Vec2CTCTokenizer(character_vocabulary(config.vocab_size)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("audio-tasks")
    classifier, frames = "Data2VecAudioForSequenceClassification", "Data2VecAudioForAudioFrameClassification"
    several: dict[str, Any] = {"problem_type": "multi_label_classification"}
    return {
        "speech": save(root / "speech", "Data2VecAudioForCTC"),
        "speech, 49 frames a second": save(
            root / "published",
            "Data2VecAudioForCTC",
            conv_dim=[8] * 7,
            conv_stride=[5, 2, 2, 2, 2, 2, 2],
            conv_kernel=[10, 3, 3, 3, 3, 2, 2],
        ),
        "classes": save(root / "classes", classifier, num_labels=7, use_weighted_layer_sum=True),
        "classes, no mask": save(root / "no-mask", classifier, masked=False, num_labels=3),
        "several labels": save(root / "several", classifier, num_labels=3, **several),
        "regression": save(root / "number", classifier, num_labels=1, problem_type="regression"),
        "frames": save(root / "frames", frames, num_labels=3),
        "frames, several labels": save(root / "frames-several", frames, num_labels=2, **several),
        "speaker": save(root / "speaker", "Data2VecAudioForXVector"),
        "features": save(root / "features", "Data2VecAudioModel"),
    }


@cache
def both(folder: Path, task: str, dtype: str) -> tuple[Any, Any]:
    theirs = transformers.pipeline(task, model=str(folder), dtype=oracle.DTYPES[dtype], device="cpu")
    return pipeline(None, folder, dtype=dtype), theirs


@cache
def pieces(folder: Path, name: str) -> tuple[Any, Any, Any]:
    """Our pipeline, and transformers' feature extractor and model, in float64."""
    theirs = getattr(transformers, name).from_pretrained(folder, dtype=torch.float64)
    return pipeline(None, folder, dtype="float64"), transformers.AutoFeatureExtractor.from_pretrained(folder), theirs


@st.composite
def signals(draw: st.DrawFn, least: int = 400, most: int = 6000) -> np.ndarray:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    time = np.arange(draw(st.integers(least, most))) / RATE
    kind = draw(st.sampled_from(["sweep", "sweep", "noise", "clipped", "offset", "silence then sweep"]))
    sweep = np.sin(2 * np.pi * (random.uniform(50, 500) + random.uniform(0, 9000) * time) * time)
    signal = sweep * (1 + np.sin(random.uniform(10, 200) * time)) + 0.1 * random.normal(size=time.size)
    if kind == "noise":
        signal = random.normal(size=time.size)
    elif kind == "clipped":
        signal = np.clip(3 * signal, -1, 1)
    elif kind == "offset":
        signal = signal + 5
    elif kind == "silence then sweep":
        signal[: time.size // 3] = 0
    dtype = draw(st.sampled_from(["float64", "float32", "int16"]))
    return (signal * 1000 if dtype == "int16" else signal).astype(dtype)


def copied(inputs: Any) -> Any:
    """For transformers, which empties the dictionaries that it is given."""
    if isinstance(inputs, list):
        return [copied(item) for item in inputs]
    return dict(inputs) if isinstance(inputs, dict) else inputs.copy()


def as_input(signal: np.ndarray, form: str) -> Any:
    return signal if form == "samples" else {form: signal, "sampling_rate": RATE}


items = st.builds(as_input, signals(), st.sampled_from(["samples", "raw", "array"]))


# ---- speech recognition ----------------------------------------------------------------------------------------------

SPEECH = pytest.mark.parametrize("name", ["speech", "speech, 49 frames a second"])
stamps = st.sampled_from([None, "char", "word"])


@SPEECH
@settings(max_examples=100)
@given(data=st.data())
def test_speech_recognition(name: str, data: st.DataObject, folders: dict[str, Path], tally: dict[str, Any]) -> None:
    """Texts and time stamps, equal to the last bit."""
    ours, theirs = both(folders[name], "automatic-speech-recognition", "float64")
    inputs = data.draw(st.one_of(items, st.lists(items, min_size=1, max_size=3)))
    options = {"return_timestamps": kind} if (kind := data.draw(stamps)) else {}
    assert ours(inputs, **options) == theirs(copied(inputs), **options)
    tally["automatic-speech-recognition, float64"].cases += 1


@st.composite
def cuts(draw: st.DrawFn, ratio: int) -> tuple[int, dict[str, Any]]:
    """Samples of a signal, and how to cut it: lengths in seconds that are no whole frames either."""
    chunk = draw(st.integers(3 * ratio, 100 * ratio))
    least, most = max(600, chunk // 2), min(12 * chunk, 600 + 160 * ratio)
    options: dict[str, Any] = {"chunk_length_s": chunk / RATE}
    kind = draw(st.sampled_from(["default", "one", "two"]))
    if kind != "default":
        sides = [draw(st.integers(0, chunk // 2)) / RATE for _ in range(2)]
        options["stride_length_s"] = sides if kind == "two" else sides[0]
    return draw(st.integers(least, most)), options


@SPEECH
@settings(max_examples=200)
@given(data=st.data())
def test_chunks(name: str, data: st.DataObject, folders: dict[str, Path], tally: dict[str, Any]) -> None:
    ours, theirs = both(folders[name], "automatic-speech-recognition", "float64")
    samples, options = data.draw(cuts(ours.ratio))
    signal = data.draw(signals(samples, samples))
    if kind := data.draw(stamps):
        options["return_timestamps"] = kind
    try:
        want = theirs(signal.copy(), **options)
    except ValueError:  # strides that leave nothing
        with pytest.raises(InputError, match="chunk_length_s is too short"):
            ours(signal, **options)
        return
    except RuntimeError:  # a chunk, be it the last one only, that is too short for a convolution's kernel
        return
    assert ours(signal, **options) == want
    tally["automatic-speech-recognition, chunks, float64"].cases += 1


@settings(max_examples=60)
@given(
    data=st.data(),
    chunk=st.integers(20, 80),
    strides=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    pieces=st.integers(1, 7),
    batch_size=st.integers(2, 4),
)
def test_batches_of_chunks(
    data: st.DataObject,
    chunk: int,
    strides: tuple[int, int],
    pieces: int,
    batch_size: int,
    folders: dict[str, Path],
    tally: dict[str, Any],
) -> None:
    """All chunks of one length: of a shorter last one in a batch transformers decodes a frame or two of padding."""
    ours, theirs = both(folders["speech"], "automatic-speech-recognition", "float64")
    samples = ours.ratio * (chunk + (pieces - 1) * (chunk - sum(strides)))
    signal = data.draw(signals(samples, samples))
    seconds = [frames * ours.ratio / RATE for frames in (chunk, *strides)]
    options = {"chunk_length_s": seconds[0], "stride_length_s": seconds[1:], "return_timestamps": "char"}
    assert ours(signal, batch_size=batch_size, **options) == theirs(signal.copy(), batch_size=batch_size, **options)
    tally["automatic-speech-recognition, chunks, float64"].cases += 1


@settings(max_examples=60)
@given(signal=signals(), chunk=st.one_of(st.none(), st.integers(500, 3000)), kind=stamps)
def test_speech_recognition_in_float32(
    signal: np.ndarray, chunk: int | None, kind: str | None, folders: dict[str, Path], tally: dict[str, Any]
) -> None:
    """Where the likeliest token of every frame is clearly that, in all that goes through the model."""
    ours, theirs = both(folders["speech"], "automatic-speech-recognition", "float32")
    margins: list[float] = []

    def watched(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        logits = type(ours).forward(ours, values, mask)
        best = np.sort(logits, axis=-1)[..., -2:]
        margins.append(float((best[..., 1] - best[..., 0]).min()))
        return logits

    options: dict[str, Any] = {"chunk_length_s": chunk / RATE} if chunk else {}
    options |= {"return_timestamps": kind} if kind else {}
    ours.forward = watched
    got = ours(signal, **options)
    del ours.forward
    if min(margins) > 1e-3:
        assert got == theirs(signal.copy(), **options)
        tally["automatic-speech-recognition, float32"].cases += 1


def test_a_folder_that_transformers_processor_wrote(folders: dict[str, Path], tmp_path: Path) -> None:
    processor = transformers.Wav2Vec2Processor.from_pretrained(folders["speech"])
    processor.save_pretrained(tmp_path)
    transformers.Data2VecAudioForCTC.from_pretrained(folders["speech"]).save_pretrained(tmp_path)
    signal = np.sin(np.arange(3000) ** 1.5 / 50)
    want = transformers.pipeline("automatic-speech-recognition", model=str(tmp_path))(signal.copy())
    assert pipeline("automatic-speech-recognition", tmp_path)(signal) == want
    assert want["text"]


# ---- classification --------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("name", ["classes", "classes, no mask", "several labels", "regression"])
def test_audio_classification(
    name: str, dtype: str, bound: float, folders: dict[str, Path], tally: dict[str, Any]
) -> None:
    ours, theirs = both(folders[name], "audio-classification", dtype)

    @settings(max_examples=60)
    @given(
        inputs=st.one_of(items, st.lists(items, min_size=1, max_size=3)),
        top_k=st.sampled_from(["default", None, 1, 2, 9]),
        function=st.sampled_from([None, "softmax", "sigmoid", "none"]),
    )
    def check(inputs: Any, top_k: Any, function: str | None) -> None:
        options: dict[str, Any] = {} if top_k == "default" else {"top_k": top_k}
        options |= {"function_to_apply": function} if function else {}
        want = theirs(copied(inputs), **options)
        if clear(want, 1e-9 if dtype == "float64" else 1e-5):
            hold(ours(inputs, **options), want, bound, tally[f"audio-classification, {dtype}"])
            tally[f"audio-classification, {dtype}"].cases += 1

    check()


@settings(max_examples=40)
@given(batch=st.lists(signals(), min_size=2, max_size=6), batch_size=st.integers(2, 4))
def test_batches_of_recordings(
    batch: list[np.ndarray], batch_size: int, folders: dict[str, Path], tally: dict[str, Any]
) -> None:
    """From the shortest to the longest, as ours go through the model, and with the mask that ours always has."""
    ours, theirs = both(folders["classes"], "audio-classification", "float64")
    batch = sorted(batch, key=len)
    want = theirs([signal.copy() for signal in batch], batch_size=batch_size, top_k=None)
    if clear(want, 1e-9):
        got = ours(batch, batch_size=batch_size, top_k=None)
        hold(got, want, 1e-9, tally["audio-classification, batches, float64"])
        tally["audio-classification, batches, float64"].cases += 1


# ---- what transformers has examples for ------------------------------------------------------------------------------


def expected_segments(scores: np.ndarray, samples: int, ratio: int, names: dict[int, str]) -> list[dict[str, Any]]:
    """Runs of equal labels, from scores (T, labels) that are 0 where a label does not hold."""
    found = []
    for label in range(scores.shape[1]):
        frames = 0
        for holds, run in groupby(scores[:, label], lambda score: score > 0):
            values = list(run)
            first, frames = frames, frames + len(values)
            if holds:
                end = samples if frames == len(scores) else frames * ratio
                found.append((first, label, float(np.mean(values)), end / RATE))
    return [
        {"label": names[label], "score": score, "timestamp": (first * ratio / RATE, end)}
        for first, label, score, end in sorted(found)
    ]


@settings(max_examples=80)
@given(
    signal=signals(), threshold=st.sampled_from([None, 0.3, 0.5, 0.9]), name=st.sampled_from(["", ", several labels"])
)
def test_audio_frame_classification(
    signal: np.ndarray, threshold: float | None, name: str, folders: dict[str, Path], tally: dict[str, Any]
) -> None:
    ours, extractor, model = pieces(folders[f"frames{name}"], "Data2VecAudioForAudioFrameClassification")
    values = extractor(signal, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
    with torch.no_grad():
        logits = model(values.input_values.double(), attention_mask=values.attention_mask).logits[0]
    if threshold is None and not name:
        scores = logits.softmax(-1)
        scores = torch.where(scores == scores.max(-1, keepdim=True).values, scores, 0.0)
    else:
        scores = logits.sigmoid()
        scores = torch.where(scores > (threshold or 0.5), scores, 0.0)
    want = expected_segments(scores.numpy(), len(signal), ours.ratio, model.config.id2label)
    got = ours(signal, **({} if threshold is None else {"threshold": threshold}))
    assert [entry.pop("timestamp") for entry in got] == [entry.pop("timestamp") for entry in want]
    hold(got, want, 1e-9, tally["audio-frame-classification, float64"])
    tally["audio-frame-classification, float64"].cases += 1


@settings(max_examples=60)
@given(batch=st.lists(signals(), min_size=2, max_size=2), threshold=st.sampled_from([-1.0, 0.7, 0.999]))
def test_speakers(batch: list[np.ndarray], threshold: float, folders: dict[str, Path], tally: dict[str, Any]) -> None:
    """The embeddings and the decision of the example of Data2VecAudioForXVector.forward, one recording at a time."""
    ours, extractor, model = pieces(folders["speaker"], "Data2VecAudioForXVector")
    found = []
    for signal in batch:
        values = extractor(signal, sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            found.append(model(values.input_values.double()).embeddings[0])
    want = torch.nn.functional.normalize(torch.stack(found), dim=-1)
    for got, row in zip(ours(batch), want, strict=True):
        assert got.dtype == np.float64
        hold(got.tolist(), row.tolist(), 1e-9, tally["speaker-embedding, float64"])
    tally["speaker-embedding, float64"].cases += 1
    score = torch.nn.CosineSimilarity(dim=-1)(want[0], want[1]).item()
    verify = pipeline("speaker-verification", ours.model, feature_extractor=ours.feature_extractor)
    got = verify(*batch, threshold=threshold)
    hold(got, {"score": score, "same_speaker": score >= threshold}, 1e-9, tally["speaker-verification, float64"])
    tally["speaker-verification, float64"].cases += 1


@settings(max_examples=40)
@given(batch=st.lists(signals(), min_size=1, max_size=3))
def test_audio_features(batch: list[np.ndarray], folders: dict[str, Path], tally: dict[str, Any]) -> None:
    ours, extractor, model = pieces(folders["features"], "Data2VecAudioModel")
    for got, pooled, signal in zip(ours(batch), ours(batch, pooling="mean"), batch, strict=True):
        values = extractor(signal, sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            want = model(values.input_values.double()).last_hidden_state
        hold(got.tolist(), want.tolist(), 1e-9, tally["feature-extraction, audio, float64"])
        hold(pooled.tolist(), want.mean(1).tolist(), 1e-9, tally["feature-extraction, audio, float64"])
        tally["feature-extraction, audio, float64"].cases += 1
