"""Sound files to samples and samples to input_values: properties, and all that can be wrong with either."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v_ref.errors import CheckpointError, ConfigError, InputError, UnavailableError
from d2v_ref.processing import sound_files
from d2v_ref.processing.feature_extractor import AudioFeatures, Wav2Vec2FeatureExtractor
from d2v_ref.processing.sound_files import audio_length, read_audio, stream_audio

RATE = 16000
KINDS = [("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("ogg", "OPUS"), ("mp3", "MPEG_LAYER_III")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a test writes a file over the one of its last example."""
    return tmp_path_factory.mktemp("sounds")


def noise(samples: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(samples).uniform(-0.5, 0.5, (samples, channels))


def save(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str | None = None, **options: Any) -> Path:
    form = path.suffix[1:].upper()
    with soundfile.SoundFile(path, "w", rate, samples.shape[1], subtype, format=form, **options) as file:
        file.write(samples)
    return path


def encoded(kind: tuple[str, str], samples: np.ndarray, folder: Path) -> bytes:
    return save(folder / f"encoded.{kind[0]}", samples, subtype=kind[1]).read_bytes()


def header(**changes: int) -> bytes:
    """A wav file of 100 samples, with other values in its header."""
    fields = {"riff": 236, "fmt": 16, "format": 1, "channels": 1, "rate": RATE, "second": 2 * RATE, "frame": 2}
    fields = {**fields, "bits": 16, "data": 200, **changes}
    start, values = (fields.pop(name) for name in ("riff", "data"))
    size = fields.pop("fmt")
    chunk = struct.pack("<HHIIHH", *fields.values())
    return b"RIFF%bWAVEfmt %b%bdata%b" % (
        *(struct.pack("<I", n) for n in (start, size)),
        chunk,
        struct.pack("<I", values),
    ) + bytes(range(200))


# ---- samples ---------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(data=st.data(), width=st.sampled_from([2, 3, 4]), channels=st.integers(1, 4), rate=st.integers(1, 200000))
def test_pcm_is_read_exactly(folder: Path, data: st.DataObject, width: int, channels: int, rate: int) -> None:
    """The mean of the channels over full scale, rounded to float32 once.  Python's wave module writes the file."""
    limit = 2 ** (8 * width - 1)
    row = st.lists(st.integers(-limit, limit - 1), min_size=channels, max_size=channels)
    frames = data.draw(st.lists(row, min_size=1, max_size=40))
    with wave.open(str(folder / "pcm.wav"), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(b"".join(x.to_bytes(width, "little", signed=True) for frame in frames for x in frame))
    got = read_audio(folder / "pcm.wav", rate)
    assert got.dtype == np.float32
    if width < 4:
        np.testing.assert_array_equal(got, np.array([sum(frame) / channels / limit for frame in frames], np.float32))
    else:  # each sample is rounded too
        want = np.array([sum(frame) / channels / limit for frame in frames])
        np.testing.assert_allclose(got, want, rtol=0, atol=2.0**-24)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), extension=st.sampled_from(["wav", "flac"]))
def test_lossless_formats_agree(folder: Path, seed: int, extension: str) -> None:
    values = np.random.default_rng(seed).integers(-(2**23), 2**23, (500, 3))
    soundfile.write(folder / f"x.{extension}", values.astype(np.int32) << 8, RATE, subtype="PCM_24")
    np.testing.assert_array_equal(read_audio(folder / f"x.{extension}"), (values.sum(1) / 3 / 2**23).astype(np.float32))


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_floating_point_samples_are_taken_as_they_are(tmp_path: Path, subtype: str) -> None:
    samples = noise(300) * 40
    got = read_audio(save(tmp_path / "x.wav", samples, subtype=subtype))
    np.testing.assert_array_equal(got, samples[:, 0].astype(np.float32))


@pytest.mark.parametrize("kind", KINDS[2:])
def test_lossy_formats_come_near(tmp_path: Path, kind: tuple[str, str]) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)
    got = read_audio(save(tmp_path / f"x.{kind[0]}", tone[:, None], subtype=kind[1]))
    assert got.shape == tone.shape
    assert np.abs(got - tone)[2000:-2000].max() < 0.05


