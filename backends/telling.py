"""Says what takes so long: kernels that are compiled."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_told = False


@contextmanager
def compiling(name: str, folder: Path, target: str) -> Iterator[None]:
    """Once in a process a line on standard error, and on a terminal the kernel that is being compiled.

    Nothing with ``D2V_QUIET``.
    """
    global _told
    if os.environ.get("D2V_QUIET") or sys.stderr is None:
        yield
        return
    if not _told:
        _told = True
        words = f"d2v_ref: compiling kernels for {target}, some seconds each; they are kept in"
        _say(f"{words} {folder} (`d2v-ref warmup` does it ahead, D2V_QUIET=1 hides this)")
    if not sys.stderr.isatty():
        yield
    elif hasattr(sys.stderr, "rich_proxied_file"):  # somebody's progress bar, which shows lines above it
        _say(f"d2v_ref: compiling {name}")
        yield
    else:
        with _spinner(f"compiling {name}"):
            yield


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _spinner(words: str) -> Any:
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner

    console = Console(stderr=True)
    # What other threads print goes where they print it: rich would send standard output to this console.
    return Live(Spinner("dots", words), console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
