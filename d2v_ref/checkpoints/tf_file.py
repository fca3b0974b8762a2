"""Reading the weights of TensorFlow's Data2VecVision classes (transformers up to 4.57) without TensorFlow.

Two kinds of file hold them: ``tf_model.h5``, in Keras' HDF5 format, and safetensors files whose metadata say
``{"format": "tf"}``.  Both are given under the names and in the layouts of the PyTorch classes:

==================================  ===========================================  ==================================
TensorFlow                          PyTorch                                      axes
==================================  ===========================================  ==================================
``.../layer_._3/...``               ``....layer.3....``
``auxiliary_head/conv_module_2``    ``auxiliary_head.convs.1``
Dense ``kernel``                    ``weight``                                   (in, out) -> (out, in)
Conv2D ``kernel``                   ``weight``                                   (h, w, in, out) -> (out, in, h, w)
Conv2DTranspose ``kernel``          ``weight``                                   (h, w, out, in) -> (in, out, h, w)
``gamma``, ``beta``                 ``weight``, ``bias``
``moving_mean``                     ``running_mean``
``moving_variance``                 ``running_var``
==================================  ===========================================  ==================================

Source: transformers 4.57.6, modeling_tf_pytorch_utils.convert_tf_weight_name_to_pt_weight_name, which leaves the second
and the last two lines out; tf_keras 2.18, saving/legacy/hdf5_format.save_weights_to_hdf5_group.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from d2v_ref.checkpoints.mapped import DOWNLOAD_AGAIN, ELEMENT_TYPES, aligned, open_weights, short, view
from d2v_ref.checkpoints.tensors import Tensor
from d2v_ref.errors import CheckpointError, UnavailableError

MAX_NAMES = 100_000  # the largest published model has 414

_SAVE_AGAIN = "Save the model again with TensorFlow's save_pretrained."
_LOOSE = "top_level_model_weights"  # the group of those that are of no layer; older Keras writes none
_BACKBONE = "data2vec_vision"
_TOP = (_BACKBONE, "classifier", "decode_head", "auxiliary_head", "fpn1.0", "fpn1.1", "fpn1.3", "fpn2.0")
_DTYPES = ("float64", "float32", "float16")

# The last part of a TensorFlow name -> PyTorch's, and for each number of axes how they are ordered.
_VECTOR, _AS_IT_IS = {1: (0,)}, {3: (0, 1, 2)}
_WEIGHTS: Mapping[str, tuple[str, Mapping[int, tuple[int, ...]]]] = {
    "kernel": ("weight", {2: (1, 0), 4: (3, 2, 0, 1)}),
    "bias": ("bias", _VECTOR),
    "gamma": ("weight", _VECTOR),
    "beta": ("bias", _VECTOR),
    "moving_mean": ("running_mean", _VECTOR),
    "moving_variance": ("running_var", _VECTOR),
    "lambda_1": ("lambda_1", _VECTOR),
    "lambda_2": ("lambda_2", _VECTOR),
    "cls_token": ("cls_token", _AS_IT_IS),
    "mask_token": ("mask_token", _AS_IT_IS),
    "position_embeddings": ("position_embeddings", _AS_IT_IS),
    "relative_position_bias_table": ("relative_position_bias_table", {2: (0, 1)}),
}


def read_tf_h5(path: str | Path) -> dict[str, Tensor]:
    """Every weight of a ``tf_model.h5``, by PyTorch's name, as a read-only view of the mapped file.

    Keras' format: the file's attribute ``layer_names`` lists its groups, and the attribute ``weight_names`` of each the
    paths of its datasets; a list that is too long for one attribute is divided among ``weight_names0``,
    ``weight_names1`` and so on.  h5py finds the datasets, and their numbers are taken from where they lie in the file,
    so that nothing but this file is read: links, external storage and virtual datasets are refused.

    Raises:
        CheckpointError: the file is damaged, is no such file, or holds what is no weight of a Data2VecVision class.
        UnavailableError: h5py is not installed.
    """
    path = Path(path)
    with open_weights(path) as (_, data), _opened(path) as (h5py, file):
        found = _Reader(h5py, data, path).weights(file)
    if not found:
        raise CheckpointError("the file holds no weights", path=path, hint=_SAVE_AGAIN)
    return pytorch_tensors(found, path)


def pytorch_tensors(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors with TensorFlow's names and layouts under PyTorch's names, as views in PyTorch's layouts.

    As in PyTorch, names start with ``data2vec_vision.`` only where there is a head beside the bare model.

    Raises:
        CheckpointError: a name or a number of axes that no weight of a Data2VecVision class has, or two of one name.
    """
    found: dict[str, Tensor] = {}
    for tf_name, tensor in tensors.items():
        name, orders = _pytorch_name(tf_name, path)
        axes = orders.get(tensor.data.ndim)
        if axes is None:
            expected = f"{' or '.join(map(str, orders))} axes"
            raise CheckpointError(
                f"the weight {short(tf_name)} has the wrong rank", path=path, got=tensor.shape, expected=expected
            )
        if name in found:
            raise CheckpointError(f"two weights are {short(name)} in PyTorch", path=path, got=short(tf_name))
        found[name] = Tensor(tensor.data.transpose(axes), tensor.dtype, tensor.file)
    prefix = f"{_BACKBONE}."
    bare = all(name.startswith(prefix) for name in found)
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()} if bare else found


