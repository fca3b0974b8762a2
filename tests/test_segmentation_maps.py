"""Label maps: from logits, as indexed PNG files, and laid over pictures with a legend."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from d2v_ref.errors import CheckpointError, InputError, UnavailableError
from d2v_ref.processing import pictures
from d2v_ref.processing.segmentation_maps import (
    LONGEST_NAME,
    MOST_ENTRIES,
    bilinear,
    indexed_png,
    label_colours,
    overlay,
    post_process_semantic_segmentation,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a test writes a file over the one of its last example."""
    return tmp_path_factory.mktemp("maps")


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def interpolated(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """x (h, w) at another size, one axis after the other with NumPy's own interpolation, which repeats the ends."""
    for axis, wanted in enumerate(size):
        points = np.arange(x.shape[axis])
        centres = (np.arange(wanted) + 0.5) * len(points) / wanted - 0.5
        rows = [np.interp(centres, points, row) for row in np.moveaxis(x, axis, -1)]
        x = np.moveaxis(np.array(rows), -1, axis)
    return x


sizes = st.tuples(st.integers(1, 60), st.integers(1, 60))


# ---- resizing --------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(shape=st.tuples(st.integers(1, 20), st.integers(1, 20)), size=sizes, seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_one_axis_after_the_other(dtype: str, shape: tuple[int, int], size: tuple[int, int], seed: int) -> None:
    x = drawn(*shape, seed=seed).astype(dtype)
    got = bilinear(x, size)
    assert got.dtype == (np.float64 if dtype == "float64" else np.float32)
    bound = 1e-13 if dtype == "float64" else 2e-5
    np.testing.assert_allclose(got, interpolated(x.astype(np.float64), size), rtol=0, atol=bound)


@given(shape=st.tuples(st.integers(1, 20), st.integers(1, 20)), size=sizes, seed=st.integers(0, 2**32 - 1))
def test_what_resizing_keeps(shape: tuple[int, int], size: tuple[int, int], seed: int) -> None:
    x = drawn(2, 3, *shape, seed=seed)
    np.testing.assert_array_equal(bilinear(x, shape), x)
    got = bilinear(x, size)
    assert got.shape == (2, 3, *size)
    np.testing.assert_array_equal(got[1, 2], bilinear(x[1, 2], size))
    np.testing.assert_array_equal(bilinear(x.swapaxes(-1, -2), size[::-1]).shape, (2, 3, *size[::-1]))
    np.testing.assert_allclose(bilinear(x.swapaxes(-1, -2), size[::-1]), got.swapaxes(-1, -2), atol=1e-12)
    np.testing.assert_allclose(bilinear(x[..., ::-1, ::-1], size), got[..., ::-1, ::-1], atol=1e-12)
    assert x.min() - 1e-12 <= got.min() <= got.max() <= x.max() + 1e-12
    assert np.ptp(bilinear(np.full(shape, 0.7), size)) < 1e-15


# ---- classes ---------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    batch=st.integers(1, 3),
    classes=st.integers(1, 9),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    levels=st.sampled_from([0, 3]),
    data=st.data(),
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_classes(
    dtype: str, batch: int, classes: int, shape: tuple[int, int], levels: int, data: st.DataObject
) -> None:
    """The largest logit's class, of several the first; elsewhere than at ties also by another way of resizing."""
    logits = drawn(batch, classes, *shape, seed=data.draw(st.integers(0, 2**32 - 1))).astype(dtype)
    logits = np.rint(logits * levels) if levels else logits
    targets = data.draw(st.lists(sizes, min_size=batch, max_size=batch))
    got = post_process_semantic_segmentation(logits, targets)
    for scores, labels, size in zip(logits, got, targets, strict=True):
        assert (labels.dtype, labels.shape) == (np.int64, size)
        np.testing.assert_array_equal(labels, bilinear(scores, size).argmax(axis=0))
        exact = np.stack([interpolated(score.astype(np.float64), size) for score in scores])
        lost = exact.max(axis=0) - np.take_along_axis(exact, labels[None], axis=0)[0]
        assert lost.max() < 1e-4
    for scores, labels in zip(logits, post_process_semantic_segmentation(logits), strict=True):
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(np.take_along_axis(scores, labels[None], axis=0)[0], scores.max(axis=0))


def test_of_equal_logits_the_first_class() -> None:
    logits = np.zeros((1, 5, 2, 2), np.float32)
    logits[0, [2, 4]] = 1
    for targets in (None, [(7, 3)], np.array([[7, 3]]), [[2, 2]]):
        assert np.unique(post_process_semantic_segmentation(logits, targets)[0]).tolist() == [2]


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (drawn(3, 4, 5), None, "logits has the wrong shape"),
        (drawn(1, 0, 4, 5), None, "logits is empty"),
        (np.zeros((1, 2, 4, 5), int), None, "logits has the wrong dtype"),
        (np.full((1, 2, 4, 5), np.nan), None, "logits is not finite"),
        ("logits", None, "logits has the wrong dtype"),
        ([[1.0], [2.0, 3.0]], None, "logits is not an array"),
        (drawn(2, 3, 4, 5), [(8, 8)], "target_sizes has the wrong shape"),
        (drawn(1, 3, 4, 5), (8, 8), "target_sizes has the wrong shape"),
        (drawn(1, 3, 4, 5), [(8, 8, 3)], "target_sizes has the wrong shape"),
        (drawn(1, 3, 4, 5), [(8.0, 8.0)], "target_sizes has the wrong dtype"),
        (drawn(1, 3, 4, 5), [], "target_sizes has the wrong"),
        (drawn(1, 3, 4, 5), [None], "target_sizes has the wrong"),
        (drawn(1, 3, 4, 5), [(0, 8)], "a target size does not serve"),
        (drawn(1, 3, 4, 5), [(8, -1)], "a target size does not serve"),
        (drawn(1, 3, 4, 5), [(1 << 20, 1 << 20)], "a target size does not serve"),
    ],
)
def test_logits_and_sizes_that_do_not_serve(logits: Any, targets: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        post_process_semantic_segmentation(logits, targets)


# ---- colours ---------------------------------------------------------------------------------------------------------


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Riemersma's, with fractions."""
    red, green, blue = (one.astype(float) - other) ** 2
    level = (float(one[0]) + float(other[0])) / 2
    return float(np.sqrt((2 + level / 256) * red + 4 * green + (2 + (255 - level) / 256) * blue))


def test_colours_are_far_apart() -> None:
    colours = label_colours(["x"] * 150)
    assert (colours.shape, colours.dtype) == ((256, 3), np.uint8)
    basics = [np.full(3, level) for level in (0, 128, 255)]
    nearest = [min(distance(colour, other) for other in [*basics, *colours[:k]]) for k, colour in enumerate(colours)]
    assert min(nearest[:20]) > 120
    assert min(nearest[:150]) > 50
    assert min(nearest[:255]) > 30
    assert all(later < earlier + 3 for earlier, later in pairwise(nearest[:255]))


def test_colours_stay_what_they_are() -> None:
    """Of which label is whose colour, published maps depend."""
    colours = label_colours(["x"] * 3)
    assert ["#" + bytes(colour).hex() for colour in colours[:8].tolist()] == [
        "#22eeee",
        "#ee22ee",
        "#22ee22",
        "#ee2222",
        "#3322ee",
        "#dddd22",
        "#ee99cc",
        "#77ee88",
    ]


@given(count=st.integers(0, 600), background=st.sampled_from(["background", " Background", "wall", "backgrounds"]))
def test_background_and_void(count: int, background: str) -> None:
    names = [background, *["x"] * count]
    colours, plain = label_colours(names), label_colours(["x"] * len(names))
    assert len(colours) == max(256, len(names))
    assert (colours[0] == 0).all() == (background.strip().lower() == "background")
    assert (colours[255] == 255).all() == (len(names) < 256)
    np.testing.assert_array_equal(colours[1:], plain[1:])
    np.testing.assert_array_equal(label_colours(dict(enumerate(names))), colours)
    rows = {tuple(row) for row in colours.tolist()}
    assert len(rows) == len(colours)


def test_more_labels_than_colours() -> None:
    colours = label_colours({4000: "x"})
    assert colours.shape == (4001, 3)
    assert len(np.unique(colours, axis=0)) < 4001


@pytest.mark.parametrize("names", [None, 3, "sky", [1, 2], {"0": "sky"}, {-1: "sky"}, {0: None}, {1 << 20: "x"}])
def test_what_is_no_table_of_names(names: Any) -> None:
    with pytest.raises(InputError, match="names are no names"):
        label_colours(names)
    with pytest.raises(InputError, match="names are no names"):
        overlay(Image.new("RGB", (3, 2)), np.zeros((2, 3), int), names)


# ---- indexed PNG -----------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    size=sizes,
    largest=st.sampled_from([0, 1, 3, 15, 150, 255]),
    rows=st.integers(0, 300),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["uint8", "int64", "int32"]),
)
def test_an_indexed_png_is_the_map(
    folder: Path, size: tuple[int, int], largest: int, rows: int, seed: int, dtype: str
) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, largest + 1, size).astype(dtype)
    palette = random.integers(0, 256, (max(rows, largest + 1), 3))
    indexed_png(labels, folder / "x.png", palette)
    with Image.open(folder / "x.png") as image:
        assert (image.format, image.mode) == ("PNG", "P")
        np.testing.assert_array_equal(np.asarray(image), labels)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), palette[labels])
    np.testing.assert_array_equal(pictures.read_segmentation_map(folder / "x.png"), labels)


