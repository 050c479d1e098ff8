"""T13: every format is read again by its own loader or by ours, and makes the same clip."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from fewstep.errors import BadFileError, FewstepError
from fewstep.families import wan
from fewstep.students.export import Comfy, DiffusersFolder, LightX2V, PeftLora
from fewstep.students.wan import WanStudent
from fewstep.students.wan_files import read
from fewstep.students.weights import extract_lora
from safetensors.torch import load_file, save_file


@dataclass(frozen=True, kw_only=True)
class Student(WanStudent):
    """A student of no paper."""

    name: ClassVar[str] = "student"


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    """The tiny pipeline as a folder."""
    folder = tmp_path_factory.mktemp("base")
    wan.tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def few(sample):
    """Latents that a method makes with the tiny pipeline."""

    def call(method):
        pipe = wan.tiny_pipeline()
        with method.apply(pipe):
            return sample(pipe)

    return call


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["full_file", "lora_file"])
def test_a_diffusers_folder_needs_nothing_of_ours(kind, request, base, few, sample, tmp_path):
    method = Student(weights=request.getfixturevalue(kind))
    assert DiffusersFolder(base=base)(method, tmp_path) == []
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "WanPipeline" and "fewstep" not in json.dumps(index)
    pipe = WanPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    close(sample(pipe, num_inference_steps=4, guidance_scale=1.0), few(method))
    assert "guidance_scale=1.0" in (tmp_path / "README.md").read_text()


def test_a_peft_lora_loads_in_diffusers(lora_file, few, sample, tmp_path):
    PeftLora()(Student(weights=lora_file, strength=0.5), tmp_path)
    pipe = wan.tiny_pipeline()
    pipe.load_lora_weights(tmp_path)
    with Student().apply(pipe):
        close(sample(pipe), few(Student(weights=lora_file, strength=0.5)))


@pytest.mark.parametrize("writer", [LightX2V(), Comfy()], ids=["lightx2v", "comfy"])
def test_a_native_lora_loads_in_diffusers_and_comes_back(writer, lora_file, few, sample, tmp_path):
    method = Student(weights=lora_file)
    writer(method, tmp_path)
    names = load_file(tmp_path / "lora.safetensors")
    assert all(name.startswith("diffusion_model.blocks.") for name in names)
    close(few(Student(weights=tmp_path / "lora.safetensors")), few(method))
    pipe = wan.tiny_pipeline()
    pipe.load_lora_weights(tmp_path / "lora.safetensors")
    with Student().apply(pipe):
        close(sample(pipe), few(method))


def test_full_native_weights_load_in_diffusers(full_file, few, student, tmp_path):
    LightX2V()(Student(weights=full_file), tmp_path)
    Comfy()(Student(weights=full_file), tmp_path)
    native = load_file(tmp_path / "distill_model.safetensors")
    assert {name: tensor.shape for name, tensor in native.items()} == {
        name: tensor.shape for name, tensor in load_file(tmp_path / "diffusion_model.safetensors").items()
    }
    student.save_config(tmp_path / "config")
    loaded = WanTransformer3DModel.from_single_file(
        tmp_path / "distill_model.safetensors", config=str(tmp_path / "config"), local_files_only=True
    )
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in student.state_dict().items())
    close(few(Student(weights=tmp_path / "distill_model.safetensors")), few(Student(weights=full_file)))


def test_the_swapped_norms_keep_their_places(full_file, student, tmp_path):
    state = dict(student.state_dict())
    state["blocks.1.norm2.weight"] = torch.arange(24.0)
    save_file(state, tmp_path / "marked.safetensors")
    LightX2V()(Student(weights=tmp_path / "marked.safetensors"), tmp_path)
    native = load_file(tmp_path / "distill_model.safetensors")
    assert torch.equal(native["blocks.1.norm3.weight"], torch.arange(24.0)) and "blocks.1.norm2.weight" not in native
    assert torch.equal(read(tmp_path / "distill_model.safetensors").full["blocks.1.norm2.weight"], torch.arange(24.0))


@pytest.mark.parametrize(("fields", "shift"), [({}, 5), ({"steps": (1000, 500), "shift": 2.5}, 2.5)])
def test_the_lightx2v_configuration_is_made_from_the_method_and_read_again(
    full_file, lora_file, fields, shift, tmp_path
):
    for path, rank in ((lora_file, 0), (full_file, 0)):
        method = Student(weights=path, **fields)
        LightX2V(rank=rank)(method, tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        steps = list(method.steps)
        sampler = {"infer_steps": len(steps), "denoising_step_list": steps, "sample_shift": shift, "enable_cfg": False}
        assert sampler.items() <= config.items()
        again = Student.from_lightx2v(tmp_path / "config.json")
        assert again == method and again.weights.exists()
    assert config["dit_original_ckpt"] == str(tmp_path / "distill_model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enable_cfg": True}, "enable_cfg false"),
        ({"lora_configs": [{"path": "a"}, {"path": "b"}]}, "one set of weights"),
        ({"denoising_step_list": None}, "no LightX2V configuration"),
    ],
)
def test_a_strange_lightx2v_configuration_is_refused(change, message, tmp_path):
    config = {"denoising_step_list": [1000, 500], "sample_shift": 5, "enable_cfg": False, "dit_original_ckpt": "x"}
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(BadFileError, match=message):
        Student.from_lightx2v(tmp_path / "config.json")


def test_a_lora_merged_equals_the_adapter(lora_file):
    transformer, merged = wan.tiny(), wan.tiny()
    transformer.load_lora_adapter(load_file(lora_file), prefix="transformer", metadata=lora_metadata(lora_file))
    for name, change in read(lora_file).changes().items():
        merged.get_parameter(name).data += change
    noisy, cond = torch.randn(2, 3, 2, 4, 4), torch.randn(2, 5, 8)
    call = {"timestep": torch.tensor([100.0, 900.0]), "encoder_hidden_states": cond, "return_dict": False}
    with torch.no_grad():
        close(merged(noisy, **call)[0], transformer(noisy, **call)[0])
        assert not torch.allclose(merged(noisy, **call)[0], wan.tiny()(noisy, **call)[0], atol=1e-3)


def lora_metadata(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["lora_adapter_metadata"])


@pytest.mark.parametrize("names", [("lora_A", "lora_B"), ("lora_down", "lora_up")])
def test_alpha_is_folded(names, tmp_path):
    down, up = torch.randn(3, 24), torch.randn(24, 3)
    stem = "diffusion_model.blocks.0.self_attn.q"
    tensors = {f"{stem}.{names[0]}.weight": down, f"{stem}.{names[1]}.weight": up, f"{stem}.alpha": torch.tensor(1.5)}
    save_file(tensors, tmp_path / "lora.safetensors")
    close(read(tmp_path / "lora.safetensors").changes()["blocks.0.attn1.to_q.weight"], 0.5 * up @ down)
    PeftLora()(Student(weights=tmp_path / "lora.safetensors"), tmp_path)
    folded = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    stem = "transformer.blocks.0.attn1.to_q"
    assert folded.keys() == {f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"}
    close(folded[f"{stem}.lora_B.weight"] @ folded[f"{stem}.lora_A.weight"], 0.5 * up @ down)


DELTAS = {
    "blocks.0.self_attn.q.diff_b": ("blocks.0.attn1.to_q.bias", (24,)),
    "blocks.1.norm3.diff": ("blocks.1.norm2.weight", (24,)),
    "blocks.1.norm3.diff_b": ("blocks.1.norm2.bias", (24,)),
    "blocks.0.diff_m": ("blocks.0.scale_shift_table", (1, 6, 24)),
    "head.diff_m": ("scale_shift_table", (1, 2, 24)),
    "patch_embedding.diff": ("patch_embedding.weight", (24, 3, 1, 2, 2)),
}


def test_deltas_of_lightx2v_are_added_and_written_again(tmp_path, pipe):
    tensors = {f"diffusion_model.{name}": torch.randn(shape) for name, (_, shape) in DELTAS.items()}
    save_file(tensors, tmp_path / "deltas.safetensors")
    method, before = Student(weights=tmp_path / "deltas.safetensors"), dict(wan.tiny().named_parameters())
    with method.apply(pipe):
        for name, (ours, _) in DELTAS.items():
            close(pipe.transformer.get_parameter(ours) - before[ours], tensors[f"diffusion_model.{name}"])
    LightX2V()(method, tmp_path)
    again = load_file(tmp_path / "lora.safetensors")
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)
    Comfy()(method, tmp_path)
    comfy = load_file(tmp_path / "lora.safetensors")
    assert {"diffusion_model.blocks.0.modulation.diff", "diffusion_model.head.modulation.diff"} < comfy.keys()
    read_again = read(tmp_path / "lora.safetensors").deltas
    assert read_again.keys() == {ours for ours, _ in DELTAS.values()}


def test_extraction_at_full_rank_is_exact(base, full_file, few, tmp_path):
    method = Student(weights=full_file)
    notes = LightX2V(rank=99, base=base)(method, tmp_path)
    assert notes == ["a LoRA of rank 99 keeps 100.0 % of the squared change of the weights"]
    close(few(Student(weights=tmp_path / "lora.safetensors")), few(method))


def test_extraction_keeps_the_largest_singular_values():
    before = {"proj_out.weight": torch.zeros(12, 24), "proj_out.bias": torch.zeros(12)}
    left, right = (torch.linalg.qr(torch.randn(size, 3))[0] for size in (12, 24))
    values = torch.tensor([3.0, 2.0, 1.0])
    after = {"proj_out.weight": left * values @ right.T, "proj_out.bias": torch.zeros(12)}
    lora, kept = extract_lora(before, after, 2)
    assert kept == pytest.approx(13 / 14) and not lora.deltas
    close(lora.changes()["proj_out.weight"], left[:, :2] * values[:2] @ right[:, :2].T)


def test_a_peft_lora_says_what_it_leaves_out(base, full_file, tmp_path, sample):
    notes = PeftLora(rank=24, base=base)(Student(weights=full_file), tmp_path)
    assert "left out" in notes[1] and "scale_shift_table" in notes[1]
    pipe = wan.tiny_pipeline()
    pipe.load_lora_weights(tmp_path)
    with Student().apply(pipe):
        sample(pipe)
    name = "transformer.blocks.0.attn1.to_q.lora_B.bias"
    change = load_file(full_file)["blocks.0.attn1.to_q.bias"] - wan.tiny().blocks[0].attn1.to_q.bias
    close(load_file(tmp_path / "pytorch_lora_weights.safetensors")[name], change.detach())


def test_what_is_needed_is_said(full_file, tmp_path, base):
    with pytest.raises(FewstepError, match="--base"):
        PeftLora()(Student(weights=full_file), tmp_path)
    with pytest.raises(FewstepError, match="nothing to export"):
        Comfy()(Student(), tmp_path)
    with pytest.raises(ValueError, match="must be 1 or more"):
        PeftLora(rank=-1, base=base)(Student(weights=full_file), tmp_path)
    with pytest.raises(ValueError, match="differ in their parameters"):
        extract_lora({"a": torch.ones(1)}, {"b": torch.ones(1)}, 1)
    assert list(tmp_path.iterdir()) == []
