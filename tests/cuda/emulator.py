"""Kernels compiled for the CPU, and called as CuPy's are: ``emulated(...).get_function(name)(grid, block, args)``.

g++ compiles a kernel's own source with ``cuda_on_cpu.h`` before it.  A launch works on copies of its operands, between
bytes that must not change; ``scheduled(seed)`` chooses the order in which threads run.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import itertools
import math
import os
import re
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("ml_dtypes", reason="the CUDA packages are not installed: pip install 'd2v-ref[cuda-test]'")

from ml_dtypes import bfloat16

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "backends" / "cupy" / "kernels"
COMPILER = shutil.which("g++")
CUDA_TYPES = {"float": np.dtype(np.float32), "__half": np.dtype(np.float16), "__nv_bfloat16": np.dtype(bfloat16)}
SCHEDULES = (0, 1, 2, 3)  # in turn, backwards, shuffled, shuffled and a warp at a time
# As a card has them.
MOST_BLOCKS, MOST_BLOCK, MOST_THREADS, MOST_SHARED = (2**31 - 1, 65535, 65535), (1024, 1024, 64), 1024, 227 << 10

FLAGS = (
    "-std=c++17",
    "-fPIC",
    "-fno-strict-aliasing",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-U_FORTIFY_SOURCE",
    "-w",
)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fsanitize-sections=cuda_shared")


class Variant(NamedTuple):
    """How kernels are compiled: flags for kernels, for the emulator itself, and for both together."""

    kernels: tuple[str, ...]
    emulator: tuple[str, ...]
    link: tuple[str, ...]


VARIANTS = {
    "plain": Variant(("-O2", "-fsanitize=alignment"), ("-O1",), ("-shared",)),
    "races": Variant(("-O1", "-g1", "-fsanitize=thread,alignment"), ("-O1",), ("-shared",)),
    "sanitized": Variant(
        ("-O1", "-g", *SANITIZERS),
        ("-O1", "-DEMULATED_PROGRAM", "-fsanitize=address"),
        ("-fsanitize=address,undefined",),
    ),
}


class EmulationError(Exception):
    """A kernel does not compile, is called with other things than it takes, or does what it must not."""


_schedule, _variant = 0, "plain"


@contextlib.contextmanager
def scheduled(seed: int) -> Iterator[None]:
    """Kernels that are launched within run their threads in another order, one of ``SCHEDULES`` or of any number."""
    global _schedule
    before, _schedule = _schedule, seed
    try:
        yield
    finally:
        _schedule = before


@contextlib.contextmanager
def compiled_as(variant: str) -> Iterator[None]:
    """Kernels that ``emulated`` gives within are of another one of ``VARIANTS``.

    "races" finds two threads that touch the same memory with no barrier between them, whatever the schedule.
    "sanitized" runs each launch in a process of its own, with GCC's checks of addresses and undefined behaviour.
    """
    global _variant
    before, _variant = _variant, variant
    try:
        yield
    finally:
        _variant = before


_one_at_a_time = threading.Lock()  # a kernel's fibers are globals of its library


class Parameter(NamedTuple):
    """What a kernel takes: a pointer to numbers of a dtype, or a scalar."""

    dtype: str
    pointer: bool
    writable: bool

    @classmethod
    def parsed(cls, word: str) -> Parameter:
        name = word.rstrip("*").removeprefix("const ")
        return cls(name, word.endswith("*"), not word.startswith("const "))

    def misfit(self, arg: Any) -> str | None:
        """Why it can't be this argument, or None."""
        wanted = f"{'an array' if self.pointer else 'a scalar'} of {self.dtype}"
        if self.pointer and isinstance(arg, np.uint64) and arg == 0:
            return None
        if not isinstance(arg, np.ndarray if self.pointer else np.generic):
            return f"{type(arg).__name__} {arg!r} for {wanted}"
        if arg.dtype != self.dtype:
            return f"{arg.dtype} for {wanted}"
        if self.pointer and self.writable and not arg.flags.writeable:
            return "a read-only array for one that is written"
        return None


@functools.cache
def headers() -> tuple[str, ...]:
    """Folders of CUDA's headers, which are in wheels: nvidia-cuda-runtime, nvidia-cuda-crt and nvidia-cuda-cccl."""
    found = importlib.util.find_spec("nvidia")
    for place in () if found is None else found.submodule_search_locations or ():
        for folder in sorted(Path(place).glob("*/include")):
            if (folder / "cuda_fp16.h").is_file() and (folder / "crt" / "host_defines.h").is_file():
                return str(folder), str(folder / "cccl")
    raise EmulationError(
        "CUDA's headers are not installed: pip install nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl"
    )


def missing() -> str | None:
    """Why kernels can't be compiled here, or None."""
    if COMPILER is None:
        return "there is no g++ to compile kernels for the CPU with"
    try:
        headers()
    except EmulationError as error:
        return str(error)
    return None


