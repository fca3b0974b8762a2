"""Labels for every moment of a recording: who speaks when."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v_ref.config import fits
from d2v_ref.errors import InputError
from d2v_ref.tasks.audio import AudioPipeline, Piece
from d2v_ref.tasks.base import Progress, definitions


class AudioFrameClassification(AudioPipeline):
    """Segments of a recording that have one label.  transformers has no such pipeline, only the model's example."""

    task = "audio-frame-classification"

    def __call__(
        self,
        inputs: Any,
        *,
        threshold: float | None = None,
        batch_size: int = 1,
        progress: Progress | None = None,
    ) -> list[Any]:
        """Segments, by their beginning; those that begin together in the order of the labels.

        Frame i covers the seconds [i, i + 1) * samples a frame / sampling rate; the last one ends with the recording.

        Args:
            inputs: see ``AudioPipeline``.
            threshold: None: every frame has one label, the likeliest (softmax); or, if config.problem_type is
                "multi_label_classification", as with 0.5.  A number: every frame has all labels whose sigmoid is above
                it, which may be none, so that segments of different labels overlap (speaker diarization).

        Returns:
            A list of {"label", "score", "timestamp": (start, end)} for an input, a list of such lists for a list of
            inputs; ``score`` is the mean over the segment's frames.
        """
        if threshold is None and self.model.config.problem_type == "multi_label_classification":
            threshold = 0.5
        if threshold is not None and not (fits(threshold, float) and 0 <= threshold <= 1):
            raise InputError("threshold is no probability", got=repr(threshold), expected="0 ... 1")

        def keep(piece: Piece, logits: np.ndarray) -> tuple[np.ndarray, int]:
            return logits[: self.frames(piece)].copy(), len(piece.values)

        def segments(outputs: list[tuple[np.ndarray, int]]) -> list[dict[str, Any]]:
            logits, samples = outputs[0]
            if threshold is None:
                scores = definitions.softmax(logits)  # (T, labels)
                active = scores.argmax(axis=1)[:, None] == np.arange(scores.shape[1])
            else:
                scores = definitions.sigmoid(logits)
                active = scores > threshold
            return self._segments(scores, active, samples)

        return self.run(inputs, keep, segments, batch_size=batch_size, progress=progress)

    def _segments(self, scores: np.ndarray, active: np.ndarray, samples: int) -> list[dict[str, Any]]:
        """The runs of frames in which a label is active.  scores and active (T, labels)."""
        frames, labels = active.shape
        edges = np.diff(active.astype(np.int8), axis=0, prepend=0, append=0)  # 1 where a run starts, -1 after its end
        found = []
        for label in range(labels):
            starts, ends = np.flatnonzero(edges[:, label] == 1), np.flatnonzero(edges[:, label] == -1)
            found += [(start, label, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        times = [frame * self.ratio / self.sampling_rate for frame in range(frames)]
        times.append(samples / self.sampling_rate)
        return [
            {
                "label": self.model.config.label(label),
                "score": float(scores[start:end, label].mean()),
                "timestamp": (times[start], times[end]),
            }
            for start, label, end in sorted(found)
        ]