@pytest.mark.parametrize(
    ("labels", "palette", "message"),
    [
        (np.full((2, 2), 256), label_colours(["x"] * 300), "labels is out of range.*got 256"),
        (np.full((2, 2), -1), label_colours(["x"]), "labels is out of range.*got -1"),
        (np.zeros((2, 2)), label_colours(["x"]), "labels has the wrong dtype"),
        (np.zeros((2, 2), bool), label_colours(["x"]), "labels has the wrong dtype"),
        (np.zeros(4, int), label_colours(["x"]), "labels has the wrong shape"),
        (np.zeros((0, 4), int), label_colours(["x"]), "labels is empty"),
        (np.full((2, 2), 3), np.zeros((3, 3), int), "a label has no colour.*got label 3; expected 0 ... 2"),
        (np.zeros((2, 2), int), np.zeros((3, 4), int), "palette has the wrong shape"),
        (np.zeros((2, 2), int), np.full((3, 3), 256), "palette is out of range"),
        (np.zeros((2, 2), int), np.zeros((3, 3)), "palette has the wrong dtype"),
        (np.zeros((2, 2), int), None, "palette has the wrong dtype"),
    ],
)
def test_maps_and_palettes_that_do_not_serve(tmp_path: Path, labels: Any, palette: Any, message: str) -> None:
    (tmp_path / "x.png").write_text("what was there")
    with pytest.raises(InputError, match=message):
        indexed_png(labels, tmp_path / "x.png", palette)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_text() == "what was there"


