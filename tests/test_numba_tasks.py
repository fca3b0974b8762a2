"""How the threads of a Numba kernel share its tasks: each is done once, whoever comes when, and first one's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

numba = pytest.importorskip("numba", reason="backend numba needs the package numba")

from d2v_backends.numba_cpu.compiling import COUNTERS, SHARES, Address, Real, kernel  # noqa: E402 - they need numba
from d2v_backends.numba_cpu.pointers import at, pointer, start  # noqa: E402
from d2v_backends.numba_cpu.tasks import add_up, first_task, next_part, next_task  # noqa: E402


@numba.njit
def take(counters: Any, thread: int, threads: int, count: int) -> Any:
    return next_task((start(counters), thread, threads), count)


@numba.njit
def take_rows(counters: Any, thread: int, threads: int, count: int, step: int) -> Any:
    return next_part((start(counters), thread, threads), count, step)


@numba.njit
def first(thread: int, threads: int, count: int) -> int:
    return first_task((start(np.zeros(1, np.int64)), thread, threads), count)


THREADS, COUNT = st.integers(1, 3 * SHARES), st.integers(0, 60)


@given(THREADS, COUNT, st.randoms(use_true_random=False))
def test_every_task_is_taken_once(threads: int, count: int, random: Any) -> None:
    """In any order of the threads; a thread that finds none is told so again."""
    counters = np.zeros(COUNTERS, np.int64)
    running, taken, following = list(range(threads)), [], {}
    while running:
        thread = random.choice(running)
        task, later = take(counters, thread, threads, count)
        if task == count:
            assert later == count
            running.remove(thread)
        else:
            taken.append(task)
            following[task] = later
    assert sorted(taken) == list(range(count))
    assert take(counters, 0, threads, count) == (count, count)
    assert not counters[SHARES:].any()
    firsts = {first(thread, threads, count) for thread in range(threads)}
    for task, later in following.items():
        assert later == (count if task + 1 in firsts else task + 1)


@given(THREADS, COUNT)
def test_a_share_is_the_threads_own_and_in_order(threads: int, count: int) -> None:
    """Alone a thread takes all: its share from the first to the last, and those of the threads after it."""
    shares = min(threads, SHARES)
    for thread in range(threads):
        counters = np.zeros(COUNTERS, np.int64)
        taken = [take(counters, thread, threads, count)[0] for _ in range(count)]
        own = first(thread, threads, count)
        assert taken == [*range(own, count), *range(own)]
        assert own == first(thread % shares, threads, count)
    sizes = np.diff([*(first(thread, threads, count) for thread in range(shares)), count])
    assert sizes.max() - sizes.min() <= 1


@given(THREADS, st.integers(0, 200), st.integers(1, 70))
def test_parts_are_of_a_size(threads: int, count: int, step: int) -> None:
    counters = np.zeros(COUNTERS, np.int64)
    parts: list[tuple[int, int]] = []
    while True:
        begin, end = take_rows(counters, len(parts) % threads, threads, count, step)
        if begin == end:
            break
        parts.append((begin, end))
    assert sorted(parts) == [(begin, min(begin + step, count)) for begin in range(0, count, step)]


@kernel
def tally(team: Any, done: Address, by: Address, count: int, like: Real) -> None:
    """How often each task was done, and how many tasks each thread did."""
    whole = np.int64(0)
    while True:
        task, _ = next_task(team, count)
        if task == count:
            break
        add_up(at(pointer(done, whole), task), 1)
        add_up(at(pointer(by, whole), team[1]), 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_each_task_once(threads: int) -> None:
    if threads > numba.config.NUMBA_NUM_THREADS:
        pytest.skip(f"Numba's pool has {numba.config.NUMBA_NUM_THREADS} threads")
    for count in (0, 1, 7, 10_000):
        done, by = np.zeros(count + 1, np.int64), np.zeros(threads + 1, np.int64)
        tally(threads, done.ctypes.data, by.ctypes.data, count, np.float32(0))
        assert (done == [*[1] * count, 0]).all()
        assert by.sum() == count
        assert by[threads] == 0
