"""The backend "numba_cuda" without a card: in Numba's simulator, and compiled for a card that is not there.

(No ``__init__.py`` in this folder: as a package it would hide the package numba_cuda from Numba.)
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("numba.cuda", reason="backend numba_cuda needs the package numba")

from d2v_backends.numba_cuda import NumbaCudaOps, convolutions, elementwise, launch, maps, products, rows
from kernel_signatures import array, signatures
from numba import cuda, float32, float64, types
from numba.cuda import dispatcher

from d2v_ref.errors import BackendError
from d2v_ref.ops import backends, get_ops

HERE = Path(__file__).parent
SESSIONS = ("simulated_operations.py", "simulated_models.py")


@pytest.fixture(autouse=True, scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Any, Path]]]:
    """Tests in the simulator, which Numba takes for CUDA if it is told so before it is imported: in other processes."""
    started = {}
    for name in SESSIONS:
        output = tmp_path_factory.mktemp("simulator") / "output"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / name)]
        environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
        with output.open("w") as file:
            process = subprocess.Popen(command, cwd=HERE.parents[1], env=environment, stdout=file, stderr=file)
        started[name] = process, output
    yield started
    for process, _ in started.values():
        process.kill()
        process.wait()


# ---- compiled for a card


def kernels(module: ModuleType) -> list[Any]:
    """Those that are written in a file, without the functions that they call."""
    found = [value for value in vars(module).values() if isinstance(value, dispatcher.CUDADispatcher)]
    own = [kernel for kernel in found if kernel.py_func.__module__ == module.__name__]
    return [kernel for kernel in own if not kernel.targetoptions.get("device")]


@pytest.mark.parametrize("number", [float32, float64])
def test_every_kernel_compiles(number: types.Type, monkeypatch: pytest.MonkeyPatch) -> None:
    """To PTX for Hopper, whatever card there is; what is shared between threads has its barriers."""
    try:
        cuda.compile_ptx(lambda x: None, (array(number, 1),), cc=(9, 0))
    except Exception as error:
        pytest.skip(f"Numba's compiler for cards does not run: {' '.join(str(error).split())[:200]}")
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=(9, 0)))
    given = signatures(number)
    assert set(given) == {
        kernel for file in (convolutions, elementwise, maps, products, rows) for kernel in kernels(file)
    }
    for kernel, signature in given.items():
        ptx, _ = cuda.compile_ptx(kernel.py_func, signature, cc=(9, 0))
        assert ".target sm_90" in ptx
        assert kernel.py_func.__name__ in ptx
        assert ("bar.sync" in ptx) == (kernel in (products.linear, rows.layer_norm, rows.softmax, rows.attention))


# ---- what is missing


@pytest.mark.skipif(launch.lacks() is None, reason="a card is here")
def test_without_a_card_it_says_what_is_missing() -> None:
    words = (
        r"^backend numba_cuda can't run here: .*It needs an NVIDIA card .*d2v-ref\[numba_cuda\].*NUMBA_ENABLE_CUDASIM=1"
    )
    for made in (NumbaCudaOps, lambda: get_ops("numba_cuda")):
        with pytest.raises(BackendError, match=words) as caught:
            made()
        assert "\n" not in str(caught.value)
    found = {info.name: info for info in backends()}
    assert not found["numba_cuda"].available
    assert found["numba_cuda"].reason == str(caught.value)


# ---- in the simulator


@pytest.mark.parametrize("name", SESSIONS)
def test_in_the_simulator(name: str, sessions: dict[str, tuple[Any, Path]]) -> None:
    process, output = sessions[name]
    assert process.wait(600) == 0, output.read_text()[-10_000:]
