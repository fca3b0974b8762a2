"""cuBLASLt on the processor: what its documentation says that a product is, computed on NumPy's memory.

The descriptors are the library's own.  All that the emulation knows of a product, it reads back from them with the
library's getters and the numbers of its headers, so that a wrong descriptor gives a wrong product, as on a card.
"""

from __future__ import annotations

import ctypes
import functools
import re
import zlib
from ctypes import POINTER, c_float, c_int, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import cuda.pathfinder as pathfinder
import numpy as np
from d2v_backends.cupy.cublaslt import Library, Words
from ml_dtypes import bfloat16

from d2v_ref.errors import BackendError

HEADERS = ("cublasLt.h", "cublas_api.h", "library_types.h")


@functools.cache
def header_text() -> str:
    folder = Path(pathfinder.find_nvidia_header_directory("cublas") or "")
    return "".join((folder / name).read_text() for name in HEADERS)


@functools.cache
def header() -> dict[str, int]:
    """The enumerators of CUDA's headers that are given as a number."""
    pairs = re.findall(r"^\s*(CUBLAS\w+|CUDA_R_\w+)\s*=\s*(0x[0-9a-fA-F]+|\d+)\s*[,/\n]", header_text(), re.MULTILINE)
    return {name: int(number, 0) for name, number in pairs}


@functools.cache
def stored(data: int) -> np.dtype:
    """The dtype of a cudaDataType."""
    types = {"CUDA_R_32F": np.float32, "CUDA_R_16F": np.float16, "CUDA_R_16BF": bfloat16}
    return np.dtype(next(kind for name, kind in types.items() if header()[name] == data))


