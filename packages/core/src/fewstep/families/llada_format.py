"""Checkpoints of masked diffusion language models: read without the code of their folders, and written for LLaDA."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..data.files import write_text
from ..errors import BadFileError, UnsupportedModelError
from .masked_lm import LLADA_IS, from_config, stock_config

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
SHARD = "5GB"
_LLADA_OUTER = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}
_LLADA_BLOCK = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
}


def checkpoint_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Names of all weights in a checkpoint of this ``config.json``, and the model's names for them."""
    stock = stock_config(config)
    outer, block = dict(_LLADA_OUTER), _LLADA_BLOCK
    names = {
        f"model.transformer.blocks.{i}.{theirs}.weight": f"model.layers.{i}.{ours}.weight"
        for i in range(stock.num_hidden_layers)
        for theirs, ours in block.items()
    }
    if stock.tie_word_embeddings:
        del outer["model.transformer.ff_out.weight"]
    names |= outer
    if stock.diffusion == "llada":
        return names
    biases = [f"model.layers.{i}.self_attn.{p}_proj.bias" for i in range(stock.num_hidden_layers) for p in "qkv"]
    return {ours: ours for ours in [*names.values(), *biases]}  # Dream's names are Qwen2's


def read(folder: Path, *, dtype: Any, device: str) -> tuple[Any, Any]:
    """The model of a LLaDA or Dream folder (safetensors only, no remote code), and its tokenizer or None.

    Weights are read one by one, each straight to `device` and `dtype`: memory peaks at the model and one weight.

    Raises:
        BadFileError: a file or weight is missing, left over or of another shape.
        UnsupportedModelError: see `stock_config`.
        safetensors.SafetensorError: a file is damaged.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model, names = from_config(config), checkpoint_names(config)
    weights, shapes = {}, {name: weight.shape for name, weight in model.named_parameters()}
    for name, weight in _weights(folder, device):
        if name not in names:
            raise BadFileError(f"{folder} holds a weight that no {config['model_type']} model of its size has: {name}")
        if weight.shape != shapes[names[name]]:
            raise BadFileError(f"{name} in {folder} is {list(weight.shape)} instead of {list(shapes[names[name]])}")
        weights[names[name]] = weight.to(dtype, copy=True)  # else it would live in the file, which may be overwritten
    if missing := [name for name, ours in names.items() if ours not in weights]:
        raise BadFileError(f"{folder} lacks {len(missing)} weights, for example {missing[0]}")
    model.load_state_dict(weights, assign=True, strict=False)  # not strict: the embedding may be the head
    model.tie_weights()
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # its angles are in no checkpoint
    model.config.dtype = dtype
    return model, _tokenizer(folder, model.config.diffusion)


def save_llada(model: Any, folder: str | os.PathLike, tokenizer: Any = None, *, shard: str = SHARD) -> None:
    """Write a LLaDA model in the format of the LLaDA checkpoints: `read` and LLaDA's own code load it.

    Args:
        model: with ``config.diffusion == "llada"``.
        folder: made where it does not exist. ``config.json`` comes last, so a killed save leaves no half model.
        tokenizer: saved beside it; None for none.
        shard: largest size of one file.

    Raises:
        UnsupportedModelError: the model is no LLaDA.
    """
    from huggingface_hub import save_torch_state_dict

    if getattr(model.config, "diffusion", None) != "llada":
        raise UnsupportedModelError(f"a {type(model).__name__} without config.diffusion = 'llada' is no LLaDA")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = _llada(model.config)
    weights = model.state_dict()
    theirs = {name: weights[ours] for name, ours in checkpoint_names(config).items()}
    for stale in ("config.json", INDEX):  # of what lay there before
        (folder / stale).unlink(missing_ok=True)
    save_torch_state_dict(theirs, folder, max_shard_size=shard)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def _llada(config: Any) -> dict[str, Any]:
    """The reverse of `masked_lm.stock_config` for LLaDA."""
    return {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        **LLADA_IS,
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "mlp_hidden_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "embedding_size": config.vocab_size,
        "max_sequence_length": config.max_position_embeddings,
        "rope_theta": config.rope_parameters["rope_theta"],
        "rope_full_precision": True,
        "rms_norm_eps": config.rms_norm_eps,
        "weight_tying": config.tie_word_embeddings,
        "mask_token_id": config.mask_token_id,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }


def _weights(folder: Path, device: str) -> Iterator[tuple[str, Any]]:
    """All tensors of all files of a folder."""
    for file in _files(folder):
        with safe_open(file, "pt", device=device) as opened:
            for name in opened.keys():  # noqa: SIM118 (no dict)
                yield name, opened.get_tensor(name)


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or those that an index lists."""
    if not (folder / INDEX).exists():
        files = [folder / SINGLE]
    else:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        listed = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(listed, dict) or not all(Path(str(name)).name == name for name in listed.values()):
            raise BadFileError(f"{folder / INDEX} is damaged: it lists no files of its folder")
        files = [folder / name for name in sorted(set(listed.values()))]
    if absent := [file.name for file in files if not file.is_file()]:
        raise BadFileError(f"{folder} lacks {absent[0]}, one of {len(files)} files of weights; download it again")
    return files


def _tokenizer(folder: Path, family: str) -> Any:
    """By class, never by the name in ``tokenizer_config.json``, which asks for the folder's own code."""
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return None
    cls = PreTrainedTokenizerFast if family == "llada" else Qwen2Tokenizer
    return cls.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
