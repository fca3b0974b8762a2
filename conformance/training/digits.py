"""Pictures of handwritten digits for tiny-vision: splits, single digits, pictures without one, and scenes.

The digits are scikit-learn's copy of the UCI test set "Optical Recognition of Handwritten Digits" (Alpaydin and
Kaynak 1998, CC BY 4.0): 1797 pictures of 8 x 8 pixels, 0 ... 16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

LABELS = [*"0123456789", "background"]
BACKGROUND = 10  # of pictures: no digit; of pixels: no ink
PICTURE, SCENE = 64, 128  # pixels, the side of a picture of one digit and of a scene
SIZES = {"train": 1297, "validation": 100, "test": 400}
INK = 0.5  # from how much ink on a pixel is the digit's


@dataclass(frozen=True)
class Digits:
    """Handwritten digits: ``pixels`` (N, 8, 8) float32, 0 paper ... 1 ink, and ``labels`` (N,) 0 ... 9."""

    pixels: np.ndarray
    labels: np.ndarray


def splits() -> dict[str, Digits]:
    """The 1797 digits as train, validation and test: seeded, every class in proportion."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pixels, labels = bunch.images.astype(np.float32) / 16, bunch.target.astype(np.int64)
    rest, test = train_test_split(np.arange(len(labels)), test_size=SIZES["test"], random_state=0, stratify=labels)
    train, validation = train_test_split(rest, test_size=SIZES["validation"], random_state=0, stratify=labels[rest])
    rows = {"train": train, "validation": validation, "test": test}
    return {name: Digits(pixels[chosen], labels[chosen]) for name, chosen in rows.items()}


@dataclass(frozen=True)
class Pen:
    """How a digit is drawn: where (pixels), how large its 8 x 8 box (pixels), turned (radians), narrowed, how sharp."""

    x: float
    y: float
    size: float
    angle: float = 0.0
    narrow: float = 1.0
    sharpness: float = 2.0
    weight: float = 0.0


def ink(digit: np.ndarray, side: int, pen: Pen) -> np.ndarray:
    """How much ink is on each pixel, (side, side) float32, 0 ... 1: the digit enlarged with Pillow's bicubic filter."""
    source = Image.fromarray(np.pad(digit, 4))
    step = 8 / pen.size
    cos, sin = math.cos(pen.angle) * step, math.sin(pen.angle) * step
    across, down = (cos / pen.narrow, sin / pen.narrow), (-sin, cos)
    shift = [8 - row[0] * pen.x - row[1] * pen.y for row in (across, down)]
    matrix = (*across, shift[0], *down, shift[1])
    value = np.asarray(source.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC))
    return np.clip((value - 0.5 + pen.weight) * pen.sharpness + INK, 0, 1)


def plain(digit: np.ndarray, dark_on_light: bool) -> Image.Image:
    """A digit in the middle of a picture, black on white or white on black, nothing else."""
    return printed(ink(digit, PICTURE, Pen(PICTURE / 2, PICTURE / 2, 0.85 * PICTURE)), dark_on_light)


def printed(value: np.ndarray, dark_on_light: bool) -> Image.Image:
    """Ink in black on white, or white on black."""
    return Image.fromarray(np.rint(255 * (1 - value if dark_on_light else value)).astype(np.uint8)).convert("RGB")


def picture(digit: np.ndarray | None, generator: np.random.Generator) -> Image.Image:
    """A digit drawn anyhow, or a picture without one: blank, spots, or lines that cross it."""
    if digit is None:
        return _paint(_no_digit(generator), generator)
    size = PICTURE * generator.uniform(0.6, 1.05)
    play = max(0.06 * PICTURE, (PICTURE - size) / 2)
    x, y = PICTURE / 2 + generator.uniform(-play, play, 2)
    return _paint(ink(digit, PICTURE, _pen(x, y, size, generator)), generator)


def scene(digits: Digits, generator: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """Two to four digits in one picture, and each pixel's class: (SCENE, SCENE) uint8."""
    ground, labels = np.zeros((SCENE, SCENE), np.float32), np.full((SCENE, SCENE), BACKGROUND, np.uint8)
    placed: list[Pen] = []
    for _ in range(generator.integers(2, 5)):
        pen = _place(placed, generator)
        if pen is None:
            break
        placed.append(pen)
        chosen = generator.integers(len(digits.labels))
        value = ink(digits.pixels[chosen], SCENE, pen)
        ground = np.maximum(ground, value)
        labels[value > INK] = digits.labels[chosen]
    return _paint(ground, generator), labels


def _place(placed: list[Pen], generator: np.random.Generator) -> Pen | None:
    """A place where a digit's box reaches less than a quarter into another's; None if twenty draws find none."""
    for _ in range(20):
        size = SCENE / 32 * generator.uniform(8, 14)
        x, y = generator.uniform(0.45 * size, SCENE - 0.45 * size, 2)
        if all(max(abs(x - other.x), abs(y - other.y)) > 0.75 * (size + other.size) / 2 for other in placed):
            return _pen(x, y, size, generator)
    return None


def _pen(x: float, y: float, size: float, generator: np.random.Generator) -> Pen:
    return Pen(
        x,
        y,
        size,
        angle=math.radians(generator.uniform(-12, 12)),
        narrow=generator.uniform(0.8, 1.1),
        sharpness=generator.uniform(1, 5),
        weight=generator.uniform(-0.1, 0.2),
    )


def _no_digit(generator: np.random.Generator) -> np.ndarray:
    """Ink that is no digit, (PICTURE, PICTURE) float32."""
    kind = generator.choice(["blank", "spots", "lines"])
    value = np.zeros((PICTURE, PICTURE), np.float32)
    y, x = np.indices(value.shape)
    if kind == "spots":
        for _ in range(generator.integers(1, 12)):
            radius, (left, top) = generator.uniform(1, 4), generator.uniform(0, PICTURE, 2)
            value = np.maximum(value, np.clip(radius - np.hypot(x - left, y - top), 0, 1))
    elif kind == "lines":
        for _ in range(generator.integers(1, 4)):
            angle, width = generator.uniform(0, math.pi), generator.uniform(0.5, 4)
            left, top = generator.uniform(0, PICTURE, 2)
            distance = np.abs((x - left) * math.sin(angle) - (y - top) * math.cos(angle))
            value = np.maximum(value, np.clip(width - distance, 0, 1))
    return value.astype(np.float32)


def _paint(ground: np.ndarray, generator: np.random.Generator) -> Image.Image:
    """Ink in one colour on paper of another: darker or lighter, light from one side, a little blur and noise."""
    side = len(ground)
    dark, light = generator.uniform(0, 0.45), generator.uniform(0.65, 1)
    tints = generator.normal(0, 0.06, (2, 3))
    pair = np.stack([dark + tints[0], light + tints[1]])
    paper, colour = pair if generator.random() < 0.5 else pair[::-1]
    slope = generator.normal(0, 0.06, 2)
    along = np.linspace(-0.5, 0.5, side)
    light_fall = slope[0] * along[:, None] + slope[1] * along
    value = paper + ground[:, :, None] * (colour - paper) + light_fall[:, :, None]
    value += generator.uniform(0, 0.08) * generator.standard_normal((side, side, 1))
    image = Image.fromarray(np.rint(255 * np.clip(value, 0, 1)).astype(np.uint8))
    blur = generator.uniform(-1, 1) * side / PICTURE
    return image.filter(ImageFilter.GaussianBlur(blur)) if blur > 0 else image
