"""What a bundle may hand to a forward pass: arrays and flags that it has a parameter for."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from d2v_ref.checkpoints.mapped import ELEMENT_TYPES
from d2v_ref.config import fits, spell
from d2v_ref.errors import InputError
from d2v_ref.pretrained import PreTrainedModel

# The parameters that are no arrays.
FLAGS = {
    "use_cache": bool,
    "output_attentions": bool,
    "output_hidden_states": bool,
    "logits_to_keep": int,
    "interpolate_pos_encoding": bool,
}


def forward_arguments(model: PreTrainedModel, arrays: dict[str, np.ndarray], flags: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a forward pass.

    Args:
        arrays: by Hugging Face's names.  past_key_values, which Hugging Face nests in tuples, is one array (layers, 2,
            B, H, S, d), with 4 in the place of 2 if it holds the cross attention's as well.
        flags: see ``FLAGS``.

    Raises:
        InputError: a name that the forward pass does not know, an array that is no numbers, a flag of another type.
    """
    known = _parameters(model)
    for name, array in arrays.items():
        if name not in known or name in FLAGS:
            expected = " or ".join(sorted(known - set(FLAGS)))
            raise InputError(f"{type(model).__name__} takes no array of this name", got=name, expected=expected)
        if array.dtype.name not in ELEMENT_TYPES:
            raise InputError(f"{name} has a dtype that can't be stored", got=array.dtype, expected="numbers")
    for name, value in flags.items():
        if name not in known & set(FLAGS) or not fits(value, FLAGS[name]):
            expected = " or ".join(f"{flag}: {spell(FLAGS[flag])}" for flag in sorted(known & set(FLAGS)))
            raise InputError(
                f"{type(model).__name__} takes no such argument", got=f"{name}={value!r}", expected=expected
            )
    past = arrays.get("past_key_values")
    if past is None:
        return {**arrays, **flags}
    if past.ndim != 6:
        expected = "(layers, 2, batch, heads, length, head size)"
        raise InputError("past_key_values has the wrong shape", got=past.shape, expected=expected)
    return {**arrays, **flags, "past_key_values": tuple(tuple(layer) for layer in past)}


def _parameters(model: PreTrainedModel) -> set[str]:
    """The names of its forward pass, and of the bare model's, to which a head hands on what it doesn't know."""
    bare = getattr(model, model.base_model_prefix, model)
    both = {**inspect.signature(bare.forward).parameters, **inspect.signature(model.forward).parameters}
    names = {name for name, parameter in both.items() if parameter.kind is not parameter.VAR_KEYWORD}
    return names - {"generator"}  # who draws is no data: a bundle holds mask_time_indices instead
