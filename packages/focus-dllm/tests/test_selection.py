"""Unmasking, windows, blocks and sinks, by hand and against brute force."""

import math
import random

import pytest
import torch
from fewstep_focus_dllm.decoders import attend
from fewstep_focus_dllm.selection import (
    block_relevance,
    block_summaries,
    choose,
    confidence,
    kept_blocks,
    prompt_tokens,
    propose,
    top,
    top_confidence,
    widen,
)
from fewstep_focus_dllm.sparse import attend_and_weigh

LOGITS = torch.tensor([[[2.0, 1.0, -torch.inf], [0.0, 0.0, 0.0]]])


def test_greedy_token_and_its_probability():
    token, sure = propose(LOGITS, temperature=0.0, remasking="low_confidence", generator=None)
    assert token[0, 0] == 0 and sure.dtype == torch.float64
    assert sure[0].tolist() == pytest.approx([0.731059, 1 / 3], abs=1e-6)


def test_margin_and_entropy_are_higher_where_the_model_is_surer():
    token = torch.zeros(1, 2, dtype=torch.long)
    assert confidence(LOGITS, token, "margin")[0].tolist() == pytest.approx([0.731059 - 0.268941, 0.0], abs=1e-6)
    entropy = confidence(LOGITS, token, "entropy")[0]
    assert entropy[0] > entropy[1] and entropy[1].item() == pytest.approx(-1.098612, abs=1e-6)


def test_gumbel_samples_follow_the_distribution():
    logits = torch.log(torch.tensor([0.7, 0.2, 0.1])).expand(1, 20_000, 3)
    token, _ = propose(logits, temperature=1.0, remasking="low_confidence", generator=torch.Generator().manual_seed(0))
    assert token[0].bincount().div(20_000).tolist() == pytest.approx([0.7, 0.2, 0.1], abs=0.012)


def test_equal_confidences_go_to_the_lower_index():
    valid = torch.tensor([[True, False, True, True]])
    assert top_confidence(torch.ones(1, 4), valid, torch.tensor([2])).tolist() == [[True, False, True, False]]


def test_a_count_beyond_what_is_valid():
    valid = torch.tensor([[False, True]])
    assert choose(torch.ones(1, 2), valid, torch.tensor([5])).tolist() == [[False, True]]


def test_a_threshold_takes_all_that_reach_it_and_at_least_one():
    sure = torch.tensor([[0.95, 0.2, 0.91], [0.3, 0.4, 0.1], [0.99, 0.99, 0.99]])
    chosen = choose(sure, torch.ones(3, 3, dtype=torch.bool), torch.tensor([1, 1, 0]), threshold=0.9)
    assert chosen.tolist() == [[True, False, True], [False, True, False], [False, False, False]]


def mask_of(positions, length):
    mask = torch.zeros(1, length, dtype=torch.bool)
    mask[0, list(positions)] = True
    return mask


def test_a_window_across_decoded_prompt_and_next_block():
    past = torch.tensor([[0.6, 0.1, 0.5, 0.2]])  # of positions 4, 5, 8, 9; block 4..9, prompt 0..3
    first = top_confidence(past, torch.ones(1, 4, dtype=torch.bool), torch.tensor([2]))
    focus = [p for p, chosen in zip((4, 5, 8, 9), first[0].tolist(), strict=True) if chosen]
    assert focus == [4, 8]
    assert widen(mask_of(focus, 16), 3)[0].nonzero()[:, 0].tolist() == [3, 4, 5, 7, 8, 9]
    assert widen(mask_of([5, 9], 16), 3)[0].nonzero()[:, 0].tolist() == [4, 5, 6, 8, 9, 10]


def test_windows_are_clipped_at_both_ends():
    assert widen(mask_of([0, 9], 10), 5)[0].nonzero()[:, 0].tolist() == [0, 1, 2, 7, 8, 9]


def test_no_window_activates_everything_but_where_nothing_is_in_focus():
    focus = torch.zeros(2, 6, dtype=torch.bool)
    focus[0, 2] = True
    assert widen(focus, None).tolist() == [[True] * 6, [False] * 6]


def test_sink_score_by_hand():
    query, one = torch.tensor([[[[1.0]]]]), torch.ones(1, 1)
    keys = torch.tensor([4.0, 0.0, 0.0, 2.0]).view(1, 1, 4, 1)
    mass = attend_and_weigh(query, keys, keys, None, 1.0, one)[1][0]
    assert mass.tolist() == pytest.approx([0.8533, 0.0156, 0.0156, 0.1155], abs=1e-4)
    assert sorted(top(mass, 2).tolist()) == [0, 3]
    allowed = torch.tensor([[False, True, True, False]])
    assert attend_and_weigh(query, keys, keys, allowed, 1.0, one)[1].tolist() == [[0, 0.5, 0.5, 0]]


