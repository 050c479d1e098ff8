"""The contract of the VAE is kept; other models and damaged files are refused."""

import pytest
import torch
from fewstep.errors import BadFileError, SeamConflictError, UnsupportedModelError
from fewstep.families import wan
from fewstep_flash_vaed import ExactDecode, FlashVAED
from fewstep_flash_vaed.decoder import exact_decoder
from fewstep_flash_vaed.method import save_student

from .conftest import make_vae


@torch.no_grad()
def test_a_student_with_the_teachers_weights_is_the_exact_decoder_bit_for_bit(vae, latents, tmp_path):
    identity = save_student(exact_decoder(vae), tmp_path, "")
    stock = vae.decode(latents).sample
    with ExactDecode().apply(vae):
        exact = vae.decode(latents).sample
    with identity.apply(vae):
        assert torch.equal(vae.decode(latents).sample, exact)
    torch.testing.assert_close(exact, stock, rtol=1e-5, atol=1e-5)
    assert torch.equal(vae.decode(latents).sample, stock)


@torch.no_grad()
def test_everything_but_decoding_is_as_before(vae, method, latents):
    clip = torch.rand(1, 3, 5, 16, 24) * 2 - 1
    before, config = vae.encode(clip).latent_dist.mode(), dict(vae.config)
    with method.apply(vae):
        assert torch.equal(vae.encode(clip).latent_dist.mode(), before) and dict(vae.config) == config
        (pixels,) = vae.decode(latents, return_dict=False)
        assert pixels.shape == (1, 3, 9, 24, 20) and pixels.abs().max() <= 1


@pytest.mark.parametrize("which", ["exact", "student"])
@torch.no_grad()
def test_slicing_and_tiling_work(vae, method, latents, which):
    applied = (ExactDecode() if which == "exact" else method).apply(vae)
    both = torch.cat([latents, latents.flip(4)])
    plain = vae.decode(both).sample
    vae.enable_slicing()
    torch.testing.assert_close(vae.decode(both).sample, plain, rtol=1e-5, atol=1e-5)
    large = torch.randn(1, 4, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    vae.enable_tiling(32, 32, 16, 16)
    tiled = vae.decode(large).sample
    applied.remove()
    assert tiled.shape == (1, 3, 3, 48, 48)
    if which == "exact":
        torch.testing.assert_close(tiled, vae.decode(large).sample, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_casts_reach_the_student_and_the_teacher_comes_back_in_the_new_type(vae, method, latents):
    applied = method.apply(vae)
    vae.to(torch.bfloat16)
    assert vae.decode(latents.bfloat16()).sample.dtype == torch.bfloat16
    applied.remove()
    assert {weight.dtype for weight in vae.parameters()} == {torch.bfloat16}
    vae.to(torch.float32)
    with ExactDecode().apply(vae):
        vae.to(torch.bfloat16)
        assert vae.decode(latents.bfloat16()).sample.dtype == torch.bfloat16


@torch.no_grad()
def test_chunks_need_no_more_than_they_hold(vae, latents):
    stock = vae.decode(latents).sample
    for chunk in (1, 2, 9):
        with ExactDecode(chunk=chunk).apply(vae):
            torch.testing.assert_close(vae.decode(latents).sample, stock, rtol=1e-5, atol=1e-5)


def test_the_two_methods_take_turns(vae, method):
    with method.apply(vae), pytest.raises(SeamConflictError, match="flash-vaed"):
        ExactDecode().apply(vae)
    with ExactDecode().apply(vae):
        pass


@torch.no_grad()
def test_a_stream_of_an_applied_student(vae, method, latents):
    with method.apply(vae) as applied:
        stream = applied.stream()
        pixels = torch.cat([stream.push(part) for part in latents.split(2, 2)], 2)
        torch.testing.assert_close(pixels, vae.decode(latents).sample, rtol=1e-5, atol=1e-5)


def test_another_vae_is_refused(method):
    with pytest.raises(UnsupportedModelError, match="another VAE"):
        method.apply(make_vae(latents_mean=[0.1] * 4))
    with pytest.raises(UnsupportedModelError, match="no weights"):
        FlashVAED().apply(make_vae())
    with pytest.raises(UnsupportedModelError, match="Wan 2.2"):
        ExactDecode().apply(make_vae(is_residual=True))
    with pytest.raises(UnsupportedModelError, match="WanTransformer3DModel"):
        ExactDecode().apply(wan.tiny())


def test_damaged_weights_are_refused_and_the_vae_is_left_alone(vae, method, latents):
    from safetensors.torch import load_file, save_file

    path = method.weights
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadFileError, match="damaged"):
        method.apply(vae)
    path.write_bytes(whole)
    weights = load_file(path)
    save_file({**weights, "decoder.conv_in.bias": weights["decoder.conv_in.bias"] * torch.nan}, path)
    with pytest.raises(BadFileError, match="not finite"):
        method.apply(vae)
    save_file({name: value for name, value in weights.items() if "conv_out" not in name}, path)
    with pytest.raises(BadFileError, match="2 weights are missing"):
        method.apply(vae)
    assert "_decode" not in vars(vae)
    with ExactDecode().apply(vae):
        pass


@pytest.mark.parametrize("fields", [{"operators": ("sparse",)}, {"widths": (0, -1)}, {"pool": 0}])
def test_fields_off_their_range(fields):
    with pytest.raises(ValueError, match="there are dense|0 \\(all\\) or more|at least one row"):
        FlashVAED(**fields)
    with pytest.raises(ValueError, match="chunk=-1"):
        ExactDecode(chunk=-1)
