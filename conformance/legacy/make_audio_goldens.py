"""Write golden files for the Data2VecAudio classes with an old transformers 4.x (see README.md beside this file).

What 4.30.2 and 4.57.6 compute for the five classes, with and without masks, an adapter, weighted layer sums; and the
loss of CTC with padding labels, which 4.x counts as targets (every label >= 0) where 5.23 leaves the blank out.
"""

import argparse
import json
import pathlib

import torch
import transformers
from make_text_goldens import BOTH, flatten_output, normal, save_safetensors, tensor

BASE_CONFIG = {
    "vocab_size": 7,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 9,
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "conv_dim": [5, 6, 4],
    "conv_stride": [3, 2, 1],
    "conv_kernel": [4, 3, 2],
    "conv_bias": False,
    "num_conv_pos_embedding_groups": 2,
    "conv_pos_kernel_size": 4,
    "num_conv_pos_embeddings": 3,
    "mask_time_prob": 0.05,
    "ctc_loss_reduction": "mean",
    "classifier_proj_size": 5,
    "tdnn_dim": [4, 5],
    "tdnn_kernel": [2, 2],
    "tdnn_dilation": [1, 2],
    "xvector_output_dim": 4,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 0,
    "num_labels": 3,
}
ADAPTER = {"add_adapter": True, "adapter_stride": 2, "num_adapter_layers": 2, "output_hidden_size": 6}
WEIGHTED = {"use_weighted_layer_sum": True}
MODEL, CTC = "Data2VecAudioModel", "Data2VecAudioForCTC"
SEQUENCE, FRAME = "Data2VecAudioForSequenceClassification", "Data2VecAudioForAudioFrameClassification"
XVECTOR = "Data2VecAudioForXVector"
SAMPLES = 100


def cases():
    """(name, class, what differs from BASE_CONFIG, inputs)."""
    signal = {"input_values": normal(7, 2, SAMPLES)}
    lengths = tensor([SAMPLES, 61])
    padded = {**signal, "attention_mask": (torch.arange(SAMPLES) < lengths[:, None]).long()}
    frames = 15
    masked = torch.zeros(2, frames, dtype=torch.long)
    masked[0, 3:6], masked[1, 1:3] = 1, 1
    ignored, padding = tensor([[3, 5, 5, -100], [4, -100, -100, -100]]), tensor([[3, 5, 5, 0], [4, 0, 0, 0]])
    one_hot = torch.nn.functional.one_hot(torch.arange(2 * frames).reshape(2, frames) % 3, 3)
    yield "audio_model", MODEL, {}, signal
    yield "audio_model_padded", MODEL, {}, padded
    yield "audio_model_masked", MODEL, {}, {**padded, "mask_time_indices": masked}
    yield "audio_model_adapter", MODEL, ADAPTER, padded
    yield "audio_model_odd_kernel", MODEL, {"conv_pos_kernel_size": 5, "conv_bias": True}, padded
    yield "audio_ctc", CTC, {}, {**padded, "labels": ignored}
    yield "audio_ctc_sum", CTC, {"ctc_loss_reduction": "sum"}, {**signal, "labels": ignored}
    yield "audio_ctc_padding_labels", CTC, {}, {**padded, "labels": padding}
    yield "audio_ctc_adapter", CTC, ADAPTER, {**padded, "labels": ignored[:, :1]}
    yield "audio_sequence", SEQUENCE, {}, {**padded, "labels": tensor([2, 0])}
    yield "audio_sequence_weighted", SEQUENCE, WEIGHTED, {**signal, "labels": tensor([2, 0])}
    yield "audio_frame", FRAME, {}, {**padded, "labels": one_hot}
    yield "audio_frame_weighted", FRAME, WEIGHTED, {**signal, "labels": one_hot}
    yield "audio_xvector", XVECTOR, {}, {**padded, "labels": tensor([1, 2])}
    yield "audio_xvector_weighted", XVECTOR, WEIGHTED, {**signal, "labels": tensor([1, 2])}


def build(class_name, changes):
    """The configuration and a model whose weights come from a fixed seed."""
    settings = {**BASE_CONFIG, **changes}
    config = transformers.Data2VecAudioConfig(**settings)
    config._attn_implementation = "eager"
    model = getattr(transformers, class_name)(config).eval()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return config, model


def main():
    """Write every case with the running transformers version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "audio", help="folder")
    options = parser.parse_args()
    version = transformers.__version__
    if version not in BOTH:
        parser.error(f"transformers {version} is not one of {', '.join(BOTH)}")
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    total = 0
    for name, class_name, changes, inputs in cases():
        config, model = build(class_name, changes)
        arguments = {"output_attentions": True, "output_hidden_states": True, "return_dict": True}
        given = {key: value.bool() if key == "mask_time_indices" else value for key, value in inputs.items()}
        output = model(**given, **arguments)
        tensors = {f"weight.{key}": value for key, value in model.state_dict().items()}
        tensors.update({f"input.{key}": value for key, value in inputs.items()})
        tensors.update({f"output.{key}": value for key, value in flatten_output(output).items()})
        metadata = {
            "arguments": json.dumps(arguments, sort_keys=True),
            "case": name,
            "class": class_name,
            "config": json.dumps(config.to_dict(), sort_keys=True),
            "torch_version": torch.__version__.split("+")[0],
            "transformers_version": version,
        }
        path = options.out / f"{name}.hf{version}.safetensors"
        save_safetensors(path, tensors, metadata)
        total += path.stat().st_size
    print(f"transformers {version}: {total} bytes in {options.out.name}")


if __name__ == "__main__":
    main()
