"""Kernels from CUDA C++ sources: NVRTC compiles them for a card's architecture, the disk keeps them, CuPy loads them.

Not through cupy.RawModule, which needs a card to compile, does not see that an included file has changed, and compiles
with -ftz=true.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import re
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import d2v_ref
from d2v_ref.errors import BackendError

from ..kept import cache_root, report, write
from ..telling import compiling
from .device import INSTALL, Device
from .libraries import library

KERNELS = Path(__file__).parent / "kernels"
TYPES = ("float", "__half", "__nv_bfloat16")
HEADERS = ("cuda_fp16.h", "cuda_bf16.h")
OPTIONS = ("-std=c++17", "--ptxas-options=-v")
DIGEST_SIZE = hashlib.sha256().digest_size


class Variant(NamedTuple):
    """A source file of ``kernels/``, without .cu, and what is defined for it: T, the storage's type, and constants."""

    file: str
    defines: tuple[tuple[str, str], ...]  # sorted

    def __str__(self) -> str:
        return "-".join([self.file, *(f"{name}={value}" for name, value in self.defines)])


def variant(file: str, defines: dict[str, Any]) -> Variant:
    return Variant(file, tuple(sorted((name, str(value)) for name, value in defines.items())))


def variants(line: str = "variants") -> list[Variant]:
    """Every kernel file with everything that is defined for it, as its lines ``// variants: NAME=a,b NAME=c`` tell.

    A line stands for each value of each name with each of the others; without a line there is T alone.  Another
    ``line`` tells of something else: "tensor cores" of the variants that have instructions for these.
    """
    found: dict[Variant, None] = {}
    for path in sorted(KERNELS.glob("*.cu")):
        told = re.findall(rf"^// {line}: (.+)$", path.read_text("utf-8"), re.MULTILINE)
        for words in told or ([f"T={','.join(TYPES)}"] if line == "variants" else []):
            names, values = zip(*(word.split("=") for word in words.split()), strict=True)
            for chosen in itertools.product(*(value.split(",") for value in values)):
                found[variant(path.stem, dict(zip(names, chosen, strict=True)))] = None
    return list(found)


class Built(NamedTuple):
    """A program: the card's code, the portable assembly that it was made of, and what the compiler said of it."""

    cubin: bytes
    ptx: str
    log: str


# ---- NVRTC -----------------------------------------------------------------------------------------------------------


class Nvrtc:
    """The functions of nvrtc.h that compile; each raises BackendError unless it returns NVRTC_SUCCESS."""

    def __init__(self) -> None:
        self.dll = library("nvrtc")
        self.dll.nvrtcGetErrorString.restype = c_char_p
        major, minor = c_int(), c_int()
        self._function("Version", POINTER(c_int), POINTER(c_int))(major, minor)
        self.version = f"{major.value}.{minor.value}"
        strings = POINTER(c_char_p)
        self._create = self._function("CreateProgram", POINTER(c_void_p), c_char_p, c_char_p, c_int, strings, strings)
        self._compile = self._function("CompileProgram", c_void_p, c_int, strings)
        self._destroy = self._function("DestroyProgram", POINTER(c_void_p))

    def _function(self, name: str, *arguments: Any) -> Any:
        function = self.dll[f"nvrtc{name}"]  # an object of its own each time
        function.argtypes, function.restype, function.errcheck = arguments, c_int, self._succeeded
        return function

    def _succeeded(self, status: Any, function: Any, arguments: Any) -> Any:
        if status:
            raise BackendError(f"{function.__name__} failed", got=self.dll.nvrtcGetErrorString(status).decode())

    def architectures(self) -> list[int]:
        """What it can compile for: 90 for compute capability 9.0."""
        count = c_int()
        self._function("GetNumSupportedArchs", POINTER(c_int))(count)
        numbers = (c_int * count.value)()
        self._function("GetSupportedArchs", POINTER(c_int))(numbers)
        return list(numbers)

    def compile(self, source: bytes, name: str, options: list[str]) -> Built:
        """Compiles a source.

        Raises:
            BackendError: the source does not compile.
        """
        program = c_void_p()
        self._create(program, source, name.encode(), 0, None, None)
        try:
            words = (c_char_p * len(options))(*(option.encode() for option in options))
            try:
                self._compile(program, len(options), words)
            except BackendError as error:
                log = self._text("ProgramLog", program)[:2000]
                raise BackendError(f"{name} does not compile: {log}", got=error.got) from None
            return Built(self._read("CUBIN", program), self._text("PTX", program), self._text("ProgramLog", program))
        finally:
            self._destroy(program)

    def _read(self, what: str, program: c_void_p) -> bytes:
        size = c_size_t()
        self._function(f"Get{what}Size", c_void_p, POINTER(c_size_t))(program, size)
        room = ctypes.create_string_buffer(size.value)
        self._function(f"Get{what}", c_void_p, c_char_p)(program, room)
        return room.raw

    def _text(self, what: str, program: c_void_p) -> str:
        return self._read(what, program).rstrip(b"\0").decode(errors="replace").strip()


@functools.cache
def nvrtc() -> Nvrtc:
    return Nvrtc()


