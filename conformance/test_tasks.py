"""Pipelines against transformers 5.23's: the same folder in, the same answers out.

transformers 5 has no question-answering pipeline any more: its place takes a direct reading of 4.57.6's definition
(every span is tried), and ``tests/test_tasks.py`` holds answers that 4.57.6 itself gave.
"""

from __future__ import annotations

import json
import warnings
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import d2v_ref
from conformance import oracle, test_tokenizer
from conformance.test_tokenizer import SENTENCES, train
from d2v_ref import synth
from d2v_ref.auto import model_class
from d2v_ref.processing import TextTokenizer
from d2v_ref.processing.tokenizer import byte_level_tokenizer
from d2v_ref.tasks import TASKS, pipeline
from d2v_ref.text import Data2VecTextConfig

TEXT = {task.name: task.model for task in TASKS if task.pipeline.modality == "text"}
DOUBLE, SINGLE = 1e-9, 1e-5
LABELS = {"0": "O", "1": "B-PER", "2": "I-PER", "3": "B-LOC", "4": "I-LOC", "5": "MISC"}
VOCAB = 420

texts = st.lists(
    st.one_of(test_tokenizer.texts.filter(lambda t: len(t) < 100), st.sampled_from(SENTENCES)), min_size=1, max_size=4
).map(" ".join)


def save(folder: Path, name: str, tokenizer: str, **values: Any) -> Path:
    """A tiny checkpoint with synthetic weights, those of its last layer larger, so that scores are not all alike."""
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 40}
    config = Data2VecTextConfig(
        vocab_size=VOCAB, max_position_embeddings=3002, type_vocab_size=1, **{**sizes, **values}
    )
    declared = model_class(name)(config)
    weights = synth.weights({key: value.shape for key, _, _, value in declared.named_parameters()}, 5)
    for target, source in declared.tied_weights.items():
        weights[target] = weights[source]
    for key in weights:
        if key.endswith(("classifier.weight", "out_proj.weight", "qa_outputs.weight", "lm_head.layer_norm.weight")):
            weights[key] = weights[key] * 8
    model_class(name)(config, weights, dtype="float64").save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 3000}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tasks")
    trained, byte_level = train(True).to_str(), byte_level_tokenizer(VOCAB)
    entities: dict[str, Any] = {"id2label": LABELS}
    return {
        "fill-mask": save(root / "mlm", "Data2VecTextForMaskedLM", trained),
        "fill-mask, bytes": save(root / "mlm-bytes", "Data2VecTextForMaskedLM", byte_level),
        "text-classification": save(root / "classes", "Data2VecTextForSequenceClassification", trained, num_labels=4),
        "one label": save(root / "one", "Data2VecTextForSequenceClassification", trained, num_labels=1),
        "regression": save(
            root / "number", "Data2VecTextForSequenceClassification", trained, num_labels=1, problem_type="regression"
        ),
        "several labels": save(
            root / "several",
            "Data2VecTextForSequenceClassification",
            byte_level,
            num_labels=3,
            problem_type="multi_label_classification",
        ),
        "token-classification": save(root / "entities", "Data2VecTextForTokenClassification", trained, **entities),
        "token-classification, bytes": save(
            root / "entities-bytes", "Data2VecTextForTokenClassification", byte_level, **entities
        ),
        "question-answering": save(root / "answers", "Data2VecTextForQuestionAnswering", trained),
        "multiple-choice": save(root / "choice", "Data2VecTextForMultipleChoice", trained),
        "text-generation": save(root / "decoder", "Data2VecTextForCausalLM", trained, is_decoder=True),
        "feature-extraction": save(root / "features", "Data2VecTextModel", trained),
    }


@cache
def both(folder: Path, task: str, dtype: str) -> tuple[Any, Any]:
    theirs = transformers.pipeline(task, model=str(folder), dtype=oracle.DTYPES[dtype], device="cpu")
    return pipeline(None, folder, dtype=dtype), theirs


