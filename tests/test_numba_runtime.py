"""The Numba backend's cache of compiled kernels, what it says about it, `d2v-ref warmup`, and its threads.

Nearly all of it is about processes, so that nearly all of it runs in processes of its own.  Only ``warm`` compiles
every kernel; what else compiles takes kernels that are compiled in a moment.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="backend numba needs the package numba")

from d2v_backends import numba_cpu
from d2v_backends.numba_cpu import cache, compiling, threads
from d2v_backends.numba_cpu.compiling import Kernel

from d2v_ref.auto import load
from d2v_ref.cli import main
from d2v_ref.errors import BackendError

pty: Any = pytest.importorskip("pty") if sys.platform != "win32" else None
Done = subprocess.CompletedProcess[str]
ROOT = Path(__file__).parents[1]
SAYS = "d2v_ref: compiling kernels for this processor"
NO_WORDS = {"D2V_QUIET": "", "D2V_NUM_THREADS": "", "NUMBA_NUM_THREADS": "3", "NUMBA_THREADING_LAYER": "default"}
MODELS = ("tiny-text", "tiny-audio", "tiny-vision")
linux = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
terminal = pytest.mark.skipif(pty is None, reason="there is no pseudo-terminal")

# Models and inputs that several threads share, and the answers as bits.
COMPUTE = """
import os, sys, threading
import numpy as np
from d2v_backends.numba_cpu import NumbaOps
from d2v_ref.auto import load

def model_of(name, threads=2):
    return load(name, backend=NumbaOps(threads=threads))

def inputs_of(name):
    random = np.random.default_rng(0)
    if name == "tiny-text":
        return random.integers(5, 90, (2, 60))
    return random.normal(size=(1, 8000) if name == "tiny-audio" else (2, 3, 32, 32)).astype(np.float32)

def bits(model, x):
    out = model(x)
    return out[next(key for key in ("logits", "last_hidden_state") if key in out)].tobytes()

def child(work):
    pid = os.fork()
    if pid:
        status = os.waitpid(pid, 0)[1]
        assert status == 0, f"the child ended with {status}"
        return
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(1)
"""
SMALL = """
import sys
import numpy as np
from d2v_backends.numba_cpu import NumbaOps
ops, x = NumbaOps(threads=2), np.linspace(-3, 3, 12000, dtype=np.float32).reshape(2, 6000)
sys.stdout.write(ops.{}(x).tobytes().hex() + ops.{}(x).tobytes().hex())
"""
SMALL = SMALL.format("softmax", "glu")


def environment(folder: Path, **changes: str) -> dict[str, str]:
    return {**os.environ, **NO_WORDS, "PYTHONPATH": str(ROOT), "D2V_CACHE_DIR": str(folder), **changes}


def python(code: str, folder: Path, **changes: str) -> Done:
    """A program in a process of its own, which must end well."""
    program = [sys.executable, "-c", textwrap.dedent(code)]
    env, cwd = environment(folder, **changes), folder.parent
    done = subprocess.run(program, env=env, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def d2v(*arguments: str, folder: Path, **changes: str) -> Done:
    command = [sys.executable, "-m", "d2v_ref", *arguments]
    env = environment(folder, **changes)
    return subprocess.run(command, env=env, cwd=folder.parent, capture_output=True, text=True, timeout=300, check=False)


def kernels(folder: Path) -> dict[str, int]:
    """The kernels that are kept, and when they were written; and that nothing else is left there."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert all(path.suffix == ".kernel" for path in files), files
    return {path.name: path.stat().st_mtime_ns for path in files}


def path_of(folder: Path, name: str) -> Path:
    (found,) = folder.rglob(f"{name}.kernel")
    return found


@pytest.fixture(scope="module", autouse=True)
def warming(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Future[Done]]]:
    """`d2v-ref warmup` of an empty cache, beside the tests that do without it."""
    folder = tmp_path_factory.mktemp("kernels")
    with ThreadPoolExecutor(1) as pool:
        yield folder, pool.submit(d2v, "warmup", folder=folder)