@pytest.mark.parametrize("target", [8000, RATE, 22050])
@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_a_resampled_sine_is_the_sine_at_the_other_rate(tmp_path: Path, rate: int, target: int) -> None:
    """Frequency, amplitude and phase: to 20 bits (of 0.7), and near the band limit but for the filter's roll-off."""
    for part, bound in ((0.01, 2e-6), (0.3, 2e-6), (0.8, 1e-3)):
        frequency = int(part * min(rate, target) / 2)
        tone = 0.7 * np.sin(2 * np.pi * frequency * np.arange(rate) / rate)
        got = read_audio(save(tmp_path / "x.wav", tone[:, None], rate, "PCM_24"), target)
        assert len(got) == target  # one second
        want = 0.7 * np.sin(2 * np.pi * frequency * np.arange(target) / target)
        middle = slice(target // 10, -target // 10)
        assert np.abs(got - want)[middle].max() < bound
        assert np.argmax(np.abs(np.fft.rfft(got))) == frequency


def test_what_the_lower_rate_cannot_hold_is_removed(tmp_path: Path) -> None:
    tone = 0.7 * np.sin(2 * np.pi * 9500 * np.arange(48000) / 48000)
    got = read_audio(save(tmp_path / "x.wav", tone[:, None], 48000, "PCM_24"))
    assert np.abs(got)[2000:-2000].max() < 1e-5


@given(frames=st.integers(10, 3000), rate=st.integers(500, 200000), target=st.integers(500, 200000))
def test_length_of_the_result(folder: Path, frames: int, rate: int, target: int) -> None:
    path = save(folder / "length.wav", noise(frames), rate)
    assert audio_length(path) == frames / rate
    if frames * target / rate > 1:
        assert abs(len(read_audio(path, target)) - frames * target / rate) <= 1


# ---- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [RATE, 11025])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_any_size_are_the_whole(
    tmp_path: Path, kind: tuple[str, str], target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / f"x.{kind[0]}", noise(12 * RATE + 345, 2), subtype=kind[1])
    blocks = list(stream_audio(path, target))
    assert len(blocks) >= 3
    assert all(0 < len(block) <= 6 * target for block in blocks)
    whole = read_audio(path, target)
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    for largest in (2 * 577, 2 * 4096, 2 * 100000):
        monkeypatch.setattr(sound_files, "_LARGEST", largest)
        monkeypatch.setattr(sound_files, "_SECONDS", 100)
        np.testing.assert_array_equal(read_audio(path, target), whole)


def test_blocks_that_are_not_taken_leave_nothing_open(tmp_path: Path) -> None:
    """A file that stays open would be a ResourceWarning, which is an error here."""
    path = save(tmp_path / "x.wav", noise(20 * RATE))
    blocks = stream_audio(path)
    next(blocks)
    del blocks
    path.unlink()


