"""What became of every weight of a checkpoint: where it lies, as what, and which modules compute with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from d2v_ref.checkpoints.tensors import Tensor
from d2v_ref.pretrained import LoadReport, PreTrainedModel


@dataclass(frozen=True)
class Use:
    """A parameter that a weight is: its name, and the module that computes with it and that module's class."""

    parameter: str
    module: str
    kind: str


@dataclass(frozen=True)
class StoredWeight:
    """A weight as it is stored.

    Attributes:
        name: in the checkpoint.
        file: the name of the file that it lies in.
        dtype: as stored; ``shape`` and ``bytes`` likewise.
        used_by: the parameters that it is; several if it is tied.
        unused: why no module uses it, or "".
    """

    name: str
    file: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    used_by: tuple[Use, ...]
    unused: str


def stored_weights(model: PreTrainedModel, report: LoadReport, tensors: Mapping[str, Tensor]) -> list[StoredWeight]:
    """Every weight of the checkpoint that a model was loaded from, in the order of the model; unused ones last."""
    users: dict[str, list[Use]] = {}  # name in the checkpoint -> uses
    for name, module, attribute, _ in model.named_parameters():
        path = name.removesuffix(attribute).removesuffix(".")
        for there in _sources(name, report):
            users.setdefault(there, []).append(Use(name, path, type(module).__name__))
    return [_stored(name, tensors[name], tuple(users.get(name, ())), report) for name in (*users, *report.unused)]


def _sources(parameter: str, report: LoadReport) -> list[str]:
    """The names in the checkpoint of a parameter: its own, and that of the one that it is tied to."""
    own = report.used.get(parameter)
    tied = report.used.get(report.tied.get(parameter, ""))
    return list(dict.fromkeys(name for name in (own, tied) if name is not None))


def _stored(name: str, tensor: Tensor, used_by: tuple[Use, ...], report: LoadReport) -> StoredWeight:
    return StoredWeight(
        name=name,
        file=tensor.file.name,
        shape=tuple(tensor.shape),
        dtype=tensor.dtype,
        bytes=tensor.data.nbytes,
        used_by=used_by,
        unused=report.unused.get(name, ""),
    )
