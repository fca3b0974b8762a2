"""Compiled kernels on the disk, so that they are compiled once on a machine and not once in a process.

A folder belongs to one processor, one version and setting of everything that makes the code, and one text of this
backend's sources: whatever changes, its kernels are compiled anew, and nothing that is stale is ever loaded.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import compiler
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

import d2v_ref
from d2v_ref.errors import BackendError
from d2v_ref.ops import definitions

from ..kept import cache_root, report, write
from ..telling import compiling

SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "DEBUGINFO_DEFAULT", "USING_SVML")  # Numba's, that make the code
DIGEST_SIZE = hashlib.sha256().digest_size


def _key() -> str:
    """What the code of a kernel depends on: versions, settings, processor and sources."""
    triple, processor, features = cpu_target.target_context.codegen().magic_tuple()
    settings = [f"{name}={getattr(numba.config, name, None)}" for name in SETTINGS]
    versions = (numba.__version__, llvmlite.__version__, np.__version__, sys.version)
    digest = hashlib.sha256()
    for part in (*versions, *settings, triple, processor, features):
        digest.update(part.encode() + b"\0")
    for source in (*sorted(Path(__file__).parent.glob("*.py")), Path(definitions.__file__)):
        digest.update(source.read_bytes() + b"\0")
    return f"{d2v_ref.__version__}-{processor}-{digest.hexdigest()[:16]}"


KEY = _key()  # now: sources that are changed later are not those that this process computes with


def folder() -> Path:
    """Where the kernels of this processor and these versions are kept."""
    return cache_root() / "kernels" / KEY


def kept(name: str) -> bool:
    """Whether a kernel of this name is on the disk."""
    return _file(name).is_file()


def _file(name: str) -> Path:
    return folder() / f"{name}.kernel"


def compiled(function: Any, name: str, signature: tuple[Any, ...] = (), ahead: bool = False) -> bool:
    """Has a dispatcher or a C function of Numba's compile itself, or reads it from the disk.

    Returns whether it was compiled.  ``ahead``: nobody waits for its result, so that nothing is said, and what can't be
    kept is an error.

    Raises:
        BackendError: ``ahead``, and the folder can't be written; or NUMBA_DISABLE_JIT is set.
    """
    if numba.config.DISABLE_JIT:
        raise BackendError("Numba was told to compile nothing", hint="Unset NUMBA_DISABLE_JIT")
    function._cache = stored = Stored(name, ahead)
    with stored.busy:
        function.compile(*signature)
    return not stored.found


class Stored:
    """A compiled function on the disk, as Numba's dispatchers and C functions expect a cache to be.

    Attributes:
        found: whether it was read and not compiled.
        busy: what lasts until the function is there, or could not be compiled.
    """

    def __init__(self, name: str, ahead: bool) -> None:
        self.name, self.ahead, self.found = name, ahead, False
        self.path = _file(name)
        self.busy = ExitStack()

    def load_overload(self, signature: Any, context: Any) -> Any:
        """The compiled function, or None if it is not there or can't be read: then it is compiled."""
        rtsys.initialize(context)  # what the parallel loop allocates with
        result = self._read(context)
        self.found = result is not None
        if not self.found:
            context.refresh()  # so that what the source refers to is known; it takes longer than reading every kernel
            if not self.ahead:
                self.busy.enter_context(compiling(self.name, self.path.parent, "this processor"))
        return result

    def _read(self, context: Any) -> Any:
        try:
            file = self.path.read_bytes()
            digest, data = file[:DIGEST_SIZE], file[DIGEST_SIZE:]
            if digest != self._digest(data):  # damaged code would end the process, and another kernel's would run
                return None
            # A pickle, as in Numba's own cache: the folder is as much the user's as the package itself.
            return compiler.CompileResult._rebuild(context, *pickle.loads(data))  # noqa: S301
        except Exception:  # not there, or written by a Numba of this version that is not the same
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keeps a compiled function, or warns that it can't be kept."""
        self.busy.close()
        reason = self._keep(result)
        if reason:
            report(self.path.parent, reason, self.ahead)

    def _keep(self, result: Any) -> str:
        """Writes a whole file or none, whoever else writes it; returns why it can't be written, or ""."""
        if result.library.has_dynamic_globals:  # as code that is not optimised does
            return f"kernel {self.name} holds addresses of this process"
        data = dumps(result._reduce())
        return write(self.path, self._digest(data) + data)

    def _digest(self, data: bytes) -> bytes:
        return hashlib.sha256(f"{KEY}/{self.name}\0".encode() + data).digest()
