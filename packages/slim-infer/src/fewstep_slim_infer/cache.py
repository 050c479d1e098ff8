"""KV cache of a model with SlimInfer applied: its layers hold different numbers of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from fewstep.families.kv_cache import GrowingLayer
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from .resident import ResidentBlocks
from .select import Budget, Candidates, blocks_kept, unit_means
from .transfer import Copier, StreamedLayer


@dataclass
class Segment:
    """Layers that see the same prompt tokens: all of them before the first entry layer, or one slim segment."""

    layers: range
    valid: Bool[Tensor, "r n"] | None = None
    """Real columns of the cached prompt; None when all are real."""
    tokens: list[int] = field(default_factory=list)
    """Prompt tokens that each row keeps here."""
    blocks: list[list[int]] = field(default_factory=list)
    """Original numbers of the blocks that each row keeps here, ascending; empty before the first entry layer."""
    recent: Float[Tensor, "r h w d"] | None = None
    """The last queries of the layer before, for the local query of the next step: ``window - 1``, and as many as the
    last call had tokens."""
    candidates: list[Candidates] = field(default_factory=list)
    """Blocks that decoding chooses from, for each row; only with `decode_keep` or ``decode_from="recompute"``."""
    hidden: dict[int, Float[Tensor, "b d"]] = field(default_factory=dict)
    """Hidden states of the candidates, as pruning found them, on the host; only with ``decode_from="recompute"``."""
    resident: ResidentBlocks | None = None
    """Present when decoding reads fewer blocks than the prefill kept."""

    def remember(
        self, number: Int[Tensor, " n"], keys: Float[Tensor, "g n d"], hidden: Float[Tensor, "n w"], settings: Any
    ) -> None:
        """Make the full blocks of one more row candidates, given its tokens' numbers, keys and hidden states."""
        block, full = settings.block, number.numel() // settings.block
        numbers = (number[: full * block : block] // block).tolist()
        self.candidates.append(Candidates(numbers, unit_means(keys[:, : full * block], settings.unit)))
        if settings.decode_from == "recompute":
            self.hidden = dict(zip(numbers, hidden[: full * block].cpu().split(block), strict=True))

    def limit(self, cache: Cache, keep: Budget, prompts: list[int], settings: Any, copier: Copier) -> None:
        """Leave only a budget of `keep` of the blocks on the device; nothing to do where that is all of them."""
        block, layers = settings.block, [cache.layers[i] for i in self.layers]
        full = [own[: tokens // block] for own, tokens in zip(self.blocks, self.tokens, strict=True)]
        slots = [
            blocks_kept(keep, prompt, block, settings.sink_blocks + 1) - (tokens % block > 0)
            for prompt, tokens in zip(prompts, self.tokens, strict=True)
        ]
        reads_all = all(n >= len(own) for n, own in zip(slots, full, strict=True))
        if reads_all and full == [own.numbers for own in self.candidates]:
            return
        pads = [layers[0].keys.shape[2] - tokens for tokens in self.tokens]
        self.resident = ResidentBlocks(
            layers, pads, self.candidates, blocks=full, slots=slots, settings=settings, copier=copier
        )
        self.valid = self.resident.valid

    def crop(self, tokens: int) -> None:
        """Forget the queries of the last `tokens` tokens."""
        if self.recent is not None:
            self.recent = self.recent[:, :, : max(self.recent.shape[2] - tokens, 0)]

    def select_rows(self, rows: Int[Tensor, " r"]) -> None:
        """Keep these rows of the batch, in this order."""
        order = rows.tolist()
        self.tokens = [self.tokens[r] for r in order]
        self.blocks = [self.blocks[r] for r in order] if self.blocks else []
        self.valid = None if self.valid is None else self.valid.index_select(0, rows.to(self.valid.device))
        self.recent = None if self.recent is None else self.recent.index_select(0, rows.to(self.recent.device))
        if self.resident is not None:
            self.resident.select_rows(order)


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    """Tokens, blocks and bytes of a prompt and its answer."""

    seen: int
    """Tokens processed so far: prompt and answer."""
    tokens: tuple[tuple[int, ...], ...]
    """Prompt tokens kept, by segment (layers before the first entry layer first) and row."""
    blocks: tuple[tuple[tuple[int, ...], ...], ...]
    """Original numbers of the blocks kept, by slim segment and row."""
    layer_tokens: tuple[int, ...]
    """Tokens cached by each layer."""
    kv_bytes: int
    """Bytes of keys and values where the model runs."""
    host_bytes: int
    """Bytes of keys and values in host memory; 0 unless decoding swaps or offloads."""
    swaps: int
    """Changes of a segment's active blocks while decoding."""
    bytes_moved: int
    """Bytes that these swaps copied."""

    @property
    def dropped(self) -> bool:
        """True where the last segment keeps fewer prompt tokens than there were."""
        return bool(self.tokens) and self.tokens[-1] != self.tokens[0]

    def __str__(self) -> str:
        if not self.tokens:
            return "no prompt yet"
        kept = "; ".join(_kept([segment[row] for segment in self.tokens]) for row in range(len(self.tokens[0])))
        host = f", {self.host_bytes / 2**20:.1f} MiB of them on the host" if self.host_bytes else ""
        return f"{kept}\nKV cache: {(self.kv_bytes + self.host_bytes) / 2**20:.1f} MiB{host}"


def _kept(tokens: list[int]) -> str:
    """The prompt tokens of one row, from segment to segment."""
    if tokens[-1] == tokens[0]:
        return f"prompt: nothing was dropped, its {tokens[0]:,} tokens fit the budget"
    path = " → ".join(f"{count:,}" for count in tokens)
    return f"prompt: {tokens[-1]:,} of {tokens[0]:,} tokens reach the last layers ({path})"


class SlimCache(Cache):
    """KV cache of a model with SlimInfer applied. `get_seq_length` is the number of tokens *seen*, never the kept."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[GrowingLayer() for _ in range(layers)])
        self.segments: list[Segment] = []
        self.prompt = 0
        """Length of the (padded) prompt; 0 before the prefill."""
        self.seen = 0
        self.rope: tuple[Tensor, Tensor] | None = None
        """Cosines and sines of the prompt's positions; only with ``decode_from="recompute"``."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen: the position of the next token. The same for all layers."""
        return self.seen

    def offload(self, layers: range, copier: Copier) -> None:
        """Move `layers`, filled by the prefill, to the host; each decoded token streams them in."""
        streamed = [StreamedLayer(self.layers[i], copier) for i in layers]
        for i, layer, following in zip(layers, streamed, [*streamed[1:], streamed[0]], strict=True):
            self.layers[i], layer.following = layer, following

    def reorder_cache(self, beam_idx: Int[Tensor, " r"]) -> None:
        """Rows follow their beams: buffers, block tables, masks and saved queries."""
        for part in (*self.layers, *self.segments):
            part.select_rows(beam_idx)

    def batch_select_indices(self, indices: Int[Tensor, " r"]) -> None:
        """Keep only these rows."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times."""
        rows = len(self.segments[0].tokens) if self.segments else 0
        self.reorder_cache(torch.arange(rows).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` generated tokens.

        Raises:
            ValueError: a positive number, or more than were generated: a pruned prompt cannot be shortened.
        """
        if tokens_to_remove > 0 or self.seen + tokens_to_remove < self.prompt:
            raise ValueError(
                f"crop({tokens_to_remove}): only the {self.seen - self.prompt} generated tokens can be cropped, and by "
                "a negative number; the pruned prompt of a slim cache stays"
            )
        if tokens_to_remove:
            self.seen += tokens_to_remove
            for layer in self.layers:
                layer.crop(tokens_to_remove)
            for segment in self.segments:
                segment.crop(-tokens_to_remove)

    def reset(self) -> None:
        """Forget everything, as new."""
        self.__init__(len(self.layers))

    @property
    def report(self) -> CacheReport:
        """Contents and traffic up to now."""
        resident = [segment.resident for segment in self.segments if segment.resident is not None]
        return CacheReport(
            seen=self.seen,
            tokens=tuple(tuple(segment.tokens) for segment in self.segments),
            blocks=tuple(tuple(map(tuple, segment.blocks)) for segment in self.segments[1:]),
            layer_tokens=tuple(layer.keys.shape[2] for layer in self.layers if layer.is_initialized),
            kv_bytes=sum(layer.kv_bytes for layer in self.layers),
            host_bytes=sum(own.host_bytes for own in resident) + sum(layer.host_bytes for layer in self.layers),
            swaps=sum(own.swaps for own in resident),
            bytes_moved=sum(own.bytes_moved for own in resident),
        )
