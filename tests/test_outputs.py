"""Outputs are reached by attribute, key and position, and what is None is not there."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2v_ref import outputs
from d2v_ref.outputs import CausalLMOutputWithCrossAttentions, ModelOutput

CLASSES = [
    value
    for value in vars(outputs).values()
    if inspect.isclass(value) and issubclass(value, ModelOutput) and value is not ModelOutput
]


@pytest.mark.parametrize("cls", CLASSES)
@given(data=st.data())
def test_what_is_not_none_is_there_in_order(cls: type[ModelOutput], data: st.DataObject) -> None:
    names = [field.name for field in dataclasses.fields(cls)]
    given_values = {name: data.draw(st.none() | st.integers(0, 9).map(np.asarray), label=name) for name in names}
    out = cls(**given_values)
    kept = {name: value for name, value in given_values.items() if value is not None}
    assert list(out) == list(out.keys()) == list(kept)
    assert len(out) == len(kept)
    assert dict(out.items()) == kept
    assert out.to_tuple() == out.values() == tuple(kept.values())
    for position, (name, value) in enumerate(kept.items()):
        assert out[name] is out[position] is getattr(out, name) is value
        assert out[position - len(kept)] is value
    for name in names:
        assert (name in out) == (name in kept)
        if name not in kept:
            assert getattr(out, name) is None
            with pytest.raises(KeyError, match=name):
                out[name]
    with pytest.raises(IndexError):
        out[len(kept)]
    cut = data.draw(st.slices(len(kept)))
    assert out[cut] == tuple(kept.values())[cut]


def test_a_key_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(KeyError, match="nothing: not in this output, which has loss, logits"):
        CausalLMOutputWithCrossAttentions(loss=1, logits=2)["nothing"]


def test_a_field_that_is_set_later_appears_in_its_place() -> None:
    out: Any = CausalLMOutputWithCrossAttentions(logits=2, attentions=())
    assert out.to_tuple() == (2, ())  # an empty tuple is not None
    out.loss = 1
    assert out.to_tuple() == (1, 2, ())
    assert 1 not in out
    assert None not in out


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_may_be_left_out(cls: type[ModelOutput]) -> None:
    assert len(cls()) == 0
    assert cls().to_tuple() == ()
