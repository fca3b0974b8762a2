"""Every error that a user of d2v_ref meets.  One tree, one line a message, one exit code a class."""

from __future__ import annotations

from pathlib import Path


class D2VError(Exception):
    """Root of the tree: what is wrong, where, what was found, what was expected and what to do about it.

    ``exit_code`` is what the command line returns: 1 a comparison that failed, 2 a wrong input or use, 3 something that
    this machine lacks (a package, a driver, a file that would have to be downloaded).
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        got: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        self.message, self.path, self.got, self.expected, self.hint = message, path, got, expected, hint
        super().__init__(message)

    def __str__(self) -> str:
        text = self.message if self.path is None else f"{self.path}: {self.message}"
        got = None if self.got is None else str(self.got)
        if got is not None and len(got) > 300:  # somebody's whole array
            got = f"{got[:300]} ..."
        details = [
            f"{word} {value}" for word, value in (("got", got), ("expected", self.expected)) if value is not None
        ]
        if details:
            text += f" ({'; '.join(details)})"
        if self.hint:
            text += f". {self.hint}"
        return " ".join(text.split())  # one line, whatever the parts hold


class CheckpointError(D2VError):
    """A weight file is missing, damaged, refused, or does not fit the model."""


class UnavailableError(CheckpointError):
    """A checkpoint is not on this machine and can't be downloaded now."""

    exit_code = 3


class MissingPackageError(D2VError):
    """An optional package, one of an extra, is not installed."""

    exit_code = 3


class ConfigError(D2VError):
    """A configuration that no model can be built from."""


class InputError(D2VError):
    """An argument, a text or a file that the model can't take."""


class BackendError(D2VError):
    """A backend that is unknown, can't run here, or was given a dtype or operation that it does not take."""

    exit_code = 3


class ConformanceError(D2VError):
    """Two computations that should agree do not."""

    exit_code = 1
