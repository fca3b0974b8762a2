"""Pictures to pixel_values: properties, and all that can be wrong with pictures, maps and settings."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2v_ref.errors import CheckpointError, ConfigError, InputError, UnavailableError
from d2v_ref.processing import pictures as reading
from d2v_ref.processing.image_processor import BeitImageProcessor, ImageFeatures
from d2v_ref.processing.pictures import read_image, read_segmentation_map

NEAREST, BOX = 0, 4  # Pillow's numbers
RAW: dict[str, Any] = {"do_resize": False, "do_rescale": False, "do_normalize": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a test writes a file over the one of its last example."""
    return tmp_path_factory.mktemp("pictures")


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack((x * 2 % 256, y * 3 % 256, (x + y) % 256), axis=-1).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


sides = st.integers(5, 40)
pictures = st.builds(noise, sides, sides, seed=st.integers(0, 2**32 - 1))


# ---- pixel values ----------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(batch=st.lists(pictures, min_size=1, max_size=4), order=st.randoms(use_true_random=False))
def test_a_batch_is_its_pictures_in_any_order(batch: list[np.ndarray], order: Any) -> None:
    processor = BeitImageProcessor()
    features = processor(batch)
    assert features.labels is None
    assert list(features.arrays()) == ["pixel_values"]
    assert features.pixel_values.shape == (len(batch), 3, 224, 224)
    assert features.pixel_values.dtype == np.float32
    assert np.abs(features.pixel_values).max() <= 1
    places = list(range(len(batch)))
    order.shuffle(places)
    again = processor([batch[place] for place in places]).pixel_values
    np.testing.assert_array_equal(again, features.pixel_values[places])
    for row, picture in zip(features.pixel_values, batch, strict=True):
        np.testing.assert_array_equal(processor(picture).pixel_values[0], row)


@given(x=pictures, factor=st.sampled_from([1 / 255, 0.5]), mean=st.floats(-2, 2), std=st.floats(0.1, 9))
def test_pixels_can_be_told_from_pixel_values(x: np.ndarray, factor: float, mean: float, std: float) -> None:
    processor = BeitImageProcessor(do_resize=False, rescale_factor=factor, image_mean=mean, image_std=[std] * 3)
    values = processor(x).pixel_values[0].astype(np.float64)
    np.testing.assert_array_equal(np.rint((values * std + mean) / factor), x.transpose(2, 0, 1))


@given(color=st.tuples(*[st.integers(0, 255)] * 3), resample=st.integers(0, 5))
def test_one_colour_stays_one_colour(color: tuple[int, int, int], resample: int) -> None:
    values = BeitImageProcessor(resample=resample)(Image.new("RGB", (31, 50), color)).pixel_values[0]
    for plane, level in zip(values, color, strict=True):
        assert np.ptp(plane) == 0
        assert plane[0, 0] == pytest.approx(2 * level / 255 - 1, abs=1e-6)


@given(x=pictures)
def test_every_layout_is_the_same_picture(x: np.ndarray) -> None:
    want = BeitImageProcessor()(x).pixel_values
    whole: list[Any] = [Image.fromarray(x), x.transpose(2, 0, 1), x[None], [x], (x,), x.astype(int), x.astype("f4")]
    for image in whole:
        np.testing.assert_array_equal(BeitImageProcessor()(image).pixel_values, want)
    grey = x[..., 0]
    want = BeitImageProcessor()(grey).pixel_values
    assert (want[:, 0] == want[:, 1]).all()
    assert (want[:, 0] == want[:, 2]).all()
    for image in (grey[None], grey[..., None], Image.fromarray(grey), np.stack([grey] * 3)):
        np.testing.assert_array_equal(BeitImageProcessor()(image).pixel_values, want)


