"""Whole checkpoints of synthetic weights: configuration, weights and what prepares inputs, for every class and size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2v_ref import synth
from d2v_ref.checkpoints import new_folder, replacing, write_json, write_safetensors
from d2v_ref.config import CONFIG_NAME, Config
from d2v_ref.errors import InputError
from d2v_ref.pretrained import WEIGHTS_NAME, PreTrainedModel, saved_config
from d2v_ref.processing.ctc_tokenizer import Wav2Vec2CTCTokenizer, character_vocabulary
from d2v_ref.processing.feature_extractor import Wav2Vec2FeatureExtractor
from d2v_ref.processing.image_processor import BeitImageProcessor
from d2v_ref.processing.tokenizer import byte_level_tokenizer


def write_checkpoint(
    cls: type[PreTrainedModel], size: str, seed: int, folder: str | Path, *, num_labels: int | None = None
) -> Config:
    """Write config.json, model.safetensors and the files of a class that prepare its inputs.

    Args:
        cls: the model's class.
        size: "tiny", "base" or "large": the published models' sizes, and one for tests.
        seed: of the weights (``d2v_ref.synth``).
        folder: must not exist; it appears whole or not at all.
        num_labels: of a classification head.

    A text model's tokenizer is byte-level: any text encodes, and every id stands for one byte or two.  An audio model
    takes 16 kHz and has the published vocabulary of characters.  A vision model's image processor has the published
    settings, but the model's image_size.
    """
    if size not in cls.config_class.sizes:
        raise InputError("unknown size", got=repr(size), expected=" or ".join(cls.config_class.sizes))
    config = cls.config_class(**cls.config_class.sizes[size], **cls.needs, num_labels=num_labels)
    model = cls(config)
    tied = cls.tied_weights if config.tie_word_embeddings else {}
    shapes = {name: value.shape for name, _, _, value in model.named_parameters() if name not in tied}
    with new_folder(folder) as temporary:
        write_safetensors(temporary / WEIGHTS_NAME, synth.weights(shapes, seed))
        _WRITE[config.model_type](temporary, config)
        write_json(temporary / CONFIG_NAME, saved_config(cls, config, "float32"))
    return config


def _write_text_files(folder: Path, config: Any) -> None:
    with replacing(folder / "tokenizer.json") as file:
        file.write_text(byte_level_tokenizer(config.vocab_size), encoding="utf-8")


def _write_audio_files(folder: Path, config: Any) -> None:
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    Wav2Vec2CTCTokenizer(character_vocabulary(config.vocab_size)).save_pretrained(folder)


def _write_vision_files(folder: Path, config: Any) -> None:
    BeitImageProcessor(size=config.image_size).save_pretrained(folder)


_WRITE = {
    "data2vec-text": _write_text_files,
    "data2vec-audio": _write_audio_files,
    "data2vec-vision": _write_vision_files,
}
