"""transformers' models on the same card, for ``check`` to compare with."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from d2v_ref.bench.cases import Case

# float32's products are exact in torch unless they are allowed TF32.
DTYPES = {"float32": "float32", "tf32": "float32", "float16": "float16", "bfloat16": "bfloat16"}


def why_not() -> str | None:
    """Why there is no such comparison here, or None."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed"
    import torch

    return None if torch.cuda.is_available() else "torch finds no card"


class Peer:
    """A model of transformers in eager mode with fused attention, or compiled.

    Args:
        one: the case.
        weights: name -> array.
        form: one of ``CupyOps``' dtypes.
        mode: of torch.compile, or None for eager.
    """

    def __init__(self, one: Case, weights: dict[str, np.ndarray], form: str, mode: str | None = None) -> None:
        import torch
        import transformers

        settings = one.config()
        config = getattr(transformers, type(settings).__name__)(**settings.to_dict())
        config._attn_implementation = "sdpa"
        model = getattr(transformers, one.model)(config)
        model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        self.dtype = getattr(torch, DTYPES[form])
        self.tf32, self.argument = form == "tf32", one.argument
        model = model.eval().to("cuda", self.dtype)
        self.model: Any = model if mode is None else torch.compile(model, mode=mode)

    def output(self, given: np.ndarray) -> np.ndarray:
        """The main output, from NumPy to NumPy."""
        return self.order(given).float().cpu().numpy()

    def order(self, given: np.ndarray) -> Any:
        """The main output as a tensor of the card, which may not be computed yet."""
        import torch

        with self._products(), torch.inference_mode():
            x = torch.from_numpy(given).to("cuda", non_blocking=True)
            out = self.model(**{self.argument: x if x.dtype == torch.int64 else x.to(self.dtype)})
        return out.logits if "logits" in out else out.last_hidden_state

    @contextmanager
    def _products(self) -> Iterator[None]:
        import torch

        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

    @staticmethod
    def synchronize() -> None:
        import torch

        torch.cuda.synchronize()

    def close(self) -> None:
        """Gives the card's memory back."""
        import torch

        self.model = None
        torch.compiler.reset()
        torch.cuda.empty_cache()
