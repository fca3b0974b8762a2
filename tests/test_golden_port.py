"""Holding another implementation against a bundle: every kind of port, names, what is not observable, isolation, and
the reports for people and machines.
"""

from __future__ import annotations

import json
import shlex
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock
from xml.etree import ElementTree as Xml

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import d2v, refused
from test_golden import BARE, IDS, MASK, MASKED, SPEECH, TanhGelu, WrongEps
from text_models import build

from d2v_ref import golden
from d2v_ref.auto import load, model_class
from d2v_ref.checkpoints import write_safetensors
from d2v_ref.errors import InputError
from d2v_ref.golden.exact_run import matches
from d2v_ref.golden.report import INPUT, OUTPUT
from d2v_ref.ops import Ops
from d2v_ref.synthesis import write_checkpoint

LAYER = "data2vec_text.encoder.layer.0"
ARRAYS = {"input_ids": IDS, "attention_mask": MASK}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("port") / "model"
    write_checkpoint(model_class(MASKED), "tiny", 4, folder)
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    golden.record(load(checkpoint), ARRAYS, checkpoint.parent / "b", name=checkpoint, folder=checkpoint)
    return checkpoint.parent / "b"


@pytest.fixture(scope="module")
def taps(bundle: Path) -> dict[str, np.ndarray]:
    return {name: np.array(tap) for name, tap in golden.read_bundle(bundle).taps.items()}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def changed(taps: dict[str, np.ndarray], name: str, by: float = 0.5) -> dict[str, np.ndarray]:
    """The arrays, where one has an element that is off."""
    wrong = taps[name].copy()
    wrong.flat[-1] += by
    return {**taps, name: wrong}


class Model:
    """A port that is our own model, with operations that may be wrong."""

    def __init__(self, checkpoint: Path, ops: Ops) -> None:
        self.model = load(checkpoint).with_ops(ops)

    def __call__(self, inputs: dict[str, np.ndarray], module: str | None = None) -> dict[str, np.ndarray]:
        if module is None:
            return self.model.record(**inputs)[1]
        found = dict(self.model.named_modules())[module]
        alone = not [path for path, _ in found.named_modules() if path]  # layers share a pass, which it does not know
        return {module: found.shown(found.forward(inputs["input"]))} if alone else {}


# ---- kinds of ports -------------------------------------------------------------------------------------------------


def _as_npz(taps: dict[str, np.ndarray]) -> Path:
    arrays: dict[str, Any] = dict(taps)
    np.savez("port.npz", **arrays)
    return Path("port.npz")


def _as_safetensors(taps: dict[str, np.ndarray]) -> Path:
    write_safetensors("port.safetensors", taps)
    return Path("port.safetensors")


def _as_folder(taps: dict[str, np.ndarray]) -> Path:
    """Files of all kinds, and one that is none of arrays."""
    Path("port").mkdir()
    first, second, *others = taps
    np.save(f"port/{first}.npy", taps[first])
    write_safetensors("port/one.safetensors", {second: taps[second]})
    rest: dict[str, Any] = {name: taps[name] for name in others}
    np.savez("port/rest.npz", **rest)
    Path("port/README").write_text("mine")
    return Path("port")


@pytest.mark.parametrize("form", [_as_npz, _as_safetensors, _as_folder])
def test_files(form: Callable[[dict[str, np.ndarray]], Path], bundle: Path, taps: dict[str, np.ndarray]) -> None:
    port = form(taps)
    report = golden.check_port(bundle, port)
    assert (report.passed, report.source, report.dtype) == (True, str(port), "float32")
    assert len(report.rows) == len(taps)
    with pytest.raises(InputError, match="can't run a module alone"):
        golden.check_port(bundle, port, isolate=True)
    assert d2v("golden", "check", bundle, "--against", port).out == f"{len(taps)} of {len(taps)} arrays passed\n"


