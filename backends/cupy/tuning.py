"""Which of cuBLASLt's algorithms is the fastest for a product on this card: measured once, and kept on the disk.

A file belongs to a card, its compute capability and a version of cuBLASLt, as an algorithm's bytes mean something to
that version alone.  A file that is damaged, or can't be written, only costs measuring again.
"""

from __future__ import annotations

import ctypes
import json
import re
import statistics
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2v_ref.errors import BackendError

from ..kept import cache_root, write
from .cublaslt import Algorithm, Library, Words

if TYPE_CHECKING:
    from .device import Device
    from .products import Problem

Run = Callable[[], None]
Stream = Any
Memory = Any

ROUNDS = 5  # samples of an algorithm that is near the fastest: the median counts
NEAR = 1.2  # times the fastest of the first round
REPEATS = 5  # products a sample
FILLS = 16  # times that a workspace is set: 150 us on an H200, where a product is ordered in 10


class Tuner:
    """Measures algorithms, and remembers which one was the fastest.

    Args:
        form: the format that is computed in.
        path: the file.
        sample: how long a product takes: of a function that orders one, the stream that it is ordered on, and memory
            of the card that may be written, with its size (see ``Stopwatch``).
    """

    def __init__(self, form: str, path: Path, sample: Callable[[Run, Stream, Memory, int], float]) -> None:
        self.form, self.path, self.sample = form, path, sample
        self._kept = _read(path)
        self._lock = threading.Lock()

    def known(self, problem: Problem) -> Algorithm | None:
        """What was the fastest when the problem was measured, if it was."""
        return self._kept.get(self._key(problem))

    def choose(
        self,
        problem: Problem,
        candidates: list[Algorithm],
        run: Callable[[Algorithm], None],
        stream: Stream,
        workspace: tuple[Memory, int],
    ) -> Algorithm:
        """The fastest of the candidates; ``run`` orders the product with one of them.

        Raises:
            BackendError: none of them runs.
        """
        samples: dict[Algorithm, list[float]] = {}
        for candidate in candidates:
            try:
                samples[candidate] = [self.sample(partial(run, candidate), stream, *workspace)]
            except BackendError as error:  # the heuristic's estimate of what runs is not always right
                refused = error
        if not samples:
            raise BackendError("no algorithm of cuBLASLt runs", got=problem, expected=str(refused))
        limit = NEAR * min(samples.values())[0]
        near = [candidate for candidate, (first,) in samples.items() if first <= limit]
        for _ in range(ROUNDS - 1 if len(near) > 1 else 0):  # in turns, so that a card that slows down is fair to all
            for candidate in near:
                samples[candidate].append(self.sample(partial(run, candidate), stream, *workspace))
        best = min(near, key=lambda candidate: statistics.median(samples[candidate]))
        self._keep(problem, best)
        return best

    def _keep(self, problem: Problem, algorithm: Algorithm) -> None:
        with self._lock:
            self._kept = {**_read(self.path), **self._kept, self._key(problem): algorithm}  # others write it as well
            write(self.path, _text(self._kept).encode())  # if it can't be, another process measures again

    def _key(self, problem: Problem) -> str:
        return " ".join([self.form, *(f"{name}={int(value)}" for name, value in problem._asdict().items())])


def _read(path: Path) -> dict[str, Algorithm]:
    """The algorithms of a file; of one that is not there, or that is not ours, none."""
    try:
        entries = json.loads(path.read_bytes())["algorithms"]
        found = {key: Algorithm(bytes.fromhex(words), int(workspace)) for key, (words, workspace) in entries.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return {key: algorithm for key, algorithm in found.items() if len(algorithm.data) == ctypes.sizeof(Words)}


def _text(kept: dict[str, Algorithm]) -> str:
    return json.dumps({"algorithms": {key: (a.data.hex(), a.workspace) for key, a in sorted(kept.items())}}, indent=1)


def file_of(card: str, capability: tuple[int, int], version: int) -> Path:
    """Where the choices for a card are kept: its name, its compute capability and cuBLASLt's version."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", card).strip("-")
    return cache_root() / "tuning" / f"{name}-{capability[0]}.{capability[1]}-cublaslt-{version}.json"


class Stopwatch:
    """Times products on a card, with events; the host may be slower than they are.

    So the card first sets memory for longer than it takes to order the products, and they come one right after the
    other, as in a graph.  The first is not counted: it brings its operands into the cache.
    """

    def __init__(self, cupy: Any) -> None:
        self.cuda = cupy.cuda

    def __call__(self, run: Run, stream: Stream, memory: Memory, size: int) -> float:
        """Milliseconds a product."""
        run()  # which loads its kernels
        for _ in range(FILLS):
            memory.memset_async(0, size, stream)
        run()
        begin, end = self.cuda.Event(), self.cuda.Event()
        begin.record(stream)
        for _ in range(REPEATS):
            run()
        end.record(stream)
        end.synchronize()
        return self.cuda.get_elapsed_time(begin, end) / REPEATS


def tuner(device: Device, library: Library) -> Tuner:
    """The tuner of a device's card and format."""
    card = device.xp.cuda.runtime.getDeviceProperties(device.index)["name"].decode()
    path = file_of(card, device.limits.capability, library.version)
    return Tuner(device.format, path, Stopwatch(device.xp))
