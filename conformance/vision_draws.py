"""Hypothesis strategies: vision configurations, and inputs that use every option of the forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from d2v_ref.ops import ACTIVATIONS
from d2v_ref.vision import Data2VecVisionConfig

VISION_HEADS = (
    "Data2VecVisionModel",
    "Data2VecVisionForImageClassification",
    "Data2VecVisionForSemanticSegmentation",
)
SEGMENTATION = "Data2VecVisionForSemanticSegmentation"


@st.composite
def vision_configs(draw: st.DrawFn, name: str) -> Data2VecVisionConfig:
    heads, head_size, layers = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    patch = draw(st.integers(1, 4))
    side, other = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    rest = draw(st.integers(0, patch - 1))  # pixels that fill no patch
    values: dict[str, Any] = {
        "hidden_size": heads * head_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 20)),
        "hidden_act": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "layer_norm_eps": draw(st.sampled_from([1e-12, 1e-5, 1e-3])),
        "image_size": side * patch + rest,
        "patch_size": patch,
        "num_channels": draw(st.integers(1, 4)),
        "use_mask_token": draw(st.booleans()),
        "use_absolute_position_embeddings": draw(st.booleans()),
        "use_relative_position_bias": draw(st.booleans()),
        "use_shared_relative_position_bias": draw(st.booleans()),
        "layer_scale_init_value": draw(st.sampled_from([0.0, 0.1])),
        "use_mean_pooling": draw(st.booleans()),
        "num_labels": draw(st.integers(1, 4)),
    }
    if name == "Data2VecVisionForImageClassification":
        kinds = [None, "regression", "single_label_classification", "multi_label_classification"]
        values["problem_type"] = draw(st.sampled_from(kinds))
        if values["problem_type"] == "single_label_classification":
            values["num_labels"] = max(values["num_labels"], 2)
    if name == SEGMENTATION:
        convs = draw(st.integers(0, 2))
        values |= {
            "image_size": max(side, 2) * patch + rest,  # the coarsest map is half of it
            "num_hidden_layers": 3,
            "out_indices": [1, 2, 3, 4],
            "pool_scales": draw(st.lists(st.integers(1, 5), max_size=3)),
            "use_auxiliary_head": draw(st.booleans()),
            "auxiliary_loss_weight": draw(st.sampled_from([0.4, 1.0])),
            "auxiliary_num_convs": convs,
            "auxiliary_channels": draw(st.integers(1, 6)) if convs else heads * head_size,
            "auxiliary_concat_input": draw(st.booleans()),
            "semantic_loss_ignore_index": draw(st.sampled_from([255, 0])),
        }
        if draw(st.booleans()):
            values["num_hidden_layers"], values["out_indices"] = 4, sorted(draw(st.sampled_from(_CHOICES)))
    elif not values["use_absolute_position_embeddings"] and draw(st.booleans()):
        values["image_size"] = [values["image_size"], other * patch]
    return Data2VecVisionConfig(**values)


_CHOICES = [[1, 2, 3, 5], [1, 3, 4, 5], [2, 3, 4, 5], [1, 2, 4, 5]]


@st.composite
def vision_cases(draw: st.DrawFn, name: str) -> tuple[Data2VecVisionConfig, dict[str, Any], int]:
    """(configuration, keyword arguments of forward, seed of the weights)."""
    config = draw(vision_configs(name))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, patch = draw(st.integers(1, 3)), config.patch[0]
    height, width = (side * patch + draw(st.integers(0, patch - 1)) for side in config.window)
    if name != SEGMENTATION and draw(st.booleans()):  # any size; segmentation takes one
        height, width = draw(st.integers(patch, 6 * patch)), draw(st.integers(patch, 6 * patch))
    inputs: dict[str, Any] = {"pixel_values": random.normal(size=(batch, config.num_channels, height, width))}
    if name == "Data2VecVisionModel" and config.use_mask_token and draw(st.booleans()):
        masked = random.random((batch, (height // patch) * (width // patch))) < 0.4
        inputs["bool_masked_pos"] = masked if draw(st.booleans()) else masked.astype(np.int64)
    if draw(st.booleans()):
        inputs["interpolate_pos_encoding"] = draw(st.booleans())
    if draw(st.integers(0, 3)):
        inputs.update(_labels(draw, random, name, config, batch))
    inputs["output_attentions"], inputs["output_hidden_states"] = draw(st.booleans()), draw(st.booleans())
    return config, inputs, draw(st.integers(0, 2**63))


def _labels(
    draw: st.DrawFn, random: np.random.Generator, name: str, config: Data2VecVisionConfig, batch: int
) -> dict[str, Any]:
    classes = config.num_labels
    if name == SEGMENTATION and classes > 1:
        shape = (batch, draw(st.integers(1, 40)), draw(st.integers(1, 40)))
        labels = random.integers(0, classes, shape)
        labels[random.random(shape) < 0.2] = config.semantic_loss_ignore_index
        return {"labels": labels}
    if name == "Data2VecVisionForImageClassification":
        kind = config.problem_type or (
            "regression" if classes == 1 else random.choice(["single_label_classification", "multi"])
        )
        if kind == "regression":
            return {"labels": random.normal(size=(batch, classes) if classes > 1 else (batch,))}
        if kind == "single_label_classification":
            return {"labels": random.integers(0, classes, batch)}
        return {"labels": random.integers(0, 2, (batch, classes)).astype(np.float64)}
    return {}
