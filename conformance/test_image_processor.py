"""Image processing against transformers 5.23 on Pillow: the same pictures, the same values, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from transformers.image_utils import load_image

from d2v_ref.errors import InputError
from d2v_ref.processing.image_processor import BeitImageProcessor
from d2v_ref.processing.pictures import read_image, read_segmentation_map
from d2v_ref.processing.segmentation_maps import bilinear, post_process_semantic_segmentation

torch.set_num_threads(1)

NEAREST = 0  # Pillow's number


def hold(got: Any, want: Any, tally: Any) -> None:
    """Pixel values and labels; transformers' dtype may be another where nothing was rescaled."""
    want = {name: np.asarray(value) for name, value in want.items()}
    assert sorted(got.arrays()) == sorted(want)
    assert got.pixel_values.dtype == np.float32
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got.pixel_values, want["pixel_values"].astype(np.float32), strict=True)
    if "labels" in want:
        np.testing.assert_array_equal(got.labels, want["labels"], strict=True)
    tally.cases += 1
    tally.arrays += len(want)


def attempt(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """The result, or the ValueError."""
    try:
        return call(*arguments, **named)
    except ValueError as error:
        return error


# ---- drawn calls -----------------------------------------------------------------------------------------------------

sides = st.one_of(st.integers(1, 40), st.sampled_from([1, 2, 3, 224, 300]))
boxes = st.one_of(st.integers(1, 60), st.tuples(st.integers(1, 60), st.integers(1, 60)).map(list))
shapes = st.fixed_dictionaries({"height": st.integers(1, 60), "width": st.integers(1, 60)})
numbers = st.floats(-2, 2, width=32)
deviations = st.floats(0.0625, 4, width=32)

processors = st.fixed_dictionaries(
    {},
    optional={
        "do_resize": st.booleans(),
        "size": st.one_of(boxes, shapes, st.fixed_dictionaries({"shortest_edge": st.integers(1, 40)})),
        "resample": st.integers(0, 5),
        "do_center_crop": st.booleans(),
        "crop_size": st.one_of(boxes, shapes),
        "do_rescale": st.booleans(),
        "rescale_factor": st.sampled_from([1 / 255, 1 / 127.5, 1 / 65535, 0.1, 1.0, 2.0]),
        "do_normalize": st.booleans(),
        "image_mean": st.one_of(numbers, st.lists(numbers, min_size=3, max_size=3)),
        "image_std": st.one_of(deviations, st.lists(deviations, min_size=3, max_size=3)),
    },
)


def pixels(random: np.random.Generator, form: str, shape: tuple[int, ...]) -> np.ndarray:
    """What photographs, masks and arrays of other programs hold."""
    if form in ("float32", "float64", "float16"):
        return random.random(shape).astype(form)
    if form == "whole float32":
        return random.integers(0, 256, shape).astype(np.float32)
    if form == "float mask":
        return random.integers(0, 2, shape).astype(np.float32)
    if form == "fractions to 255":
        return random.uniform(0, 255, shape)
    if form == "almost whole":
        return random.integers(0, 256, shape) + random.choice([0, 1e-9, 1e-5, 1e-3], shape)
    if form == "signed":
        return random.integers(-300, 300, shape)
    return random.integers(0, 256, shape).astype(form)


FORMS = [
    *("uint8", "uint8", "uint8", "int64", "uint16", "float32", "float64", "float16"),
    *("whole float32", "float mask", "fractions to 255", "almost whole", "signed"),
]


@settings(max_examples=1200)
@given(
    processor=processors,
    call=processors,
    form=st.sampled_from(FORMS),
    count=st.integers(1, 3),
    height=sides,
    width=sides,
    layout=st.sampled_from(["HWC", "CHW", "batch", "PIL"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_drawn_calls(
    processor: dict[str, Any],
    call: dict[str, Any],
    form: str,
    count: int,
    height: int,
    width: int,
    layout: str,
    seed: int,
    tally: dict[str, Any],
) -> None:
    ours, theirs = BeitImageProcessor(**processor), transformers.BeitImageProcessorPil(**processor)
    random = np.random.default_rng(seed)
    images: list[Any] = []
    for _ in range(count):
        x = pixels(random, "uint8" if layout == "PIL" else form, (height, width, 3))
        images.append(x if layout == "HWC" else Image.fromarray(x) if layout == "PIL" else np.moveaxis(x, -1, 0))
    if layout != "PIL":
        call["input_data_format"] = "channels_last" if layout == "HWC" else "channels_first"
    batch: Any = np.stack(images) if layout == "batch" else images[0] if count == 1 else images
    want = attempt(theirs, batch, return_tensors="np", **call)
    if isinstance(want, ValueError):
        assert "cannot be converted to uint8" in str(want)
        with pytest.raises(InputError, match="resizing takes"):
            ours(batch, **call)
        tally["image processor, refused calls"].cases += 1
        return
    if not np.isfinite(want["pixel_values"].astype(np.float32)).all():  # of float16
        with pytest.raises(InputError, match="overflow"):
            ours(batch, **call)
        tally["image processor, refused calls"].cases += 1
        return
    hold(ours(batch, **call), want, tally["image processor, drawn calls"])


@settings(max_examples=100)
@given(height=sides, width=sides, seed=st.integers(0, 2**32 - 1), form=st.sampled_from(["uint8", "float32", "int64"]))
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_axes_and_channels(channels: int, height: int, width: int, seed: int, form: str, tally: dict[str, Any]) -> None:
    """transformers takes the first of two axes that could be the channels'; here that is an error."""
    ours, theirs = BeitImageProcessor(size=20), transformers.BeitImageProcessorPil(size=20)
    x = pixels(np.random.default_rng(seed), form, (height, width, channels))
    for image, other in ((x, height), (np.moveaxis(x, -1, 0), width)):
        if other in (1, 3, 4):
            with pytest.raises(InputError, match="first or last"):
                ours(image, do_convert_rgb=True)
            tally["image processor, refused calls"].cases += 1
        else:
            want = theirs(image, do_convert_rgb=True, return_tensors="np")
            hold(ours(image, do_convert_rgb=True), want, tally["image processor, axes and channels"])


# ---- pictures --------------------------------------------------------------------------------------------------------


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Gradients, discs, text and noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    picture = np.stack((200 * x + 20, 230 * y, 128 + 100 * np.sin(9 * x + 5 * y)), axis=-1)
    for _ in range(6):
        cx, cy, r = random.random(3) * (1, 1, 0.3)
        picture[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = random.integers(0, 256, 3)
    noisy = np.clip(picture + random.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
    image = Image.fromarray(noisy)
    ImageDraw.Draw(image).text((width // 4, height // 3), "data2vec", fill=(255, 255, 255))
    return image


def transparent(image: Image.Image) -> Image.Image:
    """With alpha from 0 to 255 across it."""
    alpha = np.linspace(0, 255, image.width).astype(np.uint8)[None].repeat(image.height, axis=0)
    image = image.convert("RGBA")
    image.putalpha(Image.fromarray(alpha))
    return image


def with_transparency(value: Any) -> Callable[[Image.Image], Image.Image]:
    def make(image: Image.Image) -> Image.Image:
        image = image.quantize(40)
        image.info["transparency"] = value
        return image

    return make


def deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257 // 3)


MODES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "RGB": lambda image: image,
    "L": lambda image: image.convert("L"),
    "LA": lambda image: transparent(image).convert("LA"),
    "RGBA": transparent,
    "P": lambda image: image.quantize(40),
    "P, one colour transparent": with_transparency(7),
    "P, transparencies": with_transparency(bytes(range(0, 240, 6))),
    "PA": lambda image: transparent(image).convert("LA").convert("PA"),
    "1": lambda image: image.convert("1"),
    "I;16": deep,
    "I": lambda image: deep(image).convert("I"),
    "F": lambda image: image.convert("F"),
    "CMYK": lambda image: image.convert("CMYK"),
    "YCbCr": lambda image: image.convert("YCbCr"),
    "HSV": lambda image: image.convert("HSV"),
}
SIZES = [(1, 1), (1, 50), (37, 1), (224, 224), (33, 61), (480, 360), (150, 700)]
BOTH = BeitImageProcessor(), transformers.BeitImageProcessorPil()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_modes(mode: str, tally: dict[str, Any]) -> None:
    """As the pipelines do it, which convert every picture; and as the processor does it when it is told to."""
    ours, theirs = BOTH
    for seed, (height, width) in enumerate(SIZES):
        image = MODES[mode](photograph(height, width, seed))
        want = theirs(load_image(image), return_tensors="np")
        hold(ours(image), want, tally["image processor, modes"])
        want = theirs(image, do_convert_rgb=True, return_tensors="np")
        hold(ours(image, do_convert_rgb=True), want, tally["image processor, modes"])
        if mode not in ("RGB", "YCbCr", "HSV"):  # whose three channels transformers takes for red, green and blue
            with pytest.raises(ValueError, match=r"mean must have|cannot be converted"):
                theirs(image)  # which is not what ours was held against
        if mode != "RGB":
            with pytest.raises(InputError, match="is not RGB"):
                ours(image, do_convert_rgb=False)


FILES = [
    *(("png", mode) for mode in MODES if mode not in ("PA", "I", "F", "CMYK", "YCbCr", "HSV")),
    *(("jpeg", mode) for mode in ("RGB", "L", "CMYK", "YCbCr")),
    *(("webp", mode) for mode in ("RGB", "RGBA", "L")),
    *(("bmp", mode) for mode in ("RGB", "RGBA", "L", "P", "1")),
    *(("gif", mode) for mode in ("RGB", "L", "P", "P, one colour transparent", "1")),
    *(("tiff", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "I", "F", "CMYK", "YCbCr")),
    *(("ppm", mode) for mode in ("RGB", "L", "1")),
]


# load_image leaves files of several frames open.
LEFT_OPEN = pytest.mark.filterwarnings("ignore:Exception ignored.*:pytest.PytestUnraisableExceptionWarning")


def same_picture(path: Path, tally: Any) -> None:
    """What is read, and what becomes of it."""
    ours, theirs = BOTH
    image = read_image(path)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(load_image(str(path))))
    want = theirs(str(path), return_tensors="np")
    hold(ours(path), want, tally)
    hold(ours(image), want, tally)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(np.asarray(read_image(opened)), np.asarray(image))


@LEFT_OPEN
@pytest.mark.parametrize(("extension", "mode"), FILES)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_files(extension: str, mode: str, tmp_path: Path, tally: dict[str, Any]) -> None:
    for seed, (height, width) in enumerate(SIZES):
        path = tmp_path / f"{seed}.{extension}"
        MODES[mode](photograph(height, width, seed)).save(path)
        same_picture(path, tally["image processor, files"])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpeg", "png", "webp", "tiff"])
def test_exif_orientations(extension: str, orientation: int, tmp_path: Path, tally: dict[str, Any]) -> None:
    path, image = tmp_path / f"x.{extension}", photograph(60, 90)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    same_picture(path, tally["image processor, EXIF orientations"])
    assert read_image(path).size == ((60, 90) if orientation > 4 else (90, 60))
    with Image.open(path) as opened:  # which lies as it does
        want = BOTH[1](opened, return_tensors="np")
        hold(BOTH[0](opened), want, tally["image processor, EXIF orientations"])


@LEFT_OPEN
def test_several_frames(tmp_path: Path, tally: dict[str, Any]) -> None:
    frames = [photograph(40, 50, seed) for seed in range(3)]
    for extension in ("gif", "webp", "tiff", "png"):
        frames[0].save(tmp_path / f"x.{extension}", save_all=True, append_images=frames[1:])
        same_picture(tmp_path / f"x.{extension}", tally["image processor, files"])


# ---- segmentation maps -----------------------------------------------------------------------------------------------


@settings(max_examples=400)
@given(
    processor=processors,
    height=sides,
    width=sides,
    count=st.integers(1, 3),
    largest=st.sampled_from([1, 4, 150, 255]),
    reduce=st.booleans(),
    form=st.sampled_from(["uint8", "int64", "PIL", "palette", "batch"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_segmentation_maps(
    processor: dict[str, Any],
    height: int,
    width: int,
    count: int,
    largest: int,
    reduce: bool,
    form: str,
    seed: int,
    tally: dict[str, Any],
) -> None:
    """transformers has to be called with the nearest pixel, for pictures too."""
    processor["do_reduce_labels"], processor["resample"] = reduce, NEAREST
    ours, theirs = BeitImageProcessor(**processor), transformers.BeitImageProcessorPil(**processor)
    random = np.random.default_rng(seed)
    images: list[Any] = []
    maps: list[Any] = []
    for _ in range(count):
        images.append(Image.fromarray(pixels(random, "uint8", (height, width, 3))))
        labels = random.integers(0, largest + 1, (height, width)).astype("int64" if form == "int64" else "uint8")
        labels[random.random((height, width)) < 0.1] = 255
        picture = Image.fromarray(labels) if form in ("PIL", "palette") else None
        if picture is not None and form == "palette":
            picture.putpalette(random.bytes(768))
        maps.append(labels if picture is None else picture)
    batch: Any = np.stack(maps) if form == "batch" else maps
    before = np.array(batch)
    got = ours(images, batch)
    np.testing.assert_array_equal(np.array(batch), before)
    want = theirs(images, batch, return_tensors="np")  # which writes into the arrays that it is given
    hold(got, want, tally["image processor, segmentation maps"])


def test_transformers_makes_up_classes(tally: dict[str, Any]) -> None:
    """Why labels are not resized with ``resample``."""
    labels = np.zeros((50, 50), np.uint8)
    labels[10:40, 10:40] = 100
    image, theirs = photograph(50, 50), transformers.BeitImageProcessorPil()
    assert len(np.unique(theirs(image, labels, return_tensors="np")["labels"])) > 2
    got = BeitImageProcessor()(image, labels)
    assert np.unique(got.arrays()["labels"]).tolist() == [0, 100]
    want = dict(theirs(image, return_tensors="np"))
    want["labels"] = theirs(image, labels, resample=NEAREST, return_tensors="np")["labels"]
    hold(got, want, tally["image processor, segmentation maps"])


def test_files_of_maps(tmp_path: Path, tally: dict[str, Any]) -> None:
    """transformers takes no paths of maps, but what Pillow opens."""
    random = np.random.default_rng(3)
    image, labels = photograph(80, 70), random.integers(0, 12, (80, 70)).astype(np.uint8)
    theirs = transformers.BeitImageProcessorPil(resample=NEAREST, do_reduce_labels=True)
    ours = BeitImageProcessor(resample=NEAREST, do_reduce_labels=True)
    grey, coloured = Image.fromarray(labels), Image.fromarray(labels)
    coloured.putpalette(random.bytes(768))
    for number, (picture, extension) in enumerate(
        [(grey, "png"), (coloured, "png"), (grey, "bmp"), (coloured, "gif"), (coloured, "tiff"), (grey, "tiff")]
    ):
        path = tmp_path / f"{number}.{extension}"
        picture.save(path)
        np.testing.assert_array_equal(read_segmentation_map(path), labels)
        with Image.open(path) as opened:
            want = theirs(image, opened, return_tensors="np")
        hold(ours(image, path), want, tally["image processor, segmentation maps"])


# ---- files of settings -----------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(
    values=processors,
    more=st.fixed_dictionaries(
        {}, optional={"do_reduce_labels": st.booleans(), "do_convert_rgb": st.booleans(), "do_pad": st.just(True)}
    ),
    extra=st.dictionaries(st.text("xyz_", min_size=1), st.integers()),
)
def test_files_of_settings(
    values: dict[str, Any],
    more: dict[str, Any],
    extra: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    tally: dict[str, Any],
) -> None:
    folder, values = tmp_path_factory.mktemp("processor"), {**values, **more, **extra}
    transformers.BeitImageProcessorPil(**values).save_pretrained(folder / "theirs")
    ours = BeitImageProcessor.from_pretrained(folder / "theirs")
    assert ours.extra == {name: value for name, value in values.items() if name in extra or name == "do_pad"}
    ours.save_pretrained(folder / "ours")
    theirs = transformers.BeitImageProcessorPil.from_pretrained(folder / "ours")
    assert json.loads(theirs.to_json_string()) == ours.to_dict()
    name = "preprocessor_config.json"
    assert json.loads((folder / "ours" / name).read_text()) == json.loads((folder / "theirs" / name).read_text())
    tally["image processor, files of settings"].cases += 1


PUBLISHED = {
    "do_resize": True,
    "size": 224,
    "resample": 3,
    "do_center_crop": False,
    "crop_size": 224,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "feature_extractor_type": "BeitFeatureExtractor",
}


@pytest.mark.parametrize(
    "values",
    [
        PUBLISHED,
        {**PUBLISHED, "size": 384, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {**PUBLISHED, "size": 256, "do_center_crop": True, "resample": 2},
        {"image_processor_type": "BeitFeatureExtractor", "size": {"height": 100, "width": 90}, "do_resize": False},
        {"image_processor_type": "BeitImageProcessorFast", "size": [64, 32], "do_rescale": None, "crop_size": [7, 9]},
        {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 40, "width": 40}},
        {},
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_old_and_new_files(values: dict[str, Any], nested: bool, tmp_path: Path, tally: dict[str, Any]) -> None:
    if nested:
        processor = {"image_processor": values, "processor_class": "AnyProcessor"}
        (tmp_path / "processor_config.json").write_text(json.dumps(processor))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 7} if nested else values))
    ours = BeitImageProcessor.from_pretrained(tmp_path)
    theirs = transformers.BeitImageProcessorPil.from_pretrained(tmp_path)
    image = photograph(90, 130)
    hold(ours(image), theirs(image, return_tensors="np"), tally["image processor, files of settings"])
    ours.save_pretrained(tmp_path)
    again = transformers.BeitImageProcessorPil.from_pretrained(tmp_path)
    expected = {name: value is not None and value for name, value in json.loads(theirs.to_json_string()).items()}
    assert json.loads(again.to_json_string()) == {**expected, "image_processor_type": "BeitImageProcessor"}
    hold(
        BeitImageProcessor.from_pretrained(tmp_path)(image),
        again(image, return_tensors="np"),
        tally["image processor, files of settings"],
    )


def test_transformers_forgets_the_old_name_of_reduced_labels(tmp_path: Path) -> None:
    """transformers 4 read it."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PUBLISHED, "reduce_labels": True}))
    assert not transformers.BeitImageProcessorPil.from_pretrained(tmp_path).do_reduce_labels
    assert BeitImageProcessor.from_pretrained(tmp_path).do_reduce_labels


# ---- post-processing -------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    batch=st.integers(1, 3),
    classes=st.integers(1, 12),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["float32", "float32", "float64"]),
    levels=st.sampled_from([0, 0, 2, 30]),
    resized=st.sampled_from([True, True, True, False]),
    largest=st.sampled_from([30, 64, 300]),
)
def test_post_processing(
    batch: int,
    classes: int,
    shape: tuple[int, int],
    seed: int,
    dtype: str,
    levels: int,
    resized: bool,
    largest: int,
    tally: dict[str, Any],
) -> None:
    """The same classes, but where the two largest logits are the same up to rounding: those pixels are counted."""
    random = np.random.default_rng(seed)
    logits = random.standard_normal((batch, classes, *shape)).astype(dtype)
    if levels:  # so that many are equal
        logits = random.integers(0, levels, logits.shape).astype(dtype)
    sizes = random.integers(1, largest, (batch, 2)).tolist() if resized else None
    outputs = SimpleNamespace(logits=torch.from_numpy(logits))
    want = transformers.BeitImageProcessorPil().post_process_semantic_segmentation(
        outputs, None if sizes is None else [tuple(size) for size in sizes]
    )
    got = post_process_semantic_segmentation(logits, sizes)
    assert len(got) == len(want) == batch
    for i, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        other = theirs.numpy()
        assert (ours.dtype, ours.shape) == (other.dtype, other.shape)
        different = ours != other
        tally["segmentation maps, pixels with another class"].cases += int(different.sum())
        if different.any():
            scores = bilinear(logits[i].astype(np.float64), ours.shape)
            best, chosen = scores.max(axis=0), np.take_along_axis(scores, other[None], axis=0)[0]
            assert (best - chosen)[different].max() <= tolerance(logits, shape)
    tally["segmentation maps"].cases += 1
    tally["segmentation maps"].arrays += batch


def tolerance(logits: np.ndarray, shape: tuple[int, int]) -> float:
    """Twice what rounding can do: to three products and sums, and to the two positions, by which values are weighted.

    A position is rounded to an ulp of the longest side, and so is the ratio of the sides that it is a multiple of.
    """
    unit = float(np.finfo(logits.dtype).eps)
    return 2 * unit * (4 * max(shape) * float(np.ptp(logits)) + 6 * float(np.abs(logits).max()))


@settings(max_examples=150)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 50), st.integers(1, 50)),
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_bilinear(shape: tuple[int, ...], size: tuple[int, int], seed: int, dtype: str, tally: dict[str, Any]) -> None:
    x = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    want = torch.nn.functional.interpolate(torch.from_numpy(x)[None], size=size, mode="bilinear")[0].numpy()
    got = bilinear(x, size)
    assert got.dtype == want.dtype
    error, allowed = np.abs(got - want).max(), tolerance(x, (shape[1], shape[2]))
    assert error <= allowed
    counts = tally["segmentation maps, bilinear"]
    counts.cases, counts.arrays = counts.cases + 1, counts.arrays + 1
    counts.worst = max(counts.worst, error / allowed if allowed else 0.0)
