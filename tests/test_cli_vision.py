"""The command line with vision models: answers, maps and overlays on disk, folders and streams, what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_cli import _config, _cut, _here, _weights, d2v, disk, real, refused, same, terminal  # noqa: F401 - fixtures
from test_vision_tasks import VISION, pixels

from d2v_ref import golden, synthesis
from d2v_ref.auto import model_class
from d2v_ref.cli.run_vision import outputs
from d2v_ref.processing import segmentation_maps
from d2v_ref.processing.image_processor import BeitImageProcessor
from d2v_ref.processing.pictures import read_image
from d2v_ref.processing.segmentation_maps import label_colours, overlay
from d2v_ref.tasks import pipeline

SEGMENTS, CLASSES, FEATURES = "image-segmentation", "image-classification", "image-feature-extraction"
A, B = {"a-map.png", "a-overlay.png"}, {"b-map.png", "b-overlay.png"}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint for every task."""
    root = tmp_path_factory.mktemp("models")
    for task, name in VISION.items():
        labels = None if task == FEATURES else 4
        synthesis.write_checkpoint(model_class(name), "tiny", 3, root / task, num_labels=labels)
    return {task: root / task for task in VISION}


@pytest.fixture(autouse=True)
def _pictures(_here: None) -> None:  # noqa: F811
    Image.fromarray(pixels((60, 90))).save("a.png")
    Image.fromarray(pixels((90, 60), 1)).save("b.jpg", quality=95)


# Task: options, and the pipeline's arguments.
RUNS: dict[str, tuple[list[str], dict[str, Any]]] = {
    CLASSES: (["--top-k", "2"], {"top_k": 2}),
    FEATURES: (["--pooling", "mean"], {"pooling": "mean"}),
}


@pytest.mark.parametrize("task", RUNS)
def test_a_picture_has_the_pipelines_answer(task: str, models: dict[str, Path]) -> None:
    options, arguments = RUNS[task]
    want = json.loads(json.dumps(pipeline(None, models[task])("a.png", **arguments), default=lambda x: x.tolist()))
    result = d2v("run", models[task], "a.png", "--json", *options)
    assert (result.code, result.err) == (0, "")
    assert same(json.loads(result.out), want)
    data = Path("a.png").read_bytes()
    for inputs in (["-"], []):
        assert d2v("run", models[task], *inputs, "--json", *options, stdin=data).out == result.out
    assert disk(Path()).keys() == {"a.png", "b.jpg"}


@pytest.mark.parametrize("task", RUNS)
def test_several_pictures_have_a_list_of_answers(task: str, models: dict[str, Path]) -> None:
    options, _ = RUNS[task]
    a, b = (json.loads(d2v("run", models[task], name, "--json", *options).out) for name in ("a.png", "b.jpg"))
    for size in ("1", "2", "5"):
        result = d2v("run", models[task], "b.jpg", "a.png", "--json", "--batch-size", size, *options)
        assert same(json.loads(result.out), [b, a])
    Path("folder").mkdir()
    shutil.copy("b.jpg", "folder/x.JPEG")
    shutil.copy("a.png", "folder/y.png")
    Path("folder/notes.txt").write_text("no picture")
    assert same(json.loads(d2v("run", models[task], "folder", "--json", *options).out), [b, a])
    Path("folder/x.JPEG").unlink()
    assert same(json.loads(d2v("run", models[task], "folder", "--json", *options).out), [a])


@pytest.mark.parametrize("task", RUNS)
def test_a_readable_answer(task: str, models: dict[str, Path]) -> None:
    options, _ = RUNS[task]
    one = d2v("run", models[task], "a.png", *options)
    two = d2v("run", models[task], "a.png", "a.png", *options)
    assert (one.code, one.err) == (two.code, two.err) == (0, "")
    assert one.out.strip()
    assert two.out == f"> a.png\n{one.out}" * 2
    assert all(line.isprintable() for line in one.out.splitlines())


