"""``StorageOps``: the operations as a machine computes them that stores every number in 16 bits.

Such a machine computes each operation in float32 and rounds what it writes to memory: weights, inputs, results, and
the sums and products between the operations.  So does torch with a model ``.to(torch.float16)``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ClassVar

import numpy as np

from d2v_ref.errors import BackendError
from d2v_ref.ops import Ops

Array = Any

FORMATS = ("float16", "bfloat16")
# The largest finite number of each, and float16's smallest with all of its digits.
LARGEST = {"float16": 65504.0, "bfloat16": (2 - 2.0**-7) * 2.0**127}
SMALLEST_NORMAL = 2.0**-14

_HIDDEN = np.finfo(np.float32).min  # what stands for the lowest finite number of whatever dtype, as a hidden score
_MOVING = (
    "asarray",
    "constant",
    "weight",
    "to_numpy",
    "prepare",
    "replay",
)  # what brings data in and out, and computes nothing

# Whether an operation computes now; a context variable, so that threads compute apart from each other.
_computing: ContextVar[bool] = ContextVar("d2v_ref_computing", default=False)


def rounded(x: np.ndarray, form: str) -> np.ndarray:
    """float32 numbers to the nearest of "float16" or "bfloat16", ties to even, as float32.

    What is too large becomes infinity, what is too small a subnormal or zero, as IEEE 754 has it; NaN stays NaN.
    """
    if form == "float16":
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return x.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(x).view(np.uint32)  # bfloat16 is the upper half of these bits
    up = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    near = (up & np.uint32(0xFFFF0000)).view(np.float32).reshape(x.shape)
    return np.where(np.isnan(x), np.float32(np.nan), near)  # to whose bits an addition could do anything


class Stored(np.ndarray):
    """An array of rounded numbers: what arithmetic makes of it is rounded too."""

    form: str = ""

    def __array_finalize__(self, parent: Any) -> None:
        self.form = getattr(parent, "form", "")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        result = getattr(ufunc, method)(*map(_plain, inputs), **options)
        if out is not None:
            out[0][...] = stored(result, self.form)
            return out[0]
        return stored(result, self.form)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        return stored(super().__array_function__(function, types, arguments, options), self.form)


def stored(x: Any, form: str) -> Any:
    """Floating-point arrays as ``Stored``, tuples of them too; anything else as it is.

    The lowest finite float32 becomes the lowest finite number of the format and not infinity: it stands for that number
    wherever a key is hidden from a query.
    """
    if isinstance(x, tuple):
        return tuple(stored(part, form) for part in x)
    if isinstance(x, Stored) or not isinstance(x, np.ndarray | np.floating) or x.dtype.kind != "f":
        return x
    x = np.asarray(x, np.float32)
    near = rounded(x, form)
    array = np.where(x == _HIDDEN, np.float32(-LARGEST[form]), near).view(Stored)
    array.form = form
    return array


def _plain(x: Any) -> Any:
    """The numbers alone, for an operation that computes in float32."""
    if isinstance(x, tuple):
        return tuple(map(_plain, x))
    return x.view(np.ndarray) if isinstance(x, Stored) else x


class StorageOps(Ops):
    """The definitions in float32, everything that goes in and comes out of an operation rounded to 16 bits.

    An operation that is written with others rounds between them, as one after the other would; inside of one that is
    not, such as a LayerNorm, a sum or an attention's products, nothing is rounded.

    Args:
        form: "float16" or "bfloat16".
    """

    name: ClassVar[str] = "storage"

    def __init__(self, form: str) -> None:
        if form not in FORMATS:
            raise BackendError("no such format of storage", got=form, expected=" or ".join(FORMATS))
        super().__init__("float32")
        self.form = form

    def asarray(self, x: Any) -> Array:
        x = super().asarray(_plain(x))
        return x if _computing.get() else stored(x, self.form)  # an operation's own constants are not stored

    def to_numpy(self, x: Array) -> np.ndarray:
        return _plain(x)


def operations() -> list[str]:
    """The names of all operations: the public methods of ``Ops`` that compute."""
    methods = [name for name, value in vars(Ops).items() if inspect.isfunction(value) and not name.startswith("_")]
    return [name for name in methods if name not in _MOVING]


def _storing(operation: Callable[..., Any]) -> Callable[..., Any]:
    """The operation between rounded numbers and rounded numbers."""

    @functools.wraps(operation)
    def run(self: StorageOps, *arguments: Any, **options: Any) -> Any:
        given = [_plain(stored(argument, self.form)) for argument in arguments]
        named = {name: _plain(stored(option, self.form)) for name, option in options.items()}
        outermost = not _computing.get()
        token = _computing.set(True)
        try:
            result = stored(operation(self, *given, **named), self.form)
        finally:
            _computing.reset(token)
        return result if outermost else _plain(result)

    return run


for _name in operations():
    setattr(StorageOps, _name, _storing(getattr(Ops, _name)))
