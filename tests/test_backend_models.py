"""Every model class on every backend that is installed, against NumPy's definitions in float64.

In float64 numbers may differ by 1e-10 of an array's largest; in a smaller format by the tolerances of
``golden.bounds``.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import backend_faults as planted
import numpy as np
import pytest
import test_bounds as known
import text_models
from backends_here import BACKENDS, INSTALLED, RIGHT, ops_of
from hypothesis import Phase, given, settings
from model_cases import cases, everything, plain_case, wide_case
from operands import in_format
from threadpoolctl import threadpool_limits

from d2v_ref.auto import MODELS, load, model_class
from d2v_ref.golden import tolerances
from d2v_ref.golden.bounds import FORMATS, largest
from d2v_ref.ops import Ops

EXACT = Ops("float64")
CAUSAL = "Data2VecTextForCausalLM"
WIDE = (CAUSAL, "Data2VecAudioForCTC", "Data2VecVisionForImageClassification")
SLOW = ("Data2VecVisionForSemanticSegmentation", "TFData2VecVisionForSemanticSegmentation")
every_backend = pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
every_installed = pytest.mark.parametrize(("backend", "dtype"), INSTALLED)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """For NumPy's products: threads of its own, which spin when they have nothing to do, hold up those of a backend."""
    with threadpool_limits(1, "blas"):
        yield


def held(dtype: str) -> str:
    """The dtype of NumPy that a backend's weights come in."""
    return "float64" if dtype == "float64" else "float32"


def hold(model: Any, inputs: dict[str, Any], ops: Ops, dtype: str) -> None:
    exact = everything(model, EXACT, inputs)
    if dtype == "float64":
        allowed = {name: 1e-10 * max(1.0, largest(value)) for name, value in exact.items()}
    else:

        def run(probe: Ops, tell: Any) -> None:
            for name, value in everything(model, probe, inputs).items():
                tell(name, value)

        allowed = tolerances(run, exact, FORMATS[dtype])
    got = everything(model, ops, inputs)
    assert list(got) == list(exact)
    first = known.first_outside(got, exact, allowed)
    assert first is None, f"{first} is off by {_gap(got[first], exact[first])}, more than {allowed[first]:.3g}"


def _gap(got: np.ndarray, want: np.ndarray) -> str:
    with np.errstate(invalid="ignore"):
        return f"{np.abs(got - want).max():.3g}"


def examine(name: str, ops: Ops, dtype: str, examples: int) -> None:
    @settings(max_examples=examples, phases=(Phase.explicit, Phase.generate))
    @given(case=cases(name, held(dtype)))
    def run(case: tuple[Any, dict[str, Any]]) -> None:
        hold(*case, ops, dtype)

    run()


@every_backend
@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_what_numpy_computes(name: str, backend: str, dtype: str) -> None:
    few = (backend, dtype) in RIGHT or name in SLOW
    examine(name, ops_of(backend, dtype), dtype, 3 if few else 6)


@every_backend
@pytest.mark.parametrize("name", WIDE)
def test_a_wide_model_computes_what_numpy_computes(name: str, backend: str, dtype: str) -> None:
    hold(*wide_case(name, held(dtype)), ops_of(backend, dtype), dtype)


# ---- weights


@every_installed
@pytest.mark.parametrize("name", MODELS)
def test_weights_come_back_bit_for_bit(name: str, backend: str, dtype: str) -> None:
    """After the model has computed, as before; and from one backend to another and back."""
    model, inputs = plain_case(name, 3, held(dtype))
    given_, ops = model.state_dict(), ops_of(backend, dtype)
    bound = model.with_ops(ops)
    returned(bound.state_dict(), given_, dtype)
    first = bound(**inputs)
    returned(bound.state_dict(), given_, dtype)
    back = bound.with_ops(model.ops).with_ops(ops)
    same(back.state_dict(), bound.state_dict())
    assert equal(back(**inputs), first)


