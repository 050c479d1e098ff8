"""Experts of every family: found, run by core's implementation as by transformers' own, counted, restored."""

from __future__ import annotations

import pytest
import torch
from fewstep import Applied, UnsupportedModelError
from fewstep.families import causal_lm, moe, tiny_moe

WITH_DENSE_LAYERS = {"deepseek_v3": [1, 2]}


@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_every_family_is_found_and_answers_as_before(family):
    model, inputs = tiny_moe.tiny(family), tiny_moe.tiny_inputs(family)
    sites = moe.sites(model)
    assert [site.layer for site in sites] == WITH_DENSE_LAYERS.get(family, [0, 1, 2])
    assert {(site.count, site.top_k) for site in sites} == {(tiny_moe.EXPERTS, tiny_moe.TOP_K)}
    assert all(site.shared == (family == "deepseek_v3") for site in sites)
    assert moe.plain_swiglu(sites[0].experts) != family.endswith("gpt_oss")
    before = model.get_experts_implementation()
    with torch.no_grad():
        dense = model(**inputs).logits
        with Applied() as undo:
            moe.install(undo, model, pack=True)
            torch.testing.assert_close(model(**inputs).logits, dense, rtol=1e-5, atol=1e-5)
        assert model.get_experts_implementation() == before
        assert torch.equal(model(**inputs).logits, dense)


def test_pairs_are_counted_by_layer_and_group():
    model, inputs = tiny_moe.tiny(), tiny_moe.tiny_inputs()
    groups = (inputs["input_ids"] == tiny_moe.IMAGE).long()

    def without_pictures(router, args, said):
        gone = groups.flatten().bool()[:, None] & (torch.arange(tiny_moe.TOP_K) > 0)
        return said[0], said[1], said[2].masked_fill(gone, tiny_moe.EXPERTS)

    with torch.no_grad(), Applied() as undo, moe.counted(model, groups) as pairs:
        moe.install(undo, model)
        undo.callback(moe.sites(model)[1].router.register_forward_hook(without_pictures).remove)
        model(**inputs)
    share = groups.float().mean().item() * 0.75
    assert pairs.skipped() == pytest.approx(share / 3) and pairs.skipped(layer=1) == pytest.approx(share)
    assert pairs.skipped(layer=1, group=1) == 0.75 and pairs.skipped(group=0) == 0 == pairs.skipped(layer=0)


def test_a_baseline_runs_by_the_fastest_implementation_and_a_method_by_its_own():
    model, found = tiny_moe.tiny(), []

    def call():
        name = model.get_experts_implementation()[""]
        found.append(name)
        return name, {"eager": 2.0, "grouped_mm": 1.0}.get(name, 3.0)

    before = model.get_experts_implementation()
    assert moe.fastest(model, call) == ("grouped_mm", 1.0) and found == ["eager", "grouped_mm"]
    assert model.get_experts_implementation() == before
    with Applied() as undo:
        moe.install(undo, model)
        assert moe.fastest(model, call) == (moe.IMPLEMENTATION, 3.0)
    found.clear()
    assert moe.fastest(causal_lm.tiny(), lambda: found.append(1) or (7,)) == (7,) and found == [1]


def test_a_model_without_experts_is_refused_and_counts_nothing():
    model = causal_lm.tiny()
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM has no layer with routed experts"):
        moe.sites(model)
    with moe.counted(model) as pairs:
        model(causal_lm.tiny_prompt(5))
    assert pairs.skipped() == 0
