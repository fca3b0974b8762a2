"""The layers that every model is built of, under torch.nn's names for them and their weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v_ref.nn.module import Module, Parameter, recording

Array = Any


class Activation(Module):
    """activation(x) by Hugging Face's name (ACT2FN).  (...) -> (...)."""

    def __init__(self, name: str, channels_first: bool = False) -> None:
        self.name, self.channels_first = name, channels_first

    def forward(self, x: Array) -> Array:
        return self.ops.activation(self.name, x)


class Linear(Module):
    """x W^T + b (torch.nn.Linear).  x (..., inputs) -> (..., outputs)."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        self.weight: Any = Parameter((outputs, inputs))
        self.bias: Any = Parameter((outputs,)) if bias else None

    def __call__(
        self,
        x: Array,
        activation: Activation | str | None = None,
        residual: Array = None,
        scale: Array = None,
    ) -> Array:
        """residual + scale * activation(x W^T + b).

        One operation of the backend, or, when recorded, several, each output under its own name.  ``activation`` is a
        child of the caller where Hugging Face has a module for it, and a name where it calls a function.
        """
        if not recording():
            name = activation.name if isinstance(activation, Activation) else activation
            return self.ops.linear(x, self.weight, self.bias, name, residual, scale)
        y = super().__call__(x)
        if activation is not None:
            y = activation(y) if isinstance(activation, Activation) else self.ops.activation(activation, y)
        if scale is not None:
            y = scale * y
        return y if residual is None else residual + y

    def forward(self, x: Array) -> Array:
        return self.ops.linear(x, self.weight, self.bias)


class LayerNorm(Module):
    """Layer normalisation of the last axis (Ba et al. 2016; torch.nn.LayerNorm).  (..., D) -> (..., D)."""

    def __init__(self, width: int, eps: float, elementwise_affine: bool = True) -> None:
        self.weight: Any = Parameter((width,)) if elementwise_affine else None
        self.bias: Any = Parameter((width,)) if elementwise_affine else None
        self.eps = eps

    def forward(self, x: Array) -> Array:
        return self.ops.layer_norm(x, self.weight, self.bias, self.eps)


class Embedding(Module):
    """Rows of a table (torch.nn.Embedding).  ids (...) -> (..., D)."""

    def __init__(self, count: int, width: int) -> None:
        self.weight: Any = Parameter((count, width))

    def forward(self, ids: np.ndarray) -> Array:
        return self.ops.embedding(ids, self.weight)


class Conv1d(Module):
    """A convolution over time (torch.nn.Conv1d), channels last.  x (B, T, inputs) -> (B, T', outputs)."""

    channels_first = True

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1, *, bias: bool
    ) -> None:
        self.weight: Any = Parameter((outputs, inputs // groups, kernel))
        self.bias: Any = Parameter((outputs,)) if bias else None
        self.stride, self.padding, self.groups = stride, padding, groups

    def forward(self, x: Array) -> Array:
        return self.ops.conv1d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)


class Residual(Module):
    """A module whose output is scaled and added to what it is given as ``residual``, in its last product.

    ``scale`` is a layer's learned one (LayerScale; Touvron et al. 2021).  Recorded, the module shows its output before
    both, as Hugging Face's module gives it.
    """

    def __call__(self, x: Array, *shared: Any, **added: Array) -> Array:
        if not recording():
            return self.forward(x, *shared, **added)
        y = super().__call__(x, *shared)
        if added.get("scale") is not None:
            y = added["scale"] * y
        return y if added.get("residual") is None else added["residual"] + y


class Identity(Module):
    """y = x, where Hugging Face's model has a module that does nothing.  (...) -> (...)."""

    def __init__(self, channels_first: bool = False) -> None:
        self.channels_first = channels_first

    def forward(self, x: Array) -> Array:
        return x


class Sequential(Module):
    """layer_n(... layer_0(x)), the layers named by number (torch.nn.Sequential).  (...) -> what the last one gives."""

    def __init__(self, *layers: Module) -> None:
        self.channels_first = layers[-1].channels_first
        self.count = len(layers)
        for i, layer in enumerate(layers):
            setattr(self, str(i), layer)

    def forward(self, x: Array) -> Array:
        for i in range(self.count):
            x = getattr(self, str(i))(x)
        return x


class Conv2d(Module):
    """A convolution of a map (torch.nn.Conv2d), channels last.  (B, H, W, inputs) -> (B, H', W', outputs)."""

    channels_first = True

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: int = 0,
        *,
        bias: bool = True,
    ) -> None:
        self.weight: Any = Parameter((outputs, inputs, *kernel))
        self.bias: Any = Parameter((outputs,)) if bias else None
        self.stride, self.padding = stride, padding

    def forward(self, x: Array) -> Array:
        return self.ops.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class ConvTranspose2d(Module):
    """Every pixel becomes a tile (torch.nn.ConvTranspose2d, stride = kernel).  (B, H, W, C) -> (B, k H, k W, C')."""

    channels_first = True

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        self.weight: Any = Parameter((inputs, outputs, kernel, kernel))
        self.bias: Any = Parameter((outputs,))

    def forward(self, x: Array) -> Array:
        return self.ops.conv_transpose2d(x, self.weight, self.bias)


class BatchNorm2d(Module):
    """Normalisation by statistics of training (torch.nn.BatchNorm2d in eval mode).  (..., C) -> (..., C)."""

    channels_first = True

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        self.weight: Any = Parameter((width,))
        self.bias: Any = Parameter((width,))
        self.running_mean: Any = Parameter((width,))
        self.running_var: Any = Parameter((width,))
        self.eps = eps

    def forward(self, x: Array) -> Array:
        return self.ops.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)


class MaxPool2d(Module):
    """The largest of each tile (torch.nn.MaxPool2d).  (B, H, W, C) -> (B, H // size, W // size, C)."""

    channels_first = True

    def __init__(self, size: int) -> None:
        self.size = size

    def forward(self, x: Array) -> Array:
        return self.ops.max_pool2d(x, self.size)


class AdaptiveAvgPool2d(Module):
    """Means of size x size cells (torch.nn.AdaptiveAvgPool2d).  (B, H, W, C) -> (B, size, size, C)."""

    channels_first = True

    def __init__(self, size: int) -> None:
        self.size = size

    def forward(self, x: Array) -> Array:
        return self.ops.adaptive_avg_pool2d(x, self.size)
