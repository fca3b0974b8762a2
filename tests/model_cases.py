"""A tiny model of every class with inputs that use what it can do, and all the arrays that come of them."""

from __future__ import annotations

from typing import Any

import audio_models
import numpy as np
import text_models
import vision_models
from hypothesis import strategies as st

from d2v_ref import PreTrainedModel
from d2v_ref.auto import model_class
from d2v_ref.ops import Ops

ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu", "quick_gelu", "tanh")
BARE, CAUSAL = "Data2VecTextModel", "Data2VecTextForCausalLM"


@st.composite
def cases(draw: st.DrawFn, name: str, dtype: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model with NumPy's operations, with large weights as often as not, and arguments for it."""
    seed, factor = draw(st.integers(0, 2**16)), draw(st.sampled_from([0.0, 2.0]))
    model: PreTrainedModel
    if name in text_models.CLASSES:
        model, inputs = text_case(name, seed, dtype)
        return text_models.trained(model, factor, seed), inputs
    if name in audio_models.CLASSES:
        config = draw(audio_models.audio_configs(name, padding=draw(st.sampled_from(["hf", "exact"]))))
        model = audio_models.trained(audio_models.build(name, seed=seed, dtype=dtype, config=config), factor, seed)
        return model, audio_models.inputs_of(model, seed)
    if name.startswith("TF"):
        return tf_case(name, seed, dtype)
    made = vision_models.build(name, seed=seed, dtype=dtype, config=draw(vision_models.vision_configs(name)))
    model = vision_models.trained(made, factor, seed)
    return model, vision_models.inputs_of(model, seed)


def text_case(name: str, seed: int, dtype: str, **shape: Any) -> tuple[Any, dict[str, Any]]:
    random = np.random.default_rng(seed)
    decoder = name == CAUSAL or (name == BARE and bool(random.integers(2)))
    cross = decoder and bool(random.integers(2))
    changes: dict[str, Any] = {
        "position_embedding_type": random.choice(["absolute", "absolute", "relative_key", "relative_key_query"]).item(),
        "hidden_act": random.choice(ACTIVATIONS).item(),
        "is_decoder": decoder,
        "add_cross_attention": cross,
        "tie_word_embeddings": bool(random.integers(2)),
        **shape,
    }
    model = text_models.build(name, seed=seed, dtype=dtype, **changes)
    ids = text_models.token_ids(name, seed, int(random.integers(1, 4)), int(random.integers(1, 9)))
    inputs: dict[str, Any] = {"input_ids": ids, "token_type_ids": random.integers(0, 2, ids.shape)}
    if name != text_models.CHOICE:
        inputs |= text_masks(random, ids.shape, model.config.num_attention_heads)
        inputs["output_attentions"], inputs["output_hidden_states"] = bool(random.integers(2)), bool(random.integers(2))
    if cross:
        inputs["encoder_hidden_states"] = random.normal(size=(len(ids), 5, model.config.hidden_size))
        inputs["encoder_attention_mask"] = random.integers(0, 2, (len(ids), 5))
    if random.integers(2) and name != BARE:
        inputs |= text_labels(random, name, ids)
    return model, inputs


def text_masks(random: np.random.Generator, ids: tuple[int, ...], heads: int) -> dict[str, Any]:
    """A mask of one of its forms, with rows that see nothing, and factors of the heads."""
    batch, length = ids
    shapes = [(batch, length), (batch, length, length), (batch, 1, length, length), (batch, heads, length, length)]
    mask = random.random(shapes[random.integers(4)]) < random.choice([0.3, 0.8])
    found: dict[str, Any] = {"attention_mask": mask if mask.ndim == 4 else mask.astype(int)}
    if mask.ndim == 4 and random.integers(2):
        found["attention_mask"] = np.where(mask, random.normal(size=mask.shape), -np.inf)
    if random.integers(3) == 0:
        found["head_mask"] = random.random(heads)
    return found if random.integers(4) else {}


def text_labels(random: np.random.Generator, name: str, ids: np.ndarray) -> dict[str, Any]:
    batch = len(ids)
    if name.endswith("QuestionAnswering"):
        return {"start_positions": random.integers(0, 3, batch), "end_positions": random.integers(0, 3, batch)}
    if name.endswith(("CausalLM", "MaskedLM")):
        return {"labels": ids}
    if name.endswith("TokenClassification"):
        return {"labels": random.integers(0, 2, ids.shape)}
    return {"labels": random.integers(0, 2, batch)}


def tf_case(name: str, seed: int, dtype: str) -> tuple[Any, dict[str, Any]]:
    """A picture of the model's own size, which is all that TensorFlow's classes take."""
    changes = {"image_size": 16, "patch_size": 4, "pool_scales": [1, 2]} if "Segmentation" in name else {}
    config = vision_models.config_of(use_shared_relative_position_bias=bool(seed % 2), **changes)
    model = model_class(name)(config, {}, init_missing=seed, backend=Ops(dtype))
    side = config.window[0] * config.patch[0]
    return model, {"pixel_values": vision_models.pictures(seed, 2, side, side, config.num_channels)}


def plain_case(name: str, seed: int, dtype: str) -> tuple[Any, dict[str, Any]]:
    """The tiny model of a class as it is."""
    if name in text_models.CLASSES:
        return text_models.build(name, seed=seed, dtype=dtype), {"input_ids": text_models.token_ids(name, seed)}
    if name in audio_models.CLASSES:
        model = audio_models.build(name, seed=seed, dtype=dtype)
        return model, audio_models.inputs_of(model, seed)
    if name.startswith("TF"):
        return tf_case(name, seed, dtype)
    model = vision_models.build(name, seed=seed, dtype=dtype)
    return model, vision_models.inputs_of(model, seed)


def wide_case(name: str, dtype: str) -> tuple[Any, dict[str, Any]]:
    """Wide enough for several panels of a product, long enough for several blocks of an attention."""
    shape: dict[str, Any] = {"hidden_size": 99, "intermediate_size": 200, "num_hidden_layers": 2}
    if name in text_models.CLASSES:
        model = text_models.build(name, dtype=dtype, max_position_embeddings=80, **shape)
        return model, {"input_ids": text_models.token_ids(name, 0, 2, 70)}
    if name in audio_models.CLASSES:
        groups: dict[str, Any] = {
            "num_conv_pos_embedding_groups": 9,
            "conv_pos_kernel_size": 19,
            "conv_dim": [64, 70, 64],
        }
        model = audio_models.build(name, dtype=dtype, **shape, **groups)
        return model, audio_models.inputs_of(model, 2, longest=1500)
    model = vision_models.build(name, dtype=dtype, image_size=36, **{**shape, "num_hidden_layers": 3})
    return model, vision_models.inputs_of(model, 0, any_size=False)


def everything(model: Any, ops: Ops, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """What a model computes with these operations: every module's output, recorded, and the outputs of another run.

    The second one is not recorded, so that a backend may fuse.
    """
    own = model.with_ops(ops)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # losses of what no label fits
        found = dict(own.record(**inputs)[1])
        out = own(**inputs, return_dict=True)
    for name, value in out.items():
        found.update(_flat(name, value))
    return found


def _flat(name: str, value: Any) -> dict[str, np.ndarray]:
    if isinstance(value, np.ndarray | np.generic):
        return {name: np.asarray(value)}
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return {}
    return {key: x for i, item in enumerate(value) for key, x in _flat(f"{name}.{i}", item).items()}
