"""Fingerprints of the trained checkpoints that come with the package, for a port to be held against.

``python -m conformance.training.goldens`` writes tests/goldens anew: for every checkpoint each of its two heads, in
float64, which is a yardstick for every smaller format, on the first sample of its task.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from d2v_ref import golden, models
from d2v_ref.auto import model_class
from d2v_ref.processing import BeitImageProcessor, TextTokenizer, Wav2Vec2FeatureExtractor, read_audio

GOLDENS = Path(__file__).parents[2] / "tests" / "goldens"

SAMPLES = 4000  # a quarter of a second from the middle of an utterance, as inputs are stored whole

# (checkpoint, head, its class, the task whose samples it takes)
HEADS = (
    ("tiny-audio", "ctc", "Data2VecAudioForCTC", "automatic-speech-recognition"),
    ("tiny-audio", "keywords", "Data2VecAudioForSequenceClassification", "audio-classification"),
    ("tiny-text", "masked-lm", "Data2VecTextForMaskedLM", "fill-mask"),
    ("tiny-text", "categories", "Data2VecTextForSequenceClassification", "text-classification"),
    ("tiny-vision", "digits", "Data2VecVisionForImageClassification", "image-classification"),
    ("tiny-vision", "segmentation", "Data2VecVisionForSemanticSegmentation", "image-segmentation"),
)


def inputs_of(name: str, task: str) -> dict[str, Any]:
    """The arrays of the forward pass, without a mask, which of one sample hides nothing."""
    folder = models.folder(name)
    given = next(sample.given for sample in models.samples(name) if sample.task == task)
    if name == "tiny-audio":
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
        signal = read_audio(given, extractor.sampling_rate)
        start = (len(signal) - SAMPLES) // 2
        return {"input_values": extractor([signal[start : start + SAMPLES]], padding=True).input_values}
    if name == "tiny-vision":
        return BeitImageProcessor.from_pretrained(folder)([given]).arrays()
    return {"input_ids": TextTokenizer.from_pretrained(folder)([str(given)]).input_ids}


def main() -> None:
    shutil.rmtree(GOLDENS, ignore_errors=True)
    for name, head, cls, task in HEADS:
        folder, inputs = models.folder(name), inputs_of(name, task)
        (GOLDENS / name).mkdir(parents=True, exist_ok=True)
        model, bundle = model_class(cls).from_pretrained(folder, dtype="float64"), GOLDENS / name / head
        golden.record(model, inputs, bundle, name=name, folder=folder, fingerprint=True, recipe={"sample of": task})
        print(f"{bundle}: {sum(file.stat().st_size for file in bundle.iterdir()) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