@functools.cache
def headers() -> str:
    """The folder of cuda_fp16.h and cuda_bf16.h.

    Raises:
        BackendError: they are not installed.
    """
    import cuda.pathfinder as pathfinder

    found = pathfinder.find_nvidia_header_directory("cudart")
    if found is None:
        raise BackendError("CUDA's header cuda_fp16.h was not found", hint=f"Install it: {INSTALL}")
    return found


def architecture(capability: tuple[int, int]) -> int:
    """What to compile for on a card: its own architecture, or the last one before it whose code it runs.

    Raises:
        BackendError: this NVRTC knows neither.
    """
    major, minor = capability
    known = [number for number in nvrtc().architectures() if 10 * major <= number <= 10 * major + minor]
    if not known or major < 8:
        expected = "a card of compute capability 8.0 or more, and an NVRTC that knows it"
        got = f"compute capability {major}.{minor}, NVRTC {nvrtc().version}"
        raise BackendError("kernels can't be compiled for this card", got=got, expected=expected)
    return max(known)


def built(which: Variant, arch: int) -> Built:
    """A variant, compiled now.

    Raises:
        BackendError: it does not compile; NVRTC or its headers are missing.
    """
    name = f"{which.file}.cu"
    options = [f"-arch=sm_{arch}", *OPTIONS, f"-I{KERNELS}", f"-I{headers()}"]
    return nvrtc().compile(_source(which), name, options)


def _source(which: Variant) -> bytes:
    """The file after its definitions, after CUDA's headers: these have template parameters of such names."""
    lines = [f"#include <{name}>" for name in HEADERS]
    lines += [f"#define {'STORAGE' if name == 'T' else name} {value}" for name, value in which.defines]
    lines += [f'#line 1 "{which.file}.cu"', ""]
    return "\n".join(lines).encode() + (KERNELS / f"{which.file}.cu").read_bytes()


# ---- the disk --------------------------------------------------------------------------------------------------------


def folder() -> Path:
    """Where compiled kernels are kept."""
    return cache_root() / "cuda" / d2v_ref.__version__


def compiled(which: Variant, arch: int, ahead: bool = False) -> tuple[bytes, bool]:
    """A variant's cubin, from the disk if it is there, and whether it was compiled now.

    ``ahead``: nobody waits for it, so that nothing is said, and what can't be kept is an error.

    Raises:
        BackendError: the source does not compile; NVRTC or its headers are missing; ``ahead``, and the folder can't be
            written.
    """
    key = _key(which, arch)
    path = folder() / f"{which}-{arch}-{key.hex()[:16]}.cubin"
    try:
        digest, cubin = (data := path.read_bytes())[:DIGEST_SIZE], data[DIGEST_SIZE:]
        if digest == hashlib.sha256(key + cubin).digest():  # damaged code would run
            return cubin, False
    except OSError:  # not there
        pass
    if ahead:
        cubin = built(which, arch).cubin
    else:
        with compiling(str(which), path.parent, "this card"):
            cubin = built(which, arch).cubin
    reason = write(path, hashlib.sha256(key + cubin).digest() + cubin)
    if reason:
        report(path.parent, reason, ahead)
    return cubin, True


def _key(which: Variant, arch: int) -> bytes:
    """What a cubin depends on: its source and all that can be included, the options and the compiler's version."""
    included = [*sorted(KERNELS.glob("*.cuh")), *(Path(headers()) / name for name in HEADERS)]
    digest = hashlib.sha256(repr((arch, OPTIONS, nvrtc().version)).encode())
    for text in (_source(which), *(path.read_bytes() for path in included)):
        digest.update(hashlib.sha256(text).digest())
    return digest.digest()


# ---- on the card -----------------------------------------------------------------------------------------------------


class Module:
    """A loaded cubin."""

    def __init__(self, cubin: bytes, shared_memory: int) -> None:
        import cupy

        self.module = cupy.cuda.Module()
        self.module.load(cubin)
        self.driver, self.shared_memory = cupy.cuda.driver, shared_memory

    def get_function(self, name: str) -> Any:
        """A kernel, called (grid, block, args, shared_mem=0), which may ask for all the shared memory that there is."""
        function = self.module.get_function(name)
        own = self.driver.funcGetAttribute(self.driver.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function.ptr)
        most = self.driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self.driver.funcSetAttribute(function.ptr, most, self.shared_memory - own)
        return function


def module(device: Device, file: str, defines: dict[str, Any]) -> Module:
    """The kernels of ``kernels/<file>.cu``, compiled for the device's card with these defines, T among them."""
    cubin, _ = compiled(variant(file, defines), architecture(device.limits.capability))
    return Module(cubin, device.limits.shared_memory)


def compilers(storage: str, arch: int) -> Iterator[tuple[str, Any]]:
    """What a storage type has to compile: names, and what compiles and tells whether it did (see ``Kernels``)."""
    for which in variants():
        if dict(which.defines)["T"] == storage:
            yield str(which), functools.partial(_ahead, which, arch)


def _ahead(which: Variant, arch: int) -> bool:
    return compiled(which, arch, ahead=True)[1]
