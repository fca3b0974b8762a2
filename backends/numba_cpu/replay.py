"""A forward pass as the list of its kernels' calls, recorded once and run again without Python in between.

A small model's pass is a hundred calls, and between two of them the kernels' data push Python's own out of the caches:
what takes it 7 us in a loop takes it a hundred then.  The second time that a pass has a shape, its calls are written
down: which C function, with which arguments.  The addresses among these are told apart: of an input, of a result, of
memory in between, of a weight.  From then on all calls are run by one loop in C, with the addresses of the inputs and
results of the day, and the memory in between in an arena, where what is not needed at the same time shares its place.

Only what kernels compute can be done again.  Where a kernel is given an array that is none of these, because NumPy
made it meanwhile, there is no program, and where NumPy wrote into one of these, the program does not give the same
bits.  Such a pass is always computed call by call.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from d2v_ref.nn import Module

from ..arguments import changed, inputs_of, leaves_of, signature
from .compiling import Call, address_of, keep, tracing
from .operands import LINE, aligned, for_long
from .system import give_back_heap
from .threads import run

Array = Any
MOST = 1 << 29  # bytes of an arena: Python's share in a pass that needs more is nothing
POISON = 0xFF  # in every byte, it makes NaN of any format
CLEAR = 16  # int64: calls begin at whole distances of this, so that no two share a cache line


@dataclass(eq=False)
class Region:
    """Memory that a pass was given, and the numbers of the first and the last call that use it."""

    start: int
    size: int
    first: int = -1
    last: int = -1

    def used(self, call: int) -> None:
        self.first = call if self.first < 0 else self.first
        self.last = call


class Piece:
    """The memory of one array while a pass is recorded; it lasts as long as the last array that lies in it."""

    def __init__(self, live: dict[int, Region], size: int) -> None:
        self.memory = for_long(size, np.dtype(np.uint8))
        self.region = Region(address_of(self.memory), size)
        where = (self.region.start, False)  # not read only
        self.__array_interface__ = {"version": 3, "shape": (size,), "typestr": "|u1", "data": where}
        self.live = live
        live[self.region.start] = self.region

    def __del__(self) -> None:
        self.live.pop(self.region.start, None)


@dataclass(eq=False)
class Result:
    """An array that a pass returns: which result's memory it lies in, and how."""

    number: int
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...]


class Trace:
    """What a pass does, while it does it.

    Args:
        inputs: its arrays, each in memory of its own.
        weights: memory that stays as it is.
    """

    def __init__(self, inputs: list[np.ndarray], weights: list[np.ndarray]) -> None:
        self.inputs = [Region(address_of(x), x.nbytes) for x in inputs]
        self.live: dict[int, Region] = {region.start: region for region in self.inputs if region.size}
        self.weights = sorted((address_of(weight), weight.nbytes) for weight in weights)
        self.calls: list[tuple[int, int, np.ndarray]] = []  # threads, function, words
        self.uses: list[tuple[int, int, Region, int]] = []  # call, place among its words, region, offset in it
        self.foreign = False  # whether a kernel was given memory from elsewhere
        self.scratch: Any = None  # what a call was given that is no array of anybody's

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        count = int(np.prod(shape, dtype=np.int64))
        return np.asarray(Piece(self.live, count * dtype.itemsize)).view(dtype).reshape(shape)

    def add(self, call: Call, words: np.ndarray) -> None:
        """Notes down a call that is made now."""
        number = len(self.calls)
        self.calls.append((call.threads, int(call.calls[0, 1]), words.copy()))
        for place in call.operands:
            address = int(words[place])
            if address == 0 or self._is_weight(address):
                continue
            region = self._region(address)
            if region is None:
                self.foreign = True
                return
            region.used(number)
            self.uses.append((number, place, region, address - region.start))

    def _is_weight(self, address: int) -> bool:
        at = bisect_right(self.weights, (address, 1 << 62)) - 1
        return at >= 0 and address < sum(self.weights[at])

    def _region(self, address: int) -> Region | None:
        return next((one for one in self.live.values() if one.start <= address < one.start + one.size), None)

    def finished(self, out: Any, held: Any) -> Program | None:
        """The program, or None if not all that the pass returns was made by its calls."""
        results: dict[int, tuple[Region, Result]] = {}  # by the array's identity
        memory: list[Region] = []
        for x in leaves_of(out):
            if x is None:
                continue
            region = self._region(address_of(x)) if isinstance(x, np.ndarray) and x.size else None
            if region is None or region in self.inputs or region.first < 0 or min(x.strides, default=0) < 0:
                return None
            if region not in memory:
                memory.append(region)
            place = address_of(x) - region.start
            results[id(x)] = region, Result(memory.index(region), place, x.shape, x.dtype, x.strides)
        return None if self.foreign else Program(self, changed(out, lambda x: results[id(x)][1]), memory, held)


