"""``generate``: one call that decodes a response with a masked diffusion language model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fewstep.families import masked_lm
from jaxtyping import Int
from torch import Tensor

from .decoder import Decoder
from .decoding import Decoding
from .state import State, Stats, Trace

MakeDecoder = Callable[[Any, State], Decoder]
OnBlock = Callable[[Int[Tensor, "b l"]], None]


@dataclass(frozen=True, kw_only=True)
class Output:
    """What `generate` returns."""

    sequences: Int[Tensor, "b n"]
    """Prompt (padded on the left) and response."""
    response: Int[Tensor, "b g"]
    """The response alone; behind an end-of-sequence token that stopped it, end tokens."""
    stats: Stats


@torch.no_grad()
def generate(
    model: Any,
    input_ids: Int[Tensor, "b p"],
    attention_mask: Int[Tensor, "b p"] | None = None,
    *,
    decoding: Decoding | None = None,
    response: Int[Tensor, "b g"] | None = None,
    on_block: OnBlock | None = None,
    make: MakeDecoder = Decoder,
    max_steps: int | None = None,
    trace: bool = False,
) -> Output:
    """Decode a response block by block, with whatever decoder `make` gives; vanilla decoding by default.

    Args:
        model: a bidirectional ``LlamaForCausalLM`` or ``Qwen2ForCausalLM`` as `fewstep.load` makes of LLaDA and Dream.
        input_ids: prompts.
        attention_mask: 0 where a prompt is padded, on the left or on the right; prompts padded on the right are moved.
        decoding: lengths, steps, thresholds; default: all defaults.
        response: what the response starts as, masks and given tokens; default: all masks.
        on_block: called with the tokens of each block when it is finished.
        make: makes the decoder of a model and a state.
        max_steps: stop after so many steps in all, to time them.
        trace: keep the confidences of each step in the statistics.

    Raises:
        UnsupportedModelError: an autoregressive model, or one without a mask token.
        ValueError: prompt and response need more positions than the model has, an empty prompt, or wrong shapes.
    """
    decoding = decoding or Decoding()
    masked_lm.check(model)
    tokens, pad = moved_left(input_ids, attention_mask)
    tokens = torch.cat([tokens, _response(model, tokens, response, decoding)], 1)
    check_length(model, tokens.shape[1], int(pad.max()), input_ids.shape[1])
    state = State(tokens, pad, input_ids.shape[1], decoding, mask_token=model.config.mask_token_id, eos=_eos(model))
    decoder, start = make(model, state), tokens.shape[1] - decoding.gen_length
    for block in decoding.blocks(start):
        state.open(block)
        _decode_block(decoder, state, max_steps, trace)
        if decoding.stop_at_eos:
            state.stop()
        if on_block is not None:
            on_block(state.tokens[:, block.start : block.end])
        if bool(state.stopped.all()) or _spent(state, max_steps):
            break
    if len(state.eos):  # what lies behind the end of a stopped sequence was never decoded
        left = (state.tokens == state.mask_token) & state.stopped[:, None]
        state.tokens[left] = state.eos[0]
    return Output(sequences=state.tokens, response=state.tokens[:, start:], stats=state.stats)


def _decode_block(decoder: Decoder, state: State, max_steps: int | None, trace: bool) -> None:
    stats = state.stats
    while bool(state.masked().any()) and not _spent(state, max_steps):
        before, started = stats.refreshes + len(stats.partial_rows), time.perf_counter()
        masked = state.masked()
        unmasked = state.take(decoder.first() if state.step == 0 else decoder.next())
        decoder.settled(unmasked)
        if state.tokens.is_cuda:
            torch.cuda.synchronize()
        refreshed = stats.refreshes + len(stats.partial_rows) > before
        (stats.refresh_seconds if refreshed else stats.step_seconds).append(time.perf_counter() - started)
        if trace:
            stats.trace.append(Trace(state.confidence, masked, unmasked))


def _spent(state: State, max_steps: int | None) -> bool:
    return max_steps is not None and len(state.stats.refresh_seconds) + len(state.stats.step_seconds) >= max_steps


def check_length(model: Any, length: int, pad: int, prompt: int) -> None:
    """Refuse sequences that the model has no positions for.

    Raises:
        ValueError: too long, or empty.
    """
    if prompt == 0:
        raise ValueError("the prompt is empty: a diffusion language model needs at least one token before its response")
    positions = model.config.max_position_embeddings
    if length > positions:
        raise ValueError(
            f"{prompt} prompt and {length - prompt} response tokens need {length} positions, but the model has "
            f"{positions}; shorten the prompt or the response"
        )


def moved_left(
    input_ids: Int[Tensor, "b p"], attention_mask: Int[Tensor, "b p"] | None
) -> tuple[Int[Tensor, "b p"], Int[Tensor, " b"]]:
    """Prompts with their padding on the left, wherever it was, and how much of it each has.

    Raises:
        ValueError: holes inside a prompt, a row of padding only, or another shape.
    """
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids must be [batch, tokens], found {tuple(input_ids.shape)}")
    if attention_mask is None:
        return input_ids.clone(), torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}")
    real = attention_mask.bool()
    borders = (real[:, 1:] != real[:, :-1]).sum(1)
    ends = real[:, 0] | real[:, -1]
    if not bool(real.any(1).all()) or bool((borders > 1).any()) or not bool(ends.all()):
        raise ValueError("attention_mask: each prompt must be one run of ones, with padding on one side only")
    order = real.long().argsort(dim=1, stable=True)  # padding first, tokens in their order
    return input_ids.gather(1, order), (~real).sum(1)


def _response(model: Any, prompt: Tensor, response: Tensor | None, decoding: Decoding) -> Tensor:
    shape = (len(prompt), decoding.gen_length)
    if response is None:
        return torch.full(shape, model.config.mask_token_id, dtype=torch.long, device=prompt.device)
    if response.shape != shape:
        raise ValueError(f"response must be [batch, gen_length] = {shape}, found {tuple(response.shape)}")
    return response.to(prompt.device)


def _eos(model: Any) -> tuple[int, ...]:
    found = getattr(model.config, "eos_token_id", None)
    return () if found is None else tuple(found) if isinstance(found, list | tuple) else (found,)
