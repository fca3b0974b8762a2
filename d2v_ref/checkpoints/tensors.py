"""One tensor of a weight file: a view of the mapped file until somebody asks for numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Tensor:
    """A tensor as it lies in its file.

    ``data`` is a read-only view of the memory-mapped file, so that opening a checkpoint reads nothing but its headers.
    ``dtype`` is NumPy's name of the type, or ``"bfloat16"``, which NumPy lacks: there ``data`` holds the 16 bits as
    uint16.
    """

    data: np.ndarray
    dtype: str
    file: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def numpy(self) -> np.ndarray:
        """The values in a type that NumPy has.

        No copy, except of bfloat16: its bits are the upper half of a float32's.
        """
        if self.dtype != "bfloat16":
            return self.data
        wide = self.data.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