def test_five_labels_unless_told_otherwise(models: dict[str, Path]) -> None:
    synthesis.write_checkpoint(model_class(VISION[CLASSES]), "tiny", 3, "seven", num_labels=7)
    answers = pipeline(None, "seven")("a.png", top_k=7)
    lines = [f"{answer['score']:8.4f}  {answer['label']}" for answer in answers]
    assert d2v("run", "seven", "a.png").out.splitlines() == lines[:5]
    assert d2v("run", "seven", "a.png", "--top-k", "9").out.splitlines() == lines


def test_the_task_can_be_another_than_the_heads(models: dict[str, Path]) -> None:
    for name in ("feature-extraction", FEATURES):
        features = json.loads(d2v("run", models[CLASSES], "a.png", "--task", name, "--json").out)
        assert np.shape(features) == (1, 65, 64)
    refused("run", models[CLASSES], "a.png", "--task", SEGMENTS, says="weights are missing")


def test_features_go_to_a_file(models: dict[str, Path]) -> None:
    result = d2v("run", models[FEATURES], "a.png", "b.jpg", "-o", "f.npz")
    assert (result.code, result.out, result.err) == (0, "", "f.npz: image_0 ... image_1\n")
    want = pipeline(None, models[FEATURES])(["a.png", "b.jpg"])
    with np.load("f.npz") as file:
        assert file.files == ["image_0", "image_1"]
        assert all(np.array_equal(file[f"image_{i}"], want[i]) for i in range(2))


# ---- maps and overlays -----------------------------------------------------------------------------------------------


def test_maps_and_overlays(models: dict[str, Path]) -> None:
    answers = pipeline(None, models[SEGMENTS])(["a.png", "b.jpg"])
    result = d2v("run", models[SEGMENTS], "a.png", "b.jpg")
    assert (result.code, result.err) == (0, "")
    assert disk(Path()).keys() == {"a.png", "b.jpg", *A, *B}
    names = {index: f"LABEL_{index}" for index in range(4)}
    lines: list[str] = []
    for path, answer in zip(("a.png", "b.jpg"), answers, strict=True):
        assert len(answer["segments"]) > 1
        with Image.open(f"{path[0]}-map.png") as picture:
            assert picture.mode == "P"
            assert np.array_equal(np.asarray(picture), answer["map"])
            colours = np.asarray(picture.convert("RGB"))
            assert np.array_equal(colours, label_colours(names)[answer["map"]])
        with Image.open(f"{path[0]}-overlay.png") as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(overlay(path, answer["map"], names)))
        found = sorted(answer["segments"], key=lambda entry: -entry["share"])
        lines += [f"> {path}", *(f"{100 * entry['share']:7.2f}%  {entry['label']}" for entry in found)]
        lines += [f"     map  {path[0]}-map.png", f" overlay  {path[0]}-overlay.png"]
    assert result.out.splitlines() == lines


def test_maps_as_json(models: dict[str, Path]) -> None:
    Path("out").mkdir()
    run = ("run", models[SEGMENTS], "--json", "-o", "out")
    result = d2v(*run, "a.png")
    assert (result.code, result.err) == (0, "")
    answer = json.loads(result.out)
    assert answer.keys() == {"segments", "map", "overlay"}
    assert {Path(answer[name]) for name in ("map", "overlay")} == {Path("out", name) for name in A}
    want = pipeline(None, models[SEGMENTS])("a.png")["segments"]
    assert same(answer["segments"], [{name: entry[name] for name in ("label", "index", "share")} for entry in want])
    assert isinstance(json.loads(d2v(*run, "a.png", "b.jpg").out), list)
    assert disk(Path("out")).keys() == A | B


def test_a_map_of_standard_input(models: dict[str, Path]) -> None:
    for inputs in (["-"], []):
        result = d2v("run", models[SEGMENTS], *inputs, stdin=Path("a.png").read_bytes())
        assert (result.code, result.err) == (0, "")
        assert result.out.splitlines()[-2:] == ["     map  picture-map.png", " overlay  picture-overlay.png"]
        assert disk(Path()).keys() == {"a.png", "b.jpg", "picture-map.png", "picture-overlay.png"}
    with Image.open("picture-map.png") as picture:
        assert np.array_equal(np.asarray(picture), pipeline(None, models[SEGMENTS])("a.png")["map"])


