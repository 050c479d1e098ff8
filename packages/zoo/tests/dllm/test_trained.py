"""``tiny-llada`` as it comes with this package: bits per byte of held-out text, and its recipe."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from fewstep import load
from fewstep.testing.objective import ObjectiveCase, ObjectiveSuite
from fewstep.train.dry_run import dry_run
from fewstep.train.objective import Batch
from fewstep.train.parallel import World
from fewstep.train.reporter import NullReporter
from fewstep.train.run import Run
from fewstep_zoo.dllm import model, quality, text
from fewstep_zoo.dllm.quality import pieces
from fewstep_zoo.dllm.recipes import TinyLLaDA
from fewstep_zoo.dllm.text import MASK

SMALL = {"steps": 2, "batch": 2, "lengths": (16, 32), "precision": "float32"}


@pytest.fixture(scope="module")
def tiny():
    return load("tiny-llada")


def test_it_is_a_llada_with_its_tokenizer(tiny):
    config = tiny.model.config
    assert type(tiny.model).__name__ == "LlamaForCausalLM" and tiny.weights == "trained"
    assert (config.is_causal, config.mask_token_id, config.diffusion) == (False, MASK, "llada")
    assert tiny.processor("a\n").input_ids == [97, 10] and tiny.processor.mask_token_id == MASK


@pytest.fixture(scope="module")
def ngrams():
    return quality.fitted()


@pytest.mark.parametrize(("kind", "bound", "few", "many"), [("english", 3.0, 1.7, 2.8), ("source", 3.0, 1.7, 2.8)])
def test_it_is_worth_what_the_readme_says_on_text_it_never_saw(tiny, ngrams, kind, bound, few, many):
    """Also better than a 5-gram model that sees the same bytes to the left."""
    tokens = quality.pieces(kind, 256, 24)
    metrics = quality.of_model(tiny.model, tokens, draws=1)
    assert metrics["bound"] < bound and metrics["masked 15%"] < few and metrics["masked 50%"] < many
    assert metrics["masked 5%"] < metrics["masked 15%"] < metrics["masked 30%"] < metrics["masked 50%"]
    theirs = quality.of_ngrams(ngrams, tokens, draws=1)
    assert all(metrics[rate] < 0.8 * theirs[rate] for rate in ("masked 5%", "masked 15%", "masked 50%"))


def test_two_steps_give_a_folder_that_loads(tmp_path: Path):
    folder = Run(TinyLLaDA(**SMALL), tmp_path / "run", World(), NullReporter()).train()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    loaded = load(str(folder))
    assert loaded.model.config.diffusion == "llada" and loaded.processor("é").input_ids == [0xC3, 0xA9]
    assert len(log) == 2 and {"student/bound", "student/masked", "student/gradient"} < set(log[1])
    assert log[0]["student/masked"] == pytest.approx(math.log(text.VOCABULARY), rel=0.05)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llada"


def test_a_plan_needs_no_training():
    (counts,) = dry_run(TinyLLaDA()).roles.values()
    assert counts[0] == counts[1] > 100_000


def test_heads_of_the_first_layers_begin_with_their_neighbours():
    fresh = model.network(0)
    fresh.set_attn_implementation("eager")
    tokens = pieces("source", 64, 4)
    with torch.no_grad():
        first = fresh(tokens, output_attentions=True, use_cache=False).attentions[0]
    for head, offset in enumerate((-1, 1, -2, 2)):
        looks_at = first[:, head].diagonal(offset, 1, 2)
        assert looks_at.mean() > 0.7


class TestMaskedDiffusion(ObjectiveSuite):
    @pytest.fixture
    def case(self) -> ObjectiveCase:
        job = TinyLLaDA(**SMALL).build(World())

        def batch(seed: int) -> Batch:
            generator, shared = (torch.Generator().manual_seed(seed) for _ in range(2))
            cond, x0 = job.data.draw(2, generator)
            return Batch(cond=cond, uncond=None, x0=x0, shape=(32,), generator=generator, shared=shared)

        return ObjectiveCase(objective=job.objective, batch=batch)