def test_a_function_of_a_module_in_the_current_folder(bundle: Path, taps: dict[str, np.ndarray]) -> None:
    _as_npz(taps)
    Path("my_port.py").write_text(
        "import numpy\n"
        "def run(inputs):\n"
        "    assert sorted(inputs) == ['attention_mask', 'input_ids']\n"
        "    return dict(numpy.load('port.npz'))\n"
        "def wrong(inputs):\n    return 7\n"
        "def text(inputs):\n    return {'#logits': 'x'}\n"
        "def fails(inputs):\n    raise KeyError('layer')\n"
        "number = 7\n"
    )
    check = ("golden", "check", bundle, "--against")
    assert d2v(*check, "my_port:run").code == 0
    refused(*check, "my_port:wrong", says="returned something else (got int; expected a mapping")
    refused(*check, "my_port:text", says="#logits holds no numbers")
    refused(*check, "my_port:fails", says="the port failed (got KeyError: 'layer')", code=3)
    refused(*check, "my_port:number", says="is no function (got int)")
    refused(*check, "my_port:nope", says="can't be imported")
    refused(*check, "no_such_module:run", says="can't be imported (got ModuleNotFoundError")
    refused(*check, "my_port.run", says="is no port (expected a file of arrays")


PORT = """
import shutil, sys
from pathlib import Path
assert Path(sys.argv[1]).name == "inputs.safetensors"
shutil.copy("port.npz", sys.argv[2])
"""


def test_a_command(bundle: Path, taps: dict[str, np.ndarray]) -> None:
    _as_npz(taps)
    Path("port.py").write_text(PORT)
    python = shlex.quote(sys.executable)
    check = ("golden", "check", bundle, "--against")
    assert d2v(*check, f"{python} port.py {{inputs}} {{outputs}}").code == 0
    refused(*check, f"{python} -c 'raise SystemExit(\"no card\")' {{inputs}} {{outputs}}",
            says="the port's command failed (got exit code 1, no card)", code=3)  # fmt: skip
    refused(*check, f"{python} -c 1 {{inputs}}", says="wrote nothing", code=3)
    refused(*check, "./nope {inputs}", says="can't be run: No such file", code=3)
    refused(*check, "./nope '{inputs}", says="is no command: No closing quotation")


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda: Path("port.npz").write_bytes(b"PK"), "can't be read as .npz"),
        (lambda: Path("port.npy").write_bytes(b"\x93NUMPY"), "can't be read as .npy"),
        (lambda: Path("port.safetensors").write_bytes(b"123456789"), "cut short"),
        (lambda: Path("port.txt").write_bytes(b""), "is no file of arrays"),
        (lambda: Path("port.d").mkdir(), "the folder holds no arrays"),
    ],
)
def test_a_damaged_file(write: Callable[[], Any], says: str, bundle: Path) -> None:
    write()
    refused("golden", "check", bundle, "--against", next(Path().iterdir()), says=says)


def test_a_name_in_two_files(bundle: Path, taps: dict[str, np.ndarray]) -> None:
    port = _as_folder(taps)
    again: dict[str, Any] = {next(iter(taps)): IDS}
    np.savez(port / "zz.npz", **again)
    refused("golden", "check", bundle, "--against", port, says="is in two files")


def test_options_that_do_not_go_together(bundle: Path) -> None:
    refused("golden", "check", bundle, "--names", "n.json", says="are for --against")
    refused("golden", "check", bundle, "--against", "x", "--model", "m", says="for a run of ours")
    refused("golden", "check", bundle, "--against", "x", "--backend", "numpy", says="for a run of ours")


# ---- formats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_smaller_format_has_its_own_tolerances(dtype: str, bundle: Path, taps: dict[str, np.ndarray]) -> None:
    """What is within the tolerance of the format passes in it, and not in float32; its arrays say which it is."""
    allowed = {tap["name"]: tap["tolerances"] for tap in golden.read_bundle(bundle).manifest["taps"]}
    off = {name: tap + np.float32(0.9) * allowed[name][dtype] if tap.dtype.kind == "f" else tap
           for name, tap in taps.items()}  # fmt: skip
    assert golden.check_port(bundle, lambda inputs: off, dtype=dtype).passed
    assert not golden.check_port(bundle, lambda inputs: off).passed
    with pytest.raises(InputError, match="no such format"):
        golden.check_port(bundle, lambda inputs: off, dtype="float8")


