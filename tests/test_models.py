"""The checkpoints that come with the package: what they answer, under every name, in the demo, and when damaged."""

from __future__ import annotations

import json
import re
import shutil
import socket
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_cli import _here, d2v, disk, real, refused  # noqa: F401 - one is a fixture

import d2v_ref
from d2v_ref import models
from d2v_ref.auto import model_class
from d2v_ref.checkpoints import read_safetensors, resolve
from d2v_ref.errors import CheckpointError, D2VError
from d2v_ref.models import results
from d2v_ref.tasks.metrics import word_error_rate

# Of each checkpoint the class that config.json names, and the other one.
CLASSES = {
    "tiny-audio": ("Data2VecAudioForCTC", "Data2VecAudioForSequenceClassification"),
    "tiny-text": ("Data2VecTextForMaskedLM", "Data2VecTextForSequenceClassification"),
    "tiny-vision": ("Data2VecVisionForImageClassification", "Data2VecVisionForSemanticSegmentation"),
}
BACKENDS = [info.name for info in d2v_ref.backends() if info.available]
# How well the samples must be answered, a little less than they are; the word error rate is the smaller the better.
FLOORS = {
    "automatic-speech-recognition": 0.2,
    "audio-classification": 0.9,
    "image-classification": 0.95,
    "image-segmentation": 0.5,
    "fill-mask": 0.4,
    "text-classification": 0.8,
}
each_model = pytest.mark.parametrize("name", models.NAMES)


@cache
def answered(name: str, backend: str, dtype: str) -> list[results.Result]:
    return results.run(name, backend=backend, dtype=dtype)


# ---- answers --------------------------------------------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_answer_is_that_of_transformers(name: str, backend: str, dtype: str) -> None:
    found = answered(name, backend, dtype)
    assert [result.kind for result in found] in (list(CLASSES[name]), list(CLASSES[name])[::-1])
    assert sum(len(result.samples) for result in found) == len(models.samples(name)) >= 20
    for result in found:
        assert [sample.input for sample in result.differing()] == []


@each_model
def test_the_answers_are_good(name: str) -> None:
    for result in answered(name, "numpy", "float32"):
        measure, value = result.score()
        floor = FLOORS[result.task]
        assert value <= floor if measure == "word error rate" else value >= floor


def test_a_language_model_mends_most_words() -> None:
    """On voices of the synthesiser that tiny-audio was trained with, none of which it has heard."""
    task, scorer = "automatic-speech-recognition", models.folder("tiny-audio") / "numbers.arpa"
    chosen = [s for s in models.samples("tiny-audio") if s.task == task and "eSpeak" in s.held_out]
    pipe: Any = d2v_ref.pipeline(task, "tiny-audio")
    rates = [
        word_error_rate([pipe(s.given, **options)["text"] for s in chosen], [s.truth for s in chosen])
        for options in ({}, {"scorer": scorer})
    ]
    assert len(chosen) >= 10
    assert rates[1] <= min(rates[0], 0.05)


def test_another_answer_is_seen() -> None:
    """Were the answers not compared, all of the above would pass."""
    for name in models.NAMES:
        for result in answered(name, "numpy", "float32"):
            answers = list(result.answers)
            if isinstance(answers[1], str):
                answers[1] += "x"
            else:
                answers[1] = answers[1].copy()
                answers[1][0, 0] += 1
            changed = results.Result(result.model, result.kind, result.labels, result.samples, answers)
            assert changed.differing() == [result.samples[1]]


# ---- the folders ----------------------------------------------------------------------------------------------------


def files(name: str) -> list[Path]:
    return [path for path in models.folder(name).rglob("*") if path.is_file()]


def test_they_are_small() -> None:
    sizes = {path: path.stat().st_size for name in models.NAMES for path in files(name)}
    weights = sum(size for path, size in sizes.items() if path.suffix == ".safetensors")
    assert weights <= 6_000_000
    assert sum(sizes.values()) <= 7_000_000


