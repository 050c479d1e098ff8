"""The training recipe of ``tiny-llada``: masked diffusion from scratch on text that every Python brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from fewstep.families import llada_format
from fewstep.train.objective import MetaData
from fewstep.train.optim import AdamW, Muon
from fewstep.train.parallel import World
from fewstep.train.recipe import Job, Recipe, free
from fewstep.train.roles import Role, Roles

from . import model, text
from .diffusion import MaskedDiffusion, tokens_to_logits


@dataclass(frozen=True, kw_only=True)
class TinyLLaDA(Recipe):
    """Masked diffusion (LLaDA, arXiv 2502.09992) on bytes of English and of sources."""

    steps: int = 3000
    batch: int = 4
    clip: float = 1.0
    ema: float = 0.99
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    save_every: int = free(100)
    student: Muon = Muon(lr=1e-2, betas=(0.9, 0.95), weight_decay=0.01, warmup=50, schedule="cosine")
    """Optimiser."""
    lengths: tuple[int, ...] = (64, 64, 128, 128, 256, 512)
    """Lengths of pieces in tokens; each batch has one, drawn evenly, and as many tokens as `batch` of the longest."""
    english: float = 0.25
    """Share of pieces from the language reference; the others are from sources."""
    width: int = model.TINY["d_model"]
    """Hidden size."""
    layers: int = model.TINY["n_layers"]
    """Transformer blocks."""

    def build(self, world: World) -> Job:
        network = model.network(self.seed, d_model=self.width, n_layers=self.layers).train()
        data = text.TextCrops(lengths=self.lengths, english=self.english)
        return Job(objective=self._objective(network.to(world.device)), data=data)

    def skeleton(self) -> Job:
        with torch.device("meta"):
            network = model.network(self.seed, d_model=self.width, n_layers=self.layers).train()
        longest = (max(self.lengths),)
        return Job(objective=self._objective(network), data=MetaData(longest, cond=longest, dtype=torch.int64))

    def _objective(self, network: Any) -> MaskedDiffusion:
        return MaskedDiffusion(roles=Roles(student=Role(network, predict=tokens_to_logits)), mask=text.MASK)

    def optimisers(self) -> Mapping[str, AdamW]:
        return {"student": self.student}

    def finish(self, job: Job, network: torch.nn.Module, folder: Path) -> None:
        llada_format.save_llada(network.bfloat16(), folder, text.tokenizer())

    def what_is_saved(self) -> str:
        return "a folder in the LLaDA format, bfloat16, with its tokenizer"
