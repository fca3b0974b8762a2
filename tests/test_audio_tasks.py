"""Audio pipelines: what they take and return, that cutting and batching change nothing, memory, what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from audio_models import CTC, SEQUENCE, build
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v_ref.errors import CheckpointError, ConfigError, InputError
from d2v_ref.processing.ctc_decoding import NGram, beam_search
from d2v_ref.processing.ctc_tokenizer import Wav2Vec2CTCTokenizer, character_vocabulary
from d2v_ref.processing.feature_extractor import Wav2Vec2FeatureExtractor
from d2v_ref.processing.sound_files import read_audio
from d2v_ref.tasks import TASKS, pipeline, speech_recognition, subtitles
from d2v_ref.tasks.audio import Window, cut

RATE = 16000
AUDIO = {task.name: task.model for task in TASKS if task.pipeline.modality == "audio"}
ONE_INPUT = [task for task in AUDIO if task != "speaker-verification"]
TWELVE = 12  # tokens: <pad> <s> </s> <unk> | E T A O N I H


def save(folder: Path, name: str, *, extractor: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A tiny checkpoint, float64, whose answers are not all alike."""
    model = build(name, vocab_size=TWELVE, **settings)
    weights = model.state_dict()
    for key in weights:
        if key.endswith(("lm_head.weight", "classifier.weight")):
            weights[key] = 6 * weights[key]
    type(model)(model.config, weights, dtype="float64").save_pretrained(folder)
    Wav2Vec2FeatureExtractor(**(extractor or {})).save_pretrained(folder)
    if name == CTC:
        Wav2Vec2CTCTokenizer(character_vocabulary(TWELVE)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("audio")
    return {task: save(root / task, name) for task, name in AUDIO.items()}


def signal(samples: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    time = np.arange(samples) / RATE
    return np.sin(2 * np.pi * (200 + 4000 * time) * time) * 0.5 + 0.05 * random.normal(size=samples)


SIGNALS = [signal(samples, seed) for seed, samples in enumerate((700, 300, 1100, 301, 900))]


def close(got: Any, want: Any) -> bool:
    """Equal but for rounding."""
    if isinstance(want, dict):
        return list(got) == list(want) and all(close(got[key], want[key]) for key in want)
    if isinstance(want, list | tuple):
        return type(got) is type(want) and len(got) == len(want) and all(map(close, got, want))
    if isinstance(want, float | np.ndarray):
        return type(got) is type(want) and np.shape(got) == np.shape(want) and np.allclose(got, want, atol=1e-9)
    return got == want


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ONE_INPUT)
def test_batching_changes_nothing_with_exact_padding(task: str, folders: dict[str, Path]) -> None:
    pipe = pipeline(task, folders[task], dtype="float64", padding="exact")
    alone = [pipe(one) for one in SIGNALS]
    assert not close(alone[0], alone[1])
    for size in (1, 2, 3, 100):
        done: list[float] = []
        assert close(pipe(SIGNALS, batch_size=size, progress=done.append), alone)
        assert sum(done) == pytest.approx(sum(map(len, SIGNALS)) / RATE)
    assert pipe([]) == []


@pytest.mark.parametrize("task", ["automatic-speech-recognition", "feature-extraction"])
def test_batching_changes_nothing_with_an_adapter(task: str, tmp_path: Path) -> None:
    folder = save(tmp_path, AUDIO[task], add_adapter=True, num_adapter_layers=2, adapter_stride=2)
    pipe = pipeline(None, folder, dtype="float64", padding="exact")
    assert close(pipe(SIGNALS, batch_size=3), [pipe(one) for one in SIGNALS])


@pytest.mark.parametrize("task", ["audio-classification", "speaker-embedding", "feature-extraction"])
def test_as_in_transformers_batches_matter_otherwise(task: str, folders: dict[str, Path]) -> None:
    pipe = pipeline(task, folders[task], dtype="float64")
    assert close(pipe(SIGNALS, batch_size=1), [pipe(one) for one in SIGNALS])
    assert not close(pipe(SIGNALS, batch_size=2), [pipe(one) for one in SIGNALS])


def test_the_mask_does_not_depend_on_the_feature_extractors_setting(tmp_path: Path) -> None:
    folders = [
        save(tmp_path / str(masked), SEQUENCE, extractor={"return_attention_mask": masked}) for masked in (0 > 1, 1 > 0)
    ]
    without, masked = (pipeline(None, folder, dtype="float64")(SIGNALS, batch_size=3) for folder in folders)
    assert close(without, masked)


@pytest.mark.parametrize("task", ONE_INPUT)
def test_recordings_of_similar_length_go_together(task: str, folders: dict[str, Path]) -> None:
    pipe = pipeline(task, folders[task])
    lengths: list[list[int]] = []
    original = pipe.forward

    def watch(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        assert values.dtype == np.float32
        assert not values[mask == 0].any()
        lengths.append(mask.sum(1).tolist())
        return original(values, mask)

    pipe.forward = watch
    pipe(SIGNALS, batch_size=2)
    assert lengths == [[300, 301], [700, 900], [1100]]


# ---- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ONE_INPUT)
def test_forms_of_an_input(task: str, folders: dict[str, Path], tmp_path: Path) -> None:
    pipe = pipeline(task, folders[task], dtype="float64")
    path = tmp_path / "a.wav"
    soundfile.write(path, SIGNALS[0], RATE, "FLOAT")
    samples = SIGNALS[0].astype(np.float32)
    want = pipe(samples)
    for item in (
        *(
            path,
            str(path),
            {"raw": samples, "sampling_rate": RATE},
            {"array": samples, "sampling_rate": np.int64(RATE)},
        ),
        *({"array": samples, "sampling_rate": RATE, "path": "x"}, samples[None], np.stack((samples, samples))),
    ):
        assert close(pipe(item), want)
        assert close(pipe([item]), [want])
    assert close(pipe(np.stack((samples, 3 * samples))), pipe(2 * samples))


def test_a_dictionary_is_resampled(folders: dict[str, Path], tmp_path: Path) -> None:
    pipe = pipeline("speaker-embedding", folders["speaker-embedding"])
    time = np.arange(8000) / 8000
    tone = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", tone, 8000, "FLOAT")
    given = {"raw": tone, "sampling_rate": 8000}
    assert np.allclose(pipe(given), pipe(read_audio(tmp_path / "a.wav")), atol=1e-4)
    assert not np.allclose(pipe(given), pipe(tone), atol=1e-3)
    assert given.keys() == {"raw", "sampling_rate"}  # transformers empties it


@pytest.mark.parametrize("task", ["automatic-speech-recognition", "audio-frame-classification"])
def test_a_file_of_another_rate(task: str, folders: dict[str, Path], tmp_path: Path) -> None:
    pipe = pipeline(task, folders[task])
    soundfile.write(tmp_path / "a.flac", SIGNALS[2], 44100)
    assert pipe(tmp_path / "a.flac") == pipe(read_audio(tmp_path / "a.flac", RATE))


WRONG: list[tuple[Any, str]] = [
    (np.zeros((3, 500)), "not mono"),
    (np.zeros((500, 2)), r"transpose \(samples, channels\)"),
    (np.zeros((1, 1, 500)), "wrong shape"),
    (np.zeros(0), "is empty"),
    (np.float64(1), "wrong shape"),
    (np.zeros(500, complex), "wrong dtype"),
    (np.array([0.5, np.nan] * 200), "not finite"),
    (np.full(400, 1e39), "not finite"),
    (None, "wrong dtype"),
    (b"RIFF", "wrong dtype"),
    ({}, "other parts.*got none"),
    ({"raw": np.zeros(500)}, "other parts.*got raw"),
    ({"raw": np.zeros(500), "array": np.zeros(500), "sampling_rate": RATE}, "other parts"),
    ({"raw": np.zeros(500), "sampling_rate": RATE, "stride": (1, 1)}, "other parts.*stride"),
    ({"raw": np.zeros(500), "sampling_rate": 0}, "sampling_rate"),
    ({"raw": np.zeros(500), "sampling_rate": "16k"}, "sampling_rate"),
    ({"raw": np.zeros(500), "sampling_rate": None}, "sampling_rate"),
    ({"raw": np.zeros(500), "sampling_rate": np.array([RATE, RATE])}, "sampling_rate"),
    ({"raw": np.zeros(500), "sampling_rate": 16000.5}, "sampling_rate"),
    ("nope.wav", r"nope\.wav: there is no such file"),
    ("", "is a folder"),
    ("\0", "there is no such file"),
    (np.zeros(10), r"too short \(got 10 samples; expected at least \d+ at 16000 Hz\)"),
]


@pytest.mark.parametrize(("item", "message"), WRONG)
def test_wrong_inputs(item: Any, message: str, folders: dict[str, Path]) -> None:
    for task in ONE_INPUT:
        pipe = pipeline(task, folders[task])
        with pytest.raises(InputError, match=message):
            pipe(item)
        with pytest.raises(InputError, match=message) as caught:
            pipe([SIGNALS[0], item])
        assert caught.value.path is not None or "input 1: " in str(caught.value) or "utterance" in str(caught.value)


def test_all_inputs_are_looked_at_before_the_model_runs(folders: dict[str, Path], tmp_path: Path) -> None:
    pipe = pipeline("audio-classification", folders["audio-classification"])
    pipe.forward = None  # can't be called
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "short.wav", np.zeros(7), RATE)
    for name in ("text.wav", "short.wav", "nope.wav"):
        with pytest.raises(InputError, match=name):
            pipe([SIGNALS[0], tmp_path / name])


def test_a_speakers_recording_needs_more_samples_than_a_frame(folders: dict[str, Path]) -> None:
    samples = pipeline(None, folders["feature-extraction"]).model.least_samples
    assert pipeline(None, folders["feature-extraction"])(SIGNALS[0][:samples]).shape[1] == 1
    with pytest.raises(InputError, match=f"got {samples} samples"):
        pipeline(None, folders["speaker-embedding"])(SIGNALS[0][:samples])


@pytest.mark.parametrize("task", ONE_INPUT)
def test_numbers_that_are_not_finite(task: str, folders: dict[str, Path]) -> None:
    pipe = pipeline(task, folders[task])
    body = getattr(pipe.model, "data2vec_audio", pipe.model)
    layer = body.encoder.layers[1].attention.v_proj
    layer.weight = layer.weight.copy()
    layer.weight[0, 0] = np.nan
    name = f"{body.path}.encoder.layers.1.attention.v_proj".removeprefix(".")
    with pytest.raises(CheckpointError, match=rf"not finite.*first from {name}.*weight {name}\.weight is not"):
        pipe(SIGNALS[0])


# ---- which pipeline --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", AUDIO)
def test_a_checkpoint_says_what_it_is_for(task: str, folders: dict[str, Path]) -> None:
    assert pipeline(None, folders[task]).task == ("speaker-embedding" if task.startswith("speaker") else task)
    pipe = pipeline(task, folders[task])
    assert (pipe.task, type(pipe.model).__name__) == (task, AUDIO[task])
    parts = {name: getattr(pipe, name) for name in pipe.parts}
    assert pipeline(task, pipe.model, **parts).task == task
    assert pipeline(task, pipe.model, **dict.fromkeys(parts, folders[task])).task == task


def test_a_name_stands_for_the_checkpoints_kind_of_model(folders: dict[str, Path]) -> None:
    speech = folders["automatic-speech-recognition"]
    assert pipeline("feature-extraction", speech)(SIGNALS[0]).ndim == 3
    with pytest.raises(InputError, match=r"fill-mask is not for this kind.*got data2vec-audio; expected data2vec-text"):
        pipeline("fill-mask", speech)
    config = speech / "config.json"
    text = config.read_text()
    try:
        config.write_text(text.replace('"model_type": "data2vec-audio"', '"model_type": "wav2vec2"'))
        with pytest.raises(InputError, match=r"got wav2vec2; expected data2vec-text or data2vec-audio"):
            pipeline("feature-extraction", speech)
        config.write_text(text.replace('"model_type": "data2vec-audio"', '"model_kind": "data2vec-audio"'))
        assert pipeline("feature-extraction", speech).modality == "audio"
        assert pipeline("automatic-speech-recognition", speech)
    finally:
        config.write_text(text)


def test_parts_that_are_missing_or_do_not_fit(folders: dict[str, Path], tmp_path: Path) -> None:
    speech, frames = folders["automatic-speech-recognition"], folders["audio-frame-classification"]
    pipe = pipeline(None, speech)
    with pytest.raises(InputError, match="needs a feature extractor"):
        pipeline(None, pipe.model, pipe.tokenizer)
    with pytest.raises(InputError, match="needs a tokenizer"):
        pipeline(None, pipe.model, feature_extractor=pipe.feature_extractor)
    with pytest.raises(InputError, match=r"takes no tokenizer\. It needs a feature extractor"):
        pipeline(None, frames, pipe.tokenizer)
    with pytest.raises(CheckpointError, match=r"no tokenizer for CTC.*expected vocab\.json"):
        pipeline("automatic-speech-recognition", frames)
    (frames / "preprocessor_config.json").rename(tmp_path / "kept")
    with pytest.raises(CheckpointError, match=r"no feature extractor.*expected preprocessor_config\.json.*Copy the"):
        pipeline(None, frames)
    (tmp_path / "kept").rename(frames / "preprocessor_config.json")
    with pytest.raises(InputError, match=r"tokenizer does not fit the model \(got pad token 1; expected 0"):
        pipeline(None, speech, Wav2Vec2CTCTokenizer({"|": 0, "<pad>": 1, "A": 2}))
    with pytest.raises(InputError, match='got padding_side "left"; expected "right"'):
        pipeline(None, speech, feature_extractor=Wav2Vec2FeatureExtractor(padding_side="left"))
    with pytest.raises(ConfigError, match="padding"):
        pipeline(None, speech, padding="none")


# ---- speech recognition ----------------------------------------------------------------------------------------------


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, Window, int, list[int]]:
    """(samples, window, fewest samples of a piece, where blocks end)."""
    left, right, step = draw(st.integers(0, 9)), draw(st.integers(0, 9)), draw(st.integers(1, 20))
    window = Window(left + right + step, left, right)
    samples = draw(st.integers(1, 200))
    ends = sorted(draw(st.sets(st.integers(1, samples - 1), max_size=20)) | {samples}) if samples > 1 else [1]
    return samples, window, draw(st.integers(1, window.length)), ends