MEASURE = """
import re, sys
from d2v_ref.processing.sound_files import read_audio, stream_audio

def peak():  # of this process; getrusage would count its parent's as well
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) * 1024

read_audio(sys.argv[2])  # what the libraries take
before = peak()
total = sum(len(block) for block in stream_audio(sys.argv[1]))
print(total, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
def test_a_long_file_needs_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    """20 minutes of stereo: 210 MB of file, 77 MB of samples at 16 kHz."""
    short = save(tmp_path / "short.wav", noise(30 * 44100, 2), 44100)
    seconds, data = 1200, 1200 * 44100 * 4
    with (tmp_path / "long.wav").open("wb") as file:
        file.write(short.read_bytes()[:40] + struct.pack("<I", data))
        file.truncate(44 + data)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "long.wav"), str(short)]
    done = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert int(done[0]) == seconds * RATE
    assert int(done[1]) < 8 << 20


# ---- files that are not whole ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_off_anywhere(folder: Path, kind: tuple[str, str]) -> None:
    raw, path = encoded(kind, noise(40000), folder), folder / f"cut.{kind[0]}"
    pages = [0, *(page.start() for page in re.finditer(b"OggS", raw))]  # of ogg files

    @settings(max_examples=150)
    @given(st.one_of(st.integers(0, len(raw) - 1), st.integers(len(raw) - 30, len(raw) - 1), st.sampled_from(pages)))
    def check(length: int) -> None:
        path.write_bytes(raw[:length])
        with pytest.raises(InputError, match=str(path)):
            read_audio(path)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_an_error_or_other_sound(folder: Path, kind: tuple[str, str]) -> None:
    raw, path = encoded(kind, noise(9000), folder), folder / f"damaged.{kind[0]}"

    @settings(max_examples=150)
    @given(st.integers(0, len(raw) - 1), st.one_of(st.integers(0, 60), st.just(0)), st.binary(min_size=1, max_size=8))
    def check(anywhere: int, early: int, patch: bytes) -> None:
        at = early or anywhere
        path.write_bytes((raw[:at] + patch + raw[at + len(patch) :])[: len(raw)])
        try:
            samples = read_audio(path)
        except InputError:
            return
        assert samples.dtype == np.float32
        assert len(samples) > 0
        assert np.isfinite(samples).all()

    check()


def test_an_mp3_that_does_not_say_how_long_it_is(tmp_path: Path) -> None:
    """libsndfile guesses the length from the first frame's bit rate, and reads no further."""
    samples = np.concatenate((noise(RATE), 1e-3 * noise(10 * RATE)))
    whole = save(tmp_path / "x.mp3", samples, subtype="MPEG_LAYER_III", compression_level=0.5, bitrate_mode="VARIABLE")
    assert len(read_audio(whole)) == len(samples)
    raw = whole.read_bytes()
    second = raw.index(raw[:2], raw.index(b"Xing"))
    whole.write_bytes(raw[second:])
    if soundfile.info(whole).frames < len(samples):
        with pytest.raises(InputError, match="not read to its end"):
            read_audio(whole)
    else:
        assert abs(len(read_audio(whole)) - len(samples)) < 3000


def test_an_mp3_may_be_shorter_than_an_estimate(tmp_path: Path) -> None:
    samples = noise(5 * RATE)
    path = save(tmp_path / "x.mp3", samples, subtype="MPEG_LAYER_III", compression_level=0.5, bitrate_mode="CONSTANT")
    raw = path.read_bytes()
    path.write_bytes(raw[raw.index(raw[:2], raw.index(b"Info")) : -50])
    got = len(read_audio(path))
    assert abs(got - len(samples)) < 3000  # the encoder's delay and padding are in it
    assert got < audio_length(path) * RATE


def test_tags_around_an_mp3(tmp_path: Path) -> None:
    path = save(tmp_path / "x.mp3", noise(3 * RATE), subtype="MPEG_LAYER_III")
    want, raw = read_audio(path), path.read_bytes()
    path.write_bytes(b"ID3\x03\x00\x00\x00\x00\x08\x00" + bytes(1024) + raw + b"TAG" + bytes(125))
    np.testing.assert_array_equal(read_audio(path), want)
    path.write_bytes(b"ID3\x03\x00\x00\x00\x00\x08\x00" + bytes(1024) + raw[: len(raw) // 2])
    with pytest.raises(InputError, match="cut off or damaged"):
        read_audio(path)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_lengths_of_programs_that_write_to_a_pipe(tmp_path: Path, length: int) -> None:
    (tmp_path / "x.wav").write_bytes(header(data=length, riff=length))
    assert len(read_audio(tmp_path / "x.wav")) == 100


def test_a_flac_of_unknown_length(tmp_path: Path) -> None:
    raw = bytearray(encoded(("flac", "PCM_16"), noise(5000), tmp_path))
    raw[21:26] = bytes([raw[21] & 0xF0, 0, 0, 0, 0])
    (tmp_path / "x.flac").write_bytes(raw)
    assert len(read_audio(tmp_path / "x.flac")) == 5000
    with pytest.raises(InputError, match="does not say how long it is"):
        audio_length(tmp_path / "x.flac")


@pytest.mark.parametrize("options", [{"format": "RF64"}, {"format": "WAV", "endian": "BIG"}, {"format": "WAVEX"}])
def test_other_kinds_of_wav(tmp_path: Path, options: dict[str, str]) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, noise(500), RATE, subtype="PCM_16", **options)
    assert len(read_audio(path)) == 500
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="is cut off"):
        read_audio(path)


