"""``generate``: decode a response with a masked diffusion language model; methods that redirect it, inputs of `run`."""

from __future__ import annotations

import dataclasses
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from fewstep.applied import Applied
from fewstep.contract import Loaded
from fewstep.families import masked_lm
from fewstep.families.attention import wrap_attention
from fewstep.families.inputs import PromptInputs, tokenizer_of
from fewstep.method import Method
from jaxtyping import Int
from torch import Tensor
from transformers import TextStreamer

from .decoders import TokenDecoder, planned
from .decoding import DecodingOptions, State, Stats, Trace
from .guidance import guided


@dataclass(frozen=True, kw_only=True)
class Output:
    """Tokens and statistics of one call of `generate`."""

    sequences: Int[Tensor, "b n"]
    """Prompt (padded on the left) and response."""
    response: Int[Tensor, "b g"]
    """The response alone, up to the end token of the longest one; shorter ones are filled up with end tokens."""
    stats: Stats


@torch.no_grad()
def generate(
    model: Any,
    input_ids: Int[Tensor, "b p"],
    attention_mask: Int[Tensor, "b p"] | None = None,
    *,
    decoding: DecodingOptions | None = None,
    response: Int[Tensor, "b g"] | None = None,
    on_block: Callable[[Int[Tensor, "b l"]], None] | None = None,
    make: Callable[[Any, State], TokenDecoder] = TokenDecoder,
    max_steps: int | None = None,
    trace: bool = False,
) -> Output:
    """Decode a response block by block, with whatever decoder `make` gives; vanilla decoding by default.

    Args:
        model: a bidirectional ``LlamaForCausalLM`` or ``Qwen2ForCausalLM`` as `fewstep.load` makes of LLaDA and Dream.
        input_ids: prompts.
        attention_mask: 0 where a prompt is padded, on the left or on the right; prompts padded on the right are moved.
        decoding: lengths, steps, thresholds; default: all defaults.
        response: initial response, masks and given tokens; default: all masks.
        on_block: called with the tokens of each block when it is finished, up to the end of the response.
        make: makes the decoder of a model and a state.
        max_steps: stop after so many steps in all, to time them.
        trace: keep the confidences of each step in the statistics.

    Raises:
        UnsupportedModelError: an autoregressive model, or one without a mask token.
        ValueError: prompt and response need more positions than the model has, an empty prompt, or wrong shapes.
    """
    decoding = decoding or DecodingOptions()
    masked_lm.check(model)
    prompts, pad = _left_padded(input_ids, attention_mask)
    start = prompts.shape[1]
    masked_lm.check_length(model, start, decoding.gen_length)
    tokens = torch.cat([prompts, _response(model, prompts, response, decoding)], 1)
    mask, eos = model.config.mask_token_id, masked_lm.end_tokens(model.config)
    state = State(tokens, pad, start, decoding, mask_token=mask, eos=eos)
    decoder, spent = guided(make, model, state), False
    for block in decoding.blocks(start):
        state.open(block)
        spent = _decode_block(decoder, state, max_steps, trace)
        if decoding.stop_at_eos:
            state.stop()
        if on_block is not None:
            on_block(state.tokens[:, block.start : min(block.end, state.end())])
        if spent or (bool(state.stopped.all()) and state.end() <= block.end):
            break
    whole = state.tokens[:, : state.end()]
    return Output(sequences=whole, response=whole[:, start:], stats=state.stats)


def _decode_block(decoder: TokenDecoder, state: State, max_steps: int | None, trace: bool) -> bool:
    """Take the steps of the current block; returns whether `max_steps` are reached."""
    stats = state.stats
    while bool((masked := state.masked()).any()):
        if stats.steps == max_steps:
            return True
        before, started = stats.refreshes + len(stats.partial_rows), time.perf_counter()
        unmasked = state.unmask(decoder.first_step() if state.step == 0 else decoder.later_step())
        decoder.after_step(unmasked)
        if state.tokens.is_cuda:
            torch.cuda.synchronize()
        refreshed = stats.refreshes + len(stats.partial_rows) > before
        (stats.refresh_seconds if refreshed else stats.step_seconds).append(time.perf_counter() - started)
        if trace:
            stats.trace.append(Trace(state.confidence, masked, unmasked))
    return stats.steps == max_steps


def _left_padded(
    input_ids: Int[Tensor, "b p"], attention_mask: Int[Tensor, "b p"] | None
) -> tuple[Int[Tensor, "b p"], Int[Tensor, " b"]]:
    """Prompts with their padding moved to the left, and the number of padding tokens of each."""
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids must be [batch, tokens], found {tuple(input_ids.shape)}")
    if attention_mask is None:
        return input_ids, torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}")
    real = attention_mask.bool()
    borders = (real[:, 1:] != real[:, :-1]).sum(1)
    ends = real[:, 0] | real[:, -1]
    if not bool(real.any(1).all()) or bool((borders > 1).any()) or not bool(ends.all()):
        raise ValueError("attention_mask: each prompt must be one run of ones, with padding on one side only")
    order = real.long().argsort(dim=1, stable=True)  # padding first, tokens in their order
    return input_ids.gather(1, order), (~real).sum(1)