@settings(max_examples=500)
@given(cuts())
def test_pieces(case: tuple[int, Window, int, list[int]]) -> None:
    samples, (length, left, right), least, ends = case
    whole = np.arange(samples)
    blocks = np.split(whole, ends[:-1])
    pieces = list(cut(blocks, Window(length, left, right), least))
    own = [piece[before : len(piece) - after] for piece, before, after, _ in pieces]
    assert np.array_equal(np.concatenate(own), whole)  # nothing twice, nothing lost
    assert all(len(part) for part in own)
    step = length - left - right
    assert [piece[0] for piece, *_ in pieces] == [i * step for i in range(len(pieces))]
    assert [last for *_, last in pieces] == [False] * (len(pieces) - 1) + [True]
    assert [(before, after) for _, before, after, _ in pieces] == [
        (left * (i > 0), right * (i < len(pieces) - 1)) for i in range(len(pieces))
    ]
    assert all(len(piece) == length for piece, *_ in pieces[:-1])
    final = len(pieces[-1][0])
    assert min(least, samples) <= final < max(length, step + least - 1) + 1
    if final > length:  # it was longer than the others only since its end could not stand alone
        assert final - step < least


def test_without_a_window_a_recording_is_one_piece() -> None:
    ((piece, left, right, last),) = cut([np.arange(3), np.arange(3, 5)], None, 1)
    assert (piece.tolist(), left, right, last) == ([0, 1, 2, 3, 4], 0, 0, True)


