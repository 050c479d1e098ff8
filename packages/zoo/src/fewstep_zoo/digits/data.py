"""Clips and prompt embeddings as `fewstep.train` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import clips
from .clips import SHAPE, Split
from .model import TOKENS
from .words import Label


class Prompts:
    """Embeddings of prompts, each computed once."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._known: dict[str, Float[Tensor, "t d"]] = {}

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Float[Tensor, "b t d"]:
        """Embeddings ``[B, T, d]`` as the pipeline itself makes them, padding zeroed."""
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]:
            embeddings, _ = self._pipe.encode_prompt(
                new, do_classifier_free_guidance=False, max_sequence_length=TOKENS, device=torch.device("cpu")
            )
            self._known.update(zip(new, embeddings, strict=True))
        return torch.stack([self._known[prompt] for prompt in prompts])


@dataclass(eq=False, kw_only=True)
class PromptedClips:
    """Clips with the embeddings of prompts that describe them, wholly or in part: the data of the teacher."""

    prompts: Prompts
    split: Split = "train"
    open: float = 0.2
    """Chance that a prompt leaves the direction open; independently, the speed."""
    shape: tuple[int, ...] = SHAPE

    @property
    def uncond(self) -> Float[Tensor, "1 t d"]:
        """The embedding of the empty prompt."""
        return self.prompts([""])

    def draw(self, size: int, generator: torch.Generator) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b 1 f h w"]]:
        """Embeddings and clips."""
        made = clips.make(clips.draw_labels(size, generator), self.split, generator)
        left_open = torch.rand(size, 2, generator=generator) < self.open
        labels = [_without(label, *row) for label, row in zip(made.labels(), left_open.tolist(), strict=True)]
        return self.prompts([label.prompt() for label in labels]), made.pixels


@dataclass(eq=False, kw_only=True)
class LabelledClips:
    """Clips with their labels (digit, direction, speed): the data of the judge."""

    split: Split = "train"
    shape: tuple[int, ...] = SHAPE
    uncond: None = None

    def draw(self, size: int, generator: torch.Generator) -> tuple[Int[Tensor, "b 3"], Float[Tensor, "b 1 f h w"]]:
        """Labels and clips."""
        made = clips.make(clips.draw_labels(size, generator), self.split, generator)
        return torch.stack([made.digit, made.direction, made.speed], 1), made.pixels


def _without(label: Label, direction: bool, speed: bool) -> Label:
    return replace(label, direction=None if direction else label.direction, speed=None if speed else label.speed)
