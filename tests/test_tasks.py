"""Pipelines: which one a checkpoint gets, what they return, and that batching changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from d2v_ref import synth
from d2v_ref.auto import model_class
from d2v_ref.errors import CheckpointError, ConfigError, InputError
from d2v_ref.processing import TextTokenizer
from d2v_ref.processing.tokenizer import byte_level_tokenizer
from d2v_ref.tasks import TASKS, infer_task, pipeline
from d2v_ref.text import Data2VecTextConfig

TEXT = {task.name: task.model for task in TASKS if task.pipeline.modality == "text"}
VOCAB = 420
ENTITIES = {"0": "O", "1": "B-PER", "2": "I-PER", "3": "B-LOC", "4": "I-LOC", "5": "MISC"}
TEXTS = ["a", "The dog saw it.", "naïve café 🙂", "  two  spaces\n", "</s><pad>?", "x" * 40]


def save(folder: Path, task: str, changes: dict[str, float] | None = None, **values: Any) -> Path:
    """A tiny checkpoint of a task's class with synthetic weights; ``changes`` are factors of some of them."""
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 40}
    given = {**sizes, "vocab_size": VOCAB, "max_position_embeddings": 402, "type_vocab_size": 1, **values}
    build, config = model_class(TEXT[task]), Data2VecTextConfig(**given)
    weights = synth.weights({name: value.shape for name, _, _, value in build(config).named_parameters()}, 5)
    for target, source in build.tied_weights.items():
        weights[target] = weights[source]
    for name, factor in (changes or {}).items():
        weights[name] = weights[name] * np.float32(factor)
    build(config, weights).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(byte_level_tokenizer(VOCAB), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    settings: dict[str, dict[str, Any]] = {
        "text-classification": {"num_labels": 3},
        "token-classification": {"id2label": ENTITIES},
        "text-generation": {"is_decoder": True},
    }
    return {task: save(root / task, task, **settings.get(task, {})) for task in TEXT}


INPUTS: dict[str, list[Any]] = {
    "fill-mask": [f"{text} <mask>" for text in TEXTS] + ["<mask> and<mask>"],
    "text-classification": [*TEXTS, {"text": "one", "text_pair": "two"}],
    "token-classification": TEXTS,
    "question-answering": [{"question": "who?", "context": text * 10} for text in TEXTS],
    "multiple-choice": [{"prompt": text, "choices": TEXTS[: i + 1]} for i, text in enumerate(TEXTS)],
    "text-generation": TEXTS,
    "feature-extraction": TEXTS,
}


def close(got: Any, want: Any) -> bool:
    """Equal but for rounding."""
    if isinstance(want, dict):
        return list(got) == list(want) and all(close(got[key], want[key]) for key in want)
    if isinstance(want, list):
        return isinstance(got, list) and len(got) == len(want) and all(map(close, got, want))
    if isinstance(want, float | np.ndarray):
        return (
            type(got) is type(want) and np.shape(got) == np.shape(want) and np.allclose(got, want, rtol=0, atol=1e-10)
        )
    return got == want


@pytest.mark.parametrize("task", TEXT)
def test_batching_changes_nothing(task: str, folders: dict[str, Path]) -> None:
    pipe = pipeline(task, folders[task], dtype="float64")
    inputs, done = INPUTS[task], list[int]()
    alone = [pipe(item) for item in inputs]
    if task == "text-classification":  # a text alone is in a list, a pair is not
        alone = [found[0] if isinstance(found, list) else found for found in alone]
    for size in (1, 3, 100):
        assert close(pipe(inputs, batch_size=size, progress=done.append), alone)
    assert done == [1] * 3 * len(inputs)
    assert pipe([]) == []


@pytest.mark.parametrize("task", TEXT)
def test_rows_of_similar_length_go_together(task: str, folders: dict[str, Path]) -> None:
    pipe = pipeline(task, folders[task])
    lengths: list[tuple[int, ...]] = []
    original = pipe.logits

    def watch(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        lengths.append(tuple(mask.sum(1).tolist()))
        return original(ids, mask)

    pipe.logits = watch
    pipe(INPUTS[task], batch_size=2)
    flat = [length for batch in lengths for length in batch]
    assert flat == sorted(flat)
    assert all(len(batch) == 2 for batch in lengths[:-1])


# ---- which pipeline --------------------------------------------------------------------------------------------------


def test_infer_task() -> None:
    assert infer_task("Data2VecTextForMaskedLM") == "fill-mask"
    assert infer_task("Data2VecTextModel") == "feature-extraction"
    assert infer_task("Data2VecAudioForXVector") == "speaker-embedding"
    with pytest.raises(InputError, match="no task is known"):
        infer_task("Data2VecAudioForEverything")


@pytest.mark.parametrize("task", TEXT)
def test_a_checkpoint_says_what_it_is_for(task: str, folders: dict[str, Path]) -> None:
    pipe = pipeline(None, folders[task])
    assert pipe.task == task
    assert type(pipe.model).__name__ == TEXT[task]
    assert pipeline(None, pipe.model, pipe.tokenizer).task == task
    assert pipeline(task, pipe.model, str(folders[task])).task == task


def test_a_language_model_that_calls_itself_a_bare_model(folders: dict[str, Path], tmp_path: Path) -> None:
    """As the published facebook/data2vec-text-base."""
    folder = save(tmp_path, "fill-mask")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["Data2VecTextModel"]}))
    assert pipeline(None, folder).task == "fill-mask"
    assert pipeline("feature-extraction", folder).task == "feature-extraction"


