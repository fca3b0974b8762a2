"""Feature extraction against transformers 5.23: the same utterances, the same bits in the same dtype."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v_ref.errors import InputError
from d2v_ref.processing.feature_extractor import Wav2Vec2FeatureExtractor
from d2v_ref.processing.sound_files import read_audio


def hold(got: Any, want: Any, tally: Any) -> None:
    """The same names, dtypes, shapes and bits; several lengths are a list here and an array of objects there."""
    names = {name: value for name, value in vars(got).items() if value is not None}
    assert sorted(names) == sorted(want)
    tally.cases += 1
    for name, value in names.items():
        if isinstance(value, list):
            assert want[name].dtype == object
        else:
            assert want[name].dtype == value.dtype
            assert want[name].shape == value.shape
        for ours, theirs in zip(value, want[name], strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
            tally.arrays += 1


# ---- drawn calls -----------------------------------------------------------------------------------------------------

FORMS = ["float32", "float64", "float16", "longdouble", "int16", "int64", "list", "list of integers", "tuple", "steps"]


@st.composite
def utterances(draw: st.DrawFn, forms: st.SearchStrategy[str], length: st.SearchStrategy[int]) -> Any:
    n, form = draw(length), draw(forms)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale, offset = draw(st.sampled_from([0.0, 1e-4, 0.1, 1.0, 30.0])), draw(st.sampled_from([0.0, 0.3, -20.0]))
    x = random.standard_normal(n) * scale + offset
    if form == "steps":
        return np.repeat(x.astype(np.float32), 3)[:: draw(st.sampled_from([3, -3]))]
    if form in ("list", "tuple"):
        return list(x) if form == "list" else tuple(x.tolist())
    return x.astype(int).tolist() if form == "list of integers" else x.astype(form)


@st.composite
def batches(draw: st.DrawFn) -> Any:
    """One utterance, several in a list (of one form or of any), or a table of them."""
    one = draw(st.sampled_from(FORMS))
    forms = draw(st.sampled_from([st.just(one), st.sampled_from(FORMS)]))
    lengths = draw(st.sampled_from([st.integers(1, 30), st.integers(1, 3000), st.just(1), st.just(200)]))
    if draw(st.integers(0, 4)) == 0:
        return draw(utterances(forms, lengths))
    if draw(st.integers(0, 4)) == 0:
        random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        shape = (draw(st.integers(1, 4)), draw(lengths))
        return np.asarray(random.standard_normal(shape) * 5, draw(st.sampled_from(["f4", "f8", "f2", "i2"])))
    return draw(st.lists(utterances(forms, lengths), min_size=1, max_size=5))


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "padding": draw(st.sampled_from([False, True, "longest", "max_length", "do_not_pad"])),
        "max_length": draw(st.one_of(st.integers(1, 40), st.integers(1, 3500))),
        "truncation": draw(st.booleans()),
        "pad_to_multiple_of": draw(st.one_of(st.none(), st.integers(1, 70))),
        "return_attention_mask": draw(st.sampled_from([None, True, False])),
    }


extractors = st.fixed_dictionaries(
    {
        "padding_value": st.sampled_from([0.0, 0, 0.3, -2.7, 7.0]),
        "do_normalize": st.booleans(),
        "return_attention_mask": st.booleans(),
        "padding_side": st.sampled_from(["right", "right", "left"]),
    }
)


def lengths_of(batch: Any) -> list[int]:
    several = len(np.shape(batch)) == 2 if isinstance(batch, np.ndarray) else np.ndim(batch[0]) > 0
    return [len(row) for row in batch] if several else [len(batch)]


def result_or_error(extractor: Wav2Vec2FeatureExtractor, batch: Any, call: dict[str, Any]) -> Any:
    try:
        return extractor(batch, sampling_rate=16000, **call)
    except InputError as error:
        return error


@settings(max_examples=1500)
@given(batch=batches(), extractor=extractors, call=arguments())
def test_drawn_calls(batch: Any, extractor: dict[str, Any], call: dict[str, Any], tally: dict[str, Any]) -> None:
    ours, theirs = Wav2Vec2FeatureExtractor(**extractor), transformers.Wav2Vec2FeatureExtractor(**extractor)
    masked = extractor["return_attention_mask"] if call["return_attention_mask"] is None else True
    masked = masked and call["return_attention_mask"] is not False
    lengths, limit = lengths_of(batch), call["max_length"]
    if call["padding"] == "max_length" and not call["truncation"] and masked and max(lengths) > limit:
        call["truncation"] = True  # transformers can't normalize rows that stay of different lengths with their masks
    with warnings.catch_warnings():
        # float16 overflows there: in a variance, or in padding that is overwritten afterwards.
        warnings.simplefilter("ignore", RuntimeWarning)
        want = theirs(batch, sampling_rate=16000, return_tensors="np", **call)
    padded = masked and any((mask == 0).any() for mask in want["attention_mask"])
    if padded and extractor["do_normalize"] and extractor["padding_side"] == "left":
        # transformers takes the statistics of the row's first samples, padding included, and overwrites its end: the
        # end of the utterance is lost.
        for row, mask in zip(want["input_values"], want["attention_mask"], strict=True):
            assert (row[int(mask.sum()) :] == np.asarray(extractor["padding_value"], row.dtype)).all()
        with pytest.raises(InputError, match=r"padding on the left|the variance"):
            ours(batch, **call)
        tally["feature extractor, refused calls"].cases += 1
        return
    got = result_or_error(ours, batch, call)
    if isinstance(got, InputError):  # where transformers goes on and divides by infinity, or has no number
        assert got.message == "the variance of an utterance overflows in float16"
        assert any(row[0] == 0 or np.isnan(row[0]) for row in want["input_values"])
        tally["feature extractor, refused calls"].cases += 1
        return
    hold(got, want, tally["feature extractor, drawn calls"])


# ---- sound files -----------------------------------------------------------------------------------------------------

FORMATS = [("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "FLOAT"), ("flac", "PCM_16"), ("ogg", "VORBIS")]
RATES = [8000, 16000, 22050, 44100, 48000]
BOTH = [Wav2Vec2FeatureExtractor(), transformers.Wav2Vec2FeatureExtractor()]


def signals(rate: int) -> dict[str, np.ndarray]:
    """About half a second of each kind, of different lengths."""
    random, t = np.random.default_rng(rate), np.arange(rate // 2) / rate
    chirp = 0.5 * np.sin(2 * np.pi * (100 + 1500 * t) * t)
    return {
        "chirp": chirp,
        "noise": random.uniform(-0.3, 0.3, len(t) - 77),
        "clipped": np.clip(chirp * 9, -1, 1 - 2.0**-15)[: len(t) // 2],
        "offset": 0.4 + chirp / 10,
        "silence": np.zeros(len(t) // 3),
    }


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("extension", "subtype"), [*FORMATS, ("mp3", "MPEG_LAYER_III")])
def test_sound_files(
    extension: str, subtype: str, rate: int, channels: int, tmp_path: Path, tally: dict[str, Any]
) -> None:
    ours, theirs = BOTH
    waves = []
    for name, signal in signals(rate).items():
        path = tmp_path / f"{name}.{extension}"
        table = np.stack([signal, signal[::-1]][:channels], axis=1)
        soundfile.write(path, table, rate, subtype=subtype)
        waves.append(read_audio(path))
        for call in ({}, {"padding": "max_length", "max_length": 9000, "return_attention_mask": True}):
            want = theirs(waves[-1], sampling_rate=16000, return_tensors="np", **call)
            hold(ours(waves[-1], **call), want, tally["feature extractor, sound files"])
    for masked in (True, False):
        want = theirs(waves, sampling_rate=16000, padding=True, return_attention_mask=masked, return_tensors="np")
        got = ours(waves, padding=True, return_attention_mask=masked)
        hold(got, want, tally["feature extractor, sound files"])


# ---- files of settings -----------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(
    values=extractors, rate=st.integers(1, 100000), extra=st.dictionaries(st.text("xyz_", min_size=1), st.integers())
)
def test_files_of_settings(
    values: dict[str, Any],
    rate: int,
    extra: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    tally: dict[str, Any],
) -> None:
    folder, values = tmp_path_factory.mktemp("extractor"), {**values, "sampling_rate": rate, **extra}
    transformers.Wav2Vec2FeatureExtractor(**values).save_pretrained(folder / "theirs")
    ours = Wav2Vec2FeatureExtractor.from_pretrained(folder / "theirs")
    assert ours.extra == extra
    ours.save_pretrained(folder / "ours")
    theirs = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder / "ours")
    assert theirs.to_dict() == ours.to_dict()
    name = "preprocessor_config.json"
    assert json.loads((folder / "ours" / name).read_text()) == json.loads((folder / "theirs" / name).read_text())
    tally["feature extractor, files of settings"].cases += 1


def test_a_processor_of_transformers_5(tmp_path: Path) -> None:
    """It writes no preprocessor_config.json: the settings are in processor_config.json."""
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(tmp_path / "vocab.json")
    theirs = transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000, return_attention_mask=True, other=[1])
    transformers.Wav2Vec2Processor(theirs, tokenizer).save_pretrained(tmp_path / "processor")
    assert not (tmp_path / "processor" / "preprocessor_config.json").exists()
    ours = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path / "processor")
    assert ours.to_dict() == theirs.to_dict()
    ours.padding_value = 2.5
    ours.save_pretrained(tmp_path / "processor")
    again = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "processor").feature_extractor
    assert (
        again.to_dict() == ours.to_dict() == Wav2Vec2FeatureExtractor.from_pretrained(tmp_path / "processor").to_dict()
    )
