"""Convolutions on a card: their kernels on the processor, and the paths that lead to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from d2v_backends.cupy import CupyOps, convolutions
from kernel_checks import (
    FORMS,
    compilable,
    examine_in_every_order,
    hold_in_every_order,
    normal,
    operand,
    ops_in,
    watched,
)
from operands import Call, Part
from standin import StandIn

from d2v_ref.errors import InputError
from d2v_ref.nn import Conv1d, LayerNorm

pytestmark = compilable
OPERATIONS = ("conv1d", "conv_norm_act", "conv2d", "conv2d_norm_act", "conv_transpose2d")


@contextmanager
def launches(ops: CupyOps, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The kernels that are launched within, and what is defined for them."""
    names: list[tuple[str, dict[str, Any]]] = []
    kernel = ops.device.kernel

    def noted(file: str, name: str, **defines: Any) -> Any:
        names.append((name, defines))
        return kernel(file, name, **defines)

    with monkeypatch.context() as patch:
        patch.setattr(ops.device, "kernel", noted)
        yield names


def conv1d(form: str, *x: int, weight: tuple[int, ...], **options: Any) -> Call:
    """A call with a bias."""
    outputs = operand(form, weight[0], seed=2)
    return Call("conv1d", (operand(form, *x), operand(form, *weight, seed=1)), {"bias": outputs, **options})


def first_layer(form: str, frames: int, outputs: int, activation: str = "gelu", affine: bool = True) -> Call:
    """conv_norm_act as the first layer of an audio model has it: one channel, kernel 10, stride 5."""
    shapes: dict[str, tuple[int, ...]] = {"weight": (outputs,), "bias": (outputs,)} if affine else {}
    settings = {"inputs": 1, "outputs": outputs, "kernel": 10, "stride": 5, "bias": False}
    weights = {"weight": normal(form, outputs, 1, 10, seed=1)}
    of_norm = {name: normal(form, *shape, seed=3) for name, shape in shapes.items()}
    norm = Part(LayerNorm, {"width": outputs, "eps": 1e-5, "elementwise_affine": affine}, of_norm)
    return Call("conv_norm_act", (operand(form, 2, frames, 1), Part(Conv1d, settings, weights), norm, activation))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_drawn_calls(operation: str, form: str) -> None:
    examine_in_every_order(operation, form, 10 if operation in ("conv1d", "conv_norm_act") else 6)


# ---- groups


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("groups", "inside", "across", "frames"), [(2, 48, 48, 150), (2, 80, 72, 20), (3, 7, 17, 1)])
def test_positional_convolutions(form: str, groups: int, inside: int, across: int, frames: int) -> None:
    """Kernel 19 with padding; groups of 48, of more than a chunk's and a part's channels, of odd ones; one frame."""
    weight = (groups * across, inside, 19)
    hold_in_every_order(conv1d(form, 1, frames, groups * inside, weight=weight, padding=9, groups=groups), form)


