"""`SlimInfer`: drop blocks of prompt tokens from the hidden states of a long-context LLM at a few entry layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

from fewstep.applied import Applied
from fewstep.families import causal_lm, unwrapped
from fewstep.families.attention import capture_queries, wrap_attention
from fewstep.families.kv_cache import ARGUMENT
from fewstep.method import Method
from torch import Tensor
from transformers import DynamicCache

from .cache import CacheReport, SlimCache
from .decoder import SlimDecoder
from .select import BlockScore, Budget, Preset, PresetName, preset_for, spread, surviving_blocks
from .transfer import copier_for


class SlimApplied(Applied):
    """Undo stack of an applied `SlimInfer`, with a report on the newest prompt."""

    decoder: SlimDecoder

    @property
    def report(self) -> CacheReport | None:
        """Tokens and bytes in the cache of the newest prompt; None before the first prompt."""
        return self.decoder.last.report if self.decoder.last is not None else None

    def stats(self) -> dict[str, Any]:
        """Prompt tokens kept by segment (layers before the first entry layer first) and bytes of the KV cache."""
        report = self.report
        if report is None:
            return {}
        fits = {} if report.dropped else {"note": "nothing was dropped: the prompt fits the budget"}
        return fits | {
            "prompt tokens kept, by segment": [rows[0] for rows in report.tokens],
            "KV cache (bytes)": report.kv_bytes,
            "KV cache on the host (bytes)": report.host_bytes,
        }

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run the unchanged model for a while. A cache made inside is an ordinary one, and stays ordinary."""
        self.decoder.thread.paused = True
        try:
            yield
        finally:
            self.decoder.thread.paused = False


