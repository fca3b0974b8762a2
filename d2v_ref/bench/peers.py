"""The other engines: torch, and ONNX Runtime and OpenVINO on what torch exports.

They are of the extra ``bench``, and imported in the process of a case only.  Each runs with the settings that make it
fast for one request at a time: a graph of fixed shapes, all threads for one product, its highest level of optimisation.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2v_ref.bench.engines import Engine, Loaded, Outputs, Setup
from d2v_ref.errors import BackendError, MissingPackageError

if TYPE_CHECKING:
    import torch


class Peer(Engine):
    """An engine of the extra ``bench``: it needs all of its packages."""

    def check(self) -> None:
        missing = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if missing:
            words = " and ".join(missing)
            raise MissingPackageError(f"{self.name} needs {words}", hint="Install them: pip install 'd2v-ref[bench]'")


class Torch(Peer):
    """transformers' model as it is, with torch's fused attention."""

    name, dtype, packages = "torch", "float32", ("torch", "transformers")

    def load(self, setup: Setup) -> Loaded:
        import torch

        model, given = torch_model(setup), torch.from_numpy(setup.given)

        def run() -> Outputs:
            with torch.inference_mode():
                return {name: value.numpy() for name, value in model(given).items()}

        return Loaded(run)


class OnnxRuntime(Peer):
    """The exported graph; its threads stop spinning when a run ends, and not some milliseconds later."""

    name, dtype = "onnxruntime", "float32"
    packages = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")

    def load(self, setup: Setup) -> Loaded:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = setup.threads, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3  # what it could not optimise is no error
        session = onnxruntime.InferenceSession(setup.onnx_file, options, providers=["CPUExecutionProvider"])
        given = {setup.case.argument: setup.given}
        names = [output.name for output in session.get_outputs()]
        return Loaded(lambda: dict(zip(names, session.run(names, given), strict=True)))


class OpenVINO(Peer):
    """The exported graph, computed in float32 or bfloat16; which is the default depends on the processor."""

    packages = ("torch", "transformers", "onnx", "onnxscript", "openvino")

    def __init__(self, name: str, dtype: str, precision: str) -> None:
        self.name, self.dtype, self.precision = name, dtype, precision

    def check(self) -> None:
        super().check()
        if self.dtype == "bfloat16":
            import openvino

            can = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            if "BF16" not in can:  # it would compute in float32 and not say so
                hint = "Ask for openvino, which computes in float32"
                raise BackendError(f"{self.name} needs bfloat16 in the processor", got=", ".join(can), hint=hint)

    def load(self, setup: Setup) -> Loaded:
        import openvino

        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": setup.threads,
        }
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(setup.onnx_file), "CPU", settings)
        request = compiled.create_infer_request()
        names = [output.any_name for output in compiled.outputs]

        def run() -> Outputs:
            request.infer([setup.given], share_inputs=True)
            return {name: request.get_output_tensor(i).data for i, name in enumerate(names)}

        return Loaded(run)


PEERS: dict[str, Engine] = {
    peer.name: peer
    for peer in (
        Torch(),
        OnnxRuntime(),
        OpenVINO("openvino", "float32", "f32"),
        OpenVINO("openvino:bfloat16", "bfloat16", "bf16"),
    )
}


def share_openmp() -> None:
    """Has torch and Numba's kernels use one OpenMP, the one that torch's package brings.

    Numba's layer takes the system's.  Two of them in a process, each with threads that spin while they wait, made torch
    take 350 ms for what takes it 50 ms alone, and 47 ms with this.
    """
    spec = importlib.util.find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or ():
        root = Path(folder)
        for library in (*root.glob("lib/libgomp*.so*"), *root.parent.glob("torch.libs/libgomp*.so*")):
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def torch_model(setup: Setup, attention: str = "sdpa") -> Any:
    """transformers' model with the case's weights, which it shares with everybody."""
    import torch
    import transformers

    torch.set_num_threads(setup.threads)
    config = getattr(transformers, type(setup.config).__name__)(**setup.config.to_dict())
    config._attn_implementation = attention
    model = getattr(transformers, setup.case.model)(config).eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in setup.weights.items()}, assign=True)
    return model


def export(setup: Setup) -> Path:
    """The model as an ONNX file for the case's shape, its weights in a file beside it.

    With the attention that is written out: what torch exports of its fused one guards each softmax against rows of NaN.
    """
    import torch

    file, given = setup.folder / "model.onnx", torch.from_numpy(setup.given)
    model = torch_model(setup, "eager")
    with torch.no_grad(), _quiet():
        names = list(model(given))
        program: Any = torch.onnx.export(
            _tuples(model),
            (given,),
            dynamo=True,
            verbose=False,
            input_names=[setup.case.argument],
            output_names=names,
        )
    program.save(file, external_data=True)  # a file of protobuf's holds 2 GB at most
    return file


def _tuples(model: Any) -> torch.nn.Module:
    """The model with its outputs as a tuple, which is what an exported program has."""
    import torch

    class Tuples(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.model(given, return_dict=False)

    return Tuples().eval()


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporter warns of its own code, and of operators of packages that are not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