def _pytorch_name(tf_name: str, path: Path) -> tuple[str, Mapping[int, tuple[int, ...]]]:
    parts = re.sub(r":\d+$", "", tf_name).split("/")
    if parts[0] not in _TOP:
        parts = parts[1:]  # the name of the model, tf_data2_vec_vision_model or tf_data2_vec_vision_model_1
    if len(parts) < 2 or parts[0] not in _TOP or parts[-1] not in _WEIGHTS or "" in parts:
        expected = f"MODEL/LAYER/.../WEIGHT, LAYER one of {', '.join(_TOP)}, WEIGHT one of {', '.join(_WEIGHTS)}"
        message = f"{short(tf_name)} is no weight of a TFData2VecVision class"
        raise CheckpointError(message, path=path, expected=expected)
    last, orders = _WEIGHTS[parts[-1]]
    modules = [re.sub(r"^layer_\._(\d+)$", r"layer.\1", part) for part in parts[:-1]]
    if modules[0] == "auxiliary_head":
        modules = [
            re.sub(r"^conv_module_([1-9]\d{0,8})$", lambda n: f"convs.{int(n[1]) - 1}", part) for part in modules
        ]
    return ".".join([*modules, last]), orders


@contextmanager
def _opened(path: Path) -> Iterator[tuple[ModuleType, Any]]:
    """h5py and the open file; what h5py raises while it reads is a CheckpointError."""
    try:
        import h5py
    except ImportError:
        hint = "Run `pip install d2v-ref[hdf5]`, or use the model's PyTorch file"
        raise UnavailableError("reading it needs h5py, which is not installed", path=path, hint=hint) from None
    try:
        with h5py.File(path, "r") as file:
            yield h5py, file
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        got = str(error).partition("\n")[0][:200]
        message = "the file is damaged, or is no HDF5 file"
        raise CheckpointError(message, path=path, got=got, hint=DOWNLOAD_AGAIN) from None


@dataclass(frozen=True)
class _Reader:
    """What Keras' format says, checked at every step."""

    h5py: ModuleType
    data: np.ndarray
    path: Path

    def weights(self, file: Any) -> dict[str, Tensor]:
        layers = self.names(file, "layer_names")
        if _LOOSE not in layers and file.id.links.exists(_LOOSE.encode()):
            layers.append(_LOOSE)
        found: dict[str, Tensor] = {}
        for layer in layers:
            group = self.find(file, layer)
            for name in self.names(group, "weight_names"):
                if name in found:
                    message = f"the weight {short(name)} is listed twice"
                    raise CheckpointError(message, path=self.path, hint=_SAVE_AGAIN)
                found[name] = self.tensor(self.find(group, name), name)
        return found

    def names(self, group: Any, attribute: str) -> list[str]:
        """The list in an attribute, or divided among several that are numbered."""
        if attribute in group.attrs:
            return self._read_names(group, attribute)
        parts: list[list[str]] = []
        while (numbered := f"{attribute}{len(parts)}") in group.attrs:
            parts.append(self._read_names(group, numbered))
        if not parts:
            message = f"{short(group.name)} has no attribute {attribute}"
            expected = "a tf_model.h5 that save_pretrained or save_weights wrote, in one file"
            raise CheckpointError(message, path=self.path, expected=expected, hint=_SAVE_AGAIN)
        return [name for part in parts for name in part]

    def _read_names(self, group: Any, attribute: str) -> list[str]:
        about = group.attrs.get_id(attribute)
        shape, dtype = about.shape, about.dtype
        if shape == (0,):  # of any type: Keras writes an empty list as numbers
            return []
        text = dtype.kind == "S" or self.h5py.check_string_dtype(dtype) is not None
        if not text or shape is None or len(shape) != 1 or shape[0] > MAX_NAMES:
            message = f"the attribute {attribute} of {short(group.name)} has the wrong form"
            expected = f"a list of at most {MAX_NAMES} names"
            raise CheckpointError(message, path=self.path, got=f"{dtype} of shape {shape}", expected=expected)
        values = group.attrs[attribute]
        return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values]

    def find(self, group: Any, name: str) -> Any:
        """What lies at a path of hard links.  The others may lead out of the file, so that none is followed."""
        for part in name.split("/"):
            links = group.id.links if isinstance(group, self.h5py.Group) else None
            if links is None or not part or not links.exists(part.encode()):
                raise CheckpointError(f"{short(name)} is listed but not there", path=self.path, hint=DOWNLOAD_AGAIN)
            if links.get_info(part.encode()).type != self.h5py.h5l.TYPE_HARD:
                message = f"{short(name)} is behind a soft or external link, which is not followed"
                raise CheckpointError(message, path=self.path, hint=_SAVE_AGAIN)
            group = group[part]
        return group

    def tensor(self, dataset: Any, name: str) -> Tensor:
        """The numbers of a dataset where they lie in the file."""
        if not isinstance(dataset, self.h5py.Dataset):
            raise CheckpointError(f"{short(name)} is a group", path=self.path, expected="a dataset", hint=_SAVE_AGAIN)
        element = next(
            (ELEMENT_TYPES[known] for known in _DTYPES if ELEMENT_TYPES[known].layout == dataset.dtype), None
        )
        if element is None:
            expected = f"little-endian {' or '.join(_DTYPES)}"
            message = f"{short(name)} has a dtype that can't be read"
            raise CheckpointError(message, path=self.path, got=dataset.dtype, expected=expected, hint=_SAVE_AGAIN)
        shape, offset = dataset.shape, dataset.id.get_offset()
        if shape is None or offset is None:
            expected = "numbers in one piece and without compression, as Keras writes them"
            raise CheckpointError(
                f"{short(name)} is not stored as one piece of this file",
                path=self.path,
                expected=expected,
                hint=_SAVE_AGAIN,
            )
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        region = self.data[offset : offset + math.prod(shape) * element.layout.itemsize]
        return view(aligned(region, element.layout), element, shape, strides, 0, self.path, name)
