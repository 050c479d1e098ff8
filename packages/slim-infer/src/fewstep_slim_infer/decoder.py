"""The decoder loop with pruning: prefill and decode of SlimInfer (arXiv:2508.06447, figure 4)."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from fewstep.families.attention import QueryCapture
from fewstep.families.causal_lm import Rope, attend, feed_forward
from fewstep.families.kv_cache import ARGUMENT
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from .cache import Segment, SlimCache
from .select import rows_of, surviving_blocks, unit_means
from .tokens import Tokens
from .transfer import Copier


class ThreadState(threading.local):
    """What the calls of one thread tell the decoder; other threads on the same model do not see it."""

    paused = False
    """True while the unchanged forward runs."""
    scored = 0
    """Tokens at the end of the next prompt whose logits are wanted one by one; they are read as if generated."""


class SlimDecoder:
    """Stands in for the ``forward`` of a decoder (``model.model``) and calls the stock layers' own parts.

    Args:
        decoder: a stock Llama-like decoder.
        settings: a `SlimInfer` whose every field is filled in.
        copier: moves blocks while decoding.
        choose: picks the surviving blocks of a row, with the parameters of `surviving_blocks`.
    """

    def __init__(
        self, decoder: Any, settings: Any, copier: Copier, choose: Callable[..., Tensor] = surviving_blocks
    ) -> None:
        self._decoder, self.settings, self._copier, self._choose = decoder, settings, copier, choose
        self._stock = decoder.forward
        self.layers = decoder.layers
        self.thread = ThreadState()
        self.last: SlimCache | None = None
        """The cache of the newest prompt."""

    def __call__(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        """Like the stock forward; where the prompt was pruned only its last row is returned.

        Raises:
            ValueError: a cache of another class, a mask that is not 2-D or pads on the right, an empty prompt, or
                outputs that pruned rows do not have.
        """
        return (self._stock if self.thread.paused else self._forward)(*args, **kwargs)

    def _forward(
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
        given = past_key_values if cache is None else cache
        scored, self.thread.scored = self.thread.scored, 0
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
        if cache.segments:
            self._warn_about_a_second_prompt(hidden.shape[1], cache)
            hidden = self._decode(hidden, rope, cache, kwargs)
        else:
            hidden = self._read(hidden, rope, attention_mask, scored, cache, kwargs)
        hidden, cache_out = self._decoder.norm(hidden), None if use_cache is False else cache
        return BaseModelOutputWithPast(last_hidden_state=hidden, **{ARGUMENT: cache_out})

    def _read(
        self,
        hidden: Tensor,
        rope: Rope,
        attention_mask: Tensor | None,
        scored: int,
        cache: SlimCache,
        kwargs: dict[str, Any],
    ) -> Float[Tensor, "r n d"]:
        """The prompt, and behind it the tokens whose logits are wanted too: guesses to verify, a text to score."""
        first = max(hidden.shape[1] - scored, 1)
        mask = None if attention_mask is None else attention_mask[:, :first]
        cos, sin = rope
        prompt = Tokens.of_prompt(hidden[:, :first], (cos[:, :first], sin[:, :first]), mask)
        read = self._prefill(prompt, cache, kwargs)
        if first == hidden.shape[1]:
            return read
        behind = self._decode(hidden[:, first:], (cos[:, first:], sin[:, first:]), cache, kwargs)
        return torch.cat([read[:, -1:], behind], dim=1)

    def _prefill(self, tokens: Tokens, cache: SlimCache, kwargs: dict[str, Any]) -> Float[Tensor, "r n d"]:
        """The whole prompt; at each entry layer the blocks that matter least leave the sequence."""
        settings, prompts = self.settings, tokens.lengths
        if settings.decode_from == "recompute" and len(prompts) > 1:
            raise ValueError('decode_from="recompute" takes one prompt at a time')
        edges = [*settings.entry, len(self.layers)]
        segments, mask, rope = [Segment(range(edges[0]), tokens.valid, prompts)], tokens.mask(), tokens.rope
        length = tokens.hidden.shape[1]
        for i, layer in enumerate(self.layers):
            capture = QueryCapture() if i + 1 in settings.entry else None
            tokens.hidden = attend(layer, tokens.hidden, tokens.rope, mask, cache, capture=capture, **kwargs)
            if capture is not None:
                segment = Segment(range(i + 1, edges[len(segments)]))
                tokens = self._prune(tokens, capture, prompts, segment, len(segments) - 1)
                segments.append(segment)
                mask = tokens.mask()
            # pruning before the feed-forward gives the same survivors as after it, for less work
            tokens.hidden = feed_forward(layer, tokens.hidden)
        cache.segments, cache.seen, cache.prompt, self.last = segments, length, length, cache
        cache.rope = rope if settings.decode_from == "recompute" else None
        if settings.offload:
            cache.offload(segments[0].layers, self._copier)
        if settings.decode_keep is not None:
            for segment, keep in zip(segments[1:], settings.decode_keep, strict=True):
                segment.limit(cache, keep, prompts, settings, self._copier)
        pruned = any(segment.tokens != prompts for segment in segments)
        return tokens.hidden[:, -1:] if pruned else tokens.hidden

    def _prune(self, tokens: Tokens, capture: QueryCapture, prompts: list[int], segment: Segment, index: int) -> Tokens:
        """Choose the survivors of slim segment `index`, row by row, after the attention before its entry layer."""
        settings, width, rows = self.settings, tokens.hidden.shape[1], []
        segment.recent = capture.query[:, :, max(width - settings.window + 1, 0) :].clone()
        for r, (length, prompt) in enumerate(zip(tokens.lengths, prompts, strict=True)):
            pad = width - length
            number, keys, query = tokens.number[r, pad:], capture.keys[r, :, pad:], capture.query[r, :, pad:]
            survivors = self._choose(settings, query, keys, number, prompt, index)
            own = rows_of(survivors, settings.block, length)
            rows.append(own + pad)
            segment.blocks.append((number[own[:: settings.block]] // settings.block).tolist())
            if settings.decode_keep is not None:
                known = slice(None) if settings.decode_from == "recompute" else own
                segment.remember(number[known], keys[:, known], tokens.hidden[r, pad:][known], settings)
        if any(row.numel() < length for row, length in zip(rows, tokens.lengths, strict=True)):
            tokens = tokens.keep(rows)
        segment.valid, segment.tokens = tokens.valid, tokens.lengths
        return tokens

    def _decode(self, hidden: Tensor, rope: Rope, cache: SlimCache, kwargs: dict[str, Any]) -> Float[Tensor, "r n d"]:
        """New tokens over a slim cache; each segment with resident blocks chooses them again."""
        new = hidden.shape[1]
        for segment, after in zip(cache.segments, [*cache.segments[1:], None], strict=True):
            mask = _decode_mask(segment, cache.layers[segment.layers[0]].keys.shape[2], new, hidden.device)
            for i in segment.layers:
                chooses = after is not None and after.resident is not None and i == segment.layers[-1]
                capture = QueryCapture() if chooses else None
                hidden = attend(self.layers[i], hidden, rope, mask, cache, capture=capture, **kwargs)
                if capture is not None:
                    self._choose_again(after, capture, cache)
                hidden = feed_forward(self.layers[i], hidden)
        cache.seen += new
        return hidden

    def _choose_again(self, segment: Any, capture: QueryCapture, cache: SlimCache) -> None:
        """Let every row of a segment ask for its blocks, with the mean of the last `window` queries."""
        window, resident = self.settings.window, segment.resident
        queries = torch.cat([segment.recent, capture.query], dim=2)
        for row, query in enumerate(queries[:, :, -window:].float().mean(2)):
            blocks = resident.choose(row, query)
            if missing := resident.missing(row, blocks):
                self._recompute(sorted(missing), segment, cache)
            resident.activate(row, blocks)
        # so many more as there are new tokens: those that turn out to be wrong guesses are cropped
        segment.recent = queries[:, :, max(queries.shape[2] - window + 1 - capture.query.shape[2], 0) :]

    def _recompute(self, blocks: list[int], segment: Any, cache: Any) -> None:
        """Run `blocks` that the prefill dropped through a segment, each token seeing earlier active ones. One row only.

        The blocks get keys and values among the segment's blocks, and become candidates of the next segment.
        """
        block, resident, device = self.settings.block, segment.resident, cache.rope[0].device
        number = rows_of(torch.tensor(blocks), block, cache.prompt)
        rope = tuple(part[:, number.to(device)] for part in cache.rope)
        hidden = torch.cat([segment.hidden[b] for b in blocks])[None].to(device)
        hidden = feed_forward(self.layers[segment.layers[0] - 1], hidden)
        # the prompt's tail is always active, and everything generated is later than any block
        seen = resident.numbers(0, cache.prompt - cache.prompt % block)
        generated = cache.layers[segment.layers[0]].keys.shape[2] - seen.numel()
        seen = torch.cat([seen, torch.full((generated,), cache.seen), number])
        mask = (seen[None, :] <= number[:, None])[None, None].to(device)
        after = next((s for s in cache.segments if s.layers[0] == segment.layers[-1] + 1), None)
        computed = []
        for i in segment.layers:
            hidden = attend(self.layers[i], hidden, rope, mask, cache)
            held = cache.layers[i]
            computed.append(torch.stack([part[0, :, -number.numel() :] for part in (held.keys, held.values)]))
            held.crop(-number.numel())
            if i == segment.layers[-1] and after is not None:
                _offer(after, blocks, hidden[0], unit_means(computed[-1][0], self.settings.unit))
            hidden = feed_forward(self.layers[i], hidden)
        for b, keys_values in zip(blocks, torch.stack(computed).split(block, dim=3), strict=True):
            resident.add(0, b, keys_values.contiguous())

    def _warn_about_a_second_prompt(self, new: int, cache: SlimCache) -> None:
        pruned = any(segment.tokens != cache.segments[0].tokens for segment in cache.segments)
        if new > self.settings.window and pruned and self.settings.decode_from == "survivors":
            warnings.warn(
                f"{new} more prompt tokens over a slim cache: the deep layers hold only the blocks that the first "
                'question needed; run the whole prompt again for a new question, or apply with decode_from="recompute"',
                stacklevel=4,
            )


def _offer(segment: Segment, blocks: list[int], hidden: Float[Tensor, "n d"], units: Float[Tensor, "g m d"]) -> None:
    """Make recomputed `blocks` candidates of the next segment."""
    parts = zip(blocks, hidden.cpu().chunk(len(blocks)), units.chunk(len(blocks), dim=1), strict=True)
    for b, states, own in parts:
        if b not in segment.hidden:
            segment.hidden[b] = states
            if segment.resident is not None:
                segment.resident.candidates[0] = segment.resident.candidates[0].insert(b, own)


def _decode_mask(segment: Segment, cached: int, new: int, device: torch.device) -> Bool[Tensor, "r 1 new all"] | None:
    """Columns that `new` tokens see of `cached` ones and of each other; None for one token that sees everything."""
    if segment.valid is None and new == 1:
        return None
    causal = torch.ones(new, cached + new, dtype=torch.bool, device=device).tril(cached)
    if segment.valid is None:
        return causal[None, None]
    seen = nn.functional.pad(segment.valid, (0, cached + new - segment.valid.shape[1]), value=True)
    return causal & seen[:, None, None, :]
