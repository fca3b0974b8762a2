"""Which pipeline and which model class a task and a checkpoint ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from d2v_ref.auto import MODELS, architecture, model_class
from d2v_ref.checkpoints import open_checkpoint, resolve
from d2v_ref.config import CONFIG_NAME, read_config_json
from d2v_ref.errors import InputError
from d2v_ref.pretrained import PreTrainedModel
from d2v_ref.tasks.audio_classification import AudioClassification
from d2v_ref.tasks.audio_frame_classification import AudioFrameClassification
from d2v_ref.tasks.base import Pipeline
from d2v_ref.tasks.feature_extraction import AudioFeatureExtraction, ImageFeatureExtraction, TextFeatureExtraction
from d2v_ref.tasks.fill_mask import FillMask
from d2v_ref.tasks.image_classification import ImageClassification
from d2v_ref.tasks.image_segmentation import ImageSegmentation
from d2v_ref.tasks.multiple_choice import MultipleChoice
from d2v_ref.tasks.question_answering import QuestionAnswering
from d2v_ref.tasks.speaker import SpeakerEmbedding, SpeakerVerification
from d2v_ref.tasks.speech_recognition import AutomaticSpeechRecognition
from d2v_ref.tasks.text_classification import TextClassification
from d2v_ref.tasks.text_generation import TextGeneration
from d2v_ref.tasks.token_classification import TokenClassification


class Task(NamedTuple):
    """A task, a class of model that does it, and the pipeline for the two."""

    name: str
    model: str
    pipeline: type[Pipeline]


# A name may stand for several classes of model; the first task of a class is the one that is meant without a name.
TASKS = (
    Task("fill-mask", "Data2VecTextForMaskedLM", FillMask),
    Task("text-classification", "Data2VecTextForSequenceClassification", TextClassification),
    Task("token-classification", "Data2VecTextForTokenClassification", TokenClassification),
    Task("question-answering", "Data2VecTextForQuestionAnswering", QuestionAnswering),
    Task("multiple-choice", "Data2VecTextForMultipleChoice", MultipleChoice),
    Task("text-generation", "Data2VecTextForCausalLM", TextGeneration),
    Task("feature-extraction", "Data2VecTextModel", TextFeatureExtraction),
    Task("automatic-speech-recognition", "Data2VecAudioForCTC", AutomaticSpeechRecognition),
    Task("audio-classification", "Data2VecAudioForSequenceClassification", AudioClassification),
    Task("audio-frame-classification", "Data2VecAudioForAudioFrameClassification", AudioFrameClassification),
    Task("speaker-embedding", "Data2VecAudioForXVector", SpeakerEmbedding),
    Task("speaker-verification", "Data2VecAudioForXVector", SpeakerVerification),
    Task("feature-extraction", "Data2VecAudioModel", AudioFeatureExtraction),
    Task("image-classification", "Data2VecVisionForImageClassification", ImageClassification),
    Task("image-segmentation", "Data2VecVisionForSemanticSegmentation", ImageSegmentation),
    Task("image-feature-extraction", "Data2VecVisionModel", ImageFeatureExtraction),  # transformers' name
    Task("feature-extraction", "Data2VecVisionModel", ImageFeatureExtraction),
)
_HUB = ("revision", "cache_dir", "local_files_only", "token")


def infer_task(model_class_name: str) -> str:
    """The task of a model's class: "Data2VecTextForMaskedLM" -> "fill-mask"."""
    known = model_class_name in MODELS
    return _tasks_of(*(_names(model_class(model_class_name)) if known else [model_class_name]))[0].name


def _tasks_of(*classes: str) -> list[Task]:
    """All tasks of any of these classes."""
    found = [task for task in TASKS if task.model in classes]
    if not found:
        expected = _either(task.model for task in TASKS)
        raise InputError("no task is known for this class of model", got=classes[0], expected=expected)
    return found


