"""Hypothesis strategies: text configurations, and inputs that use every option of the forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from d2v_ref.ops import ACTIVATIONS
from d2v_ref.text import Data2VecTextConfig

TEXT_HEADS = {
    "Data2VecTextModel": "",
    "Data2VecTextForCausalLM": "tokens",
    "Data2VecTextForMaskedLM": "tokens",
    "Data2VecTextForSequenceClassification": "sequence",
    "Data2VecTextForMultipleChoice": "choice",
    "Data2VecTextForTokenClassification": "token classes",
    "Data2VecTextForQuestionAnswering": "spans",
}


@st.composite
def text_configs(draw: st.DrawFn, name: str) -> Data2VecTextConfig:
    heads, head_size = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    pad = draw(st.integers(0, 3))
    decoder = (
        draw(st.booleans()) if name in ("Data2VecTextModel", "Data2VecTextForMaskedLM") else name.endswith("CausalLM")
    )
    values: dict[str, Any] = {
        "vocab_size": draw(st.integers(5, 40)),
        "hidden_size": heads * head_size,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 30)),
        "hidden_act": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "max_position_embeddings": draw(st.integers(20, 30)),
        "type_vocab_size": draw(st.integers(1, 3)),
        "layer_norm_eps": draw(st.sampled_from([1e-12, 1e-5, 1e-3])),
        "pad_token_id": pad,
        "is_decoder": decoder,
        "add_cross_attention": decoder and draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "use_cache": draw(st.booleans()),
    }
    if name == "Data2VecTextForSequenceClassification":
        values["problem_type"] = draw(
            st.sampled_from([None, "regression", "single_label_classification", "multi_label_classification"])
        )
    fewest = 2 if values.get("problem_type") == "single_label_classification" else 1
    values["num_labels"] = 2 if name == "Data2VecTextForQuestionAnswering" else draw(st.integers(fewest, 4))
    return Data2VecTextConfig(**values)


@st.composite
def text_cases(draw: st.DrawFn, name: str) -> tuple[Data2VecTextConfig, dict[str, Any], int]:
    """(configuration, keyword arguments of forward, seed of the weights)."""
    config = draw(text_configs(name))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    chunk = draw(st.sampled_from([0, 0, 0, *(n for n in range(1, length + 1) if length % n == 0)]))
    config.chunk_size_feed_forward = chunk
    lead: tuple[int, ...] = (batch,)
    if name == "Data2VecTextForMultipleChoice":
        lead = (batch, draw(st.integers(1, 3)))
    shape = (*lead, length)

    inputs: dict[str, Any] = {}
    if draw(st.integers(0, 3)) == 0:
        inputs["inputs_embeds"] = random.normal(size=(*shape, config.hidden_size))
    else:
        inputs["input_ids"] = random.integers(0, config.vocab_size, shape)
        if draw(st.booleans()):
            inputs["input_ids"][..., length - random.integers(0, length) :] = config.pad_token_id
    if draw(st.booleans()):
        inputs["token_type_ids"] = random.integers(0, config.type_vocab_size, shape)
    if draw(st.integers(0, 3)) == 0:
        inputs["position_ids"] = random.integers(0, config.max_position_embeddings, shape)
    inputs.update(_mask(draw, random, "attention_mask", shape, length, config, four=len(lead) == 1))
    if config.add_cross_attention and draw(st.integers(0, 3)):
        states = draw(st.integers(1, 6))
        inputs["encoder_hidden_states"] = random.normal(size=(batch, states, config.hidden_size))
        inputs.update(_mask(draw, random, "encoder_attention_mask", (batch, states), length, config, four=True))
    if config.is_decoder and name != "Data2VecTextForMaskedLM" and draw(st.booleans()):
        inputs["use_cache"] = draw(st.booleans())
    if name == "Data2VecTextForCausalLM" and draw(st.integers(0, 4)) == 0:
        inputs["logits_to_keep"] = int(random.integers(0, length + 1))
    if "logits_to_keep" not in inputs and draw(st.integers(0, 3)):
        inputs.update(_labels(random, TEXT_HEADS[name], config, lead, length))
    inputs["output_attentions"], inputs["output_hidden_states"] = draw(st.booleans()), draw(st.booleans())
    return config, inputs, draw(st.integers(0, 2**63))


def _mask(
    draw: st.DrawFn,
    random: np.random.Generator,
    name: str,
    shape: tuple[int, ...],
    queries: int,
    config: Data2VecTextConfig,
    four: bool,
) -> dict[str, Any]:
    kind = draw(st.sampled_from(["none", "right", "left", "holes", "empty row", "additive"]))
    keys = shape[-1]
    mask = np.ones(shape, np.int64)
    if kind == "none" or (kind == "additive" and not four):
        return {}
    if kind == "additive":  # (B, 1 or H, T, S), added to the scores; it replaces the causal rule too
        heads = draw(st.sampled_from([1, config.num_attention_heads]))
        bias = random.normal(size=(shape[0], heads, queries, keys))
        bias[random.random(bias.shape) < 0.2] = np.finfo(np.float32).min
        return {name: bias}
    for row in mask.reshape(-1, keys):
        cut = random.integers(0, keys)
        if kind == "right":
            row[keys - cut :] = 0
        elif kind == "left":
            row[:cut] = 0
        elif kind == "holes":
            row[:] = random.integers(0, 2, keys)
    if kind == "empty row":
        mask.reshape(-1, keys)[0] = 0
    return {name: mask.astype(bool) if draw(st.booleans()) else mask}


def _labels(
    random: np.random.Generator, head: str, config: Data2VecTextConfig, lead: tuple[int, ...], length: int
) -> dict[str, Any]:
    batch, classes = lead[0], config.num_labels
    if head == "tokens" or head == "token classes":
        labels = random.integers(0, config.vocab_size if head == "tokens" else classes, (batch, length))
        labels[random.random(labels.shape) < 0.3] = -100
        return {"labels": labels}
    if head == "choice":
        return {"labels": random.integers(0, lead[1], batch)}
    if head == "spans":  # some outside the text on either side
        return {
            "start_positions": random.integers(-2, length + 3, batch),
            "end_positions": random.integers(-2, length + 3, batch),
        }
    if head == "sequence":
        kind = config.problem_type or (
            "regression" if classes == 1 else random.choice(["single_label_classification", "multi"])
        )
        if kind == "regression":
            return {"labels": random.normal(size=(batch, classes) if classes > 1 else (batch,))}
        if kind == "single_label_classification":
            return {"labels": random.integers(0, classes, batch)}
        return {"labels": random.integers(0, 2, (batch, classes)).astype(np.float64)}
    return {}
