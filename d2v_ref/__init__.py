"""d2v_ref: a framework-free NumPy reference of the Data2Vec models.

    model = d2v_ref.load("facebook/data2vec-text-base")      # the class that the checkpoint names
    out = model(input_ids)                                   # NumPy in, NumPy out
    out, taps = model.record(input_ids)                      # and every module's output by Hugging Face's name

Names are imported when they are first used, so that ``import d2v_ref`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Cache": "d2v_ref.cache",
    "Config": "d2v_ref.config",
    "Data2VecAudioConfig": "d2v_ref.audio",
    "Data2VecAudioForAudioFrameClassification": "d2v_ref.audio",
    "Data2VecAudioForCTC": "d2v_ref.audio",
    "Data2VecAudioForSequenceClassification": "d2v_ref.audio",
    "Data2VecAudioForXVector": "d2v_ref.audio",
    "Data2VecAudioModel": "d2v_ref.audio",
    "Data2VecTextConfig": "d2v_ref.text",
    "Data2VecTextForCausalLM": "d2v_ref.text",
    "Data2VecTextForMaskedLM": "d2v_ref.text",
    "Data2VecTextForMultipleChoice": "d2v_ref.text",
    "Data2VecTextForQuestionAnswering": "d2v_ref.text",
    "Data2VecTextForSequenceClassification": "d2v_ref.text",
    "Data2VecTextForTokenClassification": "d2v_ref.text",
    "Data2VecTextModel": "d2v_ref.text",
    "Data2VecVisionConfig": "d2v_ref.vision",
    "Data2VecVisionForImageClassification": "d2v_ref.vision",
    "Data2VecVisionForSemanticSegmentation": "d2v_ref.vision",
    "Data2VecVisionModel": "d2v_ref.vision",
    "TFData2VecVisionForImageClassification": "d2v_ref.tf_vision",
    "TFData2VecVisionForSemanticSegmentation": "d2v_ref.tf_vision",
    "TFData2VecVisionModel": "d2v_ref.tf_vision",
    "PreTrainedModel": "d2v_ref.pretrained",
    "LoadReport": "d2v_ref.pretrained",
    "Ops": "d2v_ref.ops",
    "backends": "d2v_ref.ops",
    "get_ops": "d2v_ref.ops",
    "ModelOutput": "d2v_ref.outputs",
    "BeitImageProcessor": "d2v_ref.processing",
    "TextTokenizer": "d2v_ref.processing",
    "Wav2Vec2CTCTokenizer": "d2v_ref.processing",
    "Wav2Vec2FeatureExtractor": "d2v_ref.processing",
    "read_audio": "d2v_ref.processing",
    "load": "d2v_ref.auto",
    "pipeline": "d2v_ref.tasks",
    "D2VError": "d2v_ref.errors",
    "CheckpointError": "d2v_ref.errors",
    "UnavailableError": "d2v_ref.errors",
    "ConfigError": "d2v_ref.errors",
    "InputError": "d2v_ref.errors",
    "BackendError": "d2v_ref.errors",
    "ConformanceError": "d2v_ref.errors",
}

__all__ = ["__version__", *sorted(_HOME)]

if TYPE_CHECKING:  # the same names for type checkers and editors; a test holds the two lists together
    from d2v_ref.audio import (
        Data2VecAudioConfig,
        Data2VecAudioForAudioFrameClassification,
        Data2VecAudioForCTC,
        Data2VecAudioForSequenceClassification,
        Data2VecAudioForXVector,
        Data2VecAudioModel,
    )
    from d2v_ref.auto import load
    from d2v_ref.cache import Cache
    from d2v_ref.config import Config
    from d2v_ref.errors import (
        BackendError,
        CheckpointError,
        ConfigError,
        ConformanceError,
        D2VError,
        InputError,
        UnavailableError,
    )
    from d2v_ref.ops import Ops, backends, get_ops
    from d2v_ref.outputs import ModelOutput
    from d2v_ref.pretrained import LoadReport, PreTrainedModel
    from d2v_ref.processing import (
        BeitImageProcessor,
        TextTokenizer,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        read_audio,
    )
    from d2v_ref.tasks import pipeline
    from d2v_ref.text import (
        Data2VecTextConfig,
        Data2VecTextForCausalLM,
        Data2VecTextForMaskedLM,
        Data2VecTextForMultipleChoice,
        Data2VecTextForQuestionAnswering,
        Data2VecTextForSequenceClassification,
        Data2VecTextForTokenClassification,
        Data2VecTextModel,
    )
    from d2v_ref.tf_vision import (
        TFData2VecVisionForImageClassification,
        TFData2VecVisionForSemanticSegmentation,
        TFData2VecVisionModel,
    )
    from d2v_ref.vision import (
        Data2VecVisionConfig,
        Data2VecVisionForImageClassification,
        Data2VecVisionForSemanticSegmentation,
        Data2VecVisionModel,
    )


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'd2v_ref' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
