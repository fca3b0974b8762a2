"""Matrix products of row-major arrays through cuBLASLt: out = x W^T + bias + residual.

cuBLASLt's matrices are column-major: a row-major matrix whose rows are s numbers apart is there its transpose, whose
columns are s apart.  So A = W (K x N, transposed), B = x (K x M), C = residual and D = out (N x M) give D = A^T B + C,
and a bias of length N is added to every column of D, which is a row of out.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from ctypes import c_float, c_int
from typing import TYPE_CHECKING, Any, NamedTuple

from d2v_ref.errors import BackendError, InputError

from . import cublaslt as lt

if TYPE_CHECKING:
    from .tuning import Tuner

Array = Any
Stream = Any

# What each format stores, and what its products are computed in (cudaDataType, cublasComputeType_t).
FORMATS = {
    "float32": (lt.CUDA_R_32F, lt.CUBLAS_COMPUTE_32F),
    "tf32": (lt.CUDA_R_32F, lt.CUBLAS_COMPUTE_32F_FAST_TF32),
    "float16": (lt.CUDA_R_16F, lt.CUBLAS_COMPUTE_32F),
    "bfloat16": (lt.CUDA_R_16BF, lt.CUBLAS_COMPUTE_32F),
}
WORKSPACE = 32 << 20  # bytes: what NVIDIA recommends for Hopper, and more than older cards need
CANDIDATES = 16  # algorithms that cuBLASLt is asked for; its own estimate puts the best first
ALIGNED = 256  # bytes: no algorithm asks for more

ZERO, ONE = c_float(0.0), c_float(1.0)
AT_ZERO, AT_ONE = ctypes.addressof(ZERO), ctypes.addressof(ONE)


class Problem(NamedTuple):
    """All of a product that the choice of an algorithm depends on; distances in numbers."""

    batch: int
    rows: int  # M
    outputs: int  # N
    depth: int  # K
    weight_row: int
    x_row: int
    x_batch: int
    out_row: int
    out_batch: int
    residual_row: int  # 0 if there is no residual
    residual_batch: int
    bias: bool
    alignment: int  # bytes, of the least aligned operand


class Pointers(NamedTuple):
    """Addresses on the card, of a bias and a residual only where there are such."""

    weight: int
    x: int
    out: int
    bias: int
    residual: int


class Products:
    """The products of one format on one card, for any number of threads.

    Args:
        form: one of ``FORMATS``.
        library: cuBLASLt.
        memory: bytes -> memory of the card, as CuPy's allocators give it.
        tuner: what measures algorithms and chooses one; without it the library's first choice is taken.
    """

    def __init__(
        self, form: str, library: lt.Library, memory: Callable[[int], Any], tuner: Tuner | None = None
    ) -> None:
        self.data, self.compute = FORMATS[form]
        self.itemsize = 4 if self.data == lt.CUDA_R_32F else 2
        self.library, self.memory, self.tuner = library, memory, tuner
        self.handle = lt.Handle(library)
        self._plans: dict[tuple[Any, ...], list[Product]] = {}
        self._workspaces: dict[int, Any] = {}
        self._lock = threading.RLock()

    def __call__(
        self, x: Array, weight: Array, out: Array, bias: Array = None, residual: Array = None, *, stream: Stream
    ) -> None:
        """out = x W^T + bias + residual.  Orders it on the stream; nothing waits for the card.

        The first product of a shape is planned, and measured if there is a tuner.  While the stream is captured into a
        graph there must be nothing to plan.

        Args:
            x: (M, K) or (B, M, K).  Rows and batches may be any distance apart, and overlap, as the windows of a
                convolution do; the numbers of a row are side by side.
            weight: (N, K).
            out: (M, N) or (B, M, N), where nothing overlaps.
            bias: (N,), contiguous.
            residual: of out's shape; it may be ``out`` itself.
            stream: the current one: an object with ``ptr`` and ``is_capturing()``.

        Raises:
            InputError: operands that do not fit, or that are laid out otherwise.
            BackendError: something to plan during a capture, or no algorithm.
        """
        if 0 in out.shape:
            return
        at = Pointers(
            weight.data.ptr,
            x.data.ptr,
            out.data.ptr,
            0 if bias is None else bias.data.ptr,
            0 if residual is None else residual.data.ptr,
        )
        low = at.weight | at.x | at.out | at.bias | at.residual | ALIGNED
        key = (
            *(x.shape, x.strides, weight.shape, weight.strides, out.shape, out.strides),
            None if bias is None else (bias.shape, bias.strides),
            None if residual is None else (residual.shape, residual.strides),
            low & -low,
        )
        plan = self._plans.get(key)
        if plan is None:
            plan = self._planned(key, problems(x, weight, out, bias, residual, self.itemsize, low), at, stream)
        workspace = self._workspaces.get(stream.ptr)
        if workspace is None:
            workspace = self.workspace(stream)
        for product in plan:
            product.run(at, workspace.ptr, stream.ptr)

    def workspace(self, stream: Stream) -> Any:
        """The memory that products on a stream work in, and those of a graph that is captured on it."""
        with self._lock:
            if stream.ptr not in self._workspaces:
                if stream.is_capturing():
                    hint = "Call Products.workspace before the capture"
                    raise BackendError("a product has no workspace on a stream that is being captured", hint=hint)
                self._workspaces[stream.ptr] = self.memory(WORKSPACE)
            return self._workspaces[stream.ptr]

    def _planned(
        self, key: tuple[Any, ...], parts: Iterator[tuple[Problem, Starts]], at: Pointers, stream: Stream
    ) -> list[Product]:
        with self._lock:
            if key not in self._plans:
                plan = [Product(self, problem, starts) for problem, starts in parts]
                if stream.is_capturing():
                    hint = "Compute once with these shapes before the capture"
                    raise BackendError("a new product while a graph is captured", got=plan[0].problem, hint=hint)
                for product in plan:
                    product.choose(at, self.workspace(stream), stream)
                self._plans[key] = plan
            return self._plans[key]


class Starts(NamedTuple):
    """Where the operands of a product begin, in bytes after those of the call."""

    x: int
    out: int
    residual: int


class Product:
    """One call of cublasLtMatmul: its descriptors and its algorithm."""

    def __init__(self, owner: Products, problem: Problem, starts: Starts) -> None:
        self.owner, self.problem, self.starts = owner, problem, starts
        self.words = lt.Words()
        self.workspace = 0
        self.bias = 0  # in the description; layers of the same shapes have biases of their own
        self.lock = threading.Lock()  # so that no other thread's bias comes between
        p = problem
        self.description = lt.MatmulDesc(
            owner.library,
            owner.compute,
            lt.CUDA_R_32F,  # of alpha and beta
            TRANSA=lt.CUBLAS_OP_T,
            EPILOGUE=lt.CUBLASLT_EPILOGUE_BIAS if p.bias else lt.CUBLASLT_EPILOGUE_DEFAULT,
        )
        self.a = self._layout(p.depth, p.outputs, p.weight_row, 0)
        self.b = self._layout(p.depth, p.rows, p.x_row, p.x_batch)
        self.d = self._layout(p.outputs, p.rows, p.out_row, p.out_batch)
        self.c = self._layout(p.outputs, p.rows, p.residual_row, p.residual_batch) if p.residual_row else self.d
        self.beta = AT_ONE if p.residual_row else AT_ZERO

    def _layout(self, rows: int, columns: int, distance: int, batch_distance: int) -> lt.MatrixLayout:
        return lt.MatrixLayout(
            *(self.owner.library, self.owner.data, rows, columns, distance),
            BATCH_COUNT=self.problem.batch,
            STRIDED_BATCH_OFFSET=batch_distance,
        )

    def run(self, at: Pointers, workspace: int, stream: int) -> None:
        """Orders the product on a stream."""
        out = at.out + self.starts.out
        c = at.residual + self.starts.residual if self.problem.residual_row else out
        with self.lock:
            self._point(at.bias)
            self.owner.library.matmul(
                *(self.owner.handle.pointer, self.description.pointer),
                *(AT_ONE, at.weight, self.a.pointer, at.x + self.starts.x, self.b.pointer),
                *(self.beta, c, self.c.pointer, out, self.d.pointer),
                *(ctypes.addressof(self.words), workspace, self.workspace, stream),
            )

    def _point(self, bias: int) -> None:
        if bias != self.bias:
            self.description.set("BIAS_POINTER", bias)
            self.bias = bias

    def choose(self, at: Pointers, workspace: Any, stream: Stream) -> None:
        """Takes an algorithm: the one that is known to be the best here, or the best of those that it measures."""
        if self.problem.bias:
            # Nothing is read of an address here: its alignment counts, and another bias may lie worse than this one.
            self._point(self.problem.alignment)
        tuner = self.owner.tuner
        known = None if tuner is None else tuner.known(self.problem)
        if known is not None and self._works(known):
            self._take(known)
            return
        candidates = self._candidates()
        if tuner is None:
            self._take(candidates[0])
            return
        scratch = self.owner.memory(self._extent())  # the operands stay as they are
        trial = at._replace(out=scratch.ptr - self.starts.out)

        def run(candidate: lt.Algorithm) -> None:
            self._take(candidate)
            self.run(trial, workspace.ptr, stream.ptr)

        self._take(tuner.choose(self.problem, candidates, run, stream, (workspace, WORKSPACE)))

    def _take(self, algorithm: lt.Algorithm) -> None:
        self.words = lt.Words.from_buffer_copy(algorithm.data)
        self.workspace = algorithm.workspace

    def _extent(self) -> int:
        """The bytes from out's first number to its last."""
        p = self.problem
        return ((p.batch - 1) * p.out_batch + (p.rows - 1) * p.out_row + p.outputs) * self.owner.itemsize

    def _described(self) -> tuple[int, ...]:
        matrices = (self.a, self.b, self.c, self.d)
        return (self.owner.handle.pointer, self.description.pointer, *(matrix.pointer for matrix in matrices))

    def _candidates(self) -> list[lt.Algorithm]:
        """What cuBLASLt proposes.  Sums of parts of K are added in float32 and in a fixed order."""
        aligned = {f"MIN_ALIGNMENT_{matrix}_BYTES": self.problem.alignment for matrix in "ABCD"}
        wanted = lt.MatmulPreference(
            self.owner.library,
            MAX_WORKSPACE_BYTES=WORKSPACE,
            REDUCTION_SCHEME_MASK=lt.CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE,
            **aligned,
        )
        found, count = (lt.Heuristic * CANDIDATES)(), c_int()
        self.owner.library.heuristics(*self._described(), wanted.pointer, CANDIDATES, found, count)
        usable = [lt.Algorithm(bytes(h.algo), h.workspaceSize) for h in found[: count.value] if not h.state]
        if not usable:
            raise BackendError("cuBLASLt has no algorithm for a product", got=self.problem)
        return usable

    def _works(self, algorithm: lt.Algorithm) -> bool:
        """Whether the library takes an algorithm that was kept on the disk."""
        words, result = lt.Words.from_buffer_copy(algorithm.data), lt.Heuristic()
        try:
            self.owner.library.check(*self._described(), ctypes.addressof(words), result)
        except BackendError:
            return False
        return not result.state and result.workspaceSize <= algorithm.workspace <= WORKSPACE


