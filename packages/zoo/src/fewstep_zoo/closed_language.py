"""Tokenizer and text encoder of a small closed language, as a stock `WanPipeline` takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

SPECIAL = ("<pad>", "</s>", "<unk>")


def tokenizer(words: Sequence[str], tokens: int) -> Any:
    """A word-level tokenizer of `words`, for prompts of at most `tokens`: lower case, ended by ``</s>``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *words))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=tokens
    )


def text_encoder(words: Sequence[str], width: int, seed: int = 0) -> Any:
    """A one-layer `UMT5EncoderModel`, random and never trained: it only has to tell a few dozen words apart."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=len(SPECIAL) + len(words),
        d_model=width,
        d_kv=8,
        d_ff=64,
        num_layers=1,
        num_heads=4,
        dropout_rate=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UMT5EncoderModel(config).eval().requires_grad_(False)
