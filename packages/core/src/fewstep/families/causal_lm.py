"""Llama-like causal language models with full attention: prefill and decode, and what both cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, TextStreamer
from transformers.cache_utils import Cache

from ..contract import Loaded
from ..errors import UnsupportedModelError, check_least
from .inputs import PromptInputs, tokenizer_of
from .kv_cache import ARGUMENT, growing
from .sizes import TransformerSizes

SUPPORTED = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)
_DECODER_PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")
_LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
Rope = tuple[Float[Tensor, "r n k"], Float[Tensor, "r n k"]]
"""Cosines and sines of the tokens' positions."""
LAYERS, WIDTH, HEADS, KV_HEADS, FEED_FORWARD, VOCABULARY = 6, 64, 4, 2, 128, 97
"""Sizes of `tiny`."""


def check(model: Any) -> Any:
    """Return the decoder inside a causal LM of stock Llama-like layers.

    Raises:
        UnsupportedModelError: another kind of model, other layers, or sliding-window attention.
    """
    decoder: Any = getattr(model, "model", None)
    kind, supported = type(model).__name__, ", ".join(SUPPORTED)
    if not isinstance(model, PreTrainedModel) or any(not hasattr(decoder, part) for part in _DECODER_PARTS):
        raise UnsupportedModelError(f"{kind} is no causal LM of Llama-like layers; supported: {supported}")
    for layer in decoder.layers:
        if {name for name, _ in layer.named_children()} != _LAYER_PARTS or not hasattr(layer.mlp, "down_proj"):
            raise UnsupportedModelError(
                f"{kind} has layers of type {type(layer).__name__}, which differ from Llama's; supported: {supported}"
            )
    if _slides(model.config):
        raise UnsupportedModelError(f"{kind} has sliding-window layers; models with full attention are supported")
    return decoder


def check_config(config: Any) -> None:
    """Refuse the configuration of a model that `check` would refuse, as far as a configuration tells.

    Raises:
        UnsupportedModelError: another kind of model, or sliding-window attention.
    """
    named = (getattr(config, "architectures", None) or ["this model"])[0]
    if named not in SUPPORTED or getattr(config, "mask_token_id", None) is not None:
        raise UnsupportedModelError(f"causal language models are supported ({', '.join(SUPPORTED)}), and this is none")
    if _slides(config):
        raise UnsupportedModelError(f"{named} has sliding-window layers; models with full attention are supported")


def _slides(config: Any) -> bool:
    layers = getattr(config, "layer_types", None) or []
    window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return "sliding_attention" in layers or bool(window)


def attend(
    layer: Any, hidden: Float[Tensor, "r n d"], rope: Rope, mask: Tensor | None, cache: Any = None, **kwargs: Any
) -> Float[Tensor, "r n d"]:
    """Run the first half of a stock layer: attention and its residual; keys and values go to `cache`.

    Args:
        layer: of a decoder that `check` accepts.
        hidden: hidden states.
        rope: positions of its tokens.
        mask: as the layer's attention takes it; None where plain causal attention is meant.
        cache: anything with the `update` of a transformers cache.
        kwargs: passed on to the attention, for example ``capture``.
    """
    normed, caching = layer.input_layernorm(hidden), {ARGUMENT: cache}
    attention = layer.self_attn(
        hidden_states=normed, position_embeddings=rope, attention_mask=mask, **caching, **kwargs
    )
    return hidden + attention[0]


