"""Writes into the samples of the shipped checkpoints what transformers answers to them, in float32.

    python -m conformance.training.answers [NAME]...

The answers are what tests/test_models.py holds d2v_ref to, where no transformers is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import transformers

from d2v_ref import models
from d2v_ref.checkpoints import write_json
from d2v_ref.processing.segmentation_maps import indexed_png, label_colours


def oracle(folder: Path, task: str, dtype: str = "float32") -> Any:
    """transformers' pipeline for a task of a shipped checkpoint."""
    torch.set_num_threads(1)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "device": "cpu"}
    if task.startswith("image-"):
        options["image_processor"] = transformers.BeitImageProcessorPil.from_pretrained(folder)
    return transformers.pipeline(task, model=str(folder), **options)


def answer(pipe: Any, given: str | Path) -> str | np.ndarray:
    """What the pipeline answers to a text or a file, in the form of ``d2v_ref.models.results.answer``."""
    match pipe.task:
        case "automatic-speech-recognition":
            return pipe(_sound(given))["text"]
        case "audio-classification":
            return pipe(_sound(given), top_k=1)[0]["label"]
        case "image-classification":
            return pipe(str(given), top_k=1)[0]["label"]
        case "image-segmentation":
            return _map(pipe(str(given)), pipe.model.config.label2id)
        case "fill-mask":
            return pipe(given, top_k=1)[0]["token_str"]
        case _:
            return pipe(given, top_k=1)[0]["label"]


def _sound(path: str | Path) -> dict[str, Any]:
    """A recording in memory: for a file the pipeline wants ffmpeg."""
    signal, rate = soundfile.read(path, dtype="float32")
    return {"raw": signal, "sampling_rate": rate}


def _map(segments: list[dict[str, Any]], numbers: dict[str, int]) -> np.ndarray:
    """Segments, a mask for each class that occurs, as one map (H, W) of the classes' numbers."""
    masks = {numbers[segment["label"]]: np.asarray(segment["mask"]) > 0 for segment in segments}
    if not np.all(sum(mask.astype(int) for mask in masks.values()) == 1):
        raise ValueError("the segments are no map")
    return np.asarray(sum(number * mask for number, mask in masks.items()), np.int64)


def write(name: str) -> None:
    """Write the answers of one checkpoint into its samples.json; maps as indexed PNGs beside the pictures."""
    folder = models.folder(name)
    path = folder / models.SAMPLES
    entries = json.loads(path.read_text(encoding="utf-8"))
    for task in dict.fromkeys(entry["task"] for entry in entries):
        pipe = oracle(folder, task)
        for entry in entries:
            if entry["task"] != task:
                continue
            given = entry["input"] if task in models.TEXT_TASKS else path.parent / entry["input"]
            found = answer(pipe, given)
            if not isinstance(found, str):
                labels, found = found, f"{Path(entry['input']).stem}-output.png"
                indexed_png(labels, path.parent / found, label_colours(pipe.model.config.id2label))
            entry["output"] = found
    write_json(path, entries)
    print(name, len(entries))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in sys.argv[1:] or models.NAMES:
        write(name)