def test_other_chunks_of_a_wav(tmp_path: Path) -> None:
    """Before the samples, one of odd length, which a byte fills up; after them, one that is cut off."""
    raw = header(riff=2**20)
    odd, tags = b"odd " + struct.pack("<I", 3) + b"abc\0", b"LIST" + struct.pack("<I", 2**20) + b"INFO"
    for path, length in ((tmp_path / "whole.wav", 200), (tmp_path / "cut.wav", 198)):
        path.write_bytes(raw[:36] + odd + raw[36 : 44 + length] + (tags if length == 200 else b""))
    assert len(read_audio(tmp_path / "whole.wav")) == 100
    with pytest.raises(InputError, match="is cut off"):
        read_audio(tmp_path / "cut.wav")


# ---- what is no sound file -------------------------------------------------------------------------------------------


def floats(*values: float) -> Callable[[Path], Any]:
    return lambda path: soundfile.write(path, np.array(values, np.float64), RATE, format="WAV", subtype="DOUBLE")


WRONG: list[tuple[str, Callable[[Path], Any], str]] = [
    ("nothing there", lambda path: None, "there is no such file"),
    ("a folder", lambda path: path.mkdir(), "is a folder"),
    ("a pipe", lambda path: os.mkfifo(path), "is no file"),
    ("empty", lambda path: path.touch(), "is empty"),
    ("text", lambda path: path.write_text("hello " * 99), "is not a sound file .*wav, flac, ogg.*ffmpeg"),
    ("one byte", lambda path: path.write_bytes(b"R"), "is not a sound file"),
    ("zeros", lambda path: path.write_bytes(bytes(5000)), "is not a sound file"),
    ("m4a", lambda path: path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(500)), "is not a sound file"),
    ("aiff", lambda path: soundfile.write(path, noise(50), RATE, format="AIFF"), "got AIFF; expected wav, flac, ogg"),
    ("au", lambda path: soundfile.write(path, noise(50), RATE, format="AU"), "got AU; expected wav, flac, ogg"),
    ("no frames", lambda path: soundfile.write(path, noise(0), RATE, format="WAV"), "holds no sound"),
    ("no frames in ogg", lambda path: soundfile.write(path, noise(0), RATE, format="OGG"), "holds no sound"),
    ("no channels", lambda path: path.write_bytes(header(channels=0)), "Channel count is zero"),
    ("many channels", lambda path: path.write_bytes(header(channels=5000)), "is not a sound file"),
    ("no rate", lambda path: path.write_bytes(header(rate=0)), "is not a sound file"),
    ("absurd rate", lambda path: path.write_bytes(header(rate=2**31 - 1)), "its sampling rate does not serve"),
    ("unknown coding", lambda path: path.write_bytes(header(format=0x4242)), "is not a sound file"),
    ("long chunk", lambda path: path.write_bytes(header(fmt=2**31)), "is not a sound file"),
    ("no length", lambda path: path.write_bytes(header(data=0)), "holds no sound"),
    ("short", lambda path: path.write_bytes(header(data=202)), "is cut off .*got 244 bytes; expected 246"),
    ("NaN", floats(0, 0.5, float("nan")), "has samples that are no sound .*at 0.0001 s"),
    ("infinity", floats(float("-inf")), "has samples that are no sound"),
    ("infinite in float32", floats(0.5, 1e300), "has samples that are no sound"),
    ("absurdly loud", floats(0.5, 1e30), "has samples that are no sound"),
]


