"""The command line with audio models: answers, subtitles, files and streams, and what is refused in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from test_audio_tasks import ARPA, AUDIO, ONE_INPUT, RATE, read, signal
from test_cli import _config, _here, _weights, d2v, disk, real, refused, same, terminal  # noqa: F401 - two are fixtures

from d2v_ref import golden, synthesis
from d2v_ref.auto import model_class
from d2v_ref.processing.ctc_decoding import beam_search
from d2v_ref.processing.feature_extractor import Wav2Vec2FeatureExtractor
from d2v_ref.processing.sound_files import read_audio
from d2v_ref.tasks import pipeline

SPEECH = "automatic-speech-recognition"


def _talkative(arrays: dict[str, np.ndarray]) -> None:
    """Many letters, and pauses between them."""
    weight, bias = arrays["lm_head.weight"], arrays["lm_head.bias"]
    random = np.random.default_rng(1)
    weight[:] = 3 * random.normal(size=weight.shape)
    bias[:] = 42 * (np.arange(32) == 4)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint for every task."""
    root = tmp_path_factory.mktemp("models")
    for task, name in AUDIO.items():
        synthesis.write_checkpoint(model_class(name), "tiny", 3, root / task)
    _weights(_talkative)(root / SPEECH)
    return {task: root / task for task in AUDIO}


@pytest.fixture(autouse=True)
def _sounds(_here: None) -> None:  # noqa: F811
    soundfile.write("a.wav", signal(RATE), RATE)
    soundfile.write("b.flac", signal(RATE, 1), 2 * RATE)


# Task: options, and the pipeline's arguments.
RUNS: dict[str, tuple[list[str], dict[str, Any]]] = {
    SPEECH: (["--timestamps", "word"], {"return_timestamps": "word"}),
    "audio-classification": (["--top-k", "1"], {"top_k": 1}),
    "audio-frame-classification": (["--threshold", "0.3"], {"threshold": 0.3}),
    "speaker-embedding": ([], {}),
    "feature-extraction": (["--pooling", "mean"], {"pooling": "mean"}),
}


@pytest.mark.parametrize("task", ONE_INPUT)
def test_a_recording_has_the_pipelines_answer(task: str, models: dict[str, Path]) -> None:
    options, arguments = RUNS[task]
    want = json.loads(json.dumps(pipeline(None, models[task])("a.wav", **arguments), default=lambda x: x.tolist()))
    result = d2v("run", models[task], "a.wav", "--json", *options)
    assert (result.code, result.err) == (0, "")
    assert same(json.loads(result.out), want)
    data = Path("a.wav").read_bytes()
    for arguments_ in (["-"], []):
        assert d2v("run", models[task], *arguments_, "--json", *options, stdin=data).out == result.out
    assert disk(Path()).keys() == {"a.wav", "b.flac"}


@pytest.mark.parametrize("task", ONE_INPUT)
def test_several_recordings_have_a_list_of_answers(task: str, models: dict[str, Path]) -> None:
    options, _ = RUNS[task]
    a, b = (json.loads(d2v("run", models[task], name, "--json", *options).out) for name in ("a.wav", "b.flac"))
    assert same(json.loads(d2v("run", models[task], "b.flac", "a.wav", "--json", *options).out), [b, a])
    Path("folder").mkdir()
    shutil.copy("b.flac", "folder/x.FLAC")
    shutil.copy("a.wav", "folder/y.wav")
    Path("folder/notes.txt").write_text("no recording")
    assert same(json.loads(d2v("run", models[task], "folder", "--json", *options).out), [b, a])
    Path("folder/x.FLAC").unlink()
    assert same(json.loads(d2v("run", models[task], "folder", "--json", *options).out), [a])


@pytest.mark.parametrize("task", ONE_INPUT)
def test_a_readable_answer(task: str, models: dict[str, Path]) -> None:
    options, _ = RUNS[task]
    one = d2v("run", models[task], "a.wav", *options)
    two = d2v("run", models[task], "a.wav", "a.wav", *options)
    assert (one.code, one.err) == (two.code, two.err) == (0, "")
    assert one.out.strip()
    assert two.out == f"> a.wav\n{one.out}" * 2
    assert all(line.isprintable() for line in one.out.splitlines())


