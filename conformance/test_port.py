"""A port held against a golden: the correct one passes, and of a wrong one the module that holds the fault is named.

The port is that of ``conformance/port``: in torch, as an ONNX file in ONNX Runtime, in bfloat16, and as a command.
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import d2v_ref
from conformance.port import export, vision
from conformance.port.faults import FAULTS
from d2v_ref import golden, models, synth
from d2v_ref.cli import main
from d2v_ref.golden import Report
from d2v_ref.golden.forms import FORMS

torch.set_num_threads(1)

TORCH, ONNX = "conformance.port.vision:run", "conformance.port.session:run"
COMMAND = f"{sys.executable} -m conformance.port.script {{inputs}} {{outputs}}/taps.safetensors '{{module}}'"
LAYER = "data2vec_vision.encoder.layer"
CULPRITS = {
    "gelu": f"{LAYER}.0.intermediate.intermediate_act_fn",
    "epsilon": f"{LAYER}.0.layernorm_before",
    "transposed": f"{LAYER}.1.attention.attention.query",
    "scale": f"{LAYER}.0",
    "positions": f"{LAYER}.0.attention.attention.relative_position_bias",
    "softmax": f"{LAYER}.0.attention.attention",
}
PLACES = {  # wherever a fault is, layer by layer
    "gelu": rf"{LAYER}\.\d\.intermediate\.intermediate_act_fn",
    "epsilon": r".*layernorm(_before|_after)?",
    "transposed": re.escape(CULPRITS["transposed"]),
    "scale": re.escape(CULPRITS["scale"]),
    "positions": r".*\.relative_position_bias",
    "softmax": rf"{LAYER}\.\d\.attention\.attention",
}


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of a held-out picture in both forms."""
    folder, root = models.folder("tiny-vision"), tmp_path_factory.mktemp("bundles")
    pixels = d2v_ref.BeitImageProcessor.from_pretrained(folder)(folder / "samples/digit-00.png").arrays()
    for form in FORMS:
        model = d2v_ref.load(folder)
        golden.record(model, pixels, root / form, name=folder, folder=folder, fingerprint=form == "fingerprint")
    return {form: root / form for form in FORMS}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The port as ONNX files, by its fault."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    root, made = tmp_path_factory.mktemp("onnx"), {}
    for fault in ("", *FAULTS):
        made[fault] = root / f"{fault or 'right'}.onnx"
        export.export(vision.load(str(vision.TINY_VISION), "float32", fault), made[fault])
    return made


@pytest.fixture(autouse=True)
def _right(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL", "DTYPE", "FAULT", "ONNX"):
        monkeypatch.delenv(f"D2V_PORT_{name}", raising=False)
    monkeypatch.chdir(Path(__file__).parents[1])  # where conformance.port can be imported from


@pytest.fixture(params=["torch", "ONNX Runtime"])
def planted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]) -> Any:
    """Plants a fault in the port, and says what the port is to ``check_port``."""

    def plant(fault: str) -> str:
        monkeypatch.setenv("D2V_PORT_FAULT", fault)
        monkeypatch.setenv("D2V_PORT_ONNX", str(files[fault]))
        return {"torch": TORCH, "ONNX Runtime": ONNX}[request.param]

    return plant


def hold(report: Report, tally: Any, name: str) -> None:
    """Everything that was recorded was compared, and passed."""
    assert report.passed, "\n".join(report.verdict())
    assert len(report.having(golden.PASSED)) == len(report.rows)
    count(report, tally, name)


def count(report: Report, tally: Any, name: str) -> None:
    passed = report.having(golden.PASSED)
    tally[name].cases += 1
    tally[name].arrays += len(passed)
    shares = [row.error / row.tolerance for row in passed if row.error is not None and row.tolerance]
    tally[name].worst = max(tally[name].worst, *shares)


# ---- the right port -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_the_right_port_passes(form: str, bundles: dict[str, Path], planted: Any, tally: Any) -> None:
    hold(golden.check_port(bundles[form], planted("")), tally, "ports, float32")