def emulated(
    file: str | Path, storage: str = "float", defines: Mapping[str, Any] | None = None, variant: str | None = None
) -> Module:
    """The kernels of a source file.

    Args:
        file: its name in the backend's folder of kernels, without .cu, or a path.
        storage: the storage type T, in CUDA's words.
        defines: names and values for the preprocessor.
        variant: one of ``VARIANTS``; as ``compiled_as`` has it if None.
    """
    source = KERNELS / f"{file}.cu" if isinstance(file, str) else file
    words = tuple(sorted((defines or {}).items()))
    return _module(source, source.read_text(), storage, words, variant or _variant)


@functools.cache
def _module(source: Path, text: str, storage: str, defines: tuple[tuple[str, Any], ...], variant: str) -> Module:
    names = re.findall(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(', text)
    if not names:
        raise EmulationError(f'{source}: no kernel, which begins with extern "C" __global__ void')
    entries = ", ".join(f"ENTRY({name})" for name in names)
    # Defines come behind CUDA's headers, which have names of one letter.
    main = "".join(f"#define {name} {value}\n" for name, value in defines)
    main += f'#include "{source}"\n#include "launch.h"\nKERNELS({entries})\n'
    before = (f"-DSTORAGE={storage}", "-include", "cuda_on_cpu.h", "-include", "mma.cuh")
    flags, flags_of_emulator, link = VARIANTS[variant]
    included = sorted({*source.parent.glob("*.cuh"), *KERNELS.glob("*.cuh")})
    parts = [_object(main, (*flags, *before), (text, *(path.read_text() for path in included)))]
    ours = sorted(HERE.glob("*.cpp"))
    runtime = "".join(f'#include "{path}"\n' for path in ours)  # at once, as they include the same headers
    parts.append(_object(runtime, flags_of_emulator, tuple(path.read_text() for path in ours)))
    return Module(_built("", (*link, *map(str, parts))), variant)


@functools.cache
def _version() -> str:
    return subprocess.run([str(COMPILER), "--version"], capture_output=True, text=True, check=True).stdout


def _object(source: str, flags: tuple[str, ...], included: tuple[str, ...] = ()) -> Path:
    """A source compiled; ``included`` is the text of what it includes beside our headers."""
    folders = (f"-I{folder}" for folder in (HERE, KERNELS, *headers()))
    return _built(source, (*FLAGS, *flags, *folders, "-c", "-x", "c++", "-"), included)


def _built(given: str, arguments: tuple[str, ...], included: tuple[str, ...] = ()) -> Path:
    """What g++ makes of this, from the disk where it was made before of the same text with the same compiler."""
    ours = [path.read_text() for path in sorted([*HERE.glob("*.h"), *HERE.glob("*.cuh")])]
    digest = hashlib.sha256(repr((given, arguments, included, ours, _version())).encode())
    folder = Path(tempfile.gettempdir()) / f"d2v-emulated-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    built = folder / digest.hexdigest()[:32]
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            out = Path(scratch) / "built.o"
            command = [str(COMPILER), *arguments, "-o", str(out)]
            done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
            if done.returncode:
                raise EmulationError(f"g++ {' '.join(arguments)}\n{done.stderr[:4000]}")
            out.rename(built)
    return built


class Module:
    """As cupy.RawModule."""

    def __init__(self, built: Path, variant: str) -> None:
        run = (_Program if variant == "sanitized" else _Library)(built)
        self.kernels: dict[str, Kernel] = {}
        for line in run.kernels():
            name, _, parameters = line.partition(":")
            self.kernels[name] = Kernel(
                run, len(self.kernels), name, [Parameter.parsed(p) for p in parameters.split(",") if p]
            )

    def get_function(self, name: str) -> Kernel:
        if name not in self.kernels:
            raise EmulationError(f"no kernel {name}, only {', '.join(self.kernels)}")
        return self.kernels[name]


class Kernel:
    """As cupy.RawKernel: ``kernel(grid, block, args, shared_mem=0)``; args are arrays and NumPy's scalars."""

    def __init__(self, run: _Library | _Program, index: int, name: str, parameters: list[Parameter]) -> None:
        self.run, self.index, self.name, self.parameters = run, index, name, parameters

    def __call__(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0) -> None:
        dims = self._dims(grid, block, shared_mem)
        if len(args) != len(self.parameters):
            raise EmulationError(f"{self.name} takes {len(self.parameters)} arguments, not {len(args)}")
        for i, (parameter, arg) in enumerate(zip(self.parameters, args, strict=True)):
            if wrong := parameter.misfit(arg):
                raise EmulationError(f"{self.name}, argument {i}: {wrong}")
        memory = _memory([arg for arg in args if isinstance(arg, np.ndarray)])
        arguments = []
        for parameter, arg in zip(self.parameters, args, strict=True):
            if isinstance(arg, np.ndarray):
                operand = next(i for i, one in enumerate(memory) if one.holds(arg))
                memory[operand].writable |= parameter.writable
                arguments.append((operand, arg.ctypes.data - memory[operand].low))
            elif parameter.pointer:
                arguments.append((-2, 0))
            else:
                arguments.append((-1, int.from_bytes(arg.tobytes().ljust(8, b"\0"), "little", signed=True)))
        with _one_at_a_time:
            if wrong := self.run(self.index, dims, shared_mem, arguments, memory):
                raise EmulationError(wrong)

    def _dims(self, grid: Sequence[int], block: Sequence[int], shared: int) -> list[int]:
        """The six sizes of a launch, which a card takes."""
        dims = [int(n) for sizes in (grid, block) for n in (*sizes, 1, 1)[:3]]
        fits = all(1 <= n <= most for n, most in zip(dims, MOST_BLOCKS + MOST_BLOCK, strict=True))
        if not fits or math.prod(dims[3:]) > MOST_THREADS or not 0 <= shared <= MOST_SHARED:
            raise EmulationError(
                f"{self.name}: no launch with grid {grid}, block {block}, {shared} bytes of shared memory"
            )
        return dims


@dataclass
class Memory:
    """What lies from one address up to another: an operand, or several that overlap."""

    low: int
    high: int
    writable: bool = False

    def holds(self, x: np.ndarray) -> bool:
        low, high = _extent(x)
        return self.low <= low and high <= self.high


def _extent(x: np.ndarray) -> tuple[int, int]:
    return np.lib.array_utils.byte_bounds(x) if x.size else (x.ctypes.data, x.ctypes.data)


def _memory(arrays: list[np.ndarray]) -> list[Memory]:
    """The memory that arrays, and those that they are views of, lie in."""
    extents = []
    for x in arrays:
        extents.append(_extent(x))
        while isinstance(x.base, np.ndarray):
            x = x.base
        extents.append(_extent(x))
    found: list[Memory] = []
    for low, high in sorted(extents):
        if found and low < found[-1].high:
            found[-1].high = max(found[-1].high, high)
        else:
            found.append(Memory(low, high))
    return found


class _Library:
    """Runs kernels in this process."""

    def __init__(self, built: Path) -> None:
        self.built = built
        self.library = ctypes.CDLL(str(built))
        for function in (self.library.emulated_kernels, self.library.emulated_launch):
            function.restype = ctypes.c_char_p

    def kernels(self) -> list[str]:
        return self.library.emulated_kernels().decode().splitlines()

    def __call__(
        self, index: int, dims: list[int], shared: int, arguments: list[tuple[int, int]], memory: list[Memory]
    ) -> str | None:
        pairs = (ctypes.c_longlong * (2 * len(arguments)))(*(word for pair in arguments for word in pair))
        operands = (ctypes.c_longlong * (3 * len(memory)))(
            *(word for one in memory for word in (one.low, one.high - one.low, one.writable))
        )
        wrong = self.library.emulated_launch(
            index, (ctypes.c_uint * 6)(*dims), ctypes.c_longlong(shared), _schedule, pairs, operands, len(memory)
        )
        return None if wrong is None else re.sub(r"\+0x([0-9a-f]+)$", self._source, wrong.decode())

    def _source(self, offset: re.Match[str]) -> str:
        """Where in the source an instruction of the library comes from."""
        command = ["addr2line", "-e", str(self.built), offset[1]]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]


class _Program:
    """Runs each kernel in a process of its own, which GCC's sanitizers watch."""

    def __init__(self, built: Path) -> None:
        self.built = built

    def _run(self, given: bytes, *words: str) -> bytes:
        options = {"ASAN_OPTIONS": "redzone=2048:detect_leaks=0:detect_stack_use_after_return=0"}
        done = subprocess.run([self.built, *words], input=given, capture_output=True, env=options, check=False)
        if done.returncode:
            raise EmulationError(_summary(done.stderr.decode(errors="replace")))
        return done.stdout

    def kernels(self) -> list[str]:
        return self._run(b"", "kernels").decode().splitlines()

    def __call__(
        self, index: int, dims: list[int], shared: int, arguments: list[tuple[int, int]], memory: list[Memory]
    ) -> str | None:
        words = [index, *dims, shared, _schedule, len(arguments), *itertools.chain(*arguments), len(memory)]
        given = [struct.pack(f"{len(words)}q", *words)]
        for one in memory:
            size = one.high - one.low
            given += [struct.pack("2q", size, one.writable), ctypes.string_at(one.low, size)]
        out = self._run(b"".join(given))
        (length,) = struct.unpack_from("q", out)
        wrong, at = out[8 : 8 + length].decode(), 8 + length
        for one in memory:
            if one.writable:
                ctypes.memmove(one.low, out[at : at + one.high - one.low], one.high - one.low)
                at += one.high - one.low
        return wrong or None


def _summary(report: str) -> str:
    """The lines of a sanitizer's report that say what is wrong, and where in our sources."""
    lines = [line.strip() for line in report.splitlines()]
    what = [line for line in lines if "ERROR:" in line or "runtime error:" in line]
    where = [line for line in lines if re.search(r"\.(cu|cuh|h):\d+", line) and line.startswith("#")]
    return "\n".join([*what, *where[:3]]) or report[:2000]
