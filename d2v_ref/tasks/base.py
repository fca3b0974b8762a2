"""What all pipelines share: batches of texts of similar lengths, and answers in the order the texts came in.

Shapes: B rows of a batch, T tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from d2v_ref.errors import CheckpointError, InputError
from d2v_ref.nn import recorder
from d2v_ref.ops import Ops
from d2v_ref.pretrained import PreTrainedModel
from d2v_ref.processing.tokenizer import Encoding, TextTokenizer, pad

definitions = Ops()  # in NumPy, for what has left the model's backend

Progress = Callable[[int], None]
Forward = Callable[[np.ndarray, np.ndarray], np.ndarray]  # ids (B, T), mask (B, T) -> (B, ...)


class TextPipeline:
    """A model and its tokenizer, called with texts.

    Every pipeline's call takes, besides its own arguments:
        batch_size: how many rows go through the model at once.  The results don't depend on it, up to rounding.
        truncation: cut texts that are too long; else they are an InputError.
        progress: called with 1 after each finished input.
    """

    task: ClassVar[str]
    padding_side: ClassVar[Literal["right", "left"]] = "right"

    def __init__(self, model: PreTrainedModel, tokenizer: TextTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        config: Any = model.config
        if tokenizer.vocab_size > config.vocab_size:
            hint = "Use the tokenizer that the model was trained with"
            got, expected = f"{tokenizer.vocab_size} tokens", f"at most the model's {config.vocab_size}"
            raise InputError("the tokenizer does not fit the model", got=got, expected=expected, hint=hint)
        self.vocab_size: int = config.vocab_size
        limit = tokenizer.model_max_length  # HF's tokenizers name a huge number where they have no limit
        self.max_length: int = config.max_length if limit is None else int(min(limit, config.max_length))

    def encode(self, text: Any, pair: Any = None, *, truncation: bool) -> Encoding:
        """One row for a text or a pair, or for each of several; an InputError if one is too long and may not be cut."""
        return self.tokenizer(text, pair, max_length=self.max_length, truncation=truncation)

    def encode_all(self, items: Sequence[Any], encode: Callable[[Any], Encoding]) -> list[Encoding]:
        """``encode`` of each item, before the model runs at all; an error says which item of several it is about."""
        encodings = []
        for i, item in enumerate(items):
            try:
                encodings.append(encode(item))
            except InputError as error:
                if len(items) == 1:
                    raise
                message = f"input {i}: {error.message}"
                raise InputError(message, got=error.got, expected=error.expected, hint=error.hint) from None
        return encodings

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """What the model's head says of a batch: (B, ...)."""
        return self.model(ids, attention_mask=mask, return_dict=True).logits

    def run(
        self,
        encodings: Sequence[Encoding],
        forward: Forward,
        finish: Callable[[int, list[np.ndarray]], Any],
        *,
        batch_size: int,
        progress: Progress | None,
    ) -> list[Any]:
        """``finish(i, outputs of its rows)`` for each encoding i, in their order.

        Rows go through ``forward`` from the shortest to the longest, so that there is little padding; an input is
        finished as soon as its last row is, so that little is kept.
        """
        if batch_size < 1:
            raise InputError("batch_size is too small", got=batch_size, expected="1 or more")
        rows = [(i, j, ids) for i, encoding in enumerate(encodings) for j, ids in enumerate(encoding.rows())]
        rows.sort(key=lambda row: len(row[2]))
        outputs: list[dict[int, np.ndarray]] = [{} for _ in encodings]
        results: list[Any] = [None] * len(encodings)
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            ids = pad([row for _, _, row in batch], self.tokenizer.pad_token_id, self.padding_side)
            mask = pad([np.ones(len(row)) for _, _, row in batch], 0, self.padding_side)
            for (i, j, _), output in zip(batch, self.finite(forward, ids, mask), strict=True):
                outputs[i][j] = output
                if len(outputs[i]) == len(encodings[i].input_ids):
                    results[i] = finish(i, [outputs[i].pop(k) for k in range(len(outputs[i]))])
                    if progress is not None:
                        progress(1)
        return results

    def finite(self, forward: Forward, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """``forward(ids, mask)``, or a CheckpointError that names where numbers that are not finite came up first."""
        with np.errstate(all="ignore"):  # the error below says more
            output = forward(ids, mask)
            if np.isfinite(output).all():
                return output
            found: list[str] = []

            def look(name: str, value: Any) -> None:
                if not found and not np.isfinite(self.model.ops.to_numpy(value)).all():
                    found.append(name)

            with recorder(look):
                forward(ids, mask)
        weights = [name for name, value in self.model.state_dict().items() if not np.isfinite(value).all()]
        hint = "All weights are finite: try dtype='float64' (--dtype float64)"
        if weights:
            hint = f"The weight {weights[0]} is not finite"
        got = f"NaN or infinity, first from {found[0] if found else 'the whole model'}"
        origin = self.model.load_report.origin if self.model.load_report else None
        raise CheckpointError("the model's output is not finite", path=origin, got=got, hint=hint)


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
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
        raise InputError("top_k is no number of answers", got=repr(top_k), expected="1 or more")
    return top_k
