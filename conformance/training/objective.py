"""data2vec's objective in torch, as training needs it: Hugging Face's base models, gradients for the student.

Transcribed from the paper and fairseq's settings apart from d2v_ref.pretraining, with torch's own normalisations and
losses, so that each of the two can be held against the other (conformance/test_pretraining.py).  Only the settings and
the masks, which are NumPy in both, are shared.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from d2v_ref.pretraining import Objective


def regression_head(width: int, kind: str) -> nn.Sequential:
    """The student's last layers, dropped after pre-training."""
    if kind == "linear":
        return nn.Sequential(nn.Linear(width, width))
    if kind == "norm":
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class Pretraining(nn.Module):
    """A student, its head, and the teacher that follows it.

    Args:
        student: Hugging Face's Data2VecAudioModel, Data2VecTextModel or Data2VecVisionModel.
        objective: d2v_ref.pretraining's AUDIO, TEXT or VISION, or one with a small model's K and decays
            (``dataclasses.replace``).
    """

    def __init__(self, student: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.student, self.objective = student, objective
        self.head = regression_head(student.config.hidden_size, objective.regression_head)
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()
        self._results: list[torch.Tensor] = []
        layers, top = student.config.num_hidden_layers, objective.average_top_k_layers
        for i in range(layers - top, layers):
            self.teacher.get_submodule(objective.layer_results.format(i)).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self._results.append(output[0] if isinstance(output, tuple) else output)

    def trained(self) -> list[nn.Parameter]:
        """What the optimizer changes: the student and the head."""
        return [*self.student.parameters(), *self.head.parameters()]

    @torch.no_grad()
    def targets(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the teacher makes of the whole input, (B, T, D)."""
        self._results.clear()
        self.teacher.eval()(**inputs)
        results = [x[:, 1:] if "pixel_values" in inputs else x for x in self._results]
        if self.objective.instance_norm_target_layer:
            results = [F.instance_norm(x.transpose(1, 2)).transpose(1, 2) for x in results]
        if self.objective.layer_norm_target_layer:
            results = [F.layer_norm(x, x.shape[-1:]) for x in results]
        y = torch.stack(results).mean(dim=0)
        return F.layer_norm(y, y.shape[-1:]) if self.objective.layer_norm_targets else y

    def loss(
        self, teacher_inputs: dict[str, torch.Tensor], student_inputs: dict[str, torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        """The step's loss; mask (B, T) booleans, as in d2v_ref.pretraining.pretraining_step."""
        target = self.targets(teacher_inputs)[mask]
        states = self.student(**student_inputs).last_hidden_state
        states = states[:, 1:] if "pixel_values" in student_inputs else states
        prediction = self.head(states[mask])
        width = prediction.shape[-1]
        if self.objective.loss_beta == 0:
            loss = F.mse_loss(prediction, target, reduction="none")
        else:
            loss = F.smooth_l1_loss(prediction, target, reduction="none", beta=self.objective.loss_beta)
        factors = {"1/sqrt(D)": 1 / math.sqrt(width), "1/D": 1 / width}
        scale = self.objective.loss_scale
        scale = factors[scale] if isinstance(scale, str) else scale
        return loss.sum(dim=-1).mean() * scale

    def decay(self, step: int) -> float:
        """The teacher's decay at a step."""
        o = self.objective
        if step >= o.ema_anneal_end_step:
            return o.ema_end_decay
        return o.ema_decay + (o.ema_end_decay - o.ema_decay) * step / o.ema_anneal_end_step

    @torch.no_grad()
    def update_teacher(self, step: int) -> None:
        """Move the teacher towards the student; the weights that are shared are the student's own."""
        decay, student = self.decay(step), dict(self.student.named_parameters())
        for name, weight in self.teacher.named_parameters():
            if name.startswith(self.objective.averaged):
                weight.lerp_(student[name], 1 - decay)
            else:
                weight.copy_(student[name])
