"""`Salt`: a causal few-step student of a Wan pipeline, which makes videos of any length chunk by chunk."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from fewstep import hub
from fewstep.applied import Applied
from fewstep.cards import Card
from fewstep.families import wan, wan_causal
from fewstep.families.chunk_cache import CODECS, CachePolicy
from fewstep.families.wan_stream import StreamOptions, WanStream
from fewstep.students.causal import run_causal
from fewstep.students.few_steps import replace_weights
from fewstep.students.wan import WanStudent
from fewstep.students.wan_files import read
from fewstep.students.weights import StudentWeights


@dataclass(frozen=True, kw_only=True)
class Salt(WanStudent):
    """A causal few-step student, trained for the cache that it makes itself (Salt, arXiv:2604.03118).

    Applied to a ``WanPipeline``: the transformer gets the student's weights and becomes causal, and every call of the
    pipeline makes the video chunk by chunk with a KV cache, `steps` network calls and one for the cache a chunk,
    without guidance, whatever number of steps and guidance scale it asks for. Students of Self Forcing, Causal Forcing
    and LongLive run the same way.

    Raises:
        ValueError: the steps or the shift are impossible, or chunk and sink do not fit into the window.
    """

    name: ClassVar[str] = "salt"
    seams: ClassVar[frozenset[str]] = frozenset({"transformer-weights", "attention", "scheduler", "guidance"})
    formats: ClassVar[tuple[Card, ...]] = (
        Card(
            name="diffusers",
            summary="a pipeline folder with the method beside it, so that --model FOLDER finds both",
            target="fewstep_salt.export:CausalFolder",
        ),
        Card(
            name="lightx2v",
            summary="weights in native names, with the configuration of LightX2V for causal models",
            target="fewstep_salt.export:CausalLightX2V",
        ),
    )

    part: Literal["generator_ema", "generator"] = "generator_ema"
    """Weights of a training checkpoint (``.pt``): their average over training, or as they are."""
    chunk: int = 3
    """Latent frames that are made at once."""
    window: int | None = None
    """Latent frames that a chunk attends to, its own and the sink's included; None: all before it."""
    sink: int = 0
    """First latent frames of the video, which every chunk attends to."""
    relative: bool = False
    """Count positions from the beginning of the window, so that a video has no longest length."""
    codec: Literal["plain", "int8"] = "plain"
    """Keys and values as they are, or with eight bits a number."""
    eta: float = 1.0
    """Between the steps: 1 fresh noise, 0 Euler."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be from 0 to 1, found {self.eta}")
        if self.codec not in CODECS:
            raise ValueError(f"codec must be {' or '.join(CODECS)}, found {self.codec!r}")
        self.options(1)  # an impossible window fails here

    def options(self, tokens: int) -> StreamOptions:
        """Levels, chunk and cache, with prompt embeddings of `tokens` rows."""
        policy = CachePolicy(window=self.window, sink=self.sink, relative=self.relative, codec=CODECS[self.codec])
        return StreamOptions(grid=self.grid, chunk=self.chunk, policy=policy, eta=self.eta, tokens=tokens)

    def student(self) -> StudentWeights | None:
        return None if self.weights is None else read(Path(self.weights), self.part)

    def apply(self, model: Any) -> Applied:
        """Change a loaded ``WanPipeline`` in place; see `Method.apply`.

        Raises:
            UnsupportedModelError: no ``WanPipeline`` with one text-to-video transformer of plain tensors.
            BadFileError: the weights cannot be read or do not fit this transformer; the first misfit is named.
        """
        transformer = wan_causal.check(wan.check(model))
        values = self.values(transformer)
        with Applied() as undo:
            undo.occupy(model, self)
            replace_weights(undo, transformer, values)
            wan_causal.make_causal(transformer, undo)
            run_causal(undo, model, self.options(wan.prompt_tokens(model)))
            return undo.pop_all()

    def stream(
        self,
        pipe: Any,
        prompt: str,
        *,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | None = None,
    ) -> WanStream:
        """An endless video, an iterator over chunks of frames; its state is its own, so several may run in turn.

        Args:
            pipe: the pipeline, while this method is applied to it.
            prompt: text of the beginning; `WanStream.switch` goes on with another.
            height: rows; default: those of the videos that the student was trained on, or the pipeline's.
            width: columns, likewise.
            generator: of the noise; default: one with seed 0.

        Raises:
            UnsupportedModelError: the method is not applied.
            ValueError: the size does not divide into patches, or the prompt has too many tokens.
        """
        usual = [inspect.signature(pipe.__call__).parameters[name].default for name in ("height", "width")]
        rows, columns = self.size[1:] if self.size else usual
        made = torch.Generator().manual_seed(0) if generator is None else generator
        options = self.options(wan.prompt_tokens(pipe))
        return WanStream(pipe, prompt, options, height or rows, width or columns, made)

    @classmethod
    def of(cls, pipe: Any) -> Self | None:
        """The saved method in the folder that a pipeline was loaded from; None where there is none.

        Raises:
            BadFileError: it is damaged.
        """
        folder = pipe.config.get("_name_or_path") or ""
        return None if hub.shipped(folder, cls.name) is None else cls.from_pretrained(folder)


@dataclass(frozen=True, kw_only=True)
class SelfForcing(Salt):
    """A causal few-step student trained on its own chunks over one step list (Self Forcing, arXiv:2506.08009).

    Run as `Salt` is; a name of its own lets both be measured side by side.
    """

    name: ClassVar[str] = "self-forcing"
