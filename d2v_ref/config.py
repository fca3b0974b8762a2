"""Configurations: Hugging Face's argument names, defaults and ``config.json``."""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any, Union

from d2v_ref.errors import ConfigError
from d2v_ref.ops import ACTIVATIONS

CONFIG_NAME = "config.json"


class Config:
    """What every model's configuration shares (HF PreTrainedConfig).

    Keyword arguments only.  A name that no model here uses is kept in ``extra`` and written back by
    ``save_pretrained``, so that a checkpoint that passes through d2v_ref keeps the settings of other programs.  A
    value of the wrong type is a ConfigError.
    """

    model_type: typing.ClassVar[str] = ""
    sizes: typing.ClassVar[dict[str, dict[str, Any]]] = {}  # the settings of "tiny", "base" and "large"

    architectures: list[str] | None = None
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    is_decoder: bool = False
    add_cross_attention: bool = False
    use_cache: bool = True
    tie_word_embeddings: bool = True
    chunk_size_feed_forward: int = 0
    problem_type: str | None = None
    id2label: dict[int, str] | None = None
    label2id: dict[str, int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __init__(self, /, *, num_labels: int | None = None, **values: Any) -> None:
        for name, kind in self.fields().items():
            value = values.pop(name, getattr(type(self), name))
            if name == "id2label" and value is not None:
                value = _label_names(value)
            if not fits(value, kind):
                raise ConfigError(f"{name} has the wrong type", got=repr(value), expected=spell(kind))
            setattr(
                self, name, list(value) if isinstance(value, list | tuple) else value
            )  # its own list, not a default
        self.extra: dict[str, Any] = {name: value for name, value in values.items() if name != "model_type"}
        given = values.get("model_type", self.model_type)
        if given != self.model_type:
            raise ConfigError("model_type is another model's", got=given, expected=self.model_type)
        self._name_labels(num_labels)
        self.validate()

    def _name_labels(self, count: Any) -> None:
        if count is not None and not (fits(count, int) and 0 <= count < 2**20):  # before that many names are made
            raise ConfigError("num_labels does not serve", got=repr(count), expected="0 ... 2^20 - 1")
        if self.id2label is None:
            self.id2label = {index: f"LABEL_{index}" for index in range(2 if count is None else count)}
        elif count is not None and count != len(self.id2label):
            raise ConfigError("num_labels and id2label disagree", got=count, expected=len(self.id2label))
        if self.label2id is None:
            self.label2id = {label: index for index, label in self.id2label.items()}

    @classmethod
    def fields(cls) -> dict[str, Any]:
        """Every setting and its type, base classes first."""
        found: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            if issubclass(base, Config):
                found.update({name: kind for name, kind in typing.get_type_hints(base).items() if name != "extra"})
        return {name: kind for name, kind in found.items() if typing.get_origin(kind) is not typing.ClassVar}

    @property
    def num_labels(self) -> int:
        return len(self.id2label or ())

    def validate(self) -> None:
        """Refuse what no model can be built from; a subclass adds its own rules."""
        kinds = (None, "regression", "single_label_classification", "multi_label_classification")
        if self.problem_type not in kinds:
            raise ConfigError("unknown problem_type", got=self.problem_type, expected=" or ".join(map(str, kinds)))
        if self.problem_type == "single_label_classification" and self.num_labels < 2:
            hint = "One label is a regression"
            raise ConfigError(
                "a single-label problem needs classes to choose from", got=f"{self.num_labels} labels", hint=hint
            )
        if self.chunk_size_feed_forward < 0:
            raise ConfigError(
                "chunk_size_feed_forward is negative", got=self.chunk_size_feed_forward, expected="0 or more"
            )

    def refuse_outside(self, names: str, least: float, most: float, expected: str) -> None:
        """Each of these settings, a number or a list of them, must be between two numbers."""
        for name in names.split():
            value = getattr(self, name)
            if any(not least <= number <= most for number in (value if isinstance(value, list) else [value])):
                raise ConfigError(f"{name} is out of range", got=value, expected=expected)

    def refuse_what_models_share(self, sizes: str, counts: str) -> None:
        """Sizes from 1 on, counts of modules, and what every transformer here has."""
        self.refuse_outside(sizes, 1, 2**31 - 1, "1 ... 2^31 - 1")
        self.refuse_outside(counts, 0, 1000, "0 ... 1000")  # before that many modules are made
        self.refuse_outside("layer_norm_eps", 0, 1, "0 ... 1")
        config: Any = self
        if config.hidden_size % config.num_attention_heads:
            expected = f"a multiple of num_attention_heads={config.num_attention_heads}"
            raise ConfigError("hidden_size does not divide among the heads", got=config.hidden_size, expected=expected)
        if config.hidden_act not in ACTIVATIONS:
            raise ConfigError("unknown hidden_act", got=config.hidden_act, expected=", ".join(ACTIVATIONS))

    def label(self, index: int) -> str:
        """The name of class ``index``."""
        return (self.id2label or {})[index]

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON takes them: ``from_dict(config.to_dict())`` gives an equal configuration."""
        values = {name: getattr(self, name) for name in self.fields()}
        values["id2label"] = {str(index): label for index, label in (self.id2label or {}).items()}
        return {**self.extra, **values, "model_type": self.model_type}

    @classmethod
    def from_dict(cls, values: dict[str, Any], **changes: Any) -> Config:
        """A configuration from the contents of a ``config.json``.

        ``changes`` override it, as in HF's from_pretrained; a change of a setting that neither the class nor the file
        has is a ConfigError.
        """
        unknown = [name for name in changes if name not in {*cls.fields(), *values, "num_labels"}]
        if unknown:
            raise ConfigError(f"{cls.__name__} has no setting of this name", got=", ".join(unknown))
        merged = {**values, **changes}
        if changes.get("num_labels") is not None and "id2label" not in changes:
            merged.pop("id2label", None)  # the file's names belong to another number of classes
        if (changes.get("num_labels"), changes.get("id2label")) != (None, None) and "label2id" not in changes:
            merged.pop("label2id", None)
        return cls(**merged)

    @classmethod
    def from_json_file(cls, path: str | Path, **changes: Any) -> Config:
        """Read a ``config.json``."""
        values = read_config_json(path)
        try:
            return cls.from_dict(values, **changes)
        except ConfigError as error:
            error.path = path
            raise

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.to_dict() == other.to_dict()

    def __repr__(self) -> str:
        changed = {name: value for name, value in self.to_dict().items() if value != getattr(type(self), name, None)}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"


def read_config_json(path: str | Path) -> dict[str, Any]:
    """The contents of a ``config.json``, as a dictionary."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        hint = "A model's folder holds config.json beside its weights"
        raise ConfigError(f"can't be read: {error.strerror}", path=path, hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is not JSON in UTF-8: {error}", path=path, hint="Fetch or write the file again") from None
    if not isinstance(values, dict):
        raise ConfigError("is not a configuration", path=path, got=type(values).__name__, expected="a JSON object")
    return values


def _label_names(value: Any) -> dict[int, str]:
    try:
        names = {int(index): str(label) for index, label in value.items()}
    except (AttributeError, TypeError, ValueError):
        raise ConfigError("id2label is not a table of names", got=repr(value), expected='{"0": "name", ...}') from None
    if names and sorted(names) != list(range(len(names))):
        raise ConfigError("id2label has gaps", got=f"keys {sorted(names)[:8]}", expected=f"0 to {len(names) - 1}")
    return names


def fits(value: Any, kind: Any) -> bool:
    """Whether a value out of JSON is of an annotated type: int is not bool, float takes int."""
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(kind))
    if origin is list:
        return isinstance(value, list | tuple) and all(fits(item, typing.get_args(kind)[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind)


def spell(kind: Any) -> str:
    """An annotated type in a message's words."""
    return str(getattr(kind, "__name__", kind) if not typing.get_args(kind) else kind).replace("NoneType", "None")
