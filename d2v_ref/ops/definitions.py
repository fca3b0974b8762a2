"""``Ops``: every operation that a model uses, defined in NumPy.

The body of a method is the definition of the operation.  A backend is a subclass that overrides what it accelerates;
what it does not override falls through to the definition.  Fused operations (``linear`` with an activation and a
residual, ``project``, ``attention``) are written with the simpler ones: a fusion is defined by what it fuses.

Shapes: B batch, T query length, S key length, D width, H heads, d = D / H head size; in convolutions C channels, k
taps, g groups.  Arrays are of the dtype that
the ``Ops`` was made for, ``float32`` or ``float64``; indices are integers and masks are booleans.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from d2v_ref.errors import BackendError, InputError

if TYPE_CHECKING:
    from d2v_ref.nn import BatchNorm2d, Conv1d, Conv2d, Embedding, LayerNorm, Linear, Module

Array = Any

# Hugging Face's ACT2FN names (transformers 5.23), without prelu and xielu, which have weights of their own.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_10": "gelu_10",
    "gelu_new": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_fast",
    "quick_gelu": "quick_gelu",
    "hardswish": "hardswish",
    "laplace": "laplace",
    "leaky_relu": "leaky_relu",
    "linear": "identity",
    "mish": "mish",
    "relu": "relu",
    "relu2": "relu2",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "sqrtsoftplus": "sqrtsoftplus",
    "tanh": "tanh",
}


# Elements that a convolution works on at a time: its windows stay in a processor's cache, however long the signal is.
_BLOCK = 1 << 20


class Kernels(NamedTuple):
    """What a backend compiles when it is first needed, and how to have it compiled before.

    Attributes:
        folder: where it is kept.
        compilers: for each kernel, what compiles it, and returns whether it did or it was there.
    """

    folder: Path
    compilers: dict[str, Callable[[], bool]]


class Ops:
    """The NumPy backend, which is also the definition of what every other backend computes."""

    name: ClassVar[str] = "numpy"
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64")
    # "machine": the last bits depend on the machine (its BLAS, its vector instructions).  Another word is a promise of
    # the same bits everywhere, which a golden's manifest hands on.
    numerics: ClassVar[str] = "machine"

    def __init__(self, dtype: str = "float32") -> None:
        if dtype not in self.dtypes:
            hint = "Weights of any floating type are converted to it on loading"
            raise BackendError(
                f"backend {self.name} does not compute in this dtype",
                got=dtype,
                expected=" or ".join(self.dtypes),
                hint=hint,
            )
        self.dtype = np.dtype(dtype)

    # ---- data in and out ---------------------------------------------------------------------------------------------

    def asarray(self, x: Any) -> Array:
        """A contiguous array of the backend, floating values in its dtype.  No copy where none is needed."""
        x = np.asarray(x)
        return np.ascontiguousarray(x, self.dtype if x.dtype.kind == "f" else x.dtype)

    def weight(self, x: np.ndarray) -> Array:
        """A weight as the backend keeps it: as ``asarray`` gives it, or in another format of its own."""
        return self.asarray(x)

    def constant(self, x: Array) -> Array:
        """An array that many calls will be given, as the backend likes it to lie in memory."""
        return self.asarray(x)

    def to_numpy(self, x: Array) -> np.ndarray:
        """The values as a NumPy array."""
        return x

    def prepare(self, module: Module) -> None:
        """Called once for each module when its weights are bound: a backend may pack, fold or place them here."""

    def replay(self, function: Callable[..., Any], *args: Any) -> Any:
        """function(*args), a part of a model that computes the same for every input of the same shapes.

        A backend may record what the function has it do, and do that again the next time without calling it.  So what
        it computes may depend on its arguments only, which are NumPy arrays that it brings in by ``asarray``, arrays
        of the backend that are constants, as weights are, and anything that is hashed by value; lists, tuples and
        dictionaries of these, and it returns arrays of the backend in the same.
        """
        return function(*args)

    def concatenate(self, arrays: tuple[Array, ...], axis: int) -> Array:
        """The arrays, one after the other along ``axis``."""
        return np.concatenate(arrays, axis=axis)

    def where(self, mask: Array, x: Array, y: Array) -> Array:
        """x where the mask is True, else y, whatever the other is: also NaN.  All broadcast; x or y may be a number."""
        return np.where(mask, x, y)

    def add(self, x: Array, y: Array) -> Array:
        """x + y, which broadcast together."""
        return x + y

    # ---- activations, element by element -----------------------------------------------------------------------------

    def activation(self, name: str, x: Array) -> Array:
        """One of ``ACTIVATIONS``, by Hugging Face's name."""
        if name not in ACTIVATIONS:
            raise InputError("activation: no such activation", got=name, expected=", ".join(ACTIVATIONS))
        return getattr(self, ACTIVATIONS[name])(x)

    def identity(self, x: Array) -> Array:
        """x."""
        return x

    def gelu(self, x: Array) -> Array:
        """x Phi(x) = x (1 + erf(x / sqrt 2)) / 2, the exact form (Hendrycks & Gimpel 2016; HF GELUActivation)."""
        from scipy.special import erf  # imported where it is used: it takes as long to import as NumPy

        y = x * math.sqrt(0.5)
        erf(y, out=y)  # in place from here on: a map of many megabytes costs more to allocate than to compute
        y += 1.0
        y *= 0.5
        y *= x
        return y

    def gelu_10(self, x: Array) -> Array:
        """gelu(x) clipped to [-10, 10] (HF ClippedGELUActivation)."""
        return np.clip(self.gelu(x), -10.0, 10.0)

    def gelu_tanh(self, x: Array) -> Array:
        """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 (Hendrycks & Gimpel 2016, sec. 2; HF NewGELUActivation)."""
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))

    def gelu_fast(self, x: Array) -> Array:
        """gelu_tanh with sqrt(2 / pi) rounded to 0.7978845608 (HF FastGELUActivation)."""
        return 0.5 * x * (1.0 + np.tanh(0.7978845608 * x * (1.0 + 0.044715 * x * x)))

    def quick_gelu(self, x: Array) -> Array:
        """x sigmoid(1.702 x) (Hendrycks & Gimpel 2016, sec. 2; HF QuickGELUActivation)."""
        return x * self.sigmoid(1.702 * x)

    def sigmoid(self, x: Array) -> Array:
        """1 / (1 + exp(-x))."""
        from scipy.special import expit

        return expit(x)

    def silu(self, x: Array) -> Array:
        """x sigmoid(x) (Elfwing et al. 2017; Ramachandran et al. 2017 call it swish)."""
        return x * self.sigmoid(x)

    def softplus(self, x: Array) -> Array:
        """log(1 + exp(x)); x itself above 20, as torch.nn.functional.softplus has it."""
        return np.where(x > 20.0, x, np.logaddexp(np.minimum(x, 20.0), 0.0).astype(x.dtype))

    def sqrtsoftplus(self, x: Array) -> Array:
        """sqrt(softplus(x)) (HF SqrtSoftplusActivation)."""
        return np.sqrt(self.softplus(x))

    def mish(self, x: Array) -> Array:
        """x tanh(softplus(x)) (Misra 2019)."""
        return x * np.tanh(self.softplus(x))

    def tanh(self, x: Array) -> Array:
        """tanh(x)."""
        return np.tanh(x)

    def relu(self, x: Array) -> Array:
        """max(x, 0)."""
        return np.maximum(x, 0.0)

    def relu2(self, x: Array) -> Array:
        """max(x, 0)^2 (So et al. 2021)."""
        return np.square(self.relu(x))

    def relu6(self, x: Array) -> Array:
        """min(max(x, 0), 6)."""
        return np.clip(x, 0.0, 6.0)

    def leaky_relu(self, x: Array) -> Array:
        """x where positive, else 0.01 x (torch.nn.LeakyReLU's default slope)."""
        return np.where(x > 0.0, x, 0.01 * x)

    def glu(self, x: Array) -> Array:
        """a sigmoid(b), where a and b are the halves of the last axis (Dauphin et al. 2017).  (..., 2C) -> (..., C)."""
        check_glu(x)
        half = x.shape[-1] // 2
        return x[..., :half] * self.sigmoid(x[..., half:])

    def hardswish(self, x: Array) -> Array:
        """x relu6(x + 3) / 6 (Howard et al. 2019)."""
        return x * self.relu6(x + 3.0) / 6.0

    def laplace(self, x: Array) -> Array:
        """(1 + erf((x - mu) / (sigma sqrt 2))) / 2, mu = 0.707107, sigma = 0.282095 (Ma et al. 2022; HF's laplace)."""
        from scipy.special import erf

        return 0.5 * (1.0 + erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))

    # ---- layers ------------------------------------------------------------------------------------------------------

    def embedding(self, ids: np.ndarray, weight: Array) -> Array:
        """Row ids[...] of weight (V, D) -> (..., D).  Ids outside 0 ... V-1 are an InputError."""
        check_embedding(ids, weight)
        return weight[ids]

    def embed_norm(self, ids: tuple[Array, ...], tables: tuple[Embedding, ...], norm: LayerNorm) -> Array:
        """layer_norm(sum_i embedding(ids_i, table_i)): of a token its word, its type and its position.

        ids (...) each, of shapes that broadcast together -> (..., D).  The tables, of one width, and ``norm`` are
        modules, so that a backend finds what it prepared for them.
        """
        x = self.embedding(ids[0], tables[0].weight)
        for rows, table in zip(ids[1:], tables[1:], strict=True):
            x = x + self.embedding(rows, table.weight)
        return self.layer_norm(x, norm.weight, norm.bias, norm.eps)

    def linear(
        self,
        x: Array,
        weight: Array,
        bias: Array = None,
        activation: str | None = None,
        residual: Array = None,
        scale: Array = None,
    ) -> Array:
        """residual + scale * activation(x W^T + b).

        x (..., K), weight (N, K), bias and scale (N,), residual (..., N) -> (..., N).
        """
        check_linear(x, weight, bias, residual, scale)
        y = x @ weight.T
        if bias is not None:
            y += bias
        if activation is not None:
            y = self.activation(activation, y)
        if scale is not None:
            y = scale * y
        return y if residual is None else residual + y

    def project(self, x: Array, *linears: Linear) -> tuple[Array, ...]:
        """Several Linear modules of one input (query, key, value).  x (..., K) -> one (..., N) each."""
        return tuple(self.linear(x, linear.weight, linear.bias) for linear in linears)

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        """(x - mean) / sqrt(var + eps) * weight + bias over the last axis, population variance (Ba et al. 2016).

        x (..., D), weight and bias (D,), or both None for 1 and 0 -> (..., D).
        """
        check_layer_norm(x, weight)
        y = x - x.mean(-1, keepdims=True)
        var = np.square(y).mean(-1, keepdims=True)
        y /= np.sqrt(var + eps)
        if weight is not None:
            y *= weight
            y += bias
        return y

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
        """y[t, o] = bias[o] + sum_c,j weight[o, c, j] x[t stride + j dilation - padding, c] (torch.nn.Conv1d).

        Channels last.  c runs over the input channels of o's group; x is 0 outside its T frames.

        Args:
            x: (B, T, C).
            weight: (O, C / g, k), as torch has it.
            bias: (O,).

        Returns:
            (B, T', O) with T' = floor((T + 2 padding - dilation (k - 1) - 1) / stride) + 1.
        """
        check_conv1d("conv1d", x, weight, bias, padding, dilation, groups)
        outputs, width, taps = weight.shape
        span = dilation * (taps - 1) + 1
        x = _padded(x, padding)
        windows = np.lib.stride_tricks.sliding_window_view(x, span, axis=1)[:, ::stride, :, ::dilation]
        windows = windows.swapaxes(2, 3)  # (B, T', k, C), a view: no window is copied yet
        batch, frames = windows.shape[:2]
        matrix = weight.reshape(groups, outputs // groups, width, taps).swapaxes(2, 3)
        matrix = matrix.reshape(groups, outputs // groups, taps * width).swapaxes(1, 2)  # (g, k C/g, O/g)
        y = np.empty((batch, frames, outputs), x.dtype)
        for start, stop in _blocks(frames, batch * taps * x.shape[2]):
            block = windows[:, start:stop].reshape(batch, stop - start, taps, groups, width)
            block = block.transpose(3, 0, 1, 2, 4).reshape(groups, -1, taps * width)  # (g, B T', k C/g)
            product = (block @ matrix).reshape(groups, batch, stop - start, -1)
            y[:, start:stop] = product.transpose(1, 2, 0, 3).reshape(batch, stop - start, outputs)
        return y if bias is None else y + bias

    def conv_norm_act(self, x: Array, conv: Conv1d, norm: LayerNorm, activation: str) -> Array:
        """activation(layer_norm(conv1d(x))), a block of frames at a time.  x (B, T, C) -> (B, T', O).

        ``conv`` and ``norm`` are modules, so that a backend finds what it prepared for them.
        """
        check_conv1d("conv_norm_act", x, conv.weight, conv.bias, conv.padding, 1, conv.groups)
        taps, outputs = conv.weight.shape[2], conv.weight.shape[0]
        x = _padded(x, conv.padding)
        frames = (x.shape[1] - taps) // conv.stride + 1
        out = np.empty((x.shape[0], frames, outputs), x.dtype)
        for start, stop in _blocks(frames, x.shape[0] * max(taps * x.shape[2], outputs)):
            signal = x[:, start * conv.stride : (stop - 1) * conv.stride + taps]
            y = self.conv1d(signal, conv.weight, conv.bias, conv.stride, groups=conv.groups)
            y = self.layer_norm(y, norm.weight, norm.bias, norm.eps)
            out[:, start:stop] = self.activation(activation, y)
        return out

    def statistics_pooling(self, x: Array, lengths: list[int]) -> Array:
        """Mean and unbiased standard deviation of each row's first frames (Snyder et al. 2018, sec. 3.1).

        Args:
            x: (B, T, C).
            lengths: B numbers, each a Python slice's end: more than T is T, and a negative one counts from the end.

        Returns:
            (B, 2 C), the means first.  NaN for the mean of no frame and the deviation of fewer than two.
        """
        rows = []
        for row, length in zip(x, lengths, strict=True):
            own = np.ascontiguousarray(row[:length].T)  # (C, n): along its last axis NumPy sums in pairs, rounding less
            count = own.shape[1]
            mean = own.sum(1) / (count or math.nan)
            variance = np.square(own - mean[:, None]).sum(1) / (count - 1 if count > 1 else math.nan)
            rows.append(self.concatenate((mean, np.sqrt(variance)), axis=0)[None])  # (1, 2 C)
        return self.concatenate(tuple(rows), axis=0)

    def softmax(self, x: Array) -> Array:
        """exp(x_i) / sum_j exp(x_j) over the last axis, shifted by the maximum so that nothing overflows."""
        e = x - x.max(-1, keepdims=True)
        np.exp(e, out=e)
        e /= e.sum(-1, keepdims=True)
        return e

    def log_softmax(self, x: Array) -> Array:
        """x_i - log sum_j exp(x_j) over the last axis."""
        shifted = x - x.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    def split_heads(self, x: Array, heads: int) -> Array:
        """(B, T, H d) -> (B, H, T, d)."""
        return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

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
        """softmax(q k^T / sqrt(d) + bias) v, head by head (Vaswani et al. 2017, eq. 1).

        Args:
            q: (B, T, D).
            k, v: (B, S, D).
            heads: H.
            mask: booleans that broadcast to (B, H, T, S): True where a query may see a key.  A hidden score becomes
                the dtype's lowest finite number, so that a row that sees nothing attends evenly to all S keys, as in
                HF's eager attention.
            causal: query t sees keys 0 ... t + S - T only.
            bias: added to the scores; broadcasts to (B, H, T, S).
            head_mask: factors of the probabilities; broadcasts to (B, H, T, S).
            probs: whether the probabilities are wanted.

        Returns:
            The context (B, T, D), and the probabilities (B, H, T, S), or None where they are not wanted.
        """
        check_attention(q, k, v, heads, mask, bias, head_mask)
        q, k, v = (self.split_heads(x, heads) for x in (q, k, v))
        scores = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)  # (B, H, T, S)
        if bias is not None:
            scores += bias
        if causal:
            length, keys = scores.shape[-2:]
            allowed = np.tri(length, keys, k=keys - length, dtype=bool)
            mask = allowed if mask is None else mask & allowed
        if mask is not None:
            scores = np.where(mask, scores, np.finfo(scores.dtype).min)
        p = self.softmax(scores)
        if head_mask is not None:
            p = p * head_mask
        context = (p @ v).swapaxes(1, 2)  # (B, T, H, d)
        return context.reshape(*context.shape[:2], -1), p if probs else None

    def relative_key_bias(self, q: Array, k: Array, heads: int, weight: Array, with_key: bool) -> Array:
        """q_t . E[t - s] / sqrt(d), plus k_s . E[t - s] / sqrt(d) if ``with_key``: learned relative positions' bias.

        Shaw et al. 2018, eq. 4, and Huang et al. 2020, method 4; HF 4.x position_embedding_type "relative_key" and
        "relative_key_query". The T queries are the last of the S positions.

        Args:
            q: (B, T, D).
            k: (B, S, D).
            weight: (2 P - 1, d), the row of distance 0 in the middle.

        Returns:
            (B, H, T, S).
        """
        check_relative_key_bias(q, k, heads, weight)
        q, k = self.split_heads(q, heads), self.split_heads(k, heads)
        length, keys = q.shape[2], k.shape[2]
        query_positions = np.arange(keys - length, keys)[:, None]
        rows = query_positions - np.arange(keys)[None, :] + weight.shape[0] // 2  # (T, S)
        e = self.embedding(rows, weight)  # (T, S, d)
        bias = np.einsum("bhtd,tsd->bhts", q, e)
        if with_key:
            bias = bias + np.einsum("bhsd,tsd->bhts", k, e)
        return bias * q.shape[-1] ** -0.5

    # ---- maps: channels last, (B, H, W, C) ---------------------------------------------------------------------------

    def conv2d(
        self, x: Array, weight: Array, bias: Array = None, stride: tuple[int, int] = (1, 1), padding: int = 0
    ) -> Array:
        """y[i, j, o] = bias[o] + sum_c,u,v weight[o, c, u, v] x[i s0 + u - padding, j s1 + v - padding, c].

        torch.nn.Conv2d with channels last; x is 0 outside its map.

        Args:
            x: (B, H, W, C).
            weight: (O, C, kh, kw), as torch has it.
            bias: (O,).

        Returns:
            (B, H', W', O) with H' = floor((H + 2 padding - kh) / s0) + 1.
        """
        check_conv2d(x, weight, bias, padding)
        outputs, channels, *kernel = weight.shape
        if padding:
            x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))[:, :: stride[0], :: stride[1]]
        windows = windows.transpose(0, 1, 2, 4, 5, 3)  # (B, H', W', kh, kw, C), a view: no window is copied yet
        batch, height, width = windows.shape[:3]
        matrix = weight.transpose(0, 2, 3, 1).reshape(outputs, channels * math.prod(kernel)).T  # (kh kw C, O)
        y = np.empty((batch, height, width, outputs), x.dtype)
        for start, stop in _blocks(height, batch * width * matrix.shape[0]):
            block = windows[:, start:stop].reshape(-1, matrix.shape[0])
            y[:, start:stop] = (block @ matrix).reshape(batch, stop - start, width, outputs)
        return y if bias is None else y + bias

    def conv_transpose2d(self, x: Array, weight: Array, bias: Array) -> Array:
        """Every pixel becomes a tile: y[i k + u, j k + v, o] = bias[o] + sum_c weight[c, o, u, v] x[i, j, c].

        torch.nn.ConvTranspose2d whose stride is its kernel, so that no tiles overlap; channels last.

        x (B, H, W, C), weight (C, O, k, k), bias (O,) -> (B, k H, k W, O).
        """
        check_conv_transpose2d(x, weight)
        channels, outputs, k, _ = weight.shape
        batch, height, width = x.shape[:3]
        matrix = weight.transpose(0, 2, 3, 1).reshape(channels, -1)  # (C, k k O)
        tiles = (x.reshape(-1, channels) @ matrix).reshape(batch, height, width, k, k, outputs)
        return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(batch, k * height, k * width, outputs) + bias

    def batch_norm(self, x: Array, mean: Array, var: Array, weight: Array, bias: Array, eps: float) -> Array:
        """(x - mean) / sqrt(var + eps) * weight + bias with statistics of training (Ioffe & Szegedy 2015).

        x (..., C), the others (C,) -> (..., C).
        """
        check_batch_norm(x, weight)
        return (x - mean) / np.sqrt(var + eps) * weight + bias

    def conv2d_norm_act(self, x: Array, conv: Conv2d, norm: BatchNorm2d, activation: str) -> Array:
        """activation(batch_norm(conv2d(x))).  x (B, H, W, C) -> (B, H', W', O).

        ``conv`` and ``norm`` are modules, so that a backend finds what it prepared for them.
        """
        y = self.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
        y = self.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
        return self.activation(activation, y)

    def max_pool2d(self, x: Array, size: int) -> Array:
        """The largest of each size x size tile; what fills no tile is left out (torch.nn.MaxPool2d, stride = size).

        (B, H, W, C) -> (B, H // size, W // size, C).
        """
        check_max_pool2d(x, size)
        batch, height, width, channels = x.shape
        height, width = height // size, width // size
        tiles = x[:, : height * size, : width * size].reshape(batch, height, size, width, size, channels)
        return tiles.max((2, 4))

    def adaptive_avg_pool2d(self, x: Array, size: int) -> Array:
        """The means of size x size cells, of which cell i covers floor(i H / size) ... ceil((i + 1) H / size).

        (B, H, W, C) -> (B, size, size, C) (torch.nn.AdaptiveAvgPool2d).
        """
        check_map("adaptive_avg_pool2d", x)
        for axis in (1, 2):
            length = x.shape[axis]
            cells = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
            parts = [x[:, a:b] if axis == 1 else x[:, :, a:b] for a, b in cells]
            x = self.concatenate(tuple(part.mean(axis, keepdims=True) for part in parts), axis=axis)
        return x

    def resize(self, x: Array, size: tuple[int, int], mode: str) -> Array:
        """The map at another resolution (torch.nn.functional.interpolate, align_corners=False, no antialiasing).

        Output i lies at (i + 1/2) H / H' - 1/2 of the input.  "bilinear" weighs the two pixels around it, "bicubic"
        four by Keys' kernel with a = -0.75 (Keys 1981); pixels beyond the border are those at the border.

        (B, H, W, C) -> (B, H', W', C).
        """
        check_resize(x, size, mode)
        rows, columns = (self._interpolation(x.shape[axis], size[axis - 1], mode) for axis in (1, 2))
        batch, height, width, channels = x.shape
        x = (rows @ x.reshape(batch, height, width * channels)).reshape(-1, width, channels)  # (B H', W, C)
        return (columns @ x).reshape(batch, size[0], size[1], channels)

    def _interpolation(self, length: int, out: int, mode: str) -> Array:
        """The weights of ``length`` pixels in each of ``out``: (out, length)."""
        at = (np.arange(out) + 0.5) * (length / out) - 0.5
        if mode == "bilinear":
            at = np.maximum(at, 0)
        first = np.floor(at)
        t = at - first
        if mode == "bilinear":
            taps = {0: 1 - t, 1: t}
        else:
            taps = {tap: _keys(np.abs(t - tap)) for tap in (-1, 0, 1, 2)}
        matrix = np.zeros((out, length))
        for tap, weight in taps.items():
            np.add.at(matrix, (np.arange(out), np.clip(first + tap, 0, length - 1).astype(int)), weight)
        return self.asarray(matrix)

    @classmethod
    def lacks(cls) -> BackendError | None:
        """What this machine lacks to run the backend, and how to get it, as an error to raise; None if nothing."""
        return None

    @classmethod
    def kernels(cls, dtype: str) -> Kernels | None:
        """What computing in this dtype compiles, or None for a backend that compiles nothing."""
        return None

    @classmethod
    def overrides(cls) -> list[str]:
        """The operations that a backend computes itself; the rest are the definitions above."""
        methods = [name for name, value in vars(Ops).items() if inspect.isfunction(value) and not name.startswith("_")]
        return sorted(name for name in methods if getattr(cls, name) is not getattr(Ops, name))


