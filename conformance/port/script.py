"""The port as a command, for a port that can't be imported.

python -m conformance.port.script INPUTS.safetensors OUTPUTS.safetensors [MODULE]
"""

from __future__ import annotations

import sys

from safetensors.numpy import load_file, save_file

from conformance.port.vision import run

if __name__ == "__main__":
    inputs, outputs, *module = sys.argv[1:]
    save_file(run(load_file(inputs), "".join(module) or None), outputs)
