"""What ``check`` finds out about the card itself: its rates, what cuBLASLt's GELU is, whether captures hold, tuning."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from d2v_ref.bench.machine import cores
from d2v_ref.errors import BackendError
from d2v_ref.ops import Ops

from . import CupyOps
from .compiling import architecture, compilers
from .device import TYPES, Device

if TYPE_CHECKING:
    from .check import Run

PACKAGES = (
    "numpy",
    "cupy-cuda13x",
    "cupy-cuda12x",
    "ml_dtypes",
    "nvidia-cublas",
    "nvidia-cuda-nvrtc",
    "torch",
    "transformers",
)
CUBLASLT_EPILOGUE_GELU = 32  # cublasLt.h
COPIED = 1 << 30  # bytes
SIDE = {"float32": 4096, "tf32": 8192, "float16": 8192, "bfloat16": 8192}  # of the products that the rate is of
# (rows, outputs, depth) of a base model's products, batch 1 and more: q|k|v, output, both of the feed-forward network.
SHAPES = [
    (rows, outputs, depth)
    for rows in (128, 197, 749, 8192, 16384)
    for outputs, depth in ((2304, 768), (768, 768), (3072, 768), (768, 3072))
]


def seconds_of(device: Device, order: Callable[[], Any], repeats: int = 10) -> float:
    """Seconds that something takes on the card, the mean of several after one that is not counted."""
    cuda = device.xp.cuda
    device.enter()
    order()
    begin, end = cuda.Event(), cuda.Event()
    begin.record(device.stream)
    for _ in range(repeats):
        order()
    end.record(device.stream)
    end.synchronize()
    return cuda.get_elapsed_time(begin, end) / 1000 / repeats


def environment(run: Run) -> dict[str, Any]:
    """The card, the driver, versions, and the rates that nothing can be faster than here."""
    device = run.make("float32").device
    runtime = device.xp.cuda.runtime
    properties = runtime.getDeviceProperties(device.index)
    device.enter()
    source, target = (device.empty((COPIED // 4,)) for _ in range(2))

    def copy() -> None:
        target.data.copy_from_device_async(source.data, COPIED, device.stream)

    compiled = compile_all(device)
    return {
        "compiled": compiled,
        "card": properties["name"].decode(),
        "capability": list(device.limits.capability),
        "memory": properties["totalGlobalMem"],
        "multiprocessors": device.limits.multiprocessors,
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
        "cublaslt": device.products.library.version,
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "copied_bytes_per_second": 2 * COPIED / seconds_of(device, copy),  # read and written
        "product_flop_per_second": {form: _product_rate(run.make(form).device, SIDE[form]) for form in CupyOps.dtypes},
    }


def compile_all(device: Device) -> dict[str, float]:
    """Compiles every kernel on all cores, so that no later section waits for it: how many, and in how many seconds."""
    start, make = time.perf_counter(), dict[str, Callable[[], bool]]()
    for storage in dict.fromkeys(TYPES.values()):
        make.update(compilers(storage, architecture(device.limits.capability)))
    with ThreadPoolExecutor(cores()) as pool:
        fresh = sum(pool.map(lambda compiler: compiler(), make.values()))
    return {"kernels": len(make), "compiled": fresh, "seconds": round(time.perf_counter() - start, 2)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _product_rate(device: Device, side: int) -> float:
    device.enter()
    numbers = np.random.default_rng(0).standard_normal((side, side), np.float32)  # equal ones would take less power
    x, weight = (device.upload(numbers).astype(device.storage) for _ in range(2))
    out = device.empty((side, side))
    return 2 * side**3 / seconds_of(device, lambda: device.product(x, weight, out))


# ---- probes


def probes(run: Run) -> dict[str, Any]:
    """What documents do not say, or say otherwise: cuBLASLt's GELU, and what may not happen in a capture."""
    return {"gelu_epilogue": _gelu_epilogue(run), "capture": _captures(run)}