def test_no_input_is_overwritten_and_no_name_is_used_twice(models: dict[str, Path]) -> None:
    Path("other").mkdir()
    for name in ("a.jpg", "other/a.png", "a-2.png", "a-map.png"):
        Image.fromarray(pixels((20, 20), 2)).save(name)
    Path("a-overlay.png").write_bytes(b"of an earlier run")
    inputs = ["a.png", "a.jpg", "other/a.png", "a-2.png", "a-map.png", "a.png"]
    before = {name: Path(name).read_bytes() for name in inputs}
    answers = json.loads(d2v("run", models[SEGMENTS], *inputs, "--json").out)
    written = [answer[name] for answer in answers for name in ("map", "overlay")]
    assert len(set(written)) == 2 * len(inputs)
    assert not set(written) & set(inputs)
    assert {name: Path(name).read_bytes() for name in inputs} == before
    assert all(Path(name).stat().st_size for name in written)
    assert [read_image(answer["map"]).size for answer in answers] == [read_image(name).size for name in inputs]
    first = json.loads(d2v("run", models[SEGMENTS], "a.png", "--json", "-o", "other").out)
    assert first["map"] == os.path.join("other", "a-map.png")


@given(
    stems=st.lists(st.sampled_from(["a", "A", "a-2", "a-map", "a-overlay", "a-2-map", "b"]), min_size=1, max_size=7),
    folder=st.sampled_from([".", "x", "./x/../"]),
    data=st.data(),
)
def test_names_of_files(stems: list[str], folder: str, data: st.DataObject) -> None:
    suffixes, places = st.sampled_from([".png", ".jpg", ""]), st.sampled_from(["", "x/", "./"])
    inputs = [Path(data.draw(places) + stem + data.draw(suffixes)) for stem in stems]
    found = outputs(inputs, Path(folder))
    assert len(found) == len(inputs)
    everything = [path.resolve() for names in found for path in names]
    folded = {str(path).casefold() for path in everything}
    assert len(folded) == len(everything)  # also where a disk takes A for a
    assert not folded & {str(path.resolve()).casefold() for path in inputs}
    assert all(path.parent == Path(folder).resolve() for path in everything)
    for path, names in zip(inputs, found, strict=True):
        assert names.map.name.startswith(path.stem)
        assert names.map.name.removesuffix("-map.png") == names.overlay.name.removesuffix("-overlay.png")


def test_a_link_to_an_input_is_not_overwritten(models: dict[str, Path]) -> None:
    data = Path("a.png").read_bytes()
    Path("b-map.png").symlink_to("a.png")
    answers = json.loads(d2v("run", models[SEGMENTS], "a.png", "b.jpg", "--json").out)
    assert [answer["map"] for answer in answers] == ["a-map.png", "b-2-map.png"]
    assert Path("a.png").read_bytes() == data
    assert Path("b-map.png").is_symlink()


