"""What is measured: a model's class, its size, and the shape of its input."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from d2v_ref import synth
from d2v_ref.auto import model_class
from d2v_ref.config import Config
from d2v_ref.errors import InputError
from d2v_ref.pretrained import PreTrainedModel

SEED = 0
INPUTS = {"data2vec-text": "input_ids", "data2vec-audio": "input_values", "data2vec-vision": "pixel_values"}


@dataclass(frozen=True)
class Case:
    """One forward pass.

    Attributes:
        name: as the command line takes it.
        model: the class.
        size: of ``Config.sizes``.
        shape: token ids (B, T), samples (B, L) or pixels (B, 3, H, W).
        settings: of the configuration, beside the size's.
    """

    name: str
    model: str
    size: str
    shape: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def cls(self) -> type[PreTrainedModel]:
        return model_class(self.model)

    @property
    def argument(self) -> str:
        """What the model calls its input."""
        return INPUTS[self.cls.config_class.model_type]

    def config(self) -> Config:
        return self.cls.config_class(**self.cls.config_class.sizes[self.size], **self.settings)

    def weights(self) -> dict[str, np.ndarray]:
        """The synthetic weights (``d2v_ref.synth``): the same in every process."""
        shapes = {name: value.shape for name, _, _, value in self.cls(self.config()).named_parameters()}
        return synth.weights(shapes, SEED)

    def given(self) -> np.ndarray:
        """Token ids without padding, int64, or normal deviates, float32."""
        random = np.random.default_rng(SEED)
        if self.argument == "input_ids":
            config: Any = self.config()
            return random.integers(config.pad + 1, config.vocab_size, self.shape)
        return random.standard_normal(self.shape, np.float32)

    def as_dict(self) -> dict[str, Any]:
        """``Case.from_dict`` of it, or of what JSON makes of it, is the same case."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Case:
        return cls(**{**values, "shape": tuple(values["shape"])})


def _text(name: str, batch: int, length: int, size: str = "base") -> Case:
    return Case(name, "Data2VecTextModel", size, (batch, length))


def _vision(name: str, batch: int, size: str = "base") -> Case:
    """With the classes of the published checkpoints, ImageNet's."""
    shape = (batch, 3, 224, 224)
    return Case(name, "Data2VecVisionForImageClassification", size, shape, {"num_labels": 1000})


def _audio(name: str, seconds: int, size: str = "base") -> Case:
    return Case(name, "Data2VecAudioForCTC", size, (1, 16000 * seconds))


CASES = {
    case.name: case
    for case in (
        _text("text-1x16", 1, 16),
        _text("text-1x128", 1, 128),
        _text("text-1x512", 1, 512),
        _text("text-8x128", 8, 128),
        _vision("vision-1", 1),
        _vision("vision-8", 8),
        _audio("audio-1s", 1),
        _audio("audio-5s", 5),
        _audio("audio-15s", 15),
        _text("text-large-1x128", 1, 128, "large"),
        _vision("vision-large-1", 1, "large"),
        _audio("audio-large-5s", 5, "large"),
    )
}


def case(name: str) -> Case:
    """One of ``CASES``.

    Raises:
        InputError: there is none of this name.
    """
    if name not in CASES:
        raise InputError("no case of this name", got=repr(name), expected=" or ".join(CASES))
    return CASES[name]
