"""Write golden files for the Data2VecText classes with an old transformers 4.x (see README.md beside this file).

transformers 5 ignores relative positions, rejects 3-D attention masks and has no head_mask or prune_heads; these
files hold what 4.57.6 and 4.30.2 compute. The same script runs under both versions; each case names the versions
that it is written for. Every file is self-contained: weights, inputs, outputs, configuration.
"""

import argparse
import copy
import json
import pathlib
import zlib
from dataclasses import dataclass, field

import torch
import transformers

OLD, NEW = "4.30.2", "4.57.6"
BOTH = (OLD, NEW)

BASE_CONFIG = {
    "vocab_size": 11,
    "hidden_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 7,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 10,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "position_embedding_type": "absolute",
    "chunk_size_feed_forward": 0,
    "is_decoder": False,
    "add_cross_attention": False,
    "use_cache": True,
    "num_labels": 3,
}
DECODER = {"is_decoder": True}
CROSS = {"is_decoder": True, "add_cross_attention": True}
RELATIVE = {"rel_key": "relative_key", "rel_key_query": "relative_key_query"}

MODEL = "Data2VecTextModel"
MASKED_LM = "Data2VecTextForMaskedLM"
CAUSAL_LM = "Data2VecTextForCausalLM"
SEQUENCE = "Data2VecTextForSequenceClassification"
CHOICE = "Data2VecTextForMultipleChoice"
TOKEN = "Data2VecTextForTokenClassification"
QUESTION = "Data2VecTextForQuestionAnswering"

SEQUENCE_FIELDS = ("hidden_states", "attentions", "cross_attentions")


@dataclass
class Case:
    """One golden file: a class, what differs from BASE_CONFIG, the call, and the versions to write it for."""

    name: str
    model_class: str
    description: str
    inputs: dict
    config: dict = field(default_factory=dict)
    arguments: dict = field(default_factory=dict)
    versions: tuple = (OLD,)
    prefill: dict = None  # inputs of a first call with use_cache=True, whose cache the recorded call receives
    pruned_heads: dict = None
    quirk: str = None  # why the output is a known defect of that version


def tensor(values):
    """A tensor of int64 or float64 from nested lists."""
    return torch.tensor(values)


def normal(seed, *shape):
    """A reproducible normal float64 tensor."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text_inputs():
    """The tensors shared by the cases: ids with right and left padding, masks, labels, an encoder's output."""
    return {
        "right_ids": tensor([[0, 5, 7, 3, 9, 2], [0, 4, 8, 2, 1, 1]]),
        "right_mask": tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
        "left_ids": tensor([[0, 5, 7, 3, 9, 2], [1, 1, 0, 4, 8, 2]]),
        "left_mask": tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]),
        "lm_labels": tensor([[0, -100, 7, 10, -100, 2], [-100, 4, 3, 2, -100, -100]]),
        "encoder_states": normal(101, 2, 4, BASE_CONFIG["hidden_size"]),
        "encoder_mask": tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        # Entries above the diagonal on purpose: a 3-D mask replaces the causal mask. Row 3 of sequence 1 is empty.
        "mask_3d": tensor(
            [
                [
                    [1, 0, 0, 1, 0, 1],
                    [1, 1, 0, 0, 1, 0],
                    [0, 1, 1, 0, 1, 1],
                    [1, 1, 0, 1, 0, 0],
                    [0, 0, 0, 0, 1, 1],
                    [1, 1, 1, 1, 1, 1],
                ],
                [
                    [1, 1, 1, 1, 0, 0],
                    [0, 1, 0, 1, 1, 0],
                    [1, 0, 1, 0, 0, 0],
                    [0, 0, 0, 0, 0, 0],
                    [0, 0, 1, 0, 1, 0],
                    [0, 1, 0, 1, 0, 1],
                ],
            ]
        ),
    }


def cross_inputs(data):
    """Arguments of a decoder with cross attention over a padded encoder output."""
    return {
        "input_ids": data["right_ids"],
        "attention_mask": data["right_mask"],
        "encoder_hidden_states": data["encoder_states"],
        "encoder_attention_mask": data["encoder_mask"],
    }


