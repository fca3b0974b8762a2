"""What every module is given is what transformers' module of its name is given, in its layout: ``path#input``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance import oracle
from conformance.audio_draws import AUDIO_HEADS, audio_cases
from conformance.compare import compare
from conformance.draws import TEXT_HEADS, text_cases
from conformance.vision_draws import VISION_HEADS, vision_cases
from d2v_ref.nn import Module, recorder

CASES = {
    **dict.fromkeys(TEXT_HEADS, text_cases),
    **dict.fromkeys(AUDIO_HEADS, audio_cases),
    **dict.fromkeys(VISION_HEADS, vision_cases),
}


def given_to_ours(model: Any, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def witness(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arrays = module.arguments(args, kwargs)
        if "input" in arrays:
            found[f"{module.path}#input"] = np.array(arrays["input"])

    with recorder(lambda name, value: None, witness):
        model(**inputs)
    return found


@pytest.mark.filterwarnings("ignore:std\\(\\). degrees of freedom is <= 0:UserWarning")  # of one frame, in transformers
@pytest.mark.parametrize("name", CASES)
@settings(max_examples=25)
@given(data=st.data())
def test_every_module_is_given_what_transformers_gives_it(
    name: str, data: st.DataObject, tally: dict[str, Any]
) -> None:
    config, inputs, seed = data.draw(CASES[name](name))
    ours, theirs = oracle.pair(name, config, seed, "float64")
    want = oracle.given_to_modules(theirs, inputs, "float64")
    got = given_to_ours(ours, inputs)
    inner = {key for key in want if not key.startswith("#")}  # the model itself may be given ids or embeddings
    compare({key: got[key] for key in inner}, {key: want[key] for key in inner}, oracle.EXACT,
            tally[f"{name}, float64, what modules are given"])  # fmt: skip