@pytest.fixture(scope="module")
def warm(warming: tuple[Path, Future[Done]]) -> Path:
    """Every kernel of float32, as `d2v-ref warmup` leaves it."""
    folder, done = warming
    assert done.result().returncode == 0, done.result().stderr
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A cache in which one small program has kept what it compiled."""
    folder = tmp_path_factory.mktemp("small")
    return folder, python(SMALL, folder)


@pytest.fixture
def copied(small: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(small[0], tmp_path / "cache"))


# ---- the cache


def test_a_second_process_compiles_nothing(small: tuple[Path, Done]) -> None:
    folder, first = small
    before = kernels(folder)
    assert set(before) == {"run.kernel", "softmax-f.kernel", "glu-f.kernel"}
    second = python(SMALL, folder)
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert kernels(folder) == before


def test_what_is_compiled_is_said_once_with_the_place(small: tuple[Path, Done]) -> None:
    folder, first = small
    assert first.stderr.count("\n") == 1
    assert first.stderr.startswith(SAYS)
    assert str(path_of(folder, "run").parent) in first.stderr
    assert "d2v-ref warmup" in first.stderr


def test_kernels_of_another_processor_or_source_are_others(tmp_path: Path) -> None:
    """And the package's folder may be read-only."""
    package = tmp_path / "d2v_backends" / "numba_cpu"
    spec = find_spec("d2v_backends.numba_cpu")
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parents[1], package.parent, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from d2v_backends.numba_cpu import cache; print(cache.__file__, cache.folder())"
    more = {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT))), "PYTHONDONTWRITEBYTECODE": "1"}

    def place(**changes: str) -> str:
        file, where = python(code, tmp_path / "cache", **{**more, **changes}).stdout.split()
        assert Path(file).parent == package
        return where

    plain = place()
    generic, slow = place(NUMBA_CPU_NAME="generic"), place(NUMBA_OPT="1")
    with (package / "rows.py").open("a") as file:
        file.write("# another text\n")
    assert len({plain, generic, slow, place()}) == 4
    before = tree(package.parent)
    for folder in (package, package.parent):
        folder.chmod(0o555)
    try:
        assert python(SMALL, tmp_path / "cache", **more).stderr.startswith(SAYS)
    finally:
        for folder in (package.parent, package):
            folder.chmod(0o755)
    assert tree(package.parent) == before


def tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_can_not_be_written_is_warned_of_once_and_no_obstacle(
    small: tuple[Path, Done], tmp_path: Path
) -> None:
    no_folder = tmp_path / "file"
    no_folder.touch()
    done = python(SMALL, no_folder)
    assert done.stdout == small[1].stdout
    assert done.stderr.count("UserWarning") == 1
    assert re.search(rf"can't be kept in {no_folder}\S* \(Not a directory\).*set D2V_CACHE_DIR", done.stderr)


def test_damaged_files_are_compiled_again_and_replaced(small: tuple[Path, Done], copied: Path) -> None:
    run, softmax, glu = (path_of(copied, name) for name in ("run", "softmax-f", "glu-f"))
    kept = softmax.read_bytes()
    run.write_bytes(run.read_bytes()[:1000])
    softmax.write_bytes(kept[:5000] + bytes([kept[5000] ^ 1]) + kept[5001:])
    glu.write_bytes(kept)  # whole, but another kernel
    before = kernels(copied)
    again = python(SMALL, copied)
    assert again.stdout == small[1].stdout
    assert again.stderr.startswith(SAYS)
    after = kernels(copied)
    assert all(after[name] != before[name] for name in before)
    assert python(SMALL, copied).stderr == ""


def test_two_processes_may_compile_the_same_at_once(small: tuple[Path, Done], tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: python(SMALL, tmp_path), range(2)))
    assert [done.stdout for done in both] == [small[1].stdout] * 2
    assert set(kernels(tmp_path)) == set(kernels(small[0]))
    assert python(SMALL, tmp_path).stderr == ""


