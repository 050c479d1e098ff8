"""Mixtures of experts in transformers models: find them, run them on kept pairs alone, count pairs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import UnsupportedModelError
from ..kernels.expert_mlp import expert_mlp

if TYPE_CHECKING:
    from torch import Tensor, nn

Result = TypeVar("Result", bound=Sequence[Any])
IMPLEMENTATION = "fewstep"
"""Name of `run` among transformers' implementations of experts."""
MANY_TOKENS = ("eager", "grouped_mm")
"""Those of transformers that can be the fastest for a prompt; ``batched_mm`` copies an expert for each token."""


@dataclass(frozen=True, eq=False)
class MoeSite:
    """One layer with routed experts. Its router returns ``(logits, weights [T, k], indices [T, k])``."""

    layer: int
    """Number of its decoder layer."""
    block: nn.Module
    """The feed-forward module of that layer: router, experts and, in some models, shared experts."""
    router: nn.Module
    experts: nn.Module
    """Called with hidden states ``[T, h]``, indices and weights; index ``E`` marks a skipped pair."""
    count: int
    """Number E of routed experts."""
    top_k: int
    """Number k of experts that the router chooses for each token."""
    shared: bool
    """True where the block has shared experts too, which every token takes."""


def sites(model: nn.Module) -> list[MoeSite]:
    """List the layers of `model` that have a router (``gate`` or ``router``) and stacked ``experts``, in order.

    Recognised by these attributes, whatever the class: Qwen3-MoE, Qwen3-VL-MoE, OLMoE, Mixtral, DeepSeek-V3, gpt-oss
    and the models built on them.

    Raises:
        UnsupportedModelError: there is none.
    """
    if not (listed := _sites(model)):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no layer with routed experts that is known here: a module with `experts` (all "
            "of one layer in stacked weights, as in transformers 5) and a `gate` or `router` that returns logits, "
            "weights and indices"
        )
    return listed


def _sites(model: Any) -> list[MoeSite]:
    if not hasattr(model, "named_modules"):  # a pipeline
        return []
    return [site for name, block in model.named_modules() if (site := _site(name, block))]


def _site(name: str, block: Any) -> MoeSite | None:
    experts: Any = _plain(getattr(block, "experts", None))
    router: Any = getattr(block, "gate", getattr(block, "router", None))
    if not hasattr(experts, "num_experts") or not hasattr(_plain(router), "top_k"):
        return None
    layer = int((re.findall(r"\.(\d+)\.", f".{name}.") or ["0"])[-1])
    shared = any(hasattr(block, attribute) for attribute in ("shared_experts", "shared_expert"))
    return MoeSite(layer, block, router, experts, experts.num_experts, _plain(router).top_k, shared)


def _plain(module: Any) -> Any:
    """Return the module of the model inside wrappers of PEFT, which add to its weights while it runs."""
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return module


def install(undo: ExitStack, model: Any, *, pack: bool = False) -> None:
    """Let the experts of `model` run by `run`, until undone.

    Args:
        undo: gets what restores the implementation that was set before.
        model: a transformers model.
        pack: keep a second copy of the experts' weights in oneDNN's own layout: faster on a CPU, twice the memory.

    Raises:
        UnsupportedModelError: its experts have no exchangeable implementation.
        ValueError: packing is asked for where it cannot be had.
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if not hasattr(model, "set_experts_implementation"):
        raise UnsupportedModelError(f"{type(model).__name__} is no transformers model with exchangeable experts")
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, run)
    undo.callback(model.set_experts_implementation, model.get_experts_implementation())
    model.set_experts_implementation(IMPLEMENTATION)
    for site in sites(model):
        if pack and plain_swiglu(site.experts):
            from ..kernels.expert_mlp.cpu import pack as packed

            experts: Any = site.experts
            made = packed(experts.gate_up_proj, experts.down_proj)
            undo.callback(delattr, experts, "_fewstep_packed")
            experts._fewstep_packed = made


def fastest(model: Any, call: Callable[[], Result], names: Sequence[str] = MANY_TOKENS) -> Result:
    """Call once with each implementation of experts in `names`; return the result of the fastest.

    A benchmark's unchanged model should be as fast as transformers can make it. Where `run` is installed, as by a
    method under test, and where a model has no experts, `call` is made once.

    Args:
        model: a transformers model; its own implementation is set again afterwards.
        call: runs the model; the last item of its result is the time in seconds.
        names: implementations that transformers has.
    """
    if not _sites(model):
        return call()
    choice = model.get_experts_implementation()
    if IMPLEMENTATION in (choice.values() if isinstance(choice, dict) else (choice,)):
        return call()
    results = []
    try:
        for name in names:
            model.set_experts_implementation(name)
            results.append(call())
    finally:
        model.set_experts_implementation(choice)
    return min(results, key=lambda result: result[-1])


def run(experts: Any, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Run experts of any layout on the kept pairs; plain SwiGLU ones by the kernel `expert_mlp`.

    The kernel has no gradient: while gradients are recorded, the slower loop over experts runs.

    Args:
        experts: a module of stacked experts, as transformers has them.
        hidden: tokens ``[T, h]``.
        index: experts of each token ``[T, k]``; ``E`` marks a pair that is skipped.
        weight: routing weights ``[T, k]``.

    Returns:
        ``[T, h]``; 0 for a token whose pairs are all skipped.
    """
    import torch

    trained = (hidden, weight, *experts.parameters())
    records = torch.is_grad_enabled() and any(part.requires_grad for part in trained)
    if plain_swiglu(experts) and not records:
        packed = vars(experts).get("_fewstep_packed")
        return expert_mlp(hidden, index, weight, experts.gate_up_proj, experts.down_proj, packed=packed)
    return _any_layout(experts, hidden, index, weight)


