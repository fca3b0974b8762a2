"""Samples as a model's input, the same bits as from transformers' Wav2Vec2FeatureExtractor.

Shapes: B utterances, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref import checks
from d2v_ref.checkpoints import resolve, write_json
from d2v_ref.config import fits, read_config_json, spell
from d2v_ref.errors import CheckpointError, ConfigError, InputError
from d2v_ref.processing.sound_files import LOUDEST, RATES, SAMPLING_RATE, is_whole

EPSILON = 1e-7  # of the normalization


@dataclass(frozen=True)
class AudioFeatures:
    """What a model takes.

    Attributes:
        input_values: (B, N); a list of B arrays (N_i,) if the utterances were left with different lengths.
        attention_mask: int32 of the same shape, 1 for samples and 0 for padding; None if there is none.
    """

    input_values: np.ndarray | list[np.ndarray]
    attention_mask: np.ndarray | list[np.ndarray] | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that there are by name, as in ``model(**features.arrays())``.

        Raises:
            InputError: the utterances have different lengths.
        """
        found = {"input_values": self.input_values, "attention_mask": self.attention_mask}
        if isinstance(self.input_values, list):
            lengths = sorted({len(row) for row in self.input_values})
            hint = "Call the feature extractor with padding=True"
            raise InputError("utterances of different lengths are no array", got=f"{lengths} samples", hint=hint)
        return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


