"""The exported port in ONNX Runtime: D2V_PORT_ONNX names the file."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np


@cache
def session(file: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a tiny model: threads only cost
    options.log_severity_level = 3  # what it could not optimise is no error
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def run(inputs: dict[str, np.ndarray], module: str | None = None) -> dict[str, np.ndarray]:
    """Every output of the file, by name.  A session runs the whole file: of one module there is nothing."""
    if module is not None:
        return {}
    opened = session(os.environ["D2V_PORT_ONNX"])
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(names, inputs), strict=True))
