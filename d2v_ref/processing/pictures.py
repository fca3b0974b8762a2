"""Pictures and label maps from files, and from what Pillow holds.

Decoding is done by Pillow, as in transformers; what is here makes sure that a file is read as a whole or not at all.
"""

from __future__ import annotations

import sys
import typing
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref import checks
from d2v_ref.errors import D2VError, InputError, UnavailableError

# Pillow's names of what holds pixels; for others, such as EPS, it would start another program.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO")
_EXPECTED = "png, jpeg, webp, bmp, gif or tiff"
_CONVERT = "Convert it to png"


def read_image(image: Any) -> Any:
    """A picture upright and in RGB, as transformers' pipelines read it (HF image_utils.load_image).

    It is turned as its EXIF orientation says.  Then Pillow converts it to RGB: grey counts three times, transparency is
    dropped, whatever colour lies under it; 16 bits are cut off at 255, so that such a picture is nearly all white.  Of
    several frames (GIF, WebP, TIFF) the first is taken.

    Args:
        image: a path (png, jpeg, webp, bmp, gif, tiff and others), or a PIL image.

    Returns:
        A PIL image of mode RGB.

    Raises:
        InputError: no such file, not a picture of these formats, damaged, cut off, without pixels, or with more than
            PIL.Image.MAX_IMAGE_PIXELS.
        UnavailableError: Pillow is not installed.
    """
    if is_pil(image):
        return to_rgb(_upright(image), None, "the picture")
    return to_rgb(_opened(image), None, None, image)


def read_segmentation_map(path: str | Path) -> np.ndarray:
    """The label of each pixel from a file, (H, W) int64: the index of a palette's colour, or the grey value.

    It is turned as its EXIF orientation says, as ``read_image`` turns the picture.  transformers reads no file as a
    segmentation map.

    Raises:
        InputError: as ``read_image``; a picture of colours, or one that JPEG has changed.
        UnavailableError: Pillow is not installed.
    """
    picture = _opened(path, lossless=True)
    return _labels_of(picture, "the segmentation map", path)


def to_rgb(image: Any, do_convert_rgb: bool | None, name: str | None, path: str | Path | None = None) -> Any:
    """A PIL image in RGB, as it lies; ``do_convert_rgb`` as in BeitImageProcessor.

    Raises:
        InputError: it has no pixels, can't be decoded, or may not or can't be converted.
    """
    with _decoding(name, path):
        if 0 in image.size:
            raise InputError(_say(name, "has no pixels"), path=path, got=f"{image.width} x {image.height}")
        if image.mode != "RGB" and do_convert_rgb is False:
            hint = "do_convert_rgb=True converts it"
            raise InputError(_say(name, "is not RGB"), path=path, got=f"mode {image.mode}", expected="RGB", hint=hint)
        transparent = "A" in image.getbands() or image.info.get("transparency") is not None
        if do_convert_rgb and transparent:
            white = pillow().new("RGBA", image.size, (255, 255, 255, 255))
            return pillow().alpha_composite(white, image.convert("RGBA")).convert("RGB")
        return image.convert("RGB")


def label_map(value: Any, name: str) -> np.ndarray:
    """Labels (H, W), integers 0 or more."""
    if isinstance(value, str | Path):
        return read_segmentation_map(value)
    if is_pil(value):
        return _labels_of(value, name)
    labels = checks.array(name, value, ("height", "width"), "iu")
    if labels.min() < 0 or labels.max() >= 1 << 31:
        raise InputError(f"{name} has no labels", got=f"{labels.min()} ... {labels.max()}", expected="0 ... 2^31 - 1")
    return labels.astype(np.int64)


