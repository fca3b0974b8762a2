"""The emulator finds what it is there for: each planted fault, and none in the same kernel without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import emulator
import numpy as np
import pytest
from emulator import CUDA_TYPES, SCHEDULES, EmulationError, Module, emulated, scheduled

pytestmark = pytest.mark.skipif(emulator.missing() is not None, reason=emulator.missing() or "")
FOLDER = Path(__file__).parent
every_schedule = pytest.mark.parametrize("seed", SCHEDULES)


def faults(variant: str = "plain") -> Module:
    return emulated(FOLDER / "faults.cu", variant=variant)


def launch(
    module: Module, name: str, *args: Any, grid: int = 1, block: int = 128, shared: int = 0, seed: int = 0
) -> None:
    with scheduled(seed):
        module.get_function(name)((grid,), (block,), args, shared_mem=shared)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def nothing(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


# ---- barriers


def outcome(name: str, x: np.ndarray, y: np.ndarray, right: int, seed: int, variant: str, **sizes: int) -> bytes:
    """The result of one of the kernels with a barrier that may be left out."""
    y = y.copy()
    launch(faults(variant), name, x, y, np.int32(right), seed=seed, **sizes)
    return y.tobytes()


def test_a_missing_barrier_shows_in_some_schedule() -> None:
    x, y = numbers(3, 128), nothing(3, 128)
    want = x[:, ::-1].tobytes()
    assert [outcome("backwards", x, y, 1, seed, "plain", grid=3) == want for seed in SCHEDULES] == [True] * 4
    assert not any(outcome("backwards", x, y, 0, seed, "plain", grid=3) == want for seed in SCHEDULES)


def test_a_barrier_that_is_missing_after_a_use_shows_in_some_schedule() -> None:
    """In turn, every thread reads before the first one writes again: nothing is wrong."""
    x, y = numbers(3, 2), nothing(3, 2, 4)
    want = np.repeat(x, 4).tobytes()
    assert [outcome("two_sums", x, y, 1, seed, "plain", grid=3) == want for seed in SCHEDULES] == [True] * 4
    found = [outcome("two_sums", x, y, 0, seed, "plain", grid=3) == want for seed in SCHEDULES]
    assert not all(found)


@every_schedule
@pytest.mark.parametrize(("name", "block"), [("backwards", 128), ("two_sums", 128), ("turned", 32)])
def test_a_missing_barrier_is_a_race_in_every_schedule(name: str, block: int, seed: int) -> None:
    x, y = numbers(2, 128), nothing(2, 128)
    outcome(name, x, y, 1, seed, "races", block=block)
    words = rf"^{name}, block \(0, 0, 0\), thread \(\d+, 0, 0\): race: .* no barrier between, at .*faults.cu:\d+$"
    with pytest.raises(EmulationError, match=words):
        outcome(name, x, y, 0, seed, "races", block=block)


def test_blocks_that_write_to_the_same_place_race() -> None:
    launch(faults("races"), "put", nothing(1), np.int32(0), block=1)
    with pytest.raises(
        EmulationError, match=r"^put, block \(1, 0, 0\), .* which another block's thread \(0, 0, 0\) wrote"
    ):
        launch(faults("races"), "put", nothing(1), np.int32(0), grid=2, block=1)


@every_schedule
def test_a_barrier_that_some_threads_reach_is_an_error(seed: int) -> None:
    launch(faults(), "some_wait", nothing(64), np.int32(64), block=64, seed=seed)
    with pytest.raises(
        EmulationError, match=r"^some_wait, block \(0, 0, 0\) hangs: 7 threads, .*faults.cu:\d+; 57 .* ended"
    ):
        launch(faults(), "some_wait", nothing(64), np.int32(7), block=64, seed=seed)
    launch(faults(), "some_wait", y := nothing(64), np.int32(0), block=64, seed=seed)  # as if nothing had been
    assert (y == 1).all()


@every_schedule
def test_two_barriers_at_once_are_an_error(seed: int) -> None:
    launch(faults(), "wait_apart", nothing(64), np.int32(64), block=64, seed=seed)
    with pytest.raises(
        EmulationError, match=r"^wait_apart, block \(0, 0, 0\), thread .*: a barrier at .* is at that of"
    ):
        launch(faults(), "wait_apart", nothing(64), np.int32(7), block=64, seed=seed)


@every_schedule
def test_a_shuffle_that_some_lanes_reach_is_an_error(seed: int) -> None:
    launch(faults(), "some_sum", nothing(64), np.int32(64), block=64, seed=seed)
    with pytest.raises(
        EmulationError, match=r"hangs: (12 threads, first \(32, 0, 0\), wait in __shfl_xor_sync|.*ended; 12)"
    ):
        launch(faults(), "some_sum", nothing(64), np.int32(44), block=64, seed=seed)
    with pytest.raises(EmulationError, match="names lanes that the block has not"):
        launch(faults(), "some_sum", nothing(64), np.int32(44), block=44, seed=seed)


# ---- memory


@pytest.mark.parametrize("at", [32, -1, 1000])
def test_a_write_outside_of_an_operand_is_found(at: int) -> None:
    launch(faults(), "put", nothing(32), np.int32(31), block=1)
    where = "before the beginning" if at < 0 else "beyond the end"
    with pytest.raises(EmulationError, match=f"^put: written .* bytes {where} of operand 0 of 128 bytes"):
        launch(faults(), "put", nothing(32), np.int32(at), block=1)


def test_what_is_read_outside_of_an_operand_is_nan() -> None:
    launch(faults(), "get", numbers(32), y := np.zeros(1, np.float32), np.int32(32), block=1)
    assert np.isnan(y[0])


def test_a_write_outside_of_dynamic_shared_memory_is_found() -> None:
    launch(faults(), "put_dynamic", nothing(1), np.int32(31), block=1, shared=128)
    with pytest.raises(
        EmulationError, match=r"^put_dynamic, .*: written 1 bytes beyond the end of 128 bytes of dynamic"
    ):
        launch(faults(), "put_dynamic", nothing(1), np.int32(32), block=1, shared=128)


@pytest.mark.parametrize(
    ("name", "args", "inside", "outside", "words"),
    [
        ("put", (nothing(33)[:32],), 31, 33, "heap-buffer-overflow"),
        ("get", (numbers(32), nothing(4)), 31, -1, "heap-buffer-overflow"),
        ("put_dynamic", (nothing(1),), 31, 32, "heap-buffer-overflow"),
        ("put_static", (nothing(1),), 31, 32, "index 32 out of bounds"),
    ],
)
def test_sanitizers_find_what_lies_outside(
    name: str, args: tuple[Any, ...], inside: int, outside: int, words: str
) -> None:
    launch(faults("sanitized"), name, *args, np.int32(inside), block=1, shared=128)
    with pytest.raises(EmulationError, match=words) as found:
        launch(faults("sanitized"), name, *args, np.int32(outside), block=1, shared=128)
    assert "faults.cu:" in str(found.value)


@pytest.mark.parametrize("variant", ["plain", "sanitized"])
def test_numbers_that_are_loaded_at_once_lie_at_a_multiple_of_their_size(variant: str) -> None:
    x, y = numbers(32), nothing(4)
    launch(faults(variant), "get_four", x, y, np.int32(4), block=1)
    np.testing.assert_array_equal(y, x[4:8])
    with pytest.raises(
        EmulationError, match=r"(faults\.cu:\d+.*misaligned address|misaligned address.*faults\.cu:\d+)"
    ):
        launch(faults(variant), "get_four", x, y, np.int32(3), block=1)


def test_sanitizers_run_barriers_and_shuffles_too() -> None:
    x, y = numbers(3, 128), nothing(3, 128)
    assert outcome("backwards", x, y, 1, 3, "sanitized", grid=3) == x[:, ::-1].tobytes()
    launch(faults("sanitized"), "some_sum", y, np.int32(64), block=64)
    assert (y[0, :64] == 32).all()


@pytest.mark.parametrize("variant", ["plain", "sanitized"])
def test_shared_memory_is_nan_when_a_block_begins(variant: str) -> None:
    launch(faults(variant), "remains", y := np.zeros((3, 64), np.float32), np.int32(0), grid=3, block=32, shared=128)
    assert np.isnan(y).all()


@pytest.mark.parametrize("variant", ["plain", "races"])
@every_schedule
def test_a_copy_is_there_when_it_was_waited_for(seed: int, variant: str) -> None:
    x, y = numbers(2, 64, 4), nothing(2, 64, 4)
    launch(faults(variant), "copied", x, y, np.int32(1), block=64, shared=x.nbytes, seed=seed)
    np.testing.assert_array_equal(y, np.where(np.arange(128).reshape(2, 64, 1) % 2 * [[[0]], [[1]]], 0, x))
    launch(faults(variant), "copied", x, y, np.int32(0), block=64, shared=x.nbytes, seed=seed)
    np.testing.assert_array_equal(y[0], x[0])
    assert np.isnan(y[1]).all()


def test_views_of_one_array_stay_views_of_one_array() -> None:
    """A kernel that works in place, and what lies between the numbers of a view."""
    held = numbers(4, 256)
    before = held.copy()
    launch(faults(), "backwards", held[1, 128:], held[1, 128:], np.int32(1))
    before[1, 128:] = before[1, 128:][::-1]
    np.testing.assert_array_equal(held, before)


# ---- the order of threads


def test_every_schedule_is_another_order() -> None:
    orders = []
    for seed in (*SCHEDULES, 4, 5):
        y = np.zeros(1 + 3 * 128, np.int32)
        launch(faults(), "order", y, seed=seed)
        assert sorted(y[1:129]) == list(range(128))
        orders.append(y[1:].tolist())
    assert len({tuple(order) for order in orders}) == 6
    assert orders[0][:128] == list(range(128))
    assert orders[1][:128] == list(range(127, -1, -1))
    # In the fourth, a warp goes on as far as it can.
    assert len({i // 32 for i in orders[3][128 : 128 + 64]}) == 1
    assert len({i // 32 for i in orders[2][128 : 128 + 64]}) > 1


@every_schedule
def test_lanes_get_what_others_give(seed: int) -> None:
    launch(faults(), "lanes", y := np.zeros((9, 32), np.int32), block=32, seed=seed)
    lane = np.arange(32)
    want = [
        np.full(32, 5),
        lane // 8 * 8 + 5,
        np.where(lane < 3, lane, lane - 3),
        np.where(lane % 16 > 12, lane, lane + 3),
        lane ^ 6,
        np.full(32, sum(1 << i for i in range(0, 32, 3))),
        np.zeros(32),
        np.ones(32),
        np.where(lane < 16, lane ^ 1, lane ^ 2),
    ]
    for got, expected in zip(y, want, strict=True):
        np.testing.assert_array_equal(got, expected)


@every_schedule
@pytest.mark.parametrize("limit", [0, 5, 64])
def test_votes_of_a_block(limit: int, seed: int) -> None:
    launch(faults(), "votes", y := np.zeros((64, 3), np.int32), np.int32(limit), block=64, seed=seed)
    assert (y == [limit, limit > 0, limit == 64]).all()


# ---- tensor cores

TYPES = [name for name, dtype in CUDA_TYPES.items() if dtype.itemsize == 2]


def whole_numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Numbers whose products and sums every format holds."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float64)


@pytest.mark.parametrize("way", [0, 1, 2])
@pytest.mark.parametrize("storage", TYPES)
def test_a_product_is_the_product_of_its_matrices(storage: str, way: int) -> None:
    a, b = whole_numbers(16, 16), whole_numbers(16, 8, seed=1)
    args = (a.astype(CUDA_TYPES[storage]), b.astype(CUDA_TYPES[storage]))
    for seed in SCHEDULES:
        d = nothing(16, 8)
        launch(
            emulated(FOLDER / "products.cu", storage),
            "product",
            *args,
            d,
            np.int32(way),
            np.int32(0),
            block=32,
            seed=seed,
        )
        np.testing.assert_array_equal(d, a @ b)
    for swapped in (1, 2):
        launch(
            emulated(FOLDER / "products.cu", storage), "product", *args, d, np.int32(way), np.int32(swapped), block=32
        )
        assert (d != a @ b).any()


@pytest.mark.parametrize("storage", TYPES)
def test_ldmatrix_gives_columns_if_transposed(storage: str) -> None:
    x = whole_numbers(4, 8, 8)
    y = np.zeros((4, 8, 8), CUDA_TYPES[storage])
    launch(emulated(FOLDER / "products.cu", storage), "four_turned", x.astype(y.dtype), y, block=32)
    np.testing.assert_array_equal(y.astype(np.float64), x.swapaxes(1, 2))


def test_a_product_in_tf32_drops_the_lower_bits_of_factors() -> None:
    module = emulated(FOLDER / "products.cu", "__half")
    a, b = whole_numbers(16, 8).astype(np.float32), whole_numbers(8, 8, seed=1).astype(np.float32)
    launch(module, "product_tf32", a, b, d := nothing(16, 8), block=32)
    np.testing.assert_array_equal(d, a @ b)
    x, unit = np.zeros((16, 8), np.float32), np.eye(8, dtype=np.float32)
    ulp = 2.0**-10
    x[0] = np.array([1, 1 + ulp, 1 + ulp / 2, 1 + ulp * 0.49, -1 - ulp / 2, 3 * ulp, 2 - ulp / 4, 0])
    launch(module, "product_tf32", x, unit, d, block=32)
    np.testing.assert_array_equal(d[0], [1, 1 + ulp, 1 + ulp, 1, -1 - ulp, 3 * ulp, 2, 0])


# ---- what a launch takes


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((nothing(32),), "put takes 2 arguments, not 1"),
        ((nothing(32), 1), r"put, argument 1: int 1 for a scalar of int32"),
        ((nothing(32), np.int64(1)), "put, argument 1: int64 for a scalar of int32"),
        ((np.zeros(32), np.int32(1)), "put, argument 0: float64 for an array of float32"),
        ((np.uint64(7), np.int32(1)), r"put, argument 0: uint64 np.uint64\(7\) for an array of float32"),
        ((np.broadcast_to(np.float32(1), 32), np.int32(1)), "put, argument 0: a read-only array"),
    ],
)
def test_arguments_that_a_kernel_does_not_take(args: tuple[Any, ...], words: str) -> None:
    with pytest.raises(EmulationError, match=words):
        launch(faults(), "put", *args, block=1)


@pytest.mark.parametrize("sizes", [{"grid": 0}, {"block": 1025}, {"block": 0}, {"grid": 2**31}, {"shared": 228 << 10}])
def test_launches_that_a_card_does_not_take(sizes: dict[str, int]) -> None:
    with pytest.raises(EmulationError, match=r"^put: no launch with grid"):
        launch(faults(), "put", nothing(1), np.int32(0), **sizes)


def test_what_does_not_compile_is_told(tmp_path: Path) -> None:
    with pytest.raises(EmulationError, match="no kernel put_here, only backwards, "):
        faults().get_function("put_here")
    (tmp_path / "wrong.cu").write_text('extern "C" __global__ void wrong(float* y) { y[0] = nowhere; }')
    with pytest.raises(EmulationError, match="nowhere"):
        emulated(tmp_path / "wrong.cu")
    (tmp_path / "none.cu").write_text("")
    with pytest.raises(EmulationError, match="no kernel"):
        emulated(tmp_path / "none.cu")
