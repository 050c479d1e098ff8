"""Calibration and search: what is found, how often it is measured, going on after a kill (card, tests 23, 24)."""

from __future__ import annotations

import pytest
import torch
from fewstep.errors import FewstepError
from fewstep.families import tiny_moe
from fewstep.families.vlm import VISION
from fewstep.fitting import Journal
from fewstep_modes import DMT, GMLG, NAEE, Single, calibrate, search
from fewstep_modes.calibration import Importance
from fewstep_modes.peers import MCMoE, places
from fewstep_modes.reap import saliency
from fewstep_modes.reference import Reference
from fewstep_modes.thresholds import Evaluator, bisect, official, quantiles

TARGETS = (0.3, 0.6)


def fitted(model, batches, journal=None, size=8, **options):
    journal = journal or Journal(None, None)
    reference = Reference(model, batches)
    importance = calibrate(model, (), journal=journal, reference=reference)
    evaluate = Evaluator(reference, journal)
    return search(model, evaluate, importance, TARGETS, size=size, **options), evaluate, importance


def test_experts_of_vision_tokens_in_the_last_layer_are_free(model, batches):
    found = calibrate(model, batches)
    # products of fewer rows may round the rows that stay differently, where there are several threads
    assert found.vision[-1] == pytest.approx(0, abs=1e-6)
    assert min(found.vision[:-1]) > 1e-4 and min(found.text) > 1e-4


def test_data_twice_or_in_another_order_gives_the_same(model, batches):
    first, _, before = fitted(model, batches)
    for data in ([*batches, *batches], batches[::-1]):
        again, _, after = fitted(model, data)
        assert after.text == pytest.approx(before.text, rel=1e-6) and after.vision == pytest.approx(
            before.vision, rel=1e-6
        )
        for a, b in zip(first.points, again.points, strict=True):
            assert a["tau_text"] == pytest.approx(b["tau_text"], rel=1e-5)
            assert a["tau_vision"] == pytest.approx(b["tau_vision"], rel=1e-5)


def test_all_tokens_at_once_as_in_the_paper(model, batches):
    found = calibrate(model, batches, per_modality=False)
    assert found.text == found.vision == found.shared and min(found.text) > 0


def test_zero_and_identity_order_layers_alike_only_if_they_do(model, batches):
    zero, identity = calibrate(model, batches), calibrate(model, batches, disabled="identity")
    assert zero.text != identity.text and min(identity.text) > 0
    squared = calibrate(model, batches, loss="mse")
    assert squared.text != zero.text and squared.vision[-1] == 0


@pytest.mark.parametrize("family", ["qwen3_moe", "internvl-gpt_oss", "deepseek_v3"])
def test_other_families_are_fitted_too(family):
    model, inputs = tiny_moe.tiny(family), tiny_moe.tiny_inputs(family)
    mask = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    mask[:, -3:] = True
    method, _, importance = fitted(model, [{"inputs": inputs, "score_mask": mask}])
    assert min(importance.text) > 0
    assert all(point["ratio"] >= point["target"] for point in method.points)


def test_the_frontier_needs_few_evaluations_and_is_as_good_as_the_whole_grid(model, batches):
    size = 6
    journal = Journal(None, None)
    found, evaluate, importance = fitted(model, batches, journal, size=size)
    assert evaluate.new <= len(TARGETS) * (2 * size + 1)
    whole = search(model, Evaluator(evaluate.reference, journal), importance, TARGETS, size=size, full=True)
    for point, best in zip(found.points, whole.points, strict=True):
        assert point["ratio"] >= point["target"] and point["kl"] >= best["kl"]


class Killed(Exception):
    """What a kill looks like to the code around it."""


class MortalJournal(Journal):
    """Dies after so many lines, leaving half of one."""

    left = 3

    def put(self, key, value):
        if self.left == 0:
            with open(self.path, "a") as file:
                file.write('[["eval", "mod')
            raise Killed
        self.left -= 1
        return super().put(key, value)


