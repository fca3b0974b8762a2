"""transformers as the oracle: the same configuration, the same weights, every module's output through forward hooks."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers

import d2v_ref
from conformance.compare import compare, flatten
from d2v_ref import synth
from d2v_ref.auto import model_class
from d2v_ref.golden.bounds import FORMATS, Exact, Tell, tolerances
from d2v_ref.ops import Ops

torch.set_num_threads(1)  # tiny models: threads only cost

EXACT = 1e-10  # relative, float64: far above its rounding, far below any difference in what is computed
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
        return lambda module, args, output: seen[path].append(_kept(output))

    with _hooks(model, lambda path, module: module.register_forward_hook(watch(path))):
        out = run(model, inputs, dtype)
    return out, {name: value for path, calls in seen.items() for name, value in _taps(path, calls)}


def given_to_modules(model: Any, inputs: dict[str, Any], dtype: str) -> dict[str, np.ndarray]:
    """The first array that each module is given, ``path#input``, for modules that are given one."""
    seen: dict[str, list[Any]] = defaultdict(list)

    def watch(path: str) -> Any:
        def see(module: Any, args: Any, kwargs: Any) -> None:
            first = next(iter([*args, *kwargs.values()]), None)
            if isinstance(first, torch.Tensor):
                seen[f"{path}#input"].append(first.clone())

        return see

    with _hooks(model, lambda path, module: module.register_forward_pre_hook(watch(path), with_kwargs=True)):
        run(model, inputs, dtype)
    return {name: (torch.cat(calls, dim=1) if len(calls) > 1 else calls[0]).numpy() for name, calls in seen.items()}


@contextmanager
def _hooks(model: Any, register: Callable[[str, Any], Any]) -> Iterator[None]:
    hooks = [
        register(path, module)
        for path, module in model.named_modules()
        if not isinstance(module, (torch.nn.Dropout, torch.nn.CrossEntropyLoss)) and not path.endswith("drop_path")
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _kept(output: Any) -> Any:
    """A copy of a module's output where transformers may write into it later (masked frames)."""
    if isinstance(output, torch.Tensor):
        return output.clone()
    if type(output) is tuple:
        return tuple(_kept(value) for value in output)
    return output


def _taps(path: str, calls: list[Any]) -> Iterator[tuple[str, np.ndarray]]:
    """What our recorder calls the same things: a module's output, ``#probs`` of an attention, ``#field`` of a model."""
    first = calls[0]
    if isinstance(first, list):
        return  # its parts are outputs of modules of their own
    if path.endswith("relative_position_bias"):
        calls = calls[:1]  # the shared one is computed again for every layer
    bare = any(hasattr(first, name) for name in ("pooler_output", "extract_features"))
    if (isinstance(first, transformers.utils.ModelOutput) and bare) or path == "":
        for name, value in first.items():
            if isinstance(value, torch.Tensor):
                yield f"{path}#{name}", value.numpy()
    elif isinstance(first, transformers.utils.ModelOutput):
        yield path, first.last_hidden_state.numpy()
    elif isinstance(first, tuple):
        yield path, first[0].numpy()
        if len(first) > 1 and re.search(r"(\.self|layers\.\d+\.attention|\.attention\.attention)$", path):
            yield f"{path}#probs", first[1].numpy()
    else:
        yield path, torch.cat(calls, dim=1).numpy() if len(calls) > 1 else first.numpy()


@contextmanager
def _losses_in_full(dtype: str) -> Iterator[None]:
    """In float64, have transformers not round to float32 before a loss, neither with ``logits.float()`` (language
    models) nor with ``log_softmax(..., dtype=torch.float32)`` (CTC): it rounds what should be the yardstick.
    """
    if dtype != "float64":
        yield
        return
    to_float, log_softmax = torch.Tensor.float, torch.nn.functional.log_softmax
    torch.Tensor.float = lambda self: self
    torch.nn.functional.log_softmax = lambda x, dim, dtype=None: log_softmax(x, dim)
    try:
        yield
    finally:
        torch.Tensor.float, torch.nn.functional.log_softmax = to_float, log_softmax


def everything(outputs: Any, taps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs and taps in one table."""
    return {**flatten(outputs), **taps}


def hold_exact(name: str, config: d2v_ref.Config, inputs: dict[str, Any], seed: int, tally: Any) -> None:
    """Every module's output, every output and the loss, in float64; then the outputs of a run that nobody records."""
    ours, theirs = pair(name, config, seed, "float64")
    want = everything(*run_recorded(theirs, inputs, "float64"))
    got = observable(everything(*ours.record(**inputs)), want)
    compare(got, want, EXACT, tally[f"{name}, float64, every module"])
    plain = everything(ours(**inputs), {})  # it may fuse and chunk
    compare(plain, {key: want[key] for key in plain}, EXACT, tally[f"{name}, float64, unrecorded"])


def hold_within_bound(name: str, config: d2v_ref.Config, inputs: dict[str, Any], seed: int, tally: Any) -> None:
    """In float32, within what the operations' error bounds allow (d2v_ref/golden/bounds.py)."""
    inputs = {
        k: v.astype("float32") if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v for k, v in inputs.items()
    }
    ours, theirs = pair(name, config, seed, "float32")
    want = everything(*run_recorded(theirs, inputs, "float32"))
    got = observable(everything(*ours.record(**inputs)), want)
    compare(got, want, bounds(ours, inputs), tally[f"{name}, float32, every module"])


def observable(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without probabilities that transformers' vision models only show if they are asked for them."""
    return {name: value for name, value in got.items() if name in want or not name.endswith("#probs")}


def bounds(model: Any, inputs: dict[str, Any], probes: int | None = None) -> dict[str, float]:
    """What float32 may be off by, output by output."""
    return tolerances_of(lambda ops: everything(*model.with_ops(ops).record(**inputs)), probes)


def tolerances_of(compute: Callable[[Ops], dict[str, Any]], probes: int | None = None) -> dict[str, float]:
    """What float32 may be off by in everything that is computed with given operations."""

    def run(ops: Ops, tell: Tell) -> None:
        for name, value in compute(ops).items():
            tell(name, value)

    port = FORMATS["float32"]
    return tolerances(run, compute(Exact()), port if probes is None else port._replace(probes=probes))
