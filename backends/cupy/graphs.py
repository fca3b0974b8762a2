"""CUDA graphs: what a part of a model has the card do, recorded once for a shape and ordered again with one call.

A graph writes to the addresses that it was recorded with.  So it has memory of its own, an arena, which everything that
the part computes is given pieces of and gives them back to, in the same order every time; inputs are copied to fixed
places in it and outputs are copied out of it.
"""

from __future__ import annotations

import threading
from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Any, NamedTuple
from weakref import finalize

import numpy as np

from d2v_ref.errors import BackendError
from d2v_ref.nn import Module

from ..arguments import changed, inputs_of, signature
from .device import Device

Array = Any
ALIGNED = 256  # bytes: where cuBLASLt and 16-byte loads find the same alignment in every run
MOST_SEEN = 1024  # shapes that are remembered as computed once
HINT = "graphs=False computes without graphs"


# ---- an arena --------------------------------------------------------------------------------------------------------


class Room:
    """Bytes 0 ... ``size``, given out in pieces and taken back: always the first gap that is large enough.

    Attributes:
        size: how many there are, or None for as many as it takes.
        top: the end of the last byte that was ever given out.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size, self.top = size, 0
        self._gaps: list[tuple[int, int]] = [(0, 1 << 62)]  # (start, end), in order
        self._returned: deque[tuple[int, int]] = deque()  # by whoever let go of an array, whatever was going on then

    def take(self, count: int) -> int:
        """Where so many bytes are free, which are not from then on.

        Raises:
            BackendError: there is no room.
        """
        while self._returned:
            self._give(*self._returned.popleft())
        count = max(1, -(-count // ALIGNED)) * ALIGNED
        at = next(i for i, (start, end) in enumerate(self._gaps) if end - start >= count)
        start, end = self._gaps[at]
        if self.size is not None and start + count > self.size:
            got = f"{start + count} bytes"
            raise BackendError("a graph needs more memory than its first run", got=got, expected=self.size, hint=HINT)
        self._gaps[at : at + 1] = [(start + count, end)] if end - start > count else []
        self.top = max(self.top, start + count)
        return start

    def give(self, start: int, count: int) -> None:
        """Takes back what ``take`` gave.  Any thread may call it, at any time."""
        self._returned.append((start, max(1, -(-count // ALIGNED)) * ALIGNED))

    def _give(self, start: int, count: int) -> None:
        insort(self._gaps, (start, start + count))
        merged: list[tuple[int, int]] = []
        for gap in self._gaps:
            if merged and merged[-1][1] == gap[0]:
                merged[-1] = merged[-1][0], gap[1]
            else:
                merged.append(gap)
        self._gaps = merged


class Piece:
    """Bytes of a room, which go back to it with the last array that lies in them; and what has to live as long."""

    def __init__(self, room: Room, count: int, kept: Any = None) -> None:
        self.room, self.count, self.kept = room, count, kept
        self.start = room.take(count)

    def __del__(self) -> None:
        if hasattr(self, "start"):
            self.room.give(self.start, self.count)


# ---- inputs ---------------------------------------------------------------------------------------------------------


class Slot(NamedTuple):
    """Where an input lies in the staging memory and in its copy on the card."""

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def stop(self) -> int:
        return self.start + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def slots_for(inputs: Iterator[np.ndarray]) -> list[Slot]:
    """Places for inputs, one after the other."""
    found: list[Slot] = []
    for x in inputs:
        end = found[-1].stop if found else 0
        found.append(Slot(-(-end // ALIGNED) * ALIGNED, x.shape, x.dtype))
    return found


# ---- the card --------------------------------------------------------------------------------------------------------


class CudaRecorder:
    """What recording takes of a card; the tests have another one."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._stream: Any = None

    def most(self) -> int:
        """How many bytes graphs may take: a quarter of the card's."""
        return self.device.xp.cuda.Device(self.device.index).mem_info[1] // 4

    def memory(self, count: int) -> Any:
        """Memory of the card: an object with ``ptr``."""
        return self.device.allocate(max(count, 1))

    def staging(self, count: int) -> np.ndarray:
        """Bytes of the host that the card copies from."""
        memory = self.device.xp.cuda.alloc_pinned_memory(max(count, 1))
        return np.frombuffer(memory, np.uint8, max(count, 1))

    def array(self, address: int, slot: Slot, owner: Any) -> Array:
        """The array of a slot that begins at an address."""
        return self.device.xp.ndarray(
            slot.shape, slot.dtype, memptr=self.pointer(address, slot.stop - slot.start, owner)
        )

    def pointer(self, address: int, count: int, owner: Any) -> Any:
        """What an allocator of CuPy gives; it keeps its owner."""
        cuda = self.device.xp.cuda
        return cuda.MemoryPointer(cuda.UnownedMemory(address, max(count, 1), owner, self.device.index), 0)

    def allocating(self, allocator: Callable[[int], Any]) -> AbstractContextManager[Any]:
        """While the block runs, this thread's arrays come from an allocator: bytes -> what ``pointer`` gives."""
        return self.device.xp.cuda.using_allocator(allocator)

    def copy(self, staging: np.ndarray, memory: Any, count: int) -> Any:
        """Orders a copy of the staging memory to the card; the event tells when it is done."""
        if count:
            memory.copy_from_host_async(staging.ctypes.data, count, self.device.stream)
        event = self.device.xp.cuda.Event(disable_timing=True)
        event.record(self.device.stream)
        return event

    def capture(self, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Callable[[], None], Any]:
        """What orders again all that function(*args) orders, which is not done now; and what it returns."""
        cuda, device = self.device.xp.cuda, self.device
        if self._stream is None:
            self._stream = cuda.Stream(non_blocking=True)
        device.products.workspace(self._stream)
        with device.on(self._stream), self._nothing_allocated():
            self._stream.begin_capture(cuda.runtime.streamCaptureModeThreadLocal)
            try:
                out = function(*args)
                graph = self._stream.end_capture()
            except BaseException as error:
                self._abandon()
                if isinstance(error, cuda.runtime.CUDARuntimeError | cuda.driver.CUDADriverError):
                    raise BackendError("a graph can't be captured", got=error, hint=HINT) from error
                raise
        return lambda: graph.launch(stream=device.stream), out

    def _abandon(self) -> None:
        """Ends a capture that failed, and takes another stream for the next one."""
        stream, self._stream = self._stream, None
        with suppress(self.device.xp.cuda.runtime.CUDARuntimeError):  # what made it fail is said once more
            if stream.is_capturing():
                stream.end_capture()

    def _nothing_allocated(self) -> AbstractContextManager[Any]:
        """While the block runs, memory of this thread that does not come from the arena is an error."""

        class Refusing(self.device.xp.cuda.MemoryHook):  # type: ignore[name-defined]
            def alloc_preprocess(self, **asked: Any) -> None:
                raise refused(asked["mem_size"])

            def malloc_preprocess(self, **asked: Any) -> None:
                raise refused(asked["size"])

        return Refusing()

    def synchronize(self) -> None:
        self.device.stream.synchronize()


