"""Reading checkpoints: weight files as named tensors, and the folder that a Hugging Face id stands for."""

from d2v_ref.checkpoints.files import WEIGHT_NAMES, open_checkpoint, weight_files
from d2v_ref.checkpoints.hub import resolve
from d2v_ref.checkpoints.safetensors_file import read_safetensors, read_safetensors_metadata
from d2v_ref.checkpoints.tensors import Tensor
from d2v_ref.checkpoints.tf_file import read_tf_h5
from d2v_ref.checkpoints.torch_file import read_torch_file
from d2v_ref.checkpoints.writing import new_folder, replacing, write_json, write_safetensors

__all__ = [
    "WEIGHT_NAMES",
    "Tensor",
    "new_folder",
    "open_checkpoint",
    "read_safetensors",
    "read_safetensors_metadata",
    "read_tf_h5",
    "read_torch_file",
    "replacing",
    "resolve",
    "weight_files",
    "write_json",
    "write_safetensors",
]
