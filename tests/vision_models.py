"""Tiny vision models of every class with synthetic weights, drawn configurations, and inputs that fit them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from hypothesis import strategies as st

from d2v_ref.auto import MODELS, model_class
from d2v_ref.ops import Ops
from d2v_ref.vision import Data2VecVisionConfig

CLASSES = tuple(name for name in MODELS if name.startswith("Data2VecVision"))
BARE, CLASSIFIER, SEGMENTER = CLASSES
TINY: dict[str, Any] = {
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 10,
    "image_size": 12,
    "patch_size": 4,  # 3 x 3 patches
    "num_channels": 2,
    "use_mask_token": True,
    "use_relative_position_bias": True,
    "use_shared_relative_position_bias": True,
    "out_indices": [1, 2, 3, 4],
    "pool_scales": [1, 2, 5],
    "auxiliary_channels": 5,
    "num_labels": 3,
}


def config_of(**changes: Any) -> Data2VecVisionConfig:
    return Data2VecVisionConfig(**{**TINY, **changes})


def build(
    name: str,
    *,
    seed: int = 0,
    dtype: str = "float64",
    ops: Ops | None = None,
    config: Any = None,
    pooler: bool = True,
    **changes: Any,
) -> Any:
    """A model of a class, the bare one with its pooler; float64, so that exact mathematics need no tolerance."""
    options: dict[str, Any] = {"add_pooling_layer": pooler} if name == BARE else {}
    config = config or config_of(**changes)
    return model_class(name)(config, {}, init_missing=seed, backend=ops or Ops(dtype), **options)


def pictures(seed: int = 0, batch: int = 2, height: int = 12, width: int = 12, channels: int = 2) -> np.ndarray:
    """Pictures as an image processor leaves them."""
    return np.random.default_rng(seed).uniform(-1, 1, (batch, channels, height, width))


def main_output(out: Any) -> np.ndarray:
    """What the class is for: logits, or the hidden state."""
    return out["logits" if "logits" in out else "last_hidden_state"]


def bare(name: str) -> str:
    """What the bare model's names begin with in a model of this class."""
    return "" if name == BARE else "data2vec_vision."


@st.composite
def vision_configs(draw: st.DrawFn, name: str, **changes: Any) -> Data2VecVisionConfig:
    """A configuration that uses what the class can do."""
    heads, patch, convolutions = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(0, 2))
    width = heads * draw(st.integers(1, 4))
    side = patch * draw(st.integers(2, 4)) + draw(st.integers(0, patch - 1))
    values: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 9)),
        "hidden_act": draw(st.sampled_from(["gelu", "relu", "silu"])),
        "layer_norm_eps": draw(st.sampled_from([1e-12, 1e-6, 1e-3])),
        "image_size": side,
        "patch_size": patch,
        "num_channels": draw(st.integers(1, 3)),
        "use_mask_token": draw(st.booleans()),
        "use_absolute_position_embeddings": draw(st.booleans()),
        "use_relative_position_bias": draw(st.booleans()),
        "use_shared_relative_position_bias": draw(st.booleans()),
        "layer_scale_init_value": draw(st.sampled_from([0.0, 0.1])),
        "use_mean_pooling": draw(st.booleans()),
        "out_indices": [1, 2, 3, 4],
        "pool_scales": draw(st.lists(st.integers(1, 5), max_size=3)),
        "use_auxiliary_head": draw(st.booleans()),
        "auxiliary_num_convs": convolutions,
        "auxiliary_channels": draw(st.integers(1, 5)) if convolutions else width,
        "auxiliary_concat_input": draw(st.booleans()),
        "num_labels": draw(st.integers(2 if name == SEGMENTER else 1, 4)),
    }
    if name != SEGMENTER and not values["use_absolute_position_embeddings"] and draw(st.booleans()):
        values["image_size"] = [side, patch * draw(st.integers(1, 4))]
    return Data2VecVisionConfig(**{**values, **changes})


def inputs_of(model: Any, seed: int = 0, *, any_size: bool = True) -> dict[str, Any]:
    """Two pictures, with a mask and labels where the class takes any; of another size, where it does, for odd seeds."""
    config, random, batch = model.config, np.random.default_rng(seed), 2
    kind, (down, across) = type(model).__name__, config.patch
    height, width = config.window[0] * down, config.window[1] * across
    if any_size and kind != SEGMENTER and seed % 2:
        height, width = down * int(random.integers(1, 5)) + 1, across * int(random.integers(1, 5))
    given: dict[str, Any] = {
        "pixel_values": pictures(seed, batch, height, width, config.num_channels).astype("f4"),
    }
    if config.use_mask_token:
        given["bool_masked_pos"] = random.random((batch, (height // down) * (width // across))) < 0.3
    if kind == CLASSIFIER:
        given["labels"] = random.integers(0, config.num_labels, batch)
    elif kind == SEGMENTER:
        labels = random.integers(0, config.num_labels, (batch, 17, 23))
        given["labels"] = np.where(random.random(labels.shape) < 0.2, config.semantic_loss_ignore_index, labels)
    return given


def trained(model: Any, factor: float = 3.0, seed: int = 5) -> Any:
    """The same model with larger random weights: attention and predictions far from even."""
    random = np.random.default_rng(seed)
    weights = {
        name: value + factor * random.normal(size=value.shape) * (value.ndim > 1) / np.sqrt(value[0].size)
        for name, value in model.state_dict().items()
    }
    options = {"add_pooling_layer": model.pooler is not None} if type(model).__name__ == BARE else {}
    return type(model)(model.config, weights, backend=model.ops, **options)


def older(name: str) -> str:
    """A weight's name as transformers before 5.9 wrote it."""
    if not name.startswith(("decode_head.", "auxiliary_head.")):
        return name
    name = name.replace("psp_bottleneck", "bottleneck")
    name = re.sub(r"psp_modules\.blocks\.(\d+)\.conv\.", r"psp_modules.\1.1.", name)
    return name.replace(".convolution.", ".conv.").replace(".normalization.", ".bn.")
