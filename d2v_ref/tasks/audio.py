"""What the pipelines for recordings share: reading them, cutting them into pieces, and batches of similar lengths.

Shapes: B pieces of a batch, N samples of the longest of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from d2v_ref import checks
from d2v_ref.errors import InputError
from d2v_ref.pretrained import PreTrainedModel
from d2v_ref.processing.feature_extractor import Wav2Vec2FeatureExtractor
from d2v_ref.processing.sound_files import audio_length, is_whole, resample, stream_audio
from d2v_ref.tasks.base import Pipeline, Progress, as_list, each


@dataclass(frozen=True)
class Recording:
    """One input, which is not read yet.

    Attributes:
        name: the path; None for what came as an array.
        seconds: how long it is; of a file what its header says, 0 if that does not tell.
        blocks: reads it from the beginning, at the model's sampling rate.
    """

    name: str | Path | None
    seconds: float
    blocks: Callable[[], Iterable[np.ndarray]]

    @classmethod
    def of(cls, item: Any, sampling_rate: int) -> Self:
        """A path, samples at the model's rate, or {"raw" or "array", "sampling_rate"}, which is resampled if needed.

        Samples are (N,), or (1, N) or (2, N), of which the mean is taken, as transformers' speech recognition does it.
        Resampling is libsoxr's; transformers' is torchaudio's, whose filter is another.
        """
        if isinstance(item, cls):
            return item
        if isinstance(item, str | os.PathLike):
            path = Path(item)
            return cls(path, _seconds(path), lambda: stream_audio(path, sampling_rate))
        rate = sampling_rate
        if isinstance(item, dict):
            names = sorted(str(key) for key in item if key != "path")  # which the datasets package adds
            if names not in (["raw", "sampling_rate"], ["array", "sampling_rate"]):
                expected = '"sampling_rate" and either "raw" or "array"'
                raise InputError("the recording has other parts", got=", ".join(names) or "none", expected=expected)
            item, rate = item[names[0] if names[0] != "sampling_rate" else names[1]], item["sampling_rate"]
        samples = _mono(item)
        if not (is_whole(rate) and rate == sampling_rate):  # also what is no rate at all
            samples = resample(samples, rate, sampling_rate)
        return cls(None, len(samples) / sampling_rate, lambda: [samples])


class Window(NamedTuple):
    """How a long recording is cut: into pieces of ``length`` samples that overlap, so that their first ``left`` and
    last ``right`` samples need only give context; not at the beginning and the end of the recording.
    """

    length: int
    left: int
    right: int


class Piece(NamedTuple):
    """What goes through the model as one row: a recording or a part of it, normalized, and what of it is context."""

    recording: int
    values: np.ndarray  # (N,)
    left: int
    right: int
    last: bool


class AudioPipeline(Pipeline):
    """A model and its feature extractor, called with recordings.

    An input is a path (wav, flac, ogg, mp3, of any sampling rate), an array at the model's rate (which nobody can
    check), {"raw" or "array", "sampling_rate"}, or a list of these.  Every pipeline's call takes, besides its own
    arguments:
        batch_size: how many rows go through the model at once.  Recordings of similar lengths go together, padded to
            the longest, always with an attention mask; transformers' audio-classification leaves the mask to the
            feature extractor's setting.  The results don't depend on it, up to rounding, if the model was loaded with
            padding="exact"; Hugging Face's model lets padding leak into the utterance (``d2v_ref.audio``).
        progress: called with the seconds of sound that are done, whenever some are.
    """

    modality = "audio"
    parts = {"feature_extractor": Wav2Vec2FeatureExtractor}

    def __init__(self, model: PreTrainedModel, feature_extractor: Wav2Vec2FeatureExtractor) -> None:
        super().__init__(model)
        if feature_extractor.padding_side != "right":
            got, expected = f'padding_side "{feature_extractor.padding_side}"', '"right"'
            raise InputError("the feature extractor does not fit the model", got=got, expected=expected)
        self.feature_extractor = feature_extractor
        config: Any = model.config
        adapters = config.num_adapter_layers if config.add_adapter else 0
        self.ratio: int = config.inputs_to_logits_ratio * config.adapter_stride**adapters  # samples of a frame
        self.sampling_rate = feature_extractor.sampling_rate

    def forward(self, values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """What the model's head says of a batch: (B, N) each -> (B, ...)."""
        return self.model(values, attention_mask=mask, return_dict=True).logits

    def frames(self, piece: Piece) -> int:
        """How many frames of the output are the piece's and no padding."""
        model: Any = self.model
        return int(model.frame_lengths(len(piece.values)))

    def run(
        self,
        inputs: Any,
        keep: Callable[[Piece, np.ndarray], Any],
        finish: Callable[[list[Any]], Any],
        *,
        batch_size: int,
        progress: Progress | None,
        window: Window | None = None,
    ) -> Any:
        """``finish(what was kept of its pieces)`` of an input, or of each of a list of them, in their order.

        ``keep(piece, output)`` is called as soon as a piece has gone through the model and makes of its output what
        has to stay in memory.  Without a window every recording is one piece.
        """
        items = as_list(inputs)
        recordings = each(items, lambda item: self._checked(Recording.of(item, self.sampling_rate)))
        order = sorted(range(len(items)), key=lambda i: recordings[i].seconds)
        pieces = (piece for i in order for piece in self._pieces(i, recordings[i], window))
        kept: list[list[Any]] = [[] for _ in items]
        results: list[Any] = [None] * len(items)
        for piece, output in self.outputs(pieces, self._collate, self.forward, batch_size=batch_size):
            kept[piece.recording].append(keep(piece, output))
            if piece.last:
                results[piece.recording] = finish(kept[piece.recording])
                kept[piece.recording] = []
            if progress is not None:
                progress((len(piece.values) - piece.left - piece.right) / self.sampling_rate)
        return results if isinstance(inputs, list | tuple) else results[0]

    def _checked(self, recording: Recording) -> Recording:
        """Refuse what is too short before the model runs; 0 is unknown."""
        if recording.seconds:
            self._check_length(round(recording.seconds * self.sampling_rate), recording)
        return recording

    def _check_length(self, samples: int, recording: Recording) -> None:
        model: Any = self.model
        if samples < model.least_samples:
            got, expected = f"{samples} samples", f"at least {model.least_samples} at {self.sampling_rate} Hz"
            raise InputError("the recording is too short", path=recording.name, got=got, expected=expected)

    def _pieces(self, index: int, recording: Recording, window: Window | None) -> Iterator[Piece]:
        """A recording's pieces, normalized one by one as in transformers' pipeline."""
        model: Any = self.model
        first = True
        for samples, left, right, last in cut(recording.blocks(), window, model.least_samples):
            if first:
                self._check_length(len(samples), recording)  # the header of a file may have told something else
            first = False
            values = self.feature_extractor(samples, return_attention_mask=False).arrays()["input_values"][0]
            yield Piece(index, values, left, right, last)

    def _collate(self, batch: list[Piece]) -> tuple[np.ndarray, np.ndarray]:
        """Values in the model's dtype and attention mask, (B, N) each."""
        longest = max(len(piece.values) for piece in batch)
        values = np.full((len(batch), longest), self.feature_extractor.padding_value, self.model.ops.dtype)
        mask = np.zeros((len(batch), longest), np.int32)
        for row, piece in enumerate(batch):
            values[row, : len(piece.values)] = piece.values
            mask[row, : len(piece.values)] = 1
        return values, mask


