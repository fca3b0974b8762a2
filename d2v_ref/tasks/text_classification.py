"""A label for a text or a pair of texts."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from d2v_ref.errors import InputError
from d2v_ref.processing.tokenizer import Encoding
from d2v_ref.tasks.base import Progress, as_list, checked_top_k, each
from d2v_ref.tasks.classification import best, scored, usual_function
from d2v_ref.tasks.text import TextPipeline

Label = dict[str, Any]


class TextClassification(TextPipeline):
    """The labels of a text and their scores (HF TextClassificationPipeline)."""

    task = "text-classification"

    def __call__(
        self,
        inputs: str | dict[str, str] | list[Any],
        *,
        top_k: int | Literal["best"] | None = "best",
        batch_size: int = 1,
        truncation: bool = False,
        progress: Progress | None = None,
    ) -> list[Any] | Label:
        """Labels, best first.

        Args:
            inputs: a text, a pair as {"text", "text_pair"}, or a list of these.
            top_k: how many labels, None for all.

        Returns:
            With ``top_k``: a list of {"label", "score"} for an input, a list of such lists for a list of inputs.
            Without, the best label only: [{"label", "score"}] for a text (HF's oddity), {"label", "score"} for a pair,
            and one of them each for a list.
        """
        count = None if top_k is None or top_k == "best" else checked_top_k(top_k)
        encodings = each(as_list(inputs), lambda item: self._encode(item, truncation))

        def finish(i: int, outputs: list[np.ndarray]) -> list[Label]:
            return self._labels(outputs[0])

        labels = self.run(encodings, self.logits, finish, batch_size=batch_size, progress=progress)
        single = not isinstance(inputs, list | tuple)
        if top_k == "best":
            first = [found[0] for found in labels]
            return first[0] if isinstance(inputs, dict) else first
        cut = [found[:count] for found in labels]
        return cut[0] if single else cut

    def _encode(self, item: Any, truncation: bool) -> Encoding:
        if not isinstance(item, dict):
            return self.encode(item, truncation=truncation)
        if not {"text"} <= set(item) <= {"text", "text_pair"}:
            raise InputError("the pair has other parts", got=", ".join(map(str, item)), expected="text and text_pair")
        return self.encode(item["text"], item.get("text_pair"), truncation=truncation)

    def _labels(self, logits: np.ndarray) -> list[Label]:
        """logits (labels,) -> every label, best first."""
        config = self.model.config
        scores = scored(logits, usual_function(config))
        return [{"label": config.label(index), "score": float(scores[index])} for index in best(scores, None)]
