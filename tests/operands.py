"""What an operation is called with: numbers of every size, in arrays that lie in memory in every way.

A call is drawn once, as float64 numbers that the format of a backend holds, and then made for the backend and for the
definition.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from d2v_ref.audit.storage import rounded
from d2v_ref.nn import Module
from d2v_ref.ops import Ops

Array = Any
VIEWS = ("plain", "fortran", "strided", "reversed", "broadcast", "offset", "padded", "read-only")
KINDS = ("normal", "sparse", "wide", "denormal", "zero", "special")
DENORMAL = {"float64": 1e-311, "float32": 1e-40, "float16": 1e-6, "bfloat16": 1e-40}


def in_format(x: Any, form: str) -> np.ndarray:
    """float64 numbers as the format holds them."""
    x = np.asarray(x, np.float64)
    if form == "float64":
        return x
    with np.errstate(over="ignore", under="ignore"):
        narrow = x.astype(np.float32)
    return (narrow if form == "float32" else rounded(narrow, form)).astype(np.float64)


@dataclass(frozen=True, repr=False)
class Operand:
    """An array, and how it lies in memory; ``host`` if it stays with NumPy, as indices do."""

    values: np.ndarray
    view: str = "plain"
    host: bool = False

    def __repr__(self) -> str:
        values = f" = {self.values.tolist()}" if self.values.size <= 12 else ""
        return f"<{self.view} {self.values.dtype} {self.values.shape}{values}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # as Hypothesis shows it
        printer.text(repr(self))

    def place(self, ops: Ops) -> Array:
        """The array on a backend; what lies between its numbers is NaN, True or the lowest of integers."""
        x, rank = self.values, self.values.ndim
        ops = Ops() if self.host else ops
        if self.view == "fortran":
            return ops.asarray(x.transpose()).transpose()
        if self.view == "offset":
            return ops.asarray(np.concatenate((_filler(x, (1,)), x.ravel())))[1:].reshape(x.shape)
        if self.view == "read-only":
            placed = ops.asarray(x.copy())
            if isinstance(placed, np.ndarray):
                placed.flags.writeable = False
            return placed
        if rank and self.view == "broadcast":
            return np.broadcast_to(ops.asarray(x[:1]), x.shape)
        if rank and self.view == "reversed":
            back = (slice(None, None, -1),) * rank
            return ops.asarray(x[back].copy())[back]
        if rank and self.view == "strided":
            base = _filler(x, (*x.shape[:-1], 2 * x.shape[-1]))
            base[..., ::2] = x
            return ops.asarray(base)[..., ::2]
        if rank and self.view == "padded":
            base = _filler(x, (*x.shape[:-1], x.shape[-1] + 3))
            base[..., : x.shape[-1]] = x
            return ops.asarray(base)[..., : x.shape[-1]]
        return ops.asarray(x) if rank else ops.asarray(x).reshape(())


def _filler(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    worst = {"f": np.nan, "b": True}.get(x.dtype.kind)
    return np.full(shape, np.iinfo(x.dtype).min if worst is None else worst, x.dtype)


@dataclass(frozen=True, repr=False)
class Part:
    """A module, and the weights that are bound to it."""

    cls: type[Module]
    settings: dict[str, Any]
    weights: dict[str, np.ndarray]

    def __repr__(self) -> str:
        return f"<{self.cls.__name__} {self.settings}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def place(self, ops: Ops) -> Module:
        module = self.cls(**self.settings)
        # As of a file: in the dtype of the backend, where that is a dtype of NumPy.
        dtype = ops.dtype if ops.dtype.kind == "f" else np.float32
        module.bind({name: value.astype(dtype) for name, value in self.weights.items()}, ops)
        return module


@dataclass(frozen=True)
class Call:
    """An operation and its arguments; ``plain`` if no number is so large that NumPy may warn of it."""

    operation: str
    args: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    plain: bool = True
    by_name: bool = False  # whether all arguments are given by their names

    def place(self, ops: Ops) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, options = placed(self.args, ops), placed(self.options, ops)
        if not self.by_name:
            return args, options
        names = inspect.signature(getattr(Ops, self.operation)).bind(ops, *args, **options).arguments
        return (), {name: value for name, value in names.items() if name != "self"}

    def run(self, ops: Ops) -> Any:
        args, options = self.place(ops)
        return getattr(ops, self.operation)(*args, **options)


def placed(value: Any, ops: Ops) -> Any:
    if isinstance(value, Operand | Part):
        return value.place(ops)
    if isinstance(value, tuple):
        return tuple(placed(item, ops) for item in value)
    if isinstance(value, dict):
        return {name: placed(item, ops) for name, item in value.items()}
    return value


# ---- draws


class Draw:
    """Draws the operands of one call in a format.

    All of it comes from one seed: choices that Hypothesis makes one by one are alike from call to call, and few of the
    combinations that matter would come up.
    """

    def __init__(self, seed: int, form: str) -> None:
        self.random, self.form = np.random.default_rng(seed), form

    def number(self, least: int, most: int) -> int:
        return int(self.random.integers(least, most + 1))

    def one_of(self, *choices: Any) -> Any:
        return choices[self.random.integers(len(choices))]

    def often(self) -> bool:
        return self.number(0, 2) > 0

    def length(self, most: int, *others: int) -> int:
        """A small number, one of either side of a vector's or a tile's size, or one of the others."""
        edges = [n for n in (1, 2, 15, 16, 17, 31, 47, 48, 49, 63, 64, 65, 127, 129) if n <= most]
        return self.one_of(self.number(1, most), self.one_of(*edges, *others))

    def numbers(self, *shape: int, kind: str = "normal", scale: float = 1.0) -> np.ndarray:
        """Numbers of one of ``KINDS``, as the format holds them."""
        random = self.random
        x = random.normal(size=shape) * scale
        if kind == "sparse":
            x = np.where(random.random(shape) < 0.6, random.choice([0.0, -0.0], shape), x)
        elif kind == "wide":
            x *= 10.0 ** random.uniform(*((-30, 30) if self.form != "float16" else (-6, 3)), shape)
        elif kind == "denormal":
            x *= DENORMAL[self.form]
        elif kind == "zero":
            x = random.choice([0.0, -0.0], shape)
        elif kind == "special" and x.size:
            for _ in range(self.number(1, 3)):
                x.flat[random.integers(x.size)] = random.choice([np.nan, np.inf, -np.inf])
        return in_format(x, self.form)

    def numbers_of(self, x: np.ndarray) -> np.ndarray:
        """Numbers as the format holds them."""
        return in_format(x, self.form)

    def operand(self, x: np.ndarray, *views: str) -> Operand:
        """An array in memory; one of which a broadcast is made has equal rows."""
        view = self.one_of(*(views or VIEWS))
        if view == "broadcast" and x.ndim and x.size:
            x = np.broadcast_to(x[:1], x.shape).copy()
        return Operand(x, view)

    def array(self, *shape: int, kind: str = "normal", scale: float = 1.0) -> Operand:
        return self.operand(self.numbers(*shape, kind=kind, scale=scale))

    def maybe(self, *shape: int) -> Operand | None:
        return self.array(*shape) if self.often() else None

    def lead(self, most: int = 70, empty: bool = True) -> tuple[int, ...]:
        """The axes before the last: none, one, two or three."""
        kind = self.number(0, 5)
        if kind == 0:
            return ()
        if kind == 1 and empty:
            return self.one_of((0,), (2, 0), (0, 3))
        if kind == 2:
            return (self.number(1, 4), self.number(1, max(1, most // 4)))
        if kind == 3:
            return (self.number(1, 3), self.number(1, 3), self.number(1, 5))
        return (self.length(most),)
