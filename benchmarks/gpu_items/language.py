"""Language models of real architecture: SlimInfer, MoDES, Focus-dLLM and their baselines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from fewstep.bench.task import Outcome
from fewstep.contract import Loaded
from fewstep.families import causal_lm, masked_lm, moe, tiny_moe
from fewstep.families.kv_cache import cache_sizes

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
    """Llama-3.1-8B, or a tiny Llama."""
    from transformers import LlamaConfig

    if bench.tiny:
        return causal_lm.tiny(num_hidden_layers=3).to(bench.dtype)
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192}
    more = {"vocab_size": 128256, "max_position_embeddings": 131072, "rope_parameters": rope, "rms_norm_eps": 1e-5}
    layers = layers_that_fit(bench, 32, each=0.44, rest=14)
    return language_model(bench, LlamaConfig(num_hidden_layers=layers, **sizes, **more))


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
    """Qwen3-VL-30B-A3B with as many of its 48 layers as fit, or a tiny one of the same classes."""
    from transformers import Qwen3VLMoeConfig

    if bench.tiny:
        return tiny_moe.tiny().to(bench.dtype)
    layers = layers_that_fit(bench, 48, each=1.26, rest=6)
    text = {"hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": layers}
    text |= {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936}
    text |= {"num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "max_position_embeddings": 262144}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]}}
    vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 2048}
    config = Qwen3VLMoeConfig(text_config=text, vision_config=vision | {"deepstack_visual_indexes": [8, 16, 24]})
    return language_model(bench, config, "AutoModelForImageTextToText")


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
    from transformers import LlamaConfig

    if bench.tiny:
        return masked_lm.tiny(max_position_embeddings=2048).to(bench.dtype)
    sizes = {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 32}
    sizes |= {"vocab_size": 126464, "max_position_embeddings": 65536, "num_hidden_layers": 32, "rms_norm_eps": 1e-5}
    rope = {"rope_type": "default", "rope_theta": 5e5}
    config = LlamaConfig(rope_parameters=rope, eos_token_id=126081, pad_token_id=126081, bos_token_id=None, **sizes)
    config.is_causal, config.mask_token_id, config.diffusion = False, 126336, "llada"
    return masked_lm.both_ways(language_model(bench, config))


def focus_dllm(bench: Bench) -> None:
    """Focus-dLLM, with fewer full passes, and its baselines; vanilla decoding is extrapolated from timed steps."""
    from fewstep_focus_dllm import FastDLLM, FocusDLLM, Vanilla
    from fewstep_focus_dllm.tasks import Latency

    loaded = Loaded(model=llada_8b(bench), name=bench.pick("llada-8b", "tiny-llada"), weights="random")
    focus = FocusDLLM(**bench.pick({}, {"keep_floor": 0, "prompt_block": 8, "sinks": 3, "last_dense": 1}))
    arms = {"focus-dllm": focus, "fast-dllm": FastDLLM()}
    if not bench.tiny:
        arms |= {f"focus-dllm-every-{n}": replace(focus, full_every=n) for n in (2, 4)}
    for length in bench.pick((32768, 8192), (64,)):
        sizes = {"gen_length": bench.pick(256, 8), "block_length": bench.pick(32, 4), "timed_steps": 2}
        paired(bench, loaded, Latency(length=length, **sizes), "gpu-diffusion-decoding", arms, repeats=1, gated=False)
        if not bench.tiny:
            published = {"vanilla": Vanilla()}
            paired(
                bench,
                loaded,
                Latency(length=length, **sizes),
                "gpu-diffusion-decoding",
                published,
                repeats=1,
                gated=False,
            )
