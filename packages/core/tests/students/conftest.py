"""Tiny students of the real classes, saved as files."""

from __future__ import annotations

import pytest
import torch
from fewstep.families import wan
from safetensors.torch import save_file

SMALL = {"num_frames": 5, "height": 32, "width": 32, "num_inference_steps": 3, "max_sequence_length": 8}


@pytest.fixture(scope="session")
def sample():
    """Latents ``[1, 3, 2, 4, 4]`` of one prompt from fixed noise, as a user would ask for them."""

    def call(pipe, **options):
        generator = torch.Generator().manual_seed(0)
        return pipe("a cat runs", generator=generator, output_type="latent", **{**SMALL, **options}).frames

    return call


@pytest.fixture
def pipe():
    return wan.tiny_pipeline()


@pytest.fixture(scope="session")
def student():
    """A transformer with other weights than the pipeline's."""
    return wan.tiny(seed=1)


@pytest.fixture(scope="session")
def full_file(student, tmp_path_factory):
    """All weights of the student, in diffusers' names."""
    path = tmp_path_factory.mktemp("student") / "full.safetensors"
    save_file(dict(student.state_dict()), path)
    return path


@pytest.fixture(scope="session")
def lora_file(tmp_path_factory):
    """A LoRA of rank 3 and alpha 6 that diffusers itself saved."""
    from diffusers import WanPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    transformer = wan.tiny()
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
    config = LoraConfig(r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        transformer.add_adapter(config)
    folder = tmp_path_factory.mktemp("lora")
    WanPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )
    return folder / "pytorch_lora_weights.safetensors"
