"""The Numba backend's register tiles on other processors than this one.

``NUMBA_CPU_NAME`` and ``NUMBA_CPU_FEATURES`` narrow what Numba generates code for.  AVX2 and the portable tile compute
here; of AVX-512, and of NEON on a machine that is no ARM, the code is looked at.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("numba", reason="backend numba needs the package numba")

from d2v_backends.numba_cpu.target import Target, of_features

ROOT = Path(__file__).parents[1]
AVX2 = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
AVX512 = {"NUMBA_CPU_NAME": "sapphirerapids", "NUMBA_CPU_FEATURES": "+avx512f,+avx512bf16"}
PORTABLE = {"NUMBA_CPU_NAME": "generic"}  # no features beyond those of every x86-64

# Small calls with odd sizes, strides, masks, groups, padding and dilation, and some that several threads share.
COMPUTE = """
from allowances import Allowances
from backend_checks import hold
from operation_calls import drawn, large_calls
from d2v_backends.numba_cpu import NumbaOps, products
from d2v_backends.numba_cpu.target import TARGET
from d2v_ref.errors import BackendError

OPERATIONS = {"linear": 15, "attention": 15, "conv1d": 12, "conv2d": 8, "layer_norm": 5, "gelu": 3}
for form in ("float32", "float64"):
    ops, bounds = NumbaOps(form, threads=2), Allowances(form)
    for name, count in OPERATIONS.items():
        for seed in range(count):
            hold(drawn(name, form, seed), ops, bounds, form)
    for call in large_calls(form):
        if call.operation in OPERATIONS:
            hold(call, ops, bounds, form)
try:
    NumbaOps("bfloat16")
except BackendError as error:
    print(error)
print(TARGET.name)
print(products.linear.functions["ff"]._library.get_asm_str())
"""

# The tile alone, not run.
LOOK = """
from d2v_backends.numba_cpu.peak import tiles_again
from d2v_backends.numba_cpu.target import TARGET
print(TARGET.name, TARGET.bfloat16)
for likes in {likes}:
    tiles_again.compile(likes)
    print(tiles_again.functions[likes]._library.get_asm_str())
"""

ARM = """
import re
import llvmlite.binding as llvm
from numba.core.registry import cpu_target
TRIPLE = "aarch64-unknown-linux-gnu"
type(cpu_target.target_context.codegen()).magic_tuple = lambda self: (TRIPLE, "generic", "+neon")
from d2v_backends.numba_cpu.peak import tiles_again
from d2v_backends.numba_cpu.target import TARGET
print(TARGET.name)
tiles_again.compile("ff")
code = tiles_again.functions["ff"].inspect_llvm()
code = re.sub('target triple = ".*"', f'target triple = "{TRIPLE}"', re.sub('target datalayout = ".*"', "", code))
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
machine = llvm.Target.from_triple(TRIPLE).create_target_machine(cpu="generic", features="+neon", opt=3)
print(machine.emit_assembly(llvm.parse_assembly(code)))
"""


def features_here() -> set[str]:
    """What this processor has, by LLVM's names."""
    import llvmlite.binding as llvm

    return {name for name, has in llvm.get_host_cpu_features().items() if has}


x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="no x86-64 processor")
AVX2_HERE = {"avx2", "fma"} <= features_here()
avx2 = pytest.mark.skipif(not AVX2_HERE, reason="this processor has no AVX2")
avx512 = pytest.mark.skipif("avx512f" not in features_here(), reason="this processor has no AVX-512")


