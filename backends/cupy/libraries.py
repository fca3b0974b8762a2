"""NVIDIA's libraries, found where CuPy finds them: wheels, conda, CUDA_PATH, the system's loader."""

from __future__ import annotations

import ctypes

from d2v_ref.errors import BackendError

from .device import INSTALL


def library(name: str) -> ctypes.CDLL:
    """A CUDA library by its short name ("cublasLt", "nvrtc").

    Raises:
        BackendError: it is not installed.
    """
    try:
        import cuda.pathfinder as pathfinder  # which comes with CuPy 14
    except ImportError:
        raise BackendError("backend cupy needs the package cuda-pathfinder", hint=f"Install it: {INSTALL}") from None
    try:
        return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib(name).abs_path)
    except (RuntimeError, OSError) as error:  # it is not there; it is, but not what it needs itself
        reason = str(error).partition("\n")[0]
        raise BackendError(f"CUDA's {name} was not found", got=reason, hint=f"Install it: {INSTALL}") from None
