"""Baselines over the same kernels and budgets: LazyLLM and GemFilter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from fewstep.applied import Applied
from fewstep.families import unwrapped
from fewstep.families.attention import QueryCapture, capture_queries, wrap_attention
from fewstep.families.causal_lm import attend, check
from fewstep.families.kv_cache import ARGUMENT
from fewstep.kernels.unit_score import unit_score
from fewstep.method import Method
from jaxtyping import Float
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from .method import SlimApplied, SlimInfer, install
from .select import Budget, PresetName, blocks_kept, preset_for, top_blocks


@dataclass(frozen=True, kw_only=True)
class LazyLLM(Method):
    """Drop single prompt tokens by the last token's attention, progressively (after LazyLLM, arXiv:2407.14057).

    Differs from the paper: dropped tokens are not recomputed while decoding.
    """

    name: ClassVar[str] = "lazy-llm"
    seams: ClassVar[frozenset[str]] = SlimInfer.seams

    preset: PresetName = "default"
    """Slim-infer's preset that fills in the fields that are None."""
    entry: tuple[int, ...] | None = None
    """First layer of each segment, as in slim-infer. Default: slim-infer's preset."""
    keep: Budget | tuple[Budget, ...] | None = None
    """Budget for each segment, as in slim-infer. Default: slim-infer's preset."""

    def __post_init__(self) -> None:
        self._tokenwise()

    def _tokenwise(self) -> SlimInfer:
        """Blocks of one token, one query, softmax over tokens in each head: attention weights, averaged over heads."""
        chosen = {"preset": self.preset, "entry": self.entry, "keep": self.keep}
        return SlimInfer(**chosen, block=1, unit=1, window=1, carry=0, score="unit_softmax", sink_blocks=0)

    def identity(self) -> Self:
        """Everything is kept."""
        return replace(self, keep=1.0)

    def apply(self, model: Any) -> SlimApplied:
        """Change a loaded transformers model.

        Raises:
            UnsupportedModelError: slim-infer does not support it either.
            SeamConflictError: another method is applied to the model.
            ValueError: an entry layer is beyond the model's last one.
        """
        model = unwrapped(model)
        check(model)
        return install(model, self, self._tokenwise().resolve(model.config))


@dataclass(frozen=True, kw_only=True)
class GemFilter(Method):
    """Choose prompt tokens by an early layer's attention, then run the model on them alone (after arXiv:2409.17422).

    Two passes: the first up to `filter_layer`, the second over the chosen tokens at positions 0, 1, 2, ... All rows of
    a batch must have the same length.
    """

    name: ClassVar[str] = "gemfilter"
    seams: ClassVar[frozenset[str]] = SlimInfer.seams

    preset: PresetName = "default"
    """Slim-infer's preset that fills in the fields that are None."""
    filter_layer: int | None = None
    """Layer, counted from 0, whose last query chooses. Default: the layer before slim-infer's first entry layer."""
    keep: Budget | None = None
    """Tokens, or share of the prompt, that survive. Default: slim-infer's first budget."""

    def __post_init__(self) -> None:
        if self.filter_layer is not None and self.filter_layer < 0:
            raise ValueError(f"filter_layer={self.filter_layer} must be 0 or more")
        SlimInfer(preset=self.preset, block=1, unit=1, sink_blocks=0, keep=self.keep)

    def identity(self) -> Self:
        """Everything is kept: the second pass is the whole model."""
        return replace(self, keep=1.0)

    def apply(self, model: Any) -> Applied:
        """Change a loaded transformers model.

        Raises:
            UnsupportedModelError: slim-infer does not support it either.
            SeamConflictError: another method is applied to the model.
            ValueError: the model has no such layer.
        """
        model = unwrapped(model)
        decoder = check(model)
        layer, keep = self.filter_layer, self.keep
        if layer is None or keep is None:
            preset = preset_for(model.config, self.preset)
            layer = preset.entry[0] - 1 if layer is None else layer
            keep = preset.keep[0] if keep is None else keep
        if layer >= model.config.num_hidden_layers:
            raise ValueError(f"filter_layer={layer}: the model has {model.config.num_hidden_layers} layers")
        with Applied() as undo:
            undo.occupy(model, self)
            wrap_attention(undo, model, "capture", capture_queries)
            undo.set(decoder, "forward", GemDecoder(decoder, decoder.forward, layer, keep))
            return undo.pop_all()


@dataclass(frozen=True)
class GemDecoder:
    """Stands in for the ``forward`` of a decoder."""

    decoder: Any
    stock: Callable[..., BaseModelOutputWithPast]
    """The forward that it replaces."""
    layer: int
    """Its last query chooses."""
    keep: Budget

    def __call__(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> BaseModelOutputWithPast:
        """Filter a prompt; continue the renumbered sequence for later tokens.

        Raises:
            ValueError: rows of a batch are padded.
        """
        kwargs.pop("position_ids", None)
        cache, hidden = kwargs.get(ARGUMENT, kwargs.get("past_key_values")), kwargs.pop("inputs_embeds", None)
        hidden = self.decoder.embed_tokens(input_ids) if hidden is None else hidden
        seen = 0 if cache is None else cache.get_seq_length()
        if not seen:
            if attention_mask is not None and not attention_mask.all():
                raise ValueError("gemfilter takes prompts of one length: run padded rows one by one")
            hidden = self.choose(hidden)
        positions = torch.arange(seen, seen + hidden.shape[1], device=hidden.device)[None]
        return self.stock(inputs_embeds=hidden, position_ids=positions, **kwargs)

    def choose(self, embedded: Float[Tensor, "r n d"]) -> Float[Tensor, "r k d"]:
        """Embeddings of the last token and of those that it attends to most, at the filter layer."""
        tokens = embedded.shape[1]
        budget = blocks_kept(self.keep, tokens, 1, 1)
        if budget >= tokens:
            return embedded
        capture, hidden, place = QueryCapture(), embedded, torch.arange(tokens, device=embedded.device)
        rope = self.decoder.rotary_emb(hidden, position_ids=place[None])
        for layer in self.decoder.layers[: self.layer]:
            hidden = layer(hidden, position_embeddings=rope, attention_mask=None)
        attend(self.decoder.layers[self.layer], hidden, rope, None, capture=capture)
        chosen = []
        for query, keys, row in zip(capture.query, capture.keys, embedded, strict=True):
            scores = unit_score(query[:, -1], keys, block=1, unit=1, score="unit_softmax")
            chosen.append(row[top_blocks(scores, budget, place == tokens - 1)])
        return torch.stack(chosen)
