"""Items of ``benchmarks/gpu.py``, by value. Imports no torch: a method adds a line here, its code beside this file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Item:
    """A check or measurement that runs in a process of its own."""

    name: str
    proves: str
    """One line of the list and the summary; names the paper's figure where there is one."""
    target: str
    """``"module:function"``; the function takes a `gpu_items.bench.Bench`."""
    seconds: int
    """Killed after so many."""
    gigabytes: float = 2.0
    """Free memory of the card below which it is skipped."""
    needs: tuple[str, ...] = ()
    """Modules besides torch and fewstep without which it is skipped."""


def _item(name: str, target: str, seconds: int, gigabytes: float, proves: str, *needs: str) -> Item:
    where = f"gpu_items.{target}"
    return Item(name=name, proves=proves, target=where, seconds=seconds, gigabytes=gigabytes, needs=needs)


_LLM, _VIDEO = ("transformers",), ("transformers", "diffusers")
_MOE, _VAE = "fewstep_modes", "fewstep_flash_vaed"
_SLIM, _FOCUS, _SGMD = "fewstep_slim_infer", "fewstep_focus_dllm", "fewstep_sgmd"
_SALT = "fewstep_salt"

ITEMS = (
    _item("kernels", "correctness:kernels", 90, 8, "every Triton kernel equals its naive twin; NaN-filled, gradients"),
    _item("methods", "methods:methods", 75, 6, "every method, tiny: identity, undo bit for bit, compiled", *_VIDEO),
    _item("attention", "attention:block_sparse", 75, 8,
          "block-sparse attention at Wan-1.3B's last chunk, 5-100 %: 5x over dense at 12 % is wanted", "triton"),
    _item("experts", "experts:experts", 50, 6,
          "expert MLP at Qwen3-VL-30B-A3B's block, 0-88 % skipped: 3x at 75 % is wanted", *_LLM),
    _item("slim-infer", "language:slim_infer", 75, 30,
          "SlimInfer, Llama-3.1-8B at 8K/32K/64K (paper: TTFT 2.53x, whole 1.88x)", *_LLM, _SLIM),
    _item("modes", "language:modes", 75, 16,
          "MoDES, Qwen3-VL-30B-A3B, 88 % skipped (paper: prefill 2.16x, decode 1.26x)", *_LLM, _MOE),
    _item("focus-dllm", "language:focus_dllm", 100, 40,
          "Focus-dLLM, LLaDA-8B at 8K/32K (paper: above 29x over vanilla)", *_LLM, _FOCUS),
    _item("streams", "correctness:streams", 30, 2, "SlimInfer's copies on a stream of their own", *_LLM, _SLIM),
    _item("resume", "training:resume", 45, 2, "a training run that goes on from a checkpoint", *_VIDEO, _SGMD),
    _item("vae", "video:vae", 90, 30, "Flash-VAED and exact decoding, Wan 2.1 VAE, 81 frames (6x)", *_VIDEO, _VAE),
    _item("wan-steps", "video:few_steps", 60, 12,
          "four steps without guidance against fifty with it, Wan 2.1 1.3B at 480p", *_VIDEO, _SGMD),
    _item("causal", "causal:causal", 60, 20,
          "chunks of causal Wan 2.1 1.3B at 480p, full and windowed cache, against fifty steps", *_VIDEO, _SALT),
    _item("sgmd", "training:sgmd", 75, 30,
          "a training step of SGMD against DMD2 5:1, Wan 1.3B with LoRA", *_VIDEO, _SGMD),
    _item("gathered", "attention:gathered", 30, 4, "gathered attention at 32K, a decoding step of LLaDA-8B's heads"),
    _item("scores", "elementwise:scores", 30, 2, "unit score and block means at 32K"),
    _item("losses", "elementwise:losses", 20, 2, "match losses at Wan's latents"),
    _item("vae-kernels", "elementwise:vae_kernels", 30, 8, "VAE kernels at 480p against cuDNN's convolutions"),
    _item("sanitizer", "correctness:sanitizer", 90, 8, "compute-sanitizer, one small case of each kernel", "triton"),
    _item("gpu-tests", "correctness:gpu_tests", 60, 2, "tests that wait for a GPU", "pytest"),
)  # fmt: skip
"""In the order in which they are run: what runs out of time is at the end."""
