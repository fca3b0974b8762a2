"""Data2VecText: a RoBERTa-shaped transformer (Baevski et al. 2022; Liu et al. 2019), from token ids to every head.

Names of classes, modules, weights and arguments are those of transformers 5.23
(models/data2vec/modeling_data2vec_text.py).  Two things that transformers 4.x had and 5.x lost work here as they did
there: relative positions (``position_embedding_type``), which 5.x ignores without a word, and ``head_mask``;
three-dimensional attention masks are taken too, which 5.x refuses.

Shapes: B batch, T tokens, S tokens that may be attended to (earlier ones in the cache included), D hidden_size, H
heads, V vocab_size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from d2v_ref import checks, losses
from d2v_ref.cache import Cache, LayerCache
from d2v_ref.config import Config
from d2v_ref.errors import ConfigError, InputError
from d2v_ref.generation import GenerationMixin
from d2v_ref.nn import Activation, Embedding, LayerNorm, Linear, Module, Parameter, recording
from d2v_ref.ops import ACTIVATIONS
from d2v_ref.outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from d2v_ref.pretrained import PreTrainedModel, Quirk

Array = Any


class Data2VecTextConfig(Config):
    """Settings of a Data2VecText model (HF Data2VecTextConfig, and 4.x's position_embedding_type)."""

    model_type = "data2vec-text"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    classifier_dropout: float | None = None
    position_embedding_type: str = "absolute"

    # One for tests; facebook/data2vec-text-base; RoBERTa-large's shape, as no large text model was published.
    sizes = {
        "tiny": {
            "vocab_size": 1024,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "max_position_embeddings": 130,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
        },
        "base": {
            "vocab_size": 50265,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
        },
        "large": {
            "vocab_size": 50265,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
        },
    }

    def validate(self) -> None:
        super().validate()
        sizes = "vocab_size hidden_size num_attention_heads intermediate_size max_position_embeddings type_vocab_size"
        self.refuse_what_models_share(sizes, counts="num_hidden_layers")
        kinds = ("absolute", "relative_key", "relative_key_query")
        if self.position_embedding_type not in kinds:
            raise ConfigError(
                "unknown position_embedding_type", got=self.position_embedding_type, expected=" or ".join(kinds)
            )
        if self.pad_token_id is None or not 0 <= self.pad_token_id < min(self.vocab_size, self.max_position_embeddings):
            expected = "a token id that is also a row of the position table: positions are counted from it"
            raise ConfigError("pad_token_id does not serve", got=self.pad_token_id, expected=expected)
        if self.add_cross_attention and not self.is_decoder:
            raise ConfigError("add_cross_attention needs a decoder", got="is_decoder=False", expected="is_decoder=True")
        if self.extra.get("pruned_heads"):
            hint = "In an encoder, a head_mask of zeros gives the same outputs with the unpruned weights"
            raise ConfigError("pruned heads are not supported", got=self.extra["pruned_heads"], hint=hint)

    @property
    def pad(self) -> int:
        """pad_token_id, which a text model must have."""
        return self.pad_token_id if self.pad_token_id is not None else 1

    @property
    def max_length(self) -> int:
        """How many tokens fit: absolute positions begin at pad_token_id + 1 (fairseq's make_positions)."""
        first = self.pad + 1 if self.position_embedding_type == "absolute" else 0
        return self.max_position_embeddings - first


@dataclass
class ForwardPass:
    """What the layers share while a sequence passes through them, and what they leave behind for the output."""

    cache: Cache | None  # of the tokens before these
    masks: dict[str, Any]  # arguments of Ops.attention in self-attention
    states: Array  # the encoder's hidden states (B, S', D), for cross attention, or None
    cross_masks: dict[str, Any]  # arguments of Ops.attention in cross attention
    head_masks: Array  # (layers, H, 1, 1), or None
    probs: bool  # whether the attention probabilities are wanted
    every_state: bool  # whether the hidden states are wanted
    hidden_states: list[Array] = field(default_factory=list)  # (B, T, D) each
    attentions: list[Array] = field(default_factory=list)  # (B, H, T, S) each
    cross_attentions: list[Array] = field(default_factory=list)  # (B, H, T, S') each

    def past(self, layer: int) -> LayerCache | None:
        return None if self.cache is None else self.cache.layers[layer]

    def keep(self, state: Array) -> None:
        if self.every_state:
            self.hidden_states.append(state)

    def head_mask(self, layer: int) -> Array:
        return None if self.head_masks is None else self.head_masks[layer]


class Data2VecTextEmbeddings(Module):
    """LayerNorm(word + token type + position).  ids (B, T) or embeddings (B, T, D) -> (B, T, D)."""

    def __init__(self, config: Data2VecTextConfig) -> None:
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.position_embeddings = Embedding(config.max_position_embeddings, config.hidden_size)
        self.absolute = config.position_embedding_type == "absolute"
        self.pad = config.pad

    def position_ids(self, input_ids: np.ndarray | None, batch: int, length: int, past: int) -> np.ndarray:
        """Positions count the tokens that aren't padding, from pad + 1; padding keeps pad.

        From embeddings, every token counts.
        """
        if input_ids is None:  # HF adds no past length here
            return np.broadcast_to(np.arange(self.pad + 1, self.pad + 1 + length), (batch, length))
        real = input_ids != self.pad
        return (np.cumsum(real, axis=1) + past) * real + self.pad

    def forward(
        self, input_ids: np.ndarray | None, inputs_embeds: Array, token_type_ids: np.ndarray, position_ids: np.ndarray
    ) -> Array:
        if inputs_embeds is None and self.absolute and not recording():
            tables = self.word_embeddings, self.token_type_embeddings, self.position_embeddings
            return self.ops.embed_norm((input_ids, token_type_ids, position_ids), tables, self.LayerNorm)
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, D)
        x = self.ops.add(words, self.token_type_embeddings(token_type_ids))
        if self.absolute:  # relative positions act on the attention scores instead
            x = self.ops.add(x, self.position_embeddings(position_ids))
        return self.LayerNorm(x)


