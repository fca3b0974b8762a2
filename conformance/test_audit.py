"""Counted multiply-adds against torch's own count of transformers' model, module by module."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from torch.utils.flop_counter import FlopCounterMode

from conformance import oracle
from conformance.audio_draws import AUDIO_HEADS, audio_cases
from conformance.draws import TEXT_HEADS, text_cases
from conformance.vision_draws import VISION_HEADS, vision_cases
from d2v_ref.audit.counts import count_modules
from d2v_ref.audit.report import default_arguments
from d2v_ref.auto import model_class

STRATEGIES = {
    **dict.fromkeys(TEXT_HEADS, text_cases),
    **dict.fromkeys(AUDIO_HEADS, audio_cases),
    **dict.fromkeys(VISION_HEADS, vision_cases),
}
pytestmark = pytest.mark.filterwarnings("ignore:std.*degrees of freedom:UserWarning")  # of one frame, by torch
LABELS = ("labels", "start_positions", "end_positions")  # a loss is no operation of the model


def flops(model: Any, inputs: dict[str, Any]) -> dict[str, int]:
    """By path of the module, that of the model ""."""
    counter = FlopCounterMode(display=False)
    with counter:
        oracle.run(model, inputs, "float64")
    root = type(model).__name__
    counts = {path: sum(found.values()) for path, found in counter.get_flop_counts().items()}
    return {path.removeprefix(root).removeprefix("."): count for path, count in counts.items() if path != "Global"}


def hold(ours: Any, theirs: Any, inputs: dict[str, Any], tally: Any) -> None:
    inputs = {name: value for name, value in inputs.items() if name not in LABELS}
    want = flops(theirs, inputs)
    got = {module.path: 2 * module.total.multiply_adds for module in count_modules(ours, inputs)}
    assert {path: count for path, count in got.items() if count} == {path: n for path, n in want.items() if n}
    tally.cases += 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_modules_multiply_adds_are_torchs(name: str, tally: dict[str, Any]) -> None:
    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(STRATEGIES[name](name))
    def check(case: tuple[Any, dict[str, Any], int]) -> None:
        config, inputs, seed = case
        hold(*oracle.pair(name, config, seed, "float64"), inputs, tally["multiply-adds, every module"])

    check()


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_default_input_is_one_that_transformers_takes(name: str, tally: dict[str, Any]) -> None:
    cls = model_class(name)
    ours, theirs = oracle.pair(name, cls.config_class(**{**cls.config_class.sizes["tiny"], **cls.needs}), 0, "float64")
    hold(ours, theirs, default_arguments(ours)[1], tally["multiply-adds, every module"])
