"""Vision pipelines: what they take and return, that batching changes nothing, memory, what is refused."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vision_models import BARE, CLASSIFIER, SEGMENTER, build, trained

from d2v_ref import synthesis
from d2v_ref.auto import model_class
from d2v_ref.errors import CheckpointError, ConfigError, InputError
from d2v_ref.processing.image_processor import BeitImageProcessor
from d2v_ref.processing.pictures import read_image
from d2v_ref.tasks import TASKS, images, infer_task, pipeline

VISION = {task.pipeline.task: task.model for task in TASKS if task.pipeline.modality == "vision"}
SHAPES = [(30, 40), (12, 12), (7, 50), (30, 40), (30, 40), (1, 1)]


def save(folder: Path, name: str, *, processor: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A tiny checkpoint, float64, whose answers are not all alike."""
    model = trained(build(name, **{"num_channels": 3, "use_mask_token": False, **settings}, pooler=False))
    model.save_pretrained(folder)
    BeitImageProcessor(**{"size": model.config.image_size, **(processor or {})}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vision")
    return {task: save(root / task, name) for task, name in VISION.items()}


def pixels(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A picture (H, W, 3) that is not the same everywhere."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BILINEAR))


PIXELS = [pixels(shape, seed) for seed, shape in enumerate(SHAPES)]
PICTURES = [Image.fromarray(x) for x in PIXELS]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(len(PICTURES))]
    for path, picture in zip(paths, PICTURES, strict=True):
        picture.save(path)
    return paths


def close(got: Any, want: Any) -> bool:
    """Equal but for rounding."""
    if isinstance(want, dict):
        return list(got) == list(want) and all(close(got[key], want[key]) for key in want)
    if isinstance(want, list):
        return type(got) is type(want) and len(got) == len(want) and all(map(close, got, want))
    if isinstance(want, float | np.ndarray):
        return type(got) is type(want) and np.shape(got) == np.shape(want) and np.allclose(got, want, atol=1e-9)
    return got == want


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", VISION)
def test_batching_changes_nothing(task: str, folders: dict[str, Path], files: list[Path]) -> None:
    pipe = pipeline(task, folders[task], dtype="float64")
    alone = [pipe(one) for one in PICTURES]
    assert not close(alone[0], alone[3])
    for size in (1, 2, 4, 100):
        for inputs in (PICTURES, files, tuple(files)):
            done: list[float] = []
            assert close(pipe(inputs, batch_size=size, progress=done.append), alone)
            assert done == [1] * len(PICTURES)
    assert pipe([]) == []


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        ({}, [(4, 3, 12, 12), (2, 3, 12, 12)]),
        (
            {"size": {"shortest_edge": 12}},
            [(1, 3, 12, width) for width in (16, 12, 85)] + [(2, 3, 12, 16), (1, 3, 12, 12)],
        ),
        ({"do_resize": False}, [(1, 3, 30, 40), (1, 3, 12, 12), (1, 3, 7, 50), (2, 3, 30, 40)]),
    ],
)
def test_a_batch_has_one_size(settings: dict[str, Any], batches: list[tuple[int, ...]], tmp_path: Path) -> None:
    pipe = pipeline(None, save(tmp_path, BARE, processor=settings), dtype="float64")
    given = PICTURES if "do_resize" not in settings else PICTURES[:-1]
    alone = [pipe(one) for one in given]
    found: list[tuple[int, ...]] = []
    original = pipe.forward

    def watch(values: np.ndarray) -> np.ndarray:
        found.append(values.shape)
        return original(values)

    pipe.forward = watch
    assert close(pipe(given, batch_size=4), alone)
    assert found == batches