def refused(count: int) -> BackendError:
    return BackendError("memory is allocated while a graph is captured", got=f"{count} bytes", hint=HINT)


# ---- graphs ----------------------------------------------------------------------------------------------------------


class Graph:
    """What a function orders for arguments of one signature.

    Args:
        recorder: what records.
        args: of the first call that it serves.

    Attributes:
        bytes: how much memory of the card it has.
    """

    def __init__(self, recorder: Any, args: tuple[Any, ...]) -> None:
        self.recorder = recorder
        self.slots = slots_for(inputs_of(args))
        size = self.slots[-1].stop if self.slots else 0
        self.staging, self.memory, self.bytes = recorder.staging(size), recorder.memory(size), size
        self.copied: Any = None  # an event: the staging memory was copied
        self.bring(args)
        places = iter(self.slots)

        def placed(x: Any) -> Any:
            if not isinstance(x, np.ndarray):
                return x
            slot = next(places)
            return recorder.array(self.memory.ptr + slot.start, slot, self.memory)

        self.args = changed(args, placed)  # the graph reads these where they lie

    def bring(self, args: tuple[Any, ...]) -> None:
        """Orders a copy of the inputs to where the graph reads them."""
        if self.copied is not None:
            self.copied.synchronize()
        for slot, x in zip(self.slots, inputs_of(args), strict=True):
            self.staging[slot.start : slot.stop].view(slot.dtype).reshape(slot.shape)[...] = x
        self.copied = self.recorder.copy(self.staging, self.memory, self.slots[-1].stop if self.slots else 0)

    def measure(self, function: Callable[..., Any]) -> Any:
        """Computes once with memory from outside, to know how much it takes; returns what the function returns."""
        room = Room()

        def allocate(count: int) -> Any:
            memory = self.recorder.memory(count)
            return self.recorder.pointer(memory.ptr, count, Piece(room, count, memory))

        with self.recorder.allocating(allocate):
            out = function(*self.args)
        self.room = Room(room.top)
        self.bytes += room.top
        return out

    def capture(self, function: Callable[..., Any]) -> None:
        """Records what the function orders, in memory as large as it was measured."""
        arena = self.recorder.memory(self.room.size)

        def allocate(count: int) -> Any:
            piece = Piece(self.room, count, arena)
            return self.recorder.pointer(arena.ptr + piece.start, count, piece)

        with self.recorder.allocating(allocate):
            self.launch, self.out = self.recorder.capture(function, self.args)
        self.arena = arena

    def __call__(self, args: tuple[Any, ...]) -> Any:
        """The outputs for inputs of the graph's shapes, in memory of their own."""
        self.bring(args)
        self.launch()
        return changed(self.out, lambda x: x.copy())


