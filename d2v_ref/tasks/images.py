"""What the pipelines for pictures share: looking at them, reading them when their turn comes, and batches of one size.

Shapes: B pictures of a batch, H rows and W columns as the image processor leaves them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d2v_ref.errors import ConfigError, InputError
from d2v_ref.pretrained import PreTrainedModel
from d2v_ref.processing.image_processor import BeitImageProcessor
from d2v_ref.processing.pictures import is_pil, pillow, read_image
from d2v_ref.tasks.base import Pipeline, Progress, as_list, each


class Picture(NamedTuple):
    """What goes through the model as one row."""

    values: np.ndarray  # (3, H, W)
    size: tuple[int, int]  # height and width of the picture before it was processed


class ImagePipeline(Pipeline):
    """A model and its image processor, called with pictures.

    An input is a path (png, jpeg, webp, bmp, gif, tiff), a PIL image, an array (H, W), (H, W, C) or (C, H, W), or a
    list of these.  A path and a PIL image are turned as their EXIF orientation says and converted to RGB
    (``read_image``), as transformers' pipelines do it; an array goes to the image processor as it is.  Every pipeline's
    call takes, besides its own arguments:
        batch_size: how many pictures go through the model at once; only neighbours of one size after processing do.
            The results don't depend on it, up to rounding.
        progress: called with 1 for each picture that is done.

    Before the model runs, every input is looked at.  A file's header is, that is to say; the rest of it is read when
    its turn comes, so that memory does not grow with the number of files, and may then be found damaged.
    """

    modality = "vision"
    parts = {"image_processor": BeitImageProcessor}

    def __init__(self, model: PreTrainedModel, image_processor: BeitImageProcessor) -> None:
        super().__init__(model)
        self.image_processor = image_processor

    def forward(self, values: np.ndarray) -> np.ndarray:
        """What the model's head says of a batch: (B, 3, H, W) -> (B, ...)."""
        return self.model(values, return_dict=True).logits

    def run(
        self,
        inputs: Any,
        finish: Callable[[Picture, np.ndarray], Any],
        *,
        batch_size: int,
        progress: Progress | None,
    ) -> Any:
        """``finish(picture, output)`` of an input, or of each of a list of them, in their order."""
        results = list(self.stream(as_list(inputs), finish, batch_size=batch_size, progress=progress))
        return results if isinstance(inputs, list | tuple) else results[0]

    def stream(
        self,
        items: list[Any],
        finish: Callable[[Picture, np.ndarray], Any],
        *,
        batch_size: int,
        progress: Progress | None,
    ) -> Iterator[Any]:
        """``finish(picture, output)`` of one input after the other, of which none is kept."""
        looked_at = each(items, self._look)
        pictures = (self._read(item) if isinstance(item, Path) else item for item in looked_at)
        return self._stream(pictures, finish, batch_size, progress)

    def _stream(
        self,
        pictures: Iterable[Picture],
        finish: Callable[[Picture, np.ndarray], Any],
        batch_size: int,
        progress: Progress | None,
    ) -> Iterator[Any]:
        for _, alike in groupby(pictures, key=lambda picture: picture.values.shape):
            for picture, output in self.outputs(alike, _collate, self.forward, batch_size=batch_size):
                yield finish(picture, output)
                if progress is not None:
                    progress(1)

    def _look(self, item: Any) -> Path | Picture:
        """A file whose header is a picture's, or what is in memory already, processed."""
        if isinstance(item, str | Path):
            path = Path(item)
            if not _has_header(path):
                read_image(path)  # whose error says why
            return path
        if isinstance(item, list | tuple) or getattr(item, "ndim", 0) > 3:
            hint = "Several pictures are a list of them: list(array) makes one of an array with four axes"
            raise InputError("this is not one picture", got=_kind(item), hint=hint)
        return self._processed(read_image(item) if is_pil(item) else item)

    def _read(self, path: Path) -> Picture:
        picture = read_image(path)
        try:
            return self._processed(picture)
        except InputError as error:
            error.path = error.path or path
            raise

    def _processed(self, picture: Any) -> Picture:
        values = self.image_processor(picture).pixel_values[0]
        if is_pil(picture):
            return Picture(values, (picture.height, picture.width))
        return Picture(values, self.image_processor(picture, **_UNCHANGED).pixel_values.shape[2:])


_UNCHANGED = dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), False)


def _collate(batch: list[Picture]) -> tuple[np.ndarray]:
    """Values (B, 3, H, W)."""
    return (np.stack([picture.values for picture in batch]),)


def _has_header(path: Path) -> bool:
    """Whether a file begins as a picture of a permitted size does."""
    image = pillow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures, which is an error below
        try:
            if not path.is_file():  # a pipe would block
                return False
            with image.open(path) as picture:
                return image.MAX_IMAGE_PIXELS is None or picture.width * picture.height <= image.MAX_IMAGE_PIXELS
        except Exception:  # decoders raise what they like
            return False


def _kind(item: Any) -> str:
    return f"an array of shape {item.shape}" if hasattr(item, "shape") else f"a {type(item).__name__}"


def check_labels(model: PreTrainedModel) -> None:
    """Refuse a model whose head has no classes (num_labels=0, in Hugging Face's models a body without a head)."""
    if not model.config.num_labels:
        raise ConfigError("the model has no classes", got="num_labels=0", expected="1 or more")
