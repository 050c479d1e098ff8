"""The greedy formula, dependent channels, and when one operator equals another."""

import pytest
import torch
from fewstep_flash_vaed import layers
from fewstep_flash_vaed.algebra import (
    conv3d_to_2d,
    conv3d_to_dw,
    fit_separable,
    fold_consumer,
    gains,
    moments,
    pca_bound,
    r2,
    regress,
    select_channels,
)
from fewstep_flash_vaed.prune import assign
from torch.nn import functional as F


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def features():
    return randn(400, 9) @ randn(9, 9, seed=1)


def gram_of(features, standardised=False):
    return moments(features.split(70), standardised)[0]


def test_moments_are_those_of_all_batches(features):
    torch.testing.assert_close(gram_of(features), torch.cov(features.T, correction=0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gram_of(features, True), torch.corrcoef(features.T), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moments(features.split(70))[1], features.abs().mean(0))


def test_r2_is_that_of_a_regression(features):
    kept = torch.tensor([1, 4, 7])
    recovery, offset = regress([(features[:, kept], features)], ridge=0.0)
    centred = features - features.mean(0)
    solution = torch.linalg.lstsq(centred[:, kept], centred).solution
    torch.testing.assert_close(recovery, solution, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(offset, features.mean(0) - features[:, kept].mean(0) @ solution, rtol=1e-8, atol=1e-8)
    residual = centred - centred[:, kept] @ solution
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
    low_rank = features[:, :4] @ randn(4, 9, seed=2)
    for data, rank in ((features, 9), (low_rank, 4)):
        gram = gram_of(data)
        explained = [r2(gram, select_channels(gram, k, method)) for k in range(1, 10)]
        assert all(b >= a - 1e-9 for a, b in zip(explained, explained[1:], strict=False))
        assert explained[rank - 1] == pytest.approx(1, abs=1e-8)
        assert all(value <= pca_bound(gram, k) + 1e-9 for k, value in enumerate(explained, 1))


def test_dependent_channels_are_lost_without_harm():
    z = randn(2000, 5)
    x = torch.cat([z, z @ randn(5, 7, seed=1)], 1)
    gram = gram_of(x)
    kept = select_channels(gram, 5)
    assert r2(gram, kept) == pytest.approx(1, abs=1e-9)
    recovery, offset = regress([(x[:, kept], x)], ridge=1e-12)
    weight, bias = randn(3, 12, 3, 3), randn(3)
    image = x[:1600].T.view(1, 12, 40, 40)
    folded, shifted = fold_consumer(weight, bias, recovery, offset)
    expected, actual = F.conv2d(image, weight, bias), F.conv2d(image[:, kept], folded, shifted)
    assert (expected - actual).abs().max() < 1e-5


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
    for method in ("best", "l1"):
        with pytest.raises(ValueError, match="unknown selection"):
            select_channels(gram_of(features), 2, method)
    for call in (lambda x: moments(x), lambda x: regress((part, part) for part in x)):
        with pytest.raises(ValueError, match="at least one clip"):
            call([])
        with pytest.raises(ValueError, match="not finite"):
            call([features * torch.nan])


@pytest.mark.parametrize("fast", [layers.by_taps, layers.at_once, layers.causal_conv])
@pytest.mark.parametrize(("frames", "past"), [(1, 0), (2, 0), (5, 0), (2, 1), (4, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("size", [1, 3])
def test_every_formulation_is_the_convolution(fast, frames, past, size):
    x, weight, bias = randn(2, frames, 3, 5, 7), randn(4, 3, 3, size, size, seed=1), randn(4)
    expected = layers.naive(x, weight, bias, past)
    assert expected.shape == (2, frames - past, 4, 5, 7)
    torch.testing.assert_close(fast(x, weight, bias, past), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_formulations_in_every_dtype(dtype):
    x, weight, bias = randn(1, 4, 6, 5, 3).to(dtype), randn(7, 6, 3, 3, 3, seed=1).to(dtype) / 10, randn(7).to(dtype)
    expected = layers.naive(x.float(), weight.float(), bias.float())
    for fast in (layers.by_taps, layers.at_once):
        actual = fast(x, weight, bias)
        assert actual.dtype == dtype
        scale = float(expected.abs().max())
        torch.testing.assert_close(actual.float(), expected, rtol=0, atol=scale * 4 * torch.finfo(dtype).eps)


def test_one_kernel_for_each_frame():
    weight, bias = randn(4, 3, 3, 3, 3), randn(4)
    still = randn(1, 1, 3, 6, 6).expand(-1, 5, -1, -1, -1)
    summed = F.conv2d(still[:, 0], conv3d_to_2d(weight), bias, padding=1)
    for frame in (2, 3, 4):
        torch.testing.assert_close(summed, layers.naive(still, weight, bias)[:, frame], rtol=0, atol=1e-10)


def test_separable_is_exact_for_kernels_of_rank_one():
    pointwise, depthwise, bias = randn(5, 4), randn(4, 3, 3, 3), randn(5)
    weight = pointwise[:, :, None, None, None] * depthwise[None]
    layer = layers.Separable(4, 5).double()
    with torch.no_grad():
        assign(layer, weight, bias)
    x = randn(1, 4, 4, 5, 5)
    torch.testing.assert_close(layer(x), layers.naive(x, weight, bias), rtol=1e-9, atol=1e-9)


def test_the_error_of_separable_is_that_of_the_other_singular_values():
    weight = randn(6, 3, 3, 3, 3)
    depthwise, pointwise = conv3d_to_dw(weight)
    error = pointwise[:, :, 0, 0] * depthwise.view(1, 3, 27) - weight.flatten(2)
    for channel in range(3):
        values = torch.linalg.svdvals(weight[:, channel].flatten(1))
        assert float(error[:, channel].norm()) == pytest.approx(float(values[1:].norm()), abs=1e-10)


@torch.no_grad()
def test_separable_is_found_from_features_where_there_is_one():
    x, layer = [randn(1, 4, 3, 7, 6, seed=n) for n in range(3)], layers.Separable(3, 5).double()
    targets = [layer(clip) for clip in x]
    start = layer.depthwise.weight + 0.3 * layer.depthwise.weight.std() * randn(3, 1, 3, 3, 3, seed=9)
    errors = []
    for sweeps in (0, 1, 20):
        fitted = layers.Separable(3, 5).double()
        depthwise, pointwise, bias = fit_separable(x, targets, start, sweeps)
        fitted.depthwise.weight.copy_(depthwise)
        fitted.depthwise.bias.zero_()
        fitted.pointwise.weight.copy_(pointwise)
        fitted.pointwise.bias.copy_(bias)
        errors.append(sum(float((fitted(a) - b).square().sum()) for a, b in zip(x, targets, strict=True)))
    assert errors[1] < errors[0] / 2 and errors[2] < 1e-3 * errors[0]
