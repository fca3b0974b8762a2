"""Every operation of "numba_cuda" against its definition, in Numba's simulator; ``test_numba_cuda.py`` starts it.

The checks are those of every backend (``backend_checks.py``), with few and small operands: a thread of the simulator is
a thread of Python.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np
import operation_calls
import pytest
from allowances import Allowances
from backend_checks import come_and_go, examine, hold, in_turn, tied
from d2v_backends.numba_cuda import NumbaCudaOps, convolutions, elementwise, launch, maps, products, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_signatures import signatures
from numba import types
from numba.np.numpy_support import from_dtype
from operands import Draw
from operation_calls import CALLS
from wrong_operands import wrong_calls

from d2v_ref.errors import BackendError, InputError
from d2v_ref.ops import get_ops

# A number that a thread makes infinite is what the definition makes it; there NumPy's warnings are told to be quiet,
# which its own threads do not hear.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

EXAMPLES = {"linear": 16, "conv1d": 12, "activation": 12, "attention": 8}
sys.setswitchinterval(1e-4)  # threads that wait for each other at barriers take turns sooner


class Few(Draw):
    """Draws few numbers, of sizes on both sides of a tile and of a block."""

    def number(self, least: int, most: int) -> int:
        return super().number(least, min(most, least + 2))

    def one_of(self, *choices: Any) -> Any:
        whole = all(type(choice) is int for choice in choices)
        return super().one_of(*(sorted(set(choices))[:3] if whole else choices))

    def length(self, most: int, *others: int) -> int:
        return super().one_of(*(n for n in (1, 2, 3, 4, 5, *others) if n <= 5))

    def lead(self, most: int = 70, empty: bool = True) -> tuple[int, ...]:
        return super().one_of((), (2,), (3,), (1, 2), (2, 1, 2), *[(0,), (2, 0)][: 2 * empty])


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation_calls, "Draw", Few)


@pytest.fixture(scope="module", params=NumbaCudaOps.dtypes)
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


def test_it_is_the_simulator() -> None:
    """Whose blocks are smaller than operands, so that several take part, and larger, so that some threads do not."""
    assert launch.SIMULATED
    assert launch.lacks() is None
    assert 1 < launch.TILE < 5
    assert launch.THREADS == 4


def test_the_processors_backend_computes_beside_it() -> None:
    """Of Numba too, it takes no notice of the simulator."""
    call = operation_calls.drawn("linear", "float32", 0)
    hold(call, get_ops("numba"), Allowances("float32"), "float32")


def test_a_warning_gives_no_module_a_name(dtype: str) -> None:
    """The simulator's threads go through a module's names at each call, and fail if one comes meanwhile."""
    modules = [module for name, module in sys.modules.items() if name.startswith("d2v_backends.numba_cuda")]
    before = {module.__name__: set(vars(module)) for module in modules}
    ops = NumbaCudaOps(dtype)
    with pytest.warns(RuntimeWarning):
        ops.gelu(ops.asarray(np.array([-np.inf, 1.0], dtype)))
    assert {module.__name__: set(vars(module)) for module in modules} == before


@pytest.mark.parametrize("operation", sorted(CALLS))
def test_an_operation_is_its_definition(operation: str, dtype: str) -> None:
    examine(operation, NumbaCudaOps(dtype), dtype, EXAMPLES.get(operation, 6))


def test_calls_after_others_give_the_same_bits(dtype: str) -> None:
    in_turn(NumbaCudaOps(dtype), dtype, 2, ["linear", "softmax", "conv1d", "concatenate"])


def test_weights(dtype: str) -> None:
    ops = NumbaCudaOps(dtype)
    come_and_go(ops, dtype, rounds=2)
    tied(ops, dtype, 5, 3)


@pytest.mark.parametrize("words", wrong_calls(NumbaCudaOps()))
def test_what_does_not_fit_is_the_definitions_error(words: str) -> None:
    with pytest.raises(InputError, match=f"^{words}"):
        wrong_calls(NumbaCudaOps())[words]()


def test_kernels_are_called_with_what_they_are_compiled_for(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, with the types that ``test_numba_cuda.py`` compiles them for; here none is started."""
    seen: dict[Any, set[Any]] = {}

    def start(kernel: Any, *args: Any) -> None:
        names = inspect.signature(kernel.py_func).parameters
        seen.setdefault(kernel, set()).add(tuple(_typed(x) for x in args[len(args) - len(names) :]))

    for name in ("over", "rows", "tiles"):
        monkeypatch.setattr(launch, name, start)
    for operation in CALLS:
        for seed in range(4):
            operation_calls.drawn(operation, dtype, seed).run(NumbaCudaOps(dtype))
    want = signatures(from_dtype(np.dtype(dtype)))
    assert set(seen) == set(want)
    for kernel, given_ in seen.items():
        assert given_ == {want[kernel]}, kernel.py_func.__name__


