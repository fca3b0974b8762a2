"""How good a task's answers are: word error rate, mean intersection over union."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from d2v_ref.errors import InputError


def edit_distance(given: Sequence[str], wanted: Sequence[str]) -> int:
    """The least number of insertions, deletions and substitutions that make one sequence the other (Levenshtein)."""
    row = list(range(len(wanted) + 1))
    for i, one in enumerate(given, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(wanted, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (one != other))
    return row[-1]


def word_error_rate(transcripts: Sequence[str], truths: Sequence[str]) -> float:
    """Wrong, missing and surplus words of all transcripts together, divided by the number of words that were said.

    Words are what spaces separate; NaN if none was said.
    """
    pairs = [(text.split(), truth.split()) for text, truth in zip(transcripts, truths, strict=True)]
    words = sum(len(truth) for _, truth in pairs)
    return sum(edit_distance(text, truth) for text, truth in pairs) / words if words else math.nan


def mean_iou(maps: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> float:
    """Mean over the classes of |pixels given it and of it| / |pixels given it or of it|, in all maps together.

    The classes are those that occur in any map or truth; NaN if there is none.

    Args:
        maps, truths: as many, each (H, W) integers, the numbers of classes.

    Raises:
        InputError: a map and its truth are of different shapes.
    """
    for given, truth in zip(maps, truths, strict=True):
        if given.shape != truth.shape:
            raise InputError("a map and its truth have different shapes", got=given.shape, expected=truth.shape)
    if not maps:
        return math.nan
    found, wanted = (np.concatenate([side.ravel() for side in sides]) for sides in (maps, truths))
    hits = [(found == label, wanted == label) for label in np.union1d(found, wanted)]
    return float(np.mean([(a & b).sum() / (a | b).sum() for a, b in hits]))
