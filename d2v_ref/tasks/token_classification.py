"""A label for every token, or for every entity that tokens make up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from d2v_ref.errors import InputError
from d2v_ref.processing.tokenizer import Encoding
from d2v_ref.tasks.base import Progress, as_list, definitions, each
from d2v_ref.tasks.text import TextPipeline

STRATEGIES = ("none", "simple", "first", "average", "max")


@dataclass
class _Piece:
    """Neighbouring tokens that share a label: one token, a word, or an entity."""

    ids: list[int]
    start: int
    end: int
    scores: np.ndarray  # (labels,)
    index: int  # of the first token

    def best(self) -> int:
        return int(self.scores.argmax())


class TokenClassification(TextPipeline):
    """Entities of a text (HF TokenClassificationPipeline)."""

    task = "token-classification"

    def __call__(
        self,
        inputs: str | list[str],
        *,
        aggregation_strategy: str = "none",
        ignore_labels: list[str] | tuple[str, ...] = ("O",),
        batch_size: int = 1,
        truncation: bool = False,
        progress: Progress | None = None,
    ) -> list[Any]:
        """The labelled tokens or entities of a text, or a list of them for each text of a list.

        Args:
            aggregation_strategy: "none": each token by itself.  "simple": neighbours of one label, up to the prefixes
                "B-" (begins an entity) and "I-" (goes on), make one entity.  "first", "average", "max": the same,
                after every word was given one label: its first token's, that of its tokens' average scores, or that of
                the token with the highest score.
            ignore_labels: labels to leave out; in an entity, without its prefix.

        Returns:
            {"entity", "score", "index", "word", "start", "end"} for "none", else {"entity_group", "score", "word",
            "start", "end"}, where ``start`` and ``end`` are characters of the text.
        """
        if aggregation_strategy not in STRATEGIES:
            raise InputError("unknown aggregation_strategy", got=aggregation_strategy, expected=" or ".join(STRATEGIES))
        texts = as_list(inputs)
        encodings = each(texts, lambda text: self.encode(text, truncation=truncation))

        def finish(i: int, outputs: list[np.ndarray]) -> list[dict[str, Any]]:
            tokens = self._tokens(encodings[i], outputs[0])
            if aggregation_strategy == "none":
                found = [self._entity(token) for token in tokens]
            else:
                words = self._words(texts[i], tokens, aggregation_strategy)
                found = [self._entity_group(group) for group in self._groups(words)]
            return [entity for entity in found if entity.get("entity", entity.get("entity_group")) not in ignore_labels]

        results = self.run(encodings, self.logits, finish, batch_size=batch_size, progress=progress)
        return results if isinstance(inputs, list | tuple) else results[0]

    def _tokens(self, encoding: Encoding, logits: np.ndarray) -> list[_Piece]:
        """Every token of the text itself.  logits (T or more, labels)."""
        scores = definitions.softmax(logits)
        places = np.flatnonzero(encoding.special_tokens_mask[0] == 0).tolist()
        ids, offsets = encoding.input_ids[0].tolist(), encoding.offsets[0].tolist()
        return [_Piece([ids[t]], offsets[t][0], offsets[t][1], scores[t], t) for t in places]

    def _words(self, text: str, tokens: list[_Piece], strategy: str) -> list[_Piece]:
        """Tokens joined to words; where a word has one label only, its scores say which."""
        if strategy == "simple":
            return tokens
        words: list[list[_Piece]] = []
        for token in tokens:
            if words and self._goes_on(text, token):
                words[-1].append(token)
            else:
                words.append([token])
        return [self._word(pieces, strategy) for pieces in words]

    def _goes_on(self, text: str, token: _Piece) -> bool:
        """Whether a token goes on with a word: no space at or before its first character (HF's rule)."""
        unknown = self.tokenizer.special_tokens.get("unk_token")
        if unknown is not None and self.tokenizer.token(token.ids[0]) == unknown:
            return False
        return token.start > 0 and " " not in text[token.start - 1 : token.start + 1]

    def _word(self, pieces: list[_Piece], strategy: str) -> _Piece:
        if strategy == "first":
            scores = pieces[0].scores
        elif strategy == "max":
            scores = max(pieces, key=lambda piece: piece.scores.max()).scores
        else:
            scores = np.mean([piece.scores for piece in pieces], axis=0)
        ids = [index for piece in pieces for index in piece.ids]
        return _Piece(ids, pieces[0].start, pieces[-1].end, scores, pieces[0].index)

    def _groups(self, words: list[_Piece]) -> list[list[_Piece]]:
        groups: list[list[_Piece]] = []
        for word in words:
            begins, tag = _split(self._label(word))
            if groups and not begins and tag == _split(self._label(groups[-1][-1]))[1]:
                groups[-1].append(word)
            else:
                groups.append([word])
        return groups

    def _entity(self, token: _Piece) -> dict[str, Any]:
        return {
            "entity": self._label(token),
            "score": float(token.scores.max()),
            "index": token.index,
            "word": self.tokenizer.token(token.ids[0]),
            "start": token.start,
            "end": token.end,
        }

    def _entity_group(self, words: list[_Piece]) -> dict[str, Any]:
        return {
            "entity_group": self._label(words[0]).split("-", 1)[-1],
            "score": float(np.mean([word.scores.max() for word in words])),
            "word": self.tokenizer.decode([index for word in words for index in word.ids], skip_special_tokens=False),
            "start": words[0].start,
            "end": words[-1].end,
        }

    def _label(self, piece: _Piece) -> str:
        return self.model.config.label(piece.best())


def _split(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and of which kind: "B-PER" -> True, "PER"; without a prefix it goes on."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label
