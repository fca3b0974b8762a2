"""What a part of a model is called with, and what it returns: arrays, in dictionaries, lists and tuples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


def signature(value: Any) -> Any:
    """What two calls must share to be one recording: shapes and dtypes of inputs, constants themselves."""
    if isinstance(value, dict):
        return tuple((name, signature(item)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return type(value).__name__, *map(signature, value)
    if isinstance(value, np.ndarray):
        return "input", value.shape, value.dtype.str
    if hasattr(value, "shape") and not isinstance(value, np.generic):
        return "constant", id(value)
    return type(value).__name__, value


def changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same dictionaries, lists and tuples of what ``change`` makes of each array."""
    if isinstance(value, dict):
        return {name: changed(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(changed(item, change) for item in value)
    return change(value) if hasattr(value, "shape") and not isinstance(value, np.generic) else value


def leaves_of(value: Any) -> Iterator[Any]:
    """What is in dictionaries, lists and tuples and is none of these, in order."""
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves_of(item)
    else:
        yield value


def inputs_of(value: Any) -> Iterator[np.ndarray]:
    """The NumPy arrays of arguments, in order."""
    return (leaf for leaf in leaves_of(value) if isinstance(leaf, np.ndarray))
