"""Sound files as samples.

Decoding is done by libsndfile (the ``soundfile`` package) and resampling by libsoxr (``soxr``); what is here makes sure
that a file is read as a whole or not at all.  N is the number of samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Literal

import numpy as np

from d2v_ref.errors import InputError, UnavailableError

SAMPLING_RATE = 16000  # Hz, of every published Data2Vec audio model
RATES = range(1, 1_000_001)  # Hz
LOUDEST = 1e18  # 1 is full scale; squares of louder samples would not sum in float32

_SECONDS = 5  # of sound in a block
_LARGEST = 1 << 21  # samples of all channels in a block, whatever sampling rate and channels a header claims
_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")  # libsndfile's names of what is known to be whole when read
_UNKNOWN = 0x7FFFF000  # bytes: from here on, a wav header's length is what programs write that can't go back to it
_CONVERT = "Convert it to wav or flac, as with `ffmpeg -i FILE FILE.flac`"


def read_audio(path: str | Path, sampling_rate: int = SAMPLING_RATE) -> np.ndarray:
    """The samples of a wav, flac, ogg (Vorbis, Opus) or mp3 file.

    Several channels become their mean.  A file of another sampling rate is resampled (libsoxr, quality HQ: 20 bits).
    PCM of n bits is divided by 2^(n-1), so that full scale is 1; floating-point samples are taken as they are.

    transformers' pipelines have ffmpeg read a file, which takes the mean of two channels as well but resamples with
    another filter.  An array with two axes they refuse, but for speech recognition with at most two channels, the first
    axis, of which it takes the mean.

    Args:
        path: the file; its name and extension don't matter.
        sampling_rate: of the result, in Hz.

    Returns:
        (N,) float32; N is the file's frames * sampling_rate / the file's sampling rate, rounded.

    Raises:
        InputError: no such file, not a sound file of these formats, damaged, cut off, empty, or with samples that are
            no finite numbers.  An mp3 of constant bit rate that was cut off and says nowhere how long it was can't be
            told from a shorter one, and damaged PCM not from noise.
        UnavailableError: soundfile, or soxr if it is needed, is not installed.
    """
    return np.concatenate(list(stream_audio(path, sampling_rate)))


def stream_audio(path: str | Path, sampling_rate: int = SAMPLING_RATE) -> Iterator[np.ndarray]:
    """What ``read_audio`` reads, in blocks of about 5 seconds, none of them empty.

    Memory is bounded however long the file is.  Errors are those of ``read_audio``; most come instead of the first
    block, but damage within a file when reading gets there, or at its end.
    """
    check_rate("sampling_rate", sampling_rate)
    with _opened(path) as (sound, handle):
        blocks = _mono(sound, handle, Path(path))
        if sound.samplerate != sampling_rate:
            blocks = _resampled(blocks, sound.samplerate, sampling_rate, Path(path))
        yield from blocks


def audio_length(path: str | Path) -> float:
    """Seconds of sound in a file as its header tells them, without decoding it; of some mp3 files an estimate.

    Raises:
        InputError: as ``read_audio``, as far as the header shows it; a header that does not tell.
        UnavailableError: soundfile is not installed.
    """
    with _opened(path) as (sound, _):
        if _is_unknown(sound.frames):
            raise InputError("does not say how long it is", path=path, hint="Read it, or convert it to wav")
        return sound.frames / sound.samplerate


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, BinaryIO]]:
    """A file as soundfile's SoundFile, and as the stream below it."""
    soundfile = _import("soundfile")
    with _open(path) as handle:
        _check_whole(handle, path)
        try:
            sound = _forward(soundfile)(_nameless(handle))
        except soundfile.SoundFileError as error:
            raise _not_audio(path, getattr(error, "error_string", error)) from None
        with sound:
            if sound.format not in _FORMATS:
                raise _not_audio(path, sound.format)
            check_rate("its sampling rate", sound.samplerate, path)
            yield sound, handle


