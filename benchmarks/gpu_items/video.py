"""Wan at real architecture: its VAE with decoders of ours, and four steps without guidance against fifty with it."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fewstep.bench.task import Outcome
from fewstep.contract import Loaded
from fewstep.families import wan, wan_vae

from .bench import Bench
from .build import network
from .paired import paired


def now(device: torch.device) -> float:
    """Seconds on the clock when everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Decode the random latents of a clip."""

    frames: int
    height: int
    width: int

    @torch.no_grad()
    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Time it; pixels are compared only where they are few."""
        vae = loaded.model
        shape = wan_vae.latent_shape(vae.config, self.frames, self.height, self.width)
        latents = torch.randn(shape, generator=generator).to(vae.device, vae.dtype)
        began = now(vae.device)
        pixels = vae.decode(latents, return_dict=False)[0]
        seconds = now(vae.device) - began
        few = pixels.float().cpu() if pixels.numel() < 1 << 22 else None
        return Outcome(seconds={"decode": seconds}, evidence=few)

    def small(self) -> Decoding:
        """Nine frames of at most 128 pixels."""
        return Decoding(frames=min(9, self.frames), height=min(128, self.height), width=min(128, self.width))


def vae(bench: Bench) -> None:
    """The exact decoder and a student of the preset's shape with random weights, at 480p and 720p."""
    from diffusers import AutoencoderKLWan
    from fewstep_flash_vaed import ExactDecode
    from fewstep_flash_vaed.decoder import WanDecoder, decoder_shape, preset
    from fewstep_flash_vaed.method import save_student

    small = {"base_dim": 8, "z_dim": 3, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    small |= {"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}
    made = network(bench, lambda: AutoencoderKLWan(**bench.pick({}, small)))
    loaded = Loaded(model=made, name=bench.pick("wan-2.1-vae", "tiny-wan-vae"), weights="random")
    with tempfile.TemporaryDirectory() as folder:
        student = WanDecoder(decoder_shape(made.config, *preset(made.config)))
        methods = {"exact-decode": ExactDecode(chunk=3), "flash-vaed": save_student(student, Path(folder), "")}
        for height, width in bench.pick(((480, 832), (720, 1280)), ((32, 32),)):
            task = Decoding(frames=bench.pick(81, 5), height=height, width=width)
            paired(bench, loaded, task, "gpu-clip-decoding", methods, repeats=2 if height < 720 else 1)


@dataclass(frozen=True, kw_only=True)
class Generating:
    """Make latents of a video as a pipeline does; where steps are many, a few are timed and the rest is counted."""

    frames: int
    height: int
    width: int
    steps: int = 50
    """Steps that the pipeline is asked for."""
    timed_steps: int = 2
    """Steps that are run after a first one, where there are many: all take the same time."""
    tokens: int = 512
    """Rows of the prompt."""
    many: int = 8
    """More steps than these are not all run."""

    @torch.no_grad()
    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Time the steps one by one; the evidence is the latents, of a run that was not cut short."""
        pipe = loaded.model
        network, ends = pipe.transformer, []
        shape = 1, self.tokens, network.config.text_dim
        prompt, negative = (
            torch.randn(shape, generator=generator).to(network.device, torch.bfloat16) for _ in range(2)
        )

        def ended(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            ends.append(now(network.device))
            pipe._interrupt = pipe.num_timesteps > self.many and len(ends) > self.timed_steps
            return values

        began = now(network.device)
        latents = pipe(
            prompt_embeds=prompt, negative_prompt_embeds=negative, num_inference_steps=self.steps, guidance_scale=5.0,
            num_frames=self.frames, height=self.height, width=self.width, output_type="latent",
            generator=torch.Generator().manual_seed(0), callback_on_step_end=ended,
        ).frames  # fmt: skip
        step = statistics.median(b - a for a, b in zip([began, *ends][1:], ends[1:], strict=False))
        whole = len(ends) == pipe.num_timesteps
        total = ends[-1] - began if whole else step * pipe.num_timesteps
        counts = {"steps": float(pipe.num_timesteps), "steps_timed": float(len(ends))}
        return Outcome(seconds={"generate": total, "step": step}, counts=counts, evidence=latents.float().cpu())

    def small(self) -> Generating:
        """Nine frames of at most 64 pixels."""
        return replace(self, frames=9, height=min(64, self.height), width=min(64, self.width))


def wan_sizes(bench: Bench) -> wan.Architecture:
    """Wan 2.1 1.3B, or a tiny one."""
    if not bench.tiny:
        return wan.KNOWN["Wan-AI/Wan2.1-T2V-1.3B-Diffusers"]
    small = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "freq_dim": 16}
    small |= {"in_channels": 3, "out_channels": 3, "text_dim": 8, "rope_max_seq_len": 16}
    return wan.Architecture(transformer=small)


def random_pipeline(bench: Bench) -> Loaded:
    """A pipeline of a random transformer alone: prompts are random too, latents are not decoded."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

    made = network(bench, lambda: WanTransformer3DModel(**wan_sizes(bench).transformer))
    parts = {"tokenizer": None, "text_encoder": None, "vae": None, "transformer": made}
    pipe = WanPipeline(**parts, scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0))
    pipe.set_progress_bar_config(disable=True)
    return Loaded(model=pipe, name=bench.pick("wan-2.1-1.3b", "tiny-wan"), weights="random")


def few_steps(bench: Bench) -> None:
    """Four steps without guidance against fifty with it."""
    from fewstep_sgmd import SGMD

    loaded = random_pipeline(bench)
    real = {"frames": 81, "height": 480, "width": 832}
    task = Generating(**bench.pick(real, {"frames": 5, "height": 32, "width": 32, "tokens": 6}))
    paired(bench, loaded, task, "gpu-video-steps", {"sgmd": SGMD()}, repeats=1)