def test_a_task_that_does_not_fit(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"unknown task.*got translation.*fill-mask or text-classification"):
        pipeline("translation", folders["fill-mask"])
    pipe = pipeline("fill-mask", folders["fill-mask"])
    with pytest.raises(
        InputError, match=r"Data2VecTextForMaskedLM does not do this task \(got text-generation; expected fill-mask\)"
    ):
        pipeline("text-generation", pipe.model, pipe.tokenizer)
    with pytest.raises(InputError, match="needs a tokenizer"):
        pipeline("fill-mask", pipe.model)
    with pytest.raises(InputError, match=r"loaded already.*got dtype"):
        pipeline("fill-mask", pipe.model, pipe.tokenizer, dtype="float64")
    with pytest.raises(CheckpointError, match="weights are missing"):
        pipeline("token-classification", folders["fill-mask"])


def test_a_subclass_does_what_its_class_does(folders: dict[str, Path]) -> None:
    pipe = pipeline("fill-mask", folders["fill-mask"])
    pipe.model.__class__ = type("Mine", (type(pipe.model),), {})
    assert pipeline(None, pipe.model, pipe.tokenizer).task == "fill-mask"


def test_text_generation_needs_a_decoder(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = save(tmp_path, "text-generation")
    with pytest.raises(ConfigError, match=r"needs a decoder.*is_decoder=True"):
        pipeline("text-generation", folder)
    assert pipeline("text-generation", folder, is_decoder=True)("a", max_new_tokens=1)


def test_a_tokenizer_of_another_model(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_level_tokenizer(VOCAB + 1), encoding="utf-8")
    with pytest.raises(InputError, match=r"tokenizer does not fit the model.*421 tokens.*420"):
        pipeline("fill-mask", folders["fill-mask"], tmp_path)


# ---- what they return ------------------------------------------------------------------------------------------------


def test_fill_mask(folders: dict[str, Path]) -> None:
    pipe = pipeline("fill-mask", folders["fill-mask"])
    answers = pipe("the <mask> dog", top_k=VOCAB)
    assert list(answers[0]) == ["score", "token", "token_str", "sequence"]
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-5)
    assert [a["score"] for a in answers] == sorted((a["score"] for a in answers), reverse=True)
    letter = next(answer for answer in answers if answer["token_str"] in ("Q",))
    assert letter["sequence"] == "theQ dog"
    assert len(pipe("<mask>")) == 5
    several = pipe("<mask> is <mask>", top_k=2)
    assert [len(answers) for answers in several] == [2, 2]
    assert several[0][0]["sequence"].endswith(" is<mask></s>")
    assert close(pipe(["the <mask> dog"]), answers[:5])  # HF's oddity: a list of one is that one
    with pytest.raises(InputError, match=r"the text has no <mask> \(got 'nothing'"):
        pipe("nothing")
    with pytest.raises(InputError, match="input 1: the text has no"):
        pipe(["<mask>", "nothing"])
    with pytest.raises(InputError, match="first 400 tokens of the text have no <mask>"):
        pipe("a " * 500 + "<mask>", truncation=True)
    with pytest.raises(InputError, match="top_k is larger"):
        pipe("<mask>", top_k=VOCAB + 1)
    pipe.tokenizer = TextTokenizer(pipe.tokenizer.backend, {"pad_token": "<pad>"})
    with pytest.raises(InputError, match="the tokenizer has none"):
        pipe("<mask>")