def _forward(soundfile: Any) -> Any:
    """SoundFile, only ever read from the beginning to the end."""

    class Forward(soundfile.SoundFile):
        def seekable(self) -> bool:
            # soundfile would seek after each read, to where it is already.  That restarts the decoder of mp3 files,
            # which changes the samples (by more than 0.01), and fails in flac files with an error that says nothing.
            return False

    return Forward


def _nameless(handle: BinaryIO) -> SimpleNamespace:
    """The stream without the file's name: soundfile takes one that ends in .raw for samples without a header."""
    return SimpleNamespace(seek=handle.seek, tell=handle.tell, read=handle.read)


def _not_audio(path: str | Path, reason: object) -> InputError:
    message = "is not a sound file that can be read, or its header is damaged"
    return InputError(message, path=path, got=reason, expected="wav, flac, ogg (Vorbis, Opus) or mp3", hint=_CONVERT)


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except (ImportError, OSError) as error:  # OSError: the package without its library
        hint = f"Run `pip install {name}`, or give the model samples"
        message = f"reading sound files needs the {name} package, which can't be imported here"
        raise UnavailableError(message, got=error, hint=hint) from None


def _open(path: str | Path) -> BinaryIO:
    if not isinstance(path, str | os.PathLike):
        raise InputError("this is no path of a sound file", got=type(path).__name__, expected="str or Path")
    path = Path(path)
    try:
        if not path.is_file():  # a pipe or a device could block
            kind = "is a folder" if path.is_dir() else "is no file" if path.exists() else "there is no such file"
            raise InputError(kind, path=path, expected="a sound file")
        if path.stat().st_size == 0:
            raise InputError("is empty", path=path, got="0 bytes", expected="a sound file")
        return path.open("rb")
    except (OSError, ValueError) as error:
        raise InputError(f"can't be read: {getattr(error, 'strerror', error)}", path=path) from None


