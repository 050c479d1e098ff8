import pytest
import torch
from fewstep_focus_dllm.unmask import choose, confidence, propose, surest

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
    assert (token.bincount() if token.ndim == 1 else token[0].bincount()).div(20_000).tolist() == pytest.approx(
        [0.7, 0.2, 0.1], abs=0.012
    )


def test_equal_confidences_go_to_the_lower_index():
    valid = torch.tensor([[True, False, True, True]])
    assert surest(torch.ones(1, 4), valid, torch.tensor([2])).tolist() == [[True, False, True, False]]


def test_a_count_beyond_what_is_valid():
    valid = torch.tensor([[False, True]])
    assert choose(torch.ones(1, 2), valid, torch.tensor([5])).tolist() == [[False, True]]


def test_a_threshold_takes_all_that_reach_it_and_at_least_one():
    sure = torch.tensor([[0.95, 0.2, 0.91], [0.3, 0.4, 0.1], [0.99, 0.99, 0.99]])
    chosen = choose(sure, torch.ones(3, 3, dtype=torch.bool), torch.tensor([1, 1, 0]), threshold=0.9)
    assert chosen.tolist() == [[True, False, True], [False, True, False], [False, False, False]]
