"""From a text to an answer: Hugging Face's pipelines for the text models."""

from d2v_ref.tasks.base import TextPipeline
from d2v_ref.tasks.choosing import TASKS, infer_task, pipeline

__all__ = ["TASKS", "TextPipeline", "infer_task", "pipeline"]
