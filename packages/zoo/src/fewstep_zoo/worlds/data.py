"""Latents of panning worlds with prompt embeddings, as `fewstep.train` draws them; encoded once and cached on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fewstep.cache_folder import cache_folder
from fewstep.families import wan, wan_vae
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import clips
from .model import CHUNK, TOKENS
from .words import Scene, parse

PART = 16
"""Clips that are encoded at once and stored in one file."""
FRAME = 4
"""Frames of a latent frame after the first."""
TURNING = 4
"""One clip of so many turns."""


class Prompted(NamedTuple):
    """Condition of a causal model in training."""

    embeddings: Float[Tensor, "b t d"]
    weight: Float[Tensor, "b f"]
    """1 for latent frames that the prompt describes, 0 for those before a turn."""


@dataclass(frozen=True)
class Encoded:
    """Clips as latents, with the prompts before and after a turn."""

    latents: Float[Tensor, "n 16 f h w"]
    """Normalised by the VAE's statistics."""
    scenes: list[Scene]
    turned: list[Scene]
    chunk: Int[Tensor, " n"]
    """First chunk after the turn; 0 where there is none."""

    def __len__(self) -> int:
        return len(self.latents)


@torch.no_grad()
def encoded(
    vae: Any, count: int, split: clips.Split, seed: int = 0, progress: Callable[[int, int], None] = lambda *_: None
) -> Encoded:
    """Encode `count` clips, every fourth of which turns at the beginning of a chunk; kept in the cache as it goes."""
    folder = cache_folder() / "worlds" / f"{wan_vae.latents_fingerprint(vae.config)}-{clips.VERSION}-{split}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number in range(-(-count // PART)):
        file = folder / f"{number:05d}.safetensors"
        if not file.exists():
            _encode(vae, split, seed * 100_003 + number, file)
        parts.append(_read(file))
        progress(min(count, PART * (number + 1)), count)
    joined = Encoded(
        torch.cat([part.latents for part in parts])[:count],
        [scene for part in parts for scene in part.scenes][:count],
        [scene for part in parts for scene in part.turned][:count],
        torch.cat([part.chunk for part in parts])[:count],
    )
    return joined


def _encode(vae: Any, split: clips.Split, seed: int, file: Path) -> None:
    generator = torch.Generator().manual_seed(seed)
    chunks = 1 + (clips.FRAMES - 1) // FRAME // CHUNK
    chunk = torch.randint(1, chunks, (PART,), generator=generator)
    chunk[torch.arange(PART) % TURNING > 0] = 0
    turns = torch.where(chunk > 0, FRAME * CHUNK * chunk - FRAME, clips.FRAMES)
    made = clips.make(clips.draw_scenes(PART, generator), split, generator, turns=turns)
    latents = torch.cat([encode(vae, part).cpu() for part in made.pixels.split(4)])
    prompts = {"scenes": [s.prompt() for s in made.scenes], "turned": [s.prompt() for s in made.turned]}
    part = file.with_suffix(f".{os.getpid()}.part")
    tensors = {"latents": latents.half().contiguous(), "chunk": chunk}
    save_file(tensors, part, metadata={key: json.dumps(value) for key, value in prompts.items()})
    os.replace(part, file)


def _read(file: Path) -> Encoded:
    from safetensors import safe_open

    with safe_open(file, "pt") as stored:
        prompts = {key: [parse(text) for text in json.loads(value)] for key, value in stored.metadata().items()}
    tensors = load_file(file)
    return Encoded(tensors["latents"].float(), prompts["scenes"], prompts["turned"], tensors["chunk"])


@torch.no_grad()
def encode(vae: Any, pixels: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b 16 t h w"]:
    """Latents of clips with values from -1 to 1, as transformers take them."""
    return wan.normalised(vae, wan_vae.encode(vae, pixels.to(vae.device, vae.dtype))).float()


class Embeddings:
    """Embeddings of prompts, each computed once."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._known: dict[str, Float[Tensor, "t d"]] = {}

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Float[Tensor, "b t d"]:
        """Embeddings ``[B, T, d]`` as the pipeline itself makes them, padding zeroed."""
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]:
            made, _ = self._pipe.encode_prompt(
                new,
                do_classifier_free_guidance=False,
                max_sequence_length=TOKENS,
                device=self._pipe.text_encoder.device,
            )
            self._known.update(zip(new, made.cpu(), strict=True))
        return torch.stack([self._known[prompt] for prompt in prompts])


@dataclass(eq=False, kw_only=True)
class Worlds:
    """Latents of whole clips that do not turn, with prompts that leave things open: data of the teacher."""

    clips: Encoded
    embed: Embeddings
    open: float = 0.2
    """Chance that a prompt leaves the direction open; independently, the speed and the digits."""
    shape: tuple[int, ...] = field(init=False)
    """Shape of one latent."""

    def __post_init__(self) -> None:
        self.shape = tuple(self.clips.latents.shape[1:])
        self.straight = (self.clips.chunk == 0).nonzero().flatten()

    @property
    def uncond(self) -> Float[Tensor, "1 t d"]:
        """The embedding of the empty prompt."""
        return self.embed([""])

    def draw(self, size: int, generator: torch.Generator) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b c f h w"]]:
        """Embeddings and latents."""
        chosen = self.straight[torch.randint(len(self.straight), (size,), generator=generator)]
        scenes = [self.clips.scenes[number] for number in chosen.tolist()]
        return self.embed(_prompts(scenes, self.open, generator)), self.clips.latents[chosen]


@dataclass(eq=False, kw_only=True)
class TurningWorlds(Worlds):
    """Latents of clips, some of which turn, with the prompt that describes their end: data of the causal model."""

    @property
    def uncond(self) -> Prompted:  # type: ignore[override]
        """The embedding of the empty prompt, for all frames."""
        return Prompted(self.embed([""]), torch.ones(1, self.shape[1]))

    def draw(self, size: int, generator: torch.Generator) -> tuple[Prompted, Float[Tensor, "b c f h w"]]:  # type: ignore[override]
        """Embeddings with the frames that they describe, and latents."""
        chosen = torch.randint(len(self.clips), (size,), generator=generator)
        scenes = [self.clips.turned[number] for number in chosen.tolist()]
        frame = torch.arange(self.shape[1])[None]
        weight = (frame >= CHUNK * self.clips.chunk[chosen][:, None]).float()
        return Prompted(self.embed(_prompts(scenes, self.open, generator)), weight), self.clips.latents[chosen]


def _prompts(scenes: Sequence[Scene], open: float, generator: torch.Generator) -> list[str]:
    left_open = (torch.rand(len(scenes), 3, generator=generator) < open).tolist()
    return [
        replace(
            scene,
            direction=None if direction else scene.direction,
            speed=None if speed else scene.speed,
            sprites=None if sprites else scene.sprites,
        ).prompt()
        for scene, (direction, speed, sprites) in zip(scenes, left_open, strict=True)
    ]
