"""How kernels are started, on a card or in Numba's simulator, and whether there is either."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import config, cuda

from d2v_ref.errors import BackendError

SIMULATED = bool(config.ENABLE_CUDASIM)
# The simulator makes every thread a thread of Python: a few of them show what many would.
THREADS = 4 if SIMULATED else 256  # of a block; a power of two, for the sums of rows.py
TILE = 2 if SIMULATED else 16  # the side of a square block
BLOCKS = 2 if SIMULATED else 1 << 14  # the most of a kernel whose threads go on until nothing is left

if not SIMULATED:
    from numba.cuda import dispatcher

    dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # of small grids, which a small model has


def lacks() -> BackendError | None:
    """What is missing for kernels to run, as the error to raise; None if nothing is."""
    if cuda.is_available():  # so it is in the simulator
        return None
    found = cuda.cuda_error() or "Numba finds no card, or not the libraries that it compiles with"
    found = " ".join(str(found).split()).split(". ")[0].rstrip(".:")  # the first sentence of several lines
    hint = (
        "It needs an NVIDIA card and its driver, and CUDA's compiler, which pip install 'd2v-ref[numba_cuda]' brings; "
        "with NUMBA_ENABLE_CUDASIM=1 in the environment Numba's slow simulator takes the place of all three"
    )
    return BackendError(f"backend numba_cuda can't run here: {found}", hint=hint)


def over(kernel: Any, count: int, *args: Any) -> None:
    """Start a kernel of independent numbers: enough threads for ``count``, or as many as make sense."""
    if count:
        kernel[min(-(-count // THREADS), BLOCKS), THREADS](*args)


def rows(kernel: Any, count: int, dtype: np.dtype, *args: Any) -> None:
    """Start a kernel with a block for each row, whose threads share room for a number each."""
    if count:
        kernel[count, THREADS, 0, THREADS * dtype.itemsize](*args)


def tiles(kernel: Any, shape: tuple[int, int], dtype: np.dtype, *args: Any) -> None:
    """Start a kernel with a square block for each tile of a matrix, which shares room for two tiles.

    blockIdx.x counts the tiles downwards: only the first axis of a grid may be long.
    """
    if shape[0] and shape[1]:
        grid = (-(-shape[0] // TILE), -(-shape[1] // TILE))
        kernel[grid, (TILE, TILE), 0, 2 * TILE * TILE * dtype.itemsize](*args)