class Data2VecTextSelfAttention(Module):
    """attention(query(x), key(x), value(x)), multi-head (Vaswani et al. 2017, sec. 3.2).  x (B, T, D) -> (B, T, D)."""

    def __init__(self, config: Data2VecTextConfig, layer: int) -> None:
        width, self.heads, self.layer = config.hidden_size, config.num_attention_heads, layer
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        self.relative = config.position_embedding_type
        if self.relative != "absolute":
            self.distance_embedding = Embedding(2 * config.max_position_embeddings - 1, width // self.heads)

    def forward(self, x: Array, run: ForwardPass) -> Array:
        q, k, v = self.project(x, self.query, self.key, self.value)  # (B, T, D) each
        past = run.past(self.layer)
        if past is not None:
            k, v = past.append(self.ops, k, v)  # (B, S, D)
        masks = run.masks | {"head_mask": run.head_mask(self.layer)}
        if self.relative != "absolute":
            weight, with_key = self.distance_embedding.weight, self.relative == "relative_key_query"
            bias = self.ops.relative_key_bias(q, k, self.heads, weight, with_key)  # (B, H, T, S)
            masks["bias"] = self.ops.add(bias, masks["bias"]) if "bias" in masks else bias
        context, p = self.ops.attention(q, k, v, self.heads, probs=run.probs or recording(), **masks)
        run.attentions.append(p if run.probs else None)
        self.tap("probs", p)
        return context


class Data2VecTextCrossAttention(Module):
    """attention(query(x), key(s), value(s)) to the encoder's hidden states s.  x (B, T, D) -> context (B, T, D)."""

    def __init__(self, config: Data2VecTextConfig, layer: int) -> None:
        width, self.heads, self.layer = config.hidden_size, config.num_attention_heads, layer
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)

    def forward(self, x: Array, run: ForwardPass) -> Array:
        q = self.query(x)  # (B, T, D)
        past = run.past(self.layer)
        if past is None or past.cross_key is None:
            k, v = self.project(run.states, self.key, self.value)  # (B, S', D) each
            if past is not None:
                past.cross_key, past.cross_value = k, v
        else:
            k, v = past.cross_key, past.cross_value  # computed once: the states don't change while decoding
        masks = run.cross_masks | {"head_mask": run.head_mask(self.layer)}
        context, p = self.ops.attention(q, k, v, self.heads, probs=run.probs or recording(), **masks)
        run.cross_attentions.append(p if run.probs else None)
        self.tap("probs", p)
        return context


