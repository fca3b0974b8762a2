"""Data2VecVisionForImageClassification in plain torch, as a port's author would write it: only torch, the checkpoint's
files, and the names that Hugging Face gives to modules and weights.

Every module is a function of its input that is found by the module's path, so that the model can be run whole or one
module alone, and whatever a module is given or computes is noted down under the names that a golden bundle has:

    path          what the module computes
    path#point    a value inside it: the attention's "#probs", the model's "#logits"
    path#input    what it is given, where that is no output of a module, such as the sum that a LayerNorm is given

The environment says what is run: D2V_PORT_MODEL (a folder with config.json and model.safetensors), D2V_PORT_DTYPE
("float32" or "bfloat16"), D2V_PORT_FAULT (empty, or one of ``faults.FAULTS``).

Shapes: B pictures, C channels, T = 1 + patches tokens, D hidden_size, H heads.
"""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

TINY_VISION = Path(__file__).parents[2] / "d2v_ref/models/tiny-vision"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Which method computes the module at a path; the first whose pattern is all of the path.
METHODS = {
    r"": "classification",
    r"data2vec_vision": "model",
    r"data2vec_vision\.embeddings": "embeddings",
    r".*\.patch_embeddings": "patch_embeddings",
    r".*\.projection": "projection",
    r"data2vec_vision\.encoder": "encoder",
    r".*\.layer\.\d+": "layer",
    r".*\.attention\.attention": "self_attention",
    r".*\.relative_position_bias": "relative_position_bias",
    r".*\.layer\.\d+\.attention": "attention",
    r".*\.intermediate": "intermediate",
    r".*\.intermediate_act_fn": "gelu",
    r".*\.output": "output",
    r"data2vec_vision\.layernorm": "identity",
    r".*\.layernorm(_before|_after)?": "layer_norm",
    r"data2vec_vision\.pooler": "pooler",
    r".*\.(query|key|value|dense)|classifier": "linear",
}
FIXED = {
    "hidden_act": "gelu",
    "use_absolute_position_embeddings": False,
    "use_relative_position_bias": True,
    "use_shared_relative_position_bias": False,
    "use_mean_pooling": True,
}


