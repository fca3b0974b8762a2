"""What the probabilities of an attention say: how spread out they are, and which queries see nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from d2v_ref.golden.bounds import Exact

Array = Any

ONE_HOT = 0.99  # a row whose largest probability is at least this attends to nearly one key
# A bias below it hides a key: whoever means to hide one adds the lowest number of a dtype, and float16's is -65504.
HIDING = -65504.0 / 2


@dataclass(frozen=True)
class Spread:
    """The entropies of a head's rows in nats, of those that see a key; None if none does."""

    least: float | None
    mean: float | None
    most: float | None


@dataclass(frozen=True)
class Attention:
    """The probabilities of one attention, (B, H, T, S).

    Attributes:
        name: of the tap.
        keys: S; evenly spread probabilities have the entropy log S.
        rows: B H T.
        hidden_rows: those that see no key: all are hidden by a mask, the causal rule or a bias.  They attend evenly to
            what they should not see.
        one_hot: the share of the other rows whose largest probability is at least ``ONE_HOT``.
        heads: the spread of each head.
    """

    name: str
    keys: int
    rows: int
    hidden_rows: int
    one_hot: float
    heads: tuple[Spread, ...]

    @property
    def log_keys(self) -> float:
        """The entropy of evenly spread probabilities, in nats."""
        return math.log(self.keys)


class Watching(Exact):
    """The definitions in float64, which remember of the last attention which rows of its scores see no key."""

    name: ClassVar[str] = "watching"
    hidden: np.ndarray  # (B, H, T) booleans

    def attention(self, q: Array, k: Array, v: Array, heads: int, **options: Any) -> tuple[Array, Array]:
        shape = (q.shape[0], heads, q.shape[1], k.shape[1])
        self.hidden = hidden_rows(shape, options.get("mask"), options.get("causal", False), options.get("bias"))
        return super().attention(q, k, v, heads, **options)


def hidden_rows(shape: tuple[int, int, int, int], mask: Array, causal: bool, bias: Array) -> np.ndarray:
    """Which rows of scores (B, H, T, S) see no key: (B, H, T) booleans.

    ``mask``, ``causal`` and ``bias`` as in ``Ops.attention``.
    """
    visible = np.ones((1, 1, 1, 1), bool)
    if mask is not None:
        visible = visible & mask
    if causal:
        visible = visible & np.tri(shape[2], shape[3], k=shape[3] - shape[2], dtype=bool)
    if bias is not None:
        visible = visible & (bias > HIDING)
    return np.broadcast_to(~visible.any(-1), shape[:3])


def look_at(name: str, probs: np.ndarray, hidden: np.ndarray) -> Attention:
    """The entropies of probabilities (B, H, T, S) whose rows ``hidden`` (B, H, T) see nothing."""
    from scipy.special import entr

    entropy, seen = entr(probs).sum(-1), ~hidden  # entr(p) = -p log p
    one_hot = (probs.max(-1) >= ONE_HOT)[seen]
    heads = tuple(_spread(entropy[:, head][seen[:, head]]) for head in range(probs.shape[1]))
    share = float(one_hot.mean()) if one_hot.size else 0.0
    return Attention(name, probs.shape[-1], hidden.size, int(hidden.sum()), share, heads)


def _spread(entropy: np.ndarray) -> Spread:
    if not entropy.size:
        return Spread(None, None, None)
    return Spread(float(entropy.min()), float(entropy.mean()), float(entropy.max()))
