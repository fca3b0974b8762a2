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
from d2v_ref.golden.bounds import tolerances
from d2v_ref.ops import Ops, get_ops

EXACT = 1e-10  # relative, float64: far above its rounding, far below any difference in what is computed


def in_dtype(inputs: dict[str, Any], dtype: str) -> dict[str, Any]:
    return {k: v.astype(dtype) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v for k, v in inputs.items()}


@pytest.mark.parametrize("name", draws.TEXT_HEADS)
def test_every_module_in_float64(name: str, tally: dict[str, Any]) -> None:
    @settings(max_examples=150)
    @given(case=draws.text_cases(name))
    def check(case: Any) -> None:
        config, inputs, seed = case
        ours, theirs = oracle.pair(name, config, seed, "float64")
        want = oracle.everything(*oracle.run_recorded(theirs, inputs, "float64"))
        got = oracle.everything(*ours.record(**inputs))
        compare(got, want, EXACT, tally[f"{name}, float64, every module"])
        # An unrecorded run may fuse and chunk: the same outputs.
        plain = oracle.everything(ours(**inputs), {})
        compare(plain, {key: want[key] for key in plain}, EXACT, tally[f"{name}, float64, unrecorded"])

    check()


@pytest.mark.parametrize("name", draws.TEXT_HEADS)
def test_float32_within_the_derived_bound(name: str, tally: dict[str, Any]) -> None:
    """An array's bound is computed from the operations' error bounds (d2v_ref/golden/bounds.py)."""

    @settings(max_examples=60)
    @given(case=draws.text_cases(name))
    def check(case: Any) -> None:
        config, inputs, seed = case
        inputs = in_dtype(inputs, "float32")
        ours, theirs = oracle.pair(name, config, seed, "float32")
        want = oracle.everything(*oracle.run_recorded(theirs, inputs, "float32"))
        got = oracle.everything(*ours.record(**inputs))

        def run(ops: Ops) -> dict[str, np.ndarray]:
            return oracle.everything(*ours.with_ops(ops).record(**inputs))

        bounds = tolerances(run, run(get_ops(dtype="float64")))
        for loss in {"loss", "#loss"} & set(bounds):  # the loss itself rounds too, as the logits that it is made of
            bounds[loss] += max(bound for key, bound in bounds.items() if key.endswith("logits"))
        compare(got, want, bounds, tally[f"{name}, float32, every module"])

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
    compare(oracle.everything(*ours.record(**inputs)), want, EXACT, tally["more tokens than positions, float64"])
