"""``audit``: everything that is said about a model, in one structure that text, JSON and HTML are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from d2v_ref.audit.counts import ModuleCount, count_modules
from d2v_ref.audit.equations import Equation, equations
from d2v_ref.audit.memory import Memory, measure
from d2v_ref.audit.weights import StoredWeight, stored_weights
from d2v_ref.checkpoints.tensors import Tensor
from d2v_ref.errors import InputError
from d2v_ref.pretrained import LoadReport, PreTrainedModel, Quirk


@dataclass(frozen=True)
class Input:
    """What the operations were counted for: in words, and the shape and dtype of each array by name."""

    what: str
    arrays: dict[str, str]


@dataclass(frozen=True)
class Totals:
    """Sums over a checkpoint and a model.

    Attributes:
        parameters: numbers that the model holds, a tied weight once.
        used, unused: weights of the checkpoint; ``used_bytes`` and ``unused_bytes`` as stored.
        tied: names of the model for a weight that has another name too.
    """

    parameters: int
    used: int
    used_bytes: int
    unused: int
    unused_bytes: int
    tied: int


@dataclass(frozen=True)
class Audit:
    """What a model is made of, what it computes and how much, and where it surprises.

    Attributes:
        name: of the checkpoint, as it was asked for.
        kind: the model's class.
        weights: every weight of the checkpoint.
        fresh: parameters that were missing and drawn anew.
        absent: optional modules left out, since the checkpoint has no weights for them.
        modules: every module; the first is the model itself.
    """

    name: str
    kind: str
    dtype: str
    backend: str
    input: Input
    totals: Totals
    weights: list[StoredWeight]
    fresh: list[str]
    absent: list[str]
    modules: list[ModuleCount]
    memory: Memory
    quirks: dict[str, Quirk]
    equations: list[Equation]


def audit(
    model: PreTrainedModel, tensors: Mapping[str, Tensor], name: str, arguments: dict[str, Any] | None = None
) -> Audit:
    """Audit a model.

    Args:
        model: loaded from a checkpoint.
        tensors: the checkpoint's, as ``open_checkpoint`` gives them.
        name: the checkpoint's.
        arguments: of the forward pass that is counted and measured; None for ``default_arguments``.

    Raises:
        InputError: the model has no weights, or does not take the arguments.
    """
    report = model.load_report
    if report is None:
        raise InputError(f"{type(model).__name__} has no weights yet", hint="Use from_pretrained")
    what = "the given input"
    if arguments is None:
        what, arguments = default_arguments(model)
    weights = stored_weights(model, report, tensors)
    modules = count_modules(model, arguments)
    return Audit(
        name=name,
        kind=type(model).__name__,
        dtype=str(model.ops.dtype),
        backend=model.ops.name,
        input=Input(what, {key: _described(value) for key, value in arguments.items()}),
        totals=_totals(weights, report, modules[0].all_parameters),
        weights=weights,
        fresh=report.fresh,
        absent=report.absent,
        modules=modules,
        memory=measure(model, arguments),
        quirks=report.quirks,
        equations=equations(model, {module.path: module.operations for module in modules}),
    )


def default_arguments(model: PreTrainedModel) -> tuple[str, dict[str, np.ndarray]]:
    """An input to count and measure with where none is given, and what it is in words.

    A text of 128 tokens, or of as many as the model takes if that is less (of two choices each, for multiple choice);
    one second at 16 kHz, or as many samples as the model needs if that is more; one picture of ``image_size``.
    """
    config: Any = model.config
    if config.model_type == "data2vec-text":
        length = min(128, config.max_length)
        length -= length % (config.chunk_size_feed_forward or 1)  # the feed-forward takes whole chunks
        choices = (2,) if type(model).__name__.endswith("ForMultipleChoice") else ()
        words = f"{length} tokens{' in each of two choices' if choices else ''}, the default"
        token = (config.pad + 1) % config.vocab_size
        return words, {"input_ids": np.full((1, *choices, length), token, np.int64)}
    if config.model_type == "data2vec-audio":
        samples = max(16000, model.least_samples)  # type: ignore[attr-defined]
        return f"{samples} samples, the default", {"input_values": np.zeros((1, samples), np.float32)}
    size = config.image_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    shape = (1, config.num_channels, height, width)
    return f"a picture of {height} x {width} pixels, the default", {"pixel_values": np.zeros(shape, np.float32)}


def _described(value: Any) -> str:
    if isinstance(value, tuple):  # a cache
        return f"{len(value)} layers"
    array = np.asarray(value)
    return f"{tuple(array.shape)} {array.dtype}"


def _totals(weights: list[StoredWeight], report: LoadReport, parameters: int) -> Totals:
    used = [weight for weight in weights if weight.used_by]
    unused = [weight for weight in weights if not weight.used_by]
    return Totals(
        parameters=parameters,
        used=len(used),
        used_bytes=sum(weight.bytes for weight in used),
        unused=len(unused),
        unused_bytes=sum(weight.bytes for weight in unused),
        tied=len(report.tied),
    )
