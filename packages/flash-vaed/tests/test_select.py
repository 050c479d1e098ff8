"""Tests 1 and 2 of the card: the greedy formula, and channels that depend on others."""

import pytest
import torch
from fewstep_flash_vaed.operators import LeastSquares, fold_consumer
from fewstep_flash_vaed.select import Moments, gains, pca_bound, r2, select_channels
from torch.nn import functional as F


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(9, 9, generator=generator, dtype=torch.float64)
    return torch.randn(400, 9, generator=generator, dtype=torch.float64) @ mixing


def gram_of(features, **options):
    moments = Moments()
    for part in features.split(70):
        moments.add(part)
    return moments.gram(**options)


def test_moments_are_those_of_the_whole(features):
    torch.testing.assert_close(gram_of(features), torch.cov(features.T, correction=0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gram_of(features, standardised=True), torch.corrcoef(features.T), rtol=1e-9, atol=1e-9)


def test_r2_is_that_of_a_regression(features):
    kept = torch.tensor([1, 4, 7])
    centred = features - features.mean(0)
    residual = centred - centred[:, kept] @ torch.linalg.lstsq(centred[:, kept], centred).solution
    expected = 1 - residual.square().sum() / centred.square().sum()
    assert r2(gram_of(features), kept) == pytest.approx(float(expected), abs=1e-10)


def test_a_gain_is_the_difference_of_r2(features):
    gram = gram_of(features)
    chosen, residual = [], gram.clone()
    for best in select_channels(gram, 5).tolist():
        gain = gains(residual, float(gram.diagonal().max()))
        for j in set(range(9)) - set(chosen):
            before = r2(gram, torch.tensor(chosen)) if chosen else 0.0
            difference = (r2(gram, torch.tensor([*chosen, j])) - before) * float(gram.trace())
            assert float(gain[j]) == pytest.approx(difference, abs=1e-10 * float(gram.trace()))
        assert best == int(gain.argmax())
        chosen.append(best)
        residual = residual - residual[:, best, None] * residual[None, best] / residual[best, best]


@pytest.mark.parametrize("method", ["greedy", "qr"])
def test_r2_grows_to_one_below_the_bound(features, method):
    low_rank = features[:, :4] @ torch.randn(4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for data, rank in ((features, 9), (low_rank, 4)):
        gram = gram_of(data)
        found = [r2(gram, select_channels(gram, k, method)) for k in range(1, 10)]
        assert all(b >= a - 1e-9 for a, b in zip(found, found[1:], strict=False))
        assert found[rank - 1] == pytest.approx(1, abs=1e-8)
        assert all(value <= pca_bound(gram, k) + 1e-9 for k, value in enumerate(found, 1))


def test_dependent_channels_are_lost_without_harm():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 5, generator=generator, dtype=torch.float64)
    x = torch.cat([z, z @ torch.randn(5, 7, generator=generator, dtype=torch.float64)], 1)
    gram = gram_of(x)
    kept = select_channels(gram, 5)
    assert r2(gram, kept) == pytest.approx(1, abs=1e-9)
    regression = LeastSquares()
    regression.add(x[:, kept], x)
    recovery, offset = regression.solve(ridge=1e-12)
    weight, bias = torch.randn(3, 12, 3, 3, generator=generator).double(), torch.randn(3, generator=generator).double()
    image = x[:1600].T.view(1, 12, 40, 40)
    folded, shifted = fold_consumer(weight, bias, recovery, offset)
    expected, found = F.conv2d(image, weight, bias), F.conv2d(image[:, kept], folded, shifted)
    assert (expected - found).abs().max() < 1e-5


def test_magnitude_variance_and_chance(features):
    scaled = features * torch.tensor([1.0, 1, 9, 1, 5, 1, 1, 1, 1], dtype=torch.float64)
    assert 2 in select_channels(gram_of(scaled), 1, "variance")
    assert select_channels(gram_of(features), 2, "l1", magnitude=torch.arange(9.0)).tolist() == [8, 7]
    drawn = [
        select_channels(gram_of(features), 4, "random", generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_bad_calls_are_named(features, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # users run without the checks of the test run
    with pytest.raises(ValueError, match="10 of 9"):
        select_channels(gram_of(features), 10)
    with pytest.raises(ValueError, match="unknown selection"):
        select_channels(gram_of(features), 2, "best")
    with pytest.raises(ValueError, match="at least one clip"):
        Moments().gram()
    with pytest.raises(ValueError, match="not finite"):
        gram_of(features * torch.nan)