def same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert list(got) == list(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype
        assert got[name].tobytes() == value.tobytes(), name


def returned(got: dict[str, np.ndarray], given_: dict[str, np.ndarray], dtype: str) -> None:
    """The weights that were given; in 16 bits those that a backend keeps may be rounded to them."""
    near = {name: in_format(value, dtype).astype(value.dtype) for name, value in given_.items()}
    stored = FORMATS[dtype].stored
    same(got, {name: near[name] if stored and (got[name] == near[name]).all() else given_[name] for name in given_})


def equal(got: Any, want: Any) -> bool:
    """The same arrays, bit for bit."""
    return all(
        np.array_equal(np.asarray(got[name]), np.asarray(want[name]), equal_nan=True)
        for name in want
        if isinstance(want[name], np.ndarray | np.generic)
    )


@every_installed
@pytest.mark.parametrize("name", WIDE)
def test_a_model_is_saved_and_loaded(name: str, backend: str, dtype: str, tmp_path: Path) -> None:
    model, inputs = plain_case(name, 4, held(dtype))
    bound = model.with_ops(ops_of(backend, dtype))
    bound.save_pretrained(tmp_path / "own")
    model.save_pretrained(tmp_path / "numpy")
    for folder in ("own", "numpy"):
        loaded = load(tmp_path / folder, backend=backend, dtype=dtype)
        same(loaded.state_dict(), bound.state_dict())
        assert equal(loaded(**inputs), bound(**inputs))
    same(load(tmp_path / "own", dtype=held(dtype)).state_dict(), bound.state_dict())


@every_installed
@pytest.mark.parametrize("name", WIDE)
def test_a_float16_checkpoint(name: str, backend: str, dtype: str) -> None:
    """Its numbers are those of the wider dtype that it is bound in."""
    model, inputs = plain_case(name, 5, held(dtype))
    narrow = {key: value.astype(np.float16) for key, value in model.state_dict().items()}
    wide = {key: value.astype(held(dtype)) for key, value in narrow.items()}
    ops, cls = ops_of(backend, dtype), model_class(name)
    bound = cls(model.config, narrow, backend=ops)
    returned(bound.state_dict(), wide, dtype)
    assert equal(bound(**inputs), cls(model.config, wide, backend=ops)(**inputs))


@every_installed
@pytest.mark.parametrize("name", text_models.LANGUAGE_MODELS)
@pytest.mark.parametrize("tie", [True, False])
def test_tied_weights_stay_tied(name: str, tie: bool, backend: str, dtype: str) -> None:
    model = text_models.build(name, dtype=held(dtype), tie_word_embeddings=tie)
    bound = model.with_ops(ops_of(backend, dtype))
    weights = bound.state_dict()
    for target, source in model.tied_weights.items():
        assert np.array_equal(weights[target], weights[source]) == tie
    assert bound.num_parameters() == model.num_parameters()


# ---- one token at a time


@every_installed
@pytest.mark.parametrize("kind", ["absolute", "relative_key_query"])
@pytest.mark.parametrize("cross", [False, True])
def test_a_cache_changes_no_logits(kind: str, cross: bool, backend: str, dtype: str) -> None:
    """After a prompt, one token at a time and several."""
    changes: dict[str, Any] = {"position_embedding_type": kind, "add_cross_attention": cross}
    model = text_models.trained(text_models.build(CAUSAL, dtype=held(dtype), **changes), 1.0)
    ids = text_models.token_ids(CAUSAL, 7, 3, 9)
    given_: dict[str, Any] = {}
    if cross:
        given_["encoder_hidden_states"] = np.random.default_rng(0).normal(size=(3, 6, model.config.hidden_size))

    def stepwise(ops: Ops) -> np.ndarray:
        bound, cache, parts = model.with_ops(ops), None, []
        for start, stop in ((0, 5), (5, 6), (6, 8), (8, 9)):
            out = bound(ids[:, start:stop], past_key_values=cache, use_cache=True, **given_)
            cache = out.past_key_values
            parts.append(out.logits)
        return np.concatenate(parts, axis=1)

    def run(ops: Ops, tell: Any) -> None:
        tell("logits", stepwise(ops))

    exact = {"logits": stepwise(EXACT)}
    np.testing.assert_allclose(exact["logits"], model.with_ops(EXACT)(ids, **given_).logits, atol=1e-10)
    allowed = {"logits": 1e-10} if dtype == "float64" else tolerances(run, exact, FORMATS[dtype])
    assert known.first_outside({"logits": stepwise(ops_of(backend, dtype))}, exact, allowed) is None


@every_installed
@pytest.mark.parametrize("settings_", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 5}, {"use_cache": False}])
def test_generated_tokens_are_numpys(settings_: dict[str, Any], backend: str, dtype: str) -> None:
    if FORMATS[dtype].stored:
        pytest.skip(f"in {dtype} another token may be the likeliest")
    model = text_models.build(CAUSAL, dtype=held(dtype), tie_word_embeddings=False)
    model = text_models.trained(model, 1.0, 12)
    prompt = np.array([[1, 5, 7, 9], [4, 3, 8, 11]])
    want = model.with_ops(EXACT).generate(prompt, max_new_tokens=8, eos_token_id=[], **settings_)
    got = model.with_ops(ops_of(backend, dtype)).generate(prompt, max_new_tokens=8, eos_token_id=[], **settings_)
    np.testing.assert_array_equal(got, want)


# ---- threads, and faults


@every_installed
@pytest.mark.parametrize("name", WIDE)
def test_threads_share_a_model(name: str, backend: str, dtype: str) -> None:
    model, inputs = wide_case(name, held(dtype))
    bound = model.with_ops(ops_of(backend, dtype))
    want = bound(**inputs)
    with ThreadPoolExecutor(3) as pool:
        assert all(equal(got, want) for got in pool.map(lambda _: bound(**inputs), range(6)))


FAULTS: list[tuple[str, type[Ops]]] = [
    ("Data2VecTextForMaskedLM", known.TanhGelu),
    ("Data2VecVisionModel", known.LooseEps),
    ("Data2VecTextForTokenClassification", planted.RowNotWritten),
    ("Data2VecAudioForCTC", planted.StaleScratch),
    ("Data2VecAudioModel", known.NoGroups),
    ("Data2VecVisionForImageClassification", planted.BiasOfTheFirst),
    ("Data2VecTextModel", planted.HiddenRowsZero),
    (CAUSAL, planted.AddedMask),
]


@pytest.mark.parametrize(("name", "fault"), FAULTS)
@pytest.mark.parametrize("dtype", Ops.dtypes)
def test_a_fault_is_found(name: str, fault: type[Ops], dtype: str) -> None:
    with pytest.raises(AssertionError, match=r" is off by "):
        examine(name, fault(dtype), dtype, 12)
