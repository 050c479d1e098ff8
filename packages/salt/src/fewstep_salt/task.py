"""Task ``semigroup-defect``: by how much the direct and the composed steps of a student disagree."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fewstep.bench import Outcome
from fewstep.contract import Loaded
from fewstep.families import wan
from fewstep.students.causal import options_of
from fewstep.train.chunk_rollout import CausalStudent, ChunkPlan
from fewstep.train.prompts import read_prompts
from fewstep.train.roles import Role
from torch import Tensor

from .causal_recipes import WORLDS_PROMPTS
from .defect import Defect, causal_defect_of, defect_of


@dataclass(frozen=True, kw_only=True)
class SemigroupDefect:
    """Squared distance of direct and composed end points over that of the steps, on a student's own states; 0 is best.

    A causal student makes its states chunk by chunk, any other pipeline as whole clips; all over the eight dense steps.

    Raises:
        ValueError: a number is too small.
    """

    prompts: Path = WORLDS_PROMPTS
    """Text file with one prompt on each line, of which the last ones are taken."""
    clips: int = 8
    """Number of clips."""
    frames: int = 81
    """Frames of a clip."""
    height: int = 64
    """Pixels."""
    width: int = 64
    """Pixels."""

    def __post_init__(self) -> None:
        if min(self.clips, self.frames, self.height, self.width) < 1:
            raise ValueError(f"clips, frames, height and width must be at least 1, found {self}")

    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """See `fewstep.bench.Task`.

        Raises:
            UnsupportedModelError: the model is no Wan pipeline.
        """
        pipe = loaded.model
        network = wan.check(pipe)
        lines = read_prompts(self.prompts)[-self.clips :]
        cond = wan.encode_prompts(pipe, lines, wan.prompt_tokens(pipe)).to(network.device)
        shape = wan.architecture(pipe).latent(self.frames, self.height, self.width)
        start = torch.randn(len(lines), *shape, generator=generator).to(network.device)
        return Outcome(seconds={}, quality={"defect": _defect(pipe, network, cond, start, generator).value})

    def compare(self, outcome: Outcome, baseline: Outcome) -> dict[str, float]:
        """No metrics: every arm is measured on its own states."""
        return {}

    def small(self) -> SemigroupDefect:
        """The same with two clips."""
        return replace(self, clips=2)


def _defect(pipe: Any, network: Any, cond: Tensor, start: Tensor, generator: torch.Generator) -> Defect:
    options = options_of(pipe)
    if options is None:
        return defect_of(Role(network), cond, start)
    plan = ChunkPlan(chunk=options.chunk, policy=options.policy)
    return causal_defect_of(CausalStudent(Role(network)), plan, cond, start, eta=options.eta, generator=generator)