def test_the_arrays_say_the_format(bundle: Path, taps: dict[str, np.ndarray]) -> None:
    half = {name: tap.astype(np.float16) if tap.dtype.kind == "f" else tap for name, tap in taps.items()}
    report = golden.check_port(bundle, lambda inputs: half)
    assert (report.dtype, report.passed) == ("float16", True), report.verdict()


# ---- what is there and what is not ----------------------------------------------------------------------------------


def test_every_array_is_passed_failed_missing_or_not_observable(bundle: Path, taps: dict[str, np.ndarray]) -> None:
    shown = {name: tap for name, tap in changed(taps, "lm_head.dense").items() if not name.endswith("#input")}
    del shown[f"{LAYER}.output"], shown["#logits"]
    report = golden.check_port(bundle, lambda inputs: {**shown, "mine": IDS})
    rows = {row.name: row for row in report.rows}
    assert list(rows) == list(taps)
    assert [row.name for row in report.having(golden.FAILED)] == ["lm_head.dense"]
    assert [row.name for row in report.having(golden.MISSING)] == [f"{LAYER}.output", "#logits"]
    assert {row.kind for row in report.having(golden.UNOBSERVABLE)} == {INPUT}
    assert len(report.having(golden.PASSED)) == len(shown) - 1
    assert (report.first, report.culprit) == (rows["lm_head.dense"], "lm_head.dense")


def test_patterns_choose_what_is_compared(bundle: Path, taps: dict[str, np.ndarray]) -> None:
    shown = {name: tap for name, tap in taps.items() if "layer.1" in name and "#" not in name}
    assert not golden.check_port(bundle, lambda inputs: shown).passed
    report = golden.check_port(bundle, lambda inputs: shown, taps=["encoder.layer.1*", "!*#*"])
    assert report.passed
    assert {row.name for row in report.having(golden.PASSED)} == set(shown)
    out = d2v("golden", "check", bundle, "--taps", "encoder.layer.1*", "--taps", "!*#*").out
    assert out.endswith(" not observable\n")
    assert out.startswith(f"{len(shown)} of {len(shown)} arrays passed")


@pytest.mark.parametrize("found", [{}, {"mine": IDS}, {"input_ids": IDS}])
def test_no_array_compared_is_a_failure(found: dict[str, Any], bundle: Path) -> None:
    assert not golden.check_port(bundle, lambda inputs: found).passed
    report = golden.check_port(bundle, lambda inputs: found, taps=["nothing of this name"])
    assert (report.passed, report.first) == (False, None)
    assert {row.status for row in report.rows} == {golden.UNOBSERVABLE}
    result = d2v("golden", "check", bundle, "--taps", "nothing of this name")
    assert (result.code, result.out.splitlines()[-1]) == (1, "no array was compared")


def test_numbers_that_are_not_finite_come_first(bundle: Path, taps: dict[str, np.ndarray]) -> None:
    wrong = changed(changed(taps, "#logits", np.nan), f"{LAYER}.output")
    report = golden.check_port(bundle, lambda inputs: wrong)
    assert report.first is not None
    assert report.first_not_finite is not None
    assert (report.first.name, report.first_not_finite.name) == (f"{LAYER}.output", "#logits")
    assert report.verdict()[0].startswith("the first that is not finite: #logits (Data2VecTextForMaskedLM)")


# ---- whose fault ----------------------------------------------------------------------------------------------------


def test_what_a_module_was_given_is_its_parents_work(bundle: Path, taps: dict[str, np.ndarray]) -> None:
    """The sum that a LayerNorm is given is made by the module around it."""
    report = golden.check_port(bundle, lambda inputs: changed(taps, f"{LAYER}.attention.output.LayerNorm#input"))
    assert report.culprit == f"{LAYER}.attention.output"
    upstream = [row.name for _, row in report.upstream()]
    assert upstream == [f"{LAYER}.attention.self", "data2vec_text.embeddings", f"{LAYER}.attention.output.dense"]
    assert f"  it was computed in {LAYER}.attention.output" in report.verdict()


