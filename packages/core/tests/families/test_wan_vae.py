"""The Wan VAE: whole clips equal diffusers' frame loop; shape and cost of the decoder follow from the configuration."""

import json

import pytest
import torch
from diffusers import AutoencoderKLWan
from fewstep import families
from fewstep.errors import UnsupportedModelError
from fewstep.families import wan_vae, wan_vae_cost


@pytest.mark.parametrize("temporal", [[False, True], [True, True], [False, False]])
@torch.no_grad()
def test_whole_clips_equal_the_frame_loop(temporal):
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=temporal,
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    for frames in (1, 5, 9):
        clip = torch.randn(2, 3, frames, 16, 8)
        latents = vae.encode(clip).latent_dist.mode()
        torch.testing.assert_close(wan_vae.encode(vae, clip), latents, rtol=1e-5, atol=1e-5)
        pixels = wan_vae.decode(vae, latents).clamp(-1, 1)
        torch.testing.assert_close(pixels, vae.decode(latents).sample, rtol=1e-5, atol=1e-5)
        if temporal == [False, True]:  # `frames` is 1 more than a multiple of the factor for all three
            assert wan_vae.latent_shape(vae.config, frames, 16, 8)[1:] == latents.shape[1:]


def test_a_frame_too_many_is_named():
    vae = AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1], temperal_downsample=[True], latents_mean=[0.0] * 4,
                           latents_std=[1.0] * 4)  # fmt: skip
    with pytest.raises(ValueError, match=r"1 \+ 2 k frames, found 4"):
        wan_vae.encode(vae, torch.zeros(1, 3, 4, 8, 8))


@pytest.mark.parametrize("overrides", [{}, {"decoder_base_dim": 16}, {"temperal_downsample": [True, False, True]}])
def test_stages_are_those_of_the_stock_decoder(overrides):
    vae = wan_vae.tiny(dim_mult=[1, 2, 4, 4], **overrides)
    stages = wan_vae.decoder_stages(vae.config)
    assert len(stages) == len(vae.decoder.up_blocks)
    for stage, block in zip(stages, vae.decoder.up_blocks, strict=True):
        assert (stage.inside, stage.width) == (block.resnets[0].in_dim, block.resnets[-1].out_dim)
        assert stage.blocks == len(block.resnets)
        resampler = block.upsamplers[0] if block.upsamplers else None
        assert stage.up == ({"upsample2d": "space", "upsample3d": "time"}[resampler.mode] if resampler else None)
        assert stage.outside == (resampler.resample[1].out_channels if resampler else 0)


@pytest.mark.parametrize("overrides", [{"is_residual": True}, {"patch_size": 2}, {"attn_scales": [1.0]}])
def test_another_generation_is_refused(overrides):
    config = wan_vae.tiny().config
    with pytest.raises(UnsupportedModelError, match="Wan 2.2"):
        wan_vae.decoder_stages(type(config)({**config, **overrides}))


def test_costs_of_wan_are_exact():
    costs = wan_vae_cost.decoder_costs({}, 81, 480, 832)
    assert costs["total"].parameters == 73_295_331 + 16 * 16 + 16
    assert round(costs["total"].macs / 1e12, 3) == 137.048
    assert [round(costs[f"up{n}"].macs / 1e12, 2) for n in range(4)] == [3.13, 22.48, 48.30, 48.30]
    assert list(costs) == ["conv_in", "mid", "up0", "up0 resample", "up1", "up1 resample", "up2", "up2 resample", "up3",
                           "head", "total"]  # fmt: skip


def test_seconds_are_told_by_stage():
    vae = wan_vae.tiny()

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

        def forward(self, latents):
            return wan_vae.decode(self, latents)

    spent, causal = wan_vae_cost.stage_seconds(Whole(), torch.randn(1, 3, 2, 2, 2))
    assert spent.keys() == wan_vae_cost.decoder_costs(vae.config, 5, 16, 16).keys()
    assert causal.keys() <= spent.keys() and causal["total"] > 0
    assert spent["total"] == pytest.approx(sum(seconds for name, seconds in spent.items() if name != "total"))
    assert not any(part._forward_hooks for part in vae.modules())


def test_latents_of_two_trainings_differ():
    fingerprints = {wan_vae.latents_fingerprint(wan_vae.tiny(**overrides).config)
                    for overrides in ({}, {"latents_mean": [0.1] * 3}, {"latents_std": [2.0] * 3})}  # fmt: skip
    assert len(fingerprints) == 3 and all(name.startswith("z3-8x1.1.1.1-") for name in fingerprints)


def test_a_configuration_is_described(tmp_path):
    wan_vae.tiny().save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    lines = dict(wan_vae_cost.describe(fields, tmp_path))
    assert lines["latents"] == "3 channels for 8x8 pixels and 4 frames"
    assert "parameters" in lines["total"] and "GMAC" in lines["up0 resample"]
    with pytest.raises(UnsupportedModelError, match="holds AutoencoderKL; an AutoencoderKLWan is needed"):
        wan_vae_cost.describe({"_class_name": "AutoencoderKL"}, tmp_path)


def test_a_vae_is_no_teacher():
    assert families.of(wan_vae.tiny()) is wan_vae
    with pytest.raises(UnsupportedModelError, match="AutoencoderKLWan predicts no velocity"):
        families.denoiser(wan_vae.tiny())
