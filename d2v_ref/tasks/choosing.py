"""Which pipeline and which model class a task and a checkpoint ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2v_ref.auto import architecture, model_class
from d2v_ref.checkpoints import open_checkpoint, resolve
from d2v_ref.errors import InputError
from d2v_ref.pretrained import PreTrainedModel
from d2v_ref.processing.tokenizer import TextTokenizer
from d2v_ref.tasks.base import TextPipeline
from d2v_ref.tasks.feature_extraction import FeatureExtraction
from d2v_ref.tasks.fill_mask import FillMask
from d2v_ref.tasks.multiple_choice import MultipleChoice
from d2v_ref.tasks.question_answering import QuestionAnswering
from d2v_ref.tasks.text_classification import TextClassification
from d2v_ref.tasks.text_generation import TextGeneration
from d2v_ref.tasks.token_classification import TokenClassification

# Task -> its pipeline and the class of model that it takes.
TASKS: dict[str, tuple[type[TextPipeline], str]] = {
    "fill-mask": (FillMask, "Data2VecTextForMaskedLM"),
    "text-classification": (TextClassification, "Data2VecTextForSequenceClassification"),
    "token-classification": (TokenClassification, "Data2VecTextForTokenClassification"),
    "question-answering": (QuestionAnswering, "Data2VecTextForQuestionAnswering"),
    "multiple-choice": (MultipleChoice, "Data2VecTextForMultipleChoice"),
    "text-generation": (TextGeneration, "Data2VecTextForCausalLM"),
    "feature-extraction": (FeatureExtraction, "Data2VecTextModel"),
}
_HUB = ("revision", "cache_dir", "local_files_only", "token")


def infer_task(model_class_name: str) -> str:
    """The task of a model's class: "Data2VecTextForMaskedLM" -> "fill-mask"."""
    for task, (_, name) in TASKS.items():
        if name == model_class_name:
            return task
    expected = " or ".join(name for _, name in TASKS.values())
    raise InputError("no task is known for this class of model", got=model_class_name, expected=expected)


def pipeline(
    task: str | None,
    model: PreTrainedModel | str | Path,
    tokenizer: TextTokenizer | str | Path | None = None,
    **load_options: Any,
) -> Any:
    """A callable that does a task (HF ``transformers.pipeline``).

    Args:
        task: one of ``TASKS``; None for the task of the model, or of the class that the checkpoint names.
        model: a model, or where to load one from: a folder or a hub id.
        tokenizer: a tokenizer, or where to load one from; the model's checkpoint if None.
        load_options: as in ``PreTrainedModel.from_pretrained``, for a model that is loaded.

    Raises:
        InputError: an unknown task, one that does not fit the model, or a model without a tokenizer.
        ConfigError, CheckpointError, UnavailableError: as in ``from_pretrained``; text-generation with a model that is
            no decoder.
    """
    if task is not None and task not in TASKS:
        raise InputError("unknown task", got=task, expected=" or ".join(TASKS))
    hub = {name: load_options[name] for name in _HUB if name in load_options}
    if isinstance(model, PreTrainedModel):
        if load_options:
            raise InputError("load options were given for a model that is loaded already", got=", ".join(load_options))
        if tokenizer is None:
            expected = "tokenizer=, a TextTokenizer or a checkpoint"
            raise InputError("a model that is loaded already needs a tokenizer", expected=expected)
        task = _fitting(task, model)
    else:
        tokenizer = model if tokenizer is None else tokenizer
        task = task or _task_of_checkpoint(model, hub)
        model = model_class(TASKS[task][1]).from_pretrained(model, **load_options)
    if not isinstance(tokenizer, TextTokenizer):
        tokenizer = TextTokenizer.from_pretrained(tokenizer, **hub)
    return TASKS[task][0](model, tokenizer)


def _fitting(task: str | None, model: PreTrainedModel) -> str:
    """The task, if this model does it."""
    names = {base.__name__ for base in type(model).__mro__}
    fitting = [known for known, (_, name) in TASKS.items() if name in names] or [infer_task(type(model).__name__)]
    if task is not None and task not in fitting:
        message = f"a {type(model).__name__} does not do this task"
        hint = f"Load the checkpoint as {TASKS[task][1]}, or give its path in the place of the model"
        raise InputError(message, got=task, expected=" or ".join(fitting), hint=hint)
    return fitting[0]


def _task_of_checkpoint(name_or_path: str | Path, hub: dict[str, Any]) -> str:
    """The task of the class that config.json names.

    The published facebook/data2vec-text-base names the bare model, though its weights have a language model's head: a
    checkpoint like this is for fill-mask.
    """
    folder = resolve(name_or_path, **hub)
    task = infer_task(architecture(folder))
    if task == "feature-extraction" and any(name.startswith("lm_head.") for name in open_checkpoint(folder)):
        return "fill-mask"
    return task
