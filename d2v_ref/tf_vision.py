"""TFData2VecVision: what transformers' TensorFlow classes compute, which is not always what the PyTorch classes do.

Names and behaviour are those of transformers 4.57.6, the last version that has them
(models/data2vec/modeling_tf_data2vec_vision.py).  Where they differ from ``d2v_ref.vision``:

- A picture has ``config.image_size``; nothing is resized.
- The pools of the segmentation head are chained: each takes the map of the one before, not the features.
- The relative positions of a window that is not square are indexed otherwise; those of one wider than high are out of
  the table.
- The loss of a classification is one number a picture.  The loss of a segmentation has the shape (1,).
- With ``return_dict=False`` the logits of a segmentation have their channels last.

TensorFlow computes in float32 and adds 1e-9 to the scores before a softmax, which changes nothing but the last bits.
Three defects of these classes are not copied: the auxiliary head's convolutions that are left as they were drawn when
tf_model.h5 is loaded, the error at labels to ignore, and the error at a loss without an auxiliary head.

They read TensorFlow's files and PyTorch's alike (transformers' ``from_pt``), as the names here are those of PyTorch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v_ref import losses
from d2v_ref.errors import ConfigError, InputError
from d2v_ref.pretrained import Quirk
from d2v_ref.vision import (
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    Data2VecVisionForSemanticSegmentation,
    Data2VecVisionModel,
    Data2VecVisionPreTrainedModel,
    Data2VecVisionPyramidPoolingModule,
    Data2VecVisionRelativePositionBias,
    Size,
    relative_position_index,
    size_pair,
)

Array = Any

# Quirks of the PyTorch classes that come of pictures of another size.
_OF_OTHER_SIZES = ("image_size", "interpolate_pos_encoding", "use_absolute_position_embeddings")


def _quirks(model: Data2VecVisionPreTrainedModel, found: dict[str, Quirk]) -> dict[str, Quirk]:
    """Without those of pictures of another size, which these classes do not take."""
    config = model.config
    mine = {name: quirk for name, quirk in found.items() if name not in _OF_OTHER_SIZES}
    relative = config.use_relative_position_bias or config.use_shared_relative_position_bias
    if relative and config.window[0] != config.window[1]:
        what = "relative positions of a window that is not square are indexed otherwise than in the PyTorch class"
        mine["image_size"] = Quirk(what, "HF TFData2VecVisionRelativePositionBias")
    return mine


class TFData2VecVisionRelativePositionBias(Data2VecVisionRelativePositionBias):
    """bias[head, t, s] = table[index(t - s), head], never resized.  h x w patches -> (1, heads, T, T)."""

    def __init__(self, config: Data2VecVisionConfig) -> None:
        if config.window[0] < config.window[1]:
            got, expected = f"{config.window[0]} x {config.window[1]} patches", "a window that is not wider than high"
            raise ConfigError("TensorFlow's index of relative positions leaves the table", got=got, expected=expected)
        super().__init__(config)

    def make(self, window: Size, interpolate: bool) -> Array:
        # tf.meshgrid's default lays the patches on a grid as high as the window is wide; alike if it is square.
        index = relative_position_index(window, grid=window[::-1])
        bias = self.ops.embedding(index, self.relative_position_bias_table)  # (T, T, heads)
        return self.ops.constant(bias.transpose(2, 0, 1)[None])


class TFData2VecVisionModel(Data2VecVisionModel):
    """The bare model, its pooler only if it is asked for: layernorm(encoder(embeddings(x))) (HF TFData2VecVisionModel).

    x (B, C, H, W) pixels -> last_hidden_state (B, T, D).
    """

    bias = TFData2VecVisionRelativePositionBias

    def quirks(self) -> dict[str, Quirk]:
        return _quirks(self, super().quirks())

    def _pixels(self, pixel_values: Any) -> tuple[np.ndarray, Size]:
        pixels, window = super()._pixels(pixel_values)
        size = size_pair(self.config.image_size)
        if pixels.shape[2:] != size:
            got, expected = f"{pixels.shape[2]} x {pixels.shape[3]} pixels", f"{size[0]} x {size[1]}"
            hint = "TensorFlow's classes take one size; Data2VecVisionModel takes any"
            raise InputError("pixel_values: another size than the model's", got=got, expected=expected, hint=hint)
        return pixels, window


class TFData2VecVisionForImageClassification(Data2VecVisionForImageClassification):
    """A class for a picture: classifier(pooled), pooled = data2vec_vision(x).

    HF TFData2VecVisionForImageClassification.  x (B, C, H, W) pixels -> logits (B, labels).
    """

    model = TFData2VecVisionModel

    def quirks(self) -> dict[str, Quirk]:
        loss = Quirk("is one number a picture, not their mean", "HF TFSequenceClassificationLoss")
        return _quirks(self, super().quirks()) | {"loss": loss}

    def loss(self, logits: np.ndarray, labels: Any) -> np.ndarray:
        """(B,): the squared error for one class, else the cross entropy (TFSequenceClassificationLoss)."""
        return losses.tf_sequence_classification_loss(logits, labels)


class TFData2VecVisionPyramidPoolingModule(Data2VecVisionPyramidPoolingModule):
    """x_i = conv(pooling(x_{i-1})), each scale pools the map of the one before; what comes out is resize(x_i).

    (B, h, w, D) -> a map (B, h, w, D) for each scale.
    """

    def forward(self, x: Array) -> list[Array]:
        size, maps = x.shape[1:3], []
        for block in self.blocks:
            x = block.conv(block.pooling(x))
            maps.append(self.ops.resize(x, size, "bilinear"))
        return maps


class TFData2VecVisionForSemanticSegmentation(Data2VecVisionForSemanticSegmentation):
    """A class for each of a patch's 4 x 4 parts: decode_head(fpn1(y_1), ... fpn4(y_4)), y_i four states of the encoder.

    HF TFData2VecVisionForSemanticSegmentation.  x (B, C, H, W) pixels -> logits (B, labels, 4 h, 4 w).
    """

    model = TFData2VecVisionModel
    pyramid = TFData2VecVisionPyramidPoolingModule

    def quirks(self) -> dict[str, Quirk]:
        found = _quirks(self, super().quirks())
        if len(self.config.pool_scales) > 1:
            what = "each pool takes the map of the one before: another function than the PyTorch class computes"
            found["pool_scales"] = Quirk(what, "HF TFData2VecVisionPyramidPoolingModule")
        what = "gives logits with their channels last"
        found["return_dict=False"] = Quirk(what, "HF TFData2VecVisionForSemanticSegmentation")
        return found

    def __call__(self, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        """As every model; of a tuple the logits are (B, 4 h, 4 w, labels)."""
        out = super().__call__(*args, return_dict=True, **kwargs)
        if self.config.return_dict if return_dict is None else return_dict:
            return out
        out.logits = out.logits.transpose(0, 2, 3, 1)
        return out.to_tuple()

    def _loss(self, logits: Array, auxiliary: Array, labels: Any) -> np.ndarray:
        """(1,): sums over what counts, divided by its number."""
        return super()._loss(logits, auxiliary, labels).reshape(1)