def hold(got: Any, want: Any, bound: float, tally: Any) -> None:
    """The same structure, keys in the same order, equal words and numbers within the bound."""
    if isinstance(want, dict):
        assert list(got) == list(want)
        for key in want:
            hold(got[key], want[key], bound, tally)
    elif isinstance(want, list):
        assert isinstance(got, list)
        assert len(got) == len(want)
        for mine, theirs in zip(got, want, strict=True):
            hold(mine, theirs, bound, tally)
    elif isinstance(want, float | np.floating):
        assert type(got) is float
        tally.worst = max(tally.worst, abs(got - float(want)) / bound)
        assert abs(got - float(want)) <= bound
    else:
        assert type(got) is type(want)
        assert got == want


def clear(answers: Any, bound: float) -> bool:
    """Whether neighbouring scores differ by more than rounding, so that their order means something."""
    if isinstance(answers, list) and answers and isinstance(answers[0], dict):
        scores = [float(answer["score"]) for answer in answers]
        return all(abs(a - b) > 10 * bound for a, b in pairwise(scores))
    return not isinstance(answers, list) or all(clear(answer, bound) for answer in answers)


DTYPES = pytest.mark.parametrize(("dtype", "bound"), [("float64", DOUBLE), ("float32", SINGLE)])


@DTYPES
@pytest.mark.parametrize("name", ["fill-mask", "fill-mask, bytes"])
def test_fill_mask(name: str, dtype: str, bound: float, folders: dict[str, Path], tally: dict[str, Any]) -> None:
    ours, theirs = both(folders[name], "fill-mask", dtype)
    masked = st.lists(st.one_of(texts, st.sampled_from(["<mask>", " <mask>", "<mask> "])), min_size=1, max_size=5).map(
        "".join
    )

    @settings(max_examples=60)
    @given(
        batch=st.lists(masked.filter(lambda t: "<mask>" in t), min_size=1, max_size=3),
        top_k=st.integers(1, 8),
        alone=st.booleans(),
    )
    def check(batch: list[str], top_k: int, alone: bool) -> None:
        inputs: Any = batch[0] if alone else batch
        want = theirs(inputs, top_k=top_k)
        got = ours(inputs, top_k=top_k, batch_size=2)
        if clear(want, 1e-9 if dtype == "float64" else 1e-6):
            hold(got, want, bound, tally[f"fill-mask, {dtype}"])
            tally[f"fill-mask, {dtype}"].cases += 1

    check()


@DTYPES
@pytest.mark.parametrize("name", ["text-classification", "one label", "regression", "several labels"])
def test_text_classification(
    name: str, dtype: str, bound: float, folders: dict[str, Path], tally: dict[str, Any]
) -> None:
    """transformers rounds the logits to float32 before it turns them into scores, in float64 too."""
    ours, theirs = both(folders[name], "text-classification", dtype)
    pairs = st.builds(lambda first, second: {"text": first, "text_pair": second}, texts, texts)
    items = st.one_of(texts, pairs)

    @settings(max_examples=60)
    @given(
        inputs=st.one_of(items, st.lists(items, min_size=1, max_size=3)), top_k=st.sampled_from(["best", None, 1, 2, 9])
    )
    def check(inputs: Any, top_k: Any) -> None:
        options = {} if top_k == "best" else {"top_k": top_k}
        want = theirs(inputs, **options)
        if clear(want if options else [], 1e-6):
            hold(ours(inputs, batch_size=2, **options), want, max(bound, 1e-6), tally[f"text-classification, {dtype}"])
            tally[f"text-classification, {dtype}"].cases += 1

    check()


@DTYPES
@pytest.mark.parametrize("name", ["token-classification", "token-classification, bytes"])
def test_token_classification(
    name: str, dtype: str, bound: float, folders: dict[str, Path], tally: dict[str, Any]
) -> None:
    ours, theirs = both(folders[name], "token-classification", dtype)
    strategies = st.sampled_from(["none", "simple", "first", "average", "max"])

    @settings(max_examples=80)
    @given(
        inputs=st.one_of(texts, st.lists(texts, min_size=1, max_size=3)),
        strategy=strategies,
        ignore=st.sampled_from([None, [], ["PER", "O"], ["B-PER"]]),
    )
    def check(inputs: Any, strategy: str, ignore: list[str] | None) -> None:
        options = {} if ignore is None else {"ignore_labels": ignore}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that byte-level BPE does not know words
            want = theirs(inputs, aggregation_strategy=strategy, **options)
        got = ours(inputs, aggregation_strategy=strategy, batch_size=2, **options)
        if strategy in ("first", "average", "max"):
            got, want = without_garbled_words(got, want)
        hold(got, want, bound, tally[f"token-classification, {dtype}"])
        tally[f"token-classification, {dtype}"].cases += 1

    check()


