"""How long a forward pass takes here and in torch, measured in turns in one process.

python -m conformance.benchmark              # audio base (CTC) on 1, 5 and 15 s, vision base on 1 and 8 pictures
python -m conformance.benchmark --only "audio 15 s" --repeat 9
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

from d2v_ref import synth
from d2v_ref.auto import model_class

Run = Callable[[np.ndarray], np.ndarray]

# Name of a case -> class and the shape of its input; the published base size.
CASES: dict[str, tuple[str, tuple[int, ...]]] = {
    "audio 1 s": ("Data2VecAudioForCTC", (1, 16000)),
    "audio 5 s": ("Data2VecAudioForCTC", (1, 5 * 16000)),
    "audio 15 s": ("Data2VecAudioForCTC", (1, 15 * 16000)),
    "vision 1": ("Data2VecVisionForImageClassification", (1, 3, 224, 224)),
    "vision 8": ("Data2VecVisionForImageClassification", (8, 3, 224, 224)),
}


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def base_pair(name: str) -> tuple[Run, Run]:
    """Our model of a class at base size in NumPy and transformers' in torch, with the same weights."""
    cls = model_class(name)
    config = cls.config_class(**cls.config_class.sizes["base"])
    shapes = {key: value.shape for key, _, _, value in cls(config).named_parameters()}
    weights = synth.weights(shapes, 0)
    ours: Any = cls(config, weights)
    theirs_config = getattr(transformers, cls.config_class.__name__)(**config.to_dict())
    theirs = getattr(transformers, name)(theirs_config).eval()
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})

    def run_torch(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return theirs(torch.from_numpy(x)).logits.numpy()

    return lambda x: ours(x).logits, run_torch


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
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    print(
        f"{processor()}, {torch.get_num_threads()} threads; base size, float32; medians of {options.repeat}, in turns"
    )
    print(f"NumPy {np.__version__}, torch {torch.__version__}, transformers {transformers.__version__}")
    pairs: dict[str, tuple[Run, Run]] = {}
    for case in options.only:
        name, shape = CASES[case]
        pairs[name] = pairs.get(name) or base_pair(name)
        ours, theirs = pairs[name]
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        error = float(np.abs(ours(x) - theirs(x)).max())
        mine, its = in_turns([partial(ours, x), partial(theirs, x)], options.repeat)
        print(
            f"{case:10}  numpy {mine:.3f} s  torch {its:.3f} s  ratio {mine / its:.2f}  outputs differ by {error:.0e}"
        )


if __name__ == "__main__":
    main()