def _mono(sound: Any, handle: BinaryIO, path: Path) -> Iterator[np.ndarray]:
    """Blocks of the mean of the channels, in float32."""
    size = max(1, min(_SECONDS * sound.samplerate, _LARGEST // sound.channels))
    done = 0
    while len(block := _read(sound, size, done, path)):
        if not (np.abs(block) < LOUDEST).all():  # NaN is not smaller either
            frame = int(np.argmin((np.abs(block) < LOUDEST).all(axis=1)))
            where = f"{block[frame]} at {(done + frame) / sound.samplerate:.4f} s"
            hint = "Write the file again: full scale is 1"
            raise InputError("has samples that are no sound", path=path, got=where, expected="finite", hint=hint)
        done += len(block)
        # In float64, so that the mean is rounded once.
        yield block.mean(axis=1, dtype=np.float64).astype(np.float32)
    if done == 0:
        raise InputError("holds no sound", path=path, got="0 frames", expected="at least one")
    _check_end(sound, handle, done, path)


def _read(sound: Any, size: int, done: int, path: Path) -> np.ndarray:
    try:
        return sound.read(size, dtype="float32", always_2d=True)
    except _import("soundfile").SoundFileError as error:
        got = getattr(error, "error_string", error)
        raise InputError(
            f"is damaged after {done / sound.samplerate:.1f} s", path=path, got=got, hint=_REPAIR
        ) from None


def _resampled(blocks: Iterator[np.ndarray], rate: int, sampling_rate: int, path: Path) -> Iterator[np.ndarray]:
    stream = _import("soxr").ResampleStream(rate, sampling_rate, 1, dtype="float32", quality="HQ")
    empty = True
    for block in blocks:
        if len(out := stream.resample_chunk(block)):
            yield out
            empty = False
    if len(out := stream.resample_chunk(np.zeros(0, np.float32), last=True)):
        yield out
    elif empty:
        message = f"is too short to hold a sample at {sampling_rate} Hz"
        raise InputError(message, path=path, got=f"a sampling rate of {rate} Hz")


def resample(samples: np.ndarray, rate: int, sampling_rate: int) -> np.ndarray:
    """Samples (N,) of one rate at another, in Hz, as ``read_audio`` does it: float32.

    Raises:
        InputError: no such rate.
        UnavailableError: soxr is not installed.
    """
    rate = int(rate) if isinstance(rate, np.integer) else rate
    check_rate("sampling_rate", rate)
    soxr = _import("soxr")
    return soxr.resample(samples.astype(np.float32, copy=False), rate, sampling_rate, quality="HQ")


def check_rate(name: str, rate: Any, path: str | Path | None = None) -> None:
    if not is_whole(rate) or rate not in RATES:
        expected = f"{RATES[0]} ... {RATES[-1]} Hz, a whole number"
        raise InputError(f"{name} does not serve", path=path, got=repr(rate), expected=expected)


def is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


# ---- whether a file is whole: libsndfile makes do with what there is -------------------------------------------------

_REPAIR = "Copy or download it again; to take what there is of it, convert it with ffmpeg"


def _check_whole(handle: BinaryIO, path: str | Path) -> None:
    """Refuse wav and ogg files that are cut off.  The stream is at its start before and after."""
    size = handle.seek(0, os.SEEK_END)
    handle.seek(0)
    start = handle.read(12)
    if start[:4] in (b"RIFF", b"RIFX", b"RF64") and start[8:] == b"WAVE":
        missing = _data_end(handle, "big" if start[:4] == b"RIFX" else "little") - size
        if missing > 0:
            raise InputError("is cut off", path=path, got=f"{size} bytes", expected=size + missing, hint=_REPAIR)
    elif start[:4] == b"OggS" and not _ends_with_last_page(handle, size):
        raise InputError("is cut off", path=path, expected="the last page of an Ogg stream at the end", hint=_REPAIR)
    handle.seek(0)


def _data_end(handle: BinaryIO, order: Literal["big", "little"]) -> int:
    """Where the samples of a wav file end by its header; 0 if it does not say (RIFF; RF64: EBU Tech 3306)."""
    long = 0
    while len(head := handle.read(8)) == 8:
        name, length = head[:4], int.from_bytes(head[4:], order)
        if name == b"data":
            length = long if length == 0xFFFFFFFF else length if length < _UNKNOWN else 0
            return handle.tell() + length if length else 0
        start = handle.tell()
        if name == b"ds64":
            long = int.from_bytes(handle.read(16)[8:], "little")
        handle.seek(start + length + length % 2)
    return 0


def _ends_with_last_page(handle: BinaryIO, size: int) -> bool:
    """Whether the last page of an Ogg file is complete and marked as the last (RFC 3533, section 6)."""
    longest = 27 + 255 + 255 * 255
    handle.seek(max(0, size - 2 * longest))
    tail = handle.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return False
    return bool(page[5] & 4) and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])


def _is_unknown(frames: int) -> bool:
    return frames >= 1 << 62  # libsndfile's word for it


def _check_end(sound: Any, handle: BinaryIO, done: int, path: Path) -> None:
    """Refuse a file of which there was less than its header promised, or of which libsndfile left something unread."""
    mp3 = sound.format == "MP3"
    if mp3 and handle.read(1) == b"\xff":  # the next frame; what may follow the last one are tags, of letters
        message = "is not read to its end: its header does not say how long it is, or not the truth"
        raise InputError(message, path=path, got=f"{done / sound.samplerate:.1f} s of it", hint=_CONVERT)
    if done < sound.frames and not _is_unknown(sound.frames) and (not mp3 or _tells_its_length(handle)):
        expected = f"{sound.frames}, as its header says"
        raise InputError("is cut off or damaged", path=path, got=f"{done} frames", expected=expected, hint=_REPAIR)


def _tells_its_length(handle: BinaryIO) -> bool:
    """Whether the first frame of an mp3 file counts the others ("Xing", or "Info" if their bit rate is constant)."""
    handle.seek(0)
    head = handle.read(10)
    if head[:3] != b"ID3":
        handle.seek(0)
    else:  # a tag, whose length is in four bytes of seven bits
        handle.seek(10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True)))
    frame = handle.read(256)
    return b"Xing" in frame or b"Info" in frame
