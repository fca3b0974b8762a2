"""Weight files that PyTorch 2.13 and safetensors write, read without PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from d2v_ref.checkpoints import Tensor, open_checkpoint, read_safetensors, read_safetensors_metadata, read_torch_file
from d2v_ref.checkpoints.mapped import ELEMENT_TYPES
from d2v_ref.errors import CheckpointError, D2VError

DTYPES = [getattr(torch, name) for name in ELEMENT_TYPES]
PROTOCOLS = [2, 3, 4, 5]


def check(found: dict[str, Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == str(tensor.dtype).removeprefix("torch.")
        assert not found[name].data.flags.writeable
        values = tensor.detach()
        values = values.float() if values.dtype == torch.bfloat16 else values
        np.testing.assert_array_equal(found[name].numpy(), values.numpy(), strict=True)


def refusal(path: Path, read: Callable[[Path], object] = read_torch_file) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    return str(caught.value)


def of_every_dtype() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {str(dtype): (torch.randn(3, 5) * 10).abs().to(dtype) for dtype in DTYPES}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_dtype_and_protocol(tmp_path: Path, protocol: int) -> None:
    torch.save(of_every_dtype(), tmp_path / "w.bin", pickle_protocol=protocol)
    check(read_torch_file(tmp_path / "w.bin"), of_every_dtype())


def test_special_values(tmp_path: Path) -> None:
    values = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45])
    tensors = {str(dtype): values.to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    torch.save(tensors, tmp_path / "w.bin")
    save_file(tensors, tmp_path / "w.safetensors")
    check(read_torch_file(tmp_path / "w.bin"), tensors)
    assert {n: t.data.tobytes() for n, t in read_safetensors(tmp_path / "w.safetensors").items()} == {
        n: t.data.tobytes() for n, t in read_torch_file(tmp_path / "w.bin").items()
    }


def test_every_dtype_in_safetensors(tmp_path: Path) -> None:
    tensors = of_every_dtype() | {"scalar": torch.tensor(2.0), "empty": torch.empty(2, 0)}
    save_file(tensors, tmp_path / "w.safetensors", {"format": "pt"})
    check(dict(sorted(read_safetensors(tmp_path / "w.safetensors").items())), dict(sorted(tensors.items())))
    assert read_safetensors_metadata(tmp_path / "w.safetensors") == {"format": "pt"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_views_share_the_bytes_of_their_storage(tmp_path: Path, protocol: int) -> None:
    base = torch.arange(60.0).reshape(3, 4, 5)
    tensors = {
        "base": base,
        "tied": base,
        "transposed": base.permute(2, 0, 1),
        "slice": base[1:, ::2, 1:3],
        "diagonal": base[0].diagonal(),
        "expanded": base[:, :1, :1].expand(3, 7, 2),
        "element": base[2, 3, 4],
        "empty": base[3:],
        "other": torch.ones(1).expand(1000, 1000),
    }
    torch.save(tensors, tmp_path / "w.bin", pickle_protocol=protocol)
    found = read_torch_file(tmp_path / "w.bin")
    check(found, tensors)
    for name in ("tied", "transposed", "slice", "diagonal", "expanded", "element"):
        assert np.shares_memory(found["base"].data, found[name].data)
    assert found["tied"].data.ctypes.data == found["base"].data.ctypes.data
    assert found["transposed"].data.strides == tuple(4 * step for step in tensors["transposed"].stride())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embedding.weight
        self.register_buffer("position_ids", torch.arange(5).expand(1, -1))


def test_the_state_dict_of_a_module(tmp_path: Path) -> None:
    module = Tied().half()
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    found = open_checkpoint(tmp_path)
    check(found, module.state_dict())
    assert np.shares_memory(found["embedding.weight"].data, found["head.weight"].data)


def test_parameters(tmp_path: Path) -> None:
    module = Tied()
    module.head.bias.note = "an attribute"
    torch.save(dict(module.named_parameters()), tmp_path / "w.bin")
    check(read_torch_file(tmp_path / "w.bin"), dict(module.named_parameters()))


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("new", [True, False])
def test_code_is_refused_and_not_run(tmp_path: Path, protocol: int, new: bool) -> None:
    marker, path = tmp_path / "ran", tmp_path / "w.bin"
    torch.save(
        {"w": torch.ones(2), "x": Evil(marker)}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new
    )
    text = refusal(path)
    assert not marker.exists()
    if new:
        assert "asks to run code" in text
        assert f"{os.system.__module__}.system" in text
    assert torch.load(path, weights_only=False)["x"] == 0  # the file does what it is refused for
    assert marker.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_older_format(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "w.bin"
    torch.save({"w": torch.ones(2)}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    assert "PyTorch before 1.6" in refusal(path)


def test_torchscript(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "w.bin"))
    assert "TorchScript" in refusal(tmp_path / "w.bin")


def quantized() -> torch.Tensor:
    with pytest.warns(UserWarning, match="quantize"):
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (quantized, "a quantized tensor"),
        (lambda: torch.eye(2).to_sparse(), "a sparse tensor"),
        (lambda: torch.eye(2).to_sparse_csr(), "a sparse tensor"),
        (lambda: torch.ones(2, dtype=torch.complex64), "complex numbers"),
        (lambda: torch._neg_view(torch.ones(2)), "a conjugate or negative bit"),
        (lambda: torch.ones(2, device="meta"), "a tensor without data"),
        (lambda: torch.ones(2).to(torch.float8_e4m3fn), "8-bit floating-point numbers"),
        (lambda: 3, "'x' is not a tensor (got int"),
        (lambda: {"w": torch.ones(1)}, "'x' is not a tensor (got dict"),
        (lambda: [torch.ones(1)], "'x' is not a tensor (got list"),
        (lambda: torch.float32, "'x' is not a tensor (got Name"),
        (lambda: torch.Size([1]), "asks to run code, 'torch.Size'"),
        (lambda: torch.ones(2).untyped_storage(), "'x' is not a tensor (got _Storage"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_what_is_no_state_dict(tmp_path: Path, make: Callable[[], object], message: str) -> None:
    torch.save({"w": torch.ones(1), "x": make()}, tmp_path / "w.bin")
    assert message in refusal(tmp_path / "w.bin")


def written(tmp_path: Path, kind: str) -> tuple[Path, Callable[[Path], dict[str, Tensor]]]:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2, dtype=torch.bfloat16)}
    path = tmp_path / kind
    if kind == "bin":
        torch.save(tensors, path)
        return path, read_torch_file
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path, read_safetensors


FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = pytest.mark.parametrize("kind", ["bin", "safetensors"])


@KINDS
def test_every_truncation_is_refused(tmp_path: Path, kind: str) -> None:
    path, read = written(tmp_path, kind)
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(CheckpointError):
            read(path)


@KINDS
@FUZZ
@given(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 7)), min_size=1, max_size=4))
def test_flipped_bits_never_escape(tmp_path: Path, kind: str, flips: list[tuple[int, int]]) -> None:
    path, read = written(tmp_path, kind)
    data = bytearray(path.read_bytes())
    for position, bit in flips:
        data[position % len(data)] ^= 1 << bit
    path.write_bytes(data)
    try:
        found = read(path)
    except D2VError:
        return
    for tensor in found.values():
        assert tensor.data.size == 0 or tensor.data.flat[-1] is not None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@KINDS
def test_opening_a_large_file_reads_only_its_headers(tmp_path: Path, kind: str) -> None:
    tensors = {f"layer.{number}.weight": torch.ones(500_000) for number in range(100)}  # 200 MB
    path = tmp_path / ("pytorch_model.bin" if kind == "bin" else "model.safetensors")
    torch.save(tensors, path) if kind == "bin" else save_file(tensors, path)
    code = f"""
from pathlib import Path
from d2v_ref.checkpoints import open_checkpoint
def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
before = resident()
tensors = open_checkpoint({str(tmp_path)!r})
print(resident() - before, len(tensors), sum(tensor.data.nbytes for tensor in tensors.values()))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kilobytes, count, size = map(int, run.stdout.split())
    assert (count, size) == (100, 200_000_000)
    assert kilobytes < 5_000
