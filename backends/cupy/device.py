"""``Device``: the one seam between this backend's host code and a card.

What computes takes a device as its first argument, and gets from it whatever touches CUDA: arrays (``xp``, ``empty``),
kernels (``kernel``), matrix products (``product``), and the way in and out (``upload``, ``download``).  The tests have
a device of the same methods whose kernels run on the processor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from d2v_ref.errors import BackendError

Array = Any
Launch = Callable[..., None]  # (grid, block, args, shared_mem=0), as a kernel of CuPy is called

# What each format stores, in NumPy's and in CUDA's name.  "tf32" is float32 whose products are rounded to TF32.
STORED = {"float32": "float32", "tf32": "float32", "float16": "float16", "bfloat16": "bfloat16"}
TYPES = {"float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}

INSTALL = "pip install 'd2v-ref[cuda13x]', or 'd2v-ref[cuda12x]' for a driver older than 580 (nvidia-smi shows it)"


class Limits(NamedTuple):
    """What a kernel's launch has to fit in."""

    shared_memory: int  # bytes that a block may ask for, beyond the 48 KiB that it gets without asking
    multiprocessors: int
    capability: tuple[int, int]  # compute capability: 9, 0 for an H100


def storage_of(form: str) -> np.dtype:
    """The dtype of arrays on the card."""
    if STORED[form] == "bfloat16":
        from ml_dtypes import bfloat16

        return np.dtype(bfloat16)
    return np.dtype(STORED[form])


def why_not(index: int = 0) -> BackendError | None:
    """What this machine lacks to compute on its card of this number, and how to get it; None if nothing."""
    try:
        import cupy
        import ml_dtypes  # noqa: F401  # which CuPy has bfloat16 of
    except ImportError as error:
        package = error.name or "cupy"
        return BackendError(f"backend cupy needs the package {package}: {error}", hint=f"Install it: {INSTALL}")
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        lacks = "an NVIDIA driver" if runtime.driverGetVersion() == 0 else "a card, or a newer NVIDIA driver"
        hint = f"Install the driver of the card, and the CuPy that suits it: {INSTALL}"
        return BackendError(f"backend cupy needs {lacks}", got=error, hint=hint)
    if index >= count:
        return BackendError("backend cupy: no such card", got=f"device {index}", expected=f"0 ... {count - 1}")
    return None


