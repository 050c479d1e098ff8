"""The rule itself: what is skipped at which thresholds, and what never is (card, tests 1 to 8, 14, 18, 19)."""

from __future__ import annotations

import math

import pytest
import torch
from fewstep.families import tiny_moe
from fewstep.families.vlm import OTHER, TEXT, VISION
from fewstep_modes import NAEE, MoDES, ReduceK
from fewstep_modes.calibration import Importance, Reference, calibrate, kl
from fewstep_modes.rule import RouterOutput, importance, reaches, shares

INFINITE = math.inf


def thresholds(text, vision, **fields):
    return MoDES(target=0.0, points=({"target": 0.0, "tau_text": text, "tau_vision": vision},), **fields)


def test_thresholds_of_zero_change_nothing(model, inputs, logits):
    dense = logits(model, inputs)
    with thresholds(0.0, 0.0).apply(model) as applied:
        torch.testing.assert_close(logits(model, inputs), dense, rtol=0, atol=1e-5)
        assert applied.counts.ratio == 0
    model.set_experts_implementation("eager")  # a loop over experts in the same order: equal to the last bit
    dense = logits(model, inputs)
    with thresholds(0.0, 0.0).apply(model):
        assert (logits(model, inputs) - dense).abs().max() <= 1e-5


@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_infinite_thresholds_leave_the_shared_experts_or_nothing(family, logits):
    model, inputs = tiny_moe.tiny(family), tiny_moe.tiny_inputs(family)
    inputs["input_ids"][:, -1] = tiny_moe.EOS  # special
    inputs["attention_mask"][0, 0] = 0  # padding
    seen = {}
    with thresholds(INFINITE, INFINITE).apply(model) as applied:
        for name, block in model.named_modules():
            if hasattr(block, "experts"):
                block.register_forward_hook(lambda _, args, out, name=name: seen.update({name: (args[0], out)}))
        logits(model, inputs)
        stats = applied.counts
    special = (
        (inputs["input_ids"] == tiny_moe.EOS)
        | (inputs["input_ids"] == tiny_moe.START)
        | (inputs["input_ids"] == tiny_moe.END)
    )
    special = special if family.startswith("qwen3_vl") else inputs["input_ids"] == tiny_moe.EOS
    special &= inputs["attention_mask"].bool()
    there = int(inputs["attention_mask"].sum())
    assert stats.ratio == pytest.approx((there - int(special.sum())) / there)
    for name, (given, out) in seen.items():
        block = model.get_submodule(name)
        out = out[0] if isinstance(out, tuple) else out
        shared = block.shared_experts(given) if hasattr(block, "shared_experts") else torch.zeros_like(given)
        assert torch.equal(out[~special], shared[~special])
        assert not torch.equal(out[special], shared[special])


def test_the_ratio_is_a_step_function_of_the_threshold():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(500, 4, generator=generator)
    kind = torch.full((500,), TEXT, dtype=torch.int8)
    ratios = []
    for share in (0.0, 0.1, 0.37, 0.5, 0.9, 1.0):
        at = scores.flatten().sort().values[min(1999, int(share * 2000))].item()
        kept = reaches(scores, kind, {TEXT: math.nextafter(at, math.inf) * (1 + 1e-6)})
        ratios.append((~kept).float().mean().item())
        assert abs(ratios[-1] - share) <= 1 / 2000 + 1e-6
    assert ratios == sorted(ratios)


def test_a_common_factor_of_importance_and_threshold_changes_no_mask():
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(300, 4, generator=generator)
    kind = torch.randint(0, 3, (300,), generator=generator).to(torch.int8)
    masks = [
        reaches(importance(share, kind, {TEXT: 0.3 * c, VISION: 0.2 * c}), kind, {TEXT: 0.1 * c, VISION: 0.09 * c})
        for c in (1.0, 2.0**7, 2.0**-9)
    ]
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])
    assert 0 < masks[0].float().mean() < 1