class Data2VecTextOutput(Module):
    """LayerNorm(residual + W x + b), the end of both halves of a layer (HF ...SelfOutput and ...Output).

    (B, T, inputs) -> (B, T, D).
    """

    def __init__(self, inputs: int, config: Data2VecTextConfig) -> None:
        self.dense = Linear(inputs, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Array, residual: Array) -> Array:
        return self.LayerNorm(self.dense(x, residual=residual))


class Data2VecTextAttention(Module):
    """LayerNorm(x + W attention(x) + b), self-attention or cross attention.  (B, T, D) -> (B, T, D)."""

    def __init__(self, config: Data2VecTextConfig, layer: int, cross: bool = False) -> None:
        self.self = (Data2VecTextCrossAttention if cross else Data2VecTextSelfAttention)(config, layer)
        self.output = Data2VecTextOutput(config.hidden_size, config)

    def forward(self, x: Array, run: ForwardPass) -> Array:
        return self.output(self.self(x, run), residual=x)


class Data2VecTextIntermediate(Module):
    """activation(W x + b), the first half of the feed-forward network.  (B, T, D) -> (B, T, intermediate_size)."""

    def __init__(self, config: Data2VecTextConfig) -> None:
        self.dense = Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = Activation(config.hidden_act)

    def forward(self, x: Array) -> Array:
        return self.dense(x, activation=self.intermediate_act_fn)


class Data2VecTextLayer(Module):
    """y = attention(x), in a decoder crossattention(y) if it has one, then output(intermediate(y)) + residual y.

    Post-norm (Vaswani et al. 2017): each part ends in its own residual and LayerNorm.  (B, T, D) -> (B, T, D).
    """

    def __init__(self, config: Data2VecTextConfig, layer: int) -> None:
        self.attention = Data2VecTextAttention(config, layer)
        if config.add_cross_attention:
            self.crossattention = Data2VecTextAttention(config, layer, cross=True)
        self.intermediate = Data2VecTextIntermediate(config)
        self.output = Data2VecTextOutput(config.intermediate_size, config)
        self.chunk = config.chunk_size_feed_forward

    def forward(self, x: Array, run: ForwardPass) -> Array:
        x = self.attention(x, run)
        if run.states is not None:
            x = self.crossattention(x, run)
        return self.feed_forward(x)

    def feed_forward(self, x: Array) -> Array:
        """In chunks of ``chunk_size_feed_forward`` tokens if it is set: less memory, the same result."""
        if not self.chunk or recording():  # a record shows the whole sequence
            return self.output(self.intermediate(x), residual=x)
        chunks = [x[:, start : start + self.chunk] for start in range(0, x.shape[1], self.chunk)]
        return self.ops.concatenate(tuple(self.output(self.intermediate(c), residual=c) for c in chunks), axis=1)


class Data2VecTextEncoder(Module):
    """layer_L(... layer_1(x)), the stack of layers.  (B, T, D) -> (B, T, D)."""

    def __init__(self, config: Data2VecTextConfig) -> None:
        self.layer = [Data2VecTextLayer(config, i) for i in range(config.num_hidden_layers)]

    def forward(self, x: Array, run: ForwardPass) -> Array:
        run.keep(x)
        for layer in self.layer:
            x = layer(x, run)
            run.keep(x)
        return x


class Data2VecTextPooler(Module):
    """tanh(W x_0 + b) of the first token.  (B, T, D) -> (B, D)."""

    def __init__(self, config: Data2VecTextConfig) -> None:
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.activation = Activation("tanh")

    def forward(self, x: Array) -> Array:
        return self.dense(x[:, 0], activation=self.activation)