def test_text_classification(folders: dict[str, Path]) -> None:
    pipe = pipeline("text-classification", folders["text-classification"])
    ranked = pipe("a", top_k=None)
    assert {answer["label"] for answer in ranked} == {"LABEL_0", "LABEL_1", "LABEL_2"}
    assert sum(answer["score"] for answer in ranked) == pytest.approx(1, abs=1e-6)
    assert pipe("a") == ranked[:1]
    assert pipe(["a"]) == ranked[:1]
    assert pipe("a", top_k=2) == ranked[:2]
    assert pipe(["a"], top_k=1) == [ranked[:1]]
    assert list(pipe({"text": "a", "text_pair": "b"})) == ["label", "score"]
    assert pipe({"text": "a"}) == ranked[0]
    with pytest.raises(InputError, match="the pair has other parts"):
        pipe({"text": "a", "second": "b"})
    for wrong in (0, True, "all"):
        with pytest.raises(InputError, match="top_k is no number"):
            pipe("a", top_k=wrong)


@pytest.mark.parametrize(
    ("labels", "problem", "scores"),
    [
        (2, None, [0.5, 0.5]),
        (1, None, [0.5]),
        (1, "regression", [0.0]),
        (2, "regression", [0.0, 0.0]),
        (2, "multi_label_classification", [0.5, 0.5]),
        (2, "single_label_classification", [0.5, 0.5]),
    ],
)
def test_what_logits_become(labels: int, problem: str | None, scores: list[float], tmp_path: Path) -> None:
    off = {"classifier.out_proj.weight": 0.0, "classifier.out_proj.bias": 0.0}
    folder = save(tmp_path, "text-classification", off, num_labels=labels, problem_type=problem)
    assert [answer["score"] for answer in pipeline(None, folder)("a", top_k=None)] == scores


def labelled(pipe: Any, labels: list[int]) -> Any:
    """A pipeline whose model gives the tokens of a text these labels, each with a probability of 0.9."""

    def logits(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        p = np.full((*ids.shape, len(ENTITIES)), 0.02)
        p[0, np.arange(1, len(labels) + 1), labels] = 0.9
        return np.log(p)

    pipe.logits = logits
    return pipe


def test_token_classification(folders: dict[str, Path]) -> None:
    pipe = labelled(pipeline("token-classification", folders["token-classification"]), [1, 2, 0, 0, 1, 4])
    assert pipe.tokenizer("ab cde").input_ids.shape == (1, 8)
    tokens = pipe("ab cde")
    assert [token["entity"] for token in tokens] == ["B-PER", "I-PER", "B-PER", "I-LOC"]
    assert tokens[1] == {"entity": "I-PER", "score": pytest.approx(0.9), "index": 2, "word": "b", "start": 1, "end": 2}
    assert [token["entity"] for token in pipe("ab cde", ignore_labels=[])] == [
        "B-PER",
        "I-PER",
        "O",
        "O",
        "B-PER",
        "I-LOC",
    ]
    groups = pipe("ab cde", aggregation_strategy="simple")
    assert [(g["entity_group"], g["word"], g["start"], g["end"]) for g in groups] == [
        *(("PER", "ab", 0, 2), ("PER", "d", 4, 5), ("LOC", "e", 5, 6))
    ]
    assert groups[0]["score"] == pytest.approx(0.9)
    assert pipe("ab cde", aggregation_strategy="simple", ignore_labels=["PER", "O"]) == groups[2:]


WHOLE, SPLIT = [("PER", "ab"), ("O", " cde")], [("PER", "ab"), ("O", " "), ("LOC", "cde")]


@pytest.mark.parametrize(
    ("strategy", "want"), [("first", WHOLE), ("max", WHOLE), ("average", SPLIT), ("simple", SPLIT)]
)
def test_words_have_one_label(strategy: str, want: list[tuple[str, str]], folders: dict[str, Path]) -> None:
    """Tokens a b Ġ c d e, of which HF takes the space for a word of its own."""
    labels = [1, 2, 0, 0, 4, 4] if strategy != "simple" else [1, 2, 0, 4, 4, 4]
    pipe = labelled(pipeline("token-classification", folders["token-classification"]), labels)
    found = pipe("ab cde", aggregation_strategy=strategy, ignore_labels=[])
    assert [(entity["entity_group"], entity["word"]) for entity in found] == want
    with pytest.raises(InputError, match=r"unknown aggregation_strategy.*none or simple"):
        pipe("a", aggregation_strategy="best")


CONTEXT = (
    "In 1492 they sailed the ocean blue. Peter's café sold naïve pepper 🙂, "
    "and the people's newspapers were read again and again."
)


def test_question_answering_as_transformers_4(tmp_path: Path) -> None:
    """Windows of 90 tokens.  The answers are those that transformers 4.57.6 gave for the same folder, in float32."""
    folder = save(tmp_path, "question-answering", {"qa_outputs.weight": 8})
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 90, "tokenizer_class": "RobertaTokenizer"}')
    pipe = pipeline(None, folder)
    question = {"question": "où?", "context": CONTEXT}
    dog = {"score": 0.6377278648142237, "start": 6, "end": 9, "answer": "dog"}
    best = [
        {"score": 0.3580560452537611, "start": 87, "end": 97, "answer": "newspapers"},
        {"score": 0.17429673345031915, "start": 87, "end": 102, "answer": "newspapers were"},
        {"score": 0.09326952209812589, "start": 49, "end": 66, "answer": "sold naïve pepper"},
    ]
    short = [
        {"score": 0.041745834052562714, "start": 78, "end": 84, "answer": "people"},
        {"score": 0.00723018678399967, "start": 108, "end": 113, "answer": "again"},
    ]

    def same(got: Any, want: Any) -> bool:
        if isinstance(want, list):
            return len(got) == len(want) and all(map(same, got, want))
        return {**got, "score": 0} == {**want, "score": 0} and got["score"] == pytest.approx(want["score"], abs=2e-5)

    assert same(pipe(question), best[0])
    assert same(pipe(**question, top_k=3), best)
    assert same(pipe([question], top_k=2, max_answer_len=3, doc_stride=5), short)
    assert same(pipe([{"question": "when?", "context": "the   dog\n1969"}, question]), [dog, best[0]])


