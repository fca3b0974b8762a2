"""Hypothesis strategies: audio configurations, and inputs that use every option of the forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from d2v_ref.audio import Data2VecAudioConfig, Data2VecAudioPreTrainedModel
from d2v_ref.auto import model_class
from d2v_ref.ops import ACTIVATIONS

AUDIO_HEADS = (
    "Data2VecAudioModel",
    "Data2VecAudioForCTC",
    "Data2VecAudioForSequenceClassification",
    "Data2VecAudioForAudioFrameClassification",
    "Data2VecAudioForXVector",
)
NO_ADAPTER = ("Data2VecAudioForSequenceClassification", "Data2VecAudioForAudioFrameClassification")


@st.composite
def audio_configs(draw: st.DrawFn, name: str, **changes: Any) -> Data2VecAudioConfig:
    heads, head_size, layers = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    width = heads * head_size
    tdnn = draw(st.integers(1, 3))

    def numbers(count: int, largest: int) -> list[int]:
        return draw(st.lists(st.integers(1, largest), min_size=count, max_size=count))

    values: dict[str, Any] = {
        "vocab_size": draw(st.integers(3, 12)),
        "hidden_size": width,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 20)),
        "hidden_act": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "feat_extract_activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "layer_norm_eps": draw(st.sampled_from([1e-12, 1e-5, 1e-3])),
        "conv_dim": numbers(layers, 6),
        "conv_stride": numbers(layers, 3),
        "conv_kernel": numbers(layers, 5),
        "conv_bias": draw(st.booleans()),
        "num_conv_pos_embedding_groups": draw(st.sampled_from([n for n in range(1, width + 1) if width % n == 0])),
        "conv_pos_kernel_size": draw(st.integers(1, 8)),
        "num_conv_pos_embeddings": draw(st.integers(0, 4)),
        "mask_time_prob": draw(st.sampled_from([0.0, 0.05, 0.6])),
        "mask_feature_prob": draw(st.sampled_from([0.0, 0.4])),
        "mask_time_length": draw(st.integers(1, 3)),
        "mask_feature_length": draw(st.integers(1, min(3, width))),
        "mask_time_min_masks": draw(st.integers(0, 2)),
        "apply_spec_augment": draw(st.integers(0, 4)) > 0,
        "pad_token_id": draw(st.integers(0, 2)),
        "ctc_loss_reduction": draw(st.sampled_from(["sum", "mean"])),
        "ctc_zero_infinity": draw(st.booleans()),
        "use_weighted_layer_sum": draw(st.booleans()),
        "classifier_proj_size": draw(st.integers(1, 8)),
        "tdnn_dim": numbers(tdnn, 6),
        "tdnn_kernel": numbers(tdnn, 3),
        "tdnn_dilation": numbers(tdnn, 3),
        "xvector_output_dim": draw(st.integers(1, 6)),
        "num_labels": draw(st.integers(1, 4)),
    }
    if name not in NO_ADAPTER and draw(st.booleans()):
        values["add_adapter"] = True
        values["adapter_kernel_size"] = draw(st.integers(1, 4))
        values["adapter_stride"] = draw(st.integers(1, 3))
        values["num_adapter_layers"] = draw(st.integers(0, 3))
        values["output_hidden_size"] = None if "XVector" in name else draw(st.sampled_from([None, 1, 5]))
    return Data2VecAudioConfig(**{**values, **changes})


@st.composite
def audio_cases(draw: st.DrawFn, name: str) -> tuple[Data2VecAudioConfig, dict[str, Any], int]:
    """(configuration, keyword arguments of forward, seed of the weights)."""
    config = draw(audio_configs(name))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    model: Data2VecAudioPreTrainedModel = model_class(name)(config)  # type: ignore[assignment]
    batch, samples = draw(st.integers(1, 3)), model.least_samples + draw(st.integers(0, 60))
    inputs: dict[str, Any] = {"input_values": random.normal(size=(batch, samples))}
    if draw(st.integers(0, 7)) == 0:
        inputs["input_values"][0] = 0.0  # silence
    frames = model.frame_lengths(samples, add_adapter=False)
    inputs.update(_mask(draw, random, model, batch, samples))
    embed = config.mask_time_prob > 0 or config.mask_feature_prob > 0
    if name == "Data2VecAudioModel" and embed and draw(st.booleans()):
        inputs["mask_time_indices"] = random.random((batch, frames)) < 0.4
    inputs.update(_labels(draw, random, name, model, inputs))
    inputs["output_attentions"], inputs["output_hidden_states"] = draw(st.booleans()), draw(st.booleans())
    return config, inputs, draw(st.integers(0, 2**63))


def _mask(draw: st.DrawFn, random: np.random.Generator, model: Any, batch: int, samples: int) -> dict[str, Any]:
    kind = draw(st.sampled_from(["none", "full", "padded", "one frame", "no frame", "holes"]))
    if kind == "none":
        return {}
    counts = np.full(batch, samples)
    if kind == "padded":
        counts = random.integers(1, samples + 1, batch)
    elif kind == "one frame":
        counts[0] = model.data2vec_audio.least_samples if hasattr(model, "data2vec_audio") else model.least_samples
    elif kind == "no frame":
        counts[0] = 0
    mask = (np.arange(samples) < counts[:, None]).astype(np.int64)
    if kind == "holes":  # only the number of ones counts
        mask = random.integers(0, 2, (batch, samples))
    frames = model.frame_lengths(samples, add_adapter=False)
    if (model.frame_lengths(mask.sum(1), add_adapter=False) - 1 < -frames).any():
        return {}  # transformers' assignment fails here, and so does ours: tests/test_audio.py
    return {"attention_mask": mask.astype(bool) if draw(st.integers(0, 3)) == 0 and kind != "holes" else mask}


def _labels(
    draw: st.DrawFn, random: np.random.Generator, name: str, model: Any, inputs: dict[str, Any]
) -> dict[str, Any]:
    if name == "Data2VecAudioModel" or draw(st.integers(0, 3)) == 0:
        return {}
    config, (batch, samples) = model.config, inputs["input_values"].shape
    if name == "Data2VecAudioForCTC":
        counts = inputs["attention_mask"].sum(1) if "attention_mask" in inputs else np.full(batch, samples)
        lengths = model.frame_lengths(counts)
        if config.add_adapter and config.adapter_kernel_size != 3:
            return {}  # the lengths are then not those of the logits, and torch refuses
        if (lengths < 1).any():
            return {}
        labels = random.integers(0, config.vocab_size, (batch, draw(st.integers(1, 6))))
        labels[random.random(labels.shape) < 0.2] = -100
        return {"labels": labels}
    if name == "Data2VecAudioForAudioFrameClassification":
        frames = model.frame_lengths(samples)
        return {"labels": random.integers(0, 2, (batch, frames, config.num_labels))}
    return {"labels": random.integers(0, config.num_labels, batch)}