def without_garbled_words(got: Any, want: Any) -> tuple[Any, Any]:
    """With these strategies transformers turns bytes into text twice, which spoils words that are not ASCII."""
    if got and isinstance(got[0], list):
        both = [without_garbled_words(mine, theirs) for mine, theirs in zip(got, want, strict=True)]
        return [mine for mine, _ in both], [theirs for _, theirs in both]
    assert [len(mine) for mine in got] == [len(theirs) for theirs in want]
    words = [mine["word"] if mine["word"].isascii() else theirs["word"] for mine, theirs in zip(got, want, strict=True)]
    return [{**mine, "word": word} for mine, word in zip(got, words, strict=True)], want


@DTYPES
def test_feature_extraction(dtype: str, bound: float, folders: dict[str, Path], tally: dict[str, Any]) -> None:
    ours, theirs = both(folders["feature-extraction"], "feature-extraction", dtype)

    @settings(max_examples=60)
    @given(batch=st.lists(texts, min_size=1, max_size=3))
    def check(batch: list[str]) -> None:
        for got, want in zip(ours(batch, batch_size=2), theirs(batch), strict=True):
            assert got.dtype == dtype
            hold(got.tolist(), want, bound, tally[f"feature-extraction, {dtype}"])
            tally[f"feature-extraction, {dtype}"].cases += 1

    check()


