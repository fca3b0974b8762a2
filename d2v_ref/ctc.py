"""The loss of connectionist temporal classification (CTC, Graves et al. 2006): -log p(labels | frames).

Shapes: B utterances, T frames, V tokens, U labels of the longest row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v_ref import checks
from d2v_ref.errors import InputError
from d2v_ref.losses import IGNORED
from d2v_ref.ops import Ops

_ops = Ops("float64")  # for the definitions that have no dtype of their own


def ctc_loss(
    logits: np.ndarray,
    labels: Any,
    input_lengths: Any,
    *,
    blank: int,
    reduction: str = "sum",
    zero_infinity: bool = False,
    target_rule: str = "v5",
) -> np.ndarray:
    """-log sum_{paths that collapse to the labels} prod_t softmax(logits_t)[path_t]  (torch ctc_loss, HF ForCTCLoss).

    A path has one token a frame; it collapses by merging repeats and then dropping blanks.  Computed in the dtype of
    the logits.  (HF's ForCTCLoss casts the log probabilities to float32 first; the same for float32 logits.)

    Labels that need more frames than there are (one each, and one more between two equal ones) have probability 0 and
    an infinite loss.  Without frames only empty labels are possible, with a loss of 0.

    Args:
        logits: (B, T, V), float32 or float64.  -inf forbids a token; NaN in a valid frame gives NaN.
        labels: (B, U) integers; which of them are targets ``target_rule`` says.
        input_lengths: (B,) integers 0 ... T, the valid frames; what lies behind them is not read.
        blank: the token that stands for none, 0 ... V-1 (HF: config.pad_token_id).
        reduction: "sum" over the batch; "mean" over the batch of loss / max(1, number of targets); "none", (B,).
        zero_infinity: count an infinite loss as 0.
        target_rule: "v5", all but -100 and the blank (transformers 5.23); "v4", all that are not negative (transformers
            4 and 5.0).  Under "v4" a blank may be a target, and is aligned like any other label, as in torch.

    Returns:
        A scalar, or (B,) for "none".

    Raises:
        InputError: an argument of the wrong kind, shape or range; a target outside 0 ... V-1.
    """
    batch, length, vocabulary = _check_logits(logits)
    blank = int(checks.indices("blank", blank, (), vocabulary))
    _check_choice("reduction", reduction, ("sum", "mean", "none"))
    _check_choice("target_rule", target_rule, ("v5", "v4"))
    hint = "They count frames (after the convolutions), not samples"
    lengths = checks.indices("input_lengths", input_lengths, (batch,), length + 1, hint)
    targets, counts = _targets(labels, batch, vocabulary, blank, target_rule)
    with np.errstate(over="ignore", invalid="ignore"):  # a frame of nothing but -inf has no distribution: NaN
        losses = -_log_likelihood(_ops.log_softmax(logits), targets, counts, lengths, blank)
    if zero_infinity:
        losses = np.where(np.isposinf(losses), np.zeros_like(losses), losses)
    if reduction == "sum":
        return losses.sum()
    return losses if reduction == "none" else (losses / np.maximum(counts, 1).astype(losses.dtype)).mean()


def states(targets: np.ndarray, blank: int) -> tuple[np.ndarray, np.ndarray]:
    """What the frames of a path may stand for: the targets (B, U) with a blank before, between and after them.

    Returns:
        The tokens of these S = 2U + 1 states, (B, S); and the log weight of reaching a state past the one before it,
        (B, S): 0, or -inf if that one keeps two equal targets apart or is a target between two blanks.
    """
    labels = np.full((len(targets), 2 * targets.shape[1] + 1), blank)
    labels[:, 1::2] = targets
    skipping = np.full(labels.shape, -np.inf)
    skipping[:, 2:][labels[:, 2:] != labels[:, :-2]] = 0
    skipping[:, 1:2] = 0  # the first target may begin a path
    return labels, skipping


def _log_likelihood(
    log_probs: np.ndarray, targets: np.ndarray, counts: np.ndarray, lengths: np.ndarray, blank: int
) -> np.ndarray:
    """The forward variables alpha (Graves et al. 2006, eq. 6-8), in log space; (B,).

    Before the first frame all probability is in a state of its own in front of the others, from which the first blank
    and the first label are reached as any state is from the one before it and the one before that.
    """
    batch, frames, _ = log_probs.shape
    labels, skipping = states(targets, blank)
    skipping = skipping.astype(log_probs.dtype)
    emitted = np.take_along_axis(log_probs.swapaxes(0, 1), labels[None], axis=-1)  # (T, B, S)
    front = 2  # the state in front, and nothing in front of that
    alpha = np.full((batch, front + labels.shape[1]), -np.inf, log_probs.dtype)
    alpha[:, 1] = 0
    following, skipped = np.full_like(alpha, -np.inf), np.empty_like(skipping)
    reached = following[:, front:]
    for t in range(frames):
        np.add(alpha[:, :-2], skipping, out=skipped)
        np.logaddexp(alpha[:, 2:], alpha[:, 1:-1], out=reached)
        np.logaddexp(reached, skipped, out=reached)
        np.add(reached, emitted[t], out=reached)
        np.copyto(alpha, following, where=(t < lengths)[:, None])
    rows, last = np.arange(batch), front + 2 * counts
    return np.logaddexp(alpha[rows, last], alpha[rows, last - 1])  # it ends in the last blank or in the last label


def _targets(labels: Any, batch: int, vocabulary: int, blank: int, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """The targets of each row moved to its front, the rest blank, (B, U); and how many there are, (B,)."""
    labels = checks.anything("labels", labels)
    if labels.shape != (batch, 0):
        labels = checks.array("labels", labels, (batch, "U"), "iu")
    wanted = (labels != IGNORED) & (labels != blank) if rule == "v5" else labels >= 0
    hint = f"{IGNORED} marks a label to ignore"
    if labels.size:
        checks.indices("labels", np.where(wanted, labels, blank), labels.shape, vocabulary, hint)
    labels = np.where(wanted, labels, blank).astype(np.int64)
    counts = wanted.sum(axis=1)
    order = np.argsort(~wanted, axis=1, kind="stable")[:, : counts.max()]
    return np.take_along_axis(labels, order, axis=1), counts


def _check_logits(logits: Any) -> tuple[int, int, int]:
    if not isinstance(logits, np.ndarray) or logits.dtype not in (np.float32, np.float64):
        got = getattr(logits, "dtype", type(logits).__name__)
        raise InputError("logits have the wrong dtype", got=got, expected="an array of float32 or float64")
    if logits.ndim != 3 or logits.size == 0:
        raise InputError("logits have the wrong shape", got=logits.shape, expected="(B, T, V), none of them 0")
    batch, length, vocabulary = logits.shape
    return batch, length, vocabulary


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} is unknown", got=repr(value), expected=" or ".join(map(repr, choices)))
