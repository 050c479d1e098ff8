"""T4: the levels of the score times, and the weights of the paper at them."""

import pytest
import torch
from fewstep.flow import ScoreTime
from fewstep_sgmd.loss import loss_weights


def test_t4_weight_statistics():
    sigma = ScoreTime().levels
    weight, _ = loss_weights(sigma, torch.ones_like(sigma), "paper")
    assert weight.min().item() == pytest.approx(4.3366e-4, rel=2e-5)
    assert weight.max().item() == pytest.approx(6.0025e6, rel=2e-5)
    assert (weight.sort().values[-10:].sum() / weight.sum()).item() == pytest.approx(0.9813, abs=1e-4)
    quantiles = torch.quantile(sigma, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64))
    expected = torch.tensor([0.2082, 0.6247, 0.8331, 0.9373, 0.98], dtype=torch.float64)
    torch.testing.assert_close(quantiles, expected, rtol=0, atol=1e-4)
