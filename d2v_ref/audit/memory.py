"""How much memory a forward pass takes, measured: NumPy tells tracemalloc of every array."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from d2v_ref.nn import Module, unrecorded
from d2v_ref.ops import Ops
from d2v_ref.pretrained import PreTrainedModel


@dataclass(frozen=True)
class Memory:
    """Bytes at run time, of a run that nobody records.

    Attributes:
        weights: of the weights in the dtype that is computed in, a tied one once.  Those that a file has in this dtype
            stay mapped to it.
        activations: the most that the run had allocated at a time, the inputs given to it apart.  Some kilobytes are
            objects of Python's own.
        module: the path of the module that was running then, "" for the model itself; ``kind`` its class.
        operation: the operation of ``Ops`` that it had called, or "" if it computed without one.
    """

    weights: int
    activations: int
    module: str
    kind: str
    operation: str


def measure(model: PreTrainedModel, arguments: dict[str, Any]) -> Memory:
    """Run once and watch.  Arrays of a backend that keeps them elsewhere (on a GPU) are not seen."""
    copy = model.with_ops(model.ops)  # of the same arrays; one that has kept nothing of earlier runs
    kinds = {path: type(module).__name__ for path, module in copy.named_modules()}
    with _tracing() as before:
        watch = _Watch(before)
        for path, module in copy.named_modules():
            module.ops = _WatchedOps(model.ops, path, watch)  # type: ignore[assignment]
            watch.follow(module, path)
        with unrecorded():
            copy(**arguments)
        watch.look()
    path, operation = watch.where
    return Memory(
        weights=sum({id(array): array.nbytes for _, _, _, array in model.named_parameters()}.values()),
        activations=watch.peak - before,
        module=path,
        kind=kinds[path],
        operation=operation,
    )


@contextmanager
def _tracing() -> Iterator[int]:
    """tracemalloc at work, whoever started it; what is allocated already."""
    started = not tracemalloc.is_tracing()
    if started:
        tracemalloc.start()
    tracemalloc.reset_peak()
    try:
        yield tracemalloc.get_traced_memory()[0]
    finally:
        if started:
            tracemalloc.stop()


class _Watch:
    """Who was running when the peak rose: looked at whenever a module or an operation begins or ends."""

    def __init__(self, before: int) -> None:
        self.peak = before
        self.where = ("", "")
        self._running = [("", "")]

    def look(self) -> None:
        peak = tracemalloc.get_traced_memory()[1]
        if peak > self.peak:
            self.peak, self.where = peak, self._running[-1]

    def running(self, path: str, operation: str, compute: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.look()
            self._running.append((path, operation))
            try:
                return compute(*args, **kwargs)
            finally:
                self.look()
                self._running.pop()

        return watched

    def follow(self, module: Module, path: str) -> None:
        module.forward = self.running(path, "", module.forward)  # type: ignore[method-assign]


class _WatchedOps:
    """The operations of one module, which are watched."""

    def __init__(self, ops: Ops, path: str, watch: _Watch) -> None:
        self._ops, self._path, self._watch = ops, path, watch

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ops, name)
        return self._watch.running(self._path, name, found) if callable(found) else found
