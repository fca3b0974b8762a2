"""A shipped checkpoint on its own samples: the answers, how many are right, and which are not those on record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from d2v_ref.models import Sample, folder, samples
from d2v_ref.tasks import Pipeline, pipeline
from d2v_ref.tasks.metrics import mean_iou, word_error_rate

Answer = str | np.ndarray  # of image-segmentation a map (H, W) of the classes' numbers


@dataclass(frozen=True)
class Result:
    """What a checkpoint answers to the samples of one task.

    Attributes:
        model: the name of the checkpoint.
        kind: the name of the class that ran.
        labels: the classes' names by their numbers.
        samples, answers: as many.
    """

    model: str
    kind: str
    labels: dict[int, str]
    samples: list[Sample]
    answers: list[Answer]

    @property
    def task(self) -> str:
        return self.samples[0].task

    def differing(self) -> list[Sample]:
        """The samples whose answers are not those on record."""
        pairs = zip(self.samples, self.answers, strict=True)
        return [sample for sample, answer in pairs if not _same(answer, on_record(sample))]

    def score(self) -> tuple[str, float]:
        """What measures this task, and its value: the accuracy but for transcripts and maps."""
        given: Any = self.answers
        truths: Any = [truth(sample) for sample in self.samples]
        if self.task == "automatic-speech-recognition":
            return "word error rate", word_error_rate(given, truths)
        if self.task == "image-segmentation":
            return "mean IoU", mean_iou(given, truths)
        return "accuracy", float(np.mean([is_right(*pair) for pair in zip(given, truths, strict=True)]))


def run(name: str, *, progress: Callable[[float], None] | None = None, **load_options: Any) -> list[Result]:
    """The results of a shipped checkpoint, one for each task of its samples.

    Args:
        name: of the checkpoint.
        progress: called with 1 after each sample.
        load_options: as in ``PreTrainedModel.from_pretrained``.
    """
    found = samples(name)
    return [
        _run(name, [sample for sample in found if sample.task == task], progress, load_options)
        for task in dict.fromkeys(sample.task for sample in found)
    ]


def _run(
    name: str, chosen: list[Sample], progress: Callable[[float], None] | None, load_options: dict[str, Any]
) -> Result:
    pipe = pipeline(chosen[0].task, folder(name), **load_options)  # whatever lies in the current folder
    answers = []
    for sample in chosen:
        answers.append(answer(pipe, sample))
        if progress is not None:
            progress(1)
    return Result(name, type(pipe.model).__name__, pipe.model.config.id2label, chosen, answers)


def answer(pipe: Pipeline, sample: Sample) -> Answer:
    """What a pipeline answers to a sample, in the form of ``Sample.output``; a map itself, not its file."""
    call: Any = pipe
    match sample.task:
        case "automatic-speech-recognition":
            return call(sample.given)["text"]
        case "image-segmentation":
            return call(sample.given)["map"]
        case "fill-mask":
            return call(sample.given, top_k=1)[0]["token_str"]
        case _:
            return call(sample.given, top_k=1)[0]["label"]


def on_record(sample: Sample) -> Answer:
    """The answer in ``Sample.output``."""
    return _read(sample, sample.output)


def truth(sample: Sample) -> Answer:
    """What is true, in the form of ``answer``."""
    return _read(sample, sample.truth)


def is_right(answer: Answer, true: Answer) -> bool:
    """Whether an answer is the truth, the space before a token aside."""
    return _same(answer.strip() if isinstance(answer, str) else answer, true)


def _same(a: Answer, b: Answer) -> bool:
    return a == b if isinstance(a, str) else np.array_equal(a, b)


def _read(sample: Sample, value: str) -> Answer:
    from d2v_ref.processing.pictures import read_segmentation_map

    return read_segmentation_map(sample.folder / value) if sample.task == "image-segmentation" else value