def test_files_are_read_when_their_turn_comes(
    folders: dict[str, Path], files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most one batch is in memory, and the maps come as they are made."""
    pipe = pipeline("image-segmentation", folders["image-segmentation"])
    read: list[Path] = []

    def watched(path: Path) -> Any:
        read.append(path)
        return read_image(path)

    monkeypatch.setattr(images, "read_image", watched)
    maps = pipe.maps(files, batch_size=2)
    assert read == []
    for count, want in ((2, 1), (2, 2), (4, 3)):
        assert next(maps).shape == SHAPES[want - 1]
        assert read == files[:count]
    assert [labels.shape for labels in maps] == SHAPES[3:]


# ---- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", VISION)
def test_forms_of_an_input(task: str, folders: dict[str, Path], files: list[Path]) -> None:
    pipe = pipeline(task, folders[task], dtype="float64")
    want = pipe(PICTURES[0])
    x = PIXELS[0]
    for item in (files[0], str(files[0]), x, np.moveaxis(x, -1, 0), x.astype(np.int64), x.astype(np.float64)):
        assert close(pipe(item), want)
        assert close(pipe([item]), [want])
    grey = x[..., 0]
    assert close(pipe(grey), pipe(np.stack([grey] * 3, -1)))
    assert close(pipe(Image.fromarray(grey)), pipe(grey))


@pytest.mark.parametrize("task", VISION)
def test_a_photograph_that_lies_on_its_side(task: str, folders: dict[str, Path], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(np.rot90(PIXELS[0])).save(tmp_path / "side.png", exif=exif)
    pipe = pipeline(task, folders[task], dtype="float64")
    want = pipe(PICTURES[0])
    assert close(pipe(tmp_path / "side.png"), want)
    assert close(pipe(Image.open(tmp_path / "side.png")), want)


def damaged(folder: Path) -> dict[str, Path]:
    """What is no picture, by name; of "cut" the header is a picture's."""
    data = io.BytesIO()
    PICTURES[0].resize((300, 300)).save(data, "PNG")
    contents = {"text": b"no picture", "empty": b"", "cut": data.getvalue()[:-2000], "header": data.getvalue()[:20]}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


WRONG: list[tuple[Any, str]] = [
    (np.zeros((2, 30, 40, 3), np.uint8), r"not one picture \(got an array of shape \(2, 30, 40, 3\)\).*list\(array\)"),
    (([np.zeros((9, 9), np.uint8)],), "not one picture.*got a (list|tuple)"),
    (np.zeros((30, 40, 2), np.uint8), "no axis of channels"),
    (np.zeros((3, 40, 3), np.uint8), "channels first or last"),
    (np.zeros((30, 0, 3), np.uint8), "empty"),
    (np.zeros((30, 40, 4), np.uint8), "not RGB"),
    (np.zeros(30), "is no picture"),
    (np.float64(1), "is no picture"),
    (np.full((30, 40, 3), np.nan), "not finite"),
    (np.full((30, 40, 3), -1), "8 bits"),
    (np.zeros((30, 40, 3), complex), "wrong dtype"),
    (None, "is no picture|wrong dtype"),
    (b"png", "is no picture|wrong dtype"),
    ({"image": 1}, "is no picture|wrong dtype"),
    (Image.new("RGB", (0, 5)), "no pixels"),
    ("nope.png", r"nope\.png: there is no such file"),
    ("http://localhost/a.png", "there is no such file"),
    ("", "is a folder"),
    ("\0", "can't be read|no such file"),
    ("x" * 5000, "can't be read"),
]


@pytest.mark.parametrize(("item", "message"), WRONG)
def test_wrong_inputs(item: Any, message: str, folders: dict[str, Path]) -> None:
    for task in VISION:
        pipe = pipeline(task, folders[task])
        pipe.forward = None  # the model does not run
        with pytest.raises(InputError, match=message):
            pipe(item)
        with pytest.raises(InputError, match=message) as caught:
            pipe([PICTURES[0], item])
        assert caught.value.path is not None or str(caught.value).startswith("input 1: ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", "text: is not a picture"),
        ("empty", "empty: is empty"),
        ("header", "header: is"),
        ("cut", "cut: is damaged or cut off"),
    ],
)
def test_files_that_are_no_pictures(
    name: str, message: str, folders: dict[str, Path], files: list[Path], tmp_path: Path
) -> None:
    """All headers are looked at before the model runs; what is cut off is found when its turn comes."""
    path = damaged(tmp_path)[name]
    for task in VISION:
        pipe = pipeline(task, folders[task])
        done: list[float] = []
        with pytest.raises(InputError, match=message):
            pipe([*files[:2], path], progress=done.append)
        assert done == ([1, 1] if name == "cut" else [])


