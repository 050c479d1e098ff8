"""Prompts from a text file, one a line; their embeddings are computed once and cached on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import families
from ..cache_folder import cache_folder
from ..data import files
from ..errors import BadFileError
from .parallel import World, barrier

CHUNK = 64
"""Prompts in one file of the cache."""


def read_prompts(path: Path) -> list[str]:
    """Read the lines of a text file that are not empty.

    Raises:
        BadFileError: it is missing, not UTF-8 or empty.
    """
    prompts = [line for line in map(str.strip, files.read_lines(path)) if line]
    if not prompts:
        raise BadFileError(f"the prompts {path} hold no prompt: write one on each line")
    return prompts


class PromptData:
    """`fewstep.train.objective.Data` of prompts alone: conditions from the cache, no clean latents."""

    def __init__(self, folder: Path, count: int, tokens: int, shape: tuple[int, ...]) -> None:
        self.folder, self.count, self.tokens, self.shape = folder, count, tokens, shape
        self._open: dict[int, Any] = {}
        self.uncond = self._padded(_stored(folder / "negative.safetensors").get_tensor("0"))[None]

    def draw(self, size: int, generator: torch.Generator) -> tuple[Float[Tensor, "b t d"], None]:
        """`size` prompts, drawn with replacement."""
        return self.take(torch.randint(self.count, (size,), generator=generator).tolist()), None

    def take(self, numbers: Sequence[int]) -> Float[Tensor, "b t d"]:
        """Return the embeddings of prompts by their line."""
        return torch.stack([self._padded(self._one(number % self.count)) for number in numbers])

    def _one(self, number: int) -> Tensor:
        chunk = number // CHUNK
        if chunk not in self._open:
            self._open[chunk] = _stored(_chunk(self.folder, chunk))
        return self._open[chunk].get_tensor(str(number % CHUNK))

    def _padded(self, rows: Tensor) -> Tensor:
        return torch.cat([rows, rows.new_zeros(self.tokens - len(rows), rows.shape[1])])


def embedded(
    pipe: Any, name: str, prompts: Sequence[str], negative: str, *, tokens: int, shape: tuple[int, ...], world: World
) -> PromptData:
    """Embed `prompts`; those that are not in the cache yet are computed by the main rank, and kept as it goes.

    Args:
        pipe: a pipeline of a family that is trained by flow matching.
        name: of the model, part of the key of the cache.
        prompts: one for each line.
        negative: prompt that guidance leads away from.
        tokens: rows of an embedding.
        shape: of one latent.
        world: which rank this is.
    """
    key = json.dumps([name, _fingerprint(pipe.text_encoder), tokens, negative, list(prompts)])
    folder = cache_folder() / "prompts" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        _embed(pipe, [negative], folder / "negative.safetensors", tokens)
        for start in range(0, len(prompts), CHUNK):
            _embed(pipe, prompts[start : start + CHUNK], _chunk(folder, start // CHUNK), tokens)
    barrier()
    return PromptData(folder, len(prompts), tokens, shape)


@torch.no_grad()
def _embed(pipe: Any, prompts: Sequence[str], file: Path, tokens: int) -> None:
    if file.exists():
        return
    embeddings = families.of(pipe).encode_prompts(pipe, prompts, tokens)
    part = file.with_suffix(".part")
    save_file({str(i): _trimmed(rows).cpu() for i, rows in enumerate(embeddings)}, part)
    os.replace(part, file)


def _trimmed(rows: Float[Tensor, "t d"]) -> Float[Tensor, "n d"]:
    """Drop the zero rows at the end, which are most of it."""
    used = rows.abs().amax(1).nonzero()
    return rows[: int(used.max()) + 1 if len(used) else 1].contiguous()


def _chunk(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.safetensors"


def _stored(file: Path) -> Any:
    from safetensors import SafetensorError

    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise BadFileError(f"the cached prompt embeddings {file} are damaged: {error}; remove that file") from error


def _fingerprint(encoder: torch.nn.Module) -> str:
    """Digest names, shapes and the first numbers of all weights; all of a large encoder would take minutes."""
    digest = hashlib.sha256()
    for name, weight in encoder.state_dict().items():
        first = weight.flatten()[:16].float().cpu()
        digest.update(f"{name}{tuple(weight.shape)}{first.tolist()}".encode())
    return digest.hexdigest()
