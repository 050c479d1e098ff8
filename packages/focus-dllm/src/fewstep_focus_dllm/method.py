"""`FocusDLLM`: decode with a masked diffusion LM, computing only positions that are about to be unmasked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Any, ClassVar, Self

import torch
from fewstep.errors import check_least
from fewstep.families import masked_lm
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional as F

from .decoders import CachedDecoder, TokenDecoder, padded
from .decoding import BlockLogits, State
from .generation import DecodingMethod
from .selection import Aggregate, kept_blocks, top_confidence, widen
from .sparse import PrunedPrompt, SparseAttention

LONG = 8192
"""Tokens of a prompt from which on prompt blocks are 64 tokens instead of 32."""


@dataclass(frozen=True, kw_only=True)
class FocusDLLM(DecodingMethod):
    """Decode only where confidence says that a token is about to come (Focus-dLLM, arXiv:2602.02159).

    A full pass at the first step of each block; after it only the masked positions with the highest confidence of the
    step before, and their neighbours, are computed, and deep layers read a pruned prompt: the blocks these positions
    ask for, the attention sinks and the whole response. Needs no training. The paper does not print its settings: the
    defaults are ours, and every one of them is a field.

    Raises:
        ValueError: a field is out of range.
    """

    name: ClassVar[str] = "focus-dllm"

    keep: float = 0.1
    """Share of the prompt's blocks that sparse layers read (rho)."""
    keep_floor: int = 1024
    """Fewest prompt tokens that they read."""
    prompt_block: int | None = None
    """Tokens of a prompt block (Bp). Default: 64, and 32 for prompts below 8192 tokens."""
    window: int | None = 3
    """Positions around each focus position that are computed with it (W, odd); None computes everything."""
    min_focus: int = 4
    """Fewest focus positions of a step (kf_min)."""
    focus_ratio: float = 2.0
    """Focus positions for each token that the step unmasks (alpha)."""
    last_dense: int | None = None
    """Index of the last layer that reads the whole prompt (ell); sinks are found there. Default: a quarter of the
    layers."""
    sinks: int = 64
    """Attention sinks of the prompt that sparse layers always read."""
    aggregate: Aggregate = "softmax"
    """Vote of focus rows for blocks: ``softmax`` over blocks in each head first, plain ``mean``, ``max`` of rows."""
    units: bool = False
    """Look a block up by the best of its 8-token units instead of its mean key; fights dilution in large blocks."""
    threshold_guard: float = 0.0
    """Twice as many focus positions after a step whose tokens had less confidence than this share of what was
    predicted; 0 never."""
    delay_sparse: int = 0
    """Steps after a refresh that still read the whole prompt."""
    refresh_every: int = 0
    """Also compute everything anew each so many steps inside a block; 0 only at block borders."""
    suffix: int | None = None
    """Response tokens behind the block that sparse layers read; default: all."""
    min_prompt: int = 0
    """Prompts shorter than this are decoded with Fast-dLLM's dual cache, whose steps cost less there."""
    full_every: int = 1
    """Ours, not the paper's: a full pass only at each so many blocks. At the other borders the response is renewed, and
    of the prompt the sinks and the blocks that most sparse layers read last."""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep}: a share of the prompt must be in (0, 1]")
        if self.window is not None and self.window % 2 == 0:
            raise ValueError(f"window={self.window} must be odd, or None for everything")
        least = {"window": 1, "prompt_block": 1, "last_dense": 0, "suffix": 0, "min_focus": 1, "full_every": 1}
        least |= {"keep_floor": 0, "focus_ratio": 0, "sinks": 0, "threshold_guard": 0, "delay_sparse": 0}
        check_least(self, **least, refresh_every=0, min_prompt=0)

    def identity(self) -> Self:
        """Everything is computed and read: the tokens of vanilla decoding."""
        return replace(self, window=None, keep=1.0, suffix=None, min_prompt=0, full_every=1)

    def block_size(self, prompt: int) -> int:
        """Tokens of a block of a prompt of so many tokens."""
        return self.prompt_block or (64 if prompt >= LONG else 32)

    def last_dense_layer(self, layers: int) -> int:
        """Index of the last dense layer of a model of so many layers.

        Raises:
            ValueError: `last_dense` is not one of them.
        """
        last = max(0, round(0.25 * layers) - 1) if self.last_dense is None else self.last_dense
        if last >= layers:
            raise ValueError(f"last_dense={last}: the model has only layers 0 to {layers - 1}")
        return last

    def check(self, config: Any) -> None:
        """Refuse models that the fields do not fit.

        Raises:
            ValueError: `last_dense` is not a layer of the model, or a Dream model with a window of 1.
        """
        self.last_dense_layer(config.num_hidden_layers)
        if masked_lm.logit_shift(config) and self.window == 1:
            raise ValueError("window=1: Dream's logits come from the position before, so the window must be 3 or more")

    def decoder(self, model: Any, state: State) -> TokenDecoder:
        short = state.prompt < self.min_prompt
        return CachedDecoder(model, state) if short else FocusDecoder(model, state, self)


