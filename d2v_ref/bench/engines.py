"""Who computes: our backends, and what every engine has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path

import numpy as np

from d2v_ref.bench.cases import Case
from d2v_ref.config import Config
from d2v_ref.errors import InputError
from d2v_ref.ops import Ops, backends, get_ops
from d2v_ref.ops.registry import GROUP

Outputs = dict[str, np.ndarray]  # by the names of Hugging Face's output class


@dataclass
class Setup:
    """What every engine is given in the process of a case: the same weights, the same input, as many threads.

    ``folder`` is for temporary files.
    """

    case: Case
    threads: int
    folder: Path
    config: Config = field(init=False)
    weights: dict[str, np.ndarray] = field(init=False)
    given: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.config, self.weights, self.given = self.case.config(), self.case.weights(), self.case.given()

    @cached_property
    def onnx_file(self) -> Path:
        from d2v_ref.bench.peers import export

        return export(self)


@dataclass(frozen=True)
class Loaded:
    """An engine that is ready: ``run`` is what is timed; ``peak``, if it can tell, measures what the processor could do
    at most in the engine's format, in floating-point operations a second.
    """

    run: Callable[[], Outputs]
    peak: Callable[[], float] | None = None


class Engine(ABC):
    """Something that computes a case.

    Attributes:
        name: as the command line takes it.
        dtype: what its products are computed in.
        packages: the distributions whose versions are told.
    """

    name: str
    dtype: str
    packages: tuple[str, ...]

    @abstractmethod
    def check(self) -> None:
        """Nothing, or a D2VError that says why it can't run here."""

    @abstractmethod
    def load(self, setup: Setup) -> Loaded:
        """Have it ready to run."""


class Ours(Engine):
    """A backend in one of its dtypes: "numba", which is float32, or "numba:bfloat16"."""

    def __init__(self, backend: str, dtype: str) -> None:
        self.backend, self.dtype = backend, dtype
        self.name = backend if dtype == "float32" else f"{backend}:{dtype}"
        self.packages = (backend,)  # what it is made with, if it is called so: numba's version matters to "numba"

    def check(self) -> None:
        get_ops(self.backend, self.dtype)

    def load(self, setup: Setup) -> Loaded:
        ops = get_ops(self.backend, self.dtype)
        model = setup.case.cls(setup.config, setup.weights, backend=ops)
        return Loaded(lambda: dict(model(setup.given).items()), getattr(ops, "fma_peak", None))


def engine(name: str) -> Engine:
    """The engine of a name: a peer's, or BACKEND or BACKEND:DTYPE.

    Raises:
        InputError: there is no such peer and no such backend.
    """
    from d2v_ref.bench.peers import PEERS

    if name in PEERS:
        return PEERS[name]
    known = [Ops.name, *sorted({point.name for point in metadata.entry_points(group=GROUP)})]  # imports none of them
    backend, _, dtype = name.partition(":")
    if backend not in known:
        expected = " or ".join([*known, *PEERS])
        hint = "A backend may be followed by a dtype, as in numpy:float64"
        raise InputError("no engine of this name", got=repr(name), expected=expected, hint=hint)
    return Ours(backend, dtype or "float32")


def default_engines() -> list[str]:
    """Every backend in float32, and in bfloat16 if it has that; then the peers."""
    from d2v_ref.bench.peers import PEERS

    names = []
    for info in backends():
        names.append(info.name)
        if info.available and "bfloat16" in get_ops(info.name).dtypes:
            names.append(f"{info.name}:bfloat16")
    return [*names, *PEERS]
