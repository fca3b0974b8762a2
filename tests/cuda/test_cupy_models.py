"""Models on the backend "cupy", computed on the processor: the checkpoints of the package, and every class."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cupy", reason="the CUDA packages are not installed: pip install 'd2v-ref[cuda-test]'")

import emulator
import test_backend_models as known
from d2v_backends.cupy import CupyOps
from d2v_backends.cupy.checking_numbers import GATES, distance
from formats import TF32
from model_cases import plain_case
from standin import StandIn
from test_goldens import BUNDLES, name_of

from d2v_ref import golden
from d2v_ref.auto import MODELS, model_class
from d2v_ref.golden.bounds import FORMATS

pytestmark = pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))
every_form = pytest.mark.parametrize("form", CupyOps.dtypes)


@functools.cache
def ops_of(form: str) -> CupyOps:
    return CupyOps(form, StandIn(form))


# ---- the checkpoints


@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
def test_a_checkpoint_computes_what_was_recorded(bundle: Path) -> None:
    report = golden.check(bundle, backend=ops_of("float32"), dtype="float32")
    assert report.passed, report.verdict()


@every_form
@pytest.mark.parametrize("bundle", BUNDLES, ids=name_of)
def test_a_checkpoint_in_every_format(bundle: Path, form: str) -> None:
    """As near to float64 as the format allows; a few logits may scatter twice as far as many states do."""
    found = golden.read_bundle(bundle)
    cls, name = model_class(found.manifest["model"]["class"]), found.manifest["model"]["name"]
    exact, got = (
        loaded(cls, name, **options)(**found.inputs, output_hidden_states=True)
        for options in ({"dtype": "float64"}, {"backend": ops_of(form)})
    )
    assert distance(got.hidden_states[-1], exact.hidden_states[-1]) < GATES[form]
    assert distance(got.logits, exact.logits) < 2 * GATES[form]


def loaded(cls: Any, name: str, **options: Any) -> Any:
    """Some heads were trained beside the one that config.json names, for other labels."""
    return cls.from_pretrained(name, **options)


# ---- every class


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_what_numpy_computes(name: str) -> None:
    """Every module's output and every tap, within the bounds that are derived for float32."""
    known.examine(name, ops_of("float32"), "float32", 2)


@pytest.mark.parametrize("form", ["tf32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_another_format(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "tf32", TF32)
    known.hold(*plain_case(name, 3, "float32"), ops_of(form), form)


@pytest.mark.parametrize(
    "name", ["Data2VecTextForMaskedLM", "Data2VecAudioForCTC", "Data2VecVisionForImageClassification"]
)
def test_weights_come_back_and_graphs_serve_every_shape(name: str) -> None:
    """Inputs of two shapes in turn, each plain, captured and replayed: always the bits of plain execution."""
    model, inputs = plain_case(name, 3, "float32")
    ops, plain = ops_of("float32"), CupyOps("float32", StandIn("float32"), graphs=False)
    known.same(model.with_ops(ops).state_dict(), model.state_dict())
    bound, other = model.with_ops(ops), model.with_ops(plain)
    first = {key: value[:1] for key, value in inputs.items()}
    for turn in range(4):
        for given in (inputs, first):
            given = {key: np.roll(value, turn, axis=-1) for key, value in given.items()}
            assert known.equal(bound(**given), other(**given))
    assert len([key for key in ops.graphs.graphs if key[0] in owners(bound)]) == 2
    known.same(bound.state_dict(), model.state_dict())


def owners(model: Any) -> set[int]:
    return {id(module) for _, module in model.named_modules()}


# ---- what is asked of every backend that is installed


@pytest.fixture
def on_the_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "ops_of", lambda backend, form: ops_of(form))


@pytest.mark.usefixtures("on_the_stand_in")
@pytest.mark.parametrize("form", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "cross"), [("absolute", True), ("relative_key_query", False)])
def test_a_cache_changes_no_logits(kind: str, cross: bool, form: str) -> None:
    known.test_a_cache_changes_no_logits(kind, cross, "cupy", form)


@pytest.mark.usefixtures("on_the_stand_in")
@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"use_cache": False}])
def test_generated_tokens_are_numpys(settings: dict[str, Any]) -> None:
    known.test_generated_tokens_are_numpys(settings, "cupy", "float32")


@pytest.mark.usefixtures("on_the_stand_in")
@pytest.mark.parametrize("form", ["float32", "float16"])
def test_weights_that_are_stored_and_tied(form: str) -> None:
    known.test_a_float16_checkpoint("Data2VecVisionForImageClassification", "cupy", form)
    known.test_weights_come_back_bit_for_bit("Data2VecVisionForSemanticSegmentation", "cupy", form)
    for tie in (True, False):
        known.test_tied_weights_stay_tied("Data2VecTextForMaskedLM", tie, "cupy", form)


@pytest.mark.usefixtures("on_the_stand_in")
def test_threads_share_a_model() -> None:
    known.test_threads_share_a_model("Data2VecVisionForImageClassification", "cupy", "float32")