class FocusDecoder(CachedDecoder):
    """Decoder of `FocusDLLM`: a refresh at each block, then only active positions against a pruned prompt."""

    def __init__(self, model: Any, state: State, settings: FocusDLLM) -> None:
        super().__init__(model, state)
        self.settings, layers = settings, model.config.num_hidden_layers
        self.last_dense = settings.last_dense_layer(layers)
        self.sparse_layers = range(self.last_dense + 1, layers)
        self.prompts = [self._pruned_prompt(row, pad) for row, pad in enumerate(state.pad.tolist())]
        self.plans: dict[int, SparseAttention] = {}  # by sequence, the last one in which it had a focus
        self.boost, self.since = 1, 0

    def _pruned_prompt(self, row: int, pad: int) -> PrunedPrompt:
        settings, prompt = self.settings, self.state.prompt - pad
        block = settings.block_size(self.state.prompt)
        return PrunedPrompt(
            cache=self.cache,
            row=row,
            start=pad,
            end=self.state.prompt,
            block=block,
            blocks=kept_blocks(prompt, block, settings.keep, settings.keep_floor),
            sinks=min(settings.sinks, prompt),
            aggregate=settings.aggregate,
            units=settings.units,
        )

    def first_step(self) -> BlockLogits:
        self.boost, self.since = 1, 0
        number = (self.state.block.start - self.state.prompt) // self.state.decoding.block_length
        return self._refresh(partial=bool(number % self.settings.full_every and self.plans))

    def later_step(self) -> BlockLogits:
        self.since += 1
        if self.settings.refresh_every and self.since % self.settings.refresh_every == 0:
            return self._refresh()
        state, suffix, (focus, active) = self.state, self.settings.suffix, self._active()
        rows = padded([row.nonzero()[:, 0] for row in active], fill=state.length)
        wanted = active if self.shift else None  # without a shift, rows are about themselves
        if self.since <= self.settings.delay_sparse:
            self.count(rows, state.length)
            return self.partial_pass(rows, self.plan(rows), wanted)
        in_focus = focus.gather(1, rows.clamp(max=state.length - 1)) & (rows < state.length)
        end = state.length if suffix is None else min(state.length, state.block.end + suffix)
        plan = SparseAttention(self.cache, self.allowed, rows, in_focus, self.prompts, self.last_dense, end)
        logits = self.partial_pass(rows, plan, wanted)
        # a sequence that waits for the others has no focus: what it read when it last had one counts
        self.plans |= {row: plan for row, focus in enumerate(plan.focus) if len(focus)}
        read, dense = [int(keys) for keys in plan.keys_read], self.last_dense + 1
        self.count(rows, (dense * state.length + sum(read)) / (dense + len(read)))
        if read:
            state.stats.kept.append(sum(read) / len(read) - (end - state.prompt))
        return logits

    def _active(self) -> tuple[Bool[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """Focus and active positions.

        In focus are the masked positions with the highest confidence of the step before; their number is ours:

            kf = max(kf_min, ceil(alpha n_t))
        """
        state, settings = self.state, self.settings
        counts = [self.boost * max(settings.min_focus, ceil(settings.focus_ratio * int(n))) for n in state.counts()]
        masked, self.past = state.masked(), state.confidence
        self.predicted = top_confidence(state.confidence, masked, torch.tensor(counts, device=masked.device))
        focus = F.pad(self.predicted, (state.block.start, state.length - state.block.end))
        active = widen(focus, settings.window)
        return focus, active if self.allowed is None else active & self.allowed

    def after_step(self, unmasked: Bool[Tensor, "b l"]) -> None:
        if self.since == 0:
            return
        state, guard = self.state, self.settings.threshold_guard
        state.stats.unmasked += int(unmasked.sum())
        state.stats.predicted += int((unmasked & self.predicted).sum())
        if guard and unmasked.any():
            fell = state.confidence[unmasked] < guard * self.past[unmasked]
            self.boost = 2 * self.boost if fell.any() else 1

    def _refresh(self, *, partial: bool = False) -> BlockLogits:
        logits = self._response_pass() if partial else self.full_pass(self.plan())
        for prompt in self.prompts:
            prompt.renew(self.sparse_layers)
        return logits

    def _response_pass(self) -> BlockLogits:
        """Compute the response, the token before it, and the prompt that most sparse layers read last; ours."""
        state = self.state
        chosen = torch.zeros_like(state.tokens, dtype=torch.bool)
        for row, prompt in enumerate(self.prompts):
            if row in self.plans:
                chosen[row, self.plans[row].most_read(row)] = True
            else:
                chosen[row, prompt.start :] = True  # that one has not had a focus yet
        chosen[:, state.prompt - 1 : state.length] = True
        rows = padded([row.nonzero()[:, 0] for row in chosen], fill=state.length)
        state.stats.partial_rows.append(rows.shape[1])
        return self.partial_pass(rows, self.plan(rows))
