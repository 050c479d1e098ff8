"""The nearest other methods, over the same kernels and budgets, to compare with: LazyLLM and GemFilter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from fewstep.applied import Applied
from fewstep.families import causal_lm
from fewstep.families.attention import QueryCapture, capture_queries, wrap_attention
from fewstep.families.kv_cache import ARGUMENT
from fewstep.kernels.unit_score import unit_score
from fewstep.method import Method
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from .method import SlimApplied, SlimInfer, install
from .options import Keep, blocks_kept
from .presets import preset_for
from .select import forced_blocks, top_blocks


@dataclass(frozen=True, kw_only=True)
class LazyLLM(Method):
    """Drop single prompt tokens by the last token's attention, progressively (after LazyLLM, arXiv:2407.14057).

    Differs from the paper: tokens once dropped are not revived while decoding.
    """

    name: ClassVar[str] = "lazy-llm"
    seams: ClassVar[frozenset[str]] = SlimInfer.seams

    entry: tuple[int, ...] | None = None
    """First layer of each segment, as in slim-infer. Default: slim-infer's preset."""
    keep: Keep | tuple[Keep, ...] | None = None
    """Budget for each segment, as in slim-infer. Default: slim-infer's preset."""

    def __post_init__(self) -> None:
        self._tokenwise()

    def _tokenwise(self) -> SlimInfer:
        """Blocks of one token, one query, softmax over tokens in each head: attention weights, averaged over heads."""
        return SlimInfer(
            entry=self.entry, keep=self.keep, block=1, unit=1, window=1, carry=0, score="unit_softmax", sink_blocks=0
        )

    def identity(self) -> Self:
        """Everything is kept."""
        return replace(self, keep=1.0)

    def apply(self, model: Any) -> SlimApplied:
        """Change a loaded transformers model; the same models as slim-infer."""
        causal_lm.check(model)
        return install(model, self, self._tokenwise().resolve(model.config))


@dataclass(frozen=True, kw_only=True)
class GemFilter(Method):
    """Choose prompt tokens by an early layer's attention, then run the model on them alone (after arXiv:2409.17422).

    Two passes: the first up to `filter_layer`, the second over the chosen tokens at positions 0, 1, 2, ... All rows of
    a batch must have the same length.
    """

    name: ClassVar[str] = "gemfilter"
    seams: ClassVar[frozenset[str]] = SlimInfer.seams

    filter_layer: int | None = None
    """Layer, counted from 0, whose last query chooses. Default: the layer before slim-infer's first entry layer."""
    keep: Keep | None = None
    """Tokens, or share of the prompt, that survive. Default: slim-infer's first budget."""

    def __post_init__(self) -> None:
        if self.filter_layer is not None and self.filter_layer < 0:
            raise ValueError(f"filter_layer={self.filter_layer} must be 0 or more")
        SlimInfer(block=1, unit=1, sink_blocks=0, keep=self.keep)

    def identity(self) -> Self:
        """Everything is kept: the second pass is the whole model."""
        return replace(self, keep=1.0)

    def apply(self, model: Any) -> Applied:
        """Change a loaded transformers model; the same models as slim-infer."""
        decoder = causal_lm.check(model)
        layer, keep = self.filter_layer, self.keep
        if layer is None or keep is None:
            preset = preset_for(model.config)
            layer = preset.entry[0] - 1 if layer is None else layer
            keep = preset.keep[0] if keep is None else keep
        if layer >= model.config.num_hidden_layers:
            raise ValueError(f"filter_layer={layer}: the model has {model.config.num_hidden_layers} layers")
        with Applied() as undo:
            undo.occupy(model, self)
            wrap_attention(undo, model, "capture", capture_queries)
            undo.set(decoder, "forward", GemDecoder(decoder, layer, keep))
            return undo.pop_all()


class GemDecoder:
    """Stands in for the ``forward`` of a decoder."""

    def __init__(self, decoder: Any, layer: int, keep: Keep) -> None:
        self._decoder, self._stock, self._layer, self._keep = decoder, decoder.forward, layer, keep

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Filter a prompt; continue the renumbered sequence for later tokens."""
        given = past_key_values if cache is None else cache
        hidden = self._decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        seen = given.get_seq_length() if given is not None else 0
        if not seen:
            if attention_mask is not None and not attention_mask.all():
                raise ValueError("gemfilter takes prompts of one length: run padded rows one by one")
            hidden = self._filter(hidden)
        positions = torch.arange(seen, seen + hidden.shape[1], device=hidden.device)[None]
        return self._stock(inputs_embeds=hidden, position_ids=positions, **{ARGUMENT: given}, **kwargs)

    def _filter(self, embedded: Tensor) -> Tensor:
        tokens = embedded.shape[1]
        forced = forced_blocks(tokens, 1, sinks=0, tails=1, window=1)
        budget = blocks_kept(self._keep, tokens, 1, 1)
        if budget >= tokens:
            return embedded
        tap, hidden = QueryCapture(), embedded
        rope = self._decoder.rotary_emb(hidden, position_ids=torch.arange(tokens, device=hidden.device)[None])
        for layer in self._decoder.layers[: self._layer]:
            hidden = layer(hidden, position_embeddings=rope, attention_mask=None)
        last = self._decoder.layers[self._layer]
        last.self_attn(last.input_layernorm(hidden), position_embeddings=rope, attention_mask=None, capture=tap)
        chosen = []
        for query, keys, row in zip(tap.query, tap.keys, embedded, strict=True):
            scores = unit_score(query[:, -1], keys, block=1, unit=1, score="unit_softmax")
            chosen.append(row[top_blocks(scores, budget, forced.to(scores.device))])
        return torch.stack(chosen)