def pipeline(
    task: str | None,
    model: PreTrainedModel | str | Path,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    image_processor: Any = None,
    **load_options: Any,
) -> Any:
    """A callable that does a task (HF ``transformers.pipeline``).

    Args:
        task: the name of one of ``TASKS``; None for the task of the model, or of the class that the checkpoint names.
        model: a model, or where to load one from: a folder, a hub id, or a shipped one's name (``d2v_ref.models``).
        tokenizer: a tokenizer, or where to load one from; the model's checkpoint if None.
        feature_extractor: the same for the feature extractor of an audio model; of these only speech recognition has a
            tokenizer too.
        image_processor: the same for the image processor of a vision model.
        load_options: as in ``PreTrainedModel.from_pretrained``, for a model that is loaded.

    Raises:
        InputError: an unknown task, one that does not fit the model, a model that is loaded already without the
            tokenizer, feature extractor or image processor that it needs, or one where the task has no use for it.
        ConfigError, CheckpointError, UnavailableError: as in ``from_pretrained``; text-generation with a model that is
            no decoder, classes wanted of one that has none.
    """
    if task is not None and task not in {known.name for known in TASKS}:
        raise InputError("unknown task", got=task, expected=_either(known.name for known in TASKS))
    hub = {name: load_options[name] for name in _HUB if name in load_options}
    given = {"tokenizer": tokenizer, "feature_extractor": feature_extractor, "image_processor": image_processor}
    if isinstance(model, PreTrainedModel):
        if load_options:
            raise InputError("load options were given for a model that is loaded already", got=", ".join(load_options))
        chosen = _of_model(task, model)
        for name, kind in chosen.pipeline.parts.items():
            if given[name] is None:
                expected = f"{name}=, a {kind.__name__} or a checkpoint"
                raise InputError(f"a model that is loaded already needs {_a(name)}", expected=expected)
    else:
        chosen = _of_checkpoint(task, model, hub)
    for name in [name for name, source in given.items() if source is not None and name not in chosen.pipeline.parts]:
        message = f"{chosen.name} of a {chosen.model} takes no {name.replace('_', ' ')}"
        raise InputError(message, hint=f"It needs {' and '.join(map(_a, chosen.pipeline.parts))}")
    parts = {
        name: _part(kind, model if given[name] is None else given[name], hub)
        for name, kind in chosen.pipeline.parts.items()
    }
    if not isinstance(model, PreTrainedModel):
        model = model_class(chosen.model).from_pretrained(model, **load_options)
    return chosen.pipeline(model, **parts)


def _part(kind: Any, source: Any, hub: dict[str, Any]) -> Any:
    return source if isinstance(source, kind) else kind.from_pretrained(source, **hub)


def _a(name: str) -> str:
    """ "image_processor" -> "an image processor"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name.replace('_', ' ')}"


def _either(names: Any) -> str:
    return " or ".join(dict.fromkeys(names))


def _of_model(name: str | None, model: PreTrainedModel) -> Task:
    """The task of this name, if this model does it; its first if there is no name."""
    fitting = _tasks_of(*_names(type(model)))
    for task in fitting:
        if name in (None, task.name):
            return task
    message, expected = f"a {type(model).__name__} does not do this task", _either(task.name for task in fitting)
    others = _either(task.model for task in TASKS if task.name == name)
    hint = f"Load the checkpoint as {others}, or give its path in the place of the model"
    raise InputError(message, got=name, expected=expected, hint=hint)


def _of_checkpoint(name: str | None, where: str | Path, hub: dict[str, Any]) -> Task:
    """The task of this name for the checkpoint's kind of model, by the class that the checkpoint names."""
    folder = resolve(where, weights=name is None, **hub)
    task = _of_folder(name, folder, where)
    named = read_config_json(folder / CONFIG_NAME).get("architectures")
    special = named[0] if isinstance(named, list) and len(named) == 1 and named[0] in list(MODELS) else task.model
    if issubclass(model_class(special), model_class(task.model)):
        return task._replace(model=special)  # TensorFlow's class, which does what PyTorch's of the same name does
    return task


def _of_folder(name: str | None, folder: Path, where: str | Path) -> Task:
    """The task of this name for the checkpoint's kind of model; the one of the class that it names without a name.

    The published facebook/data2vec-text-base names the bare model, though its weights have a language model's head: a
    checkpoint like this is for fill-mask.
    """
    if name is not None:
        candidates = [task for task in TASKS if task.name == name]
        kind = read_config_json(folder / CONFIG_NAME).get("model_type")
        kinds = {model_class(task.model).config_class.model_type: task for task in candidates}
        if kind is None:
            kind = next(iter(kinds)) if len(kinds) == 1 else model_class(architecture(folder)).config_class.model_type
        if kind not in list(kinds):
            raise InputError(f"{name} is not for this kind of model", path=where, got=kind, expected=_either(kinds))
        return kinds[kind]
    cls = architecture(folder)
    if cls == "Data2VecTextModel" and any(key.startswith("lm_head.") for key in open_checkpoint(folder)):
        cls = "Data2VecTextForMaskedLM"
    return _tasks_of(*_names(model_class(cls)))[0]


def _names(cls: type[PreTrainedModel]) -> list[str]:
    """A class and those that it is made of, by name."""
    return [base.__name__ for base in cls.__mro__]
