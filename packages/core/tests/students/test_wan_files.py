"""Weights as people have them: in shards, in folders, with kohya's names; damaged ones are named."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from fewstep.errors import BadFileError
from fewstep.families.wan_names import to_native
from fewstep.students.wan import WanStudent
from fewstep.students.wan_files import read
from safetensors.torch import load_file, save_file


@dataclass(frozen=True, kw_only=True)
class Student(WanStudent):
    """A student of no paper."""

    name: ClassVar[str] = "student"


@pytest.fixture
def sharded(full_file, tmp_path):
    """A folder with the weights in two files and their index."""
    tensors, folder, where = load_file(full_file), tmp_path / "sharded", {}
    folder.mkdir()
    for number in (1, 2):
        name = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        part = {key: value for n, (key, value) in enumerate(tensors.items()) if n % 2 == number - 1}
        save_file(part, folder / name)
        where |= dict.fromkeys(part, name)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_shards_are_read_by_their_index_or_folder(sharded, full_file, pipe, sample):
    for path in (sharded, sharded.parent):
        assert equal(read(path).full, read(full_file).full)
    with Student(weights=full_file).apply(pipe):
        wanted = sample(pipe)
    with Student(weights=sharded.parent).apply(pipe):
        assert torch.equal(sample(pipe), wanted)


def test_a_folder_of_one_file_is_that_file(full_file):
    assert equal(read(full_file.parent).full, read(full_file).full)


def test_what_is_no_set_of_weights_is_said(sharded, pipe, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadFileError, match="empty is a folder with none sets"):
        Student(weights=tmp_path / "empty").apply(pipe)
    with pytest.raises(BadFileError, match="is no single safetensors file"):
        Student(weights=sharded).save_pretrained(tmp_path / "saved")
    (sharded.parent / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadFileError, match="names diffusion_pytorch_model-00002-of-00002.* is missing"):
        Student(weights=sharded.parent).apply(pipe)
    sharded.write_text("[]")
    with pytest.raises(BadFileError, match="is no index of safetensors files"):
        Student(weights=sharded).apply(pipe)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["full_file", "lora_file"])
def test_numbers_that_are_not_finite_are_refused(kind, bad, request, pipe, tmp_path):
    tensors = load_file(request.getfixturevalue(kind))
    name = sorted(tensors)[3]
    tensors[name].view(-1)[1] = bad
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(BadFileError, match=rf"bad.safetensors: {name} holds numbers that are not finite"):
        Student(weights=tmp_path / "bad.safetensors").apply(pipe)


@pytest.mark.parametrize("native", [True, False], ids=["original names", "diffusers' names"])
def test_loras_of_kohyas_trainers_are_converted(lora_file, tmp_path, native):
    known, tensors = read(lora_file), {}
    for module, pair in known.factors.items():
        stem = "lora_unet_" + (to_native(module) if native else module).replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": pair.down, f"{stem}.lora_up.weight": pair.up / 2}
        tensors[f"{stem}.alpha"] = torch.tensor(2.0 * pair.down.shape[0])
    save_file(tensors, tmp_path / "kohya.safetensors")
    changes, wanted = read(tmp_path / "kohya.safetensors").changes(), known.changes()
    assert changes.keys() == wanted.keys()
    for name, change in changes.items():
        torch.testing.assert_close(change, wanted[name])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "is for no transformer; a LoRA without text encoder"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in", "'down_blocks_0_attentions_0_proj_in' is no module of a Wan"),
    ],
)
def test_other_loras_of_kohyas_trainers_are_named(tmp_path, pipe, name, said):
    save_file({f"{name}.lora_down.weight": torch.ones(2, 8)}, tmp_path / "kohya.safetensors")
    with pytest.raises(BadFileError, match=said):
        Student(weights=tmp_path / "kohya.safetensors").apply(pipe)
