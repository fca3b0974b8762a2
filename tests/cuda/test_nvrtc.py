"""Every kernel compiles for real cards and stays in registers; what is kept on the disk; which names CuPy has."""

from __future__ import annotations

import ast
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("cupy", reason="the CUDA packages are not installed: pip install 'd2v-ref[cuda-test]'")

import cupy
from d2v_backends.cupy import compiling
from d2v_backends.cupy.compiling import TYPES, Built, Variant, variant, variants
from d2v_backends.cupy.resources import main, resources

from d2v_ref.errors import BackendError

Target = tuple[Variant, int]

TENSOR = variants("tensor cores")
# All for an H100; what depends most on the card, the instructions of tensor cores, for older and newer ones too.
TARGETS: list[Target] = [(which, arch) for which in variants() for arch in (80, 90, 120)]


@pytest.fixture(scope="module")
def programs(request: pytest.FixtureRequest) -> dict[Target, Built | BackendError]:
    """What the tests of this run need, compiled in two threads: NVRTC lets go of Python's lock."""
    calls = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    targets = [params["target"] for params in calls if "target" in params]

    def built(target: Target) -> Built | BackendError:
        try:
            return compiling.built(*target)
        except BackendError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(targets, pool.map(built, targets), strict=True))


# ---- every kernel


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target[0]}-sm_{target[1]}")
def test_a_kernel_compiles_and_stays_in_registers(target: Target, programs: dict[Target, Built | BackendError]) -> None:
    program = programs[target]
    if isinstance(program, BackendError):
        raise program
    found = resources(program)
    assert found
    for kernel in found:
        assert (kernel.stack, kernel.spilled) == (0, 0), kernel
        assert 0 < kernel.registers <= 255
        assert kernel.shared <= 48 << 10
    assert any(kernel.tensor for kernel in found) == (target[0] in TENSOR)


def test_what_is_said_of_tensor_cores_is_said_of_kernels_that_there_are() -> None:
    assert TENSOR
    assert {*TENSOR} < {*variants()}