def test_the_place_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("D2V_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache.cache_root() == tmp_path / ".cache" / "d2v_ref"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_root() == tmp_path / "xdg" / "d2v_ref"
    monkeypatch.setenv("D2V_CACHE_DIR", str(tmp_path / "own"))
    assert cache.cache_root() == tmp_path / "own"
    assert cache.folder().is_relative_to(tmp_path / "own")


def test_no_home_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("D2V_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(BackendError, match=r"no home folder .*D2V_CACHE_DIR"):
        cache.folder()


# ---- d2v-ref warmup


def test_warmup_says_what_it_did_and_where(warm: Path, warming: tuple[Path, Future[Done]]) -> None:
    done = warming[1].result()
    words, where = done.stdout.splitlines()
    assert re.fullmatch(rf"numba, float32: {len(kernels(warm))} compiled, 0 were there, \d+ s", words)
    assert where == f"kept in {path_of(warm, 'run').parent}"
    assert done.stderr == ""


def test_warmup_compiles_what_is_missing(warm: Path, tmp_path: Path) -> None:
    folder = without(warm, tmp_path / "cache", "glu-f")
    done = d2v("warmup", "--backend", "numba", "--dtype", "float32", folder=folder)
    assert done.stdout.startswith(f"numba, float32: 1 compiled, {len(kernels(warm)) - 1} were there, ")
    assert kernels(folder).keys() == kernels(warm).keys()


def test_after_warmup_no_model_compiles_anything(warm: Path) -> None:
    before = kernels(warm)
    code = f"{COMPUTE}\nfor name in {MODELS}: bits(model_of(name), inputs_of(name))"
    assert python(code, warm).stderr == ""
    assert kernels(warm) == before


def test_what_is_on_the_disk_is_loaded_with_the_operations(warm: Path) -> None:
    """Before there is a model, so that LLVM's memory can be given back, and it still compiles."""
    code = """
    from numba import njit
    from d2v_backends.numba_cpu import NumbaOps
    from d2v_backends.numba_cpu.compiling import Kernel

    NumbaOps("float32")
    assert all("f" * kernel.likes in kernel.addresses for kernel in Kernel.made.values())
    assert njit(lambda x: x + 1)(1) == 2
    """
    assert python(code, warm).stderr == ""


def test_nothing_is_compiled_before_it_is_needed(tmp_path: Path) -> None:
    code = """
    from d2v_backends.numba_cpu import NumbaOps
    from d2v_backends.numba_cpu.compiling import Kernel

    NumbaOps("float32")
    assert not any(kernel.addresses for kernel in Kernel.made.values())
    """
    folder = tmp_path / "kernels"
    folder.mkdir()
    assert python(code, folder).stderr == ""
    assert not kernels(folder)


@pytest.mark.parametrize("dtype", numba_cpu.NumbaOps.dtypes)
def test_warmup_knows_every_kernel_that_a_model_calls(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where this processor can't compute in the dtype: nothing is compiled here, and nothing computed."""
    called: set[str] = set()

    def note(self: Kernel, likes: str) -> None:
        called.add(f"{self.name}-{likes}")
        self.addresses[likes] = 0

    monkeypatch.setattr(Kernel, "compile", note)
    monkeypatch.setattr(compiling, "run", lambda *_: None)
    monkeypatch.setattr(numba_cpu, "TARGET", numba_cpu.TARGET._replace(bfloat16=True))
    for kernel in Kernel.made.values():
        monkeypatch.setattr(kernel, "addresses", {})
        monkeypatch.setattr(kernel, "called", {})
    known = set(numba_cpu.NumbaOps.kernels(dtype).compilers)
    random = np.random.default_rng(0)
    inputs = random.integers(5, 90, (2, 60)), random.normal(size=(1, 8000)), random.normal(size=(2, 3, 32, 32))
    with np.errstate(all="ignore"):
        for name, x in zip(MODELS, inputs, strict=True):
            load(name, backend=numba_cpu.NumbaOps(dtype))(x)
    assert {"linear", "attention", "conv1d", "layer_norm"} <= {name.partition("-")[0] for name in called}
    assert called <= known


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--backend", "numpy"], 0, "numpy: there is nothing to compile"),
        (["--dtype", "float16"], 3, "numba does not compute in this dtype .got float16; expected float32 or float64"),
        (["--backend", "fast"], 3, "no backend is called 'fast'"),
    ],
)
def test_warmup_of_what_has_no_kernels(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["warmup", *arguments])
    said = capsys.readouterr()
    assert end.value.code == code
    assert (said.out, said.err)[code == 0] == ""
    assert re.search(words, said.out + said.err)


def test_warmup_is_an_error_where_nothing_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = d2v("warmup", folder=tmp_path / "file")
    words = r"/file/kernels/\S*: compiled kernels can't be kept .got Not a directory.. Set D2V_CACHE_DIR"
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(rf"d2v-ref: error: .*{words}.*\n", done.stderr)


# ---- what is said


def without(warm: Path, target: Path, *names: str) -> Path:
    """A copy of a cache that some kernels are missing in."""
    shutil.copytree(warm, target)
    for name in names:
        path_of(target, name).unlink()
    return target


def test_quiet_is_quiet(warm: Path, tmp_path: Path) -> None:
    folder = without(warm, tmp_path / "cache", "layer_norm-f")
    done = d2v("run", "tiny-text", "a small <mask>", "--backend", "numba", folder=folder, D2V_QUIET="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def on_terminal(command: list[str], env: dict[str, str]) -> tuple[int, str, str]:
    """Exit code, standard output, and what a terminal as standard error was sent."""
    master, slave = pty.openpty()
    with subprocess.Popen(command, env={**env, "TERM": "xterm"}, stdout=subprocess.PIPE, stderr=slave) as process:
        os.close(slave)
        assert process.stdout is not None
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(process.stdout.read)
            said = b""
            while True:
                try:
                    said += os.read(master, 65536)
                except OSError:  # EIO: nobody has it open any more
                    break
            out = reading.result()
    os.close(master)
    return process.returncode, out.decode(), said.decode()


@terminal
def test_a_terminal_sees_the_kernel(warm: Path, tmp_path: Path) -> None:
    """And nothing of it is left there, nor goes to standard output."""
    folder = without(warm, tmp_path / "cache", "layer_norm-f")
    command = [sys.executable, "-m", "d2v_ref", "run", "tiny-text", "a small <mask>", "--json", "--backend", "numba"]
    code, out, said = on_terminal(command, environment(folder))
    assert code == 0, said
    assert json.loads(out)
    assert said.startswith(SAYS)
    assert "compiling layer_norm-f" in said
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")  # the cursor is shown again


@terminal
def test_beside_a_progress_bar_lines_are_said_above_it(warm: Path, tmp_path: Path) -> None:
    folder = without(warm, tmp_path / "cache", "layer_norm-f", "softmax-f")
    texts = ["a small <mask>", "a large <mask>", "a <mask>"]
    command = [sys.executable, "-m", "d2v_ref", "run", "tiny-text", *texts, "--batch-size", "1", "--json"]
    code, out, said = on_terminal([*command, "--backend", "numba"], environment(folder))
    assert code == 0, said
    assert len(json.loads(out)) == 3
    plain = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip() for line in re.split(r"[\r\n]+", said)]
    assert any(line.startswith(SAYS) for line in plain)
    assert any("fill-mask" in line for line in plain)
    assert "d2v_ref: compiling layer_norm-f" in plain


@terminal
def test_what_can_not_be_compiled_leaves_nothing_behind(tmp_path: Path) -> None:
    code = """
    import threading
    import numpy as np
    from d2v_backends.numba_cpu.compiling import Real, kernel

    @kernel
    def impossible(team, x: int, like: Real):
        x.nothing()

    @kernel
    def possible(team, x: int, like: Real):
        team[0][0] = x

    try:
        impossible(1, 2, np.float32(0))
    except Exception as error:
        print("nothing" in str(error))
    possible(1, 2, np.float32(0))
    print([thread.name for thread in threading.enumerate()])
    """
    result, out, said = on_terminal([sys.executable, "-c", textwrap.dedent(code)], environment(tmp_path))
    assert (result, out) == (0, "True\n['MainThread']\n"), said
    assert said.index("compiling impossible-f") < said.index("compiling possible-f")
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")


# ---- how many threads


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (0, "threads is no number of threads .got 0; expected 1 or more"),
        (-1, "got -1"),
        (True, "got True"),
        (1.0, r"got 1\.0"),
        (float("inf"), "got inf"),
        ("two", "got 'two'"),
        (np.ones(2, int), "got array"),
        (100_000, r"threads is more than Numba's pool has .got 100000; expected 1 ... \d+.*NUMBA_NUM_THREADS"),
    ],
)
def test_what_is_no_number_of_threads(asked: Any, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        numba_cpu.NumbaOps(threads=asked)


@pytest.mark.parametrize("given", ["0", "-2", "1.5", "many", "99999999"])
def test_a_wrong_variable_is_named(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D2V_NUM_THREADS", given)
    with pytest.raises(BackendError, match="D2V_NUM_THREADS is "):
        numba_cpu.NumbaOps()
    assert numba_cpu.NumbaOps(threads=1).threads == 1


def test_the_argument_then_the_variable_then_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.numba.config, "NUMBA_NUM_THREADS", 7)
    monkeypatch.setenv("D2V_NUM_THREADS", "3")
    assert numba_cpu.NumbaOps(threads=2).threads == 2
    assert numba_cpu.NumbaOps(threads=np.int64(5)).threads == 5
    assert numba_cpu.NumbaOps().threads == 3
    monkeypatch.setenv("D2V_NUM_THREADS", "")
    assert numba_cpu.NumbaOps().threads == 7


def test_as_many_threads_work_as_were_asked_for(tmp_path: Path) -> None:
    """Each waits until all are there: fewer would wait for ever."""
    code = """
    import numpy as np
    from d2v_backends.numba_cpu.compiling import Real, kernel
    from d2v_backends.numba_cpu.pointers import pointer
    from d2v_backends.numba_cpu.tasks import add_up

    @kernel
    def meet(team, out: int, like: Real):
        counter, thread, threads = team
        add_up(counter, 1)
        while add_up(counter, 0) < threads:
            pass
        pointer(out, np.int64(0))[thread] += 1

    for threads in (1, 2, 3, 2):
        out = np.zeros(4, np.int64)
        meet(threads, out.ctypes.data, np.float32(0))
        print(*out, sep="", end=" ")
    """
    assert python(code, tmp_path).stdout == "1000 1100 1110 1100 "


def test_any_number_of_threads_gives_the_same_bits(warm: Path) -> None:
    code = f"""{COMPUTE}
for name in {MODELS}:
    x = inputs_of(name)
    assert len({{bits(model_of(name, threads), x) for threads in (1, 2, 3)}}) == 1, name
"""
    python(code, warm)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"NUMBA_THREADING_LAYER": "none"}, "Numba can't start its threads: .*got none.*Unset NUMBA_THREADING_LAYER"),
        ({"NUMBA_DISABLE_JIT": "1"}, "Numba was told to compile nothing. Unset NUMBA_DISABLE_JIT"),
    ],
)
def test_settings_of_numba_that_nothing_can_run_with(changes: dict[str, str], words: str, tmp_path: Path) -> None:
    arguments = ["run", "tiny-text", "a small <mask>", "--backend", "numba"]
    done = d2v(*arguments, folder=tmp_path, D2V_QUIET="1", **changes)
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(rf"d2v-ref: error: .*{words}\n", done.stderr)


