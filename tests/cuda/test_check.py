"""The bookkeeping of ``python -m d2v_backends.cupy.check``: sections, seconds, the file; and its numbers in small."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cupy", reason="the CUDA packages are not installed: pip install 'd2v-ref[cuda-test]'")

import emulator
from d2v_backends.cupy import CupyOps, check, checking_numbers, checking_speed, checking_torch
from d2v_backends.cupy.check import Run, Section, chosen, exit_code, perform
from standin import StandIn

from d2v_ref.bench.cases import Case
from d2v_ref.errors import BackendError, InputError

TESTS = Path(__file__).parents[1]
TINY = (
    Case("text", "Data2VecTextModel", "tiny", (1, 9)),
    Case("vision", "Data2VecVisionForImageClassification", "tiny", (1, 3, 16, 16), {"num_labels": 3}),
)
compilable = pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))


def make(form: str, **options: Any) -> CupyOps:
    return CupyOps(form, StandIn(form), **options)


def run_of(**options: Any) -> Run:
    return Run(seed=7, tests=TESTS, make=make, **options)


# ---- sections


def test_a_section_that_fails_is_recorded_and_the_next_one_begins(tmp_path: Path) -> None:
    out, seen = tmp_path / "made" / "results.json", []

    def passes(run: Run) -> Any:
        seen.append("passes")
        return {"rate": np.float32(1.5)}

    def breaks(run: Run) -> Any:
        before = json.loads(out.read_text())["sections"]
        assert list(before) == ["passes"]  # each is on the disk before the next one begins
        raise ZeroDivisionError("of all things")

    def does_not_hold(run: Run) -> Any:
        run.hold(True, "this holds")
        run.hold(False, "this does not")
        with run.noting("a case"):
            raise RuntimeError("cudaErrorOf some kind")
        with run.noting("another case"):
            return 1

    def has_no_json(run: Run) -> Any:
        return {"error": math.nan}

    found = {"passes": passes, "breaks": breaks, "does_not_hold": does_not_hold, "has_no_json": has_no_json}
    report = perform({name: Section(10, find) for name, find in found.items()}, run_of(), out)
    assert json.loads(out.read_text()) == report | {
        "sections": json.loads(json.dumps(report["sections"], default=float))
    }
    states = {name: section["status"] for name, section in report["sections"].items()}
    assert states == {"passes": "passed", "breaks": "error", "does_not_hold": "failed", "has_no_json": "error"}
    assert report["sections"]["passes"]["result"] == {"rate": 1.5}
    assert "ZeroDivisionError: of all things" in report["sections"]["breaks"]["error"][-1]
    assert report["sections"]["does_not_hold"]["failures"] == [
        "this does not",
        "a case: RuntimeError: cudaErrorOf some kind",
    ]
    assert (report["seed"], exit_code(report)) == (7, 1)
    assert not list(out.parent.glob("*.tmp*")), "whole or not at all"


def test_a_section_has_its_seconds_and_all_have_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(check, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def works(run: Run) -> Any:
        done = 0
        while run.time_for(f"step {done}", 2):
            clock.now += 2
            done += 1
        return done

    sections = {name: Section(11, works) for name in ("first", "second", "third", "fourth")}
    report = perform(sections, run_of(), tmp_path / "results.json", total=25)["sections"]
    assert [report[name]["result"] for name in sections] == [5, 5, 2, 0]
    assert [report[name]["seconds"] for name in sections] == [10, 10, 4, 0]
    assert report["first"]["left_out"] == ["step 5"]
    clock.now = 200.0
    late = perform({"first": Section(11, works)}, run_of(), tmp_path / "results.json", total=0)["sections"]["first"]
    assert (late["status"], late["result"]) == ("out of time", None)
    assert exit_code({"sections": {"first": late}}) == 1
    assert exit_code(perform({"first": Section(1, lambda run: None)}, run_of(), tmp_path / "results.json")) == 0


def test_results_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match=r"file/results.json: the results can't be written"):
        perform({"first": Section(1, lambda run: None)}, run_of(), tmp_path / "file" / "results.json")


def test_sections_by_their_names() -> None:
    sections = check.every_section()
    assert list(chosen(None, sections)) == list(sections)
    assert list(chosen("tuning, environment", sections)) == ["environment", "tuning"]
    with pytest.raises(InputError, match=r"no such section .got 'speed'; expected environment or "):
        chosen("speed", sections)
    assert sum(section.seconds for section in sections.values()) <= 600
    assert check.TOTAL < 600


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.json"
    monkeypatch.setattr(CupyOps, "lacks", classmethod(lambda cls: BackendError("no card", hint="Get one")))
    assert check.main(["--out", str(out)]) == 3
    assert "no card. Get one" in capsys.readouterr().err
    monkeypatch.setattr(CupyOps, "lacks", classmethod(lambda cls: None))
    assert check.main([]) == 2
    assert check.main(["--out", str(out), "--sections", "everything"]) == 2
    assert not out.exists()
    good, bad = Section(5, lambda run: run.seed), Section(5, lambda run: run.hold(False, "wrong"))
    monkeypatch.setattr(check, "every_section", lambda: {"good": good, "bad": bad})
    assert check.main(["--out", str(out), "--sections", "good", "--seed", "5"]) == 0
    assert json.loads(out.read_text())["sections"]["good"]["result"] == 5
    assert check.main(["--out", str(out)]) == 1
    capsys.readouterr()


# ---- numbers


@compilable
def test_operations_are_held_and_a_fault_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import operation_calls

    monkeypatch.setattr(checking_numbers, "poisoned", lambda device: contextlib.nullcontext())  # as the stand-in's is
    monkeypatch.setattr(checking_numbers, "TURNS", 1)
    monkeypatch.setattr(operation_calls, "large_calls", lambda form: [])
    few = {name: operation_calls.CALLS[name] for name in ("gelu", "where")}
    monkeypatch.setattr(operation_calls, "CALLS", few)
    run = run_of()
    found = checking_numbers.operations(run)
    assert found["calls"] == dict.fromkeys(CupyOps.dtypes, 2)
    assert run.failures == []
    monkeypatch.setattr(CupyOps, "gelu", CupyOps.gelu_tanh)
    checking_numbers.operations(run)
    assert len(run.failures) >= 1
    assert "gelu: " in run.failures[0]
    with pytest.raises(InputError, match=r"the cases of operations are those of the tests.*--tests"):
        checking_numbers.operations(Run(7, tmp_path, make))


@compilable
def test_models_are_held_and_a_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking_numbers, "MODELS", TINY)
    monkeypatch.setattr(checking_torch, "why_not", lambda: "torch takes long to import")
    run = run_of()
    found = checking_numbers.models(run)
    assert list(found) == ["text", "vision"]
    assert all(one["error"] > 0 and one["torch"] is None for forms in found.values() for one in forms.values())
    assert found["text"]["float32"]["error"] < checking_numbers.GATES["float32"]
    assert not [failure for failure in run.failures if "float32" in failure]
    monkeypatch.setattr(CupyOps, "gelu", CupyOps.gelu_tanh)
    monkeypatch.setattr(CupyOps, "layer_norm", lambda self, x, weight, bias, eps: x)
    monkeypatch.setattr(CupyOps, "dtypes", ("float32",))
    run = run_of()
    checking_numbers.models(run)
    assert [failure for failure in run.failures if "vision, float32: error" in failure]


def test_a_distance_that_is_no_number() -> None:
    exact = np.array([3.0, 4.0])
    assert checking_numbers.distance(exact + np.array([0.0, 0.5]), exact) == pytest.approx(0.1)
    assert checking_numbers.distance(np.array([np.nan, 4.0]), exact) == checking_numbers.NOTHING_HOLDS


@compilable
def test_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking_torch, "why_not", lambda: "torch takes long to import")
    monkeypatch.setattr(checking_speed, "LATENCY", TINY[:1])
    monkeypatch.setattr(checking_speed, "THROUGHPUT", TINY[:1])
    monkeypatch.setattr(checking_speed, "GFLOP", {"text": 1.0})
    monkeypatch.setattr(checking_speed, "OURS", (("float32", True), ("float32", False)))
    monkeypatch.setattr(checking_speed, "LEAST", 2)
    monkeypatch.setattr(checking_speed, "SECONDS", 0.0)
    for section in (checking_speed.latency, checking_speed.throughput):
        found = section(run_of())
        assert found["torch"] == "torch takes long to import"
        assert set(found["text"]) == {"gflop", "float32, graphs on", "float32, graphs off"}
        assert all(value > 0 for value in found["text"].values())
    assert section(run_of(end=-1.0))["text"] == {"gflop": 1.0}


def test_inputs_differ() -> None:
    given = checking_speed.inputs(TINY[0])
    assert len({x.tobytes() for x in given}) == len(given) > 1
    assert {x.shape for x in given} == {(1, 9)}