def feed_forward(layer: Any, hidden: Float[Tensor, "r n d"]) -> Float[Tensor, "r n d"]:
    """Run the second half of a stock layer: feed-forward and its residual."""
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def check_length(loaded: Loaded, length: int, new_tokens: int) -> None:
    """Refuse a prompt that the model has no positions for.

    Raises:
        UnsupportedModelError: not a language model with a tokenizer.
        ValueError: prompt and answer need more positions than the model has.
    """
    config = getattr(loaded.model, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if loaded.processor is None or positions is None:
        raise UnsupportedModelError(f"{loaded.name} is no language model with a tokenizer")
    needed = length + new_tokens - 1  # the last new token is never fed back
    if needed > positions:
        raise ValueError(
            f"{length} prompt and {new_tokens} new tokens need {needed} positions, but {loaded.name} has {positions}; "
            "shorten the prompt"
        )


def prefill(model: Any, ids: Int[Tensor, "1 n"]) -> tuple[Float[Tensor, "1 v"], Cache, float]:
    """Read a prompt: the logits after it, the cache, and the seconds until they were there."""
    start = time.perf_counter()
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    logits = out.logits[:, -1].clone()
    if logits.is_cuda:
        torch.cuda.synchronize()
    return logits, growing(out[ARGUMENT]), time.perf_counter() - start


def decode_known(model: Any, ids: Int[Tensor, "1 n"], cache: Cache) -> tuple[list[Float[Tensor, "1 v"]], float]:
    """Feed all but the last of the known tokens one by one; their logits and the seconds it took."""
    steps = []
    start = time.perf_counter()
    for i in range(ids.shape[1] - 1):
        token = ids[:, i : i + 1]
        steps.append(model(input_ids=token, **{ARGUMENT: cache}, use_cache=True, logits_to_keep=1).logits[:, -1])
    if steps and steps[-1].is_cuda:
        torch.cuda.synchronize()
    return steps, time.perf_counter() - start


def greedy(model: Any, logits: Float[Tensor, "1 v"], cache: Cache, tokens: int) -> list[int]:
    """The `tokens` most likely next tokens, one after the other, beginning with that of `logits`."""
    answer = [int(logits.argmax())]
    while len(answer) < tokens:
        step = torch.tensor([[answer[-1]]], device=logits.device)
        logits = model(input_ids=step, **{ARGUMENT: cache}, use_cache=True, logits_to_keep=1).logits[:, -1]
        answer.append(int(logits.argmax()))
    return answer


def prefill_flops(config: Any, tokens: Sequence[int], *, causal: bool = True) -> float:
    """Floating-point operations of a prompt of which layer ``l`` sees ``tokens[l]`` tokens.

        sum_l  2 (2 d H dh + 2 d Hkv dh) T_l  +  6 d ff T_{l+1}  +  2 H dh T_l^2     and one row of the head, 2 d V

    A layer's feed-forward runs on the tokens of the next layer, since pruning comes before it.

    Args:
        config: transformers configuration of a Llama-like model.
        tokens: one number for each layer; all equal to the prompt length for the unchanged model.
        causal: attention skips the masked half, as fused kernels do; else ``4 H dh T_l^2``.
    """
    sizes = TransformerSizes.of(config)
    total: float = sizes.logits(1)
    for now, after in zip(tokens, [*tokens[1:], tokens[-1]], strict=True):
        total += sizes.projections * now + sizes.gated_mlp * after + sizes.attention(now, now) / (2 if causal else 1)
    return total


TTFT, DECODE = "time to first token (s)", "decode (tokens/s)"
"""Names of the times of an answer."""


class TimedStreamer(TextStreamer):
    """Prints an answer as it comes and notes when its first token came."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.first = 0.0

    def put(self, value: torch.Tensor) -> None:
        """Take the next tokens; the first call brings the prompt."""
        if not self.next_tokens_are_prompt and not self.first:
            self.first = time.perf_counter()
        super().put(value)


@dataclass(frozen=True, kw_only=True)
class Ask(PromptInputs):
    """Ask a question about a document; the answer streams."""

    max_new_tokens: int = 128
    """Most tokens of the answer."""
    temperature: float = 0.0
    """0 answers with the likeliest tokens; above it, samples."""
    seed: int = 0
    """Seed of the sampling."""
    compare: bool = False
    """Let the unchanged model answer first, and tell how much faster the method was."""

    def __post_init__(self) -> None:
        check_least(self, max_new_tokens=1, temperature=0)
        super().__post_init__()

    def __call__(self, loaded: Loaded, method: Any) -> None:
        """Stream the answer, then print what it cost; with `compare` that of the unchanged model before it."""
        ids, span = self.tokens(loaded)
        check_length(loaded, ids.shape[1], self.max_new_tokens)
        if "query_span" in {f.name for f in dataclasses.fields(method)} and method.query_span is None:
            method = dataclasses.replace(method, query_span=span)
        dense: dict[str, Any] = {}
        if self.compare:
            print("unchanged model:", flush=True)
            dense["answer"], dense["facts"] = self._answer(loaded, ids)
            print(f"\n{method.name}:", flush=True)
        with method.apply(loaded.model) as applied:
            answer, facts = self._answer(loaded, ids)
            facts = {"prompt tokens": ids.shape[1], **facts, **applied.stats()}
        if self.compare:
            facts = {"unchanged model": dense["facts"], **facts, **_ratios(dense["facts"], facts)}
        self.finish(answer, method, facts)

    @torch.inference_mode()
    def _answer(self, loaded: Loaded, ids: Int[Tensor, "1 n"]) -> tuple[str, dict[str, Any]]:
        """The streamed answer, and its tokens and times."""
        streamer = TimedStreamer(loaded.processor)
        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            start = time.perf_counter()
            ids = ids.to(loaded.model.device)
            full = loaded.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.max_new_tokens,
                streamer=streamer,
                pad_token_id=loaded.processor.eos_token_id if (pad := loaded.processor.pad_token_id) is None else pad,
                **sampling,
            )
        total, new = time.perf_counter() - start, full.shape[1] - ids.shape[1]
        ttft = streamer.first - start
        facts = {
            "answer tokens": new,
            TTFT: round(ttft, 3),
            DECODE: round((new - 1) / (total - ttft), 2) if new > 1 else None,
        }
        return loaded.processor.decode(full[0, ids.shape[1] :], skip_special_tokens=True), facts

    def tokens(self, loaded: Loaded) -> tuple[Int[Tensor, "1 n"], tuple[int, int]]:
        """Prompt ids, and the span of the question in them, counted from the end."""
        tokenizer = tokenizer_of(loaded)
        whole, (start, end) = self.whole_prompt(tokenizer)
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        asked, behind = (
            len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (whole[start:end], whole[end:])
        )
        return torch.tensor([ids]), (max(-(behind + asked), -len(ids)), -behind or len(ids))


def _ratios(dense: dict[str, Any], facts: dict[str, Any]) -> dict[str, str]:
    """How many times faster the first token came, and the others."""
    ratios = {"time to first token": dense[TTFT] / max(facts[TTFT], 1e-3)}
    if dense[DECODE] and facts[DECODE]:
        ratios["decode"] = facts[DECODE] / dense[DECODE]
    return {f"{name}, against the unchanged model": f"{ratio:.2f}x" for name, ratio in ratios.items()}


def tiny(model_type: str = "llama", *, seed: int = 0, **overrides: Any) -> Any:
    """A random causal LM of 6 layers, width 64, 4 heads and 2 KV heads, vocabulary 97, in eval mode.

    Args:
        model_type: ``llama``, ``mistral``, ``qwen2``, ``qwen3``, ``smollm3``: a model type of transformers.
        seed: of the weights; the global generator is left as it was.
        overrides: fields of the configuration class.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": WIDTH // HEADS,
        "intermediate_size": FEED_FORWARD,
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
        config = AutoConfig.for_model(model_type, **{**fields, **overrides})
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", trust_remote_code=False).eval()


def tiny_prompt(length: int, *, batch: int = 1, seed: int = 0) -> Int[Tensor, "b n"]:
    """Random token ids in 3..96 for `tiny`, never a special token."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))