@dataclass(frozen=True, kw_only=True)
class SlimInfer(Method):
    """Drop blocks of prompt tokens from the hidden states at a few entry layers (SlimInfer, arXiv:2508.06447).

    Layers before the first entry layer see the whole prompt; from each entry layer on, the model runs on the blocks
    that matter most to the end of the prompt, at their absolute positions. Needs no training. The question must come
    last in the prompt (or be named by `query_span`).

    Raises:
        ValueError: a field is out of range, or the fields do not fit each other.
    """

    name: ClassVar[str] = "slim-infer"
    seams: ClassVar[frozenset[str]] = frozenset({"attention", "hidden-tokens", "kv-cache"})
    renamed: ClassVar[Mapping[str, str]] = {"revive": "decode_from"}

    preset: PresetName = "default"
    """Values of the fields that are None. For SmolLM2-135M ``default`` was chosen on the tuning half of the documents
    and wordings of the task planted-facts, to keep at least 95 % of what the dense model answers, and measured on the
    held-out half: it kept 15 of 15 there. ``fast`` was chosen on one wording over one document: it lost 1 of 16 on the
    tuning half and none of 15 on the other. Llama-3.1-8B and Qwen2.5-7B have the paper's as ``default``, not measured
    by us; other models get a scaled guess."""
    entry: tuple[int, ...] | None = None
    """Entry layers, counted from 0, ascending: the first layer that runs on each segment's tokens. Default: preset."""
    keep: Budget | tuple[Budget, ...] | None = None
    """Budget for each segment: tokens (8192) or share of the prompt (0.25). A single one is halved from entry to entry;
    1.0 keeps everything. Default: preset."""
    block: int | None = None
    """Tokens in a block, the unit of selection. Default: preset."""
    unit: int = 8
    """Tokens in a unit; a block is as relevant as its best unit's mean key. Divides `block`."""
    window: int | None = None
    """Last tokens of the prompt whose mean query asks what is relevant. Default: preset, 4 in the paper."""
    carry: int | None = None
    """Units at the end of a block whose relevance counts for the block behind it too, since a hit announces what comes
    next. Ours; 0, as in the paper, counts none. Default: preset."""
    score: BlockScore | None = None
    """``dot``: product of mean query and mean key, mean over heads; ``abs_dot``: its absolute value, as in notes on the
    paper (chance level on models we tried); ``unit_softmax``: softmax over units in each head first, best for small
    models. Default: preset."""
    sink_blocks: int = 1
    """First blocks that always survive."""
    tail_blocks: int = 1
    """Last blocks that always survive; raise it when the question is longer than a block."""
    query_span: tuple[int, int] | None = None
    """Tokens (start, end) of the prompt that ask, instead of the last `window`; negative counts from the end."""
    decode_keep: Budget | tuple[Budget, ...] | None = None
    """Budget for each segment while decoding, at most `keep`: the rest of the survivors moves to host memory and is
    swapped in block by block. Default: everything that survived the prefill stays."""
    overlap: float = 0.9
    """While decoding, blocks are swapped only when less than this share of the wanted ones is active (gamma)."""
    decode_from: Literal["survivors", "recompute"] = "survivors"
    """Blocks that decoding chooses from: those that survived the prefill, or (``recompute``, experimental, one prompt
    at a time) all that reached the entry layer: dropped ones run through the segment when chosen, from hidden states
    kept on the host. Also lets a second question choose again."""
    offload: bool = False
    """Keep the keys and values of the layers before the first entry layer on the host and stream them in, layer by
    layer, for each decoded token."""

    def __post_init__(self) -> None:
        if self.entry is not None and (
            not self.entry or self.entry[0] < 1 or any(b <= a for a, b in zip(self.entry, self.entry[1:], strict=False))
        ):
            raise ValueError(f"entry={self.entry}: entry layers must be 1 or more and ascending, such as (10, 20, 30)")
        if self.unit < 1 or (self.block is not None and (self.block < 1 or self.block % self.unit)):
            raise ValueError(f"block={self.block}, unit={self.unit}: the unit must divide the block")
        if (self.window is not None and self.window < 1) or self.sink_blocks < 0 or self.tail_blocks < 1:
            raise ValueError("window and tail_blocks must be 1 or more, sink_blocks 0 or more")
        if self.carry is not None and (self.carry < 0 or (self.block and self.carry * self.unit > self.block)):
            raise ValueError(f"carry={self.carry} must be 0 or more units, and no more than a block holds")
        if self.overlap < 0:
            raise ValueError(f"overlap={self.overlap} must be 0 (never swap) or more (above 1: always)")
        self._check_budgets("keep", self.keep)
        self._check_budgets("decode_keep", self.decode_keep)

    def _check_budgets(self, name: str, keep: Budget | tuple[Budget, ...] | None) -> None:
        budgets = keep if isinstance(keep, tuple) else () if keep is None else (keep,)
        least = (self.sink_blocks + self.tail_blocks + 1) * (self.block or self.unit)
        for budget in budgets:
            if isinstance(budget, float) and not 0 < budget <= 1:
                raise ValueError(f"{name}={budget}: a share of the prompt must be in (0, 1]; tokens are whole numbers")
            if isinstance(budget, int) and budget < least:
                raise ValueError(f"{name}={budget} tokens: fewer than sink, tail and one more block need ({least})")
        if any(type(a) is type(b) and b > a for a, b in zip(budgets, budgets[1:], strict=False)):
            raise ValueError(f"{name}={keep}: budgets must not grow from segment to segment")
        if self.entry is not None and isinstance(keep, tuple) and len(keep) != len(self.entry):
            raise ValueError(f"{name}={keep} has {len(keep)} budgets for {len(self.entry)} entry layers")

    def identity(self) -> Self:
        """Everything is kept: the loop runs, nothing is pruned."""
        return replace(self, keep=1.0, decode_keep=None, decode_from="survivors", offload=False)

    def resolve(self, config: Any) -> Self:
        """This method with every field that is None filled in for a model with this transformers configuration.

        Raises:
            ValueError: an entry layer is beyond the model's last one.
        """
        missing = [f.name for f in fields(Preset) if getattr(self, f.name) is None]
        preset = preset_for(config, self.preset, warn=bool({"entry", "keep", "block", "score"} & set(missing)))
        filled = {name: getattr(preset, name) for name in missing}
        if "keep" in filled and len(preset.keep) != len(self.entry or preset.entry):
            filled["keep"] = preset.keep[0]  # other entry layers than the preset's: halved from one to the next
        resolved: Any = replace(self, **filled)
        if resolved.entry[-1] >= config.num_hidden_layers:
            raise ValueError(f"entry={resolved.entry}: the model has only layers 0 to {config.num_hidden_layers - 1}")
        keep, decode_keep = spread(resolved.keep, len(resolved.entry)), resolved.decode_keep
        if decode_keep is None and resolved.decode_from == "recompute":
            decode_keep = keep
        elif decode_keep is not None:
            decode_keep = spread(decode_keep, len(resolved.entry))
        return replace(resolved, keep=keep, decode_keep=decode_keep)

    def apply(self, model: Any) -> SlimApplied:
        """Change a loaded transformers model; ``model.generate`` then needs no further argument.

        Raises:
            UnsupportedModelError: the model is no causal LM of Llama-like layers with full attention.
            SeamConflictError: another method is applied to it.
            ValueError: an entry layer is beyond the model's last one.
        """
        model = unwrapped(model)
        causal_lm.check(model)
        return install(model, self, self.resolve(model.config))


