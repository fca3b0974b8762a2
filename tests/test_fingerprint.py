"""Fingerprints: what is within the tolerance passes, what a sample or a moment shows is found, damage is refused."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from test_cli import d2v, refused
from test_golden import (
    IDS,
    MASK,
    MASKED,
    CausalOffByOne,
    FusionWithoutResidual,
    HalfPrecisionProducts,
    NoBias,
    NoMask,
    TanhGelu,
    WrongEps,
    edit,
    refused_or_reported,
)

from d2v_ref import golden
from d2v_ref.auto import load, model_class
from d2v_ref.checkpoints import read_safetensors, write_safetensors
from d2v_ref.errors import D2VError
from d2v_ref.golden.bundle import describe
from d2v_ref.golden.forms import FINGERPRINT, FORMS, FULL, kept, moments, positions
from d2v_ref.ops import Ops
from d2v_ref.synthesis import write_checkpoint

UNIT = 2.0**-53


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fingerprint") / "model"
    write_checkpoint(model_class(MASKED), "tiny", 4, folder)
    return folder


@pytest.fixture(scope="module")
def recorded(checkpoint: Path) -> dict[str, Path]:
    """One run in both forms."""
    arrays = {"input_ids": IDS, "attention_mask": MASK}
    found = {form: checkpoint.parent / form for form in FORMS}
    for form, path in found.items():
        golden.record(
            load(checkpoint), arrays, path, name=checkpoint, folder=checkpoint, fingerprint=form == FINGERPRINT
        )
    return found


@pytest.fixture
def bundle(recorded: dict[str, Path], tmp_path: Path) -> Path:
    """A fingerprint to damage."""
    return shutil.copytree(recorded[FINGERPRINT], tmp_path / "bundle")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def held(want: np.ndarray, got: np.ndarray, tolerance: float, form: str = FINGERPRINT) -> golden.Row:
    """The row of one array in a bundle of one."""
    entry = {**describe("x", want), "module": "Linear", "kind": "output", "moments": moments(want)}
    entry["tolerances"] = {"float32": tolerance}
    manifest = {"form": form, "dtype": "float32", "taps": [json.loads(json.dumps(entry))]}
    return golden.compare(golden.Bundle(Path(), manifest, {}, {"x": kept(want, form)}), {"x": got}).rows[0]


# ---- samples and moments --------------------------------------------------------------------------------------------


@given(st.integers(0, 2**40))
def test_samples_are_the_first_and_others_spread_to_the_last(size: int) -> None:
    at = [int(i) for i in positions(size)]
    assert len(at) == min(size, 32)
    assert at[:8] == list(range(min(size, 8)))
    assert at == sorted(set(at))
    if size:
        assert at[-1] == size - 1
    if size > 32:
        gaps = {b - a for a, b in itertools.pairwise(at[8:])}
        assert gaps <= {(size - 9) // 23, -(-(size - 9) // 23)}


def test_samples_of_a_hundred() -> None:
    """Written out for who reads fingerprints in another language."""
    spread = [8, 11, 15, 19, 23, 27, 31, 35, 39, 43, 47, 51, 55, 59, 63, 67, 71, 75, 79, 83, 87, 91, 95, 99]
    assert positions(100).tolist() == [*range(8), *spread]


FLOATS = st.sampled_from([np.float32, np.float64])
SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=12)


@st.composite
def arrays(draw: st.DrawFn, **elements: Any) -> np.ndarray:
    """Small ones of any numbers, and some of thousands of random ones."""
    dtype = draw(FLOATS)
    if draw(st.booleans()):
        return draw(npst.arrays(dtype, SHAPES, elements=elements or None))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape, scale = (draw(st.integers(1, 5)), draw(st.integers(1, 900))), draw(st.sampled_from([1e-30, 1.0, 1e30]))
    return (scale * (random.normal(size=shape) + draw(st.sampled_from([0, 1, 1000])))).astype(dtype)


@settings(max_examples=200)
@given(arrays())
@example(np.full(40, np.finfo(np.float64).max))
@example(np.full(40, 5e-324))
def test_moments_are_those_of_exact_arithmetic(x: np.ndarray) -> None:
    """Within the 64 units of rounding that the comparison allows for: no overflow, and no square that vanishes."""
    found = moments(x)
    finite = [Fraction(float(value)) for value in x.reshape(-1) if np.isfinite(value)]
    assert golden.counts(found) == [np.isnan(x).sum(), (x == np.inf).sum(), (x == -np.inf).sum()]
    if not finite:
        assert [found[name] for name in ("mean", "rms", "min", "max")] == [None] * 4
        return
    assert (found["min"], found["max"]) == (min(finite), max(finite))
    exact_square, rms = sum((value * value for value in finite), Fraction()) / len(finite), Fraction(found["rms"])
    slack = Fraction(64 * UNIT) * rms + Fraction(2.0**-1074)
    assert abs(Fraction(found["mean"]) - sum(finite, Fraction()) / len(finite)) <= slack
    assert (rms - slack) * abs(rms - slack) <= exact_square <= (rms + slack) ** 2


# ---- comparing ------------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(data=st.data(), want=arrays(), form=st.sampled_from(FORMS))
def test_what_is_within_the_tolerance_passes(data: st.DataObject, want: np.ndarray, form: str) -> None:
    """Off by nothing, by noise, or all by as much as is allowed and in one direction; in the same dtype or a wider."""
    finite, random = np.isfinite(want), np.random.default_rng(data.draw(st.integers(0, 2**32)))
    size = np.where(finite, np.abs(want.astype(np.float64)), 0).max(initial=0.0) * data.draw(
        st.sampled_from([0.0, 1e-16, 1e-7, 1.0])
    )
    noise = random.uniform(-1, 1, want.shape) if data.draw(st.booleans()) else np.ones(want.shape)
    with np.errstate(over="ignore"):
        got = np.where(finite, want + (size * noise), want)
        got = got.astype(np.float64 if data.draw(st.booleans()) else want.dtype)
    assume(np.array_equal(np.isfinite(got), finite))
    with np.errstate(over="ignore", invalid="ignore"):
        tolerance = np.where(finite, np.abs(got - want.astype(np.float64)), 0).max(initial=0.0)
    assume(np.isfinite(tolerance))
    row = held(want, got, float(tolerance), form)
    assert row.status == golden.PASSED, row
    assert row.error == tolerance or form == FINGERPRINT


@given(data=st.data(), want=arrays(), form=st.sampled_from(FORMS), tolerance=st.sampled_from([0.0, 1e-7, 1.0]))
def test_a_sample_beyond_the_tolerance_fails(
    data: st.DataObject, want: np.ndarray, form: str, tolerance: float
) -> None:
    at = np.arange(want.size) if form == FULL else positions(want.size)
    assume(at.size)
    place = np.unravel_index(int(data.draw(st.sampled_from(at.tolist()))), want.shape)
    got = want.astype(np.float64)
    got[place] = data.draw(st.floats(width=64))
    with np.errstate(over="ignore", invalid="ignore"):
        assume(not abs(got[place] - want[place]) <= tolerance)
    assume(not np.array_equal(got[place], want[place], equal_nan=True))
    row = held(want, got, tolerance, form)
    where = tuple(int(i) for i in place)
    assert (row.status, row.where) == ("failed", where)
    assert row.reason.startswith(f"sample at {where}: ")
    json.dumps(row.error, allow_nan=False)


@given(data=st.data(), want=arrays(), form=st.sampled_from(FORMS), value=st.sampled_from([np.nan, np.inf, -np.inf, 0]))
def test_a_number_that_is_not_finite_is_found_anywhere(
    data: st.DataObject, want: np.ndarray, form: str, value: float
) -> None:
    """However wide the tolerance, sampled or not; and one that is finite where none was recorded."""
    assume(want.size)
    place = np.unravel_index(data.draw(st.integers(0, want.size - 1)), want.shape)
    assume(not (np.isfinite(want[place]) and np.isfinite(value)))
    assume(not np.array_equal(want[place], np.float64(value), equal_nan=True))
    got = want.copy()
    got[place] = value
    row = held(want, got, 1e300, form)
    assert row.status == "failed"
    assert {"nan", "inf", "-inf"} & set(row.reason.replace(":", ";").split("; "))


@given(data=st.data(), want=arrays(min_value=-100, max_value=100), tolerance=st.floats(1e-6, 1))
def test_an_element_between_the_samples_is_found_if_it_moves_a_moment(
    data: st.DataObject, want: np.ndarray, tolerance: float
) -> None:
    between = np.setdiff1d(np.arange(want.size), positions(want.size))
    assume(between.size)
    got = want.astype(np.float64).reshape(-1)
    beyond = 2 * (tolerance + 1e-12 * np.abs(got).max())
    i = data.draw(st.sampled_from(between.tolist()))
    for name, value in (("max", got.max() + beyond), ("min", got.min() - beyond)):
        wrong = got.copy()
        wrong[i] = value
        row = held(want, wrong.reshape(want.shape), tolerance)
        assert (row.status, row.where) == ("failed", None)
        assert name in row.reason
    wrong = got.copy()
    wrong[between] += beyond * want.size / between.size  # the mean moves by as much as one sample might not
    row = held(want, wrong.reshape(want.shape), tolerance)
    assert row.status == "failed"
    assert row.reason.startswith("mean: ")
    assert row.error == pytest.approx(beyond, rel=1e-3)


def test_the_moments_see_what_is_hardly_more_than_rounding() -> None:
    want = np.random.default_rng(0).uniform(1, 2, 1000)
    got, between = want.copy(), np.setdiff1d(np.arange(1000), positions(1000))
    got[between] *= 1 + 2.0**-44
    assert held(want, got, 2.0**-46).reason.startswith("mean: ")


def test_every_moment_that_differs_is_named() -> None:
    want = np.linspace(-1, 1, 1001)
    got = want.copy()
    got[500] = 3.0
    row = held(want, got, 1e-6)
    found, right = moments(got), moments(want)
    assert row.reason == f"mean: {found['mean']}, recorded {right['mean']}; rms; max"
    assert row.error == found["mean"] - right["mean"]
    got[500] = np.nan
    row = held(want, got, 1e-6)
    assert (row.reason, row.error, row.where) == ("nan: 1, recorded 0", None, None)
    got[0] = -1.5
    assert held(want, got, 1e-6).reason == "sample at (0,): -1.5, recorded -1.0; nan"


# ---- bundles --------------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_the_full_bundle_in_small(recorded: dict[str, Path]) -> None:
    full, small = (golden.read_bundle(recorded[form]) for form in (FULL, FINGERPRINT))
    assert small.manifest["taps"] == full.manifest["taps"]  # of the whole arrays
    assert all(np.array_equal(small.inputs[name], value) for name, value in full.inputs.items())
    for name, value in full.taps.items():
        assert small.taps[name].tobytes() == value.reshape(-1)[positions(value.size)].tobytes()
    for made in (full, small):
        assert golden.compare(made, full.taps).passed
        assert golden.check(made.folder).passed
        assert golden.check(made.folder, dtype="float64").passed
    assert sum(path.stat().st_size for path in small.folder.iterdir()) < 60_000


@pytest.mark.parametrize(
    "fault", [TanhGelu, WrongEps, NoMask, CausalOffByOne, NoBias, HalfPrecisionProducts, FusionWithoutResidual]
)
def test_a_fault_is_named_as_by_the_full_bundle(fault: type[Ops], recorded: dict[str, Path]) -> None:
    full, small = (golden.check(recorded[form], backend=fault()) for form in (FULL, FINGERPRINT))
    assert full.first is not None
    assert small.first is not None
    assert small.first.name == full.first.name


def test_the_manifest_has_a_line_for_every_entry(recorded: dict[str, Path]) -> None:
    lines = (recorded[FINGERPRINT] / "manifest.json").read_text().splitlines()
    taps = [json.loads(line.removesuffix(",")) for line in lines[lines.index('"taps": [') + 1 : -2]]
    assert taps == golden.read_bundle(recorded[FINGERPRINT]).manifest["taps"]


def test_on_the_command_line(checkpoint: Path) -> None:
    result = d2v("golden", "record", checkpoint, "A text.", "-o", "b", "--fingerprint", "--dtype", "float64")
    size = sum(path.stat().st_size for path in Path("b").iterdir())
    assert (result.code, result.out) == (0, f"b: 52 arrays of {MASKED}, {size / 1e3:.0f} kB\n")
    assert size < 60_000
    assert d2v("golden", "check", "b").out == "53 of 53 arrays passed\n"
    found = json.loads(d2v("golden", "check", "b", "--json").out)
    assert (found["passed"], found["first"]) == (True, None)


def test_a_moment_that_differs_on_the_command_line(bundle: Path) -> None:
    """As if an element between the samples had been another."""
    edit(bundle, lambda manifest: entry(manifest, "data2vec_text.embeddings")["moments"].update(max=9.0))
    result = d2v("golden", "check", bundle)
    assert (result.code, result.err) == (1, "")
    row, *rest = result.out.splitlines()
    assert re.fullmatch(r"failed    data2vec_text.embeddings  error \S+, allowed \S+  max: 2.64\d*, recorded 9.0", row)
    assert rest[0] == "52 of 53 arrays passed"
    assert rest[1] == "the first that differs: data2vec_text.embeddings (Data2VecTextEmbeddings)"
    assert rest[-1] == "so look at: data2vec_text.embeddings"


def entry(manifest: dict[str, Any], name: str) -> Any:
    return next(tap for tap in manifest["taps"] if tap["name"] == name)


def _samples(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def rewrite(bundle: Path) -> None:
        path = bundle / "taps.safetensors"
        found = {name: tensor.numpy().copy() for name, tensor in read_safetensors(path).items()}
        change(found)
        write_safetensors(path, found, None)

    return rewrite


def _tap(**changes: Any) -> Callable[[Path], None]:
    return lambda bundle: edit(bundle, lambda manifest: manifest["taps"][3].update(changes))


def _moments(**changes: Any) -> Callable[[Path], None]:
    return lambda bundle: edit(bundle, lambda manifest: manifest["taps"][3]["moments"].update(changes))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_samples(lambda found: found["#logits"].__setitem__(0, 1)), "taps.safetensors: is not the file that was"),
        (_samples(lambda found: found["#logits"].fill(np.nan)), "taps.safetensors: is not the file that was"),
        (_samples(lambda found: found.pop("#logits")), "#logits is missing"),
        (_samples(lambda found: found.update(x=IDS)), "does not name (got x)"),
        (_samples(lambda found: found.update({"#logits": found["#logits"][:-1]})), "another shape"),
        (_samples(lambda found: found.update({"#logits": found["#logits"][None]})), "another shape"),
        (_samples(lambda found: found.update({"#logits": found["#logits"].astype("f8")})), "another dtype"),
        (_tap(shape=[2, 3]), "another shape"),
        (_tap(shape=[-8, -8]), "taps.shape is damaged"),
        (_tap(dtype="float64"), "another dtype"),
        (_tap(moments=[]), "taps.moments is damaged"),
        (_tap(moments={}), "taps.moments.mean is damaged"),
        (_tap(tolerances={"float32": 10**400}), "taps.tolerances is damaged"),
        (_moments(mean="0"), "taps.moments.mean is damaged"),
        (_moments(rms=None), "taps.moments is damaged"),
        (_moments(max=10**400), "taps.moments is damaged"),
        (_moments(nan=-1), "taps.moments is damaged"),
        (_moments(nan=10**6), "taps.moments is damaged"),
        (_moments(inf=1.5), "taps.moments is damaged (got [0, 1.5, 0]; expected how many"),
        (lambda bundle: edit(bundle, lambda manifest: manifest.update(form=FULL)), "another shape"),
        (lambda bundle: edit(bundle, lambda manifest: manifest.pop("files")), "files is damaged"),
    ],
)
def test_a_damaged_fingerprint_is_refused(damage: Callable[[Path], Any], says: str, bundle: Path) -> None:
    damage(bundle)
    refused("golden", "check", bundle, says=says)


def test_a_moment_that_json_reads_as_infinite(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["taps"][3]["moments"].update(max=12345.5))
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace("12345.5", "1e999"))
    refused("golden", "check", bundle, says="taps.moments is damaged")


@settings(max_examples=200)
@given(data=st.data())
def test_any_change_of_the_manifest_is_refused_or_reported(data: st.DataObject, recorded: dict[str, Path]) -> None:
    refused_or_reported(data, recorded[FINGERPRINT])


@settings(max_examples=100)
@given(data=st.data())
def test_any_change_of_a_byte_of_the_arrays_is_refused(data: st.DataObject, recorded: dict[str, Path]) -> None:
    changed = Path("changed")
    shutil.rmtree(changed, ignore_errors=True)
    shutil.copytree(recorded[FINGERPRINT], changed)
    path = changed / data.draw(st.sampled_from(["inputs.safetensors", "taps.safetensors"]))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(D2VError):
        golden.read_bundle(changed)
