"""Write golden files for the TFData2VecVision classes with an old transformers 4.x (see README.md beside this file).

transformers 5 has no TensorFlow classes; these files hold what 4.57.6 and 4.30.2 compute, and tiny checkpoints as
TensorFlow writes them.  Weights are stored under the names and in the layouts of the PyTorch classes; every case is
first held against the PyTorch class of the same transformers.
"""

import argparse
import json
import os
import pathlib
import shutil
import zlib
from dataclasses import dataclass, field

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
import tensorflow as tf
import torch
import transformers
from make_text_goldens import BOTH, NEW, OLD, save_safetensors
from transformers.modeling_tf_pytorch_utils import apply_transpose, convert_tf_weight_name_to_pt_weight_name

MODEL, CLASSIFICATION = "Data2VecVisionModel", "Data2VecVisionForImageClassification"
SEGMENTATION = "Data2VecVisionForSemanticSegmentation"
PREFIX = "data2vec_vision."

BASE_CONFIG = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "layer_norm_eps": 1e-12,
    "image_size": 32,
    "patch_size": 8,
    "num_channels": 1,
    "use_mask_token": False,
    "use_absolute_position_embeddings": False,
    "use_relative_position_bias": False,
    "use_shared_relative_position_bias": False,
    "layer_scale_init_value": 0.1,
    "use_mean_pooling": True,
    "num_labels": 3,
}
HEADS = {
    "num_hidden_layers": 4,
    "out_indices": [2, 3, 4, 5],
    "pool_scales": [1, 2, 3, 6],
    "use_auxiliary_head": True,
    "auxiliary_loss_weight": 0.4,
    "auxiliary_channels": 6,
    "auxiliary_num_convs": 1,
    "auxiliary_concat_input": False,
    "semantic_loss_ignore_index": 2,
}
FEW = {"num_hidden_layers": 3, "out_indices": [1, 2, 3, 4]}
ABSOLUTE = {"use_absolute_position_embeddings": True}
RELATIVE = {"use_relative_position_bias": True}
SHARED = {"use_shared_relative_position_bias": True}
TOKENS = {"use_mean_pooling": False}  # the final layer norm, and token 0 for the pooler
STATES = {"output_hidden_states": True, "output_attentions": True}
TUPLE = {"return_dict": False}
POOLER = {"add_pooling_layer": True}


@dataclass
class Case:
    """One golden file: a PyTorch class' name, what differs from the configuration above, the call, the versions."""

    name: str
    model_class: str
    description: str
    config: dict = field(default_factory=dict)
    inputs: dict = field(default_factory=dict)
    arguments: dict = field(default_factory=lambda: dict(STATES))
    constructor: dict = field(default_factory=dict)
    versions: tuple = (NEW,)
    quirk: str = None  # why the output is a known defect

    @property
    def settings(self):
        return {**BASE_CONFIG, **(HEADS if self.model_class == SEGMENTATION else {}), **self.config}