def install(
    model: Any, owner: Method, settings: SlimInfer, choose: Callable[..., Tensor] = surviving_blocks
) -> SlimApplied:
    """Put a pruning decoder into a checked model, on behalf of `owner`; see `SlimDecoder` for the others.

    Raises:
        SeamConflictError: another method is applied to the model.
        UnsupportedModelError: its attention is outside the interface of transformers.
    """
    with SlimApplied() as undo:
        undo.occupy(model, owner)
        wrap_attention(undo, model, "capture", capture_queries)
        slim = SlimDecoder(model.model, settings, copier_for(model.device), choose)
        undo.set(model.model, "forward", slim)
        prepare = partial(_prepare_cache, slim, model._prepare_cache_for_generation)
        undo.set(model, "_prepare_cache_for_generation", prepare)
        undo.callback(model.register_forward_pre_hook(partial(_before_forward, slim), with_kwargs=True).remove)
        applied = undo.pop_all()
        applied.decoder = slim
        return applied


def _prepare_cache(slim: SlimDecoder, stock: Any, generation_config: Any, model_kwargs: dict, *args, **kwargs) -> Any:
    """Give ``generate`` a `SlimCache` where it would make a `DynamicCache`."""
    if slim.thread.paused:
        return stock(generation_config, model_kwargs, *args, **kwargs)
    if generation_config.prefill_chunk_size is not None:
        raise ValueError("prefill_chunk_size: SlimInfer must see the end of the prompt first; leave it out")
    if generation_config.cache_implementation not in (None, "dynamic"):
        raise ValueError(
            f"cache_implementation={generation_config.cache_implementation!r}: SlimInfer has its own cache"
        )
    given = model_kwargs.get(ARGUMENT)
    result = stock(generation_config, model_kwargs, *args, **kwargs)
    if given is None and isinstance(model_kwargs.get(ARGUMENT), DynamicCache):
        model_kwargs[ARGUMENT] = SlimCache(len(slim.layers))
    return result


def _before_forward(slim: SlimDecoder, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Note the logits that the causal LM is asked for, before its decoder runs."""
    if kwargs.get("labels") is not None and not slim.thread.paused:
        raise ValueError("labels= needs logits of every row, and pruned rows have none; remove SlimInfer for training")
    wanted = kwargs.get("logits_to_keep", 0)
    slim.thread.scored = max(wanted - 1, 0) if isinstance(wanted, int) else 0
