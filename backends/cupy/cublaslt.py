"""cuBLASLt: its functions, descriptors and algorithms, as its header ``cublasLt.h`` has them in CUDA 12 and 13.

CuPy has no binding of it, and refuses its own products while a stream is captured into a graph.  Here the stream and
the workspace are arguments of every call, and a call does nothing but put kernels on the stream.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, ClassVar, NamedTuple

from d2v_ref.errors import BackendError

from .libraries import library

# cudaDataType (library_types.h)
CUDA_R_32F = 0
CUDA_R_16F = 2
CUDA_R_16BF = 14
# cublasComputeType_t and cublasOperation_t (cublas_api.h)
CUBLAS_COMPUTE_32F = 68  # sums in float32; the factors of float32 as they are, never as TF32
CUBLAS_COMPUTE_32F_FAST_TF32 = 77
CUBLAS_OP_T = 1
# cublasLtEpilogue_t and cublasLtReductionScheme_t (cublasLt.h)
CUBLASLT_EPILOGUE_DEFAULT = 1
CUBLASLT_EPILOGUE_BIAS = 4
CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2


Words = c_uint64 * 8  # cublasLtMatmulAlgo_t, which may be kept for the same version of the library


class Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t: an algorithm, and what it needs."""

    _fields_ = [
        ("algo", Words),
        ("workspaceSize", c_size_t),
        ("state", c_int),
        ("wavesCount", c_float),
        ("reserved", c_int * 4),
    ]


class Algorithm(NamedTuple):
    """A way to compute a product: a cublasLtMatmulAlgo_t's 64 bytes, and the bytes of workspace that it needs."""

    data: bytes
    workspace: int


class Library:
    """The functions that products need; each raises BackendError unless it returns CUBLAS_STATUS_SUCCESS."""

    def __init__(self) -> None:
        self.dll = library("cublasLt")
        self.dll.cublasLtGetVersion.restype = c_size_t
        self.dll.cublasLtGetStatusName.restype = c_char_p
        handle, descriptors, algorithm = [c_void_p], [c_void_p] * 5, [c_void_p]
        self.create = self.function("cublasLtCreate", POINTER(c_void_p))
        self.destroy = self.function("cublasLtDestroy", *handle)
        self.heuristics = self.function(
            "cublasLtMatmulAlgoGetHeuristic", *handle, *descriptors, c_void_p, c_int, POINTER(Heuristic), POINTER(c_int)
        )
        self.check = self.function("cublasLtMatmulAlgoCheck", *handle, *descriptors, *algorithm, POINTER(Heuristic))
        factors = [c_void_p] * 5  # alpha or beta, and two matrices with their layouts
        self.matmul = self.function(
            "cublasLtMatmul",
            *handle,
            c_void_p,
            *factors,
            *factors,
            c_void_p,
            c_void_p,
            *algorithm,
            c_void_p,
            c_size_t,
            c_void_p,
        )

    @property
    def version(self) -> int:
        """10000 major + 100 minor + patch: algorithms may be kept for the same one."""
        return self.dll.cublasLtGetVersion()

    def function(self, name: str, *arguments: Any) -> Callable[..., None]:
        function = self.dll[name]  # an object of its own each time, so that nobody else's types are changed
        function.argtypes, function.restype, function.errcheck = arguments, c_int, self._succeeded
        return function

    def _succeeded(self, status: Any, function: Any, arguments: Any) -> Any:
        if status:
            raise BackendError(f"{function.__name__} failed", got=self.dll.cublasLtGetStatusName(status).decode())


class Handle:
    """The library's context on the current card."""

    def __init__(self, library: Library) -> None:
        made = c_void_p()
        library.create(made)
        self.pointer = made.value or 0
        weakref.finalize(self, library.destroy, self.pointer).atexit = False  # the card's driver may be gone by then


class Descriptor:
    """An opaque structure of the library's, with attributes that are set by number.

    Attributes:
        pointer: its address.
    """

    kind: ClassVar[str]
    attributes: ClassVar[dict[str, tuple[int, Any]]]  # the enumerator's name without its prefix: its number and type

    def __init__(self, library: Library, create: tuple[Any, ...], *arguments: int, **attributes: int) -> None:
        made = c_void_p()
        library.function(f"cublasLt{self.kind}Create", POINTER(c_void_p), *create)(made, *arguments)
        self.pointer: int = made.value or 0
        self._set = library.function(f"cublasLt{self.kind}SetAttribute", c_void_p, c_int, c_void_p, c_size_t)
        destroy = library.function(f"cublasLt{self.kind}Destroy", c_void_p)
        weakref.finalize(self, destroy, self.pointer).atexit = False
        for name, value in attributes.items():
            self.set(name, value)

    def set(self, name: str, value: int) -> None:
        number, kind = self.attributes[name]
        held = kind(value)
        self._set(self.pointer, number, ctypes.addressof(held), ctypes.sizeof(held))


class MatrixLayout(Descriptor):
    """A column-major matrix: its data type, rows, columns, and the distance of its columns in numbers."""

    kind = "MatrixLayout"
    attributes = {"BATCH_COUNT": (5, c_int32), "STRIDED_BATCH_OFFSET": (6, c_int64)}  # CUBLASLT_MATRIX_LAYOUT_...

    def __init__(self, library: Library, data: int, rows: int, columns: int, distance: int, **attributes: int) -> None:
        create = (c_int, c_uint64, c_uint64, c_int64)
        super().__init__(library, create, data, rows, columns, distance, **attributes)


class MatmulDesc(Descriptor):
    """What is computed, and in which type."""

    kind = "MatmulDesc"
    attributes = {
        "TRANSA": (3, c_int32),
        "EPILOGUE": (7, c_uint32),
        "BIAS_POINTER": (8, c_uint64),
    }  # ..._MATMUL_DESC_...

    def __init__(self, library: Library, compute: int, scale: int, **attributes: int) -> None:
        super().__init__(library, (c_int, c_int), compute, scale, **attributes)


class MatmulPreference(Descriptor):
    """Which algorithms are wanted."""

    kind = "MatmulPreference"
    attributes = {  # CUBLASLT_MATMUL_PREF_...
        "MAX_WORKSPACE_BYTES": (1, c_uint64),
        "REDUCTION_SCHEME_MASK": (3, c_uint32),
        "MIN_ALIGNMENT_A_BYTES": (5, c_uint32),
        "MIN_ALIGNMENT_B_BYTES": (6, c_uint32),
        "MIN_ALIGNMENT_C_BYTES": (7, c_uint32),
        "MIN_ALIGNMENT_D_BYTES": (8, c_uint32),
    }

    def __init__(self, library: Library, **attributes: int) -> None:
        super().__init__(library, (), **attributes)