def test_chunks_of_a_file_are_those_of_its_samples(folders: dict[str, Path], tmp_path: Path) -> None:
    """A file comes in blocks of 5 seconds."""
    pipe = pipeline(None, folders["automatic-speech-recognition"], dtype="float64", padding="exact")
    soundfile.write(tmp_path / "a.wav", signal(12 * RATE), RATE)
    samples = read_audio(tmp_path / "a.wav")
    done: list[float] = []
    options: dict[str, Any] = {"chunk_length_s": 0.3, "stride_length_s": (0.04, 0.02), "return_timestamps": "char"}
    got = pipe(tmp_path / "a.wav", batch_size=4, progress=done.append, **options)
    assert got == pipe(samples, **options)
    assert len(got["text"]) > 1000
    assert sum(done) == pytest.approx(12)
    assert len(done) == 50
    assert pipe([SIGNALS[1], samples, SIGNALS[0]], **options)[1] == got


def test_a_chunk_that_holds_the_recording(folders: dict[str, Path]) -> None:
    pipe = pipeline(None, folders["automatic-speech-recognition"])
    for samples in SIGNALS:
        assert pipe(samples, chunk_length_s=1, return_timestamps="word") == pipe(samples, return_timestamps="word")
    assert pipe(SIGNALS[0], chunk_length_s=0) == pipe(SIGNALS[0])


