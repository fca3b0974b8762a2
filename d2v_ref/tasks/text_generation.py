"""How a text goes on."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from d2v_ref.errors import ConfigError, InputError
from d2v_ref.generation import GenerationSettings
from d2v_ref.pretrained import PreTrainedModel
from d2v_ref.processing.tokenizer import Encoding, TextTokenizer
from d2v_ref.tasks.base import Progress, as_list, each
from d2v_ref.tasks.text import TextPipeline


class TextGeneration(TextPipeline):
    """Continuations of a prompt (HF TextGenerationPipeline).

    As in HF, the prompt is tokenized with its special tokens: what is continued is ``<s> prompt </s>``.  Positions are
    those of the model's forward pass, not those of HF's ``generate`` (see ``d2v_ref.generation``).
    """

    task = "text-generation"
    padding_side = "left"

    def __init__(self, model: PreTrainedModel, tokenizer: TextTokenizer) -> None:
        super().__init__(model, tokenizer)
        if not model.config.is_decoder:
            hint = "If the checkpoint is to be used as one, load it with is_decoder=True (--decoder)"
            got = "is_decoder=False in its configuration"
            raise ConfigError("text-generation needs a decoder", got=got, expected="is_decoder=True", hint=hint)

    def __call__(
        self,
        inputs: str | list[str],
        *,
        batch_size: int = 1,
        truncation: bool = False,
        progress: Progress | None = None,
        **settings: Any,
    ) -> list[Any]:
        """The prompt and what follows it.

        Args:
            batch_size: prompts at once; sampling draws for each prompt alone, with the same seed, so that it takes
                them one by one.
            truncation: cut the prompt so that ``max_new_tokens`` more fit.
            settings: see ``GenerationSettings``.

        Returns:
            A list of {"generated_text"}, ``num_return_sequences`` of them, or a list of such lists for a list of
            prompts.
        """
        known = [field.name for field in fields(GenerationSettings)]
        for name in settings:
            if name not in known:
                raise InputError("no such setting of text-generation", got=name, expected=" or ".join(known))
        chosen = GenerationSettings(**settings)
        prompts = as_list(inputs)
        room = self.max_length - (chosen.max_new_tokens if truncation else 0)
        if room < 3:
            expected = f"at most {self.max_length - 3}, so that a prompt of one token fits too"
            raise InputError("max_new_tokens leaves no room for a prompt", got=chosen.max_new_tokens, expected=expected)

        def encode(prompt: Any) -> Encoding:
            return self.tokenizer(prompt, max_length=room, truncation=truncation)

        encodings = each(prompts, encode)

        def forward(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
            self.finite(self.logits, ids, mask)  # tokens don't show that they were chosen among NaNs
            out = self.model.generate(ids, mask, **settings)  # type: ignore[attr-defined]
            new = out[:, ids.shape[1] :]  # without the prompts
            return new.reshape(len(ids), chosen.num_return_sequences, -1)  # (B, sequences, new tokens)

        def finish(i: int, outputs: list[np.ndarray]) -> list[dict[str, str]]:
            return [{"generated_text": prompts[i] + self.tokenizer.decode(new)} for new in outputs[0]]

        rows = 1 if chosen.do_sample else batch_size
        results = self.run(encodings, forward, finish, batch_size=rows, progress=progress)
        return results if isinstance(inputs, list | tuple) else results[0]

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The scores of the first new token, (B, 1, V)."""
        return self.model(ids, attention_mask=mask, use_cache=False, logits_to_keep=1, return_dict=True).logits
