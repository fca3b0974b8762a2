"""Pictures as a model's input, the same values as from transformers' BeitImageProcessorPil.

Resizing is done by Pillow, as in transformers; what is here lays the pixels out as arrays.

Shapes: B pictures of H rows and W columns.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref import checks
from d2v_ref.checkpoints import resolve, write_json
from d2v_ref.config import fits, read_config_json, spell
from d2v_ref.errors import CheckpointError, ConfigError, InputError
from d2v_ref.processing.pictures import is_pil, label_map, pillow, read_image, to_rgb

LONGEST_SIDE = 1 << 14  # pixels, of what a picture may be resized or cropped to
VOID = 255  # the label of pixels that count for nothing


@dataclass(frozen=True)
class ImageFeatures:
    """What a model takes.

    Attributes:
        pixel_values: (B, 3, H, W) float32.
        labels: (B, H, W) int64, the class of each pixel; None if there were no segmentation maps.
    """

    pixel_values: np.ndarray
    labels: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that there are by name, as in ``model(**features.arrays())``."""
        found = {"pixel_values": self.pixel_values, "labels": self.labels}
        return {name: value for name, value in found.items() if value is not None}


class BeitImageProcessor:
    """Resizes, crops, rescales and normalizes pictures (HF BeitImageProcessorPil, "BeitImageProcessor" in files).

    pixel_values = (x * rescale_factor - image_mean) / image_std, x = 0 ... 255 after resizing: the product in float64,
    rounded to float32, the rest in float32.

    The arguments are Hugging Face's.  None, null in files, is False for a switch, as there, and else the default.

    Args:
        do_resize: whether to resize to ``size``.
        size: {"height": ..., "width": ...}, without regard to the picture's proportions; a number for a square, or
            (height, width); {"shortest_edge": ...} keeps them.
        resample: Pillow's number of the filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming.  Of
            pictures only: segmentation maps are resized with 0.
        do_center_crop: whether to cut out the middle, of ``crop_size``; what a picture lacks is filled up with 0.
        crop_size: as ``size``, without the shortest edge.
        do_rescale: whether to multiply by ``rescale_factor``.
        rescale_factor: usually 1 / 255.
        do_normalize: whether to subtract the mean and divide by the standard deviation.
        image_mean: of red, green and blue, or one number for all.
        image_std: the same; not 0.
        do_reduce_labels: whether label 0 of segmentation maps becomes 255, and k becomes k - 1 (ADE20K's maps, whose 0
            is no class).  Old files call it reduce_labels.
        do_convert_rgb: what becomes of pictures that are not RGB.  None: as in Hugging Face's pipelines, grey counts
            three times and transparency is dropped.  True: as in transformers 5, they are laid on white.  False: they
            are an error.  A path is read as RGB in any case, without its transparency.
        input_data_format: "channels_first" or "channels_last", for arrays that could be either.
        extra: settings of other programs; kept, and written back by ``save_pretrained``.

    Raises:
        ConfigError: a setting of the wrong type, or that does not serve.
    """

    do_resize: bool = True
    size: dict[str, int] = {"height": 224, "width": 224}
    resample: int = 3
    do_center_crop: bool = False
    crop_size: dict[str, int] = {"height": 224, "width": 224}
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: float | list[float] = [0.5, 0.5, 0.5]
    image_std: float | list[float] = [0.5, 0.5, 0.5]
    do_reduce_labels: bool = False
    do_convert_rgb: bool | None = None
    input_data_format: str | None = None

    def __init__(self, /, **settings: Any) -> None:
        self._check_type(settings)
        if "reduce_labels" in settings:
            settings.setdefault("do_reduce_labels", settings.pop("reduce_labels"))
        for name, kind in _settings().items():
            default = getattr(type(self), name)
            value = settings.pop(name, default)
            if value is None:
                value = False if kind is bool else default
            if name in ("size", "crop_size"):
                value = _size(name, value)
            if not fits(value, kind):
                raise ConfigError(f"{name} has the wrong type", got=repr(value), expected=spell(kind))
            setattr(self, name, list(value) if isinstance(value, list | tuple) else value)
        self.resample = int(self.resample)  # PIL.Image.Resampling is no JSON
        self.extra = settings
        for name, serves, expected in (
            ("resample", self.resample in range(6), "0 ... 5, Pillow's number of a filter"),
            ("rescale_factor", np.isfinite(_float(self.rescale_factor)), "a finite number"),
            ("image_mean", _serves(self.image_mean), "a finite number, or three"),
            ("image_std", _serves(self.image_std, nonzero=True), "a finite number other than 0, or three"),
            ("input_data_format", self.input_data_format in (None, *_AXES), " or ".join(_AXES)),
        ):
            if not serves:
                raise ConfigError(f"{name} does not serve", got=getattr(self, name), expected=expected)

    @staticmethod
    def _check_type(settings: dict[str, Any]) -> None:
        """Files of transformers 4.2x name the class as feature_extractor_type, others as image_processor_type."""
        for key in ("feature_extractor_type", "image_processor_type"):
            kind = settings.pop(key, None)
            if kind is not None and kind not in (_TYPE, *_OLD_TYPES):
                hint = "The folder holds a model that takes its pictures otherwise"
                raise ConfigError(f"{key} is another one's", got=repr(kind), expected=_TYPE, hint=hint)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | None = None,
    ) -> BeitImageProcessor:
        """The image processor of a checkpoint: a folder, a shipped one's name, or a hub id.

        Read from "image_processor" in processor_config.json, where transformers 5 puts the parts of a processor, or
        else from preprocessor_config.json.

        Raises:
            CheckpointError: none of the two.
            ConfigError: a damaged file, or settings that don't serve.
            UnavailableError: not on this machine.
        """
        folder = resolve(
            name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            weights=False,
        )
        path, nested = folder / _PROCESSOR, _nested(folder)
        if nested is None:
            path = folder / _PREPROCESSOR
            if not path.is_file():
                hint = "Copy the file of the model that this one was made from, or save a BeitImageProcessor()"
                message = "the folder holds no image processor"
                raise CheckpointError(message, path=folder, expected=_PREPROCESSOR, hint=hint)
        try:
            return cls(**(read_config_json(path) if nested is None else nested))
        except ConfigError as error:
            error.path = path
            raise

    def save_pretrained(self, folder: str | Path) -> None:
        """Write preprocessor_config.json, which transformers and this package load back.

        A processor_config.json with an image processor in it, which goes before that file, is brought up to date.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"can't be made a folder: {error.strerror}", path=folder) from None
        shadowed = _nested(folder) is not None
        write_json(folder / _PREPROCESSOR, self.to_dict())
        if shadowed:
            processor = read_config_json(folder / _PROCESSOR)
            write_json(folder / _PROCESSOR, {**processor, "image_processor": self.to_dict()})

    def to_dict(self) -> dict[str, Any]:
        """All settings that are not None, as in preprocessor_config.json."""
        values = {name: getattr(self, name) for name in _settings()}
        given = {name: value for name, value in values.items() if value is not None}
        return {**self.extra, **given, "image_processor_type": _TYPE}

    def __call__(self, images: Any, segmentation_maps: Any = None, **settings: Any) -> ImageFeatures:
        """Pictures as a model's input, the values that transformers 5.23 gives with Pillow.

        The order: labels are reduced; then everything is resized, cropped; pictures are rescaled and normalized.

        As in transformers, values between 0 and 1 are not told from others: rescaled by 1/255 they end up near 0, so
        pass them with ``do_rescale=False``.  Resizing takes floating-point numbers for 0 ... 255 if all of them are
        whole, even all 0 and 1, and else for 0 ... 1, which it cuts off to 255 steps.  A picture of 16 bits is cut off
        at 255, so that nearly all of it is white: scale it down before.

        Otherwise than there, the classes of a segmentation map stay what they are: transformers resizes it with
        ``resample``, which makes up new ones between two neighbours unless that is 0.  An old file's reduce_labels is
        heeded, which transformers 5 forgets; axes that could both be the channels are an error and not channels first;
        and a PIL image with three channels of another kind (YCbCr) is converted and not taken for RGB.

        Args:
            images: a picture or a list of them: a path, read by ``read_image``; a PIL image, taken as it lies, without
                regard to an EXIF orientation; or an array of integers or floating-point numbers, (H, W), (H, W, C) or
                (C, H, W) with C = 1, 3 or 4.  An array with four axes is a list of pictures.
            segmentation_maps: as many, of the same sizes: a path, read by ``read_segmentation_map``; a PIL image of
                mode L, P, 1 or I; or an array (H, W) of integers 0 or more.  An array with three axes is a list of
                maps.  A crop beyond a map's edge has label 0, as in transformers.
            settings: the constructor's, for this call; None leaves one as it is.

        Raises:
            InputError: pictures or maps that can't be read, or that don't fit each other or the settings.
            ConfigError: a setting that is unknown or does not serve.
            UnavailableError: Pillow is needed and not installed.
        """
        if settings:
            return self._changed(settings)(images, segmentation_maps)
        pictures = [self._picture(image, name) for name, image in _listed(images, "picture", 3)]
        pixels = _stacked([self._pixels(x) for x in pictures])
        if not np.isfinite(pixels).all():
            hint = "Check the pictures' values, rescale_factor, image_mean and image_std"
            raise InputError("the pixel values overflow float32", hint=hint)
        if segmentation_maps is None:
            return ImageFeatures(pixels)
        maps = [label_map(value, name) for name, value in _listed(segmentation_maps, "segmentation map", 2)]
        sizes = [x.shape[1:] for x in pictures]
        if sizes != [labels.shape for labels in maps]:
            got = f"maps {[labels.shape for labels in maps]}"
            hint = "A photograph may lie on its side: read_image turns it upright"
            raise InputError("the segmentation maps don't fit the pictures", got=got, expected=sizes, hint=hint)
        return ImageFeatures(pixels, _stacked([self._labels(labels) for labels in maps]))

    def _changed(self, settings: dict[str, Any]) -> BeitImageProcessor:
        unknown = [name for name in settings if name not in _settings()]
        if unknown:
            message, expected = "there is no setting of this name", ", ".join(_settings())
            raise ConfigError(message, got=", ".join(unknown), expected=expected)
        given = {name: value for name, value in settings.items() if value is not None}
        return type(self)(**{**self.to_dict(), **given})

    def _picture(self, image: Any, name: str) -> np.ndarray:
        """(3, H, W) of the dtype that it has."""
        if isinstance(image, str | Path):
            image = read_image(image)
        if not is_pil(image):
            return self._channels(image, name)
        return np.moveaxis(np.asarray(to_rgb(image, self.do_convert_rgb, name)), -1, 0)

    def _channels(self, image: Any, name: str) -> np.ndarray:
        """An array's channels in front, and three of them."""
        x = checks.anything(name, image)
        if x.ndim not in (2, 3):
            expected = "(H, W), (H, W, C), (C, H, W), a PIL image or a path"
            raise InputError(f"{name} is no picture", got=_kind(image, x), expected=expected)
        x = checks.array(name, x, ("height", "width", "channels")[: x.ndim], "iuf")
        x = x[None] if x.ndim == 2 else np.moveaxis(x, _channel_axis(x.shape, self.input_data_format, name), 0)
        if len(x) == 3:
            return x
        if len(x) == 1 and self.do_convert_rgb is not False:
            return np.repeat(x, 3, axis=0)
        if len(x) == 4 and self.do_convert_rgb:
            return _on_white(x, name)
        hint = "do_convert_rgb=True lays RGBA on white; x[..., :3] drops the transparency" if len(x) == 4 else None
        raise InputError(f"{name} is not RGB", got=f"{len(x)} channels", expected="3", hint=hint)

    def _pixels(self, x: np.ndarray) -> np.ndarray:
        """(3, H, W) float32, of x (3, H, W)."""
        with np.errstate(all="ignore"):  # what overflows is found in the end
            if self.do_resize:
                x = _resized(x, self._target(x.shape[1:]), self.resample)
            if self.do_center_crop:
                x = _cropped(x, self.crop_size)
            if self.do_rescale:
                x = (x.astype(np.float64) * self.rescale_factor).astype(np.float32)
            if self.do_normalize:
                x = x if x.dtype.kind == "f" else x.astype(np.float32)
                mean, std = (np.asarray(v, x.dtype).reshape(-1, 1, 1) for v in (self.image_mean, self.image_std))
                x = (x - mean) / std
            return x.astype(np.float32)

    def _labels(self, labels: np.ndarray) -> np.ndarray:
        """(H, W) int64, of labels (H, W)."""
        if self.do_reduce_labels:
            if (labels > VOID).any():
                hint = "Reduce the map's labels yourself, with another label for what counts for nothing"
                got = f"label {labels.max()}"
                raise InputError("labels above 255 can't be reduced: 256 would become 255, void", got=got, hint=hint)
            labels = np.where((labels == 0) | (labels == VOID), VOID, labels - 1)
        if self.do_resize:
            labels = _nearest(labels, self._target(labels.shape))
        if self.do_center_crop:
            labels = _cropped(labels, self.crop_size)
        return labels.astype(np.int64)

    def _target(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """What a picture of shape (H, W) is resized to."""
        if "height" in self.size:
            return self.size["height"], self.size["width"]
        edge, (short, long) = self.size["shortest_edge"], sorted(shape)
        other = int(edge * long / short)
        if other > LONGEST_SIDE:
            hint = "Cut the picture, or resize it to a height and a width"
            expected = f"at most {LONGEST_SIDE} pixels"
            raise InputError("the picture's longer side would get too long", got=other, expected=expected, hint=hint)
        return (other, edge) if shape[1] <= shape[0] else (edge, other)


_TYPE = "BeitImageProcessor"
_OLD_TYPES = ("BeitFeatureExtractor", "BeitImageProcessorFast", "BeitImageProcessorPil")
_PROCESSOR, _PREPROCESSOR = "processor_config.json", "preprocessor_config.json"
_AXES = {"channels_first": 0, "channels_last": 2}


def _settings() -> dict[str, Any]:
    """Every setting and its type."""
    return typing.get_type_hints(BeitImageProcessor)


def _size(name: str, value: Any) -> dict[str, int]:
    """A size in any of Hugging Face's forms as a table."""
    if isinstance(value, list | tuple) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    elif not isinstance(value, dict):
        value = {"height": value, "width": value}
    keys = [("height", "width")] if name == "crop_size" else [("height", "width"), ("shortest_edge",)]
    lengths = value.values()
    if not any(sorted(value) == list(names) for names in keys) or not all(fits(length, int) for length in lengths):
        expected = " or ".join("{" + ", ".join(f'"{key}": pixels' for key in names) + "}" for names in keys)
        raise ConfigError(f"{name} is no size", got=value, expected=expected)
    if not all(1 <= length <= LONGEST_SIDE for length in lengths):
        raise ConfigError(f"{name} does not serve", got=value, expected=f"1 ... {LONGEST_SIDE} pixels")
    return {key: int(length) for key, length in value.items()}


def _serves(values: float | list[float], nonzero: bool = False) -> bool:
    numbers = [_float(value) for value in (values if isinstance(values, list) else [values] * 3)]
    return len(numbers) == 3 and all(np.isfinite(x) and (x != 0 or not nonzero) for x in numbers)


def _float(value: float) -> float:
    """A number out of JSON, where an integer may be larger than any float."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _nested(folder: Path) -> dict[str, Any] | None:
    """The image processor in a processor_config.json, if there is one."""
    path = folder / _PROCESSOR
    values = read_config_json(path).get("image_processor") if path.is_file() else None
    if values is not None and not isinstance(values, dict):
        got = type(values).__name__
        raise ConfigError("its image_processor is no configuration", path=path, got=got, expected="a JSON object")
    return values


# ---- lists, channels -------------------------------------------------------------------------------------------------


def _listed(values: Any, word: str, ndim: int) -> list[tuple[str, Any]]:
    """One or several pictures or maps of ``ndim`` axes, with what messages call them."""
    several = isinstance(values, list | tuple) or getattr(values, "ndim", 0) == ndim + 1
    rows = list(values) if several else [values]
    if not rows:
        raise InputError(f"there is no {word}", got="nothing", expected="at least one")
    return [(f"the {word}" if len(rows) == 1 else f"{word} {i}", row) for i, row in enumerate(rows)]


def _stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    sizes = sorted({row.shape[-2:] for row in rows})
    if len(sizes) > 1:
        hint = "Resize them to one height and width, or crop them"
        raise InputError("pictures of different sizes are no array", got=sizes, hint=hint)
    return np.stack(rows)


def _kind(value: Any, x: np.ndarray) -> object:
    return x.shape if x.ndim else type(value).__name__


def _channel_axis(shape: tuple[int, ...], data_format: str | None, name: str) -> int:
    """Which axis of three holds the channels, 1, 3 or 4 of them (HF infer_channel_dimension_format)."""
    found = [axis for axis in (0, 2) if shape[axis] in (1, 3, 4)]
    if data_format is not None:
        found = [axis for axis in found if axis == _AXES[data_format]]
    if len(found) == 1:
        return found[0]
    message = "could have its channels first or last" if found else "has no axis of channels"
    expected = f"1, 3 or 4 channels, {data_format or 'first or last'}"
    hint = 'Say input_data_format="channels_first" or "channels_last"' if found else None
    raise InputError(f"{name} {message}", got=shape, expected=expected, hint=hint)


def _on_white(x: np.ndarray, name: str) -> np.ndarray:
    """RGBA (4, H, W) blended with white: alpha c + (1 - alpha) white (HF convert_to_rgb)."""
    white = 1.0 if x.dtype.kind == "f" else 255
    if x.min() < 0 or x.max() > white:
        got = f"{x.min()} ... {x.max()}"
        raise InputError(f"{name} is no RGBA picture in {x.dtype}", got=got, expected=f"0 ... {white}")
    alpha = x[3:] / white
    blended = alpha * x[:3] + (1 - alpha) * white
    return (np.round(blended) if white == 255 else blended).astype(x.dtype)


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def _resized(x: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """x (3, H, W) at another size: Pillow's filter, on 8 bits (HF image_transforms.resize).

    The result has 8 bits for whole numbers, and is 0 ... 1 in float32 for fractions.
    """
    image = pillow()
    fractions = False
    if x.dtype != np.uint8:
        if x.min() < 0 or x.max() > 255:
            hint = "Scale the picture, or pass do_resize=False"
            got = f"{x.min()} ... {x.max()}"
            raise InputError("resizing takes pictures of 8 bits", got=got, expected="0 ... 255", hint=hint)
        fractions = not np.allclose(x, x.astype(int))  # transformers' question, with NumPy's tolerances
        if fractions and x.max() > 1:
            hint = "Round the picture, or scale it to 0 ... 1"
            got = f"fractions up to {x.max()}"
            raise InputError("resizing takes whole numbers, or 0 ... 1", got=got, hint=hint)
        if fractions:
            x = (x.astype(np.float64) * 255).astype(np.float32)
        x = x.astype(np.uint8)
    picture = image.fromarray(np.ascontiguousarray(np.moveaxis(x, 0, -1)))
    x = np.moveaxis(np.array(picture.resize(size[::-1], resample=resample)), -1, 0)
    return (x.astype(np.float64) * (1 / 255)).astype(np.float32) if fractions else x


def _nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels (H, W) at another size: those of Pillow's nearest pixels."""
    image = pillow()
    return np.array(image.fromarray(labels.astype(np.int32)).resize(size[::-1], resample=image.Resampling.NEAREST))


def _cropped(x: np.ndarray, size: dict[str, int]) -> np.ndarray:
    """The middle of x (..., H, W), filled up with 0 where it is smaller (HF center_crop).

    Of an odd number of pixels too many or too few, the odd one is cut at the end, or filled up at the beginning.
    """
    rows, columns = (_middle(*pair) for pair in zip(x.shape[-2:], (size["height"], size["width"]), strict=True))
    unpadded = [(0, 0)] * (x.ndim - 2)
    return np.pad(x[..., rows[0], columns[0]], [*unpadded, rows[1], columns[1]])


def _middle(length: int, wanted: int) -> tuple[slice, tuple[int, int]]:
    """What to cut of an axis, and how much to pad it with before and behind."""
    if length >= wanted:
        start = (length - wanted) // 2
        return slice(start, start + wanted), (0, 0)
    behind = (wanted - length) // 2
    return slice(None), (wanted - length - behind, behind)
