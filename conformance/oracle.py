"""transformers as the oracle: the same configuration, the same weights, every module's output through forward hooks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers

import d2v_ref
from conformance.compare import flatten
from d2v_ref import synth
from d2v_ref.auto import model_class

torch.set_num_threads(1)  # tiny models: threads only cost

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def settings_for_transformers(config: d2v_ref.Config) -> dict[str, Any]:
    """A configuration's settings as transformers' constructor takes them."""
    return {**config.to_dict(), "attn_implementation": "eager"}  # only "eager" returns attentions


def pair(name: str, config: d2v_ref.Config, seed: int, dtype: str, **options: Any) -> tuple[Any, Any]:
    """Our model and transformers' of one class, with the same synthetic weights."""
    declared = model_class(name)(config, **options)
    weights = synth.weights({key: value.shape for key, _, _, value in declared.named_parameters()}, seed)
    if config.tie_word_embeddings:
        for target, source in declared.tied_weights.items():
            weights[target] = weights[source]
    theirs = getattr(transformers, name)(
        getattr(transformers, type(config).__name__)(**settings_for_transformers(config)), **options
    )
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()}, strict=True)
    ours = model_class(name)(config, weights, dtype=dtype, **options)
    return ours, theirs.to(DTYPES[dtype]).eval()


def to_torch(inputs: dict[str, Any], dtype: str) -> dict[str, Any]:
    """NumPy inputs as tensors: floats in the model's dtype, integers as int64."""

    def convert(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        tensor = torch.from_numpy(np.ascontiguousarray(value))
        return (
            tensor.to(DTYPES[dtype])
            if tensor.is_floating_point()
            else tensor
            if tensor.dtype == torch.bool
            else tensor.long()
        )

    return {key: convert(value) for key, value in inputs.items()}


def run(model: Any, inputs: dict[str, Any], dtype: str) -> Any:
    """transformers' output for NumPy inputs."""
    with torch.no_grad(), _losses_in_full(dtype):
        return model(**to_torch(inputs, dtype))


def run_recorded(model: Any, inputs: dict[str, Any], dtype: str) -> tuple[Any, dict[str, np.ndarray]]:
    """The output, and every module's output by path.

    A module that ran several times (chunks) gives its parts joined along the tokens.
    """
    seen: dict[str, list[Any]] = defaultdict(list)

    def watch(path: str) -> Any:
        return lambda module, args, output: seen[path].append(output)

    hooks = [
        module.register_forward_hook(watch(path))
        for path, module in model.named_modules()
        if not isinstance(module, torch.nn.Dropout)
    ]
    try:
        out = run(model, inputs, dtype)
    finally:
        for hook in hooks:
            hook.remove()
    return out, {name: value for path, calls in seen.items() for name, value in _taps(path, calls)}


def _taps(path: str, calls: list[Any]) -> Iterator[tuple[str, np.ndarray]]:
    """What our recorder calls the same things: a module's output, ``#probs`` of an attention, ``#field`` of a model."""
    first = calls[0]
    if (isinstance(first, transformers.utils.ModelOutput) and hasattr(first, "pooler_output")) or path == "":
        for name, value in first.items():
            if isinstance(value, torch.Tensor):
                yield f"{path}#{name}", value.numpy()
    elif isinstance(first, transformers.utils.ModelOutput):
        yield path, first.last_hidden_state.numpy()
    elif isinstance(first, tuple):
        yield path, first[0].numpy()
        if path.endswith(".self"):
            yield f"{path}#probs", first[1].numpy()
    else:
        yield path, torch.cat(calls, dim=1).numpy() if len(calls) > 1 else first.numpy()


@contextmanager
def _losses_in_full(dtype: str) -> Iterator[None]:
    """In float64, make transformers' ``logits.float()`` before a language model's loss a no-op: it rounds what should
    be the yardstick.
    """
    if dtype != "float64":
        yield
        return
    original = torch.Tensor.float
    torch.Tensor.float = lambda self: self
    try:
        yield
    finally:
        torch.Tensor.float = original


def everything(outputs: Any, taps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs and taps in one table."""
    return {**flatten(outputs), **taps}