def test_two_recordings_are_compared(models: dict[str, Path]) -> None:
    model = models["speaker-verification"]
    verify = ("run", model, "--task", "speaker-verification", "a.wav", "b.flac")
    want = pipeline("speaker-verification", model)("a.wav", "b.flac")
    assert same(json.loads(d2v(*verify, "--json").out), want)
    score = f"{want['score']:8.4f}"
    assert d2v(*verify, "--threshold", "-1").out == f"{score}  same speaker\n"
    assert d2v(*verify, "--threshold", "1").out == f"{score}  different speakers\n"


def test_the_task_can_be_another_than_the_heads(models: dict[str, Path]) -> None:
    features = json.loads(d2v("run", models[SPEECH], "a.wav", "--task", "feature-extraction", "--json").out)
    assert np.shape(features) == (1, 49, 64)
    refused("run", models[SPEECH], "a.wav", "--task", "audio-classification", says="weights are missing")


def test_padding(models: dict[str, Path]) -> None:
    run = ("run", models["speaker-embedding"], "a.wav", "b.flac", "--json", "--dtype", "float64")
    alone, exact = d2v(*run), d2v(*run, "--batch-size", "2", "--padding", "exact")
    leaking = [d2v(*run, "--batch-size", "2", *more) for more in ([], ["--padding", "hf"])]
    assert np.allclose(json.loads(alone.out), json.loads(exact.out), rtol=0, atol=1e-9)
    assert leaking[0] == leaking[1]
    assert not np.allclose(json.loads(alone.out), json.loads(leaking[0].out), rtol=0, atol=1e-9)


# ---- transcripts -----------------------------------------------------------------------------------------------------


def test_time_stamps(models: dict[str, Path]) -> None:
    plain = d2v("run", models[SPEECH], "a.wav").out.rstrip("\n")
    words, chars = (d2v("run", models[SPEECH], "a.wav", "--timestamps", kind).out for kind in ("word", "char"))
    rows = [line.split(maxsplit=2) for line in words.splitlines()]
    assert " ".join(row[2] for row in rows) == " ".join(plain.split())
    assert len(rows) == 3
    assert all(float(start) < float(end) <= 1 for start, end, _ in rows)
    assert "".join(line[23:] for line in chars.splitlines()).strip() == plain
    assert words.splitlines()[0].startswith(f"{float(rows[0][0]):10.3f} {float(rows[0][1]):10.3f}  ")


@pytest.mark.parametrize(("form", "point"), [("srt", ","), ("vtt", ".")])
def test_subtitles(form: str, point: str, models: dict[str, Path]) -> None:
    soundfile.write("c.wav", np.concatenate((signal(12 * RATE), 0.001 * signal(4 * RATE), signal(9 * RATE))), RATE)
    printed = d2v("run", models[SPEECH], "c.wav", "--format", form)
    assert (printed.code, printed.err) == (0, "")
    saved = d2v("run", models[SPEECH], "c.wav", "--format", form, "-o", f"c.{form}")
    assert (saved.code, saved.out, saved.err) == (0, "", "")
    data = Path(f"c.{form}").read_bytes()
    assert data.decode() == printed.out
    assert b"\r" not in data
    lines = data.decode().split("\n")
    assert lines.pop() == ""
    cues = read(lines[2:] if form == "vtt" else lines, point)
    told = " ".join(text for _, _, text in cues).replace("&lt;", "<").replace("&gt;", ">")
    assert told.split() == d2v("run", models[SPEECH], "c.wav").out.split()
    assert len(cues) > 5
    assert all(0 <= start < end <= 26 for start, end, _ in cues)


def test_transcripts_go_to_a_file(models: dict[str, Path]) -> None:
    for options in ([], ["--json"], ["--timestamps", "char"]):
        printed = d2v("run", models[SPEECH], "a.wav", "b.flac", *options)
        saved = d2v("run", models[SPEECH], "a.wav", "b.flac", *options, "-o", "out")
        assert (saved.code, saved.out, saved.err) == (0, "", "")
        assert Path("out").read_bytes().decode() == printed.out


def test_a_transcript_of_nothing(models: dict[str, Path]) -> None:
    folder = shutil.copytree(models[SPEECH], "silent")
    _weights(lambda arrays: arrays.update({"lm_head.bias": 99 * (np.arange(32) == 0).astype(np.float32)}))(Path(folder))
    assert d2v("run", folder, "a.wav").out == "\n"
    assert json.loads(d2v("run", folder, "a.wav", "--timestamps", "word", "--json").out) == {"text": "", "chunks": []}
    assert d2v("run", folder, "a.wav", "--timestamps", "word").out == "\n"
    assert d2v("run", folder, "a.wav", "--format", "srt").out == "\n"
    assert d2v("run", folder, "a.wav", "--format", "vtt").out == "WEBVTT\n\n"