@each_model
def test_a_folder_is_a_checkpoint_with_its_card(name: str) -> None:
    folder = models.folder(name)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert re.search(r"licen[cs]e", card, re.IGNORECASE)
    assert all(word in card for word in (name, "Apache"))
    assert json.loads((folder / "curve.json").read_text(encoding="utf-8"))["metrics"]
    assert {str(tensor.dtype) for tensor in read_safetensors(folder / "model.safetensors").values()} <= {
        "float16",
        "int64",
    }


@each_model
def test_every_file_is_installed(name: str) -> None:
    """By the patterns of pyproject.toml; that a wheel has them is for the README's first command to show."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["d2v_ref.models"]
    for path in files(name):
        parts = path.relative_to(models.ROOT).parts
        same_depth = [pattern for pattern in patterns if pattern.count("/") == len(parts) - 1]
        assert any(fnmatch("/".join(parts), pattern) for pattern in same_depth)


@each_model
def test_every_file_of_the_samples_belongs_to_one(name: str) -> None:
    folder = models.folder(name) / "samples"
    held = {path.name for path in folder.iterdir()} - {"samples.json"}
    named = [sample.input for sample in models.samples(name) if sample.task in models.FILE_TASKS]
    for sample in models.samples(name):
        if sample.task == "image-segmentation":
            named += [sample.truth, sample.output]
    assert len(set(named)) == len(named)
    assert held == set(named)


@each_model
def test_both_heads_load_and_the_other_one_is_reported(name: str) -> None:
    folder = models.folder(name)
    stored = set(read_safetensors(folder / "model.safetensors"))
    used = []
    for class_name in CLASSES[name]:
        report = model_class(class_name).from_pretrained(name).load_report
        assert report is not None
        assert report.origin == name
        assert report.fresh == []
        used.append(set(report.used.values()))
        assert set(report.unused) == stored - used[-1]
    left = stored - used[0] - used[1]
    assert all(key.endswith(".num_batches_tracked") for key in left)  # of BatchNorm, which nobody needs
    assert type(d2v_ref.load(name)).__name__ == CLASSES[name][0]


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@each_model
@pytest.mark.usefixtures("no_network")
def test_a_name_stands_for_its_folder(name: str) -> None:
    assert resolve(name) == resolve(name, weights=False, local_files_only=True) == models.folder(name)
    assert d2v_ref.pipeline(None, name).task == models.samples(name)[0].task or name == "tiny-text"
    parts = {
        "tiny-audio": (d2v_ref.Wav2Vec2FeatureExtractor, d2v_ref.Wav2Vec2CTCTokenizer),
        "tiny-text": (d2v_ref.TextTokenizer,),
        "tiny-vision": (d2v_ref.BeitImageProcessor,),
    }
    for part in parts[name]:
        assert isinstance(part.from_pretrained(name), part)


@each_model
@pytest.mark.usefixtures("no_network")
def test_run_and_golden_take_the_name(name: str) -> None:
    for sample in {sample.task: sample for sample in models.samples(name)}.values():
        result = d2v("run", name, sample.given, "--task", sample.task)
        assert (result.code, result.err) == (0, "")
        assert result.out
    own = next(sample for sample in models.samples(name) if sample.task == d2v_ref.pipeline(None, name).task)
    assert d2v("golden", "record", name, own.given, "-o", "golden").code == 0
    assert json.loads(Path("golden/manifest.json").read_text())["model"]["name"] == name
    for options in ([], ["--model", name]):
        result = d2v("golden", "check", "golden", *options)
        assert (result.code, result.err) == (0, "")


def test_a_folder_of_the_name_comes_first() -> None:
    shutil.copytree(models.folder("tiny-text"), "tiny-vision")
    assert resolve("tiny-vision") == Path("tiny-vision")
    assert type(d2v_ref.load("tiny-vision")).__name__ == CLASSES["tiny-text"][0]
    Path("tiny-text").mkdir()
    refused("run", "tiny-text", "A <mask>", says="config.json")
    Path("tiny-audio").touch()
    refused("run", "tiny-audio", "a.wav", says="tiny-audio: is a file")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tiny-txt", "Did you mean tiny-text?"),
        ("tiny_vision", "Did you mean tiny-vision?"),
        ("Tiny-Audio", "Did you mean tiny-audio?"),
        ("tinyaudio", "Did you mean tiny-audio?"),
        ("tiny-" + "x" * 90, None),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_a_name_that_is_none_is_not_looked_for_in_the_hub(name: str, hint: str | None) -> None:
    said = refused("run", name, "A", says="tiny-audio or tiny-text or tiny-vision")
    assert (hint in said) if hint else ("Did you mean" not in said)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        models.samples(name)


@pytest.mark.usefixtures("no_network")
def test_a_path_or_an_id_is_not_a_shipped_name() -> None:
    for name in (Path("tiny-text"), "./tiny-text"):
        with pytest.raises(CheckpointError, match="no such folder"):
            resolve(name)
    with pytest.raises(D2VError, match="not in the cache"):
        resolve("someone/tiny-text", local_files_only=True, cache_dir="cache")


def test_a_shipped_checkpoint_has_no_revisions() -> None:
    refused(
        "run", "tiny-text", "A <mask>", "--revision", "v1", says="tiny-text comes with d2v_ref and has no revisions"
    )
    refused("golden", "record", "tiny-text", "A <mask>", "-o", "b", "--revision", "v1", says="no revisions")
    with pytest.raises(CheckpointError, match="no revisions"):
        d2v_ref.load("tiny-text", revision="main")


# ---- the demo -------------------------------------------------------------------------------------------------------


def test_the_demo_in_a_fresh_process() -> None:
    done = real("demo", capture_output=True, env={"HF_HUB_OFFLINE": "1"})
    out = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b""), done
    lines = out.splitlines()
    assert all(len(line) < 100 for line in lines)
    for name in models.NAMES:
        for task in {sample.task for sample in models.samples(name)}:
            at = next(i for i, line in enumerate(lines) if line.startswith(f"{name}, {task} "))
            assert re.search(r"(\d+) of \1 answers are as recorded$", lines[at + 3])
    for backend in BACKENDS:
        assert re.search(rf"^  {backend}: (\d+) of \1 arrays passed$", out, re.MULTILINE)
    assert re.fullmatch(r"every answer and output is the recorded one; \d+ s", lines[-1])
    assert not re.search(r"\d s\b|/\w+/", "\n".join(lines[:-1])), "a time or a path of this machine"
    assert disk(Path()) == {}


@pytest.fixture
def copies(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of the shipped folders, in their place, with two samples a task."""
    root = tmp_path_factory.mktemp("models")
    for name in models.NAMES:
        shutil.copytree(models.folder(name), root / name)
        few: dict[str, list[Any]] = {}
        for entry in json.loads((root / name / models.SAMPLES).read_text(encoding="utf-8")):
            few.setdefault(entry["task"], []).append(entry)
        kept = [entry for entries in few.values() for entry in entries[:2]]
        (root / name / models.SAMPLES).write_text(json.dumps(kept), encoding="utf-8")
    monkeypatch.setattr(models, "ROOT", root)
    return root


