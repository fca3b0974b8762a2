"""Memory as Numba kernels see it: typed pointers made of addresses.

A kernel takes addresses (integers) and ``like``, a scalar of the dtype: one specialisation a dtype, whatever the
arrays' layouts are.  What a kernel calls takes pointers, which are typed, so that the same source serves float32 and
float64.  A pointer has no length and no strides: who calls owns both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

INT64 = ir.IntType(64)


@intrinsic
def pointer(typing: Any, address: Any, like: Any) -> Any:
    """The pointer to the numbers of ``like``'s type at an address."""
    result = types.CPointer(like)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(result))

    return result(types.int64, like), codegen


@intrinsic
def at(typing: Any, start: Any, index: Any) -> Any:
    """The pointer ``index`` numbers further on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.gep(args[0], [args[1]])

    return start(start, types.int64), codegen


@intrinsic
def beyond(typing: Any, address: Any, index: Any, like: Any) -> Any:
    """The pointer ``index`` numbers beyond an address; the null pointer where the address is 0."""
    result = types.CPointer(like)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = builder.inttoptr(args[0], context.get_value_type(result))
        return builder.select(builder.icmp_unsigned("==", args[0], INT64(0)), start, builder.gep(start, [args[1]]))

    return result(types.int64, types.int64, like), codegen


@intrinsic
def given(typing: Any, start: Any) -> Any:
    """Whether a pointer is not the null pointer."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.icmp_unsigned("!=", args[0], ir.Constant(args[0].type, None))

    return types.boolean(start), codegen


@intrinsic
def none(typing: Any, like: Any) -> Any:
    """The null pointer of a pointer's type."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(context.get_value_type(signature.return_type), None)

    return like(like), codegen


@intrinsic
def seen_as(typing: Any, start: Any, like: Any) -> Any:
    """The same place, as a pointer to numbers of another type."""
    result = types.CPointer(like)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(result))

    return result(start, like), codegen


@intrinsic
def start(typing: Any, array: Any) -> Any:
    """The pointer to the first number of an array that the kernel made itself; it must outlive the pointer's use."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        from numba.np.arrayobj import make_array

        return make_array(signature.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def cast(typing: Any, value: Any, like: Any) -> Any:
    """A constant in the type of ``like``: without it, Numba would go on in float64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.cast(builder, args[0], signature.args[0], signature.return_type)

    return like(value, like), codegen


def function(module: Any, name: str, result: Any, *arguments: Any) -> Any:
    """An LLVM intrinsic's declaration in a module."""
    return cgutils.get_or_insert_function(module, ir.FunctionType(result, arguments), name)


@intrinsic
def lowest(typing: Any, like: Any) -> Any:
    """The lowest finite number of a type; ``like`` is a number or a pointer."""
    number = getattr(like, "dtype", like)
    least = float(np.finfo(str(number)).min)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(context.get_value_type(number), least)

    return number(like), codegen
