"""Test 4 of the card: when one operator equals another."""

import pytest
import torch
from fewstep_flash_vaed import causal
from fewstep_flash_vaed.full_width import set_operator
from fewstep_flash_vaed.layers import Separable
from fewstep_flash_vaed.operators import conv3d_to_2d, conv3d_to_dw, fit_separable
from torch.nn import functional as F

GENERATOR = torch.Generator().manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


@pytest.mark.parametrize("fast", [causal.stacked, causal.by_taps, causal.at_once, causal.causal_conv])
@pytest.mark.parametrize(("frames", "past"), [(1, 0), (2, 0), (5, 0), (2, 1), (4, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("size", [1, 3])
def test_every_formulation_is_the_convolution(fast, frames, past, size):
    x, weight, bias = randn(2, frames, 3, 5, 7), randn(4, 3, 3, size, size), randn(4)
    expected = causal.naive(x, weight, bias, past)
    assert expected.shape == (2, frames - past, 4, 5, 7)
    torch.testing.assert_close(fast(x, weight, bias, past), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_formulations_in_every_dtype(dtype):
    x, weight, bias = randn(1, 4, 6, 5, 3).to(dtype), randn(7, 6, 3, 3, 3).to(dtype) / 10, randn(7).to(dtype)
    expected = causal.naive(x.float(), weight.float(), bias.float())
    for fast in (causal.by_taps, causal.at_once, causal.stacked):
        found = fast(x, weight, bias)
        assert found.dtype == dtype
        scale = float(expected.abs().max())
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=scale * 4 * torch.finfo(dtype).eps)


def test_one_kernel_for_each_frame():
    weight, bias = randn(4, 3, 3, 3, 3), randn(4)
    moving = randn(1, 5, 3, 6, 6)
    last = F.conv2d(moving[:, 0], conv3d_to_2d(weight, first=True), bias, padding=1)
    torch.testing.assert_close(last, causal.naive(moving, weight, bias)[:, 0], rtol=0, atol=1e-12)
    still = moving[:, :1].expand(-1, 5, -1, -1, -1)
    summed = F.conv2d(still[:, 0], conv3d_to_2d(weight), bias, padding=1)
    for frame in (2, 3, 4):
        torch.testing.assert_close(summed, causal.naive(still, weight, bias)[:, frame], rtol=0, atol=1e-10)


def test_separable_is_exact_for_kernels_of_rank_one():
    pointwise, depthwise, bias = randn(5, 4), randn(4, 3, 3, 3), randn(5)
    weight = pointwise[:, :, None, None, None] * depthwise[None]
    layer = Separable(4, 5).double()
    with torch.no_grad():
        set_operator(layer, weight, bias)
    x = randn(1, 4, 4, 5, 5)
    torch.testing.assert_close(layer(x), causal.naive(x, weight, bias), rtol=1e-9, atol=1e-9)


def test_the_error_of_separable_is_that_of_the_other_singular_values():
    weight = randn(6, 3, 3, 3, 3)
    depthwise, pointwise = conv3d_to_dw(weight)
    error = pointwise[:, :, 0, 0] * depthwise.view(1, 3, 27) - weight.flatten(2)
    for channel in range(3):
        values = torch.linalg.svdvals(weight[:, channel].flatten(1))
        assert float(error[:, channel].norm()) == pytest.approx(float(values[1:].norm()), abs=1e-10)


def test_separable_is_found_from_features_where_there_is_one():
    x, layer = [randn(1, 4, 3, 7, 6) for _ in range(3)], Separable(3, 5).double()
    with torch.no_grad():
        for part in (layer.depthwise, layer.pointwise):
            part.weight.copy_(randn(*part.weight.shape))
        layer.pointwise.bias.copy_(randn(5))
        wanted = [layer(clip) for clip in x]
        start = layer.depthwise.weight + 0.3 * randn(3, 1, 3, 3, 3)
        errors = []
        for sweeps in (0, 1, 20):
            found = Separable(3, 5).double()
            found.depthwise.weight.copy_((kernels := fit_separable(x, wanted, start, sweeps))[0])
            found.pointwise.weight.copy_(kernels[1])
            found.pointwise.bias.copy_(kernels[2])
            errors.append(sum(float((found(a) - b).square().sum()) for a, b in zip(x, wanted, strict=True)))
    assert errors[1] < errors[0] / 2 and errors[2] < 1e-3 * errors[0]
