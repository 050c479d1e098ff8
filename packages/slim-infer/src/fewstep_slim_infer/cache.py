"""A transformers `Cache` whose layers hold different numbers of tokens, in buffers with room to grow."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer
from transformers.models.llama.modeling_llama import LlamaAttention

from .arena import Arena

NAME = "cache" if "cache" in inspect.signature(LlamaAttention.forward).parameters else "past_key_values"
"""What the installed transformers calls a cache in arguments and outputs: ``cache`` from 5.24 on."""
_FIRST_ROOM = 64


class GrowingLayer(DynamicLayer):
    """Keys and values ``[rows, kv heads, tokens, dim]`` as views of a buffer whose spare room doubles when it is full.

    `DynamicLayer` concatenates, and so copies the whole prompt for every generated token.
    """

    def __init__(self) -> None:
        super().__init__()
        self._room = _FIRST_ROOM
        self.arena: Arena | None = None

    def lazy_initialization(self, key_states: Float[Tensor, "r g n d"], value_states: Float[Tensor, "r g n d"]) -> None:
        """Also note what transformers from 5.24 on no longer does."""
        super().lazy_initialization(key_states, value_states)
        self.dtype, self.device = key_states.dtype, key_states.device

    def update(
        self, key_states: Float[Tensor, "r g n d"], value_states: Float[Tensor, "r g n d"], *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Append and return everything cached; waits for a swap of this layer that is still being copied."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.replace(key_states, value_states)
        else:
            if self.arena is not None:
                self.arena.wait(self)
            start, stop = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
            if stop > self._buffers[0].shape[2]:
                self._room = max(2 * self._room, key_states.shape[2])
                self.replace(self.keys, self.values)
            for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
                buffer[:, :, start:stop] = states
            self._show(stop)
        return self.keys, self.values

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Hold exactly these, with room for more."""
        length = keys.shape[2]
        shape = (*keys.shape[:2], length + self._room, keys.shape[3])
        self._buffers = tuple(torch.empty(shape, dtype=keys.dtype, device=keys.device) for _ in range(2))
        for buffer, states in zip(self._buffers, (keys, values), strict=True):
            buffer[:, :, :length] = states
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    @property
    def kv_bytes(self) -> int:
        """Bytes of its tokens where the model runs."""
        return 2 * self.keys.numel() * self.keys.element_size() if self.is_initialized else 0

    @property
    def host_bytes(self) -> int:
        """Bytes of its tokens on the host, beside those of an arena."""
        return 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens."""
        self._show(self.keys.shape[2] + tokens_to_remove)

    def select_rows(self, rows: Int[Tensor, " r"]) -> None:
        """Keep these rows of the batch, in this order; a row may come several times."""
        if self.is_initialized:
            rows = rows.to(self.keys.device)
            self.replace(self.keys.index_select(0, rows), self.values.index_select(0, rows))

    def reset(self) -> None:
        """Forget everything."""
        self.__init__()


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
