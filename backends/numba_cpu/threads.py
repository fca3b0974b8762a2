"""How many threads compute, and how they are given a kernel.

Numba's OpenMP layer starts them in a few microseconds; its own work queue takes a hundred, and lets no two Python
threads in at a time.  GNU OpenMP does not survive a fork: in a child of a process that has computed, one thread works.
"""

from __future__ import annotations

import ctypes
import operator
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

from d2v_ref.errors import BackendError

from . import system
from .cache import compiled

VARIABLE = "D2V_NUM_THREADS"

# Called without the interpreter's lock.
_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
_launched = False  # whether the threads have begun
_forked = False  # whether they began in a process that this one is a fork of
_turn: threading.Lock | None = None  # what the threading layer needs held while a kernel runs


def number_of_threads(asked: int | None = None) -> int:
    """``asked``, else ``D2V_NUM_THREADS``, else the processors that this process may use.

    Raises:
        BackendError: no positive integer, or more threads than Numba's pool has.
    """
    most = numba.config.NUMBA_NUM_THREADS
    source, given = ("threads", asked) if asked is not None else (VARIABLE, os.environ.get(VARIABLE) or most)
    try:
        count = int(given) if isinstance(given, str) else operator.index(given)
    except (TypeError, ValueError):
        count = 0
    if count < 1 or isinstance(given, bool):
        raise BackendError(f"{source} is no number of threads", got=repr(given), expected="1 or more")
    if count > most:
        hint = "Numba fixes the size of its pool at the start: set NUMBA_NUM_THREADS before"
        raise BackendError(f"{source} is more than Numba's pool has", got=count, expected=f"1 ... {most}", hint=hint)
    return count


@intrinsic
def _call(typing: Any, function: Any, arguments: Any, thread: Any, threads: Any) -> Any:
    """Calls the C function at an address with a pointer to its arguments, as one of so many threads."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = ir.IntType(64)
        pointer = number.as_pointer()
        function = builder.inttoptr(args[0], ir.FunctionType(ir.VoidType(), [pointer, number, number]).as_pointer())
        builder.call(function, [builder.inttoptr(args[1], pointer), *args[2:]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@njit(parallel=True, nogil=True, error_model="numpy")
def _run(calls, words):
    for i in range(calls.shape[0]):
        function, arguments = calls[i, 1], words.ctypes.data + 8 * calls[i, 2]
        if calls[i, 0] == 1:
            _call(function, arguments, 0, 1)
        else:
            for thread in prange(calls[i, 0]):  # OpenMP gives the same number to the same thread each time
                _call(function, arguments, thread, calls[i, 0])


def run(threads: int, calls: np.ndarray, words: np.ndarray) -> None:
    """Runs C functions, one after the other.

    Args:
        threads: the most that one of them takes.
        calls: (n, 3), int64: of each its threads, its address, and where its arguments begin among the words.
        words: 1-D, int64.
    """
    if threads == 1 or _forked:
        start = words.__array_interface__["data"][0]
        for _, function, first in calls.tolist():
            _FUNCTION(function)(start + 8 * first, 0, 1)
        return
    if not _launched:
        launch()
    if _turn is None and threads == numba.config.NUMBA_NUM_THREADS:
        _run(calls, words)
        return
    with _turn or nullcontext(), _pool_of(threads):
        _run(calls, words)


@contextmanager
def _pool_of(threads: int) -> Iterator[None]:
    """Wakes only as many of Numba's threads as compute (a setting of each Python thread's)."""
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        yield
    finally:
        numba.set_num_threads(before)


def launch(ahead: bool = False) -> bool:
    """Starts the threads and compiles their loop, once; returns whether it was compiled and not found on the disk."""
    global _launched, _turn
    with global_compiler_lock:  # not a second one: a thread that compiles would wait for one that launches
        if _launched:
            return False
        _start_pool()
        fresh = compiled(_run, "run", ((types.int64[:, ::1], types.int64[::1]),), ahead)
        _turn = threading.Lock() if numba.threading_layer() == "workqueue" else None
        _launched = True
        system.give_back_llvm()
        return fresh


def _start_pool() -> None:
    """Chooses the layer, unless the user or somebody else in this process has."""
    if numba.config.THREADING_LAYER == "default":
        try:
            import_module("numba.np.ufunc.omppool")
            numba.config.THREADING_LAYER = "omp"
        except ImportError:  # a build without OpenMP: Numba takes what there is
            pass
    try:
        numba.set_num_threads(numba.get_num_threads())  # which starts them
    except ValueError as error:
        layer = numba.config.THREADING_LAYER
        hint = "Unset NUMBA_THREADING_LAYER"
        raise BackendError(f"Numba can't start its threads: {error}", got=layer, hint=hint) from None


def _in_child() -> None:
    global _forked
    global_compiler_lock.release()
    try:
        numba.threading_layer()
    except ValueError:  # they have not begun, for us or for anybody
        return
    _forked = True


if hasattr(os, "register_at_fork"):
    # The lock is held, so that no other thread of the parent is within it: nobody would release it in the child.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=_in_child,
    )
