"""Reading files of named arrays: .safetensors, .npz, and .npy, whose array has the file's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from d2v_ref.errors import InputError

ARRAY_FILES = (".npy", ".npz", ".safetensors")


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file, by name.

    Raises:
        D2VError: the file can't be read, is damaged, or holds something else than numbers.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        from d2v_ref.checkpoints import read_safetensors

        return {name: tensor.numpy() for name, tensor in read_safetensors(path).items()}
    if path.suffix not in ARRAY_FILES:
        raise InputError("is no file of arrays", path=path, expected=" or ".join(ARRAY_FILES))
    return _read_numpy(path)


def _read_numpy(path: Path) -> dict[str, np.ndarray]:
    import tokenize
    import zipfile
    import zlib

    from numpy.lib.format import read_array

    # What zipfile and NumPy raise for an archive, a member or the header of an array that is damaged or untrue.
    damaged = (
        zipfile.BadZipFile,
        zlib.error,
        SyntaxError,
        tokenize.TokenError,
        RuntimeError,
        MemoryError,
        OverflowError,
    )
    try:
        if path.suffix == ".npy":
            with path.open("rb") as array:
                return {path.stem: read_array(array, allow_pickle=False)}
        with zipfile.ZipFile(path) as file:
            return {
                name.removesuffix(".npy"): read_array(file.open(name), allow_pickle=False) for name in file.namelist()
            }
    except (OSError, EOFError, ValueError, *damaged) as error:
        expected = "arrays of numbers, written by numpy.savez or numpy.save"
        raise InputError(f"can't be read as {path.suffix}: {error}", path=path, expected=expected) from None