@settings(max_examples=60)
@given(prompt=texts, choices=st.lists(texts, min_size=1, max_size=4))
def test_multiple_choice(folders: dict[str, Path], tally: dict[str, Any], prompt: str, choices: list[str]) -> None:
    ours, tokenizer, model = pieces(folders["multiple-choice"])
    encoded = tokenizer([prompt] * len(choices), choices, padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = model(**{key: value[None] for key, value in encoded.items()}).logits[0].softmax(-1).tolist()
    got = ours(prompt=prompt, choices=choices, batch_size=3)
    assert sorted(answer["index"] for answer in got) == list(range(len(choices)))
    assert [answer["choice"] for answer in got] == [choices[answer["index"]] for answer in got]
    hold(
        [answer["score"] for answer in got],
        [scores[answer["index"]] for answer in got],
        DOUBLE,
        tally["multiple-choice"],
    )
    assert all(a["score"] >= b["score"] for a, b in pairwise(got))
    tally["multiple-choice"].cases += 1


@cache
def pieces(folder: Path) -> tuple[Any, Any, Any]:
    """Our pipeline, and transformers' tokenizer and model, in float64."""
    ours = pipeline(None, folder, dtype="float64")
    model = getattr(transformers, TEXT[ours.task]).from_pretrained(folder, dtype=torch.float64)
    return ours, transformers.AutoTokenizer.from_pretrained(folder), model


@settings(max_examples=100)
@given(
    question=test_tokenizer.texts.filter(lambda t: len(t) < 60),
    context=st.lists(texts, min_size=1, max_size=12).map(" ".join),
    top_k=st.integers(1, 4),
    longest=st.integers(1, 20),
    stride=st.sampled_from([None, 0, 40]),
)
def test_question_answering(
    folders: dict[str, Path],
    tally: dict[str, Any],
    question: str,
    context: str,
    top_k: int,
    longest: int,
    stride: int | None,
) -> None:
    ours, tokenizer, model = pieces(folders["question-answering"])
    if len(tokenizer(question)["input_ids"]) > 200:
        return
    want = answers_by_trying_all(tokenizer, model, question, context, top_k, longest, 128 if stride is None else stride)
    got = ours(question=question, context=context, top_k=top_k, max_answer_len=longest, doc_stride=stride, batch_size=2)
    if clear(want, DOUBLE):
        hold(got if isinstance(got, list) else [got], want[:top_k], DOUBLE, tally["question-answering"])
        tally["question-answering"].cases += 1


def answers_by_trying_all(
    tokenizer: Any, model: Any, question: str, context: str, top_k: int, longest: int, stride: int
) -> list[dict[str, Any]]:
    """What QuestionAnsweringPipeline of 4.57.6 defines, with transformers' own words and windows."""
    limits: dict[str, Any] = {
        "truncation": "only_second",
        "max_length": 384,
        "stride": stride,
        "return_overflowing_tokens": True,
    }
    encoded = tokenizer(question, context, **limits)
    found: list[dict[str, Any]] = []
    for row, ids in enumerate(encoded["input_ids"]):
        with torch.no_grad():
            out = model(torch.tensor([ids]))
        in_context = [index == 1 for index in encoded.sequence_ids(row)]
        counted = torch.tensor(
            [inside or index == tokenizer.cls_token_id for inside, index in zip(in_context, ids, strict=True)]
        )
        first, last = (
            scores[0].masked_fill(~counted, -10000.0).softmax(-1).tolist()
            for scores in (out.start_logits, out.end_logits)
        )
        spans = [
            (first[s] * last[e], s, e)
            for s in range(len(ids))
            for e in range(s, min(s + longest, len(ids)))
            if in_context[s] and in_context[e]
        ]
        for score, s, e in sorted(spans, reverse=True)[: 2 * top_k + 10]:
            start = encoded.word_to_chars(row, encoded.token_to_word(row, s), 1).start
            end = encoded.word_to_chars(row, encoded.token_to_word(row, e), 1).end
            same = [answer for answer in found if answer["answer"].lower() == context[start:end].lower()]
            if same:
                same[0]["score"] += score
            else:
                found.append({"score": score, "start": start, "end": end, "answer": context[start:end]})
    return sorted(found, key=lambda answer: -answer["score"])


@settings(max_examples=25)
@given(
    batch=st.lists(test_tokenizer.texts.filter(lambda t: len(t) < 60), min_size=1, max_size=3), count=st.integers(1, 6)
)
def test_text_generation(folders: dict[str, Path], tally: dict[str, Any], batch: list[str], count: int) -> None:
    """The tokens that transformers' own forward pass finds likeliest, one by one, decoded by its own tokenizer.

    Not its ``generate``: that hands the model positions which its forward pass would not choose (see
    ``d2v_ref.generation``).
    """
    ours, tokenizer, model = pieces(folders["text-generation"])
    want = []
    for prompt in batch:
        ids = tokenizer(prompt)["input_ids"]
        start = len(ids)
        while len(ids) < start + count and (len(ids) == start or ids[-1] != model.config.eos_token_id):
            # A pad token in a prompt is a token to generate, and has a position.
            positions = torch.arange(len(ids))[None] + model.config.pad_token_id + 1
            with torch.no_grad():
                ids = [*ids, int(model(torch.tensor([ids]), position_ids=positions).logits[0, -1].argmax())]
        want.append([{"generated_text": prompt + tokenizer.decode(ids[start:], skip_special_tokens=True)}])
    hold(ours(batch, max_new_tokens=count, batch_size=2), want, DOUBLE, tally["text-generation"])
    tally["text-generation"].cases += len(batch)


def test_text_generation_reads_the_prompt_as_transformers_does(folders: dict[str, Path]) -> None:
    theirs = transformers.pipeline("text-generation", model=str(folders["text-generation"]))
    tokenizer = TextTokenizer.from_pretrained(folders["text-generation"])
    assert theirs.preprocess("the dog")["input_ids"].tolist() == tokenizer("the dog").input_ids.tolist()
    got = theirs("the dog", max_new_tokens=3, do_sample=False)
    assert list(got[0]) == ["generated_text"]
    assert got[0]["generated_text"].startswith("the dog")


def test_a_task_without_a_name_is_the_checkpoints(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        if name in TEXT:
            assert pipeline(None, folder).task == name
    assert isinstance(d2v_ref.pipeline(None, folders["fill-mask"]).model, d2v_ref.Data2VecTextForMaskedLM)
