"""The decoder loop with pruning: prefill and decode of SlimInfer (arXiv:2508.06447, figure 4)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from fewstep.families.attention import QueryCapture
from fewstep.families.kv_cache import ARGUMENT
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from .cache import SlimCache, Stage
from .copier import Copier
from .offload import offload
from .options import blocks_kept
from .residency import choose_again, open_arena, remember
from .select import block_scores, forced_blocks, rows_of, top_blocks
from .tokens import Tokens


class SlimDecoder:
    """Stands in for the ``forward`` of a decoder (``model.model``) and calls the stock layers' own parts.

    Args:
        decoder: a stock Llama-like decoder.
        settings: a `SlimInfer` whose every field is filled in.
        copier: moves blocks while decoding.
    """

    def __init__(self, decoder: Any, settings: Any, copier: Copier) -> None:
        self._decoder, self.settings, self._copier = decoder, settings, copier
        self._stock = decoder.forward
        self.layers = decoder.layers
        self.paused = False
        """True while the unchanged forward runs."""
        self.scored = 0
        """Tokens at the end of a prompt whose logits are wanted one by one; they are read as if generated."""
        self.last: SlimCache | None = None
        """The cache of the newest prompt."""

    def __call__(
        self,
        input_ids: Int[Tensor, "r n"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "r n"] | None = None,
        past_key_values: SlimCache | None = None,
        inputs_embeds: Float[Tensor, "r n d"] | None = None,
        use_cache: bool | None = None,
        cache: SlimCache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Like the stock forward; where the prompt was pruned only its last row is returned."""
        given = past_key_values if cache is None else cache
        if self.paused:
            return self._stock(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **{ARGUMENT: given},
                **kwargs,
            )
        if given is not None and not isinstance(given, SlimCache):
            raise ValueError(f"SlimInfer needs its own SlimCache, not a {type(given).__name__}: leave {ARGUMENT} out")
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(f"SlimInfer takes a 2-D attention mask [rows, tokens], not {attention_mask.dim()}-D")
        if kwargs.get("output_hidden_states") or kwargs.get("output_attentions"):
            raise ValueError("SlimInfer returns no hidden states or attentions: pruned rows have none")
        hidden = self._decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = SlimCache(len(self.layers)) if given is None else given
        if position_ids is None:
            position_ids = torch.arange(hidden.shape[1], device=hidden.device)[None] + cache.seen
        rope = self._decoder.rotary_emb(hidden, position_ids=position_ids)
        if cache.stages:
            self._warn_about_a_second_prompt(hidden.shape[1], cache)
            hidden = self._decode(hidden, rope, cache, kwargs)
        else:
            hidden = self._read(hidden, rope, attention_mask, cache, kwargs)
        return BaseModelOutputWithPast(
            last_hidden_state=self._decoder.norm(hidden),
            **{ARGUMENT: None if use_cache is False else cache},
        )

    def _read(
        self, hidden: Tensor, rope: Any, attention_mask: Tensor | None, cache: SlimCache, kwargs: dict[str, Any]
    ) -> Float[Tensor, "r n d"]:
        """The prompt, and behind it the tokens whose logits are wanted too: guesses to verify, a text to score."""
        first = max(hidden.shape[1] - self.scored, 1)
        mask = None if attention_mask is None else attention_mask[:, :first]
        cos, sin = rope
        prompt = Tokens.of_prompt(hidden[:, :first], (cos[:, :first], sin[:, :first]), mask)
        read = self._prefill(prompt, cache, kwargs)
        if first == hidden.shape[1]:
            return read
        scored = self._decode(hidden[:, first:], (cos[:, first:], sin[:, first:]), cache, kwargs)
        return torch.cat([read[:, -1:], scored], dim=1)

    def _prefill(self, tokens: Tokens, cache: SlimCache, kwargs: dict[str, Any]) -> Float[Tensor, "r n d"]:
        """The whole prompt; at each entry layer the blocks that matter least leave the sequence."""
        settings, prompts, length = self.settings, tokens.lengths, tokens.hidden.shape[1]
        if settings.revive == "recompute" and len(prompts) > 1:
            raise ValueError('revive="recompute" takes one prompt at a time')
        edges = [*settings.entry, len(self.layers)]
        stages, mask, rope = [Stage(range(edges[0]), tokens.valid, prompts)], tokens.mask(), tokens.rope
        for layer in range(edges[-1]):
            tap = QueryCapture() if layer + 1 in settings.entry else None
            self.attend(layer, tokens, mask, cache, tap, kwargs)
            if tap is not None:
                segment = len(stages) - 1
                tokens, stage = self._prune(tokens, tap, prompts, segment)
                stage.layers = range(edges[segment], edges[segment + 1])
                stages.append(stage)
                mask = tokens.mask()
            # pruning before the feed-forward gives the same survivors as after it, for less work
            tokens.hidden = self.feed_forward(layer, tokens.hidden)
        cache.stages, cache.seen, cache.prompt, self.last = stages, length, length, cache
        if settings.revive == "recompute":
            cache.rope = rope
        if settings.offload:
            offload(cache, stages[0].layers, self._copier)
        if settings.decode_keep is not None:
            for segment, stage in enumerate(stages[1:]):
                layers = [cache.layers[i] for i in stage.layers]
                open_arena(stage, layers, prompts, settings.decode_keep[segment], settings, self._copier)
        pruned = any(stage.tokens != prompts for stage in stages)
        return tokens.hidden[:, -1:] if pruned else tokens.hidden

    def _prune(self, tokens: Tokens, tap: QueryCapture, prompts: list[int], segment: int) -> tuple[Tokens, Stage]:
        """Score and select, row by row, at the end of the attention before an entry layer."""
        settings, width = self.settings, tokens.hidden.shape[1]
        recent = tap.query[:, :, max(width - settings.window + 1, 0) :].clone()
        stage, rows = Stage(range(0), None, [], recent=recent), []
        for r, (length, prompt) in enumerate(zip(tokens.lengths, prompts, strict=True)):
            pad = width - length
            number, keys, query = tokens.number[r, pad:], tap.keys[r, :, pad:], tap.query[r, :, pad:]
            own = rows_of(self.select(query, keys, number, prompt, segment), settings.block, length)
            rows.append(own + pad)
            stage.blocks.append((number[own[:: settings.block]] // settings.block).tolist())
            if settings.decode_keep is not None:
                choice = slice(None) if settings.revive == "recompute" else own
                remember(stage, settings, number[choice], keys[:, choice], tokens.hidden[r, pad:][choice])
        if any(row.numel() < length for row, length in zip(rows, tokens.lengths, strict=True)):
            tokens = tokens.take(rows)
        stage.valid, stage.tokens = tokens.valid, tokens.lengths
        return tokens, stage

    def select(self, query: Tensor, keys: Tensor, number: Tensor, prompt: int, segment: int) -> Int[Tensor, " k"]:
        """Blocks of one row that survive, numbered in its current sequence."""
        settings, length = self.settings, number.numel()
        forced = forced_blocks(
            length, settings.block, sinks=settings.sink_blocks, tails=settings.tail_blocks, window=settings.window
        )
        asked = slice(-settings.window, None)
        if settings.query_span is not None:
            start, stop = (n + prompt if n < 0 else n for n in settings.query_span)
            asked = ((number >= start) & (number < stop)).nonzero().flatten()
            if not asked.numel():
                raise ValueError(f"query_span={settings.query_span} holds no token of a prompt of {prompt} tokens")
            forced[asked.cpu() // settings.block] = True
        budget = blocks_kept(settings.keep[segment], prompt, settings.block, int(forced.sum()))
        if forced.numel() <= budget:
            return torch.arange(forced.numel(), device=number.device)
        local = query[:, asked].float().mean(1)
        scores = block_scores(
            local,
            keys,
            number[:: settings.block] // settings.block,
            block=settings.block,
            unit=settings.unit,
            score=settings.score,
            carry=settings.carry,
        )
        return top_blocks(scores, budget, forced.to(scores.device))

    def _decode(self, hidden: Tensor, rope: Any, cache: SlimCache, kwargs: dict[str, Any]) -> Float[Tensor, "r n d"]:
        """New tokens over a slim cache; each segment with an arena chooses its blocks again."""
        new = hidden.shape[1]
        tokens = Tokens(hidden, rope, number=torch.empty(0))
        for stage, after in zip(cache.stages, [*cache.stages[1:], None], strict=True):
            mask = _decode_mask(stage, cache.layers[stage.layers[0]].keys.shape[2], new)
            for layer in stage.layers:
                boundary = after is not None and after.arena is not None and layer == stage.layers[-1]
                tap = QueryCapture() if boundary else None
                self.attend(layer, tokens, mask, cache, tap, kwargs)
                if tap is not None:
                    choose_again(self, after, tap, cache)
                tokens.hidden = self.feed_forward(layer, tokens.hidden)
        cache.seen += new
        return tokens.hidden

    def _warn_about_a_second_prompt(self, new: int, cache: SlimCache) -> None:
        pruned = any(stage.tokens != cache.stages[0].tokens for stage in cache.stages)
        if new > self.settings.window and pruned and self.settings.revive == "survivors":
            warnings.warn(
                f"{new} more prompt tokens over a slim cache: the deep layers hold only what the first question "
                'needed; run the whole prompt again for a new question, or apply with revive="recompute"',
                stacklevel=3,
            )

    def attend(
        self,
        layer: int,
        tokens: Tokens,
        mask: Tensor | None,
        cache: SlimCache,
        tap: QueryCapture | None,
        kwargs: dict[str, Any],
    ) -> None:
        block = self.layers[layer]
        output, _ = block.self_attn(
            hidden_states=block.input_layernorm(tokens.hidden),
            position_embeddings=tokens.rope,
            attention_mask=mask,
            **{ARGUMENT: cache},
            capture=tap,
            **kwargs,
        )
        tokens.hidden = tokens.hidden + output

    def feed_forward(self, layer: int, hidden: Tensor) -> Tensor:
        block = self.layers[layer]
        return hidden + block.mlp(block.post_attention_layernorm(hidden))


def _decode_mask(stage: Stage, cached: int, new: int) -> Bool[Tensor, "r 1 new all"] | None:
    """What `new` tokens see of `cached` ones and of each other; None for one token that sees everything."""
    if stage.valid is None and new == 1:
        return None
    device = stage.valid.device if stage.valid is not None else None
    causal = torch.ones(new, cached + new, dtype=torch.bool, device=device).tril(cached)
    if stage.valid is None:
        return causal[None, None]
    seen = nn.functional.pad(stage.valid, (0, cached + new - stage.valid.shape[1]), value=True)
    return causal & seen[:, None, None, :]
