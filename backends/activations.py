"""The operations that are a function of each number: one method of a backend for each, made of its ``_activation``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def add_activations(cls: type, names: Iterable[str]) -> None:
    """Gives a backend ``cls.gelu(x)``, which is ``cls._activation("gelu", x)``, and so on; there is none for identity.

    names: of their definitions in ``d2v_ref.ops.Ops``.
    """
    for name in names:
        if name != "identity":
            setattr(cls, name, _operation(name))


def _operation(name: str) -> Callable[[Any, Any], Any]:
    def operation(self: Any, x: Any) -> Any:
        return self._activation(name, x)

    return operation