class Data2VecTextPreTrainedModel(PreTrainedModel):
    """What the text models share: configuration, prefix of the names, weights that files carry and no model uses."""

    config: Data2VecTextConfig
    config_class = Data2VecTextConfig
    base_model_prefix = "data2vec_text"
    ignored_weights = {
        r"(^|\.)embeddings\.position_ids$": "a table 0, 1, 2, ... that older transformers versions saved",
        r"(^|\.)embeddings\.token_type_ids$": "a table of zeros that older transformers versions saved",
    }

    def quirks(self) -> dict[str, Quirk]:
        config, relative = self.config, self.config.position_embedding_type
        found = {}
        if relative == "absolute":
            what = f"positions count from pad_token_id + 1 = {config.pad + 1}: {config.max_length} tokens fit"
            source = "fairseq's make_positions; HF create_position_ids_from_input_ids"
            found["max_position_embeddings"] = Quirk(what, source)
            if config.is_decoder:
                what = "positions begin anew after a cache"
                found["inputs_embeds"] = Quirk(what, "HF Data2VecTextEmbeddings.create_position_ids_from_inputs_embeds")
        else:
            what = "computed as in transformers 4; 5.x adds absolute positions in its place without a word"
            found[f"position_embedding_type={relative}"] = Quirk(what, "HF 4.57 Data2VecTextSelfAttention")
        if relative != "absolute" and config.is_decoder:
            what = "a query has its own position, with a cache and without; HF gives all of a prompt the last"
            found["is_decoder"] = Quirk(what, "HF 4.57 Data2VecTextSelfAttention")
        what = "without one padding is attended to; a token that may see nothing attends evenly to all"
        found["attention_mask"] = Quirk(what, "HF eager_attention_forward, create_bidirectional_mask")
        if config.is_decoder:
            what = "takes the place of the causal rule"
            source = "HF 4.57 get_extended_attention_mask; 5.23 refuses three"
            found["attention_mask of three or four axes"] = Quirk(what, source)
        if config.chunk_size_feed_forward:
            what = f"refuses a text whose length is no multiple of {config.chunk_size_feed_forward}; changes no number"
            found["chunk_size_feed_forward"] = Quirk(what, "HF apply_chunking_to_forward")
        return found


