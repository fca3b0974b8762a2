"""Every text class against transformers 5.23: every output, loss and module's output, over drawn configurations and
inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from conformance import draws, oracle
from conformance.compare import compare


@pytest.mark.parametrize("name", draws.TEXT_HEADS)
def test_every_module_in_float64(name: str, tally: dict[str, Any]) -> None:
    @settings(max_examples=150)
    @given(case=draws.text_cases(name))
    def check(case: Any) -> None:
        config, inputs, seed = case
        oracle.hold_exact(name, config, inputs, seed, tally)

    check()


@pytest.mark.parametrize("name", draws.TEXT_HEADS)
def test_float32_within_the_derived_bound(name: str, tally: dict[str, Any]) -> None:
    @settings(max_examples=60)
    @given(case=draws.text_cases(name))
    def check(case: Any) -> None:
        config, inputs, seed = case
        oracle.hold_within_bound(name, config, inputs, seed, tally)

    check()


def test_more_tokens_than_positions(tally: dict[str, Any]) -> None:
    """Padding takes no position: 18 tokens and 4 of padding pass through a table of 20 rows, there and here."""
    config = draws.Data2VecTextConfig(
        vocab_size=30,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=20,
    )
    ours, theirs = oracle.pair("Data2VecTextModel", config, 0, "float64")
    ids = np.pad(np.random.default_rng(0).integers(4, 30, (2, 18)), ((0, 0), (2, 2)), constant_values=1)
    inputs = {"input_ids": ids, "attention_mask": (ids != 1).astype(np.int64)}
    want = oracle.everything(*oracle.run_recorded(theirs, inputs, "float64"))
    compare(oracle.everything(*ours.record(**inputs)), want, oracle.EXACT, tally["more tokens than positions, float64"])
