"""Modalities of layers that run once more in the backward pass, when a model is trained with gradient checkpointing."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fewstep.errors import FewstepError
from fewstep.families.moe import MoeSite
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

EMBEDDINGS = "position_embeddings"
"""Argument of attention that is made once for each forward pass, and given again when a layer is run again."""


class Replays:
    """The modalities of forward passes, found again by their rotary embeddings: a replay knows nothing else of them.

    The replay may be on a thread of autograd; there is nothing to tidy up, since a pass is forgotten with its
    embeddings.
    """

    def __init__(self) -> None:
        self.known = WeakTensorKeyDictionary()
        self.now: dict[int, Tensor | None] = {}
        self.removed = False

    def register(self, model: Any, sites: Sequence[MoeSite], passing: Callable[[], Tensor | None]) -> list[Any]:
        """Hook the attention of layers with experts, and the model's output.

        Args:
            model: a transformers model.
            sites: its layers with experts.
            passing: modalities of the forward pass that this thread is in; None in a replay.
        """

        def attention(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if module.training:
                self._see(kwargs.get(EMBEDDINGS), passing())

        layers = _layers(model, sites)

        def guard(module: nn.Module, args: tuple, output: Any) -> None:
            if module.training and any(layer.gradient_checkpointing for layer in layers):
                self._watch(output)

        handles = [
            child.register_forward_pre_hook(attention, with_kwargs=True)
            for layer in layers
            for child in layer.children()
            if EMBEDDINGS in inspect.signature(child.forward).parameters
        ]
        return [*handles, model.register_forward_hook(guard), _Removal(self)]

    def current(self) -> Tensor | None:
        """Return the modalities of the pass of which this thread runs a layer again."""
        return self.now.get(threading.get_ident())

    @torch.compiler.disable
    def _see(self, embeddings: Any, kind: Tensor | None) -> None:
        first = embeddings[0] if isinstance(embeddings, tuple | list) else embeddings
        if not isinstance(first, Tensor):
            return
        if kind is not None:
            self.known[first] = kind
        else:
            self.now[threading.get_ident()] = self.known.get(first)

    @torch.compiler.disable
    def _watch(self, output: Any) -> None:
        parts = output.values() if hasattr(output, "values") else output if isinstance(output, tuple) else (output,)
        for part in parts:
            if isinstance(part, Tensor) and part.requires_grad:
                part.register_hook(self._check)

    def _check(self, gradient: Tensor) -> None:
        if self.removed:
            raise FewstepError(
                "experts were skipped in a forward pass with gradient checkpointing, and no longer are: call "
                "backward() before the method is removed, or layers run again with all their experts"
            )


class _Removal:
    """A handle among those of hooks, which notes that they are gone."""

    def __init__(self, replays: Replays) -> None:
        self.replays = replays

    def remove(self) -> None:
        self.replays.removed = True


def _layers(model: nn.Module, sites: Sequence[MoeSite]) -> list[Any]:
    """List the layers with experts that can be checkpointed."""
    blocks = {id(site.block) for site in sites}
    able = (layer for layer in model.modules() if hasattr(layer, "gradient_checkpointing"))
    return [layer for layer in able if any(id(child) in blocks for child in layer.children())]
