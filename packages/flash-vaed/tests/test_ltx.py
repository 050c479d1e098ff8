"""Tests 6 and 7 of the card for LTX-Video."""

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo
from fewstep_flash_vaed import ltx
from fewstep_flash_vaed.count import macs, parameters


def test_the_sizes_of_ltx_are_exact():
    latents = torch.empty(1, 128, 11, 15, 26, device="meta")
    with torch.device("meta"):
        config = AutoencoderKLLTXVideo().config
        both = ltx.decoder(config), ltx.student(config)
    assert [parameters(decoder) for decoder in both] == [238_789_296, 66_955_024]
    found = [sum(macs(decoder, lambda d=decoder: d(latents)).values()) / 1e12 for decoder in both]
    assert [round(value, 4) for value in found] == [14.1686, 0.8764]


@torch.no_grad()
def test_a_small_student_decodes_in_the_place_of_its_teacher():
    torch.manual_seed(0)
    vae = AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 16, 16),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
    ).eval()  # fmt: skip
    latents = torch.randn(1, 8, 3, 2, 2)
    teacher = vae.decode(latents, return_dict=False)[0]
    vae.decoder = ltx.student(vae.config, keep=0.5).eval()
    found = vae.decode(latents, return_dict=False)[0]
    assert found.shape == teacher.shape == (1, 3, 8 * (3 - 1) + 1, 64, 64) and torch.isfinite(found).all()


def test_another_generation_is_named():
    with torch.device("meta"):
        config = AutoencoderKLLTXVideo(timestep_conditioning=True).config
    with pytest.raises(ValueError, match=r"0\.9\.0"):
        ltx.student(config)
    with torch.device("meta"):
        config = AutoencoderKLLTXVideo().config
    with pytest.raises(ValueError, match="none would be left"):
        ltx.student(config, keep=0.001)
