"""The published size, 124 million parameters: both formats, memory, and every module against transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import d2v_ref
from conformance import oracle
from conformance.compare import compare
from d2v_ref.synthesis import write_checkpoint

NAME = "Data2VecTextForMaskedLM"
RANDOM = np.random.default_rng(0)
IDS = np.concatenate((RANDOM.integers(4, 50265, (2, 17)), np.ones((2, 3), np.int64)), axis=1)
INPUTS = {"input_ids": IDS, "attention_mask": (IDS != 1).astype(np.int64)}
EXACT = 1e-10


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights as safetensors, and as the .bin that transformers 4 wrote, tied weights under both names."""
    root = tmp_path_factory.mktemp("base")
    found = {"safetensors": root / "safetensors", "bin": root / "bin"}
    write_checkpoint(d2v_ref.Data2VecTextForMaskedLM, "base", 7, found["safetensors"])
    theirs = transformers.Data2VecTextForMaskedLM.from_pretrained(found["safetensors"])
    theirs.config.save_pretrained(found["bin"])
    torch.save(theirs.state_dict(), found["bin"] / "pytorch_model.bin")
    return found


def test_both_formats_give_the_same_bits(folders: dict[str, Path]) -> None:
    outputs = {form: d2v_ref.Data2VecTextForMaskedLM.from_pretrained(path)(**INPUTS) for form, path in folders.items()}
    np.testing.assert_array_equal(outputs["safetensors"].logits, outputs["bin"].logits)


MEASURE = """
import re, sys
import numpy, scipy.special, d2v_ref, d2v_ref.text, d2v_ref.pretrained

def peak():  # of this process; getrusage would count its parent's as well
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) * 1024

before = peak()
model = d2v_ref.load(sys.argv[1])
total = sum(float(value.sum()) for value in model.state_dict().values())  # touches every weight
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_loading_needs_hardly_more_memory_than_the_weights(folders: dict[str, Path], form: str) -> None:
    """Peak memory of loading, with every weight read, is at most 1.2 times the checkpoint."""
    size = sum(file.stat().st_size for file in folders[form].glob("*model*"))
    command = [sys.executable, "-c", MEASURE, str(folders[form])]
    used = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert used > 0.9 * size, "the weights were not read: nothing was measured"
    assert used <= 1.2 * size


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_module_at_base_size(folders: dict[str, Path], dtype: str, tally: dict[str, Any]) -> None:
    torch.set_num_threads(2)
    theirs = transformers.Data2VecTextForMaskedLM.from_pretrained(folders["bin"], attn_implementation="eager")
    theirs = theirs.to(oracle.DTYPES[dtype]).eval()
    ours = d2v_ref.Data2VecTextForMaskedLM.from_pretrained(folders["bin"], dtype=dtype)
    want = oracle.everything(*oracle.run_recorded(theirs, INPUTS, dtype))
    got = oracle.everything(*ours.record(**INPUTS))
    bound: Any = EXACT if dtype == "float64" else oracle.bounds(ours, INPUTS, probes=2)
    compare(got, want, bound, tally[f"{NAME}, base size, {dtype}"])
    torch.set_num_threads(1)
