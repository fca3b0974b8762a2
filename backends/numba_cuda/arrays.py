"""``DeviceArray``: numbers on a card, with the views and the arithmetic that models and definitions apply to arrays.

Numba's own arrays have neither: they are memory for kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numba import cuda
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.lib.stride_tricks import as_strided

from d2v_ref.errors import BackendError

from . import elementwise, launch

Shape = tuple[int, ...]
Place = tuple[Any, int, Shape]  # a flat array, where the first number lies, and the numbers' distances

_UFUNCS = {
    np.add: elementwise.ADD,
    np.subtract: elementwise.SUBTRACT,
    np.multiply: elementwise.MULTIPLY,
    np.divide: elementwise.DIVIDE,
}
_ANYWHERE = np.zeros(1, np.uint8)


class DeviceArray(NDArrayOperatorsMixin):
    """A view of a flat array on the card.  x + y and the like are NumPy's functions, computed by our kernels.

    Attributes:
        flat: Numba's array of one axis, which others may share.
        shape, strides: the axes' lengths, and how far apart numbers are along each, in numbers.
        start: where the first number lies.
    """

    def __init__(self, flat: Any, shape: Shape, strides: Shape | None = None, start: int = 0) -> None:
        self.flat, self.shape, self.start = flat, tuple(shape), start
        self.strides = _in_order(self.shape) if strides is None else tuple(strides)

    @classmethod
    def of(cls, x: np.ndarray) -> DeviceArray:
        """A copy of the host's array."""
        return cls(cuda.to_device(np.ascontiguousarray(x).reshape(-1)), x.shape)

    @classmethod
    def empty(cls, shape: Shape, dtype: Any) -> DeviceArray:
        """Memory that holds anything."""
        return cls(cuda.device_array(math.prod(shape), dtype), shape)

    dtype = property(lambda self: self.flat.dtype)
    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: math.prod(self.shape))
    nbytes = property(lambda self: self.size * self.dtype.itemsize)
    T = property(lambda self: self.transpose())

    def __repr__(self) -> str:
        return f"<DeviceArray {self.dtype} {self.shape}>"

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[DeviceArray]:
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise BackendError("an array on the card was taken for one of NumPy's", hint="ops.to_numpy(x) copies it")

    # ---- to kernels and to the host ----------------------------------------------------------------------------------

    def numpy(self) -> np.ndarray:
        """A copy on the host."""
        if not self.size:
            return np.empty(self.shape, self.dtype)
        return self.contiguous().flat_part().copy_to_host().reshape(self.shape)

    def values(self) -> Any:
        """Numba's array of this shape, numbers side by side: a copy where they are not."""
        if not self.size:
            return cuda.device_array(self.shape, self.dtype)
        return self.contiguous().flat_part().reshape(self.shape)

    def flat_part(self) -> Any:
        """The part of the flat array that holds this one's numbers, which lie side by side."""
        return self.flat[self.start : self.start + self.size]

    def place(self, shape: Shape) -> Place:
        """The arguments of an elementwise kernel, broadcast to a shape."""
        x = self.broadcast_to(shape)
        return x.flat, x.start, (0,) * (elementwise.RANK - len(shape)) + x.strides

    # ---- views -------------------------------------------------------------------------------------------------------

    def _view(self, of: Callable[[np.ndarray], np.ndarray]) -> DeviceArray:
        """What ``of`` makes of an array of NumPy's that lies in memory as this one does.

        NumPy knows all views, and reads no number for them: there are none.
        """
        layout = as_strided(_ANYWHERE, self.shape, self.strides)
        view = of(layout)
        return DeviceArray(self.flat, view.shape, view.strides, self.start + _address(view) - _address(layout))

    def __getitem__(self, key: Any) -> DeviceArray:
        """A view by integers, slices, None and an Ellipsis; or the rows that an array of integers counts, copied."""
        if isinstance(key, np.ndarray | DeviceArray):
            return self._rows(key.numpy() if isinstance(key, DeviceArray) else key)
        key = key if isinstance(key, tuple) else (key,)
        if not any(part is Ellipsis for part in key):
            key = (*key, ...)  # with it NumPy gives a view even of a single number
        return self._view(lambda layout: layout[key])

    def _rows(self, rows: np.ndarray) -> DeviceArray:
        if rows.dtype.kind not in "iu":
            raise BackendError("an array is indexed by another", got=rows.dtype, expected="integers, which count rows")
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()} ... {rows.max()} of an array of {len(self)}")
        out = DeviceArray.empty((*rows.shape, *self.shape[1:]), self.dtype)
        if out.size:
            counted = cuda.to_device(rows.reshape(-1).astype(np.int64))
            table = self.reshape(len(self), -1).values()
            launch.over(elementwise.take, out.size, table, counted, out.reshape(rows.size, -1).values())
        return out

    def transpose(self, *axes: Any) -> DeviceArray:
        return self._view(lambda layout: layout.transpose(*axes))

    def swapaxes(self, one: int, other: int) -> DeviceArray:
        return self._view(lambda layout: layout.swapaxes(one, other))

    def broadcast_to(self, shape: Shape) -> DeviceArray:
        return self._view(lambda layout: np.broadcast_to(layout, shape))

    def reshape(self, *shape: Any) -> DeviceArray:
        """A view if the numbers lie side by side, else of a copy."""
        return self.contiguous()._view(lambda layout: layout.reshape(*shape))

    def contiguous(self) -> DeviceArray:
        """This array if its numbers lie side by side, else a copy of which they do."""
        expected = _in_order(self.shape)
        if all(n == 1 or a == b for n, a, b in zip(self.shape, self.strides, expected, strict=True)) or not self.size:
            return DeviceArray(self.flat, self.shape, expected, self.start)
        return self.astype(self.dtype)

    # ---- numbers -----------------------------------------------------------------------------------------------------

    def astype(self, dtype: Any) -> DeviceArray:
        """A copy in another dtype, or in the same."""
        out = DeviceArray.empty(self.shape, np.dtype(dtype))
        out.write(self)
        return out

    def write(self, x: DeviceArray) -> None:
        """Set these numbers to x, which broadcasts to their shape."""
        places = *x.place(self.shape), *self.place(self.shape)
        launch.over(elementwise.copy, self.size, _lengths(self.shape), self.size, *places)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> DeviceArray:
        if method != "__call__" or options or ufunc not in _UFUNCS:
            raise _no_kernel(", ".join([ufunc.__name__, method, *options]), _UFUNCS)
        dtype = ufunc.resolve_dtypes((*(getattr(x, "dtype", type(x)) for x in inputs), None))[-1]
        x, y = (_on_card(x, dtype) for x in inputs)
        shape = np.broadcast_shapes(x.shape, y.shape)
        out = DeviceArray.empty(shape, dtype)
        places = *x.place(shape), *y.place(shape)
        launch.over(elementwise.combine, out.size, _UFUNCS[ufunc], _lengths(shape), *places, out.flat)
        return out

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if function is not np.broadcast_to:
            raise _no_kernel(function.__name__, [np.broadcast_to])
        return DeviceArray.broadcast_to(*args, **options)


