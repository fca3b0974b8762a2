"""Rows of tables, by their numbers, on a card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from d2v_ref.errors import InputError
from d2v_ref.nn import Embedding, LayerNorm

from .rows import count, launch_by_number, own, pointer, threads_for

if TYPE_CHECKING:
    from .device import Device

Array = Any

MOST_TABLES = 3  # of one kernel


def _numbers(device: Device, ids: Array) -> Array:
    """Ids as kernels take them."""
    return device.xp.ascontiguousarray(ids.astype(np.int64, copy=False))


def embedding(device: Device, ids: Array, weight: Array) -> Array:
    """``Ops.embedding`` of integers that are on the card, and known to be of the table."""
    weight = own(device, "embedding", weight)
    y = device.empty((*ids.shape, weight.shape[1]))
    if y.size:
        rows, width = count(y.shape), y.shape[-1]
        args = (_numbers(device, ids), weight, np.int64(weight.shape[0]), y, np.int64(rows), np.int32(width))
        launch_by_number(device, ("embeddings", "embedding"), args, rows, width)
    return y


def embed_norm(device: Device, ids: tuple[Array, ...], tables: tuple[Embedding, ...], norm: LayerNorm) -> Array:
    """``Ops.embed_norm`` of one to three tables, and of ids as ``embedding`` takes them."""
    if not 1 <= len(ids) <= MOST_TABLES or len(ids) != len(tables):
        got = f"{len(ids)} ids and {len(tables)} tables"
        raise InputError("embed_norm: too many tables", got=got, expected=f"1 ... {MOST_TABLES} of each")
    shape = np.broadcast_shapes(*(each.shape for each in ids))
    weights = [own(device, "embed_norm", table.weight) for table in tables]
    width = weights[0].shape[1]
    for weight in weights:
        if weight.shape[1] != width:
            raise InputError("embed_norm: tables of another width", got=weight.shape, expected=f"(V, {width})")
    y = device.empty((*shape, width))
    if y.size:
        sources: list[Any] = []
        for each, weight in zip(ids, weights, strict=True):
            numbers = _numbers(device, device.xp.broadcast_to(each, shape))
            sources += [numbers, weight, np.int64(weight.shape[0])]
        sources += [np.uint64(0), np.uint64(0), np.int64(0)] * (MOST_TABLES - len(ids))
        affine = (pointer(None if p is None else own(device, "embed_norm", p)) for p in (norm.weight, norm.bias))
        args = (*sources, *affine, y, np.int32(width), np.float32(norm.eps))
        device.kernel("embeddings", "embed_norm")((count(y.shape),), (threads_for(width, y.itemsize),), args)
    return y
