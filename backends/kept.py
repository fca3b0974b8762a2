"""What backends keep on the disk, so that it is made once on a machine and not once in a process."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from pathlib import Path

from d2v_ref.checkpoints import replacing
from d2v_ref.errors import BackendError, CheckpointError

HINT = "Set D2V_CACHE_DIR to a folder that can be written"


def cache_root() -> Path:
    """``D2V_CACHE_DIR``, or d2v_ref in the platform's folder for caches."""
    if chosen := os.environ.get("D2V_CACHE_DIR"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local") / "d2v_ref"
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / "d2v_ref"
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "d2v_ref"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # neither HOME nor an entry of this user
        raise BackendError("there is no home folder to keep compiled kernels in", hint=HINT) from None


def write(path: Path, data: bytes) -> str:
    """Writes a whole file or none, whoever else writes it; returns why it can't be written, or ""."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except CheckpointError as error:
        return str(error.got)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def report(folder: Path, reason: str, ahead: bool) -> None:
    """Warns once that compiled kernels can't be kept; where they are compiled ahead, it is a BackendError."""
    if ahead:
        raise BackendError("compiled kernels can't be kept", path=folder, got=reason, hint=HINT)
    _warn_once(folder, reason)


@functools.cache
def _warn_once(folder: Path, reason: str) -> None:
    warnings.warn(
        f"compiled kernels can't be kept in {folder} ({reason}), so that every process compiles them again; "
        "set D2V_CACHE_DIR to a folder that can be written",
        stacklevel=2,
    )
