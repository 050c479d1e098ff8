"""A transformers `Cache` whose layers hold different numbers of tokens, in buffers with room to grow."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from fewstep.families.kv_cache import GrowingLayer
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from .arena import Arena


@dataclass
class Stage:
    """Layers that see the same tokens: the preserve layers, or one slim segment."""

    layers: range
    valid: Bool[Tensor, "r n"] | None
    """Which cached prompt columns are real; None when all are."""
    tokens: list[int]
    """Prompt tokens that each row keeps here."""
    blocks: list[list[int]] = field(default_factory=list)
    """Original numbers of the blocks that each row keeps here, ascending; empty for the preserve layers."""
    recent: Float[Tensor, "r h w d"] | None = None
    """The last ``window - 1`` queries at this stage's boundary, for the local query of the next step."""
    candidates: list[list[int]] = field(default_factory=list)
    """Full blocks that decoding chooses from, for each row; only with `decode_keep` or `revive`."""
    units: list[Float[Tensor, "g m d"]] = field(default_factory=list)
    """Mean key of every unit of the candidates, for each row."""
    hidden: dict[int, Float[Tensor, "b d"]] = field(default_factory=dict)
    """Hidden states of the candidates at this stage's boundary, on the host; only with ``revive="recompute"``."""
    arena: Arena | None = None
    """Where the keys and values lie when decoding reads fewer blocks than the prefill kept."""

    def select_rows(self, rows: Int[Tensor, " r"]) -> None:
        """Keep these rows of the batch, in this order."""
        order = rows.tolist()
        self.tokens = [self.tokens[r] for r in order]
        self.blocks = [self.blocks[r] for r in order] if self.blocks else []
        self.valid = None if self.valid is None else self.valid.index_select(0, rows.to(self.valid.device))
        self.recent = None if self.recent is None else self.recent.index_select(0, rows.to(self.recent.device))
        if self.arena is not None:
            self.arena.select_rows(order)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a prompt and its answer cost, read from the cache."""

    seen: int
    """Tokens processed so far: prompt and answer."""
    tokens: tuple[tuple[int, ...], ...]
    """Prompt tokens kept, by stage (preserve layers first) and row."""
    blocks: tuple[tuple[tuple[int, ...], ...], ...]
    """Original numbers of the blocks kept, by slim segment and row."""
    layer_tokens: tuple[int, ...]
    """Tokens cached by each layer."""
    kv_bytes: int
    """Bytes of keys and values where the model runs."""
    host_bytes: int
    """Bytes of keys and values in host memory; 0 unless decoding swaps or offloads."""
    swaps: int
    """How often a segment changed its active blocks while decoding."""
    bytes_moved: int
    """Bytes that these swaps copied."""


class SlimCache(Cache):
    """KV cache of a model with SlimInfer applied. `get_seq_length` is the number of tokens *seen*, never the kept."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[GrowingLayer() for _ in range(layers)])
        self.stages: list[Stage] = []
        self.prompt = 0
        """Length of the (padded) prompt; 0 before the prefill."""
        self.seen = 0
        self.rope: tuple[Tensor, Tensor] | None = None
        """Cosines and sines of the prompt's positions; only with ``revive="recompute"``."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen: the position of the next token. The same for all layers."""
        return self.seen

    def reorder_cache(self, beam_idx: Int[Tensor, " r"]) -> None:
        """Rows follow their beams: buffers, block tables, masks and saved queries."""
        for part in (*self.layers, *self.stages):
            part.select_rows(beam_idx)

    def batch_select_indices(self, indices: Int[Tensor, " r"]) -> None:
        """Keep only these rows."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times."""
        rows = len(self.stages[0].tokens) if self.stages else 0
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

    def reset(self) -> None:
        """Forget everything, as new."""
        self.__init__(len(self.layers))

    @property
    def report(self) -> Report:
        """What this cache holds now."""
        arenas = [stage.arena for stage in self.stages if stage.arena is not None]
        held = [layer.keys for layer in self.layers if layer.is_initialized]
        return Report(
            seen=self.seen,
            tokens=tuple(tuple(stage.tokens) for stage in self.stages),
            blocks=tuple(tuple(map(tuple, stage.blocks)) for stage in self.stages[1:]),
            layer_tokens=tuple(keys.shape[2] for keys in held),
            kv_bytes=sum(layer.kv_bytes for layer in self.layers),
            host_bytes=sum(arena.host_bytes for arena in arenas) + sum(layer.host_bytes for layer in self.layers),
            swaps=sum(arena.swaps for arena in arenas),
            bytes_moved=sum(arena.bytes_moved for arena in arenas),
        )
