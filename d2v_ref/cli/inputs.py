"""What INPUT... is for a forward pass: arrays by Hugging Face's names, and how they came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref.arrays import ARRAY_FILES, read_arrays
from d2v_ref.cli.common import is_file, read_texts, spoken
from d2v_ref.cli.files import PICTURES, SOUNDS, files
from d2v_ref.pretrained import PreTrainedModel


@dataclass(frozen=True)
class Inputs:
    """The arrays of a forward pass, and their recipe: what was given, and who made arrays of it."""

    arrays: dict[str, np.ndarray]
    recipe: dict[str, Any]


def read_inputs(given: Sequence[str], folder: Path, model: PreTrainedModel) -> Inputs:
    """Texts, sound files or pictures as the model takes them, or an .npz or .safetensors file with its arrays.

    Args:
        given: texts, files or folders, as the model's kind is; nothing stands for standard input.
        folder: of the checkpoint, where the settings of its tokenizer, feature extractor or image processor lie.
        model: whose forward pass it is for.
    """
    if len(given) == 1 and given[0].endswith(ARRAY_FILES) and is_file(given[0]):
        return Inputs(read_arrays(given[0]), {"arrays": _described([Path(given[0])])})
    if model.config.model_type == "data2vec-audio":
        return _sounds(given, folder)
    if model.config.model_type == "data2vec-vision":
        return _pictures(given, folder)
    return _texts(given, folder, model)


def _texts(given: Sequence[str], folder: Path, model: Any) -> Inputs:
    from d2v_ref.processing import TextTokenizer

    texts = read_texts(given)
    encoding = TextTokenizer.from_pretrained(folder)(texts, max_length=model.config.max_length)
    arrays = {"input_ids": encoding.input_ids, "attention_mask": encoding.attention_mask}
    if type(model).__name__.endswith("ForMultipleChoice"):
        arrays = {name: array[None] for name, array in arrays.items()}  # (1, choices, T)
    return Inputs(arrays, {"texts": texts, "processor": "TextTokenizer"})


def _sounds(given: Sequence[str], folder: Path) -> Inputs:
    from d2v_ref.processing import Wav2Vec2FeatureExtractor, read_audio

    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    paths = files(SOUNDS, given)
    arrays = extractor([read_audio(path, extractor.sampling_rate) for path in paths], padding=True).arrays()
    return Inputs(arrays, {"sounds": _described(paths), "processor": "Wav2Vec2FeatureExtractor"})


def _pictures(given: Sequence[str], folder: Path) -> Inputs:
    from d2v_ref.processing import BeitImageProcessor
    from d2v_ref.processing.pictures import read_image

    processor = BeitImageProcessor.from_pretrained(folder)
    paths = files(PICTURES, given)
    arrays = processor([read_image(path) for path in paths]).arrays()
    return Inputs(arrays, {"pictures": _described(paths), "processor": "BeitImageProcessor"})


def _described(paths: Sequence[Path]) -> list[dict[str, Any]]:
    from d2v_ref.golden.bundle import describe_file

    return [{**describe_file(path), "name": Path(spoken(path)).name} for path in paths]
