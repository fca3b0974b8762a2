"""The layers that every model is built of, under torch.nn's names for them and their weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v_ref.nn.module import Module, Parameter, recording

Array = Any


class Activation(Module):
    """An activation by Hugging Face's name (ACT2FN).  (...) -> (...)."""

    def __init__(self, name: str, channels_first: bool = False) -> None:
        self.name, self.channels_first = name, channels_first

    def forward(self, x: Array) -> Array:
        return self.ops.activation(self.name, x)


class Linear(Module):
    """x W^T + b (torch.nn.Linear).  x (..., inputs) -> (..., outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.weight: Any = Parameter((outputs, inputs))
        self.bias: Any = Parameter((outputs,))

    def __call__(self, x: Array, activation: Activation | str | None = None, residual: Array = None) -> Array:
        """residual + activation(x W^T + b).

        One operation of the backend, or, when recorded, several, each output under its own name.  ``activation`` is a
        child of the caller where Hugging Face has a module for it, and a name where it calls a function.
        """
        if not recording():
            name = activation.name if isinstance(activation, Activation) else activation
            return self.ops.linear(x, self.weight, self.bias, name, residual)
        y = super().__call__(x)
        if activation is not None:
            y = activation(y) if isinstance(activation, Activation) else self.ops.activation(activation, y)
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
