"""Test 10 of the card, and the schedule of test 11."""

import math

import pytest
import torch
from fewstep_flash_vaed.loss import Perceptual, alignment, psnr, sharpness, ssim
from fewstep_flash_vaed.phases import fading, lengths, phase

GENERATOR = torch.Generator().manual_seed(0)


def clip(*size):
    return torch.rand(1, 3, 2, *size, generator=GENERATOR) * 2 - 1


def test_ssim_of_equal_clips_is_one_and_of_noise_about_zero():
    x, y = clip(40, 32), clip(40, 32)
    assert float(ssim(x, x)) == pytest.approx(1, abs=1e-5)
    assert abs(float(ssim(x, y))) < 0.05
    assert float(ssim(x, x + 0.3 * y)) < 0.98
    assert float(ssim(clip(5, 7), clip(5, 7))) < 1  # smaller than the window


@pytest.mark.parametrize("offset", [0.1, 0.5])
def test_psnr_of_an_offset(offset):
    x = clip(8, 8)
    assert psnr(x + offset, x) == pytest.approx(20 * math.log10(2 / offset), abs=1e-3)
    assert psnr(x, x) == 100


def test_sharpness_falls_with_blur_and_rises_with_noise():
    x = clip(32, 32)
    blurred = torch.nn.functional.avg_pool2d(x[0].transpose(0, 1), 3, 1, 1).transpose(0, 1)[None]
    assert sharpness(x, x) == pytest.approx(1, abs=1e-5)
    assert sharpness(blurred, x) < 0.2 and sharpness(x + clip(32, 32), x) > 1.5


def test_the_perceptual_distance_is_one():
    distance, x, y = Perceptual(), clip(16, 16), clip(16, 16)
    assert float(distance(x, x)) == 0 and 0 < float(distance(x, x + 0.1 * y)) < float(distance(x, y))
    assert float(distance(x, y)) == float(Perceptual()(x, y))


def test_equal_features_cost_nothing():
    x = torch.randn(1, 2, 4, 5, 5, generator=GENERATOR)
    assert float(alignment(x, x)) == 0
    assert float(alignment(x.mean().expand_as(x), x)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("steps", [1, 7, 100, 2000])
def test_the_phases_add_up_and_the_feature_weight_fades(steps):
    assert sum(lengths(steps).values()) == steps
    weights = [phase(step, steps).feature for step in range(steps)]
    assert all(b <= a for a, b in zip(weights, weights[1:], strict=False))
    if steps > 1:
        assert weights[0] == 1 and weights[-1] == 0
    assert fading(0) == 1 and fading(1) == 0
    assert all(phase(step, steps, features=False) == phase(steps, 2) for step in range(steps))
