"""A model of each modality on "numba_cuda" against NumPy's definitions in float64, in Numba's simulator.

``test_numba_cuda.py`` starts it.  Each has one layer and is a few numbers wide.
"""

from __future__ import annotations

import sys
from typing import Any

import audio_models
import numpy as np
import pytest
import text_models
import vision_models
from d2v_backends.numba_cuda import NumbaCudaOps
from test_backend_models import hold, same

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
sys.setswitchinterval(1e-4)

SMALL: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6}


def text(dtype: str) -> tuple[Any, dict[str, Any]]:
    """A decoder with relative positions, a mask and a token that sees nothing."""
    changes = SMALL | {"vocab_size": 11, "position_embedding_type": "relative_key_query", "tie_word_embeddings": False}
    model = text_models.trained(text_models.build("Data2VecTextForCausalLM", dtype=dtype, **changes), 1.0)
    ids = np.array([[3, 5, 9]])
    return model, {"input_ids": ids, "attention_mask": np.array([[0, 1, 1]]), "labels": ids}


def audio(dtype: str) -> tuple[Any, dict[str, Any]]:
    """Two utterances, one of them padded."""
    changes = SMALL | {"conv_dim": [3, 4], "conv_stride": [3, 2], "conv_kernel": [4, 3], "vocab_size": 4}
    changes |= {"num_conv_pos_embedding_groups": 2, "conv_pos_kernel_size": 3}
    model = audio_models.trained(audio_models.build("Data2VecAudioForCTC", dtype=dtype, **changes), 1.0)
    mask, labels = audio_models.mask_of([30, 24], 30), np.array([[1], [2]])
    return model, {"input_values": audio_models.samples(0, 2, 30), "attention_mask": mask, "labels": labels}


def vision(dtype: str) -> tuple[Any, dict[str, Any]]:
    """With a mask token, positions of both kinds, and a picture of another size than the model's."""
    changes = SMALL | {"image_size": 4, "patch_size": 2, "num_labels": 2, "use_absolute_position_embeddings": True}
    model = vision_models.trained(vision_models.build(vision_models.CLASSIFIER, dtype=dtype, **changes), 1.0)
    masked = np.array([[False, True, False, False, False, True]])
    given = {"bool_masked_pos": masked, "labels": np.array([1])}
    return model, {"pixel_values": vision_models.pictures(0, 1, 4, 6), **given}


CASES = [(text, "float32"), (audio, "float32"), (vision, "float32"), (text, "float64")]


@pytest.mark.parametrize(("case", "dtype"), CASES)
def test_a_model_computes_what_numpy_computes(case: Any, dtype: str) -> None:
    model, inputs = case(dtype)
    hold(model, inputs, NumbaCudaOps(dtype), dtype)


def test_segmentation() -> None:
    """Convolutions of maps, pools and resizing."""
    changes = SMALL | {"hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 3, "image_size": 4}
    changes |= {"patch_size": 2, "pool_scales": [1, 2], "auxiliary_channels": 2, "num_labels": 2}
    model = vision_models.build(vision_models.SEGMENTER, dtype="float32", **changes)
    hold(model, {"pixel_values": vision_models.pictures(0, 1, 4, 4)}, NumbaCudaOps(), "float32")


def test_weights_come_back_bit_for_bit() -> None:
    model, _ = text("float32")
    same(model.with_ops(NumbaCudaOps()).state_dict(), model.state_dict())


def test_a_cache_and_beams() -> None:
    """Tokens one at a time, whose cache is reordered, are those that NumPy finds."""
    model = text_models.trained(text_models.build("Data2VecTextForCausalLM", dtype="float32", **SMALL), 1.0, 12)
    given: dict[str, Any] = {"max_new_tokens": 2, "num_beams": 2, "eos_token_id": []}
    prompt = np.array([[3, 5]])
    got = model.with_ops(NumbaCudaOps()).generate(prompt, **given)
    np.testing.assert_array_equal(got, model.generate(prompt, **given))
