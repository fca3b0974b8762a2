"""Maps on a card: pooling, other resolutions, normalisation and statistics, whose kernels run on the processor."""

from __future__ import annotations

import numpy as np
import pytest
from d2v_backends.cupy import maps
from kernel_checks import compilable, examine_in_every_order, hold_in_every_order, normal, operand, ops_in, watched
from operands import Call, Operand

pytestmark = compilable
OPERATIONS = ("max_pool2d", "adaptive_avg_pool2d", "resize", "batch_norm", "statistics_pooling")
STORED = ("float32", "float16", "bfloat16")


@pytest.mark.parametrize("form", STORED)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_drawn_calls(operation: str, form: str) -> None:
    examine_in_every_order(operation, form, 8)


def map_calls(form: str, channels: int) -> list[Call]:
    """A call of every operation on maps of so many channels."""
    x, vectors = operand(form, 2, 9, 10, channels), [operand(form, channels, seed=i) for i in range(4)]
    vectors[1] = Operand(np.abs(vectors[1].values))  # variances
    lengths: list[int] = [40, -3]
    return [
        Call("max_pool2d", (x, 3)),
        Call("adaptive_avg_pool2d", (x, 4)),
        *(Call("resize", (x, size, mode)) for size in ((4, 31), (9, 10)) for mode in ("bilinear", "bicubic")),
        Call("batch_norm", (x, *vectors, 1e-5)),
        Call("statistics_pooling", (operand(form, 2, 40, channels), lengths)),
        Call("conv_transpose2d", (x, operand(form, channels, channels, 2, 2), vectors[0])),
        Call("conv2d", (x, operand(form, 3, channels, 2, 3)), {"padding": 1}),
        Call("conv2d", (x, operand(form, 3, channels, 3, 2)), {"stride": (3, 2)}),
    ]


@pytest.mark.parametrize("form", STORED)
@pytest.mark.parametrize("channels", [40, 37])
def test_channels_16_bytes_at_a_time_and_one_by_one(form: str, channels: int) -> None:
    for call in map_calls(form, channels):
        hold_in_every_order(call, form)


@pytest.mark.parametrize("form", STORED)
def test_more_channels_than_a_block_has_threads(form: str) -> None:
    wide = operand(form, 1, 2, 2, 2100)
    vectors = [operand(form, 2100, seed=i) for i in range(4)]
    vectors[1] = Operand(np.abs(vectors[1].values))  # variances
    for call in (
        Call("resize", (wide, (3, 1), "bilinear")),
        Call("batch_norm", (wide, *vectors, 1e-5)),
        Call("max_pool2d", (wide, 1)),
    ):
        hold_in_every_order(call, form)


def test_a_mean_of_many_pixels_and_statistics_of_many_frames() -> None:
    lifted = Operand(normal("float32", 1, 2000, 3) + 64.0)
    for call in (
        Call("adaptive_avg_pool2d", (operand("float32", 1, 56, 57, 3), 1)),
        Call("statistics_pooling", (lifted, [2000])),
    ):
        hold_in_every_order(call, "float32")


def test_rows_of_16_bytes() -> None:
    """Which arrays a kernel may read 16 bytes at a time."""
    device = ops_in("float16").device
    x = device.empty((4, 3, 16))
    assert all(maps.vectors(y) for y in (x, x[:, :, :8], x[1:, 1], x[:, ::2]))
    assert not any(maps.vectors(y) for y in (x[:, :, 1:9], x[:, :, :12], x[:, :, ::2], device.empty((4, 12))))
    assert not maps.vectors(x, device.empty((4, 3)))


@pytest.mark.parametrize(("form", "variant"), [("float16", "sanitized"), ("float32", "races")])
def test_no_kernel_goes_astray(form: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under GCC's sanitizers, of addresses and undefined behaviour and of races."""
    ops = watched(form, variant, monkeypatch)
    for channels in (8, 3):
        for call in map_calls(form, channels):
            call.run(ops)