def _response(model: Any, prompt: Tensor, response: Tensor | None, decoding: DecodingOptions) -> Tensor:
    shape = (len(prompt), decoding.gen_length)
    if response is None:
        return torch.full(shape, model.config.mask_token_id, dtype=torch.long, device=prompt.device)
    if response.shape != shape:
        raise ValueError(f"response must be [batch, gen_length] = {shape}, found {tuple(response.shape)}")
    return response.to(prompt.device)


class DecodingMethod(Method):
    """Base of methods whose ``model.generate`` decodes with a decoder of theirs."""

    seams: ClassVar[frozenset[str]] = frozenset({"attention", "generation", "kv-cache"})
    cached: ClassVar[bool] = True
    """False where every step computes everything, so that a few steps tell the time of all of them."""

    def check(self, config: Any) -> None:
        """Raise a ValueError where a field does not fit the model; nothing to check by default."""

    @abstractmethod
    def decoder(self, model: Any, state: State) -> TokenDecoder:
        """The decoder of one call."""

    def apply(self, model: Any) -> Applied:
        """Let ``model.generate`` decode by diffusion, as `fewstep_focus_dllm.generate` does; same arguments.

        Raises:
            UnsupportedModelError: an autoregressive model, or one without a mask token.
            SeamConflictError: another decoding method is applied.
            ValueError: a field does not fit the model.
        """
        masked_lm.check(model)
        self.check(model.config)
        with Applied() as undo:
            undo.occupy(model, self)
            wrap_attention(undo, model, "dllm", planned)
            undo.set(model, "generate", partial(generate, model, make=self.decoder))
            return undo.pop_all()


def current_generate(model: Any) -> partial[Output]:
    """`generate` of `model` with the decoder of the method applied to it, vanilla where none is."""
    own = getattr(model, "generate", None)  # stock models have one too, which decodes left to right
    return own if isinstance(own, partial) and own.func is generate else partial(generate, model)


def keeps_cache(model: Any) -> bool:
    """Tell whether the method applied to `model` decodes with a cache."""
    make = current_generate(model).keywords.get("make")
    return make is not None and make.__self__.cached


class Printed:
    """Tokens of one response on standard output, block by block, up to the first end token."""

    def __init__(self, tokenizer: Any, ends: tuple[int, ...]) -> None:
        self.streamer, self.ends = TextStreamer(tokenizer, skip_special_tokens=True), ends
        self.tokens: list[int] = []
        self.ended = False

    def put(self, block: Int[Tensor, "b l"]) -> None:
        """Print what a finished block of the first sequence adds."""
        for token in block[0].tolist():
            self.ended |= token in self.ends
            if not self.ended:
                self.tokens.append(token)
                self.streamer.put(torch.tensor([token]))


@dataclass(frozen=True, kw_only=True)
class DiffusionInputs(PromptInputs, DecodingOptions):
    """Continue a document, or answer a question about it."""

    def __post_init__(self) -> None:
        DecodingOptions.__post_init__(self)
        PromptInputs.__post_init__(self)

    def __call__(self, loaded: Loaded, method: Any) -> None:
        """Stream finished blocks, then print their cost.

        Raises:
            UnsupportedModelError: the model has no tokenizer, or `method` does not support it.
            ValueError: there is no prompt, or it is too long for the model.
        """
        tokenizer = tokenizer_of(loaded)
        text, _ = self.whole_prompt(tokenizer)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=loaded.model.device)
        decoding = DecodingOptions(**{f.name: getattr(self, f.name) for f in dataclasses.fields(DecodingOptions)})
        printed = Printed(tokenizer, masked_lm.end_tokens(loaded.model.config))
        with method.apply(loaded.model):
            start = time.perf_counter()
            output = current_generate(loaded.model)(ids, decoding=decoding, on_block=printed.put)
            total = time.perf_counter() - start
        printed.streamer.end()
        facts = {"prompt tokens": ids.shape[1], "response tokens": output.response.shape[1], "seconds": round(total, 3)}
        answer = tokenizer.decode(printed.tokens, skip_special_tokens=True)
        self.finish(answer, method, facts | _facts(output.stats))


def _facts(stats: Stats) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "full passes": stats.refreshes,
        "seconds in full passes": round(sum(stats.refresh_seconds), 3),
        "cached steps": len(stats.step_seconds),
    }
    if stats.step_seconds:
        facts["seconds in cached steps"] = round(sum(stats.step_seconds), 3)
        facts["positions computed, of each cached step"] = round(sum(stats.rows) / len(stats.rows), 1)
    if stats.kept:
        facts["prompt tokens read in sparse layers"] = round(sum(stats.kept) / len(stats.kept), 1)
    if stats.unmasked:
        facts["tokens predicted by confidence"] = round(stats.coverage, 3)
    return facts