# ---- sources in a folder of their own


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one kernel; compiled ones are kept beside it."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "common.cuh").write_text("typedef STORAGE T;\nconstexpr int ADDED = 1;\n")
    (folder / "add.cu").write_text(
        '#include "common.cuh"\nextern "C" __global__ void add(T* x) { x[threadIdx.x] = T(float(x[D]) + ADDED); }\n'
    )
    monkeypatch.setattr(compiling, "KERNELS", folder)
    monkeypatch.setenv("D2V_CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setenv("D2V_QUIET", "1")
    return folder


ADD = variant("add", {"T": "__half", "D": 3})


def test_local_memory_is_seen(kernels: Path) -> None:
    (kernels / "greedy.cu").write_text(
        'extern "C" __global__ void greedy(float* x, int n) {\n'
        "    float own[100];\n"
        "    for (int i = 0; i < 100; i++) own[i] = x[i * n];\n"
        "    for (int i = 0; i < n; i++) x[i] = own[(i * n) % 100];\n"
        "}\n"
        'extern "C" __global__ void __launch_bounds__(1024) spilling(float* x, int n) {\n'
        "    float own[100];\n"
        "    for (int i = 0; i < 100; i++) own[i] = x[i * n];\n"
        "    for (int j = 0; j < n; j++)\n"
        "        for (int i = 0; i < 100; i++) own[i] = own[99 - i] * own[i] + own[(i + 7) % 100];\n"
        "    for (int i = 0; i < 100; i++) x[i] = own[99 - i] / own[i];\n"
        "}\n"
        'extern "C" __global__ void modest(float* x) { __shared__ float y[8]; y[threadIdx.x] = *x; *x = y[7]; }\n'
    )
    found = {kernel.kernel: kernel for kernel in resources(compiling.built(Variant("greedy", ()), 90))}
    assert found["greedy"].stack == 400
    assert found["spilling"].spilled > 0
    assert found["modest"]._replace(registers=0) == ("modest", 0, 32, 0, 0, 0)


def test_the_table_has_every_kernel(kernels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kernels / "add.cu").write_text("// variants: T=float,__half D=1\n" + (kernels / "add.cu").read_text())
    main(90)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["kernel", "registers", "shared", "stack", "spilled", "tensor"]
    assert [line.split()[:2] for line in lines] == [["add-D=1-T=float", "add"], ["add-D=1-T=__half", "add"]]


def test_variants_are_read_from_the_sources(kernels: Path) -> None:
    assert variants() == [variant("add", {"T": storage}) for storage in TYPES]
    lines = "// variants: T=float,__half D=1,2\n// variants: T=float D=2,8\n// tensor cores: T=__half D=1\n"
    (kernels / "add.cu").write_text(lines + (kernels / "add.cu").read_text())
    pairs = [("float", 1), ("float", 2), ("__half", 1), ("__half", 2), ("float", 8)]
    assert variants() == [variant("add", {"T": storage, "D": number}) for storage, number in pairs]
    assert variants("tensor cores") == [variant("add", {"T": "__half", "D": 1})]
    told = dict(compiling.compilers("__half", 90))
    assert [*told] == ["add-D=1-T=__half", "add-D=2-T=__half"]
    assert [told["add-D=2-T=__half"]() for _ in range(2)] == [True, False]


def test_a_source_that_does_not_compile_is_told_with_its_line(kernels: Path) -> None:
    words = r'add.cu does not compile: add.cu\(2\): error: identifier "D" is undefined'
    with pytest.raises(BackendError, match=words):
        compiling.compiled(variant("add", {"T": "float"}), 90)
    assert not compiling.folder().exists()


def test_the_smallest_float32_stay_what_they_are(kernels: Path) -> None:
    """As CuPy compiles, with -ftz=true, they would become zero."""
    ptx = compiling.built(variant("add", {"T": "float", "D": 1}), 90).ptx
    assert "add.f32" in ptx
    assert "ftz" not in ptx


# ---- the disk


def compiled(which: Variant = ADD, arch: int = 90, ahead: bool = False) -> bool:
    """Whether it was compiled now."""
    cubin, now = compiling.compiled(which, arch, ahead)
    assert cubin.startswith(b"\x7fELF")
    return now


def kept() -> Path:
    (path,) = compiling.folder().iterdir()
    return path


def test_a_kernel_is_compiled_once(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled()
    assert kept().name.startswith("add-D=3-T=__half-90-")
    monkeypatch.setattr(compiling, "built", None)
    assert not compiled()


@pytest.mark.parametrize("name", ["add.cu", "common.cuh"])
def test_a_source_that_changes_is_compiled_again(name: str, kernels: Path) -> None:
    assert compiled()
    with (kernels / name).open("a") as source:
        source.write("// changed\n")
    assert compiled()


def test_cuda_s_headers_count(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled()
    own = kernels.parent / "include"
    own.mkdir()
    for path in Path(compiling.headers()).glob("cuda_[fb]*16.h*"):
        shutil.copy(path, own)
    with (own / "cuda_bf16.h").open("a") as header:
        header.write("// a newer one\n")
    monkeypatch.setattr(compiling, "headers", lambda: str(own))
    assert compiled()


def test_what_is_defined_and_the_card_and_the_options_count(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled()
    assert compiled(variant("add", {"T": "__half", "D": 4}))
    assert compiled(variant("add", {"T": "float", "D": 3}))
    assert compiled(arch=80)
    monkeypatch.setattr(compiling, "OPTIONS", (*compiling.OPTIONS, "-lineinfo"))
    assert compiled()
    monkeypatch.setattr(compiling.nvrtc(), "version", "0.0")
    assert compiled()


DAMAGED = {
    "cut": lambda data: data[:-1],
    "a byte": lambda data: data[:99] + b"!" + data[100:],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_compiled_again_and_replaced(damage: Any, kernels: Path) -> None:
    assert compiled()
    whole = kept().read_bytes()
    kept().write_bytes(damage(whole))
    assert compiled()
    assert kept().read_bytes() == whole


def test_another_kernel_s_file_is_not_taken(kernels: Path) -> None:
    assert compiled()
    own = kept()
    data = own.read_bytes()
    own.unlink()
    other = variant("add", {"T": "__half", "D": 4})
    assert compiled(other)
    kept().write_bytes(data)
    assert compiled(other)


def test_a_folder_that_can_not_be_written_is_warned_of(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kernels / "file").touch()
    monkeypatch.setenv("D2V_CACHE_DIR", str(kernels / "file"))
    with pytest.warns(UserWarning, match=r"can't be kept in \S*/file/cuda/\S* .Not a directory.*set D2V_CACHE_DIR"):
        assert compiled()
    with pytest.raises(BackendError, match=r"/file/cuda/\S*: compiled kernels can't be kept"):
        compiled(ahead=True)


def test_threads_may_compile_the_same_at_once(kernels: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert any(pool.map(lambda _: compiled(), range(4)))
    assert not compiled()


def test_it_is_told_when_somebody_waits(
    kernels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import d2v_backends.telling

    monkeypatch.delenv("D2V_QUIET")
    monkeypatch.setattr(d2v_backends.telling, "_told", False)
    assert compiled(ahead=True)
    assert capsys.readouterr().err == ""
    assert compiled(arch=80)
    words = f"d2v_ref: compiling kernels for this card, some seconds each; they are kept in {compiling.folder()} "
    assert capsys.readouterr().err.startswith(words)


# ---- cards


@pytest.mark.parametrize(("capability", "arch"), [((8, 0), 80), ((8, 9), 89), ((9, 0), 90), ((12, 0), 120)])
def test_a_card_that_nvrtc_knows(capability: tuple[int, int], arch: int) -> None:
    assert compiling.architecture(capability) == arch


def test_a_newer_card_of_a_family_runs_the_family_s_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.nvrtc(), "architectures", lambda: [80, 86, 89, 90])
    assert compiling.architecture((8, 8)) == 86


@pytest.mark.parametrize("capability", [(7, 5), (99, 0)])
def test_a_card_that_is_too_old_or_too_new(capability: tuple[int, int]) -> None:
    words = rf"for this card .got compute capability {capability[0]}.{capability[1]}, NVRTC \d+\.\d+; expected"
    with pytest.raises(BackendError, match=words):
        compiling.architecture(capability)


def test_headers_that_are_missing_are_an_error(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cuda.pathfinder as pathfinder

    compiling.headers.cache_clear()
    monkeypatch.setattr(pathfinder, "find_nvidia_header_directory", lambda name: None)
    with pytest.raises(BackendError, match=r"cuda_fp16\.h was not found\. Install it: .*cuda13x"):
        compiled()


def test_a_kernel_may_ask_for_all_the_shared_memory_that_its_own_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    set_: list[tuple[int, int, int]] = []

    class Loaded:
        def load(self, cubin: bytes) -> None:
            self.cubin = cubin

        def get_function(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(ptr=5, name=name)

    driver = cupy.cuda.driver
    monkeypatch.setattr(cupy.cuda, "Module", Loaded)
    of = {(driver.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, 5): 1024}
    monkeypatch.setattr(driver, "funcGetAttribute", lambda attribute, f: of[attribute, f])
    monkeypatch.setattr(driver, "funcSetAttribute", lambda f, attribute, value: set_.append((f, attribute, value)))
    module = compiling.Module(b"code", 200 << 10)
    assert (module.module.cubin, module.get_function("add").name) == (b"code", "add")
    assert set_ == [(5, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 199 << 10)]


# ---- CuPy's names


def names_of_cupy(tree: ast.AST) -> set[str]:
    """What a source uses of CuPy, as "cuda.Stream": what follows on ``cupy``, on ``xp`` and on other names of these."""
    stands_for = {"cupy": "", "xp": ""}  # an expression: the part of CuPy that it is

    def part(node: ast.AST) -> str | None:
        if isinstance(node, ast.Name | ast.Attribute) and (known := stands_for.get(ast.unparse(node))) is not None:
            return known
        if not isinstance(node, ast.Attribute):
            return None
        before = part(node.value)
        if before is None:
            return "" if node.attr == "xp" else None
        return f"{before}.{node.attr}".lstrip(".")

    def pairs(targets: list[Any], value: Any) -> list[tuple[Any, Any]]:
        if isinstance(value, ast.Tuple) and isinstance(targets[0], ast.Tuple):
            return list(zip(targets[0].elts, value.elts, strict=False))
        return [(target, value) for target in targets]

    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target, value in pairs(node.targets, node.value):
                if (found := part(value)) is not None:
                    stands_for[ast.unparse(target)] = found
    return {found for node in ast.walk(tree) if (found := part(node))}


def lacking(names: set[str]) -> set[str]:
    """Those that this CuPy does not have."""

    def there(name: str) -> bool:
        value: Any = cupy
        for step in name.split("."):
            if not hasattr(value, step):
                return False
            value = getattr(value, step)
        return True

    return {name for name in names if not there(name)}


def test_names_are_found_in_a_source() -> None:
    source = "cuda, n = self.device.xp.cuda, 3\ncuda.alloc(xp.nothing)\nself.driver = cupy.cuda.driver\n"
    source += "self.driver.funcNothing(cuda.Device(0).attributes)\n"
    found = names_of_cupy(ast.parse(source))
    assert found == {"cuda", "cuda.alloc", "nothing", "cuda.driver", "cuda.driver.funcNothing", "cuda.Device"}
    assert lacking(found) == {"nothing", "cuda.driver.funcNothing"}


@pytest.mark.parametrize("source", sorted(Path(compiling.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_cupy_has_what_is_used_of_it(source: Path) -> None:
    assert lacking(names_of_cupy(ast.parse(source.read_text()))) == set()