def relative_cases(data):
    """relative_key and relative_key_query in encoders and in decoders without a cache, both versions."""
    padded = {"input_ids": data["right_ids"], "attention_mask": data["right_mask"]}
    left = {"input_ids": data["left_ids"], "attention_mask": data["left_mask"]}
    bare = {"input_ids": data["right_ids"]}
    labels = {"labels": data["lm_labels"]}
    no_cache = {"use_cache": False}
    for short, kind in RELATIVE.items():
        config = {"position_embedding_type": kind}
        yield Case(f"{short}_masked_lm", MASKED_LM, f"{kind}, encoder, right padding", {**padded, **labels}, config)
        yield Case(f"{short}_masked_lm_no_mask", MASKED_LM, f"{kind}, encoder, no mask", {**bare, **labels}, config)
        yield Case(f"{short}_model", MODEL, f"{kind}, encoder with pooler, left padding", left, config)
        yield Case(f"{short}_model_no_mask", MODEL, f"{kind}, encoder with pooler, no mask", bare, config)
        yield Case(
            f"{short}_causal_lm", CAUSAL_LM, f"{kind}, decoder, left padding", left, {**config, **DECODER}, no_cache
        )
        yield Case(
            f"{short}_cross",
            CAUSAL_LM,
            f"{kind} self attention; the cross attention has no position embedding (absolute)",
            cross_inputs(data),
            {**config, **CROSS},
            no_cache,
        )


def cache_cases(data):
    """Decoders with a cache: prefill, one step, and the cases where a version places the queries wrongly."""
    prefill = {"input_ids": data["left_ids"][:, :5], "attention_mask": data["left_mask"][:, :5]}
    step = {"input_ids": data["left_ids"][:, 5:], "attention_mask": data["left_mask"]}
    short_prefill = {"input_ids": data["left_ids"][:, :4], "attention_mask": data["left_mask"][:, :4]}
    chunk = {"input_ids": data["left_ids"][:, 4:], "attention_mask": data["left_mask"]}
    cross_prefill = cross_inputs(data)
    cross_prefill.update(prefill)
    cross_step = {**cross_prefill, **step}
    cached = {"use_cache": True}
    for short, kind in RELATIVE.items():
        config = {"position_embedding_type": kind, **DECODER}
        yield Case(f"{short}_prefill", CAUSAL_LM, f"{kind}, decoder, prefill of 5 tokens", prefill, config, cached)
        yield Case(
            f"{short}_step", CAUSAL_LM, f"{kind}, decoder, one cached step", step, config, cached, prefill=prefill
        )
        yield Case(
            f"{short}_prefill",
            CAUSAL_LM,
            f"{kind}, decoder, prefill of 5 tokens",
            prefill,
            config,
            cached,
            (NEW,),
            quirk="4.57 gives every query the position key_len - 1 as soon as a cache object exists, so the prefill "
            "differs from the same call with use_cache=False",
        )
    config = {"position_embedding_type": "relative_key"}
    yield Case(
        "rel_key_step",
        CAUSAL_LM,
        "relative_key, decoder, one cached step after the defective prefill: the step itself is right",
        step,
        {**config, **DECODER},
        cached,
        (NEW,),
        prefill=prefill,
        quirk="the keys and values given come from the defective prefill of 4.57",
    )
    yield Case(
        "rel_key_chunk_of_2",
        CAUSAL_LM,
        "relative_key, decoder, two tokens at once after a prefill of 4",
        chunk,
        {**config, **DECODER},
        cached,
        prefill=short_prefill,
        quirk="4.30 gives every query the position key_len - 1 when past keys are given: wrong for all but the last",
    )
    yield Case(
        "rel_key_query_cross_step",
        CAUSAL_LM,
        "relative_key_query, decoder with cross attention, one cached step; the cache has 4 tensors per layer",
        cross_step,
        {"position_embedding_type": "relative_key_query", **CROSS},
        cached,
        prefill=cross_prefill,
    )
    yield Case("causal_lm_prefill", CAUSAL_LM, "decoder, prefill of 5 tokens", prefill, DECODER, cached)
    yield Case(
        "causal_lm_chunk_of_2",
        CAUSAL_LM,
        "decoder, two tokens at once after a prefill of 4; the slots of left padding count in the past length",
        chunk,
        DECODER,
        cached,
        prefill=short_prefill,
    )


