"""data2vec's objective, forward only: what is masked, what the teacher says, and how far the student is from it.

A student sees a masked input and predicts, at the masked positions, what its teacher makes of the whole input: the
average of the teacher's last K layers, normalised.  The teacher's weights are an exponential moving average of the
student's (Baevski et al. 2022, "data2vec: A General Framework for Self-supervised Learning in Speech, Vision and
Language", arXiv 2202.03555, sec. 3).

``AUDIO``, ``TEXT`` and ``VISION`` are the settings of the paper's base models, and their fields have fairseq's names.
The paper does not give heads and loss scales; they are those of the published code.

- AUDIO: sec. 4.2, with which fairseq's config/audio/pretraining/base_librispeech.yaml agrees.
- TEXT: sec. 4.3, with BERT's masks.  fairseq's config/text/pretraining/base.yaml is another model, Table 4's "wav2vec
  2.0 masking": 35 % of the tokens in spans of four, every one of them the mask token, and tau_n = 300,000.
- VISION: sec. 4.1, with which the command of the data2vec_vision repository (beit/README.md) agrees.  fairseq's
  config/vision/pretraining/base_imagenet_d2v1.yaml differs: its decay rises from 0.999, only the average is normalised,
  the scale is 1 / sqrt(D), and there is no projection.

Nothing here has gradients: it computes a training step's loss, target and masks for auditing them, and as the
reference that an implementation which trains is held against.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import numpy as np

from d2v_ref import checks
from d2v_ref.config import fits, spell
from d2v_ref.errors import ConfigError, InputError
from d2v_ref.nn import Activation, LayerNorm, Linear, Module, Sequential, recorder
from d2v_ref.ops import Ops
from d2v_ref.outputs import ModelOutput
from d2v_ref.pretrained import PreTrainedModel
from d2v_ref.spec_augment import Generator, compute_mask_indices

Array = Any

EPS = 1e-5  # of the target's normalisations, torch's default

_HEADS = ("linear", "mlp", "norm")
_SCALES = ("1/sqrt(D)", "1/D")


@dataclass(frozen=True)
class Objective:
    """The settings of a modality.

    Args:
        layer_results: path of the module whose output is a layer's result, with ``{}`` for the layer's number: for
            audio and text the feed-forward network before the residual is added, for vision the whole block.
        average_top_k_layers: K, how many of the teacher's last layers are averaged.
        instance_norm_target_layer: every layer's result is normalised over time, each channel of a sequence apart.
        layer_norm_target_layer: every layer's result is normalised over channels, each position apart.
        layer_norm_targets: the average is normalised over channels again.
        loss_beta: beta of the smooth L1 loss, where L2 becomes L1; 0 for the squared error.
        loss_scale: factor of a position's loss, a sum over D channels; "1/sqrt(D)" or "1/D" for a factor of the width.
        ema_decay: tau_0, the teacher's decay at step 0.
        ema_end_decay: tau_e, its decay from ``ema_anneal_end_step`` on; in between it rises linearly.
        ema_anneal_end_step: tau_n.
        averaged: beginnings of the names of the weights that the teacher averages.  It has the student's own of all
            others (sec. 3.3: the feature encoder and the positions are shared).
        regression_head: the student's last layers, which are dropped after pre-training: "linear", one projection;
            "mlp", two with GELU between them and twice the width inside; "norm", LayerNorm and one projection, for a
            model whose output is not normalised yet (HF Data2VecVisionConfig with ``use_mean_pooling``).

    Raises:
        ConfigError: a setting of the wrong type or out of its range.
    """

    layer_results: str
    average_top_k_layers: int
    loss_beta: float
    loss_scale: float | Literal["1/sqrt(D)", "1/D"]
    ema_decay: float
    ema_end_decay: float
    ema_anneal_end_step: int
    averaged: tuple[str, ...]
    regression_head: Literal["linear", "mlp", "norm"]
    instance_norm_target_layer: bool = False
    layer_norm_target_layer: bool = False
    layer_norm_targets: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        if self.layer_results.count("{}") != 1 or re.search("[{}]", self.layer_results.replace("{}", "")):
            expected = "one {} for the layer's number"
            raise ConfigError("layer_results is no path of a layer's module", got=self.layer_results, expected=expected)
        if self.average_top_k_layers < 1:
            raise ConfigError("average_top_k_layers is too small", got=self.average_top_k_layers, expected="1 or more")
        if self.instance_norm_target_layer and self.layer_norm_target_layer:
            raise ConfigError(
                "instance_norm_target_layer and layer_norm_target_layer exclude each other", expected="one of them"
            )
        if not 0 <= self.loss_beta < math.inf:
            raise ConfigError("loss_beta is no bound", got=self.loss_beta, expected="0 or more")
        if self.ema_anneal_end_step < 0:
            raise ConfigError("ema_anneal_end_step is negative", got=self.ema_anneal_end_step, expected="0 or more")
        if not 0 <= self.ema_decay <= self.ema_end_decay <= 1:
            got = f"{self.ema_decay} ... {self.ema_end_decay}"
            raise ConfigError("the decay does not rise", got=got, expected="0 <= ema_decay <= ema_end_decay <= 1")

    def _check_types(self) -> None:
        for name, kind in get_type_hints(Objective).items():
            if kind in (str, int, float, bool) and not fits(getattr(self, name), kind):
                raise ConfigError(f"{name} has the wrong type", got=repr(getattr(self, name)), expected=spell(kind))
        if not (isinstance(self.averaged, tuple) and all(isinstance(start, str) for start in self.averaged)):
            raise ConfigError("averaged has the wrong type", got=repr(self.averaged), expected="a tuple of str")
        if self.regression_head not in _HEADS:
            raise ConfigError("unknown regression_head", got=repr(self.regression_head), expected=" or ".join(_HEADS))
        scale = self.loss_scale
        if scale not in _SCALES and not (fits(scale, float) and 0 < float(scale) < math.inf):
            expected = f"a number above 0, {' or '.join(_SCALES)}"
            raise ConfigError("loss_scale is no factor", got=repr(scale), expected=expected)


AUDIO = Objective(
    layer_results="encoder.layers.{}.feed_forward",
    average_top_k_layers=8,
    instance_norm_target_layer=True,
    loss_beta=0.0,
    loss_scale="1/sqrt(D)",
    ema_decay=0.999,
    ema_end_decay=0.9999,
    ema_anneal_end_step=30_000,
    averaged=("encoder.layers.", "encoder.layer_norm."),
    regression_head="linear",
)
TEXT = Objective(
    layer_results="encoder.layer.{}.output.dense",
    average_top_k_layers=10,
    layer_norm_target_layer=True,
    loss_beta=4.0,
    loss_scale=1.0,
    ema_decay=0.999,
    ema_end_decay=0.9999,
    ema_anneal_end_step=100_000,
    averaged=("encoder.layer.",),
    regression_head="mlp",
)
VISION = Objective(
    layer_results="encoder.layer.{}",
    average_top_k_layers=6,
    layer_norm_target_layer=True,
    layer_norm_targets=True,
    loss_beta=2.0,
    loss_scale="1/D",
    ema_decay=0.9998,
    ema_end_decay=0.9998,
    ema_anneal_end_step=0,
    averaged=("",),
    regression_head="norm",
)


# What is masked


def _number(name: str, value: Any, least: float, most: float, kinds: str = "iu") -> Any:
    """A number from ``least`` to ``most``, of NumPy's ``kinds``."""
    number = checks.array(name, value, (), kinds).item()
    if not least <= number <= most:
        raise InputError(f"{name} is out of range", got=number, expected=f"{least} ... {most}")
    return number


