"""`FocusDLLM`: decode with a masked diffusion LM, computing only positions that are about to be unmasked."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

from fewstep.applied import Applied
from fewstep.families import masked_lm
from fewstep.families.attention import wrap_attention
from fewstep.method import Method

from .attend import planned
from .decoder import Caching, Decoder
from .focus import Focus
from .focused import Pruning
from .generation import Output, generate
from .select import Aggregate
from .state import State

SEAMS = frozenset({"attention", "generation", "kv-cache"})
LONG = 8192
"""Tokens of a prompt from which on prompt blocks are 64 tokens instead of 32."""


class DecodingMethod(Method):
    """What the methods of this package share: ``model.generate`` decodes with the decoder that they make."""

    seams: ClassVar[frozenset[str]] = SEAMS
    cached: ClassVar[bool] = True
    """False where every step computes everything, so that a few steps tell what all of them take."""

    @abstractmethod
    def decoder(self, model: Any, state: State) -> Decoder:
        """The decoder of one call."""

    def apply(self, model: Any) -> Applied:
        """Let ``model.generate`` decode by diffusion, as `fewstep_focus_dllm.generate` does; same arguments."""
        masked_lm.check(model)
        with Applied() as undo:
            undo.occupy(model, self)
            wrap_attention(undo, model, "dllm", planned)
            undo.set(model, "generate", partial(generate, model, make=self.decoder))
            return undo.pop_all()


def generation(model: Any) -> partial[Output]:
    """How `model` decodes now: by the method applied to it, else vanilla."""
    own = getattr(model, "generate", None)  # stock models have one too, which decodes left to right
    return own if isinstance(own, partial) and own.func is generate else partial(generate, model)


def keeps_cache(model: Any) -> bool:
    """Whether `model` decodes with a cache now."""
    make = generation(model).keywords.get("make")
    return make is not None and make.__self__.cached


@dataclass(frozen=True, kw_only=True)
class FocusDLLM(DecodingMethod):
    """Decode only where confidence says that a token is about to come (Focus-dLLM, arXiv:2602.02159).

    A full pass at the first step of each block; after it only the masked positions that were surest at the step before,
    and their neighbours, are computed, and deep layers read a pruned prompt: the blocks these positions ask for, the
    attention sinks and the whole response. Needs no training. The paper does not print its settings: the defaults are
    ours, and every one of them is a field.

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
    """Fewest focus positions of a step; 4 held 99 % of the next tokens in the card's probe (kf_min)."""
    focus_ratio: float = 2.0
    """Focus positions for each token that the step unmasks (alpha)."""
    last_dense: int | None = None
    """Index of the last layer that reads the whole prompt (ell); sinks are found there. Default: a quarter of the
    layers."""
    sinks: int = 64
    """Attention sinks of the prompt that sparse layers always read."""
    aggregate: Aggregate = "softmax"
    """How focus rows vote for blocks: ``softmax`` over blocks in each head first, plain ``mean``, ``max`` of rows."""
    units: bool = False
    """Look a block up by the best of its 8-token units instead of its mean key; fights dilution in large blocks."""
    threshold_guard: float = 0.0
    """Twice as many focus positions after a step whose tokens were less sure than this share of what was predicted; 0
    never."""
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
        if self.window is not None and (self.window < 1 or self.window % 2 == 0):
            raise ValueError(f"window={self.window} must be odd and at least 1, or None for everything")
        for name, least in (("prompt_block", 1), ("last_dense", 0), ("suffix", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        for name in ("min_focus", "full_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("keep_floor", "focus_ratio", "sinks", "threshold_guard", "delay_sparse", "refresh_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more")

    def identity(self) -> Self:
        """Everything is computed and read: the tokens of vanilla decoding."""
        return replace(self, window=None, keep=1.0, suffix=None, min_prompt=0, full_every=1)

    def resolve(self, config: Any, prompt: int) -> Pruning:
        """The hyper-parameters with every default filled in for a model and a prompt of so many tokens.

        Raises:
            ValueError: `last_dense` is not a layer of the model, or a Dream model with a window of 1.
        """
        layers = config.num_hidden_layers
        last = max(0, round(0.25 * layers) - 1) if self.last_dense is None else self.last_dense
        if last >= layers:
            raise ValueError(f"last_dense={last}: the model has only layers 0 to {layers - 1}")
        if config.diffusion == "dream" and self.window == 1:
            raise ValueError("window=1: Dream's logits come from the position before, so the window must be 3 or more")
        return Pruning(
            window=self.window,
            last_dense=last,
            sinks=self.sinks,
            block=self.prompt_block or (64 if prompt >= LONG else 32),
            keep=self.keep,
            floor=self.keep_floor,
            min_focus=self.min_focus,
            focus_ratio=self.focus_ratio,
            aggregate=self.aggregate,
            unit=self.units,
            guard=self.threshold_guard,
            delay_sparse=self.delay_sparse,
            refresh_every=self.refresh_every,
            suffix=self.suffix,
            full_every=self.full_every,
        )

    @classmethod
    def fit(cls, model: Any, data: Any, **options: Any) -> FocusDLLM:
        """Propose `last_dense` and `min_focus` for a model; see `fewstep_focus_dllm.fit.fit`."""
        from .fit import fit

        return fit(model, data, **options)

    def decoder(self, model: Any, state: State) -> Decoder:
        if state.prompt < self.min_prompt:
            return Caching(model, state)
        return Focus(model, state, self.resolve(model.config, state.prompt))

    def apply(self, model: Any) -> Applied:
        """Let ``model.generate`` decode by diffusion, as `fewstep_focus_dllm.generate` does; same arguments."""
        masked_lm.check(model)
        self.resolve(model.config, LONG)
        return super().apply(model)
