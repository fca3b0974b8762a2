"""Models by the name of their class, as ``config.json`` gives it in ``architectures``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from d2v_ref.checkpoints import resolve
from d2v_ref.config import CONFIG_NAME, read_config_json
from d2v_ref.errors import ConfigError
from d2v_ref.pretrained import PreTrainedModel

MODELS = {
    "Data2VecTextModel": "d2v_ref.text",
    "Data2VecTextForCausalLM": "d2v_ref.text",
    "Data2VecTextForMaskedLM": "d2v_ref.text",
    "Data2VecTextForSequenceClassification": "d2v_ref.text",
    "Data2VecTextForMultipleChoice": "d2v_ref.text",
    "Data2VecTextForTokenClassification": "d2v_ref.text",
    "Data2VecTextForQuestionAnswering": "d2v_ref.text",
    "Data2VecAudioModel": "d2v_ref.audio",
    "Data2VecAudioForCTC": "d2v_ref.audio",
    "Data2VecAudioForSequenceClassification": "d2v_ref.audio",
    "Data2VecAudioForAudioFrameClassification": "d2v_ref.audio",
    "Data2VecAudioForXVector": "d2v_ref.audio",
    "Data2VecVisionModel": "d2v_ref.vision",
    "Data2VecVisionForImageClassification": "d2v_ref.vision",
    "Data2VecVisionForSemanticSegmentation": "d2v_ref.vision",
    "TFData2VecVisionModel": "d2v_ref.tf_vision",
    "TFData2VecVisionForImageClassification": "d2v_ref.tf_vision",
    "TFData2VecVisionForSemanticSegmentation": "d2v_ref.tf_vision",
}


def model_class(name: str) -> type[PreTrainedModel]:
    """The class of a name, such as "Data2VecTextForMaskedLM"."""
    if name not in MODELS:
        raise ConfigError("no model of this name", got=name, expected=" or ".join(MODELS))
    return getattr(import_module(MODELS[name]), name)


def architecture(folder: Path) -> str:
    """The name of the class that a checkpoint was saved from."""
    path = folder / CONFIG_NAME
    names = read_config_json(path).get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in list(MODELS):
        hint = "Use the class's own from_pretrained, or write the class's name into architectures"
        raise ConfigError(
            "architectures names no model that is known here",
            path=path,
            got=names,
            expected=f"one of {', '.join(MODELS)}",
            hint=hint,
        )
    return names[0]


def load(name_or_path: str | Path, **options: Any) -> PreTrainedModel:
    """A model of the class that the checkpoint's ``architectures`` names.

    ``options`` as in ``PreTrainedModel.from_pretrained``.
    """
    where = {name: options[name] for name in ("revision", "cache_dir", "local_files_only", "token") if name in options}
    folder = resolve(name_or_path, weights=False, **where)
    return model_class(architecture(folder)).from_pretrained(name_or_path, **options)
