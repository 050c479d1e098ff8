"""Checkpoints of training: the part by its name, without names of wrappers, strictly, and nothing in them is run."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from fewstep.errors import BadFileError
from fewstep.families import wan
from fewstep.families.wan_names import to_native
from fewstep.students.wan import WanStudent
from fewstep.students.wan_files import read


@dataclass(frozen=True, kw_only=True)
class Student(WanStudent):
    """A student of no paper."""

    name: ClassVar[str] = "student"


def named(network, pattern):
    """Weights by their native names in a pattern, with FSDP's wrapper around each block."""
    state = {to_native(name): tensor for name, tensor in network.state_dict().items()}
    wrapped = {name.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."): t for name, t in state.items()}
    return {pattern.format(name): tensor for name, tensor in wrapped.items()}


@pytest.fixture(scope="session")
def official(student, tmp_path_factory):
    """What Self Forcing's trainer saves: an average whose names have other prefixes, the raw weights, and a critic."""
    parts = {
        "generator": named(wan.tiny(seed=2), "model._fsdp_wrapped_module.{}"),
        "generator_ema": named(student, "_orig_mod.model.{}"),
        "critic": named(wan.tiny(seed=3), "model.{}"),
        "step": 1200,
    }
    path = tmp_path_factory.mktemp("official") / "model.pt"
    torch.save(parts, path)
    return path


def same(read_weights, network):
    state = network.state_dict()
    return read_weights.keys() == state.keys() and all(torch.equal(read_weights[name], state[name]) for name in state)


def test_parts_are_chosen_by_name(official, student):
    assert same(read(official).full, student)
    assert same(read(official, "generator").full, wan.tiny(seed=2))


@pytest.mark.parametrize("legacy", [False, True])
def test_one_set_of_weights_needs_no_name(student, tmp_path, legacy):
    torch.save(named(student, "module.{}"), tmp_path / "flat.pt", _use_new_zipfile_serialization=not legacy)
    assert same(read(tmp_path / "flat.pt").full, student)


def test_a_checkpoint_is_saved_as_safetensors(official, pipe, sample, tmp_path):
    Student(weights=official).save_pretrained(tmp_path)
    loaded = Student.from_pretrained(tmp_path)
    assert loaded.weights == tmp_path / "weights.safetensors"
    with Student(weights=official).apply(pipe):
        wanted = sample(pipe)
    with loaded.apply(pipe):
        assert torch.equal(sample(pipe), wanted)


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("was_run"),)


def test_a_pickle_that_does_something_is_refused_unrun(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"generator_ema": Harmful()}, "zip.pt")
    Path("plain.pt").write_bytes(pickle.dumps({"generator_ema": Harmful()}))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(BadFileError, match=f"{name} holds more than tensors, or is damaged; nothing in it was run"):
            Student(weights=Path(name)).apply(pipe)
    assert not Path("was_run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"generator": {"model.a": torch.ones(1)}, "step": 3},
            "no weights called 'generator_ema'; there are g",
        ),
        ({"step": 3}, "there are none"),
        ({}, "holds no weights"),
        ([1, 2], "holds a list"),
        ({"a": torch.ones(1), "module.a": torch.ones(1)}, "two of its names are one"),
        ({"generator_ema": {"model.unet.x": torch.ones(1)}}, "does not fit the transformer, which has no unet.x"),
        ({"generator_ema": {"model.head.head.bias": torch.ones(12)}}, "does not fit the transformer: .* is missing"),
        ({"generator_ema": {"model.head.head.bias": torch.tensor([float("nan")])}}, "not finite"),
    ],
    ids=["part", "numbers", "empty", "list", "names", "stranger", "few", "nan"],
)
def test_what_does_not_fit_is_said(pipe, tmp_path, content, message):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(BadFileError, match=message):
        Student(weights=tmp_path / "model.pt").apply(pipe)


def test_a_truncated_or_missing_file_is_said(pipe, official, tmp_path):
    (tmp_path / "cut.pt").write_bytes(official.read_bytes()[:5000])
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("cut.pt", "empty.pt", "none.pt"):
        with pytest.raises(BadFileError, match=name):
            Student(weights=tmp_path / name).apply(pipe)


def test_a_checkpoint_is_saved_and_pushed_as_safetensors_in_capitals_too(official, tmp_path, monkeypatch):
    upper = tmp_path / "STUDENT.PT"
    upper.write_bytes(official.read_bytes())
    uploaded = []

    class Hub:
        """Stands for the hub of the library: nothing leaves this machine."""

        def create_repo(self, repo_id, **_):
            return f"https://hub/{repo_id}"

        def upload_folder(self, *, repo_id, folder_path):
            uploaded.extend((file.name, file.read_bytes()[:2]) for file in Path(folder_path).iterdir())

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    Student(weights=upper).save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.PT"))
    assert same(read(tmp_path / "saved" / "weights.safetensors").full, wan.tiny(seed=1))
    Student(weights=official).push_to_hub("me/student")
    assert "weights.safetensors" in dict(uploaded) and b"PK" not in dict(uploaded).values()


def test_a_lora_in_a_checkpoint_is_not_saved_as_nothing(tmp_path):
    name = "blocks.0.attn1.to_q"
    factors = {f"{name}.lora_A.weight": torch.randn(2, 24), f"{name}.lora_B.weight": torch.randn(24, 2)}
    torch.save(factors, tmp_path / "lora.pt")
    with pytest.raises(BadFileError, match="--format lora"):
        Student(weights=tmp_path / "lora.pt").save_pretrained(tmp_path / "saved")
