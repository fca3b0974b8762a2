"""``Module``: a layer whose place in the model is its name, as in Hugging Face's module tree.

A module's attributes name its children and its weights, so a weight is found in a checkpoint without a table, and every
intermediate result has the name that it has in Hugging Face's model: ``encoder.layer.3.attention.self``.  A value
inside a module that is no module's output is a tap, ``path#point``: ``encoder.layer.3.attention.self#probs``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from d2v_ref.ops import Ops

Array = Any
Sink = Callable[[str, Array], None]
Witness = Callable[["Module", tuple[Any, ...], dict[str, Any]], None]


@dataclass(frozen=True)
class _Recorder:
    sink: Sink
    given: Witness | None


# Who is told of every output while it is computed.  A context variable, so that threads and tasks record apart from
# each other.
_recorder: ContextVar[_Recorder | None] = ContextVar("d2v_ref_recorder", default=None)


@contextmanager
def recorder(sink: Sink, given: Witness | None = None) -> Iterator[None]:
    """While the block runs, ``sink(name, value)`` is told every module's output and every tap, as they are computed.

    ``given(module, args, kwargs)`` is told what a module is called with, before it computes; ``Module.arguments`` names
    the arrays of it.  A recorded run doesn't fuse: a Linear's output is seen before its activation and its residual.
    Values are the backend's arrays and must not be changed.
    """
    with _told(_Recorder(sink, given)):
        yield


@contextmanager
def unrecorded() -> Iterator[None]:
    """While the block runs, nobody is told anything, so that a backend may fuse."""
    with _told(None):
        yield


@contextmanager
def _told(who: _Recorder | None) -> Iterator[None]:
    token = _recorder.set(who)
    try:
        yield
    finally:
        _recorder.reset(token)


def recording() -> bool:
    """Whether somebody records now."""
    return _recorder.get() is not None


@dataclass(frozen=True)
class Parameter:
    """A weight that is declared and not loaded yet."""

    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count


class Module:
    """A layer.  ``forward`` is its mathematics; calling it runs forward and shows the output to whoever records."""

    path: str = ""
    ops: Ops
    channels_first = False  # whether Hugging Face's output is (B, C, ...), where this one's is (B, ..., C)
    takes_channels_first: bool | None = None  # the same of what it is given; None if it is so of both
    changes = 0  # how often a weight, a setting or a child of any module was set: what was recorded before is of others

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if not name.startswith("_"):  # what a module keeps for itself
            Module.changes += 1

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        who = _recorder.get()
        if who is not None and who.given is not None:
            who.given(self, args, kwargs)
        out = self.forward(*args, **kwargs)
        self.show(out)
        return out

    def show(self, out: Any) -> None:
        """Tell the recorder this module's output."""
        who = _recorder.get()
        if who is not None:
            who.sink(self.path, self.shown(out))

    def shown(self, out: Any) -> Array:
        """An output as a recorder sees it: an array or the first of a tuple, in Hugging Face's layout."""
        value = out[0] if isinstance(out, tuple) else out
        return _channels_first(value) if self.channels_first else value

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Array]:
        """The arrays that ``forward`` is called with, in Hugging Face's layout: the first as "input", others by name.

        Those in a list have their number, ``features.0``; what the layers of a model share (masks, caches) is no
        argument of theirs.
        """
        signature = inspect.signature(self.forward)
        first = self.takes_channels_first if self.takes_channels_first is not None else self.channels_first
        found = {}
        for i, (name, value) in enumerate(signature.bind(*args, **kwargs).arguments.items()):
            name = name if i else "input"
            values = [(f"{name}.{j}", x) for j, x in enumerate(value)] if isinstance(value, list) else [(name, value)]
            found.update({key: _channels_first(x) if first else x for key, x in values if is_array(x)})
        return found

    def tap(self, point: str, value: Array) -> None:
        """Tell the recorder a value inside this module."""
        who = _recorder.get()
        if who is not None and value is not None:
            who.sink(f"{self.path}#{point}", value)

    def placed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs by name, every array an array of the backend; those in a dictionary or a tuple too."""
        return {name: self._placed(value) for name, value in inputs.items()}

    def _placed(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self.placed(value)
        if isinstance(value, tuple):
            return tuple(self._placed(item) for item in value)
        return self.ops.asarray(value) if is_array(value) else value

    def project(self, x: Array, *linears: Any) -> tuple[Array, ...]:
        """Several Linear children of one input; one operation of the backend unless somebody records."""
        if recording():
            return tuple(linear(x) for linear in linears)
        return self.ops.project(x, *linears)

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Every module and its path, this one first, in the order of declaration."""
        yield prefix, self
        for name, value in vars(self).items():
            children = (
                [(name, value)]
                if not isinstance(value, list)
                else [(f"{name}.{i}", item) for i, item in enumerate(value)]
            )
            for step, child in children:
                if isinstance(child, Module):
                    yield from child.named_modules(f"{prefix}.{step}" if prefix else step)

    def named_parameters(self) -> Iterator[tuple[str, Module, str, Any]]:
        """(name in the checkpoint, module, attribute, Parameter or bound array) of every weight."""
        for path, module in self.named_modules():
            for attribute in module.parameters():
                yield f"{path}.{attribute}" if path else attribute, module, attribute, getattr(module, attribute)

    def parameters(self) -> tuple[str, ...]:
        """The attributes of this module itself that are weights, bound or not."""
        declared: dict[str, None] = self.__dict__.setdefault("_parameters", {})
        declared.update({name: None for name, value in vars(self).items() if isinstance(value, Parameter)})
        return tuple(declared)

    def bind(self, arrays: dict[str, Any], ops: Ops) -> None:
        """Give every declared weight its array, converted once for the backend; tied weights stay one array."""
        converted: dict[int, Array] = {}
        for path, module in self.named_modules():
            module.path, module.ops = path, ops
        for name, module, attribute, _ in self.named_parameters():
            source = arrays[name]
            if id(source) not in converted:
                converted[id(source)] = ops.weight(source.numpy() if hasattr(source, "numpy") else source)
            setattr(module, attribute, converted[id(source)])
        converted.clear()  # a weight that a backend keeps in another format is freed, one after the other
        for _, module in self.named_modules():
            ops.prepare(module)


def _channels_first(x: Array) -> Array:
    """(B, ..., C) -> (B, C, ...)."""
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1)) if x.ndim > 2 else x


def is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")
