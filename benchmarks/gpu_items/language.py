"""Language models of real architecture: SlimInfer, MoDES, Focus-dLLM and their baselines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from fewstep.bench.task import Outcome
from fewstep.contract import Loaded
from fewstep.families import causal_lm, masked_lm, moe
from fewstep.families.kv_cache import cache_sizes

from . import configs
from .bench import Bench
from .build import language_model, layers_that_fit
from .paired import paired

DECODE = (*moe.MANY_TOKENS, "batched_mm")
"""Implementations of experts that the unchanged model decodes with; the fastest counts."""
FIRST, WORDS = 3, 10_000
"""Random tokens of prompts are in this range: no special token of any model, no picture mark."""


@dataclass(frozen=True, kw_only=True)
class LongPrompt:
    """Read random tokens, then known ones one by one; the unchanged model has the fastest of transformers' experts."""

    length: int
    """Tokens of the prompt."""
    new_tokens: int
    """Tokens that are decoded after it."""
    words: int = WORDS
    """Tokens are below this."""

    @torch.inference_mode()
    def run(self, loaded: Loaded, generator: torch.Generator) -> Outcome:
        """Time both; the evidence is the logits after the prompt."""
        model, count = loaded.model, self.length + self.new_tokens + 1
        ids = torch.randint(FIRST, self.words, (1, count), generator=generator).to(model.device)
        prompt, known = ids[:, : self.length], ids[:, self.length :]
        logits, cache, ttft = moe.fastest(model, lambda: causal_lm.prefill(model, prompt))
        sizes = cache_sizes(cache)

        def decode() -> tuple[Any, float]:
            if (excess := cache.get_seq_length() - self.length) > 0 and not hasattr(cache, "segments"):
                cache.crop(-excess)
            return causal_lm.decode_known(model, known, cache)

        took = moe.fastest(model, decode, DECODE)[-1]
        times = {"ttft": ttft, "decode": took / self.new_tokens, "request": ttft + took}
        return Outcome(seconds=times, counts=sizes, evidence=logits.float().cpu())

    def small(self) -> LongPrompt:
        """A prompt of at most 1024 tokens."""
        return replace(self, length=min(self.length, 1024), new_tokens=2)


def llama_8b(bench: Bench) -> Any:
    """Llama-3.1-8B with as many layers as fit, or a tiny one."""
    if bench.tiny:
        return language_model(bench, configs.llama(**configs.TINY_LLAMA))
    return language_model(bench, configs.llama(num_hidden_layers=layers_that_fit(bench, 32, each=0.44, rest=14)))


def slim_infer(bench: Bench) -> None:
    """SlimInfer at its preset, with and without a smaller budget while decoding."""
    from fewstep_slim_infer import SlimInfer

    loaded = Loaded(model=llama_8b(bench), name=bench.pick("llama-3.1-8b", "tiny-llama"), weights="random")
    layers = loaded.model.config.num_hidden_layers
    entry = bench.pick(tuple(layers * part // 32 for part in (10, 20, 30)), (1, 2))
    sized = bench.pick({}, {"block": 16, "unit": 4})
    plain = SlimInfer(entry=entry, keep=bench.pick(8192, 0.5), **sized)
    for length in bench.pick((32768, 8192, 65536), (150,)):
        task = LongPrompt(length=length, new_tokens=bench.pick(64, 2), words=bench.pick(WORDS, 97))
        kept = replace(plain, keep=0.25) if length <= 8192 and not bench.tiny else plain
        paired(bench, loaded, task, "gpu-long-prompt", {"slim-infer": kept})


def qwen_30b_a3b(bench: Bench) -> Any:
    """Qwen3-VL-30B-A3B with as many of its 48 layers as fit, or a tiny one."""
    kind = "AutoModelForImageTextToText"
    if bench.tiny:
        ids = {"image_token_id": 90, "video_token_id": 93, "vision_start_token_id": 91, "vision_end_token_id": 92}
        return language_model(bench, configs.qwen(configs.TINY_TEXT, configs.TINY_VISION, **ids), kind)
    layers = layers_that_fit(bench, 48, each=1.26, rest=6)
    return language_model(bench, configs.qwen({"num_hidden_layers": layers}, {}), kind)


@torch.inference_mode()
def modes(bench: Bench) -> None:
    """MoDES at 88 % skipped, the threshold taken from the routing weights of random tokens."""
    from fewstep_modes import MoDES

    model, words = qwen_30b_a3b(bench), bench.pick(WORDS, 80)
    loaded = Loaded(model=model, name=bench.pick("qwen3-vl-30b-a3b", "tiny-qwen3-vl-moe"), weights="random")
    sites = moe.sites(model)
    seen: list[torch.Tensor] = []
    hooks = [
        site.router.register_forward_hook(lambda router, args, out: seen.append(out[1] / out[1].sum(-1, keepdim=True)))
        for site in sites
    ]
    model(input_ids=torch.randint(FIRST, words, (1, bench.pick(512, 32)), device=bench.device), logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    weights = torch.cat([one.flatten().float() for one in seen])
    at = weights.kthvalue(round(0.88 * weights.numel())).values.item() / len(sites)
    method = MoDES(target=0.88, points=({"target": 0.88, "tau_text": at, "tau_vision": at},))
    for length in bench.pick((4096, 16384), (64,)):
        task = LongPrompt(length=length, new_tokens=bench.pick(32, 2), words=words)
        paired(bench, loaded, task, "gpu-experts-prompt", {"modes": method})


def llada_8b(bench: Bench) -> Any:
    """LLaDA-8B with room for long prompts, or a tiny one."""
    config = configs.llada(mask=96, **configs.TINY_LLADA) if bench.tiny else configs.llada()
    return masked_lm.both_ways(language_model(bench, config))


def focus_dllm(bench: Bench) -> None:
    """Focus-dLLM, with fewer full passes, and its baselines; vanilla decoding is extrapolated from timed steps."""
    from fewstep_focus_dllm import FastDLLM, FocusDLLM, Vanilla
    from fewstep_focus_dllm.tasks import Latency

    loaded = Loaded(model=llada_8b(bench), name=bench.pick("llada-8b", "tiny-llada"), weights="random")
    focus = FocusDLLM(**bench.pick({}, {"keep_floor": 0, "prompt_block": 8, "sinks": 3, "last_dense": 1}))
    arms = {"focus-dllm": focus, "fast-dllm": FastDLLM()}
    if not bench.tiny:
        arms |= {f"focus-dllm-every-{n}": replace(focus, full_every=n) for n in (4, 2)}
    sizes = {"gen_length": bench.pick(128, 8), "block_length": bench.pick(32, 4), "timed_steps": 2}
    for length in bench.pick((8192, 32768), (64,)):
        task = Latency(length=length, **sizes)
        paired(bench, loaded, task, "gpu-diffusion-decoding", arms, repeats=1, gated=False)
        if not bench.tiny:  # its softmax over all rows in float64 has no room at 32K
            published = {"vanilla": Vanilla(softmax="float64" if length <= 8192 else "float32")}
            paired(bench, loaded, task, "gpu-diffusion-decoding", published, repeats=1, gated=False)