def _labels_of(picture: Any, name: str, path: str | Path | None = None) -> np.ndarray:
    if picture.mode not in ("L", "P", "1", "I", "I;16", "I;16L", "I;16B"):
        expected = "mode P or L: the pixels are labels"
        hint = "Save the labels as grey values or with a palette"
        message = _say(None if path else name, "has colours and no labels")
        raise InputError(message, path=path, got=f"mode {picture.mode}", expected=expected, hint=hint)
    with _decoding(name, path):
        labels = np.asarray(picture).astype(np.int64)
    return label_map(labels, name)


def _opened(path: str | Path, lossless: bool = False) -> Any:
    """A file as a PIL image, decoded, upright, in the mode that it has."""
    image = pillow()
    with _open(path) as handle, _decoding(None, path):
        picture = image.open(handle)
        if picture.format not in _FORMATS:
            message = "is a picture of a kind that is not read"
            raise InputError(message, path=path, got=picture.format, expected=_EXPECTED, hint=_CONVERT)
        if lossless and picture.format in ("JPEG", "MPO"):
            message, hint = "is a jpeg, which changes labels", "Save segmentation maps as png"
            raise InputError(message, path=path, hint=hint)
        limit = image.MAX_IMAGE_PIXELS
        if limit is not None and picture.width * picture.height > limit:
            raise _bomb(path, f"{picture.width} x {picture.height} pixels")
        picture.load()
        return _upright(picture, path)


def _upright(picture: Any, path: str | Path | None = None) -> Any:
    with _decoding(None if path else "the picture", path):
        return pillow("ImageOps").exif_transpose(picture)


def _open(path: str | Path) -> typing.BinaryIO:
    if not isinstance(path, str | Path):
        expected = "a path or a PIL image"
        raise InputError("this is no picture", got=type(path).__name__, expected=expected)
    path = Path(path)
    try:
        if not path.is_file():  # a pipe or a device could block
            kind = "is a folder" if path.is_dir() else "is no file" if path.exists() else "there is no such file"
            raise InputError(kind, path=path, expected="a picture")
        if path.stat().st_size == 0:
            raise InputError("is empty", path=path, got="0 bytes", expected="a picture")
        return path.open("rb")
    except (OSError, ValueError) as error:
        raise InputError(f"can't be read: {getattr(error, 'strerror', error)}", path=path) from None


@contextmanager
def _decoding(name: str | None, path: str | Path | None = None) -> Iterator[None]:
    """Whatever Pillow raises as an InputError about the path, or about what has this name."""
    image = pillow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tags and palettes; what matters is an error here
        try:
            yield
        except D2VError:
            raise
        except image.DecompressionBombError as error:
            raise _bomb(path, error) from None
        except image.UnidentifiedImageError:
            message = "is not a picture that can be read, or its header is damaged"
            raise InputError(_say(name, message), path=path, expected=_EXPECTED, hint=_CONVERT) from None
        except Exception as error:  # decoders raise what they like, SyntaxError and struct.error among it
            message = "is damaged or cut off" if path else "can't be decoded"
            got, hint = f"{type(error).__name__}: {error}", "Copy or download it again" if path else None
            raise InputError(_say(name, message), path=path, got=got, hint=hint) from None


def _bomb(path: str | Path | None, got: object) -> InputError:
    limit = pillow().MAX_IMAGE_PIXELS
    hint = "A small file can hide a picture that fills the memory: raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
    return InputError("is too large a picture", path=path, got=got, expected=f"at most {limit} pixels", hint=hint)


def _say(name: str | None, message: str) -> str:
    return f"{name} {message}" if name else message


def is_pil(value: Any) -> bool:
    """Whether it is a PIL image, which nobody has without importing Pillow."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def pillow(module: str = "Image") -> Any:
    """A module of Pillow.

    Raises:
        UnavailableError: it is not installed, or without its libraries.
    """
    try:
        return import_module(f"PIL.{module}")
    except (ImportError, OSError) as error:
        hint = "Run `pip install pillow`, or give the model pixel values"
        message = "reading, resizing and writing pictures needs Pillow, which can't be imported here"
        raise UnavailableError(message, got=error, hint=hint) from None
