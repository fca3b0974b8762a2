"""The port as an ONNX file, in which whatever it notes down is an output under the same name.

python -m conformance.port.export FILE.onnx
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor

from conformance.port.vision import Port, chosen


class Traced(torch.nn.Module):
    """The port as the exporter takes it."""

    def __init__(self, port: Port) -> None:
        super().__init__()
        self.port = port

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        self.port.seen = {}
        self.port("", pixel_values)
        return dict(self.port.seen)


def export(port: Port, file: Path) -> None:
    """Write the port to an ONNX file, for one picture."""
    pixels = torch.zeros(1, 3, port.image, port.image, dtype=port.dtype)
    traced = Traced(port).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own code
        names = list(traced(pixels))
        program = torch.onnx.export(
            traced, (pixels,), dynamo=True, verbose=False, input_names=["pixel_values"], output_names=names
        )
    program.save(file)


if __name__ == "__main__":
    export(chosen(), Path(sys.argv[1]))
