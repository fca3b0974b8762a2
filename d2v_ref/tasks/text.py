"""What the pipelines for texts share: texts of similar lengths go together, and answers come in the texts' order.

Shapes: B rows of a batch, T tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from d2v_ref.errors import InputError
from d2v_ref.pretrained import PreTrainedModel
from d2v_ref.processing.tokenizer import Encoding, TextTokenizer, pad
from d2v_ref.tasks.base import Forward, Pipeline, Progress

_Row = tuple[int, int, np.ndarray]  # input, row of this input, ids


class TextPipeline(Pipeline):
    """A model and its tokenizer, called with texts.

    Every pipeline's call takes, besides its own arguments:
        batch_size: how many rows go through the model at once.  The results don't depend on it, up to rounding.
        truncation: cut texts that are too long; else they are an InputError.
        progress: called with 1 after each finished input.
    """

    modality = "text"
    parts = {"tokenizer": TextTokenizer}
    padding_side: ClassVar[Literal["right", "left"]] = "right"

    def __init__(self, model: PreTrainedModel, tokenizer: TextTokenizer) -> None:
        super().__init__(model)
        self.tokenizer = tokenizer
        config: Any = model.config
        if tokenizer.vocab_size > config.vocab_size:
            hint = "Use the tokenizer that the model was trained with"
            got, expected = f"{tokenizer.vocab_size} tokens", f"at most the model's {config.vocab_size}"
            raise InputError("the tokenizer does not fit the model", got=got, expected=expected, hint=hint)
        self.vocab_size: int = config.vocab_size
        limit = tokenizer.model_max_length  # HF's tokenizers name a huge number where they have no limit
        self.max_length: int = config.max_length if limit is None else int(min(limit, config.max_length))

    def encode(self, text: Any, pair: Any = None, *, truncation: bool) -> Encoding:
        """One row for a text or a pair, or for each of several; an InputError if one is too long and may not be cut."""
        return self.tokenizer(text, pair, max_length=self.max_length, truncation=truncation)

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """What the model's head says of a batch: (B, ...)."""
        return self.model(ids, attention_mask=mask, return_dict=True).logits

    def run(
        self,
        encodings: Sequence[Encoding],
        forward: Forward,
        finish: Callable[[int, list[np.ndarray]], Any],
        *,
        batch_size: int,
        progress: Progress | None,
    ) -> list[Any]:
        """``finish(i, outputs of its rows)`` for each encoding i, in their order.

        Rows go through ``forward`` (ids (B, T), mask (B, T)) from the shortest to the longest, so that there is little
        padding; an input is finished as soon as its last row is, so that little is kept.
        """
        rows = [(i, j, ids) for i, encoding in enumerate(encodings) for j, ids in enumerate(encoding.rows())]
        rows.sort(key=lambda row: len(row[2]))
        outputs: list[dict[int, np.ndarray]] = [{} for _ in encodings]
        results: list[Any] = [None] * len(encodings)
        for (i, j, _), output in self.outputs(rows, self._collate, forward, batch_size=batch_size):
            outputs[i][j] = output
            if len(outputs[i]) == len(encodings[i].input_ids):
                results[i] = finish(i, [outputs[i].pop(k) for k in range(len(outputs[i]))])
                if progress is not None:
                    progress(1)
        return results

    def _collate(self, batch: list[_Row]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and attention mask, (B, T) each."""
        ids = pad([row for _, _, row in batch], self.tokenizer.pad_token_id, self.padding_side)
        return ids, pad([np.ones(len(row)) for _, _, row in batch], 0, self.padding_side)
