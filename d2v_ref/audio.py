"""Data2VecAudio: a wav2vec 2.0 front end under a post-norm transformer (Baevski et al. 2022; Baevski et al. 2020).

Names of classes, modules, weights and arguments are those of transformers 5.23
(models/data2vec/modeling_data2vec_audio.py).

Padding leaks in Hugging Face's model and in fairseq's (transformers issue 25621): the positional convolutions are
stacked, so that from the second on they see what the ones before wrote into the padding, and an utterance's output
depends on what it is batched with.  ``config.padding = "hf"`` computes that; ``"exact"`` empties the padding before
each convolution, so that an utterance's output is the one that it has alone.

Computed with channels last, shown to a recorder as Hugging Face lays it out.  Shapes: B batch, N samples, T frames, C
channels of the convolutions, D hidden_size, H heads, V vocab_size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from d2v_ref import checks, losses
from d2v_ref.config import Config
from d2v_ref.ctc import ctc_loss
from d2v_ref.errors import ConfigError, InputError
from d2v_ref.nn import Activation, Conv1d, LayerNorm, Linear, Module, Parameter, Residual, recording
from d2v_ref.ops import ACTIVATIONS, Ops
from d2v_ref.outputs import (
    CausalLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    Wav2Vec2BaseModelOutput,
    XVectorOutput,
)
from d2v_ref.pretrained import PreTrainedModel, Quirk
from d2v_ref.spec_augment import Generator, compute_mask_indices

Array = Any


class Data2VecAudioConfig(Config):
    """Settings of a Data2VecAudio model (HF Data2VecAudioConfig).

    Two are of this package: ``padding`` ("hf" or "exact", see above), and ``ctc_target_rule`` ("v5", or "v4" for the
    rule of transformers 4 by which a label counts: see ``d2v_ref.ctc.ctc_loss``).
    """

    model_type = "data2vec-audio"

    vocab_size: int = 32
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    activation_dropout: float = 0.1
    attention_dropout: float = 0.1
    feat_proj_dropout: float = 0.0
    final_dropout: float = 0.1
    layerdrop: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    feat_extract_activation: str = "gelu"
    conv_dim: list[int] = [512, 512, 512, 512, 512, 512, 512]
    conv_stride: list[int] = [5, 2, 2, 2, 2, 2, 2]
    conv_kernel: list[int] = [10, 3, 3, 3, 3, 2, 2]
    conv_bias: bool = False
    num_conv_pos_embedding_groups: int = 16
    conv_pos_kernel_size: int = 19
    num_conv_pos_embeddings: int = 5
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    ctc_loss_reduction: str = "sum"
    ctc_zero_infinity: bool = False
    ctc_target_rule: str = "v5"
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256
    tdnn_dim: list[int] = [512, 512, 512, 512, 1500]
    tdnn_kernel: list[int] = [5, 3, 3, 1, 1]
    tdnn_dilation: list[int] = [1, 2, 3, 1, 1]
    xvector_output_dim: int = 512
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    add_adapter: bool = False
    adapter_kernel_size: int = 3
    adapter_stride: int = 2
    num_adapter_layers: int = 3
    output_hidden_size: int | None = None
    padding: str = "hf"

    # One for tests; facebook/data2vec-audio-base and -large.
    sizes = {
        "tiny": {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "conv_dim": [32, 32, 32, 32, 32, 32, 32],
            "classifier_proj_size": 32,
            "tdnn_dim": [32, 32, 32, 32, 64],
            "xvector_output_dim": 32,
        },
        "base": {},
        "large": {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    }

    def validate(self) -> None:
        super().validate()
        sizes = "vocab_size hidden_size num_attention_heads intermediate_size conv_dim conv_stride conv_kernel"
        sizes += " num_conv_pos_embedding_groups conv_pos_kernel_size mask_time_length mask_feature_length tdnn_dim"
        sizes += " tdnn_kernel tdnn_dilation classifier_proj_size xvector_output_dim adapter_kernel_size adapter_stride"
        counts = "num_hidden_layers num_conv_pos_embeddings num_adapter_layers"
        self.refuse_what_models_share(sizes, counts)
        if self.output_hidden_size is not None:
            self.refuse_outside("output_hidden_size", 0, 2**31 - 1, "1 ... 2^31 - 1, or None or 0 for hidden_size")
        for group in (("conv_dim", "conv_stride", "conv_kernel"), ("tdnn_dim", "tdnn_kernel", "tdnn_dilation")):
            lengths = [len(getattr(self, name)) for name in group]
            if len(set(lengths)) != 1 or not 1 <= lengths[0] <= 1000:
                expected = "as many numbers in each, at least one"
                raise ConfigError(f"{', '.join(group)} do not fit together", got=lengths, expected=expected)
        if self.hidden_size % self.num_conv_pos_embedding_groups:
            expected = f"a multiple of num_conv_pos_embedding_groups={self.num_conv_pos_embedding_groups}"
            raise ConfigError("hidden_size does not divide among the groups", got=self.hidden_size, expected=expected)
        choices: dict[str, Any] = {
            "feat_extract_activation": ACTIVATIONS,
            "ctc_loss_reduction": ("sum", "mean", "none"),
            "ctc_target_rule": ("v5", "v4"),
            "padding": ("hf", "exact"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"unknown {name}", got=getattr(self, name), expected=" or ".join(known))
        for name in ("mask_time_prob", "mask_feature_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is no probability", got=getattr(self, name), expected="0 ... 1")

    @property
    def inputs_to_logits_ratio(self) -> int:
        """How many samples a frame stands for, before the adapter."""
        return math.prod(self.conv_stride)

    @property
    def output_size(self) -> int:
        """The width of the last hidden state."""
        return (self.output_hidden_size or self.hidden_size) if self.add_adapter else self.hidden_size


@dataclass
class ForwardPass:
    """What the layers share while a batch passes through them, and what they leave behind for the output."""

    mask: Array  # (B, T) booleans, True in an utterance, or None: every frame is
    exact: bool  # whether padding is emptied before each convolution
    adapter_masks: tuple[Array, ...]  # the mask of what each of the adapter's layers is given; none unless exact
    probs: bool  # whether the attention probabilities are wanted
    every_state: bool  # whether the hidden states are wanted
    hidden_states: list[Array] = field(default_factory=list)  # (B, T, D) each
    attentions: list[Array] = field(default_factory=list)  # (B, H, T, T) each

    def keep(self, state: Array) -> None:
        if self.every_state:
            self.hidden_states.append(state)


def emptied(ops: Ops, x: Array, mask: Array) -> Array:
    """x (B, T, D) with zeros where mask (B, T) is False; x itself without a mask."""
    return x if mask is None else ops.where(mask[:, :, None], x, 0)  # x * mask would keep what overflowed there


class Data2VecAudioConvLayer(Module):
    """activation(LayerNorm(conv(x))), the LayerNorm over channels.  (B, T, C) -> (B, T', C')."""

    channels_first = True

    def __init__(self, config: Data2VecAudioConfig, layer: int) -> None:
        inputs = config.conv_dim[layer - 1] if layer > 0 else 1
        outputs, kernel, stride = config.conv_dim[layer], config.conv_kernel[layer], config.conv_stride[layer]
        self.conv = Conv1d(inputs, outputs, kernel, stride, bias=config.conv_bias)
        self.layer_norm = LayerNorm(outputs, 1e-5)  # torch's default, not config.layer_norm_eps
        self.activation = Activation(config.feat_extract_activation, channels_first=True)

    def forward(self, x: Array) -> Array:
        if not recording():
            return self.ops.conv_norm_act(x, self.conv, self.layer_norm, self.activation.name)
        return self.activation(self.layer_norm(self.conv(x)))


class Data2VecAudioFeatureEncoder(Module):
    """conv_layer_n(... conv_layer_0(x)), which make frames of samples.  (B, N) -> (B, T, C)."""

    channels_first = True

    def __init__(self, config: Data2VecAudioConfig) -> None:
        self.conv_layers = [Data2VecAudioConvLayer(config, i) for i in range(len(config.conv_dim))]

    def forward(self, samples: Array) -> Array:
        x = samples[:, :, None]  # (B, N, 1)
        for layer in self.conv_layers:
            x = layer(x)
        return x


class Data2VecAudioFeatureProjection(Module):
    """W LayerNorm(x) + b.  (B, T, C) -> (B, T, D), and the normalised features (B, T, C)."""

    def __init__(self, config: Data2VecAudioConfig) -> None:
        self.layer_norm = LayerNorm(config.conv_dim[-1], config.layer_norm_eps)
        self.projection = Linear(config.conv_dim[-1], config.hidden_size)

    def forward(self, x: Array) -> tuple[Array, Array]:
        features = self.layer_norm(x)
        return self.projection(features), features


class Data2VecAudioPadLayer(Module):
    """Drops the last frame if the kernel is even, which makes one too many.  (B, T or T + 1, D) -> (B, T, D)."""

    channels_first = True

    def __init__(self, kernel: int) -> None:
        self.even = kernel % 2 == 0

    def forward(self, x: Array) -> Array:
        return x[:, :-1] if self.even else x


class Data2VecAudioPositionalConvLayer(Module):
    """activation(LayerNorm(conv(x))) with a grouped convolution and a LayerNorm without weights.

    (B, T, D) -> (B, T, D).
    """

    channels_first = True

    def __init__(self, config: Data2VecAudioConfig) -> None:
        width, kernel, groups = config.hidden_size, config.conv_pos_kernel_size, config.num_conv_pos_embedding_groups
        self.conv = Conv1d(width, width, kernel, padding=kernel // 2, groups=groups, bias=True)
        self.padding = Data2VecAudioPadLayer(kernel)
        self.activation = Activation(config.feat_extract_activation, channels_first=True)
        self.layer_norm = LayerNorm(width, 1e-5, elementwise_affine=False)

    def forward(self, x: Array) -> Array:
        if not recording():
            return self.padding(self.ops.conv_norm_act(x, self.conv, self.layer_norm, self.activation.name))
        return self.activation(self.layer_norm(self.padding(self.conv(x))))


class Data2VecAudioPositionalConvEmbedding(Module):
    """Positions relative to what is around them (Mohamed et al. 2019): layer_n(... layer_1(x)), convolutions.

    (B, T, D) -> (B, T, D).
    """

    def __init__(self, config: Data2VecAudioConfig) -> None:
        self.layers = [Data2VecAudioPositionalConvLayer(config) for _ in range(config.num_conv_pos_embeddings)]

    def forward(self, x: Array, run: ForwardPass) -> Array:
        for layer in self.layers:
            x = layer(emptied(self.ops, x, run.mask) if run.exact else x)
        return x


class Data2VecAudioAttention(Residual):
    """W attention(q, k, v) + b: multi-head self-attention (Vaswani et al. 2017, sec. 3.2).  (B, T, D) -> (B, T, D)."""

    def __init__(self, config: Data2VecAudioConfig) -> None:
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.q_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def forward(self, x: Array, run: ForwardPass, residual: Array = None) -> Array:
        q, k, v = self.project(x, self.q_proj, self.k_proj, self.v_proj)  # (B, T, D) each
        mask = None if run.mask is None else run.mask[:, None, None, :]
        context, p = self.ops.attention(q, k, v, self.heads, mask=mask, probs=run.probs or recording())
        run.attentions.append(p if run.probs else None)
        self.tap("probs", p)
        return self.out_proj(context, residual=residual)


class Data2VecAudioFeedForward(Residual):
    """W2 activation(W1 x + b1) + b2.  (B, T, D) -> (B, T, D)."""

    def __init__(self, config: Data2VecAudioConfig) -> None:
        self.intermediate_dense = Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = Activation(config.hidden_act)
        self.output_dense = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Array, residual: Array = None) -> Array:
        return self.output_dense(self.intermediate_dense(x, activation=self.intermediate_act_fn), residual=residual)


class Data2VecAudioEncoderLayer(Module):
    """y = LayerNorm(x + attention(x)), then LayerNorm(y + feed_forward(y)): post-norm (Vaswani et al. 2017).

    (B, T, D) -> (B, T, D).
    """

    def __init__(self, config: Data2VecAudioConfig) -> None:
        self.attention = Data2VecAudioAttention(config)
        self.layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.feed_forward = Data2VecAudioFeedForward(config)
        self.final_layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Array, run: ForwardPass) -> Array:
        x = self.layer_norm(self.attention(x, run, residual=x))
        return self.final_layer_norm(self.feed_forward(x, residual=x))


class Data2VecAudioEncoder(Module):
    """layer_L(... layer_1(LayerNorm(x + pos_conv_embed(x)))), x zero in the padding.  (B, T, D) -> (B, T, D)."""

    def __init__(self, config: Data2VecAudioConfig) -> None:
        self.pos_conv_embed = Data2VecAudioPositionalConvEmbedding(config)
        self.layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layers = [Data2VecAudioEncoderLayer(config) for _ in range(config.num_hidden_layers)]

    def forward(self, x: Array, run: ForwardPass) -> Array:
        x = emptied(self.ops, x, run.mask)
        x = self.layer_norm(self.ops.add(x, self.pos_conv_embed(x, run)))
        run.keep(x)
        for layer in self.layers:
            x = layer(x, run)
            run.keep(x)
        return x


class Data2VecAudioAdapterLayer(Module):
    """GLU(conv(x)), which makes the sequence shorter.  (B, T, D') -> (B, T', D')."""

    channels_first = True

    def __init__(self, config: Data2VecAudioConfig) -> None:
        width, kernel, stride = config.output_size, config.adapter_kernel_size, config.adapter_stride
        self.conv = Conv1d(width, 2 * width, kernel, stride, padding=1, bias=True)

    def forward(self, x: Array) -> Array:
        return self.ops.glu(self.conv(x))


class Data2VecAudioAdapter(Module):
    """layer_n(... layer_1(x)), for a decoder that wants fewer states; LayerNorm(W x + b) first if D' is not D.

    (B, T, D) -> (B, T', D').
    """

    def __init__(self, config: Data2VecAudioConfig) -> None:
        self.proj: Linear | None = None
        if config.output_size != config.hidden_size:
            self.proj = Linear(config.hidden_size, config.output_size)
            self.proj_layer_norm = LayerNorm(config.output_size, 1e-5)
        self.layers = [Data2VecAudioAdapterLayer(config) for _ in range(config.num_adapter_layers)]

    def forward(self, x: Array, run: ForwardPass) -> Array:
        if self.proj is not None:
            x = self.proj_layer_norm(self.proj(x))  # (B, T, D')
        for i, layer in enumerate(self.layers):
            x = layer(emptied(self.ops, x, run.adapter_masks[i]) if run.exact else x)
        return x

    def masks(self, mask: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of a mask of the frames before it, that of what each layer is given: (B, T) -> (B, T'), booleans."""
        found, frames, lengths = [], mask.shape[1], mask.sum(axis=1)
        for layer in self.layers:
            found.append(np.arange(frames) < lengths[:, None])
            shape = layer.conv.weight.shape[2], layer.conv.stride, layer.conv.padding
            frames, lengths = _frames(frames, *shape), _frames(lengths, *shape)
        return tuple(found)


def _frames(length: Any, kernel: int, stride: int, padding: int = 0, dilation: int = 1) -> Any:
    """How many outputs a convolution has: numbers or arrays; 0 or fewer if the input is shorter than the kernel."""
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


class Data2VecAudioPreTrainedModel(PreTrainedModel):
    """What the audio models share: configuration, prefix of the names, lengths."""

    config: Data2VecAudioConfig
    config_class = Data2VecAudioConfig
    base_model_prefix = "data2vec_audio"

    def quirks(self) -> dict[str, Quirk]:
        config, found = self.config, {}
        if self.padding_leaks and config.padding == "hf":
            what = "an utterance's output depends on the padding of its batch"
            found["padding=hf"] = Quirk(what, "as in transformers and fairseq; transformers issue 25621")
        elif self.padding_leaks:
            what = "an utterance's output is the one that it has alone"
            found["padding=exact"] = Quirk(what, "not so in transformers and fairseq; transformers issue 25621")
        if config.padding == "hf":
            what = "only its number of ones counts, wherever they are; too few for a frame give all frames"
            found["attention_mask"] = Quirk(what, "HF _get_feature_vector_attention_mask")
        if config.extra.get("do_stable_layer_norm"):
            found["do_stable_layer_norm"] = Quirk("has no effect: the layers are post-norm", "HF Data2VecAudioEncoder")
        if config.layer_norm_eps != 1e-5:
            what = f"{config.layer_norm_eps:g} is not that of the convolutions' LayerNorms, which have 1e-05"
            found["layer_norm_eps"] = Quirk(what, "HF Data2VecAudioConvLayer, Data2VecAudioPositionalConvLayer")
        what = f"is no kernel, as wav2vec 2.0's, but counts layers with kernels of {config.conv_pos_kernel_size}"
        found["num_conv_pos_embeddings"] = Quirk(what, "HF Data2VecAudioPositionalConvEmbedding")
        if not config.apply_spec_augment and (config.mask_time_prob > 0 or config.mask_feature_prob > 0):
            what = "turns off masks that are given too (mask_time_indices)"
            found["apply_spec_augment"] = Quirk(what, "HF Data2VecAudioModel._mask_hidden_states")
        if config.add_adapter and config.adapter_kernel_size != 3 and config.padding == "hf":
            what = "lengths after the adapter are counted as if it were 3"
            found["adapter_kernel_size"] = Quirk(what, "HF _get_feat_extract_output_lengths")
        return found

    @property
    def padding_leaks(self) -> bool:
        """Whether what lies in the padding reaches an utterance's own frames with ``padding="hf"``.

        The first positional convolution sees zeros there, as it does past the end of an utterance alone, and a kernel
        of one or two taps sees no frame that comes later.
        """
        return self._positions_leak or (self.config.add_adapter and self.config.num_adapter_layers > 0)

    @property
    def _positions_leak(self) -> bool:
        return self.config.num_conv_pos_embeddings > 1 and self.config.conv_pos_kernel_size > 2

    def frame_lengths(self, samples: Any, add_adapter: bool | None = None) -> Any:
        """Frames of an utterance of so many samples, numbers or arrays; 0 or fewer if it is too short for one.

        floor((L - kernel) / stride) + 1 for each convolution, then floor((L - 1) / stride) + 1 for each adapter layer
        (HF _get_feat_extract_output_lengths), which is what the adapter makes if its kernel is 3.  With exact padding,
        what it makes with any kernel.
        """
        lengths = samples
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            lengths = _frames(lengths, kernel, stride)
        if self.config.add_adapter if add_adapter is None else add_adapter:
            exact = self.config.padding == "exact"
            kernel, padding = (self.config.adapter_kernel_size, 1) if exact else (1, 0)
            for _ in range(self.config.num_adapter_layers):
                lengths = _frames(lengths, kernel, self.config.adapter_stride, padding)
        return lengths

    @property
    def least_frames(self) -> int:
        """How many frames the head needs."""
        return 1

    @property
    def least_samples(self) -> int:
        """How many samples the head needs."""
        return self._samples_for(self.least_frames, self.config.add_adapter)

    def _samples_for(self, length: int, add_adapter: bool) -> int:
        """The fewest samples that make so many frames."""
        if add_adapter:
            for _ in range(self.config.num_adapter_layers):
                length = max((length - 1) * self.config.adapter_stride + self.config.adapter_kernel_size - 2, 1)
        for kernel, stride in zip(reversed(self.config.conv_kernel), reversed(self.config.conv_stride), strict=True):
            length = (length - 1) * stride + kernel
        return length

    def frame_mask(self, frames: int, attention_mask: Any) -> np.ndarray:
        """Which frames are the utterances', of a mask of samples (B, N): booleans (B, frames).

        True up to the last frame that an utterance's own samples fill (HF _get_feature_vector_attention_mask).  The
        last frame of an utterance without any has a negative index in Hugging Face's assignment, which counts from the
        end of the batch: all frames are its own, or all but the last few.  With exact padding it is an InputError.
        """
        counts = sample_counts(attention_mask)
        lengths = self.frame_lengths(counts, add_adapter=False)
        if self.config.padding == "exact":
            self._refuse_short((lengths >= 1) & (self.frame_lengths(counts) >= 1), attention_mask)
            return np.arange(frames) < lengths[:, None]
        self._refuse_short(lengths - 1 >= -frames, attention_mask)
        last = np.zeros((len(lengths), frames), bool)
        last[np.arange(len(lengths)), lengths - 1] = True
        return np.logical_or.accumulate(last[:, ::-1], axis=1)[:, ::-1]

    def _refuse_short(self, serves: np.ndarray, attention_mask: Any) -> None:
        if not serves.all():
            row = int(np.argmin(serves))
            got = f"{sample_counts(attention_mask)[row]} samples in row {row}"
            expected = f"at least {self.least_samples}"
            raise InputError("attention_mask: an utterance is too short for a frame", got=got, expected=expected)


def sample_counts(attention_mask: Any) -> np.ndarray:
    """How many samples of each row are the utterance's: (B, N) -> (B,)."""
    return (np.asarray(attention_mask) != 0).sum(axis=1)


class Data2VecAudioModel(Data2VecAudioPreTrainedModel):
    """The bare model: adapter(encoder(feature_projection(feature_extractor(x)))), an adapter if it has one.

    HF Data2VecAudioModel.  x (B, N) samples -> last_hidden_state (B, T, D), extract_features (B, T, C).
    """

    def __init__(self, config: Data2VecAudioConfig, weights: Any = None, **options: Any) -> None:
        self.feature_extractor = Data2VecAudioFeatureEncoder(config)
        self.feature_projection = Data2VecAudioFeatureProjection(config)
        self.masked_spec_embed: Any = None
        if config.mask_time_prob > 0 or config.mask_feature_prob > 0:
            self.masked_spec_embed = Parameter((config.hidden_size,))
        self.encoder = Data2VecAudioEncoder(config)
        self.adapter = Data2VecAudioAdapter(config) if config.add_adapter else None
        super().__init__(config, weights, **options)

    def forward(
        self,
        input_values: Any,
        attention_mask: Any = None,
        mask_time_indices: Any = None,
        *,
        generator: Generator | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Wav2Vec2BaseModelOutput:
        """Hidden states of a batch of utterances.

        Args:
            input_values: (B, N) samples at the model's rate, as ``Wav2Vec2FeatureExtractor`` prepares them.
            attention_mask: (B, N), 1 for an utterance's samples and 0 for the padding after them.  Only their number
                counts, as in Hugging Face's model.  None: no padding, even where samples are zero.
            mask_time_indices: (B, T) booleans, True where a frame becomes ``masked_spec_embed``.
            generator: draws masks over time and features as a training pass does (``d2v_ref.spec_augment``); None
                draws none.  Neither has an effect if ``config.apply_spec_augment`` is False.
            output_attentions: whether to return the attention probabilities, (B, H, T, T) a layer.
            output_hidden_states: whether to return the encoder's input after positions and LayerNorm, and every layer's
                output: (B, T, D) each.

        Frames of the padding hold numbers that mean nothing.

        Raises:
            InputError: a wrong shape, dtype or range, too few samples for a frame, a number that is not finite.
        """
        samples = checks.array("input_values", input_values, ("batch", "samples"), "f", self.ops.dtype)
        if samples.shape[1] < self.least_samples:
            got, expected = f"{samples.shape[1]} samples", f"at least {self.least_samples}"
            raise InputError("input_values: too short for a frame", got=got, expected=expected)
        mask = self._mask(attention_mask, samples.shape)
        frames = self.frame_lengths(samples.shape[1], add_adapter=False)
        frame_mask = None if mask is None else self.frame_mask(frames, mask)  # (B, T)
        exact = self.config.padding == "exact" and frame_mask is not None
        adapter_masks = () if self.adapter is None or frame_mask is None else self.adapter.masks(frame_mask)
        shared = {
            "mask": frame_mask,
            "exact": exact,
            "adapter_masks": adapter_masks if exact else (),
            "probs": bool(self.config.output_attentions if output_attentions is None else output_attentions),
            "every_state": bool(
                self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
            ),
        }
        hidden = self._spec_augment((len(samples), frames), mask_time_indices, frame_mask, generator)
        x, features, hidden_states, attentions = self.ops.replay(self._compute, samples, hidden, shared)
        return Wav2Vec2BaseModelOutput(
            last_hidden_state=x,
            extract_features=features,
            hidden_states=hidden_states if shared["every_state"] else None,
            attentions=attentions if shared["probs"] else None,
        )

    def _compute(
        self, samples: np.ndarray, hidden: dict[str, Any], shared: dict[str, Any]
    ) -> tuple[Array, Array, tuple[Array, ...], tuple[Array, ...]]:
        """From checked samples, what SpecAugment hides, and what ``ForwardPass`` holds to all that the output holds."""
        run, hidden = ForwardPass(**self.placed(shared)), self.placed(hidden)
        features = self.feature_extractor(self.ops.asarray(samples))  # (B, T, C)
        x, features = self.feature_projection(features)  # (B, T, D), (B, T, C)
        if hidden["frames"] is not None:
            x = self.ops.where(hidden["frames"][:, :, None], self.masked_spec_embed, x)
        if hidden["features"] is not None:
            x = self.ops.where(hidden["features"][:, None, :], 0, x)
        x = self.encoder(x, run)
        if self.adapter is not None:
            x = self.adapter(x, run)  # (B, T', D')
        return x, features, tuple(run.hidden_states), tuple(run.attentions)

    def _mask(self, attention_mask: Any, shape: tuple[int, ...]) -> np.ndarray | None:
        """The mask of samples as booleans."""
        if attention_mask is None:
            return None
        mask = checks.array("attention_mask", attention_mask, shape, "biuf")
        others = mask[(mask != 0) & (mask != 1)]
        if others.size:
            raise InputError("attention_mask holds other numbers", got=others[0], expected="0 and 1")
        mask = mask != 0
        if self.config.padding == "exact" and (mask[:, 1:] > mask[:, :-1]).any():
            hint = "Pad utterances at their end, or use padding='hf', which only counts the ones"
            raise InputError("attention_mask: padding before samples", expected="ones, then zeros", hint=hint)
        return mask

    def _spec_augment(
        self,
        shape: tuple[int, int],
        mask_time_indices: Any,
        frame_mask: np.ndarray | None,
        generator: Generator | None,
    ) -> dict[str, np.ndarray | None]:
        """What HF _mask_hidden_states hides of (B, T, D): "frames" (B, T) and "features" (B, D), booleans or None."""
        config, hidden = self.config, dict[str, Any](frames=None, features=None)
        if generator is not None and not isinstance(generator, np.random.Generator | np.random.RandomState):
            hint = "numpy.random.default_rng(seed) makes one"
            expected = "numpy.random.Generator or RandomState"
            raise InputError("generator can't draw", got=type(generator).__name__, expected=expected, hint=hint)
        if mask_time_indices is not None:
            mask_time_indices = checks.array("mask_time_indices", mask_time_indices, shape, "b")
        if not config.apply_spec_augment:
            return hidden
        if mask_time_indices is None and generator is not None and config.mask_time_prob > 0:
            mask_time_indices = compute_mask_indices(
                shape,
                config.mask_time_prob,
                config.mask_time_length,
                generator,
                lengths=None if frame_mask is None else frame_mask.sum(axis=1),
                min_masks=config.mask_time_min_masks,
            )
        if mask_time_indices is not None and self.masked_spec_embed is None:
            hint = "A model has it if mask_time_prob or mask_feature_prob is above 0"
            raise InputError("mask_time_indices: the model has no masked_spec_embed", hint=hint)
        hidden["frames"] = mask_time_indices
        if generator is not None and config.mask_feature_prob > 0:
            hidden["features"] = compute_mask_indices(
                (shape[0], config.hidden_size),
                config.mask_feature_prob,
                config.mask_feature_length,
                generator,
                min_masks=config.mask_feature_min_masks,
            )
        return hidden


class _AudioModelWithHead(Data2VecAudioPreTrainedModel):
    """A bare model under its name, and a head."""

    takes_adapter = True

    def __init__(self, config: Data2VecAudioConfig, weights: Any = None, **options: Any) -> None:
        if config.add_adapter and not self.takes_adapter:
            raise ConfigError(f"{type(self).__name__} takes no adapter", got="add_adapter=True", expected="False")
        self.data2vec_audio = Data2VecAudioModel(config)
        self.add_head(config)
        super().__init__(config, weights, **options)

    def add_head(self, config: Data2VecAudioConfig) -> None:
        """Declare the head's modules, after the model's."""
        raise NotImplementedError


class Data2VecAudioForCTC(_AudioModelWithHead):
    """Scores of the vocabulary for every frame, one of no token (Graves et al. 2006): lm_head(data2vec_audio(x)).

    HF Data2VecAudioForCTC.  x (B, N) samples -> logits (B, T, V).
    """

    def add_head(self, config: Data2VecAudioConfig) -> None:
        if config.pad_token_id is None or not 0 <= config.pad_token_id < config.vocab_size:
            expected = f"0 ... {config.vocab_size - 1}: the blank of CTC"
            raise ConfigError("pad_token_id does not serve", got=config.pad_token_id, expected=expected)
        self.lm_head = Linear(config.output_size, config.vocab_size)

    def quirks(self) -> dict[str, Quirk]:
        v4 = self.config.ctc_target_rule == "v4"
        what = "a label of the blank is a target" if v4 else "a label of the blank (pad_token_id) is no target"
        source = "HF Data2VecAudioForCTC of transformers " + ("4; 5.23 leaves it out" if v4 else "5.23; 4 takes it")
        return super().quirks() | {f"ctc_target_rule={self.config.ctc_target_rule}": Quirk(what, source)}

    def forward(
        self, input_values: Any, attention_mask: Any = None, labels: Any = None, **options: Any
    ) -> CausalLMOutput:
        """As Data2VecAudioModel; ``labels`` (B, U) token ids, -100 or pad_token_id after the last."""
        outputs = self.data2vec_audio(input_values, attention_mask, **options)
        logits = self.lm_head(outputs.last_hidden_state)  # (B, T, V)
        loss = None
        if labels is not None:
            batch, samples = np.shape(input_values)
            counts = np.full(batch, samples) if attention_mask is None else sample_counts(attention_mask)
            loss = ctc_loss(
                self.ops.to_numpy(logits),
                labels,
                self.frame_lengths(counts),
                blank=self.config.pad_token_id or 0,
                reduction=self.config.ctc_loss_reduction,
                zero_infinity=self.config.ctc_zero_infinity,
                target_rule=self.config.ctc_target_rule,
            )
        return CausalLMOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class _AudioClassifier(_AudioModelWithHead):
    """A head on the last hidden state, or on a learned average of all (SUPERB; Yang et al. 2021, sec. 3.2)."""

    def __init__(self, config: Data2VecAudioConfig, weights: Any = None, **options: Any) -> None:
        if config.use_weighted_layer_sum:
            self.layer_weights: Any = Parameter((config.num_hidden_layers + 1,))
        super().__init__(config, weights, **options)

    def encode(
        self, input_values: Any, attention_mask: Any, output_hidden_states: bool | None = None, **options: Any
    ) -> tuple[Array, Wav2Vec2BaseModelOutput]:
        """The states that the head sees (B, T, D), and the model's outputs."""
        if not self.config.use_weighted_layer_sum:
            outputs = self.data2vec_audio(
                input_values, attention_mask, output_hidden_states=output_hidden_states, **options
            )
            return outputs.last_hidden_state, outputs
        outputs = self.data2vec_audio(input_values, attention_mask, output_hidden_states=True, **options)
        weights, states = self.ops.softmax(self.layer_weights), outputs.hidden_states
        x = weights[0] * states[0]
        for i in range(1, len(states)):
            x = x + weights[i] * states[i]
        if not (self.config.output_hidden_states if output_hidden_states is None else output_hidden_states):
            outputs.hidden_states = None  # nobody asked for them
        return x, outputs


class Data2VecAudioForSequenceClassification(_AudioClassifier):
    """A class for an utterance: classifier(mean over its frames of projector(data2vec_audio(x))).

    HF Data2VecAudioForSequenceClassification.  x (B, N) samples -> logits (B, labels).
    """

    takes_adapter = False

    def add_head(self, config: Data2VecAudioConfig) -> None:
        self.projector = Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = Linear(config.classifier_proj_size, config.num_labels)

    def forward(
        self, input_values: Any, attention_mask: Any = None, labels: Any = None, **options: Any
    ) -> SequenceClassifierOutput:
        """As Data2VecAudioModel; ``labels`` (B,) classes."""
        x, outputs = self.encode(input_values, attention_mask, **options)
        x = self.projector(x)  # (B, T, P)
        lengths = [x.shape[1]] * x.shape[0]
        if attention_mask is not None:
            lengths = self.frame_mask(x.shape[1], attention_mask).sum(axis=1).tolist()
        means = self.ops.statistics_pooling(x, lengths)[:, : x.shape[2]]  # (B, P)
        logits = self.classifier(means)  # (B, labels)
        loss = None
        if labels is not None:
            loss = losses.cross_entropy(self.ops.to_numpy(logits), checks.anything("labels", labels).reshape(-1))
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class Data2VecAudioForAudioFrameClassification(_AudioClassifier):
    """Classes for every frame, who speaks when: classifier(data2vec_audio(x)).

    HF Data2VecAudioForAudioFrameClassification.  x (B, N) samples -> logits (B, T, labels).
    """

    takes_adapter = False

    def add_head(self, config: Data2VecAudioConfig) -> None:
        self.classifier = Linear(config.hidden_size, config.num_labels)

    def forward(
        self, input_values: Any, attention_mask: Any = None, labels: Any = None, **options: Any
    ) -> TokenClassifierOutput:
        """As Data2VecAudioModel; ``labels`` (B, T, labels), 1 for a frame's class."""
        x, outputs = self.encode(input_values, attention_mask, **options)
        logits = self.classifier(x)  # (B, T, labels)
        loss = None if labels is None else losses.frame_loss(self.ops.to_numpy(logits), labels)
        return TokenClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class AMSoftmaxLoss(Module):
    """The loss of ForXVector, of cos(logits, weight) (Wang et al. 2018).  logits (B, D), labels (B,) -> ()."""

    def __init__(self, width: int, num_labels: int) -> None:
        self.weight: Any = Parameter((width, num_labels))

    def forward(self, logits: Array, labels: Any) -> np.ndarray:
        weight = self.ops.asarray(self.weight)  # which a backend may keep in a format that only operations take
        logits, weight = (_unit(self.ops.to_numpy(x), axis) for x, axis in ((logits, 1), (weight, 0)))
        cos_theta = self.ops.linear(self.ops.asarray(logits), self.ops.asarray(weight.T))  # (B, labels)
        return losses.am_softmax_loss(self.ops.to_numpy(cos_theta), labels)


def _unit(x: np.ndarray, axis: int) -> np.ndarray:
    """x / max(|x|, 1e-12) along an axis (torch.nn.functional.normalize)."""
    return x / np.maximum(np.sqrt(np.square(x).sum(axis, keepdims=True)), 1e-12)


class TDNNLayer(Module):
    """relu(conv(x)), the convolution dilated (Peddinti et al. 2015).  (B, T, C) -> (B, T', C')."""

    def __init__(self, config: Data2VecAudioConfig, layer: int) -> None:
        inputs = config.tdnn_dim[max(layer - 1, 0)]
        self.taps, self.dilation = config.tdnn_kernel[layer], config.tdnn_dilation[layer]
        self.kernel = Linear(inputs * self.taps, config.tdnn_dim[layer])
        self.activation = Activation("relu")

    def forward(self, x: Array) -> Array:
        weight = self.ops.asarray(self.kernel.weight)  # which a backend may keep in a format that only operations take
        weight = weight.reshape(-1, self.taps, x.shape[2]).swapaxes(1, 2)  # (C', C, k)
        return self.activation(self.ops.conv1d(x, weight, self.kernel.bias, dilation=self.dilation))


class Data2VecAudioForXVector(_AudioClassifier):
    """An embedding of who speaks: feature_extractor(statistics of tdnn(projector(data2vec_audio(x)))).

    An x-vector, which a classifier takes (Snyder et al. 2018; HF Data2VecAudioForXVector).  x (B, N) samples ->
    embeddings and logits (B, xvector_output_dim).

    Mean and standard deviation need two frames of the last TDNN layer; of one they are NaN, as in Hugging Face's model.
    """

    def add_head(self, config: Data2VecAudioConfig) -> None:
        if config.output_size != config.hidden_size:
            expected = f"hidden_size={config.hidden_size}"
            raise ConfigError(
                "output_hidden_size does not fit the projector", got=config.output_size, expected=expected
            )
        self.projector = Linear(config.hidden_size, config.tdnn_dim[0])
        self.tdnn = [TDNNLayer(config, i) for i in range(len(config.tdnn_dim))]
        self.feature_extractor = Linear(2 * config.tdnn_dim[-1], config.xvector_output_dim)
        self.classifier = Linear(config.xvector_output_dim, config.xvector_output_dim)
        self.objective = AMSoftmaxLoss(config.xvector_output_dim, config.num_labels)

    def quirks(self) -> dict[str, Quirk]:
        config, found = self.config, super().quirks()
        what = f"are {config.xvector_output_dim} numbers that only the loss makes classes of"
        found["logits"] = Quirk(what, "HF Data2VecAudioForXVector")
        if self._dilated and config.padding == "hf":
            what = "lengths after the TDNN take no account of it, so that frames of the padding may count"
            found["tdnn_dilation"] = Quirk(what, "HF Data2VecAudioForXVector._get_tdnn_output_lengths")
        if config.use_weighted_layer_sum and config.add_adapter:
            what = "takes states that have not passed the adapter, whose output is not used"
            found["use_weighted_layer_sum"] = Quirk(what, "HF Data2VecAudioForXVector")
        return found

    @property
    def padding_leaks(self) -> bool:
        if self.config.use_weighted_layer_sum and self.config.add_adapter:
            return self._positions_leak  # its states have not passed the adapter, which shortens their lengths
        return super().padding_leaks or self._dilated  # whose lengths are too long: see _tdnn_lengths

    @property
    def _dilated(self) -> bool:
        return any(layer.dilation > 1 and layer.taps > 1 for layer in self.tdnn)

    @property
    def least_frames(self) -> int:
        return 2 + sum(layer.dilation * (layer.taps - 1) for layer in self.tdnn)

    @property
    def least_samples(self) -> int:
        if not self.config.use_weighted_layer_sum:
            return super().least_samples
        # The states of the sum have not passed the adapter, which is computed all the same.
        return max(self._samples_for(self.least_frames, False), self.data2vec_audio.least_samples)

    def forward(
        self, input_values: Any, attention_mask: Any = None, labels: Any = None, **options: Any
    ) -> XVectorOutput:
        """As Data2VecAudioModel; ``labels`` (B,) speakers."""
        x, outputs = self.encode(input_values, attention_mask, **options)
        if x.shape[1] < self.least_frames - 1:
            got, expected = f"{np.shape(input_values)[1]} samples", f"at least {self.least_samples}"
            raise InputError("input_values: too short for the TDNN", got=got, expected=expected)
        x = self.projector(x)  # (B, T, tdnn_dim[0])
        for layer in self.tdnn:
            x = layer(x)
        lengths = [x.shape[1]] * x.shape[0]
        if attention_mask is not None:
            lengths = self._tdnn_lengths(attention_mask).tolist()
        embeddings = self.feature_extractor(self.ops.statistics_pooling(x, lengths))
        logits = self.classifier(embeddings)
        loss = None if labels is None else self.objective(logits, labels)
        return XVectorOutput(loss, logits, embeddings, outputs.hidden_states, outputs.attentions)

    def _tdnn_lengths(self, attention_mask: Any) -> np.ndarray:
        """Frames after the TDNN.

        Hugging Face's lengths take no account of dilation, so that frames of the padding count, and those of a weighted
        sum are shortened by an adapter that its states have not passed.  With exact padding both are put right.
        """
        exact = self.config.padding == "exact"
        adapted = self.config.add_adapter and not (exact and self.config.use_weighted_layer_sum)
        lengths = self.frame_lengths(sample_counts(attention_mask), add_adapter=adapted)
        for layer in self.tdnn:
            lengths = _frames(lengths, layer.taps, 1, dilation=layer.dilation if exact else 1)
        if exact:
            self._refuse_short(lengths >= 1, attention_mask)
        return lengths
