"""Recipe of ``digits-qwen3-vl-moe``: answers to questions about canvases, in less than an hour on one core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fewstep.loaders import from_folder
from fewstep.train.objective import Batch
from fewstep.train.optim import AdamW, Muon
from fewstep.train.parallel import World
from fewstep.train.recipe import Job, Recipe, free
from fewstep.train.roles import Role, Roles
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from . import model
from .data import Questions
from .words import FORMS


@dataclass(frozen=True, kw_only=True)
class Answerer(Recipe):
    """Cross entropy of the answers to questions about canvases; routers are kept balanced, and their weights spread."""

    steps: int = 1500
    batch: int = 64
    clip: float = 1.0
    ema: float = 0.998
    save_every: int = free(250)
    student: Muon = Muon(lr=6e-3, betas=(0.9, 0.98), warmup=100, schedule="cosine")
    """Optimiser."""
    spread: float = 0.0
    """Weight of the loss that keeps the routing weights of a token from gathering on one expert."""
    kinds: tuple[str, ...] = tuple(FORMS)
    """Kinds of questions that are asked."""
    start: Path | None = None
    """Folder of a trained model to go on from; None begins with random weights."""

    def build(self, world: World) -> Job:
        network = model.network(self.seed)
        if self.start is not None:
            network.load_state_dict(from_folder(self.start, name="", dtype="float32", device="cpu").model.state_dict())
        return Job(objective=self._objective(network.train().to(world.device)), data=Questions(kinds=self.kinds))

    def skeleton(self) -> Job:
        with torch.device("meta"):
            return Job(objective=self._objective(model.network(self.seed).train()), data=Questions())

    def _objective(self, network: Any) -> Answering:
        return Answering(roles=Roles(student=Role(network)), spread=self.spread)

    def optimisers(self) -> Mapping[str, AdamW]:
        return {"student": self.student}

    def finish(self, job: Job, network: Any, folder: Any) -> None:
        network.eval().save_pretrained(folder)
        model.processor().save_pretrained(folder)

    def what_is_saved(self) -> str:
        return "a transformers folder with the model and its processor"


@dataclass(eq=False, kw_only=True)
class Answering:
    """Cross entropy at the positions that predict an answer; conditions are `fewstep_zoo.vlm.data.Conversation`."""

    roles: Roles
    """``student``: a Qwen3-VL-MoE."""
    spread: float
    """See `Answerer`."""

    def phases(self, step: int) -> tuple[str, ...]:
        return ("student",)

    def losses(self, role: str, batch: Batch, step: int) -> Mapping[str, Tensor]:
        network: Any = self.roles.student.network
        out = network(**batch.cond.inputs(), use_cache=False, output_router_logits=True)
        scored = batch.cond.scored()
        logits, wanted = out.logits[scored], batch.cond.labels[scored]
        batch.metrics["right"] = (logits.argmax(-1) == wanted).float().mean()
        text = network.config.text_config
        return {
            "answer": F.cross_entropy(logits, wanted),
            "balance": text.router_aux_loss_coef * out.aux_loss,
            "spread": self.spread * concentration(out.router_logits, text.num_experts_per_tok),
        }


def concentration(logits: Sequence[Float[Tensor, "t e"]], k: int) -> Float[Tensor, ""]:
    """Mean over tokens and layers of ``k sum_i pi_i^2 - 1``: 0 for equal weights of the k experts, k - 1 for one alone.

    Small models gather a token's weight on one expert; in large ones, and with this as a loss, all k matter.
    """
    weights = torch.stack([of_layer.softmax(-1).topk(k).values for of_layer in logits])
    return (k * (weights / weights.sum(-1, keepdim=True)).square().sum(-1) - 1).mean()
