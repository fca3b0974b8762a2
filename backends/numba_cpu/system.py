"""Memory that goes back to the system: LLVM's, once kernels are loaded, and what is free between arrays.

All of it is advice: a system that knows nothing of it does nothing.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import llvmlite

PAGEOUT = 21  # MADV_PAGEOUT of Linux 5.4 and later, which Python has no name for


def give_back_llvm() -> None:
    """Has LLVM's code taken out of this process's memory; where it is called again, its file is read again.

    That is half of what Python, NumPy and Numba take before there is a model.
    """
    if sys.platform != "linux":
        return
    folder, libc = str(Path(llvmlite.__file__).parent), ctypes.CDLL(None)
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if folder in line:
            begin, end = (int(address, 16) for address in line.split(maxsplit=1)[0].split("-"))
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), PAGEOUT)


def give_back_heap() -> None:
    """Has what arrays took that are gone given back: the C library keeps it, and an arena takes its place."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc's
        libc.malloc_trim(ctypes.c_size_t(0))