def problems(
    x: Array, weight: Array, out: Array, bias: Array, residual: Array, itemsize: int, address_bits: int
) -> Iterator[tuple[Problem, Starts]]:
    """The products that a call is made of.

    There is one, except where rows of x overlap: cuBLASLt takes no columns that are closer than they are long.  Then
    every s-th row is s times as far away, and there are s products of so many fewer rows.

    Raises:
        InputError: see ``Products``.
    """
    _check_shapes(x, weight, out, bias, residual, itemsize)
    outputs, depth = weight.shape
    batch, rows = (1, *out.shape[:-1])[-2:]
    weight_row, _ = _distances("weight", weight, itemsize)
    x_row, x_batch = _distances("x", x, itemsize, overlapping=True)
    out_row, out_batch = _distances("out", out, itemsize)
    residual_row, residual_batch = (0, 0) if residual is None else _distances("residual", residual, itemsize)
    steps = ((x_row, x_batch), (out_row, out_batch), (residual_row, residual_batch))
    if all(step == rows * row for row, step in steps):  # one after the other: a longer matrix
        batch, rows, x_batch, out_batch, residual_batch = 1, batch * rows, 0, 0, 0
    phases = min(rows, -(-depth // x_row))
    for phase in range(phases):
        starts = Starts(*(phase * row * itemsize for row in (x_row, out_row, residual_row)))
        low = address_bits | starts.x | starts.out | starts.residual
        problem = Problem(
            *(batch, -(-(rows - phase) // phases), outputs, depth, weight_row),
            *(max(phases * x_row, depth), x_batch),  # the distance of a single row does not count, but it is checked
            *(phases * out_row, out_batch),
            *(phases * residual_row, residual_batch),
            *(bias is not None, low & -low),
        )
        yield problem, starts


def _check_shapes(x: Array, weight: Array, out: Array, bias: Array, residual: Array, itemsize: int) -> None:
    outputs, depth = weight.shape
    if len(x.shape) not in (2, 3) or x.shape[-1] != depth or not depth:
        raise InputError("product: x does not fit the weight", got=x.shape, expected=f"(M, {depth}) or (B, M, {depth})")
    expected = (*x.shape[:-1], outputs)
    for what, y, shape in (("out", out, expected), ("bias", bias, expected[-1:]), ("residual", residual, expected)):
        if y is not None and y.shape != shape:
            raise InputError(f"product: the {what} does not fit", got=y.shape, expected=shape)
    if bias is not None and outputs > 1 and bias.strides != (itemsize,):
        raise InputError("product: the bias is not contiguous", got=bias.strides, expected=(itemsize,))


def _distances(what: str, x: Array, itemsize: int, overlapping: bool = False) -> tuple[int, int]:
    """From a row to the next, and from a batch to the next, in numbers; as if contiguous where there is no next."""
    batch, rows, length = (1, *x.shape)[-3:]
    if length > 1 and x.strides[-1] != itemsize:
        raise InputError(f"product: the rows of {what} are not contiguous", got=x.strides, expected=(..., itemsize))
    row = x.strides[-2] // itemsize if rows > 1 else length
    step = x.strides[0] // itemsize if batch > 1 else rows * row
    least = 1 if overlapping else length
    if row < least or step < 0:
        raise InputError(f"product: the rows of {what} overlap or go backwards", got=x.strides)
    return row, step