def edit(root: Path, name: str, change: Callable[[list[Any]], Any]) -> None:
    path = root / name / models.SAMPLES
    entries = json.loads(path.read_text(encoding="utf-8"))
    change(entries)
    path.write_text(json.dumps(entries), encoding="utf-8")


def test_the_demo_keeps_its_golden_if_asked(copies: Path) -> None:
    result = d2v("demo", "--dtype", "float64", "-o", "kept")
    assert (result.code, result.err) == (0, "")
    assert "kept in kept" in result.out
    assert json.loads(Path("kept/manifest.json").read_text())["dtype"] == "float64"
    assert d2v("golden", "check", "kept").code == 0
    refused("demo", "-o", "kept", says="kept: exists already")
    refused("demo", "--backend", "nope", says="no backend is called 'nope'", code=3)


def falsify(sample: models.Sample, root: Path, name: str) -> None:
    """Another answer on record, in one pixel if it is a map."""
    if sample.task == "image-segmentation":
        labels = np.asarray(Image.open(sample.folder / sample.output)).copy()
        labels[5, 5] = (labels[5, 5] + 1) % 11
        Image.fromarray(labels).save(sample.folder / sample.output)
    else:
        same = {"task": sample.task, "input": sample.input}
        edit(root, name, lambda entries: next(e for e in entries if e.items() >= same.items()).update(output="another"))


