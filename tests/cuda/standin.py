"""A device without a card: arrays that behave as CuPy's do, kernels that run on the processor.

What would be wrong on a card is an error here: NumPy arrays mixed with arrays of the card, one taken for the other, and
whatever makes the host wait for the card in the middle of a model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType, SimpleNamespace
from typing import Any
from weakref import WeakMethod

import numpy as np
from d2v_backends.cupy.device import STORED, TYPES, Device, Launch, Limits
from d2v_backends.cupy.products import Products
from emulator import emulated
from gemm_on_cpu import CpuLibrary

ALIGNED = 256  # bytes, as CuPy's memory is at least
# What CuPy 14 has for bfloat16; cupy.where and cupy.clip are not among it.
OF_BFLOAT16 = (
    "add",
    "subtract",
    "multiply",
    "true_divide",
    "negative",
    "sqrt",
    "exp",
    "log",
    "tanh",
    "maximum",
    "minimum",
)


class RefusedError(TypeError):
    """What an array of a card does not do, or must not in the middle of a model."""


class Array:
    """An array of the card: a NumPy array that only this module sees."""

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers

    shape = property(lambda self: self.numbers.shape)
    dtype = property(lambda self: self.numbers.dtype)
    ndim = property(lambda self: self.numbers.ndim)
    size = property(lambda self: self.numbers.size)
    itemsize = property(lambda self: self.numbers.itemsize)
    nbytes = property(lambda self: self.numbers.nbytes)
    strides = property(lambda self: self.numbers.strides)
    flags = property(lambda self: self.numbers.flags)
    data = property(lambda self: SimpleNamespace(ptr=self.numbers.ctypes.data))
    T = property(lambda self: Array(self.numbers.T))

    def __repr__(self) -> str:
        return f"<{self.dtype} {self.shape} on the stand-in card>"

    def __len__(self) -> int:
        return len(self.numbers)

    # ---- what needs the card's numbers on the host, and makes it wait

    def _refuse(self, *args: Any, **options: Any) -> Any:
        raise RefusedError("a number of the card is wanted on the host: Ops.to_numpy is the way")

    __array__ = __float__ = __int__ = __index__ = __bool__ = __iter__ = __contains__ = item = tolist = get = _refuse
    __hash__ = object.__hash__

    # ---- views and copies

    def __getitem__(self, key: Any) -> Array:
        return Array(self.numbers[_key(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.numbers[_key(key)] = _operand(value)

    def reshape(self, *shape: Any) -> Array:
        return Array(self.numbers.reshape(*shape))

    def transpose(self, *axes: Any) -> Array:
        return Array(self.numbers.transpose(*axes))

    def swapaxes(self, first: int, second: int) -> Array:
        return Array(self.numbers.swapaxes(first, second))

    def ravel(self) -> Array:
        return Array(self.numbers.ravel())

    def view(self, dtype: Any) -> Array:
        return Array(self.numbers.view(dtype))

    def copy(self) -> Array:
        return Array(_aligned(self.numbers))

    def astype(self, dtype: Any, copy: bool = True) -> Array:
        if not copy and self.dtype == dtype:
            return self
        with np.errstate(all="ignore"):  # a card does not warn
            return Array(_aligned(self.numbers.astype(dtype)))

    def sum(self, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> Array:
        if dtype is None and self.itemsize == 2:
            raise RefusedError(f"a sum of {self.dtype} keeps its dtype: give it dtype=float32")
        return Array(_aligned(np.asarray(self.numbers.sum(axis, dtype=dtype, keepdims=keepdims))))

    def __neg__(self) -> Any:
        return np.negative(self)

    def __invert__(self) -> Any:
        return np.invert(self)

    # ---- NumPy's functions

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        if method != "__call__" or options or ufunc is np.matmul:
            raise RefusedError(f"{ufunc.__name__}.{method} is not for the card")
        numbers = [_operand(x) for x in inputs]
        bfloat16 = [x for x in inputs if isinstance(x, Array) and x.dtype.name == "bfloat16"]
        if bfloat16 and (ufunc.__name__ not in OF_BFLOAT16 or any(isinstance(x, float | np.generic) for x in inputs)):
            raise RefusedError(f"CuPy has no {ufunc.__name__} of bfloat16, or none of such a number")
        with np.errstate(all="ignore"):
            result = np.asarray(ufunc(*numbers))
        if out is None:
            return Array(_aligned(result))
        out[0].numbers[...] = result
        return out[0]

    def __array_function__(self, function: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
        mine = getattr(Namespace, function.__name__, None)
        if mine is None:
            raise RefusedError(f"np.{function.__name__} is not for the card")
        return mine(*args, **kwargs)


def _operator(ufunc: np.ufunc, swapped: bool = False) -> Callable[[Array, Any], Any]:
    def operate(self: Array, other: Any) -> Any:
        return ufunc(other, self) if swapped else ufunc(self, other)

    return operate


for _name, _ufunc in {"add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide}.items():
    setattr(Array, f"__{_name}__", _operator(_ufunc))
    setattr(Array, f"__r{_name}__", _operator(_ufunc, swapped=True))


def _operand(x: Any) -> Any:
    """An operand's numbers, if CuPy takes it beside an array of the card."""
    if isinstance(x, Array):
        return x.numbers
    if isinstance(x, bool | int | float | np.generic):
        return x
    raise RefusedError(f"{type(x).__name__} beside an array of the card: Ops.asarray brings it there")


