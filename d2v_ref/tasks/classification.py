"""What the classification of texts, recordings and pictures shares: scores of logits, and the best labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v_ref.config import Config
from d2v_ref.errors import InputError
from d2v_ref.tasks.base import definitions

FUNCTIONS = ("softmax", "sigmoid", "none")


def checked_function(function_to_apply: Any) -> str | None:
    """What is to make scores of logits; None leaves it to the model's configuration."""
    if function_to_apply not in (None, *FUNCTIONS):
        expected = " or ".join(FUNCTIONS)
        raise InputError("unknown function_to_apply", got=repr(function_to_apply), expected=expected)
    return function_to_apply


def usual_function(config: Config) -> str:
    """ "none" for a regression, "sigmoid" for a multi-label problem and for one label, else "softmax"."""
    if config.problem_type == "regression":
        return "none"
    several = config.problem_type == "multi_label_classification"
    return "sigmoid" if several or config.num_labels == 1 else "softmax"


def scored(logits: np.ndarray, function: str) -> np.ndarray:
    """logits (labels,) -> scores (labels,)."""
    if function == "none":
        return logits
    return definitions.sigmoid(logits) if function == "sigmoid" else definitions.softmax(logits)


def best(scores: np.ndarray, count: int | None) -> list[int]:
    """The labels of the ``count`` highest scores (labels,), or of all; of equal ones the first label first."""
    return np.argsort(-scores, kind="stable")[:count].tolist()
