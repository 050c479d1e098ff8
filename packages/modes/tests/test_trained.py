"""On the trained model of the zoo: the search against the whole grid, and the policies that come with the model."""

from __future__ import annotations

import importlib.util

import fewstep
import pytest
import torch
from fewstep.families.vlm import TEXT, VISION
from fewstep.fitting import Journal
from fewstep_modes import MoDES, calibrate, search
from fewstep_modes.data import of_task
from fewstep_modes.reference import Reference
from fewstep_modes.thresholds import Evaluator

pytestmark = pytest.mark.skipif(importlib.util.find_spec("fewstep_zoo") is None, reason="needs fewstep-zoo")
NAME, SIZE, TARGETS = "digits-qwen3-vl-moe", 8, (0.5, 0.7)


@pytest.fixture(scope="module")
def loaded():
    return fewstep.load(NAME)


def test_the_frontier_is_the_best_of_the_whole_grid(loaded):
    journal = Journal(None, None)
    reference = Reference(loaded.model, of_task("digit-qa", loaded, 60, 60, 5))
    importance = calibrate(loaded.model, (), journal=journal, reference=reference)
    assert max(importance.text) > 0.05
    evaluate = Evaluator(reference, journal)
    found = search(loaded.model, evaluate, importance, TARGETS, size=SIZE)
    assert evaluate.new <= len(TARGETS) * (2 * SIZE + 1)
    whole = search(loaded.model, Evaluator(reference, journal), importance, TARGETS, size=SIZE, full=True)
    for point, best in zip(found.points, whole.points, strict=True):
        assert point["kl"] == pytest.approx(best["kl"], rel=0.05)


def test_the_policy_that_comes_with_the_model_skips_vision_first(loaded):
    method = MoDES.from_pretrained(NAME)
    (batch,) = of_task("digit-qa", loaded, 60, 60, 6)
    with method.apply(loaded.model) as applied, torch.no_grad():
        loaded.model(**batch["inputs"])
    stats = applied.counts
    assert stats.ratio == pytest.approx(method.target, abs=0.05)
    assert stats.share(modality=VISION) > stats.share(modality=TEXT)