def plain_swiglu(experts: Any) -> bool:
    """Tell if ``W_down (silu(W_gate x) * W_up x)`` with stacked ``[2 f, h]`` weights is all that these experts do."""
    kind, act = type(experts), getattr(experts, "act_fn", None)
    own_gate = getattr(kind._apply_gate, "__module__", "") != "transformers.integrations.moe"
    extra = ("has_bias", "is_transposed", "has_post_expert_norm")
    if any(getattr(experts, name, False) for name in extra) or own_gate:
        return False
    return experts.has_gate and experts.is_concatenated and type(act).__name__ in ("SiLU", "SiLUActivation")


def _any_layout(experts: Any, hidden: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Loop over experts, with biases, transposed weights and gates as the module has them."""
    import torch

    out = torch.zeros_like(hidden)
    for number in index.unique().tolist():
        if number == experts.num_experts:
            continue
        token, place = torch.where(index == number)
        inner = _linear(experts, hidden[token], "gate_up_proj" if experts.has_gate else "up_proj", number)
        inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
        made = _linear(experts, inner, "down_proj", number)
        if experts.has_post_expert_norm:
            made = experts.post_expert_norm(made)
        out = out.index_add(0, token, (made * weight[token, place, None]).to(out.dtype))
    return out


def _linear(experts: Any, rows: Tensor, name: str, number: int) -> Tensor:
    matrix = getattr(experts, name)[number]
    made = rows @ (matrix if experts.is_transposed else matrix.T)
    return made + getattr(experts, f"{name}_bias")[number] if experts.has_bias else made


@dataclass
class Pairs:
    """Numbers of pairs of token and expert that were run while counted, by layer and group of tokens."""

    counts: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """``[kept, all]`` by layer and group."""

    def skipped(self, *, layer: int | None = None, group: int | None = None) -> float:
        """Share of skipped pairs in [0, 1]: of everything, one layer, one group of tokens, or both; 0 without pairs."""
        some = [n for (at, of), n in self.counts.items() if layer in (None, at) and group in (None, of)]
        kept, every = (sum(column) for column in zip(*some, strict=True)) if some else (0, 0)
        return 1 - kept / every if every else 0.0


@contextmanager
def counted(model: nn.Module, groups: Tensor | None = None) -> Iterator[Pairs]:
    """Count the pairs that reach the experts, kept and skipped.

    Args:
        model: one with routed experts; for others nothing is counted.
        groups: a number for each token of the calls inside, flattened; None counts all as group 0.
    """
    pairs, hooks = Pairs(), []
    try:
        for site in _sites(model):
            hooks.append(site.experts.register_forward_pre_hook(_counter(pairs, site, groups)))
        yield pairs
    finally:
        for hook in hooks:
            hook.remove()


def _counter(pairs: Pairs, site: MoeSite, groups: Tensor | None) -> Any:
    def count(_: Any, args: tuple) -> None:
        index = args[1]
        for group in [0] if groups is None else groups.unique().tolist():
            some = index if groups is None else index[groups.reshape(-1) == group]
            entry = pairs.counts.setdefault((site.layer, group), [0, 0])
            entry[0] += int((some < site.count).sum())
            entry[1] += some.numel()

    return count