@pytest.mark.parametrize("form", FORMS)
def test_in_bfloat16(form: str, bundles: dict[str, Path], tally: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D2V_PORT_DTYPE", "bfloat16")
    hold(golden.check_port(bundles[form], TORCH, dtype="bfloat16"), tally, "ports, bfloat16")
    assert not golden.check_port(bundles[form], TORCH).passed  # by float32's tolerances


def test_as_a_command(bundles: dict[str, Path], tally: Any) -> None:
    hold(golden.check_port(bundles["full"], COMMAND), tally, "ports, float32")
    name = f"{LAYER}.3.intermediate"
    report = golden.check_port(bundles["full"], COMMAND, taps=(name,), isolate=True)
    assert report.passed
    assert [row.name for row in report.having(golden.PASSED)] == [name]


@pytest.mark.parametrize("dtype", vision.DTYPES)
def test_every_module_alone(dtype: str, bundles: dict[str, Path], tally: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D2V_PORT_DTYPE", dtype)
    report = golden.check_port(bundles["full"], TORCH, dtype=dtype, isolate=True)
    assert report.passed
    outputs = [row.name for row in report.rows if "#" not in row.name]
    assert [row.name for row in report.having(golden.PASSED)] == outputs
    count(report, tally, f"ports, {dtype}, each module alone")


def test_a_session_can_not_run_a_module_alone(
    bundles: dict[str, Path], files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D2V_PORT_ONNX", str(files[""]))
    report = golden.check_port(bundles["full"], ONNX, isolate=True)
    assert not report.passed  # nothing was compared
    assert len(report.having(golden.UNOBSERVABLE)) == len(report.rows)


def test_another_model(tmp_path: Path, tally: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The port is of a class, not of one checkpoint."""
    config = d2v_ref.Data2VecVisionConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=12, patch_size=4,
        use_relative_position_bias=True, num_labels=5,
    )  # fmt: skip
    cls = d2v_ref.Data2VecVisionForImageClassification
    weights = synth.weights({name: value.shape for name, _, _, value in cls(config).named_parameters()}, 3)
    model, pixels = cls(config, weights), np.random.default_rng(0).normal(size=(2, 3, 12, 12)).astype(np.float32)
    model.save_pretrained(tmp_path / "model")
    golden.record(model, {"pixel_values": pixels}, tmp_path / "b", name="model", folder=tmp_path / "model")
    monkeypatch.setenv("D2V_PORT_MODEL", str(tmp_path / "model"))
    hold(golden.check_port(tmp_path / "b", TORCH), tally, "ports, float32")


# ---- wrong ports ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_the_module_that_holds_the_fault_is_named(fault: str, bundles: dict[str, Path], planted: Any) -> None:
    report = golden.check_port(bundles["full"], planted(fault))
    assert not report.passed
    assert report.culprit == CULPRITS[fault], "\n".join(report.verdict())


def test_what_the_readme_shows(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines of its worked example are printed, in this order; numbers differ by what processors round."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    command, *shown = readme.split("<!-- the worked example -->")[1].split("```")[1].strip().splitlines()[1:]
    assert command == f"$ D2V_PORT_FAULT=scale d2v-ref golden check golden --against {TORCH}"
    monkeypatch.setenv("D2V_PORT_FAULT", "scale")
    with pytest.raises(SystemExit):
        main(["golden", "check", str(bundles["full"]), "--against", TORCH])
    number = re.compile(r"-?\d+\.\d+(e[-+]\d+)?")
    printed = iter([number.sub("#", line) for line in capsys.readouterr().out.splitlines()])
    for line in shown:
        assert line == "..." or number.sub("#", line) in printed, line


@pytest.mark.parametrize("fault", FAULTS)
def test_by_a_fingerprint(fault: str, bundles: dict[str, Path], planted: Any) -> None:
    """The few elements in which the two GELUs differ by more than is allowed are no samples: the next product, which
    they are summed up in, is the first that shows it.
    """
    report = golden.check_port(bundles["fingerprint"], planted(fault))
    assert not report.passed
    assert report.culprit == (f"{LAYER}.0.output.dense" if fault == "gelu" else CULPRITS[fault])


@pytest.mark.parametrize("fault", FAULTS)
def test_alone_only_modules_around_the_fault_fail(
    fault: str, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None inherits an error: a module that fails is the fault's place, or holds it."""
    monkeypatch.setenv("D2V_PORT_FAULT", fault)
    report = golden.check_port(bundles["full"], TORCH, isolate=True)
    failed = [row.name for row in report.having(golden.FAILED)]
    assert CULPRITS[fault] in failed
    places = [row.name for row in report.rows if re.fullmatch(PLACES[fault], row.name)]
    assert len(places) >= 1
    assert all(any(place == name or place.startswith(f"{name}.") for place in places) for name in failed)
    leaves = {row.name for row in report.rows if row.module in ("Activation", "LayerNorm", "Linear")}
    if fault != "epsilon":  # which is nothing beside the variances of deep layers
        assert leaves & set(places) <= set(failed)  # each of them, as what a module alone may be off by is its own


@pytest.mark.parametrize("fault", FAULTS)
def test_in_bfloat16_a_fault_shows_if_it_is_larger_than_rounding(
    fault: str, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D2V_PORT_DTYPE", "bfloat16")
    monkeypatch.setenv("D2V_PORT_FAULT", fault)
    report = golden.check_port(bundles["full"], TORCH, dtype="bfloat16")
    assert report.culprit == (None if fault in ("gelu", "epsilon") else CULPRITS[fault])
