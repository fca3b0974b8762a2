"""What the pipelines of every modality share: batches, and answers that are finite numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar, TypeVar

import numpy as np

from d2v_ref.config import fits
from d2v_ref.errors import CheckpointError, InputError
from d2v_ref.nn import recorder
from d2v_ref.ops import Ops
from d2v_ref.pretrained import PreTrainedModel

definitions = Ops()  # in NumPy, for what has left the model's backend

Progress = Callable[[float], None]
Forward = Callable[..., np.ndarray]  # the arrays of a batch -> (B, ...)
Row = TypeVar("Row")


class Pipeline:
    """A model and what turns inputs into its arrays and its outputs into answers."""

    task: ClassVar[str]
    modality: ClassVar[str]  # of its models: "text", "audio" or "vision"
    parts: ClassVar[dict[str, Any]]  # argument of the constructor -> its class, for what it needs beside the model

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def outputs(
        self,
        rows: Iterable[Row],
        collate: Callable[[list[Row]], tuple[Any, ...]],
        forward: Forward,
        *,
        batch_size: int,
    ) -> Iterator[tuple[Row, np.ndarray]]:
        """Each row and its output, in the order of the rows: ``batch_size`` rows are taken and computed at a time.

        ``collate`` makes the arrays of a batch, which ``forward`` is given.
        """
        if not fits(batch_size, int) or batch_size < 1:
            raise InputError("batch_size is no number of rows", got=repr(batch_size), expected="1 or more")

        def batches() -> Iterator[tuple[Row, np.ndarray]]:
            remaining = iter(rows)
            while batch := list(islice(remaining, batch_size)):
                yield from zip(batch, self.finite(forward, *collate(batch)), strict=True)

        return batches()

    def finite(self, forward: Forward, *arrays: Any) -> np.ndarray:
        """``forward(*arrays)``, or a CheckpointError that names where numbers that are not finite came up first."""
        with np.errstate(all="ignore"):  # the error below says more
            output = forward(*arrays)
            if np.isfinite(output).all():
                return output
            found: list[str] = []

            def look(name: str, value: Any) -> None:
                if not found and not np.isfinite(self.model.ops.to_numpy(value)).all():
                    found.append(name)

            with recorder(look):
                forward(*arrays)
        weights = [name for name, value in self.model.state_dict().items() if not np.isfinite(value).all()]
        hint = "All weights are finite: try dtype='float64' (--dtype float64)"
        if weights:
            hint = f"The weight {weights[0]} is not finite"
        got = f"NaN or infinity, first from {found[0] if found else 'the whole model'}"
        origin = self.model.load_report.origin if self.model.load_report else None
        raise CheckpointError("the model's output is not finite", path=origin, got=got, hint=hint)


def each(items: Sequence[Any], prepare: Callable[[Any], Any]) -> list[Any]:
    """``prepare`` of every input, before the model runs at all; an error says which input of several it is about."""
    prepared = []
    for i, item in enumerate(items):
        try:
            prepared.append(prepare(item))
        except InputError as error:
            if len(items) > 1 and error.path is None:  # a path says it already
                error.message = f"input {i}: {error.message}"
            raise
    return prepared


def as_list(inputs: Any) -> list[Any]:
    """One input or several, as a list."""
    return list(inputs) if isinstance(inputs, list | tuple) else [inputs]


def as_records(inputs: Any, fields: Sequence[str], given: dict[str, Any]) -> list[dict[str, Any]]:
    """Inputs that have several parts: one dictionary, a list of them, or each part as a keyword argument."""
    if (inputs is None) == all(value is None for value in given.values()):
        expected = f"a dictionary of {' and '.join(fields)}, a list of them, or keyword arguments"
        got = "none" if inputs is None else "two"
        raise InputError("give the input in one of its forms", got=got, expected=expected)
    records = [given] if inputs is None else as_list(inputs)
    for record in records:
        if not isinstance(record, dict):
            raise InputError("the input is no dictionary", got=type(record).__name__, expected=" and ".join(fields))
        parts = [str(key) for key, value in record.items() if value is not None]
        if sorted(parts) != sorted(fields):
            raise InputError("the input has other parts", got=", ".join(parts), expected=" and ".join(fields))
    return records


def checked_top_k(top_k: Any) -> int:
    """How many answers are wanted."""
    if not fits(top_k, int) or top_k < 1:
        raise InputError("top_k is no number of answers", got=repr(top_k), expected="1 or more")
    return top_k
