"""Apply and remove methods in random order on one model of each kind, and look for what stays."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .process import Outcome


@dataclass(frozen=True)
class Bench:
    """A tiny model, methods that fit it, and a call of it."""

    model: Any
    methods: Sequence[Any]
    call: Callable[[Any], Any]
    """Runs the model; its output is compared bit for bit."""


def sequences(count: int, chance: random.Random, work: Path) -> Outcome:
    """Run `count` random sequences, each on one of the models, and compare outputs, attributes and hooks at the end."""
    import torch

    seen = Outcome()
    with torch.inference_mode():
        benches = [causal_language(), diffusion_language(), experts(), video_decoder(), video_pipeline()]
        dense = [(bench.call(bench.model), attributes(bench.model)) for bench in benches]
        while seen["sequences"] < count:
            at = chance.randrange(len(benches))
            _sequence(benches[at], chance, seen)
            output, names = dense[at]
            kind = type(benches[at].model).__name__
            seen["wrong: other output"] += not torch.equal(benches[at].call(benches[at].model), output)
            seen["wrong: something stays"] += attributes(benches[at].model) != names
            seen[f"sequences on {kind}"] += 1
            seen["sequences"] += 1
    print(f"sequences {seen['sequences']} of {count}", flush=True)
    return seen


def _sequence(bench: Bench, chance: random.Random, seen: Outcome) -> None:
    from fewstep import FewstepError

    applied: list[Any] = []
    for _ in range(chance.randint(1, 6)):
        if applied and chance.random() < 0.5:
            applied.pop(chance.randrange(len(applied))).remove()
        else:
            try:
                applied.append(chance.choice(bench.methods).apply(bench.model))
            except FewstepError:
                seen["refused: already applied"] += 1
        if chance.random() < 0.5:
            bench.call(bench.model)
    chance.shuffle(applied)
    for one in applied:
        one.remove()


def attributes(model: Any) -> list[str]:
    """Names of all attributes and counts of all hooks of a model's modules."""
    from fewstep.testing.case import modules

    return [
        f"{prefix}{name}.{attribute}{len(value) if attribute.endswith('_hooks') else ''}"
        for prefix, network in modules(model).items()
        for name, module in network.named_modules()
        for attribute, value in sorted(vars(module).items())
    ]


def causal_language() -> Bench:
    """A tiny Llama with three ways of dropping prompt tokens."""
    from fewstep.families import causal_lm
    from fewstep_slim_infer import GemFilter, LazyLLM, SlimInfer

    methods = [
        SlimInfer(entry=(2, 4), keep=0.5, block=16, unit=4, score="dot"),
        LazyLLM(entry=(2, 4), keep=0.5),
        GemFilter(filter_layer=2, keep=0.5),
    ]
    prompt = causal_lm.tiny_prompt(96)
    return Bench(causal_lm.tiny(), methods, lambda model: model(prompt, logits_to_keep=1).logits)


def diffusion_language() -> Bench:
    """A tiny LLaDA with all decoders."""
    import torch
    from fewstep.families import masked_lm
    from fewstep_focus_dllm import DecodingOptions, FastDLLM, FocusDLLM, SparseDLLM, Vanilla
    from fewstep_focus_dllm.generation import current_generate

    focus = FocusDLLM(keep=0.3, keep_floor=0, prompt_block=8, sinks=3, last_dense=1, min_focus=2)
    decoding = DecodingOptions(gen_length=8, block_length=8, stop_at_eos=False)
    prompt = torch.randint(3, 49, (1, 48), generator=torch.Generator().manual_seed(0))
    methods = [focus, FastDLLM(), SparseDLLM(), Vanilla()]
    return Bench(
        masked_lm.tiny(), methods, lambda model: current_generate(model)(prompt, decoding=decoding).response.clone()
    )


def experts() -> Bench:
    """A tiny mixture of experts with policies that skip."""
    from fewstep.families import tiny_moe
    from fewstep_modes import NAEE, MoDES, ReduceK

    modes = MoDES(
        points=({"target": 0.5, "tau_text": 0.05, "tau_vision": 0.09},), alpha_text=(0.6, 0.4), alpha_vision=(0.7, 0.3)
    )
    model = tiny_moe.tiny("qwen3_moe", num_hidden_layers=2, layer_types=["full_attention"] * 2)
    inputs = tiny_moe.tiny_inputs("qwen3_moe")
    return Bench(
        model, [modes, ReduceK(keep=2.0), NAEE(beta=0.4)], lambda model: model(**inputs, use_cache=False).logits
    )


def video_decoder() -> Bench:
    """A tiny Wan VAE with the exact decoder."""
    import torch
    from fewstep.families import wan_vae
    from fewstep_flash_vaed import ExactDecode

    vae = wan_vae.tiny()
    latents = torch.randn(1, vae.config.z_dim, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    return Bench(vae, [ExactDecode(chunk=2), ExactDecode()], lambda vae: vae.decode(latents).sample)


def video_pipeline() -> Bench:
    """A tiny Wan pipeline with methods on two seams of it."""
    import torch
    from fewstep.families import wan
    from fewstep_flash_vaed import ExactDecode
    from fewstep_sgmd import SGMD

    def video(pipe: Any) -> Any:
        return pipe(
            "a cat", num_inference_steps=2, num_frames=5, height=16, width=16, max_sequence_length=4,
            generator=torch.Generator().manual_seed(0), output_type="pt",
        ).frames  # fmt: skip

    pipe = wan.tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return Bench(pipe, [SGMD(steps=(1000, 500), shift=8.0), ExactDecode()], video)
