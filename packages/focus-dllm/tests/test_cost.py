"""The FLOP model against figures computed by hand, and against what a decoder really does."""

import pytest
import torch
from fewstep.families.masked_lm import cached_pass_flops, full_pass_flops
from fewstep.families.sizes import TransformerSizes
from fewstep_focus_dllm import FastDLLM, FocusDLLM
from fewstep_focus_dllm.cost import read_tokens, response_flops
from fewstep_focus_dllm.generation import current_generate
from fewstep_focus_dllm.sparse import SparseAttention
from torch.utils.flop_counter import FlopCounterMode

LLADA = TransformerSizes(
    layers=32, width=4096, heads=32, kv_heads=32, head_dim=128, feed_forward=12288, vocabulary=126464
)
DREAM = TransformerSizes(
    layers=28, width=3584, heads=28, kv_heads=4, head_dim=128, feed_forward=18944, vocabulary=152064
)
SMALL = TransformerSizes(layers=8, width=256, heads=4, kv_heads=2, head_dim=64, feed_forward=768, vocabulary=4096)


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
def test_ratios_of_operations(sizes, last_dense, length, prompt, fast, focus, step):
    method = FocusDLLM(keep_floor=0, prompt_block=64, last_dense=last_dense)
    flops = response_flops(sizes, method, prompt=prompt, length=length, block=32)
    published = length * full_pass_flops(sizes, prompt + length, prompt + length)  # has logits of all rows
    assert published / flops["fast"] == pytest.approx(fast, rel=0.01)
    assert published / flops["focus"] == pytest.approx(focus, rel=0.01)
    assert flops["fast_step"] / flops["focus_step"] == pytest.approx(step, rel=0.02)


def test_bytes_of_keys_and_values():
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
        current_generate(llada)(ids, decoding=decoding)
    expected = 2 * full_pass_flops(sizes, 176, 8)
    cached = [p for p in seen if p.rows is not None]
    for _, about, plan, rows in cached:
        computed, logits = rows.shape[1], about.logits.shape[1]
        expected += sizes.logits(logits)
        if method == "fast":
            expected += cached_pass_flops(sizes, computed, 176) - sizes.logits(computed)
            continue
        assert isinstance(plan, SparseAttention) and max(plan.keys_read) <= read_tokens(applied, 176, 160)
        width = sizes.heads * sizes.head_dim
        expected += 4 * sizes.linear * computed + 4 * computed * width * (2 * 176 + sum(plan.keys_read))
        expected += 2 * 2 * len(plan.focus[0]) * width * (160 // 8)
    assert len(cached) == 14
    assert sum(p.about.logits.shape[1] for p in seen if p.rows is None) == 8 + 8  # first steps of two blocks
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_rows_and_kept_tokens_are_counted(llada, prompt, decoding, focus):
    with focus().apply(llada):
        stats = current_generate(llada)(prompt(), decoding=decoding).stats
    assert stats.refreshes == len(stats.refresh_seconds) == 2
    assert len(stats.rows) == len(stats.kept) == len(stats.step_seconds) == 14
    assert max(stats.rows) <= 3 * 2 and min(stats.rows) >= 1
    assert all(8 * 2 <= kept <= 8 * 2 + 3 for kept in stats.kept)  # ceil(0.3 * 6) blocks of 8, and up to 3 sinks
    assert torch.isfinite(torch.tensor(stats.coverage))