@pytest.mark.parametrize("step", ["indexed_png", "overlay"])
def test_a_run_that_breaks_off_leaves_whole_files_only(step: str, models: dict[str, Path]) -> None:
    original, calls = getattr(segmentation_maps, step), []

    def twice(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    with mock.patch.object(segmentation_maps, step, twice):
        assert d2v("run", models[SEGMENTS], "a.png", "b.jpg").code == 130
    assert disk(Path()).keys() == {"a.png", "b.jpg", *A} | ({"b-map.png"} if step == "overlay" else set())


def test_a_file_that_can_not_be_replaced(models: dict[str, Path]) -> None:
    Path("a-overlay.png").mkdir()
    result = d2v("run", models[SEGMENTS], "a.png")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "a-overlay.png: can't be written" in result.err
    assert disk(Path()).keys() == {"a.png", "b.jpg", *A}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_can_not_be_written_to(models: dict[str, Path]) -> None:
    Path("locked").mkdir(mode=0o500)
    refused("run", models[SEGMENTS], "a.png", "-o", "locked", says="locked: can't be written")


def test_more_classes_than_a_png_holds(models: dict[str, Path]) -> None:
    synthesis.write_checkpoint(model_class(VISION[SEGMENTS]), "tiny", 3, "many", num_labels=257)
    refused("run", "many", "a.png", says="257 classes; expected at most 256")
    shutil.rmtree("many")
    synthesis.write_checkpoint(model_class(VISION[SEGMENTS]), "tiny", 3, "many", num_labels=256)
    assert d2v("run", "many", "a.png").code == 0


def test_control_characters_do_not_reach_the_terminal(models: dict[str, Path]) -> None:
    names = {str(index): f"\x1b[2J{index}" for index in range(4)}
    for task in (CLASSES, SEGMENTS):
        folder = Path(shutil.copytree(models[task], task))
        _config(id2label=names)(folder)
        shutil.copy("a.png", "\x1b[2J.png")
        out = d2v("run", folder, "\x1b[2J.png", "a.png").out
        assert "\\x1b[2J" in out
        assert all(line.isprintable() for line in out.split("\n"))
    assert "\\x1b[2J-map.png" in out


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "arguments", "says"),
    [
        (CLASSES, ["nope.png"], "nope.png: there is no such file"),
        (CLASSES, ["a cat"], "a cat: there is no such file"),
        (CLASSES, ["text.png"], "text.png: is not a picture"),
        (CLASSES, ["empty.png"], "empty.png: is empty"),
        (CLASSES, ["cut.png"], "cut.png: is damaged or cut off"),
        (CLASSES, ["vector.eps"], "vector.eps: is"),
        (CLASSES, ["empty"], "empty: the folder holds no picture (expected files in .png .jpg"),
        (CLASSES, [], "standard input: is empty"),
        (CLASSES, ["-"], "standard input: is empty"),
        (CLASSES, ["x" * 5000], "can't be read"),
        (CLASSES, [""], "is a folder"),
        (CLASSES, ["a.png", "nope.png"], "nope.png: there is no such file"),
        (CLASSES, ["a.png", "--truncate"], "--truncate is not for vision models"),
        (CLASSES, ["a.png", "--padding", "exact"], "no setting of this name (got padding)"),
        (CLASSES, ["a.png", "--timestamps", "word"], "--timestamps is not for image-classification"),
        (CLASSES, ["a.png", "--pooling", "mean"], "--pooling is not for image-classification"),
        (CLASSES, ["a.png", "-o", "empty"], "--output is not for image-classification"),
        (CLASSES, ["a.png", "--task", "fill-mask"], "fill-mask is not for this kind of model"),
        (CLASSES, ["a.png", "--tokenizer", "empty"], "takes no tokenizer"),
        (SEGMENTS, ["a.png", "--top-k", "2"], "--top-k is not for image-segmentation"),
        (SEGMENTS, ["a.png", "-o", "nope"], "nope: is not a folder"),
        (SEGMENTS, ["a.png", "-o", "text.png"], "text.png: is not a folder"),
        (SEGMENTS, ["a.png", "-o", "x" * 5000], "is not a folder"),
        (SEGMENTS, ["text.png"], "text.png: is not a picture"),
        (SEGMENTS, ["a.png", "text.png"], "text.png: is not a picture"),
        (SEGMENTS, ["cut.png"], "cut.png: is damaged or cut off"),
        (FEATURES, ["a.png", "-o", "x.txt"], "a name in .npz"),
        (FEATURES, ["a.png", "-o", "x.npz", "--json"], "--json has no effect"),
        (FEATURES, ["a.png", "--pooling", "first", "--top-k", "1"], "--top-k is not for image-feature-extraction"),
    ],
)
def test_wrong_inputs(task: str, arguments: list[str], says: str, models: dict[str, Path]) -> None:
    Path("text.png").write_text("no picture")
    Path("empty.png").write_bytes(b"")
    Path("empty").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)).save("cut.png")
    _cut("cut.png")(Path())
    Path("vector.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    refused("run", models[task], *arguments, says=says)


def test_an_enormous_picture(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Black pixels that take a thousandth of their size on disk."""
    data = io.BytesIO()
    Image.new("1", (11000, 11000)).save(data, "PNG")
    Path("bomb.png").write_bytes(data.getvalue())
    assert Path("bomb.png").stat().st_size < 100_000
    for task in VISION:
        refused("run", models[task], "bomb.png", says="bomb.png: is too large a picture")
        refused("run", models[task], "-", stdin=data.getvalue(), says="standard input: is too large a picture")


def test_a_picture_for_a_model_of_texts() -> None:
    synthesis.write_checkpoint(model_class("Data2VecTextForMaskedLM"), "tiny", 3, "texts")
    refused("run", "texts", "nope.png", says="nope.png: there is no such file")
    refused("run", "texts", "a.png", says="a.png: is not UTF-8")


def test_pictures_of_another_size_than_the_model(models: dict[str, Path]) -> None:
    """It is the image processor's size that does not fit; pictures of any size are resized."""
    folder = Path(shutil.copytree(models[SEGMENTS], "model"))
    BeitImageProcessor(size=32).save_pretrained(folder)
    refused("run", folder, "a.png", says="segmentation takes one size of picture (got 16 patches; expected 64")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "expected preprocessor_config.json"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("{"), "preprocessor_config.json: is not JSON"),
        (lambda folder: (folder / "preprocessor_config.json").write_text('{"size": "x"}'), "size is no size"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (_cut("model.safetensors"), "cut short"),
        (_config(id2label={}), "has another shape"),
        (_config(num_channels=1), "has another shape"),
        (_weights(lambda arrays: arrays["decode_head.classifier.weight"].fill(np.nan)), "decode_head.classifier"),
    ],
)  # fmt: skip
def test_damaged_checkpoints(damage: Callable[[Path], Any], says: str, models: dict[str, Path]) -> None:
    shutil.copytree(models[SEGMENTS], "model")
    damage(Path("model"))
    refused("run", "model", "a.png", says=says)


