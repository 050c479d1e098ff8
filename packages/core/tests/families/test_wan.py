"""The Wan family on tiny pipelines of the real classes."""

from __future__ import annotations

import pytest
import torch
from fewstep.errors import BadFileError, UnsupportedModelError
from fewstep.families import wan


@pytest.fixture(scope="module")
def pipe():
    return wan.tiny_pipeline()


def test_check_returns_the_transformer_and_refuses_other_models(pipe):
    assert wan.check(pipe) is pipe.transformer
    with pytest.raises(UnsupportedModelError, match="WanTransformer3DModel is no WanPipeline"):
        wan.check(pipe.transformer)
    experts = type(pipe)(**{**pipe.components, "transformer_2": wan.tiny(seed=2)})
    with pytest.raises(UnsupportedModelError, match="two experts"):
        wan.check(experts)
    offloaded = type(pipe)(**{**pipe.components, "transformer": wan.tiny().to("meta")})
    with pytest.raises(UnsupportedModelError, match="offloaded"):
        wan.check(offloaded)


@torch.no_grad()
def test_one_timestep_a_sample_equals_one_a_token():
    """``expand_timesteps`` of Wan2.2-TI2V-5B gives each token the timestep of its sample."""
    network, sigma = wan.tiny(), torch.tensor([0.3, 0.9375])
    noisy, cond = torch.randn(2, 3, 2, 4, 4), torch.randn(2, 5, 8)
    tokens = (1000 * sigma)[:, None].expand(2, 2 * 2 * 2)
    expected = network(hidden_states=noisy, timestep=tokens, encoder_hidden_states=cond, return_dict=False)[0]
    torch.testing.assert_close(wan.velocity(network, noisy, sigma, cond), expected)


def test_known_sizes_are_those_of_the_models():
    small, large = (wan.KNOWN[f"Wan-AI/{name}-Diffusers"] for name in ("Wan2.1-T2V-1.3B", "Wan2.2-TI2V-5B"))
    assert sum(weight.numel() for weight in small.meta_network().parameters()) == 1_418_996_800
    assert small.latent(81, 480, 832) == (16, 21, 60, 104) and large.latent(121, 704, 1280) == (48, 31, 44, 80)
    with pytest.raises(ValueError, match="704x1272 do not fit: .* width of 32"):
        large.latent(121, 704, 1272)


def test_the_architecture_of_a_folder_is_that_of_the_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert wan.architecture_of_folder(tmp_path).latent(5, 32, 48) == wan.architecture(pipe).latent(5, 32, 48)
    for content in ("[", "[]"):
        (tmp_path / "transformer" / "config.json").write_text(content)
        with pytest.raises(BadFileError, match="config.json is damaged"):
            wan.architecture_of_folder(tmp_path)


def test_latents_are_decoded_to_values_from_0_to_1(pipe):
    videos = wan.decode(pipe, torch.randn(2, 3, 2, 4, 4))
    assert videos.shape == (2, 5, 3, 32, 32) and videos.min() >= 0 and videos.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_latents_without_a_vae_are_pixels(pipe, channels):
    bare = type(pipe)(**{**pipe.components, "vae": None})
    latents = torch.linspace(-1.5, 1.5, 2 * channels * 4 * 9).view(2, channels, 4, 3, 3)
    videos = wan.decode(bare, latents)
    assert videos.shape == (2, 4, 3, 3, 3) and videos.min() == 0 and videos.max() == 1
    assert videos[1, 2, 0, 1, 1].item() == pytest.approx(min(1.0, latents[1, 0, 2, 1, 1].item() / 2 + 0.5))


@pytest.fixture
def noised():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 2, 4, 6, generator=generator), torch.tensor([0.3, 0.7]), torch.ones(2, 5, 8)


def seen_after(network, block, noised):
    """Output of a block in a whole forward pass."""
    seen = []
    with network.blocks[block].register_forward_hook(lambda *args: seen.append(args[2])):
        wan.velocity(network, *noised)
    return seen[0]


@pytest.mark.parametrize("block", [0, 1])
def test_hidden_tokens_are_the_output_of_a_block_by_frame(noised, block):
    network, ran = wan.tiny(num_layers=3), []
    for number, one in enumerate(network.blocks):
        one.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    tokens = wan.hidden_tokens(network, *noised, block)
    assert tokens.shape == (2, 2, 6, 24) and ran == list(range(block + 1))
    assert torch.equal(tokens.flatten(1, 2), seen_after(network, block, noised))


def test_gradients_of_hidden_tokens_flow_to_the_latents_with_and_without_recomputation(noised):
    network, gradients = wan.tiny(num_layers=3).requires_grad_(False), []
    for recompute in (False, True):
        if recompute:
            network.train().enable_gradient_checkpointing()
        noisy = noised[0].clone().requires_grad_()
        wan.hidden_tokens(network, noisy, *noised[1:], 1).square().sum().backward()
        gradients.append(noisy.grad)
    assert gradients[0].any() and torch.equal(*gradients)


def test_hidden_tokens_leave_the_network_as_it_was(noised):
    network = wan.tiny()
    before, names = wan.velocity(network, *noised), list(network.state_dict())
    wan.hidden_tokens(network, *noised, 0)
    with pytest.raises(RuntimeError):
        wan.hidden_tokens(network, noised[0], noised[1], torch.ones(2, 5, 9), 0)
    for block in (-1, 2):
        with pytest.raises(ValueError, match=f"block {block} is not among the 2 blocks of this WanTransformer3DModel"):
            wan.hidden_tokens(network, *noised, block)
    assert list(network.state_dict()) == names and not network.blocks[0]._forward_hooks
    assert torch.equal(wan.velocity(network, *noised), before)