def _sides(name: str, value: Any) -> tuple[int, int]:
    """Two lengths, 1 or more each."""
    first, second = checks.array(name, value, (2,), "iu").tolist()
    if first < 1 or second < 1:
        raise InputError(f"{name} holds nothing", got=(first, second), expected="1 or more, twice")
    return first, second


def _check_generator(generator: Any, *kinds: type) -> None:
    if not isinstance(generator, kinds):
        expected = " or ".join(f"numpy.random.{kind.__name__}" for kind in kinds)
        hint = "numpy.random.default_rng(seed) makes one"
        raise InputError("generator can't draw", got=type(generator).__name__, expected=expected, hint=hint)


def span_mask(
    shape: tuple[int, int],
    generator: Generator,
    *,
    mask_prob: float = 0.65,
    mask_length: int = 10,
    lengths: np.ndarray | None = None,
) -> np.ndarray:
    """Which frames of utterances are masked: spans, and as many frames in every row (sec. 4.2; fairseq).

    Spans of ``mask_length`` frames start at ``mask_prob T / mask_length`` places of a row of T, at least at one.  Spans
    overlap, so about 1 - exp(-mask_prob) of a row is masked, 49 % with the paper's settings.  Rows that got more than
    the row with the fewest lose frames at random (fairseq's ``require_same_masks``), so that it is less in a batch.

    Args:
        shape: (B, T).
        generator: a numpy.random.Generator, or a RandomState for Hugging Face's spans of the same seed.
        mask_prob: 0 ... 1.
        lengths: (B,) how many frames of a row are the utterance, which alone are masked; all if None.

    Returns:
        (B, T) booleans, True where a frame is masked.

    Raises:
        InputError: an utterance that a span does not fit in, or an argument out of its range.
    """
    _check_generator(generator, np.random.Generator, np.random.RandomState)
    batch, frames = _sides("shape", shape)
    mask_length = _number("mask_length", mask_length, 1, frames)
    mask_prob = _number("mask_prob", mask_prob, 0, 1, "fiu")
    if lengths is not None:
        lengths = checks.array("lengths", lengths, (batch,), "iu")
        if (lengths < mask_length).any() or (lengths > frames).any():
            raise InputError("lengths don't fit", got=lengths.tolist(), expected=f"{mask_length} ... {frames} frames")
    mask = compute_mask_indices((batch, frames), mask_prob, mask_length, generator, lengths=lengths, min_masks=1)
    fewest = mask.sum(axis=1).min()
    for row in mask:
        masked = np.flatnonzero(row)
        row[generator.choice(masked, len(masked) - fewest, replace=False)] = False
    return mask


