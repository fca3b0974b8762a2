"""What flows through a model: every array by name, and which of them each module is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from d2v_ref.golden.bundle import sha256
from d2v_ref.nn import Module, recorder
from d2v_ref.pretrained import PreTrainedModel


class Flow:
    """Follows one run of a model whose arrays are NumPy's.

    What a module is given is an array of its own, ``path#parameter``, only where it is none that was there before.

    Args:
        keep: is shown each array by name, and says whether it is kept.
        arrays: what the model is given, if that shall be known by its own names.

    Attributes:
        given: of each module whose arrays are all known: parameter -> the name of the array that it was given.
        handed: the names of arrays that are kept for having been given.
    """

    def __init__(self, keep: Callable[[str, np.ndarray], bool], arrays: dict[str, np.ndarray] | None = None) -> None:
        self._keep = keep
        self.given: dict[str, dict[str, str]] = {}
        self.handed: set[str] = set()
        self._places: dict[tuple[Any, ...], str] = {}  # what an array holds -> its name
        for name, array in (arrays or {}).items():
            self._places[_contents(array)] = name
            if array.dtype.kind == "f":
                self._places[_contents(array.astype(np.float64))] = name

    def run(self, model: PreTrainedModel, arguments: dict[str, Any]) -> None:
        """Follow a run of the model with these arguments."""
        with recorder(self.see, self.witness):
            model(**arguments)

    def see(self, name: str, value: np.ndarray) -> None:
        """A recorder's sink."""
        if self._keep(name, value):
            self._places[_contents(value)] = name

    def witness(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A recorder's witness."""
        if isinstance(module, PreTrainedModel) and not module.path:
            return  # what the model itself is given are the inputs
        given, arrays = {}, module.arguments(args, kwargs)
        for parameter, value in arrays.items():
            contents, name = _contents(value), f"{module.path}#{parameter}"
            if contents not in self._places and self._keep(name, value):
                self._places[contents] = name
                self.handed.add(name)
            if contents in self._places:
                given[parameter] = self._places[contents]
        if len(given) == len(arrays):
            self.given[module.path] = given


def _contents(array: np.ndarray) -> tuple[Any, ...]:
    return array.shape, array.dtype.name, sha256(array)
