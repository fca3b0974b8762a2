"""``d2v-ref run`` with a model of pictures: what each of its tasks is given, prints and writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from d2v_ref.cli.common import STANDARD_INPUT, Job, label_lines, spoken, vector_lines, visible
from d2v_ref.cli.files import PICTURES, files, is_one
from d2v_ref.errors import InputError


def prepare(pipe: Any, inputs: tuple[str, ...], options: dict[str, Any]) -> Job:
    """What ``pipe`` has to do for INPUT... ."""
    paths = files(PICTURES, inputs)
    return _PREPARE[pipe.task](pipe, paths, is_one(inputs), options)


def _classification(pipe: Any, paths: list[Path], single: bool, options: dict[str, Any]) -> Job:
    return _simple(pipe, paths, single, options, label_lines, top_k=options["top_k"] or 5)


def _feature_extraction(pipe: Any, paths: list[Path], single: bool, options: dict[str, Any]) -> Job:
    job = _simple(pipe, paths, single, options, vector_lines, pooling=options["pooling"])
    job.arrays = lambda answers: {f"image_{i}": array for i, array in enumerate(answers)}
    return job


def _simple(
    pipe: Any, paths: list[Path], single: bool, options: dict[str, Any], lines: Callable[[Any], Any], **arguments: Any
) -> Job:
    """A job whose answers are the pipeline's."""
    arguments["batch_size"] = options["batch_size"] or 1

    def run(advance: Callable[[float], None]) -> list[Any]:
        return pipe(paths, progress=advance, **arguments)

    return Job([spoken(path) for path in paths], len(paths), run, lines, single)


# ---- segmentation ----------------------------------------------------------------------------------------------------


class Outputs(NamedTuple):
    """Where the map and the overlay of a picture go."""

    map: Path
    overlay: Path


def _segmentation(pipe: Any, paths: list[Path], single: bool, options: dict[str, Any]) -> Job:
    folder = Path() if options["output"] is None else options["output"]
    _check_folder(folder)
    if pipe.model.config.num_labels > 256:
        got, hint = f"{pipe.model.config.num_labels} classes", "From Python, the pipeline gives an array"
        raise InputError("a map of so many classes is no PNG", got=got, expected="at most 256", hint=hint)
    names = outputs(paths, folder)

    def run(advance: Callable[[float], None]) -> list[Any]:
        maps = pipe.maps(paths, batch_size=options["batch_size"] or 1, progress=advance)
        return [_written(pipe, *each) for each in zip(paths, names, maps, strict=True)]

    return Job([spoken(path) for path in paths], len(paths), run, _segmentation_lines, single, own_files=True)


def _check_folder(folder: Path) -> None:
    """Before the model runs, what would be an error after it."""
    if not os.path.isdir(folder):  # False for what no name can be
        hint = "Make it first, or name another"
        raise InputError("is not a folder", path=folder, expected="a folder for the maps", hint=hint)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError("can't be written", path=folder, expected="a folder that can be written to")


def outputs(pictures: Sequence[Path], folder: Path) -> list[Outputs]:
    """Names for each picture's files, of its own name without the suffix: NAME-map.png, NAME-overlay.png.

    A number is added, NAME-2, if another picture has them already, or if one of them is a picture to be read.
    """
    taken = {_identity(path) for path in pictures}
    found = []
    for picture in pictures:
        stem = "picture" if picture.name == STANDARD_INPUT else picture.stem
        number, names = 1, _named(folder, stem)
        while taken & {_identity(path) for path in names}:
            number += 1
            names = _named(folder, f"{stem}-{number}")
        taken |= {_identity(path) for path in names}
        found.append(names)
    return found


def _named(folder: Path, stem: str) -> Outputs:
    return Outputs(folder / f"{stem}-map.png", folder / f"{stem}-overlay.png")


def _identity(path: Path) -> str:
    """Equal for names of one file, on a disk that tells A from a and on one that does not."""
    return os.path.realpath(path).casefold()


def _written(pipe: Any, picture: Path, names: Outputs, labels: Any) -> dict[str, Any]:
    """Write a picture's files; its answer."""
    from d2v_ref.checkpoints import replacing
    from d2v_ref.processing.segmentation_maps import indexed_png, label_colours, overlay

    classes = pipe.model.config.id2label
    indexed_png(labels, names.map, label_colours(classes))
    shown = overlay(picture, labels, classes)
    with replacing(names.overlay) as temporary:
        shown.save(temporary, format="PNG")
    return {"segments": pipe.shares(labels), "map": str(names.map), "overlay": str(names.overlay)}


def _segmentation_lines(answer: Any) -> Iterator[str]:
    for entry in sorted(answer["segments"], key=lambda entry: -entry["share"]):
        yield f"{entry['share']:8.2%}  {visible(entry['label'])}"
    for name in ("map", "overlay"):
        yield f"{name:>8}  {visible(answer[name])}"


_PREPARE: dict[str, Callable[[Any, list[Path], bool, dict[str, Any]], Job]] = {
    "image-classification": _classification,
    "image-segmentation": _segmentation,
    "image-feature-extraction": _feature_extraction,
}
TASKS = tuple(_PREPARE)
