"""Causal video at real architecture: chunks with a KV cache against the whole clip in fifty steps with guidance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fewstep.bench.task import Outcome
from fewstep.contract import Loaded
from fewstep.students.causal import options_of

from .bench import Bench
from .paired import paired
from .video import Generating, now, random_pipeline


@dataclass(frozen=True, kw_only=True)
class Chunkwise(Generating):
    """The same video as `Generating` makes, by a causal pipeline chunk by chunk where one is applied."""

    @torch.no_grad()
    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Time whole calls of a causal pipeline; a step is a call of its network."""
        pipe = loaded.model
        options = options_of(pipe)
        if options is None:
            return super().run(loaded, generator)
        network, calls = pipe.transformer, []
        shape = 1, self.tokens, network.config.text_dim
        prompt = torch.randn(shape, generator=generator).to(network.device, torch.bfloat16)
        counter = network.register_forward_pre_hook(lambda *_: calls.append(1))
        try:
            began = now(network.device)
            latents = pipe(
                prompt_embeds=prompt, num_frames=self.frames, height=self.height, width=self.width,
                output_type="latent", generator=torch.Generator().manual_seed(0),
            ).frames  # fmt: skip
            total = now(network.device) - began
        finally:
            counter.remove()
        counts = {"steps": float(len(calls)), "frames_per_second": self.frames / total}
        return Outcome(
            seconds={"generate": total, "step": total / len(calls)}, counts=counts, evidence=latents.float().cpu()
        )


def causal(bench: Bench) -> None:
    """Salt in four and two steps with all frames in the cache, and in four with a sink and a window of 12 frames."""
    from fewstep_salt import Salt

    loaded = random_pipeline(bench)
    real = {"frames": 81, "height": 480, "width": 832}
    task = Chunkwise(**bench.pick(real, {"frames": 9, "height": 32, "width": 32, "tokens": 6}))
    methods = {
        "salt": Salt(),
        "salt, two steps": Salt(steps=(1000, 500)),
        "salt, window": Salt(window=bench.pick(12, 6), sink=bench.pick(3, 1)),
    }
    paired(bench, loaded, task, "gpu-causal-video", methods, repeats=1)