def test_a_fault_where_the_input_is_not_seen_may_be_its_parents(bundle: Path, taps: dict[str, np.ndarray]) -> None:
    name = f"{LAYER}.attention.output.LayerNorm"
    wrong = {key: tap for key, tap in changed(taps, name).items() if key != f"{name}#input"}
    report = golden.check_port(bundle, lambda inputs: wrong)
    assert report.culprit == name
    last = report.verdict()[-1]
    assert last == f"  its input was not seen: the fault is there, or in {LAYER}.attention.output; --isolate tells"


@settings(max_examples=60)
@given(data=st.data())
def test_whichever_array_is_off_is_named_first(data: st.DataObject, bundle: Path, taps: dict[str, np.ndarray]) -> None:
    """However many later ones are off too; the module is the array's, or the one around it."""
    floats = [name for name, tap in taps.items() if tap.dtype.kind == "f"]
    chosen = data.draw(st.lists(st.sampled_from(floats), min_size=1, max_size=4, unique=True))
    wrong = taps
    for name in chosen:
        wrong = changed(wrong, name, data.draw(st.sampled_from([0.5, -2.0, np.inf, np.nan])))
    report = golden.check_port(bundle, lambda inputs: wrong)
    assert [row.name for row in report.having(golden.FAILED)] == sorted(chosen, key=list(taps).index)
    assert report.first is not None
    path = report.first.path
    if report.first.kind == INPUT:
        assert report.culprit is not None
        assert report.culprit == "" or path.startswith(f"{report.culprit}.")
    else:
        assert report.culprit == path


# ---- isolation ------------------------------------------------------------------------------------------------------


class TanhGeluAndWrongEps(TanhGelu, WrongEps):
    """Two faults, the first of which hides the second."""


@pytest.mark.parametrize("ours", [True, False])
def test_each_module_alone_shows_every_fault(ours: bool, bundle: Path, checkpoint: Path) -> None:
    """Of a backend and of a port; the layers between them, which only inherit the error, pass."""
    wrong = TanhGeluAndWrongEps()
    if ours:
        report = golden.check(bundle, backend=wrong, isolate=True)
    else:
        report = golden.check_port(bundle, Model(checkpoint, wrong), isolate=True)
    failed = {row.name: row.module for row in report.having(golden.FAILED)}
    leaves = {name: module for name, module in failed.items() if module in ("Activation", "LayerNorm")}
    assert next(iter(leaves)) == "data2vec_text.embeddings.LayerNorm"
    assert f"{LAYER}.intermediate.intermediate_act_fn" in leaves
    assert "data2vec_text.encoder.layer.1.intermediate.intermediate_act_fn" in leaves
    passed = {row.name for row in report.having(golden.PASSED)}
    assert {f"{LAYER}.attention.self.query", "data2vec_text.encoder.layer.1.attention.output.dense"} <= passed
    assert {row.kind for row in report.rows if row.status != golden.UNOBSERVABLE} == {OUTPUT}
    assert report.isolated
    right = golden.check(bundle, isolate=True) if ours else None
    if right is not None:
        assert right.passed
        assert len(right.having(golden.PASSED)) == 40


def test_a_module_alone_has_a_tolerance_of_its_own(bundle: Path) -> None:
    """Nothing is inherited: deep in the model it is far below the tolerance of a whole run."""
    taps = {tap["name"]: tap for tap in golden.read_bundle(bundle).manifest["taps"]}
    alone = {name: tap["alone"] for name, tap in taps.items() if "alone" in tap}
    assert {taps[name]["module"] for name in alone} == {"Linear", "LayerNorm", "Activation", "Embedding"}
    assert {taps[name]["kind"] for name in alone} == {OUTPUT}
    for name, own in alone.items():
        allowed = taps[name]["tolerances"]
        assert own.keys() == allowed.keys()
        assert all(0 < own[form] <= 1.5 * allowed[form] for form in own), name
    last = taps["data2vec_text.encoder.layer.1.output.LayerNorm"]
    assert last["alone"]["float32"] < 0.3 * last["tolerances"]["float32"]


