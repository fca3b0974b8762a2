"""The functions that the Numba backend's kernels are made of, over every exponent that float32 has.

The oracle is NumPy's and SciPy's float64.  An error is told in units in the last place (ulp) of the float32 number next
to the true value; 0.5 of it is what rounding makes of the true value itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import special

numba = pytest.importorskip("numba", reason="backend numba needs the package numba")

from d2v_backends.numba_cpu import elementwise  # noqa: E402 - it needs numba

Function = Callable[[np.ndarray], np.ndarray]

# The true function, and how far off it may be in ulp.
FUNCTIONS: dict[str, tuple[Function, float]] = {
    "exp": (np.exp, 1.0),
    "erf": (special.erf, 1.0),
    "tanh": (np.tanh, 1.5),
}


def loop_over(function: Any) -> Any:
    """The function as kernels use it, in a loop."""

    @numba.njit(error_model="numpy")
    def loop(x: np.ndarray, y: np.ndarray) -> None:
        for i in range(x.size):
            y[i] = function(x[i])

    return loop


LOOPS = {name: loop_over(getattr(elementwise, name)) for name in (*FUNCTIONS, "gelu")}


def computed(name: str, x: np.ndarray) -> np.ndarray:
    y = np.full_like(x, np.nan)
    LOOPS[name](x, y)
    return y


def every_exponent(mantissas: int) -> np.ndarray:
    """Finite float32 numbers of both signs: of every exponent, and below the normal numbers, so many drawn ones."""
    random = np.random.default_rng(0)
    bits = random.integers(0, 1 << 23, (2, 255, mantissas), np.uint32)
    bits |= np.arange(255, dtype=np.uint32)[:, None] << np.uint32(23)
    bits[1] |= np.uint32(1 << 31)
    return bits.ravel().view(np.float32)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_good_to_the_last_place_at_every_exponent(name: str) -> None:
    true, allowed = FUNCTIONS[name]
    x = np.concatenate((every_exponent(4096), np.linspace(-105, 90, 1 << 20, dtype=np.float32)))
    with np.errstate(over="ignore", under="ignore"):
        want = true(x.astype(np.float64))
        nearest = want.astype(np.float32)
    got = computed(name, x)
    finite = np.isfinite(nearest)
    off = np.abs(got[finite] - want[finite]) / np.spacing(np.abs(nearest[finite]))
    worst = off.argmax()
    assert off[worst] <= allowed, (x[finite][worst], got[finite][worst], want[finite][worst])
    # Half an ulp beyond the largest number, one that is off by an ulp may be infinite or the largest number.
    assert (got[~finite] >= np.finfo(np.float32).max).all()


def test_gelu_is_good_to_4_u_x() -> None:
    x = np.concatenate((every_exponent(4096), np.linspace(-8, 8, 1 << 21, dtype=np.float32)))
    exact = x.astype(np.float64)
    want = exact * special.ndtr(exact)
    off = np.abs(computed("gelu", x) - want)
    allowed = 4 * 2.0**-24 * np.abs(exact) + np.finfo(np.float32).smallest_normal
    worst = (off / allowed).argmax()
    assert off[worst] <= allowed[worst], (x[worst], want[worst])


@pytest.mark.parametrize(
    ("name", "given", "want"),
    [
        ("exp", [0.0, -0.0, np.inf, -np.inf, 200.0, -200.0], [1.0, 1.0, np.inf, 0.0, np.inf, 0.0]),
        ("erf", [0.0, -0.0, np.inf, -np.inf, 30.0, -30.0], [0.0, -0.0, 1.0, -1.0, 1.0, -1.0]),
        ("tanh", [0.0, -0.0, np.inf, -np.inf, 200.0, -200.0], [0.0, -0.0, 1.0, -1.0, 1.0, -1.0]),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_special_values(name: str, given: list[float], want: list[float], dtype: str) -> None:
    got = computed(name, np.array([*given, np.nan], dtype))
    if name == "exp" and dtype == "float64":  # where 200 is none
        got[[4, 5]] = np.where(np.isclose(got[[4, 5]], np.exp([200.0, -200.0]), rtol=1e-14), want[4:], np.nan)
    assert np.isnan(got[-1])
    np.testing.assert_array_equal(got[:-1], np.array(want, dtype))
    np.testing.assert_array_equal(np.signbit(got[:-1]), np.signbit(want))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_in_float64_a_function_is_the_c_library_s(name: str) -> None:
    x = np.random.default_rng(0).normal(0, 5, 1000)
    want = [getattr(math, name)(number) for number in x]
    np.testing.assert_array_max_ulp(computed(name, x), np.array(want), 1)


@pytest.mark.parametrize("name", [*FUNCTIONS, "gelu", "gelu_tanh", "gelu_fast", "sigmoid"])
def test_a_loop_in_float32_computes_in_whole_vectors(name: str) -> None:
    """A branch or a call of the C library's within it would have LLVM take one number at a time."""
    loop = loop_over(getattr(elementwise, name))
    loop(np.zeros(64, np.float32), np.zeros(64, np.float32))
    (code,) = loop.inspect_llvm().values()
    vectors = {f"fmul contract <{lanes} x float>" for lanes in (4, 8, 16)}
    assert any(each in code for each in vectors)
    assert not any(f"@{called}f(" in code for called in ("exp", "erf", "tanh"))
