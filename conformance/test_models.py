"""The checkpoints that come with the package, in transformers: both heads, module by module, and every answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import transformers

import d2v_ref
from conformance import oracle
from conformance.compare import compare
from conformance.training import answers
from d2v_ref import models
from d2v_ref.auto import model_class
from d2v_ref.models import Sample, results
from d2v_ref.processing.pictures import read_image
from d2v_ref.processing.segmentation_maps import bilinear

TASKS = [(name, task) for name in models.NAMES for task in dict.fromkeys(s.task for s in models.samples(name))]
CLASSES = {
    "automatic-speech-recognition": "Data2VecAudioForCTC",
    "audio-classification": "Data2VecAudioForSequenceClassification",
    "image-classification": "Data2VecVisionForImageClassification",
    "image-segmentation": "Data2VecVisionForSemanticSegmentation",
    "fill-mask": "Data2VecTextForMaskedLM",
    "text-classification": "Data2VecTextForSequenceClassification",
}
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
COUNT = 3  # samples of each task whose modules are compared


def samples(name: str, task: str) -> list[Sample]:
    return [sample for sample in models.samples(name) if sample.task == task]


def inputs(name: str, sample: Sample, dtype: str) -> dict[str, Any]:
    """A sample as the model takes it."""
    folder, given = models.folder(name), sample.given
    arrays: dict[str, Any]
    if name == "tiny-audio":
        arrays = d2v_ref.Wav2Vec2FeatureExtractor.from_pretrained(folder)(d2v_ref.read_audio(given)).arrays()
    elif name == "tiny-vision":
        arrays = d2v_ref.BeitImageProcessor.from_pretrained(folder)(read_image(given)).arrays()
    else:
        encoding = d2v_ref.TextTokenizer.from_pretrained(folder)(str(given))
        arrays = {"input_ids": encoding.input_ids, "attention_mask": encoding.attention_mask}
    return {key: value.astype(dtype) if value.dtype.kind == "f" else value for key, value in arrays.items()}


@DTYPES
@pytest.mark.parametrize(("name", "task"), TASKS)
def test_every_module(name: str, task: str, dtype: str, tally: dict[str, Any]) -> None:
    """The folder in both, the first samples through both: in float64 exactly, in float32 within the computed bound."""
    folder = models.folder(name)
    theirs, report = getattr(transformers, CLASSES[task]).from_pretrained(
        folder, dtype=oracle.DTYPES[dtype], attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    ours = model_class(CLASSES[task]).from_pretrained(name, dtype=dtype)
    for sample in samples(name, task)[:COUNT]:
        given = inputs(name, sample, dtype)
        want = oracle.everything(*oracle.run_recorded(theirs.eval(), given, dtype))
        got = oracle.observable(oracle.everything(*ours.record(**given)), want)
        bound: Any = oracle.EXACT if dtype == "float64" else oracle.bounds(ours, given)
        compare(got, want, bound, tally[f"{name}, {CLASSES[task]}, {dtype}, every module"])


@DTYPES
@pytest.mark.parametrize(("name", "task"), TASKS)
def test_every_answer(name: str, task: str, dtype: str, tally: dict[str, Any]) -> None:
    """Of every sample, and that it is the one on record."""
    theirs = answers.oracle(models.folder(name), task, dtype)
    ours = next(result for result in results.run(name, dtype=dtype) if result.task == task)
    for sample, got in zip(ours.samples, ours.answers, strict=True):
        want = answers.answer(theirs, sample.given)
        assert np.array_equal(np.asarray(got), np.asarray(want)), sample.input
        assert np.array_equal(np.asarray(results.on_record(sample)), np.asarray(want)), sample.input
        tally["answers of the shipped checkpoints"].cases += 1


@pytest.mark.parametrize(("name", "task"), TASKS)
def test_no_answer_hangs_on_a_rounding(name: str, task: str) -> None:
    """The best class of every label, frame, mask and pixel leads by far more than float32 is off, here or elsewhere."""
    cls = model_class(CLASSES[task])
    single, double = (cls.from_pretrained(name, dtype=dtype) for dtype in ("float32", "float64"))
    for sample in samples(name, task):
        given = inputs(name, sample, "float32")
        got, want = (_decided(model(**given).logits, given, sample) for model in (single, double))
        best = np.sort(want, axis=-1)
        assert (best[..., -1] - best[..., -2]).min() > 20 * np.abs(got - want).max(), sample.input


def _decided(logits: np.ndarray, given: dict[str, Any], sample: Sample) -> np.ndarray:
    """The logits that an answer is read from, classes last."""
    if sample.task == "image-segmentation":
        image = read_image(sample.given)
        return bilinear(logits, (image.height, image.width)).transpose(0, 2, 3, 1)
    if sample.task == "fill-mask":
        mask = d2v_ref.TextTokenizer.from_pretrained(sample.folder.parent).mask_token_id
        return logits[given["input_ids"] == mask]
    return logits
