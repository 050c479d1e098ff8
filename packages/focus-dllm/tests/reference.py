"""Plain twins to compare with: a Llama or Qwen2 layer by layer, with any key visible or not to any row."""

import torch
from torch.nn import functional as F


@torch.no_grad()
def forward(model, tokens, visible=None, rows=None, cached=None):
    """Logits ``[N, V]`` of one sequence; keys and queries by layer.

    `visible[layer]` is a bool ``[N, N]`` (row, key). With `rows`, only these are computed and all other keys and values
    come from `cached`, a list of ``(keys, values)`` by layer that is updated in place.
    """
    core, config = model.model, model.config
    index = torch.arange(len(tokens)) if rows is None else rows
    hidden = core.embed_tokens(tokens[index])
    cos, sin = core.rotary_emb(hidden[None], index[None])
    store = []
    for number, layer in enumerate(core.layers):
        attention = layer.self_attn
        x = layer.input_layernorm(hidden)
        dim = attention.head_dim
        q = attention.q_proj(x).view(len(index), -1, dim).transpose(0, 1)
        k = attention.k_proj(x).view(len(index), -1, dim).transpose(0, 1)
        v = attention.v_proj(x).view(len(index), -1, dim).transpose(0, 1)
        q, k = rotate(q, cos[0], sin[0]), rotate(k, cos[0], sin[0])
        if rows is not None:
            keys, values = cached[number]
            keys[:, index], values[:, index] = k, v
            k, v = keys, values
        store.append((k.clone(), v.clone()))
        repeat = config.num_attention_heads // config.num_key_value_heads
        scores = q @ k.repeat_interleave(repeat, 0).mT / dim**0.5
        if visible is not None and visible[number] is not None:
            scores = scores.masked_fill(~visible[number], -torch.inf)
        mixed = scores.softmax(-1) @ v.repeat_interleave(repeat, 0)
        hidden = hidden + attention.o_proj(mixed.transpose(0, 1).reshape(len(index), -1))
        y = layer.post_attention_layernorm(hidden)
        hidden = hidden + layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(y)) * layer.mlp.up_proj(y))
    return model.lm_head(core.norm(hidden)), store


def rotate(x, cos, sin):
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


def logits_about(logits, diffusion):
    """Row p is about position p: shifted for Dream."""
    return logits if diffusion == "llada" else torch.cat([logits[:1], logits[:-1]])


def unmask_best(tokens, logits, start, end, mask, count):
    """Unmask the `count` most confident masked positions of a block, in place."""
    logits = logits.clone()
    logits[:, mask] = -torch.inf
    probability, token = logits.double().softmax(-1).max(-1)
    masked = [p for p in range(start, end) if tokens[p] == mask]
    for p in sorted(masked, key=lambda p: (-float(probability[p]), p))[:count]:
        tokens[p] = token[p]
    return {p: float(probability[p]) for p in masked}


def blind(tokens, prompt, mask):
    """The tokens with the prompt masked: what the second pass of classifier-free guidance reads."""
    return torch.cat([torch.full((prompt,), mask), tokens[prompt:]])


def vanilla(model, prompt, length, block, mask=49, scale=0.0):
    """Tokens of the response, one a step, and the logits of each step; guided where `scale` is above 0."""
    tokens = torch.cat([prompt, torch.full((length,), mask)])
    seen = []
    for start in range(len(prompt), len(tokens), block):
        while (tokens[start : start + block] == mask).any():
            logits = logits_about(forward(model, tokens)[0], model.config.diffusion)
            if scale:
                other = logits_about(forward(model, blind(tokens, len(prompt), mask))[0], model.config.diffusion)
                logits = other + (scale + 1) * (logits - other)
            seen.append(logits)
            unmask_best(tokens, logits, start, min(start + block, len(tokens)), mask, 1)
    return tokens[len(prompt) :], seen


def dual(model, prompt, length, block, mask=49, scale=0.0):
    """Fast-dLLM's dual cache: tokens, and the logits of each cached step about the block; guided with a `scale`."""
    tokens = torch.cat([prompt, torch.full((length,), mask)])
    shift, seen = int(model.config.diffusion == "dream"), []
    for start in range(len(prompt), len(tokens), block):
        end = min(start + block, len(tokens))
        logits, store = forward(model, tokens)
        other, hidden_store = forward(model, blind(tokens, len(prompt), mask)) if scale else (logits, store)
        logits = other + (scale + 1) * (logits - other)
        unmask_best(tokens, logits_about(logits, model.config.diffusion), start, end, mask, 1)
        while (tokens[start:end] == mask).any():
            rows = torch.arange(start - shift, end)
            some, _ = forward(model, tokens, rows=rows, cached=store)
            if scale:
                other, _ = forward(model, blind(tokens, len(prompt), mask), rows=rows, cached=hidden_store)
                some = other + (scale + 1) * (some - other)
            logits = torch.zeros(len(tokens), some.shape[1], dtype=some.dtype)
            logits[start:end] = some[:-1] if shift else some
            seen.append(logits[start:end])
            unmask_best(tokens, logits, start, end, mask, 1)
    return tokens[len(prompt) :], seen