def _typed(x: Any) -> Any:
    """As Numba sees an argument on a card."""
    return types.Array(from_dtype(x.dtype), len(x.shape), "C") if hasattr(x, "dtype") else numba.typeof(x)


# ---- arrays on the card


def _views(x: np.ndarray) -> dict[str, Any]:
    """Views and copies that any array has, by name."""
    rank, flat = x.ndim, (-1,)
    found = {
        "turned": lambda y: y.transpose(),
        "axes": lambda y: y.transpose(*range(1, rank), 0) if rank else y,
        "swapped": lambda y: y.swapaxes(0, -1) if rank else y,
        "flat": lambda y: y.reshape(flat),
        "led": lambda y: y[None],
        "of one": lambda y: y[..., None],
        "broadcast": lambda y: np.broadcast_to(y, (2, *y.shape)),
        "backwards": lambda y: y[::-1] if rank else y,
        "part": lambda y: y[..., 1:] if rank else y,
        "last": lambda y: y[:, -1] if rank > 1 and y.shape[1] else y,
        "every other": lambda y: y[..., ::2] if rank else y,
        "first": lambda y: y[0] if rank and len(y) else y,
        "rows": lambda y: y[np.array([[0, len(y) - 1]])] if rank and len(y) else y,
        "sum": lambda y: 2 + y,
        "quotient": lambda y: y / np.float32(3),
        "squares": lambda y: y * y - y,
    }
    return {} if rank > 4 else found


@settings(max_examples=40)
@given(shape=st.lists(st.integers(0, 3), max_size=3), data=st.data())
def test_an_array_is_what_numpy_makes_of_it(shape: list[int], data: st.DataObject) -> None:
    """Whatever is done to it, one thing after the other."""
    ops, host = NumbaCudaOps(), np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    card = ops.asarray(host).reshape(shape)
    for _ in range(data.draw(st.integers(1, 5))):
        views = _views(host)
        if not views:
            break
        step = views[data.draw(st.sampled_from(sorted(views)))]
        host, card = step(host), step(card)
    assert (card.shape, card.dtype, card.ndim, card.size) == (host.shape, host.dtype, host.ndim, host.size)
    np.testing.assert_allclose(ops.to_numpy(card), host, rtol=1e-6)
    np.testing.assert_array_equal(ops.to_numpy(ops.asarray(card)), ops.to_numpy(card))


def test_what_no_kernel_does_is_an_error() -> None:
    """An array of the card never becomes one of NumPy's by itself."""
    x = NumbaCudaOps().asarray(np.ones((2, 3)))
    for wrong, words in (
        (lambda: np.exp(x), "no kernel for .*got exp, __call__; expected add, "),
        (lambda: np.add(x, x, out=x), "no kernel for .*got add, __call__, out"),
        (lambda: np.linalg.norm(x), "no kernel for .*got norm; expected broadcast_to"),
        (lambda: x + np.ones(3), "an array of NumPy's among those of the card .*got .3,... ops.asarray"),
        (lambda: np.asarray(x), "taken for one of NumPy's. ops.to_numpy"),
        (lambda: x[np.array([0.5])], "indexed by another .*got float64; expected integers"),
        (lambda: np.broadcast_to(x, (1,) * 5 + (2, 3)) + 1, "too many axes .*expected 6 at most"),
    ):
        with pytest.raises(BackendError, match=words):
            wrong()
    with pytest.raises(IndexError, match=r"rows 0 ... 2 of an array of 2"):
        x[np.array([0, 2])]


