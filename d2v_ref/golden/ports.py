"""Ports: what another implementation computed, or computes when it is asked."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref.arrays import ARRAY_FILES, read_arrays
from d2v_ref.checkpoints import write_safetensors
from d2v_ref.errors import BackendError, InputError

Arrays = dict[str, np.ndarray]
Runner = Callable[[Arrays, str | None], Mapping[str, Any]]

KINDS = (
    "a file of arrays (.safetensors, .npz, .npy), a folder of them, package.module:function, "
    "or a command with {inputs} and {outputs}"
)


class Port:
    """Another implementation: the arrays of a run by name, and a module alone if it can run one.

    Args:
        source: what messages call it.
        run: computes arrays from inputs: of the whole model, or, given a module's path, of this module alone.
        alone: whether it can run a module alone.
    """

    def __init__(self, source: str, run: Runner, alone: bool) -> None:
        self.source, self._run, self.alone = source, run, alone

    def arrays(self, inputs: Arrays, module: str | None = None) -> tuple[Arrays, str]:
        """What it computes, bfloat16 as float32, and the smallest floating-point format among the arrays."""
        given = self._run(inputs, module)
        if not isinstance(given, Mapping):
            expected = "a mapping of names to arrays"
            raise InputError("the port returned something else", path=self.source, got=type(given).__name__,
                             expected=expected)  # fmt: skip
        arrays, formats = {}, {"float32"}
        for name, value in given.items():
            array = _array(value, name, self.source)
            formats.add(array.dtype.name)
            arrays[str(name)] = array.astype(np.float32) if array.dtype.name == "bfloat16" else array
        return arrays, next(kind for kind in ("bfloat16", "float16", "float32") if kind in formats)


def open_port(spec: str | Path | Callable[..., Any]) -> Port:
    """A port by what stands for it: see ``KINDS``.

    A file or a folder holds arrays under their names.  A function is called with the inputs' arrays by name, and with
    ``module=path`` as well if it is to run a module alone; it returns arrays by name.  In a command ``{inputs}`` is the
    safetensors file of the inputs, ``{outputs}`` an empty folder for files of arrays, and ``{module}`` the path of the
    module to run alone, or nothing.
    """
    if callable(spec):
        return _function(spec, getattr(spec, "__name__", "the function"))
    text = str(spec)
    if os.path.exists(text):
        return Port(text, lambda inputs, module: _read(Path(text)), alone=False)
    if "{inputs}" in text or "{outputs}" in text:
        return _command(text)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text):
        return _function(_import(text), text)
    raise InputError("is no port", path=text, expected=KINDS)


def _array(value: Any, name: object, source: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever the library of the port raises: torch's is a TypeError for bfloat16
        hint = "Return NumPy arrays, bfloat16 as float32, and say --dtype bfloat16"
        raise InputError(f"{name} is no array", path=source, got=error, hint=hint) from None
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise InputError(f"{name} holds no numbers", path=source, got=array.dtype)
    return array


def _read(path: Path) -> Mapping[str, Any]:
    """A file's arrays; of a folder those of all files in it."""
    if not path.is_dir():
        return read_arrays(path)
    found: dict[str, Any] = {}
    for file in sorted(path.iterdir()):
        for name, array in read_arrays(file).items() if file.suffix in ARRAY_FILES else ():
            if name in found:
                raise InputError(f"{name} is in two files", path=file, hint="Leave one of them in the folder")
            found[name] = array
    if not found:
        raise InputError("the folder holds no arrays", path=path, expected=f"files in {', '.join(ARRAY_FILES)}")
    return found


def _import(text: str) -> Callable[..., Any]:
    module, _, name = text.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the module does when it is imported
        expected = "package.module:function, importable from here"
        raise InputError("can't be imported", path=text, got=_words(error), expected=expected) from None
    if not callable(found):
        raise InputError("is no function", path=text, got=type(found).__name__)
    function: Callable[..., Any] = found
    return function


def _function(call: Callable[..., Any], source: str) -> Port:
    def run(inputs: Arrays, module: str | None) -> Mapping[str, Any]:
        try:
            found: Mapping[str, Any] = call(inputs) if module is None else call(inputs, module=module)
        except Exception as error:
            raise BackendError("the port failed", path=source, got=_words(error)) from error
        return found

    return Port(source, run, alone=True)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _command(text: str) -> Port:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"is no command: {error}", path=text, expected=KINDS) from None

    def run(inputs: Arrays, module: str | None) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            given, outputs = Path(folder, "inputs.safetensors"), Path(folder, "outputs")
            outputs.mkdir()
            write_safetensors(given, inputs, None)
            places = {"{inputs}": str(given), "{outputs}": str(outputs), "{module}": module or ""}
            _call([_fill(word, places) for word in words], text)
            if not any(outputs.iterdir()):
                hint = "It has to write files of arrays into the folder that {outputs} stands for"
                raise BackendError("the port's command wrote nothing", path=text, hint=hint)
            return {name: np.array(array) for name, array in _read(outputs).items()}  # copies, as the folder goes

    return Port(text, run, alone="{module}" in text)


def _fill(word: str, places: dict[str, str]) -> str:
    for place, value in places.items():
        word = word.replace(place, value)
    return word


def _call(words: list[str], text: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, check=False)  # noqa: S603 - the user's own command
    except OSError as error:
        raise BackendError(f"the port's command can't be run: {error.strerror}", path=text, got=words[0]) from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        got = f"exit code {done.returncode}" + (f", {lines[-1]}" if lines else "")
        raise BackendError("the port's command failed", path=text, got=got)