class Port:
    """The model: ``port(path, x)`` runs the module at a path, the path "" being the whole model."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        other = [name for name, value in FIXED.items() if settings[name] != value]
        if other or not settings["layer_scale_init_value"] > 0:
            raise ValueError(f"{folder}: this port is of models with {FIXED} and a layer scale; got another {other}")
        self.weights = {name: weight.to(dtype) for name, weight in load_file(folder / "model.safetensors").items()}
        self.layers: int = settings["num_hidden_layers"]
        self.heads: int = settings["num_attention_heads"]
        self.eps: float = settings["layer_norm_eps"]
        self.image: int = settings["image_size"]
        self.patch: int = settings["patch_size"]
        self.dtype = dtype
        self.seen: dict[str, Tensor] = {}  # what the run that is under way has noted down

    def __call__(self, path: str, x: Tensor | None = None) -> Tensor:
        if x is not None and not any(x is value for value in self.seen.values()):
            self.seen[f"{path}#input"] = x
        y = getattr(self, method(path))(path, *([] if x is None else [x]))
        if path not in ("", "data2vec_vision"):  # a model's outputs have names of their own
            self.seen[path] = y
        return y

    def note(self, path: str, point: str, value: Tensor) -> Tensor:
        self.seen[f"{path}#{point}"] = value
        return value

    # ---- layers -----------------------------------------------------------------------------------------------------

    def linear(self, path: str, x: Tensor) -> Tensor:
        y = x @ self.weights[f"{path}.weight"].T
        bias = self.weights.get(f"{path}.bias")  # keys have none
        return y if bias is None else y + bias

    def layer_norm(self, path: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{path}.weight"], self.weights[f"{path}.bias"], eps=self.eps)

    def projection(self, path: str, pixels: Tensor) -> Tensor:
        return F.conv2d(pixels, self.weights[f"{path}.weight"], self.weights[f"{path}.bias"], stride=self.patch)

    def gelu(self, path: str, x: Tensor) -> Tensor:
        return F.gelu(x)

    def identity(self, path: str, x: Tensor) -> Tensor:
        return x

    # ---- from pixels to tokens --------------------------------------------------------------------------------------

    def patch_embeddings(self, path: str, pixels: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, T - 1, D)."""
        if pixels.shape[2:] != (self.image, self.image):
            raise ValueError(f"pictures of {self.image} x {self.image} pixels, got {tuple(pixels.shape)}")
        return self(f"{path}.projection", pixels).flatten(2).transpose(1, 2)

    def embeddings(self, path: str, pixels: Tensor) -> Tensor:
        x = self(f"{path}.patch_embeddings", pixels)
        cls = self.weights[f"{path}.cls_token"].expand(len(x), -1, -1)
        return torch.cat((cls, x), dim=1)

    # ---- a layer ----------------------------------------------------------------------------------------------------

    def index(self) -> Tensor:
        """Which row of the bias table is for a query and a key, (T, T): their distance, down and across.

        The last three rows are for the class token: to a patch, from a patch, to itself.
        """
        side = self.image // self.patch
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        y, x = y.flatten(), x.flatten()
        down, across = y[:, None] - y + side - 1, x[:, None] - x + side - 1
        index = F.pad(down * (2 * side - 1) + across, (1, 0, 1, 0))
        rows = (2 * side - 1) ** 2
        index[0, :], index[:, 0], index[0, 0] = rows, rows + 1, rows + 2
        return index

    def relative_position_bias(self, path: str) -> Tensor:
        """(1, H, T, T)."""
        table = self.weights[f"{path}.relative_position_bias_table"]
        return table[self.index()].permute(2, 0, 1)[None]

    def softmax(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1)

    def self_attention(self, path: str, x: Tensor) -> Tensor:
        names = ("query", "key", "value")
        q, k, v = (self(f"{path}.{name}", x).unflatten(2, (self.heads, -1)).transpose(1, 2) for name in names)
        bias = self(f"{path}.relative_position_bias")
        probs = self.note(path, "probs", self.softmax(q @ k.transpose(2, 3) / q.shape[3] ** 0.5 + bias))
        return (probs @ v).transpose(1, 2).flatten(2)

    def attention(self, path: str, x: Tensor) -> Tensor:
        return self(f"{path}.output", self(f"{path}.attention", x))

    def intermediate(self, path: str, x: Tensor) -> Tensor:
        return self(f"{path}.intermediate_act_fn", self(f"{path}.dense", x))

    def output(self, path: str, x: Tensor) -> Tensor:
        return self(f"{path}.dense", x)

    def layer_scale(self, path: str, x: Tensor) -> Tensor:
        return x * self.weights[path]

    def layer(self, path: str, x: Tensor) -> Tensor:
        y = self(f"{path}.attention", self(f"{path}.layernorm_before", x))
        x = x + self.layer_scale(f"{path}.lambda_1", y)
        y = self(f"{path}.output", self(f"{path}.intermediate", self(f"{path}.layernorm_after", x)))
        return x + self.layer_scale(f"{path}.lambda_2", y)

    # ---- the model --------------------------------------------------------------------------------------------------

    def encoder(self, path: str, x: Tensor) -> Tensor:
        for i in range(self.layers):
            x = self(f"{path}.layer.{i}", x)
        return x

    def pooler(self, path: str, x: Tensor) -> Tensor:
        return self(f"{path}.layernorm", x[:, 1:].mean(dim=1))

    def model(self, path: str, pixels: Tensor) -> Tensor:
        x = self(f"{path}.encoder", self(f"{path}.embeddings", pixels))
        x = self.note(path, "last_hidden_state", self(f"{path}.layernorm", x))
        return self.note(path, "pooler_output", self(f"{path}.pooler", x))

    def classification(self, path: str, pixels: Tensor) -> Tensor:
        return self.note(path, "logits", self("classifier", self("data2vec_vision", pixels)))


def method(path: str) -> str:
    """The name of the method that computes the module at a path."""
    for pattern, name in METHODS.items():
        if re.fullmatch(pattern, path):
            return name
    raise ValueError(f"this port has no module {path}")


@cache
def load(folder: str, dtype: str, fault: str) -> Port:
    """The port, with a planted fault or without."""
    from conformance.port.faults import FAULTS

    return (FAULTS[fault] if fault else Port)(Path(folder), DTYPES[dtype])


def chosen() -> Port:
    """The port that the environment asks for."""
    environ = os.environ
    folder = environ.get("D2V_PORT_MODEL", str(TINY_VISION))
    return load(folder, environ.get("D2V_PORT_DTYPE", "float32"), environ.get("D2V_PORT_FAULT", ""))


def run(inputs: dict[str, np.ndarray], module: str | None = None) -> dict[str, np.ndarray]:
    """What every module computes, by name: of the model's ``pixel_values``, or of one module's ``input``.

    bfloat16 comes as float32, which holds it exactly: NumPy has no bfloat16.  Rows lie one after the other, as whoever
    writes them to a file takes them to do.
    """
    port, name = chosen(), "pixel_values" if module is None else "input"
    x = torch.from_numpy(np.array(inputs[name], np.float32)).to(port.dtype) if name in inputs else None
    port.seen = {}
    with torch.no_grad():
        port(module or "", x)
    return {key: value.float().contiguous().numpy() for key, value in port.seen.items()}
