"""The FLOP model against the card's table, and against what a decoder really does (the card's test 14)."""

import pytest
import torch
from fewstep.families.masked_lm import cached_pass_flops, full_pass_flops
from fewstep.families.sizes import TransformerSizes
from fewstep_focus_dllm import FastDLLM, FocusDLLM
from fewstep_focus_dllm.flops import cost, read_tokens
from fewstep_focus_dllm.focused import Focused
from fewstep_focus_dllm.method import generation
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

LLADA = TransformerSizes(
    layers=32, width=4096, heads=32, kv_heads=32, head_dim=128, feed_forward=12288, vocabulary=126464
)
DREAM = TransformerSizes(
    layers=28, width=3584, heads=28, kv_heads=4, head_dim=128, feed_forward=18944, vocabulary=152064
)
SMALL = TransformerSizes(layers=8, width=256, heads=4, kv_heads=2, head_dim=64, feed_forward=768, vocabulary=4096)


def pruning(last_dense):
    config = LlamaConfig(num_hidden_layers=32)
    config.diffusion = "llada"
    return FocusDLLM(keep_floor=0, prompt_block=64, last_dense=last_dense).resolve(config, 8192)


@pytest.mark.parametrize(
    ("sizes", "last_dense", "length", "prompt", "fast", "focus", "step"),
    [
        (LLADA, 7, 256, 8192, 30.1, 32.5, 3.1),
        (LLADA, 7, 256, 32768, 32.1, 32.8, 4.1),
        (DREAM, 6, 256, 8192, 30.3, 32.8, 3.0),
        (DREAM, 6, 256, 32768, 32.3, 33.1, 3.9),
        (SMALL, 1, 64, 4096, 26.8, 31.7, 4.5),
        (SMALL, 1, 64, 8192, 29.2, 32.1, 5.3),
        (SMALL, 1, 64, 32768, 31.3, 32.1, 6.3),
    ],
)
def test_the_ratios_of_the_card(sizes, last_dense, length, prompt, fast, focus, step):
    found = cost(sizes, pruning(last_dense), prompt=prompt, length=length, block=32)
    everywhere = length * full_pass_flops(
        sizes, prompt + length, prompt + length
    )  # the card's vanilla has logits of all rows
    assert everywhere / found.fast == pytest.approx(fast, rel=0.01)
    assert everywhere / found.focus == pytest.approx(focus, rel=0.01)
    assert found.fast_step / found.focus_step == pytest.approx(step, rel=0.02)


def test_bytes_of_keys_and_values_of_the_card():
    assert LLADA.kv_bytes(32768 + 256, 2) / 2**30 == pytest.approx(16.1, abs=0.05)
    assert DREAM.kv_bytes(32768 + 256, 2) / 2**30 == pytest.approx(1.76, abs=0.01)


def counting():
    """torch's counter, which does not know the attention that runs on a CPU."""

    def attention(query, key, *args, out_val=None, **kwargs):
        return 4 * query[0] * query[1] * query[2] * key[2] * query[3]

    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={flash: attention})


@pytest.mark.parametrize("method", ["fast", "focus"])
def test_what_a_decoder_does_is_what_the_model_says(llada, prompt, decoding, focus, watched, method):
    applied = focus() if method == "focus" else FastDLLM()
    ids, sizes = prompt(160), TransformerSizes.of(llada.config)
    with applied.apply(llada), watched() as seen, counting() as counter:
        generation(llada)(ids, decoding=decoding)
    expected = 2 * full_pass_flops(sizes, 176, 8)
    for _, answers, plan in seen[1:]:
        if isinstance(plan, Focused):
            settings = applied.resolve(llada.config, 160)
            rows, logits = plan.positions.shape[1], answers.logits.shape[1]
            assert max(plan.read()) <= read_tokens(176, 160, settings)
            read = sum(plan.read())
            width = sizes.heads * sizes.head_dim
            expected += 4 * sizes.linear * rows + 4 * rows * width * (2 * 176 + read)
            expected += 2 * 2 * len(plan.focus[0]) * width * (160 // 8) + sizes.logits(logits)
        elif method == "fast" and hasattr(plan, "positions"):
            expected += cached_pass_flops(sizes, 8, 176) - sizes.logits(8 - answers.logits.shape[1])
    masks = 8 + 8  # of the two first steps of a block
    assert sum(a.logits.shape[1] for _, a, p in seen if not hasattr(p, "positions")) == masks
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_rows_and_kept_tokens_are_counted(llada, prompt, decoding, focus):
    with focus().apply(llada):
        stats = generation(llada)(prompt(), decoding=decoding).stats
    assert stats.refreshes == len(stats.refresh_seconds) == 2
    assert len(stats.rows) == len(stats.kept) == len(stats.step_seconds) == 14
    assert max(stats.rows) <= 3 * 2 and min(stats.rows) >= 1
    assert all(8 * 2 <= kept <= 8 * 2 + 3 for kept in stats.kept)  # ceil(0.3 * 6) blocks of 8, and up to 3 sinks
    assert torch.isfinite(torch.tensor(stats.coverage))
