"""Tiny random models of the real classes, built from code: for mechanics only, no claim about quality."""

from __future__ import annotations

from typing import Any

LAYERS, WIDTH, HEADS, KV_HEADS, FFN, VOCABULARY = 6, 64, 4, 2, 128, 97
TEXT_WIDTH = 8
"""Of the text encoder that conditions `wan`."""
WORDS = ("<pad>", "<unk>", "a", "cat", "dog", "runs", "sleeps", "fast")


def causal_lm(family: str = "llama", *, seed: int = 0, **overrides: Any) -> Any:
    """A random ``<Family>ForCausalLM`` of 6 layers, width 64, 4 heads and 2 KV heads, vocabulary 97, in eval mode.

    Args:
        family: ``llama``, ``mistral``, ``qwen2``, ``qwen3``, ``smollm3``: a model type of transformers.
        seed: of the weights; the global generator is left as it was.
        overrides: fields of the configuration class.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": WIDTH // HEADS,
        "intermediate_size": FFN,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "sliding_window": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.2,  # wide enough that logits differ clearly between positions
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **{**fields, **overrides})
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def prompt(length: int, *, batch: int = 1, seed: int = 0) -> Any:
    """Random token ids ``[batch, length]`` in 3..96, never a special token."""
    import torch

    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def dllm(family: str = "llada", *, seed: int = 0, **overrides: Any) -> Any:
    """A random masked diffusion model of 4 layers, width 32, 4 heads and 2 KV heads, vocabulary 50 with MASK 49.

    Args:
        family: ``llada`` (a ``LlamaForCausalLM``) or ``dream`` (a ``Qwen2ForCausalLM``, logits shifted by one).
        seed: of the weights; the global generator is left as it was.
        overrides: fields of ``LlamaConfig`` or ``Qwen2Config``.
    """
    from ..dllm import both_ways

    fields = {
        "num_hidden_layers": 4,
        "hidden_size": 32,
        "head_dim": 8,
        "intermediate_size": 64,
        "vocab_size": 50,
        "is_causal": False,
        "mask_token_id": 49,
        "diffusion": family,
    }
    stock = {"llada": "llama", "dream": "qwen2"}[family]
    return both_ways(causal_lm(stock, seed=seed, **{**fields, **overrides}))


def wan(*, seed: int = 0, **overrides: Any) -> Any:
    """A random ``WanTransformer3DModel`` of 2 layers, width 24, 2 heads, 3 channels and text width 8, in eval mode.

    It takes latents ``[B, 3, F, H, W]`` with even ``H`` and ``W``, and conditions ``[B, T, 8]``.

    Args:
        seed: of the weights; the global generator is left as it was.
        overrides: fields of its configuration.
    """
    import torch
    from diffusers import WanTransformer3DModel

    fields = {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "ffn_dim": 32,
        "in_channels": 3,
        "out_channels": 3,
        "text_dim": TEXT_WIDTH,
        "freq_dim": 16,
        "rope_max_seq_len": 16,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanTransformer3DModel(**{**fields, **overrides}).eval()


def wan_pipeline(*, seed: int = 0, **overrides: Any) -> Any:
    """A random ``WanPipeline`` of real classes around `wan`; clips are multiples of 16 pixels.

    The tokenizer knows the words of `WORDS`; the VAE shrinks space by 8 and time by 4.

    Args:
        seed: of the weights; the global generator is left as it was.
        overrides: fields of the transformer's configuration.
    """
    import torch
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    text = UMT5Config(vocab_size=len(WORDS), d_model=TEXT_WIDTH, d_kv=4, d_ff=32, num_layers=1, num_heads=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = UMT5EncoderModel(text).eval()
        vae = AutoencoderKLWan(
            base_dim=8, z_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 3, latents_std=[1.0] * 3
        ).eval()
    pipe = WanPipeline(
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>"),
        text_encoder=encoder,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=wan(seed=seed, **overrides),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