def _keys(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    """The cubic convolution kernel at distances 0 ... 2 (Keys 1981, eq. 15)."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)


def _padded(x: Array, padding: int) -> Array:
    """x (B, T, C) with zeros before and after."""
    return np.pad(x, ((0, 0), (padding, padding), (0, 0))) if padding else x


def _blocks(frames: int, elements: int) -> Iterator[tuple[int, int]]:
    """0 ... frames in pieces, where a frame takes so many elements."""
    step = max(1, _BLOCK // elements)
    for start in range(0, frames, step):
        yield start, min(start + step, frames)


# What an operation takes, in one place for the definition and for the backends that compute it otherwise.


def check_linear(x: Array, weight: Array, bias: Array, residual: Array, scale: Array) -> None:
    """x (..., K), weight (N, K), bias and scale (N,), residual (..., N), or InputError."""
    if x.shape[-1:] != weight.shape[1:]:
        raise InputError(
            "linear: the last axis does not fit the weight", got=x.shape, expected=f"(..., {weight.shape[1]})"
        )
    out = (*x.shape[:-1], weight.shape[0])
    for what, other, shape in (("bias", bias, out[-1:]), ("scale", scale, out[-1:]), ("residual", residual, out)):
        if other is not None and other.shape != shape:
            raise InputError(f"linear: the {what} does not fit the output", got=other.shape, expected=shape)


def check_layer_norm(x: Array, weight: Array) -> None:
    """x (..., D) and weight (D,), or InputError."""
    if weight is not None and x.shape[-1:] != weight.shape:
        raise InputError(
            "layer_norm: the last axis does not fit the weight", got=x.shape, expected=f"(..., {weight.shape[0]})"
        )


def check_conv1d(
    operation: str, x: Array, weight: Array, bias: Array, padding: int, dilation: int, groups: int
) -> None:
    """x (B, T, C), weight (O, C / g, k) and bias (O,), for a signal that the kernel fits in, or InputError."""
    outputs, width, taps = weight.shape
    span = dilation * (taps - 1) + 1
    if x.ndim != 3 or x.shape[2] != width * groups or outputs % groups:
        expected = f"(B, T, {width * groups})"
        raise InputError(f"{operation}: the channels do not fit the weight", got=x.shape, expected=expected)
    if bias is not None and bias.shape != (outputs,):
        raise InputError(f"{operation}: the bias does not fit the output", got=bias.shape, expected=(outputs,))
    if x.shape[1] + 2 * padding < span:
        expected = f"(B, at least {span - 2 * padding}, C)"
        raise InputError(f"{operation}: the signal is shorter than the kernel", got=x.shape, expected=expected)


def check_conv2d(x: Array, weight: Array, bias: Array, padding: int) -> None:
    """x (B, H, W, C), weight (O, C, kh, kw) and bias (O,), for a map that the kernel fits in, or InputError."""
    outputs, channels, *kernel = weight.shape
    if x.ndim != 4 or x.shape[3] != channels:
        expected = f"(B, H, W, {channels})"
        raise InputError("conv2d: the channels do not fit the weight", got=x.shape, expected=expected)
    if bias is not None and bias.shape != (outputs,):
        raise InputError("conv2d: the bias does not fit the output", got=bias.shape, expected=(outputs,))
    size = tuple(length + 2 * padding for length in x.shape[1:3])
    if size[0] < kernel[0] or size[1] < kernel[1]:
        expected = f"at least {kernel[0]} x {kernel[1]}, padding included"
        raise InputError("conv2d: the map is smaller than the kernel", got=size, expected=expected)


def check_conv_transpose2d(x: Array, weight: Array) -> None:
    """x (B, H, W, C) and weight (C, O, k, k), or InputError."""
    channels, _, k, across = weight.shape
    if x.ndim != 4 or x.shape[3] != channels or k != across:
        expected = f"(B, H, W, {channels}), and a square kernel"
        raise InputError("conv_transpose2d: the map does not fit the weight", got=x.shape, expected=expected)


def check_attention(
    q: Array, k: Array, v: Array, heads: int, mask: Array, bias: Array, head_mask: Array
) -> tuple[int, int, int, int]:
    """q (B, T, D), k and v (B, S, D), the others broadcasting to (B, H, T, S), or InputError -> (B, H, T, S)."""
    check_heads("attention", heads, q, k, v)
    full = (q.shape[0], heads, q.shape[1], k.shape[1])
    for what, x in (("mask", mask), ("bias", bias), ("head_mask", head_mask)):
        if x is not None and not _broadcasts(x.shape, full):
            raise InputError(f"attention: the {what} does not fit the scores", got=x.shape, expected=full)
    return full


def check_embedding(ids: np.ndarray, weight: Array) -> None:
    """Integers 0 ... V-1 for a table (V, D), or InputError."""
    if ids.dtype.kind not in "iu":  # NumPy would take booleans for a choice of rows
        raise InputError("embedding: ids are integers", got=ids.dtype, expected="an integer dtype")
    if ids.size and (ids.min() < 0 or ids.max() >= weight.shape[0]):
        got = f"{ids.min()} ... {ids.max()}"
        raise InputError("embedding: an index is outside the table", got=got, expected=f"0 ... {weight.shape[0] - 1}")


def check_glu(x: Array) -> None:
    """x (..., 2C), or InputError."""
    if x.shape[-1] % 2:
        raise InputError("glu: the last axis does not halve", got=x.shape, expected="(..., an even number)")


def check_batch_norm(x: Array, weight: Array) -> None:
    """x (..., C) and weight (C,), or InputError."""
    if x.shape[-1:] != weight.shape:
        raise InputError(
            "batch_norm: the last axis does not fit the weight", got=x.shape, expected=f"(..., {weight.shape[0]})"
        )


def check_max_pool2d(x: Array, size: int) -> None:
    """A map that a tile fits in, or InputError."""
    check_map("max_pool2d", x)
    if x.shape[1] < size or x.shape[2] < size:
        raise InputError("max_pool2d: the map is smaller than a tile", got=x.shape, expected=f"{size} x {size}")


def check_resize(x: Array, size: tuple[int, int], mode: str) -> None:
    """A map, a known mode and a size of 1 or more, or InputError."""
    check_map("resize", x)
    if mode not in ("bilinear", "bicubic"):
        raise InputError("resize: unknown mode", got=mode, expected="bilinear or bicubic")
    for out in size:
        if out < 1:
            raise InputError("resize: no size", got=out, expected="1 or more")


def check_map(operation: str, x: Array) -> None:
    if x.ndim != 4 or 0 in x.shape[1:3]:
        raise InputError(f"{operation}: not a map", got=x.shape, expected="(B, H, W, C), H and W of 1 or more")


def check_heads(operation: str, heads: int, q: Array, *others: Array) -> None:
    """q (B, T, D) and keys and values (B, S, D), with a D that divides among the heads."""
    if q.ndim != 3 or q.shape[2] % heads:
        expected = f"(B, T, a multiple of {heads} heads)"
        raise InputError(f"{operation}: the queries do not divide among the heads", got=q.shape, expected=expected)
    for x in others:
        if x.ndim != 3 or x.shape != (q.shape[0], others[0].shape[1], q.shape[2]):
            expected = f"({q.shape[0]}, S, {q.shape[2]})"
            raise InputError(f"{operation}: the keys or values do not fit the queries", got=x.shape, expected=expected)


def check_relative_key_bias(q: Array, k: Array, heads: int, weight: Array) -> None:
    """q (B, T, D), k (B, S, D) and weight (2 P - 1, d) for D = H d, or InputError."""
    check_heads("relative_key_bias", heads, q, k)
    if weight.shape[1:] != (q.shape[2] // heads,):
        expected = f"(2 P - 1, {q.shape[2] // heads})"
        raise InputError("relative_key_bias: the table does not fit the heads", got=weight.shape, expected=expected)


def _broadcasts(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    """Whether an array of this shape broadcasts to one of exactly the full shape."""
    ends = full[len(full) - len(shape) :]
    return len(shape) <= len(full) and all(mine in (1, theirs) for mine, theirs in zip(shape, ends, strict=True))