def normal(seed, *shape):
    """A reproducible normal float32 array."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pixels(batch=2, channels=1, size=32):
    return {"pixel_values": normal(5, batch, channels, size, size)}


def classes(*shape):
    """Labels 0 ... 2 for segmentation; 2 is the index to ignore."""
    return {"labels": np.random.default_rng(6).integers(0, 3, shape)}


def model_cases():
    mask = {"bool_masked_pos": np.random.default_rng(7).integers(0, 2, (2, 16))}
    rgb = {"num_channels": 3, **RELATIVE}
    yield Case("model", MODEL, "per-layer relative bias, three channels", rgb, pixels(1, channels=3))
    yield Case("model_tuple", MODEL, "a tuple with states and attentions", RELATIVE, pixels(1), {**STATES, **TUPLE})
    yield Case("model_tuple_short", MODEL, "a tuple of one", RELATIVE, pixels(1), dict(TUPLE))
    yield Case("model_no_bias", MODEL, "no bias, no layer scale", {"layer_scale_init_value": 0.0}, pixels(1))
    yield Case("model_absolute_positions", MODEL, "absolute positions", ABSOLUTE, pixels(1))
    yield Case("model_shared_bias", MODEL, "shared relative bias", SHARED, pixels(1))
    every = {"use_mask_token": True, **ABSOLUTE, **RELATIVE, **SHARED}
    yield Case("model_every_bias_masked", MODEL, "all biases and masked patches", every, {**pixels(), **mask})
    yield Case("model_masked", MODEL, "masked patches", {"use_mask_token": True}, {**pixels(), **mask}, {})
    yield Case("model_pooler", MODEL, "with a pooler", RELATIVE, pixels(1), {}, POOLER)
    yield Case("model_pooler_tuple", MODEL, "with a pooler, as a tuple", {}, pixels(1), {**STATES, **TUPLE}, POOLER)
    large = {"image_size": 48, "patch_size": 16, **RELATIVE}
    yield Case("model_image_48", MODEL, "3 x 3 patches of 16", large, pixels(1, size=48))
    uneven = {"image_size": 35, **RELATIVE}
    yield Case("model_image_35", MODEL, "a size that the patch does not divide", uneven, pixels(1, size=35))
    flat = {"patch_size": [16, 8], **ABSOLUTE}
    yield Case("model_rectangular_patch", MODEL, "patches of 16 x 8, absolute positions", flat, pixels(1))
    fused = {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}
    yield Case("model_gelu_new", MODEL, "tanh GELU, and an eps for which Keras fuses LayerNorm", fused, pixels(1))
    yield Case("model_relu", MODEL, "ReLU", {"hidden_act": "relu", **SHARED}, pixels(1), {})
    yield Case("model_tokens", MODEL, "final layer norm", {**TOKENS, **SHARED}, pixels(1), versions=(OLD,))
    tokens = {**TOKENS, **RELATIVE}
    yield Case("model_tokens_pooler", MODEL, "pooler is token 0", tokens, pixels(1), {}, POOLER, (OLD,))
    wide = {"patch_size": [8, 16], **RELATIVE}
    scrambled = "the index of a window that is not square is not PyTorch's; of one wider than high it is negative"
    yield Case("model_rectangular_window", MODEL, "4 x 2 patches, relative bias", wide, pixels(1), {}, quirk=scrambled)


def classification_cases():
    labels = {"labels": np.array([2, 0])}
    yield Case("classification", CLASSIFICATION, "labels", RELATIVE, {**pixels(), **labels}, {})
    both = {**STATES, **TUPLE}
    yield Case("classification_tuple", CLASSIFICATION, "a tuple with everything", {}, {**pixels(), **labels}, both)
    yield Case("classification_tuple_short", CLASSIFICATION, "a tuple of one", {}, pixels(1), dict(TUPLE))
    column = {"labels": labels["labels"][:, None]}
    yield Case("classification_column", CLASSIFICATION, "labels (B, 1)", SHARED, {**pixels(), **column}, {})
    one, targets = {"num_labels": 1}, {"labels": normal(8, 2)}
    yield Case("classification_regression", CLASSIFICATION, "one label", one, {**pixels(), **targets}, {})
    tokens = {**TOKENS, **SHARED}
    yield Case("classification_tokens", CLASSIFICATION, "token 0", tokens, {**pixels(), **labels}, {}, versions=(OLD,))


def segmentation_cases():
    image, small = {**pixels(1), **classes(1, 32, 32)}, {**pixels(1), **classes(1, 11, 18)}
    states = {"output_hidden_states": True}
    yield Case("segmentation", SEGMENTATION, "pools of 2 x 2 by 1, 2, 3 and 6", RELATIVE, image, states)
    two = {**FEW, "pool_scales": [1, 2], "auxiliary_num_convs": 2, "auxiliary_concat_input": True}
    both = {**STATES, **TUPLE}
    yield Case("segmentation_tuple", SEGMENTATION, "a tuple with everything; two convolutions", two, small, both)
    attentions, one = {"output_attentions": True, **TUPLE}, {**FEW, "pool_scales": [1], **ABSOLUTE}
    yield Case("segmentation_tuple_attentions", SEGMENTATION, "a tuple without states", one, small, attentions)
    without = {**FEW, "use_auxiliary_head": False, "pool_scales": [1], "layer_scale_init_value": 0.0, **SHARED}
    short = dict(TUPLE)
    yield Case("segmentation_tuple_short", SEGMENTATION, "a tuple of one; no auxiliary head", without, pixels(1), short)
    chosen = {"out_indices": [1, 2, 4, 5], "auxiliary_loss_weight": 0.7, "semantic_loss_ignore_index": 0}
    grid = {"image_size": 48, "pool_scales": [2, 3], "auxiliary_concat_input": True, **chosen, **SHARED}
    larger = {**pixels(1, size=48), **classes(1, 20, 50)}
    yield Case("segmentation_grid_6", SEGMENTATION, "pools of 3 x 3 by 2 and 3", grid, larger, {})
    pools = {"image_size": 48, "pool_scales": [5, 2, 3], **FEW}
    yield Case("segmentation_pools_5_2_3", SEGMENTATION, "pools up and down", pools, larger, {}, versions=BOTH)
    pair = {**pixels(), **classes(2, 11, 18)}
    none = {**FEW, "pool_scales": [2], "auxiliary_num_convs": 0, "auxiliary_channels": 8}
    yield Case("segmentation_auxiliary_0", SEGMENTATION, "an auxiliary head of one layer", none, pair, {})
    concat = {**none, "auxiliary_concat_input": True}
    yield Case("segmentation_auxiliary_0_concat", SEGMENTATION, "the feature beside itself", concat, small, {})
    tokens = {**FEW, "pool_scales": [2], **TOKENS}
    yield Case("segmentation_tokens", SEGMENTATION, "final layer norm", tokens, small, {}, versions=(OLD,))


def checkpoint_cases():
    """(what it is saved as, case): tiny checkpoints, written by save_pretrained."""
    every = {"use_mask_token": True, **ABSOLUTE, **RELATIVE, **SHARED}
    head = {"pool_scales": [1, 2], "auxiliary_channels": 5, "auxiliary_num_convs": 2, **FEW, **SHARED}
    label, area = {"labels": np.array([2])}, classes(1, 9, 9)
    yield "h5", Case("model_h5", MODEL, "tf_model.h5", every, pixels(1), {})
    yield "h5", Case("classification_h5", CLASSIFICATION, "tf_model.h5", RELATIVE, {**pixels(1), **label}, {})
    yield "h5", Case("segmentation_h5", SEGMENTATION, "tf_model.h5", head, {**pixels(1), **area}, {})
    yield "safetensors", Case("model_safetensors", MODEL, "model.safetensors", every, pixels(1), {})
    yield "safetensors", Case("classification_safetensors", CLASSIFICATION, "model.safetensors", {}, pixels(1), {})
    concat = {**head, "auxiliary_concat_input": True}
    yield "safetensors", Case("segmentation_safetensors", SEGMENTATION, "model.safetensors", concat, pixels(1), {})


def pytorch_name(variable, bare):
    """The PyTorch name of a variable, and how transformers transposes it; names that it does not convert are added."""
    start = PREFIX if bare else ""
    name, transpose = convert_tf_weight_name_to_pt_weight_name(variable.name, start, variable.shape)
    name = name.replace("moving_mean", "running_mean").replace("moving_variance", "running_var")
    head, found, tail = name.partition("conv_module_")  # the auxiliary head's convs.1 is its conv_module_2
    if found:
        number, _, rest = tail.partition(".")
        name = f"{head}convs.{int(number) - 1}.{rest}"
    return name, transpose


def drawn(name, shape):
    """Weights from the name alone: the same in every class, case and version that has them."""
    value = normal(zlib.crc32(name.removeprefix(PREFIX).encode()), *shape)
    if name.endswith("running_var"):
        return 0.5 + np.abs(value)
    if len(shape) == 1 and ("norm" in name or "bn" in name or name.startswith("fpn1.1")) and name.endswith("weight"):
        return 1 + np.float32(0.3) * value
    if "lambda" in name:
        return np.float32(0.6) + np.float32(0.3) * value
    if len(shape) == 1:
        return np.float32(0.3) * value
    return value if name.endswith(("token", "table", "embeddings")) else value / np.float32(np.sqrt(value[0].size))


def build(case):
    """The TensorFlow model and its weights by PyTorch name."""
    config = transformers.Data2VecVisionConfig(**case.settings)
    model = getattr(transformers, f"TF{case.model_class}")(config, **case.constructor)
    model(tf.constant(case.inputs["pixel_values"]))  # some layers are built by the first call only
    weights = {}
    for variable in model.weights:
        name, transpose = pytorch_name(variable, case.model_class == MODEL)
        shape = apply_transpose(transpose, np.empty(variable.shape), pt_to_tf=False).shape
        weights[name] = drawn(name, shape)
        variable.assign(apply_transpose(transpose, weights[name]))
    return model, weights


def named(output):
    """The fields of an output as {name: array}."""
    flat = {}
    for name, value in output.items():
        if isinstance(value, tuple):
            flat.update({f"{name}.{index}": item.numpy() for index, item in enumerate(value)})
        else:
            flat[name] = value.numpy()
    return flat


def call(model, case):
    """The arrays of the output, and in which order a tuple has them."""
    inputs = {name: tf.constant(value) for name, value in case.inputs.items()}
    if "bool_masked_pos" in inputs:
        inputs["bool_masked_pos"] = tf.cast(inputs["bool_masked_pos"], tf.bool)
    whole = dict(model(**inputs, **{**case.arguments, "return_dict": True}))
    if case.arguments.get("return_dict", True):
        return named(whole), None
    items = model(**inputs, **case.arguments)
    assert len(items) == len(whole)  # whole's fields are in the tuple's order
    arrays, expected = named(dict(zip(whole, items, strict=True))), named(whole)
    if case.model_class == SEGMENTATION:
        expected["logits"] = np.moveaxis(expected["logits"], 1, -1)
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value, strict=True)
    return arrays, list(whole)


class ChainedPooling:
    """TensorFlow's pyramid pooling in PyTorch: each scale pools the output of the one before."""

    def __enter__(self):
        from transformers.models.data2vec import modeling_data2vec_vision as module

        def forward(self, x):
            size, outputs = x.shape[2:], []
            for block in self.blocks:
                x = block(x)
                outputs.append(torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False))
            return outputs

        self.module = module.Data2VecVisionPyramidPoolingModule
        self.forward, self.module.forward = self.module.forward, forward

    def __exit__(self, *_):
        self.module.forward = self.forward


