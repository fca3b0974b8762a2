"""A label for a recording."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v_ref.tasks.audio import AudioPipeline
from d2v_ref.tasks.base import Progress, checked_top_k
from d2v_ref.tasks.classification import best, checked_function, scored


class AudioClassification(AudioPipeline):
    """The labels of a recording and their scores (HF AudioClassificationPipeline)."""

    task = "audio-classification"

    def __call__(
        self,
        inputs: Any,
        *,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        batch_size: int = 1,
        progress: Progress | None = None,
    ) -> list[Any]:
        """Labels, best first.

        Args:
            inputs: see ``AudioPipeline``.
            top_k: how many labels; all if there are fewer.  None for all, which is what transformers 5.23 does by
                default, though its class sets 5.
            function_to_apply: what makes scores of logits: "softmax", "sigmoid" or "none".  None: "none" for a
                regression, "sigmoid" for a multi-label problem (config.problem_type), else "softmax".

        Returns:
            A list of {"score", "label"} for an input, a list of such lists for a list of inputs.
        """
        count = None if top_k is None else checked_top_k(top_k)
        kinds = {"regression": "none", "multi_label_classification": "sigmoid"}
        usual = kinds.get(self.model.config.problem_type or "", "softmax")
        function = checked_function(function_to_apply) or usual

        def labels(outputs: list[np.ndarray]) -> list[dict[str, Any]]:
            scores = scored(outputs[0], function)
            chosen = best(scores, count)
            return [{"score": float(scores[index]), "label": self.model.config.label(index)} for index in chosen]

        return self.run(inputs, lambda _, logits: logits, labels, batch_size=batch_size, progress=progress)