@pytest.mark.parametrize("form", ["float32", "float16"])
def test_groups_whose_window_is_too_large_for_a_block(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are products, group by group: padded, dilated, or neither."""
    ops = CupyOps(form, StandIn(form), graphs=False)
    ops.device.limits = ops.device.limits._replace(shared_memory=4 << 10)
    for options in ({}, {"padding": 2, "stride": 2}, {"dilation": 3, "padding": 1}):
        call = conv1d(form, 2, 20, 6, weight=(8, 3, 5), groups=2, **options)
        with launches(ops, monkeypatch) as names:
            hold_in_every_order(call, form, ops)
        assert {name for name, _ in names} == {"windows"}


@pytest.mark.parametrize(("form", "rounded"), [("tf32", 1 + 2**-10), ("float32", 1 + 3 * 2**-12)])
def test_factors_are_rounded_to_the_nearest_tf32(form: str, rounded: float) -> None:
    ops = ops_in(form)
    near, one = (ops.asarray(np.full((2, 1, 1), x, np.float32)) for x in (1 + 3 * 2**-12, 1.0))
    for x, weight in ((near, one), (one, near)):
        y = ops.conv1d(x.reshape(1, 1, 2), weight, groups=2)
        assert ops.to_numpy(y).tolist() == [[[rounded, rounded]]]


def test_more_blocks_than_processors_get_larger_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = ops_in("float16")
    for frames, tiles in ((60, 1), (60 * 8 * ops.device.limits.multiprocessors, 2)):
        call = conv1d("float16", 1, frames, 4, weight=(4, 2, 1), groups=2)
        with launches(ops, monkeypatch) as names:
            hold_in_every_order(call, "float16")
        assert {defines["TILES"] for _, defines in names} == {tiles}


# ---- one channel


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", ["gelu", "silu", "linear"])
def test_the_first_layer(form: str, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """512 outputs, more frames than a block makes at a time; one kernel, and another for another activation."""
    with launches(ops_in(form), monkeypatch) as names:
        hold_in_every_order(first_layer(form, 700 if activation == "gelu" else 60, 512, activation), form)
    assert {name for name, _ in names} == {"one_channel"} | ({"activation"} if activation == "silu" else set())


@pytest.mark.parametrize("form", ["float32", "bfloat16"])
@pytest.mark.parametrize("outputs", [1, 20, 2048, 2049])
def test_outputs_of_one_channel(form: str, outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One, fewer than a warp has room for, as many as it has, and more: a product of windows that overlap."""
    with launches(ops_in(form), monkeypatch) as names:
        hold_in_every_order(first_layer(form, 14, outputs, affine=False), form)
    assert {name for name, _ in names} == {"one_channel" if outputs <= 2048 else "layer_norm"}


@pytest.mark.parametrize("form", FORMS)
def test_one_channel_padded_and_dilated(form: str) -> None:
    """Some windows lie outside of the signal on one side or the other, and the last ones altogether."""
    options = {"padding": 9, "dilation": 2, "stride": 3}
    hold_in_every_order(conv1d(form, 2, 8, 1, weight=(5, 1, 3), **options), form)


# ---- products


@pytest.mark.parametrize(("taps", "stride"), [(2, 2), (3, 2), (3, 1), (1, 3), (1, 1)])
def test_windows_of_one_group_are_not_copied(taps: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with launches(ops_in("float32"), monkeypatch) as names:
        hold_in_every_order(conv1d("float32", 3, 11, 5, weight=(4, 5, taps), stride=stride), "float32")
    assert names == []


def test_windows_are_laid_out_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "WINDOWS", 5 * 3 * 3 * 3)  # five windows of the map, seven of the signal
    ops = ops_in("float32")
    calls = [
        conv1d("float32", 2, 20, 5, weight=(4, 5, 4), dilation=2),
        Call(
            "conv2d", (operand("float32", 2, 6, 7, 3), operand("float32", 4, 3, 3, 3)), {"stride": (2, 1), "padding": 1}
        ),
    ]
    for call in calls:
        with launches(ops, monkeypatch) as names:
            hold_in_every_order(call, "float32")
        assert len(names) > 2 * 5  # hold and the orders of threads call it six times


# ---- weights, operands, and what kernels do beside their results


@pytest.mark.parametrize("pack", ["conv1d", "conv2d", "conv_transpose2d"])
def test_packed_weights_come_back_bit_for_bit(pack: str) -> None:
    ops = ops_in("bfloat16")
    weight = ops.asarray(normal("bfloat16", *{"conv1d": (6, 5, 4)}.get(pack, (6, 5, 3, 3))))
    packed = getattr(convolutions, f"packed_{pack}")(ops.device, weight)
    assert (packed.shape, packed.dtype, packed.ndim) == (weight.shape, weight.dtype, weight.ndim)
    assert (packed.size, packed.nbytes) == (weight.size, weight.nbytes)
    assert ops.to_numpy(packed.unpacked()).tobytes() == ops.to_numpy(weight).tobytes()
    assert getattr(convolutions, f"packed_{pack}")(ops.device, packed) is packed


def test_another_dtype_is_refused() -> None:
    device = ops_in("float16").device
    x, weight = (device.upload(np.zeros(shape, np.float32)) for shape in ((1, 9, 9, 3), (2, 3, 2, 2)))
    for call in (
        lambda: convolutions.conv1d(device, x[:, 0], weight[:, :, 0]),
        lambda: convolutions.conv2d(device, x, weight.astype(np.float16)),
        lambda: convolutions.conv2d(device, x.astype(np.float16), weight),
    ):
        with pytest.raises(InputError, match=r"another dtype.*float32.*float16"):
            call()


@pytest.mark.parametrize(("form", "variant"), [("float16", "sanitized"), ("float16", "races"), ("float32", "races")])
def test_no_kernel_goes_astray(form: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under GCC's sanitizers, of addresses and undefined behaviour and of races."""
    ops = watched(form, variant, monkeypatch)
    for call in (
        conv1d(form, 1, 70, 32, weight=(48, 16, 19), padding=9, groups=2),
        conv1d(form, 2, 9, 6, weight=(10, 3, 3), stride=2, padding=1, dilation=2, groups=2),
        first_layer(form, 300, 20),
    ):
        call.run(ops)
