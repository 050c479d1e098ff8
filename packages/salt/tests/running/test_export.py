"""Causal students for LightX2V: the names of Self Forcing, and the settings of its causal runner."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import WanPipeline
from fewstep import FewstepError
from fewstep.cli import main
from fewstep.families import wan
from fewstep.students.wan_files import write
from fewstep_salt import Salt
from fewstep_salt.export import CausalFolder, CausalLightX2V
from fewstep_salt.method import SelfForcing
from safetensors.torch import load_file


def test_the_names_are_those_of_self_forcing_and_are_read_again(full_file, pipe, sample, tmp_path):
    method = Salt(weights=full_file, chunk=2, window=6, sink=1)
    assert CausalLightX2V()(method, tmp_path) == []
    names = load_file(tmp_path / "causal_model.safetensors")
    assert all(name.startswith("model.") for name in names) and "model.blocks.0.self_attn.q.weight" in names
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["ar_config"] == {
        "local_attn_size": 6,
        "sink_size": 1,
        "num_frame_per_chunk": 2,
        "denoising_step_list": [1000.0, 937.5, 833.3333, 625.0],
    }
    assert config["infer_steps"] == 4 and config["sample_shift"] == 5.0 and config["enable_cfg"] is False
    with method.apply(pipe):
        wanted = sample(pipe)
    again = Salt(weights=config["dit_original_ckpt"], chunk=2, window=6, sink=1)
    with again.apply(pipe):
        assert torch.equal(sample(pipe), wanted)


def test_a_window_of_everything_has_its_own_number_and_what_is_left_out_is_said(full_file, tmp_path):
    notes = CausalLightX2V()(Salt(weights=full_file, relative=True), tmp_path)
    assert "relative" in notes[0]
    assert json.loads((tmp_path / "config.json").read_text())["ar_config"]["local_attn_size"] == -1


def test_a_lora_is_merged_into_its_base(tmp_path):
    wan.tiny_pipeline().save_pretrained(tmp_path / "base")
    down, up = torch.randn(2, 24), torch.randn(24, 2)
    name = "transformer.blocks.0.attn1.to_q"
    write({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    method = Salt(weights=tmp_path / "lora.safetensors")
    with pytest.raises(FewstepError, match="--base"):
        CausalLightX2V()(method, tmp_path)
    CausalLightX2V(base=str(tmp_path / "base"))(method, tmp_path)
    merged = load_file(tmp_path / "causal_model.safetensors")["model.blocks.0.self_attn.q.weight"]
    torch.testing.assert_close(merged, wan.tiny().blocks[0].attn1.to_q.weight.detach() + up @ down)
    with pytest.raises(FewstepError, match="nothing to export"):
        CausalLightX2V()(Salt(), tmp_path)


@pytest.mark.parametrize("kind", [Salt, SelfForcing])
def test_a_folder_is_found_by_the_method_that_made_it(kind, full_file, tmp_path):
    wan.tiny_pipeline().save_pretrained(tmp_path / "base")
    CausalFolder(base=str(tmp_path / "base"))(kind(weights=full_file, chunk=2), tmp_path / "student")
    pipe = WanPipeline.from_pretrained(tmp_path / "student")
    assert kind.of(pipe) == kind(chunk=2)
    assert f"{kind.__name__}.of(pipe)" in (tmp_path / "student" / "README.md").read_text()
    made = tmp_path / "made.mp4"
    words = ["run", kind.name, "--model", str(tmp_path / "student"), "--prompt", "a cat runs", "--seconds", "0.5"]
    assert main([*words, "--height", "32", "--width", "32", "--output", str(made)]) == 0 and made.stat().st_size
