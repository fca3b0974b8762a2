"""Six mistakes that a port's author makes, one at a time, each as small in the code as it was in the making."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from conformance.port.vision import Port

LAYER = "data2vec_vision.encoder.layer"


class TanhGelu(Port):
    """The approximation that other transformers have, for the error function."""

    def gelu(self, path: str, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class DefaultEpsilon(Port):
    """torch's 1e-5, for the configuration's 1e-12."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        super().__init__(folder, dtype)
        self.eps = 1e-5


class TransposedWeight(Port):
    """A square matrix that was turned once too often when the weights were converted."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        super().__init__(folder, dtype)
        name = f"{LAYER}.1.attention.attention.query.weight"
        self.weights[name] = self.weights[name].T.contiguous()


class NoLayerScale(Port):
    """A branch that is added as it is."""

    def layer_scale(self, path: str, x: Tensor) -> Tensor:
        return x if path == f"{LAYER}.0.lambda_1" else super().layer_scale(path, x)


class PositionsOffByOne(Port):
    """Distances that start at 1, for 0: every patch's row of the table is the next one."""

    def index(self) -> Tensor:
        index = super().index()
        index[1:, 1:] += 1
        return index


class SoftmaxOverQueries(Port):
    """The other one of the two axes, which are as long as each other."""

    def softmax(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-2)


FAULTS: dict[str, type[Port]] = {
    "gelu": TanhGelu,
    "epsilon": DefaultEpsilon,
    "transposed": TransposedWeight,
    "scale": NoLayerScale,
    "positions": PositionsOffByOne,
    "softmax": SoftmaxOverQueries,
}
