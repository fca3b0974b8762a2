"""The backend "numba": every operation as kernels that Numba compiles for this processor, and no BLAS beside them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from functools import partial
from operator import is_
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np

from d2v_ref.errors import BackendError, InputError
from d2v_ref.nn import BatchNorm2d, Conv1d, Conv2d, Embedding, LayerNorm, Linear, Module, recording
from d2v_ref.ops import ACTIVATIONS
from d2v_ref.ops.definitions import (
    Kernels,
    check_attention,
    check_conv1d,
    check_conv2d,
    check_conv_transpose2d,
    check_linear,
)

from . import cache, convolutions, products, system
from .compiling import Kernel, keep, tracing
from .elementwise import CODES
from .operands import address, aligned, empty, form, own, rows_of, spread_of
from .packing import Packed, release
from .peak import fma_peak
from .ready import SMALL, Attention, Product
from .replay import Replays
from .row_ops import RowOps
from .target import TARGET
from .threads import launch

Array = Any


class NumbaOps(RowOps):
    """Operations in compiled kernels on this processor's cores.

    Args:
        dtype: "float32", "float64", or "bfloat16": weights and the other factor of every matrix product are rounded to
            bfloat16, sums and everything else are float32.
        threads: how many compute; D2V_NUM_THREADS or all if None.

    Raises:
        BackendError: bfloat16 on a processor without AVX512_BF16, or a number of threads that can't be.

    The same bits come out for every number of threads: a task owns its outputs, and each is summed in one order.
    """

    name: ClassVar[str] = "numba"
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64", "bfloat16")

    def __init__(self, dtype: str = "float32", threads: int | None = None) -> None:
        self.paired = dtype == "bfloat16"
        if self.paired and not TARGET.bfloat16:
            hint = "Ask for float32"
            raise BackendError("bfloat16 needs AVX512_BF16", got=TARGET.name, expected="avx512 with bf16", hint=hint)
        super().__init__("float32" if self.paired else dtype, threads)
        loaded = [kernel.load(likes) for kernel, likes in self._every(dtype)]
        if any(loaded):
            system.give_back_llvm()
        self._own = threading.local()  # of each Python thread
        self._tables: WeakValueDictionary[int, np.ndarray] = WeakValueDictionary()
        self.replays = Replays(lambda weight: weight.panels if isinstance(weight, Packed) else weight)

    @classmethod
    def kernels(cls, dtype: str) -> Kernels:
        compilers: dict[str, Callable[[], bool]] = {"run": partial(launch, ahead=True)}
        compilers |= {
            f"{kernel.name}-{likes}": partial(kernel.compile, likes, ahead=True) for kernel, likes in cls._every(dtype)
        }
        return Kernels(cache.folder(), compilers)

    @classmethod
    def _every(cls, dtype: str) -> Iterator[tuple[Kernel, str]]:
        """Every kernel, and the types that it is compiled for to compute in a dtype."""
        letter = np.dtype("float32" if dtype == "bfloat16" else dtype).char
        for kernel in Kernel.made.values():
            if dtype == "bfloat16" and kernel.likes == 2:
                yield kernel, np.dtype(np.int32).char + letter
            yield kernel, letter * kernel.likes  # in bfloat16, too: what has no whole pairs is computed in float32

    # ---- weights -----------------------------------------------------------------------------------------------------

    def prepare(self, module: Module) -> None:
        """Packs the weights of products.  A table that embeddings are read from stays as it is, if it is tied."""
        if isinstance(module, Embedding):
            self._tables[id(module.weight)] = module.weight
        elif isinstance(module, Linear | Conv1d | Conv2d) and id(module.weight) not in self._tables:
            groups = module.groups if isinstance(module, Conv1d) else 1
            weight = module.weight
            module.weight = Packed(weight, groups, self.threads, self._pairs(weight))
            release(weight)

    def fma_peak(self) -> float:
        """The operations a second that the threads reach on data in their first-level caches."""
        return fma_peak(self.threads, self.dtype, self.paired)

    def _pairs(self, weight: Array) -> bool:
        """Whether a weight is rounded to pairs of bfloat16: of a convolution, where a frame has whole ones."""
        return self.paired and (len(weight.shape) == 2 or (len(weight.shape) == 3 and weight.shape[1] % 2 == 0))

    def to_numpy(self, x: Array) -> np.ndarray:
        return np.asarray(x)

    def _packed(self, weight: Array, groups: int = 1) -> Packed:
        """A convolution's weight in panels; one that no module owns is packed for the call."""
        if isinstance(weight, Packed):
            return weight
        return Packed(own("a weight", weight, self.dtype), groups, self.threads, self._pairs(weight))

    def replay(self, function: Callable[..., Any], *args: Any) -> Any:
        """function(*args), whose kernels' calls are recorded the second time that it has the same shapes."""
        return function(*args) if recording() else self.replays(function, *args)

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
        key = form(x), activation, form(residual)
        kept = weight.products if isinstance(weight, Packed) else {}
        product = kept.get(key)
        if product is not None and product.suits(self, bias, scale):
            return product(x, residual)[0]
        check_linear(x, weight, bias, residual, scale)
        code = self._code(activation)
        if not weight.shape[0] or not math.prod(x.shape[:-1]):
            return empty((*x.shape[:-1], weight.shape[0]), self.dtype)
        if not isinstance(weight, Packed):
            weight = own("linear", weight, self.dtype, contiguous=True)
        given = x, residual, bias, scale
        x = rows_of("linear", x, self.dtype)
        residual = None if residual is None else rows_of("linear", residual, self.dtype)
        taken = x, residual, self._vector(bias), self._vector(scale)
        product = Product(self, x, [weight], [taken[2]], code, residual, taken[3])
        if all(map(is_, given, taken)):
            keep(kept, key, product)
        return product(x, residual)[0]

    def project(self, x: Array, *linears: Linear) -> tuple[Array, ...]:
        weights, biases = [linear.weight for linear in linears], [linear.bias for linear in linears]
        if not 1 <= len(linears) <= 3 or not all(isinstance(weight, Packed) for weight in weights):
            return super().project(x, *linears)
        key, kept = (form(x), len(linears)), weights[0].products
        product = kept.get(key)
        if product is not None and product.suits(self, *weights[1:], *biases, None):
            return product(x)
        if not x.size:
            return super().project(x, *linears)
        for linear in linears:
            check_linear(x, linear.weight, linear.bias, None, None)
        given = x, *biases
        taken = rows_of("linear", x, self.dtype), *map(self._vector, biases)
        product = Product(self, taken[0], weights, list(taken[1:]))
        if all(map(is_, given, taken)):
            keep(kept, key, product)
        return product(taken[0])

    def comes_now(self, product: Product) -> None:
        """Has the product before remember which came after it, so that it fetches its panels the next time.

        Nothing is computed of them, so that they may be gone by then.
        """
        before = getattr(self._own, "afterwards", None)
        if before is not None:
            before[0] = product.panels
        self._own.afterwards = product.afterwards

    def scratch(self, count: int) -> int:
        """The address of room for so many numbers, which stays with the calling thread until it needs more."""
        if tracing.now is not None:
            tracing.now.scratch = aligned(count, self.dtype)  # until the next call, at least
            return address(tracing.now.scratch)
        memory = getattr(self._own, "memory", None)
        if memory is None or memory.size < count:
            memory = self._own.memory = aligned(count, self.dtype)
            self._own.address = address(memory)
        return self._own.address

    # ---- attention ---------------------------------------------------------------------------------------------------

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
        given = q, k, v, bias, mask, head_mask
        key = "attention", heads, causal, probs, *map(form, given)
        ready = self.kept.get(key)
        if ready is not None:
            return ready(self, *given)
        full = check_attention(q, k, v, heads, mask, bias, head_mask)
        if 0 in full[:3] or not q.size:
            return empty(q.shape, self.dtype), empty(full, self.dtype) if probs else None
        if not full[3]:
            raise InputError("attention: no key to attend to", got=k.shape, expected="(B, 1 or more, D)")
        q, k, v = (rows_of("attention", x, self.dtype) for x in (q, k, v))
        bias, mask, head_mask = (
            spread_of("attention", x, full, dtype)
            for x, dtype in ((bias, self.dtype), (mask, np.dtype(bool)), (head_mask, self.dtype))
        )
        taken = q, k, v, bias, mask, head_mask
        ready = Attention(self, *taken, full, causal, probs)
        if all(map(is_, given, taken)):
            keep(self.kept, key, ready)
        return ready(self, *taken)

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
        return self._conv1d(x, self._packed(weight, groups), bias, stride, padding, dilation, None, 0)

    def conv_norm_act(self, x: Array, conv: Conv1d, norm: LayerNorm, activation: str) -> Array:
        check_conv1d("conv_norm_act", x, conv.weight, conv.bias, conv.padding, 1, conv.groups)
        weight = self._packed(conv.weight, conv.groups)
        return self._conv1d(x, weight, conv.bias, conv.stride, conv.padding, 1, norm, self._code(activation))

    def _conv1d(
        self,
        x: Array,
        weight: Packed,
        bias: Array,
        stride: int,
        padding: int,
        dilation: int,
        norm: LayerNorm | None,
        activation: int,
    ) -> Array:
        x = own("conv1d", x, self.dtype, contiguous=True)
        batch, frames, channels = x.shape
        outputs, inside, taps = weight.shape
        made = (frames + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        y = empty((batch, made, outputs), self.dtype)
        if not y.size:
            return y
        bias = self._vector(bias)
        threads = 1 if y.size * taps * inside < SMALL else self.threads
        longest = min(192, max(products.ROWS, -(-batch * made // (4 * threads))))
        blocks = min(made, _shared(-(-made // longest), threads))
        wide = TARGET.width(self.dtype.itemsize)
        room = convolutions.conv1d_room(-(-made // blocks), inside, taps, stride, dilation > 1, wide)
        scale, shift = (None, None) if norm is None else (self._vector(norm.weight), self._vector(norm.bias))
        convolutions.conv1d(
            threads,
            *(address(x), batch, frames, channels, weight.address, address(bias), outputs, taps),
            *(stride, padding, dilation, weight.groups),
            *(norm is not None, address(scale), address(shift), 0.0 if norm is None else norm.eps, activation),
            *(address(y), made, blocks, self.scratch(threads * room), room),
            *(np.int32(0) if weight.paired else self.like, self.like),
        )
        return y

    def conv2d(
        self, x: Array, weight: Array, bias: Array = None, stride: tuple[int, int] = (1, 1), padding: int = 0
    ) -> Array:
        check_conv2d(x, weight, bias, padding)
        return self._conv2d(x, self._packed(weight), bias, stride, padding, None, 0)

    def conv2d_norm_act(self, x: Array, conv: Conv2d, norm: BatchNorm2d, activation: str) -> Array:
        check_conv2d(x, conv.weight, conv.bias, conv.padding)
        code = self._code(activation)
        return self._conv2d(x, self._packed(conv.weight), conv.bias, conv.stride, conv.padding, norm, code)

    def _conv2d(
        self,
        x: Array,
        weight: Packed,
        bias: Array,
        stride: tuple[int, int],
        padding: int,
        norm: BatchNorm2d | None,
        activation: int,
    ) -> Array:
        x = own("conv2d", x, self.dtype)
        batch, height, width, channels = x.shape
        outputs, _, *kernel = weight.shape
        made = [
            (length + 2 * padding - k) // step + 1
            for length, k, step in zip((height, width), kernel, stride, strict=True)
        ]
        y = empty((batch, *made, outputs), self.dtype)
        if not y.size:
            return y
        bias = self._vector(bias)
        depth, pixels = channels * math.prod(kernel), batch * math.prod(made)
        threads = 1 if y.size * depth < SMALL else self.threads
        longest = min(products.BLOCK, max(products.ROWS, convolutions.WINDOWS // depth))
        blocks = min(-(-pixels // products.ROWS), _shared(max(-(-pixels // longest), 2 * threads), threads))
        room = convolutions.conv2d_room(-(-pixels // blocks), depth, TARGET.width(self.dtype.itemsize))
        mean = scale = shift = None
        if norm is not None:
            mean, shift = self._vector(norm.running_mean), self._vector(norm.bias)
            scale = norm.weight / np.sqrt(norm.running_var + norm.eps)
        convolutions.conv2d(
            threads,
            (address(x), *(step // self.dtype.itemsize for step in x.strides)),
            *(height, width, channels),
            *(weight.address, address(bias), outputs, *kernel, *stride, padding),
            *(norm is not None, address(mean), address(scale), address(shift), activation),
            *(address(y), *made, pixels, blocks, self.scratch(threads * room), room, self.like),
        )
        return y

    def conv_transpose2d(self, x: Array, weight: Array, bias: Array) -> Array:
        check_conv_transpose2d(x, weight)
        channels, outputs, k, _ = weight.shape
        # A product for each place in a tile: the definition's, with our linear.
        matrix = np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(-1, channels)  # (k k O, C)
        tiles = self.linear(x, matrix, np.tile(bias, k * k)).reshape(*x.shape[:3], k, k, outputs)
        batch, height, width = x.shape[:3]
        return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(batch, k * height, k * width, outputs)

    # ---- operands ----------------------------------------------------------------------------------------------------

    def _code(self, activation: str | None) -> int:
        if activation is None:
            return CODES["identity"]
        if activation not in ACTIVATIONS:
            raise InputError("activation: no such activation", got=activation, expected=", ".join(ACTIVATIONS))
        return CODES[ACTIVATIONS[activation]]

    def _vector(self, x: Array) -> Array:
        return None if x is None else own("a vector of weights", x, self.dtype, contiguous=True)


def _shared(blocks: int, threads: int) -> int:
    """At least so many blocks, as many for every thread: whoever has one more would keep the others waiting."""
    return -(-blocks // threads) * threads