@given(x=pictures, by=st.integers(1, 5))
def test_whole_factors(x: np.ndarray, by: int) -> None:
    """Each pixel becomes a square of them; and a square of pixels their mean, rounded."""
    large = x.repeat(by, axis=0).repeat(by, axis=1)
    height, width = x.shape[:2]
    settings: dict[str, Any] = {**RAW, "do_resize": True}
    up = BeitImageProcessor(**settings, size=[height * by, width * by], resample=NEAREST)(x).pixel_values[0]
    np.testing.assert_array_equal(up, large.transpose(2, 0, 1))
    down = BeitImageProcessor(**settings, size=[height, width], resample=BOX)(large).pixel_values[0]
    np.testing.assert_array_equal(down, x.transpose(2, 0, 1))
    blocks = noise(height * by, width * by)
    down = BeitImageProcessor(**settings, size=[height, width], resample=BOX)(blocks).pixel_values[0]
    means = blocks.reshape(height, by, width, by, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert np.abs(down - means).max() <= 1  # it rounds twice


@given(x=pictures, height=st.integers(1, 60), width=st.integers(1, 60))
def test_a_crop_is_the_middle(x: np.ndarray, height: int, width: int) -> None:
    x = np.maximum(x, 1)  # 0 is what is filled up
    processor = BeitImageProcessor(**RAW, do_center_crop=True, crop_size=[height, width])
    got = processor(x).pixel_values[0]
    assert got.shape == (3, height, width)
    for axis, (length, wanted) in enumerate(zip(x.shape[:2], (height, width), strict=True), 1):
        filled = np.flatnonzero(got.any(axis=(0, 3 - axis)))
        assert len(filled) == min(length, wanted)
        before, behind = filled[0], wanted - 1 - filled[-1]
        assert 0 <= before - behind <= 1
        x = np.take(x, range(max(0, (length - wanted) // 2), max(0, (length - wanted) // 2) + len(filled)), axis - 1)
        got = np.take(got, filled, axis)
    np.testing.assert_array_equal(got, x.transpose(2, 0, 1))


@given(height=sides, width=sides, edge=st.integers(1, 50))
def test_the_shortest_edge_keeps_the_proportions(height: int, width: int, edge: int) -> None:
    got = BeitImageProcessor(size={"shortest_edge": edge})(noise(height, width)).pixel_values.shape[2:]
    assert min(got) == edge
    assert 0 <= edge * max(height, width) / min(height, width) - max(got) < 1
    assert (got[0] >= got[1]) if height > width else (got[1] >= got[0])


def test_fractions_are_not_told_from_levels(tmp_path: Path) -> None:
    """As in transformers; do_rescale=False is for pictures that are 0 ... 1 already."""
    x = noise(20, 20)
    want = BeitImageProcessor(do_resize=False)(x).pixel_values
    fractions = (x / 255).astype(np.float32)
    got = BeitImageProcessor(do_resize=False, do_rescale=False)(fractions).pixel_values
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert BeitImageProcessor()(fractions).pixel_values.max() < -0.99
    resized = BeitImageProcessor(do_rescale=False)(fractions).pixel_values
    assert np.abs(resized - BeitImageProcessor()(x).pixel_values).max() < 0.05


@given(x=pictures)
def test_what_is_passed_stays_as_it_is(x: np.ndarray) -> None:
    for processor in (BeitImageProcessor(), BeitImageProcessor(**RAW), BeitImageProcessor(do_resize=False)):
        for given_ in (x.copy(), x.astype(np.float32)):
            before, labels = given_.copy(), x[..., 0].astype(np.int64)
            features = processor(given_, labels, do_reduce_labels=True)
            for array in features.arrays().values():
                array[...] = 7
            np.testing.assert_array_equal(given_, before)
            np.testing.assert_array_equal(labels, x[..., 0])


# ---- transparency ----------------------------------------------------------------------------------------------------


def test_transparency_is_dropped_or_laid_on_white() -> None:
    x = noise(30, 30, 4)
    x[:10, :, 3], x[10:20, :, 3] = 255, 0
    image, settings = Image.fromarray(x), {**RAW, "do_convert_rgb": True}
    dropped = BeitImageProcessor(**RAW)(image).pixel_values[0]
    np.testing.assert_array_equal(dropped, x[..., :3].transpose(2, 0, 1))
    white = BeitImageProcessor(**settings)(image).pixel_values[0]
    np.testing.assert_array_equal(white[:, :10], dropped[:, :10])
    assert (white[:, 10:20] == 255).all()
    exact = 255 - (255 - dropped) * (x[..., 3] / 255)
    assert np.abs(white - exact).max() <= 1
    for array in (x, x.transpose(2, 0, 1)):
        assert np.abs(BeitImageProcessor(**settings)(array).pixel_values[0] - exact).max() <= 0.5001
    fractions = BeitImageProcessor(**settings)(x / 255).pixel_values[0]
    np.testing.assert_allclose(fractions * 255, exact, atol=1e-4)


def test_a_transparent_colour_of_a_palette() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.info["transparency"] = 1
    assert BeitImageProcessor(**RAW)(image).pixel_values[0, :, 0].T.tolist() == [[10, 20, 30], [40, 50, 60]]
    white = BeitImageProcessor(**RAW, do_convert_rgb=True)(image).pixel_values[0, :, 0].T.tolist()
    assert white == [[10, 20, 30], [255, 255, 255]]


# ---- segmentation maps -----------------------------------------------------------------------------------------------


@given(
    x=pictures,
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    resize=st.booleans(),
    crop=st.booleans(),
    palette=st.booleans(),
)
def test_labels_lie_where_their_pixels_lie(
    x: np.ndarray, height: int, width: int, resize: bool, crop: bool, palette: bool
) -> None:
    processor = BeitImageProcessor(
        do_resize=resize,
        size=[height, width],
        resample=NEAREST,
        do_center_crop=crop,
        crop_size=[width, height],
        do_rescale=False,
        do_normalize=False,
    )
    labels: Any = x[..., 0]
    if palette:
        labels = Image.fromarray(labels)
        labels.putpalette(bytes(range(256)) * 3)
    features = processor(x, labels)
    assert features.labels is not None
    assert features.labels.dtype == np.int64
    np.testing.assert_array_equal(features.labels, features.pixel_values[:, 0])


@given(x=pictures, resample=st.integers(0, 5))
def test_no_label_is_made_up(x: np.ndarray, resample: int) -> None:
    labels = x[..., 1] // 32 * 7
    got = BeitImageProcessor(resample=resample)(x, labels, do_reduce_labels=False).arrays()["labels"]
    assert got.shape == (1, 224, 224)
    assert set(np.unique(got)) <= set(np.unique(labels))


def test_reduced_labels() -> None:
    labels = np.arange(256).reshape(16, 16)
    got = BeitImageProcessor(**RAW, do_reduce_labels=True)(noise(16, 16), labels).arrays()["labels"]
    assert got.ravel().tolist() == [255, *range(254), 255]


def test_large_labels_of_many_classes() -> None:
    labels = np.full((5, 5), 2**31 - 1)
    got = BeitImageProcessor()(noise(5, 5), labels).arrays()["labels"]
    assert (got == 2**31 - 1).all()


@pytest.mark.parametrize("labels", [noise(20, 30, 1)[..., 0], noise(20, 30, 1)[..., 0] // 200])
def test_maps_from_files(tmp_path: Path, labels: np.ndarray) -> None:
    paths = [save(tmp_path / f"grey.{extension}", labels) for extension in ("png", "bmp", "tiff")]
    coloured = Image.fromarray(labels)
    coloured.putpalette(noise(16, 16).tobytes())
    coloured.save(tmp_path / "coloured.png")
    paths.append(tmp_path / "coloured.png")
    paths.append(save(tmp_path / "deep.png", labels.astype(np.uint16)))
    if labels.max() < 2:
        Image.fromarray(labels * 255).convert("1").save(tmp_path / "bits.png")
        paths.append(tmp_path / "bits.png")
    for path in paths:
        got = read_segmentation_map(path)
        assert got.dtype == np.int64
        np.testing.assert_array_equal(got, labels)
        got = BeitImageProcessor(**RAW)(noise(20, 30), str(path)).arrays()["labels"]
        np.testing.assert_array_equal(got[0], labels)


def test_a_map_is_turned_as_its_picture_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    x = noise(20, 30)
    picture = save(tmp_path / "picture.png", x, exif=exif)
    labels = save(tmp_path / "labels.png", x[..., 2], exif=exif)
    features = BeitImageProcessor(**RAW)(picture, labels)
    assert features.pixel_values.shape[2:] == (30, 20)
    np.testing.assert_array_equal(features.arrays()["labels"][0], features.pixel_values[0, 2])


# ---- files of pictures -----------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(x=pictures, extension=st.sampled_from(["png", "bmp", "tiff", "ppm"]), mode=st.sampled_from(["RGB", "L", "RGBA"]))
def test_lossless_files(folder: Path, x: np.ndarray, extension: str, mode: str) -> None:
    pixels = {"RGB": x, "L": x[..., 0], "RGBA": np.concatenate((x, x[..., :1]), axis=-1)}[mode]
    want = np.stack([pixels] * 3, axis=-1) if mode == "L" else pixels[..., :3]
    if mode == "RGBA" and extension == "ppm":
        pixels = x
    got = read_image(save(folder / f"x.{extension}", pixels))
    assert got.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(got), want)


@pytest.mark.parametrize("extension", ["jpeg", "webp"])
def test_lossy_files_come_near(tmp_path: Path, extension: str) -> None:
    x = np.stack([smooth(60, 80)[..., 2] // 2] * 3, axis=-1)
    got = np.asarray(read_image(save(tmp_path / f"x.{extension}", x, quality=95)))
    assert np.abs(got.astype(int) - x).mean() < 3


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # where row 0 and column 0 lie, as the EXIF standard tells it
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_photographs_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    exif, x = Image.Exif(), noise(20, 30)
    exif[0x0112] = orientation
    path = save(tmp_path / "x.png", x, exif=exif)
    upright = TURNS[orientation](x)
    np.testing.assert_array_equal(np.asarray(read_image(path)), upright)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(read_image(image)), upright)
        lying = BeitImageProcessor(**RAW)(image).pixel_values[0]  # a PIL image is taken as it lies
    np.testing.assert_array_equal(lying, x.transpose(2, 0, 1))
    got = BeitImageProcessor(**RAW)(path).pixel_values[0]
    np.testing.assert_array_equal(got, upright.transpose(2, 0, 1))


def test_of_several_frames_the_first(tmp_path: Path) -> None:
    """And nothing stays open: that would be a ResourceWarning, which is an error here."""
    frames = [Image.fromarray(noise(9, 9, seed=seed)) for seed in range(3)]
    for extension in ("png", "tiff", "gif", "webp"):
        path = tmp_path / f"x.{extension}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        got = read_image(path)
        if extension != "gif":
            np.testing.assert_array_equal(np.asarray(got), np.asarray(frames[0]))
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(got), np.asarray(image.convert("RGB")))
        path.unlink()


def test_sixteen_bits_are_cut_off(tmp_path: Path) -> None:
    """As in transformers, which leaves it to Pillow."""
    path = save(tmp_path / "x.png", np.array([[0, 100, 255, 256, 30000, 65535]], np.uint16))
    assert np.asarray(read_image(path))[0, :, 1].tolist() == [0, 100, 255, 255, 255, 255]


KINDS = ["png", "jpeg", "webp", "bmp", "gif", "tiff", "ppm"]


@pytest.mark.parametrize("extension", KINDS)
def test_a_file_that_is_cut_off(folder: Path, extension: str) -> None:
    """All of it is there, or it is an error: some formats end with bytes that hold no pixels."""
    raw = save(folder / f"whole.{extension}", smooth(40, 60)).read_bytes()
    want, path = np.asarray(read_image(folder / f"whole.{extension}")), folder / f"cut.{extension}"

    @settings(max_examples=80)
    @given(st.one_of(st.integers(0, len(raw) - 1), st.integers(len(raw) - 30, len(raw) - 1)))
    def check(length: int) -> None:
        path.write_bytes(raw[:length])
        try:
            got = np.asarray(read_image(path))
        except InputError:
            return
        assert len(raw) - length < 30
        np.testing.assert_array_equal(got, want)

    check()


@pytest.mark.parametrize("extension", KINDS)
def test_damage_is_an_error_or_another_picture(folder: Path, extension: str) -> None:
    raw, path = save(folder / f"whole.{extension}", smooth(30, 50)).read_bytes(), folder / f"damaged.{extension}"

    @settings(max_examples=150)
    @given(st.integers(0, len(raw) - 1), st.one_of(st.integers(0, 60), st.just(0)), st.binary(min_size=1, max_size=8))
    def check(anywhere: int, early: int, patch: bytes) -> None:
        at = early or anywhere
        path.write_bytes((raw[:at] + patch + raw[at + len(patch) :])[: len(raw)])
        for read in (read_image, read_segmentation_map):
            try:
                image = np.asarray(read(path))
            except InputError:
                continue
            assert image.size > 0

    check()


def png(width: int, height: int) -> bytes:
    """A PNG file whose header claims this size, with next to no data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
WRONG: list[tuple[str, Callable[[Path], Any], str]] = [
    ("nothing there", lambda path: None, "there is no such file"),
    ("a folder", lambda path: path.mkdir(), "is a folder"),
    ("a pipe", lambda path: os.mkfifo(path), "is no file"),
    ("empty", lambda path: path.touch(), "is empty"),
    ("text", lambda path: path.write_text("hello " * 99), "is not a picture .*png, jpeg.*Convert it"),
    ("drawing", lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"), "is not a picture"),
    ("PostScript", lambda path: path.write_bytes(EPS), "of a kind that is not read .*got EPS; expected png"),
    ("one byte", lambda path: path.write_bytes(b"\x89"), "is not a picture"),
    ("zeros", lambda path: path.write_bytes(bytes(5000)), "is not a picture"),
    ("little data", lambda path: path.write_bytes(png(300, 300)), "is damaged or cut off"),
    ("no pixels", lambda path: path.write_bytes(png(0, 5)), "is not a picture|has no pixels|is damaged"),
    ("bomb", lambda path: path.write_bytes(png(12000, 15000)), "is too large .*at most .*MAX_IMAGE_PIXELS"),
    ("larger bomb", lambda path: path.write_bytes(png(60000, 60000)), "is too large .*at most .*MAX_IMAGE_PIXELS"),
]


@pytest.mark.parametrize("name", ["file.png", "file.jpg", "file"])
@pytest.mark.parametrize("read", [read_image, read_segmentation_map])
@pytest.mark.parametrize(("make", "message"), [wrong[1:] for wrong in WRONG], ids=[wrong[0] for wrong in WRONG])
def test_what_is_no_picture_file(
    tmp_path: Path, name: str, read: Callable[[Any], Any], make: Callable[[Path], Any], message: str
) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=message):
        BeitImageProcessor()(noise(5, 5), path) if read is read_segmentation_map else BeitImageProcessor()(path)


@pytest.mark.parametrize("pixels", [None, 10**9])
def test_the_limit_of_pixels_is_pillows(tmp_path: Path, pixels: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.png", noise(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 399)
    with pytest.raises(InputError, match="20 x 20 pixels; expected at most 399"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    assert read_image(path).size == (20, 20)


@pytest.mark.parametrize("path", [None, 3, b"x.png", ["x.png"], noise(5, 5)])
@pytest.mark.parametrize("read", [read_image, read_segmentation_map])
def test_what_is_no_path(path: Any, read: Callable[[Any], Any]) -> None:
    with pytest.raises(InputError, match="no picture"):
        read(path)


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000, "https://example.org/x.png"])
def test_paths_that_lead_nowhere(path: str) -> None:
    with pytest.raises(InputError):
        read_image(path)
    with pytest.raises(InputError):
        BeitImageProcessor()([path])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    save(tmp_path / "x.png", noise(3, 3)).chmod(0)
    with pytest.raises(InputError, match="can't be read"):
        read_image(tmp_path / "x.png")


def test_pillow_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, path = noise(5, 5), save(tmp_path / "x.png", noise(5, 5))

    def without(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(reading, "import_module", without)
    for read in (read_image, read_segmentation_map, BeitImageProcessor(), lambda _: BeitImageProcessor()(x)):
        with pytest.raises(UnavailableError, match=r"needs Pillow.*pip install pillow") as caught:
            read(path)
        assert caught.value.exit_code == 3
    assert BeitImageProcessor(do_resize=False)(x).pixel_values.shape == (1, 3, 5, 5)


# ---- pictures and maps that don't serve ------------------------------------------------------------------------------


def closed() -> Image.Image:
    image = Image.fromarray(noise(4, 4))
    image.close()
    return image


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "there is no picture"),
        (None, "the picture is no picture.*NoneType"),
        (3, "the picture is no picture"),
        ([[1, 2], [3, 4]], "picture 0 is no picture"),
        (np.array("x.png"), "the picture is no picture"),
        (np.zeros((4, 4), bool), "wrong dtype"),
        (np.zeros((4, 4, 3), complex), "wrong dtype"),
        (np.full((4, 4, 3), "a"), "wrong dtype"),
        (np.zeros((0, 4, 3)), "is empty"),
        (np.zeros((4, 0)), "is empty"),
        (np.full((4, 4, 3), np.nan), "not finite"),
        (np.full((4, 4, 3), np.inf, np.float32), "not finite"),
        (np.zeros((5, 6, 7)), "has no axis of channels"),
        (np.zeros((5, 6, 2)), "has no axis of channels"),
        (np.zeros((3, 6, 3)), "channels first or last.*input_data_format"),
        (np.zeros((1, 6, 4)), "channels first or last"),
        (np.zeros((2, 3, 4, 4, 3)), "is no picture"),
        (np.zeros((6, 6, 4)), "is not RGB.*got 4 channels.*do_convert_rgb"),
        (np.full((5, 6, 3), -1), "resizing takes.*got -1"),
        (np.full((5, 6, 3), 256), "resizing takes.*got 256"),
        (np.full((5, 6, 3), 1.5), "whole numbers, or 0 ... 1"),
        (np.full((5, 6, 3), 1e30), "resizing takes"),
        (Image.new("RGB", (0, 4)), "the picture has no pixels"),
        (Image.new("La", (4, 4)), "the picture can't be decoded.*La"),
        (closed(), "the picture can't be decoded.*closed"),
        ([noise(5, 5), Image.new("L", (4, 0))], "picture 1 has no pixels"),
        ([noise(5, 5), {}], "picture 1 is no picture"),
    ],
)
def test_pictures_that_do_not_serve(images: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        BeitImageProcessor()(images)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_damaged_behind_its_header(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(200, 200))
    with Image.open(path) as image, pytest.raises(InputError, match="the picture can't be decoded"):
        BeitImageProcessor()(image)
    with Image.open(path) as image, pytest.raises(InputError, match="the picture can't be decoded"):
        read_image(image)


@pytest.mark.parametrize("image", [Image.new("L", (4, 4)), Image.new("RGBA", (4, 4)), noise(5, 5, 1), noise(5, 5, 4)])
def test_what_may_not_be_converted(image: Any) -> None:
    with pytest.raises(InputError, match="the picture is not RGB"):
        BeitImageProcessor(do_convert_rgb=False)(image)


@pytest.mark.parametrize("value", [-0.5, 1.5, 300.0])
def test_what_is_no_rgba(value: float) -> None:
    with pytest.raises(InputError, match="is no RGBA picture"):
        BeitImageProcessor(do_convert_rgb=True)(np.full((5, 6, 4), value))
    with pytest.raises(InputError, match="is no RGBA picture"):
        BeitImageProcessor(do_convert_rgb=True)(np.full((5, 6, 4), 300 if value > 1 else -1))


def test_axes_that_are_named() -> None:
    x = noise(3, 8)
    want = BeitImageProcessor()(Image.fromarray(x)).pixel_values
    for name, array in (("channels_last", x), ("channels_first", x.transpose(2, 0, 1))):
        got = BeitImageProcessor()(array, input_data_format=name).pixel_values
        np.testing.assert_array_equal(got, want)
    with pytest.raises(InputError, match=r"has no axis of channels.*channels_first"):
        BeitImageProcessor(input_data_format="channels_first")(noise(8, 8))


def test_pictures_of_different_sizes() -> None:
    batch = [noise(5, 6), noise(6, 5)]
    assert BeitImageProcessor()(batch).pixel_values.shape == (2, 3, 224, 224)
    with pytest.raises(InputError, match="different sizes"):
        BeitImageProcessor(do_resize=False)(batch)
    with pytest.raises(InputError, match="different sizes"):
        BeitImageProcessor(size={"shortest_edge": 20})(batch)


def test_a_side_that_gets_too_long() -> None:
    with pytest.raises(InputError, match=r"longer side.*got 200000; expected at most 16384"):
        BeitImageProcessor(size={"shortest_edge": 200})(noise(6, 6000))


@pytest.mark.parametrize("settings", [{"rescale_factor": 1e300}, {"image_std": 1e-320}, {"image_mean": 1e300}])
def test_values_that_overflow(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="overflow float32"):
        BeitImageProcessor(**settings)(noise(5, 5))


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([], "there is no segmentation map"),
        (np.zeros((6, 5), int), "don't fit the pictures"),
        (np.zeros((2, 5, 6), int), "don't fit the pictures"),
        (np.zeros((5, 6)), "the segmentation map has the wrong dtype"),
        (np.zeros((5, 6), bool), "wrong dtype"),
        (np.full((5, 6), -1), "has no labels.*got -1"),
        (np.full((5, 6), 2**31), "has no labels"),
        (np.full((5, 6), 256), "labels above 255 can't be reduced"),
        (np.zeros((1, 1, 5, 6), int), "wrong shape"),
        (3, "wrong shape"),
        ("nowhere.png", "no such file"),
        (Image.new("RGB", (6, 5)), "the segmentation map has colours and no labels.*got mode RGB"),
        (Image.new("F", (6, 5)), "has colours and no labels"),
        (Image.new("LA", (6, 5)), "has colours and no labels"),
        (Image.new("I", (6, 5), -3), "has no labels"),
        ([np.zeros((5, 6), int), {}], "segmentation map 1"),
    ],
)
def test_maps_that_do_not_serve(maps: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BeitImageProcessor(do_reduce_labels=True)(noise(5, 6), maps)


def test_files_that_hold_no_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.png: has colours and no labels"):
        read_segmentation_map(save(tmp_path / "x.png", noise(5, 6)))
    with pytest.raises(InputError, match=r"x\.jpg: is a jpeg, which changes labels.*png"):
        read_segmentation_map(save(tmp_path / "x.jpg", noise(5, 6)[..., 0]))


# ---- settings --------------------------------------------------------------------------------------------------------


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path.parent


def test_settings_come_back_with_those_of_other_programs(tmp_path: Path) -> None:
    first = BeitImageProcessor(
        size=(30, 40), resample=Image.Resampling.LANCZOS, image_mean=(0.1, 0.2, 0.3), other={"x": [1]}, self=2
    )
    first.save_pretrained(tmp_path / "a" / "b")
    second = BeitImageProcessor.from_pretrained(tmp_path / "a" / "b")
    assert second.to_dict() == first.to_dict()
    assert second.extra == {"other": {"x": [1]}, "self": 2}
    assert (second.size, second.resample, second.image_mean) == ({"height": 30, "width": 40}, 1, [0.1, 0.2, 0.3])
    text = (tmp_path / "a" / "b" / "preprocessor_config.json").read_text()
    second.save_pretrained(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "preprocessor_config.json").read_text() == text


def test_settings_of_a_published_checkpoint(tmp_path: Path) -> None:
    """In the form of transformers 4.2x: without rescaling, and numbers for sizes."""
    values: dict[str, Any] = {"crop_size": 224, "size": 384, "feature_extractor_type": "BeitFeatureExtractor"}
    values |= {"do_center_crop": False, "do_normalize": True, "do_resize": True, "reduce_labels": True, "resample": 3}
    values |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    processor = BeitImageProcessor.from_pretrained(write(tmp_path / "x" / "preprocessor_config.json", values))
    assert processor.to_dict() == {
        "do_resize": True,
        "size": {"height": 384, "width": 384},
        "resample": 3,
        "do_center_crop": False,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_reduce_labels": True,
        "image_processor_type": "BeitImageProcessor",
    }


def test_defaults_are_nobodys_own() -> None:
    first = BeitImageProcessor()
    assert isinstance(first.image_mean, list)
    first.image_mean[0], first.size["height"] = 7.0, 3
    assert BeitImageProcessor().image_mean == [0.5, 0.5, 0.5]
    assert BeitImageProcessor().size == {"height": 224, "width": 224}


def test_null_is_off_or_the_default() -> None:
    processor = BeitImageProcessor(do_rescale=None, do_normalize=None, size=None, image_mean=None, resample=None)
    assert (processor.do_rescale, processor.do_normalize, processor.resample) == (False, False, 3)
    assert (processor.size, processor.image_mean) == ({"height": 224, "width": 224}, [0.5, 0.5, 0.5])


def test_settings_of_one_call() -> None:
    processor, x = BeitImageProcessor(size=20, other=1, reduce_labels=True), noise(9, 9)
    before = processor.to_dict()
    changes: dict[str, Any] = {"size": [7, 8], "do_normalize": False, "resample": None}
    got = processor(x, **changes)
    assert processor.to_dict() == before
    want = BeitImageProcessor(size=[7, 8], do_normalize=False)(x)
    np.testing.assert_array_equal(got.pixel_values, want.pixel_values)
    with pytest.raises(ConfigError, match=r"no setting of this name.*sizes"):
        processor(x, sizes=3)
    with pytest.raises(ConfigError, match="do_resize has the wrong type"):
        processor(x, do_resize="yes")


def test_a_processor_goes_before_and_is_brought_up_to_date(tmp_path: Path) -> None:
    write(tmp_path / "preprocessor_config.json", {"size": 1})
    write(tmp_path / "processor_config.json", {"processor_class": "X"})
    assert BeitImageProcessor.from_pretrained(tmp_path).size["height"] == 1
    write(tmp_path / "processor_config.json", {"processor_class": "X", "image_processor": {"size": 2}})
    processor = BeitImageProcessor.from_pretrained(tmp_path)
    assert processor.size["height"] == 2
    processor.size = {"height": 3, "width": 3}
    processor.save_pretrained(tmp_path)
    assert BeitImageProcessor.from_pretrained(tmp_path).size["height"] == 3
    assert json.loads((tmp_path / "processor_config.json").read_text())["processor_class"] == "X"
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"]["width"] == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size does not serve"),
        ({"size": 10**9}, "size does not serve"),
        ({"size": -5}, "size does not serve"),
        ({"size": 224.0}, "size is no size"),
        ({"size": True}, "size is no size"),
        ({"size": "224"}, "size is no size"),
        ({"size": [1, 2, 3]}, "size is no size"),
        ({"size": [1, None]}, "size is no size"),
        ({"size": {}}, "size is no size"),
        ({"size": {"height": 3}}, "size is no size"),
        ({"size": {"longest_edge": 3}}, "size is no size"),
        ({"size": {"height": 3, "width": 3, "shortest_edge": 3}}, "size is no size"),
        ({"crop_size": {"shortest_edge": 3}}, "crop_size is no size"),
        ({"crop_size": [[3], 4]}, "crop_size is no size"),
        ({"resample": 6}, "resample does not serve"),
        ({"resample": "bicubic"}, "resample has the wrong type"),
        ({"resample": 10**30}, "resample does not serve"),
        ({"rescale_factor": "1/255"}, "rescale_factor has the wrong type"),
        ({"rescale_factor": 10**400}, "rescale_factor does not serve"),
        ({"image_mean": [0.5, 0.5]}, "image_mean does not serve"),
        ({"image_mean": ["a", "b", "c"]}, "image_mean has the wrong type"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std does not serve"),
        ({"image_std": 0}, "image_std does not serve"),
        ({"do_resize": 1}, "do_resize has the wrong type"),
        ({"do_reduce_labels": "no"}, "do_reduce_labels has the wrong type"),
        ({"reduce_labels": "no"}, "do_reduce_labels has the wrong type"),
        ({"do_convert_rgb": 3}, "do_convert_rgb has the wrong type"),
        ({"input_data_format": "NCHW"}, "input_data_format does not serve.*channels_first"),
        ({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "feature_extractor_type is another one's"),
        ({"image_processor_type": ["x"]}, "image_processor_type is another one's"),
        ('{"rescale_factor": NaN}', "rescale_factor does not serve"),
        ('{"image_std": [1, Infinity, 1]}', "image_std does not serve"),
        ('{"size": 0', "is not JSON"),
        ("[]", "is not a configuration"),
    ],
)
def test_settings_that_are_wrong(tmp_path: Path, values: Any, message: str) -> None:
    write(tmp_path / "preprocessor_config.json", values)
    with pytest.raises(ConfigError, match=f"preprocessor_config.json: {message}"):
        BeitImageProcessor.from_pretrained(tmp_path)
    if isinstance(values, dict):
        (tmp_path / "preprocessor_config.json").unlink()
        write(tmp_path / "processor_config.json", {"image_processor": values})
        with pytest.raises(ConfigError, match=f"processor_config.json: {message}"):
            BeitImageProcessor.from_pretrained(tmp_path)


def test_folders_without_settings(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no image processor.*preprocessor_config\.json"):
        BeitImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        BeitImageProcessor.from_pretrained(tmp_path / "none")
    write(tmp_path / "processor_config.json", {"image_processor": 3})
    with pytest.raises(ConfigError, match="its image_processor is no configuration"):
        BeitImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="can't be made a folder"):
        BeitImageProcessor().save_pretrained(tmp_path / "processor_config.json")


def test_arrays_that_there_are() -> None:
    pixels, labels = np.zeros((1, 3, 2, 2), np.float32), np.zeros((1, 2, 2), np.int64)
    assert list(ImageFeatures(pixels).arrays()) == ["pixel_values"]
    assert ImageFeatures(pixels, labels).arrays()["labels"] is labels
