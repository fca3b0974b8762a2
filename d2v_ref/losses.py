"""Losses, with the names, reductions and special cases of torch and of Hugging Face's heads.

All are computed in the dtype of the logits.  (HF's ForCausalLMLoss casts them to float32 first; the same for float32
logits.) Labels are checked: an index outside the classes is an InputError.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v_ref import checks
from d2v_ref.errors import InputError
from d2v_ref.ops import Ops

IGNORED = -100  # torch's default ignore_index

_ops = Ops("float64")  # for the definitions that have no dtype of their own


def cross_entropy(logits: np.ndarray, labels: Any, ignore_index: int = IGNORED) -> np.ndarray:
    """-mean_i log softmax(logits_i)[labels_i] over the labels that are not ignored (torch CrossEntropyLoss).

    Args:
        logits: (N, C).
        labels: (N,), integers 0 ... C-1 or ``ignore_index``.

    Returns:
        A scalar; NaN if every label is ignored, as torch has it.
    """
    labels = _checked(labels, logits.shape[:1], logits.shape[1], ignore_index)
    counted = labels != ignore_index
    if not counted.any():
        return np.asarray(np.nan, logits.dtype)
    rows = logits[counted]
    return -_ops.log_softmax(rows)[np.arange(len(rows)), labels[counted]].mean()


def _checked(labels: Any, shape: tuple[int, ...], classes: int, ignore_index: int = IGNORED) -> np.ndarray:
    """Labels of this shape, as int64: 0 ... classes-1 or ``ignore_index``."""
    labels = checks.array("labels", labels, shape, "iu").astype(np.int64)
    hint = f"{ignore_index} marks a label to ignore"
    checks.indices("labels", np.where(labels == ignore_index, 0, labels), shape, classes, hint)
    return labels


def causal_lm_loss(logits: np.ndarray, labels: Any) -> np.ndarray:
    """cross_entropy of each position's logits against the next position's label (HF ForCausalLMLoss).

    logits (B, T, V), labels (B, T).
    """
    batch, length, classes = logits.shape
    labels = _checked(labels, (batch, length), classes)
    shifted = np.concatenate(
        (labels[:, 1:], np.full((batch, 1), IGNORED)), axis=1
    )  # position t predicts the token at t + 1
    return cross_entropy(logits.reshape(-1, classes), shifted.reshape(-1))


def token_loss(logits: np.ndarray, labels: Any) -> np.ndarray:
    """cross_entropy over all positions: logits (B, T, C), labels (B, T)."""
    labels = _checked(labels, logits.shape[:2], logits.shape[2])
    return cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


def mse_loss(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """mean (prediction - target)^2 (torch MSELoss)."""
    return np.square(prediction - target).mean()


def bce_with_logits_loss(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-mean (y log sigmoid(x) + (1 - y) log sigmoid(-x)) (torch BCEWithLogitsLoss).

    Computed as mean (max(x, 0) - x y + log(1 + exp(-|x|))), which does not overflow.
    """
    return (np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))).mean()


def sequence_classification_loss(logits: np.ndarray, labels: Any, problem_type: str | None) -> np.ndarray:
    """The loss of HF's sequence-classification heads.

    Without a ``problem_type``: one class is a regression, integer labels are single-label, floating labels multi-label.

    Args:
        logits: (B, C).
        labels: (B,) integers for single-label; (B, C) for multi-label; (B, C), or (B,) if C is 1, for a regression.
    """
    batch, classes = logits.shape
    labels = checks.anything("labels", labels)
    if problem_type is None:
        integers = labels.dtype.kind in "iu"
        problem_type = (
            "regression"
            if classes == 1
            else "single_label_classification"
            if integers
            else "multi_label_classification"
        )
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels.reshape(-1) if labels.shape == (batch, 1) else labels)
    if labels.shape == (batch,) and classes == 1:
        labels = labels[:, None]
    name = f"labels ({problem_type})"
    targets = checks.array(name, labels, (batch, classes), "fiub", logits.dtype).astype(logits.dtype, copy=False)
    return mse_loss(logits, targets) if problem_type == "regression" else bce_with_logits_loss(logits, targets)


def frame_loss(logits: np.ndarray, labels: Any) -> np.ndarray:
    """cross_entropy against each frame's class: logits and labels (B, T, C), 1 for the class (one-hot).

    Of several, the first largest counts (HF's audio frame classification).
    """
    labels = checks.array("labels", labels, logits.shape, "biuf", logits.dtype)
    classes = logits.shape[-1]
    return cross_entropy(logits.reshape(-1, classes), labels.reshape(-1, classes).argmax(axis=1))


def am_softmax_loss(cos_theta: np.ndarray, labels: Any, scale: float = 30.0, margin: float = 0.4) -> np.ndarray:
    """cross_entropy of scale (cos theta_c - margin [c is the label]) (Wang et al. 2018, eq. 6; HF AMSoftmaxLoss).

    Args:
        cos_theta: (B, C), the cosines between embeddings and classes.
        labels: (B,), classes 0 ... C-1.
    """
    batch, classes = cos_theta.shape
    labels = checks.indices("labels", checks.anything("labels", labels).reshape(-1), (batch,), classes)
    psi = cos_theta - margin * (np.arange(classes) == labels[:, None]).astype(cos_theta.dtype)
    return cross_entropy(scale * psi, labels)


def tf_sequence_classification_loss(logits: np.ndarray, labels: Any) -> np.ndarray:
    """The loss of HF's TensorFlow heads, not reduced: (B,).

    One class is a regression, mean squared error of each row; else the cross entropy of each row, labels (B,).
    (transformers 4 TFSequenceClassificationLoss)
    """
    batch, classes = logits.shape
    labels = checks.anything("labels", labels)
    labels = labels.reshape(-1) if labels.shape == (batch, 1) else labels
    if classes == 1:
        targets = checks.array("labels", labels, (batch,), "fiu", logits.dtype).astype(logits.dtype, copy=False)
        return np.square(logits[:, 0] - targets)
    labels = checks.indices("labels", labels, (batch,), classes)
    return -_ops.log_softmax(logits)[np.arange(batch), labels]


def question_answering_loss(start_logits: np.ndarray, end_logits: np.ndarray, starts: Any, ends: Any) -> np.ndarray:
    """Mean of the cross entropies of start and end: logits (B, T), positions (B,) or (B, 1).

    Positions are clamped to 0 ... T, and T is ignored.
    """
    batch, length = start_logits.shape
    losses = []
    for name, logits, positions in (("start_positions", start_logits, starts), ("end_positions", end_logits, ends)):
        positions = checks.anything(name, positions)
        if positions.shape not in ((batch,), (batch, 1)):
            raise InputError(f"{name} has the wrong shape", got=positions.shape, expected=f"({batch},)")
        positions = checks.array(name, positions.reshape(-1), (batch,), "iu")
        losses.append(cross_entropy(logits, np.clip(positions, 0, length), ignore_index=length))
    return (losses[0] + losses[1]) / 2
