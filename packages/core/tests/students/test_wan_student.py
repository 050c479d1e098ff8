"""Students of a Wan pipeline: steps, guidance, weights of every kind, and one sentence for weights that do not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from diffusers import WanPipeline
from fewstep.errors import BadFileError, UnsupportedModelError
from fewstep.families import wan
from fewstep.flow import StepGrid, euler
from fewstep.students.few_steps import is_student
from fewstep.students.wan import WanStudent
from safetensors.torch import load_file, save_file


@dataclass(frozen=True, kw_only=True)
class Student(WanStudent):
    """A student of no paper."""

    name: ClassVar[str] = "student"


def test_the_call_of_a_user_runs_the_students_steps_without_guidance(pipe, sample, student, full_file):
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((kwargs["timestep"].item(), kwargs["hidden_states"].clone())),
        with_kwargs=True,
    )
    with Student(weights=full_file).apply(pipe):
        latents = sample(pipe, num_inference_steps=30, guidance_scale=6.0, negative_prompt="dog")
    assert [timestep for timestep, _ in seen] == pytest.approx([1000, 937.5, 833.3333, 625], abs=1e-3)

    embeds = pipe.encode_prompt("a cat runs", do_classifier_free_guidance=False, max_sequence_length=8)[0]
    expected, levels = seen[0][1], [*StepGrid().sigmas.tolist(), 0.0]
    for level, following in zip(levels, levels[1:], strict=False):
        with torch.no_grad():
            velocity = student(expected, torch.tensor([1000 * level]), embeds, return_dict=False)[0]
        expected = euler(expected, velocity, level, following)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)


def test_the_pipeline_still_is_what_it_was_for_diffusers(pipe, sample, full_file, tmp_path):
    with Student(weights=full_file).apply(pipe):
        assert isinstance(pipe, WanPipeline) and type(pipe).__name__ == "WanPipeline"
        few = sample(pipe)
        pipe.save_pretrained(tmp_path)
    again = WanPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(sample(again, num_inference_steps=4, guidance_scale=1.0), few)


def test_a_lora_does_what_diffusers_does_with_it(pipe, sample, lora_file):
    with Student(weights=lora_file).apply(pipe):
        ours = sample(pipe)
    pipe.load_lora_weights(lora_file)
    with Student().apply(pipe):
        theirs = sample(pipe)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_strength_scales_a_lora(pipe, lora_file):
    before = pipe.transformer.blocks[0].attn1.to_q.weight.clone()
    changes = []
    for strength in (1.0, 0.5):
        with Student(weights=lora_file, strength=strength).apply(pipe):
            changes.append(pipe.transformer.blocks[0].attn1.to_q.weight - before)
    assert changes[0].abs().max() > 1e-3
    torch.testing.assert_close(changes[1], changes[0] / 2, rtol=1e-4, atol=1e-6)


def test_a_saved_method_carries_its_weights(pipe, sample, full_file, tmp_path):
    Student(weights=full_file, steps=(1000, 500)).save_pretrained(tmp_path / "student")
    loaded = Student.from_pretrained(tmp_path / "student")
    assert loaded.weights == tmp_path / "student" / "weights.safetensors" and loaded.steps == (1000, 500)
    with Student(weights=full_file, steps=(1000, 500)).apply(pipe):
        expected = sample(pipe)
    with loaded.apply(pipe):
        assert torch.equal(sample(pipe), expected)


def test_a_failure_half_way_leaves_the_pipeline_as_it_was(pipe, sample, full_file, monkeypatch):
    dense = sample(pipe)
    last = list(pipe.transformer.parameters())[-1]
    monkeypatch.setattr(last, "detach", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Student(weights=full_file).apply(pipe)
    monkeypatch.undo()
    assert type(pipe) is WanPipeline and torch.equal(sample(pipe), dense)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("blocks.1.norm2.bias"), "blocks.1.norm2.bias is missing"),
        (lambda state: state.update({"blocks.9.ffn.net.2.bias": torch.ones(1)}), "has no blocks.9.ffn.net.2.bias"),
        (lambda state: state.update(proj_out_bias=torch.ones(1)), "has no proj_out_bias"),
        (lambda state: state.update({"proj_out.bias": torch.ones(3)}), r"proj_out.bias is \(3,\), .* \(12,\)"),
    ],
    ids=["missing", "extra", "strange", "shape"],
)
def test_full_weights_that_do_not_fit_are_refused(pipe, sample, full_file, tmp_path, change, message):
    dense, state = sample(pipe), load_file(full_file)
    change(state)
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(BadFileError, match=message):
        Student(weights=tmp_path / "wrong.safetensors").apply(pipe)
    assert torch.equal(sample(pipe), dense)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("transformer.blocks.0.attn1.to_q.lora_B.weight"), "blocks.0.attn1.to_q has only down"),
        (lambda s: s.update({"blocks.0.x.lora_A.weight": torch.ones(1, 1)}), "has no prefix 'transformer.'"),
        (lambda s: s.update({"transformer.blocks.0.attn1.to_q.dora_scale": torch.ones(1)}), "no part of a LoRA"),
        (lambda s: s.update({"transformer.blocks.0.attn1.to_z.diff_b": torch.ones(1)}), "has no blocks.0.attn1.to_z"),
        (
            lambda s: s.update({"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 24)}),
            "attn1.to_q have different ranks",
        ),
    ],
    ids=["half", "prefix", "kind", "module", "rank"],
)
def test_a_lora_that_does_not_fit_is_refused(pipe, lora_file, tmp_path, change, message):
    state = load_file(lora_file)
    change(state)
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(BadFileError, match=message):
        Student(weights=tmp_path / "wrong.safetensors").apply(pipe)


def test_a_file_that_is_no_safetensors_is_refused(pipe, full_file, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(full_file.read_bytes()[:-100])
    for name in ("cut.safetensors", "none.safetensors"):
        with pytest.raises(BadFileError, match=name):
            Student(weights=tmp_path / name).apply(pipe)


def test_a_pipeline_with_two_experts_is_refused(pipe):
    pipe.transformer_2 = wan.tiny(seed=2)
    with pytest.raises(UnsupportedModelError, match="two experts"):
        Student().apply(pipe)


def test_a_student_is_told_by_its_own_scheduler(pipe):
    grids = [StepGrid(), StepGrid(shift=3.0), StepGrid((1000, 500)), StepGrid((1000,))]
    assert not any(is_student(pipe, grid) for grid in grids)
    for grid in grids:
        pipe.scheduler = grid.scheduler(stochastic=True)
        assert [is_student(pipe, other) for other in grids] == [other is grid for other in grids]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": (750, 500)}, "fall from 1000"),
        ({"shift": 0.0}, "shift must be positive"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Student(**fields)


def test_steps_that_no_stock_scheduler_holds_are_refused(pipe):
    with pytest.raises(ValueError, match="evenly spaced"):
        Student(steps=(1000, 900, 500)).apply(pipe)


def test_a_style_that_was_loaded_before_acts_on_top_of_the_student(pipe, sample, full_file, lora_file):
    student = Student(weights=full_file)
    with student.apply(pipe):
        alone = sample(pipe)
        pipe.load_lora_weights(lora_file.parent, weight_name=lora_file.name, adapter_name="style")
        wanted = sample(pipe)
    styled = sample(pipe)
    assert not torch.equal(wanted, alone)
    with student.apply(pipe):
        assert torch.equal(sample(pipe), wanted)
    assert torch.equal(sample(pipe), styled)
    pipe.fuse_lora()
    with pytest.raises(UnsupportedModelError, match="unfuse_lora"):
        student.apply(pipe)
    pipe.unfuse_lora()
    with student.apply(pipe):
        torch.testing.assert_close(sample(pipe), wanted)
