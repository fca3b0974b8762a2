"""Operations that work row by row or number by number, on a card: LayerNorm, softmax, GLU and activations."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from d2v_ref.errors import InputError
from d2v_ref.ops import ACTIVATIONS
from d2v_ref.ops.definitions import check_glu, check_layer_norm

if TYPE_CHECKING:
    from .device import Device

Array = Any

# The numbers by which kernels know activations: common.cuh has the same.
CODES = {name: i for i, name in enumerate(dict.fromkeys([*ACTIVATIONS.values(), "softplus"]))}
MOST_THREADS = 256  # of a block, as rows.cu and embeddings.cu have it
MOST_ROWS = 65535  # of a grid's second axis


def activation_code(name: str) -> int:
    """The number of an activation, by Hugging Face's name."""
    if name not in ACTIVATIONS:
        raise InputError("activation: no such activation", got=name, expected=", ".join(ACTIVATIONS))
    return CODES[ACTIVATIONS[name]]


# ---- operands


def own(device: Device, operation: str, x: Array) -> Array:
    """An operand of the storage's dtype without gaps."""
    if x.dtype != device.storage:
        raise InputError(f"{operation}: another dtype than the backend's", got=x.dtype, expected=device.storage)
    return device.xp.ascontiguousarray(x)


def rows_of(device: Device, operation: str, x: Array) -> tuple[Array, np.int64]:
    """An operand (..., K) whose rows are without gaps, and the one distance of its rows in numbers."""
    steps = [(n, step) for n, step in zip(x.shape[:-1], x.strides[:-1], strict=True) if n > 1]
    even = all(outer == inner * n for (_, outer), (n, inner) in itertools.pairwise(steps))
    if x.dtype != device.storage or not even or x.strides[-1] != x.itemsize:
        x, steps = own(device, operation, x), []
    return x, np.int64(steps[-1][1] // x.itemsize if steps else x.shape[-1])


def count(shape: tuple[int, ...]) -> int:
    """How many rows (..., K) has."""
    return math.prod(shape[:-1])


def pointer(x: Array) -> Array:
    """An optional operand as a kernel's argument."""
    return np.uint64(0) if x is None else x


def threads_for(width: int, itemsize: int) -> int:
    """Threads of a block that has one row: whole warps, of which each thread has 16 bytes or more."""
    packs = -(-width * itemsize // 16)
    return min(MOST_THREADS, -(-packs // 32) * 32)


def launch_by_number(device: Device, kernel: tuple[str, str], args: tuple[Any, ...], rows: int, width: int) -> None:
    """Launches a kernel whose blocks go along a row, each thread with 16 bytes at a time, and others down the rows."""
    size = device.storage.itemsize
    threads = threads_for(width, size)
    device.kernel(*kernel)((-(-width * size // (16 * threads)), min(rows, MOST_ROWS)), (threads,), args)


# ---- operations, with the names and the meaning that Ops has


def activation(device: Device, name: str, x: Array) -> Array:
    """``Ops.activation``, by Hugging Face's name."""
    return elementwise(device, activation_code(name), x)


def elementwise(device: Device, code: int, x: Array, bias: Array = None, out: Array = None) -> Array:
    """f(x + bias), where ``CODES`` has the number of f.  x (..., N), bias (N,).

    ``out`` is where it goes, an array without gaps, which x may be; a new array if None.
    """
    x, stride = rows_of(device, "activation", x) if x.shape else (own(device, "activation", x), np.int64(1))
    y = device.empty(x.shape) if out is None else out
    if y.size:
        rows, width = (count(y.shape), y.shape[-1]) if y.shape else (1, 1)
        if bias is None and stride == width:
            rows, width = 1, y.size
        bias = None if bias is None else own(device, "activation", bias)
        args = (x, stride, pointer(bias), y, np.int64(rows), np.int64(width), np.int32(code))
        launch_by_number(device, ("rows", "activation"), args, rows, width)
    return y


def layer_norm(
    device: Device,
    x: Array,
    weight: Array,
    bias: Array,
    eps: float,
    activation: str = "linear",
    residual: Array = None,
) -> Array:
    """activation(``Ops.layer_norm`` of x + residual)."""
    check_layer_norm(x, weight)
    code = activation_code(activation)
    x, stride = rows_of(device, "layer_norm", x)
    more, distance = (None, np.int64(0)) if residual is None else rows_of(device, "layer_norm", residual)
    y = device.empty(x.shape)
    if y.size:
        affine = (pointer(None if p is None else own(device, "layer_norm", p)) for p in (weight, bias))
        args = (x, stride, pointer(more), distance, *affine, y, np.int32(y.shape[-1]), np.float32(eps), np.int32(code))
        device.kernel("rows", "layer_norm")((count(y.shape),), (threads_for(y.shape[-1], y.itemsize),), args)
    return y


def softmax(device: Device, x: Array) -> Array:
    """``Ops.softmax``."""
    return _softmax(device, "softmax", x, False)


def log_softmax(device: Device, x: Array) -> Array:
    """``Ops.log_softmax``."""
    return _softmax(device, "log_softmax", x, True)


def _softmax(device: Device, operation: str, x: Array, logarithm: bool) -> Array:
    if not x.shape[-1]:
        raise InputError(f"{operation}: nothing on the last axis", got=x.shape, expected="1 number or more")
    x, stride = rows_of(device, operation, x)
    y = device.empty(x.shape)
    if y.size:
        args = (x, stride, y, np.int32(y.shape[-1]), np.int32(logarithm))
        device.kernel("rows", "softmax")((count(y.shape),), (threads_for(y.shape[-1], y.itemsize),), args)
    return y


def glu(device: Device, x: Array) -> Array:
    """``Ops.glu``."""
    check_glu(x)
    x, stride = rows_of(device, "glu", x)
    half = x.shape[-1] // 2
    y = device.empty((*x.shape[:-1], half))
    if y.size:
        rows = count(y.shape)
        launch_by_number(device, ("rows", "glu"), (x, stride, y, np.int64(rows), np.int32(half)), rows, half)
    return y