class Graphs:
    """The graphs of a device: those that were used last, as long as they fit in their share of its memory.

    Args:
        recorder: what records.
        most: how many bytes they may take together; the recorder's own bound if None.

    A call whose signature comes for the first time is computed as it is, which compiles, measures products and prepares
    weights; the second one is measured and captured; from then on the graph serves it.  What takes more than all that
    graphs may have is always computed as it is.  Threads take turns.
    """

    def __init__(self, recorder: Any, most: int | None = None) -> None:
        self.recorder, self.most = recorder, most
        self.graphs: OrderedDict[Any, Graph] = OrderedDict()
        self.seen: OrderedDict[Any, bool] = OrderedDict()  # whether it is too large
        self._owners: set[int] = set()
        self._lock = threading.RLock()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        owner = getattr(function, "__self__", function)
        key = id(owner), getattr(function, "__name__", ""), Module.changes, signature(args)
        with self._lock:
            if key in self.graphs:
                self.graphs.move_to_end(key)
                return self.graphs[key](args)
            if self.seen.get(key) is False:
                return self._captured(key, function, args)
            self._see(key, owner)
        return function(*args)

    def bytes(self) -> int:
        """How much memory of the card the graphs have."""
        return sum(graph.bytes for graph in list(self.graphs.values()))

    def _see(self, key: Any, owner: Any) -> None:
        self.seen.setdefault(key, False)
        self.seen.move_to_end(key)
        if len(self.seen) > MOST_SEEN:
            self.seen.popitem(last=False)
        if id(owner) not in self._owners:
            self._owners.add(id(owner))
            finalize(owner, self._forget, id(owner))

    def _captured(self, key: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if self.most is None:
            self.most = self.recorder.most()
        graph = Graph(self.recorder, args)
        out = graph.measure(function)
        if graph.bytes > self.most:
            self.seen[key] = True
            return out
        self._make_room(self.most - graph.bytes)
        graph.capture(function)
        self.graphs[key] = graph
        return out

    def _make_room(self, most: int) -> None:
        """Lets the graphs go that were not used for the longest time, until the others take no more than this."""
        while self.bytes() > most:
            self.recorder.synchronize()  # one that still runs is not to lose its memory
            self.graphs.popitem(last=False)

    def _forget(self, owner: int) -> None:
        """What belongs to a model goes with it."""
        with self._lock:
            self._owners.discard(owner)
            for kept in (self.graphs, self.seen):
                mine = [key for key in list(kept) if key[0] == owner]
                if mine and kept is self.graphs:
                    self.recorder.synchronize()
                for key in mine:
                    kept.pop(key, None)