def mask_cases(data):
    """3-D masks, sequences without any token to attend to, left padding."""
    ids = {"input_ids": data["right_ids"]}
    labels = {"labels": data["lm_labels"]}
    mask = {"attention_mask": data["mask_3d"]}
    empty = {"attention_mask": tensor([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]])}
    left = {"input_ids": data["left_ids"], "attention_mask": data["left_mask"]}
    no_cache = {"use_cache": False}
    yield Case("mask_3d_encoder", MASKED_LM, "3-D mask with one empty row", {**ids, **mask, **labels}, versions=(NEW,))
    yield Case(
        "mask_3d_decoder",
        CAUSAL_LM,
        "3-D mask in a decoder: it replaces the causal mask; one empty row",
        {**ids, **mask},
        DECODER,
        no_cache,
        (NEW,),
    )
    encoder_mask = tensor(
        [[[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 0, 0]] * 2, [[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]] * 2]
    )
    yield Case(
        "mask_3d_cross",
        CAUSAL_LM,
        "3-D encoder_attention_mask (batch, target, source) with empty rows; 2-D self attention mask",
        {**cross_inputs(data), "encoder_attention_mask": encoder_mask},
        CROSS,
        no_cache,
        (NEW,),
    )
    yield Case(
        "mask_3d_step",
        CAUSAL_LM,
        "one cached step with a 3-D mask (batch, 1, past + 1)",
        {"input_ids": data["left_ids"][:, 5:], "attention_mask": data["mask_3d"][:, 2:3]},
        DECODER,
        {"use_cache": True},
        (NEW,),
        prefill={"input_ids": data["left_ids"][:, :5], "attention_mask": data["mask_3d"][:, :5, :5]},
    )
    yield Case("empty_sequence_encoder", MODEL, "one sequence fully masked: uniform attention", {**ids, **empty})
    yield Case(
        "empty_sequence_decoder",
        CAUSAL_LM,
        "one sequence fully masked in a decoder: uniform attention over all keys, later ones too",
        {**ids, **empty},
        DECODER,
        no_cache,
    )
    yield Case("left_padding", MASKED_LM, "left padding: pads keep the position pad_token_id", {**left, **labels})


def head_cases(data):
    """head_mask and prune_heads."""
    padded = {"input_ids": data["right_ids"], "attention_mask": data["right_mask"]}
    binary = tensor([1, 0, 1])
    fractional = tensor([0.25, 1.0, 1.5])
    binary_layers = tensor([[1, 0, 1], [0, 1, 1]])
    fractional_layers = tensor([[0.5, 0.0, 1.0], [1.0, 0.75, 0.125]])
    new = {"versions": (NEW,)}
    yield Case("head_mask_binary", MODEL, "head_mask (heads,), 0/1, integers", {**padded, "head_mask": binary}, **new)
    yield Case(
        "head_mask_fractional", MODEL, "head_mask (heads,), fractional", {**padded, "head_mask": fractional}, **new
    )
    yield Case(
        "head_mask_layers_fractional",
        MASKED_LM,
        "head_mask (layers, heads), fractional",
        {**padded, "head_mask": fractional_layers, "labels": data["lm_labels"]},
        **new,
    )
    yield Case(
        "head_mask_cross",
        CAUSAL_LM,
        "head_mask (layers, heads) in a decoder with cross attention: it masks self AND cross attention of the layer",
        {**cross_inputs(data), "head_mask": fractional_layers},
        CROSS,
        {"use_cache": False},
        **new,
    )
    yield Case(
        "prune_heads",
        MODEL,
        "outputs of the model pruned by prune_heads, weights of the model before pruning; the head_mask stored as an "
        "input was not given: with it the unpruned model gives the same outputs. attentions hold the kept heads only",
        {**padded, "head_mask": binary_layers},
        pruned_heads={0: [1], 1: [0]},
        **new,
    )
    yield Case(
        "prune_heads_cross",
        CAUSAL_LM,
        "decoder with cross attention pruned by prune_heads (weights before pruning): only self attention loses heads, "
        "so no head_mask gives these outputs. attentions hold the kept heads only",
        cross_inputs(data),
        CROSS,
        {"use_cache": False},
        pruned_heads={0: [1], 1: [0]},
        **new,
    )


def input_cases(data):
    """The ordinary arguments of the encoder."""
    ids = {"input_ids": data["right_ids"]}
    mask = {"attention_mask": data["right_mask"]}
    types = {"token_type_ids": tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 1]])}
    positions = {"position_ids": tensor([[9, 2, 0, 4, 4, 7], [5, 6, 1, 8, 3, 2]])}
    embeds = {"inputs_embeds": normal(102, 2, 6, BASE_CONFIG["hidden_size"])}
    yield Case("no_mask", MODEL, "pads in the ids, no mask: the pads are attended to", ids)
    yield Case("inputs_embeds", MODEL, "inputs_embeds with a padding mask: positions from pad + 1", {**embeds, **mask})
    yield Case(
        "position_and_type_ids", MODEL, "explicit positions and token types", {**ids, **mask, **types, **positions}
    )
    yield Case(
        "chunked_feed_forward", MODEL, "chunk_size_feed_forward=2", {**ids, **mask}, {"chunk_size_feed_forward": 2}
    )


