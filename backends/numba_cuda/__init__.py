"""The backend "numba_cuda": every operation as a plain Numba-CUDA kernel, to read, and to check others on a card with.

It is not made to be fast: mostly a thread makes a number, as the formula says, and little is fused.  With
NUMBA_ENABLE_CUDASIM=1 in the environment the same kernels run without a card, in Numba's simulator, very slowly.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from d2v_ref.errors import BackendError, InputError
from d2v_ref.nn import Conv1d, LayerNorm
from d2v_ref.ops import ACTIVATIONS, Ops
from d2v_ref.ops.definitions import (
    check_attention,
    check_batch_norm,
    check_conv1d,
    check_conv2d,
    check_conv_transpose2d,
    check_embedding,
    check_glu,
    check_layer_norm,
    check_linear,
    check_map,
    check_max_pool2d,
    check_relative_key_bias,
    check_resize,
)

from ..activations import add_activations
from . import arrays, convolutions, elementwise, launch, maps, products, scalars
from . import rows as kernels_of_rows
from .arrays import DeviceArray
from .scalars import CODES

Array = Any

if launch.SIMULATED:
    # The first warning of NumPy's in a module gives it this name, while other threads go through the names that it has.
    for _module in (arrays, convolutions, elementwise, maps, products, kernels_of_rows, scalars):
        vars(_module).setdefault("__warningregistry__", {})


class NumbaCudaOps(Ops):
    """Operations on a card, in kernels that Numba compiles.  What is not here is the definition, on arrays of the card.

    Args:
        dtype: "float32" or "float64"; sums are of this dtype.

    Raises:
        BackendError: there is no driver, no card, or not what Numba compiles with.
    """

    name: ClassVar[str] = "numba_cuda"

    def __init__(self, dtype: str = "float32") -> None:
        super().__init__(dtype)
        lacks = self.lacks()
        if lacks is not None:
            raise lacks

    @classmethod
    def lacks(cls) -> BackendError | None:
        return launch.lacks()

    # ---- data in and out ---------------------------------------------------------------------------------------------

    def asarray(self, x: Any) -> Array:
        if not isinstance(x, DeviceArray):
            return DeviceArray.of(super().asarray(x))
        return x.astype(self.dtype) if x.dtype.kind == "f" and x.dtype != self.dtype else x.contiguous()

    def to_numpy(self, x: Array) -> np.ndarray:
        return x.numpy() if isinstance(x, DeviceArray) else np.asarray(x)

    def concatenate(self, arrays: tuple[Array, ...], axis: int) -> Array:
        axis %= arrays[0].ndim
        rest = {(*x.shape[:axis], *x.shape[axis + 1 :], x.dtype) for x in arrays}
        if len(rest) > 1:
            got = ", ".join(f"{x.dtype} {x.shape}" for x in arrays)
            raise InputError(
                "concatenate: the arrays do not fit together", got=got, expected=f"alike but in axis {axis}"
            )
        shape = [sum(x.shape[axis] for x in arrays) if i == axis else n for i, n in enumerate(arrays[0].shape)]
        y, start = DeviceArray.empty(tuple(shape), arrays[0].dtype), 0
        for x in arrays:
            y[(slice(None),) * axis + (slice(start, start + x.shape[axis]),)].write(x)
            start += x.shape[axis]
        return y

    def where(self, mask: Array, x: Array, y: Array) -> Array:
        return arrays.where(mask, x, y)

    # ---- activations -------------------------------------------------------------------------------------------------

    def _activation(self, name: str, x: Array) -> Array:
        y = DeviceArray.empty(x.shape, self.dtype)
        launch.over(elementwise.activation, y.size, CODES[name], self._own(name, x).reshape(-1).values(), y.flat)
        return y

    def glu(self, x: Array) -> Array:
        check_glu(x)
        rows, half = math.prod(x.shape[:-1]), x.shape[-1] // 2
        y, operand = DeviceArray.empty((*x.shape[:-1], half), self.dtype), self._own("glu", x).reshape(rows, 2 * half)
        launch.over(elementwise.glu, y.size, operand.values(), y.reshape(rows, half).values())
        return y

    # ---- layers ------------------------------------------------------------------------------------------------------

    def embedding(self, ids: Array, weight: Array) -> Array:
        return super().embedding(self.to_numpy(ids), weight)  # which are checked, on the host

    def linear(
        self,
        x: Array,
        weight: Array,
        bias: Array = None,
        activation: str | None = None,
        residual: Array = None,
        scale: Array = None,
    ) -> Array:
        check_linear(x, weight, bias, residual, scale)
        if activation is not None and activation not in ACTIVATIONS:
            raise InputError("activation: no such activation", got=activation, expected=", ".join(ACTIVATIONS))
        code = CODES["identity" if activation is None else ACTIVATIONS[activation]]
        rows, (outputs, depth) = math.prod(x.shape[:-1]), weight.shape
        y = DeviceArray.empty((*x.shape[:-1], outputs), self.dtype)
        launch.tiles(
            products.linear,
            (rows, outputs),
            self.dtype,
            self._own("linear", x).reshape(rows, depth).values(),
            self._own("linear", weight).values(),
            self._given("linear", bias, outputs),
            self._given("linear", residual, rows, outputs),
            self._given("linear", scale, outputs),
            code,
            y.reshape(rows, outputs).values(),
        )
        return y

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        check_layer_norm(x, weight)
        y, width = DeviceArray.empty(x.shape, self.dtype), x.shape[-1]
        rows = math.prod(x.shape[:-1])
        vectors = (None, None) if weight is None else (weight, self._own("layer_norm", bias))
        affine = (self._given("layer_norm", vector, width) for vector in vectors)
        operand, out = self._own("layer_norm", x).reshape(rows, width).values(), y.reshape(rows, width).values()
        launch.rows(kernels_of_rows.layer_norm, rows, self.dtype, operand, *affine, eps, out)
        return y

    def softmax(self, x: Array) -> Array:
        return self._softmax(x, False)

    def log_softmax(self, x: Array) -> Array:
        return self._softmax(x, True)

    def _softmax(self, x: Array, logarithm: bool) -> Array:
        y, (rows, width) = DeviceArray.empty(x.shape, self.dtype), (math.prod(x.shape[:-1]), x.shape[-1])
        operand = self._own("softmax", x).reshape(rows, width).values()
        launch.rows(kernels_of_rows.softmax, rows, self.dtype, operand, logarithm, y.reshape(rows, width).values())
        return y

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        heads: int,
        *,
        mask: Array = None,
        causal: bool = False,
        bias: Array = None,
        head_mask: Array = None,
        probs: bool = False,
    ) -> tuple[Array, Array]:
        full = check_attention(q, k, v, heads, mask, bias, head_mask)
        context, p = (DeviceArray.empty(shape, self.dtype) for shape in (q.shape, full))  # p: room for scores too
        if context.size and not full[3]:
            raise InputError("attention: no key to attend to", got=k.shape, expected="(B, 1 or more, D)")
        launch.rows(
            kernels_of_rows.attention,
            math.prod(full[:3]) if context.size else 0,
            self.dtype,
            *(self._own("attention", x).values() for x in (q, k, v)),
            (q.shape[2] // heads) ** -0.5 if context.size else 0.0,
            float(np.finfo(self.dtype).min),
            causal,
            *self._spread(bias, full, self.dtype),
            *self._spread(mask, full, np.dtype(bool)),
            *self._spread(head_mask, full, self.dtype),
            p.values(),
            context.values(),
        )
        return context, p if probs else None

    def relative_key_bias(self, q: Array, k: Array, heads: int, weight: Array, with_key: bool) -> Array:
        check_relative_key_bias(q, k, heads, weight)
        y = DeviceArray.empty((q.shape[0], heads, q.shape[1], k.shape[1]), self.dtype)
        if y.size:  # the rows of the first query's last key and of the last query's first
            check_embedding(weight.shape[0] // 2 + np.array([1 - q.shape[1], k.shape[1] - 1]), weight)
        operands = (self._own("relative_key_bias", z).values() for z in (q, k, weight))
        scale = weight.shape[1] ** -0.5 if y.size else 0.0
        launch.over(products.relative_key_bias, y.size, *operands, with_key, scale, y.values())
        return y

    # ---- convolutions ------------------------------------------------------------------------------------------------

    def conv1d(
        self,
        x: Array,
        weight: Array,
        bias: Array = None,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
    ) -> Array:
        check_conv1d("conv1d", x, weight, bias, padding, dilation, groups)
        outputs, _, taps = weight.shape
        frames = (x.shape[1] + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        y = DeviceArray.empty((x.shape[0], frames, outputs), self.dtype)
        operands = (self._own("conv1d", z).values() for z in (x, weight))
        bias = self._given("conv1d", bias, outputs)
        launch.over(convolutions.conv1d, y.size, *operands, bias, stride, padding, dilation, y.values())
        return y

    def conv_norm_act(self, x: Array, conv: Conv1d, norm: LayerNorm, activation: str) -> Array:
        check_conv1d("conv_norm_act", x, conv.weight, conv.bias, conv.padding, 1, conv.groups)
        y = self.conv1d(x, conv.weight, conv.bias, conv.stride, conv.padding, groups=conv.groups)
        return self.activation(activation, self.layer_norm(y, norm.weight, norm.bias, norm.eps))

    def conv2d(
        self, x: Array, weight: Array, bias: Array = None, stride: tuple[int, int] = (1, 1), padding: int = 0
    ) -> Array:
        check_conv2d(x, weight, bias, padding)
        outputs, _, *kernel = weight.shape
        size = [(n + 2 * padding - k) // step + 1 for n, k, step in zip(x.shape[1:3], kernel, stride, strict=True)]
        y = DeviceArray.empty((x.shape[0], *size, outputs), self.dtype)
        operands = (self._own("conv2d", z).values() for z in (x, weight))
        bias = self._given("conv2d", bias, outputs)
        launch.over(convolutions.conv2d, y.size, *operands, bias, *stride, padding, y.values())
        return y

    def conv_transpose2d(self, x: Array, weight: Array, bias: Array) -> Array:
        check_conv_transpose2d(x, weight)
        outputs, side = weight.shape[1:3]
        batch, height, width = x.shape[:3]
        y = DeviceArray.empty((batch, side * height, side * width, outputs), self.dtype)
        operands = (self._own("conv_transpose2d", z).values() for z in (x, weight, bias.reshape(outputs)))
        launch.over(convolutions.conv_transpose2d, y.size, *operands, y.values())
        return y

    # ---- maps, and frames --------------------------------------------------------------------------------------------

    def batch_norm(self, x: Array, mean: Array, var: Array, weight: Array, bias: Array, eps: float) -> Array:
        check_batch_norm(x, weight)
        y, shape = DeviceArray.empty(x.shape, self.dtype), (math.prod(x.shape[:-1]), x.shape[-1])
        vectors = (self._own("batch_norm", z).reshape(shape[1]).values() for z in (mean, var, weight, bias))
        operand = self._own("batch_norm", x).reshape(shape).values()
        launch.over(maps.batch_norm, y.size, operand, *vectors, eps, y.reshape(shape).values())
        return y

    def max_pool2d(self, x: Array, size: int) -> Array:
        check_max_pool2d(x, size)
        batch, height, width, channels = x.shape
        y = DeviceArray.empty((batch, height // size, width // size, channels), self.dtype)
        launch.over(maps.max_pool2d, y.size, self._own("max_pool2d", x).values(), size, y.values())
        return y

    def adaptive_avg_pool2d(self, x: Array, size: int) -> Array:
        check_map("adaptive_avg_pool2d", x)
        y = DeviceArray.empty((x.shape[0], size, size, x.shape[3]), self.dtype)
        launch.over(maps.adaptive_avg_pool2d, y.size, self._own("adaptive_avg_pool2d", x).values(), y.values())
        return y

    def resize(self, x: Array, size: tuple[int, int], mode: str) -> Array:
        check_resize(x, size, mode)
        rows, columns = (self._interpolation(x.shape[axis], size[axis - 1], mode).values() for axis in (1, 2))
        y = DeviceArray.empty((x.shape[0], *size, x.shape[3]), self.dtype)
        launch.over(maps.resize, y.size, self._own("resize", x).values(), rows, columns, y.values())
        return y

    def statistics_pooling(self, x: Array, lengths: list[int]) -> Array:
        batch, frames, channels = x.shape
        y = DeviceArray.empty((batch, 2 * channels), self.dtype)
        counted = [len(range(frames)[:length]) for _, length in zip(range(batch), lengths, strict=True)]
        counts = DeviceArray.of(np.array(counted, np.int64)).values()
        operand = self._own("statistics_pooling", x).values()
        launch.over(maps.statistics, batch * channels, operand, counts, y.values())
        return y

    # ---- operands ----------------------------------------------------------------------------------------------------

    def _own(self, operation: str, x: Array, dtype: np.dtype | None = None) -> DeviceArray:
        """An operand on the card, in the backend's dtype or another."""
        if not isinstance(x, DeviceArray):
            raise InputError(
                f"{operation}: not on the card", got=type(x).__name__, hint="ops.asarray(x) copies it there"
            )
        if x.dtype != (dtype or self.dtype):
            raise InputError(f"{operation}: another dtype than it takes", got=x.dtype, expected=dtype or self.dtype)
        return x

    def _given(self, operation: str, x: Array, *shape: int) -> Any:
        """An operand in a kernel's shape; None, which kernels don't take, becomes an array without numbers."""
        if x is None:
            return DeviceArray.empty((0,) * len(shape), self.dtype).values()
        return self._own(operation, x).reshape(shape).values()

    def _spread(self, x: Array, full: tuple[int, ...], dtype: np.dtype) -> tuple[Any, tuple[int, ...]]:
        """The numbers of an array that broadcasts to ``full``, and where they lie (``spot`` in rows.py)."""
        if x is None:
            return DeviceArray.empty((0,), dtype).flat, (0,) * 5
        x = self._own("attention", x, dtype).broadcast_to(full)
        return x.flat, (x.start, *x.strides)


add_activations(NumbaCudaOps, CODES)
