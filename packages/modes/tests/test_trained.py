"""On the trained model of the zoo: the search against the whole grid, and the policies that come with the model."""

from __future__ import annotations

import dataclasses
import importlib.util
import json

import fewstep
import pytest
import torch
from fewstep import hub, plugins
from fewstep.families.vlm import TEXT, VISION
from fewstep_modes import Evaluator, MoDES, Reference, calibrate, search
from fewstep_modes.fit import FitMoDES
from fewstep_modes.frontier import exhaustive

pytestmark = pytest.mark.skipif(importlib.util.find_spec("fewstep_zoo") is None, reason="needs fewstep-zoo")
NAME, SIZE, TARGETS = "digits-qwen3-vl-moe", 8, (0.5, 0.7)


@pytest.fixture(scope="module")
def loaded():
    return fewstep.load(NAME)


@pytest.mark.slow
def test_the_frontier_is_the_best_of_the_whole_grid(loaded):
    reference = Reference(loaded.model, FitMoDES(samples=60, batch=60, seed=5).batches(loaded))
    importance, evaluate = calibrate(reference), Evaluator(reference)
    assert max(importance.text) > 0.05
    fitted = search(evaluate, MoDES(), TARGETS, importance=importance, size=SIZE)
    assert evaluate.passes <= len(TARGETS) * (2 * SIZE + 1)
    best = search(evaluate, MoDES(), TARGETS, importance=importance, size=SIZE, best=exhaustive)
    for point, whole in zip(fitted.points, best.points, strict=True):
        assert point["kl"] == pytest.approx(whole["kl"], rel=0.05)


@pytest.mark.parametrize("name", ["modes", "dmt", "gmlg", "single", "reduce-k", "naee", "mc-moe", "reap"])
def test_saved_policies_load_unchanged_and_skip_as_they_did(loaded, name):
    folder = hub.shipped(NAME, name)
    saved = json.loads((folder / "fewstep.json").read_text())["fields"]
    method = plugins.methods()[name].load().from_pretrained(NAME)
    fields = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    assert json.loads(json.dumps(fields, default=dict)) == saved
    (batch,) = FitMoDES(samples=20, batch=20, seed=3).batches(loaded)
    with method.apply(loaded.model) as applied, torch.no_grad():
        loaded.model(**batch["inputs"])
    counts = applied.counts
    if name == "reap":
        assert 0.4 < counts.ratio < 0.65
    else:
        (point,) = [point for point in method.points if point["target"] == method.target]
        assert counts.ratio == pytest.approx(point["ratio"], abs=0.03)
    if name in ("modes", "dmt"):
        assert counts.share(modality=VISION) > counts.share(modality=TEXT)
