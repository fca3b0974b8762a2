"""Operands that fit no operation, and the words of the error that each is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from d2v_ref.nn import Conv1d, LayerNorm
from d2v_ref.ops import Ops


def wrong_calls(ops: Ops) -> dict[str, Callable[[], Any]]:
    """What the message begins with, and a call on these operations that ends in it."""

    def zeros(*shape: int) -> Any:
        return ops.asarray(np.zeros(shape))

    def conv_norm_act(x: Any, taps: int, width: int) -> Any:
        conv, norm = Conv1d(width, 2, taps, bias=False), LayerNorm(2, 1e-5, elementwise_affine=False)
        conv.bind({"weight": np.zeros((2, width, taps), ops.dtype)}, ops)
        return ops.conv_norm_act(x, conv, norm, "gelu")

    q3, table, m4 = zeros(2, 3, 4), zeros(7, 2), zeros(2, 3, 3, 4)
    return {
        "linear: the last axis .*got .2, 3, 4.; expected .*5": lambda: ops.linear(q3, zeros(2, 5)),
        "linear: the last axis .*got ..; ": lambda: ops.linear(zeros(1)[0], zeros(2, 5)),
        "linear: the bias": lambda: ops.linear(q3, zeros(5, 4), zeros(1)),
        "linear: the residual": lambda: ops.linear(q3, zeros(5, 4), None, None, zeros(2, 1, 5)),
        "layer_norm: ": lambda: ops.layer_norm(q3, zeros(3), zeros(3), 0.1),
        "conv1d: the channels do not fit the weight .got .2, 3, 4.; expected .B, T, 5.": lambda: ops.conv1d(
            q3, zeros(2, 5, 1)
        ),
        "conv1d: the channels .*got .3, 4.; ": lambda: ops.conv1d(q3[0], zeros(2, 4, 1)),
        "conv1d: the channels .*got .2, 3, 4.; expected .B, T, 8.": lambda: ops.conv1d(q3, zeros(2, 4, 1), groups=2),
        "conv1d: the channels .*expected .B, T, 4.": lambda: ops.conv1d(q3, zeros(3, 2, 1), groups=2),
        "conv1d: the signal is shorter than the kernel .got .2, 3, 4.; expected .B, at least 4, C": lambda: ops.conv1d(
            q3, zeros(2, 4, 4)
        ),
        "conv1d: the signal .*expected .B, at least 5, C": lambda: ops.conv1d(
            q3, zeros(2, 4, 4), padding=1, dilation=2
        ),
        "conv_norm_act: the signal is shorter .*expected .B, at least 4, C": lambda: conv_norm_act(q3, 4, 4),
        "conv_norm_act: the channels .*got .2, 3, 4.; expected .B, T, 5": lambda: conv_norm_act(q3, 1, 5),
        "glu: the last axis does not halve .got .2, 3, 3.; expected ...., an even number": lambda: ops.glu(q3[..., :3]),
        "embedding: ids are integers .got bool": lambda: ops.embedding(np.ones(6, bool), zeros(6, 2)),
        "embedding: ids are integers .got float": lambda: ops.embedding(np.ones(6), zeros(6, 2)),
        "attention: the queries do not divide": lambda: ops.attention(q3, q3, q3, 3),
        "attention: the queries .*got .3, 4.": lambda: ops.attention(q3[0], q3[0], q3[0], 2),
        "attention: the keys or values .*got .1, 3, 4.; expected .2, S, 4": lambda: ops.attention(
            q3, q3[:1], q3[:1], 2
        ),
        "attention: the keys or values .*got .2, 2, 4.": lambda: ops.attention(q3, q3, q3[:, :2], 2),
        "attention: the keys or values .*got .2, 3, 2.": lambda: ops.attention(q3, q3, q3[..., :2], 2),
        "attention: the mask": lambda: ops.attention(q3, q3, q3, 2, mask=ops.asarray(np.ones((2, 1, 3, 4), bool))),
        "attention: the mask .*got .5, 2, 2, 3, 3": lambda: ops.attention(
            q3, q3, q3, 2, mask=ops.asarray(np.ones((5, 2, 2, 3, 3), bool))
        ),
        "attention: the bias": lambda: ops.attention(q3, q3, q3, 2, bias=zeros(3, 1, 3, 3)),
        "attention: the head_mask": lambda: ops.attention(q3, q3, q3, 2, head_mask=zeros(3, 1, 1)),
        "relative_key_bias: the table .*got .7, 2.; expected .2 P - 1, 4": lambda: ops.relative_key_bias(
            q3, q3, 1, table, False
        ),
        "relative_key_bias: the keys": lambda: ops.relative_key_bias(q3, q3[:, :, :2], 2, table, False),
        "relative_key_bias: the queries": lambda: ops.relative_key_bias(q3, q3, 3, table, False),
        "linear: the scale .*got .4,.; expected .5,.": lambda: ops.linear(q3, zeros(5, 4), scale=zeros(4)),
        "conv2d: the channels do not fit the weight .got .2, 3, 3, 4.; expected .B, H, W, 5": lambda: ops.conv2d(
            m4, zeros(2, 5, 1, 1)
        ),
        "conv2d: the channels .*got .3, 3, 4.": lambda: ops.conv2d(m4[0], zeros(2, 4, 1, 1)),
        "conv2d: the map is smaller than the kernel .got .3, 3.; expected at least 4 x 1": lambda: ops.conv2d(
            m4, zeros(2, 4, 4, 1)
        ),
        "conv2d: the map is smaller .*got .5, 5.; expected at least 1 x 6, padding included": lambda: ops.conv2d(
            m4, zeros(2, 4, 1, 6), padding=1
        ),
        "conv_transpose2d: the map .*got .2, 3, 3, 4.; expected .B, H, W, 3": lambda: ops.conv_transpose2d(
            m4, zeros(3, 4, 2, 2), zeros(4)
        ),
        "conv_transpose2d: the map .*a square kernel": lambda: ops.conv_transpose2d(m4, zeros(4, 4, 2, 1), zeros(4)),
        "batch_norm: the last axis .*got .2, 3, 3, 4.; expected ...., 3": lambda: ops.batch_norm(
            m4, zeros(3), zeros(3), zeros(3), zeros(3), 0.1
        ),
        "max_pool2d: the map is smaller than a tile .got .2, 3, 3, 4.; expected 4 x 4": lambda: ops.max_pool2d(m4, 4),
        "max_pool2d: not a map .got .3, 3, 4.": lambda: ops.max_pool2d(m4[0], 1),
        "adaptive_avg_pool2d: not a map .got .3, 3, 4.": lambda: ops.adaptive_avg_pool2d(m4[0], 1),
        "adaptive_avg_pool2d: not a map .got .2, 0, 3, 4.": lambda: ops.adaptive_avg_pool2d(m4[:, :0], 1),
        "resize: not a map .got .2, 3, 4.; expected .B, H, W, C.": lambda: ops.resize(q3, (2, 2), "bilinear"),
        "resize: not a map .got .2, 3, 0, 4.": lambda: ops.resize(m4[:, :, :0], (2, 2), "bilinear"),
        "resize: unknown mode .got nearest; expected bilinear or bicubic": lambda: ops.resize(m4, (2, 2), "nearest"),
        "resize: no size .got 0; expected 1 or more": lambda: ops.resize(m4, (2, 0), "bicubic"),
        "resize: no size .got -1": lambda: ops.resize(m4, (-1, 2), "bilinear"),
        "activation: no such activation .got gelo; expected gelu, ": lambda: ops.activation("gelo", q3),
        "activation: no such activation .got gelo": lambda: ops.linear(q3, zeros(5, 4), activation="gelo"),
        "embedding: an index is outside the table .got 0 ... 6; expected 0 ... 5": lambda: ops.embedding(
            np.arange(7), zeros(6, 2)
        ),
        "embedding: an index is outside the table .got -1 ... 3": lambda: ops.embedding(np.array([-1, 3]), zeros(6, 2)),
        "embedding: an index is outside": lambda: ops.relative_key_bias(q3, q3, 2, table[:3], False),
    }
