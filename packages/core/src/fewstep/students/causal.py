"""Causal pipelines: the user's own call of a Wan pipeline makes the video chunk by chunk, until undone."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..applied import Applied
from ..families import wan, wan_causal
from ..families.chunk_cache import ChunkCache
from ..families.wan_lengths import check_positions, chunk_count
from ..families.wan_stream import StreamDecoder, StreamOptions, denoised, normal
from ..flow import Latent


def run_causal(undo: Applied, pipe: Any, options: StreamOptions) -> None:
    """Make every call of `pipe` generate chunk by chunk without guidance, whatever the call asks for, until undone.

    Args:
        undo: takes what is to be undone.
        pipe: a ``WanPipeline`` whose transformer is causal.
        options: levels, chunk and cache; prompts get as many rows as a call asks for.
    """
    undo.callback(setattr, pipe, "__class__", type(pipe))
    pipe.__class__ = _causal_class(type(pipe), options)


def _causal_class(cls: type, options: StreamOptions) -> type:
    """Derive a pipeline class of the same name whose calls make chunks."""
    signature = inspect.signature(cls.__call__)

    @functools.wraps(cls.__call__)
    @torch.no_grad()
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        tokens = bound.arguments.get("max_sequence_length", options.tokens)
        bound.apply_defaults()
        return _answer(self, options, {**bound.arguments, "max_sequence_length": tokens})

    same = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, (cls,), {**same, "__call__": __call__, "_chunks": options})


def options_of(pipe: Any) -> StreamOptions | None:
    """Levels, chunk and cache of a pipeline that `run_causal` changed; None of another."""
    return getattr(type(pipe), "_chunks", None)


def _answer(pipe: Any, options: StreamOptions, asked: Mapping[str, Any]) -> Any:
    """Make the videos of a call, in the form that ``WanPipeline`` returns."""
    from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput

    _check(pipe, options, asked)
    cond = _conditions(pipe, asked)
    generators = asked["generator"]
    if isinstance(generators, list):  # a generator for each video, as if it were made alone
        if len(generators) != len(cond):
            raise ValueError(f"{len(generators)} generators for {len(cond)} videos: one for each is needed")
        latents = [None] * len(cond) if asked["latents"] is None else asked["latents"].split(1)
        each = zip(cond.split(1), generators, latents, strict=True)
        made = torch.cat([_video(pipe, options, asked, *one) for one in each])
    else:
        made = _video(pipe, options, asked, cond, generators, asked["latents"])
    pipe.maybe_free_model_hooks()
    if asked["output_type"] != "latent":
        made = pipe.video_processor.postprocess_video(made, output_type=asked["output_type"])
    return WanPipelineOutput(frames=made) if asked["return_dict"] else (made,)


def _check(pipe: Any, options: StreamOptions, asked: Mapping[str, Any]) -> None:
    if asked["callback_on_step_end"] is not None:
        raise ValueError("a causal pipeline makes no steps of the whole video: leave callback_on_step_end out")
    given = ("prompt", "negative_prompt", "height", "width", "prompt_embeds", "negative_prompt_embeds")
    pipe.check_inputs(*(asked[name] for name in given))
    if asked["prompt"] is not None:
        prompts = [asked["prompt"]] if isinstance(asked["prompt"], str) else asked["prompt"]
        wan.check_prompts(pipe, prompts, asked["max_sequence_length"])
    frames = options.chunk * chunk_count(pipe, asked["num_frames"], options.chunk)
    check_positions(pipe, frames, options.policy)
    shape = (*_size(pipe, asked)[:1], frames, *_size(pipe, asked)[1:])
    if asked["latents"] is not None and tuple(asked["latents"].shape[1:]) != shape:
        raise ValueError(f"latents must be [b, {', '.join(map(str, shape))}], found {tuple(asked['latents'].shape)}")


def _size(pipe: Any, asked: Mapping[str, Any]) -> tuple[int, int, int]:
    """Channels, rows and columns of a latent frame."""
    architecture = wan.architecture(pipe)
    channels, _, rows, columns = architecture.latent(1, asked["height"], asked["width"])
    return channels, rows, columns


def _conditions(pipe: Any, asked: Mapping[str, Any]) -> Tensor:
    """Prompt embeddings ``[B, T, d]``, one for each video."""
    embeddings, _ = pipe.encode_prompt(
        prompt=asked["prompt"],
        do_classifier_free_guidance=False,
        num_videos_per_prompt=asked["num_videos_per_prompt"],
        prompt_embeds=asked["prompt_embeds"],
        max_sequence_length=asked["max_sequence_length"],
        device=pipe._execution_device,
    )
    return embeddings.to(pipe.transformer.dtype)


def _video(
    pipe: Any,
    options: StreamOptions,
    asked: Mapping[str, Any],
    cond: Tensor,
    generator: torch.Generator | None,
    given: Latent | None,
) -> Tensor:
    """Latents ``[B, C, F, H, W]``, or pixels ``[B, 3, F, H, W]`` in [-1, 1], of videos with one generator.

    The noise is that of a `fewstep.families.wan_stream.WanStream` with the same generator.
    """
    device, (channels, rows, columns) = pipe._execution_device, _size(pipe, asked)
    cache, decoder, parts = ChunkCache(options.policy), StreamDecoder(pipe), []
    count = chunk_count(pipe, asked["num_frames"], options.chunk)
    with pipe.progress_bar(total=count) as bar:
        for number in range(count):
            if given is not None:
                noise = given[:, :, number * options.chunk :][:, :, : options.chunk].to(device, torch.float32)
            else:
                noise = normal((len(cond), channels, options.chunk, rows, columns), generator, device)
            latents = denoised(pipe.transformer, noise, cond, cache, options, generator)
            if number + 1 < count:
                cache = wan_causal.commit(pipe.transformer, latents, cond, cache)
            parts.append(latents.float() if asked["output_type"] == "latent" else decoder.decode(latents))
            bar.update()
    if asked["output_type"] == "latent":
        return torch.cat(parts, 2)
    return torch.cat(parts, 1).transpose(1, 2) * 2 - 1