def test_question_answering_inputs(folders: dict[str, Path]) -> None:
    pipe = pipeline("question-answering", folders["question-answering"])
    assert list(pipe(question="who?", context="me")) == ["score", "start", "end", "answer"]
    for arguments, message in (
        (({"question": "who?"},), "the input has other parts.*got question; expected question and context"),
        (("who?",), "no dictionary.*got str"),
        ((), "give the input"),
    ):
        with pytest.raises(InputError, match=message):
            pipe(*arguments)
    with pytest.raises(InputError, match="give the input in one of its forms"):
        pipe({"question": "who?", "context": "me"}, question="who?")
    with pytest.raises(InputError, match="leaves too little room"):
        pipe(question="who? " * 100, context="me")
    with pytest.raises(InputError, match="the pair is empty"):
        pipe(question="who?", context=" ")
    for name in ("top_k", "max_answer_len"):
        with pytest.raises(InputError, match=name):
            pipe(question="who?", context="me", **{name: 0})
    with pytest.raises(InputError, match="doc_stride"):
        pipe(question="who?", context="me", doc_stride=-1)


def test_multiple_choice(folders: dict[str, Path]) -> None:
    pipe = pipeline("multiple-choice", folders["multiple-choice"])
    answers = pipe(prompt="It rains.", choices=["Take an umbrella.", "Swim.", "!"])
    assert list(answers[0]) == ["choice", "index", "score"]
    assert sum(answer["score"] for answer in answers) == pytest.approx(1, abs=1e-6)
    assert [answer["score"] for answer in answers] == sorted((answer["score"] for answer in answers), reverse=True)
    assert {(answer["index"], answer["choice"]) for answer in answers} == {
        (0, "Take an umbrella."),
        (1, "Swim."),
        (2, "!"),
    }
    with pytest.raises(InputError, match="choices is no list"):
        pipe(prompt="It rains.", choices=[])
    with pytest.raises(InputError, match=r"pair 1 is empty"):
        pipe(prompt="It rains.", choices=["a", ""])


