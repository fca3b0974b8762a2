"""What a model returns: Hugging Face's output classes, with NumPy arrays in them.

Every class has the field names and order of the Hugging Face class of the same name.  A field is reached as an
attribute (``out.logits``), a key (``out["logits"]``) or by position (``out[0]``); one that is None is left out of
keys and positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from d2v_ref.cache import Cache

Array = Any  # an array of the backend inside a model, a NumPy array outside
Arrays = tuple[Array, ...]


@dataclass
class ModelOutput:
    """Attribute, key and tuple access to the fields that are not None (HF ModelOutput)."""

    def keys(self) -> tuple[str, ...]:
        return tuple(field.name for field in fields(self) if getattr(self, field.name) is not None)

    def items(self) -> tuple[tuple[str, Any], ...]:
        return tuple((name, getattr(self, name)) for name in self.keys())

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order: what ``return_dict=False`` gives."""
        return tuple(value for _, value in self.items())

    values = to_tuple

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key not in self.keys():
                raise KeyError(f"{key}: not in this output, which has {', '.join(self.keys())}")
            return getattr(self, key)
        return self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __len__(self) -> int:
        return len(self.keys())


@dataclass
class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    last_hidden_state: Array = None  # (B, T, D)
    pooler_output: Array = None  # (B, D)
    hidden_states: Arrays | None = None  # embeddings, then one a layer: L + 1 of (B, T, D)
    past_key_values: Cache | None = None
    attentions: Arrays | None = None  # L of (B, H, T, S)
    cross_attentions: Arrays | None = None  # L of (B, H, T, S of the encoder)


@dataclass
class CausalLMOutputWithCrossAttentions(ModelOutput):
    loss: Array = None  # ()
    logits: Array = None  # (B, T, V)
    past_key_values: Cache | None = None
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None
    cross_attentions: Arrays | None = None


@dataclass
class MaskedLMOutput(ModelOutput):
    loss: Array = None  # ()
    logits: Array = None  # (B, T, V)
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@dataclass
class SequenceClassifierOutput(ModelOutput):
    loss: Array = None  # ()
    logits: Array = None  # (B, labels)
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@dataclass
class MultipleChoiceModelOutput(ModelOutput):
    loss: Array = None  # ()
    logits: Array = None  # (B, choices)
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@dataclass
class TokenClassifierOutput(ModelOutput):
    loss: Array = None  # ()
    logits: Array = None  # (B, T, labels)
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    loss: Array = None  # ()
    start_logits: Array = None  # (B, T)
    end_logits: Array = None  # (B, T)
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@dataclass
class Wav2Vec2BaseModelOutput(ModelOutput):
    last_hidden_state: Array = None  # (B, T, D)
    extract_features: Array = None  # (B, T, C): normalised outputs of the convolutions
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@dataclass
class CausalLMOutput(ModelOutput):
    loss: Array = None  # ()
    logits: Array = None  # (B, T, V)
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@dataclass
class XVectorOutput(ModelOutput):
    loss: Array = None  # ()
    logits: Array = None  # (B, D): the embeddings after a last layer
    embeddings: Array = None  # (B, D)
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@dataclass
class BaseModelOutputWithPooling(ModelOutput):
    last_hidden_state: Array = None  # (B, T, D)
    pooler_output: Array = None  # (B, D)
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@dataclass
class ImageClassifierOutput(ModelOutput):
    loss: Array = None  # ()
    logits: Array = None  # (B, labels)
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None


@dataclass
class SemanticSegmenterOutput(ModelOutput):
    loss: Array = None  # ()
    logits: Array = None  # (B, labels, H, W)
    hidden_states: Arrays | None = None
    attentions: Arrays | None = None