def test_a_fit_that_is_killed_anywhere_goes_on_where_it_was(model, batches, tmp_path):
    expected, evaluate, _ = fitted(model, batches, size=4)
    lines, times = 0, 0
    while True:
        try:
            journal = MortalJournal(tmp_path / "fit.jsonl", "data")
            found, again, _ = fitted(model, batches, journal, size=4)
            break
        except Killed:
            times += 1
            now = (tmp_path / "fit.jsonl").read_text().count("\n")
            assert now == lines + 3
            lines = now
    assert times > 4
    keys = [line.rsplit(', {"kl"')[0] for line in (tmp_path / "fit.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)), "something was measured twice"

    def settings(method):
        return [{k: v for k, v in point.items() if k != "seconds"} for point in method.points]

    assert settings(found) == settings(expected)
    assert found.alpha_text == expected.alpha_text and found.alpha_vision == expected.alpha_vision


def test_another_fit_in_the_same_folder_is_refused(tmp_path):
    Journal(tmp_path / "fit.jsonl", {"seed": 0}).put("a", 1)
    assert Journal(tmp_path / "fit.jsonl", {"seed": 0}).get("a") == 1
    with pytest.raises(FewstepError, match="other settings"):
        Journal(tmp_path / "fit.jsonl", {"seed": 1})
    assert Journal(tmp_path / "fit.jsonl", {"seed": 1}, resume=False).get("a") is None
    (tmp_path / "fit.jsonl").write_text("nonsense\n")
    with pytest.raises(FewstepError, match="fit.jsonl:1 is damaged"):
        Journal(tmp_path / "fit.jsonl", {})


def test_a_ratio_out_of_reach_is_said_in_one_sentence(model, batches):
    reference = Reference(model, batches)
    with pytest.raises(FewstepError, match="0.99 cannot be reached: special tokens"):
        search(model, Evaluator(reference, Journal(None, None)), None, (0.99,), size=4)
    (point,) = bisect(Evaluator(reference, Journal(None, None)), Single(), (0.99,), 0.0, 1.0).points
    assert point["tau"] == 1 and 0.9 < point["ratio"] < 0.99


def test_peers_come_close_to_the_ratio_that_is_wanted(model, batches):
    reference = Reference(model, batches)
    shared = Importance.normalised(calibrate(model, (), reference=reference).shared)
    for method in (Single(), NAEE(), MCMoE(), GMLG(alpha_text=shared, alpha_vision=shared)):
        found = bisect(Evaluator(reference, Journal(None, None)), method, TARGETS, 0.0, 1.0)
        assert [point["ratio"] for point in found.points] == pytest.approx(TARGETS, abs=0.02), method.name
    dmt = search(model, Evaluator(reference, Journal(None, None)), None, TARGETS, method=DMT(), size=12)
    assert isinstance(dmt, DMT) and dmt.alpha_text == ()


def test_data_without_a_scored_position_is_refused(model, batches):
    empty = [{**batch, "score_mask": torch.zeros_like(batch["score_mask"])} for batch in batches]
    with pytest.raises(FewstepError, match="scores no position"):
        Reference(model, empty)


def test_grids():
    assert official(100, 0.71)[0] == pytest.approx(9.1e-5, rel=0.01)
    assert official(100, 0.71)[-1] == pytest.approx(0.1043, rel=0.01)
    assert official(100, 0.60)[-1] == pytest.approx(0.0360, rel=0.01)
    scores = torch.rand(1000)
    grid = quantiles([scores[:300], scores[300:]], 11)
    assert grid[0] == 0 and grid == sorted(grid) and grid[-1] > scores.max()
    assert [(scores < tau).float().mean().item() for tau in grid] == pytest.approx(
        [i / 10 for i in range(11)], abs=0.002
    )
    assert quantiles([], 3) == [0.0, 0.0, 0.0]


def test_tokens_are_ranked_within_their_prompt():
    modality = torch.tensor([[-1, 1, 1, 1], [1, 1, 2, 2]], dtype=torch.int8)
    hidden = torch.tensor([9.0, 3, 1, 2, 4, 3, 2, 1])[:, None]
    assert places(hidden, modality).tolist() == [
        [0, pytest.approx(2 / 3), 0, pytest.approx(1 / 3)],
        [0.75, 0.5, 0.25, 0],
    ]


def test_what_each_expert_contributes(model, batches):
    scores = saliency(model, batches)
    assert all(found.shape == (8,) and (found >= 0).all() for found in scores.values())
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.experts.down_proj[5] = 0
    assert saliency(model, batches)[1][5] == 0 < scores[1][5]


def test_vision_experts_are_skipped_first(model, batches):
    method, _, importance = fitted(model, batches, size=12)
    with method.apply(model) as applied:
        for batch in batches:
            model(**batch["inputs"])
    assert applied.counts.share(layer=2, modality=VISION) >= applied.counts.share(layer=0, modality=VISION)
    assert sum(importance.vision) < sum(importance.text)