def test_text_generation(folders: dict[str, Path]) -> None:
    pipe = pipeline("text-generation", folders["text-generation"])
    (answer,) = pipe("ab", max_new_tokens=3)
    ids = pipe.model.generate(pipe.tokenizer("ab").input_ids, max_new_tokens=3)
    assert answer == {"generated_text": "ab" + pipe.tokenizer.decode(ids[0, 4:])}
    assert len(pipe(["ab", "c"], max_new_tokens=3, num_beams=3, num_return_sequences=2)[1]) == 2
    drawn = [pipe(["ab", "cde"], max_new_tokens=5, do_sample=True, seed=4, batch_size=size) for size in (1, 2)]
    assert drawn[0] == drawn[1]
    with pytest.raises(InputError, match=r"no such setting.*got max_length; expected max_new_tokens or"):
        pipe("ab", max_length=3)
    with pytest.raises(InputError, match="max_new_tokens does not fit"):
        pipe("a" * 390, max_new_tokens=20)
    (answer,) = pipe("a" * 390, max_new_tokens=20, truncation=True)
    assert answer["generated_text"].startswith("a" * 390)


def test_text_generation_needs_room(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"leaves no room for a prompt.*at most 397"):
        pipeline("text-generation", folders["text-generation"])("a", max_new_tokens=398, truncation=True)


def test_feature_extraction(folders: dict[str, Path]) -> None:
    pipe = pipeline("feature-extraction", folders["feature-extraction"])
    states = pipe("abc")
    assert states.shape == (1, 5, 24)
    assert np.array_equal(pipe("abc", pooling="first"), states[:, 0])
    assert np.allclose(pipe("abc", pooling="mean"), states.mean(1))
    assert [found.shape for found in pipe(["abc", "a"], batch_size=2)] == [(1, 5, 24), (1, 3, 24)]
    with pytest.raises(InputError, match="unknown pooling"):
        pipe("abc", pooling="max")


# ---- what can go wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task", ["text-classification", "token-classification", "text-generation", "feature-extraction"]
)
def test_long_and_empty_texts(task: str, folders: dict[str, Path]) -> None:
    pipe = pipeline(task, folders[task])
    with pytest.raises(InputError, match=r"the text is too long \(got 502 tokens; expected at most 400\)"):
        pipe("x" * 500)
    assert (
        len(pipe(["x" * 500, "y"], truncation=True, **({"max_new_tokens": 2} if task == "text-generation" else {})))
        == 2
    )
    with pytest.raises(InputError, match=r"^the text is empty"):
        pipe("")
    with pytest.raises(InputError, match=r"^input 2: the text is empty"):
        pipe(["a", "b", " "])
    with pytest.raises(InputError, match="batch_size"):
        pipe("a", batch_size=0)


def test_the_tokenizers_own_limit_counts(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = save(tmp_path, "feature-extraction")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 7}')
    assert pipeline(None, folder)("x" * 20, truncation=True).shape == (1, 7, 24)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert pipeline(None, folder).max_length == 400


@pytest.mark.parametrize("task", TEXT)
def test_numbers_that_are_not_finite(task: str, folders: dict[str, Path]) -> None:
    pipe = pipeline(task, folders[task])
    body = getattr(pipe.model, "data2vec_text", pipe.model)
    layer = body.encoder.layer[1].attention.self.value
    layer.weight = layer.weight.copy()
    layer.weight[0, 0] = np.nan
    name = f"{body.path}.encoder.layer.1.attention.self.value".removeprefix(".")
    with pytest.raises(
        CheckpointError, match=rf"output is not finite.*first from {name}[;)].*weight {name}\.weight is not"
    ):
        pipe(INPUTS[task][0])
    layer.weight[0, 0] = np.finfo(np.float32).max
    layer.weight[0, 1] = np.finfo(np.float32).max
    layer.weight[1] = np.finfo(np.float32).max
    with pytest.raises(CheckpointError, match=rf"first from {name}.*All weights are finite: try dtype='float64'"):
        pipe(INPUTS[task][0])


def test_a_head_that_is_not_finite(folders: dict[str, Path]) -> None:
    pipe = pipeline("text-classification", folders["text-classification"])
    head = pipe.model.classifier.out_proj
    head.bias = np.full_like(head.bias, np.inf)
    with pytest.raises(CheckpointError, match=r"first from classifier\.out_proj.*weight classifier\.out_proj\.bias"):
        pipe("a")
