"""The trained checkpoints that come with the package, and held-out samples of what each was trained for.

Each is a folder of this package with Hugging Face's files, a model card (README.md), the training's curve (curve.json)
and samples/.  One file of weights serves two heads: that of the class which config.json names, and another one, which a
task or a class asks for.  They are tiny; what each is and is not for stands in its card.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2v_ref.errors import CheckpointError

NAMES = ("tiny-audio", "tiny-text", "tiny-vision")
ROOT = Path(__file__).parent
SAMPLES = "samples/samples.json"
TEXT_TASKS = ("fill-mask", "text-classification")
FILE_TASKS = ("automatic-speech-recognition", "audio-classification", "image-classification", "image-segmentation")
TASKS = (*FILE_TASKS, *TEXT_TASKS)
_MEMBERS = ("task", "input", "truth", "held_out", "output")


@dataclass(frozen=True)
class Sample:
    """An input that no training has seen, what is true of it, and what the model answers.

    Attributes:
        task: the name of Hugging Face's pipeline.
        input: a text, or the name of a file.
        truth: the transcript, the label or the word behind the mask; of image-segmentation the name of a file, whose
            pixels are the numbers of their classes.
        held_out: what no training has seen of it.
        output: the answer that transformers gives in float32, in the form of ``truth``; a token for a mask may begin
            with a space.
        folder: where the files are.
    """

    task: str
    input: str
    truth: str
    held_out: str
    output: str
    folder: Path

    @property
    def given(self) -> str | Path:
        """What a pipeline takes: the text, or the path of the file."""
        return self.input if self.task in TEXT_TASKS else self.folder / self.input


def folder(name: str) -> Path:
    """The folder of a checkpoint that comes with the package.

    Raises:
        CheckpointError: none has this name.
    """
    if name not in NAMES:
        close = difflib.get_close_matches(name.lower(), NAMES, 1)
        raise CheckpointError(
            f"no checkpoint called {name!r} comes with d2v_ref, and there is no such folder",
            expected=" or ".join(NAMES),
            hint=f"Did you mean {close[0]}?" if close else None,
        )
    return ROOT / name


def samples(name: str) -> list[Sample]:
    """All samples of a checkpoint that comes with the package, those of a task together and in their order.

    Raises:
        CheckpointError: no checkpoint has this name, the samples are damaged, or their files are missing.
    """
    path = folder(name) / SAMPLES
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _damaged(path, f"can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"is not JSON in UTF-8: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise _damaged(path, "holds no list of samples")
    found = [_sample(entry, path, i) for i, entry in enumerate(entries)]
    return sorted(found, key=lambda sample: TASKS.index(sample.task))


def _sample(entry: Any, path: Path, i: int) -> Sample:
    if not isinstance(entry, dict) or any(not isinstance(entry.get(member), str) for member in _MEMBERS):
        raise _damaged(path, f"its sample {i} is none", repr(entry)[:100], f"texts for {', '.join(_MEMBERS)}")
    task, given, truth, held_out, output = (entry[member] for member in _MEMBERS)
    sample = Sample(task, given, truth, held_out, output, path.parent)
    if task not in TASKS:
        raise _damaged(path, f"its sample {i} is of an unknown task", task, " or ".join(TASKS))
    names = [sample.input] if sample.task in FILE_TASKS else []
    if sample.task == "image-segmentation":
        names += [sample.truth, sample.output]
    for file in names:
        if Path(file).name != file or not (path.parent / file).is_file():
            raise _damaged(path, f"its sample {i} names a file that is not there", file)
    return sample


def _damaged(path: Path, message: str, got: object = None, expected: str | None = None) -> CheckpointError:
    return CheckpointError(message, path=path, got=got, expected=expected, hint="Install d2v_ref again")
