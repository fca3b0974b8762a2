"""The backend "cupy": every operation as kernels of our own and cuBLASLt's products, on an NVIDIA card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from d2v_ref.errors import BackendError
from d2v_ref.nn import BatchNorm2d, Conv1d, Conv2d, ConvTranspose2d, Embedding, LayerNorm, Linear, Module, recording
from d2v_ref.ops import Ops
from d2v_ref.ops.definitions import Kernels, check_embedding, check_linear

from ..activations import add_activations
from . import attention, convolutions, embeddings, maps, rows
from .convolutions import Packed
from .device import STORED, TYPES, Device, why_not
from .graphs import Graphs
from .weights import Weights

Array = Any

HALF_MOST = 65504.0  # the largest number of float16


class CupyOps(Ops):
    """Operations on an NVIDIA card.

    Args:
        dtype: what arrays on the card are stored in.  "float32": nothing is rounded to less; "tf32": float32, and the
            factors of matrix products are rounded to TF32; "float16" and "bfloat16": sums, statistics, softmax and
            activations are float32.  Numbers that go in and come out are float32.
        device: the card's number, or a ``Device``.
        graphs: whether a part of a model that is computed again for the same shapes becomes a CUDA graph.
        tune: whether a product measures several of cuBLASLt's algorithms the first time that it has a shape, and
            keeps the choice on the disk.

    A thread that computes has the device's stream as its current stream of CuPy from then on.

    Raises:
        BackendError: a package, a driver or the card is missing.
    """

    name: ClassVar[str] = "cupy"
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "tf32", "float16", "bfloat16")

    def __init__(
        self, dtype: str = "float32", device: int | Device = 0, *, graphs: bool = True, tune: bool = True
    ) -> None:
        super().__init__("float32" if dtype in self.dtypes else dtype)  # which says what it takes
        self.device = device if isinstance(device, Device) else Device(dtype, device, tune=tune)
        self.weights = Weights(self.device)
        self.graphs = Graphs(self.device.recorder()) if graphs else None

    @classmethod
    def lacks(cls) -> BackendError | None:
        return why_not()

    @classmethod
    def kernels(cls, dtype: str) -> Kernels | None:
        if why_not() is not None:
            return None
        import cupy

        from .compiling import architecture, compilers, folder

        capability = divmod(int(cupy.cuda.Device(0).compute_capability), 10)
        return Kernels(folder(), dict(compilers(TYPES[STORED[dtype]], architecture(capability))))

    # ---- data in and out ---------------------------------------------------------------------------------------------

    def asarray(self, x: Any) -> Array:
        """A contiguous array of the card, floating values as they are stored there.

        In float16 a finite number that is too large becomes the largest, so that an additive mask hides what it should
        and makes no NaN.
        """
        if isinstance(x, Packed):
            return x.unpacked()
        if not isinstance(x, self.device.xp.ndarray):
            x = np.asarray(x)
            if x.dtype == np.float64 and STORED[self.device.format] == "float32":
                x = x.astype(np.float32)  # half to copy
            x = self.device.upload(x)
        if x.dtype == self.device.storage or x.dtype.kind in "biu":
            return self.device.xp.ascontiguousarray(x)
        if self.device.storage == np.float16:
            xp = self.device.xp
            x = xp.where(xp.isinf(x), x, xp.clip(x, -HALF_MOST, HALF_MOST))
        return self.device.xp.ascontiguousarray(x.astype(self.device.storage))

    def constant(self, x: Array) -> Array:
        """As it is, and the distance of rows even: attention reads a bias two numbers at a time then."""
        x = self.asarray(x)
        if not x.ndim or x.shape[-1] % 2 == 0:
            return x
        y = self.device.empty((*x.shape[:-1], x.shape[-1] + 1), x.dtype)[..., :-1]
        y[...] = x
        return y

    def weight(self, x: np.ndarray) -> Array:
        return self.weights.add(self.asarray(x))

    def to_numpy(self, x: Array) -> np.ndarray:
        if not isinstance(x, self.device.xp.ndarray | Packed):
            return x  # a loss, which is computed on the host
        if isinstance(x, Packed):
            x = x.unpacked()
        return self.device.download(x if x.dtype.kind in "biu" else x.astype(np.float32, copy=False))

    def prepare(self, module: Module) -> None:
        """Lays out the weights of convolutions as the kernels read them."""
        if isinstance(module, Conv1d):
            module.weight = convolutions.packed_conv1d(self.device, module.weight)
        elif isinstance(module, Conv2d):
            module.weight = convolutions.packed_conv2d(self.device, module.weight)
        elif isinstance(module, ConvTranspose2d):
            module.weight = convolutions.packed_conv_transpose2d(self.device, module.weight)

    def replay(self, function: Callable[..., Any], *args: Any) -> Any:
        """function(*args), which the second time that it has the same shapes becomes a graph.

        A graph serves one shape: an input that was padded to another length would give other numbers where padding
        leaks (``d2v_ref.audio``).
        """
        if self.graphs is None or recording():
            return function(*args)
        self.device.enter()
        return self.graphs(function, *args)

    def concatenate(self, arrays: tuple[Array, ...], axis: int) -> Array:
        # By copies: cupy.concatenate brings a table of addresses to the card, which no graph can capture.
        first, axis = arrays[0], axis % arrays[0].ndim
        lengths = [x.shape[axis] for x in arrays]
        y = self.device.empty((*first.shape[:axis], sum(lengths), *first.shape[axis + 1 :]), first.dtype)
        start = 0
        for x, length in zip(arrays, lengths, strict=True):
            y[(slice(None),) * axis + (slice(start, start + length),)] = x
            start += length
        return y

    def where(self, mask: Array, x: Array, y: Array) -> Array:
        """The bits of one or the other, as cupy.where does not know bfloat16."""
        xp, storage = self.device.xp, self.device.storage
        bits = f"u{storage.itemsize}"
        x, y = (one if isinstance(one, xp.ndarray) else xp.full((1,), one, storage) for one in (x, y))
        return xp.where(mask, x.view(bits), y.view(bits)).view(storage)

    # ---- along rows; activations are below ---------------------------------------------------------------------------

    def glu(self, x: Array) -> Array:
        return rows.glu(self.device, x)

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        return rows.layer_norm(self.device, x, weight, bias, eps)

    def softmax(self, x: Array) -> Array:
        return rows.softmax(self.device, x)

    def log_softmax(self, x: Array) -> Array:
        return rows.log_softmax(self.device, x)

    def statistics_pooling(self, x: Array, lengths: list[int]) -> Array:
        return maps.statistics_pooling(self.device, x, lengths)

    # ---- embeddings --------------------------------------------------------------------------------------------------

    def embedding(self, ids: Array, weight: Array) -> Array:
        """As defined; ids that are on the card already are not checked, as the host would have to wait for them."""
        return embeddings.embedding(self.device, self._ids(ids, weight), weight)

    def embed_norm(self, ids: tuple[Array, ...], tables: tuple[Embedding, ...], norm: LayerNorm) -> Array:
        brought = tuple(self._ids(one, table.weight) for one, table in zip(ids, tables, strict=True))
        return embeddings.embed_norm(self.device, brought, tables, norm)

    def _ids(self, ids: Array, weight: Array) -> Array:
        if isinstance(ids, self.device.xp.ndarray):
            return ids
        check_embedding(ids, weight)
        return self.device.upload(ids.astype(np.int64))

    # ---- products ----------------------------------------------------------------------------------------------------

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
        if scale is not None and activation is None and self.weights.have(weight, bias, scale):
            weight, bias = self.weights.scaled(weight, bias, scale)
            scale = None
        if activation is None and scale is None:
            return self._product(x, weight, bias, residual)
        code = rows.activation_code("linear" if activation is None else activation)
        y = self._product(x, weight, bias)
        rows.elementwise(self.device, code, y, out=y)
        if scale is not None:
            y = scale * y
        return y if residual is None else residual + y

    def project(self, x: Array, *linears: Linear) -> tuple[Array, ...]:
        """One product of weights side by side; what it gives are views of one array."""
        joined = self.weights.joined(linears) if linears else None
        if joined is None:
            return super().project(x, *linears)
        for linear in linears:
            check_linear(x, linear.weight, linear.bias, None, None)
        y = self._product(x, joined.weight, joined.bias)
        return tuple(y[..., start:end] for start, end in zip([0, *joined.ends], joined.ends, strict=False))

    def _product(self, x: Array, weight: Array, bias: Array, residual: Array = None) -> Array:
        """residual + x W^T + b: x (..., K), weight (N, K), residual (..., N) -> (..., N)."""
        outputs, depth = weight.shape
        y = self.device.empty((*x.shape[:-1], outputs))
        if not depth:  # a sum of nothing
            y[...] = 0 if bias is None else bias
            return y if residual is None else residual + y
        x, weight = self._matrix(x), self.device.xp.ascontiguousarray(weight)
        bias = None if bias is None else self.device.xp.ascontiguousarray(bias)
        residual = None if residual is None else self._matrix(residual)
        self.device.product(x, weight, y.reshape(-1, outputs), bias, residual)
        return y

    def _matrix(self, x: Array) -> Array:
        """x (..., K) as (M, K) without a gap between the numbers of a row."""
        if x.ndim == 2 and x.strides[1] == x.itemsize and x.strides[0] >= x.shape[1] * x.itemsize:
            return x  # rows apart, as those of the first token of each sequence are
        return self.device.xp.ascontiguousarray(x).reshape(-1, x.shape[-1])

    # ---- attention ---------------------------------------------------------------------------------------------------

    def attention(self, q: Array, k: Array, v: Array, heads: int, **options: Any) -> tuple[Array, Array]:
        return attention.attention(self.device, q, k, v, heads, **options)

    def relative_key_bias(self, q: Array, k: Array, heads: int, weight: Array, with_key: bool) -> Array:
        return attention.relative_key_bias(self.device, q, k, heads, weight, with_key)

    # ---- convolutions and maps ---------------------------------------------------------------------------------------

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
        return convolutions.conv1d(self.device, x, weight, bias, stride, padding, dilation, groups)

    def conv_norm_act(self, x: Array, conv: Conv1d, norm: LayerNorm, activation: str) -> Array:
        return convolutions.conv_norm_act(self.device, x, conv, norm, activation)

    def conv2d(
        self, x: Array, weight: Array, bias: Array = None, stride: tuple[int, int] = (1, 1), padding: int = 0
    ) -> Array:
        return convolutions.conv2d(self.device, x, weight, bias, stride, padding)

    def conv2d_norm_act(self, x: Array, conv: Conv2d, norm: BatchNorm2d, activation: str) -> Array:
        return convolutions.conv2d_norm_act(self.device, x, conv, norm, activation)

    def conv_transpose2d(self, x: Array, weight: Array, bias: Array) -> Array:
        return convolutions.conv_transpose2d(self.device, x, weight, bias)

    def _activation(self, name: str, x: Array) -> Array:
        return rows.elementwise(self.device, rows.CODES[name], x)

    def batch_norm(self, x: Array, mean: Array, var: Array, weight: Array, bias: Array, eps: float) -> Array:
        return maps.batch_norm(self.device, x, mean, var, weight, bias, eps)

    def max_pool2d(self, x: Array, size: int) -> Array:
        return maps.max_pool2d(self.device, x, size)

    def adaptive_avg_pool2d(self, x: Array, size: int) -> Array:
        return maps.adaptive_avg_pool2d(self.device, x, size)

    def resize(self, x: Array, size: tuple[int, int], mode: str) -> Array:
        return maps.resize(self.device, x, size, mode)


add_activations(CupyOps, rows.CODES)
