"""From a text, a recording or a picture to an answer: Hugging Face's pipelines."""

from d2v_ref.tasks.base import Pipeline
from d2v_ref.tasks.choosing import TASKS, Task, infer_task, pipeline

__all__ = ["TASKS", "Pipeline", "Task", "infer_task", "pipeline"]