def in_tf32(x: np.ndarray) -> np.ndarray:
    """float32 rounded to nearest even, ten bits after the point."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0xFFF) + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


class Matrix(NamedTuple):
    """A cublasLtMatrixLayout_t."""

    data: int
    rows: int
    columns: int
    distance: int
    batch: int
    batch_distance: int

    def at(self, pointer: int) -> np.ndarray:
        """The matrices at an address: (batch, rows, columns), column-major."""
        dtype = stored(self.data)
        size = dtype.itemsize
        last = (self.batch - 1) * self.batch_distance + (self.columns - 1) * self.distance + self.rows
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * (last * size)).from_address(pointer)).view(dtype)
        strides = (self.batch_distance * size, size, self.distance * size)
        return np.lib.stride_tricks.as_strided(memory, (self.batch, self.rows, self.columns), strides)


class CpuLibrary(Library):
    """The library, with an emulation of what needs a card.

    An algorithm's words are its number, what stands for the problem that it was proposed for, and the alignments of A,
    B, C, D and the bias that it may count on: one that gets something else fails.

    Attributes:
        proposals: how many algorithms there are for a problem.
        unsupported: the numbers of those that are proposed with a state that says that they don't run.
        refused: the numbers of those that fail when they run.
        reductions: the reduction schemes that were asked for last.
        ran: the numbers of those that ran, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.proposals = 3
        self.unsupported: set[int] = set()
        self.refused: set[int] = set()
        self.reductions = 0
        self.ran: list[int] = []
        arguments = (c_void_p, c_int, c_void_p, c_size_t, POINTER(c_size_t))
        self.getters = {
            kind: self.function(f"cublasLt{kind}GetAttribute", *arguments)
            for kind in ("MatrixLayout", "MatmulDesc", "MatmulPreference")
        }
        self.sizes: dict[str, tuple[Any, int, int]] = {}  # of the attributes: how to get it, its number, its bytes
        self.create, self.destroy = self._create, self._destroy
        self.heuristics, self.check, self.matmul = self._heuristics, self._check, self._matmul

    # ---- what the descriptors say

    def get(self, descriptor: int, name: str) -> int:
        """An attribute of a descriptor, by its enumerator."""
        if name not in self.sizes:
            kind = next(kind for kind, prefix in PREFIXES.items() if name.startswith(prefix))
            needed = c_size_t()
            self.getters[kind](descriptor, header()[name], None, 0, needed)
            self.sizes[name] = (self.getters[kind], header()[name], needed.value)
        getter, number, size = self.sizes[name]
        value, written = c_uint64(), c_size_t()
        getter(descriptor, number, ctypes.addressof(value), size, written)
        return value.value

    def matrix(self, layout: int) -> Matrix:
        """What a layout describes.  Columns that are closer than they are long are against the documentation."""
        names = ("TYPE", "ROWS", "COLS", "LD", "BATCH_COUNT", "STRIDED_BATCH_OFFSET", "ORDER")
        *values, order = (self.get(layout, f"CUBLASLT_MATRIX_LAYOUT_{name}") for name in names)
        matrix = Matrix(*values)
        if order != header()["CUBLASLT_ORDER_COL"] or not 0 < matrix.rows <= matrix.distance or not matrix.columns:
            raise BackendError("not a column-major matrix", got=matrix)
        return matrix

    def _problem(self, description: int, matrices: list[Matrix]) -> int:
        """A number that stands for all that an algorithm is chosen for."""
        names = ("COMPUTE_TYPE", "SCALE_TYPE", "TRANSA", "TRANSB", "EPILOGUE")
        told = [self.get(description, f"CUBLASLT_MATMUL_DESC_{name}") for name in names]
        return zlib.crc32(repr((told, matrices)).encode())

    # ---- what needs a card

    def _create(self, handle: c_void_p) -> None:
        handle.value = 1

    def _destroy(self, handle: int) -> None:
        pass

    def _heuristics(
        self,
        handle: int,
        description: int,
        *given: Any,  # A, B, C, D, preference, how many may be found, where, and how many were
    ) -> None:
        *layouts, wanted, room, found, count = given
        names = [f"MIN_ALIGNMENT_{matrix}_BYTES" for matrix in "ABCD"]
        most, *aligned = (self.get(wanted, f"CUBLASLT_MATMUL_PREF_{name}") for name in ("MAX_WORKSPACE_BYTES", *names))
        problem = self._problem(description, [self.matrix(layout) for layout in layouts])
        bias = self.get(description, "CUBLASLT_MATMUL_DESC_BIAS_POINTER")
        aligned.append(bias & -bias or 1)
        self.reductions = self.get(wanted, "CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK")
        count.value = min(room, self.proposals)
        for number in range(count.value):
            found[number].algo[:] = [number, problem, *aligned, 0]
            found[number].workspaceSize = min(number << 20, most)
            found[number].state = number in self.unsupported

    def _check(self, handle: int, description: int, *given: Any) -> None:
        *layouts, algorithm, result = given
        words = Words.from_address(algorithm)
        if words[1] != self._problem(description, [self.matrix(layout) for layout in layouts]):
            raise BackendError("cublasLtMatmulAlgoCheck failed", got="an algorithm of another problem")
        result.workspaceSize = words[0] << 20

    @np.errstate(all="ignore")  # what is beyond the largest of a format is infinity, and C may hold anything
    def _matmul(self, handle: int, description: int, *given: int) -> None:
        """D = epilogue(alpha op(A) op(B) + beta C), op as the description has it, sums and scaling in float32."""
        alpha, a, at_a, b, at_b, beta, c, at_c, d, at_d, algorithm, workspace, size, _ = given
        number, problem, *aligned, _ = Words.from_address(algorithm)
        matrices = [self.matrix(layout) for layout in (at_a, at_b, at_c, at_d)]
        fits = problem == self._problem(description, matrices) and size >= number << 20 and not workspace % 256
        bias = self.get(description, "CUBLASLT_MATMUL_DESC_BIAS_POINTER")
        fits &= not any(pointer % bytes_ for pointer, bytes_ in zip((a, b, c, d, bias), aligned, strict=True))
        if number in self.refused | self.unsupported or not fits:
            raise BackendError("cublasLtMatmul failed", got=(number, matrices, given, aligned))
        self.ran.append(number)
        left, right, added, out = matrices
        y = self._factor(description, "A", left.at(a)) @ self._factor(description, "B", right.at(b))
        y *= c_float.from_address(alpha).value
        if (factor := c_float.from_address(beta).value) != 0:  # C is not read otherwise
            y += np.float32(factor) * added.at(c).astype(np.float32)
        epilogue = self.get(description, "CUBLASLT_MATMUL_DESC_EPILOGUE")
        if epilogue == header()["CUBLASLT_EPILOGUE_BIAS"]:
            y += out._replace(columns=1, batch=1).at(bias).astype(np.float32)
        elif epilogue != header()["CUBLASLT_EPILOGUE_DEFAULT"]:
            raise BackendError("an epilogue that is not emulated", got=epilogue)
        out.at(d)[...] = y

    def _factor(self, description: int, name: str, x: np.ndarray) -> np.ndarray:
        """op(A) or op(B) in float32, as the compute type has it."""
        x = x.astype(np.float32)
        compute = self.get(description, "CUBLASLT_MATMUL_DESC_COMPUTE_TYPE")
        if compute == header()["CUBLAS_COMPUTE_32F_FAST_TF32"]:
            x = in_tf32(x)
        elif compute != header()["CUBLAS_COMPUTE_32F"]:
            raise BackendError("a compute type that is not emulated", got=compute)
        transposed = self.get(description, f"CUBLASLT_MATMUL_DESC_TRANS{name}") == header()["CUBLAS_OP_T"]
        return x.swapaxes(1, 2) if transposed else x


PREFIXES = {  # of the enumerators of a descriptor's attributes
    "MatrixLayout": "CUBLASLT_MATRIX_LAYOUT_",
    "MatmulDesc": "CUBLASLT_MATMUL_DESC_",
    "MatmulPreference": "CUBLASLT_MATMUL_PREF_",
}