def test_an_end_that_is_too_short_for_a_frame(folders: dict[str, Path]) -> None:
    """transformers' pipeline fails on it."""
    pipe = pipeline(None, folders["automatic-speech-recognition"])
    chunk = 50 * pipe.ratio
    original, seen = pipe.forward, list[int]()

    def watch(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        seen.append(values.shape[1])
        return original(values, mask)

    pipe.forward = watch
    pipe(SIGNALS[0][: chunk + 3], chunk_length_s=chunk / RATE, stride_length_s=0)
    assert seen == [chunk + 3]


def test_time_stamps(folders: dict[str, Path]) -> None:
    pipe = pipeline(None, folders["automatic-speech-recognition"])
    for samples in SIGNALS:
        chars, words = (pipe(samples, return_timestamps=kind) for kind in ("char", "word"))
        assert chars["text"] == words["text"] == pipe(samples)["text"]
        assert "".join(chunk["text"] for chunk in chars["chunks"]).strip() == chars["text"]
        assert " ".join(chunk["text"] for chunk in words["chunks"]).split() == words["text"].split()
        for found in (chars["chunks"], words["chunks"]):
            assert all(list(chunk) == ["text", "timestamp"] for chunk in found)
            times = [time for chunk in found for time in chunk["timestamp"]]
            assert times == sorted(times)
            assert times[0] >= 0
            assert times[-1] <= len(samples) / RATE
            frames = np.array(times) * RATE / pipe.ratio
            assert np.allclose(frames, frames.round())
        assert all(start < end for start, end in (chunk["timestamp"] for chunk in chars["chunks"]))


def frames_of(pipe: Any, samples: np.ndarray) -> np.ndarray:
    """log softmax of the model's logits (T, V), from the model itself."""
    values = pipe.feature_extractor(samples).arrays()["input_values"]
    logits = pipe.model(values).logits[0]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_beam_search(folders: dict[str, Path]) -> None:
    pipe = pipeline(None, folders["automatic-speech-recognition"], dtype="float64")
    for samples in SIGNALS:
        best = beam_search(frames_of(pipe, samples), blank=0, beam_width=7)[0]
        got = pipe(samples, beam_width=7, return_timestamps="char")
        assert got["text"] == pipe.tokenizer.decode(best.ids, group_tokens=False)
        assert [chunk["timestamp"] for chunk in got["chunks"]] == [
            (start * pipe.ratio / RATE, end * pipe.ratio / RATE) for start, end in best.frames.tolist()
        ]
        cutting = {"chunk_length_s": 1.0, "stride_length_s": 0.1}
        assert pipe(samples, beam_width=7, **cutting)["text"] == got["text"]


ARPA = "\\data\\\nngram 1=4\n\n\\1-grams:\n-1 <s>\n-1 </s>\n-1 {}\n-3 <unk>\n\n\\end\\\n"


def test_a_language_model_and_hot_words(folders: dict[str, Path], tmp_path: Path) -> None:
    pipe = pipeline(None, folders["automatic-speech-recognition"], dtype="float64")
    path = tmp_path / "words.arpa"
    path.write_text(ARPA.format("HN"))
    weights: dict[str, Any] = {"alpha": 1.0, "beta": 15.0}
    plain = pipe(SIGNALS[0], beam_width=100)["text"]
    for scorer in (path, str(path), NGram.from_arpa(path)):
        got = pipe(SIGNALS[0], scorer=scorer, decoder_kwargs=weights)
        want = beam_search(
            frames_of(pipe, SIGNALS[0]),
            blank=0,
            tokens=pipe.tokenizer.tokens,
            word_delimiter=4,
            scorer=NGram.from_arpa(path),
            **weights,
        )[0]
        assert got["text"] == pipe.tokenizer.decode(want.ids, group_tokens=False) != plain
    hot = pipe(SIGNALS[0], hot_words=["HEN"], decoder_kwargs={"hot_word_weight": 100.0})["text"]
    assert "HEN" in hot.split()
    assert "HEN" not in plain.split()


def test_beam_search_in_stretches(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a pause is certain, nothing is lost by searching before and after it separately."""
    pipe = pipeline(None, folders["automatic-speech-recognition"], dtype="float64")
    random = np.random.default_rng(3)
    logits = 3 * random.normal(size=(400, TWELVE))
    logits[19::20] = 0
    logits[19::20, 4] = 60  # the delimiter
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    search = pipe._search(5, None, (), {})
    whole = pipe._searched(log_probs, search)
    monkeypatch.setattr(speech_recognition, "STRETCH", 50 * pipe.ratio / RATE)
    lengths: list[int] = []

    def watched(frames: np.ndarray, **options: Any) -> Any:
        lengths.append(len(frames))
        return beam_search(frames, **options)

    monkeypatch.setattr(speech_recognition, "beam_search", watched)
    assert np.array_equal(pipe._searched(log_probs, search), whole)
    assert len(whole) == sum(lengths) == 400
    assert all(25 <= length <= 50 and length % 20 == 0 for length in lengths[:-1])
    assert pipe._searched(log_probs[:0], search).shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_timestamps": True}, r'return_timestamps is no kind \(got True; expected None, "char" or "word"'),
        ({"chunk_length_s": -1}, "chunk_length_s is no length"),
        ({"chunk_length_s": "30"}, "chunk_length_s is no length"),
        ({"chunk_length_s": float("nan")}, "chunk_length_s is no length"),
        ({"chunk_length_s": float("inf")}, "chunk_length_s is no length"),
        ({"chunk_length_s": 1e-5}, "chunk_length_s is too short"),
        ({"chunk_length_s": 1, "stride_length_s": 0.5}, r"too short \(got 1 s with strides of 0.5 s and 0.5 s"),
        ({"chunk_length_s": 1, "stride_length_s": (0.5, 2)}, "too short"),
        ({"chunk_length_s": 1, "stride_length_s": (0.1, 0.1, 0.1)}, "stride_length_s is no stride"),
        ({"chunk_length_s": 1, "stride_length_s": -0.1}, "stride_length_s is no length"),
        ({"chunk_length_s": 1, "stride_length_s": "a"}, "stride_length_s is no length"),
        ({"stride_length_s": 0.1}, "stride_length_s has no effect"),
        ({"beam_width": 0}, "beam_width is no count"),
        ({"decoder_kwargs": {"alpha": 1}}, "no effect without beam search"),
        ({"beam_width": 3, "decoder_kwargs": {"top": 1}}, r"other arguments \(got top; expected alpha or"),
        ({"beam_width": 3, "decoder_kwargs": {"alpha": None}}, "alpha"),
        ({"hot_words": ["note"]}, "can't spell the hot word 'note'"),
        ({"scorer": "nope.arpa"}, r"nope\.arpa: can't be read"),
        ({"scorer": 5}, "the scorer is none"),
        ({"hot_words": None}, "hot_words are no words"),
        ({"hot_words": np.array(["HEN", "TEN"])}, "hot_words are no words"),
        ({"decoder_kwargs": ["alpha"]}, "decoder_kwargs is no dictionary"),
        ({"batch_size": 0}, "batch_size is no number"),
        ({"batch_size": "2"}, "batch_size is no number"),
    ],
)
def test_options_that_do_not_serve(options: dict[str, Any], message: str, folders: dict[str, Path]) -> None:
    pipe = pipeline(None, folders["automatic-speech-recognition"])
    pipe.forward = None  # the model does not run
    with pytest.raises(InputError, match=message):
        pipe(SIGNALS[0], **options)


MEASURE = """
import re, sys
import d2v_ref, soundfile, soxr, scipy.special

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) * 1024

pipe = d2v_ref.pipeline("automatic-speech-recognition", sys.argv[1])
before = peak()
greedy, searched = (
    pipe(sys.argv[2], chunk_length_s=30, **options)["text"] for options in ({}, {"beam_width": 2})
)
print(peak() - before, min(len(greedy), len(searched)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    """40 minutes take hardly more than 2: much less than the samples alone."""
    one_layer: dict[str, Any] = {"conv_dim": [4], "conv_stride": [1600], "conv_kernel": [1600], "num_hidden_layers": 1}
    folder = save(tmp_path / "model", CTC, **one_layer)
    used, random = {}, np.random.default_rng(0)
    for minutes in (2, 40):
        path = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
            for _ in range(minutes):
                file.write(random.normal(0, 0.1, 60 * RATE))
        command = [sys.executable, "-c", MEASURE, str(folder), str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        used[minutes], letters = map(int, done.stdout.split())
        assert letters > 60 * minutes, "hardly anything was decoded: nothing was measured"
    assert used[2] > 30 * RATE * 4, "a chunk was not in memory: nothing was measured"
    assert used[40] - used[2] < 0.1 * (40 * 60 * RATE * 4)


# ---- the other tasks -------------------------------------------------------------------------------------------------


def test_audio_classification(folders: dict[str, Path]) -> None:
    pipe = pipeline(None, folders["audio-classification"])
    answers = pipe(SIGNALS[0])
    assert sorted(answer["label"] for answer in answers) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert all(a["score"] >= b["score"] for a, b in pairwise(answers))
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-6)
    assert pipe(SIGNALS[0], top_k=2) == answers[:2]
    assert pipe(SIGNALS[0], top_k=9) == pipe(SIGNALS[0], top_k=None) == answers
    logits = {answer["label"]: answer["score"] for answer in pipe(SIGNALS[0], function_to_apply="none")}
    for answer in pipe(SIGNALS[0], function_to_apply="sigmoid"):
        assert answer["score"] == pytest.approx(1 / (1 + np.exp(-logits[answer["label"]])), rel=1e-5)
    for options, message in (({"top_k": 0}, "top_k"), ({"function_to_apply": "tanh"}, "unknown function_to_apply")):
        with pytest.raises(InputError, match=message):
            pipe(SIGNALS[0], **options)


def scored(pipe: Any, scores: Any) -> Any:
    """A pipeline whose model gives every frame these logits (T, labels)."""
    pipe.forward = lambda values, mask: np.log(np.array(scores, np.float64))[None]
    return pipe


def test_audio_frame_classification(folders: dict[str, Path]) -> None:
    pipe = pipeline(None, folders["audio-frame-classification"])
    second = pipe.ratio / RATE
    frames = 6
    samples = pipe.model.least_samples + (frames - 1) * pipe.ratio + 5
    scored(pipe, [[8, 1, 1], [6, 3, 1], [1, 1, 8], [1, 1, 2], [1, 8, 1], [8, 1, 1], [1, 1, 8]])  # the last is padding
    assert [close(*pair) for pair in zip(pipe(np.ones(samples)), [
        {"label": "LABEL_0", "score": 0.7, "timestamp": (0.0, 2 * second)},
        {"label": "LABEL_2", "score": 0.65, "timestamp": (2 * second, 4 * second)},
        {"label": "LABEL_1", "score": 0.8, "timestamp": (4 * second, 5 * second)},
        {"label": "LABEL_0", "score": 0.8, "timestamp": (5 * second, samples / RATE)},
    ], strict=True)] == [True] * 4  # fmt: skip
    odds = [[9, 1 / 9, 1 / 9], [9, 9, 1 / 9], [1 / 9, 9, 1 / 9], [1 / 9] * 3, [1 / 9] * 3, [1, 1, 9]]
    overlapping = scored(pipe, odds)(np.ones(samples), threshold=0.5)
    spans = [
        ("LABEL_0", (0.0, 2 * second)),
        ("LABEL_1", (second, 3 * second)),
        ("LABEL_2", (5 * second, samples / RATE)),
    ]
    assert close([(entry["label"], entry["timestamp"]) for entry in overlapping], spans)
    assert all(entry["score"] == pytest.approx(0.9) for entry in overlapping)
    assert pipe(np.ones(samples), threshold=0.95) == []
    pipe.model.config.problem_type = "multi_label_classification"
    assert pipe(np.ones(samples)) == overlapping
    for wrong in (-0.1, 1.5, float("nan"), "0.5"):
        with pytest.raises(InputError, match="threshold is no probability"):
            pipe(np.ones(samples), threshold=wrong)


def test_speakers(folders: dict[str, Path]) -> None:
    embed = pipeline("speaker-embedding", folders["speaker-embedding"])
    verify = pipeline("speaker-verification", folders["speaker-embedding"])
    a, b = embed(SIGNALS[:2])
    assert np.linalg.norm(a) == pytest.approx(1, abs=1e-6)
    values = embed.feature_extractor(SIGNALS[0]).arrays()["input_values"]
    x = embed.model(values.astype(np.float32)).embeddings[0]
    assert np.allclose(a, x / np.linalg.norm(x), atol=1e-6)
    got = verify(*SIGNALS[:2])
    assert got["score"] == pytest.approx(float(a @ b), abs=1e-5)
    assert verify(SIGNALS[0], SIGNALS[0]) == {"score": pytest.approx(1, abs=1e-6), "same_speaker": True}
    assert verify(*SIGNALS[:2], threshold=got["score"])["same_speaker"] is True
    assert verify(*SIGNALS[:2], threshold=np.nextafter(got["score"], 2))["same_speaker"] is False
    for wrong in (1.5, float("nan"), "0.7", None):
        with pytest.raises(InputError, match="threshold is no cosine"):
            verify(*SIGNALS[:2], threshold=wrong)


def test_audio_features(folders: dict[str, Path]) -> None:
    pipe = pipeline(None, folders["feature-extraction"])
    states = pipe(SIGNALS[0])
    values = pipe.feature_extractor(SIGNALS[0]).arrays()["input_values"]
    assert np.allclose(states, pipe.model(values.astype(np.float32)).last_hidden_state, atol=1e-5)
    assert np.allclose(pipe(SIGNALS[0], pooling="mean"), states.mean(1), atol=1e-6)
    assert [one.shape[1] for one in pipe(SIGNALS, batch_size=5)] == [
        pipe.model.frame_lengths(len(one)) for one in SIGNALS
    ]
    with pytest.raises(InputError, match="unknown pooling of a recording"):
        pipe(SIGNALS[0], pooling="first")


# ---- subtitles -------------------------------------------------------------------------------------------------------


@st.composite
def spoken(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Words one after the other, up to some hours."""
    letters = st.text(st.sampled_from("ABCDEFGH'<>&-\u00e4\u65e5"), min_size=1, max_size=12)
    words, now = [], draw(st.integers(0, 30_000_000))
    for text in draw(st.lists(st.one_of(letters, st.sampled_from(["-->", "<b>", "X" * 50, " ", "A B"])), max_size=40)):
        start = now + draw(st.sampled_from([0, 20, 100, 500, 799, 800, 3000]))
        now = start + draw(st.sampled_from([1, 20, 300, 900, 8000]))
        words.append({"text": text, "timestamp": (start / 1000, now / 1000)})
    return words


CLOCK = r"(\d{2,}):([0-5]\d):([0-5]\d)%s(\d{3})"
Read = list[tuple[float, float, str]]


def read(lines: list[str], point: str) -> Read:
    """Blocks of a time line and one line of text, each with a blank line behind; of SubRip's the numbers before."""
    found: Read = []
    span = re.compile(f"{CLOCK % point} --> {CLOCK % point}")
    size = 4 if point == "," else 3
    assert len(lines) % size == 0
    for number, at in enumerate(range(0, len(lines), size), 1):
        block = lines[at : at + size]
        if point == ",":
            assert block.pop(0) == str(number)
        match = span.fullmatch(block[0])
        assert match, block
        hours, minutes, seconds, rest = (np.array(match.groups(), int).reshape(2, 4)).T
        start, end = (hours * 3600 + minutes * 60 + seconds + rest / 1000).tolist()
        assert block[1].strip()
        assert "-->" not in block[1]
        assert block[2] == ""
        found.append((start, end, block[1]))
    return found


@settings(max_examples=300)
@given(spoken())
def test_subtitles(words: list[dict[str, Any]]) -> None:
    found = subtitles.cues(words)
    told = [word for word in words if word["text"].strip()]
    assert " ".join(cue.text for cue in found).split() == " ".join(word["text"] for word in told).split()
    assert all(cue.start < cue.end for cue in found)
    assert all(a.end <= b.start for a, b in pairwise(found))
    rest = iter(told)
    for cue, following in zip(found, [*found[1:], None], strict=False):
        own = [next(rest)]
        while " ".join(word["text"] for word in own) != cue.text:
            own.append(next(rest))
        starts, ends = zip(*(word["timestamp"] for word in own), strict=True)
        assert cue.start == starts[0]
        assert cue.end >= ends[-1]
        assert cue.end == ends[-1] or cue.end <= cue.start + subtitles.SHORTEST
        if len(own) > 1:
            assert len(cue.text) <= subtitles.WIDTH
            assert ends[-1] - starts[0] <= subtitles.LONGEST
        assert all(start - end < subtitles.PAUSE for start, end in zip(starts[1:], ends, strict=False))
        if following is not None:  # there was a reason to end
            first = next(word for word in told if word["timestamp"][0] == following.start and word not in own)
            pause, longer = following.start - ends[-1], len(cue.text) + 1 + len(first["text"])
            lasting = first["timestamp"][1] - cue.start
            assert pause >= subtitles.PAUSE or longer > subtitles.WIDTH or lasting > subtitles.LONGEST


@settings(max_examples=300)
@given(spoken())
def test_files_of_subtitles(words: list[dict[str, Any]]) -> None:
    want = subtitles.cues(words)
    srt = read(list(subtitles.srt(words)), ",")
    head, blank, *lines = subtitles.vtt(words)
    assert (head, blank) == ("WEBVTT", "")
    vtt = read(lines, ".")
    assert all(not re.search(r"[<>]|&(?!amp;|lt;|gt;)", text) for _, _, text in vtt)
    plain = [text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for _, _, text in vtt]
    assert plain == [cue.text for cue in want]
    assert [text for _, _, text in srt] == [cue.text.replace("-->", "->") for cue in want]
    for found in (srt, vtt):
        assert np.allclose([entry[:2] for entry in found], [cue[:2] for cue in want], rtol=0, atol=0.0005)