@pytest.mark.parametrize("name", ["file.wav", "file.mp3", "file.raw", "file"])
@pytest.mark.parametrize(("make", "message"), [wrong[1:] for wrong in WRONG], ids=[wrong[0] for wrong in WRONG])
def test_what_is_no_sound_file(tmp_path: Path, name: str, make: Callable[[Path], Any], message: str) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        read_audio(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", [None, 3, b"x.wav", ["x.wav"], noise(5)])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(InputError, match="no path"):
        read_audio(path)


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000, "https://example.org/x.wav"])
def test_paths_that_lead_nowhere(path: str) -> None:
    with pytest.raises(InputError):
        read_audio(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    save(tmp_path / "x.wav", noise(10)).chmod(0)
    with pytest.raises(InputError, match="can't be read"):
        read_audio(tmp_path / "x.wav")


@pytest.mark.parametrize("rate", [0, -1, 2**40, 16000.0, "16000", None, True, float("nan"), [16000]])
def test_sampling_rates_that_do_not_serve(tmp_path: Path, rate: Any) -> None:
    path = save(tmp_path / "x.wav", noise(10))
    with pytest.raises(InputError, match="sampling_rate does not serve"):
        read_audio(path, rate)


def test_too_short_for_a_sample(tmp_path: Path) -> None:
    path = save(tmp_path / "x.wav", noise(1), 48000)
    assert len(read_audio(path, 48000)) == 1
    with pytest.raises(InputError, match="too short"):
        read_audio(path, 100)


@pytest.mark.parametrize("reason", [ImportError("No module named 'it'"), OSError("sndfile library not found")])
@pytest.mark.parametrize("package", ["soundfile", "soxr"])
def test_packages_that_are_not_there(
    tmp_path: Path, package: str, reason: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, found = save(tmp_path / "x.wav", noise(100), 8000), sound_files.import_module

    def without(name: str) -> Any:
        if name == package:
            raise reason
        return found(name)

    monkeypatch.setattr(sound_files, "import_module", without)
    with pytest.raises(UnavailableError, match=f"needs the {package} package.*pip install {package}") as caught:
        read_audio(path)
    assert caught.value.exit_code == 3
    if package == "soxr":
        assert len(read_audio(path, 8000)) == 100


# ---- features --------------------------------------------------------------------------------------------------------


def drawn(lengths: list[int], seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.normal(random.uniform(-3, 3), random.uniform(0.1, 9), n).astype(np.float32) for n in lengths]


batches = st.builds(drawn, st.lists(st.integers(50, 900), min_size=1, max_size=4), st.integers(0, 2**32 - 1))


@given(batch=batches, multiple=st.integers(1, 200), value=st.sampled_from([0.0, -1.5]))
def test_features_with_a_mask(batch: list[np.ndarray], multiple: int, value: float) -> None:
    """Zero mean and unit variance, whatever padding and neighbours an utterance has; and then padding."""
    extractor = Wav2Vec2FeatureExtractor(padding_value=value, return_attention_mask=True)
    features = extractor(batch, padding=True, pad_to_multiple_of=multiple)
    values, masks = (np.asarray(x) for x in (features.input_values, features.attention_mask))
    longest = max(map(len, batch))
    assert values.shape == masks.shape == (len(batch), longest + -longest % multiple)
    assert (values.dtype, masks.dtype) == (np.float32, np.int32)
    for row, mask, utterance in zip(values, masks, batch, strict=True):
        n = len(utterance)
        assert mask.tolist() == [1] * n + [0] * (len(row) - n)
        assert (row[n:] == value).all()
        np.testing.assert_array_equal(row[:n], extractor(utterance).input_values[0])
        assert abs(row[:n].mean(dtype=np.float64)) < 1e-4
        assert abs(row[:n].std(dtype=np.float64) - 1) < 1e-4
        assert np.corrcoef(row[:n], utterance)[0, 1] > 0.9999


@given(batch=batches, side=st.sampled_from(["right", "left"]))
def test_features_without_a_mask_count_the_padding(batch: list[np.ndarray], side: str) -> None:
    """As in transformers: the row as it is padded has mean zero and variance one, so that padding is not zero."""
    features = Wav2Vec2FeatureExtractor(padding_side=side)(batch, padding="max_length", max_length=1000)
    assert features.attention_mask is None
    for row, utterance in zip(features.input_values, batch, strict=True):
        padding = row[len(utterance) :] if side == "right" else row[: 1000 - len(utterance)]
        assert len(set(padding.tolist())) == 1
        assert padding[0] != 0
        assert abs(row.mean(dtype=np.float64)) < 1e-4
        assert abs(row.std(dtype=np.float64) - 1) < 1e-4


@given(batch=batches, limit=st.integers(1, 1000), side=st.sampled_from(["right", "left"]))
def test_features_as_they_are(batch: list[np.ndarray], limit: int, side: str) -> None:
    """Without normalization: the samples, cut and padded."""
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, padding_side=side, padding_value=9.0)
    features = extractor(batch, padding=True, max_length=limit, truncation=True, return_attention_mask=True)
    masks = features.arrays()["attention_mask"]
    for row, mask, utterance in zip(features.input_values, masks, batch, strict=True):
        assert row[mask == 1].tolist() == utterance[:limit].tolist()
        assert (row[mask == 0] == 9).all()
        assert len(row) == min(limit, max(map(len, batch)))
        assert (np.diff(mask) <= 0).all() if side == "right" else (np.diff(mask) >= 0).all()


@given(batch=batches, scale=st.floats(0.5, 100), shift=st.floats(-5, 5))
def test_loudness_and_offset_do_not_matter(batch: list[np.ndarray], scale: float, shift: float) -> None:
    extractor = Wav2Vec2FeatureExtractor()
    for utterance in batch:
        other = extractor(utterance * np.float32(scale) + np.float32(shift)).input_values[0]
        np.testing.assert_allclose(other, extractor(utterance).input_values[0], atol=2e-3)


@pytest.mark.parametrize("samples", [[0.25], np.zeros(1000), np.zeros(1), np.full(1024, 0.5, np.float32), [7] * 5])
def test_no_variance(samples: Any) -> None:
    """One sample, silence, and a constant whose mean is exact: zeros, and no warning."""
    assert not np.any(Wav2Vec2FeatureExtractor()(samples).input_values)


@pytest.mark.parametrize(
    ("dtype", "normalized", "plain"),
    [
        ("float64", "float32", "float32"),
        ("float32", "float32", "float32"),
        ("float16", "float16", "float16"),
        ("int16", "float64", "int16"),
        ("int64", "float64", "int64"),
    ],
)
def test_dtypes(dtype: str, normalized: str, plain: str) -> None:
    samples = np.arange(10).astype(dtype)
    for normalize, want in ((True, normalized), (False, plain)):
        values = Wav2Vec2FeatureExtractor(do_normalize=normalize)(samples).input_values
        assert np.asarray(values).dtype == want
        assert np.asarray(values).shape == (1, 10)


@given(seed=st.integers(0, 2**32 - 1))
def test_every_way_to_pass_the_same_numbers(seed: int) -> None:
    table, extractor = np.stack(drawn([60, 60], seed)), Wav2Vec2FeatureExtractor()
    want = extractor(table).input_values
    for same in (list(table), tuple(table), table.tolist(), [row.tolist() for row in table], table.astype(np.float64)):
        np.testing.assert_array_equal(extractor(same).input_values, want)
    for single in (table[0], [table[0]], table[0].tolist(), tuple(table[0].tolist()), list(table[0]), table[:1]):
        np.testing.assert_array_equal(extractor(single).input_values, want[:1])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("lengths", [[5], [5, 5], [5, 7]])
def test_the_caller_keeps_his_samples(normalize: bool, lengths: list[int]) -> None:
    batch = drawn(lengths, 1)
    before = [row.copy() for row in batch]
    for row in Wav2Vec2FeatureExtractor(do_normalize=normalize)(batch).input_values:
        row[:] = 0
    for kept, row in zip(before, batch, strict=True):
        np.testing.assert_array_equal(kept, row)


def test_arrays() -> None:
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    assert list(extractor([0.1, 0.2]).arrays()) == ["input_values", "attention_mask"]
    assert list(extractor([0.1, 0.2], return_attention_mask=False).arrays()) == ["input_values"]
    ragged = extractor([[0.1, 0.2], [0.3]])
    assert isinstance(ragged.input_values, list)
    assert [len(mask) for mask in ragged.attention_mask or ()] == [2, 1]
    with pytest.raises(InputError, match=r"different lengths.*\[1, 2\].*padding=True"):
        ragged.arrays()
    assert AudioFeatures(np.ones((1, 2))).arrays().keys() == {"input_values"}


X = [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("speech", "message"),
    [
        ([], "no utterance"),
        (np.zeros((0, 5)), "no utterance"),
        (np.zeros((2, 0)), "utterance 0 is empty"),
        (np.zeros(0), "the utterance is empty"),
        ([[]], "the utterance is empty"),
        ([X, []], "utterance 1 is empty"),
        ([X, np.zeros((2, 9))], r"utterance 1 is not mono \(got \(2, 9\).*mean of the channels"),
        ([np.zeros((9, 2))], "the utterance is not mono"),
        (np.zeros((2, 3, 4)), "wrong shape"),
        ([[[X]]], "wrong shape"),
        (0.5, "wrong shape"),
        (np.float32(0.5), "wrong shape"),
        ([np.float32(0.5), X], "not an array"),
        ([X, 0.5], "utterance 1 has the wrong shape"),
        ([0.1, float("nan")], "the utterance is not finite"),
        ([X, np.array([np.inf], np.float32)], "utterance 1 is not finite"),
        ([X, np.array([np.inf], np.float16)], "utterance 1 is not finite"),
        ([1e300], "not finite.*float32"),
        ("speech.wav", "is text .*read_audio"),
        (b"speech.wav", "is text .*read_audio"),
        (["a.wav", "b.wav"], "is text .*read_audio"),
        ([["a"], X], "utterance 0 is text"),
        (Path("speech.wav"), "wrong dtype"),
        (None, "wrong dtype"),
        ([None, 0.5], "wrong dtype"),
        ({"array": X}, "wrong dtype"),
        ([1j], "wrong dtype"),
        ([True, False], "wrong dtype"),
        ((x for x in X), "wrong dtype"),
        ([10**30, 1], "wrong dtype"),
        (np.array([0.1, "x"], object), "wrong dtype"),
        (np.array([1e4, -1e4], np.float16), "overflows in float16.*float32"),
        (np.array([3e38, -3e38], np.float32), "overflows in float32"),
    ],
)
def test_speech_that_is_none(speech: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Wav2Vec2FeatureExtractor()(speech, padding=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"sampling_rate": 8000}, r"wrong sampling rate \(got 8000; expected 16000\).*read_audio"),
        ({"sampling_rate": "16000"}, "wrong sampling rate"),
        ({"sampling_rate": [16000]}, "wrong sampling rate"),
        ({"sampling_rate": [[1], [1, 2]]}, "wrong sampling rate"),
        ({"padding": "max_length"}, "max_length does not serve .*need it"),
        ({"truncation": True}, "max_length does not serve .*need it"),
        ({"truncation": True, "max_length": 0}, "max_length does not serve"),
        ({"max_length": -3}, "max_length does not serve"),
        ({"max_length": 2.5, "padding": "max_length"}, "max_length does not serve"),
        ({"max_length": True, "padding": "max_length"}, "max_length does not serve"),
        ({"padding": True, "pad_to_multiple_of": 0}, "pad_to_multiple_of does not serve"),
        ({"padding": True, "pad_to_multiple_of": "8"}, "pad_to_multiple_of does not serve"),
        ({"padding": "shortest"}, "padding is no strategy"),
        ({"padding": None}, "padding is no strategy"),
        ({"padding": 1}, "padding is no strategy"),
        ({"padding": np.ones(2)}, "padding is no strategy"),
        ({"truncation": "longest_first", "max_length": 2}, "truncation does not serve"),
        ({"return_attention_mask": np.ones(2)}, "return_attention_mask does not serve"),
    ],
)
def test_calls_that_are_wrong(call: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Wav2Vec2FeatureExtractor()([X, X], **call)


def test_numbers_of_numpy_serve_as_well() -> None:
    call: dict[str, Any] = {
        "sampling_rate": np.int32(16000),
        "max_length": np.int64(2),
        "pad_to_multiple_of": np.int8(2),
    }
    values = Wav2Vec2FeatureExtractor()(X, truncation=True, padding="max_length", **call).input_values
    assert np.asarray(values).shape == (1, 2)


def test_padding_on_the_left_is_not_normalized_with_a_mask() -> None:
    extractor = Wav2Vec2FeatureExtractor(padding_side="left", return_attention_mask=True)
    with pytest.raises(InputError, match="padding on the left"):
        extractor([X, X[:2]], padding=True)
    assert extractor([X, X], padding=True).arrays()["input_values"].shape == (2, 3)  # nothing is padded
    assert extractor([X, X[:2]], padding=True, return_attention_mask=False).attention_mask is None


@pytest.mark.parametrize(("dtype", "value"), [("int16", 40000), ("uint8", -1), ("float16", 1e6)])
def test_padding_that_the_samples_dtype_cannot_hold(dtype: str, value: float) -> None:
    extractor = Wav2Vec2FeatureExtractor(padding_value=value)
    with pytest.raises(InputError, match=f"padding_value does not fit.*{dtype}"):
        extractor(np.ones(3, dtype), padding="max_length", max_length=4)


# ---- settings --------------------------------------------------------------------------------------------------------


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path.parent


def test_settings_come_back_with_those_of_other_programs(tmp_path: Path) -> None:
    first = Wav2Vec2FeatureExtractor(1, 8000, -0.5, True, False, padding_side="left", other={"x": [1]}, self=2)
    first.save_pretrained(tmp_path / "a" / "b")
    second = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path / "a" / "b")
    assert second.to_dict() == first.to_dict()
    assert second.extra == {"other": {"x": [1]}, "self": 2}
    assert (second.sampling_rate, second.padding_side, second.do_normalize) == (8000, "left", False)


