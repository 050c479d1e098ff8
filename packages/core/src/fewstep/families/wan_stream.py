"""`WanStream`: an endless video from a causal Wan, chunk by chunk, in constant memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from .. import flow
from ..errors import FewstepError
from ..flow import Latent, StepGrid
from . import wan, wan_causal
from .chunk_cache import CachePolicy, ChunkCache


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """Settings of a stream: noise levels, chunk, cache."""

    grid: StepGrid = StepGrid()
    """Noise levels of each chunk."""
    chunk: int = 3
    """Latent frames of a chunk."""
    policy: CachePolicy = CachePolicy()
    """Frames that a chunk attends to, and how their keys are kept."""
    eta: float = 1.0
    """Between the levels: 1 fresh noise, 0 Euler; see `fewstep.flow.transition`."""
    tokens: int = 512
    """Rows of a prompt embedding."""

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"a chunk has at least one latent frame, found {self.chunk}")
        self.policy.past(self.chunk)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One finished chunk."""

    latents: Latent
    frames: Float[Tensor, "b f 3 h w"]
    """Its pixels, with values in [0, 1]."""
    start: int
    """Latent frames before it."""
    seconds: float
    """Time that it took, decoding included."""
    cache_bytes: int
    """Keys and values held once it is committed."""


def normal(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Latent:
    """Noise that a generator gives alike on all devices."""
    return torch.randn(shape, generator=generator, device=generator.device if generator else device).to(device)


def denoised(
    network: Any,
    noise: Latent,
    cond: Float[Tensor, "b t d"],
    cache: ChunkCache,
    options: StreamOptions,
    generator: torch.Generator | None,
) -> Latent:
    """The chunk after `cache`, from noise over all levels to x0, in the precision of the network.

    Raises:
        FewstepError: numbers are not finite.
    """
    precision, sigmas = network.dtype, options.grid.sigmas.tolist()
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        level = torch.full((len(noise),), sigma, device=noise.device)
        velocity = wan_causal.velocity(network, noise.to(precision), level, cond, cache)
        noise = flow.transition(noise, velocity, sigma, following, options.eta if following else 0.0, generator)
    if not torch.isfinite(noise).all():
        raise FewstepError(f"the chunk at latent frame {cache.frames} is not finite: the weights are broken")
    return noise.to(precision)


class StreamDecoder:
    """Decodes latents of a ``WanPipeline`` as they come, as its VAE decodes the whole clip at once.

    The last inputs of each causal convolution are kept here, not in the VAE, so that streams do not meet.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe, self._first = pipe, True
        convolutions = [] if pipe.vae is None else pipe.vae.decoder.modules()
        self._past = [None for module in convolutions if type(module).__name__ == "WanCausalConv3d"]

    @torch.no_grad()
    def decode(self, latents: Latent) -> Float[Tensor, "b f 3 h w"]:
        """Pixels in [0, 1] of the next latent frames; one for the first latent, then as many as the VAE makes."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        if self._pipe.vae is None:
            return wan.decode(self._pipe, latents)
        vae = self._pipe.vae.to(latents.device)
        ready = vae.post_quant_conv(wan.denormalised(vae, latents).to(vae.dtype))
        pixels = []
        for frame in ready.split(1, 2):
            pixels.append(vae.decoder(frame, feat_cache=self._past, feat_idx=[0], first_chunk=self._first))
            self._first = False
        whole = torch.cat(pixels, 2)
        if vae.config.patch_size is not None:  # Wan 2.2 decodes squares of pixels as channels
            whole = unpatchify(whole, patch_size=vae.config.patch_size)
        return (whole.clamp(-1, 1).float() / 2 + 0.5).transpose(1, 2)


@dataclass
class WanStream:
    """Iterator over `Chunk` after `Chunk` of one endless video; its state is its own, the model keeps none.

    The pipeline's transformer must be causal (`wan_causal.make_causal`). Streams of one pipeline may be read in turn.
    """

    pipe: Any
    prompt: str
    options: StreamOptions
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    generator: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        wan_causal.check_causal(self._network)
        wan.check_prompts(self.pipe, [self.prompt], self.options.tokens)
        time_factor = self.pipe.vae_scale_factor_temporal
        self._shape = wan.architecture(self.pipe).latent(1 + time_factor, self.height, self.width)
        self._cache = ChunkCache(self.options.policy)
        self._decoder, self._cond = StreamDecoder(self.pipe), self._embedded(self.prompt)
        self._finished: list[tuple[int, Latent]] = []
        self._next_prompt: str | None = None
        self._closed = False

    def __iter__(self) -> Iterator[Chunk]:
        return self

    @torch.no_grad()
    def __next__(self) -> Chunk:
        """Make the next chunk.

        Raises:
            StopIteration: the stream was closed.
            ValueError: the video has grown beyond the model's rotary table (see `CachePolicy.relative`).
        """
        if self._closed:
            raise StopIteration
        begun = time.perf_counter()
        self._take_prompt()
        start, latents = self._cache.frames, self._denoised()
        frames = self._decoder.decode(latents)
        cache = wan_causal.commit(self._network, latents, self._cond, self._cache)
        if self._closed:  # by another thread, in the middle of this chunk
            raise StopIteration
        self._cache = cache
        self._remember(start, latents)
        seconds = time.perf_counter() - begun
        return Chunk(latents=latents, frames=frames, start=start, seconds=seconds, cache_bytes=cache.nbytes)

    def switch(self, prompt: str) -> None:
        """Go on with another prompt from the next chunk: what the window sees is computed again under it.

        May be called from another thread.

        Raises:
            ValueError: the prompt is too long; the stream goes on as it was.
        """
        wan.check_prompts(self.pipe, [prompt], self.options.tokens)
        self._next_prompt = prompt

    def close(self) -> None:
        """End the stream and let its cache go; closing twice does nothing."""
        self._closed = True
        self._cache = self._cache.reset()
        self._finished.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _network(self) -> Any:
        return self.pipe.transformer

    def _embedded(self, prompt: str) -> Float[Tensor, "1 t d"]:
        return wan.encode_prompts(self.pipe, [prompt], self.options.tokens).to(self._network.dtype)

    def _take_prompt(self) -> None:
        prompt, self._next_prompt = self._next_prompt, None
        if prompt is not None:
            self.prompt, self._cond = prompt, self._embedded(prompt)
            self._cache = wan_causal.recache(self._network, self._finished, self._cond, self._cache)

    def _denoised(self) -> Latent:
        """The next chunk, from noise over all levels to x0."""
        channels, _, height, width = self._shape
        noise = normal((1, channels, self.options.chunk, height, width), self.generator, self.pipe._execution_device)
        return denoised(self._network, noise, self._cond, self._cache, self.options, self.generator)

    def _remember(self, start: int, latents: Latent) -> None:
        """Keep the finished chunks that the cache still sees, for a change of the prompt."""
        sink = self.options.policy.sink
        first = self._cache.frames - (self._cache.kept - sink)
        kept = [(at, chunk) for at, chunk in self._finished if at < sink or at + chunk.shape[2] > first]
        self._finished = [*kept, (start, latents)]
