"""Every vision class against transformers 5.23: every output, loss and module's output, over drawn configurations and
inputs.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from conformance import oracle, vision_draws


@pytest.mark.parametrize("name", vision_draws.VISION_HEADS)
def test_every_module_in_float64(name: str, tally: dict[str, Any]) -> None:
    @settings(max_examples=250)
    @given(case=vision_draws.vision_cases(name))
    def check(case: Any) -> None:
        config, inputs, seed = case
        oracle.hold_exact(name, config, inputs, seed, tally)

    check()


@pytest.mark.parametrize("name", vision_draws.VISION_HEADS)
def test_float32_within_the_derived_bound(name: str, tally: dict[str, Any]) -> None:
    @settings(max_examples=60)
    @given(case=vision_draws.vision_cases(name))
    def check(case: Any) -> None:
        config, inputs, seed = case
        oracle.hold_within_bound(name, config, inputs, seed, tally)

    check()
