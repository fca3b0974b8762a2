"""Where in a text the answer to a question is."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2v_ref.errors import InputError
from d2v_ref.processing.tokenizer import Encoding
from d2v_ref.tasks.base import Progress, as_records, checked_top_k, definitions, each
from d2v_ref.tasks.text import TextPipeline

_WINDOW, _STRIDE = 384, 128  # tokens: HF's max_seq_len and doc_stride, those of BERT on SQuAD (Devlin et al. 2018)


class QuestionAnswering(TextPipeline):
    """Answers as parts of a context (HF 4.57 QuestionAnsweringPipeline, which transformers 5 no longer has)."""

    task = "question-answering"

    def __call__(
        self,
        inputs: dict[str, str] | list[dict[str, str]] | None = None,
        *,
        question: str | None = None,
        context: str | None = None,
        top_k: int = 1,
        max_answer_len: int = 15,
        doc_stride: int | None = None,
        batch_size: int = 1,
        progress: Progress | None = None,
    ) -> Any:
        """The most likely answers, best first.

        A long context is read in windows of at most 384 tokens, question included, each of which has probabilities of
        its own.

        Args:
            inputs: {"question", "context"}, or a list of such; or give ``question`` and ``context``.
            top_k: how many answers.
            max_answer_len: the most tokens of an answer.
            doc_stride: tokens of the context that one window shares with the next; at most 128 if None.

        Returns:
            {"score", "start", "end", "answer"}, ``start`` and ``end`` being characters of the context; a list of them
            if there are several; a list of these for a list of inputs that are more than one.
        """
        checked_top_k(top_k)
        if max_answer_len < 1:
            raise InputError("max_answer_len is too small", got=max_answer_len, expected="1 or more")
        records = as_records(inputs, ("question", "context"), {"question": question, "context": context})
        length = min(self.max_length, _WINDOW)
        stride = min(length // 2, _STRIDE) if doc_stride is None else doc_stride
        if stride < 0:
            raise InputError("doc_stride is negative", got=stride, expected="0 or more")

        def encode(record: dict[str, str]) -> Encoding:
            return self.tokenizer.windows(record["question"], record["context"], max_length=length, stride=stride)

        encodings = each(records, encode)

        def finish(i: int, outputs: list[np.ndarray]) -> Any:
            return self._answers(records[i]["context"], encodings[i], outputs, top_k, max_answer_len)

        results = self.run(encodings, self.logits, finish, batch_size=batch_size, progress=progress)
        return results[0] if len(results) == 1 else results

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The scores of each token as the first and as the last of the answer: (B, T, 2)."""
        out = self.model(ids, attention_mask=mask, return_dict=True)
        return np.stack((out.start_logits, out.end_logits), axis=-1)

    def _answers(self, context: str, windows: Encoding, outputs: list[np.ndarray], top_k: int, longest: int) -> Any:
        answers: dict[str, dict[str, Any]] = {}
        for row, logits in enumerate(outputs):
            # Spans that turn out to be of the same words are one answer: look at more of them than are wanted.
            for start, end, score in self._spans(windows, row, logits, 2 * top_k + 10, longest):
                first, last = self._characters(windows, row, start, end)
                answer = context[first:last]
                if answer.lower() in answers:
                    answers[answer.lower()]["score"] += score
                else:
                    answers[answer.lower()] = {"score": score, "start": first, "end": last, "answer": answer}
        best = sorted(answers.values(), key=lambda found: -found["score"])[:top_k]
        return best[0] if len(best) == 1 else best

    def _spans(
        self, windows: Encoding, row: int, logits: np.ndarray, count: int, longest: int
    ) -> list[tuple[int, int, float]]:
        """The likeliest (first token, last token, probability) of one window, best first.  logits (T or more, 2)."""
        length = int(windows.attention_mask[row].sum())
        inside = windows.sequence_ids[row, :length] == 1
        # HF lets <s> take its share of the probability (trained models point there for "no answer"), though it can't
        # be the answer.
        allowed = inside | (windows.input_ids[row, :length] == self.tokenizer.cls_token_id)
        scores = np.where(allowed[:, None], logits[:length], logits.dtype.type(-10000.0))
        p = definitions.softmax(scores.T)  # (2, T)
        p[:, ~inside] = 0.0
        joint = p[0][:, None] * p[1][None, :]  # (T, T)
        joint = np.tril(np.triu(joint), longest - 1)  # an answer ends where it begins, or up to so many tokens later
        best = np.argsort(-joint, axis=None, kind="stable")[:count]
        starts, ends = np.unravel_index(best, joint.shape)
        return [(int(s), int(e), float(joint[s, e])) for s, e in zip(starts, ends, strict=True) if joint[s, e] > 0]

    def _characters(self, windows: Encoding, row: int, start: int, end: int) -> tuple[int, int]:
        """From the first token's word to the end of the last token's, as far as this window shows them."""
        words, inside = windows.word_ids[row], windows.sequence_ids[row] == 1
        first = np.flatnonzero(inside & (words == words[start]))[0]
        last = np.flatnonzero(inside & (words == words[end]))[-1]
        return int(windows.offsets[row, first, 0]), int(windows.offsets[row, last, 1])
