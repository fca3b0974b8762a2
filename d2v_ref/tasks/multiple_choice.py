"""Which of several texts goes best with a prompt."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v_ref.errors import InputError
from d2v_ref.processing.tokenizer import Encoding
from d2v_ref.tasks.base import Progress, as_records, definitions, each
from d2v_ref.tasks.text import TextPipeline


class MultipleChoice(TextPipeline):
    """Choices by probability.  transformers has no such pipeline; the pairs are those of its SWAG example."""

    task = "multiple-choice"

    def __call__(
        self,
        inputs: dict[str, Any] | list[dict[str, Any]] | None = None,
        *,
        prompt: str | None = None,
        choices: list[str] | None = None,
        batch_size: int = 1,
        truncation: bool = False,
        progress: Progress | None = None,
    ) -> list[Any]:
        """All choices, best first: the softmax of the scores of the pairs (prompt, choice).

        Args:
            inputs: {"prompt", "choices"}, or a list of such; or give ``prompt`` and ``choices``.
            batch_size: in pairs.

        Returns:
            A list of {"choice", "index", "score"}, or a list of these for a list of inputs.
        """
        records = as_records(inputs, ("prompt", "choices"), {"prompt": prompt, "choices": choices})
        encodings = each(records, lambda record: self._encode(record, truncation))

        def finish(i: int, outputs: list[np.ndarray]) -> list[dict[str, Any]]:
            p = definitions.softmax(np.array(outputs))  # (choices,)
            order = np.argsort(-p, kind="stable").tolist()
            return [
                {"choice": records[i]["choices"][choice], "index": choice, "score": float(p[choice])}
                for choice in order
            ]

        results = self.run(encodings, self.logits, finish, batch_size=batch_size, progress=progress)
        return results if isinstance(inputs, list | tuple) else results[0]

    def _encode(self, record: dict[str, Any], truncation: bool) -> Encoding:
        """One row for each choice."""
        choices = record["choices"]
        if not isinstance(choices, list | tuple) or not choices:
            raise InputError("choices is no list of texts", got=repr(choices)[:60], expected="one choice or more")
        return self.encode([record["prompt"]] * len(choices), list(choices), truncation=truncation)

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The score of every pair by itself, (B,): prompts may have different numbers of choices."""
        return self.model(ids[:, None], attention_mask=mask[:, None], return_dict=True).logits[:, 0]
