"""What the model makes of a text, a recording or a picture, without a head."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v_ref.errors import InputError
from d2v_ref.tasks.audio import AudioPipeline, Piece
from d2v_ref.tasks.base import Progress, as_list, each
from d2v_ref.tasks.images import ImagePipeline, Picture
from d2v_ref.tasks.text import TextPipeline


class TextFeatureExtraction(TextPipeline):
    """The last hidden states (HF FeatureExtractionPipeline, with arrays in the place of nested lists)."""

    task = "feature-extraction"

    def __call__(
        self,
        inputs: str | list[str],
        *,
        pooling: str | None = None,
        batch_size: int = 1,
        truncation: bool = False,
        progress: Progress | None = None,
    ) -> Any:
        """The features of a text, or a list of them for a list of texts.

        Args:
            pooling: None for every token; "first" for ``<s>``, "mean" for the mean of all tokens, special ones
                included.

        Returns:
            An array (1, T, D), or (1, D) if pooled.
        """
        if pooling not in (None, "first", "mean"):
            raise InputError("unknown pooling", got=repr(pooling), expected="None or 'first' or 'mean'")
        encodings = each(as_list(inputs), lambda text: self.encode(text, truncation=truncation))

        def finish(i: int, outputs: list[np.ndarray]) -> np.ndarray:
            states = outputs[0][: encodings[i].input_ids.shape[1]]  # (T, D), without the batch's padding
            if pooling is None:
                return states[None].copy()  # not a view that would keep the whole batch
            return states[:1].copy() if pooling == "first" else states.mean(0, keepdims=True)

        results = self.run(encodings, self.logits, finish, batch_size=batch_size, progress=progress)
        return results if isinstance(inputs, list | tuple) else results[0]

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The hidden states in the place of a head's scores: (B, T, D)."""
        return self.model(ids, attention_mask=mask, return_dict=True).last_hidden_state


class AudioFeatureExtraction(AudioPipeline):
    """The last hidden states.  transformers' FeatureExtractionPipeline takes texts only."""

    task = "feature-extraction"

    def __call__(
        self, inputs: Any, *, pooling: str | None = None, batch_size: int = 1, progress: Progress | None = None
    ) -> Any:
        """The features of a recording, or a list of them for a list of recordings.

        Args:
            inputs: see ``AudioPipeline``.
            pooling: None for every frame; "mean" for the mean of all frames.

        Returns:
            An array (1, T, D), or (1, D) if pooled.
        """
        if pooling not in (None, "mean"):
            raise InputError("unknown pooling of a recording", got=repr(pooling), expected="None or 'mean'")

        def keep(piece: Piece, states: np.ndarray) -> np.ndarray:
            own = states[: self.frames(piece)]  # (T, D), without the batch's padding
            return own[None].copy() if pooling is None else own.mean(0, keepdims=True)

        return self.run(inputs, keep, lambda found: found[0], batch_size=batch_size, progress=progress)

    def forward(self, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The hidden states in the place of a head's scores: (B, T, D)."""
        return self.model(values, attention_mask=mask, return_dict=True).last_hidden_state


class ImageFeatureExtraction(ImagePipeline):
    """The last hidden states (HF ImageFeatureExtractionPipeline, with arrays in the place of nested lists)."""

    task = "image-feature-extraction"

    def __call__(
        self, inputs: Any, *, pooling: str | None = None, batch_size: int = 1, progress: Progress | None = None
    ) -> Any:
        """The features of a picture, or a list of them for a list of pictures.

        Args:
            inputs: see ``ImagePipeline``.
            pooling: None for the class token and every patch; "first" for the class token, "mean" for the mean of all
                patches, which is what a classifier's pooler normalizes (``use_mean_pooling``).

        Returns:
            An array (1, T, D), or (1, D) if pooled.
        """
        if pooling not in (None, "first", "mean"):
            raise InputError("unknown pooling", got=repr(pooling), expected="None or 'first' or 'mean'")

        def finish(_: Picture, states: np.ndarray) -> np.ndarray:
            if pooling is None:
                return states[None].copy()  # not a view that would keep the whole batch
            return states[:1].copy() if pooling == "first" else states[1:].mean(0, keepdims=True)

        return self.run(inputs, finish, batch_size=batch_size, progress=progress)

    def forward(self, values: np.ndarray) -> np.ndarray:
        """The hidden states in the place of a head's scores: (B, T, D)."""
        return self.model(values, return_dict=True).last_hidden_state