def python(code: str, folder: Path, **changes: str) -> list[str]:
    """What a program prints, in a process of its own for another target, with a cache of its own."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    env = {**os.environ, "PYTHONPATH": path, "D2V_CACHE_DIR": str(folder), "D2V_QUIET": "1", "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env={**env, **changes}, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout.splitlines()


def count(assembly: list[str], instruction: str, registers: str) -> int:
    """How often an instruction of some name has such an operand."""
    lines = (line.strip() for line in assembly)
    return sum(line.startswith(instruction) and registers in line for line in lines)


# ---- which tile


@pytest.mark.parametrize(
    ("triple", "features", "expected"),
    [
        ("x86_64-unknown-linux-gnu", "+avx512f,+avx512bf16,+avx2,+fma", Target("avx512", 512, 6, 4, True, True)),
        ("x86_64-pc-windows-msvc", "+fma,+avx2,+avx512f,-avx512bf16", Target("avx512", 512, 6, 4, True, False)),
        ("x86_64-apple-darwin", "+avx2,+fma,-avx512f", Target("avx2", 256, 6, 2, True, False)),
        ("x86_64-unknown-linux-gnu", "+avx2,-fma", Target("portable", 128, 6, 2, False, False)),
        ("x86_64-unknown-linux-gnu", "+avx,+fma", Target("portable", 128, 6, 2, False, False)),
        ("x86_64-unknown-linux-gnu", "", Target("portable", 128, 6, 2, False, False)),
        ("aarch64-unknown-linux-gnu", "+neon,+fp-armv8", Target("neon", 128, 6, 4, True, False)),
        ("arm64-apple-darwin23.1.0", "", Target("neon", 128, 6, 4, True, False)),
        ("powerpc64le-unknown-linux-gnu", "+vsx", Target("portable", 128, 6, 2, False, False)),
    ],
)
def test_the_tile_follows_from_the_features(triple: str, features: str, expected: Target) -> None:
    assert of_features(triple, features) == expected


@pytest.mark.parametrize(
    ("features", "itemsize", "lanes", "width"),
    [("+avx512f", 4, 16, 64), ("+avx512f", 8, 8, 32), ("+avx2,+fma", 4, 8, 16), ("", 4, 4, 8), ("", 8, 2, 4)],
)
def test_a_tile_is_of_whole_vectors(features: str, itemsize: int, lanes: int, width: int) -> None:
    target = of_features("x86_64", features)
    assert (target.lanes(itemsize), target.width(itemsize)) == (lanes, width)


# ---- tiles that compute


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[list[str]]]]:
    """Both targets beside each other: nearly all of the time goes into compiling."""
    with ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(python, COMPUTE, tmp_path_factory.mktemp(name), **changes)
            for name, changes in (("avx2", AVX2), ("portable", PORTABLE))
            if name != "avx2" or AVX2_HERE
        }


@x86
@avx2
def test_avx2_computes_what_numpy_computes(computed: dict[str, Future[list[str]]]) -> None:
    error, name, *assembly = computed["avx2"].result()
    assert error.startswith("bfloat16 needs AVX512_BF16 (got avx2; expected avx512 with bf16)")
    assert name == "avx2"
    assert count(assembly, "vfmadd", "%ymm") > 100
    assert not count(assembly, "", "%zmm")


@x86
def test_the_portable_tile_computes_what_numpy_computes(computed: dict[str, Future[list[str]]]) -> None:
    error, name, *assembly = computed["portable"].result()
    assert error.startswith("bfloat16 needs AVX512_BF16 (got portable; expected avx512 with bf16)")
    assert name == "portable"
    assert count(assembly, "mulps", "%xmm") > 100
    assert not count(assembly, "vfmadd", "") + count(assembly, "", "%ymm")


# ---- tiles that are looked at


@x86
@avx512
def test_avx512_uses_its_registers_and_dot_products(tmp_path: Path) -> None:
    name, *assembly = python(LOOK.format(likes=["ff", "if"]), tmp_path, **AVX512)
    assert name == "avx512 True"
    assert count(assembly, "vfmadd", "%zmm") > 100
    assert count(assembly, "vdpbf16ps", "%zmm") > 100


def test_neon_uses_its_registers_and_fused_products(tmp_path: Path) -> None:
    name, *assembly = python(ARM, tmp_path)
    assert name == "neon"
    assert count(assembly, "fmla", ".4s") > 100
    assert not any("fmaf" in line for line in assembly)  # a call for each number
