"""Operations and memory of causal Wan against counts of real calls, and against the published sizes."""

from __future__ import annotations

import torch
from fewstep.applied import Applied
from fewstep.families import known, wan, wan_causal, wan_cost, wan_vae_cost
from fewstep.families.chunk_cache import CachePolicy, ChunkCache
from fewstep.roofline import Workload
from torch.utils.flop_counter import FlopCounterMode

TEXT = 5


def test_products_of_a_cached_chunk_are_counted_as_torch_counts_them():
    network, policy = wan.tiny(), CachePolicy()
    cond, clean = torch.randn(2, TEXT, wan.TEXT_WIDTH), torch.randn(2, 3, 2, 8, 8)
    with Applied() as undo, torch.no_grad():
        wan_causal.make_causal(network, undo)
        cache = wan_causal.commit(network, clean, cond, ChunkCache(policy))
        cache = wan_causal.commit(network, clean, cond, cache)
        with FlopCounterMode(display=False) as counted:
            wan_causal.velocity(network, clean, torch.full((2,), 0.5), cond, cache)
    work = Workload(batch=2, text_tokens=TEXT)
    first, cached = (wan_cost.network(dict(network.config), (3, 2, 8, 8), work, past=past) for past in (0.0, 4 * 4 * 4))
    more = sum(each.flops for each in cached) - sum(each.flops for each in first)
    width = 24
    assert more == 2 * 4 * (2 * 2 * 16) * 64 * width  # layers, products of queries and values, queries, keys
    products = sum(each.flops for each in cached if each.kind != "attention")  # torch does not count it on a CPU
    assert abs(counted.get_total_flops() / products - 1) < 0.05  # all but the embedding of the timestep


def test_wan_1_3b_has_the_attention_and_the_cache_of_the_papers():
    parts = known.parts("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    parts = {**parts, "vae": wan_vae_cost.config_of(parts["vae"])}
    work = Workload(frames=81, height=512, width=768, text_tokens=512)
    last = wan_cost.network(parts["transformer"], (16, 3, 64, 96), work, past=18 * 1536)
    text = 4 * 30 * 4608 * 512 * 1536
    assert abs(last[1].flops - text - 27.4e12) < 0.05e12
    usual = Workload(frames=81, height=480, width=832)
    made = wan_cost.causal(parts, usual, steps=4, chunk=3)
    assert abs(made.memory["KV cache"] - 6.04e9) < 0.01e9
    windowed = wan_cost.causal(parts, usual, steps=4, chunk=3, window=12)
    assert windowed.memory["KV cache"] == made.memory["KV cache"] * 12 / 21
    (step,) = (phase for phase in made.phases if phase.name == wan_cost.STEP)
    assert step.times == 7 * 5 - 1
