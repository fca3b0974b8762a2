"""Every operation of every backend that is installed against its definition in float64, number by number.

How far a number may be off is derived in ``allowances.py``.  Two backends that are known to be right must pass, and
those with a fault must not: without them nobody would know that a test can fail.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import backend_faults as planted
import pytest
import test_bounds as known
from allowances import Allowances
from backend_checks import at_once, come_and_go, examine, hold, in_turn, same_for_threads, tied
from backends_here import BACKENDS, INSTALLED, RIGHT, ops_of
from operation_calls import CALLS, large_calls
from threadpoolctl import threadpool_limits
from wrong_operands import wrong_calls

from d2v_ref.errors import InputError
from d2v_ref.ops import Ops, backends

# Of those in which most can go wrong more calls are drawn.
EXAMPLES = {"attention": 100, "linear": 100, "conv1d": 80, "conv_norm_act": 60, "layer_norm": 60, "activation": 60}
every_backend = pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
every_installed = pytest.mark.parametrize(("backend", "dtype"), INSTALLED)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """For NumPy's products: threads of its own, which spin when they have nothing to do, hold up those of a backend."""
    with threadpool_limits(1, "blas"):
        yield


def test_every_operation_is_called() -> None:
    """Weights are bound, and modules prepared, where a call has modules; what is replayed is a part of a model."""
    operations = {name for name, value in vars(Ops).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert set(CALLS) == operations - {"weight", "prepare", "replay"}


def test_our_own_backend_runs_where_it_can() -> None:
    """Elsewhere all of its tests are skipped, and nobody would see that it is broken."""
    pytest.importorskip("numba", reason="backend numba needs the package numba")
    found = {info.name: info for info in backends()}
    assert found["numba"].available, found["numba"].reason


@every_backend
@pytest.mark.parametrize("operation", sorted(CALLS))
def test_an_operation_is_its_definition(operation: str, backend: str, dtype: str) -> None:
    count = EXAMPLES.get(operation, 30)
    examine(operation, ops_of(backend, dtype), dtype, count // 3 if (backend, dtype) in RIGHT else count)


@every_backend
@pytest.mark.parametrize("operation", sorted({call.operation for call in large_calls("float32")}))
def test_a_large_call_is_its_definition(operation: str, backend: str, dtype: str) -> None:
    """Where several threads have something to do."""
    ops, bounds = ops_of(backend, dtype), Allowances(dtype)
    for call in large_calls(dtype):
        if call.operation == operation:
            hold(call, ops, bounds, dtype)


@every_installed
def test_calls_after_others_give_the_same_bits(backend: str, dtype: str) -> None:
    in_turn(ops_of(backend, dtype), dtype, 40)


@every_installed
def test_calls_from_several_threads_give_the_same_bits(backend: str, dtype: str) -> None:
    at_once(large_calls(dtype), ops_of(backend, dtype))


@every_installed
def test_any_number_of_threads_gives_the_same_bits(backend: str, dtype: str) -> None:
    """Of those that take a number of threads."""
    kind = type(ops_of(backend, dtype))
    if "threads" not in inspect.signature(kind).parameters:
        pytest.skip(f"backend {backend} takes no number of threads")
    same_for_threads(kind, large_calls(dtype), dtype)


@every_backend
def test_weights_come_and_go(backend: str, dtype: str) -> None:
    come_and_go(ops_of(backend, dtype), dtype)


@every_backend
@pytest.mark.parametrize(("count", "width"), [(1, 1), (19, 12), (64, 64), (70, 130)])
def test_tied_weights_are_one(backend: str, dtype: str, count: int, width: int) -> None:
    tied(ops_of(backend, dtype), dtype, count, width)


@every_installed
@pytest.mark.parametrize("words", wrong_calls(Ops()))
def test_what_does_not_fit_is_the_definitions_error(words: str, backend: str, dtype: str) -> None:
    with pytest.raises(InputError, match=f"^{words}"):
        wrong_calls(ops_of(backend, dtype))[words]()


# ---- no fault passes

ATTENTION = (
    planted.MaskIgnored, planted.HiddenRowsNaN, planted.HiddenRowsZero, planted.AddedMask, planted.CausalFromTheStart,
    planted.BiasOfTheFirst, planted.MaskOfTheFirstHead, planted.HeadMaskBeforeSoftmax, known.NoScale,
    known.ShiftedCausal,
)  # fmt: skip
FAULTS: list[tuple[str, type[Ops]]] = [
    ("activation", known.TanhGelu),
    ("linear", known.TanhGelu),
    ("gelu", known.TanhGelu),
    ("conv_norm_act", known.TanhGelu),
    ("layer_norm", known.LooseEps),
    ("layer_norm", planted.SampleVariance),
    ("conv_norm_act", known.LooseEps),
    ("layer_norm", planted.OnePass),
    ("layer_norm", planted.InOrderOfMemory),
    ("linear", planted.RowNotWritten),
    ("linear", planted.OddDepth),
    ("linear", planted.ReadsPastOdd),
    ("linear", planted.StaleScratch),
    ("linear", planted.Flushed),
    ("linear", planted.RoundedProducts),
    ("linear", known.NoBias),
    ("project", planted.OddDepth),
    ("project", known.HalfPrecisionProducts),
    ("silu", planted.OneBuffer),
    ("relu", planted.InPlace),
    ("relu", planted.FiniteMath),
    ("max_pool2d", planted.FiniteMath),
    ("softmax", planted.NoStrides),
    ("softmax", planted.NoShift),
    *(("attention", fault) for fault in ATTENTION),
    ("conv1d", known.TrueConvolution),
    ("conv1d", known.OneFrameLate),
    ("conv1d", known.NoGroups),
    ("conv1d", known.NoDilation),
    ("conv1d", known.NoConvBias),
    ("conv_norm_act", known.TrueConvolution),
    ("glu", known.NoGate),
    ("glu", known.GateFirst),
    ("statistics_pooling", planted.NextLength),
    ("conv2d", planted.PixelsNotWritten),
    ("conv2d_norm_act", planted.PixelsNotWritten),
    ("conv2d_norm_act", known.BatchEps),
    ("batch_norm", known.BatchEps),
    ("batch_norm", known.NoVariance),
    ("conv_transpose2d", known.TurnedTiles),
    ("resize", known.Corners),
    ("resize", known.OtherCubic),
    ("adaptive_avg_pool2d", known.NarrowCells),
]


@pytest.mark.parametrize("dtype", Ops.dtypes)
@pytest.mark.parametrize(("operation", "fault"), FAULTS)
def test_a_fault_of_an_operation_is_found(operation: str, fault: type[Ops], dtype: str) -> None:
    with pytest.raises(AssertionError, match=f"^{operation}"):
        examine(operation, fault(dtype), dtype, EXAMPLES.get(operation, 30))


@pytest.mark.parametrize("dtype", Ops.dtypes)
def test_a_fault_between_calls_is_found(dtype: str) -> None:
    with pytest.raises(AssertionError, match=r"^linear gives other bits after other calls"):
        in_turn(planted.StaleScratch(dtype), dtype, 60, ["linear"])
    with pytest.raises(AssertionError, match=r"^linear gives other bits after other calls"):
        in_turn(planted.ReadsPastOdd(dtype), dtype, 60, ["linear"])
    with pytest.raises(AssertionError, match=r"^weights of turn "):
        come_and_go(planted.PackedByAddress(dtype), dtype)
    with pytest.raises(AssertionError):
        tied(planted.PackedInPlace(dtype), dtype, 19, 12)


@pytest.mark.parametrize("dtype", Ops.dtypes)
def test_a_fault_of_threads_is_found(dtype: str) -> None:
    with pytest.raises(AssertionError, match=r"^other bits from several threads at once: "):
        at_once(large_calls(dtype), planted.SharedScratch(dtype))
    with pytest.raises(AssertionError, match=r"^linear gives other bits with 2 threads"):
        same_for_threads(planted.ThreadsAddUp, large_calls(dtype), dtype)