def test_a_file_appears_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, colours = np.zeros((5, 5), int), label_colours(["x"])
    with pytest.raises(CheckpointError, match="can't be written"):
        indexed_png(labels, tmp_path / "none" / "x.png", colours)

    def full(self: Any, path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(CheckpointError, match=r"x\.png: can't be written.*No space left"):
        indexed_png(labels, tmp_path / "x.png", colours)
    assert list(tmp_path.iterdir()) == []


# ---- overlays --------------------------------------------------------------------------------------------------------

NAMES = ["background", "sky", "grass", "a tree with a name that is too long for any legend", "  two\nlines ", ""]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@settings(max_examples=60)
@given(size=st.tuples(st.integers(1, 300), st.integers(1, 300)), alpha=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_the_picture_is_blended_and_nothing_covers_it(size: tuple[int, int], alpha: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    picture, labels = noise(*size, seed), random.choice([0, 1, 2, 3, 4, 5, 17, 255], size)
    colours = label_colours(NAMES)
    result = overlay(Image.fromarray(picture), labels, NAMES, alpha=alpha)
    assert result.mode == "RGB"
    pixels = np.asarray(result)
    height, width = size
    exact = picture * (1 - alpha) + colours[labels] * alpha
    assert np.abs(pixels[:height, :width] - exact).max() <= 0.5 + 1e-9
    beside = width <= height
    legend = pixels[:, width:] if beside else pixels[height:]
    assert legend.size > 0
    assert (pixels.shape[1] > width) if beside else (pixels.shape[0] > height)
    shown = {tuple(color) for color in legend.reshape(-1, 3).tolist()}
    assert {tuple(colours[label].tolist()) for label in np.unique(labels)} <= shown
    assert (255, 255, 255) in shown


def test_how_much_of_the_picture_shows() -> None:
    picture, labels = noise(20, 30), np.random.default_rng(1).integers(0, 3, (20, 30))
    image = Image.fromarray(picture)
    np.testing.assert_array_equal(np.asarray(overlay(image, labels, NAMES, alpha=0))[:20, :30], picture)
    palette = np.array([[1, 2, 3], [40, 50, 60], [200, 210, 220]])
    whole = np.asarray(overlay(image, labels, NAMES, palette, 1))[:20, :30]
    np.testing.assert_array_equal(whole, palette[labels])
    np.testing.assert_array_equal(np.asarray(image), picture)


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, int, int, int]]]:
    """What is written into pictures, and in which boxes."""
    found: list[tuple[str, tuple[int, int, int, int]]] = []
    write = ImageDraw.ImageDraw.text

    def text(self: Any, xy: Any, text: str, *arguments: Any, **options: Any) -> None:
        box = self.textbbox(xy, text, font=options["font"], anchor=options["anchor"])
        found.append((text, tuple(round(edge) for edge in box)))
        write(self, xy, text, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return found


def test_a_legend_tells_names_and_shares(texts: list[Any]) -> None:
    labels = np.repeat([1, 2, 2, 3, 3, 3, 255, 17, 5, 4], 1000).reshape(100, 100)
    labels[0, 0] = 0
    overlay(Image.new("RGB", (100, 100)), labels, NAMES)
    words = [text for text, _ in texts]
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    cut = next(name for name in pairs if name.startswith("a tree"))
    assert len(cut) <= LONGEST_NAME
    assert cut.endswith("…")
    assert list(pairs.items()) == [
        (cut, "30.0%"),
        ("grass", "20.0%"),
        ("two lines", "10.0%"),
        ("label 5", "10.0%"),
        ("label 17", "10.0%"),
        ("void", "10.0%"),
        ("sky", "10.0%"),
        ("background", "<0.1%"),
    ]


@pytest.mark.parametrize("count", [1, MOST_ENTRIES, MOST_ENTRIES + 1, 100])
def test_of_many_labels_the_largest(texts: list[Any], count: int) -> None:
    shares = np.arange(count, 0, -1)
    row = np.repeat(np.arange(count), shares)
    labels = np.concatenate((row, np.zeros(-len(row) % 20, int))).reshape(20, -1)
    overlay(Image.new("RGB", (labels.shape[1], 20)), labels, [f"name {i}" for i in range(count)])
    words = [text for text, _ in texts][::2]
    if count <= MOST_ENTRIES:
        assert words == [f"name {i}" for i in range(count)]
    else:
        assert words == [*(f"name {i}" for i in range(MOST_ENTRIES - 1)), f"{count - MOST_ENTRIES + 1} others"]
        rest = 100 * np.mean(labels >= MOST_ENTRIES - 1)
        assert float(texts[-1][0].rstrip("%")) == pytest.approx(rest, abs=0.051)


@settings(max_examples=40)
@given(height=st.integers(1, 900), width=st.integers(1, 900), count=st.integers(1, 20))
def test_everything_written_is_inside_and_apart(height: int, width: int, count: int) -> None:
    labels = np.arange(height * width).reshape(height, width) % count
    with pytest.MonkeyPatch.context() as patch:
        boxes: list[tuple[float, ...]] = []
        write = ImageDraw.ImageDraw.text

        def text(self: Any, xy: Any, text: str, *arguments: Any, **options: Any) -> None:
            boxes.append(self.textbbox(xy, text, font=options["font"], anchor=options["anchor"]))
            write(self, xy, text, *arguments, **options)

        patch.setattr(ImageDraw.ImageDraw, "text", text)
        result = overlay(Image.new("RGB", (width, height)), labels, {3: "W" * 40, 4: "i"})
    assert len(boxes) == 2 * min(count, MOST_ENTRIES, height * width)
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert right <= result.width
        assert bottom <= result.height
        assert left >= width or top >= height
        for other in boxes[:i]:
            assert left >= other[2] or other[0] >= right or top >= other[3] or other[1] >= bottom


def test_pictures_from_files_and_in_other_modes(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture, labels = noise(20, 30), np.zeros((30, 20), int)
    Image.fromarray(picture).save(tmp_path / "x.png", exif=exif)
    for path in (tmp_path / "x.png", str(tmp_path / "x.png")):
        got = np.asarray(overlay(path, labels, ["x"], alpha=0))
        np.testing.assert_array_equal(got[:30, :20], np.rot90(picture, -1))
    grey = Image.fromarray(picture[..., 0])
    got = np.asarray(overlay(grey, labels.T, ["x"], alpha=0))
    np.testing.assert_array_equal(got[:20, :30], np.stack([picture[..., 0]] * 3, axis=-1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"picture": noise(4, 5)}, "this is no picture"),
        ({"picture": None}, "this is no picture"),
        ({"picture": "none.png"}, "there is no such file"),
        ({"labels": np.zeros((5, 4), int)}, "labels has the wrong shape"),
        ({"labels": np.zeros((4, 5))}, "labels has the wrong dtype"),
        ({"labels": np.full((4, 5), -1)}, "labels is out of range"),
        ({"labels": np.full((4, 5), 300)}, "a label has no colour.*label_colours"),
        ({"palette": [[1, 2, 300]]}, "palette is out of range"),
        ({"palette": "red"}, "palette has the wrong dtype"),
        ({"alpha": 1.5}, "alpha does not serve"),
        ({"alpha": -0.1}, "alpha does not serve"),
        ({"alpha": float("nan")}, "alpha does not serve"),
        ({"alpha": "0.5"}, "alpha does not serve"),
        ({"alpha": True}, "alpha does not serve"),
    ],
)
def test_overlays_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    arguments = {"picture": Image.new("RGB", (5, 4)), "labels": np.zeros((4, 5), int), "names": ["x"], **changes}
    with pytest.raises(InputError, match=message):
        overlay(**arguments)


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, labels = Image.new("RGB", (5, 4)), np.zeros((4, 5), int)

    def without(*arguments: Any, **options: Any) -> Any:
        raise ImportError("The _imagingft C module is not installed")

    with monkeypatch.context() as patch:
        patch.setattr(ImageFont, "load_default", without)
        with pytest.raises(UnavailableError, match="FreeType"):
            overlay(image, labels, ["x"])
    monkeypatch.setattr(pictures, "import_module", without)
    with pytest.raises(UnavailableError, match="needs Pillow"):
        overlay(image, labels, ["x"])
    with pytest.raises(UnavailableError, match="needs Pillow"):
        indexed_png(labels, tmp_path / "x.png", label_colours(["x"]))