def test_isolation_of_audio_and_of_a_cache(tmp_path: Path) -> None:
    """What layers share in a pass goes with them: masks and lengths; keys and values of earlier tokens."""
    write_checkpoint(model_class("Data2VecAudioForCTC"), "tiny", 4, "audio")
    golden.record(load("audio"), SPEECH, "a", name="audio", folder=Path("audio"))
    assert golden.check("a", isolate=True).passed
    write_checkpoint(model_class("Data2VecTextForCausalLM"), "tiny", 4, "text")
    past = np.random.default_rng(0).normal(size=(2, 2, 2, 4, 3, 16)).astype(np.float32)
    arrays = {"input_ids": IDS, "past_key_values": past}
    golden.record(load("text"), arrays, "t", name="text", folder=Path("text"))
    report = golden.check("t", isolate=True)
    assert report.passed, report.verdict()


def test_a_fingerprint_can_not_be_taken_apart(checkpoint: Path) -> None:
    golden.record(load(checkpoint), ARRAYS, "f", name=checkpoint, folder=checkpoint, fingerprint=True)
    with pytest.raises(InputError, match="is a fingerprint, which does not hold what modules were given"):
        golden.check_port("f", Model(checkpoint, Ops()), isolate=True)
    assert golden.check("f", isolate=True).passed  # NumPy makes it again


# ---- names ----------------------------------------------------------------------------------------------------------


def test_a_file_of_names(bundle: Path, taps: dict[str, np.ndarray]) -> None:
    names = {name: f"x{i}" for i, name in enumerate(taps)}
    _as_npz({names[name]: tap for name, tap in changed(taps, "#logits").items() if name != "lm_head"})
    Path("names.json").write_text(json.dumps({**names, "lm_head": None}))
    report = golden.check_port(bundle, "port.npz", names="names.json")
    assert [row.name for row in report.having(golden.FAILED)] == ["#logits"]
    assert [row.name for row in report.having(golden.UNOBSERVABLE)] == ["lm_head"]
    check = ("golden", "check", bundle, "--against", "port.npz", "--names")
    for content, says in (
        ({"lm_head": "y"}, "the port has no array of this name (got y"),
        ({"nope": "x1"}, "names an array that the bundle does not hold (got nope)"),
        ({"lm_head": 1}, "is no table of names"),
        ([], "is no table of names"),
    ):
        Path("n.json").write_text(json.dumps(content))
        refused(*check, "n.json", says=says)
    Path("n.json").write_bytes(b"\xff")
    refused(*check, "n.json", says="is not JSON in UTF-8")
    refused(*check, "nowhere.json", says="can't be read")


def test_names_are_matched_by_shape_and_value(bundle: Path, taps: dict[str, np.ndarray]) -> None:
    """Each array is found under another name, in whichever order, one that is off as well."""
    wrong = changed(taps, f"{LAYER}.attention.self.value", 0.01)
    order = np.random.default_rng(3).permutation(len(taps))
    _as_npz({f"x{i}": wrong[list(taps)[i]] for i in order})
    result = d2v("golden", "check", bundle, "--against", "port.npz", "--suggest", "names.json")
    assert result.code == 1, result
    names = json.loads(Path("names.json").read_text())
    for name, other in names.items():
        assert np.array_equal(wrong[list(taps)[int(other[1:])]], wrong[name])
    assert names.keys() == taps.keys()
    report = golden.check_port(bundle, "port.npz", names="names.json")
    assert [row.name for row in report.having(golden.FAILED)] == [f"{LAYER}.attention.self.value"]
    assert f"matched by shape and value: #logits = {names['#logits']}\n" in result.out


# ---- reports --------------------------------------------------------------------------------------------------------