def test_the_demo_tells_an_answer_that_is_not_the_recorded_one(copies: Path) -> None:
    falsify(models.samples("tiny-vision")[-1], copies, "tiny-vision")
    result = d2v("demo")
    assert result.code == 1
    wanted = "1 of 2 answers of tiny-vision, image-segmentation, are not the recorded ones, the first to "
    assert re.fullmatch(f"d2v-ref: error: {re.escape(wanted)}[^\n]*\n", result.err)
    assert result.out.count("2 of 2 answers are as recorded") == len(models.TASKS) - 1
    assert "every answer" not in result.out


def test_the_demo_tells_wrong_answers_of_every_task(copies: Path) -> None:
    for name in models.NAMES:
        for sample in {sample.task: sample for sample in models.samples(name)}.values():
            falsify(sample, copies, name)
    result = d2v("demo")
    assert result.code == 1
    assert result.err.startswith("d2v-ref: error: 1 of 2 answers of tiny-audio, automatic-speech-recognition, ")
    assert result.err.endswith(f"{len(models.TASKS)} such differences in all\n")
    assert result.out.count("1 of 2 answers are as recorded") == len(models.TASKS)


def test_the_demo_tells_a_golden_that_differs(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(d2v_ref.Ops):
        name = "wrong"

        def softmax(self, x: Any) -> Any:
            return super().softmax(x) * 1.001

    monkeypatch.setattr("d2v_ref.ops.backends", lambda: [*known, known[0].__class__("wrong", True)])
    monkeypatch.setattr("d2v_ref.ops.registry._load", lambda name: Wrong if name == "wrong" else d2v_ref.Ops)
    result = d2v("demo")
    assert result.code == 1
    assert "the golden of tiny-audio differs with backend wrong, first in data2vec_audio.encoder.layers.0" in result.err


known = d2v_ref.backends()[:1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda entries: entries.clear(), "no list of samples"),
        (lambda entries: entries.append([]), "is none"),
        (lambda entries: entries[0].pop("output"), "its sample 0 is none"),
        (lambda entries: entries[1].update(truth=3), "its sample 1 is none"),
        (lambda entries: entries[0].update(task="summarization"), "unknown task"),
        (lambda entries: entries[0].update(input="nothing.flac"), "names a file that is not there"),
        (lambda entries: entries[0].update(input="../config.json"), "names a file that is not there"),
        (lambda entries: entries[0].update(input=""), "names a file that is not there"),
    ],
)
def test_damaged_samples(change: Callable[[list[Any]], Any], says: str, copies: Path) -> None:
    edit(copies, "tiny-audio", change)
    refused("demo", says=says)


@pytest.mark.parametrize("content", [b"[", b"\xff", b"{}", b'"x"', None])
def test_samples_that_are_none(content: bytes | None, copies: Path) -> None:
    path = copies / "tiny-audio" / models.SAMPLES
    path.unlink() if content is None else path.write_bytes(content)
    assert "Install d2v_ref again" in refused("demo", says="samples.json")


def test_a_damaged_file_of_a_sample(copies: Path) -> None:
    sample = models.samples("tiny-audio")[0]
    Path(sample.given).write_bytes(b"RIFF")
    refused("demo", says=sample.input)