def test_a_long_recording_is_cut(models: dict[str, Path]) -> None:
    soundfile.write("long.wav", signal(33 * RATE), RATE)
    run = ("run", models[SPEECH], "long.wav", "--json")
    cut = d2v(*run).out
    pipe = pipeline(None, models[SPEECH])
    assert json.loads(cut) == pipe("long.wav", chunk_length_s=30)
    assert d2v(*run, "--chunk-length", "30", "--stride", "5").out == cut
    whole = d2v(*run, "--chunk-length", "0").out
    assert json.loads(whole) == pipe("long.wav") != json.loads(cut)
    shorter = d2v(*run, "--chunk-length", "2", "--stride", "0.3", "--batch-size", "3").out
    assert json.loads(shorter) == pipe("long.wav", chunk_length_s=2, stride_length_s=0.3, batch_size=3)


def test_beam_search(models: dict[str, Path]) -> None:
    Path("words.arpa").write_text(ARPA.format("E"))
    pipe = pipeline(None, models[SPEECH])
    run = ("run", models[SPEECH], "a.wav", "--json")
    for options, arguments in (
        (["--beam-width", "5"], {"beam_width": 5}),
        (["--lm", "words.arpa"], {"scorer": "words.arpa"}),
        (
            ["--lm", "words.arpa", "--lm-weight", "2", "--word-bonus", "9", "--beam-width", "9"],
            {"scorer": "words.arpa", "beam_width": 9, "decoder_kwargs": {"alpha": 2.0, "beta": 9.0}},
        ),
        (["--hot-word", "E", "--hot-word", "TE"], {"hot_words": ["E", "TE"]}),
        (
            ["--hot-word", "GIN", "--hot-word-weight", "99"],
            {"hot_words": ["GIN"], "decoder_kwargs": {"hot_word_weight": 99.0}},
        ),
    ):
        assert json.loads(d2v(*run, *options).out) == pipe("a.wav", **arguments)
    assert "GIN" in pipe("a.wav", **arguments)["text"].split()


def test_the_help_tells_the_defaults_of_beam_search() -> None:
    text = d2v("run", "--help").out
    defaults = {name: parameter.default for name, parameter in signature(beam_search).parameters.items()}
    for option, name in (
        ("beam-width", "beam_width"),
        ("lm-weight", "alpha"),
        ("word-bonus", "beta"),
        ("hot-word-weight", "hot_word_weight"),
    ):
        told = re.search(rf"--{option} .*?default: \(([\d.]+)", text, re.DOTALL)
        assert told
        assert float(told[1]) == defaults[name]


def test_arrays_go_to_a_file(models: dict[str, Path]) -> None:
    for task, axes in (("feature-extraction", 3), ("speaker-embedding", 1)):
        result = d2v("run", models[task], "a.wav", "b.flac", "-o", "f.npz")
        assert (result.code, result.out, result.err) == (0, "", "f.npz: audio_0 ... audio_1\n")
        want = pipeline(None, models[task])(["a.wav", "b.flac"])
        with np.load("f.npz") as file:
            assert file.files == ["audio_0", "audio_1"]
            assert all(np.array_equal(file[f"audio_{i}"], want[i]) for i in range(2))
            assert file["audio_0"].ndim == axes


