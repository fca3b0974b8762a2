"""A label for a picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v_ref.pretrained import PreTrainedModel
from d2v_ref.processing.image_processor import BeitImageProcessor
from d2v_ref.tasks.base import Progress, checked_top_k
from d2v_ref.tasks.classification import best, checked_function, scored, usual_function
from d2v_ref.tasks.images import ImagePipeline, Picture, check_labels


class ImageClassification(ImagePipeline):
    """The labels of a picture and their scores (HF ImageClassificationPipeline)."""

    task = "image-classification"

    def __init__(self, model: PreTrainedModel, image_processor: BeitImageProcessor) -> None:
        super().__init__(model, image_processor)
        check_labels(model)

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
            inputs: see ``ImagePipeline``.
            top_k: how many labels; all if there are fewer.  None for 5, as in transformers 5.23.
            function_to_apply: what makes scores of logits: "softmax", "sigmoid" or "none".  None: "none" for a
                regression, "sigmoid" for a multi-label problem (config.problem_type) or a single label, else "softmax".

        Returns:
            A list of {"label", "score"} for an input, a list of such lists for a list of inputs.
        """
        config = self.model.config
        count = 5 if top_k is None else checked_top_k(top_k)
        function = checked_function(function_to_apply) or usual_function(config)

        def labels(_: Picture, logits: np.ndarray) -> list[dict[str, Any]]:
            scores = scored(logits, function)
            return [{"label": config.label(index), "score": float(scores[index])} for index in best(scores, count)]

        return self.run(inputs, labels, batch_size=batch_size, progress=progress)