class Wav2Vec2FeatureExtractor:
    """Pads utterances to one length and normalizes each (HF Wav2Vec2FeatureExtractor).

    normalized x = (x - mean(x)) / sqrt(var(x) + 1e-7), var with 1/N (Baevski et al. 2020, wav2vec 2.0, sec. 2: "zero
    mean and unit variance").  One sample and an utterance of zeros become zeros; any other constant becomes what its
    mean's rounding error leaves, nearly zeros.

    Over which samples: with an attention mask over the utterance, after which the padding is ``padding_value``;
    **without one over the padded row**, as in transformers, so that an utterance's values depend on how much padding it
    gets and the padding is not ``padding_value`` in the end.

    Args:
        feature_size: 1.
        sampling_rate: of the utterances, in Hz.
        padding_value: what utterances are padded with.
        return_attention_mask: whether calls return masks, unless they say.
        do_normalize: whether to normalize.
        padding_side: "right" or "left".
        extra: settings of other programs; kept, and written back by ``save_pretrained``.

    Raises:
        ConfigError: a setting of the wrong type, or that does not serve.
    """

    def __init__(
        self,
        /,
        feature_size: int = 1,
        sampling_rate: int = SAMPLING_RATE,
        padding_value: float = 0.0,
        return_attention_mask: bool = False,
        do_normalize: bool = True,
        *,
        padding_side: str = "right",
        **extra: Any,
    ) -> None:
        self.feature_size, self.sampling_rate, self.padding_value = feature_size, sampling_rate, padding_value
        self.return_attention_mask, self.do_normalize = return_attention_mask, do_normalize
        self.padding_side, self.extra = padding_side, extra
        for name, kind in _SETTINGS.items():
            if not fits(getattr(self, name), kind):
                raise ConfigError(f"{name} has the wrong type", got=repr(getattr(self, name)), expected=spell(kind))
        kind = extra.pop("feature_extractor_type", _TYPE)
        if kind != _TYPE:
            hint = "The folder holds a model that does not take sound as samples"
            raise ConfigError("feature_extractor_type is another one's", got=repr(kind), expected=_TYPE, hint=hint)
        for name, serves, expected in (
            ("feature_size", feature_size == 1, "1"),
            ("sampling_rate", sampling_rate in RATES, f"{RATES[0]} ... {RATES[-1]} Hz"),
            ("padding_value", abs(padding_value) < LOUDEST, "a finite number"),
            ("padding_side", padding_side in ("right", "left"), "right or left"),
        ):
            if not serves:
                raise ConfigError(f"{name} does not serve", got=getattr(self, name), expected=expected)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | None = None,
    ) -> Wav2Vec2FeatureExtractor:
        """The feature extractor of a checkpoint: a folder, a shipped one's name, or a hub id.

        Read from "feature_extractor" in processor_config.json, where transformers 5 puts the parts of a processor, or
        else from preprocessor_config.json.

        Raises:
            CheckpointError: none of the two.
            ConfigError: a damaged file, or settings that don't serve.
            UnavailableError: not on this machine.
        """
        folder = resolve(
            name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            weights=False,
        )
        path, nested = folder / _PROCESSOR, _nested(folder)
        if nested is None:
            path = folder / _PREPROCESSOR
            if not path.is_file():
                hint = "Copy the file of the model that this one was made from, or save a Wav2Vec2FeatureExtractor()"
                message = "the folder holds no feature extractor"
                raise CheckpointError(message, path=folder, expected=_PREPROCESSOR, hint=hint)
        try:
            return cls(**(read_config_json(path) if nested is None else nested))
        except ConfigError as error:
            error.path = path
            raise

    def save_pretrained(self, folder: str | Path) -> None:
        """Write preprocessor_config.json, which transformers and this package load back.

        A processor_config.json with a feature extractor in it, which goes before that file, is brought up to date.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"can't be made a folder: {error.strerror}", path=folder) from None
        shadowed = _nested(folder) is not None
        write_json(folder / _PREPROCESSOR, self.to_dict())
        if shadowed:
            processor = read_config_json(folder / _PROCESSOR)
            write_json(folder / _PROCESSOR, {**processor, "feature_extractor": self.to_dict()})

    def to_dict(self) -> dict[str, Any]:
        """All settings, as in preprocessor_config.json."""
        return {**self.extra, **{name: getattr(self, name) for name in _SETTINGS}, "feature_extractor_type": _TYPE}

    def __call__(
        self,
        raw_speech: Any,
        *,
        sampling_rate: int | None = None,
        padding: bool | str = False,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
    ) -> AudioFeatures:
        """Utterances as a model's input, bit for bit as transformers 5.23 gives it.

        The dtype of ``input_values`` follows that of the samples, as there.  Samples in float64 (lists of floats too)
        are rounded to float32 first.  float32 and float16 stay what they are and are computed in.  Integers stay
        integers if they are not normalized, with the padding cast to them, and are normalized in float64.  Rows of
        one length but several dtypes first get NumPy's common dtype, float32 if that is float64.

        Args:
            raw_speech: one utterance (N,) or several, mono: an array, a list of numbers, a list of those, or an array
                (B, N).  A table of stereo frames (N, 2) can't be told from N utterances.
            sampling_rate: of the utterances; None says that it is the extractor's.
            padding: False or "do_not_pad"; True or "longest", to the longest utterance; "max_length", to
                ``max_length``, which longer utterances exceed unless they are truncated.
            max_length: samples to truncate or pad to.
            truncation: cut longer utterances to ``max_length``.
            pad_to_multiple_of: rounds up the length that utterances are padded or truncated to.
            return_attention_mask: whether to return a mask; None leaves it to the extractor's setting.

        Raises:
            InputError: another sampling rate; an utterance that is empty, not mono, or no finite numbers, or whose
                variance its dtype can't hold; arguments that don't serve.  Also padding on the left with mask and
                normalization, where transformers takes the statistics of the wrong samples and overwrites the
                utterance's end.
        """
        _check_padding(padding)
        _check_switch("truncation", truncation)
        _check_switch("return_attention_mask", return_attention_mask)
        _check_count("max_length", max_length, needed=truncation or padding == "max_length")
        _check_count("pad_to_multiple_of", pad_to_multiple_of)
        known = isinstance(sampling_rate, int | float | np.number) and sampling_rate == self.sampling_rate
        if not (known or sampling_rate is None):
            hint = f"Resample it: read_audio(path, {self.sampling_rate}) does so"
            raise InputError("wrong sampling rate", got=repr(sampling_rate), expected=self.sampling_rate, hint=hint)
        rows = _utterances(raw_speech)
        limit = None if max_length is None else _rounded(max_length, pad_to_multiple_of)
        if truncation:
            rows = [row[:limit] for row in rows]
        lengths = [len(row) for row in rows]
        masks = [np.ones(length, np.int32) for length in lengths]
        target = None
        if padding not in (False, "do_not_pad"):
            target = limit if padding == "max_length" else _rounded(max(lengths), pad_to_multiple_of)
        if target is not None:
            rows = [self._padded(row, target, self.padding_value) for row in rows]
            masks = [self._padded(mask, target, 0) for mask in masks]
        masked = self.return_attention_mask if return_attention_mask is None else return_attention_mask
        values = _stacked(rows)
        if isinstance(values, np.ndarray) and values.dtype == np.float64:  # the common dtype of several
            values = values.astype(np.float32)
        if self.do_normalize:
            counts = lengths if masked else [len(row) for row in rows]
            values = _stacked([self._normalized(row, count) for row, count in zip(values, counts, strict=True)])
        elif isinstance(values, list):
            values = [row.copy() for row in values]  # not the caller's own memory
        return AudioFeatures(values, _stacked(masks) if masked else None)

    def _padded(self, row: np.ndarray, length: int, value: float) -> np.ndarray:
        missing = max(0, length - len(row))
        bounds = np.iinfo(row.dtype) if row.dtype.kind in "iu" else np.finfo(row.dtype)
        if missing and not float(bounds.min) <= value <= float(bounds.max):
            raise InputError("padding_value does not fit the samples", got=value, expected=f"a value of {row.dtype}")
        return np.pad(row, (0, missing) if self.padding_side == "right" else (missing, 0), constant_values=value)

    def _normalized(self, row: np.ndarray, count: int) -> np.ndarray:
        """A row with the statistics of its first ``count`` samples; the rest is padding."""
        if count < len(row) and self.padding_side == "left":
            message = "padding on the left can't be normalized with an attention mask"
            hint = "Pad on the right, or normalize first and pad with another extractor (do_normalize=False)"
            raise InputError(message, expected='padding_side "right"', hint=hint)
        utterance = row[:count]
        with np.errstate(over="ignore", invalid="ignore"):
            mean, variance = utterance.mean(), utterance.var()
        if not np.isfinite(variance):
            hint = "Scale the samples to -1 ... 1, or pass them in float32"
            message = f"the variance of an utterance overflows in {row.dtype}"
            raise InputError(message, got=f"samples up to {np.abs(utterance).max()}", hint=hint)
        normalized = (utterance - mean) / np.sqrt(variance + EPSILON)
        return np.pad(normalized, (0, len(row) - count), constant_values=self.padding_value)


_TYPE = "Wav2Vec2FeatureExtractor"
_PROCESSOR, _PREPROCESSOR = "processor_config.json", "preprocessor_config.json"
_SETTINGS = {
    "feature_size": int,
    "sampling_rate": int,
    "padding_value": float,
    "return_attention_mask": bool,
    "do_normalize": bool,
    "padding_side": str,
}


def _nested(folder: Path) -> dict[str, Any] | None:
    """The feature extractor in a processor_config.json, if there is one."""
    path = folder / _PROCESSOR
    values = read_config_json(path).get("feature_extractor") if path.is_file() else None
    if values is not None and not isinstance(values, dict):
        got = type(values).__name__
        raise ConfigError("its feature_extractor is no configuration", path=path, got=got, expected="a JSON object")
    return values


def _utterances(raw_speech: Any) -> list[np.ndarray]:
    """Checked utterances of any dtype but float64."""
    if isinstance(raw_speech, list | tuple):
        several = len(raw_speech) == 0 or isinstance(raw_speech[0], list | tuple) or np.ndim(raw_speech[0]) > 0
    else:
        raw_speech = checks.anything("raw_speech", raw_speech)
        several = raw_speech.ndim == 2
    rows = list(raw_speech) if several else [raw_speech]
    if not rows:
        raise InputError("there is no utterance", got="nothing", expected="at least one")
    return [_checked(row, "the utterance" if len(rows) == 1 else f"utterance {i}") for i, row in enumerate(rows)]


def _checked(row: Any, name: str) -> np.ndarray:
    x = checks.anything(name, row)
    if x.dtype.kind in "US":
        hint = "To read a sound file: read_audio(path)"
        raise InputError(f"{name} is text", got=repr(x.flat[0] if x.size else ""), expected="samples", hint=hint)
    if x.ndim == 2:
        hint = "Take the mean of the channels, or read the file with read_audio"
        raise InputError(f"{name} is not mono", got=x.shape, expected="(samples,)", hint=hint)
    x = checks.array(name, x, ("samples",), "iuf")
    return checks.array(name, x, ("samples",), "f", np.dtype(np.float32)) if x.dtype == np.float64 else x


def _check_padding(padding: Any) -> None:
    if not isinstance(padding, bool | str) or padding not in (False, True, "longest", "max_length", "do_not_pad"):
        expected = 'False, True, "longest", "max_length" or "do_not_pad"'
        raise InputError("padding is no strategy", got=repr(padding), expected=expected)


def _check_switch(name: str, value: Any) -> None:
    if not isinstance(value, bool | np.bool | None):
        raise InputError(f"{name} does not serve", got=repr(value), expected="True or False")


def _check_count(name: str, value: Any, needed: bool = False) -> None:
    """A count of samples, 1 or more; None if it is not needed."""
    if (value is None and needed) or (value is not None and not (is_whole(value) and value > 0)):
        hint = 'truncation=True and padding="max_length" need it' if needed else None
        expected = "a whole number of samples, 1 or more"
        raise InputError(f"{name} does not serve", got=repr(value), expected=expected, hint=hint)


def _rounded(length: int, multiple: int | None) -> int:
    return length if multiple is None else -(-length // multiple) * multiple


def _stacked(rows: Sequence[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """(B, N) if the rows have one length."""
    return np.asarray(rows) if len({len(row) for row in rows}) == 1 else list(rows)