def test_control_characters_do_not_reach_the_terminal(models: dict[str, Path]) -> None:
    folder = Path(shutil.copytree(models[SPEECH], "model"))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    letters = {f"\x1b[2J{entry}" if index > 4 else entry: index for entry, index in vocabulary.items()}
    (folder / "vocab.json").write_text(json.dumps(letters))
    for options in ([], ["--timestamps", "char"], ["--format", "srt"], ["--format", "vtt"]):
        out = d2v("run", folder, "a.wav", *options).out
        assert "\\x1b[2J" in out
        assert all(line.isprintable() for line in out.split("\n"))
    Path("\x1b[2J.wav").write_bytes(Path("a.wav").read_bytes())
    assert "> \\x1b[2J.wav" in d2v("run", models[SPEECH], "\x1b[2J.wav", "a.wav").out


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "arguments", "says"),
    [
        (SPEECH, ["nope.wav"], "nope.wav: there is no such file"),
        (SPEECH, ["hello there"], "hello there: there is no such file"),
        (SPEECH, ["text.wav"], "text.wav: is not a sound file"),
        (SPEECH, ["short.wav"], "short.wav: the recording is too short"),
        (SPEECH, ["cut.wav"], "cut.wav: is cut off"),
        (SPEECH, ["nan.wav"], "nan.wav: has samples that are no sound"),
        (SPEECH, ["empty"], "empty: the folder holds no recording"),
        (SPEECH, [], "standard input: is empty"),
        (SPEECH, ["x" * 5000], "can't be read"),
        (SPEECH, [""], "is a folder"),
        (SPEECH, ["a.wav", "--truncate"], "--truncate is not for audio models"),
        (SPEECH, ["a.wav", "--decoder"], "--decoder is not for audio models"),
        (SPEECH, ["a.wav", "--top-k", "2"], "--top-k is not for automatic-speech-recognition"),
        (SPEECH, ["a.wav", "--threshold", "0.5"], "--threshold is not for"),
        (SPEECH, ["a.wav", "--task", "fill-mask"], "fill-mask is not for this kind of model"),
        (SPEECH, ["a.wav", "--lm-weight", "2"], "--lm-weight has no effect without --lm"),
        (SPEECH, ["a.wav", "--word-bonus", "2"], "--word-bonus has no effect without --lm"),
        (SPEECH, ["a.wav", "--hot-word-weight", "2"], "--hot-word-weight has no effect without --hot-word"),
        (SPEECH, ["a.wav", "--hot-word", "hello"], "can't spell the hot word 'hello'"),
        (SPEECH, ["a.wav", "--lm", "nope.arpa"], "nope.arpa: can't be read"),
        (SPEECH, ["a.wav", "--lm", "text.wav"], "text.wav: is no ARPA file"),
        (SPEECH, ["a.wav", "--lm", "a.wav"], "a.wav: is"),
        (SPEECH, ["a.wav", "--format", "srt", "--json"], "ask for different things"),
        (SPEECH, ["a.wav", "--format", "vtt", "--timestamps", "char"], "--timestamps char has no effect"),
        (SPEECH, ["a.wav", "b.flac", "--format", "vtt"], "--format vtt is for one recording (got 2)"),
        (SPEECH, ["a.wav", "--chunk-length", "0.01"], "chunk_length_s is too short"),
        (SPEECH, ["a.wav", "--chunk-length", "0", "--stride", "1"], "stride_length_s has no effect"),
        (SPEECH, ["a.wav", "--chunk-length", "nan"], "chunk_length_s is no length"),
        (SPEECH, ["a.wav", "-o", "empty"], "can't be written"),
        (SPEECH, ["a.wav", "-o", "nope/a.srt"], "can't be written"),
        (SPEECH, ["a.wav", "--tokenizer", "empty"], "no tokenizer for CTC"),
        ("audio-classification", ["a.wav", "--timestamps", "word"], "--timestamps is not for audio-classification"),
        ("audio-classification", ["a.wav", "-o", "x.npz"], "--output is not for audio-classification"),
        ("audio-classification", ["a.wav", "--tokenizer", "empty"], "takes no tokenizer"),
        ("audio-frame-classification", ["a.wav", "--threshold", "2"], "threshold is no probability"),
        ("speaker-embedding", ["a.wav", "-o", "x.txt"], "a name in .npz"),
        ("speaker-embedding", ["a.wav", "-o", "x.npz", "--json"], "--json has no effect"),
        ("speaker-embedding", ["a.wav", "--threshold", "0.5"], "--threshold is not for speaker-embedding"),
        ("speaker-embedding", ["a.wav", "--task", "speaker-verification"], "of two recordings (got 1"),
        ("speaker-embedding", ["a.wav", "b.flac", "a.wav", "--task", "speaker-verification"], "(got 3"),
        ("speaker-embedding", ["least.wav"], "least.wav: the recording is too short (got 400 samples"),
        ("feature-extraction", ["a.wav", "--pooling", "first"], "unknown pooling of a recording"),
    ],
)
def test_wrong_inputs(task: str, arguments: list[str], says: str, models: dict[str, Path]) -> None:
    Path("text.wav").write_text("no sound")
    Path("empty").mkdir()
    Path("cut.wav").write_bytes(Path("a.wav").read_bytes()[:5000])
    soundfile.write("short.wav", np.zeros(399), RATE)
    soundfile.write("least.wav", np.zeros(400), RATE)
    soundfile.write("nan.wav", np.array([0.1, np.nan] * 800), RATE, "FLOAT")
    refused("run", models[task], *arguments, says=says)


