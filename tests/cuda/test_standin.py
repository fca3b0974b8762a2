"""The stand-in for a card refuses what a card would, and has nothing that CuPy has not."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cupy", reason="the CUDA packages are not installed: pip install 'd2v-ref[cuda-test]'")

import d2v_backends.cupy
import standin
from standin import Array, Namespace, RefusedError, StandIn

from d2v_ref.errors import BackendError

DEVICE: Any = StandIn("float32")
X = DEVICE.upload(np.arange(6, dtype=np.float32).reshape(2, 3))
BFLOAT16 = X.astype(StandIn("bfloat16").storage)
HOST = np.ones((2, 3), np.float32)
REFUSED: dict[str, Callable[[], Any]] = {
    "a NumPy array on the right": lambda: X + HOST,
    "a NumPy array on the left": lambda: HOST * X,
    "a NumPy array that is assigned": lambda: operator.setitem(X, 0, HOST[0]),
    "a NumPy array as an index": lambda: X[np.array([0, 1])],
    "a NumPy array as a mask": lambda: np.where(HOST > 0, X, X),
    "booleans as an index": lambda: X[DEVICE.upload(np.array([True, False]))],
    "taken for a NumPy array": lambda: np.asarray(X),
    "taken for a list": lambda: X.tolist(),
    "a number": lambda: float(X[0, 0]),
    "a truth": lambda: bool(X[0, 0]),
    "a loop": lambda: list(X),
    "a function that CuPy would wait in": lambda: np.unique(X),
    "a product": lambda: np.matmul(X, X),
    "where of bfloat16": lambda: np.where(X.astype(bool), BFLOAT16, BFLOAT16),
    "bfloat16 and a number": lambda: BFLOAT16 * 2.0,
    "an activation that CuPy has not of bfloat16": lambda: np.arctan(BFLOAT16),
    "a sum in 16 bits": lambda: BFLOAT16.sum(0),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_card_would_not_do_is_refused(what: str) -> None:
    with pytest.raises(RefusedError):
        REFUSED[what]()


def test_what_a_card_would_do() -> None:
    np.testing.assert_array_equal(DEVICE.download(X + X * 2.0 - X / 2.0), 2.5 * DEVICE.download(X))
    rows = X[DEVICE.upload(np.array([1, 0, 1]))]
    np.testing.assert_array_equal(DEVICE.download(rows), DEVICE.download(X)[[1, 0, 1]])
    np.testing.assert_array_equal(DEVICE.download(np.broadcast_to(X[:, :1], (2, 4))), [[0.0] * 4, [3.0] * 4])
    assert np.isnan(DEVICE.download(DEVICE.empty((3,)))).all()
    assert DEVICE.empty((3,)).data.ptr % 256 == 0
    assert DEVICE.download(X.astype("float16").sum(0, dtype=np.float32)).tolist() == [3.0, 5.0, 7.0]


def test_nothing_comes_in_or_out_while_a_graph_is_captured() -> None:
    recorder = DEVICE.recorder()
    with pytest.raises(BackendError, match="brought in while a graph is captured"):
        recorder.capture(lambda: DEVICE.upload(HOST), ())
    with pytest.raises(BackendError, match="brought to the host while a graph is captured"):
        recorder.capture(lambda: DEVICE.download(X), ())
    DEVICE.upload(HOST)


def test_cupy_has_what_the_backend_asks_it_for() -> None:
    """Names, as nothing can be called without a card."""
    cupy = pytest.importorskip("cupy", reason="the package cupy is not installed")
    used = set()
    for file in Path(d2v_backends.cupy.__file__).parent.glob("*.py"):
        if file.name != "checking_torch.py":  # whose cuda is torch's
            used |= set(re.findall(r"\bxp\.([A-Za-z_.]+[A-Za-z_])\b", file.read_text(encoding="utf-8")))
            found = re.findall(r"(?<!xp\.)\bcuda\.([A-Za-z_.]+[A-Za-z_])\b\(?", file.read_text(encoding="utf-8"))
            used |= {f"cuda.{name}" for name in found} - {"cuda.pathfinder"}
    assert {"empty", "where", "cuda.Stream", "cuda.UnownedMemory", "lib.stride_tricks.as_strided"} <= used
    assert not [name for name in used if not _has(cupy, name)]
    mine = {name for name in vars(Namespace) if not name.startswith("_")} - {"as_strided", "lib", "cuda"}
    assert not [name for name in mine if not hasattr(cupy, name)]


def _has(module: Any, name: str) -> bool:
    try:
        operator.attrgetter(name)(module)
    except AttributeError:
        return False
    return True


def test_an_array_has_no_more_than_cupys() -> None:
    cupy = pytest.importorskip("cupy", reason="the package cupy is not installed")
    mine = {name for name in vars(Array) if not name.startswith("_")} - {"numbers"}
    assert not [name for name in mine if not hasattr(cupy.ndarray, name)]
    assert standin.ALIGNED <= 512  # which CuPy's memory is aligned to
