import math

import torch
from fewstep.families import causal_lm
from fewstep.families.kv_cache import ARGUMENT
from fewstep_slim_infer import GemFilter, LazyLLM

P = 120


@torch.no_grad()
def attention_of_the_last_token(model, ids, layer):
    """Softmax weights of the last query over all tokens, mean over heads, by hand."""
    seen = {}
    attention = model.model.layers[layer].self_attn
    hook = attention.register_forward_hook(lambda m, args, kwargs, out: seen.update(kwargs), with_kwargs=True)
    cache = model(ids, use_cache=True)[ARGUMENT]
    hook.remove()
    keys = cache.layers[layer].keys[0].repeat_interleave(2, dim=0)
    query = attention.q_proj(seen["hidden_states"])[0, -1].view(4, 16)
    cos, sin = (part[0, -1] for part in seen["position_embeddings"])
    query = query * cos + torch.cat([-query[:, 8:], query[:, :8]], -1) * sin
    return (torch.einsum("hd,hnd->hn", query, keys) / math.sqrt(16)).softmax(-1).mean(0)


def test_lazyllm_keeps_the_tokens_with_most_attention():
    model, ids = causal_lm.tiny().double(), causal_lm.tiny_prompt(P)
    weights = attention_of_the_last_token(model, ids, 2)
    weights[-1] = torch.inf
    wanted = sorted(weights.topk(P // 2).indices.tolist())
    with LazyLLM(entry=(3,), keep=0.5).apply(model) as applied:
        model(ids)
        assert list(applied.report.blocks[0][0]) == wanted


def test_gemfilter_runs_the_model_on_the_chosen_tokens_alone():
    model, ids = causal_lm.tiny().double(), causal_lm.tiny_prompt(P)
    weights = attention_of_the_last_token(model, ids, 2)
    weights[-1] = torch.inf
    chosen = ids[:, weights.topk(P // 2).indices.sort().values]
    wanted = model.generate(chosen, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, P // 2 :]
    with GemFilter(filter_layer=2, keep=0.5).apply(model):
        out = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, return_dict_in_generate=True)
    assert torch.equal(out.sequences[0, P:], wanted)
    assert out[ARGUMENT].get_seq_length() == P // 2 + 7


def test_baselines_at_full_budget_are_the_dense_model():
    model, ids = causal_lm.tiny("qwen3"), causal_lm.tiny_prompt(P)
    dense = model.generate(ids, max_new_tokens=8, do_sample=False)
    for method in (LazyLLM(entry=(2, 4)), GemFilter(filter_layer=2, keep=0.5)):
        with method.identity().apply(model):
            assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), dense)
