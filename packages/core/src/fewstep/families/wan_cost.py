"""Operations of Wan video models, from their configuration: prompt, denoising step, and memory."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from ..roofline import Cost, Operation, Phase, Workload
from . import wan_vae_phases
from .wan import Architecture

STEP = "denoising step"
"""Name of the phase of one call of the transformer."""
STEPS = 50
"""Denoising steps that Wan is released with."""
LAUNCHES, AROUND = 106, 78
"""Operations in one block of the transformer, and around the blocks, views included; a test counts them."""
PIPELINE = 400
"""Operations of a call of the pipeline besides its networks, each step's scheduler included."""
_ELEMENTWISE = 40
"""Elements that norms, modulation, rotary embedding and residuals of a block read and write for each of its own."""


def cost(parts: Mapping[str, Any], work: Workload, steps: int, guided: bool) -> Cost:
    """Phases and memory of one call of a Wan pipeline.

    Raises:
        ValueError: the video does not divide into latents and patches.
    """
    transformer, calls = parts["transformer"], 2 if guided else 1
    shape = _architecture(parts).latent(work.frames, work.height, work.width)
    step = tuple(calls * operation for operation in network(transformer, shape, work))
    return _around(parts, work, Phase(name=STEP, operations=step, times=steps), shape, calls)


def causal(parts: Mapping[str, Any], work: Workload, steps: int, chunk: int, window: int | None = None) -> Cost:
    """Phases and memory of one call that makes the video chunk by chunk, without guidance (see `wan_causal`).

    Each chunk costs `steps` calls of the network and one for the cache, but the last, which nobody looks back at.
    Attention is linear in the past, so the mean chunk stands for all.

    Args:
        parts: configurations by part of the pipeline.
        work: the video; frames that do not divide into chunks are rounded up.
        steps: of each chunk.
        chunk: latent frames of a chunk.
        window: latent frames that a chunk attends to, its own included; None: all.

    Raises:
        ValueError: the video does not divide into latents and patches.
    """
    transformer = parts["transformer"]
    channels, frames, *size = _architecture(parts).latent(work.frames, work.height, work.width)
    count = -(-frames // chunk)
    room = frames if window is None else window - chunk
    seen = [min(number * chunk, room) for number in range(count)]
    shape, each = (channels, chunk, *size), _tokens(transformer, (channels, 1, *size))
    step = network(transformer, shape, work, past=each * sum(seen) / count)
    made = _around(parts, work, Phase(name=STEP, operations=tuple(step), times=count * (steps + 1) - 1), shape, 1)
    kept = 2 * transformer["num_layers"] * _width(transformer) * each * (max(seen) + chunk)
    return Cost(phases=made.phases, memory={**made.memory, "KV cache": work.batch * work.element * kept})


def _around(parts: Mapping[str, Any], work: Workload, denoising: Phase, shape: tuple[int, ...], calls: int) -> Cost:
    """Denoising of latents of this shape, with the prompt before it, the VAE after it, and memory."""
    transformer, phases = parts["transformer"], [denoising]
    memory: dict[str, float] = {"weights": work.element * parameters(transformer)}
    if text := parts.get("text_encoder"):
        prompts = tuple(calls * operation for operation in prompt(text, work))
        phases.insert(0, Phase(name="prompt", operations=prompts))
        memory["text encoder"] = work.element * _text_parameters(text)
    width, tokens = _width(transformer), _tokens(transformer, shape)
    memory["activations"] = work.batch * work.element * tokens * (6 * width + transformer["ffn_dim"])
    vae = parts.get("vae")
    if vae is not None and not vae.is_residual:  # the residual decoder of Wan 2.2 is not counted
        decoding = wan_vae_phases.stock(vae, work)
        phases += decoding.phases
        memory |= decoding.memory
    return Cost(phases=tuple(phases), memory=memory)


def _architecture(parts: Mapping[str, Any]) -> Architecture:
    vae = parts.get("vae")
    if vae is None:  # latents are pixels
        return Architecture(transformer=parts["transformer"], temporal=1, spatial=1)
    return Architecture(
        transformer=parts["transformer"], temporal=vae.scale_factor_temporal, spatial=vae.scale_factor_spatial
    )


def _width(config: Mapping[str, Any]) -> int:
    return config["num_attention_heads"] * config["attention_head_dim"]


def _tokens(config: Mapping[str, Any], shape: tuple[int, ...]) -> int:
    patch = config.get("patch_size", (1, 2, 2))
    return prod(-(-size // cut) for size, cut in zip(shape[1:], patch, strict=True))


def network(config: Mapping[str, Any], shape: tuple[int, ...], work: Workload, past: float = 0.0) -> list[Operation]:
    """One call of the transformer for latents ``[B, *shape]`` that attend to ``P = past`` cached tokens besides.

    L (8 d^2 N + 4 N (N + P) d  +  4 d^2 (N + T) + 4 N T d  +  4 d ff N)  +  4 N d C p
    """
    width, feed, layers = _width(config), config["ffn_dim"], config["num_layers"]
    tokens, text, element = _tokens(config, shape) * work.batch, work.text_tokens * work.batch, work.element
    each, patch = tokens / work.batch, prod(config.get("patch_size", (1, 2, 2)))
    products = 8 * width**2 * tokens + 4 * width**2 * (tokens + text) + 4 * width * feed * tokens
    moved = tokens * (13 * width + 2 * feed) + text * 3 * width
    text_width = config.get("text_dim", 4096)
    around = 4 * tokens * width * shape[0] * patch + 2 * text * width * (text_width + width)
    return [
        Operation(flops=layers * products, bytes=layers * element * (8 * width**2 + 2 * width * feed + moved)),
        Operation(
            kind="attention",
            flops=layers * 4 * tokens * (each + past + work.text_tokens) * width,
            bytes=layers * element * (6 * tokens + 2 * past * work.batch + 2 * text) * width,
        ),
        Operation(flops=around, bytes=element * width * (6 * width + text_width + width), launches=AROUND),
        Operation(
            kind="elementwise",
            bytes=layers * element * (_ELEMENTWISE * tokens * width + 2 * tokens * feed),
            launches=LAUNCHES * layers,
        ),
    ]


def parameters(config: Mapping[str, Any]) -> int:
    """Elements of the matrices of the transformer."""
    width, text = _width(config), config.get("text_dim", 4096)
    channels = config.get("in_channels", 16) + config.get("out_channels", 16)
    blocks = config["num_layers"] * (8 * width**2 + 2 * width * config["ffn_dim"])
    patch = prod(config.get("patch_size", (1, 2, 2)))
    condition = width * (text + width) + width * (config.get("freq_dim", 256) + 7 * width)
    return blocks + condition + width * channels * patch


def prompt(config: Mapping[str, Any], work: Workload) -> list[Operation]:
    """The text encoder (a T5 with gated feed-forward) on one batch of prompts, and the call around everything."""
    matrices = _text_parameters(config) - config["vocab_size"] * config["d_model"]
    rows, inner = work.batch * work.text_tokens, config["num_heads"] * config["d_kv"]
    return [
        Operation(flops=2 * matrices * rows, bytes=work.element * matrices, launches=40 * config["num_layers"]),
        Operation(kind="attention", flops=4 * config["num_layers"] * rows * work.text_tokens * inner),
        Operation(kind="elementwise", launches=PIPELINE),
    ]


def _text_parameters(config: Mapping[str, Any]) -> int:
    width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    return config["num_layers"] * width * (4 * inner + 3 * config["d_ff"]) + config["vocab_size"] * width
