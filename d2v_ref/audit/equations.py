"""What each layer computes, in the words of the classes themselves: their docstrings, and those of the operations that
they call.  Nothing is written down a second time.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from d2v_ref.audit.counts import Cost
from d2v_ref.nn import Module
from d2v_ref.ops import Ops
from d2v_ref.pretrained import PreTrainedModel


@dataclass(frozen=True)
class Place:
    """Where a class occurs with these numbers: its settings, the shapes of its weights, and the modules' paths."""

    settings: dict[str, Any]
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Equation:
    """A class of modules.

    Attributes:
        text: the first paragraph of its docstring: formula and shapes.
        operations: the operations of ``Ops`` that its modules called, and the first paragraph of each.
    """

    kind: str
    text: str
    operations: dict[str, str]
    places: tuple[Place, ...]


def equations(model: PreTrainedModel, account: Mapping[str, Mapping[str, Cost]]) -> list[Equation]:
    """Every class of the model, in the order in which they come.

    Args:
        account: path -> the operations that the module called, as ``counts.count_operations`` gives them.
    """
    modules: dict[type[Module], dict[str, Module]] = {}
    for path, module in model.named_modules():
        modules.setdefault(type(module), {})[path] = module
    return [
        Equation(
            kind=cls.__name__,
            text=first_paragraph(cls),
            operations={name: first_paragraph(getattr(Ops, name)) for path in found for name in account[path]},
            places=_places(found),
        )
        for cls, found in modules.items()
    ]


def first_paragraph(thing: Any) -> str:
    """The first paragraph of a docstring, on one line; shapes that stand on a line of their own belong to it."""
    paragraphs = (inspect.getdoc(thing) or "").split("\n\n")
    shapes = [text for text in paragraphs[1:2] if "->" in text]
    return " ".join(" ".join([paragraphs[0], *shapes]).split())


def _places(modules: Mapping[str, Module]) -> tuple[Place, ...]:
    """Modules with the same numbers together."""
    settings: dict[str, dict[str, Any]] = {}
    paths: dict[str, list[str]] = {}
    for path, module in modules.items():
        own = _settings(module)
        settings[repr(own)] = own
        paths.setdefault(repr(own), []).append(path)
    return tuple(Place(settings[key], tuple(found)) for key, found in paths.items())


# Attributes that are no setting: which of the layers it is, and how a recorder is shown its output.
_NO_SETTINGS = ("path", "layer", "channels_first", "takes_channels_first")


def _settings(module: Module) -> dict[str, Any]:
    """The numbers and words that a module was made with, and the shapes of its weights."""
    own = {name: value for name, value in vars(module).items() if name not in _NO_SETTINGS and not name.startswith("_")}
    simple = {name: value for name, value in own.items() if _is_simple(value)}
    return simple | {name: tuple(own[name].shape) for name in module.parameters()}


def _is_simple(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(item, int) for item in value)
    return isinstance(value, bool | int | float | str)