def test_json_and_junit_say_the_same(bundle: Path, taps: dict[str, np.ndarray]) -> None:
    wrong = {name: tap for name, tap in changed(taps, "lm_head.dense").items() if not name.endswith("#input")}
    _as_npz({name: tap for name, tap in wrong.items() if name != "#logits"})
    result = d2v("golden", "check", bundle, "--against", "port.npz", "--json", "--junit", "r.xml")
    found, suite = json.loads(result.out), Xml.parse("r.xml").getroot()
    assert (result.code, found["passed"], found["culprit"]) == (1, False, "lm_head.dense")
    assert found["upstream"][0]["status"] == "passed"
    assert [case.get("name") for case in suite] == [row["name"] for row in found["rows"]]
    counts = found["counts"]
    assert suite.attrib | {"name": ""} == {
        "name": "",
        "tests": str(len(taps)),
        "failures": str(counts["failed"] + counts["missing"]),
        "errors": "0",
        "skipped": str(counts["not observable"]),
    }
    marks = {"passed": None, "failed": "failure", "missing": "failure", "not observable": "skipped"}
    for case, row in zip(suite, found["rows"], strict=True):
        assert (case[0].tag if len(case) else None) == marks[row["status"]]
    failure = next(case[0] for case in suite if len(case) and case[0].tag == "failure")
    assert "the first that differs: lm_head.dense (Linear)" in (failure.text or "")


def test_junit_without_any_array_has_a_failure(bundle: Path) -> None:
    _as_npz({"mine": IDS})
    code = d2v("golden", "check", bundle, "--against", "port.npz", "--taps", "nope", "--junit", "r.xml").code
    suite = Xml.parse("r.xml").getroot()
    assert (code, suite.get("failures")) == (1, "1")
    assert [case.get("name") for case in suite if len(case) and case[0].tag == "failure"] == ["an array was compared"]


def test_a_page_that_needs_nothing_else(bundle: Path, taps: dict[str, np.ndarray]) -> None:
    _as_npz(changed(changed(taps, "lm_head.dense"), "#logits", np.nan))
    assert d2v("golden", "check", bundle, "--against", "port.npz", "--html", "r.html").code == 1
    page = Path("r.html").read_text()
    assert "golden check: failed" in page
    assert page.count("<svg") == 1
    assert page.count("<tr") == len(taps) + 1
    assert 'class="bad"><td>failed</td><td>lm_head.dense</td>' in page
    for outside in ("<script", "<link", "<img", "src=", "url(http"):
        assert outside not in page
    first = Path("r.html").read_bytes()
    d2v("golden", "check", bundle, "--against", "port.npz", "--html", "r.html")
    assert Path("r.html").read_bytes() == first


def test_a_page_without_matplotlib(bundle: Path, taps: dict[str, np.ndarray]) -> None:
    _as_npz(taps)
    with mock.patch.dict(sys.modules, {"matplotlib.figure": None}):
        says = "plots need matplotlib, which is not installed. Install it: pip install 'd2v-ref[plots]'"
        refused("golden", "check", bundle, "--against", "port.npz", "--html", "r.html", says=says, code=3)


def test_names_that_a_page_or_xml_would_obey(tmp_path: Path) -> None:
    row = golden.Row("<b>&\x00", "X", golden.FAILED, 1.0, 0.5, (0,), "]]>\x1b")
    from d2v_ref.golden import output

    report = golden.Report([row], "<i>")
    output.write_junit("r.xml", report)
    assert Xml.parse("r.xml").getroot()[0].get("name") == "<b>&\\x00"
    output.write_html("r.html", report, Path("<u>"))
    assert not {"<b>", "<i>", "<u>"} & set(Path("r.html").read_text().split())
    assert "&lt;b&gt;" in Path("r.html").read_text()


@pytest.mark.parametrize(
    ("name", "patterns", "found"),
    [
        ("a.b.c", [], True),
        ("a.b.c", ["b.*"], True),
        ("a.b.c", ["b"], False),
        ("a.b.c", ["*.c", "!a*"], False),
        ("a.b#probs", ["*#probs"], True),
        ("a.b", ["!*#*"], True),
        ("#logits", ["#*"], True),
        ("ab.c", ["b.c"], False),
    ],
)
def test_patterns(name: str, patterns: list[str], found: bool) -> None:
    assert matches(name, patterns) == found


