"""The benchmark, at tiny size: everybody computes the same or is an error, runs are counted as they are made, processes
end as they should, and the tables hold what was measured.  No time decides anything.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_cli import _here, d2v, refused  # noqa: F401 - a fixture

from d2v_ref.audit.counts import count_modules
from d2v_ref.bench import cases, children, machine, memory, peers, report, timing
from d2v_ref.bench.cases import CASES, Case
from d2v_ref.bench.engines import Engine, Loaded, Ours, Setup, default_engines, engine
from d2v_ref.bench.timing import ALLOWED, Timing, difference, in_turns, steps, time_case
from d2v_ref.errors import BackendError, ConformanceError, InputError, MissingPackageError
from d2v_ref.ops import Ops, backends

TINY = {
    "text": Case("tiny-text", "Data2VecTextModel", "tiny", (2, 9)),
    "vision": Case("tiny-vision", "Data2VecVisionForImageClassification", "tiny", (1, 3, 64, 64), {"num_labels": 7}),
    "audio": Case("tiny-audio", "Data2VecAudioForCTC", "tiny", (1, 2000)),
}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAUSE", 0.0)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line's cases are tiny ones."""
    monkeypatch.setattr(cases, "CASES", {case.name: case for case in TINY.values()})


def nothing() -> None:
    pass


# ---- cases -----------------------------------------------------------------------------------------------------------


def test_cases_are_models_that_take_their_input() -> None:
    assert [case.name for case in CASES.values()] == list(CASES)
    for case in CASES.values():
        config: Any = case.config()
        model = case.cls(config)
        assert config.hidden_size == {"base": 768, "large": 1024}[case.size]
        if case.argument == "input_ids":
            assert case.shape[1] <= config.max_length
        elif case.argument == "pixel_values":
            assert case.shape[1:] == (3, config.image_size, config.image_size)
            assert config.use_relative_position_bias
        else:
            assert case.shape[1] >= model.least_samples  # type: ignore[attr-defined]
    assert {case.cls.config_class.model_type for case in CASES.values() if case.size == "large"} == set(cases.INPUTS)


@pytest.mark.parametrize("case", TINY.values(), ids=TINY)
def test_every_process_has_the_same_case(case: Case, tmp_path: Path) -> None:
    again = Case.from_dict(json.loads(json.dumps(case.as_dict())))
    assert again == case
    first, second = case.weights(), again.weights()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    np.testing.assert_array_equal(case.given(), again.given())
    assert case.given().shape == case.shape
    outputs = Ours("numpy", "float32").load(Setup(case, 1, tmp_path)).run()
    assert all(np.isfinite(output).all() and output.std() > 0 for output in outputs.values())


# ---- engines ---------------------------------------------------------------------------------------------------------


def test_engines_have_their_own_names() -> None:
    names = [*peers.PEERS, "numpy", "numpy:float64"]
    assert [engine(name).name for name in names] == names
    assert engine("numpy:float32").name == "numpy"
    assert engine("numpy").dtype == "float32"
    assert [engine(name).name for name in default_engines()] == default_engines()
    assert set(default_engines()) >= {info.name for info in backends()} | set(peers.PEERS)


@pytest.mark.parametrize("name", ["", "nope", "torch:bfloat16", ":float32", "Numpy"])
def test_an_engine_that_nobody_is(name: str) -> None:
    with pytest.raises(InputError, match="no engine of this name"):
        engine(name)


def test_what_can_not_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = peers.importlib.util.find_spec
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    with pytest.raises(MissingPackageError, match=r"torch needs torch.*pip install 'd2v-ref\[bench\]'"):
        peers.PEERS["torch"].check()
    chosen, left_out = report.choose(["torch", "numpy:float16", "numpy", "numpy:float64", "numpy:float32"])
    assert [one.name for one in chosen] == ["numpy", "numpy:float64"]  # each once
    assert list(left_out) == ["torch", "numpy:float16"]
    assert "float16" in left_out["numpy:float16"]
    with pytest.raises(BackendError, match=r"no engine is left.*torch: .*pip install"):
        report.choose(["torch"])


# ---- the same computation --------------------------------------------------------------------------------------------


class Planted(Ours):
    """Ours, with an output changed."""

    def __init__(self, change: Callable[[np.ndarray], np.ndarray | None], dtype: str = "float32") -> None:
        super().__init__("numpy", dtype)
        self.name, self.change = "planted", change

    def load(self, setup: Setup) -> Loaded:
        right = Ours("numpy", "float32").load(setup).run()

        def run() -> dict[str, np.ndarray]:
            changed = {name: self.change(output.copy()) for name, output in right.items()}
            return {name: output for name, output in changed.items() if output is not None}

        return Loaded(run)


