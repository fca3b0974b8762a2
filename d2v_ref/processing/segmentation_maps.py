"""From a segmentation model's logits to label maps, and from those to pictures that people and programs read.

Shapes: B pictures, C classes, logits of h rows and w columns, maps of H rows and W columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref import checks
from d2v_ref.checkpoints import replacing
from d2v_ref.errors import InputError, UnavailableError
from d2v_ref.ops import Ops
from d2v_ref.processing.image_processor import VOID
from d2v_ref.processing.pictures import is_pil, pillow, read_image, to_rgb

MOST_PIXELS = 1 << 28  # of a map

Names = Mapping[int, str] | Sequence[str]


def post_process_semantic_segmentation(logits: Any, target_sizes: Any = None) -> list[np.ndarray]:
    """The class of each pixel: argmax_c of the logits, resized first (HF BeitImageProcessor's method of this name).

    Of equal logits the first class counts.

    Args:
        logits: (B, C, h, w).
        target_sizes: B pairs (height, width), usually those of the pictures; None leaves the logits' size.

    Returns:
        B maps (H, W), int64.

    Raises:
        InputError: logits that are no such array or not finite; sizes that don't serve.
    """
    logits = checks.array("logits", logits, ("pictures", "classes", "height", "width"), "f")
    if target_sizes is None:
        return list(logits.argmax(axis=1))
    sizes = checks.array("target_sizes", target_sizes, (len(logits), 2), "iu").tolist()
    for height, width in sizes:
        if not (height > 0 < width and height * width <= MOST_PIXELS):
            expected = f"height and width, 1 or more, together at most {MOST_PIXELS} pixels"
            raise InputError("a target size does not serve", got=(height, width), expected=expected)
    return [_classes(scores, size) for scores, size in zip(logits, sizes, strict=True)]


def _classes(scores: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """argmax_c of scores (C, h, w) at another size, one class at a time: resized, all of them can fill the memory."""
    best = bilinear(scores[0], size)
    classes = np.zeros(best.shape, np.int64)
    for index, score in enumerate(scores[1:], 1):
        resized = bilinear(score, size)
        classes[resized > best] = index
        np.maximum(best, resized, out=best)
    return classes


def bilinear(x: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """x (..., h, w) at another size (``Ops.resize``), in the dtype of x, but float16 in float32."""
    x = x.astype(np.result_type(x, np.float32), copy=False)
    maps = x.reshape(-1, *x.shape[-2:], 1)  # (B, h, w, 1)
    resized = Ops(str(x.dtype)).resize(maps, (int(size[0]), int(size[1])), "bilinear")
    return resized.reshape(*x.shape[:-2], *resized.shape[1:3])


# ---- colours ---------------------------------------------------------------------------------------------------------


def label_colours(names: Names) -> np.ndarray:
    """A palette: a colour for every label, those of the first labels farthest apart.

    Label k has colour k of a fixed sequence.  Its colours are those whose six hex digits are three doubled ones of
    2 ... e, such as #3399cc, neither grey (largest minus smallest part at least 85) nor very dark or bright (299 R +
    587 G + 114 B of 60000 ... 200000).  Each is the one farthest from all before it and from black, white and grey
    (#808080), of several the first by its number; the square of the distance is

        ((512 + r) dR^2 >> 8) + 4 dG^2 + ((767 - r) dB^2 >> 8),   r = (R1 + R2) >> 1

    (Riemersma's approximation of perceived difference, in integers).  When all are taken, the sequence begins again.

    But label 0 is black if its name is "background", and label 255, void, is white unless it is a class.

    Args:
        names: of the classes: a list, or a table by label as ``config.id2label``.

    Returns:
        (N, 3) uint8, red, green and blue; N is 256 or the number of classes if that is larger.
    """
    table = _table(names)
    count = max(VOID + 1, 1 + max(table, default=0))
    sequence = _sequence()
    colours = sequence[np.arange(count) % len(sequence)]
    if table.get(0, "").strip().lower() == "background":
        colours[0] = 0
    if VOID not in table:
        colours[VOID] = 255
    return colours


@cache
def _sequence() -> np.ndarray:
    colours = (np.indices((13, 13, 13)).reshape(3, -1).T + 2) * 17
    luma = colours @ (299, 587, 114)
    colours = colours[(np.ptp(colours, axis=1) >= 85) & (luma >= 60_000) & (luma <= 200_000)]
    nearest = np.min([_distance(colours, np.full(3, level)) for level in (0, 255, 128)], axis=0)
    order = []
    for _ in colours:
        order.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _distance(colours, colours[order[-1]]))
        nearest[order[-1]] = -1
    return colours[order].astype(np.uint8)


def _distance(colours: np.ndarray, colour: np.ndarray) -> np.ndarray:
    red, green, blue = np.square(colours - colour).T
    level = (colours[:, 0] + colour[0]) >> 1
    return ((512 + level) * red >> 8) + 4 * green + ((767 - level) * blue >> 8)


def indexed_png(labels: Any, path: str | Path, palette: Any) -> None:
    """Write a label map as a PNG of mode P: each pixel's value is its label, and the palette shows it in its colour.

    The file appears as a whole or not at all.

    Args:
        labels: (H, W), integers 0 ... 255.
        path: where to write.
        palette: (N, 3), red, green and blue as 0 ... 255; what is beyond 256 is left out.

    Raises:
        InputError: labels that PNG can't hold, or that have no colour.
        CheckpointError: the file can't be written.
        UnavailableError: Pillow is not installed.
    """
    hint = "Such a map fits into an array, as with numpy.save"
    labels = checks.indices("labels", labels, ("height", "width"), 256, hint)
    palette = _palette(palette, labels)[:256]
    picture = pillow("Image").fromarray(labels.astype(np.uint8))
    picture.putpalette(palette.tobytes())
    with replacing(Path(path)) as temporary:
        picture.save(temporary, format="PNG")


def _palette(palette: Any, labels: np.ndarray) -> np.ndarray:
    colours = checks.indices("palette", palette, ("labels", 3), 256).astype(np.uint8)
    if labels.max() >= len(colours):
        hint = "label_colours(names) has enough"
        got, expected = f"label {labels.max()}", f"0 ... {len(colours) - 1}"
        raise InputError("a label has no colour", got=got, expected=expected, hint=hint)
    return colours


def _table(names: Names) -> dict[int, str]:
    """Label -> name."""
    try:
        table = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
    except TypeError:
        table = {-1: ""}
    if isinstance(names, str) or not all(
        isinstance(label, int) and 0 <= label < 1 << 20 and isinstance(name, str) for label, name in table.items()
    ):
        expected = "a list of names, or a table {label: name}"
        raise InputError("names are no names of labels", got=repr(names), expected=expected)
    return table


# ---- overlays --------------------------------------------------------------------------------------------------------

MOST_ENTRIES = 12  # of a legend
LONGEST_NAME = 24  # characters


@dataclass(frozen=True)
class _Entry:
    """A line of a legend."""

    colour: tuple[int, ...] | None
    name: str
    share: str


def overlay(picture: Any, labels: Any, names: Names, palette: Any = None, alpha: float = 0.6) -> Any:
    """A picture with each pixel tinted in its label's colour, and a legend of the labels that occur.

    A pixel becomes (1 - alpha) pixel + alpha colour, rounded to the nearest integer, halves to the even one.  The
    picture lies in the upper left corner; the legend is to its right, or below it if it is wider than high, and covers
    nothing of it.  It tells the share of the pixels; beyond 12 labels, those with the smallest shares are one entry.

    Args:
        picture: a path, read by ``read_image``, or a PIL image, taken as it lies.
        labels: (H, W), integers 0 or more, of the picture's size.
        names: of the classes: a list, or a table by label as ``config.id2label``.
        palette: (N, 3), 0 ... 255; None for ``label_colours(names)``.
        alpha: 0 ... 1; 0 leaves the picture as it is.

    Returns:
        A PIL image of mode RGB.

    Raises:
        InputError: a picture that can't be read, or arguments that don't fit.
        UnavailableError: Pillow is not installed, or not with FreeType.
    """
    image = to_rgb(picture if is_pil(picture) else read_image(picture), None, "the picture")
    labels = checks.indices("labels", labels, (image.height, image.width), 1 << 20)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise InputError("alpha does not serve", got=repr(alpha), expected="a number, 0 ... 1")
    colours = _palette(label_colours(names) if palette is None else palette, labels)
    tinted = np.rint((1 - alpha) * np.asarray(image, np.float64) + alpha * colours[labels])
    entries = _entries(labels, _table(names), colours)
    return _with_legend(pillow("Image").fromarray(tinted.astype(np.uint8)), entries)


def _entries(labels: np.ndarray, names: Mapping[int, str], colours: np.ndarray) -> list[_Entry]:
    found, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shown = order if len(order) <= MOST_ENTRIES else order[: MOST_ENTRIES - 1]
    entries = [
        _Entry(tuple(colours[found[i]].tolist()), _name(int(found[i]), names), _share(counts[i] / labels.size))
        for i in shown
    ]
    rest = order[len(shown) :]
    if len(rest):
        entries.append(_Entry(None, f"{len(rest)} others", _share(counts[rest].sum() / labels.size)))
    return entries


def _name(label: int, names: Mapping[int, str]) -> str:
    name = " ".join(names.get(label, "void" if label == VOID else "").split()) or f"label {label}"
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1].rstrip()}…"


def _share(part: float) -> str:
    return f"{part:.1%}" if part >= 0.0005 else "<0.1%"


def _with_legend(picture: Any, entries: Sequence[_Entry]) -> Any:
    size = round(min(max(min(picture.size) / 30, 12), 22))
    font, line, gap = _font(size), round(1.6 * size), size
    name = max(font.getlength(entry.name) for entry in entries)
    share = max(font.getlength(entry.share) for entry in entries)
    column = round(1.6 * size + name + size + share)
    beside = picture.width <= picture.height
    fitting = (picture.width - gap) // (column + 2 * gap)
    columns = 1 if beside else max(1, min(len(entries), fitting))
    rows = -(-len(entries) // columns)
    width, height = columns * (column + 2 * gap), rows * line + 2 * gap
    if beside:
        corner, canvas = (picture.width, 0), (picture.width + width, max(picture.height, height))
    else:
        corner, canvas = (0, picture.height), (max(picture.width, width), picture.height + height)
    result = pillow("Image").new("RGB", canvas, "white")
    result.paste(picture, (0, 0))
    draw = pillow("ImageDraw").Draw(result)
    for i, entry in enumerate(entries):
        x = corner[0] + gap + i // rows * (column + 2 * gap)
        y = corner[1] + gap + i % rows * line
        _draw(draw, entry, (x, y), column, size, font)
    return result


def _draw(draw: Any, entry: _Entry, corner: tuple[int, int], column: int, size: int, font: Any) -> None:
    (x, y), ink = corner, (40, 40, 40)
    middle = y + round(0.8 * size)
    if entry.colour is not None:
        box = (x, middle - size // 2, x + size, middle + size // 2)
        draw.rectangle(box, fill=entry.colour, outline=(120, 120, 120))
    draw.text((x + round(1.6 * size), middle), entry.name, fill=ink, font=font, anchor="lm")
    draw.text((x + column, middle), entry.share, fill=ink, font=font, anchor="rm")


def _font(size: int) -> Any:
    try:
        return pillow("ImageFont").load_default(size=size)
    except ImportError as error:
        hint = "Install Pillow's own wheel: `pip install pillow`"
        raise UnavailableError("a legend needs Pillow with FreeType", got=error, hint=hint) from None