def where(mask: DeviceArray, x: Any, y: Any) -> DeviceArray:
    """x where the mask is True, else y; all broadcast, and x or y may be a number."""
    dtype = np.result_type(*(z.dtype if isinstance(z, DeviceArray) else z for z in (x, y)))
    operands = [_on_card(mask, np.dtype(bool)), _on_card(x, dtype), _on_card(y, dtype)]
    shape = np.broadcast_shapes(*(z.shape for z in operands))
    out = DeviceArray.empty(shape, dtype)
    places = [argument for z in operands for argument in z.place(shape)]
    launch.over(elementwise.where, out.size, _lengths(shape), *places, out.flat)
    return out


def _no_kernel(got: str, known: Iterable[Any]) -> BackendError:
    expected = ", ".join(function.__name__ for function in known)
    return BackendError("no kernel for what is done to an array on the card", got=got, expected=expected)


def _on_card(x: Any, dtype: np.dtype) -> DeviceArray:
    """An operand: an array of the card, or a number."""
    if isinstance(x, DeviceArray):
        return x
    if np.ndim(x):
        raise BackendError(
            "an array of NumPy's among those of the card", got=np.shape(x), hint="ops.asarray(x) copies it"
        )
    return DeviceArray.of(np.asarray(x, dtype))


def _lengths(shape: Shape) -> Shape:
    """A shape of ``RANK`` axes."""
    if len(shape) > elementwise.RANK:
        raise BackendError("too many axes for an array on the card", got=shape, expected=f"{elementwise.RANK} at most")
    return (1,) * (elementwise.RANK - len(shape)) + tuple(shape)


def _in_order(shape: Shape) -> Shape:
    """The strides of numbers that lie side by side."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _address(x: np.ndarray) -> int:
    return x.__array_interface__["data"][0]
