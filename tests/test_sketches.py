"""Sketches of methods to come: each needs a family and `Method` (or a recipe), nothing else of fewstep, in 40 lines."""

import ast
import importlib.util
from pathlib import Path

import pytest
import torch
from fewstep.families import causal_lm, tiny_moe, wan
from fewstep.train.parallel import World
from fewstep.train.reporter import NullReporter
from fewstep.train.run import Run

SKETCHES = Path(__file__).with_name("sketches")
ALLOWED = {
    "token_reducer": {"fewstep", "fewstep.families"},
    "sparse_attention": {"fewstep", "fewstep.families", "fewstep.families.attention"},
    "trained_student": {"fewstep", "fewstep.train.distillation", "fewstep.train.dmd2", "fewstep.train.roles"},
}


def sketch(name):
    spec = importlib.util.spec_from_file_location(name, SKETCHES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ALLOWED)
def test_a_sketch_is_short_and_needs_little(name):
    text = (SKETCHES / f"{name}.py").read_text(encoding="utf-8")
    imported = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert len(text.splitlines()) <= 41
    assert {module for module in imported if module.startswith("fewstep")} <= ALLOWED[name]


@torch.inference_mode()
def test_the_token_reducer_drops_every_other_picture_token():
    model, inputs = tiny_moe.tiny("internvl-qwen3_moe"), tiny_moe.tiny_inputs("internvl-qwen3_moe", batch=1)
    length, pictures = inputs["input_ids"].shape[1], int((inputs["input_ids"] == tiny_moe.IMAGE).sum())
    dense = model(**inputs).logits
    module = sketch("token_reducer")
    with module.EveryOther().apply(model):
        assert model(**inputs).logits.shape[1] == length - pictures // 2
    with module.EveryOther(stride=1).apply(model):
        torch.testing.assert_close(model(**inputs).logits, dense)
    assert torch.equal(model(**inputs).logits, dense)


@torch.inference_mode()
def test_the_sparse_attention_equals_dense_where_everything_is_in_its_window():
    model, ids = causal_lm.tiny(), causal_lm.tiny_prompt(96)
    dense, method = model(ids).logits, sketch("sparse_attention").SinkWindow
    with method(window=96).apply(model):
        torch.testing.assert_close(model(ids).logits, dense)
    with method(window=16).apply(model):
        sparse = model(ids).logits
    torch.testing.assert_close(sparse[:, :16], dense[:, :16])
    assert not torch.allclose(sparse[:, -1], dense[:, -1])
    assert torch.equal(model(ids).logits, dense)


def test_the_student_trains_and_diffusers_loads_it(tmp_path, monkeypatch):
    from diffusers import WanPipeline

    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    wan.tiny_pipeline().save_pretrained(tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("a cat runs\na dog sleeps\n", encoding="utf-8")
    recipe = sketch("trained_student").TwoInOneRecipe(
        teacher=str(tmp_path / "teacher"), prompts=tmp_path / "prompts.txt", tokens=8, frames=5, height=32, width=32,
        steps=2, batch=2, raw_steps=(1000, 500), show=1,
    )  # fmt: skip
    student = Run(recipe, tmp_path / "run", World(), NullReporter()).train()
    pipe = WanPipeline.from_pretrained(student)
    before = wan.tiny_pipeline().transformer.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in pipe.transformer.state_dict().items())
