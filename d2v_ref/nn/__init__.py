"""Modules: named layers with weights, and the recording of what they compute."""

from d2v_ref.nn.layers import Activation, Conv1d, Embedding, LayerNorm, Linear
from d2v_ref.nn.module import Module, Parameter, recorder, recording

__all__ = ["Activation", "Conv1d", "Embedding", "LayerNorm", "Linear", "Module", "Parameter", "recorder", "recording"]