def test_scores_are_free_of_a_scaling_factor_and_in_float32():
    weight = torch.tensor([[0.5, 0.25, 0.25]])
    logits = torch.tensor([[1.0, 2.0, 0.0, -1.0]])
    index = torch.tensor([[1, 0, 2]])
    for scaled in (weight, weight * 2.5, weight.bfloat16()):
        routed = RouterOutput(logits, scaled, index, torch.zeros(1, 2), torch.ones(1, 1, dtype=torch.int8))
        assert torch.equal(shares(routed), weight)
        assert torch.equal(shares(routed, "full_softmax"), logits.softmax(-1)[:, [1, 0, 2]])


def test_the_vision_threshold_leaves_text_in_the_first_layer_alone(model, inputs, logits):
    masks = []
    for vision in (0.0, 0.09, INFINITE):
        seen = []
        with thresholds(0.08, vision).apply(model):
            experts = model.model.language_model.layers[0].mlp.experts
            hook = experts.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[1] == 8))
            logits(model, inputs)
            hook.remove()
        masks.append(seen[0][(inputs["input_ids"] != tiny_moe.IMAGE).flatten()])
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])
    assert 0 < masks[0].float().mean() < 1


def test_kl_of_two_classes():
    dense, other = (torch.tensor([row]).log_softmax(-1) for row in ([1.0, 0.0], [0.0, 0.0]))
    exact = 0.731059 * math.log(0.731059 / 0.5) + 0.268941 * math.log(0.268941 / 0.5)
    assert kl(dense, other).item() == pytest.approx(exact, rel=1e-5)
    assert kl(dense, other).item() == pytest.approx(0.11095, abs=1e-5)


def test_a_layer_whose_experts_give_nothing_has_no_importance(model, batches):
    before = calibrate(Reference(model, batches))
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.experts.down_proj.zero_()
    after = calibrate(Reference(model, batches))
    assert after.text[1] == after.vision[1] == 0 < before.text[1]
    assert sum(Importance.normalised(after.text)) == pytest.approx(1)


def test_importances_of_zero_stay_zero_and_skip_the_modality(model, inputs, logits):
    assert Importance.normalised((0.0, 0.0)) == (0.0, 0.0)
    method = thresholds(0.0, 1e-12, alpha_text=(1.0, 0.0, 0.0), alpha_vision=(0.0, 0.0, 0.0))
    with method.apply(model) as applied:
        assert logits(model, inputs).isfinite().all()
    assert applied.counts.share(modality=VISION) == 1 and applied.counts.share(modality=TEXT) == 0
    assert applied.counts.share(modality=OTHER) == 0


@pytest.mark.parametrize("keep", [0, 1, 3, 4])
def test_reduce_k(model, inputs, logits, keep):
    with ReduceK(keep=keep).apply(model) as applied:
        logits(model, inputs)
    ids = inputs["input_ids"]
    special = ((ids == tiny_moe.START) | (ids == tiny_moe.END)).float().mean().item()
    assert applied.counts.ratio == pytest.approx((1 - keep / 4) * (1 - special))


def test_reduce_k_between_whole_numbers(model, inputs, logits):
    with ReduceK(keep=1.5).apply(model) as applied:
        logits(model, inputs)
    shares = [[applied.counts.share(layer=layer, modality=kind) for kind in (TEXT, VISION)] for layer in range(3)]
    assert shares == [[0.5, 0.5], [0.5, 0.75], [0.75, 0.75]]


def test_naee_drops_nothing_or_all_but_the_first(model, inputs, logits):
    dense = logits(model, inputs)
    with NAEE(beta=0.0).apply(model) as applied:
        torch.testing.assert_close(logits(model, inputs), dense, rtol=0, atol=1e-5)
        assert applied.counts.ratio == 0
    with NAEE(beta=1.0).apply(model) as applied:
        logits(model, inputs)
        assert applied.counts.share(modality=TEXT) == 0.75 == applied.counts.share(modality=VISION)