def test_settings_of_a_published_checkpoint(tmp_path: Path) -> None:
    """Which transformers 4 wrote, with a whole number for padding_value."""
    values = {"do_normalize": True, "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1}
    values |= {"padding_side": "right", "padding_value": 0, "return_attention_mask": True, "sampling_rate": 16000}
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(write(tmp_path / "x" / "preprocessor_config.json", values))
    assert extractor.to_dict() == values


def test_a_processor_goes_before_and_is_brought_up_to_date(tmp_path: Path) -> None:
    write(tmp_path / "preprocessor_config.json", {"sampling_rate": 1})
    write(tmp_path / "processor_config.json", {"processor_class": "Wav2Vec2Processor"})
    assert Wav2Vec2FeatureExtractor.from_pretrained(tmp_path).sampling_rate == 1
    write(tmp_path / "processor_config.json", {"processor_class": "X", "feature_extractor": {"sampling_rate": 2}})
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    assert extractor.sampling_rate == 2
    extractor.sampling_rate = 3
    extractor.save_pretrained(tmp_path)
    assert Wav2Vec2FeatureExtractor.from_pretrained(tmp_path).sampling_rate == 3
    assert json.loads((tmp_path / "processor_config.json").read_text())["processor_class"] == "X"
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["sampling_rate"] == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"feature_size": 80}, "feature_size does not serve"),
        ({"feature_size": 1.0}, "feature_size has the wrong type"),
        ({"sampling_rate": 0}, "sampling_rate does not serve"),
        ({"sampling_rate": "16k"}, "sampling_rate has the wrong type"),
        ({"padding_value": None}, "padding_value has the wrong type"),
        ({"padding_value": 10**400}, "padding_value does not serve"),
        ({"padding_side": "middle"}, "padding_side does not serve"),
        ({"do_normalize": "yes"}, "do_normalize has the wrong type"),
        ({"return_attention_mask": None}, "return_attention_mask has the wrong type"),
        ({"feature_extractor_type": "BeitFeatureExtractor"}, "feature_extractor_type is another one's"),
        ({"feature_extractor_type": ["x"]}, "feature_extractor_type is another one's"),
        ('{"padding_value": NaN}', "padding_value does not serve"),
        ('{"padding_value": 0', "is not JSON"),
        ("[]", "is not a configuration"),
    ],
)
def test_settings_that_are_wrong(tmp_path: Path, values: Any, message: str) -> None:
    write(tmp_path / "preprocessor_config.json", values)
    with pytest.raises(ConfigError, match=f"preprocessor_config.json: {message}"):
        Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    if isinstance(values, dict):
        (tmp_path / "preprocessor_config.json").unlink()
        write(tmp_path / "processor_config.json", {"feature_extractor": values})
        with pytest.raises(ConfigError, match=f"processor_config.json: {message}"):
            Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)


def test_folders_without_settings(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no feature extractor.*preprocessor_config\.json"):
        Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        Wav2Vec2FeatureExtractor.from_pretrained(tmp_path / "none")
    write(tmp_path / "processor_config.json", {"feature_extractor": 3})
    with pytest.raises(ConfigError, match="its feature_extractor is no configuration"):
        Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="can't be made a folder"):
        Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "processor_config.json")