# ---- several Python threads

AT_ONCE = (
    COMPUTE
    + """
from concurrent.futures import ThreadPoolExecutor
models = [model_of(name, threads) for name in ("tiny-text", "tiny-vision") for threads in (1, 2, 3)]
inputs = [inputs_of("tiny-text")] * 3 + [inputs_of("tiny-vision")] * 3
together = threading.Barrier(4)

def first(i):  # kernels are loaded and threads launched by all of them at once
    together.wait()
    return bits(models[i], inputs[i])

with ThreadPoolExecutor(4) as pool:
    early = list(pool.map(first, (0, 1, 4, 5)))
    alone = [bits(model, x) for model, x in zip(models, inputs)]
    assert early == [alone[i] for i in (0, 1, 4, 5)]
    turns = [i for _ in range(25) for i in (0, 1, 1, 2, 3, 4, 5, 5)]
    found = list(pool.map(lambda i: bits(models[i], inputs[i]) == alone[i], turns))
    assert all(found), found.count(False)
import numba
print(numba.threading_layer())
"""
)


@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_python_threads_at_once_on_one_model_and_on_several(layer: str, warm: Path) -> None:
    """Numba's own work queue ends the process where two threads come in at a time."""
    used = python(AT_ONCE, warm, NUMBA_THREADING_LAYER=layer).stdout.strip()
    assert used == layer or layer == "default"


