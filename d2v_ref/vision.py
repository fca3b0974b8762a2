"""Data2VecVision: a BEiT-shaped vision transformer (Baevski et al. 2022; Bao et al. 2022), from pixels to every head.

Names of classes, modules, weights and arguments are those of transformers 5.23
(models/data2vec/modeling_data2vec_vision.py); the segmentation head's older names (transformers before 5.9) are
understood when a checkpoint is read.

Pictures are computed with channels last and shown to a recorder as Hugging Face lays them out.  Shapes: B batch, C
channels, H x W pixels, h x w patches, T = 1 + h w tokens, the class token first, D hidden_size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from d2v_ref import checks, losses
from d2v_ref.config import Config
from d2v_ref.errors import ConfigError, InputError
from d2v_ref.nn import (
    Activation,
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Identity,
    LayerNorm,
    Linear,
    MaxPool2d,
    Module,
    Parameter,
    Residual,
    Sequential,
    recording,
)
from d2v_ref.outputs import BaseModelOutputWithPooling, ImageClassifierOutput, SemanticSegmenterOutput
from d2v_ref.pretrained import PreTrainedModel, Quirk

Array = Any
Size = tuple[int, int]  # height, width


class Data2VecVisionConfig(Config):
    """Settings of a Data2VecVision model (HF Data2VecVisionConfig)."""

    model_type = "data2vec-vision"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int | list[int] = 224
    patch_size: int | list[int] = 16
    num_channels: int = 3
    use_mask_token: bool = False
    use_absolute_position_embeddings: bool = False
    use_relative_position_bias: bool = False
    use_shared_relative_position_bias: bool = False
    layer_scale_init_value: float = 0.1
    drop_path_rate: float = 0.1
    use_mean_pooling: bool = True
    out_indices: list[int] = [3, 5, 7, 11]
    pool_scales: list[int] = [1, 2, 3, 6]
    use_auxiliary_head: bool = True
    auxiliary_loss_weight: float = 0.4
    auxiliary_channels: int = 256
    auxiliary_num_convs: int = 1
    auxiliary_concat_input: bool = False
    semantic_loss_ignore_index: int = 255

    # One for tests; the shapes of facebook/data2vec-vision-base and -large.
    sizes = {
        "tiny": {
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "image_size": 64,
            "patch_size": 8,
            "use_shared_relative_position_bias": True,
            "out_indices": [2, 3, 4, 5],
            "auxiliary_channels": 32,
        },
        "base": {"use_relative_position_bias": True},
        "large": {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "use_relative_position_bias": True,
            "out_indices": [7, 11, 15, 23],
        },
    }

    def validate(self) -> None:
        super().validate()
        sizes = "hidden_size num_attention_heads intermediate_size image_size patch_size num_channels pool_scales"
        self.refuse_what_models_share(f"{sizes} auxiliary_channels", counts="num_hidden_layers auxiliary_num_convs")
        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            if isinstance(value, list | tuple) and len(value) != 2:
                raise ConfigError(f"{name} is no size", got=value, expected="one number, or height and width")
        if min(self.window) < 1 or math.prod(self.window) > 2**20:
            expected = "an image of 1 ... 2^20 patches"
            raise ConfigError("image_size does not fit patch_size", got=self.window, expected=expected)
        if len(self.pool_scales) > 1000:
            raise ConfigError("too many pool_scales", got=len(self.pool_scales), expected="at most 1000")

    @property
    def patch(self) -> Size:
        return size_pair(self.patch_size)

    @property
    def window(self) -> Size:
        """How many patches an image of image_size has: down and across."""
        (height, width), (down, across) = size_pair(self.image_size), self.patch
        return height // down, width // across


def size_pair(value: Any) -> Size:
    return (value[0], value[1]) if isinstance(value, list | tuple) else (value, value)


@dataclass
class ForwardPass:
    """What the layers share while a batch passes through them, and what they leave behind for the output."""

    biases: dict[str, Array]  # (1, heads, T, T), the relative position bias of each module that has one, by its path
    probs: bool  # whether the attention probabilities are wanted
    every_state: bool  # whether the hidden states are wanted
    bias: Array = None  # (1, heads, T, T), the shared relative position bias
    hidden_states: list[Array] = field(default_factory=list)  # (B, T, D) each
    attentions: list[Array] = field(default_factory=list)  # (B, heads, T, T) each

    def keep(self, state: Array) -> None:
        if self.every_state:
            self.hidden_states.append(state)


class Data2VecVisionPatchEmbeddings(Module):
    """projection(pixels), a convolution that takes each patch once (Dosovitskiy et al. 2021).

    (B, H, W, C) -> (B, h w, D).
    """

    takes_channels_first = True

    def __init__(self, config: Data2VecVisionConfig) -> None:
        self.projection = Conv2d(config.num_channels, config.hidden_size, config.patch, stride=config.patch)

    def forward(self, pixels: Array) -> Array:
        x = self.projection(pixels)  # (B, h, w, D)
        return x.reshape(x.shape[0], -1, x.shape[3])


class Data2VecVisionEmbeddings(Module):
    """[class token, patches] + positions, some patches masked, the positions only if they are absolute.

    (B, H, W, C) -> (B, T, D).
    """

    takes_channels_first = True

    def __init__(self, config: Data2VecVisionConfig) -> None:
        width = config.hidden_size
        self.cls_token: Any = Parameter((1, 1, width))
        self.mask_token: Any = Parameter((1, 1, width)) if config.use_mask_token else None
        self.patch_embeddings = Data2VecVisionPatchEmbeddings(config)
        self.position_embeddings: Any = None
        if config.use_absolute_position_embeddings:
            self.position_embeddings = Parameter((1, math.prod(config.window) + 1, width))

    def forward(self, pixels: Array, bool_masked_pos: Array, window: Size) -> Array:
        x = self.patch_embeddings(pixels)  # (B, h w, D)
        if bool_masked_pos is not None:
            x = self.ops.where(bool_masked_pos[:, :, None], self.mask_token, x)
        cls = np.broadcast_to(self.cls_token, (x.shape[0], 1, x.shape[2]))
        x = self.ops.concatenate((cls, x), axis=1)  # (B, T, D)
        if self.position_embeddings is None:
            return x
        return self.ops.add(x, self.positions(window, square=pixels.shape[1] == pixels.shape[2]))

    def positions(self, window: Size, square: bool) -> Array:
        """(1, T, D), resized (bicubic) to the picture's patches.

        Left as they are only for a square picture of as many patches as the table has; the table's grid is taken for a
        square one.
        """
        count, width = self.position_embeddings.shape[1] - 1, self.position_embeddings.shape[2]
        if square and count == math.prod(window):
            return self.position_embeddings
        side = math.isqrt(count)
        if side * side != count:
            hint = "Give square pictures of as many patches, or build the model for a square image_size"
            raise InputError("the table of positions is no square and can't be resized", got=f"{count} rows", hint=hint)
        grid = self.position_embeddings[:, 1:].reshape(1, side, side, width)
        grid = self.ops.resize(grid, window, "bicubic").reshape(1, -1, width)
        return self.ops.concatenate((self.position_embeddings[:, :1], grid), axis=1)


class Data2VecVisionRelativePositionBias(Module):
    """bias[head, t, s] = table[index(t - s), head], learned for each distance of two patches (BEiT, Bao et al. 2022).

    A number is taken for every two of a picture's tokens: h x w patches -> (1, heads, T, T).

    The table has a row for each of (2 h - 1)(2 w - 1) distances, and three for the class token: to a patch, from a
    patch, to itself.  For a picture of other patches its grid is resized (bilinear).  Hugging Face reads the grid with
    width and height exchanged, so that the bias of a window that is not square is another one than was trained, even
    where nothing is resized; so it is here.
    """

    def __init__(self, config: Data2VecVisionConfig) -> None:
        self.window, self.heads = config.window, config.num_attention_heads
        height, width = (2 * side - 1 for side in self.window)
        self.relative_position_bias_table: Any = Parameter((height * width + 3, self.heads))
        self._made: dict[tuple[Size, bool], Array] = {}  # the bias depends on the size of the picture alone

    def forward(self, run: ForwardPass) -> Array:
        """-> (1, heads, T, T), which ``bias`` has made before the first layer."""
        return run.biases[self.path]

    def bias(self, window: Size, interpolate: bool) -> Array:
        """-> (1, heads, T, T), the same array as long as pictures are of no more than two sizes."""
        key = (window, interpolate)
        bias = self._made.get(key)
        if bias is None:
            bias = self.make(window, interpolate)
            # A table that is replaced and never changed, as threads may compute with one model at a time.
            self._made = dict([*self._made.items(), (key, bias)][-_SIZES:])
        return bias

    def make(self, window: Size, interpolate: bool) -> Array:
        old_height, old_width = (2 * side - 1 for side in self.window)
        new_height, new_width = (2 * side - 1 for side in window)
        table = self.relative_position_bias_table
        grid = table[:-3].reshape(1, old_width, old_height, self.heads)  # exchanged, as in HF
        grid = self.ops.resize(grid, (new_height, new_width), "bilinear").reshape(-1, self.heads)
        table = self.ops.concatenate((grid, table[-3:]), axis=0)
        bias = self.ops.embedding(relative_position_index(window), table)[None]  # (1, T, T, heads)
        if interpolate:
            bias = self.ops.resize(bias, bias.shape[1:3], "bilinear")
        bias = self.ops.constant(bias.transpose(0, 3, 1, 2))
        if isinstance(bias, np.ndarray):
            bias.flags.writeable = False  # a recorder is shown the array that later pictures are computed with
        return bias


_SIZES = 2  # pictures' sizes whose bias is kept: at 480 x 480 a base model's takes half a gigabyte


def relative_position_index(window: Size, grid: Size | None = None) -> np.ndarray:
    """Which row of the table stands for query and key: (T, T) integers.

    ``grid``: where the patches are thought to lie, in rows; the window if None.
    """
    height, width = window
    y, x = (axis.reshape(-1) for axis in np.indices(grid or window))
    rows = (y[:, None] - y[None, :] + height - 1) * (2 * width - 1) + x[:, None] - x[None, :] + width - 1
    count = (2 * height - 1) * (2 * width - 1)
    index = np.empty((height * width + 1, height * width + 1), np.int64)
    index[1:, 1:] = rows
    index[0, :] = count
    index[:, 0] = count + 1
    index[0, 0] = count + 2
    return index


BiasClass = type[Data2VecVisionRelativePositionBias]


class Data2VecVisionSelfAttention(Module):
    """attention(query(x), key(x), value(x)), with relative positions; keys have no bias.  (B, T, D) -> (B, T, D)."""

    def __init__(self, config: Data2VecVisionConfig, bias: BiasClass) -> None:
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.query = Linear(width, width)
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, width)
        self.relative_position_bias = bias(config) if config.use_relative_position_bias else None

    def forward(self, x: Array, run: ForwardPass) -> Array:
        q, k, v = self.project(x, self.query, self.key, self.value)  # (B, T, D) each
        bias = run.bias
        if self.relative_position_bias is not None:
            own = self.relative_position_bias(run)  # (1, heads, T, T)
            bias = own if bias is None else self.ops.add(own, bias)
        context, p = self.ops.attention(q, k, v, self.heads, bias=bias, probs=run.probs or recording())
        run.attentions.append(p if run.probs else None)
        self.tap("probs", p)
        return context


class Data2VecVisionSelfOutput(Residual):
    """W x + b, the output projection of an attention.  (B, T, D) -> (B, T, D)."""

    def __init__(self, config: Data2VecVisionConfig) -> None:
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Array, residual: Array = None, scale: Array = None) -> Array:
        return self.dense(x, residual=residual, scale=scale)


class Data2VecVisionAttention(Residual):
    """W attention(x) + b.  (B, T, D) -> (B, T, D)."""

    def __init__(self, config: Data2VecVisionConfig, bias: BiasClass) -> None:
        self.attention = Data2VecVisionSelfAttention(config, bias)
        self.output = Data2VecVisionSelfOutput(config)

    def forward(self, x: Array, run: ForwardPass, residual: Array = None, scale: Array = None) -> Array:
        return self.output(self.attention(x, run), residual=residual, scale=scale)


class Data2VecVisionIntermediate(Module):
    """activation(W x + b), the first half of the feed-forward network.  (B, T, D) -> (B, T, intermediate_size)."""

    def __init__(self, config: Data2VecVisionConfig) -> None:
        self.dense = Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = Activation(config.hidden_act)

    def forward(self, x: Array) -> Array:
        return self.dense(x, activation=self.intermediate_act_fn)


class Data2VecVisionOutput(Residual):
    """W x + b, the second half of the feed-forward network.  (B, T, intermediate_size) -> (B, T, D)."""

    def __init__(self, config: Data2VecVisionConfig) -> None:
        self.dense = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Array, residual: Array = None, scale: Array = None) -> Array:
        return self.dense(x, residual=residual, scale=scale)


class Data2VecVisionLayer(Module):
    """y = x + lambda_1 attention(LayerNorm(x)), then y + lambda_2 output(intermediate(LayerNorm(y))).

    Pre-norm; the branches' scales are learned, or 1 if there are none (LayerScale; Touvron et al. 2021).
    (B, T, D) -> (B, T, D).
    """

    def __init__(self, config: Data2VecVisionConfig, bias: BiasClass) -> None:
        width, scaled = config.hidden_size, config.layer_scale_init_value > 0
        self.attention = Data2VecVisionAttention(config, bias)
        self.intermediate = Data2VecVisionIntermediate(config)
        self.output = Data2VecVisionOutput(config)
        self.layernorm_before = LayerNorm(width, config.layer_norm_eps)
        self.layernorm_after = LayerNorm(width, config.layer_norm_eps)
        self.lambda_1: Any = Parameter((width,)) if scaled else None
        self.lambda_2: Any = Parameter((width,)) if scaled else None

    def forward(self, x: Array, run: ForwardPass) -> Array:
        x = self.attention(self.layernorm_before(x), run, residual=x, scale=self.lambda_1)
        return self.output(self.intermediate(self.layernorm_after(x)), residual=x, scale=self.lambda_2)


class Data2VecVisionEncoder(Module):
    """layer_L(... layer_1(x)), the stack of layers.  (B, T, D) -> (B, T, D)."""

    def __init__(self, config: Data2VecVisionConfig, bias: BiasClass) -> None:
        self.relative_position_bias = bias(config) if config.use_shared_relative_position_bias else None
        self.layer = [Data2VecVisionLayer(config, bias) for _ in range(config.num_hidden_layers)]

    def forward(self, x: Array, run: ForwardPass) -> Array:
        if self.relative_position_bias is not None:
            run.bias = self.relative_position_bias(run)
        run.keep(x)
        for layer in self.layer:
            x = layer(x, run)
            run.keep(x)
        return x


class Data2VecVisionPooler(Module):
    """LayerNorm(mean of the patches), or x_0, the class token.  (B, T, D) -> (B, D)."""

    def __init__(self, config: Data2VecVisionConfig) -> None:
        self.layernorm: LayerNorm | None = None
        if config.use_mean_pooling:
            self.layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Array) -> Array:
        if self.layernorm is None:
            return x[:, 0]
        return self.layernorm(self.ops.adaptive_avg_pool2d(x[:, 1:, None], 1)[:, 0, 0])  # a map one patch wide


class Data2VecVisionPreTrainedModel(PreTrainedModel):
    """What the vision models share: configuration, prefix of the names, older names of weights."""

    config: Data2VecVisionConfig
    config_class = Data2VecVisionConfig
    base_model_prefix = "data2vec_vision"
    ignored_weights = {
        r"relative_position_index$": "a table that follows from the size of the picture",
        r"num_batches_tracked$": "a count of training steps",
    }
    renamed_weights = {  # before transformers 5.9
        r"^decode_head\.bottleneck\.": "decode_head.psp_bottleneck.",
        r"^decode_head\.psp_modules\.(\d+)\.1\.": r"decode_head.psp_modules.blocks.\1.conv.",
        r"^((?:decode_head|auxiliary_head)\..*)\.conv\.(weight|bias)$": r"\1.convolution.\2",
        r"^((?:decode_head|auxiliary_head)\..*)\.bn\.": r"\1.normalization.",
    }

    def quirks(self) -> dict[str, Quirk]:
        config, found = self.config, {}
        (height, width), (down, across) = size_pair(config.image_size), config.patch
        oblong = config.window[0] != config.window[1]
        relative = config.use_relative_position_bias or config.use_shared_relative_position_bias
        absolute = config.use_absolute_position_embeddings
        if relative and oblong:
            what = "the table of relative positions is read with width and height exchanged"
            found["image_size"] = Quirk(what, "HF Data2VecVisionRelativePositionBias")
        if absolute and oblong and height != width:
            what = "the table of positions is taken for a square one and resized, for pictures of image_size too"
            found["use_absolute_position_embeddings"] = Quirk(what, "HF Data2VecVisionEmbeddings")
        if relative or absolute:
            what = "has no effect: tables of positions are resized to the picture in any case"
            found["interpolate_pos_encoding"] = Quirk(what, "HF Data2VecVisionModel")
        if height % down or width % across:
            what = "no multiple of patch_size: what fills no patch at the right and at the bottom is left out"
            found["image_size and patch_size"] = Quirk(what, "HF Data2VecVisionPatchEmbeddings")
        if config.use_mean_pooling:
            what = "the last hidden state is not normalised; the pooler normalises the mean of the patches"
            found["use_mean_pooling"] = Quirk(what, "HF Data2VecVisionModel, Data2VecVisionPooler")
        if config.layer_scale_init_value > 0:
            what = "only its sign counts: the scales themselves are weights, lambda_1 and lambda_2"
            found["layer_scale_init_value"] = Quirk(what, "Touvron et al. 2021; HF Data2VecVisionLayer")
        return found


class Data2VecVisionModel(Data2VecVisionPreTrainedModel):
    """The bare model: pooler(y), y = layernorm(encoder(embeddings(x))) (HF Data2VecVisionModel).

    x (B, C, H, W) pixels -> last_hidden_state (B, T, D), pooler_output (B, D).
    """

    optional_modules = {"pooler": "add_pooling_layer"}
    bias: BiasClass = Data2VecVisionRelativePositionBias

    def __init__(
        self, config: Data2VecVisionConfig, weights: Any = None, *, add_pooling_layer: bool = False, **options: Any
    ) -> None:
        self.embeddings = Data2VecVisionEmbeddings(config)
        self.encoder = Data2VecVisionEncoder(config, self.bias)
        self.layernorm = Identity() if config.use_mean_pooling else LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.pooler = Data2VecVisionPooler(config) if add_pooling_layer else None
        tables = (module for _, module in self.named_modules() if isinstance(module, self.bias))
        self._tables: tuple[Data2VecVisionRelativePositionBias, ...] = tuple(tables)
        super().__init__(config, weights, **options)

    def forward(
        self,
        pixel_values: Any,
        bool_masked_pos: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> BaseModelOutputWithPooling:
        """Hidden states of a batch of pictures.

        Args:
            pixel_values: (B, C, H, W) of any size from one patch on, as ``BeitImageProcessor`` prepares them.  What
                does not fill a patch at the right and at the bottom is left out.
            bool_masked_pos: (B, h w), True or 1 where a patch is replaced by the mask token.
            output_attentions: whether to return the attention probabilities, (B, heads, T, T) a layer.
            output_hidden_states: whether to return the embeddings and every layer's output.
            interpolate_pos_encoding: resizes the relative position bias to the tokens it has already; Hugging Face's
                argument, which changes nothing.  Tables are resized to the picture in any case.

        Raises:
            InputError: a wrong shape or dtype, a picture smaller than a patch, a number that is not finite.
        """
        pixels, window = self._pixels(pixel_values)
        mask = self._mask(bool_masked_pos, pixels.shape[0], window)
        shared = {
            "biases": {table.path: table.bias(window, bool(interpolate_pos_encoding)) for table in self._tables},
            "probs": bool(self.config.output_attentions if output_attentions is None else output_attentions),
            "every_state": bool(
                self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
            ),
        }
        x, pooled, hidden_states, attentions = self.ops.replay(self._compute, pixels, mask, window, shared)
        return BaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=pooled,
            hidden_states=hidden_states if shared["every_state"] else None,
            attentions=attentions if shared["probs"] else None,
        )

    def _compute(
        self, pixels: np.ndarray, mask: np.ndarray | None, window: Size, shared: dict[str, Any]
    ) -> tuple[Array, Array, tuple[Array, ...], tuple[Array, ...]]:
        """From checked pictures, a mask of patches, and what ``ForwardPass`` holds to all that the output holds."""
        run, mask = ForwardPass(**shared), None if mask is None else self.ops.asarray(mask)
        x = self.embeddings(self.ops.asarray(pixels).transpose(0, 2, 3, 1), mask, window)  # (B, T, D)
        x = self.layernorm(self.encoder(x, run))
        pooled = None if self.pooler is None else self.pooler(x)  # (B, D)
        return x, pooled, tuple(run.hidden_states), tuple(run.attentions)

    def _pixels(self, pixel_values: Any) -> tuple[np.ndarray, Size]:
        """The pictures (B, C, H, W), and how many patches they have."""
        axes = ("batch", self.config.num_channels, "height", "width")
        x = checks.array("pixel_values", pixel_values, axes, "f", self.ops.dtype)
        (down, across), (height, width) = self.config.patch, x.shape[2:]
        if height < down or width < across:
            got, expected = f"{height} x {width} pixels", f"at least a patch, {down} x {across}"
            raise InputError("pixel_values: the picture is too small", got=got, expected=expected)
        return x, (height // down, width // across)

    def _mask(self, bool_masked_pos: Any, batch: int, window: Size) -> np.ndarray | None:
        if bool_masked_pos is None:
            return None
        if not self.config.use_mask_token:
            hint = "Build the model with use_mask_token=True"
            raise InputError("bool_masked_pos: the model has no mask token", hint=hint)
        mask = checks.array("bool_masked_pos", bool_masked_pos, (batch, math.prod(window)), "biu")
        others = mask[(mask != 0) & (mask != 1)]
        if others.size:
            raise InputError("bool_masked_pos holds other numbers", got=others[0], expected="booleans, or 0 and 1")
        return mask != 0


class Data2VecVisionForImageClassification(Data2VecVisionPreTrainedModel):
    """A class for a picture: classifier(pooled), pooled = data2vec_vision(x).

    HF Data2VecVisionForImageClassification.  x (B, C, H, W) pixels -> logits (B, labels).
    """

    model: type[Data2VecVisionModel] = Data2VecVisionModel

    def __init__(self, config: Data2VecVisionConfig, weights: Any = None, **options: Any) -> None:
        self.data2vec_vision = self.model(config, add_pooling_layer=True)
        self.classifier = Linear(config.hidden_size, config.num_labels) if config.num_labels else Identity()
        super().__init__(config, weights, **options)

    def forward(self, pixel_values: Any, labels: Any = None, **options: Any) -> ImageClassifierOutput:
        """As Data2VecVisionModel; ``labels`` as in ``losses.sequence_classification_loss``."""
        outputs = self.data2vec_vision(pixel_values, **options)
        logits = self.classifier(outputs.pooler_output)  # (B, labels)
        loss = None
        if labels is not None:
            if not self.config.num_labels:
                raise InputError("labels: the model has no classes", hint="Build it with num_labels of 1 or more")
            loss = self.loss(self.ops.to_numpy(logits), labels)
        return ImageClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)

    def loss(self, logits: np.ndarray, labels: Any) -> np.ndarray:
        return losses.sequence_classification_loss(logits, labels, self.config.problem_type)


class Data2VecVisionConvLayer(Module):
    """relu(BatchNorm(conv(x))).  (B, h, w, C) -> (B, h, w, C')."""

    channels_first = True

    def __init__(self, inputs: int, outputs: int, kernel: int = 1) -> None:
        self.convolution = Conv2d(inputs, outputs, (kernel, kernel), padding=kernel // 2, bias=False)
        self.normalization = BatchNorm2d(outputs)
        self.activation = Activation("relu", channels_first=True)

    def forward(self, x: Array) -> Array:
        if not recording():
            return self.ops.conv2d_norm_act(x, self.convolution, self.normalization, self.activation.name)
        return self.activation(self.normalization(self.convolution(x)))


class Data2VecVisionPyramidPoolingBlock(Module):
    """resize(conv(pooling(x))): the map averaged to scale x scale cells.  (B, h, w, D) -> (B, h, w, D)."""

    channels_first = True

    def __init__(self, scale: int, width: int) -> None:
        self.pooling = AdaptiveAvgPool2d(scale)
        self.conv = Data2VecVisionConvLayer(width, width)

    def forward(self, x: Array, size: Size) -> Array:
        return self.ops.resize(self.conv(self.pooling(x)), size, "bilinear")


class Data2VecVisionPyramidPoolingModule(Module):
    """block_1(x), block_2(x), ...: averages of the whole map at several scales (PSPNet; Zhao et al. 2017).

    (B, h, w, D) -> a map (B, h, w, D) for each scale.
    """

    takes_channels_first = True

    def __init__(self, config: Data2VecVisionConfig) -> None:
        self.blocks = [Data2VecVisionPyramidPoolingBlock(scale, config.hidden_size) for scale in config.pool_scales]

    def forward(self, x: Array) -> list[Array]:
        return [block(x, x.shape[1:3]) for block in self.blocks]

    def show(self, out: list[Array]) -> None:
        """The maps are the blocks' outputs, which were shown."""


class Data2VecVisionUperHead(Module):
    """classifier(fpn_bottleneck(maps)): unified perceptual parsing of four maps (UPerNet; Xiao et al. 2018).

    The coarsest map becomes psp_bottleneck([x, psp_modules(x)]); from it to the finest, each is lateral_convs_i(x) +
    resize(the coarser one); the maps are fpn_convs_i of these, resized to the finest.  Four (B, h', w', D) ->
    (B, 4 h, 4 w, labels).
    """

    channels_first = True

    def __init__(self, config: Data2VecVisionConfig, pyramid: type[Data2VecVisionPyramidPoolingModule]) -> None:
        width = config.hidden_size
        self.classifier = Conv2d(width, config.num_labels, (1, 1))
        self.psp_modules = pyramid(config)
        self.psp_bottleneck = Data2VecVisionConvLayer((1 + len(config.pool_scales)) * width, width, kernel=3)
        self.lateral_convs = [Data2VecVisionConvLayer(width, width) for _ in range(3)]
        self.fpn_convs = [Data2VecVisionConvLayer(width, width, kernel=3) for _ in range(3)]
        self.fpn_bottleneck = Data2VecVisionConvLayer(4 * width, width, kernel=3)

    def forward(self, features: list[Array]) -> Array:
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, features[:3], strict=True)]
        top = features[3]
        top = self.psp_bottleneck(self.ops.concatenate((top, *self.psp_modules(top)), axis=3))
        laterals.append(top)
        for i in (3, 2, 1):  # from the coarsest to the finest
            up = self.ops.resize(laterals[i], laterals[i - 1].shape[1:3], "bilinear")
            laterals[i - 1] = laterals[i - 1] + up
        maps = [conv(x) for conv, x in zip(self.fpn_convs, laterals[:3], strict=True)] + [top]
        size = maps[0].shape[1:3]
        maps = [maps[0], *(self.ops.resize(x, size, "bilinear") for x in maps[1:])]
        return self.classifier(self.fpn_bottleneck(self.ops.concatenate(tuple(maps), axis=3)))


