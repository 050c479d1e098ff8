"""`StudentRecipe`: distillation whose result is found by the method that runs it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from .. import hub
from ..method import Method
from .distillation import Distillation
from .recipe import Job


@dataclass(frozen=True, kw_only=True)
class StudentRecipe(Distillation):
    """Distillation that leaves a folder for diffusers, and for ``from_pretrained`` of the method that runs it."""

    @abstractmethod
    def method(self) -> Method:
        """The method that runs the student in the job's own pipeline."""

    def finish(self, job: Job, network: nn.Module, folder: Path) -> None:
        super().finish(job, network, folder)
        full, lora = "transformer/diffusion_pytorch_model.safetensors", "pytorch_lora_weights.safetensors"
        hub.save(self.method(), folder, files={"weights": lora if self.lora_rank else full})

    def what_is_saved(self) -> str:
        return f"{super().what_is_saved()}; {type(self.method()).__name__}.from_pretrained loads it too"
