"""Which files of a folder are its weights, and all their tensors."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from d2v_ref.checkpoints.mapped import short
from d2v_ref.checkpoints.safetensors_file import read_safetensors, read_safetensors_metadata
from d2v_ref.checkpoints.tensors import Tensor
from d2v_ref.checkpoints.tf_file import pytorch_tensors, read_tf_h5
from d2v_ref.checkpoints.torch_file import read_torch_file
from d2v_ref.errors import CheckpointError

# The order in which Hugging Face looks for them (transformers, modeling_utils._get_resolved_checkpoint_files).
WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
)
_OTHER_FRAMEWORKS = {
    "tf_model.h5.index.json": "TensorFlow in shards",
    "flax_model.msgpack": "Flax",
    "model.ckpt.index": "TensorFlow 1",
}


def open_checkpoint(folder: str | Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint's folder, by name, whatever files it is in.

    A tensor that is in a shard but not in the index is taken too, as in transformers, which uses the index to find the
    shards only.  A tensor in two shards, or one that is not in the shard that the index names, is an error.
    """
    folder = Path(folder)
    first = _first_weight_file(folder)
    if first.suffix != ".json":
        return _read(first)
    listed = read_index(first)
    tensors: dict[str, Tensor] = {}
    for shard in weight_files(folder):
        if _is_tensorflow(shard):
            message = "is a shard of a TensorFlow model, which is read from one file only"
            hint = 'Save it again with save_pretrained(..., max_shard_size="100GB")'
            raise CheckpointError(message, path=shard, hint=hint)
        for name, tensor in _read(shard).items():
            if name in tensors:
                both = f"{tensors[name].file.name} and {shard.name}"
                raise CheckpointError(f"the tensor {short(name)} is in two shards", path=folder, got=both)
            tensors[name] = tensor
    for name, shard_name in listed.items():
        if name not in tensors or tensors[name].file != folder / shard_name:
            raise CheckpointError(
                f"the tensor {short(name)} is not in the shard that the index names",
                path=first,
                expected=f"it in {shard_name}",
                hint="Download the index and its shards again.",
            )
    return tensors


def weight_files(folder: str | Path) -> list[Path]:
    """The files that hold a checkpoint's weights: one, or the shards that its index names."""
    folder = Path(folder)
    first = _first_weight_file(folder)
    if first.suffix != ".json":
        return [first]
    shards = [folder / name for name in sorted(set(read_index(first).values()))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of the {len(shards)} shards that it names are missing",
            path=first,
            got=f"no {', '.join(missing[:5])}",
            hint="Download them into the same folder.",
        )
    return shards


def read_index(path: Path) -> dict[str, str]:
    """A sharded checkpoint's index: for each tensor the name of its shard, checked to stay inside the folder."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError("the index can't be read", path=path, got=error.strerror) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            "the index is not JSON", path=path, got=str(error)[:200], hint="Download it again."
        ) from None
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(
            "the index has no usable weight_map", path=path, expected='{"weight_map": {tensor: file name}}'
        )
    for name in set(shards.values()):
        # By its text alone: in the Hugging Face cache every file is a symbolic link out of its folder.
        if not name or "\\" in name or ":" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise CheckpointError("the index names a file outside its folder", path=path, got=short(name))
    return shards


def _first_weight_file(folder: Path) -> Path:
    if not folder.is_dir():
        raise CheckpointError("is not a folder", path=folder, expected="a folder with config.json and weights")
    found = [name for name in WEIGHT_NAMES if (folder / name).is_file()]
    if len(found) > 1 and found[1] != "tf_model.h5" and _is_tensorflow(folder / found[0]):
        found = found[1:]  # TensorFlow's model.safetensors beside a file of PyTorch
    if found:
        return folder / found[0]
    held = sorted(entry.name for entry in folder.iterdir())
    others = [f"{framework} ({name})" for name, framework in _OTHER_FRAMEWORKS.items() if name in held]
    raise CheckpointError(
        f"the folder holds weights for {' and '.join(others)} only" if others else "the folder holds no weights",
        path=folder,
        got=", ".join(held[:12]) + (", ..." if len(held) > 12 else "") or "an empty folder",
        expected=" or ".join(WEIGHT_NAMES),
    )


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".h5":
        return read_tf_h5(path)
    if path.suffix != ".safetensors":
        return read_torch_file(path)
    tensors = read_safetensors(path)
    return pytorch_tensors(tensors, path) if _is_tensorflow(path) else tensors


def _is_tensorflow(path: Path) -> bool:
    """Whether a safetensors file has the names and layouts of TensorFlow."""
    return path.suffix == ".safetensors" and read_safetensors_metadata(path).get("format") == "tf"
