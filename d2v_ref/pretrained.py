"""``PreTrainedModel``: a model and its configuration, from a checkpoint or to one, every weight accounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from d2v_ref import synth
from d2v_ref.checkpoints import open_checkpoint, resolve, write_json, write_safetensors
from d2v_ref.checkpoints.tensors import Tensor
from d2v_ref.config import CONFIG_NAME, Config
from d2v_ref.errors import CheckpointError, ConfigError, InputError
from d2v_ref.nn import Module
from d2v_ref.nn.module import is_array, recorder
from d2v_ref.ops import Ops, get_ops
from d2v_ref.outputs import ModelOutput

WEIGHTS_NAME = "model.safetensors"

Weights = Mapping[str, Any]  # name -> Tensor of a file, or array


@dataclass(frozen=True)
class Quirk:
    """What a reader would not expect of a configuration, and where it comes from: paper, class, issue."""

    what: str
    source: str

    def __str__(self) -> str:
        return f"{self.what} ({self.source})"


@dataclass
class LoadReport:
    """What became of every weight of a checkpoint and of every parameter of the model."""

    origin: str = "given weights"
    used: dict[str, str] = field(default_factory=dict)  # parameter -> name in the checkpoint
    tied: dict[str, str] = field(default_factory=dict)  # parameter -> the parameter that it is
    fresh: list[str] = field(default_factory=list)  # parameters that were missing and drawn anew
    absent: list[str] = field(default_factory=list)  # optional modules left out, since the checkpoint has none
    unused: dict[str, str] = field(default_factory=dict)  # name in the checkpoint -> why
    quirks: dict[str, Quirk] = field(default_factory=dict)  # see PreTrainedModel.quirks

    def __str__(self) -> str:
        lines = [f"{self.origin}: {len(self.used)} weights used, {len(self.tied)} tied, {len(self.unused)} unused"]
        lines += [f"  unused {name}: {reason}" for name, reason in self.unused.items()]
        lines += [f"  fresh {name}: missing from the checkpoint, drawn anew" for name in self.fresh]
        lines += [f"  left out {name}: the checkpoint has no weights for it" for name in self.absent]
        lines += [f"  quirk {name}: {quirk}" for name, quirk in self.quirks.items()]
        return "\n".join(lines)


class PreTrainedModel(Module):
    """A model that can be called, with NumPy arrays in and out (HF PreTrainedModel).

    Args:
        config: the model's configuration.
        weights: name -> array of every parameter, as ``state_dict`` gives them; without them the model has names and
            shapes only.
        backend: who computes: "numpy", another registered backend's name, or an ``Ops``.
        dtype: "float32" or "float64".
        init_missing: a seed to draw missing weights with (see ``d2v_ref.synth``); without it a missing weight is an
            error.
        origin: where the weights come from, for messages.

    Raises:
        CheckpointError: a weight is missing, is there under two names, has another shape or holds integers.
        BackendError: the backend can't run here or does not compute in the dtype.
    """

    config_class: ClassVar[type[Config]]
    base_model_prefix: ClassVar[str] = ""
    needs: ClassVar[dict[str, Any]] = {}  # settings without which the class makes no sense
    tied_weights: ClassVar[dict[str, str]] = {}  # name -> the name of the weight that it is
    ignored_weights: ClassVar[dict[str, str]] = {}  # pattern -> why files carry it
    renamed_weights: ClassVar[dict[str, str]] = {}  # pattern of names in older files -> the names here
    optional_modules: ClassVar[dict[str, str]] = {}  # module -> the argument that leaves it out

    def __init__(
        self,
        config: Config,
        weights: Weights | None = None,
        *,
        backend: str | Ops = "numpy",
        dtype: str = "float32",
        init_missing: int | None = None,
        origin: str = "given weights",
    ) -> None:
        self.config = config
        self.load_report: LoadReport | None = None
        if weights is not None:
            report = LoadReport(origin)
            report.quirks = self.quirks()
            arrays = self._match(weights, report, init_missing)
            self.bind(arrays, get_ops(backend, dtype))
            self.load_report = report

    # ---- calling -----------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        """The output of ``forward`` as NumPy arrays: an output object, or a tuple if ``return_dict`` is False."""
        self._need_weights()
        out = super().__call__(*args, **kwargs)
        if self.path:
            return out  # a part of another model: arrays stay with the backend
        for name, value in out.items():
            if isinstance(value, tuple):
                setattr(out, name, tuple(self.ops.to_numpy(array) for array in value))
            elif is_array(value):
                setattr(out, name, self.ops.to_numpy(value))
        return out if (self.config.return_dict if return_dict is None else return_dict) else out.to_tuple()

    def _need_weights(self) -> None:
        if not hasattr(self, "ops"):
            hint = "Build it with weights, or use from_pretrained"
            raise InputError(f"{type(self).__name__} has no weights yet", hint=hint)

    def show(self, out: ModelOutput) -> None:
        """Every array of the output is a tap; states and attentions are modules' outputs and were shown already."""
        for name, value in out.items():
            if is_array(value):
                self.tap(name, value)

    def record(self, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, np.ndarray]]:
        """Run once; returns the output and every module's output and tap by name, in the order of computation."""
        taps: dict[str, np.ndarray] = {}
        with recorder(lambda name, value: taps.__setitem__(name, self.ops.to_numpy(value))):
            return self(*args, **kwargs), taps

    # ---- weights -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """Every parameter by name, as NumPy arrays."""
        self._need_weights()
        return {name: self.ops.to_numpy(value) for name, _, _, value in self.named_parameters()}

    def with_ops(self, ops: Ops) -> Self:
        """The same model, computed by other operations."""
        options: dict[str, Any] = {
            option: getattr(self, module) is not None for module, option in self.optional_modules.items()
        }
        return type(self)(self.config, self.state_dict(), backend=ops, **options)

    def quirks(self) -> dict[str, Quirk]:
        """What this configuration makes the model do that a reader of it would not expect, by setting or argument."""
        return {}

    def num_parameters(self) -> int:
        """How many numbers the model holds; tied weights count once."""
        tied = self.tied_weights if self.config.tie_word_embeddings else {}
        return sum(int(np.prod(value.shape)) for name, _, _, value in self.named_parameters() if name not in tied)

    def _match(self, weights: Weights, report: LoadReport, init_missing: int | None) -> dict[str, Any]:
        """Find every parameter in the checkpoint, and account for the rest."""
        shapes = {name: value.shape for name, _, _, value in self.named_parameters()}
        names = self.names_in(weights)  # name here -> name in the checkpoint
        found = {here: weights[there] for here, there in names.items() if here in shapes}
        report.used = {here: names[here] for here in found}
        self._tie(found, report)
        missing = {name: shape for name, shape in shapes.items() if name not in found}
        if missing and init_missing is not None:
            tied = self.tied_weights if self.config.tie_word_embeddings else {}
            report.fresh = [name for name in missing if name not in tied]  # two names of one weight are drawn once
            found.update(synth.weights({name: missing[name] for name in report.fresh}, init_missing))
            self._tie(found, report)
        elif missing:
            hint = f"Is {type(self).__name__} the right class? init_missing=SEED draws the missing weights anew"
            raise CheckpointError(
                f"{len(missing)} of {len(shapes)} weights are missing",
                path=report.origin,
                got=f"no {_some(missing)}",
                hint=hint,
            )
        for name, shape in shapes.items():
            _check(name, found[name], shape, report.origin)
        report.unused = {there: self._why(there) for here, there in names.items() if here not in shapes}
        return found

    def names_in(self, weights: Weights) -> dict[str, str]:
        """Name here -> name in the checkpoint.

        Names of older versions are renamed. A bare model's weights fit into a model with a head, and the other way
        round: only the prefix differs.
        """
        prefix = f"{self.base_model_prefix}."
        file_has_head = any(name.startswith(prefix) for name in weights)
        model_has_head = hasattr(self, self.base_model_prefix)

        def here(name: str) -> str:
            for pattern, replacement in self.renamed_weights.items():
                name = re.sub(pattern, replacement, name)
            if file_has_head == model_has_head:
                return name
            if model_has_head:
                return prefix + name
            # The head's own weights keep a name that no bare model has.
            return name.removeprefix(prefix) if name.startswith(prefix) else f"(head).{name}"

        names: dict[str, str] = {}
        for name in weights:
            other = names.setdefault(here(name), name)
            if other != name:
                hint = "Leave out the one that doesn't count"
                raise CheckpointError(f"{here(name)} is there twice", got=f"{other} and {name}", hint=hint)
        return names

    def _tie(self, found: dict[str, Any], report: LoadReport) -> None:
        """One array for the names that are one weight.

        A file may hold either name, or both.  Both with equal values are one weight; with different values they stay
        two, as in transformers 5.  Without ``tie_word_embeddings`` matrices stay two, but a bias that the file has
        under one of its names only serves for both, as transformers 4 saved it.
        """
        for target, source in self.tied_weights.items():
            tied = self.config.tie_word_embeddings
            if target in found and source in found:
                if tied and _same(found[target], found[source]):
                    found[target] = found[source]
                    report.tied[target] = source
            elif target in found or source in found:
                have, lack = (target, source) if target in found else (source, target)
                if tied or len(found[have].shape) == 1:
                    found[lack] = found[have]
                    report.tied[lack] = have

    def _why(self, name: str) -> str:
        for pattern, reason in self.ignored_weights.items():
            if re.search(pattern, name):
                return reason
        return f"{type(self).__name__} has no weight of this name"

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        config: Config | None = None,
        backend: str | Ops = "numpy",
        dtype: str = "float32",
        init_missing: int | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | None = None,
        **changes: Any,
    ) -> Self:
        """A model from a checkpoint: a folder, a shipped one such as "tiny-text", or a hub id.

        Args:
            name_or_path: a folder with config.json and weights (safetensors or pytorch_model.bin, in one file or
                sharded), or the name of a checkpoint that comes with the package (``d2v_ref.models``), both of which
                need no network ever; or a hub id such as "facebook/data2vec-text-base", looked up in
                huggingface_hub's cache and downloaded if it isn't there.
            config: used in the place of the checkpoint's.
            backend, dtype, init_missing: as in the constructor.
            revision: a branch, tag or commit of the hub repository.
            cache_dir, local_files_only, token: huggingface_hub's.
            changes: settings of the configuration to change (``is_decoder=True``), and arguments of the model
                (``add_pooling_layer=False``).

        A module that the model can do without, and that the checkpoint has no weights for (the pooler of a language
        model's checkpoint), is left out unless it is asked for, and ``load_report`` says so; transformers would give
        it random weights.

        Weights stay mapped to their file where its dtype is the one asked for: don't overwrite the file in place while
        the model lives.
        """
        folder = resolve(
            name_or_path, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
        )
        options = {name: changes.pop(name) for name in cls.optional_modules.values() if name in changes}
        if config is None:
            config = cls.config_class.from_json_file(folder / CONFIG_NAME, **changes)
        elif changes:
            raise ConfigError(
                "settings were given beside a config", got=", ".join(changes), hint="Change them in the config"
            )
        weights = open_checkpoint(folder)
        absent = [module for module, option in cls.optional_modules.items() if option not in options]
        absent = [
            module for module in absent if not any(_has_module(name, module, cls.base_model_prefix) for name in weights)
        ]
        if init_missing is None:
            options.update({cls.optional_modules[module]: False for module in absent})
        model = cls(
            config,
            weights,
            backend=backend,
            dtype=dtype,
            init_missing=init_missing,
            origin=str(name_or_path),
            **options,
        )
        if init_missing is None and model.load_report is not None:
            model.load_report.absent = absent
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors, which transformers and this package load back.

        A tied weight is written once, under the name that transformers keeps.  Each file is written whole or not at
        all.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"can't be made a folder: {error.strerror}", path=folder) from None
        weights = self.state_dict()
        if self.config.tie_word_embeddings:
            for target, source in self.tied_weights.items():
                if _same(weights[target], weights[source]):
                    del weights[target]
        write_safetensors(folder / WEIGHTS_NAME, weights, {"format": "pt"})
        write_json(folder / CONFIG_NAME, saved_config(type(self), self.config, str(self.ops.dtype)))