def task_cases(data):
    """Every class with a head, with labels."""
    padded = {"input_ids": data["right_ids"], "attention_mask": data["right_mask"]}
    labels = {"labels": data["lm_labels"]}
    loss = "shifted labels with -100, use_cache is turned off by the labels; loss in"
    yield Case("causal_lm", CAUSAL_LM, f"{loss} float64", {**padded, **labels}, DECODER)
    yield Case(
        "causal_lm", CAUSAL_LM, f"{loss} FLOAT32 (logits.float())", {**padded, **labels}, DECODER, versions=(NEW,)
    )
    yield Case("masked_lm", MASKED_LM, "labels with -100", {**padded, **labels})
    problem = "problem_type None resolves to"
    yield Case(
        "sequence_regression",
        SEQUENCE,
        f"{problem} regression: one label, mean squared error",
        {**padded, "labels": tensor([0.5, -1.25])},
        {"num_labels": 1},
    )
    yield Case(
        "sequence_regression_3",
        SEQUENCE,
        "problem_type regression with three labels",
        {**padded, "labels": tensor([[0.5, -1.25, 0.0], [2.0, 0.25, -0.75]])},
        {"problem_type": "regression"},
    )
    yield Case(
        "sequence_single_label",
        SEQUENCE,
        f"{problem} single_label_classification: integer labels",
        {**padded, "labels": tensor([2, 0])},
    )
    yield Case(
        "sequence_multi_label",
        SEQUENCE,
        f"{problem} multi_label_classification: float labels",
        {**padded, "labels": tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])},
    )
    choices = tensor([[[0, 5, 7, 2], [0, 3, 2, 1], [0, 9, 9, 2]], [[0, 4, 2, 1], [0, 8, 6, 2], [0, 2, 1, 1]]])
    yield Case(
        "multiple_choice",
        CHOICE,
        "three choices, pooler",
        {"input_ids": choices, "attention_mask": (choices != 1).long(), "labels": tensor([1, 2])},
    )
    token_labels = tensor([[0, 2, 1, -100, 1, 0], [2, 2, 0, 1, -100, -100]])
    yield Case("token_classification", TOKEN, "labels with -100", {**padded, "labels": token_labels})
    answer = {"num_labels": 2}
    yield Case(
        "question_answering",
        QUESTION,
        "start 9 and end 6 lie past the end and are ignored; end -3 is clamped to 0 and counts",
        {**padded, "start_positions": tensor([2, 9]), "end_positions": tensor([-3, 6])},
        answer,
    )
    yield Case(
        "question_answering_nothing_left",
        QUESTION,
        "every start position lies past the end: the loss is nan",
        {**padded, "start_positions": tensor([7, 9]), "end_positions": tensor([3, 2])},
        answer,
    )


def all_cases():
    """Every case of every version; the relative cases without a cache are written for both."""
    data = text_inputs()
    for case in relative_cases(data):
        case.versions = BOTH
        yield case
    for make in (cache_cases, mask_cases, head_cases, input_cases, task_cases):
        yield from make(data)


def build_model(case):
    """The configuration as it was before the call, and a model in eval mode with every parameter random.

    The seed comes from the class and the configuration, so cases that differ in inputs only share their weights.
    """
    options = {**BASE_CONFIG, **case.config}
    if transformers.__version__ == NEW:
        options["attn_implementation"] = "eager"
    config = transformers.Data2VecTextConfig(**options)
    model = getattr(transformers, case.model_class)(config).eval()
    seed_text = json.dumps([case.model_class, case.config], sort_keys=True)
    torch.manual_seed(zlib.crc32(seed_text.encode()))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn_like(parameter)
            if "LayerNorm.weight" in name or "layer_norm.weight" in name:
                parameter.copy_(1.0 + 0.3 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.3 * noise)
            elif "distance_embedding" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(0.5 * noise)
    return config.to_dict(), model


def legacy_cache(past):
    """Copies of the cached tensors as a list, by layer, of [key, value] or [key, value, cross key, cross value]."""
    if isinstance(past, tuple):
        return [[item.clone() for item in layer] for layer in past]
    layers = [[layer.keys.clone(), layer.values.clone()] for layer in past.self_attention_cache.layers]
    for entry, layer in zip(layers, past.cross_attention_cache.layers, strict=False):  # no layers if unused
        if layer.keys is not None:
            entry.extend([layer.keys.clone(), layer.values.clone()])
    return layers


def cache_argument(layers):
    """What the running version takes as past_key_values; made from copies, since 4.57 updates it in place."""
    copies = tuple(tuple(item.clone() for item in layer) for layer in layers)
    if transformers.__version__ == OLD:
        return copies
    from transformers.cache_utils import EncoderDecoderCache

    return EncoderDecoderCache.from_legacy_cache(copies)


