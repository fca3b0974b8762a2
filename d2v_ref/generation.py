"""Text generation: greedy search, sampling and beam search, as HF's ``generate`` does them.

One difference, on purpose.  transformers 5 hands ``generate``'s models position ids that begin at 0, while a
Data2VecText model counts from pad_token_id + 1: its continuation is not the one that its own forward pass predicts.
Here positions are those of the forward pass, and the same with a cache and without, with left padding and without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np

from d2v_ref import checks
from d2v_ref.config import fits, spell
from d2v_ref.errors import ConfigError, InputError
from d2v_ref.ops import Ops

if TYPE_CHECKING:
    from d2v_ref.cache import Cache

_ops = Ops("float64")  # for the definition of log_softmax


@dataclass(frozen=True)
class GenerationSettings:
    """How to choose tokens (HF GenerationConfig's names and meanings).

    Attributes:
        max_new_tokens: where to stop a sequence that has not ended itself.
        do_sample: draw tokens; else take the most likely.
        temperature: divides the logits before drawing.
        top_k: draw among the k most likely tokens; 0 for all.
        top_p: draw among the most likely tokens that together have at least this probability.
        seed: of the draws: the same seed gives the same tokens.
        num_beams: beam search with so many beams; 1 for none.  Beam search does not sample.
        length_penalty: a beam's score is its log-probability divided by length ** length_penalty.
        early_stopping: True: stop as soon as num_beams sequences have ended; False: stop when none is likely to get
            better; "never": stop when none can get better.
        num_return_sequences: sequences for each prompt: samples, or the best beams.
        use_cache: compute each token once; without it the whole sequence every time, with the same result.
    """

    max_new_tokens: int = 20
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = 1
    use_cache: bool = True

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if not fits(getattr(self, name), kind):
                got = repr(getattr(self, name))
                raise InputError(f"generate: {name} has the wrong type", got=got, expected=spell(kind))
        for name, serves, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", self.temperature > 0, "more than 0"),
            ("top_k", self.top_k >= 0, "0 for all, or a number of tokens"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("seed", self.seed >= 0, "0 or more"),
            ("num_beams", self.num_beams >= 1, "1 or more"),
            ("length_penalty", abs(self.length_penalty) <= 100, "-100 ... 100"),
            ("early_stopping", self.early_stopping in (True, False, "never"), "True, False or 'never'"),
            ("do_sample", not (self.do_sample and self.num_beams > 1), "False with beams: beam search does not sample"),
        ):
            if not serves:
                raise InputError(f"generate: {name} does not serve", got=getattr(self, name), expected=expected)
        several = 1 if not self.do_sample and self.num_beams == 1 else self.num_beams if self.num_beams > 1 else None
        if self.num_return_sequences < 1 or (several is not None and self.num_return_sequences > several):
            expected = f"1 to {several}" if several else "1 or more"
            hint = "Greedy search gives one sequence, beam search num_beams, sampling any number"
            raise InputError(
                "generate: num_return_sequences does not serve",
                got=self.num_return_sequences,
                expected=expected,
                hint=hint,
            )


class GenerationMixin:
    """``generate`` for a causal language model."""

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        eos_token_id: int | list[int] | None = None,
        progress: Callable[[int], None] | None = None,
        **settings: Any,
    ) -> np.ndarray:
        """Continue a batch of prompts.

        Args:
            input_ids: (B, T) token ids, padded on the left.
            attention_mask: (B, T), 0 for padding; read from the ids if None.
            encoder_hidden_states, encoder_attention_mask: (B, S, D) and (B, S), for a decoder with cross attention.
            eos_token_id: token or tokens that end a sequence; the configuration's if None, an empty list for none.
            progress: called with 1 after each new token of the batch.
            settings: see ``GenerationSettings``.

        Returns:
            (B * num_return_sequences, at most T + max_new_tokens): the prompts and their continuations, padded on the
            right.
        """
        try:
            chosen = GenerationSettings(**settings)
        except TypeError as error:
            raise InputError(
                f"generate: {str(error).split(') ')[-1]}", expected="a field of GenerationSettings"
            ) from None
        decoder = _Decoder(self, input_ids, attention_mask, encoder_hidden_states, encoder_attention_mask, chosen)
        config = self.config  # type: ignore[attr-defined]
        ends = config.eos_token_id if eos_token_id is None else eos_token_id
        ends = np.ravel(checks.anything("eos_token_id", [] if ends is None else ends))
        if ends.size:
            ends = checks.indices("eos_token_id", ends, ("tokens",), config.vocab_size)
        search = _beam_search if chosen.num_beams > 1 else _one_by_one
        return search(decoder, chosen, ends.tolist(), config.pad_token_id, progress or (lambda _: None))


class _Decoder:
    """The model, the sequences so far, and the cache: gives the next token's logits, takes the next tokens."""

    def __init__(
        self, model: Any, ids: Any, mask: Any, states: Any, states_mask: Any, settings: GenerationSettings
    ) -> None:
        config = model.config
        if not config.is_decoder:
            hint = "Load it with is_decoder=True (d2v-ref run --decoder)"
            raise ConfigError(
                "generate needs a decoder: this model sees the tokens that it should predict",
                got="is_decoder=False",
                hint=hint,
            )
        self.model, self.use_cache, self.pad = model, settings.use_cache, config.pad_token_id
        self.ids = checks.indices("input_ids", ids, ("batch", "tokens"), config.vocab_size)
        if mask is None:
            mask = self.ids != self.pad
        self.mask = checks.array("attention_mask", mask, self.ids.shape, "biuf") != 0
        if not self.mask[:, -1].all():
            hint = "Pad prompts of different lengths on the left: the continuation follows the last token"
            raise InputError("generate: a prompt ends in padding", hint=hint)
        room = config.max_length - self.ids.shape[1]
        if settings.max_new_tokens > room:
            fit = f"at most {room} new tokens" if room > 0 else f"a prompt shorter than its {self.ids.shape[1]} tokens"
            expected = f"{fit}: the model takes {config.max_length} in all"
            raise InputError("generate: max_new_tokens does not fit", got=settings.max_new_tokens, expected=expected)
        copies = settings.num_beams if settings.num_beams > 1 else settings.num_return_sequences
        self.states, self.states_mask = (
            None if x is None else self._copies(name, x, copies)
            for name, x in (("encoder_hidden_states", states), ("encoder_attention_mask", states_mask))
        )
        self.ids, self.mask = np.repeat(self.ids, copies, axis=0), np.repeat(self.mask, copies, axis=0)
        self.cache: Cache | None = None

    def _copies(self, name: str, x: Any, copies: int) -> np.ndarray:
        x = checks.anything(name, x)
        if x.shape[:1] != self.ids.shape[:1]:
            raise InputError(f"{name} has the wrong batch size", got=x.shape, expected=f"({len(self.ids)}, ...)")
        return np.repeat(x, copies, axis=0)

    def logits(self) -> np.ndarray:
        """The next token's scores, (rows, V)."""
        positions = np.cumsum(self.mask, axis=1) * self.mask + self.pad  # fairseq's make_positions, from the mask
        seen = 0 if self.cache is None else self.cache.length()
        out = self.model(
            self.ids[:, seen:],
            self.mask,
            position_ids=positions[:, seen:],
            encoder_hidden_states=self.states,
            encoder_attention_mask=self.states_mask,
            past_key_values=self.cache,
            use_cache=self.use_cache,
            logits_to_keep=1,
            return_dict=True,
        )
        self.cache = out.past_key_values
        return out.logits[:, -1]

    def append(self, tokens: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Add one token a row, after row i has become what row ``rows[i]`` was."""
        if rows is not None:
            self.ids, self.mask = self.ids[rows], self.mask[rows]
            self.cache = None if self.cache is None else self.cache.reorder(rows)
        self.ids = np.concatenate((self.ids, tokens[:, None]), axis=1)
        self.mask = np.concatenate((self.mask, np.ones((len(tokens), 1), bool)), axis=1)


def _one_by_one(
    decoder: _Decoder, settings: GenerationSettings, ends: list[int], pad: int, progress: Callable[[int], None]
) -> np.ndarray:
    """Greedy search and sampling: each sequence alone, until all have ended."""
    random = np.random.default_rng(settings.seed)
    finished = np.zeros(len(decoder.ids), bool)
    for _ in range(settings.max_new_tokens):
        logits = decoder.logits()
        tokens = sample(logits, settings, random) if settings.do_sample else logits.argmax(-1)
        decoder.append(np.where(finished, pad, tokens))
        progress(1)
        finished |= np.isin(tokens, ends)
        if finished.all():
            break
    return decoder.ids


def filtered_log_probs(logits: np.ndarray, settings: GenerationSettings) -> np.ndarray:
    """Log-probabilities (rows, V) after temperature, top-k and top-p, in this order; -inf where cut.

    Top-k: Fan et al. 2018; top-p: Holtzman et al. 2020.
    """
    scores = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # at a tiny temperature all but the most likely become -inf
        scores = (scores - scores.max(-1, keepdims=True)) / settings.temperature
    order = np.argsort(-scores, axis=-1, kind="stable")
    ranked = np.take_along_axis(scores, order, -1)
    if settings.top_k:
        ranked[:, settings.top_k :] = -np.inf
    if settings.top_p < 1:
        p = np.exp(_ops.log_softmax(ranked))
        before = np.cumsum(p, axis=-1) - p  # 0 for the most likely token, which always stays
        ranked[before >= settings.top_p] = -np.inf
    np.put_along_axis(scores, order, ranked, -1)
    return _ops.log_softmax(scores)


def sample(logits: np.ndarray, settings: GenerationSettings, random: np.random.Generator) -> np.ndarray:
    """One token a row: the first whose cumulative probability exceeds a uniform draw."""
    cumulative = np.cumsum(np.exp(filtered_log_probs(logits, settings)), axis=-1)
    draws = random.random(len(logits)) * cumulative[:, -1]  # rounding may leave the sum just under 1
    return (cumulative <= draws[:, None]).sum(-1)


@dataclass
class _Beams:
    """The beams of one prompt: running scores by row, and the best sequences that have ended (score, tokens)."""

    running: np.ndarray  # (K,)
    ended: list[tuple[float, np.ndarray]] = field(default_factory=list)
    done: bool = False


def _beam_search(
    decoder: _Decoder, settings: GenerationSettings, ends: list[int], pad: int, progress: Callable[[int], None]
) -> np.ndarray:
    """Beam search with HF's rules for candidates, length penalty and stopping (GenerationMixin._beam_search)."""
    k = settings.num_beams
    # All beams start equal: only the first counts at the first step, lest every beam choose the same token.
    batch = [_Beams(np.where(np.arange(k) == 0, 0.0, -1e9)) for _ in range(len(decoder.ids) // k)]
    for step in range(1, settings.max_new_tokens + 1):
        log_probs = _ops.log_softmax(decoder.logits().astype(np.float64))  # (B K, V)
        last = step == settings.max_new_tokens
        chosen = [
            _advance(
                beams, log_probs[b * k : (b + 1) * k], decoder.ids[b * k : (b + 1) * k], settings, ends, step, last
            )
            for b, beams in enumerate(batch)
        ]
        rows = np.concatenate([b * k + rows for b, (rows, _) in enumerate(chosen)])
        decoder.append(np.concatenate([tokens for _, tokens in chosen]), rows)
        progress(1)
        if all(beams.done for beams in batch):
            break
    best = [ids for beams in batch for _, ids in beams.ended[: settings.num_return_sequences]]
    out = np.full((len(best), max(map(len, best))), pad, np.int64)
    for row, ids in zip(out, best, strict=True):
        row[: len(ids)] = ids
    return out


def _advance(
    beams: _Beams,
    log_probs: np.ndarray,
    ids: np.ndarray,
    settings: GenerationSettings,
    ends: list[int],
    step: int,
    last: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """One step of one prompt: which rows go on, and with which tokens."""
    k, vocabulary = log_probs.shape
    total = (beams.running[:, None] + log_probs).reshape(-1)  # (K V,)
    # Enough candidates that K go on even if the best of them all end.
    count = min(max(2, 1 + len(ends)) * k, total.size)
    best = np.argsort(-total, kind="stable")[:count]
    rows, tokens = np.divmod(best, vocabulary)
    scores = total[best]
    ending = np.isin(tokens, ends) | last
    if not beams.done:
        for i in np.flatnonzero(ending[:k]):  # an end among the backup candidates does not count
            beams.ended.append((scores[i] / step**settings.length_penalty, np.append(ids[rows[i]], tokens[i])))
        beams.ended = sorted(beams.ended, key=lambda entry: -entry[0])[:k]
    going = np.argsort(-(scores + ending * -1e9), kind="stable")[:k]
    beams.running = scores[going] + ending[going] * -1e9
    beams.done = beams.done or last or not _can_improve(beams, settings, step)
    return rows[going], tokens[going]


def _can_improve(beams: _Beams, settings: GenerationSettings, step: int) -> bool:
    if len(beams.ended) < settings.num_beams:
        return True
    if settings.early_stopping is True:
        return False
    longest = settings.early_stopping == "never" and settings.length_penalty > 0
    length = settings.max_new_tokens if longest else step
    return beams.running[0] / length**settings.length_penalty > beams.ended[-1][0]
