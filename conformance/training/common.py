"""What the three training scripts share: seeds, the schedule, the curve, and the checkpoint they leave."""

from __future__ import annotations

import json
import math
import platform
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from d2v_ref.checkpoints import replacing, write_json

MODELS = Path(__file__).parents[2] / "d2v_ref" / "models"


def seeded(seed: int) -> np.random.Generator:
    """Seed everything that draws, and compute on one thread, so that a run can be repeated bit for bit."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - transformers' own masks draw from it
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it did not write
    return np.random.default_rng(seed)


def optimizer_of(parameters: Iterable[nn.Parameter], weight_decay: float = 0.01) -> torch.optim.AdamW:
    """AdamW as data2vec uses it; biases, scales and other vectors do not decay."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-6)


def learning_rate(step: int, steps: int, peak: float, warmup: float = 0.1) -> float:
    """Linear to the peak over the first ``warmup`` of the steps, then a cosine to 0."""
    done = step / steps
    if done < warmup:
        return peak * done / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def update(optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float, clip: float = 1.0) -> None:
    """One step of the optimizer."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    optimizer.step()


class Curve:
    """The training's record: points of the curve, metrics, settings; printed as they come, written at the end."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.start = time.monotonic()
        self.facts: dict[str, Any] = {
            "settings": settings,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "numpy": np.__version__,
            },
            "points": [],
            "metrics": {},
        }

    def point(self, stage: str, step: int, **values: float) -> None:
        """A point of the curve: losses and validation metrics at a step."""
        entry = {"stage": stage, "step": step, "seconds": round(time.monotonic() - self.start)}
        entry |= {name: round(float(value), 5) for name, value in values.items()}
        self.facts["points"].append(entry)
        print(json.dumps(entry), file=sys.stderr, flush=True)

    def metric(self, name: str, value: float) -> None:
        """A result on a split, of the weights as they are shipped."""
        self.facts["metrics"][name] = round(float(value), 5)
        print(name, self.facts["metrics"][name], file=sys.stderr, flush=True)

    def continue_from(self, folder: Path) -> None:
        """Take over the points and the time of the run whose ``curve.json`` is there."""
        before = json.loads((folder / "curve.json").read_text(encoding="utf-8"))
        self.facts["points"], self.start = before["points"], time.monotonic() - before["seconds"]

    def write(self, folder: Path) -> None:
        """Write ``curve.json``."""
        self.facts["seconds"] = round(time.monotonic() - self.start)
        write_json(folder / "curve.json", self.facts)


def rounded_to_float16(model: nn.Module) -> nn.Module:
    """The model with the weights that are shipped: each rounded to float16, computed with in float32."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            half = tensor.half()
            if not torch.isfinite(half).all():
                raise OverflowError(f"{name} does not fit float16")
            tensor.copy_(half)
    return model


def save(models: Iterable[nn.Module], folder: Path) -> None:
    """One checkpoint of several heads on one encoder: all their weights in float16, the first model's configuration.

    Tied weights are stored once, under the encoder's name, as save_pretrained stores them.
    """
    models = list(models)
    weights: dict[str, torch.Tensor] = {}
    for model in models:
        tied = set(model.all_tied_weights_keys or {})
        for name, tensor in model.state_dict().items():
            if name in tied:
                continue
            value = tensor.half() if tensor.is_floating_point() else tensor
            if name in weights and not torch.equal(weights[name], value):
                raise ValueError(f"{name} differs between the heads")
            weights[name] = value.contiguous().clone()
    folder.mkdir(parents=True, exist_ok=True)
    config = models[0].config.to_diff_dict() | {"architectures": [type(models[0]).__name__], "dtype": "float16"}
    write_json(folder / "config.json", config)
    with replacing(folder / "model.safetensors") as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
