"""Decoding against transformers 5.23: caches step by step, and generated tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance import draws, oracle
from conformance.compare import cache_arrays, compare
from d2v_ref.generation import GenerationSettings, filtered_log_probs
from d2v_ref.text import Data2VecTextConfig

EXACT = 1e-10


@st.composite
def decoders(draw: st.DrawFn) -> Data2VecTextConfig:
    config = draw(
        draws.text_configs("Data2VecTextForCausalLM").filter(lambda c: c.hidden_size > 5)
    )  # narrower ones score tokens alike
    config.use_cache = True
    return config


def encoder_inputs(config: Data2VecTextConfig, random: np.random.Generator, batch: int) -> dict[str, Any]:
    if not config.add_cross_attention:
        return {}
    mask = np.ones((batch, 4), np.int64)
    mask[0, 2:] = 0
    return {"encoder_hidden_states": random.normal(size=(batch, 4, config.hidden_size)), "encoder_attention_mask": mask}


def test_steps_with_a_cache(tally: dict[str, Any]) -> None:
    """Prompt, several tokens, one token: outputs and caches agree, and ours leaves the cache that it was given as it
    was.
    """

    @settings(max_examples=100)
    @given(
        config=decoders(),
        seed=st.integers(0, 2**32),
        steps=st.lists(st.integers(1, 4), min_size=2, max_size=4),
        nested=st.booleans(),
    )
    def check(config: Data2VecTextConfig, seed: int, steps: list[int], nested: bool) -> None:
        random = np.random.default_rng(seed)
        ours, theirs = oracle.pair("Data2VecTextForCausalLM", config, seed, "float64")
        batch, total = 2, sum(steps)
        ids = random.integers(0, config.vocab_size, (batch, total))
        ids[1, :1] = config.pad
        mask = (ids != config.pad_token_id).astype(np.int64)
        encoder = encoder_inputs(config, random, batch)
        mine: Any = None
        other: Any = None
        start = 0
        for length in steps:
            inputs = {
                "input_ids": ids[:, start : start + length],
                "attention_mask": mask[:, : start + length],
                **encoder,
            }
            want = oracle.run(theirs, {**inputs, "past_key_values": other, "use_cache": True}, "float64")
            before = None if mine is None else [[array.copy() for array in layer] for layer in cache_arrays(mine)]
            got = ours(**inputs, past_key_values=tuple(mine) if nested and mine is not None else mine, use_cache=True)
            flat_got, flat_want = (oracle.everything(out, {}) for out in (got, want))
            # The cross pair does not grow; transformers gives it once more with each step.
            compare(flat_got, flat_want, EXACT, tally["decoding with a cache, float64"])
            if before is not None:
                for old, now in zip(before, cache_arrays(mine), strict=True):
                    for a, b in zip(old, now, strict=True):
                        np.testing.assert_array_equal(a, b)
            mine, other, start = got.past_key_values, want.past_key_values, start + length

    check()


def positions_of_the_forward_pass(theirs: Any, pad: int) -> None:
    """transformers 5 numbers positions from 0 in ``generate``, its forward pass from pad + 1.

    Make it number them alike.
    """

    def positions(inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]) -> torch.Tensor:
        mask = model_kwargs.get("attention_mask")
        mask = torch.ones_like(inputs_tensor) if mask is None else mask.long()
        return mask.cumsum(-1) * mask + pad  # later steps count on from the last

    theirs._prepare_position_ids_for_generation = positions


SEARCHES = [
    {},
    {"num_beams": 2},
    {"num_beams": 3, "num_return_sequences": 3},
    {"num_beams": 3, "early_stopping": True, "length_penalty": 0.5},
    {"num_beams": 4, "early_stopping": "never", "length_penalty": 2.0, "num_return_sequences": 2},
    {"num_beams": 2, "length_penalty": -1.0},
]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_generated_tokens(search: dict[str, Any], tally: dict[str, Any]) -> None:
    """Greedy and beam search give transformers' tokens; cached and uncached give the same."""

    @settings(max_examples=25)
    @given(
        config=decoders(),
        seed=st.integers(0, 2**32),
        left=st.booleans(),
        ends=st.lists(st.integers(0, 4), max_size=2, unique=True),
    )
    def check(config: Data2VecTextConfig, seed: int, left: bool, ends: list[int]) -> None:
        random = np.random.default_rng(seed)
        ours, theirs = oracle.pair("Data2VecTextForCausalLM", config, seed, "float64")
        positions_of_the_forward_pass(theirs, config.pad)
        ends = [end for end in ends if end != config.pad_token_id]
        ids = random.integers(0, config.vocab_size, (2, 4))
        ids[ids == config.pad_token_id] = 4
        mask = np.ones_like(ids)
        if left:
            ids[1, :2], mask[1, :2] = config.pad, 0
        encoder = encoder_inputs(config, random, 2)
        options = {"max_new_tokens": 7, **search}
        got = ours.generate(ids, mask, eos_token_id=ends, **encoder, **options)
        again = ours.generate(ids, mask, eos_token_id=ends, use_cache=False, **encoder, **options)
        np.testing.assert_array_equal(got, again)
        inputs = oracle.to_torch({"inputs": ids, "attention_mask": mask, **encoder}, "float64")
        with torch.no_grad():
            options |= {"do_sample": False, "eos_token_id": ends or None, "pad_token_id": config.pad_token_id}
            options[
                "use_cache"
            ] = not encoder  # transformers makes a decoder with cross attention the wrong kind of cache here
            want = theirs.generate(**inputs, **options).numpy()
        width = max(got.shape[1], want.shape[1])
        got, want = (np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=config.pad) for x in (got, want))
        np.testing.assert_array_equal(got, want)
        t = tally["generated tokens"]
        t.cases, t.arrays = t.cases + 1, t.arrays + len(got)

    check()


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    temperature=st.floats(0.1, 3.0),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.05, 1.0),
)
def test_sampling_cuts_as_transformers_does(seed: int, temperature: float, top_k: int, top_p: float) -> None:
    """Temperature, top-k and top-p leave the tokens and probabilities that transformers' logits processors leave."""
    from transformers.generation import logits_process as lp

    logits = np.random.default_rng(seed).normal(size=(3, 10)) * 3
    scores = torch.from_numpy(logits)
    scores = lp.TemperatureLogitsWarper(float(temperature))(None, scores)
    scores = lp.TopKLogitsWarper(top_k)(None, scores) if top_k else scores
    scores = lp.TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
    want = torch.softmax(scores, -1).numpy()
    got = np.exp(
        filtered_log_probs(
            logits, GenerationSettings(do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p)
        )
    )
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-14)


def test_transformers_generates_from_other_positions_than_its_forward_pass() -> None:
    """The defect that d2v_ref does not copy: without the repair above, transformers' first token is not its forward
    pass's best.
    """
    config = Data2VecTextConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        is_decoder=True,
    )
    differ = 0
    for seed in range(10):
        ours, theirs = oracle.pair("Data2VecTextForCausalLM", config, seed, "float64")
        ids = np.random.default_rng(seed).integers(4, 50, (1, 6))
        with torch.no_grad():
            first = theirs(torch.from_numpy(ids)).logits[:, -1].argmax(-1)
            generated = theirs.generate(torch.from_numpy(ids), max_new_tokens=1, do_sample=False)[:, -1]
        np.testing.assert_array_equal(ours.generate(ids, max_new_tokens=1)[:, -1], first.numpy())
        differ += int((first != generated).any())
    assert differ > 0