def test_sink_score_is_the_weighted_mean_of_attention():
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, heads, n, 16, generator=generator) for heads, n in ((4, 7), (2, 45), (2, 45)))
    weights = torch.rand(2, 7, generator=generator)
    attention = (query @ key.repeat_interleave(2, 1).mT / 4).softmax(-1)
    output, mass = attend_and_weigh(query, key, value, None, 0.25, weights)
    torch.testing.assert_close(mass, (attention.mean(1) * weights[..., None]).sum(1))
    torch.testing.assert_close(output, attend(query, key, value, None, 0.25))


def test_sinks_survive_when_hardly_a_block_is_kept():
    tokens = prompt_tokens(torch.tensor([1]), torch.tensor([0, 30]), prompt=35, block=8)
    assert tokens.tolist() == [0, *range(8, 16), 30, 32, 33, 34]


@pytest.mark.parametrize(
    ("prompt", "block", "keep", "floor", "blocks"),
    [(640, 64, 0.1, 0, 1), (640, 64, 0.11, 0, 2), (640, 64, 0.1, 300, 5), (640, 64, 1.0, 0, 10), (50, 64, 0.1, 9, 0)],
)
def test_kept_blocks_are_whole(prompt, block, keep, floor, blocks):
    assert kept_blocks(prompt, block, keep, floor) == blocks


def brute_relevance(query, keys, block, unit, aggregate):
    """Softmax-mean, mean or max over focus rows, in plain Python."""
    heads, rows, dim = query.shape
    whole, groups = keys.shape[1] // block, keys.shape[0]
    size = min(8, block) if unit else block
    means = []
    for j in range(whole):
        for at in range(j * block, (j + 1) * block, size):
            means.append((j, keys[:, at : min(at + size, (j + 1) * block)].double().mean(1)))
    dots = [
        [
            [float(query[h, f].double() @ m[h // (heads // groups)]) / math.sqrt(dim) for _, m in means]
            for f in range(rows)
        ]
        for h in range(heads)
    ]
    scores = []
    for u in range(len(means)):
        if aggregate == "softmax":
            shares = [math.exp(d[u]) / sum(math.exp(x) for x in d) for head in dots for d in head]
            scores.append(sum(shares) / len(shares))
        else:
            by_row = [sum(dots[h][f][u] for h in range(heads)) / heads for f in range(rows)]
            scores.append(max(by_row) if aggregate == "max" else sum(by_row) / rows)
    return [max(s for s, (k, _) in zip(scores, means, strict=True) if k == j) for j in range(whole)]


def test_selection_equals_brute_force_on_random_cases():
    chance = random.Random(0)
    for case in range(200):
        generator = torch.Generator().manual_seed(case)
        block = chance.choice([1, 3, 8, 16])
        prompt = block * chance.randint(1, 6) + chance.randint(0, block - 1)
        groups, repeat, dim = chance.choice([1, 2]), chance.choice([1, 2, 3]), chance.choice([4, 6])
        aggregate, unit = chance.choice(["softmax", "mean", "max"]), chance.choice([False, block % 8 == 0])
        query = torch.randn(groups * repeat, chance.randint(1, 4), dim, generator=generator)
        keys = torch.randn(groups, prompt, dim, generator=generator)
        per_block = -(-block // 8) if unit else 1
        summaries = block_summaries(keys, block=block, units=unit)
        relevance = block_relevance(query, summaries, aggregate=aggregate, per_block=per_block)
        wanted = brute_relevance(query, keys, block, unit, aggregate)
        assert relevance.tolist() == pytest.approx(wanted, abs=1e-5)
        count = chance.randint(0, len(wanted))
        order = sorted(range(len(wanted)), key=lambda j: (-float(relevance[j]), j))[:count]
        selected = top(relevance, count)
        assert selected.tolist() == order
        sinks = torch.randperm(prompt, generator=generator)[: chance.randint(0, prompt)]
        tail = range(prompt // block * block, prompt)
        kept = {t for j in order for t in range(j * block, (j + 1) * block)} | set(sinks.tolist()) | set(tail)
        assert prompt_tokens(selected, sinks, prompt=prompt, block=block).tolist() == sorted(kept)


def test_windows_equal_brute_force_on_random_cases():
    chance = random.Random(1)
    for _ in range(200):
        length, window = chance.randint(1, 40), chance.choice([1, 3, 5, 9])
        edges = [0, length - 1, length // 2]
        focus = set(chance.sample(range(length), chance.randint(1, min(4, length)))) | {chance.choice(edges)}
        radius = window // 2
        wanted = sorted({p for f in focus for p in range(max(0, f - radius), min(length, f + radius + 1))})
        assert widen(mask_of(focus, length), window)[0].nonzero()[:, 0].tolist() == wanted