def block_mask(
    grid: tuple[int, int],
    generator: np.random.Generator,
    *,
    num_masking_patches: int | None = None,
    min_num_patches: int = 16,
    min_aspect: float = 0.3,
) -> np.ndarray:
    """Which patches of a picture are masked: rectangles, until there are enough (sec. 4.1; HF FlavaMaskingGenerator).

    A rectangle's area is uniform between ``min_num_patches`` and what is left to mask, and its aspect ratio
    log-uniform between ``min_aspect`` and its inverse, as in BEiT's code (Bao et al. 2021, alg. 1, has it uniform).
    One that would mask no new patch, too many, or reach across the whole grid is drawn again, ten times at most; after
    that the picture has to do with what it has: often some patches less, and none if no rectangle fits.

    Args:
        grid: (h, w) patches.
        num_masking_patches: 60 % of the patches if None, as in the paper: 118 of 14 x 14, where the published command
            has 120.

    Returns:
        (h, w) booleans, True where a patch is masked.  ``.reshape(1, -1)`` is a row of ``bool_masked_pos``.

    Raises:
        InputError: an argument out of its range.
    """
    _check_generator(generator, np.random.Generator)
    height, width = grid = _sides("grid", grid)
    if num_masking_patches is None:
        num_masking_patches = round(0.6 * height * width)
    wanted = _number("num_masking_patches", num_masking_patches, 1, height * width)
    min_num_patches = _number("min_num_patches", min_num_patches, 1, wanted)
    min_aspect = _number("min_aspect", min_aspect, 0.001, 1, "fiu")
    mask = np.zeros(grid, bool)
    while (left := wanted - int(mask.sum())) > 0:
        for _ in range(10):
            block = _draw_block(grid, generator, min_num_patches, left, abs(math.log(min_aspect)))
            if block is not None and 0 < (~mask[block]).sum() <= left:
                mask[block] = True
                break
        else:
            break
    return mask