class TanhGelu(Ops):
    """The approximation that is most easily taken for the exact form."""

    def gelu(self, x: Any) -> Any:
        return self.gelu_tanh(x)


def nan_in_one(x: np.ndarray) -> np.ndarray:
    x.flat[-1] = np.nan
    return x


@pytest.mark.parametrize("case", TINY.values(), ids=TINY)
def test_what_is_told_of_a_case(case: Case, tmp_path: Path) -> None:
    told: list[None] = []
    engines: list[Engine] = [Ours("numpy", "float32"), Ours("numpy", "float64"), Planted(lambda x: x)]
    found = time_case(case, engines, 1, 3, 0, tmp_path, lambda: told.append(None))
    assert len(told) == steps(3, 3)
    assert [timed.engine for timed in found.engines] == ["numpy", "numpy:float64", "planted"]
    first, exact, planted = found.engines
    assert (first.difference, planted.difference) == (0.0, 0.0)
    assert 0 < exact.difference < 1e-5
    for timed in found.engines:
        assert len(timed.times) == 3
        assert timed.median == statistics.median(timed.times)
        assert timed.peak is None
    model = case.cls(case.config(), case.weights())
    assert found.multiply_adds == count_modules(model, {case.argument: case.given()})[0].total.multiply_adds
    assert Timing.from_dict(json.loads(json.dumps(found.as_dict()))) == found


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        (lambda x: x * 1.001, "float32"),
        (lambda x: x + 4e-5 * np.abs(x).max(), "float32"),
        (lambda x: x * 1.2, "bfloat16"),
        (lambda x: x[..., ::-1], "bfloat16"),
        (np.zeros_like, "bfloat16"),
        (nan_in_one, "bfloat16"),
        (lambda x: x[..., :1], "bfloat16"),
        (lambda x: x[None], "bfloat16"),
        (lambda x: None, "float32"),
    ],
)
def test_an_engine_that_computes_something_else(change: Any, dtype: str, tmp_path: Path) -> None:
    engines: list[Engine] = [Ours("numpy", "float32"), Planted(change, dtype)]
    with pytest.raises(ConformanceError, match=r"planted computes another .* than numpy"):
        time_case(TINY["text"], engines, 1, 1, 0, tmp_path, nothing)


@pytest.mark.parametrize("name", ["text", "audio"])  # in vision the layers' scale hides it at this size
def test_the_wrong_gelu_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("d2v_ref.bench.engines.get_ops", lambda backend, dtype: TanhGelu() if backend == "x" else Ops())
    with pytest.raises(ConformanceError, match="x computes another"):
        time_case(TINY[name], [Ours("numpy", "float32"), Ours("x", "float32")], 1, 1, 0, tmp_path, nothing)


def test_rounding_to_sixteen_bits_is_allowed_where_it_is_said(tmp_path: Path) -> None:
    def rounded(x: np.ndarray) -> np.ndarray:
        return (x.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)

    engines: list[Engine] = [Ours("numpy", "float32"), Planted(rounded, "bfloat16")]
    assert time_case(TINY["text"], engines, 1, 1, 0, tmp_path, nothing).engines[1].difference > ALLOWED["float32"]
    with pytest.raises(ConformanceError):
        time_case(TINY["text"], [engines[0], Planted(rounded, "float32")], 1, 1, 0, tmp_path, nothing)


NUMBERS = arrays(np.float32, st.integers(1, 9), elements=st.floats(-1e6, 1e6, width=32))


@given(NUMBERS, st.integers(-8, 8))
def test_the_difference_is_relative_to_the_largest_number(x: np.ndarray, power: int) -> None:
    y = x[::-1].copy()
    assert difference(x, x) == 0
    assert difference(y, x) == difference(y * 2.0**power, x * 2.0**power)
    assert 0 <= difference(y, x) <= 2 + 1e-6
    assert difference(x, x[:-1]) == np.inf