@torch.no_grad()
def hold_against_pytorch(case, weights, got):
    """The largest relative error of the PyTorch class with these weights; for segmentation with chained pools."""
    config = transformers.Data2VecVisionConfig(**case.settings)
    config._attn_implementation = "eager"
    model = getattr(transformers, case.model_class)(config, **case.constructor).eval()
    missing, unexpected = model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
    buffers = ("relative_position_index", "num_batches_tracked")
    assert not unexpected, unexpected
    assert all(name.endswith(buffers) for name in missing), missing
    inputs = {name: torch.from_numpy(value) for name, value in case.inputs.items()}
    if "bool_masked_pos" in inputs:
        inputs["bool_masked_pos"] = inputs["bool_masked_pos"].bool()
    arguments = {**case.arguments, "return_dict": True}
    plain = model(**inputs, **arguments)
    output = plain
    if case.model_class == SEGMENTATION:
        with ChainedPooling():
            output = model(**inputs, **arguments)
        several = len(case.settings["pool_scales"]) > 1
        assert ((output.logits - plain.logits).abs().max() > 0.01) == several
    want = named(output)
    if case.model_class == SEGMENTATION and not case.arguments.get("return_dict", True):
        want["logits"] = np.moveaxis(want["logits"], 1, -1)
    assert want.keys() == got.keys()
    if "loss" in got:  # PyTorch's are scalars; TensorFlow's are one for each image, or one in an array
        got = {**got, "loss": got["loss"].mean()}
    errors = {name: np.abs(got[name] - value).max() / max(1, np.abs(value).max()) for name, value in want.items()}
    return max(errors.values())