def test_an_option_of_audio_models_with_texts() -> None:
    synthesis.write_checkpoint(model_class("Data2VecTextForMaskedLM"), "tiny", 3, "texts")
    refused("run", "texts", "<mask>", "--padding", "exact", says="no setting of this name (got padding)")
    refused("run", "texts", "<mask>", "--chunk-length", "3", says="--chunk-length is not for fill-mask")
    refused("run", "texts", "a.wav", says="a.wav: is not UTF-8")
    refused("run", "texts", "b.wav", says="b.wav: there is no such file")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vocab.json", "expected vocab.json"),
        ("preprocessor_config.json", "expected preprocessor_config.json"),
        ("config.json", "config.json"),
        ("model.safetensors", "holds no weights"),
    ],
)
def test_missing_files(name: str, says: str, models: dict[str, Path]) -> None:
    folder = Path(shutil.copytree(models[SPEECH], "model"))
    (folder / name).unlink()
    refused("run", "model", "a.wav", says=says)


def test_another_sampling_rate_of_the_model(models: dict[str, Path]) -> None:
    """It is the feature extractor that says so, and a file is resampled to it."""
    folder = Path(shutil.copytree(models["feature-extraction"], "model"))
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(folder)
    assert np.shape(json.loads(d2v("run", folder, "a.wav", "--json").out)) == (1, 24, 64)


def test_numbers_that_are_not_finite(models: dict[str, Path]) -> None:
    folder = Path(shutil.copytree(models[SPEECH], "model"))
    _weights(lambda arrays: arrays["lm_head.weight"].fill(np.nan))(folder)
    refused("run", "model", "a.wav", says="The weight lm_head.weight is not finite")


@settings(max_examples=300)
@given(data=st.data())
def test_a_changed_byte_is_an_answer_or_one_line(data: st.DataObject, models: dict[str, Path]) -> None:
    shutil.rmtree("changed", ignore_errors=True)
    shutil.copytree(models[SPEECH], "changed")
    soundfile.write("changed/a.wav", signal(1000), RATE)
    names = ["a.wav", "vocab.json", "tokenizer_config.json", "preprocessor_config.json", "config.json"]
    path = Path("changed", data.draw(st.sampled_from(names)))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, min(len(content), 44 if path.suffix == ".wav" else 5000) - 1))
    content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    result = d2v("run", "changed", "changed/a.wav", "--json", "--timestamps", "word")
    if result.code == 0:
        assert json.loads(result.out).keys() == {"text", "chunks"}
    else:
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)


# ---- the process -----------------------------------------------------------------------------------------------------


def test_progress_is_shown_in_seconds_of_sound(
    terminal: tuple[int, int],  # noqa: F811
    models: dict[str, Path],
) -> None:
    ours, theirs = terminal
    soundfile.write("c.wav", signal(3 * RATE), RATE)
    run = ("run", models[SPEECH], "c.wav", "--chunk-length", "0.5")
    piped = real(*run, capture_output=True)
    assert (piped.returncode, piped.stderr) == (0, b"")
    shown = real(*run, stdout=subprocess.PIPE, stderr=theirs, env={"TERM": "xterm"})
    os.close(theirs)
    assert shown.stdout == piped.stdout
    assert b"automatic-speech-recognition" in os.read(ours, 1 << 16)


def test_a_bundle_of_a_recording(models: dict[str, Path]) -> None:
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(models[SPEECH])
    for inputs in (["a.wav"], ["a.wav", "b.flac"]):
        result = d2v("golden", "record", models[SPEECH], *inputs, "-o", f"bundle{len(inputs)}")
        assert result.code == 0
        assert "arrays of Data2VecAudioForCTC" in result.out
        arrays = golden.read_bundle(f"bundle{len(inputs)}").inputs
        want = extractor([read_audio(name) for name in inputs], padding=True).arrays()
        assert arrays.keys() == want.keys() == {"input_values", "attention_mask"}
        assert all(np.array_equal(arrays[name], want[name]) for name in want)
        checked = d2v("golden", "check", f"bundle{len(inputs)}")
        assert (checked.code, checked.err) == (0, "")
    refused("golden", "record", models[SPEECH], "nope.wav", "-o", "bundle", says="there is no such file")
