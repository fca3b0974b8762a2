"""A class for every pixel of a picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from d2v_ref.pretrained import PreTrainedModel
from d2v_ref.processing.image_processor import BeitImageProcessor
from d2v_ref.processing.segmentation_maps import post_process_semantic_segmentation
from d2v_ref.tasks.base import Progress
from d2v_ref.tasks.images import ImagePipeline, Picture, check_labels


class ImageSegmentation(ImagePipeline):
    """The classes in a picture and where they are (HF ImageSegmentationPipeline, its semantic subtask)."""

    task = "image-segmentation"

    def __init__(self, model: PreTrainedModel, image_processor: BeitImageProcessor) -> None:
        super().__init__(model, image_processor)
        check_labels(model)

    def __call__(self, inputs: Any, *, batch_size: int = 1, progress: Progress | None = None) -> Any:
        """Which pixels of a picture are of which class.

        The logits are resized to the picture, as in transformers also if the image processor crops it and its edges
        were never seen.

        Args:
            inputs: see ``ImagePipeline``.  H and W are here those of the picture itself, turned upright.

        Returns:
            {"map", "segments"} for an input, a list of them for a list of inputs.  The map is (H, W) int64, the number
            of each pixel's class.  Segments are a list with an entry for every class that occurs, by their numbers:
            {"label", "index" (the number), "share" (of the pixels, 0 ... 1), "mask" ((H, W) bool)}.  transformers has
            "score", which is None, in the place of "index" and "share", and a PIL image of 0 and 255 as the mask.
        """

        def finish(picture: Picture, logits: np.ndarray) -> dict[str, Any]:
            labels = label_map(picture, logits)
            found = [{**entry, "mask": labels == entry["index"]} for entry in self.shares(labels)]
            return {"map": labels, "segments": found}

        return self.run(inputs, finish, batch_size=batch_size, progress=progress)

    def maps(self, inputs: list[Any], *, batch_size: int = 1, progress: Progress | None = None) -> Iterator[np.ndarray]:
        """The map of one picture after the other, so that no more than one batch is in memory."""
        return self.stream(inputs, label_map, batch_size=batch_size, progress=progress)

    def shares(self, labels: np.ndarray) -> list[dict[str, Any]]:
        """{"label", "index", "share"} of every class that occurs in a map (H, W), by their numbers."""
        found, counts = np.unique(labels, return_counts=True)
        return [
            {"label": self.model.config.label(index), "index": index, "share": count / labels.size}
            for index, count in zip(found.tolist(), counts.tolist(), strict=True)
        ]


def label_map(picture: Picture, logits: np.ndarray) -> np.ndarray:
    """The class of each pixel of a picture, (H, W) int64, of logits (classes, h, w)."""
    return post_process_semantic_segmentation(logits[None], [picture.size])[0]