def test_an_enormous_picture(folders: dict[str, Path], files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One over Pillow's limit, and one over twice it, where Pillow's warning becomes an error."""
    pipe = pipeline("image-classification", folders["image-classification"])
    pipe.forward = None
    for limit in (1199, 500):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(InputError, match=r"0\.png: is too large a picture.*expected at most"):
            pipe([files[1], files[0]])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert images._has_header(files[0])


def test_what_the_processor_refuses_of_a_file_names_it(tmp_path: Path) -> None:
    pipe = pipeline(None, save(tmp_path / "model", BARE, processor={"size": {"shortest_edge": 900}}))
    Image.new("RGB", (400, 1)).save(tmp_path / "thin.png")
    with pytest.raises(InputError, match=r"thin\.png: the picture's longer side would get too long"):
        pipe(tmp_path / "thin.png")


@pytest.mark.parametrize("task", VISION)
def test_numbers_that_are_not_finite(task: str, folders: dict[str, Path]) -> None:
    pipe = pipeline(task, folders[task])
    body = getattr(pipe.model, "data2vec_vision", pipe.model)
    layer = body.encoder.layer[1].attention.attention.value
    layer.weight = layer.weight.copy()
    layer.weight[0, 0] = np.nan
    name = f"{body.path}.encoder.layer.1.attention.attention.value".removeprefix(".")
    with pytest.raises(CheckpointError, match=rf"not finite.*first from {name}.*weight {name}\.weight is not"):
        pipe(PICTURES[0])


# ---- which pipeline --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", VISION)
def test_a_checkpoint_says_what_it_is_for(task: str, folders: dict[str, Path]) -> None:
    assert infer_task(VISION[task]) == pipeline(None, folders[task]).task == task
    pipe = pipeline(task, folders[task])
    assert type(pipe.model).__name__ == VISION[task]
    for processor in (pipe.image_processor, folders[task], str(folders[task])):
        assert pipeline(task, pipe.model, image_processor=processor).task == task
    with pytest.raises(InputError, match=r"needs an image processor \(expected image_processor=, a BeitImageProcessor"):
        pipeline(task, pipe.model)
    with pytest.raises(InputError, match=r"takes no tokenizer\. It needs an image processor"):
        pipeline(task, folders[task], folders[task])
    with pytest.raises(InputError, match="takes no feature extractor"):
        pipeline(task, folders[task], feature_extractor=folders[task])


def test_names_of_tasks(folders: dict[str, Path]) -> None:
    classifier = folders["image-classification"]
    for name in ("feature-extraction", "image-feature-extraction"):
        pipe = pipeline(name, classifier)
        assert (pipe.task, type(pipe.model).__name__) == ("image-feature-extraction", BARE)
        assert pipeline(name, pipe.model, image_processor=classifier).task == "image-feature-extraction"
    with pytest.raises(
        InputError, match=r"fill-mask is not for this kind.*got data2vec-vision; expected data2vec-text"
    ):
        pipeline("fill-mask", classifier)
    with pytest.raises(
        InputError, match=r"image-segmentation; expected image-classification\). Load .* as Data2VecVis"
    ):
        pipeline("image-segmentation", pipeline(None, classifier).model, image_processor=classifier)
    with pytest.raises(CheckpointError, match="weights are missing"):
        pipeline("image-segmentation", classifier)


def test_parts_that_are_missing_or_do_not_fit(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = save(tmp_path / "model", CLASSIFIER)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json: image_processor_type is another one's"):
        pipeline(None, folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no image processor.*expected preprocessor_config\.json.*Copy the file"):
        pipeline(None, folder)
    assert pipeline(None, folder, image_processor=folders["image-classification"])(PICTURES[0])
    for task, name in VISION.items():
        if name != BARE:
            none = build(name, num_channels=3, num_labels=0)
            with pytest.raises(ConfigError, match="the model has no classes"):
                pipeline(task, none, image_processor=BeitImageProcessor())


def test_a_picture_of_another_size_than_the_models(folders: dict[str, Path]) -> None:
    """The bare model takes any; segmentation one only."""
    other = BeitImageProcessor(size=20)
    for task, folder in folders.items():
        pipe = pipeline(task, folder, image_processor=other)
        if task == "image-segmentation":
            with pytest.raises(InputError, match="segmentation takes one size of picture"):
                pipe(PICTURES[0])
        else:
            assert pipe(PICTURES[0])[0] is not None


@pytest.mark.parametrize("name", [BARE, CLASSIFIER, SEGMENTER])
@pytest.mark.parametrize("size", ["tiny", "base"])
def test_a_synthetic_checkpoint_has_an_image_processor(name: str, size: str, tmp_path: Path) -> None:
    cls = model_class(name)
    if size == "tiny":
        synthesis.write_checkpoint(cls, size, 0, tmp_path / "m")
    else:  # only the file that is looked at here
        (tmp_path / "m").mkdir()
        synthesis._WRITE["data2vec-vision"](tmp_path / "m", cls.config_class(**cls.config_class.sizes[size]))
    written = json.loads((tmp_path / "m" / "preprocessor_config.json").read_text())
    side = {"tiny": 64, "base": 224}[size]
    assert written["size"] == {"height": side, "width": side}
    published = {"resample": 3, "do_center_crop": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    assert {key: written[key] for key in published} == published
    assert BeitImageProcessor.from_pretrained(tmp_path / "m").size == written["size"]


# ---- what they return ------------------------------------------------------------------------------------------------


def test_image_classification(tmp_path: Path) -> None:
    pipe = pipeline(None, save(tmp_path, CLASSIFIER, num_labels=7))
    answers = pipe(PICTURES[0], top_k=7)
    assert sorted(answer["label"] for answer in answers) == [f"LABEL_{i}" for i in range(7)]
    assert all(a["score"] >= b["score"] for a, b in pairwise(answers))
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-6)
    values = pipe.image_processor(PICTURES[0]).pixel_values
    assert answers[0]["label"] == f"LABEL_{pipe.model(values).logits.argmax()}"
    assert pipe(PICTURES[0]) == pipe(PICTURES[0], top_k=None) == answers[:5]
    assert pipe(PICTURES[0], top_k=2) == answers[:2]
    assert pipe(PICTURES[0], top_k=99) == answers
    assert pipe([PICTURES[0]], top_k=1) == [answers[:1]]
    logits = {answer["label"]: answer["score"] for answer in pipe(PICTURES[0], top_k=7, function_to_apply="none")}
    for answer in pipe(PICTURES[0], function_to_apply="sigmoid"):
        assert answer["score"] == pytest.approx(1 / (1 + np.exp(-logits[answer["label"]])), rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "problem", "scores"),
    [
        (2, None, [0.5, 0.5]),
        (1, None, [0.5]),
        (1, "regression", [0.0]),
        (2, "regression", [0.0, 0.0]),
        (2, "multi_label_classification", [0.5, 0.5]),
        (4, "multi_label_classification", [0.5] * 4),
        (4, "single_label_classification", [0.25] * 4),
    ],
)
def test_what_logits_become(labels: int, problem: str | None, scores: list[float]) -> None:
    model = build(CLASSIFIER, num_channels=3, num_labels=labels, problem_type=problem)
    model.classifier.weight = np.zeros_like(model.classifier.weight)
    model.classifier.bias = np.zeros_like(model.classifier.bias)
    pipe = pipeline(None, model, image_processor=BeitImageProcessor(size=12))
    answers = pipe(PICTURES[0])
    assert [answer["score"] for answer in answers] == scores
    assert [answer["label"] for answer in answers] == [f"LABEL_{i}" for i in range(labels)]  # of equal ones the first


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("image-classification", {"top_k": 0}, "top_k is no number"),
        ("image-classification", {"top_k": True}, "top_k is no number"),
        ("image-classification", {"top_k": "5"}, "top_k is no number"),
        ("image-classification", {"function_to_apply": "tanh"}, "unknown function_to_apply"),
        ("image-classification", {"batch_size": 0}, "batch_size is no number"),
        ("image-segmentation", {"batch_size": "2"}, "batch_size is no number"),
        ("image-feature-extraction", {"pooling": "max"}, "unknown pooling"),
        ("image-feature-extraction", {"batch_size": None}, "batch_size is no number"),
    ],
)
def test_options_that_do_not_serve(task: str, options: dict[str, Any], message: str, folders: dict[str, Path]) -> None:
    pipe = pipeline(task, folders[task])
    pipe.forward = None  # the model does not run
    with pytest.raises(InputError, match=message):
        pipe(PICTURES[0], **options)


def test_image_segmentation(folders: dict[str, Path]) -> None:
    pipe = pipeline(None, folders["image-segmentation"])
    seen = set()
    for x, answer in zip(PIXELS, pipe(PICTURES, batch_size=3), strict=True):
        labels, segments = answer["map"], answer["segments"]
        assert list(answer) == ["map", "segments"]
        assert (labels.shape, labels.dtype) == (x.shape[:2], np.int64)
        assert [entry["index"] for entry in segments] == sorted(set(labels.flat))
        assert sum(entry["share"] for entry in segments) == pytest.approx(1)
        for entry in segments:
            assert list(entry) == ["label", "index", "share", "mask"]
            assert entry["label"] == f"LABEL_{entry['index']}"
            assert entry["mask"].dtype == bool
            assert np.array_equal(entry["mask"], labels == entry["index"])
            assert entry["share"] == entry["mask"].mean()
        seen |= set(labels.flat)
    assert seen == {0, 1, 2}


def test_a_map_lies_on_its_picture(folders: dict[str, Path]) -> None:
    """What is above on the right in the logits is there in the map, of pictures of any shape."""
    pipe = pipeline(None, folders["image-segmentation"])
    logits = np.zeros((1, 3, 12, 12), np.float32)
    logits[:, 1, :6, 6:] = 1  # above, right
    logits[:, 2, 6:, :6] = 1  # below, left
    pipe.forward = lambda values: logits
    for shape in ((10, 40), (40, 10), (8, 8)):
        labels = pipe(np.zeros((*shape, 3), np.uint8))["map"]
        assert labels.shape == shape
        near, far = (shape[0] // 4, shape[1] // 4), (3 * shape[0] // 4, 3 * shape[1] // 4)
        assert set(labels[: near[0], far[1] :].flat) == {1}
        assert set(labels[far[0] :, : near[1]].flat) == {2}
        assert set(labels[: near[0], : near[1]].flat) | set(labels[far[0] :, far[1] :].flat) == {0}


def test_image_features(folders: dict[str, Path]) -> None:
    pipe = pipeline(None, folders["image-feature-extraction"])
    states = pipe(PICTURES[0])
    assert states.shape == (1, 10, 12)
    assert np.allclose(states, pipe.model(pipe.image_processor(PICTURES[0]).pixel_values).last_hidden_state, atol=1e-5)
    assert np.array_equal(pipe(PICTURES[0], pooling="first"), states[:, 0])
    assert np.allclose(pipe(PICTURES[0], pooling="mean"), states[:, 1:].mean(1), atol=1e-6)
    assert all(one.base is None for one in pipe(PICTURES, batch_size=6))
    pooled = pipeline(None, folders["image-classification"]).model.data2vec_vision
    bare = pipeline("feature-extraction", folders["image-classification"])
    x = bare(PICTURES[0], pooling="mean")
    norm = pooled.pooler.layernorm
    want = pooled(bare.image_processor(PICTURES[0]).pixel_values).pooler_output
    assert np.allclose((x - x.mean()) / x.std() * norm.weight + norm.bias, want, atol=1e-4)


# ---- TensorFlow's classes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "name"), [("image-classification", CLASSIFIER), ("image-segmentation", SEGMENTER)], ids=str
)
def test_a_checkpoint_that_names_tensorflows_class_runs_it(task: str, name: str, tmp_path: Path) -> None:
    """Its own function, not that of PyTorch's class: for segmentation they give different maps."""
    for cls in (f"TF{name}", name):
        synthesis.write_checkpoint(model_class(cls), "tiny", 0, tmp_path / cls, num_labels=5)
        assert infer_task(cls) == task
    picture = pixels((64, 64))
    loaded = [pipeline(chosen, tmp_path / f"TF{name}") for chosen in (task, None)]
    assert [type(pipe.model).__name__ for pipe in loaded] == [f"TF{name}"] * 2
    direct = pipeline(None, loaded[0].model, image_processor=tmp_path / name)
    assert close(loaded[0](picture), direct(picture))
    pytorch = pipeline(task, tmp_path / name)
    assert type(pytorch.model).__name__ == name
    assert close(loaded[0](picture), pytorch(picture)) == (name == CLASSIFIER)
