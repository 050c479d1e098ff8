"""MoDES on whole models: generation, caches, padding, threads, removal, files (card, tests 12 to 17, 20, 22)."""

from __future__ import annotations

import json
import math
import threading

import pytest
import torch
from fewstep import BadFileError, FewstepError
from fewstep.families import moe, tiny_moe
from fewstep.families.vlm import modality
from fewstep_modes import MoDES, ReduceK


def thresholds(text=0.05, vision=0.1, **fields):
    return MoDES(target=0.5, points=({"target": 0.5, "tau_text": text, "tau_vision": vision},), **fields)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_skipped_experts_are_not_run_and_the_rest_is_the_loop_over_experts(family, pack, logits):
    model, inputs = tiny_moe.tiny(family), tiny_moe.tiny_inputs(family)
    seen = []
    with thresholds(0.12 if family == "deepseek_v3" else 0.05, pack=pack).apply(model) as applied:
        blocks = [module for module in model.modules() if hasattr(module, "experts")]
        for block in blocks:
            block.experts.register_forward_hook(lambda m, args, out: seen.append((m, args, out)))
        logits(model, inputs)
        assert 0.05 < applied.counts.ratio < 0.95
        used = {id(m): set(args[1].unique().tolist()) for m, args, _ in seen}
        for module, (hidden, index, weight), out in seen:
            torch.testing.assert_close(out, by_loop(module, hidden, index, weight), rtol=0, atol=1e-4)
        with torch.no_grad():
            for block in blocks:
                for expert in set(range(8)) - used[id(block.experts)]:
                    block.experts.down_proj[expert] = math.nan
        assert logits(model, inputs).isfinite().all()


def by_loop(module, hidden, index, weight):
    """Token by token, expert by expert, as the classes say."""
    out = torch.zeros_like(hidden)
    for token, (chosen, factors) in enumerate(zip(index.tolist(), weight, strict=True)):
        for expert, factor in zip(chosen, factors, strict=True):
            if expert == module.num_experts:
                continue
            x = hidden[token]
            if module.is_transposed:
                inner = x @ module.gate_up_proj[expert] + module.gate_up_proj_bias[expert]
                made = module._apply_gate(inner[None])[0] @ module.down_proj[expert] + module.down_proj_bias[expert]
            else:
                gate, up = (module.gate_up_proj[expert] @ x).chunk(2)
                made = module.down_proj[expert] @ (module.act_fn(gate) * up)
            out[token] += factor * made
    return out


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "internvl-gpt_oss", "deepseek_v3"])
def test_greedy_tokens_are_the_same_at_thresholds_of_zero(family):
    model, inputs = tiny_moe.tiny(family), tiny_moe.tiny_inputs(family)
    plain = model.generate(**inputs, max_new_tokens=32, min_new_tokens=32, do_sample=False)
    with thresholds(0.0, 0.0).apply(model):
        assert torch.equal(model.generate(**inputs, max_new_tokens=32, min_new_tokens=32, do_sample=False), plain)


def test_decoding_with_a_cache_decides_as_reading_everything_again(model, inputs, logits):
    with thresholds().apply(model) as applied:
        out = model.generate(
            **inputs,
            max_new_tokens=8,
            min_new_tokens=8,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        more = out.sequences[:, inputs["input_ids"].shape[1] :]
        types = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(more)], 1)
        whole = {**inputs, "input_ids": out.sequences, "mm_token_type_ids": types}
        whole["attention_mask"] = torch.ones_like(out.sequences)
        again = logits(model, whole)[:, -9:-1]
        assert applied.counts.ratio > 0.1
    torch.testing.assert_close(torch.stack(out.logits, 1), again, rtol=0, atol=1e-4)


