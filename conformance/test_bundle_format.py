"""d2v_ref/golden/FORMAT.md is sufficient: readers without this package, one in Python's standard library and one in
JavaScript, find a bundle whole or damaged, and a port right or wrong, where ``d2v_ref.golden`` does.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import d2v_ref
from conformance import read_bundle
from d2v_ref import golden, models, synth
from d2v_ref.checkpoints import write_safetensors
from d2v_ref.golden.forms import FORMS, positions

HERE = Path(__file__).parent
READERS = {
    "Python": [sys.executable, "-I", "-S", str(HERE / "read_bundle.py")],  # without any package
    "JavaScript": ["node", str(HERE / "read_bundle.mjs")],
}
RUNS = ("vision", "text")


def record_vision(folder: Path, fingerprint: bool) -> None:
    """A trained checkpoint, a picture."""
    shipped = models.folder("tiny-vision")
    pixels = d2v_ref.BeitImageProcessor.from_pretrained(shipped)(shipped / "samples/digit-00.png").arrays()
    golden.record(d2v_ref.load(shipped), pixels, folder, name=shipped, folder=shipped, fingerprint=fingerprint)


def record_text(folder: Path, fingerprint: bool) -> None:
    """float64, integers and booleans; a loss of nothing, which is NaN, and an infinite bias."""
    config = d2v_ref.Data2VecTextConfig(**d2v_ref.Data2VecTextConfig.sizes["tiny"])
    cls = d2v_ref.Data2VecTextForMaskedLM
    weights = synth.weights({name: value.shape for name, _, _, value in cls(config).named_parameters()}, 1)
    weights["lm_head.dense.bias"][:3] = np.inf, -np.inf, np.nan
    model, kept = cls(config, weights, dtype="float64"), folder.with_name("model")
    model.save_pretrained(kept)
    ids = np.array([[0, 9, 8, 7, 2], [0, 5, 2, 1, 1]])
    arrays = {"input_ids": ids, "attention_mask": ids != 1, "labels": np.full_like(ids, -100)}
    golden.record(model, arrays, folder, name="model", folder=kept, fingerprint=fingerprint)
    shutil.rmtree(kept)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    root, made = tmp_path_factory.mktemp("bundles"), {}
    for run, write in zip(RUNS, (record_vision, record_text), strict=True):
        for form in FORMS:
            made[run, form] = root / f"{run}-{form}"
            write(made[run, form], form == "fingerprint")
    return made


@pytest.fixture(params=READERS)
def read(request: pytest.FixtureRequest) -> Callable[..., tuple[int, list[str]]]:
    """Runs a reader: its exit code and lines."""
    command = READERS[request.param]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{Path(command[-1]).name}: {command[0]} is not installed")

    def run(*arguments: object) -> tuple[int, list[str]]:
        done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()

    return run


def test_the_python_reader_needs_its_standard_library_only() -> None:
    nodes = list(ast.walk(ast.parse((HERE / "read_bundle.py").read_text(encoding="utf-8"))))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported <= {"__future__", *sys.stdlib_module_names}


def test_both_forms_are_of_one_run(bundles: dict[tuple[str, str], Path]) -> None:
    """The samples lie where the page says, and hashes and moments are of the whole array."""
    for run in RUNS:
        full, fingerprint = (
            json.loads((bundles[run, form] / "manifest.json").read_text(encoding="utf-8")) for form in FORMS
        )
        assert full["taps"] == fingerprint["taps"]
        whole, samples = (read_bundle.read_safetensors(bundles[run, form] / "taps.safetensors") for form in FORMS)
        for name, array in whole.items():
            values = array["values"]
            want = [values[i] for i in read_bundle.positions(len(values))]
            assert np.array_equal(samples[name]["values"], want, equal_nan=True)


def test_the_positions_of_every_length() -> None:
    assert all(read_bundle.positions(size) == positions(size).tolist() for size in (*range(200), 10**6, 2**31 + 1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("run", RUNS)
def test_a_whole_bundle(run: str, form: str, bundles: dict[tuple[str, str], Path], read: Any) -> None:
    made = golden.read_bundle(bundles[run, form])
    dtype = {"vision": "float32", "text": "float64"}[run]
    assert read(made.folder) == (0, [f"{len(made.taps)} arrays of {dtype}"])


def damage(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def moment(manifest: dict[str, Any]) -> None:
    manifest["taps"][3]["moments"]["rms"] *= 1 + 2**-40


def hash_of_a_tap(manifest: dict[str, Any]) -> None:
    manifest["taps"][3]["sha256"] = manifest["taps"][4]["sha256"]


def shape(manifest: dict[str, Any]) -> None:
    manifest["taps"][3]["shape"].insert(0, 1)


def dtype_of_a_tap(manifest: dict[str, Any]) -> None:
    manifest["taps"][3]["dtype"] = "float16"


@pytest.mark.parametrize("change", [moment, hash_of_a_tap, shape, dtype_of_a_tap])
def test_a_damaged_manifest(
    change: Callable[[dict[str, Any]], None], bundles: dict[tuple[str, str], Path], read: Any, tmp_path: Path
) -> None:
    bundle = shutil.copytree(bundles["vision", "full"], tmp_path / "b")
    name = golden.read_bundle(bundle).manifest["taps"][3]["name"]
    damage(bundle, change)
    code, lines = read(bundle)
    assert (code, lines[0], len(lines)) == (1, f"{name}: not what was recorded", 2)
    with pytest.raises(d2v_ref.D2VError, match=r"not what was recorded|is damaged"):
        golden.read_bundle(bundle)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("file", ["inputs", "taps"])
def test_a_changed_byte(file: str, form: str, bundles: dict[tuple[str, str], Path], read: Any, tmp_path: Path) -> None:
    bundle = shutil.copytree(bundles["vision", form], tmp_path / "b")
    path = bundle / f"{file}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, lines = read(bundle)
    assert (code, lines[0]) == (1, f"{file}.safetensors: not what was recorded")
    assert len(lines) == (2 if (file, form) == ("taps", "fingerprint") else 3)  # samples have no hash of their own


def test_an_array_that_is_missing(bundles: dict[tuple[str, str], Path], read: Any, tmp_path: Path) -> None:
    bundle = shutil.copytree(bundles["vision", "full"], tmp_path / "b")
    damage(bundle, lambda manifest: manifest["taps"].pop())
    assert read(bundle)[1][0] == "the names in taps.safetensors: not what was recorded"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("seed", range(3))
def test_a_port_passes_or_fails_as_it_does_here(
    seed: int, run: str, form: str, bundles: dict[tuple[str, str], Path], read: Any, tmp_path: Path
) -> None:
    """Drawn errors, within the tolerance and beyond it, in one element or all; what is not finite; other shapes."""
    random = np.random.default_rng(seed)
    whole, computed = golden.read_bundle(bundles[run, "full"]), {}
    for tap in whole.manifest["taps"]:
        array = whole.taps[tap["name"]].astype(np.float64)
        size = tap["tolerances"]["float32"] * random.choice([0.0, 0.9, 1.1, 3.0])
        match random.integers(8):
            case 0:
                array.flat[random.integers(array.size)] += size
            case 1:
                array += size * random.choice([-1, 1], array.shape)
            case 2:
                array *= 1 + size
            case 3:
                array.flat[random.integers(array.size)] = random.choice([np.nan, np.inf, -np.inf])
            case 4 if size:
                array = array[None]
            case 5 if size:
                continue  # missing
        computed[tap["name"]] = array
    write_safetensors(tmp_path / "outputs.safetensors", computed, None)
    report = golden.check_port(bundles[run, form], tmp_path / "outputs.safetensors", dtype="float32")
    want = [row.name for row in report.having(golden.FAILED, golden.MISSING)]
    assert len(want) > 10
    code, lines = read(bundles[run, form], tmp_path / "outputs.safetensors", "float32")
    assert code == 1
    assert [line.partition(": ")[0] for line in lines[:-1]] == want
    assert lines[-1] == f"{len(want)} of {len(report.rows)} arrays failed"


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint64", "bool"])
def test_every_dtype_is_read(dtype: str, bundles: dict[tuple[str, str], Path], read: Any, tmp_path: Path) -> None:
    """A port's file need not be in the golden's dtype.  In float16 every other array is right; the rest is not."""
    made = golden.read_bundle(bundles["text", "full"])
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16) if dtype == "float16" else np.arange(-128, 128)
    computed: dict[str, np.ndarray] = {}
    for i, (name, array) in enumerate(made.taps.items()):
        right = dtype == "float16" and i % 2
        computed[name] = array.astype(np.float16) if right else np.resize(numbers.astype(dtype), array.shape)
    write_safetensors(tmp_path / "outputs.safetensors", computed, None)
    report = golden.check_port(made.folder, tmp_path / "outputs.safetensors", dtype="float16")
    want = [row.name for row in report.having(golden.FAILED, golden.MISSING)]
    assert (0 < len(want) < len(report.rows) - 20) == (dtype == "float16")
    code, lines = read(made.folder, tmp_path / "outputs.safetensors", "float16")
    assert (code, [line.partition(": ")[0] for line in lines[:-1]]) == (1, want)