def saved_config(model_class: type, config: Config, dtype: str) -> dict[str, Any]:
    """The contents of ``config.json`` for a model of this class, saved in this dtype."""
    return {**config.to_dict(), "architectures": [model_class.__name__], "dtype": dtype}


def _has_module(name: str, module: str, prefix: str) -> bool:
    return name.startswith((f"{module}.", f"{prefix}.{module}."))


def _data(weight: Any) -> np.ndarray:
    return weight.data if isinstance(weight, Tensor) else np.asarray(weight)


def _same(a: Any, b: Any) -> bool:
    """Whether two weights are one: the same bytes of a file, or equal values."""
    a, b = _data(a), _data(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return (
        a.__array_interface__["data"] == b.__array_interface__["data"] and a.strides == b.strides
    ) or np.array_equal(a, b)


def _check(name: str, weight: Any, shape: tuple[int, ...], origin: str) -> None:
    if tuple(weight.shape) != shape:
        hint = "The configuration and the weights are of different models"
        raise CheckpointError(
            f"{name} has another shape", path=origin, got=tuple(weight.shape), expected=shape, hint=hint
        )
    if not (isinstance(weight, Tensor) and weight.dtype == "bfloat16") and _data(weight).dtype.kind != "f":
        raise CheckpointError(
            f"{name} is not floating-point", path=origin, got=_data(weight).dtype, expected="a floating dtype"
        )


def _some(names: Any, count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