def test_left_padding_changes_neither_logits_nor_counts(model, logits):
    short, long = tiny_moe.tiny_inputs(batch=1, text=5, seed=1), tiny_moe.tiny_inputs(batch=1, text=9, seed=2)
    counts, alone = 0, []
    for one in (short, long):
        with thresholds().apply(model) as applied:
            alone.append(logits(model, one)[0, -1])
            counts = counts + applied.counts.counts
    fill = torch.zeros(1, 4, dtype=torch.long)
    both = {
        name: torch.cat([torch.cat([fill, short[name]], 1), long[name]])
        for name in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    both |= {name: torch.cat([short[name], long[name]]) for name in ("pixel_values", "image_grid_thw")}
    with thresholds().apply(model) as applied:
        torch.testing.assert_close(logits(model, both)[:, -1], torch.stack(alone), rtol=0, atol=1e-4)
        assert torch.equal(applied.counts.counts, counts)


def test_removal_restores_the_model_to_the_last_bit(model, inputs, logits):
    dense, before = logits(model, inputs), model.get_experts_implementation()
    applied = thresholds(pack=True).apply(model)
    assert not torch.equal(logits(model, inputs), dense)
    applied.remove()
    assert torch.equal(logits(model, inputs), dense) and model.get_experts_implementation() == before


def test_a_policy_goes_to_json_and_back(tmp_path):
    method = thresholds(
        alpha_text=(0.5, 0.3, 0.2), alpha_vision=(0.2, 0.3, 0.5), experts=8, top_k=4, layers=(0, 1, 2), special=(1, 2)
    )
    method.save_pretrained(tmp_path)
    assert MoDES.from_pretrained(tmp_path) == method
    saved = json.loads((tmp_path / "fewstep.json").read_text())
    saved["fields"]["points"] = [{"target": 0.5, "tau_text": 0.1}]
    (tmp_path / "fewstep.json").write_text(json.dumps(saved))
    with pytest.raises((ValueError, BadFileError), match="tau_vision"):
        MoDES.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"experts": 16, "top_k": 4, "layers": (0, 1, 2)}, "16 experts"),
        ({"experts": 8, "top_k": 2, "layers": (0, 1, 2)}, "2 of them"),
        ({"experts": 8, "top_k": 4, "layers": (0, 1, 2, 3)}, r"\[0, 1, 2, 3\]"),
        ({"alpha_text": (0.5, 0.5)}, "2 and 3 layers"),
        ({"target": 0.6}, "no settings for target 0.6"),
    ],
)
def test_a_policy_for_another_model_is_refused_and_the_model_left_alone(model, fields, said):
    method = MoDES(**{"target": 0.5, "points": thresholds().points, **fields})
    with pytest.raises(ValueError, match=said):
        method.apply(model)
    with thresholds().apply(model):
        pass


def test_two_models_in_two_threads_have_masks_of_their_own(logits):
    models = [tiny_moe.tiny(seed=seed) for seed in range(2)]
    inputs = [tiny_moe.tiny_inputs(text=text, seed=text) for text in (5, 9)]
    expected, made = [], [None, None]
    for model, given in zip(models, inputs, strict=True):
        with thresholds().apply(model):
            expected.append(logits(model, given))
    shared = models[0]  # one model too, called by both threads with prompts of different lengths
    with thresholds().apply(shared), thresholds().apply(models[1]):
        for call in ([(shared, inputs[0]), (models[1], inputs[1])], [(shared, inputs[0]), (shared, inputs[1])]):
            barrier = threading.Barrier(2)

            def work(number, call=call, barrier=barrier):
                barrier.wait()
                for _ in range(5):
                    made[number] = logits(*call[number])

            threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            assert torch.equal(made[0], expected[0])
        assert made[1] is not None and made[1].shape[1] == inputs[1]["input_ids"].shape[1]


def test_embeddings_need_types_where_there_are_pictures(model, inputs):
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    with thresholds().apply(model), torch.no_grad(), pytest.raises(ValueError, match="mm_token_type_ids"):
        model(inputs_embeds=embeds)
    assert modality({"inputs_embeds": embeds}, (), ()).unique().tolist() == [1]


def test_gradients_flow_through_kept_experts_only(model, inputs):
    with ReduceK(keep=1).apply(model):
        model(**inputs, use_cache=False).logits.sum().backward()
        experts = [site.experts for site in moe.sites(model)]
    assert all(one.down_proj.grad.isfinite().all() and one.down_proj.grad.abs().sum() > 0 for one in experts)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", tiny_moe.FAMILIES)
def test_gradients_with_checkpointing_are_those_without(family, reentrant):
    model, inputs = tiny_moe.tiny(family).train(), tiny_moe.tiny_inputs(family)

    def gradients(steps=1):
        model.zero_grad()
        losses = [model(**inputs, use_cache=False, labels=inputs["input_ids"]).loss for _ in range(steps)]
        sum(losses).backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

    with thresholds(0.05, 0.1).apply(model) as applied:
        plain, once = gradients(), applied.counts.counts
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        again, counts = gradients(), applied.counts.counts
        twice = gradients(steps=2)
    assert plain.keys() == again.keys() and once[:, 1:3, 0].sum() > 0
    assert torch.equal(counts, 2 * once)  # a layer that runs again is not counted again
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(twice[name], 2 * gradient, rtol=1e-3, atol=1e-5)


def test_a_checkpointed_backward_after_removal_is_refused(model, inputs):
    model.train().gradient_checkpointing_enable()
    with thresholds().apply(model):
        loss = model(**inputs, use_cache=False).logits.sum()
    with pytest.raises(FewstepError, match=r"backward\(\) before"):
        loss.backward()


def test_a_router_that_is_trained_alone_gets_its_gradient(model, inputs):
    model.requires_grad_(False)
    routers = [site.router for site in moe.sites(model)]
    routers[0].requires_grad_(True)
    with thresholds(0.0, 0.0).apply(model):
        model(**inputs, use_cache=False).logits.square().sum().backward()
    skipped = next(routers[0].parameters()).grad
    model.zero_grad()
    model(**inputs, use_cache=False).logits.square().sum().backward()
    torch.testing.assert_close(skipped, next(routers[0].parameters()).grad, rtol=1e-3, atol=1e-4)