class Data2VecVisionFCNHead(Module):
    """classifier(convs(x)) of one map, a second opinion in training (FCN; Long et al. 2015).

    (B, h, w, D) -> (B, h, w, labels).
    """

    channels_first = True

    def __init__(self, config: Data2VecVisionConfig) -> None:
        width, channels = config.hidden_size, config.auxiliary_channels
        count = config.auxiliary_num_convs
        self.convs = [Data2VecVisionConvLayer(width if i == 0 else channels, channels, 3) for i in range(count)]
        self.conv_cat: Data2VecVisionConvLayer | None = None
        if config.auxiliary_concat_input:
            self.conv_cat = Data2VecVisionConvLayer(width + channels, channels, 3)
        self.classifier = Conv2d(channels, config.num_labels, (1, 1))

    def forward(self, features: list[Array]) -> Array:
        x = features[2]
        for conv in self.convs:
            x = conv(x)
        if self.conv_cat is not None:
            x = self.conv_cat(self.ops.concatenate((features[2], x), axis=3))
        return self.classifier(x)


class Data2VecVisionForSemanticSegmentation(Data2VecVisionPreTrainedModel):
    """A class for each of a patch's 4 x 4 parts: decode_head(fpn1(y_1), ... fpn4(y_4)), y_i four states of the encoder.

    HF Data2VecVisionForSemanticSegmentation.  x (B, C, H, W) pixels -> logits (B, labels, 4 h, 4 w).
    """

    model: type[Data2VecVisionModel] = Data2VecVisionModel
    pyramid = Data2VecVisionPyramidPoolingModule

    def __init__(self, config: Data2VecVisionConfig, weights: Any = None, **options: Any) -> None:
        width = config.hidden_size
        chosen = [i for i in range(config.num_hidden_layers + 1) if i + 1 in config.out_indices]
        if len(config.out_indices) != 4 or len(chosen) != 4:
            expected = f"four different layers, 1 ... {config.num_hidden_layers + 1}"
            raise ConfigError("out_indices does not choose four features", got=config.out_indices, expected=expected)
        if config.window[0] != config.window[1]:
            raise ConfigError(
                "image_size is no square of patches", got=config.window, expected="as many down as across"
            )
        if config.use_auxiliary_head and not config.auxiliary_num_convs and config.auxiliary_channels != width:
            expected = f"hidden_size={width} without convolutions before the auxiliary head's classifier"
            raise ConfigError("auxiliary_channels does not fit", got=config.auxiliary_channels, expected=expected)
        self.data2vec_vision = self.model(config)
        self.fpn1 = Sequential(
            ConvTranspose2d(width, width, 2),
            BatchNorm2d(width),
            Activation("gelu", channels_first=True),
            ConvTranspose2d(width, width, 2),
        )
        self.fpn2 = Sequential(ConvTranspose2d(width, width, 2))
        self.fpn3 = Identity(channels_first=True)
        self.fpn4 = MaxPool2d(2)
        self.decode_head = Data2VecVisionUperHead(config, self.pyramid)
        self.auxiliary_head = Data2VecVisionFCNHead(config) if config.use_auxiliary_head else None
        super().__init__(config, weights, **options)

    def quirks(self) -> dict[str, Quirk]:
        found = super().quirks()
        layers = ", ".join(str(i - 1) for i in sorted(self.config.out_indices))
        what = f"counts the embeddings as 1: the features are the states after {layers} layers"
        found["out_indices"] = Quirk(what, "HF Data2VecVisionForSemanticSegmentation")
        if self.auxiliary_head is not None:
            what = "computed in every pass, and only the loss makes use of it"
            found["use_auxiliary_head"] = Quirk(what, "HF Data2VecVisionForSemanticSegmentation")
        return found

    def forward(
        self, pixel_values: Any, labels: Any = None, output_hidden_states: bool | None = None, **options: Any
    ) -> SemanticSegmenterOutput:
        """As Data2VecVisionModel, for pictures of as many patches as ``config.image_size`` has.

        ``labels`` (B, H', W') classes, ``config.semantic_loss_ignore_index`` where none counts.  The logits are (B,
        labels, 4 h, 4 w).
        """
        outputs = self.data2vec_vision(pixel_values, output_hidden_states=True, **options)
        features = self._features(outputs.hidden_states)
        logits = self.decode_head(features)  # (B, 4 h, 4 w, labels)
        auxiliary = None if self.auxiliary_head is None else self.auxiliary_head(features)  # (B, h, w, labels)
        loss = None if labels is None else self._loss(logits, auxiliary, labels)
        every_state = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return SemanticSegmenterOutput(
            loss=loss,
            logits=logits.transpose(0, 3, 1, 2),
            hidden_states=outputs.hidden_states if every_state else None,
            attentions=outputs.attentions,
        )

    def _features(self, hidden_states: tuple[Array, ...]) -> list[Array]:
        """Four states as maps of 4, 2, 1 and 1/2 times the patches: (B, h', w', D).

        ``out_indices`` counts from 1 for the embeddings, so that [3, 5, 7, 11] are the outputs of layers 2, 4, 6 and
        10, as in Hugging Face's model.
        """
        window = self.config.window
        if hidden_states[0].shape[1] != math.prod(window) + 1:
            got = f"{hidden_states[0].shape[1] - 1} patches"
            expected = f"{math.prod(window)}, as image_size={self.config.image_size} has"
            raise InputError("pixel_values: segmentation takes one size of picture", got=got, expected=expected)
        chosen = [x for i, x in enumerate(hidden_states) if i + 1 in self.config.out_indices]
        maps = [x[:, 1:].reshape(x.shape[0], *window, x.shape[2]) for x in chosen]
        return [fpn(x) for fpn, x in zip((self.fpn1, self.fpn2, self.fpn3, self.fpn4), maps, strict=True)]

    def _loss(self, logits: Array, auxiliary: Array, labels: Any) -> np.ndarray:
        """Cross entropy at the labels' resolution, plus auxiliary_loss_weight times that of the auxiliary head."""
        if self.config.num_labels < 2:
            got, expected = f"num_labels={self.config.num_labels}", "a model with num_labels > 1"
            raise InputError("labels: without two classes there is nothing to learn", got=got, expected=expected)
        labels = checks.array("labels", labels, (logits.shape[0], "height", "width"), "iu")

        def cross_entropy(scores: Array) -> np.ndarray:
            scores = self.ops.to_numpy(self.ops.resize(scores, labels.shape[1:], "bilinear"))
            ignored = self.config.semantic_loss_ignore_index
            return losses.cross_entropy(scores.reshape(-1, scores.shape[3]), labels.reshape(-1), ignored)

        loss = cross_entropy(logits)
        return loss if auxiliary is None else loss + self.config.auxiliary_loss_weight * cross_entropy(auxiliary)
