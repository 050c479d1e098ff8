"""Experts of every family: sites, core's implementation beside transformers' own, counts of pairs, cost."""

from __future__ import annotations

import pytest
import torch
from fewstep import Applied, UnsupportedModelError
from fewstep.families import causal_lm, moe, tiny_moe
from fewstep.families.moe_cost import MoeSizes, meta_model

WITH_DENSE_LAYERS = {"deepseek_v3": [1, 2]}


@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_experts_are_found_in_every_family_and_answer_as_before(family):
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


def test_a_model_that_cannot_be_packed_is_left_as_it_was():
    model = tiny_moe.tiny().to("meta")
    before, names = model.get_experts_implementation(), set(vars(moe.sites(model)[0].experts))
    with pytest.raises(ValueError, match="packing needs oneDNN"), Applied() as undo:
        moe.install(undo, model, pack=True)
    assert model.get_experts_implementation() == before
    assert set(vars(moe.sites(model)[0].experts)) == names


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
    model, tried = tiny_moe.tiny(), []

    def call():
        name = model.get_experts_implementation()[""]
        tried.append(name)
        return name, {"eager": 2.0, "grouped_mm": 1.0}.get(name, 3.0)

    before = model.get_experts_implementation()
    assert moe.fastest(model, call) == ("grouped_mm", 1.0) and tried == ["eager", "grouped_mm"]
    assert model.get_experts_implementation() == before
    with Applied() as undo:
        moe.install(undo, model)
        assert moe.fastest(model, call) == (moe.IMPLEMENTATION, 3.0)
    tried.clear()
    assert moe.fastest(causal_lm.tiny(), lambda: tried.append(1) or (7,)) == (7,) and tried == [1]


def test_a_model_without_experts_is_refused_and_counts_nothing():
    model = causal_lm.tiny()
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM has no layer with routed experts"):
        moe.sites(model)
    with moe.counted(model) as pairs:
        model(causal_lm.tiny_prompt(5))
    assert pairs.skipped() == 0


@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_sizes_come_from_the_configuration_alone(family):
    model = tiny_moe.tiny(family)
    model.config.architectures = [type(model).__name__]
    meta = meta_model(model.config)
    assert next(meta.parameters()).is_meta
    sizes = MoeSizes.of(meta, moe.sites(meta))
    assert sizes == MoeSizes.of(model, moe.sites(model))
    assert sizes.parameters == sum(weight.numel() for weight in model.parameters()) == sizes.weight_bytes(1)
    assert sizes.layers == 3 and sizes.active * tiny_moe.EXPERTS == sizes.routed * tiny_moe.TOP_K


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_operations_of_a_prompt_are_those_that_torch_counts(family):
    from torch.utils.flop_counter import FlopCounterMode

    tokens, model = 32, tiny_moe.tiny(family)
    sizes = MoeSizes.of(model, moe.sites(model))
    model.set_experts_implementation("eager")
    model.config._attn_implementation = "eager"  # multiplies the masked half too
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.get_decoder()(torch.arange(tokens)[None] + 3)
    masked = sizes.attention * tokens**2
    rotary = counter.get_total_flops() - masked - sizes.prefill_flops(tokens)
    assert 0 <= rotary < 0.01 * sizes.prefill_flops(tokens)
    assert sizes.routed_share(tokens) == 2 * sizes.active * tokens / sizes.prefill_flops(tokens)


def test_an_architecture_that_transformers_lacks_is_refused():
    with pytest.raises(UnsupportedModelError, match="has no class MyMoe"):
        meta_model({"architectures": ["MyMoe"], "model_type": "my"})
    with pytest.raises(UnsupportedModelError, match="has no class for this model"):
        meta_model({"model_type": "my"})
