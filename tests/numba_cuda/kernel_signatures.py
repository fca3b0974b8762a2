"""What every kernel of "numba_cuda" is called with, as Numba's types."""

from __future__ import annotations

from typing import Any

from d2v_backends.numba_cuda import convolutions, elementwise, maps, products, rows
from numba import boolean, float64, int64, types


def array(number: Any, rank: int) -> types.Array:
    return types.Array(number, rank, "C")


def signatures(number: Any) -> dict[Any, tuple[Any, ...]]:
    """What every kernel is called with, for numbers of a type."""
    vector, matrix, frames, stack = (array(number, rank) for rank in (1, 2, 3, 4))
    axes = types.UniTuple(int64, elementwise.RANK)
    place = (vector, int64, axes)
    spread, hidden = types.UniTuple(int64, 5), array(boolean, 1)
    return {
        elementwise.copy: (axes, int64, *place, *place),
        elementwise.combine: (int64, axes, *place, *place, vector),
        elementwise.where: (axes, hidden, int64, axes, *place, *place, vector),
        elementwise.activation: (int64, vector, vector),
        elementwise.glu: (matrix, matrix),
        elementwise.take: (matrix, array(int64, 1), matrix),
        products.linear: (matrix, matrix, vector, matrix, vector, int64, matrix),
        products.relative_key_bias: (frames, frames, matrix, boolean, float64, stack),
        rows.layer_norm: (matrix, vector, vector, float64, matrix),
        rows.softmax: (matrix, boolean, matrix),
        rows.attention: (
            *(frames, frames, frames, float64, float64, boolean),
            *(vector, spread, hidden, spread, vector, spread, stack, frames),
        ),
        convolutions.conv1d: (frames, frames, vector, int64, int64, int64, frames),
        convolutions.conv2d: (stack, stack, vector, int64, int64, int64, stack),
        convolutions.conv_transpose2d: (stack, stack, vector, stack),
        maps.batch_norm: (matrix, vector, vector, vector, vector, float64, matrix),
        maps.max_pool2d: (stack, int64, stack),
        maps.adaptive_avg_pool2d: (stack, stack),
        maps.resize: (stack, matrix, matrix, stack),
        maps.statistics: (frames, array(int64, 1), matrix),
    }