def _gelu_epilogue(run: Run) -> dict[str, float]:
    """How far cuBLASLt's GELU is from the exact one and from the one with tanh, largest over -8 ... 8."""
    from .products import Pointers, Product, Products, problems

    device = run.make("float32").device
    device.enter()
    sweep = np.linspace(-8, 8, 64 * 64, dtype=np.float32).reshape(64, 64)
    x, weight, out = device.upload(sweep), device.upload(np.eye(64, dtype=np.float32)), device.empty((64, 64))
    problem, starts = next(problems(x, weight, out, None, None, 4, 256))
    owner = Products("float32", device.products.library, device.allocate)  # which tunes nothing
    product = Product(owner, problem, starts)
    product.description.set("EPILOGUE", CUBLASLT_EPILOGUE_GELU)
    at = Pointers(weight.data.ptr, x.data.ptr, out.data.ptr, 0, 0)
    workspace = owner.workspace(device.stream)
    product.choose(at, workspace, device.stream)
    product.run(at, workspace.ptr, device.stream.ptr)
    got, exact = device.download(out), Ops("float64")
    return {
        name: float(np.abs(got - getattr(exact, name)(sweep.astype(np.float64))).max())
        for name in ("gelu", "gelu_tanh")
    }


def _captures(run: Run) -> dict[str, Any]:
    """A layer's operations captured and replayed, and three things that a capture must refuse."""
    ops = run.make("float16")
    random = np.random.default_rng(run.seed)
    weight, bias = ops.asarray(random.normal(size=(64, 64))), ops.asarray(random.normal(size=64))

    def layer(x: Any) -> Any:
        y = ops.layer_norm(ops.linear(ops.asarray(x), weight, bias, "gelu"), bias, bias, 1e-5)
        return ops.attention(y, y, y, 4)[0]

    found: dict[str, Any] = {}
    for turn in range(4):  # plain, captured, and twice replayed
        x = random.normal(size=(2, 33, 64)).astype(np.float32)
        same = np.array_equal(ops.to_numpy(ops.replay(layer, x)), ops.to_numpy(layer(x)))
        run.hold(same, f"turn {turn} of a captured layer gives other bits")
    refused: dict[str, Callable[[Any], Any]] = {
        "download": lambda x: ops.asarray(ops.to_numpy(ops.asarray(x))),
        "upload": lambda x: ops.asarray(x) * ops.asarray(np.ones(64, np.float32)),
        "allocation": lambda x: (ops.device.products.memory(1 << 20), ops.asarray(x) * 2)[1],
    }
    for name, function in refused.items():
        try:
            for _ in range(2):
                ops.replay(function, np.ones((2, 64), np.float32))
            found[name] = "not refused"
            run.hold(name == "allocation", f"a capture does not refuse a {name}")  # which comes from the arena then
        except (BackendError, RuntimeError, NotImplementedError) as error:
            found[name] = f"{type(error).__name__}: {error}"[:300]
    x = np.ones((2, 33, 64), np.float32)
    after = np.array_equal(ops.to_numpy(ops.replay(layer, x)), ops.to_numpy(layer(x)))
    run.hold(after, "a layer gives other bits after captures that were refused")
    return found


# ---- tuning


def tuning(run: Run) -> dict[str, Any]:
    """The rates of base models' products, with the algorithm that was measured and with cuBLASLt's first proposal."""
    found: dict[str, Any] = {}
    for form in ("bfloat16", "float16", "tf32", "float32"):
        tuned, untuned = run.make(form).device, run.make(form, tune=False).device
        for rows, outputs, depth in SHAPES:
            name = f"{form} {rows} x {outputs} x {depth}"
            if not run.time_for(name):
                continue
            rates = [_rate(device, rows, outputs, depth, run.seed) for device in (tuned, untuned)]
            found[name] = {"tuned": rates[0], "first": rates[1]}
    ratios = [rates["tuned"] / rates["first"] for rates in found.values()]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None
    return {"products": found, "tuned_over_first": mean}


def _rate(device: Device, rows: int, outputs: int, depth: int, seed: int) -> float:
    """Floating-point operations a second."""
    random = np.random.default_rng(seed)
    device.enter()
    x, weight, bias = (
        device.upload(random.normal(size=shape).astype(np.float32)).astype(device.storage)
        for shape in ((rows, depth), (outputs, depth), (outputs,))
    )
    out = device.empty((rows, outputs))
    return 2 * rows * outputs * depth / seconds_of(device, lambda: device.product(x, weight, out, bias))
