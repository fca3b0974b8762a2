"""Modules: named layers with weights, and the recording of what they compute."""

from d2v_ref.nn.layers import (
    Activation,
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Embedding,
    Identity,
    LayerNorm,
    Linear,
    MaxPool2d,
    Residual,
    Sequential,
)
from d2v_ref.nn.module import Module, Parameter, recorder, recording, unrecorded

__all__ = [
    "Activation",
    "AdaptiveAvgPool2d",
    "BatchNorm2d",
    "Conv1d",
    "Conv2d",
    "ConvTranspose2d",
    "Embedding",
    "Identity",
    "LayerNorm",
    "Linear",
    "MaxPool2d",
    "Module",
    "Parameter",
    "Residual",
    "Sequential",
    "recorder",
    "recording",
    "unrecorded",
]
