"""Calls of operations for each format of the backend "cupy", and what they may be off by; TF32 among them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from allowances import Allowances
from kernel_checks import bounds_in, numbers_of
from operands import Call, Operand
from operation_calls import drawn

TF32 = bounds_in("tf32").format
PRODUCTS = ("conv", "linear", "project", "attention", "relative_key_bias")


def bounds_of(form: str, operation: str) -> Allowances:
    """TF32 rounds the factors of products alone: beside them its numbers are float32's."""
    return bounds_in(form if operation.startswith(PRODUCTS) else numbers_of(form))


def calls_of(operation: str, form: str, seeds: range) -> Iterator[Call]:
    """Drawn calls of an operation, a seed each."""
    for seed in seeds:
        call = drawn(operation, numbers_of(form), seed)
        if form != "tf32" or not _denormal(call):
            yield call


def _denormal(call: Call) -> bool:
    """Whether a factor is so small that TF32 has fewer digits of it, or takes it for nothing."""
    values = [np.abs(x.values) for x in call.args if isinstance(x, Operand) and x.values.dtype.kind == "f"]
    return any(((x > 0) & (x < TF32.smallest_normal)).any() for x in values)
