"""What is said in a recording."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref.config import fits
from d2v_ref.errors import InputError
from d2v_ref.pretrained import PreTrainedModel
from d2v_ref.processing.ctc_decoding import NGram, Scorer, beam_search
from d2v_ref.processing.ctc_tokenizer import Wav2Vec2CTCTokenizer, frames_to_seconds
from d2v_ref.processing.feature_extractor import Wav2Vec2FeatureExtractor
from d2v_ref.tasks.audio import AudioPipeline, Piece, Window
from d2v_ref.tasks.base import Progress, definitions

STRETCH = 60.0  # seconds
_SEARCH = ("alpha", "beta", "hot_word_weight", "token_threshold", "beam_threshold")


class AutomaticSpeechRecognition(AudioPipeline):
    """Transcripts of a CTC model (HF AutomaticSpeechRecognitionPipeline)."""

    task = "automatic-speech-recognition"
    parts = {"feature_extractor": Wav2Vec2FeatureExtractor, "tokenizer": Wav2Vec2CTCTokenizer}

    def __init__(
        self, model: PreTrainedModel, feature_extractor: Wav2Vec2FeatureExtractor, tokenizer: Wav2Vec2CTCTokenizer
    ) -> None:
        super().__init__(model, feature_extractor)
        self.tokenizer = tokenizer
        self.blank = model.config.pad_token_id
        if tokenizer.pad_token_id != self.blank:
            hint = "Use the tokenizer that the model was trained with"
            got, expected = f"pad token {tokenizer.pad_token_id}", f"{self.blank}, the model's blank"
            raise InputError("the tokenizer does not fit the model", got=got, expected=expected, hint=hint)

    def __call__(
        self,
        inputs: Any,
        *,
        chunk_length_s: float | None = None,
        stride_length_s: float | Sequence[float] | None = None,
        return_timestamps: str | None = None,
        beam_width: int | None = None,
        scorer: Scorer | str | Path | None = None,
        hot_words: Sequence[str] = (),
        decoder_kwargs: dict[str, Any] | None = None,
        batch_size: int = 1,
        progress: Progress | None = None,
    ) -> Any:
        """The transcript of a recording.

        A frame's token is the likeliest one (greedy decoding), or, if any of ``beam_width``, ``scorer`` and
        ``hot_words`` is given, that of prefix beam search (``d2v_ref.processing.ctc_decoding.beam_search``).

        A recording that is cut into chunks is streamed: beside the weights, memory holds the samples and activations
        of ``batch_size`` chunks, and of all other frames 4 bytes each (0.7 MB an hour at 20 ms a frame), or 4 bytes for
        each token of the vocabulary with beam search (23 MB an hour with 32 tokens); then the transcript, some 300
        bytes for each token that it is decoded from.  Uncut, attention needs memory and time that grow with the square
        of the length.

        Beam search takes more than ``STRETCH`` seconds in stretches, each of which ends where a pause between words is
        likeliest, and for each of which a language model starts anew.

        Args:
            inputs: see ``AudioPipeline``.
            chunk_length_s: seconds of a chunk; a longer recording is cut into chunks that overlap, each of which is
                normalized by itself.  None or 0: nothing is cut.
            stride_length_s: seconds of a chunk on the left and on the right that only give context, one number or two;
                a sixth of the chunk if None.  With nothing on the right, every chunk lacks its last frame, so that
                time stamps come too early (as in HF).
            return_timestamps: "char" or "word" for what was said when.
            beam_width, hot_words: as in ``beam_search``.
            scorer: a language model, or the path of an ARPA file.
            decoder_kwargs: further arguments of ``beam_search``: alpha, beta, hot_word_weight, token_threshold,
                beam_threshold.

        Returns:
            {"text": str}, with "chunks": [{"text", "timestamp": (start, end) in seconds}] if ``return_timestamps``; a
            list of these for a list of inputs.

        Of frames that are padding nothing is decoded; transformers decodes them where it batches uncut recordings or a
        shorter last chunk.
        """
        if return_timestamps not in (None, "char", "word"):
            expected = 'None, "char" or "word"'
            raise InputError("return_timestamps is no kind", got=repr(return_timestamps), expected=expected)
        window = self._window(chunk_length_s, stride_length_s)
        search = self._search(beam_width, scorer, hot_words, {} if decoder_kwargs is None else decoder_kwargs)

        def keep(piece: Piece, logits: np.ndarray) -> np.ndarray:
            own = logits[: self.frames(piece)] if window is None else self._own(piece, logits)
            return own.argmax(axis=-1).astype(np.int32) if search is None else definitions.log_softmax(own)

        def finish(parts: list[np.ndarray]) -> dict[str, Any]:
            frames = np.concatenate(parts)
            path = frames if search is None else self._searched(frames, search)
            return self._transcript(path, return_timestamps)

        return self.run(inputs, keep, finish, batch_size=batch_size, progress=progress, window=window)

    def _search(self, width: Any, scorer: Any, hot_words: Any, more: Any) -> dict[str, Any] | None:
        """The arguments of beam search, None if it isn't wanted."""
        if not isinstance(more, dict):
            raise InputError("decoder_kwargs is no dictionary", got=type(more).__name__, expected=", ".join(_SEARCH))
        none = isinstance(hot_words, list | tuple | set | frozenset) and not hot_words
        if width is None and scorer is None and none:
            if more:
                hint = "Give beam_width, scorer or hot_words"
                raise InputError("decoder_kwargs has no effect without beam search", got=", ".join(more), hint=hint)
            return None
        unknown = [name for name in more if name not in _SEARCH]
        if unknown:
            raise InputError("decoder_kwargs has other arguments", got=unknown[0], expected=" or ".join(_SEARCH))
        config: Any = self.model.config
        search = {
            **more,
            "blank": self.blank,
            "tokens": self.tokenizer.tokens[: config.vocab_size],
            "word_delimiter": self.tokenizer.word_delimiter_token_id,
            "scorer": NGram.from_arpa(Path(scorer)) if isinstance(scorer, str | os.PathLike) else scorer,
            "hot_words": hot_words,
            **({} if width is None else {"beam_width": width}),
        }
        uniform = np.full((1, config.vocab_size), -math.log(config.vocab_size))
        beam_search(uniform, **search)  # what is wrong with the arguments shows before the model runs
        return search

    def _searched(self, log_probs: np.ndarray, search: dict[str, Any]) -> np.ndarray:
        """The best text's path (T,) through log_probs (T, V)."""
        pause = self.blank if search["word_delimiter"] is None else search["word_delimiter"]
        longest = round(STRETCH * self.sampling_rate / self.ratio)
        found, start = [np.zeros(0, np.int64)], 0
        while start < len(log_probs):
            end = len(log_probs)
            if end - start > longest:  # at the surest pause of the last half
                half = start + longest // 2
                end = half + int(log_probs[half : start + longest, pause].argmax()) + 1
            found.append(beam_search(log_probs[start:end], **search)[0].path)
            start = end
        return np.concatenate(found)

    def _window(self, length: Any, stride: Any) -> Window | None:
        """Chunk and strides in samples, rounded to whole frames as HF's preprocess does it."""
        if length is None or _seconds("chunk_length_s", length) == 0:
            if stride is not None:
                raise InputError("stride_length_s has no effect without chunk_length_s", got=repr(stride))
            return None
        if stride is None:
            stride = length / 6
        sides = stride if isinstance(stride, list | tuple) else (stride, stride)
        if len(sides) != 2:
            raise InputError("stride_length_s is no stride", got=repr(stride), expected="seconds, or (left, right)")
        sides = [_seconds("stride_length_s", side) for side in sides]
        samples = [round(value * self.sampling_rate / self.ratio) * self.ratio for value in (length, *sides)]
        window = Window(*samples)
        model: Any = self.model
        least = max(window.left + window.right + 1, model.least_samples)
        if window.length < least:
            got = f"{length} s with strides of {' and '.join(f'{side:.4g} s' for side in sides)}"
            expected = f"longer than its strides together, and at least {model.least_samples} samples"
            raise InputError("chunk_length_s is too short", got=got, expected=expected)
        return window

    def _own(self, piece: Piece, logits: np.ndarray) -> np.ndarray:
        """The frames of a piece that its neighbours don't have: logits (T, V) -> (T', V).

        HF's rescale_stride says which: a piece counts for as many frames as fit in its length, one more than there are
        at its end.
        """
        samples = len(piece.values)
        frames = round(samples * (1 / self.ratio))
        left, right = (round(side / samples * frames) for side in (piece.left, piece.right))
        return logits[left : min(frames - right, self.frames(piece))]

    def _transcript(self, path: np.ndarray, stamps: str | None) -> dict[str, Any]:
        """The answer, given a token for each frame (T,)."""
        if stamps is None:
            return {"text": self.tokenizer.decode(path)}
        wanted = {"output_char_offsets": stamps == "char", "output_word_offsets": stamps == "word"}
        decoded = self.tokenizer.decode(path, **wanted)
        offsets = decoded.char_offsets if stamps == "char" else decoded.word_offsets
        return {"text": decoded.text, "chunks": [self._chunk(entry, stamps) for entry in offsets]}

    def _chunk(self, entry: dict[str, Any], stamps: str) -> dict[str, Any]:
        """{"word" or "char", "start_offset", "end_offset"} in frames -> text and seconds."""
        rates = {"samples_per_frame": self.ratio, "sampling_rate": self.sampling_rate}
        start, end = (float(frames_to_seconds(entry[side], **rates)) for side in ("start_offset", "end_offset"))
        return {"text": entry[stamps], "timestamp": (start, end)}


def _seconds(name: str, value: Any) -> float:
    if not (fits(value, float) and 0 <= value < math.inf):
        raise InputError(f"{name} is no length", got=repr(value), expected="seconds, 0 or more")
    return value