# ---- turns -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 5), st.data())
def test_turns(engines: int, repeat: int, data: Any) -> None:
    """Everybody runs in every turn, and peaks are asked for after it; the first does not count."""
    done: list[str] = []
    tells = data.draw(st.lists(st.booleans(), min_size=engines, max_size=engines))

    def loaded(name: str, peak: bool) -> Loaded:
        def tell() -> float:
            done.append(f"peak of {name}")
            return float(len(done))

        def run() -> dict[str, np.ndarray]:
            done.append(name)
            return {}

        return Loaded(run, tell if peak else None)

    names = [f"engine {i}" for i in range(engines)]
    turns: list[None] = []
    everybody = {name: loaded(name, peak) for name, peak in zip(names, tells, strict=True)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "PAUSE", 0.0)
        times, peaks = in_turns(everybody, repeat, 0, lambda: turns.append(None))
    told = [f"peak of {name}" for name, peak in zip(names, tells, strict=True) if peak]
    for turn in range(repeat + 1):
        of_turn = done[turn * (engines + len(told)) :][: engines + len(told)]
        assert sorted(of_turn[:engines]) == names
        assert of_turn[engines:] == told
    assert len(done) == (repeat + 1) * (engines + len(told))
    assert len(turns) == repeat + 1
    assert {name: len(taken) for name, taken in times.items()} == dict.fromkeys(names, repeat)
    assert all(len(peaks[name]) == (repeat + 1) * peak for name, peak in zip(names, tells, strict=True))


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("least", "seconds", "turns"), [(1, 4, 8), (8, 4, 8), (9, 4, 9), (3, 0, 3), (3, 3.75, 8)])
def test_short_cases_take_more_turns(least: int, seconds: float, turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many turns as fill the seconds, never fewer than the least; progress is told of the least."""
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(timing, "PAUSE", 0.125)

    def run() -> dict[str, np.ndarray]:
        clock.sleep(0.125)
        return {}

    told: list[None] = []
    times, _ = in_turns({"a": Loaded(run), "b": Loaded(run)}, least, seconds, lambda: told.append(None))
    assert times == dict.fromkeys("ab", [0.125] * turns)
    assert len(told) == 1 + least
    assert clock.now == 0.5 * (turns + 1)


def test_nobody_always_follows_the_same_one() -> None:
    done: list[str] = []

    def noting(name: str) -> Loaded:
        def run() -> dict[str, np.ndarray]:
            done.append(name)
            return {}

        return Loaded(run)

    in_turns({name: noting(name) for name in "abc"}, 30, 0, nothing)
    turns = ["".join(done[i : i + 3]) for i in range(0, len(done), 3)]
    assert set(turns) == {"".join(order) for order in itertools.permutations("abc")}


class Peaked(Ops):
    """A backend that can tell what its processor could do."""

    told: ClassVar[list[float]] = []

    def fma_peak(self) -> float:
        self.told.append(1e9 * (1 + len(self.told) % 3))
        return self.told[-1]


def test_the_peak_is_that_of_the_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"numpy": Ops, "peaked": Peaked}
    monkeypatch.setattr("d2v_ref.bench.engines.get_ops", lambda backend, dtype: made[backend](dtype))
    monkeypatch.setattr(Peaked, "told", [])
    engines: list[Engine] = [Ours("numpy", "float64"), Ours("numpy", "float32"), Ours("peaked", "float32")]
    found = time_case(TINY["text"], engines, 1, 4, 0, tmp_path, nothing)
    assert [timed.peak for timed in found.engines] == [None, *2 * [statistics.median(Peaked.told)]]
    assert len(Peaked.told) == 5


def test_others_take_a_share() -> None:
    share = machine.Others().share()
    assert share is None or 0 <= share <= 1
    assert machine.cores() >= 1


# ---- processes -------------------------------------------------------------------------------------------------------


def job_of(case: Case, folder: Path, *engines: str) -> dict[str, Any]:
    return {
        "kind": "time",
        "case": case.as_dict(),
        "engines": engines,
        "repeat": 2,
        "seconds": 0,
        "folder": str(folder),
    }


def test_a_case_in_a_process_of_its_own(tmp_path: Path) -> None:
    told: list[None] = []
    job = job_of(TINY["audio"], tmp_path, "numpy", "numpy:float64")
    found = Timing.from_dict(children.run("tiny", job, 1, lambda: told.append(None)))
    assert len(told) == steps(2, 2)
    here = time_case(TINY["audio"], [Ours("numpy", "float32"), Ours("numpy", "float64")], 1, 2, 0, tmp_path, nothing)
    assert found.multiply_adds == here.multiply_adds
    assert found.engines[1].difference == pytest.approx(here.engines[1].difference)


def test_the_error_of_a_process_is_the_callers(tmp_path: Path) -> None:
    wrong = Case("wrong", "Data2VecTextModel", "tiny", (1, 1000))
    with pytest.raises(InputError, match=r"^wrong: ") as found:
        children.run("wrong", job_of(wrong, tmp_path, "numpy"), 1)
    with pytest.raises(InputError) as here:
        time_case(wrong, [Ours("numpy", "float32")], 1, 1, 0, tmp_path, nothing)
    assert str(found.value) == f"wrong: {here.value}"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL"),
        ("raise SystemExit(7)", "exit code 7)"),
        ("raise ValueError('a peer of mine')", "exit code 1: ValueError: a peer of mine)"),
        ("print('{\"step\": 1}', flush=True); 1 / 0", "exit code 1: ZeroDivisionError"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_a_process_that_breaks_off(source: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "START", source.replace("{", "{{").replace("}", "}}"))
    with pytest.raises(BackendError, match=re.escape(says)) as error:
        children.run("mine", {}, 1)
    assert str(error.value).startswith("mine: the process that measures it failed")


def test_a_process_has_so_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import json, os; print(json.dumps(dict(result=dict(os.environ))))"
    monkeypatch.setattr(children, "START", source)
    monkeypatch.setenv("OMP_NUM_THREADS", "17")
    found = children.run("threads", {}, 3)
    assert {found[name] for name in children.THREADS} == {"3"}
    assert os.environ["OMP_NUM_THREADS"] == "17"


def test_what_libraries_print_is_no_part_of_the_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    noise = "import os, d2v_ref.bench.timing as t; t.count = lambda _: print('noise') or os.system('echo noise') or 5; "
    monkeypatch.setattr(children, "START", children.START.replace("; from", f"; {noise}from"))
    assert children.run("tiny", job_of(TINY["text"], tmp_path, "numpy"), 1)["multiply_adds"] == 5


def test_an_interrupted_process_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import os, time; print('{{\"step\": 1}}', flush=True); time.sleep(600)"
    monkeypatch.setattr(children, "START", source)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        children.run("long", {}, 1, interrupt)


# ---- memory ----------------------------------------------------------------------------------------------------------


@LINUX
def test_memory_is_that_of_a_process_that_only_runs_the_model() -> None:
    told: list[float] = []
    chosen, left_out = report.choose(["numpy", "numpy:float64"])
    found = report.measure_cases([TINY["text"]], chosen, left_out, 1, told.append)
    assert len(told) == len(found.memory) == 2
    for needed in found.memory:
        case, size = TINY[needed.case.removeprefix("tiny-")], 8 if needed.engine.endswith("64") else 4
        assert needed.weights == size * case.cls(case.config()).num_parameters()
        assert needed.activations > size * np.prod(case.shape)
        assert 10e6 < needed.before < needed.peak < needed.before + 100e6
        assert needed.share > needed.own_share > 0


@LINUX
def test_memory_that_is_wasted_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    waste = "import numpy; from d2v_ref.ops import Ops; define = Ops.layer_norm; "
    waste += "Ops.layer_norm = lambda *given: (numpy.ones(10**8, numpy.int8), define(*given))[1]; "
    monkeypatch.setattr(children, "START", children.START.replace("; from", f"; {waste}from"))
    (needed,) = report.measure_cases([TINY["text"]], [Ours("numpy", "float32")], {}, 1, lambda _: None).memory
    assert needed.activations > 100e6
    assert needed.peak - needed.before > 100e6


def test_memory_is_of_our_backends_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "check", nothing)
    with pytest.raises(InputError, match=r"got torch"):
        report.measure_cases([], [peers.PEERS["torch"]], {}, 1, lambda _: None)


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    with pytest.raises(BackendError, match="expected Linux"):
        report.measure_cases([], [Ours("numpy", "float32")], {}, 1, lambda _: None)


# ---- the command -----------------------------------------------------------------------------------------------------


def tables(text: str) -> list[list[dict[str, str]]]:
    """The rows of every table of a Markdown text, by column."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        columns, rule, *rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        assert all(set(cell) == {"-"} for cell in rule)
        found.append([dict(zip(columns, row, strict=True)) for row in rows])
    return found


@pytest.mark.usefixtures("tiny")
def test_the_command_prints_what_it_measured() -> None:
    engines = [word for name in ("numpy", "numpy:float64", "numpy:float16") for word in ("--engine", name)]
    result = d2v("bench", *engines, "--repeat", "3", "--seconds", "0", "--threads", "1", "--json", "all.json")
    assert result.code == 0, result
    assert re.fullmatch(r"left out: numpy:float16: [^\n]+\n", result.err)
    assert "1 threads" in result.out.splitlines()[0]
    assert f"numpy {np.__version__}" in result.out
    assert f"Left out: numpy:float16: {result.err.partition('float16: ')[2]}" in result.out
    values = json.loads(Path("all.json").read_text(encoding="utf-8"))
    times, *ratios, differences = tables(result.out)
    assert len(ratios) == 2
    assert [row["case"] for row in times] == [case.name for case in TINY.values()]
    for row, exact, found, case in zip(times, ratios[1], values["timings"], differences, strict=True):
        medians = {timed["engine"]: timed["median"] for timed in found["engines"]}
        for name, seconds in medians.items():
            assert float(row[name]) == pytest.approx(1e3 * seconds, abs=0.05)
        speed = 2e-9 * found["multiply_adds"] / medians["numpy:float64"]
        assert float(exact["GFLOP/s"]) == pytest.approx(speed, abs=0.5)
        assert float(case["numpy:float64"]) == pytest.approx(found["engines"][1]["difference"], rel=0.5)
        assert (exact["peak"], exact["share"]) == ("-", "-")


@LINUX
@pytest.mark.usefixtures("tiny")
def test_the_command_prints_memory() -> None:
    result = d2v("bench", "--memory", "--engine", "numpy", "--case", "tiny-text", "--json", "all.json")
    assert (result.code, result.err) == (0, "")
    ((row,),) = tables(result.out)
    (needed,) = json.loads(Path("all.json").read_text(encoding="utf-8"))["memory"]
    assert float(row["peak"]) == pytest.approx(needed["peak"] / 1e6, abs=0.5)
    share = needed["peak"] / (needed["weights"] + needed["activations"])
    assert float(row["peak / (weights + activations)"]) == pytest.approx(share, abs=0.005)


@pytest.mark.usefixtures("tiny")
def test_a_case_that_fails_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for i in (1, 2):
        monkeypatch.setitem(cases.CASES, f"wrong-{i}", Case(f"wrong-{i}", "Data2VecTextModel", "tiny", (1, 1000)))
    names = [word for name in ("wrong-1", "tiny-text", "wrong-2") for word in ("--case", name)]
    result = d2v("bench", *names, "--engine", "numpy", "--repeat", "1", "--seconds", "0", "--json", "all.json")
    assert result.code == 2
    assert [row["case"] for row in tables(result.out)[0]] == ["tiny-text"]
    assert re.fullmatch(r"d2v-ref: error: wrong-1: [^\n]+\nd2v-ref: error: wrong-2: [^\n]+\n", result.err)
    assert list(json.loads(Path("all.json").read_text(encoding="utf-8"))["failed"]) == ["wrong-1", "wrong-2"]


def test_ratios_and_shares() -> None:
    """Of given medians: half as long as the peer, at half of the peak."""
    ours = timing.Timed("fast", "float32", [0.5], 0.5, 0.0, 4e9)
    theirs = timing.Timed("torch", "float32", [1.0], 1.0, 1e-6, 4e9)
    found = report.Report(2, "a processor", 2, {}, ["fast"], {}, [Timing("a case", 500_000_000, 0.25, [ours, theirs])])
    times, ratios, differences = tables("\n".join(report.markdown(found)) + "\n")
    assert times == [{"case": "a case", "GFLOP": "1", "fast": "500", "torch": "1000", "runs": "1", "others": "25%"}]
    assert ratios == [{"case": "a case", "/ torch": "0.50", "GFLOP/s": "2", "peak": "4", "share": "0.50"}]
    assert differences == [{"case": "a case", "torch": "1e-06"}]


def test_wrong_use() -> None:
    refused("bench", "--case", "text-1x17", says="no case of this name (got 'text-1x17'; expected text-1x16 or")
    refused("bench", "--engine", "nope", says="no engine of this name")
    refused("bench", "--engine", "numpy:float16", says="no engine is left", code=3)
    refused("bench", "--json", "none/all.json", says="none: there is no such folder")
    refused("bench", "--memory", "--engine", "numpy", "--engine", "nope", says="no engine of this name")
    for wrong in (("--repeat", "0"), ("--threads", "0"), ("--seconds", "-1"), ("--seconds", "1.5")):
        assert "Usage: d2v-ref bench" in d2v("bench", *wrong).err