class Data2VecTextModel(Data2VecTextPreTrainedModel):
    """The bare model: pooler(encoder(embeddings(x))), an encoder or a decoder (HF Data2VecTextModel).

    x (B, T) token ids -> last_hidden_state (B, T, D), pooler_output (B, D).
    """

    optional_modules = {"pooler": "add_pooling_layer"}

    def __init__(
        self, config: Data2VecTextConfig, weights: Any = None, *, add_pooling_layer: bool = True, **options: Any
    ) -> None:
        self.embeddings = Data2VecTextEmbeddings(config)
        self.encoder = Data2VecTextEncoder(config)
        self.pooler = Data2VecTextPooler(config) if add_pooling_layer else None
        super().__init__(config, weights, **options)

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        *,
        head_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Hidden states of a batch of token sequences.

        Args:
            input_ids: (B, T) token ids; or else
            inputs_embeds: (B, T, D), in the place of the word embeddings.  Positions then count every token from pad
                + 1, also after a cache.
            attention_mask: 1 where a token may be attended to: (B, S), with the causal rule added in a decoder; (B,
                T, S), or booleans (B, 1 or H, T, S), as it is; floats (B, 1 or H, T, S) are added to the scores,
                -inf as the dtype's lowest number.  None: every token, padding too.
            token_type_ids: (B, T); zeros if None.
            position_ids: (B, T) or (1, T); counted from the ids if None.
            encoder_hidden_states: (B, S', D), what a decoder's cross attention attends to.
            encoder_attention_mask: (B, S') or (B, T, S').
            past_key_values: the ``Cache`` of earlier tokens, or HF's tuples of (B, H, S, d) arrays.
            use_cache: whether to return a cache; a decoder's default is ``config.use_cache``.
            head_mask: (H,) or (layers, H) factors of the attention probabilities, in every attention of a layer
                (transformers 4.x).
            output_attentions: whether to return the probabilities, (B, H, T, S) a layer.
            output_hidden_states: whether to return the embeddings and every layer's output.

        Raises:
            InputError: a wrong shape, dtype or range, a sequence that is too long, a number that is not finite.
        """
        input_ids, inputs_embeds = self._tokens(input_ids, inputs_embeds)
        batch, length = (inputs_embeds if input_ids is None else input_ids).shape[:2]
        cache = self._cache(past_key_values, use_cache, batch)
        past = 0 if cache is None else cache.length()
        position_ids = self._positions(position_ids, input_ids, batch, length, past)
        token_type_ids = np.zeros((batch, length), np.int64) if token_type_ids is None else token_type_ids
        token_type_ids = self._indices("token_type_ids", token_type_ids, batch, length, self.config.type_vocab_size)
        states, cross_masks = self._cross(encoder_hidden_states, encoder_attention_mask, cache, batch, length)
        probs = bool(self.config.output_attentions if output_attentions is None else output_attentions)
        every_state = bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)
        tokens = {
            "input_ids": input_ids,
            "inputs_embeds": inputs_embeds,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
        }
        shared = {
            "masks": self._masks(
                "attention_mask", attention_mask, (batch, length, past + length), self.config.is_decoder
            ),
            "states": states,
            "cross_masks": cross_masks,
            "head_masks": self._head_masks(head_mask),
            "probs": probs,
            "every_state": every_state,
        }
        out = self.ops.replay(self._compute, tokens, shared) if cache is None else self._compute(tokens, shared, cache)
        x, pooled, hidden_states, attentions, cross_attentions = out
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=x,
            pooler_output=pooled,
            hidden_states=hidden_states if every_state else None,
            past_key_values=cache if self._use_cache(use_cache) else None,
            attentions=attentions if probs else None,
            cross_attentions=cross_attentions if probs and states is not None else None,
        )

    def _compute(self, tokens: dict[str, Any], shared: dict[str, Any], cache: Cache | None = None) -> tuple[Any, ...]:
        """From the checked inputs of the embeddings, and of ``ForwardPass``, to all that the output holds."""
        run = ForwardPass(cache=cache, **self.placed(shared))
        x = self.embeddings(**self.placed(tokens))  # (B, T, D)
        x = self.encoder(x, run)  # (B, T, D)
        pooled = None if self.pooler is None else self.pooler(x)  # (B, D)
        return x, pooled, tuple(run.hidden_states), tuple(run.attentions), tuple(run.cross_attentions)

    def _tokens(self, input_ids: Any, inputs_embeds: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Token ids (B, T) or embeddings (B, T, D), whichever is given."""
        if (input_ids is None) == (inputs_embeds is None):
            got = "neither" if input_ids is None else "both"
            raise InputError("give input_ids or inputs_embeds, one of them", got=got)
        if input_ids is not None:
            given = input_ids = checks.indices("input_ids", input_ids, ("batch", "tokens"), self.config.vocab_size)
        else:
            axes = ("batch", "tokens", self.config.hidden_size)
            given = inputs_embeds = checks.array("inputs_embeds", inputs_embeds, axes, "f", self.ops.dtype)
        length, chunk = given.shape[1], self.config.chunk_size_feed_forward
        if chunk and length % chunk:
            expected = f"a multiple of chunk_size_feed_forward={chunk}"
            raise InputError("the sequence does not divide into chunks", got=f"{length} tokens", expected=expected)
        return input_ids, inputs_embeds

    def _indices(self, name: str, ids: Any, batch: int, length: int, count: int) -> np.ndarray:
        """Integers (B, T), or (1, T) for all rows alike."""
        ids = checks.indices(name, ids, ("batch", length), count)
        if len(ids) not in (1, batch):
            raise InputError(f"{name} has the wrong batch size", got=len(ids), expected=f"1 or {batch}")
        return ids

    def _positions(self, given: Any, input_ids: np.ndarray | None, batch: int, length: int, past: int) -> np.ndarray:
        """The tokens' positions: those given, or counted.  What has no row in a table of positions is too long."""
        rows = self.config.max_position_embeddings
        if given is not None:
            return self._indices("position_ids", given, batch, length, rows)
        counted = self.embeddings.position_ids(input_ids, batch, length, past)
        if (counted.max() >= rows) if self.embeddings.absolute else (past + length > rows):
            name, most = "inputs_embeds" if input_ids is None else "input_ids", self.config.max_length
            hint = f"This model takes {most} tokens at a time: shorten or split the text"
            raise InputError(f"{name}: the sequence is too long", got=f"{past + length} tokens", hint=hint)
        return counted

    def _use_cache(self, use_cache: bool | None) -> bool:
        return self.config.is_decoder and (self.config.use_cache if use_cache is None else use_cache)

    def _cache(self, past: Any, use_cache: bool | None, batch: int) -> Cache | None:
        layers, heads = self.config.num_hidden_layers, self.config.num_attention_heads
        if past is None:
            return Cache(self.ops, layers, heads) if self._use_cache(use_cache) else None
        if not self.config.is_decoder:
            raise InputError("past_key_values needs a decoder", got="is_decoder=False", expected="is_decoder=True")
        return Cache.of(past, self.ops, layers, heads, self.config.hidden_size // heads, batch)

    def _masks(self, name: str, mask: Any, shape: tuple[int, int, int], causal: bool) -> dict[str, Any]:
        """The arguments of ``Ops.attention`` that a mask of any of its forms stands for."""
        batch, length, keys = shape
        if mask is None:
            return {"causal": causal}
        mask = checks.anything(name, mask)
        if mask.ndim == 4:  # taken as it is: the causal rule too is the caller's
            heads = self.config.num_attention_heads if mask.shape[1] != 1 else 1
            rows = batch if mask.shape[0] != 1 else 1
            if (
                mask.dtype.kind == "f"
            ):  # -inf hides a score as the lowest number does, without making NaN of an empty row
                with np.errstate(over="ignore"):
                    mask = np.maximum(mask.astype(self.ops.dtype), np.finfo(self.ops.dtype).min)
            mask = checks.array(name, mask, (rows, heads, length, keys), "bf", self.ops.dtype)
            return {"mask" if mask.dtype.kind == "b" else "bias": mask}
        if mask.ndim == 3:  # transformers 4.x: in the place of the causal rule
            mask = checks.array(name, mask, (batch, length, keys), "biuf")
            return {"mask": mask[:, None] != 0}
        mask = checks.array(name, mask, (batch, keys), "biuf")
        return {"mask": mask[:, None, None, :] != 0, "causal": causal}

    def _cross(
        self, states: Any, mask: Any, cache: Cache | None, batch: int, length: int
    ) -> tuple[np.ndarray | None, dict[str, Any]]:
        """The encoder's states, and the masks of the attention to them."""
        if states is None:
            if mask is not None:
                raise InputError("encoder_attention_mask without encoder_hidden_states")
            return None, {}
        if not self.config.add_cross_attention:
            hint = "Build the model with is_decoder=True and add_cross_attention=True"
            raise InputError("encoder_hidden_states given to a model without cross attention", hint=hint)
        cached = None if cache is None else cache.cross_length()
        axes = (batch, "tokens" if cached is None else cached, self.config.hidden_size)
        states = checks.array("encoder_hidden_states", states, axes, "f", self.ops.dtype)
        masks = self._masks("encoder_attention_mask", mask, (batch, length, states.shape[1]), causal=False)
        return states, masks

    def _head_masks(self, head_mask: Any) -> np.ndarray | None:
        """(layers, H, 1, 1), to multiply probabilities (B, H, T, S) with."""
        if head_mask is None:
            return None
        layers, heads = self.config.num_hidden_layers, self.config.num_attention_heads
        head_mask = checks.anything("head_mask", head_mask)
        shape = (heads,) if head_mask.ndim == 1 else (layers, heads)
        head_mask = checks.array("head_mask", head_mask, shape, "biuf", self.ops.dtype).astype(self.ops.dtype)
        return np.broadcast_to(head_mask, (layers, heads))[:, :, None, None]


class Data2VecTextLMHead(Module):
    """Decoder(LayerNorm(gelu(W x + b))): the scores of every token of the vocabulary.  (B, T, D) -> (B, T, V).

    The activation is the exact GELU whatever ``hidden_act`` is.
    """

    def __init__(self, config: Data2VecTextConfig) -> None:
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.decoder = Linear(config.hidden_size, config.vocab_size)
        self.bias: Any = Parameter((config.vocab_size,))  # decoder.bias under its other name

    def forward(self, x: Array) -> Array:
        return self.decoder(self.layer_norm(self.dense(x, activation="gelu")))


class Data2VecTextClassificationHead(Module):
    """out_proj(tanh(W x_0 + b)) of the first token.  (B, T, D) -> (B, labels)."""

    def __init__(self, config: Data2VecTextConfig) -> None:
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.out_proj = Linear(config.hidden_size, config.num_labels)

    def forward(self, x: Array) -> Array:
        return self.out_proj(self.dense(x[:, 0], activation="tanh"))


class _TextModelWithHead(Data2VecTextPreTrainedModel):
    """A bare model without pooler, under its name."""

    add_pooling_layer = False

    def __init__(self, config: Data2VecTextConfig, weights: Any = None, **options: Any) -> None:
        self.data2vec_text = Data2VecTextModel(config, add_pooling_layer=self.add_pooling_layer)
        self.add_head(config)
        super().__init__(config, weights, **options)

    def add_head(self, config: Data2VecTextConfig) -> None:
        """Declare the head's modules, after the model's."""
        raise NotImplementedError


class _LanguageModel(_TextModelWithHead):
    tied_weights = {
        "lm_head.decoder.weight": "data2vec_text.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def add_head(self, config: Data2VecTextConfig) -> None:
        self.lm_head = Data2VecTextLMHead(config)

    def quirks(self) -> dict[str, Quirk]:
        found = super().quirks()
        if ACTIVATIONS[self.config.hidden_act] != "gelu":
            what = "is not the head's activation, which is the exact GELU"
            found["hidden_act"] = Quirk(what, "HF Data2VecTextLMHead")
        return found


class Data2VecTextForCausalLM(_LanguageModel, GenerationMixin):
    """Next-token prediction: lm_head(data2vec_text(x)) (HF Data2VecTextForCausalLM).

    x (B, T) token ids -> logits (B, T, V).
    """

    needs = {"is_decoder": True}

    def quirks(self) -> dict[str, Quirk]:
        found = super().quirks()
        if self.config.position_embedding_type == "absolute":
            what = "counts positions as the forward pass does; transformers 5.23 counts a prompt's from 0"
            found["generate"] = Quirk(what, "HF GenerationMixin._prepare_position_ids_for_generation")
        return found

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        labels: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **options: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """As Data2VecTextModel, and:

        Args:
            labels: (B, T); the logits at t are held against the label at t + 1, -100 is ignored.  No cache is
                returned with labels.
            logits_to_keep: compute the logits of the last so many tokens only; 0 for all.
        """
        outputs = self.data2vec_text(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            past_key_values,
            use_cache if labels is None else False,
            **options,
        )
        if not isinstance(logits_to_keep, int | np.integer) or logits_to_keep < 0:
            expected = "0 for all, or a number of tokens"
            raise InputError("logits_to_keep does not serve", got=repr(logits_to_keep), expected=expected)
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithCrossAttentions(
            loss=None if labels is None else losses.causal_lm_loss(self.ops.to_numpy(logits), labels),
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


class Data2VecTextForMaskedLM(_LanguageModel):
    """Prediction of masked tokens: lm_head(data2vec_text(x)) (HF Data2VecTextForMaskedLM).

    x (B, T) token ids -> logits (B, T, V).
    """

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        labels: Any = None,
        **options: Any,
    ) -> MaskedLMOutput:
        """As Data2VecTextModel; ``labels`` (B, T), -100 is ignored."""
        outputs = self.data2vec_text(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            **options,
        )
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None if labels is None else losses.token_loss(self.ops.to_numpy(logits), labels)
        return MaskedLMOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class Data2VecTextForSequenceClassification(_TextModelWithHead):
    """A class or a number for a text: classifier(data2vec_text(x)) (HF Data2VecTextForSequenceClassification).

    x (B, T) token ids -> logits (B, labels).
    """

    def add_head(self, config: Data2VecTextConfig) -> None:
        self.classifier = Data2VecTextClassificationHead(config)

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        **options: Any,
    ) -> SequenceClassifierOutput:
        """As Data2VecTextModel; ``labels`` as in ``losses.sequence_classification_loss``."""
        outputs = self.data2vec_text(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **options)
        logits = self.classifier(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = losses.sequence_classification_loss(self.ops.to_numpy(logits), labels, self.config.problem_type)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class Data2VecTextForMultipleChoice(_TextModelWithHead):
    """Which of several texts fits: classifier(pooled), pooled = data2vec_text(x) (HF Data2VecTextForMultipleChoice).

    Inputs have an axis of choices: x (B, choices, T) token ids -> logits (B, choices).
    """

    add_pooling_layer = True

    def add_head(self, config: Data2VecTextConfig) -> None:
        self.classifier = Linear(config.hidden_size, 1)

    def forward(
        self,
        input_ids: Any = None,
        token_type_ids: Any = None,
        attention_mask: Any = None,
        labels: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        **options: Any,
    ) -> MultipleChoiceModelOutput:
        """As Data2VecTextModel, every argument (B, choices, ...); ``labels`` (B,) the right choice."""
        name, axes = ("inputs_embeds", 4) if input_ids is None else ("input_ids", 3)
        given = inputs_embeds if input_ids is None else input_ids
        shape = () if given is None else checks.anything(name, given).shape
        if len(shape) != axes or 0 in shape:
            expected = "(batch, choices, tokens[, hidden_size])"
            raise InputError("multiple choice needs an axis of choices", got=shape or given, expected=expected)
        batch, choices = shape[:2]

        def flat(name: str, x: Any) -> Any:  # (B, choices, ...) -> (B choices, ...)
            if x is None:
                return None
            x = checks.anything(name, x)
            if x.shape[:2] != (batch, choices):
                raise InputError(f"{name} has the wrong shape", got=x.shape, expected=f"({batch}, {choices}, ...)")
            return x.reshape(batch * choices, *x.shape[2:])

        outputs = self.data2vec_text(
            flat("input_ids", input_ids),
            flat("attention_mask", attention_mask),
            flat("token_type_ids", token_type_ids),
            flat("position_ids", position_ids),
            flat("inputs_embeds", inputs_embeds),
            **options,
        )
        logits = self.classifier(outputs.pooler_output).reshape(batch, choices)  # (B choices, 1) -> (B, choices)
        loss = None if labels is None else losses.cross_entropy(self.ops.to_numpy(logits), labels)
        return MultipleChoiceModelOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class Data2VecTextForTokenClassification(_TextModelWithHead):
    """A class for every token: classifier(data2vec_text(x)) (HF Data2VecTextForTokenClassification).

    x (B, T) token ids -> logits (B, T, labels).
    """

    def add_head(self, config: Data2VecTextConfig) -> None:
        self.classifier = Linear(config.hidden_size, config.num_labels)

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        **options: Any,
    ) -> TokenClassifierOutput:
        """As Data2VecTextModel; ``labels`` (B, T), -100 is ignored."""
        outputs = self.data2vec_text(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **options)
        logits = self.classifier(outputs.last_hidden_state)  # (B, T, labels)
        loss = None if labels is None else losses.token_loss(self.ops.to_numpy(logits), labels)
        return TokenClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class Data2VecTextForQuestionAnswering(_TextModelWithHead):
    """Where in a text the answer begins and ends: qa_outputs(data2vec_text(x)) (HF Data2VecTextForQuestionAnswering).

    x (B, T) token ids -> start_logits and end_logits (B, T).
    """

    def add_head(self, config: Data2VecTextConfig) -> None:
        if config.num_labels != 2:
            raise ConfigError(
                "question answering scores a start and an end", got=f"{config.num_labels} labels", expected="2"
            )
        self.qa_outputs = Linear(config.hidden_size, 2)

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        start_positions: Any = None,
        end_positions: Any = None,
        **options: Any,
    ) -> QuestionAnsweringModelOutput:
        """As Data2VecTextModel; ``start_positions`` and ``end_positions`` (B,), one outside the text is ignored."""
        outputs = self.data2vec_text(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **options)
        scores = self.qa_outputs(outputs.last_hidden_state)  # (B, T, 2)
        start, end = scores[..., 0], scores[..., 1]
        loss = None
        if start_positions is not None and end_positions is not None:
            numbers = self.ops.to_numpy(start), self.ops.to_numpy(end)
            loss = losses.question_answering_loss(*numbers, start_positions, end_positions)
        return QuestionAnsweringModelOutput(loss, start, end, outputs.hidden_states, outputs.attentions)