class Device:
    """A card, and the format that it computes in.

    Args:
        form: "float32" (exact), "tf32", "float16" or "bfloat16".
        index: the card's number.
        tune: whether a product measures several of cuBLASLt's algorithms the first time that it has a shape.

    Everything is ordered on one stream, which a thread that computes has as its current one from then on: what one
    thread has begun, another one may go on with.

    Attributes:
        xp: the namespace of arrays, cupy.
        format: as given.
        storage: the dtype of arrays.
        limits: of the card.
        stream: where everything is ordered.

    Raises:
        BackendError: a package, a driver or the card is missing.
    """

    xp: Any
    limits: Limits
    stream: Any

    def __init__(self, form: str = "float32", index: int = 0, *, tune: bool = True) -> None:
        self.format, self.index, self.tune = form, index, tune
        self._kernels: dict[tuple[Any, ...], Launch] = {}
        self._multiply: Any = None
        self._lock = threading.RLock()
        self._connect()
        self.storage = storage_of(form)

    def _connect(self) -> None:
        missing = why_not(self.index)
        if missing is not None:
            raise missing
        import cupy

        self.xp = cupy
        with cupy.cuda.Device(self.index) as card:
            self.stream = cupy.cuda.Stream(non_blocking=True)
            has, capability = card.attributes, int(card.compute_capability)
        shared, multiprocessors = has["MaxSharedMemoryPerBlockOptin"], has["MultiProcessorCount"]
        self.limits = Limits(shared, multiprocessors, divmod(capability, 10))
        self.allocate = cupy.cuda.get_allocator()  # bytes -> memory, as it is outside of graphs
        self._staged: list[tuple[Any, Any]] = []  # (event, pinned memory that is copied before it)

    # ---- memory ------------------------------------------------------------------------------------------------------

    def empty(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        """An array that is not set, of the storage's dtype if none is given; of the arena while a graph is captured."""
        return self.xp.empty(shape, self.storage if dtype is None else dtype)

    def upload(self, x: np.ndarray) -> Array:
        """A NumPy array on the card, contiguous, in its own dtype.

        Returns when the copy is ordered: it goes by way of pinned memory, which is CuPy's again when it is done.
        """
        self.enter()
        self.refuse_capture("a NumPy array is brought in")
        order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))  # as it lies in memory
        lies = np.ascontiguousarray(x.transpose(order))
        out = self.xp.empty(lies.shape, lies.dtype)
        if lies.size:
            memory = self.xp.cuda.alloc_pinned_memory(lies.nbytes)
            np.frombuffer(memory, lies.dtype, lies.size)[...] = lies.ravel()
            out.data.copy_from_host_async(memory.ptr, lies.nbytes, self.stream)
            self._keep(memory)
        return self.xp.ascontiguousarray(out.transpose(np.argsort(order).tolist()))

    def _keep(self, memory: Any) -> None:
        """Keeps pinned memory until the stream has copied it, and lets go of what is copied."""
        event = self.xp.cuda.Event(disable_timing=True)
        event.record(self.stream)
        with self._lock:
            self._staged = [*(pair for pair in self._staged if not pair[0].done), (event, memory)]

    def download(self, x: Array) -> np.ndarray:
        """An array of the card as a NumPy array of its own dtype, when all that is ordered before is done."""
        self.enter()
        self.refuse_capture("an array is brought to the host")
        return self.xp.asnumpy(self.xp.ascontiguousarray(x), stream=self.stream)

    def synchronize(self) -> None:
        """Waits until everything that is ordered is done."""
        self.stream.synchronize()

    def free(self) -> None:
        """Gives memory that no array lies in back to the card, which other libraries may want."""
        self.synchronize()
        self.xp.get_default_memory_pool().free_all_blocks()

    def refuse_capture(self, what: str) -> None:
        """Raises BackendError if this thread captures a graph, which would do once what it should do every time."""
        if self.xp.cuda.get_current_stream().is_capturing():
            hint = "graphs=False computes without graphs"
            raise BackendError(f"{what} while a graph is captured", expected="what Ops.replay says", hint=hint)

    def enter(self) -> None:
        """Makes this card and its stream the calling thread's."""
        if getattr(_entered, "device", None) is not self:
            self.xp.cuda.Device(self.index).use()
            self.stream.use()
            _entered.device = self

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        """While the block runs, what this thread does is ordered on another stream."""
        self.enter()
        stream.use()
        try:
            yield
        finally:
            self.stream.use()

    # ---- computing ---------------------------------------------------------------------------------------------------

    def kernel(self, file: str, name: str, **defines: Any) -> Launch:
        """A kernel of ``kernels/<file>.cu``, compiled for the storage's type (``T``) and these defines.

        It is called (grid, block, args, shared_mem=0).  Args are arrays of the card, or ``np.uint64(0)`` for none, and
        NumPy's int32, int64 and float32 scalars.
        """
        key = (file, name, *sorted(defines.items()))
        found = self._kernels.get(key)
        if found is None:
            with self._lock:
                found = self._kernels.get(key) or self._compiled(file, name, defines)
                self._kernels[key] = found
        return found

    def _compiled(self, file: str, name: str, defines: dict[str, Any]) -> Launch:
        from .compiling import module

        self.enter()
        return module(self, file, {"T": TYPES[STORED[self.format]], **defines}).get_function(name)

    def product(self, x: Array, weight: Array, out: Array, bias: Array = None, residual: Array = None) -> None:
        """out = x weight^T + bias + residual (see ``products.Products``)."""
        self.products(x, weight, out, bias, residual, stream=self.xp.cuda.get_current_stream())

    @property
    def products(self) -> Any:
        """The products of this card and format."""
        if self._multiply is None:
            with self._lock:
                if self._multiply is None:
                    self._multiply = self._multiplier()
        return self._multiply

    def recorder(self) -> Any:
        """What records graphs (see ``graphs.Graphs``)."""
        from .graphs import CudaRecorder

        return CudaRecorder(self)

    def _multiplier(self) -> Any:
        from .cublaslt import Library
        from .products import Products
        from .tuning import tuner

        self.enter()
        library = Library()
        return Products(self.format, library, self.allocate, tuner(self, library) if self.tune else None)


_entered = threading.local()  # .device: the one that this thread entered last
