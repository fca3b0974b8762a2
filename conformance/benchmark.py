"""How long a forward pass takes here and in torch, measured in turns in one process.

python -m conformance.benchmark                      # audio base with the CTC head, 1, 5 and 15 s
python -m conformance.benchmark --seconds 15 --repeat 9
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import d2v_ref
from d2v_ref import synth


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def audio_pair() -> tuple[Callable[[np.ndarray], Any], Callable[[np.ndarray], Any]]:
    """Our base CTC model in NumPy and transformers' in torch, with the same weights."""
    config = d2v_ref.Data2VecAudioConfig()
    declared = d2v_ref.Data2VecAudioForCTC(config)
    weights = synth.weights({name: value.shape for name, _, _, value in declared.named_parameters()}, 0)
    ours = d2v_ref.Data2VecAudioForCTC(config, weights)
    theirs = transformers.Data2VecAudioForCTC(transformers.Data2VecAudioConfig()).eval()
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})

    def run_torch(samples: np.ndarray) -> Any:
        with torch.inference_mode():
            return theirs(torch.from_numpy(samples)).logits.numpy()

    return lambda samples: ours(samples).logits, run_torch


def in_turns(runs: Sequence[Callable[[], Any]], repeat: int) -> list[float]:
    """The median time of each, in seconds; one run of each warms up."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(repeat + 1):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if turn:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 5.0, 15.0], help="of audio")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    print(f"{processor()}, {torch.get_num_threads()} threads; median of {options.repeat} runs, in turns")
    print(f"NumPy {np.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, float32")
    ours, theirs = audio_pair()
    for seconds in options.seconds:
        samples = np.random.default_rng(0).normal(size=(1, int(16000 * seconds))).astype(np.float32)
        error = float(np.abs(ours(samples) - theirs(samples)).max())
        mine, torchs = in_turns([partial(ours, samples), partial(theirs, samples)], options.repeat)
        print(
            f"audio base CTC, {seconds:g} s: numpy {mine:.3f} s, torch {torchs:.3f} s, ratio {mine / torchs:.2f}"
            f" (outputs differ by {error:.1e})"
        )


if __name__ == "__main__":
    main()