def _draw_block(
    grid: tuple[int, int], generator: np.random.Generator, least: int, most: int, log_aspect: float
) -> tuple[slice, slice] | None:
    """A rectangle of the grid, None if the one drawn does not fit."""
    height, width = grid
    area = generator.uniform(min(least, most), max(least, most))
    aspect = math.exp(generator.uniform(-log_aspect, log_aspect))
    h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if not (0 < h < height and 0 < w < width):
        return None
    top, left = generator.integers(height - h + 1), generator.integers(width - w + 1)
    return slice(top, top + h), slice(left, left + w)


def bert_mask(
    input_ids: Any,
    generator: np.random.Generator,
    *,
    mask_token_id: int,
    vocab_size: int,
    special_token_ids: Sequence[int] = (0, 1, 2),
    mlm_probability: float = 0.15,
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of which some are hidden, and which (sec. 4.3; Devlin et al. 2019, HF DataCollatorForLanguageModeling).

    Every token that is not special is selected with ``mlm_probability``.  Of the selected 80 % become the mask token,
    10 % a random token, and 10 % stay as they are.  The paper predicts what is selected; fairseq's code only what the
    student sees as the mask token.

    Args:
        input_ids: (B, T), integers 0 ... vocab_size - 1.
        special_token_ids: never selected.  The default is RoBERTa's <s>, <pad> and </s>; Hugging Face's collator takes
            all of its tokenizer's, <unk> and <mask> too.

    Returns:
        (B, T) integers, what the student sees; (B, T) booleans, True where selected.

    Raises:
        InputError: an id outside the vocabulary, or an argument out of its range.
    """
    _check_generator(generator, np.random.Generator)
    vocab_size = _number("vocab_size", vocab_size, 1, 2**31 - 1)
    mask_token_id = _number("mask_token_id", mask_token_id, 0, vocab_size - 1)
    mlm_probability = _number("mlm_probability", mlm_probability, 0, 1, "fiu")
    ids = checks.indices("input_ids", input_ids, ("batch", "length"), vocab_size)
    special = checks.anything("special_token_ids", special_token_ids)
    if special.size:
        special = checks.array("special_token_ids", special, ("count",), "iu")
    chance = generator.random(ids.shape)
    selected = (chance < mlm_probability) & ~np.isin(ids, special)
    fate = generator.random(ids.shape)
    anything = generator.integers(vocab_size, size=ids.shape)
    seen = np.where(selected & (fate < 0.8), mask_token_id, ids)
    return np.where(selected & (fate >= 0.9), anything, seen), selected


# What the teacher says


def layer_results(model: PreTrainedModel, objective: Objective, **inputs: Any) -> list[np.ndarray]:
    """The results of the model's last K layers, (B, T, D) each, the first of them first.

    ``inputs`` are the model's arguments.  The class token of a picture is left out.

    Raises:
        ConfigError: the model has fewer layers than are averaged, or none of the objective's name.
        InputError: the model can't be called with these inputs.
    """
    config: Any = model.config
    count, top = config.num_hidden_layers, objective.average_top_k_layers
    if count < top:
        raise ConfigError("the model has too few layers", got=count, expected=f"average_top_k_layers={top} or more")
    wanted = [objective.layer_results.format(i) for i in range(count - top, count)]
    modules = {path for path, _ in model.named_modules()}
    for name in wanted:
        if name not in modules:
            hint = "Use the modality's objective and a base model, such as Data2VecAudioModel"
            raise ConfigError(f"{type(model).__name__} has no module {name}", hint=hint)
    found: dict[str, np.ndarray] = {}

    def keep(name: str, value: Array) -> None:
        if name in wanted:
            found[name] = model.ops.to_numpy(value)

    with recorder(keep):
        _output(model, inputs)
    return [_positions(found[name], inputs) for name in wanted]


def _output(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Any:
    """The model's output object for inputs that its forward pass has parameters for."""
    try:
        inspect.signature(model.forward).bind(**inputs)
    except TypeError as error:
        raise InputError(f"{type(model).__name__} can't be called with these inputs: {error}") from None
    return model(**inputs, return_dict=True)


def _positions(x: np.ndarray, inputs: Mapping[str, Any]) -> np.ndarray:
    """x (B, T, D) without the class token that a picture has before its patches."""
    return x[:, 1:] if "pixel_values" in inputs else x


def teacher_targets(results: Sequence[np.ndarray], objective: Objective) -> np.ndarray:
    """y = (1/K) sum_k norm(a_k), normalised once more where the objective says so (sec. 3.3).

    The variances are those of the population, with 1e-5 added.  Instance norm counts a batch's padding, as fairseq
    does.

    Args:
        results: the K layers' results, (B, T, D) each, float32 or float64.

    Returns:
        (B, T, D).

    Raises:
        InputError: results of another number, shape or dtype, or that are not finite.
    """
    top = objective.average_top_k_layers
    layers = checks.array("results", results, (top, "batch", "length", "width"), "f")  # (K, B, T, D)
    if layers.dtype.name not in Ops.dtypes:
        raise InputError("results has the wrong dtype", got=layers.dtype, expected=" or ".join(Ops.dtypes))
    ops = Ops(layers.dtype.name)
    if objective.instance_norm_target_layer:
        layers = ops.layer_norm(layers.swapaxes(2, 3), None, None, EPS).swapaxes(2, 3)
    if objective.layer_norm_target_layer:
        layers = ops.layer_norm(layers, None, None, EPS)
    y = layers.mean(axis=0)
    return ops.layer_norm(y, None, None, EPS) if objective.layer_norm_targets else y


def ema_decay(step: int, objective: Objective) -> float:
    """tau at a step: linear from tau_0 to tau_e over the first tau_n steps, then tau_e (sec. 3.3).

    ``step`` is 0 or more.  tau_0 belongs to step 0, which fairseq, where the first update is step 1, never takes.
    """
    step = _number("step", step, 0, math.inf)
    start, end, steps = objective.ema_decay, objective.ema_end_decay, objective.ema_anneal_end_step
    return end if step >= steps else start + (end - start) * (step / steps)


def ema_update(
    teacher: Mapping[str, np.ndarray], student: Mapping[str, np.ndarray], step: int, objective: Objective
) -> dict[str, np.ndarray]:
    """The teacher's weights after a step: tau teacher + (1 - tau) student where averaged, else the student's.

    Both are ``state_dict()``s of one class of base model.  What is not averaged is the student's array itself.

    Raises:
        InputError: the two differ in names or shapes.
    """
    if teacher.keys() != student.keys():
        odd = sorted(teacher.keys() ^ student.keys())
        raise InputError("teacher and student differ in their weights", got=odd[0], expected="one class of model")
    for name, weight in teacher.items():
        shape = checks.anything(name, weight).shape
        checks.array(name, student[name], shape, "f")
        checks.array(name, weight, shape, "f")
    tau = ema_decay(step, objective)
    return {
        name: tau * weight + (1 - tau) * student[name] if name.startswith(objective.averaged) else student[name]
        for name, weight in teacher.items()
    }


# How far the student is from it


def regression_head(width: int, objective: Objective) -> Module:
    """What projects the student's output to the target, without weights yet.  (..., D) -> (..., D).

    The norm's epsilon is 1e-5; data2vec_vision has 1e-6.
    """
    width = _number("width", width, 1, 2**31 - 1)
    if objective.regression_head == "linear":
        return Sequential(Linear(width, width))
    if objective.regression_head == "norm":
        return Sequential(LayerNorm(width, EPS), Linear(width, width))
    return Sequential(Linear(width, 2 * width), Activation("gelu"), Linear(2 * width, width))


def regression_loss(prediction: np.ndarray, target: np.ndarray, objective: Objective) -> np.ndarray:
    """Mean over positions of scale sum_d l(prediction_d - target_d) (sec. 3.4).

    With beta > 0, l(r) = r^2 / (2 beta) where |r| < beta and |r| - beta / 2 elsewhere; with beta = 0, l(r) = r^2.

    Args:
        prediction: (N, D), the head's output at the masked positions.
        target: (N, D), the teacher's.

    Returns:
        A scalar; NaN if nothing is masked.

    Raises:
        InputError: the two differ in shape, or are no floating-point numbers (N, D).
    """
    prediction, target = _rows("prediction", prediction), _rows("target", target)
    if prediction.shape != target.shape:
        raise InputError("prediction and target differ in shape", got=prediction.shape, expected=target.shape)
    count, width = prediction.shape
    if not count:
        return np.asarray(np.nan, prediction.dtype)
    r, beta = np.abs(prediction - target), objective.loss_beta
    near = np.minimum(r, beta)  # of r, what is in the square
    each = np.square(r) if beta == 0 else 0.5 * near * (near / beta) + (r - near)
    factors = {"1/sqrt(D)": 1 / math.sqrt(width), "1/D": 1 / width}
    scale = factors[objective.loss_scale] if isinstance(objective.loss_scale, str) else objective.loss_scale
    return scale * each.sum(axis=-1).mean()


def _rows(name: str, value: Any) -> np.ndarray:
    """(N, D) floating-point numbers; N may be 0."""
    x = checks.anything(name, value)
    if x.ndim != 2 or not x.shape[1] or x.dtype.kind != "f":
        got = f"{x.dtype} {x.shape}"
        raise InputError(f"{name} is not of positions", got=got, expected="floating-point numbers (N, D)")
    return x


@dataclass
class PretrainingOutput(ModelOutput):
    """A step's loss (scalar), and prediction and target at the masked positions, (N, D) each."""

    loss: Array = None
    prediction: Array = None
    target: Array = None


def pretraining_step(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    head: Module,
    objective: Objective,
    *,
    mask: Any,
    student_inputs: Mapping[str, Any],
    teacher_inputs: Mapping[str, Any],
) -> PretrainingOutput:
    """The loss of one training step (sec. 3): the student on a masked input against the teacher on the whole one.

    Args:
        student: a base model (Data2VecAudioModel, -TextModel, -VisionModel); teacher: one of the same configuration.
        head: ``regression_head``, with weights bound.
        mask: (B, T) booleans, the masked frames, patches (row by row) or selected tokens.
        student_inputs: what the student is called with: for audio ``input_values`` and ``mask_time_indices``, for
            vision ``pixel_values`` and ``bool_masked_pos``, for text ``input_ids`` of which some are hidden.
        teacher_inputs: what the teacher is called with: the same, with nothing masked.

    Raises:
        ConfigError: student and teacher are of different classes; see also ``layer_results``.
        InputError: a head without weights, inputs that the models can't take, or a mask that does not fit them.
    """
    if type(student) is not type(teacher):
        got, expected = type(student).__name__, type(teacher).__name__
        raise ConfigError("student and teacher are of different classes", got=got, expected=expected)
    if not hasattr(head, "ops"):
        raise InputError("the head has no weights yet", hint="head.bind(weights, Ops(dtype)) gives it some")
    target = teacher_targets(layer_results(teacher, objective, **teacher_inputs), objective)
    states = _positions(_output(student, student_inputs).last_hidden_state, student_inputs)
    mask = checks.array("mask", mask, states.shape[:2], "b")
    if target.shape[:2] != mask.shape:
        raise InputError("student and teacher see different shapes", got=mask.shape, expected=target.shape[:2])
    prediction = head.ops.to_numpy(head(head.ops.asarray(states[mask])))  # (N, D)
    return PretrainingOutput(regression_loss(prediction, target[mask], objective), prediction, target[mask])
