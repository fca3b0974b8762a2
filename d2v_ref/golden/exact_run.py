"""The float64 run of a record: the yardstick of its arrays, and how far a module alone may be off."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from d2v_ref.errors import InputError
from d2v_ref.golden.bounds import FORMATS, LOSSES, Exact, RoundingProbe, gap, largest
from d2v_ref.golden.flow import Flow
from d2v_ref.golden.spool import Spool
from d2v_ref.nn import Module, unrecorded
from d2v_ref.nn.module import is_array
from d2v_ref.pretrained import PreTrainedModel

_MANY = 4096  # numbers: an array of more has enough random errors in two draws


class ExactRun(Flow):
    """Runs a model in float64 and finds out what a manifest says of its arrays.

    Args:
        model: in any dtype.
        ports: the formats that a port may compute in.
        arrays: what the model is given.
        taps: patterns of the names to keep.
        exact: where arrays are kept.

    Attributes:
        alone: of each module without parts: format -> how far it may be off if what it is given is right.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ports: Sequence[str],
        arrays: dict[str, np.ndarray],
        taps: Sequence[str],
        exact: Spool,
    ) -> None:
        super().__init__(self._add, arrays)
        self._model, self._taps, self._exact = model, taps, exact
        self._probes = {port: model.with_ops(RoundingProbe(FORMATS[port], 0)) for port in ports}
        self._modules = {port: dict(probe.named_modules()) for port, probe in self._probes.items()}
        self._calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}  # of modules that run now
        self._passed_over: list[str] = []
        self.alone: dict[str, dict[str, float]] = {}

    def follow(self, arguments: dict[str, Any]) -> None:
        """Run it once.

        Raises:
            InputError: no name matches a pattern, or the model does not take the arguments.
        """
        self.run(self._model.with_ops(Exact()), arguments)
        if not self._exact:
            taps, names = self._taps, self._passed_over
            close = difflib.get_close_matches(taps[0], names, 3, 0.3) or names[:3]
            raise InputError("no array's name matches", got=", ".join(taps), expected=f"such as {', '.join(close)}")

    def _add(self, name: str, value: np.ndarray) -> bool:
        call = self._calls.pop(name, None)
        if not matches(name, self._taps):
            self._passed_over.append(name)
            return False
        self._exact.add(name, value)
        if call is not None and value.dtype.kind == "f":
            self.alone[name] = {port: self._off_alone(port, name, value, *call) for port in self._probes}
        return True

    def witness(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(list(module.named_modules())) == 1 and module.path not in LOSSES:
            self._calls[module.path] = args, kwargs
        super().witness(module, args, kwargs)

    def _off_alone(
        self, port: str, path: str, exact: np.ndarray, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> float:
        """Twice the largest error of this module itself, as ``bounds.tolerances`` has it of a whole run."""
        probe, module = self._probes[port], self._modules[port][path]

        def stored(value: Any) -> Any:
            return probe.ops.asarray(value) if is_array(value) and value.dtype.kind == "f" else value

        worst = 2 * FORMATS[port].unit_roundoff * largest(exact)
        for _ in range(FORMATS[port].probes if exact.size < _MANY else 2):
            with unrecorded():
                out = module.forward(*map(stored, args), **{name: stored(value) for name, value in kwargs.items()})
            worst = max(worst, gap(module.shown(out), exact))
        return 2 * worst


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns stands for the name, or for its end after a dot; and none that begins with !."""

    def one_of(those: Sequence[str]) -> bool:
        return any(fnmatchcase(name, each) or fnmatchcase(name, f"*.{each}") for each in those)

    wanted = [each for each in patterns if not each.startswith("!")]
    return (not wanted or one_of(wanted)) and not one_of([each[1:] for each in patterns if each.startswith("!")])
