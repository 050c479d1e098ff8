import pytest
import torch
from fewstep.families import wan_vae
from fewstep_flash_vaed.decoder import WanDecoder, decoder_shape, exact_decoder
from fewstep_flash_vaed.method import save_student


def make_vae(seed=0, **overrides):
    """A random AutoencoderKLWan of the zoo's shape, with weights that make features differ."""
    from diffusers import AutoencoderKLWan

    fields = {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True],
        "scale_factor_spatial": 4,
        "scale_factor_temporal": 2,
        "latents_mean": [0.0] * 4,
        "latents_std": [1.0] * 4,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = AutoencoderKLWan(**{**fields, **overrides}).eval()
        with torch.no_grad():
            for weight in made.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    return made


@pytest.fixture
def vae():
    return make_vae()


@pytest.fixture
def latents():
    return torch.randn(1, 4, 5, 6, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def teacher(vae):
    return exact_decoder(vae)


@pytest.fixture
def student(vae):
    """A random student of the usual shape: separable, then narrow frame by frame."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return WanDecoder(decoder_shape(vae.config, ("separable", "separable", "frame", "frame"), (0, 4, 4))).eval()


@pytest.fixture
def method(vae, student, tmp_path):
    """The same student, saved."""
    return save_student(student, tmp_path / "student", wan_vae.latents_fingerprint(vae.config))