def _key(key: Any) -> Any:
    """An index that makes nobody wait, and that is on the card if it is an array."""
    if isinstance(key, tuple):
        return tuple(_key(one) for one in key)
    if isinstance(key, Array):
        if key.dtype == bool:
            raise RefusedError("an index of booleans makes the host wait")
        return key.numbers
    if isinstance(key, np.ndarray | list):
        raise RefusedError("an index that is not on the card: Ops.asarray brings it there")
    return key


def _aligned(x: np.ndarray) -> np.ndarray:
    """A contiguous copy in memory as a card gives it."""
    out = _memory(x.shape, x.dtype)
    out[...] = x
    return out


def _memory(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Memory as a card gives it, in which there is NaN."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    allocator = getattr(_thread, "allocator", None)
    if allocator is not None:
        memory = np.asarray(allocator(count))
    else:
        room = np.empty(count + ALIGNED, np.uint8)
        start = room.ctypes.data + -room.ctypes.data % ALIGNED
        memory = np.asarray(Owned(start, (count,), np.uint8, room))  # which ends where the array does
    memory[...] = 0xFF
    return memory.view(dtype).reshape(shape)


_thread = threading.local()  # .allocator: what this thread's arrays come from; .capturing: whether it captures


class Owned:
    """Bytes at an address, which every view of them keeps, and their owner with them."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: Any, owner: Any) -> None:
        self.owner = owner
        dtype = np.dtype(dtype)
        self.__array_interface__ = {"data": (address, False), "shape": shape, "typestr": dtype.str, "version": 3}


class Namespace:
    """What the backend uses of the namespace cupy."""

    ndarray = Array

    @staticmethod
    def empty(shape: Any, dtype: Any) -> Array:
        return Array(_memory(shape if isinstance(shape, tuple) else (shape,), dtype))

    @staticmethod
    def full(shape: Any, value: float, dtype: Any) -> Array:
        x = Namespace.empty(shape, dtype)
        x.numbers[...] = value
        return x

    @staticmethod
    def zeros(shape: Any, dtype: Any) -> Array:
        return Namespace.full(shape, 0, dtype)

    @staticmethod
    def ascontiguousarray(x: Array) -> Array:
        return x if _array(x).flags.c_contiguous else x.copy()

    @staticmethod
    def where(mask: Array, x: Array, y: Array) -> Array:
        numbers = [_array(one).numbers for one in (mask, x, y)]
        if any(one.dtype.name == "bfloat16" for one in numbers):
            raise RefusedError("CuPy has no where of bfloat16")
        return Array(_aligned(np.where(*numbers)))

    @staticmethod
    def clip(x: Array, least: float, most: float) -> Array:
        if _array(x).dtype.name == "bfloat16":
            raise RefusedError("CuPy has no clip of bfloat16")
        return Array(_aligned(np.clip(x.numbers, least, most)))

    @staticmethod
    def broadcast_to(x: Array, shape: tuple[int, ...]) -> Array:
        return Array(np.broadcast_to(_array(x).numbers, shape))

    isinf = staticmethod(np.isinf)
    cuda = SimpleNamespace(get_current_stream=lambda: STREAM)

    @staticmethod
    def as_strided(x: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        return Array(np.lib.stride_tricks.as_strided(_array(x).numbers, shape, strides))

    lib = SimpleNamespace(stride_tricks=SimpleNamespace(as_strided=as_strided))


STREAM: Any = SimpleNamespace(ptr=1, is_capturing=lambda: getattr(_thread, "capturing", False))


def _array(x: Any) -> Array:
    if not isinstance(x, Array):
        raise RefusedError(f"{type(x).__name__}, not an array of the card")
    return x


class Memory:
    """Memory for what asks for bytes."""

    def __init__(self, size: int) -> None:
        with allocating(None):
            self.numbers = _memory((max(size, 1),), np.uint8)
        self.ptr = self.numbers.ctypes.data


@contextmanager
def allocating(allocator: Callable[[int], Any] | None) -> Iterator[None]:
    """While the block runs, this thread's arrays lie in what an allocator gives: bytes -> ``Owned``."""
    before = getattr(_thread, "allocator", None)
    _thread.allocator = allocator
    try:
        yield
    finally:
        _thread.allocator = before


class Recorder:
    """Graphs without a card: what was captured is computed again, and written to where its outputs were."""

    def __init__(self) -> None:
        self.limit = 1 << 30
        self.launches = 0

    allocating = staticmethod(allocating)
    memory = Memory

    def most(self) -> int:
        return self.limit

    def staging(self, count: int) -> np.ndarray:
        return np.zeros(count, np.uint8)

    def array(self, address: int, slot: Any, owner: Any) -> Array:
        numbers = np.asarray(Owned(address, (slot.stop - slot.start,), np.uint8, owner))
        return Array(numbers.view(slot.dtype).reshape(slot.shape))

    def pointer(self, address: int, count: int, owner: Any) -> Owned:
        return Owned(address, (count,), np.uint8, owner)

    def copy(self, staging: np.ndarray, memory: Memory, count: int) -> Any:
        memory.numbers[:count] = staging
        return SimpleNamespace(synchronize=lambda: None)

    def capture(self, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Callable[[], None], Any]:
        _thread.capturing = True
        try:
            out = function(*args)
        finally:
            _thread.capturing = False
        known = WeakMethod(function) if isinstance(function, MethodType) else lambda: function  # a graph keeps no model

        def launch() -> None:
            again = known()
            assert again is not None
            self.launches += 1
            for old, new in zip(arrays_of(out), arrays_of(again(*args)), strict=True):
                old.numbers[...] = new.numbers

        return launch, out

    def synchronize(self) -> None:
        """Everything is done at once."""


def arrays_of(value: Any) -> Iterator[Array]:
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from arrays_of(item)
    elif isinstance(value, Array):
        yield value


class StandIn(Device):
    """A device whose arrays are NumPy's, whose kernels g++ compiles, and whose products NumPy makes."""

    def _connect(self) -> None:
        self.xp = Namespace
        self.limits = Limits(shared_memory=227 << 10, multiprocessors=2, capability=(9, 0))
        self.stream = STREAM

    def recorder(self) -> Any:
        return Recorder()

    def upload(self, x: np.ndarray) -> Array:
        if not isinstance(x, np.ndarray | np.generic):
            raise RefusedError(f"{type(x).__name__} is no array of the host")
        self.refuse_capture("a NumPy array is brought in")
        return Array(_aligned(np.asarray(x)))

    def download(self, x: Array) -> np.ndarray:
        self.refuse_capture("an array is brought to the host")
        return _array(x).numbers.copy()

    def free(self) -> None:
        """NumPy does."""

    def synchronize(self) -> None:
        """Everything is done at once."""

    def enter(self) -> None:
        """There is one stand-in for a card."""

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        yield

    def _compiled(self, file: str, name: str, defines: dict[str, Any]) -> Launch:
        kernel = emulated(file, TYPES[STORED[self.format]], defines).get_function(name)

        def launch(grid: Any, block: Any, args: tuple[Any, ...], shared_mem: int = 0) -> None:
            if shared_mem > self.limits.shared_memory:
                raise RefusedError(f"{name}: {shared_mem} bytes of shared memory for a block")
            kernel(grid, block, tuple(x.numbers if isinstance(x, Array) else x for x in args), shared_mem=shared_mem)

        return launch

    def product(self, x: Array, weight: Array, out: Array, bias: Any = None, residual: Any = None) -> None:
        self.products(x, weight, out, bias, residual, stream=self.stream)

    def _multiplier(self) -> Any:
        return Products(self.format, CpuLibrary(), Memory)