@settings(max_examples=150)
@given(data=st.data())
def test_a_changed_byte_is_an_answer_or_one_line(data: st.DataObject, models: dict[str, Path]) -> None:
    shutil.rmtree("changed", ignore_errors=True)
    shutil.copytree(models[SEGMENTS], "changed")
    Image.fromarray(pixels((16, 16))).save("changed/a.png")
    Image.fromarray(pixels((16, 16))).save("changed/a.jpg")
    picture = data.draw(st.sampled_from(["changed/a.png", "changed/a.jpg"]))
    path = Path(data.draw(st.sampled_from([picture, "changed/preprocessor_config.json", "changed/config.json"])))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    result = d2v("run", "changed", picture, "--json", "-o", "changed")
    written = {name for name in disk(Path("changed")) if name.startswith("a-")}
    if result.code == 0:
        assert json.loads(result.out).keys() == {"segments", "map", "overlay"}
        assert written == A
    else:
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert written == set()


# ---- the process -----------------------------------------------------------------------------------------------------


def test_progress_is_shown_for_each_picture(
    terminal: tuple[int, int],  # noqa: F811
    models: dict[str, Path],
) -> None:
    ours, theirs = terminal
    run = ("run", models[SEGMENTS], "a.png", "b.jpg")
    piped = real(*run, capture_output=True)
    assert (piped.returncode, piped.stderr) == (0, b"")
    shown = real(*run, stdout=subprocess.PIPE, stderr=theirs, env={"TERM": "xterm"})
    os.close(theirs)
    assert shown.stdout == piped.stdout
    assert b"image-segmentation" in os.read(ours, 1 << 16)


@pytest.mark.parametrize("task", VISION)
def test_a_bundle_of_a_picture(task: str, models: dict[str, Path]) -> None:
    processor = BeitImageProcessor.from_pretrained(models[task])
    for inputs in (["a.png"], ["a.png", "b.jpg"]):
        result = d2v("golden", "record", models[task], *inputs, "-o", f"bundle{len(inputs)}")
        assert result.code == 0
        assert f"arrays of {VISION[task]}" in result.out
        arrays = golden.read_bundle(f"bundle{len(inputs)}").inputs
        assert arrays.keys() == {"pixel_values"}
        want = processor([read_image(name) for name in inputs]).pixel_values
        assert np.array_equal(arrays["pixel_values"], want)
    checked = d2v("golden", "check", "bundle2")
    assert (checked.code, checked.err) == (0, "")
    refused("golden", "record", models[task], "nope.png", "-o", "bundle", says="there is no such file")
