"""Two checkpoints held against each other: settings, weights one at a time, and the outputs of a forward pass."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from d2v_ref import checks
from d2v_ref.auto import architecture, model_class
from d2v_ref.checkpoints import Tensor, open_checkpoint
from d2v_ref.config import CONFIG_NAME, Config
from d2v_ref.errors import ConfigError, InputError
from d2v_ref.golden.arguments import forward_arguments
from d2v_ref.golden.spool import Spool
from d2v_ref.nn import recorder
from d2v_ref.pretrained import PreTrainedModel

BITS, VALUES, OTHER, SHAPE = "equal bits", "equal values", "other values", "other shape"
ONLY_A, ONLY_B = "only in A", "only in B"
_PIECE = 1 << 20  # numbers that are compared at a time


@dataclass(frozen=True)
class Difference:
    """What became of two arrays of one name.

    Attributes:
        name: as the class of A calls it; of an output without the prefix of the bare model.
        status: ``BITS``, ``VALUES`` (that differ in dtype, or in the sign of a zero), ``OTHER``, ``SHAPE``, ``ONLY_A``
            or ``ONLY_B``.
        shapes, dtypes: of A and of B, None of the one that lacks it; a dtype as it is stored.
        absolute: the largest |a - b|, infinite where one is finite and the other isn't or is another; None unless the
            shapes are the same, like the following.
        relative: the largest |a - b| / max(|a|, |b|): 0 of equal numbers, 1 where one of them is 0, 2 at most.
        rms: the root mean square of a - b.
        cosine: of the angle between a and b as vectors; None if one of them is 0 or not finite.
    """

    name: str
    status: str
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    dtypes: tuple[str | None, str | None]
    absolute: float | None = None
    relative: float | None = None
    rms: float | None = None
    cosine: float | None = None

    @property
    def equal(self) -> bool:
        """The same numbers in the same dtype."""
        return self.status in (BITS, VALUES) and self.dtypes[0] == self.dtypes[1]


@dataclass(frozen=True)
class Diff:
    """Two checkpoints.

    Attributes:
        settings: those of config.json that differ, with their values in A and in B; None where there is none.
        weights: all of them, in A's order, and then those of B alone.
        outputs: every module's output and tap, in A's order of computation; empty without an input.
    """

    settings: dict[str, tuple[Any, Any]]
    weights: list[Difference]
    outputs: list[Difference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Nothing differs."""
        return not self.settings and all(row.equal for row in (*self.weights, *self.outputs))

    @property
    def first(self) -> Difference | None:
        """The first output of both that differs: whatever comes later may only have inherited its difference."""
        return next((row for row in self.outputs if not row.equal and None not in row.shapes), None)


@dataclass(frozen=True)
class Checkpoint:
    """A folder, and the class and settings that it is read with."""

    folder: Path
    cls: type[PreTrainedModel]
    config: Config

    @classmethod
    def open(cls, folder: Path, class_name: str | None = None) -> Checkpoint:
        """``class_name``: that in the place of the one that config.json names."""
        kind = model_class(class_name or architecture(folder))
        return cls(folder, kind, kind.config_class.from_json_file(folder / CONFIG_NAME))