# ---- recording ------------------------------------------------------------------------------------------------------


def test_what_is_recorded_can_be_chosen(checkpoint: Path) -> None:
    record = ("golden", "record", checkpoint, "A text.", "-o")
    assert d2v(*record, "b", "--taps", "encoder.layer.1*", "--taps", "#logits", "--taps", "!*#input").code == 0
    names = [tap["name"] for tap in golden.read_bundle("b").manifest["taps"]]
    assert names[-2:] == ["data2vec_text.encoder.layer.1", "#logits"]
    assert all(".layer.1" in name for name in names[:-1])
    assert d2v("golden", "check", "b").code == 0
    says = "no array's name matches (got encoder.layers.0; expected such as"
    assert f"{LAYER}" in refused(*record, "c", "--taps", "encoder.layers.0", says=says)


def test_the_manifest_tells_the_recipe_and_the_machine(checkpoint: Path) -> None:
    assert d2v("golden", "record", checkpoint, "A text.", "-o", "b").code == 0
    manifest = golden.read_bundle("b").manifest
    assert manifest["recipe"] == {"texts": ["A text."], "processor": "TextTokenizer"}
    assert manifest["backend"]["numerics"] == "machine"
    blas = manifest["environment"]["blas"][0]
    assert blas["threads"] >= 1
    assert {"name", "version", "core"} < blas.keys()
    assert manifest["environment"]["cpu_features"]
    assert "u sqrt(n) sum |x_i w_i|" in manifest["tolerance_rule"]
    np.savez("in.npz", input_ids=IDS)
    assert d2v("golden", "record", checkpoint, "in.npz", "-o", "c").code == 0
    assert golden.read_bundle("c").manifest["recipe"]["arrays"][0]["name"] == "in.npz"


def test_a_backends_numerics_are_recorded(checkpoint: Path) -> None:
    class Portable(Ops):
        name = "portable"
        numerics = "portable"

    golden.record(load(checkpoint, backend=Portable()), ARRAYS, "b", name="x", folder=checkpoint)
    backend = golden.read_bundle("b").manifest["backend"]
    assert backend == {"name": "portable", "overrides": [], "numerics": "portable"}


def test_the_graph_leads_from_every_output_to_the_inputs(bundle: Path) -> None:
    """Every name that a module was given is an input, or an array that came before."""
    manifest = golden.read_bundle(bundle).manifest
    known = {entry["name"] for entry in manifest["inputs"]}
    for tap in manifest["taps"]:
        known.add(tap["name"])
        assert set(tap.get("inputs", {}).values()) <= known
        assert ("inputs" in tap) == (tap["kind"] == OUTPUT)
    given = {tap["name"]: tap["inputs"] for tap in manifest["taps"] if tap["kind"] == OUTPUT}
    assert given[f"{LAYER}.attention.output"] == {
        "input": f"{LAYER}.attention.self",
        "residual": "data2vec_text.embeddings",
    }


def test_the_memory_of_recording_does_not_grow_with_the_model() -> None:
    """Arrays go to the disk as they are produced: six more layers take hardly more than their hidden states."""
    arrays, peaks, sizes = {"input_ids": np.full((1, 300), 7)}, [], []
    for layers in (2, 8):
        changes: dict[str, Any] = {
            "num_hidden_layers": layers,
            "hidden_size": 48,
            "num_attention_heads": 6,
            "intermediate_size": 96,
        }
        model = build(BARE, dtype="float32", max_position_embeddings=310, **changes)
        model.save_pretrained(f"m{layers}")
        tracemalloc.start()
        golden.record(model, arrays, f"b{layers}", name="m", folder=Path(f"m{layers}"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append(Path(f"b{layers}/taps.safetensors").stat().st_size)
    assert sizes[1] - sizes[0] > 15_000_000
    assert peaks[1] - peaks[0] < 0.1 * (sizes[1] - sizes[0])
