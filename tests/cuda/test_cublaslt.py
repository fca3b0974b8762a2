"""Products through cuBLASLt: its descriptors are real, its arithmetic is ``gemm_on_cpu``'s."""

from __future__ import annotations

import ctypes
import json
import math
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("cupy", reason="the CUDA packages are not installed: pip install 'd2v-ref[cuda-test]'")

from allowances import Allowances, outside
from d2v_backends.cupy import cublaslt as lt
from d2v_backends.cupy import products, tuning
from d2v_backends.cupy.products import FORMATS, Products
from gemm_on_cpu import PREFIXES, CpuLibrary, header, header_text, in_tf32, stored
from operands import in_format

from d2v_ref.errors import BackendError, InputError

NOWHERE = Path("/dev/null/nowhere")  # a file that can't be written
STREAM = SimpleNamespace(ptr=7, is_capturing=lambda: False)


class OnCard(np.ndarray):
    """A NumPy array that tells its address as CuPy's do.

    Attributes:
        memory: the bytes that it lies among.
    """

    memory: np.ndarray

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.ctypes.data)


def memory(size: int) -> Any:
    """Aligned as CuPy's memory is."""
    raw = np.empty(size + 512, np.uint8)
    return SimpleNamespace(ptr=-(-raw.ctypes.data // 512) * 512, raw=raw)


def card(values: np.ndarray, form: str, *, padding: int = 0, offset: int = 0) -> OnCard:
    """Numbers in a format's storage, in rows with NaN between them, so many numbers after an aligned address."""
    dtype = stored(FORMATS[form][0])
    shape = (*values.shape[:-1], values.shape[-1] + padding)
    count = offset + math.prod(shape)
    at = memory(count * dtype.itemsize)
    numbers = at.raw[at.ptr - at.raw.ctypes.data :][: count * dtype.itemsize].view(dtype)
    numbers[...] = np.nan
    x = numbers[offset:].reshape(shape)[..., : values.shape[-1]].view(OnCard)
    x[...] = values
    x.memory = numbers.view(np.uint8)
    return x


@pytest.fixture
def library() -> CpuLibrary:
    return CpuLibrary()


def at_once(run: Callable[[], None], *_: Any) -> float:
    """A stopwatch that finds all algorithms equal."""
    run()
    return 1.0


def operands(form: str = "float32", rows: int = 5, outputs: int = 3, depth: int = 4) -> dict[str, Any]:
    random = np.random.default_rng(rows)
    shapes = {"x": (rows, depth), "weight": (outputs, depth), "bias": (outputs,), "residual": (rows, outputs)}
    drawn = {name: card(random.standard_normal(shape), form) for name, shape in shapes.items()}
    return {**drawn, "out": card(np.full((rows, outputs), np.nan), form)}


def wrong(form: str, got: Any, given_: dict[str, Any]) -> str | None:
    """How a result differs from ``Ops.linear`` of the operands, or None."""
    exact: Any = {name: x if x is None else np.asarray(x).astype(np.float64) for name, x in given_.items()}
    form = "float32" if form == "tf32" else form
    want = Allowances(form).linear(exact["x"], exact["weight"], exact["bias"], residual=exact["residual"])
    return outside(np.asarray(got).astype(np.float64), want, form)


# ---- the header


def test_every_number_is_the_header_s() -> None:
    own = {name: number for name, number in vars(lt).items() if re.match(r"CUBLAS|CUDA_R", name)}
    assert own == {name: header()[name] for name in own}
    for kind in (lt.MatrixLayout, lt.MatmulDesc, lt.MatmulPreference):
        numbers = {name: number for name, (number, _) in kind.attributes.items()}
        assert numbers == {name: header()[PREFIXES[kind.kind] + name] for name in numbers}


def test_the_structures_are_the_header_s() -> None:
    words = re.search(r"uint64_t data\[(\d+)\];\s*} cublasLtMatmulAlgo_t", header_text())
    assert words is not None
    assert ctypes.sizeof(lt.Words) == 8 * int(words[1])
    body = re.search(r"typedef struct \{((?:(?!typedef).)*)} cublasLtMatmulHeuristicResult_t", header_text(), re.DOTALL)
    assert body is not None
    kinds = {"cublasLtMatmulAlgo_t": lt.Words, "size_t": ctypes.c_size_t, "cublasStatus_t": ctypes.c_int}
    kinds |= {"float": ctypes.c_float, "int": ctypes.c_int}
    members = re.findall(r"^\s*(\w+) (\w+)(?:\[(\d+)\])?;", body[1], re.MULTILINE)
    told = [(name, kinds[kind] * int(count) if count else kinds[kind]) for kind, name, count in members]
    assert told == lt.Heuristic._fields_


def test_descriptors_hold_what_they_are_given(library: CpuLibrary) -> None:
    made = {
        "MatrixLayout": lt.MatrixLayout(library, lt.CUDA_R_16F, 8, 5, 9),
        "MatmulDesc": lt.MatmulDesc(library, lt.CUBLAS_COMPUTE_32F_FAST_TF32, lt.CUDA_R_32F),
        "MatmulPreference": lt.MatmulPreference(library),
    }
    for kind, descriptor in made.items():
        for value, (name, (_, held)) in enumerate(descriptor.attributes.items(), start=1):
            descriptor.set(name, value)
            assert library.get(descriptor.pointer, PREFIXES[kind] + name) == value
            assert library.sizes[PREFIXES[kind] + name][2] == ctypes.sizeof(held)
    assert library.matrix(made["MatrixLayout"].pointer)[:4] == (lt.CUDA_R_16F, 8, 5, 9)
    desc = made["MatmulDesc"].pointer
    assert library.get(desc, "CUBLASLT_MATMUL_DESC_COMPUTE_TYPE") == lt.CUBLAS_COMPUTE_32F_FAST_TF32
    assert library.get(desc, "CUBLASLT_MATMUL_DESC_SCALE_TYPE") == lt.CUDA_R_32F


def test_what_the_library_refuses_is_named(library: CpuLibrary) -> None:
    layout = lt.MatrixLayout(library, lt.CUDA_R_32F, 8, 5, 8)
    layout.attributes = {"NOTHING": (1000, ctypes.c_int32)}
    with pytest.raises(BackendError, match=r"cublasLtMatrixLayoutSetAttribute failed .got CUBLAS_STATUS_INVALID_VALUE"):
        layout.set("NOTHING", 1)


def test_a_library_that_is_missing_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import cuda.pathfinder as pathfinder

    def nowhere(name: str) -> None:
        raise RuntimeError(f"Failure finding {name}\n  and where it looked")

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", nowhere)
    with pytest.raises(BackendError, match=r"cublasLt was not found .got Failure finding cublasLt.*cuda13x"):
        lt.Library()


# ---- products


@st.composite
def calls(draw: Callable[[Any], Any]) -> tuple[str, dict[str, Any]]:
    """A format, and the operands of a call: any sizes, rows that are apart or overlap, any alignment."""
    form = draw(st.sampled_from(sorted(FORMATS)))
    batch, rows, outputs, depth = (draw(st.integers(1, most)) for most in (3, 9, 9, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lead = (batch, rows) if draw(st.booleans()) else (rows,)

    def numbers(*shape: int) -> np.ndarray:
        values = in_format(random.standard_normal(shape), "float32" if form == "tf32" else form)
        return in_tf32(values.astype(np.float32)) if form == "tf32" else values

    def placed(values: np.ndarray) -> OnCard:
        return card(values, form, padding=draw(st.integers(0, 2)), offset=draw(st.integers(0, 3)))

    if draw(st.booleans()):  # windows of a signal
        step = draw(st.integers(1, depth + 1))
        signal = placed(numbers(*lead[:-1], (rows - 1) * step + depth))
        size = signal.itemsize
        strides = (*signal.strides[:-1], step * size, size)
        x = np.lib.stride_tricks.as_strided(signal, (*lead, depth), strides, subok=True)
    else:
        x = placed(numbers(*lead, depth))
    bias = card(numbers(outputs), form, offset=draw(st.integers(0, 3))) if draw(st.booleans()) else None
    out, residual = placed(np.full((*lead, outputs), np.nan)), None
    match draw(st.sampled_from(("none", "other", "in place"))):
        case "other":
            residual = placed(numbers(*lead, outputs))
        case "in place":
            out[...] = numbers(*lead, outputs)
            residual = out
    return form, {"x": x, "weight": placed(numbers(outputs, depth)), "out": out, "bias": bias, "residual": residual}


@settings(max_examples=300)
@given(calls(), st.booleans())
def test_a_product_is_ops_linear(call: tuple[str, dict[str, Any]], tuned: bool) -> None:
    form, given_ = call
    out = given_["out"]
    before = {name: None if x is None else x.copy() for name, x in given_.items()}
    around = out.memory.copy()
    tuner = tuning.Tuner(form, NOWHERE, at_once) if tuned else None
    Products(form, CpuLibrary(), memory, tuner)(**given_, stream=STREAM)
    assert wrong(form, out, before) is None
    out[...] = before["out"]
    np.testing.assert_array_equal(out.memory, around)  # nothing is written between its rows


def test_tf32_rounds_the_factors_and_float32_does_not(library: CpuLibrary) -> None:
    one = {"x": np.array([[1 + 2**-12]]), "weight": np.array([[1.0]]), "out": np.array([[np.nan]])}
    for form, want in (("float32", 1 + 2**-12), ("tf32", 1.0)):
        given_ = {name: card(value, form) for name, value in one.items()}
        Products(form, library, memory)(**given_, stream=STREAM)
        assert given_["out"][0, 0] == want


@pytest.mark.parametrize("sizes", [{"rows": 0}, {"outputs": 0}])
def test_an_empty_product_is_nothing(sizes: dict[str, int], library: CpuLibrary) -> None:
    Products("float32", library, None)(**operands(**sizes), stream=STREAM)  # type: ignore[arg-type]
    assert library.ran == []


@pytest.mark.parametrize("first", ["x", "weight", "out", "bias", "residual"])
@pytest.mark.parametrize("second", ["x", "weight", "out", "bias", "residual"])
def test_an_algorithm_counts_on_no_alignment_that_is_not_there(first: str, second: str, library: CpuLibrary) -> None:
    """Also where the same product was computed before, of operands that lie better."""
    product, given_ = Products("float16", library, memory), operands("float16")
    for name in (None, first, second):
        if name is not None:
            given_[name] = card(np.asarray(given_[name], np.float64), "float16", offset=1)
        product(**given_, stream=STREAM)
        assert wrong("float16", given_["out"], given_) is None


def test_parts_of_a_sum_are_added_in_float32_and_in_order(library: CpuLibrary) -> None:
    Products("float16", library, memory)(**operands("float16"), stream=STREAM)
    assert library.reductions == header()["CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE"]


def closer(x: OnCard) -> Any:
    """The same numbers, and rows that begin before the last one ends."""
    return np.lib.stride_tricks.as_strided(x, x.shape, (x.strides[0] - x.itemsize, x.itemsize), subok=True)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("x", lambda x: x[:, 1:], "x does not fit the weight"),
        ("x", lambda x: x[0], "x does not fit the weight"),
        ("x", lambda x: x[:, :0], "x does not fit the weight"),
        ("x", lambda x: x[::-1], "the rows of x overlap or go backwards"),
        ("x", lambda x: np.broadcast_to(x[:1], x.shape, subok=True), "the rows of x overlap or go backwards"),
        ("x", lambda x: x.T.copy().T, "the rows of x are not contiguous"),
        ("weight", lambda x: x.T.copy().T, "the rows of weight are not contiguous"),
        ("weight", lambda x: np.broadcast_to(x[:1], x.shape, subok=True), "the rows of weight overlap"),
        ("weight", lambda x: closer(x), "the rows of weight overlap"),
        ("out", lambda x: closer(x), "the rows of out overlap"),
        ("residual", lambda x: closer(x), "the rows of residual overlap"),
        ("out", lambda x: x[1:], "the out does not fit"),
        ("out", lambda x: np.broadcast_to(x[:1], x.shape, subok=True), "the rows of out overlap"),
        ("residual", lambda x: x[:, 1:], "the residual does not fit"),
        ("residual", lambda x: x.astype(np.float64), "the rows of residual are not contiguous"),
        ("bias", lambda x: x[1:], "the bias does not fit"),
        ("bias", lambda x: np.repeat(x, 2).view(OnCard)[::2], "the bias is not contiguous"),
    ],
)
def test_operands_that_do_not_fit(name: str, change: Callable[[Any], Any], words: str, library: CpuLibrary) -> None:
    given_ = operands()
    given_[name] = change(given_[name])
    with pytest.raises(InputError, match=f"product: {words}"):
        Products("float32", library, memory)(**given_, stream=STREAM)


def test_batches_that_go_backwards_are_not_taken(library: CpuLibrary) -> None:
    given_ = operands()
    given_ |= {name: np.stack([given_[name]] * 2).view(OnCard)[::-1] for name in ("x", "out", "residual")}
    with pytest.raises(InputError, match="product: the rows of x overlap or go backwards"):
        Products("float32", library, memory)(**given_, stream=STREAM)


def test_every_layer_s_bias_is_its_own(library: CpuLibrary) -> None:
    """Of one shape, and from several threads at once: the description is shared, and the bias' address is in it."""
    matmul = library.matmul

    def late(*given_: int) -> None:
        time.sleep(2e-3)
        matmul(*given_)

    library.matmul = late  # type: ignore[assignment]
    product = Products("float32", library, memory)

    def computed(seed: int) -> str | None:
        given_ = operands() | {"bias": card(np.full(3, seed), "float32"), "residual": None}
        product(**given_, stream=STREAM)
        return wrong("float32", given_["out"], given_)

    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(computed, range(32))] == [None] * 32
    assert len(product._plans) == 1


# ---- streams, workspace and capture


class Memory:
    """Memory of the card, and how much was asked for."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, size: int) -> Any:
        self.sizes.append(size)
        return memory(size)


def test_a_stream_has_one_workspace_that_is_large_enough(library: CpuLibrary) -> None:
    given_, streams = Memory(), [SimpleNamespace(ptr=ptr, is_capturing=lambda: False) for ptr in (1, 2)]
    product = Products("float32", library, given_)
    for stream in (*streams, *streams):
        product(**operands(), stream=stream)
    assert given_.sizes == [products.WORKSPACE] * 2
    assert product.workspace(streams[0]).ptr != product.workspace(streams[1]).ptr


def test_a_product_that_is_known_needs_nothing_during_a_capture(library: CpuLibrary) -> None:
    room, given_ = Memory(), operands()
    product = Products("float32", library, room)
    product(**given_, stream=STREAM)
    capture = SimpleNamespace(ptr=8, is_capturing=lambda: False)
    product.workspace(capture)
    room.sizes.clear()
    capture.is_capturing = lambda: True
    library.function = library.heuristics = None  # type: ignore[assignment]  # no descriptor is made
    given_["out"][...] = np.nan
    product(**given_, stream=capture)
    assert room.sizes == []
    assert wrong("float32", given_["out"], given_) is None


def test_what_is_not_known_during_a_capture_is_an_error(library: CpuLibrary) -> None:
    capture = SimpleNamespace(ptr=8, is_capturing=lambda: True)
    product = Products("float32", library, memory)
    with pytest.raises(BackendError, match="a new product while a graph is captured"):
        product(**operands(), stream=capture)
    product(**operands(), stream=STREAM)
    with pytest.raises(BackendError, match="no workspace on a stream that is being captured"):
        product(**operands(), stream=capture)


def test_an_algorithm_that_is_not_supported_is_not_taken(library: CpuLibrary) -> None:
    library.unsupported = {0}
    Products("float32", library, memory)(**operands(), stream=STREAM)
    assert library.ran == [1]
    library.proposals = 1
    with pytest.raises(BackendError, match=r"no algorithm for a product .got Problem\(batch=1, rows=5"):
        Products("float32", library, memory)(**operands(), stream=STREAM)


# ---- tuning


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "card.json"


def tuned(library: CpuLibrary, path: Path, times: dict[int, float]) -> Callable[..., list[int]]:
    """Computes a product, and tells which algorithms ran, in order."""

    def sample(run: Callable[[], None], *_: Any) -> float:
        run()
        return times[library.ran[-1]]

    product = Products("float32", library, memory, tuning.Tuner("float32", path, sample))

    def compute(rows: int = 5) -> list[int]:
        library.ran.clear()
        given_ = operands(rows=rows)
        product(**given_, stream=STREAM)
        assert wrong("float32", given_["out"], given_) is None
        return library.ran.copy()

    return compute


SLOW_FAST = {0: 3.0, 1: 1.0, 2: 2.0}


def test_the_fastest_algorithm_is_measured_once_and_kept(library: CpuLibrary, path: Path) -> None:
    compute = tuned(library, path, SLOW_FAST)
    assert compute() == [0, 1, 2, 1]  # one sample was enough to see that nothing is near
    assert compute() == [1]
    again = tuned(CpuLibrary(), path, {})
    assert again() == [1]


def test_algorithms_that_are_near_are_measured_in_turns_and_the_median_counts(library: CpuLibrary, path: Path) -> None:
    samples = {0: iter([1.1, 1.0, 9.0, 1.0, 1.0]), 1: iter([1.0, 1.1, 1.1, 1.1, 1.1]), 2: iter([1.3])}

    class Times(dict[int, float]):
        def __missing__(self, number: int) -> float:
            return next(samples[number])

    assert tuned(library, path, Times())() == [0, 1, 2, *[0, 1] * 4, 0]


def test_an_algorithm_that_does_not_run_is_passed_over(library: CpuLibrary, path: Path) -> None:
    library.refused = {1}
    assert tuned(library, path, SLOW_FAST)() == [0, 2, 2]
    library.refused = {0, 1, 2}
    with pytest.raises(BackendError, match="no algorithm of cuBLASLt runs"):
        tuned(library, path, SLOW_FAST)(rows=6)


def test_measuring_leaves_the_operands_alone(library: CpuLibrary, path: Path) -> None:
    """Also where the residual is the output: each sample would add it again."""
    given_ = operands()
    given_["out"] = given_["residual"]
    before = {name: x.copy() for name, x in given_.items()}
    tuner = tuning.Tuner("float32", path, at_once)
    Products("float32", library, memory, tuner)(**given_, stream=STREAM)
    assert len(library.ran) > 3
    assert wrong("float32", given_["out"], before) is None


DAMAGED = {
    "empty": lambda text: "",
    "half": lambda text: text[: len(text) // 2],
    "no JSON": lambda text: "\x00" + text,
    "another file": lambda text: "[1, 2]",
    "other entries": lambda text: json.dumps({"algorithms": dict.fromkeys(json.loads(text)["algorithms"], 5)}),
    "short words": lambda text: re.sub(r"[0-9a-f]{100}", "", text),
    "words that are none": lambda text: text.replace("00", "zz"),
    "another problem's": lambda text: re.sub(r"[0-9a-f]{128}", lambda words: "01" * 64, text),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_measured_again_and_replaced(damage: str, library: CpuLibrary, path: Path) -> None:
    tuned(library, path, SLOW_FAST)()
    whole = path.read_text()
    path.write_text(DAMAGED[damage](whole))
    assert path.read_text() != whole
    assert tuned(library, path, SLOW_FAST)() == [0, 1, 2, 1]
    assert path.read_text() == whole


def test_an_algorithm_that_wants_more_memory_than_there_is_is_not_taken(library: CpuLibrary, path: Path) -> None:
    tuned(library, path, SLOW_FAST)()
    kept = json.loads(path.read_text())
    for entry in kept["algorithms"].values():
        entry[1] = products.WORKSPACE + 1
    path.write_text(json.dumps(kept))
    assert tuned(library, path, SLOW_FAST)() == [0, 1, 2, 1]


def test_a_folder_that_can_not_be_written_is_no_obstacle(library: CpuLibrary, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    compute = tuned(library, tmp_path / "file" / "card.json", SLOW_FAST)
    assert (compute(), compute()) == ([0, 1, 2, 1], [1])


def test_processes_that_write_at_once_leave_a_whole_file(path: Path) -> None:
    def many(number: int) -> None:
        compute = tuned(CpuLibrary(), path, SLOW_FAST)
        for rows in range(number + 1, 9):
            compute(rows=rows)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(many, range(4)))
    kept = json.loads(path.read_text())["algorithms"]
    assert {len(words) for words, _ in kept.values()} == {128}


def test_what_another_process_has_found_stays(path: Path) -> None:
    first, second = (tuned(CpuLibrary(), path, SLOW_FAST) for _ in range(2))
    first(rows=5)
    second(rows=6)
    assert tuned(CpuLibrary(), path, {})(rows=5) == [1]
    assert tuned(CpuLibrary(), path, {})(rows=6) == [1]


def test_a_file_belongs_to_a_card_and_a_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("D2V_CACHE_DIR", str(tmp_path))
    told = [
        tuning.file_of(*of) for of in (("NVIDIA H100 80GB HBM3", (9, 0), 130100), ("A", (9, 0), 1), ("A", (9, 0), 2))
    ]
    assert told[0] == tmp_path / "tuning" / "NVIDIA-H100-80GB-HBM3-9.0-cublaslt-130100.json"
    assert len({*told, tuning.file_of("A", (8, 9), 2)}) == 4


def test_the_stopwatch_counts_warm_products_alone() -> None:
    """A card whose clock goes on by what is ordered: 1 for a product, 10 if memory was set before it, 1000 for that."""
    card_ = SimpleNamespace(now=0, next=10)

    def run() -> None:
        card_.now += card_.next
        card_.next = 1

    def fill(value: int, size: int, stream: Any) -> None:
        card_.now += 1000
        card_.next = 10

    class Event:
        def record(self, stream: Any) -> None:
            self.at = card_.now

        def synchronize(self) -> None:
            pass

    cuda = SimpleNamespace(Event=Event, get_elapsed_time=lambda begin, end: float(end.at - begin.at))
    filler = SimpleNamespace(memset_async=fill)
    assert tuning.Stopwatch(SimpleNamespace(cuda=cuda))(run, STREAM, filler, 8) == 1.0