def test_another_dtype_is_an_error() -> None:
    """Numbers of another precision, which a kernel would take as well."""
    ops, wide = NumbaCudaOps("float32"), NumbaCudaOps("float64").asarray(np.ones((1, 2, 4)))
    narrow = ops.asarray(np.ones((1, 2, 4)))
    with pytest.raises(InputError, match=r"^gelu: another dtype .*got float64; expected float32"):
        ops.gelu(wide)
    with pytest.raises(InputError, match=r"^attention: another dtype"):
        ops.attention(narrow, narrow, narrow, 2, mask=narrow[:, :, :2])
    assert ops.asarray(wide).dtype == np.float32
    with pytest.raises(InputError, match=r"^tanh: not on the card .got ndarray.. ops.asarray"):
        ops.tanh(np.ones(3, "f4"))
    with pytest.raises(
        InputError, match=r"^concatenate: the arrays do not fit .*got float32 .1, 2, 4., float32 .1, 1, 4."
    ):
        ops.concatenate((narrow, narrow[:, :1]), axis=2)


# ---- no fault passes

FAULTS: list[tuple[str, ModuleType, str, str]] = [
    ("linear", products, "cuda.syncthreads()  # the tiles are there", "pass"),
    ("linear", products, "cuda.syncthreads()  # and are no longer needed", "pass"),
    ("linear", products, "right[j * side + step]", "right[i * side + step]"),
    ("linear", products, "range(0, depth, side)", "range(0, depth - side + 1, side)"),
    ("layer_norm", rows, "cuda.syncthreads()  # both halves are there", "pass"),
    ("softmax", rows, "room[i] = greater(room[i], room[i + half])", "room[i] = room[i + half]"),
    ("attention", rows, "cuda.syncthreads()  # every thread needs the whole row of p", "pass"),
    ("attention", rows, "s > t + keys - length", "s > t"),
    ("attention", rows, "t * at[3] + s * at[4]", "t * at[3] + t * at[4]"),
    ("conv1d", convolutions, "o // group * width", "o % group * width"),
    ("conv2d", convolutions, "0 <= column < x.shape[2]", "0 < column < x.shape[2]"),
    ("adaptive_avg_pool2d", maps, "((j + 1) * width + size - 1) // size", "(j + 1) * width // size"),
    ("embed_norm", elementwise, "range(RANK - 1, -1, -1)", "range(RANK)"),
    ("gelu", elementwise, "out[i] = activate(code, x[i])", "out[i] = activate(code, x[i]) if i else x[i]"),
]


@pytest.mark.parametrize(("operation", "module", "was", "becomes"), FAULTS)
def test_a_fault_of_a_kernel_is_found(
    operation: str, module: ModuleType, was: str, becomes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a copy of the kernels' file with a barrier or an index changed."""
    source = Path(str(module.__file__)).read_text()
    assert source.count(was) == 1
    copy = ModuleType(module.__name__)
    copy.__package__ = module.__package__
    exec(compile(source.replace(was, becomes), str(module.__file__), "exec"), vars(copy))  # noqa: S102
    for name, kernel in vars(copy).items():
        if hasattr(kernel, "py_func"):
            monkeypatch.setattr(module, name, kernel)
    with pytest.raises((AssertionError, IndexError), match=f"^{operation}|out of bounds"):  # which the simulator sees
        hold_all(operation, 100)


def hold_all(operation: str, count: int) -> None:
    ops, bounds = NumbaCudaOps(), Allowances("float32")
    for seed in range(count):
        hold(operation_calls.drawn(operation, "float32", seed), ops, bounds, "float32")
