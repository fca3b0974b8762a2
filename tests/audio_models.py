"""Tiny audio models of every class with synthetic weights, drawn configurations, and inputs that fit them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from d2v_ref.audio import Data2VecAudioConfig
from d2v_ref.auto import MODELS, model_class
from d2v_ref.ops import Ops

CLASSES = tuple(name for name in MODELS if "Audio" in name)
BARE, CTC, SEQUENCE, FRAMES, XVECTOR = CLASSES
NO_ADAPTER = (SEQUENCE, FRAMES)
WEIGHTED = (SEQUENCE, FRAMES, XVECTOR)  # those that can average their layers
TINY: dict[str, Any] = {
    "vocab_size": 7,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 10,
    "conv_dim": [4, 6, 5],
    "conv_stride": [3, 2, 2],  # 12 samples a frame
    "conv_kernel": [8, 3, 2],  # 20 samples for the first
    "num_conv_pos_embedding_groups": 4,
    "conv_pos_kernel_size": 5,
    "num_conv_pos_embeddings": 2,
    "mask_time_length": 2,
    "mask_feature_length": 2,
    "classifier_proj_size": 5,
    "tdnn_dim": [6, 5],
    "tdnn_kernel": [3, 2],
    "tdnn_dilation": [1, 2],
    "xvector_output_dim": 4,
    "num_labels": 3,
}


def config_of(name: str, **changes: Any) -> Data2VecAudioConfig:
    return Data2VecAudioConfig(**{**TINY, **model_class(name).needs, **changes})


def build(
    name: str, *, seed: int = 0, dtype: str = "float64", ops: Ops | None = None, config: Any = None, **changes: Any
) -> Any:
    """A model of a class; float64, so that a test of exact mathematics needs no tolerance worth the name."""
    return model_class(name)(config or config_of(name, **changes), {}, init_missing=seed, backend=ops or Ops(dtype))


def samples(seed: int = 0, batch: int = 2, length: int = 150) -> np.ndarray:
    """Utterances as a feature extractor leaves them: mean 0 and variance 1."""
    return np.random.default_rng(seed).normal(size=(batch, length))


def mask_of(lengths: Any, longest: int) -> np.ndarray:
    """(B, longest), ones for the samples of utterances of these lengths."""
    return (np.arange(longest) < np.asarray(lengths)[:, None]).astype(np.int64)


def main_output(out: Any) -> np.ndarray:
    """What the class is for: logits, or the hidden state."""
    return out["logits" if "logits" in out else "last_hidden_state"]


def bare(name: str) -> str:
    """What the bare model's names begin with in a model of this class."""
    return "" if name == BARE else "data2vec_audio."


@st.composite
def audio_configs(draw: st.DrawFn, name: str, **changes: Any) -> Data2VecAudioConfig:
    """A configuration that uses what the class can do."""
    heads, layers, tdnn = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    width = heads * draw(st.integers(1, 5))

    def numbers(count: int, largest: int, least: int = 1) -> list[int]:
        return draw(st.lists(st.integers(least, largest), min_size=count, max_size=count))

    values: dict[str, Any] = {
        "vocab_size": 7,
        "hidden_size": width,
        "num_hidden_layers": draw(st.integers(0, 2)),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 9)),
        "hidden_act": draw(st.sampled_from(["gelu", "relu", "silu"])),
        "feat_extract_activation": draw(st.sampled_from(["gelu", "tanh", "silu"])),
        "conv_dim": numbers(layers, 6, 2),
        "conv_stride": numbers(layers, 3),
        "conv_kernel": numbers(layers, 5),
        "conv_bias": draw(st.booleans()),
        "num_conv_pos_embedding_groups": draw(st.sampled_from([n for n in range(1, width + 1) if width % n == 0])),
        "conv_pos_kernel_size": draw(st.integers(1, 8)),
        "num_conv_pos_embeddings": draw(st.integers(0, 4)),
        "use_weighted_layer_sum": draw(st.booleans()),
        "classifier_proj_size": draw(st.integers(1, 5)),
        "tdnn_dim": numbers(tdnn, 5),
        "tdnn_kernel": numbers(tdnn, 3),
        "tdnn_dilation": numbers(tdnn, 3),
        "xvector_output_dim": draw(st.integers(1, 4)),
        "num_labels": draw(st.integers(1, 4)),
    }
    if name not in NO_ADAPTER and draw(st.booleans()):
        values["add_adapter"] = True
        values["adapter_kernel_size"] = draw(st.integers(1, 4))
        values["adapter_stride"] = draw(st.integers(1, 3))
        values["num_adapter_layers"] = draw(st.integers(0, 3))
        values["output_hidden_size"] = None if name == XVECTOR else draw(st.sampled_from([None, 1, 5]))
    return Data2VecAudioConfig(**{**values, **changes})


def inputs_of(model: Any, seed: int = 0, *, longest: int = 60) -> dict[str, Any]:
    """Two utterances, padded, with labels where the class takes any."""
    config, batch, random = model.config, 2, np.random.default_rng(seed)
    counts = model.least_samples + random.integers(0, longest, batch)
    width = int(counts.max()) + 12
    given: dict[str, Any] = {
        "input_values": random.normal(size=(batch, width)).astype("f4"),
        "attention_mask": mask_of(counts, width),
    }
    kind = type(model).__name__
    if kind == CTC and not (config.add_adapter and config.adapter_kernel_size != 3 and config.padding == "hf"):
        given["labels"] = random.integers(0, config.vocab_size, (batch, 3))
    elif kind == FRAMES:
        given["labels"] = random.integers(0, 2, (batch, model.frame_lengths(width), config.num_labels))
    elif kind in (SEQUENCE, XVECTOR):
        given["labels"] = random.integers(0, config.num_labels, batch)
    return given


def trained(model: Any, factor: float = 3.0, seed: int = 5) -> Any:
    """The same model with larger random weights: attention and predictions far from even."""
    random = np.random.default_rng(seed)
    weights = {
        name: value + factor * random.normal(size=value.shape) * (value.ndim > 1) / np.sqrt(value[0].size)
        for name, value in model.state_dict().items()
    }
    return type(model)(model.config, weights, backend=model.ops)
