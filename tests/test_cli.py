"""The command line: answers, JSON, files and streams; and that what is wrong ends in one line and a code, and leaves
nothing on disk.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v_ref import synthesis, tasks
from d2v_ref.auto import MODELS, model_class
from d2v_ref.checkpoints import read_safetensors, write_safetensors
from d2v_ref.cli import main
from d2v_ref.tasks import TASKS, pipeline

TEXT = {task.name: task.model for task in TASKS if task.pipeline.modality == "text"}
ENTRY = [sys.executable, "-m", "d2v_ref"]
ROOT = Path(__file__).parents[1]
COMMANDS: tuple[list[str], ...] = (
    [],
    ["run"],
    ["golden"],
    ["golden", "record"],
    ["golden", "check"],
    ["audit"],
    ["diff"],
    ["synth"],
    ["bench"],
    ["warmup"],
    ["backends"],
    ["demo"],
)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def d2v(*arguments: str | Path, stdin: bytes = b"") -> Result:
    """The command in this process, which saves a new one's imports."""
    out, err = io.BytesIO(), io.BytesIO()
    say, complain = (io.TextIOWrapper(stream, "utf-8", write_through=True) for stream in (out, err))
    read = mock.patch("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    with redirect_stdout(say), redirect_stderr(complain), read, pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return Result(int(end.value.code or 0), out.getvalue().decode(), err.getvalue().decode())


def real(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, as a shell starts it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    return subprocess.run([*ENTRY, *map(str, arguments)], env=environment, check=False, timeout=60, **options)


def disk(folder: Path) -> dict[str, Any]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def refused(*arguments: str | Path, says: str, code: int = 2, stdin: bytes = b"") -> str:
    """The one line of an error; nothing else was printed and nothing was written."""
    before = disk(Path())
    result = d2v(*arguments, stdin=stdin)
    assert (result.code, result.out) == (code, ""), result
    assert re.fullmatch(r"d2v-ref: error: [^\n]*\n", result.err), result.err
    assert result.err[:-1].isprintable()
    assert says in result.err
    assert disk(Path()) == before
    return result.err


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint for every task."""
    root = tmp_path_factory.mktemp("models")
    for task, name in TEXT.items():
        synthesis.write_checkpoint(model_class(name), "tiny", 3, root / task)
    return {task: root / task for task in TEXT}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_a_terminal_and_cuts_nothing_off(command: list[str]) -> None:
    result = d2v(*command, "--help")
    assert result.code == 0
    assert all(len(line) <= 100 for line in result.out.splitlines())
    assert "..." not in result.out.replace("]...", "").replace("[ARGS]...", "")


def test_help_of_run_has_a_heading_for_each_task_and_keeps_its_examples() -> None:
    text = d2v("run", "--help").out
    headings = "".join(re.findall(r"^For [^:]*:", text, re.MULTILINE))
    assert all(task.name in headings for task in TASKS)
    assert '\n  d2v-ref run my-qa-model "Who wrote it?" --context book.txt\n' in text
    assert set(re.findall(r"--[a-z-]+", text)) >= {"--task", "--json", "--context", "--choice", "--aggregation"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["nope"],
        ["run", "m", "--task", "nope"],
        ["run", "m", "x", "--top-k", "0"],
        ["golden", "record", "m", "x"],
    ],
)
def test_wrong_use_shows_how_it_is_meant(arguments: list[str]) -> None:
    result = d2v(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Usage: d2v-ref" in result.err
    assert "Try 'd2v-ref" in result.err


def test_a_dtype_that_the_backend_does_not_compute_in() -> None:
    result = d2v("run", "tiny-text", "a small <mask>", "--dtype", "tf32")
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith("d2v-ref: error: backend numpy does not compute in this dtype (got tf32; expected")
    assert result.err.count("\n") == 1


def test_backends_are_listed() -> None:
    assert "numpy: available" in d2v("backends").out.splitlines()


# ---- answers --------------------------------------------------------------------------------------------------------

QUESTION = {"question": "Who?", "context": "It was Ann."}
CHOICES = {"prompt": "It was", "choices": ["cold", "late"]}
# Task: the text, the options, the pipeline's input and its arguments.
RUNS: dict[str, tuple[str, list[str], Any, dict[str, Any]]] = {
    "fill-mask": ("The <mask> is", ["--top-k", "3"], "The <mask> is", {"top_k": 3}),
    "text-classification": ("A", ["--pair", "B"], [{"text": "A", "text_pair": "B"}], {"top_k": 5}),
    "token-classification": ("Ann is", ["--aggregation", "max"], ["Ann is"], {"aggregation_strategy": "max"}),
    "question-answering": ("Who?", ["--context", "It was Ann.", "--top-k", "2"], QUESTION, {"top_k": 2}),
    "multiple-choice": ("It was", ["--choice", "cold", "--choice", "late"], [CHOICES], {}),
    "text-generation": ("Once", ["--max-new-tokens", "4"], ["Once"], {"max_new_tokens": 4}),
    "feature-extraction": ("Once", ["--pooling", "mean"], ["Once"], {"pooling": "mean"}),
}


def same(a: Any, b: Any) -> bool:
    """Equal JSON values, numbers up to what another batch size may round."""
    if isinstance(a, float):
        return a == pytest.approx(b, rel=1e-5)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    return a == b


@pytest.mark.parametrize("task", TEXT)
def test_a_text_has_the_pipelines_answer(task: str, models: dict[str, Path]) -> None:
    text, options, given, arguments = RUNS[task]
    want = pipeline(None, models[task])(given, **arguments)
    if task not in ("fill-mask", "question-answering"):  # those unwrap a list of one themselves
        want = want[0]
    result = d2v("run", models[task], text, "--json", *options)
    assert (result.code, result.err) == (0, "")
    assert same(json.loads(result.out), np.asarray(want).tolist() if task == "feature-extraction" else want)


@pytest.mark.parametrize("task", TEXT)
def test_a_file_has_a_list_of_answers_be_it_of_one_line(task: str, models: dict[str, Path]) -> None:
    text, options, _, _ = RUNS[task]
    answer = json.loads(d2v("run", models[task], text, "--json", *options).out)
    Path("one.txt").write_text(text, encoding="utf-8")
    Path("two.txt").write_text(f"{text}\n\n{text}\n", encoding="utf-8")
    for arguments, count in ((["one.txt"], 1), (["two.txt"], 2), ([text, "one.txt"], 2), (["-"], 1), ([], 1)):
        result = d2v("run", models[task], *arguments, "--json", *options, stdin=text.encode())
        assert same(json.loads(result.out), [answer] * count)


@pytest.mark.parametrize("task", TEXT)
def test_a_readable_answer(task: str, models: dict[str, Path]) -> None:
    text, options, _, _ = RUNS[task]
    one = d2v("run", models[task], text, *options)
    two = d2v("run", models[task], text, text, *options)
    assert (one.code, one.err) == (two.code, two.err) == (0, "")
    assert one.out.strip()
    assert two.out == f"> {text}\n{one.out}" * 2
    assert all(line.isprintable() for line in one.out.splitlines())


def test_the_task_can_be_another_than_the_heads(models: dict[str, Path]) -> None:
    model = models["fill-mask"]
    features = json.loads(d2v("run", model, "A", "--task", "feature-extraction", "--pooling", "first", "--json").out)
    assert np.shape(features) == (1, 64)
    assert d2v("run", model, "A", "--task", "text-generation", "--decoder").out.startswith("A")
    result = d2v("run", model, "A", "--task", "text-classification", "--init-missing", "1", "--report")
    assert len(result.out.splitlines()) == 2
    assert "fresh classifier.dense.weight" in result.err
    refused("run", model, "A", "--task", "text-classification", says="weights are missing")
    refused("run", model, "A", "--task", "text-generation", says="--decoder")


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"\xef\xbb\xbfA <mask>\n", ["A <mask>"]),
        (b"A <mask>\r\nB <mask>\r\n", ["A <mask>", "B <mask>"]),
        (b"A <mask>\rB <mask>", ["A <mask>", "B <mask>"]),
        ("A\u2028 <mask>\x0b\n".encode(), ["A\\u2028 <mask>\\x0b"]),
        (b"-x <mask>\n\n  \n--top-k <mask>", ["-x <mask>", "--top-k <mask>"]),
    ],
)
def test_lines_of_a_file(data: bytes, lines: list[str], models: dict[str, Path]) -> None:
    Path("a").write_bytes(data + b"\nlast <mask>")
    result = d2v("run", models["fill-mask"], "a", "--top-k", "1")
    assert [line[2:] for line in result.out.splitlines() if line.startswith("> ")] == [*lines, "last <mask>"]


def test_a_text_that_begins_with_a_dash(models: dict[str, Path]) -> None:
    assert d2v("run", models["fill-mask"], "--top-k", "1", "--", "-x <mask>").out.count("\n") == 1


def test_features_go_to_a_file(models: dict[str, Path]) -> None:
    model = models["feature-extraction"]
    Path("f.npz").write_bytes(b"old")
    result = d2v("run", model, "A", "B and", "-o", "f.npz")
    assert (result.code, result.out, result.err) == (0, "", "f.npz: text_0 ... text_1\n")
    want = pipeline(None, model)(["A", "B and"], batch_size=8)
    with np.load("f.npz") as file:
        assert file.files == ["text_0", "text_1"]
        assert all(np.array_equal(file[f"text_{i}"], want[i][0]) for i in range(2))
    assert sorted(disk(Path())) == ["f.npz"]


def test_control_characters_do_not_reach_the_terminal(models: dict[str, Path]) -> None:
    result = d2v("run", models["multiple-choice"], "A", "B", "--choice", "x\x1b]0;y\x07\n", "--choice", "\x9b1m\u202e")
    assert "x\\x1b]0;y\\x07\\n" in result.out
    assert "\\x9b1m\\u202e" in result.out
    folder = shutil.copytree(models["text-classification"], Path("evil\x1b[2J"))
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "\x1b[31mred", "1": "\x07"}
    (folder / "config.json").write_text(json.dumps(config))
    assert "\\x1b[31mred" in d2v("run", folder, "A").out
    assert json.loads(d2v("run", folder, "A", "--json").out)[0]["label"] in ("\x1b[31mred", "\x07")
    (folder / "config.json").unlink()
    assert "evil\\x1b[2J" in refused("run", folder, "A", says="config.json")


# ---- what is wrong with the call ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "arguments", "says"),
    [
        ("fill-mask", [""], "the text is empty"),
        ("fill-mask", ["no mask"], "no <mask>"),
        ("fill-mask", ["<mask>" + "a" * 200], "too long"),
        ("fill-mask", ["<mask> \udcff"], "no Unicode text"),
        ("fill-mask", ["<mask>", "--top-k", "2000"], "top_k"),
        ("fill-mask", ["<mask>", "--pair", "x"], "--pair is not for fill-mask"),
        ("fill-mask", ["<mask>", "--choice", "x"], "--choice is not for fill-mask"),
        ("fill-mask", ["<mask>", "-o", "f.npz"], "--output is not for fill-mask"),
        ("fill-mask", ["<mask>", "--tokenizer", "./nope"], "no such folder"),
        ("text-generation", ["A", "--top-k", "3"], "--top-k is not for text-generation"),
        ("text-generation", ["A", "--top-p", "0.5"], "--top-p has no effect without --sample"),
        ("text-generation", ["A", "--sample", "--top-p", "2"], "top_p"),
        ("text-generation", ["A", "--sample", "--temperature", "nan"], "temperature"),
        ("text-generation", ["A", "--max-new-tokens", "500"], "max_new_tokens"),
        ("question-answering", ["Who?"], "--context"),
        ("question-answering", ["Who?", "--context", " "], "--context is empty"),
        ("question-answering", ["Who?", "--context", "A", "--truncate"], "read in windows"),
        ("question-answering", ["a" * 200, "--context", "A"], "too little room"),
        ("multiple-choice", ["A", "--choice", "x"], "--choice A --choice B"),
        ("multiple-choice", ["A", "--choice", "x", "--choice", ""], "is empty"),
        ("feature-extraction", ["A", "-o", "f.txt"], "a name in .npz"),
        ("feature-extraction", ["A", "-o", "nope/f.npz"], "can't be written"),
        ("feature-extraction", ["nope.txt"], "there is no such file"),
        ("feature-extraction", ["folder"], "is a folder"),
        ("feature-extraction", ["empty"], "the text is empty"),
        ("feature-extraction", ["blank"], "the text is empty"),
        ("feature-extraction", ["latin"], "is not UTF-8 (got byte 0xe9 at 3"),
        ("feature-extraction", [], "standard input: the text is empty"),
    ],
)
def test_wrong_inputs(task: str, arguments: list[str], says: str, models: dict[str, Path]) -> None:
    for name, data in (("empty", b""), ("blank", b"\n \r\n"), ("latin", b"caf\xe9")):
        Path(name).write_bytes(data)
    Path("folder").mkdir()
    refused("run", models[task], *arguments, says=says)


def test_standard_input_that_is_not_utf8(models: dict[str, Path]) -> None:
    refused("run", models["feature-extraction"], "-", stdin=b"caf\xe9", says="standard input: is not UTF-8")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("./nope", "no such folder"),
        ("a file", "is a file"),
        ("", "neither a folder"),
        ("a b", "neither"),
        ("x" * 5000, "no usable path"),
    ],
)
def test_models_that_are_none(model: str, says: str) -> None:
    Path("a file").write_bytes(b"")
    refused("run", model, "A", says=says)
    refused("golden", "record", model, "A", "-o", "b", says=says)


def test_what_this_machine_lacks(models: dict[str, Path]) -> None:
    refused("run", "owner/name", "A", "--local-files-only", "--cache-dir", "cache", says="not in the cache", code=3)
    refused("run", models["feature-extraction"], "A", "--backend", "nope", says="no backend is called 'nope'", code=3)
    done = real(
        "run", "owner/name", "A", capture_output=True, env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(Path().resolve())}
    )
    assert done.returncode == 3
    assert done.stderr.decode().startswith("d2v-ref: error: owner/name (revision main) is not in the cache")
    assert done.stderr.count(b"\n") == 1


# ---- damaged checkpoints --------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def _evil_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"x": Evil()}, protocol=2))


def _cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def _config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def _weights(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        arrays = {name: tensor.numpy().copy() for name, tensor in read_safetensors(path).items()}
        change(arrays)
        write_safetensors(path, arrays)

    return rewrite


WORDS = "data2vec_text.embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_evil_pickle, "pytorch_model.bin"),
        (_cut("model.safetensors"), "cut short"),
        (_cut("config.json"), "is not JSON"),
        (_cut("tokenizer.json"), "is not JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff{}"), "not JSON in UTF-8"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is not a configuration"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "the file is empty"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "is not a tokenizer"),
        (_config(hidden_size=32), "has another shape"),
        (_config(hidden_size="64"), "hidden_size has the wrong type"),
        (_config(num_labels="2", id2label=None), "num_labels"),
        (_config(architectures=["BertModel"]), "architectures"),
        (_config(num_hidden_layers=3), "weights are missing"),
        (_weights(lambda arrays: arrays.pop(WORDS)), "weights are missing"),
        (_weights(lambda arrays: arrays.update({WORDS: arrays[WORDS][:, :9]})), "has another shape"),
        (_weights(lambda arrays: arrays.update({WORDS: arrays[WORDS].astype(np.int64)})), "is not floating-point"),
        (_weights(lambda arrays: arrays[WORDS].fill(np.nan)), f"{WORDS} is not finite"),
        (_weights(lambda arrays: arrays[WORDS].fill(3e38)), "not finite"),
    ],
)  # fmt: skip
def test_damaged_checkpoints(damage: Callable[[Path], Any], says: str, models: dict[str, Path]) -> None:
    shutil.copytree(models["fill-mask"], "model")
    damage(Path("model"))
    refused("run", "model", "A <mask>", says=says)
    refused("run", "model", "A <mask>", "--json", says=says)


@settings(max_examples=400)
@given(data=st.data())
def test_a_changed_byte_is_an_answer_or_one_line(data: st.DataObject, models: dict[str, Path]) -> None:
    folder = Path("changed")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(models["text-classification"], folder)
    path = folder / data.draw(st.sampled_from(["config.json", "tokenizer.json", "model.safetensors"]))
    content = bytearray(path.read_bytes())
    # Of the weights the header, which is what can go wrong.
    place = data.draw(st.integers(0, min(len(content), 6000) - 1))
    content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    result = d2v("run", folder, "Ann is", "--json")
    if result.code == 0:
        assert len(json.loads(result.out)) >= 1
    else:
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)


# ---- synth ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_synth_writes_a_checkpoint_of_every_class(name: str) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        result = d2v("synth", name, folder, "--seed", str(seed))
        assert (result.code, result.err) == (0, "")
        layers = 4 if "Vision" in name else 2
        assert result.out == f"{folder}: {name}, {layers} layers of width 64, seed {seed}\n"
    a, b, c = ((Path(folder) / "model.safetensors").read_bytes() for folder in "abc")
    assert a == b != c
    prepares = {
        "data2vec-text": ["tokenizer.json"],
        "data2vec-audio": ["preprocessor_config.json", "vocab.json"],
        "data2vec-vision": ["preprocessor_config.json"],
    }
    written = {"config.json", "model.safetensors", *prepares[model_class(name).config_class.model_type]}
    assert set(disk(Path("a"))) >= written
    model = model_class(name).from_pretrained("a")
    assert model.load_report is not None
    assert not model.load_report.unused


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (["Nope", "m"], "no model of this name", 2),
        (["Data2VecTextModel", "there"], "exists already", 2),
        (["Data2VecTextModel", "."], "exists already", 2),
        (["Data2VecTextModel", "link"], "exists already", 2),
        (["Data2VecTextModel", "nope/m"], "can't be written", 2),
        (["Data2VecTextModel", "a file/m"], "can't be written", 2),
        (["Data2VecTextModel", "x" * 300], "can't be written", 2),
        (["Data2VecTextModel", "m", "--seed", str(1 << 64)], "the seed is out of range", 2),
        (["Data2VecTextForQuestionAnswering", "m", "--num-labels", "3"], "question answering", 2),
    ],
)  # fmt: skip
def test_what_synth_refuses(arguments: list[str], says: str, code: int) -> None:
    Path("there").mkdir()
    Path("link").symlink_to("nowhere")
    Path("a file").write_bytes(b"")
    refused("synth", *arguments, says=says, code=code)


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left"), 3), (MemoryError(), 3)]
)
def test_synth_that_breaks_off_leaves_nothing(error: BaseException, code: int) -> None:
    with mock.patch.object(synthesis, "write_json", side_effect=error):
        result = d2v("synth", "Data2VecTextModel", "m")
    assert result.code == code
    assert "Traceback" not in result.err
    assert disk(Path()) == {}


# ---- the process ----------------------------------------------------------------------------------------------------


def test_a_run_that_breaks_off(models: dict[str, Path]) -> None:
    with mock.patch.object(tasks, "pipeline", side_effect=KeyboardInterrupt):
        assert d2v("run", models["fill-mask"], "<mask>") == Result(130, "", "\n")
    with mock.patch.object(tasks, "pipeline", side_effect=MemoryError):
        refused("run", models["fill-mask"], "<mask>", says="the memory does not suffice", code=3)


def test_a_reader_that_goes_away(models: dict[str, Path]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = real("run", models["feature-extraction"], "A", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_full(models: dict[str, Path]) -> None:
    with open("/dev/full", "wb") as full:
        done = real("run", models["feature-extraction"], "A", stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (3, b"d2v-ref: error: the system refuses: No space left on device\n")


def test_an_output_that_lacks_letters(models: dict[str, Path]) -> None:
    done = real(
        "run", models["text-generation"], "\U0001f642", capture_output=True, env={"PYTHONIOENCODING": "latin-1"}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"\\U0001f642")


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    pty = pytest.importorskip("pty", reason="needs a pseudo-terminal")
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)


def test_progress_is_shown_on_a_terminal_only(terminal: tuple[int, int], models: dict[str, Path]) -> None:
    ours, theirs = terminal
    run = ("run", models["feature-extraction"], "A", "B", "--pooling", "mean")
    piped = real(*run, capture_output=True)
    assert (piped.returncode, piped.stderr) == (0, b"")
    shown = real(*run, stdout=subprocess.PIPE, stderr=theirs, env={"TERM": "xterm"})
    os.close(theirs)
    assert shown.stdout == piped.stdout
    bar = os.read(ours, 1 << 16)
    assert b"feature-extraction" in bar
    assert bar.rstrip().endswith(b"\x1b[2K")  # the bar was wiped away