def diff_settings(a: Checkpoint, b: Checkpoint) -> dict[str, tuple[Any, Any]]:
    """The settings whose values differ, defaults filled in: name -> A's and B's value.

    Raises:
        ConfigError: they are of different kinds of models.
    """
    if a.cls.config_class is not b.cls.config_class:
        got = f"{a.config.model_type} and {b.config.model_type}"
        raise ConfigError("models of different kinds can't be compared", got=got, expected="two of one kind")
    mine, theirs = a.config.to_dict(), b.config.to_dict()
    names = [*mine, *(name for name in theirs if name not in mine)]
    pairs = {name: (mine.get(name), theirs.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def diff_weights(a: Checkpoint, b: Checkpoint) -> Iterator[Difference]:
    """Every weight of two checkpoints, one at a time as they are mapped.

    Names are matched as loading matches them: B's are those that A's class would find in B's files.  A weight that one
    checkpoint has under two names, tied, and the other under one is compared under both.

    Raises:
        CheckpointError: a file is missing, damaged, or has a weight under two names.
    """
    mine, theirs = _named(a, a.cls), _named(b, a.cls)
    _tie(a, mine, theirs)
    _tie(b, theirs, mine)
    for name in [*mine, *(name for name in theirs if name not in mine)]:
        yield _difference(name, mine.get(name), theirs.get(name))


def _named(checkpoint: Checkpoint, cls: type[PreTrainedModel]) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the names of a class."""
    tensors = open_checkpoint(checkpoint.folder)
    names = cls(checkpoint.config).names_in(tensors)
    return {here: tensors[there] for here, there in names.items()}


def _tie(checkpoint: Checkpoint, own: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    """Give a checkpoint the second name of a tied weight, if the other has both."""
    for pair in checkpoint.cls.tied_weights.items():
        for have, lack in (pair, pair[::-1]):
            tied = have in own and (checkpoint.config.tie_word_embeddings or len(own[have].shape) == 1)
            if tied and lack not in own and have in others and lack in others:
                own[lack] = own[have]


def _difference(name: str, a: Tensor | None, b: Tensor | None) -> Difference:
    if a is None or b is None:
        shapes = None if a is None else a.shape, None if b is None else b.shape
        dtypes = None if a is None else a.dtype, None if b is None else b.dtype
        return Difference(name, ONLY_B if a is None else ONLY_A, shapes, dtypes)
    shapes, dtypes = (a.shape, b.shape), (a.dtype, b.dtype)
    if a.shape != b.shape:
        return Difference(name, SHAPE, shapes, dtypes)
    sums = _Sums()
    same_bits = a.dtype == b.dtype
    for own, other in zip(_pieces(a), _pieces(b), strict=True):
        same_bits = same_bits and own.data.tobytes() == other.data.tobytes()
        sums.add(own.numpy(), other.numpy())
    status = BITS if same_bits else VALUES if sums.equal else OTHER
    return Difference(name, status, shapes, dtypes, sums.absolute, sums.relative, sums.rms, sums.cosine)


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor in pieces along its first axis, so that the numbers of a large one are never all in memory."""
    data = np.atleast_1d(tensor.data)
    step = max(1, _PIECE // max(1, math.prod(data.shape[1:])))
    for start in range(0, len(data), step):
        yield Tensor(data[start : start + step], tensor.dtype, tensor.file)


class _Sums:
    """What is known of a - b, of pieces seen so far."""

    def __init__(self) -> None:
        self.absolute = self.relative = self._squares = self._aa = self._bb = self._ab = 0.0
        self._count, self.equal = 0, True

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        self.equal = self.equal and bool(same.all())
        a, b = a.astype(np.float64), b.astype(np.float64)
        with np.errstate(all="ignore"):  # infinity less itself, the square of a large number
            off = np.where(same, 0.0, np.abs(a - b))
            off = np.where(np.isnan(off), np.inf, off)  # NaN against a number
            size = np.maximum(np.abs(a), np.abs(b))
            relative = np.where(same, 0.0, off / size)
            self._squares += float(np.square(off).sum())
            self._aa, self._bb = self._aa + float(np.square(a).sum()), self._bb + float(np.square(b).sum())
            self._ab += float((a * b).sum())
        self.absolute = max(self.absolute, float(off.max(initial=0.0)))
        self.relative = max(self.relative, float(np.where(np.isnan(relative), np.inf, relative).max(initial=0.0)))
        self._count += a.size

    @property
    def rms(self) -> float:
        return math.sqrt(self._squares / self._count) if self._count else 0.0

    @property
    def cosine(self) -> float | None:
        lengths = math.sqrt(self._aa) * math.sqrt(self._bb)
        if not 0 < lengths < math.inf or not math.isfinite(self._ab):
            return None
        return min(1.0, max(-1.0, self._ab / lengths))


# ---- outputs --------------------------------------------------------------------------------------------------------


def diff_outputs(a: PreTrainedModel, b: PreTrainedModel, arrays: dict[str, Any]) -> list[Difference]:
    """Every module's output and tap of two models for one input, in A's order of computation.

    A's go to a temporary file and are read back one at a time.  Names are those without the prefix of the bare model,
    so that a model with a head and one without can be compared.

    Args:
        arrays: of the forward pass, by the names of its arguments.

    Raises:
        InputError: one of the models does not take the arrays.
    """
    arrays = {name: checks.anything(name, x) for name, x in arrays.items()}
    found: dict[str, Difference] = {}
    with tempfile.TemporaryDirectory() as folder, Spool(Path(folder, "a")) as spool, np.errstate(all="ignore"):
        with recorder(lambda name, value: spool.add(_bare(a, name), a.ops.to_numpy(value))):
            a(**forward_arguments(a, arrays, {}))

        def see(name: str, value: Any) -> None:
            name = _bare(b, name)
            mine = _as_tensor(spool[name]) if name in spool else None
            found[name] = _difference(name, mine, _as_tensor(b.ops.to_numpy(value)))

        with recorder(see):
            try:
                b(**forward_arguments(b, arrays, {}))
            except InputError as error:
                error.message = f"B does not take the input that A takes: {error.message}"
                raise
        rows = [
            found.pop(name) if name in found else _difference(name, _as_tensor(spool[name]), None) for name in spool
        ]
    return [*rows, *found.values()]


def _bare(model: PreTrainedModel, name: str) -> str:
    """A tap's name without the prefix of the bare model: ``data2vec_text.encoder``, ``data2vec_text#loss``."""
    prefix = model.base_model_prefix
    rest = name.removeprefix(prefix)
    return rest.removeprefix(".") if rest != name and rest[:1] in (".", "#", "") else name


def _as_tensor(x: np.ndarray) -> Tensor:
    return Tensor(x, x.dtype.name, Path())
