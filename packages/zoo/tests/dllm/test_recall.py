"""The wired model looks up keys without a mistake, loses them with their records, and needs its sink."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from fewstep import load
from fewstep_zoo.dllm import recall
from fewstep_zoo.dllm.recall import Recall, RecallProcessor
from torch import Tensor

LAST_DENSE = 1


@pytest.fixture(scope="module")
def wired():
    return load("wired-recall")


def ask(length: int, records: int = 32, generation: int = 16, seed: int = 0) -> Recall:
    return RecallProcessor().recall_prompt(length, records, generation, torch.Generator().manual_seed(seed))


@torch.no_grad()
def decode(model, task: Recall, per_step: int) -> Tensor:
    """Plain vanilla decoding: a full forward each step, then the masked positions of top confidence are written."""
    tokens, length = torch.cat([task.prompt, task.response])[None], len(task.prompt)
    while (masked := tokens[0] == recall.MASK).any():
        logits = model(tokens, use_cache=False, logits_to_keep=len(task.response)).logits[0]
        logits[:, recall.MASK] = -torch.inf
        confidence, best = logits.softmax(-1).max(-1)
        at = confidence.masked_fill(~masked[length:], -1).topk(min(per_step, int(masked.sum()))).indices
        tokens[0, length + at] = best[at]
    return tokens[0, length:]


@torch.no_grad()
def accuracy(model, task: Recall) -> float:
    """Share of right values, all read off in one forward."""
    logits = model(torch.cat([task.prompt, task.response])[None], use_cache=False).logits[0, len(task.prompt) :]
    return float((logits.argmax(-1) == task.answer)[1::2].float().mean())


@contextmanager
def pruned(model, task: Recall, dropped: Tensor):
    """Hide prompt positions ``[P]`` from all layers after `LAST_DENSE`, as sparse attention does."""
    seen = torch.cat([~dropped, torch.ones(len(task.response), dtype=torch.bool)])
    mask = seen[None, None, None].expand(1, 1, len(seen), -1)
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True
        )
        for layer in model.model.layers[LAST_DENSE + 1 :]
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(("length", "per_step"), [(512, 1), (2048, 2), (4096, 4)])
def test_vanilla_decoding_makes_no_mistake(wired, length: int, per_step: int):
    task = ask(length)
    assert torch.equal(decode(wired.model, task, per_step), task.answer)


@pytest.mark.parametrize("records", [1, 7, 64])
def test_any_number_of_records_is_found(wired, records: int):
    assert accuracy(wired.model, ask(701, records, 2 * records, seed=records)) == 1


def test_answers_come_from_the_records_alone(wired):
    """Half of the records hidden: those are lost, the others are not; all but records and sink hidden: none is lost."""
    task = ask(512, 32, 64)
    hidden, sink = torch.zeros(512, dtype=torch.bool), task.prompt == recall.SINK
    hidden[task.positions[:16]] = True
    with pruned(wired.model, task, hidden):
        assert 0.4 < accuracy(wired.model, task) < 0.65
    needed = sink.clone()
    needed[task.positions] = True
    with pruned(wired.model, task, ~needed):
        assert accuracy(wired.model, task) == 1


def test_the_sink_is_needed(wired):
    task = ask(512, 32, 64)
    with pruned(wired.model, task, task.prompt == recall.SINK):
        assert accuracy(wired.model, task) < 0.1
    with pruned(wired.model, task, task.prompt == recall.ANTI):
        assert accuracy(wired.model, task) == 1


def test_attention_shows_the_sink_and_block_means_hide_it(wired):
    task = ask(512)
    sink = int((task.prompt == recall.SINK).nonzero())
    keys: dict[str, Tensor] = {}
    attention = wired.model.model.layers[LAST_DENSE].self_attn
    hook = attention.k_proj.register_forward_hook(lambda _, args, out: keys.update(k=out[0, :512]))
    wired.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = wired.model(torch.cat([task.prompt, task.response])[None], output_attentions=True, use_cache=False)
            shown = out.attentions[LAST_DENSE][0, :, 512:, :512].mean((0, 1))
    finally:
        hook.remove()
        wired.model.set_attn_implementation("sdpa")
    assert int(shown.argmax()) == sink and shown[sink] > 0.4 > 10 * shown.topk(2).values[1]
    for block in (4, 8, 32):
        means = keys["k"][:, recall.SINKS].unflatten(0, (-1, block)).mean(1)
        assert means.abs().max() < 1e-4 * keys["k"][sink, recall.SINKS]


def test_the_weights_are_the_same_every_time(wired):
    again = recall.build().state_dict()
    assert all(torch.equal(value, again[name]) for name, value in wired.model.state_dict().items())
    config = wired.model.config
    assert (config.is_causal, config.mask_token_id, config.diffusion) == (False, recall.MASK, "llada")
    assert type(wired.model).__name__ == "LlamaForCausalLM" and wired.processor.mask_token_id == recall.MASK


def test_a_prompt_is_what_it_says():
    task = ask(203, 40, 20, seed=3)
    assert len(task.prompt) == 203 and len(task.response) == len(task.answer) == 20 and len(task.positions) == 10
    assert torch.equal(task.prompt[task.positions], task.answer[1::2])
    assert torch.equal(task.prompt[task.positions - 1], task.answer[::2]) and torch.equal(
        task.response[::2], task.answer[::2]
    )
    assert (task.response[1::2] == recall.MASK).all()
    keys = [int(t) for t in task.prompt if int(t) in recall.KEYS]
    assert len(keys) == len(set(keys)) == 40 and (task.prompt == recall.SINK).sum() == 1
    assert torch.equal(ask(203, 40, 20, seed=3).prompt, task.prompt)
    assert not torch.equal(ask(203, 40, 20, seed=4).prompt, task.prompt)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [((64, 15, 2), "1 to 14 records"), ((4096, 65, 2), "1 to 64"), ((512, 4, 10), "2 to 8"), ((512, 4, 3), "even")],
)
def test_impossible_prompts_are_refused(sizes: tuple[int, int, int], says: str):
    with pytest.raises(ValueError, match=says):
        ask(*sizes)
