"""Which tokens fit in the place of a mask."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v_ref.errors import InputError
from d2v_ref.processing.tokenizer import Encoding
from d2v_ref.tasks.base import Progress, as_list, checked_top_k, definitions, each
from d2v_ref.tasks.text import TextPipeline


class FillMask(TextPipeline):
    """The most likely tokens for each mask (HF FillMaskPipeline)."""

    task = "fill-mask"

    def __call__(
        self,
        inputs: str | list[str],
        *,
        top_k: int = 5,
        batch_size: int = 1,
        truncation: bool = False,
        progress: Progress | None = None,
    ) -> list[Any]:
        """The ``top_k`` likeliest tokens, best first.

        Returns:
            For a text, a list of {"score", "token", "token_str", "sequence"}; for one with several masks, such a list
            for each mask, every mask filled by itself; for a list of texts, a list of these, but for a list of one
            text what the text alone gives.

        Raises:
            InputError: a text without a mask, or a tokenizer that has none.
        """
        if checked_top_k(top_k) > self.vocab_size:
            raise InputError("top_k is larger than the vocabulary", got=top_k, expected=f"at most {self.vocab_size}")
        encodings = each(as_list(inputs), lambda text: self._encode(text, truncation))

        def finish(i: int, outputs: list[np.ndarray]) -> list[Any]:
            return self._answers(encodings[i].input_ids[0], outputs[0], top_k)

        results = self.run(encodings, self.logits, finish, batch_size=batch_size, progress=progress)
        return results[0] if len(results) == 1 else results

    def _encode(self, text: Any, truncation: bool) -> Encoding:
        mask = self.tokenizer.mask_token
        if mask is None:
            hint = 'Name one in tokenizer_config.json ("mask_token")'
            raise InputError("fill-mask needs a mask token, and the tokenizer has none", hint=hint)
        encoding = self.encode(text, truncation=truncation)
        if not (encoding.input_ids == self.tokenizer.mask_token_id).any():
            where = f"the first {encoding.input_ids.shape[1]} tokens of the text have" if truncation else "the text has"
            expected = f"{mask} where a token is to be guessed"
            raise InputError(f"{where} no {mask}", got=repr(text[:60]), expected=expected)
        return encoding

    def _answers(self, ids: np.ndarray, logits: np.ndarray, top_k: int) -> list[Any]:
        """ids (T,), logits (T or more, V) -> the answers of each mask, or of the only one."""
        places = np.flatnonzero(ids == self.tokenizer.mask_token_id)
        probs = definitions.softmax(logits[places])  # (masks, V)
        answers = [
            self._fill(ids, place, p, top_k, alone=len(places) == 1)
            for place, p in zip(places.tolist(), probs, strict=True)
        ]
        return answers[0] if len(places) == 1 else answers

    def _fill(self, ids: np.ndarray, place: int, probs: np.ndarray, top_k: int, alone: bool) -> list[dict[str, Any]]:
        answers = []
        for token in np.argsort(-probs, kind="stable")[:top_k].tolist():
            filled = ids.copy()
            filled[place] = token
            # As in HF: with several masks, special tokens stay, lest the other masks vanish; <pad> goes even if it is
            # the answer.
            sequence = self.tokenizer.decode(filled[filled != self.tokenizer.pad_token_id], skip_special_tokens=alone)
            word = self.tokenizer.decode([token], skip_special_tokens=False)
            answers.append({"score": float(probs[token]), "token": token, "token_str": word, "sequence": sequence})
        return answers