def flatten_output(output):
    """The fields of a model output as {name: tensor}."""
    flat = {}
    for name, value in output.items():
        if name in SEQUENCE_FIELDS:
            flat.update({f"{name}.{index}": item for index, item in enumerate(value)})
        elif name == "past_key_values":
            flat.update(flatten_cache(legacy_cache(value)))
        else:
            flat[name] = value
    return flat


def flatten_cache(layers):
    """Cached tensors as {past_key_values.<layer>.<index>: tensor}."""
    return {f"past_key_values.{i}.{j}": item for i, layer in enumerate(layers) for j, item in enumerate(layer)}


def check_pruning(case, model, pruned_output, arguments):
    """Assert what the description of a pruning case says about head_mask."""
    inputs = dict(case.inputs)
    if "head_mask" in inputs:
        masked = model(**inputs, **arguments)
        torch.testing.assert_close(masked.last_hidden_state, pruned_output.last_hidden_state, rtol=0, atol=1e-12)
        torch.testing.assert_close(masked.pooler_output, pruned_output.pooler_output, rtol=0, atol=1e-12)
        return
    head_mask = torch.ones(model.config.num_hidden_layers, model.config.num_attention_heads)
    for layer, heads in case.pruned_heads.items():
        head_mask[layer, heads] = 0.0
    masked = model(**inputs, head_mask=head_mask, **arguments)
    assert (masked.logits - pruned_output.logits).abs().max() > 1e-3


@torch.no_grad()
def run_case(case):
    """The tensors and the metadata of one golden file."""
    config, model = build_model(case)
    arguments = {"output_attentions": True, "output_hidden_states": True, "return_dict": True, **case.arguments}
    inputs = dict(case.inputs)
    stored = dict(inputs)
    state = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}
    if case.prefill is not None:
        past = legacy_cache(model(**case.prefill, **arguments).past_key_values)
        stored.update(flatten_cache(past))
        inputs["past_key_values"] = cache_argument(past)
    if case.pruned_heads is not None:
        pruned = copy.deepcopy(model)
        pruned.prune_heads(case.pruned_heads)
        inputs.pop("head_mask", None)
        output = pruned(**inputs, **arguments)
        check_pruning(case, model, output, arguments)
    else:
        output = model(**inputs, **arguments)

    tensors = {f"weight.{name}": value for name, value in state.items()}
    tensors.update({f"input.{name}": value for name, value in stored.items()})
    tensors.update({f"output.{name}": value for name, value in flatten_output(output).items()})
    metadata = {
        "arguments": json.dumps(arguments, sort_keys=True),
        "case": case.name,
        "class": case.model_class,
        "config": json.dumps(config, sort_keys=True),
        "description": case.description,
        "torch_version": torch.__version__.split("+")[0],
        "transformers_version": transformers.__version__,
    }
    if case.quirk is not None:
        metadata["quirk"] = case.quirk
    if case.pruned_heads is not None:
        metadata["pruned_heads"] = json.dumps(case.pruned_heads, sort_keys=True)
    return tensors, metadata


def save_safetensors(path, tensors, metadata):
    """A safetensors file with sorted names; the safetensors package does not keep the order of the metadata."""
    codes = {torch.float64: "F64", torch.int64: "I64", torch.float32: "F32"}
    header, chunks, offset = {"__metadata__": metadata}, [], 0
    for name in sorted(tensors, key=lambda key: (-tensors[key].element_size(), key)):
        value = tensors[name].detach().contiguous()
        data = value.numpy().tobytes()
        header[name] = {
            "dtype": codes[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        chunks.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(chunks))


def main():
    """Write the cases of the running transformers version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "text", help="folder")
    parser.add_argument("--every-case", action="store_true", help="also the cases meant for the other version only")
    options = parser.parse_args()
    version = transformers.__version__
    if version not in BOTH:
        parser.error(f"transformers {version} is not one of {', '.join(BOTH)}")
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    cases = list(all_cases())
    chosen = {case.name: case for case in cases if version in case.versions}
    if options.every_case:
        chosen = {**{case.name: case for case in cases}, **chosen}
    total = 0
    for case in chosen.values():
        path = options.out / f"{case.name}.hf{version}.safetensors"
        save_safetensors(path, *run_case(case))
        total += path.stat().st_size
    print(f"transformers {version}: {len(chosen)} files, {total} bytes in {options.out.name}")


if __name__ == "__main__":
    main()
