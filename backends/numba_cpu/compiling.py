"""How kernels are compiled and called.

A kernel is a function that every thread runs until its tasks have run out.  It is compiled as one C function of an
array of arguments, once for each dtype; one small parallel loop, the same for all kernels, runs it in several threads.
(A parallel loop of Numba's in every kernel would compile each of them three times.)
"""

from __future__ import annotations

import inspect
import struct
import threading
import typing
from collections.abc import Callable
from ctypes import addressof, c_char
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.ccallback import CFunc
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

from .cache import compiled, kept
from .threads import run

KEPT = 64  # forms of operands that calls are kept ready for
SHARES = 8  # the most shares of a kernel's tasks; more threads than these have one in common
# int64 before the arguments, 0 when a kernel begins, three cache lines: for tasks, for what is done before them, and
# for how much of that is done.
COUNTERS = 3 * SHARES

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}

Address = typing.NewType("Address", int)
"""Annotates a parameter that is the address of an operand, or 0: another one in another run of the same call."""
Rows = tuple[Address, int]
"""An address, and the distance of rows in numbers."""
Spread = tuple[Address, int, int, int, int]
"""An address, and the distances along four axes in numbers."""


LATER: Any = object()
"""Stands for an argument that is told when the kernel runs."""


def address_of(x: np.ndarray) -> int:
    """Where the numbers of an array begin: a third of a microsecond, a whole one where rows have gaps."""
    try:
        return addressof(c_char.from_buffer(x))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # read only, empty, or with gaps
        return x.__array_interface__["data"][0]


class Tracing(threading.local):
    """``now``: what is told of every call that this Python thread makes, and gives it memory; None: nobody."""

    now: Any = None


tracing = Tracing()


class Real:
    """Annotates a parameter that stands for its type alone: a kernel is compiled for each that it is called with."""


def routine(function: Any = None, *, inline: bool = False, fastmath: Any = False) -> Any:
    """What kernels call.  ``inline`` saves compiling time where a routine is called once or twice."""
    options = OPTIONS | {"fastmath": fastmath} | ({"inline": "always"} if inline else {})
    return njit(**options) if function is None else njit(**options)(function)


@intrinsic
def _as_float(typing_context: Any, bits: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


class Kernel:
    """A kernel: ``kernel(threads, *arguments)`` runs the body in so many threads.

    The body's first parameter is its team (``tasks``): a pointer to ``COUNTERS`` zeros that the threads share, the
    number of this thread, and how many there are.  Annotations tell the types of the others: ``int``, ``float``,
    ``Address``, tuples of these, and ``Real`` for the last ones.
    """

    made: typing.ClassVar[dict[str, Kernel]] = {}

    def __init__(self, body: Callable[..., None]) -> None:
        self.name = body.__name__
        self.__doc__ = body.__doc__
        parameters = list(inspect.signature(body, eval_str=True).parameters.values())[1:]
        kinds = [p.annotation for p in parameters]
        self.likes = kinds.count(Real)
        self.body = njit(**OPTIONS, inline="always")(body)
        codes, self.sources = "", []
        self.operands: list[int] = []  # which words are addresses of theirs
        for kind in kinds[: len(kinds) - self.likes]:
            parts = typing.get_args(kind) or (kind,)
            words = []
            for part in parts:
                word = f"args[{COUNTERS + len(codes)}]"
                words.append(f"as_float({word})" if part is float else word)
                if part is Address:
                    self.operands.append(COUNTERS + len(codes))
                codes += "d" if part is float else "q"
            self.sources.append(words[0] if len(parts) == 1 else f"({', '.join(words)})")
        self.layout = struct.Struct(f"{8 * COUNTERS}x{codes}")  # x: zeros
        self.words = self.layout.size // 8
        self.functions: dict[str, CFunc] = {}
        self.addresses: dict[str, int] = {}
        self.called: dict[tuple[type, ...], int] = {}  # the same by NumPy's types, which are sooner at hand
        Kernel.made[self.name] = self

    def compile(self, likes: str, ahead: bool = False) -> bool:
        """Has the C function for these types (NumPy's letters) ready; returns whether it was compiled and not found."""
        with global_compiler_lock:
            if likes in self.addresses:
                return False
            signature = (types.CPointer(types.int64), types.int64, types.int64), types.void
            function: Any = CFunc(self._function(likes), signature, {}, OPTIONS)
            fresh = compiled(function, f"{self.name}-{likes}", ahead=ahead)
            self.functions[likes] = function  # which owns the code
            self.addresses[likes] = function.address
            return fresh

    def load(self, likes: str) -> bool:
        """Has it ready for these types if it is on the disk; returns whether it was read now."""
        return likes not in self.addresses and kept(f"{self.name}-{likes}") and not self.compile(likes)

    def _function(self, likes: str) -> Any:
        """The body as a function of the array of arguments, the thread's number and how many there are."""
        constants = ", ".join(f"{np.dtype(like).name}(0)" for like in likes)
        given = ", ".join([*self.sources, constants])
        source = f"def {self.name}(args, thread, threads):\n    body((args, thread, threads), {given})\n"
        scope: dict[str, Any] = {
            "__name__": __name__,  # where the loader of a compiled function looks for it
            "body": self.body,
            "as_float": _as_float,
        } | {np.dtype(c).name: np.dtype(c).type for c in likes}
        exec(source, scope)  # noqa: S102 - a variable number of arguments can't be compiled
        return scope[self.name]

    def ready(self, threads: int, *args: Any) -> Call:
        """The call with these arguments, those apart that are ``LATER``."""
        given: list[Any] = []
        for arg in args[: -self.likes]:
            if type(arg) is tuple:
                given += arg
            else:
                given.append(arg)
        places = [COUNTERS + i for i, arg in enumerate(given) if arg is LATER]
        words = np.empty(self.words, np.int64)
        self.layout.pack_into(words, 0, *(0 if arg is LATER else arg for arg in given))  # type: ignore[arg-type]
        return Call(threads, self._address(args[-self.likes :]), words, places, self.operands)

    def _address(self, likes: tuple[Any, ...]) -> int:
        """Of the C function for these types."""
        kinds = tuple(map(type, likes))
        function = self.called.get(kinds)
        if function is None:
            letters = "".join(np.dtype(kind).char for kind in kinds)
            self.compile(letters)
            function = self.called[kinds] = self.addresses[letters]
        return function

    def __call__(self, threads: int, *args: Any) -> None:
        self.ready(threads, *args)()


class Call:
    """A kernel with its arguments, ready to run as often as wanted, from several Python threads too.

    To pack some dozens of arguments takes Python longer than a small kernel runs.
    """

    __slots__ = ("calls", "operands", "places", "threads", "words")

    def __init__(self, threads: int, function: int, words: np.ndarray, places: list[int], operands: list[int]) -> None:
        self.threads, self.words, self.places, self.operands = threads, words, places, operands
        self.calls = np.array([[threads, function, 0]])  # as ``threads.run`` takes them

    def __call__(self, *later: int) -> None:
        """Runs it; ``later``: what was ``LATER``, in its order."""
        words = self.words.copy()
        for place, word in zip(self.places, later, strict=True):
            words[place] = word
        if tracing.now is not None:
            tracing.now.add(self, words)
        run(self.threads, self.calls, words)


def keep(kept: dict[Any, Any], key: Any, value: Any) -> None:
    """Keeps what is ready for operands of a form, and not without end where lengths change from call to call."""
    if len(kept) >= KEPT:
        kept.clear()
    kept[key] = value


kernel = Kernel