# ---- fork

FORKS = (
    COMPUTE
    + """
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
from numba.core.compiler_lock import global_compiler_lock
x, one, two = inputs_of("tiny-text"), model_of("tiny-text", 1), model_of("tiny-text", 2)
alone = bits(one, x)  # in this thread alone: the others have not begun

def right(model=two):
    assert bits(model, x) == alone, "other bits"

def answer(_):
    return bits(two, x)

def in_child_and_grandchild():
    right()
    child(right)
"""
)


@linux
def test_a_fork_computes(warm: Path) -> None:
    """With one thread, where the parent has computed with several: GNU OpenMP ends a process that tries otherwise."""
    code = """
child(in_child_and_grandchild)  # where the threads begin
right()
child(in_child_and_grandchild)
with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
    assert list(pool.map(answer, range(6))) == [alone] * 6

done = threading.Event()
def keep_computing():
    while not done.is_set():
        right()
other = threading.Thread(target=keep_computing)
other.start()
for _ in range(10):
    child(right)
done.set()
other.join()

compiles = threading.Event()
def compile_something():
    with global_compiler_lock:
        compiles.set()
        time.sleep(0.3)
other = threading.Thread(target=compile_something)
other.start()
compiles.wait()
child(lambda: bits(model_of("tiny-vision"), inputs_of("tiny-vision")))  # which has kernels to load
other.join()
right()
"""
    assert python(f"{FORKS}\n{code}", warm).stderr == ""


@linux
def test_a_fork_computes_after_somebody_elses_parallel_loop(warm: Path) -> None:
    code = """
import numba

@numba.njit(parallel=True)
def fill(x):
    for i in numba.prange(x.size):
        x[i] = i

fill(np.zeros(9))
child(in_child_and_grandchild)
right()
"""
    assert python(f"{FORKS}\n{code}", warm).stderr == ""
