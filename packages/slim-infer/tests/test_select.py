import math
import random
from dataclasses import replace

import pytest
import torch
from fewstep.kernels.unit_score import unit_score
from fewstep_slim_infer import LazyLLM, SlimInfer
from fewstep_slim_infer.select import (
    Candidates,
    block_scores,
    blocks_kept,
    forced_blocks,
    rows_of,
    spread,
    top_blocks,
    unit_means,
)
from transformers import LlamaConfig, Qwen2Config


def slow_selection(query, keys, numbers, block, unit, budget, sinks, tails, window, score, carry):
    """The card's sections 2.2 and 2.3 as loops over Python numbers."""
    heads, kv_heads, tokens = query.shape[0], keys.shape[0], keys.shape[1]
    starts = list(range(0, tokens, unit))
    products = torch.zeros(heads, len(starts))
    for h in range(heads):
        for u, start in enumerate(starts):
            mean = keys[h // (heads // kv_heads), start : start + unit].mean(0)
            products[h, u] = (query[h] * mean).sum()
    if score == "abs_dot":
        products = products.abs()
    if score == "unit_softmax":
        products = (products / math.sqrt(query.shape[1])).softmax(-1)
    per_unit = products.mean(0).tolist()
    blocks = math.ceil(tokens / block)
    r = []
    for j in range(blocks):
        first = j * block // unit
        if j and numbers[j] == numbers[j - 1] + 1:
            first -= carry
        r.append(max(per_unit[first : (j + 1) * block // unit]))
    must = {j for j in range(blocks) if j < sinks or j >= blocks - tails or (j + 1) * block > tokens - window}
    rest = sorted(set(range(blocks)) - must, key=lambda j: (-r[j], j))
    return sorted([*must, *rest[: max(budget - len(must), 0)]]) if blocks > budget else list(range(blocks))


@pytest.mark.parametrize("score", ["dot", "abs_dot", "unit_softmax"])
@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_selection_equals_loops(ratio, score):
    draw = random.Random(ratio)
    for case in range(34):
        generator = torch.Generator().manual_seed(case)
        block, unit = draw.choice([(4, 2), (8, 8), (16, 4), (1, 1)])
        tokens, window = draw.randint(30, 130), draw.randint(1, 6)
        query, keys = torch.randn(4, 8, generator=generator), torch.randn(4 // ratio, tokens, 8, generator=generator)
        if case % 3 == 0:
            keys = keys.sign()  # many ties
            query = query.sign()
        sinks, tails = draw.randint(0, 2), draw.randint(1, 2)
        forced = forced_blocks(tokens, block, sinks=sinks, tails=tails, window=window)
        budget = max(draw.randint(1, 12), int(forced.sum()))
        carry = draw.randint(0, block // unit)
        left = sorted(draw.sample(range(200), math.ceil(tokens / block)))
        numbers = torch.tensor(left if case % 2 else range(len(left)))
        scores = block_scores(query, keys, numbers, block=block, unit=unit, score=score, carry=carry)
        # the loops add in another order; rounding makes exact ties equal again in both
        chosen = top_blocks(scores.mul(1e4).round(), budget, forced).tolist()
        assert len(chosen) == min(budget, scores.numel()) and chosen == sorted(chosen)
        wanted = slow_selection(query, keys, numbers.tolist(), block, unit, budget, sinks, tails, window, score, carry)
        if case % 3:
            assert chosen == wanted
        else:
            assert set(forced.nonzero().flatten().tolist()) <= set(chosen)


@pytest.mark.parametrize("carry", [0, 1, 2])
def test_decoding_chooses_from_unit_means_what_the_prefill_chooses_from_keys(carry):
    generator = torch.Generator().manual_seed(carry)
    numbers = torch.tensor([0, 1, 2, 5, 6, 9])
    query, keys = torch.randn(4, 8, generator=generator), torch.randn(2, 6 * 16, 8, generator=generator)
    settings = SlimInfer(block=16, unit=4, score="dot", carry=carry)
    scores = block_scores(query, keys, numbers, block=16, unit=4, score="dot", carry=carry)
    forced = forced_blocks(6 * 16, 16, sinks=1, tails=1, window=1)
    wanted = numbers[top_blocks(scores, 4, forced)].tolist()
    candidates = Candidates(numbers.tolist(), unit_means(keys, 4))
    assert candidates.choose(query, 4, settings, tails=1) == wanted
    without = Candidates([0, 1, 5, 6, 9], unit_means(keys[:, [*range(32), *range(48, 96)]], 4))
    completed = without.insert(2, unit_means(keys[:, 32:48], 4))
    assert completed.numbers == candidates.numbers and torch.equal(completed.units, candidates.units)


def test_ties_go_to_the_lower_block():
    assert top_blocks(torch.ones(9), 3, torch.zeros(9).bool()).tolist() == [0, 1, 2]
    assert top_blocks(torch.ones(9), 3, torch.arange(9) == 7).tolist() == [0, 1, 7]


def test_the_hand_made_score():
    keys = torch.tensor([[(1, 0), (3, 0), (0, 1), (0, 3), (1, 2), (1, 2), (-4, 0), (-4, 0)]], dtype=torch.float32)
    query = torch.tensor([[(1, 0), (1, 0)], [(0, 0), (0, 2)]], dtype=torch.float32).mean(1)
    assert unit_score(query, keys, block=4, unit=2, score="dot").tolist() == [1.0, 1.5]
    assert unit_score(query, keys, block=4, unit=2, score="abs_dot").tolist() == [1.0, 2.0]
    assert unit_score(query, keys, block=4, unit=4, score="dot").tolist() == [1.0, -0.25]


def test_rows_of_a_ragged_tail():
    assert rows_of(torch.tensor([0, 2]), 4, 10).tolist() == [0, 1, 2, 3, 8, 9]


def test_the_window_may_straddle_two_blocks():
    forced = forced_blocks(66, 16, sinks=1, tails=1, window=4)
    assert forced.tolist() == [True, False, False, True, True]


def test_budgets():
    assert spread(0.5, 3) == (0.5, 0.25, 0.125)
    assert spread(8192, 3) == (8192, 4096, 2048)
    assert spread(1.0, 2) == (1.0, 1.0)
    assert blocks_kept(1.0, 100, 16, 2) == 7
    assert blocks_kept(0.25, 1024, 32, 2) == 8
    assert blocks_kept(0.01, 1024, 32, 2) == 3


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(num_hidden_layers=32, hidden_size=4096),
        Qwen2Config(num_hidden_layers=28, hidden_size=3584),
        LlamaConfig(num_hidden_layers=30, hidden_size=576),
    ],
    ids=["llama-3.1-8b", "qwen2.5-7b", "smollm2-135m"],
)
def test_a_known_model_needs_no_warning_and_no_field(config, recwarn):
    method = SlimInfer().resolve(config)
    assert None not in (method.entry, method.keep, method.block, method.window, method.carry, method.score)
    assert len(method.keep) == len(method.entry) and not recwarn.list


def test_other_entry_layers_than_the_presets():
    config = LlamaConfig(num_hidden_layers=30, hidden_size=576)
    fast = SlimInfer(preset="fast")
    assert replace(fast, entry=(18, 22, 27)).resolve(config).keep == (1 / 4, 1 / 8, 1 / 16)
    assert replace(fast, entry=(21,)).resolve(config).keep == (1 / 4,)
    assert replace(fast, entry=(12, 18, 22, 27)).resolve(config).keep == (1 / 4, 1 / 8, 1 / 16, 1 / 32)


def test_the_default_preset_keeps_more_than_the_fast_one():
    config = LlamaConfig(num_hidden_layers=30, hidden_size=576)
    default, fast = (SlimInfer(preset=name).resolve(config) for name in ("default", "fast"))
    assert default.keep[0] > fast.keep[0] and default.window > fast.window
    assert LazyLLM(preset="fast")._tokenwise().resolve(config).keep == fast.keep


def test_a_model_without_a_fast_preset_is_named():
    with pytest.raises(ValueError, match="preset='fast': there is none for llama with 32 layers and width 4096"):
        SlimInfer(preset="fast").resolve(LlamaConfig(num_hidden_layers=32, hidden_size=4096))


def test_the_memory_table_of_the_paper():
    """GiB of KV cache of Llama-3.1-8B at 8K, 16K, 24K and 32K tokens."""
    method = SlimInfer().resolve(LlamaConfig(num_hidden_layers=32, hidden_size=4096))
    edges = [0, *method.entry, 32]

    def gib(prompt):
        kept = [prompt, *(blocks_kept(k, prompt, method.block, 2) * method.block for k in method.keep)]
        layers = zip(kept, edges, edges[1:], strict=False)
        return sum(min(k, prompt) * (stop - start) for k, start, stop in layers) * 4096 / 2**30

    assert [round(gib(k * 1024), 3) for k in (8, 16, 24, 32)] == [0.797, 1.109, 1.422, 1.734]


def test_an_unknown_model_is_warned_about_once_by_name():
    with pytest.warns(UserWarning, match="fewstep fit slim-infer") as caught:
        method = SlimInfer().resolve(LlamaConfig(num_hidden_layers=16, hidden_size=128))
    assert method.entry == (5, 10, 15) and len(caught) == 1