def record(case, path):
    """Write one golden file and return what its model is, for those who save it."""
    model, weights = build(case)
    arrays, order = call(model, case)
    if case.quirk is None:
        error = hold_against_pytorch(case, weights, arrays)
        assert error <= (2e-6 if case.model_class != SEGMENTATION else 2e-5), (case.name, error)
        print(f"{case.name}: {error:.1e} from PyTorch")
    parts = {"weight": weights, "input": case.inputs, "output": arrays}
    tensors = {
        f"{kind}.{name}": torch.from_numpy(np.ascontiguousarray(value))
        for kind, part in parts.items()
        for name, value in part.items()
    }
    metadata = {
        "arguments": json.dumps(case.arguments, sort_keys=True),
        "case": case.name,
        "class": f"TF{case.model_class}",
        "config": json.dumps(case.settings, sort_keys=True),
        "constructor": json.dumps(case.constructor, sort_keys=True),
        "description": case.description,
        "numpy_version": np.__version__,
        "tensorflow_version": tf.__version__,
        "torch_version": torch.__version__.split("+")[0],
        "transformers_version": transformers.__version__,
    }
    if order is not None:
        metadata["tuple_order"] = json.dumps(order)
    if case.model_class == SEGMENTATION:
        metadata["logits_layout"] = "NCHW" if order is None else "NHWC"
    if case.quirk is not None:
        metadata["quirk"] = case.quirk
    save_safetensors(path, tensors, metadata)
    return model


def save_checkpoint(kind, case, folder):
    """A checkpoint as TensorFlow writes it, with the golden of one input beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = record(case, folder / "golden.safetensors")
    model.save_pretrained(folder, safe_serialization=kind == "safetensors")
    for file in folder.iterdir():
        file.chmod(0o644)


def main():
    """Write the cases of the running transformers version; the checkpoints too if it is the newer one."""
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=here, help="folder that gets tf/ and tf_checkpoints/")
    parser.add_argument("--every-case", action="store_true", help="also the cases meant for the other version only")
    options = parser.parse_args()
    version = transformers.__version__
    if version not in BOTH:
        parser.error(f"transformers {version} is not one of {', '.join(BOTH)}")
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    torch.set_num_threads(1)
    goldens, checkpoints = options.out / "tf", options.out / "tf_checkpoints"
    goldens.mkdir(parents=True, exist_ok=True)
    cases = [*model_cases(), *classification_cases(), *segmentation_cases()]
    for case in cases:
        crashes = version == NEW and not case.settings["use_mean_pooling"]
        if version in case.versions or (options.every_case and not crashes):
            record(case, goldens / f"{case.name}.hf{version}.safetensors")
    if version == NEW or options.every_case:
        for kind, case in checkpoint_cases():
            save_checkpoint(kind, case, checkpoints / case.name)


if __name__ == "__main__":
    main()
