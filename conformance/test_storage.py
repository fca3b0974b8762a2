"""16-bit storage against torch: the same bits for every number, and errors of the same size in whole models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.test_models import CLASSES, inputs, samples
from d2v_ref import models
from d2v_ref.audit.storage import FORMATS, LARGEST, StorageOps, rounded
from d2v_ref.auto import model_class
from d2v_ref.golden.bounds import Exact

torch.set_num_threads(1)

TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16}
EACH = pytest.mark.parametrize("form", FORMATS)


def by_torch(x: np.ndarray, form: str) -> np.ndarray:
    return torch.from_numpy(np.ascontiguousarray(x)).to(TORCH[form]).float().numpy()


def hold(x: np.ndarray, form: str, tally: Any) -> None:
    """The same bits, the sign of a zero included; NaN where torch has NaN."""
    got, want = rounded(x, form), by_torch(x, form)
    assert got.dtype == np.float32
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view(np.uint32), want[~nan].view(np.uint32))
    tally[f"storage, {form}"].cases += 1
    tally[f"storage, {form}"].arrays += 1


@EACH
def test_every_number_of_the_format_and_what_lies_between(form: str, tally: dict[str, Any]) -> None:
    """All numbers, the halves between neighbours, which are ties, and the float32 numbers beside either."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(TORCH[form]).float().numpy()
    finite = np.sort(every[np.isfinite(every)])
    ties = ((finite[:-1].astype(np.float64) + finite[1:]) / 2).astype(np.float32)
    assert np.array_equal(ties.astype(np.float64) * 2, finite[:-1].astype(np.float64) + finite[1:])  # exact
    for x in (every, ties):
        with np.errstate(all="ignore"):
            beside = [np.nextafter(x, np.float32(to)) for to in (-np.inf, np.inf)]
        for numbers in (x, *beside):
            hold(numbers, form, tally)
    numbers = rounded(every, form)
    np.testing.assert_array_equal(numbers[~np.isnan(every)], every[~np.isnan(every)])


@EACH
def test_what_overflows(form: str, tally: dict[str, Any]) -> None:
    largest = np.float32(LARGEST[form])
    assert by_torch(np.array([largest]), form)[0] == largest
    unit = {"float16": 32.0, "bfloat16": 2.0**120}[form]  # between the largest and the one before
    edge = np.float32(largest + unit / 2)
    values = [largest, np.nextafter(edge, np.float32(0)), edge, np.inf, np.finfo(np.float32).max, np.nan]
    x = np.array([*values, *np.negative(values)], np.float32)
    hold(x, form, tally)
    assert np.isinf(rounded(x, form)[[2, 3, 4]]).all()


@settings(max_examples=300)
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=200), form=st.sampled_from(FORMATS))
def test_any_float32(bits: list[int], form: str, tally: dict[str, Any]) -> None:
    hold(np.array(bits, np.uint32).view(np.float32), form, tally)


@EACH
def test_arithmetic_between_operations(form: str) -> None:
    """Sums, differences and products of stored arrays are torch's, bit for bit."""
    random, ops = np.random.default_rng(0), StorageOps(form)
    x, y = (random.normal(size=(50, 40)).astype("f4") * scale for scale in (1, 300))
    a, b = ops.asarray(x), ops.asarray(y)
    s, t = (torch.from_numpy(value).to(TORCH[form]) for value in (x, y))
    pairs = [(a + b, s + t), (a - b, s - t), (a * b, s * t), (0.1 * a + b, 0.1 * s + t)]
    for got, want in pairs:
        np.testing.assert_array_equal(ops.to_numpy(got), want.float().numpy())


@EACH
@pytest.mark.parametrize("name", models.NAMES)
def test_a_model_loses_what_torch_loses(name: str, form: str, tally: dict[str, Any]) -> None:
    """Every layer's error is of the size of the error of transformers' model in that format: a half to twice it.

    Both round, and neither in the same places: the numbers are not the same, and their root mean squares are.
    """
    task = next(sample.task for sample in models.samples(name))
    given = inputs(name, samples(name, task)[0], "float32")
    ours = model_class(CLASSES[task]).from_pretrained(models.folder(name))
    exact, stored = (ours.with_ops(ops).record(**given)[1] for ops in (Exact(), StorageOps(form)))
    theirs = getattr(transformers, CLASSES[task]).from_pretrained(
        models.folder(name), dtype=TORCH[form], attn_implementation="eager"
    )
    seen = _layers(theirs.eval(), given, TORCH[form])
    assert len(seen) >= 4
    for path, value in seen.items():
        want = exact[path]
        got, torchs = (float(np.sqrt(np.square(x - want).mean())) for x in (stored[path], value))
        assert torchs / 2 <= got <= 2 * torchs, path
        tally[f"storage, {form} models"].cases += 1


def _layers(model: Any, given: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, np.ndarray]:
    """The outputs of the encoder's layers and of the embeddings before them."""
    seen: dict[str, np.ndarray] = {}

    def watch(path: str) -> Any:
        def see(module: Any, args: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            seen[path] = value.float().numpy()

        return see

    for path, module in model.named_modules():
        steps = path.split(".")
        if (len(steps) == 4 and steps[1] == "encoder" and steps[3].isdigit()) or path.endswith(".embeddings"):
            module.register_forward_hook(watch(path))
    tensors = {key: torch.from_numpy(x).to(dtype if x.dtype.kind == "f" else torch.int64) for key, x in given.items()}
    with torch.no_grad():
        model(**tensors)
    return seen
