"""Focus-dLLM's decoder: which rows a step computes, predicted by the confidences of the step before."""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from .arena import Arena
from .attend import Cached, Plan, padded
from .decoder import Caching
from .focused import Focused, Lookup, Pruning, Refresh
from .select import budget, widen
from .state import Answers, State
from .unmask import surest


class Focus(Caching):
    """Focus-dLLM (arXiv 2602.02159): refresh at each block, then only active rows against a pruned prompt."""

    def __init__(self, model: Any, state: State, pruning: Pruning) -> None:
        super().__init__(model, state)
        self.pruning = pruning
        self.lookup = Lookup(self.cache, state, pruning)
        self.arenas = [self._arena(pad) for pad in self.lookup.pad]
        self.last: dict[int, Focused] = {}
        self.boost = 1
        self.since = 0

    def _arena(self, pad: int) -> Arena:
        size, prompt = self.pruning.block, self.state.prompt - pad
        blocks = budget(prompt, size, self.pruning.keep, self.pruning.floor)
        rest = pad + prompt // size * size
        sinks = min(self.pruning.sinks, prompt)
        return Arena(self.cache, block=size, blocks=blocks, sinks=sinks, start=pad, rest=rest)

    def everything(self, plan: Plan | None) -> Answers:
        for arena in self.arenas:
            arena.forget()
        return super().everything(plan)

    def first(self) -> Answers:
        self.boost, self.since = 1, 0
        number = (self.state.block.start - self.state.prompt) // self.state.decoding.block_length
        if number % self.pruning.full_every and self.last:
            return self._partial()
        return self.everything(Refresh(self.cache, self.allowed, self.lookup))

    def next(self) -> Answers:
        self.since += 1
        if self.pruning.refresh_every and self.since % self.pruning.refresh_every == 0:
            return self.everything(Refresh(self.cache, self.allowed, self.lookup))
        focus, active = self._active()
        positions = padded([row.nonzero()[:, 0] for row in active], fill=self.state.length - self.start) + self.start
        wanted = self._everywhere(active) if self.shift else None  # without a shift, rows are about themselves
        if self.since <= self.pruning.delay_sparse:
            self.count(positions, self.state.length)
            return self.some(positions, Cached(self.cache, self.allowed, positions), wanted)
        inside = (positions - self.start).clamp(max=focus.shape[1] - 1)
        asking = focus.gather(1, inside) & (positions < self.state.length)
        plan = Focused(self.lookup, self.arenas, self.allowed, positions, asking, self.state, self.end())
        found = self.some(positions, plan, wanted)
        # a sequence that waits for the others asks for nothing: what it read when it last did, counts
        self.last |= {row: plan for row, asking in enumerate(plan.focus) if len(asking)}
        read, dense = plan.read(), self.pruning.last_dense + 1
        self.count(positions, (dense * self.state.length + sum(read)) / (dense + len(read)))
        if read:
            self.state.stats.kept.append(sum(read) / len(read) - (plan.end - self.state.prompt))
        return found

    def _active(self) -> tuple[Bool[Tensor, "b w"], Bool[Tensor, "b w"]]:
        """Focus and active positions, as masks over the block and the window around it, which begins at `start`.

        In focus are the ``kf`` masked positions with the highest confidence of the step before.
        """
        state, pruning = self.state, self.pruning
        reach = state.length if pruning.window is None else pruning.window // 2
        self.start, end = max(0, state.block.start - reach), min(state.length, state.block.end + reach)
        wanted = [self.boost * max(pruning.min_focus, ceil(pruning.focus_ratio * int(n))) for n in state.counts()]
        masked, self.past = state.masked(), state.confidence
        self.predicted = surest(state.confidence, masked, torch.tensor(wanted, device=masked.device))
        focus = masked.new_zeros(len(masked), end - self.start)
        focus[:, state.block.start - self.start : state.block.end - self.start] = self.predicted
        active = widen(focus, pruning.window)
        return focus, active if self.allowed is None else active & self.allowed[:, self.start : end]

    def _everywhere(self, active: Bool[Tensor, "b w"]) -> Bool[Tensor, "b n"]:
        """The same mask over all positions."""
        found = active.new_zeros(self.state.tokens.shape)
        found[:, self.start : self.start + active.shape[1]] = active
        return found

    def settled(self, unmasked: Bool[Tensor, "b l"]) -> None:
        if self.since == 0:
            return
        state = self.state
        state.stats.unmasked += int(unmasked.sum())
        state.stats.predicted += int((unmasked & self.predicted).sum())
        if self.pruning.guard and unmasked.any():
            fell = state.confidence[unmasked] < self.pruning.guard * self.past[unmasked]
            self.boost = 2 * self.boost if fell.any() else 1

    def end(self) -> int:
        """Position behind the last one that sparse layers read: of all, or with a suffix window of those near."""
        state, suffix = self.state, self.pruning.suffix
        return state.length if suffix is None else min(state.length, state.block.end + suffix)

    def _partial(self) -> Answers:
        """Ours: renew the response, the token before it, and the prompt that most sparse layers read last."""
        state = self.state
        chosen = torch.zeros(len(state.tokens), state.length, dtype=torch.bool, device=state.tokens.device)
        for row, arena in enumerate(self.arenas):
            if row in self.last:
                chosen[row, self.last[row].most_read(row, arena)] = True
            else:
                chosen[row, state.pad[row] :] = True  # that one has not asked for anything yet
        chosen[:, state.prompt - 1 : state.length] = True
        rows = padded([row.nonzero()[:, 0] for row in chosen], fill=state.length)
        state.stats.partial_rows.append(rows.shape[1])
        found = self.some(rows, Cached(self.cache, self.allowed, rows))
        for arena in self.arenas:
            arena.forget()
        for layer in range(self.pruning.last_dense + 1, self.model.config.num_hidden_layers):
            self.lookup.renew(layer)
        return found