def cut(blocks: Iterable[np.ndarray], window: Window | None, least: int) -> Iterator[tuple[np.ndarray, int, int, bool]]:
    """Pieces of a recording that comes in blocks: (samples, left, right, whether it is the last).

    They are transformers' chunk_iter's.  But an end of less than ``least`` samples, of which no piece can be made (and
    on which chunk_iter's pipeline fails), is left with the piece before.
    """
    if window is None:
        yield np.concatenate(list(blocks)), 0, 0, True
        return
    length, left, right = window
    step = length - left - right
    held, context = np.zeros(0, np.float32), 0
    for block in blocks:
        held = np.concatenate((held, block)) if len(held) else block
        while len(held) > max(length, step + least - 1):
            yield held[:length], context, right, False
            held, context = held[step:], left
    yield held, context, 0, True


def _seconds(path: Path) -> float:
    """How long a file is, 0 if its header does not say."""
    try:
        return audio_length(path)
    except InputError:
        next(iter(stream_audio(path)))  # it may only not say; if it can't be read, this does
        return 0.0


def _mono(item: Any) -> np.ndarray:
    x = checks.anything("the recording", item)
    if x.ndim == 2 and x.shape[0] > 2:
        hint = "Channels come first, as in transformers: transpose (samples, channels), or take the mean yourself"
        raise InputError("the recording is not mono", got=x.shape, expected="(samples,) or (2, samples)", hint=hint)
    x = checks.array("the recording", x, ("channels", "samples") if x.ndim == 2 else ("samples",), "iuf")
    return x.mean(axis=0) if x.ndim == 2 else x
