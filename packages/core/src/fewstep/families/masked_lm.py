"""Masked diffusion language models (LLaDA, Dream) as stock transformers models, without the code of their folders.

LLaDA (arXiv 2502.09992) is a Llama and Dream (arXiv 2508.15487) a Qwen2 whose attention looks both ways; only names
differ. What is loaded is a ``LlamaForCausalLM`` or ``Qwen2ForCausalLM`` whose ``config`` says

* ``is_causal = False``, which transformers honours in masks and in SDPA;
* ``mask_token_id``, the token that stands for what is not written yet;
* ``diffusion``: ``"llada"``, or ``"dream"``, whose logits at one position are about the *next* position.

Rotary angles, sines and cosines are computed in float32 whatever the dtype of the weights; the rotation itself runs in
that dtype, as in all transformers models. (LLaDA's own code also rotates in float32: the difference is less than that
of bfloat16 itself, and none in float32.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import BadFileError, UnsupportedModelError
from .sizes import TransformerSizes

DIFFUSION = {"llada": "llada", "Dream": "dream"}
"""``config.diffusion`` by the ``model_type`` of a checkpoint's ``config.json``."""
LLADA_IS = {
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "block_type": "llama",
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "bias_for_layer_norm": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "rope_scaling": None,
}
"""Settings that make a LLaDA a Llama; a checkpoint with others is refused. Null means the same as false."""

_DREAM_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)


def stock_config(config: Any) -> Any:
    """The ``LlamaConfig`` or ``Qwen2Config`` of a LLaDA or Dream ``config.json``, a mapping or a configuration object.

    Raises:
        BadFileError: a size is missing.
        UnsupportedModelError: the architecture is another one (other norms, biases, experts, scaled positions).
    """
    config = config if isinstance(config, Mapping) else config.to_dict()
    if config.get("model_type") not in DIFFUSION:
        raise UnsupportedModelError(
            f"{config.get('model_type')!r} is no masked diffusion model: LLaDA or Dream is needed"
        )
    try:
        made = _llama(config) if config["model_type"] == "llada" else _qwen2(config)
        made.mask_token_id = config["mask_token_id"]
    except KeyError as error:
        raise BadFileError(f"the config.json of a {config['model_type']} model lacks {error}") from error
    made.is_causal = False
    made.diffusion = DIFFUSION[config["model_type"]]
    return made


def from_config(config: Any) -> Any:
    """The model of a LLaDA or Dream ``config.json`` on the meta device, without weights; raises as `stock_config`."""
    import torch

    with torch.device("meta"):
        return build(stock_config(config))


def build(config: Any) -> Any:
    """A model of random weights from a stock configuration, in eval mode, with attention both ways."""
    import transformers

    return both_ways(getattr(transformers, config.architectures[0])(config)).eval()


def both_ways(model: Any) -> Any:
    """Let single layers, too, attend both ways; the whole model asks ``config.is_causal``, they ask themselves."""
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    return model


def _llama(config: Mapping[str, Any]) -> Any:
    from transformers import LlamaConfig

    for name, value in LLADA_IS.items():
        if (given := config.get(name, value)) != value and (given or value):
            raise UnsupportedModelError(f"a LLaDA with {name} = {given!r} is not supported, only {value!r}")
    heads = config["n_heads"]
    kv_heads = config.get("n_kv_heads") or (1 if config.get("multi_query_attention") else heads)
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=config.get("embedding_size") or config["vocab_size"],
        hidden_size=config["d_model"],
        intermediate_size=config.get("mlp_hidden_size") or config["mlp_ratio"] * config["d_model"],
        num_hidden_layers=config["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=config["max_sequence_length"],
        rms_norm_eps=config["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": float(config["rope_theta"])},
        tie_word_embeddings=bool(config.get("weight_tying")),
        bos_token_id=config.get("bos_token_id"),
        eos_token_id=config.get("eos_token_id"),
        pad_token_id=config.get("pad_token_id"),
    )


def _qwen2(config: Mapping[str, Any]) -> Any:
    from transformers import Qwen2Config

    for name in ("use_sliding_window", "use_mrope", "rope_scaling"):
        if config.get(name):
            raise UnsupportedModelError(f"a Dream with {name} = {config[name]!r} is not supported")
    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        **{name: config[name] for name in _DREAM_SAME},
        rope_parameters={"rope_type": "default", "rope_theta": float(config["rope_theta"])},
        tie_word_embeddings=bool(config.get("tie_word_embeddings")),
        **{name: config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )


def check(model: Any) -> Any:
    """Return the decoder inside a masked diffusion language model.

    Raises:
        UnsupportedModelError: an autoregressive model, or one that does not unmask tokens.
    """
    config, kind = getattr(model, "config", None), type(model).__name__
    if kind == "DiffusionGemmaForBlockDiffusion":
        raise UnsupportedModelError(
            f"{kind} denoises random tokens of a whole canvas instead of unmasking, and conditions each step on all "
            "logits of the last one: there is no subset of rows to compute. Supported: LLaDA and Dream"
        )
    if getattr(config, "mask_token_id", None) is None or getattr(config, "diffusion", None) not in ("llada", "dream"):
        raise UnsupportedModelError(
            f"{kind} is no masked diffusion language model: its configuration has no mask token. Supported: LLaDA and "
            "Dream checkpoints as fewstep.load reads them"
        )
    if not hasattr(getattr(model, "model", None), "layers"):
        raise UnsupportedModelError(f"{kind} is something around a masked diffusion language model: give what it wraps")
    if getattr(config, "is_causal", True):
        raise UnsupportedModelError(f"{kind} is autoregressive (is_causal is not False); load it with fewstep.load")
    return model.model


def logit_shift(config: Any) -> int:
    """Positions between a logit and the token it is about: 1 for Dream, whose row ``p - 1`` predicts ``p``, else 0."""
    return int(config.diffusion == "dream")


def end_tokens(config: Any) -> tuple[int, ...]:
    """End-of-sequence tokens of a stock configuration, which may name none, one or several."""
    eos = config.eos_token_id
    return () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (eos,)


def check_length(model: Any, prompt: int, response: int) -> None:
    """Refuse a prompt and a response, in tokens, that the model has no positions for.

    Raises:
        ValueError: they are too long, or the prompt is empty.
    """
    if prompt == 0:
        raise ValueError("the prompt is empty: a diffusion language model needs at least one token before its response")
    positions = model.config.max_position_embeddings
    if prompt + response > positions:
        raise ValueError(
            f"{prompt} prompt and {response} response tokens need {prompt + response} positions, but the model has "
            f"{positions}; shorten the prompt or the response"
        )


def describe(config: Any) -> list[tuple[str, str]]:
    """Lines of name and finding about the model of a LLaDA or Dream ``config.json``; raises as `stock_config`."""
    stock = stock_config(config)
    sizes = [weight.numel() for weight in from_config(config).parameters()]
    count, memory = sum(sizes) / 1e9, 2 * sum(sizes) / 2**30
    return [
        ("family", f"{stock.diffusion}, as {stock.architectures[0]} with attention both ways"),
        ("weights", f"{count:.2f} G parameters in {len(sizes)} tensors, {memory:.2f} GiB in bfloat16"),
        ("layers", f"{stock.num_hidden_layers}"),
        ("positions", f"{stock.max_position_embeddings:,}"),
    ]


def full_pass_flops(sizes: TransformerSizes, tokens: int, rows: int) -> float:
    """Operations of a pass over all tokens with logits of `rows`: ``L (lin N + 4 N^2 H dh) + 2 d V r``."""
    return sizes.layers * (sizes.linear * tokens + sizes.attention(tokens, tokens)) + sizes.logits(rows)


def cached_pass_flops(sizes: TransformerSizes, rows: int, keys: float) -> float:
    """Operations of `rows` tokens against a cache of `keys`: ``L (lin r + 4 r N H dh) + 2 d V r``."""
    return sizes.layers * (sizes.linear * rows + sizes.attention(rows, keys)) + sizes.logits(rows)


def tiny(family: str = "llada", *, seed: int = 0, **overrides: Any) -> Any:
    """A random masked diffusion model of 4 layers, width 32, 4 heads and 2 KV heads, vocabulary 50 with MASK 49.

    Args:
        family: ``llada`` (a ``LlamaForCausalLM``) or ``dream`` (a ``Qwen2ForCausalLM``, logits shifted by one).
        seed: of the weights; the global generator is left as it was.
        overrides: fields of ``LlamaConfig`` or ``Qwen2Config``.
    """
    from . import causal_lm

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
    model_type = {"llada": "llama", "dream": "qwen2"}[family]
    return both_ways(causal_lm.tiny(model_type, seed=seed, **{**fields, **overrides}))
