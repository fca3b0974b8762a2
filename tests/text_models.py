"""Tiny text models of every class with synthetic weights, and inputs that fit them."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v_ref import PreTrainedModel
from d2v_ref.auto import MODELS, model_class
from d2v_ref.ops import Ops
from d2v_ref.text import Data2VecTextConfig

CLASSES = tuple(name for name in MODELS if "Text" in name)
CHOICE = "Data2VecTextForMultipleChoice"
LANGUAGE_MODELS = ("Data2VecTextForCausalLM", "Data2VecTextForMaskedLM")
TINY: dict[str, Any] = {
    "vocab_size": 19,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 10,
    "max_position_embeddings": 20,  # 18 tokens: positions begin at pad_token_id + 1
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
}


def config_of(name: str, **changes: Any) -> Data2VecTextConfig:
    return Data2VecTextConfig(**{**TINY, **model_class(name).needs, **changes})


def build(name: str, *, seed: int = 0, dtype: str = "float64", ops: Ops | None = None, **changes: Any) -> Any:
    """A model of a class; float64, so that a test of exact mathematics needs no tolerance worth the name."""
    return model_class(name)(config_of(name, **changes), {}, init_missing=seed, backend=ops or Ops(dtype))


def token_ids(name: str, seed: int = 0, batch: int = 2, length: int = 5, choices: int = 3) -> np.ndarray:
    """Ids without padding, with an axis of choices where the class has one."""
    shape = (batch, choices, length) if name == CHOICE else (batch, length)
    return np.random.default_rng(seed).integers(2, TINY["vocab_size"], shape)


def main_output(out: Any) -> np.ndarray:
    """What the class is for: logits, the start logits, or the hidden state."""
    name = next(key for key in ("logits", "start_logits", "last_hidden_state") if key in out)
    return out[name]


def trained(model: PreTrainedModel, factor: float = 3.0, seed: int = 5) -> Any:
    """The same model with larger random weights: attention and predictions far from even."""
    random = np.random.default_rng(seed)
    weights = {
        name: value + factor * random.normal(size=value.shape) * (value.ndim > 1) / np.sqrt(value.shape[-1])
        for name, value in model.state_dict().items()
    }
    for target, source in model.tied_weights.items() if model.config.tie_word_embeddings else ():
        weights[target] = weights[source]
    return type(model)(model.config, weights, backend=model.ops)
