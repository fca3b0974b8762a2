"""Whose voice it is: x-vectors (Snyder et al. 2018), and whether two of them are one speaker's."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v_ref.config import fits
from d2v_ref.errors import InputError
from d2v_ref.tasks.audio import AudioPipeline
from d2v_ref.tasks.base import Progress


class _SpeakerPipeline(AudioPipeline):
    """What needs the embeddings of recordings."""

    def embeddings(self, inputs: Any, *, batch_size: int, progress: Progress | None) -> Any:
        """x / |x| of each recording's x-vector x."""
        return self.run(inputs, lambda _, x: x, _unit, batch_size=batch_size, progress=progress)

    def forward(self, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The embeddings in the place of the scores of training speakers: (B, xvector_output_dim)."""
        return self.model(values, attention_mask=mask, return_dict=True).embeddings


class SpeakerEmbedding(_SpeakerPipeline):
    """x-vectors of unit length.  transformers has no such pipeline, only the example of Data2VecAudioForXVector."""

    task = "speaker-embedding"

    def __call__(self, inputs: Any, *, batch_size: int = 1, progress: Progress | None = None) -> Any:
        """The embedding of a recording, or a list of them for a list of recordings (see ``AudioPipeline``).

        Returns:
            An array (xvector_output_dim,) in the model's dtype.
        """
        return self.embeddings(inputs, batch_size=batch_size, progress=progress)


class SpeakerVerification(_SpeakerPipeline):
    """Whether two recordings are of one speaker."""

    task = "speaker-verification"

    def __call__(
        self,
        first: Any,
        second: Any,
        *,
        threshold: float = 0.7,
        batch_size: int = 1,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """The cosine of the angle between the two embeddings.

        Args:
            first, second: a recording each, see ``AudioPipeline``.
            threshold: from which cosine on it is the same speaker.  0.7 is that of transformers' example; the best one
                depends on the model and on what it is used for.

        Returns:
            {"score": -1 ... 1, "same_speaker": score >= threshold}
        """
        if not (fits(threshold, float) and -1 <= threshold <= 1):
            raise InputError("threshold is no cosine", got=repr(threshold), expected="-1 ... 1")
        a, b = self.embeddings([first, second], batch_size=batch_size, progress=progress)
        score = float(np.clip(a @ b, -1, 1))
        return {"score": score, "same_speaker": bool(score >= threshold)}


def _unit(outputs: list[np.ndarray]) -> np.ndarray:
    return outputs[0] / max(np.linalg.norm(outputs[0]), 1e-12)  # as torch.nn.functional.normalize
