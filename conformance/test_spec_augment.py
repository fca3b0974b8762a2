"""SpecAugment against transformers 5.23: the same masks of the same seed, and the same training pass of every class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.models.data2vec.modeling_data2vec_audio import _compute_mask_indices

from conformance import audio_draws, oracle
from conformance.compare import compare
from d2v_ref.spec_augment import compute_mask_indices

pytestmark = pytest.mark.filterwarnings(r"ignore:std\(\)")  # torch of an utterance of a single frame

seeds = st.integers(0, 2**32 - 1)
NO_DROPOUT: dict[str, Any] = {
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
}
probabilities = st.sampled_from([0.0, 0.065, 0.5, 1.0]) | st.floats(0, 1)


@settings(max_examples=800)
@given(data=st.data(), seed=seeds, prob=probabilities, min_masks=st.integers(0, 6))
def test_masks_bit_for_bit(data: st.DataObject, seed: int, prob: float, min_masks: int, tally: dict[str, Any]) -> None:
    batch, length = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 200) | st.integers(1, 12))
    span = data.draw(st.integers(1, min(length, 12)))
    lengths, mask = None, None
    if data.draw(st.booleans()):
        lengths = np.random.default_rng(seed).integers(0, length + 1, batch)
        mask = torch.from_numpy(np.arange(length) < lengths[:, None])
    np.random.seed(seed)  # noqa: NPY002 - transformers draws from the global generator
    want = _compute_mask_indices((batch, length), prob, span, mask, min_masks)
    generator = np.random.RandomState(seed)
    got = compute_mask_indices((batch, length), prob, span, generator, lengths=lengths, min_masks=min_masks)
    np.testing.assert_array_equal(got, want)
    assert generator.random() == np.random.random()  # noqa: NPY002 - neither has drawn more than the other
    tally["masks of SpecAugment"].cases += 1


@st.composite
def training_cases(draw: st.DrawFn, name: str) -> tuple[Any, dict[str, Any], int]:
    config, inputs, seed = draw(audio_draws.audio_cases(name))
    changes: dict[str, Any] = {
        **NO_DROPOUT,
        "mask_time_prob": draw(st.sampled_from([0.0, 0.3, 0.9])),
        "mask_feature_prob": draw(st.sampled_from([0.0, 0.3, 0.9])),
        "mask_feature_min_masks": draw(st.integers(0, 2)),
        "apply_spec_augment": draw(st.integers(0, 9)) > 0,
    }
    assume(changes["mask_time_prob"] or changes["mask_feature_prob"] or "mask_time_indices" not in inputs)
    return type(config)(**{**config.to_dict(), **changes}), inputs, seed


@pytest.mark.parametrize("name", audio_draws.AUDIO_HEADS)
def test_a_training_pass_in_float64(name: str, tally: dict[str, Any]) -> None:
    """Every module's output of a pass that masks time and features, without dropout."""

    @settings(max_examples=120)
    @given(case=training_cases(name), draw=seeds)
    def check(case: Any, draw: int) -> None:
        config, inputs, seed = case
        ours, theirs = oracle.pair(name, config, seed, "float64")
        frames = ours.frame_lengths(inputs["input_values"].shape[1], add_adapter=False)
        assume(frames >= config.mask_time_length)  # or transformers and we refuse
        np.random.seed(draw)  # noqa: NPY002 - transformers draws from the global generator
        want = oracle.everything(*oracle.run_recorded(theirs.train(), inputs, "float64"))
        generator = np.random.RandomState(draw)
        got = oracle.everything(*ours.record(**inputs, generator=generator))
        compare(got, want, oracle.EXACT, tally[f"{name}, float64, training pass"])

    check()