def planned(regions: list[Region]) -> tuple[dict[Region, int], int]:
    """Where each of them lies in an arena, and how large that is: no two that are used at the same time overlap.

    The largest first, each at the lowest place that is free (Pisarchyk & Lee 2020, greedy by size).
    """
    places: dict[Region, int] = {}
    for region in sorted(regions, key=lambda one: -one.size):
        place = 0
        for other, start in sorted(places.items(), key=lambda item: item[1]):
            if other.first > region.last or other.last < region.first:
                continue
            if start - place >= region.size:
                break
            place = max(place, start + -(-other.size // LINE) * LINE)
        places[region] = place
    return places, max((start + region.size for region, start in places.items()), default=0)


class Program:
    """The calls of a pass; ``program(arena, inputs)`` makes them again and returns what the pass returns."""

    def __init__(self, trace: Trace, out: Any, results: list[Region], held: Any) -> None:
        self.out, self.held = out, held  # the weights, whose memory the calls read
        self.results = [region.size for region in results]
        own = {region for _, _, region, _ in trace.uses} - {*results, *trace.inputs}
        places, self.size = planned(list(own))
        starts = np.cumsum([0, *(-(-words.size // CLEAR) * CLEAR for _, _, words in trace.calls)])
        self.words = aligned(int(starts[-1]), np.dtype(np.int64))
        self.words[:] = 0
        for (_, _, words), start in zip(trace.calls, starts, strict=False):
            self.words[start : start + words.size] = words
        self.calls = np.array(
            [(threads, function, start) for (threads, function, _), start in zip(trace.calls, starts, strict=False)]
        ).reshape(-1, 3)
        self.threads = max((threads for threads, _, _ in trace.calls), default=1)
        # Base 0 is the arena, those after it the inputs, and then the results.
        bases = {region: i for i, region in enumerate([*trace.inputs, *results], 1)}
        table = [
            (starts[call] + place, bases.get(region, 0), offset + places.get(region, 0))
            for call, place, region, offset in trace.uses
        ]
        self.places, self.bases, self.offsets = np.array(table).reshape(-1, 3).T.copy()

    def __call__(self, arena: np.ndarray, inputs: list[np.ndarray]) -> Any:
        made = [aligned(size, np.dtype(np.uint8)) for size in self.results]
        bases = np.array([address_of(x) for x in (arena, *inputs, *made)])
        words = aligned(self.words.size, self.words.dtype)
        words[:] = self.words
        words[self.places] = self.offsets + bases[self.bases]
        run(self.threads, self.calls, words)
        return changed(self.out, lambda x: np.ndarray(x.shape, x.dtype, made[x.number], x.offset, x.strides))


class _Apart:
    """Gives each array, or a copy where an earlier one lies in the same memory: an address has to tell which it is."""

    def __init__(self) -> None:
        self.given: list[np.ndarray] = []

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if any(np.may_share_memory(x, other) for other in self.given):
            x = x.copy()
        self.given.append(x)
        return x


class Replays:
    """The programs of the models that have computed with some operations.

    Args:
        held: what holds a weight: the arrays whose memory kernels read.
    """

    def __init__(self, held: Callable[[Any], Any]) -> None:
        self.held = held
        self.programs: WeakKeyDictionary[Module, dict[Any, Program | bool]] = WeakKeyDictionary()
        self.arenas: list[np.ndarray] = []  # as many as threads have computed at the same time
        self._changes = Module.changes

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        owner = getattr(function, "__self__", None)
        if not isinstance(owner, Module):
            return function(*args)
        if self._changes != Module.changes:  # a program reads the weights that were there
            self.programs.clear()
            self._changes = Module.changes
        known = self.programs.get(owner)
        if known is None:
            known = self.programs[owner] = {}
        args = changed(args, np.ascontiguousarray)
        key = function.__name__, signature(args)
        program = known.get(key)
        if isinstance(program, Program):
            return self._run(program, list(inputs_of(args)))
        if program is None:
            keep(known, key, True)  # the next time
        elif program:
            out, made = self._recorded(owner, function, args)
            keep(known, key, made or False)
            return out
        return function(*args)

    def _recorded(self, owner: Module, function: Callable[..., Any], args: Any) -> tuple[Any, Program | None]:
        """Computes, and makes a program of it if that can be."""
        give_back_heap()  # of the plain pass; from now on there is an arena
        args = changed(args, _Apart())
        held, inputs = list(self._weights(owner)), list(inputs_of(args))
        trace = Trace(inputs, held)
        tracing.now = trace
        try:
            out = function(*args)
        finally:
            tracing.now = None
        program = trace.finished(out, held)
        if program is None or program.size > MOST:
            return out, None
        again = self._run(program, inputs, poisoned=True)
        same = all(x.tobytes() == y.tobytes() for x, y in zip(inputs_of(out), inputs_of(again), strict=True))
        return out, program if same else None

    def _run(self, program: Program, inputs: list[np.ndarray], poisoned: bool = False) -> Any:
        try:
            arena = self.arenas.pop()
        except IndexError:
            arena = None
        if arena is None or arena.size < program.size:
            arena = for_long(program.size, np.dtype(np.uint8))
        if poisoned:
            arena[:] = POISON
        out = program(arena, inputs)
        self.arenas.append(arena)
        return out

    def _weights(self, owner: Module) -> Iterator[np.ndarray]:
        for _, _, _, weight in owner.named_parameters():
            yield self.held(weight)
