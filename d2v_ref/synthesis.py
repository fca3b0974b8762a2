"""Whole checkpoints of synthetic weights: configuration, weights and tokenizer, for every class and size."""

from __future__ import annotations

from pathlib import Path

from d2v_ref import synth
from d2v_ref.checkpoints import new_folder, replacing, write_json, write_safetensors
from d2v_ref.config import CONFIG_NAME, Config
from d2v_ref.errors import InputError
from d2v_ref.pretrained import WEIGHTS_NAME, PreTrainedModel, saved_config
from d2v_ref.processing.tokenizer import byte_level_tokenizer


def write_checkpoint(
    cls: type[PreTrainedModel], size: str, seed: int, folder: str | Path, *, num_labels: int | None = None
) -> Config:
    """Write config.json, model.safetensors and tokenizer.json of a class.

    Args:
        cls: the model's class.
        size: "tiny", "base" or "large": the published models' sizes, and one for tests.
        seed: of the weights (``d2v_ref.synth``).
        folder: must not exist; it appears whole or not at all.
        num_labels: of a classification head.

    The tokenizer is byte-level: any text encodes, and every id stands for one byte or two.
    """
    if size not in cls.config_class.sizes:
        raise InputError("unknown size", got=repr(size), expected=" or ".join(cls.config_class.sizes))
    config = cls.config_class(**cls.config_class.sizes[size], **cls.needs, num_labels=num_labels)
    model = cls(config)
    tied = cls.tied_weights if config.tie_word_embeddings else {}
    shapes = {name: value.shape for name, _, _, value in model.named_parameters() if name not in tied}
    with new_folder(folder) as temporary:
        write_safetensors(temporary / WEIGHTS_NAME, synth.weights(shapes, seed))
        with replacing(temporary / "tokenizer.json") as file:
            file.write_text(byte_level_tokenizer(config.vocab_size), encoding="utf-8")  # type: ignore[attr-defined]
        write_json(temporary / CONFIG_NAME, saved_config(cls, config, "float32"))
    return config
