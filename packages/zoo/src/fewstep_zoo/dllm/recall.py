"""``wired-recall``: a masked diffusion LM whose weights are constructed, not trained, so that its answers are known.

It looks up keys. The prompt is noise with records ``key value`` in it, the response reads ``key MASK key MASK ...``,
and the value of each key belongs on the MASK behind it: right or wrong at any length, without training. Two attention
heads share one set of keys and values (pairs of rotary dimensions are split between their uses):

* layer 0, head 0: "previous token". Queries are the constant key turned back by one position, on the fast pairs.
* layer `LOOKUP`, head 0: "look-up". Queries and keys are the code of the previous token, on pairs so slow that they
  hardly turn; values get a bonus, so that a MASK does not find itself. The value is written to ``out``.
* every layer but the first, head 1: "sink". It asks the same, but gives all its attention to a sink token while there
  is one, whose value is nothing. Without it, the value of a record is written to ``out`` turned about: the answer is
  spoilt.

Records, sinks and everything else are random vectors, so that the mean key of a block says little about one record in
it. A sink is followed by a token of the opposite key: means over blocks do not see it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from fewstep.contract import Loaded
from fewstep.families.masked_lm import both_ways
from jaxtyping import Int
from torch import Tensor

NAME = "wired-recall"
BOS, MASK, SINK, ANTI = 0, 1, 2, 3
KEYS, VALUES, FILLERS = range(4, 68), range(68, 132), range(132, 252)
VOCABULARY = 252
LAYERS, LOOKUP, DH, POSITIONS = 8, 5, 128, 65536
THETA = 1e12
FAST = range(22)
"""Rotary pairs that turn by more than 1e-4 a token."""
SLOW = range(31, 62)
"""Rotary pairs that carry codes: they turn by less than 0.1 in `POSITIONS` tokens."""
BONUS, SINKS = 62, 63
"""The two slowest pairs."""
CODE = 2 * len(SLOW)
TOKEN, PREVIOUS, OUT = slice(0, DH), slice(DH, 2 * DH), slice(2 * DH, 3 * DH)
CONST, IS_VALUE, NO_VALUE, SINKNESS, NO_SINK = range(3 * DH, 3 * DH + 5)
WIDTH = 3 * DH + 6
"""Even, for transformers; the last dimension is empty."""
PREVIOUS_SCORE, MATCH_SCORE, BONUS_SCORE, SINK_SCORE = 31.0, 31.0, 30.0, 95.0
"""Attention scores before the softmax: of one fast pair, of the right record, of being a value, of the sink."""
NOISE, SHARPNESS = 2.0, 30.0
"""Size of what head 1 writes without a sink, beside an answer of size 1; scale of the logits."""


class Recall(NamedTuple):
    """One prompt, and the answer that belongs behind it."""

    prompt: Int[Tensor, " p"]
    """Fillers, `records` records and one sink."""
    response: Int[Tensor, " g"]
    """``key MASK key MASK ...``: what decoding starts from."""
    answer: Int[Tensor, " g"]
    """``key value key value ...``."""
    positions: Int[Tensor, " g/2"]
    """Positions in the prompt of the values that belong on the masks, in order."""


@dataclass(frozen=True)
class RecallProcessor:
    """`Loaded.processor` of this model: it makes prompts instead of reading text."""

    mask_token_id: int = MASK

    def recall_prompt(self, length: int, records: int, generation: int, generator: torch.Generator) -> Recall:
        """Draw a prompt of fillers with records at random multiples of 4, and a response that asks for some of them.

        Args:
            length: tokens of the prompt.
            records: distinct keys in it, at most 64.
            generation: tokens of the response, even: two for each key asked, at most ``2 * records``.
            generator: of all chance, on the CPU.

        Raises:
            ValueError: the records do not fit, or more keys are asked than there are.
        """
        if not 1 <= records <= min(len(KEYS), length // 4 - 2):
            most = min(len(KEYS), length // 4 - 2)
            raise ValueError(f"a prompt of {length} tokens has room for 1 to {most} records, found {records}")
        if generation % 2 or not 2 <= generation <= 2 * records:
            raise ValueError(f"generation must be even and 2 to {2 * records}, found {generation}")
        prompt = torch.randint(FILLERS.start, FILLERS.stop, (length,), generator=generator)
        prompt[0] = BOS
        keys = KEYS.start + torch.randperm(len(KEYS), generator=generator)[:records]
        values = torch.randint(VALUES.start, VALUES.stop, (records,), generator=generator)
        places = 4 * (1 + torch.randperm(length // 4 - 1, generator=generator)[: records + 1])
        prompt[places[0]], prompt[places[0] + 1] = SINK, ANTI
        at = places[1:]
        prompt[at], prompt[at + 1] = keys, values
        asked = torch.randperm(records, generator=generator)[: generation // 2]
        answer = torch.stack([keys[asked], values[asked]], 1).flatten()
        response = answer.clone()
        response[1::2] = MASK
        return Recall(prompt, response, answer, at[asked] + 1)


def load(*, dtype: str = "float32", device: str = "cpu") -> Loaded:
    """Build the model; its processor is a `RecallProcessor`. Use float32: scores need the digits."""
    network = build().to(device, getattr(torch, dtype))
    return Loaded(model=network, name=NAME, processor=RecallProcessor(), weights="trained")


def configuration() -> Any:
    """The ``LlamaConfig``: 8 layers, width 390, 2 heads of 128 and one KV head, attention both ways."""
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        head_dim=DH,
        intermediate_size=1,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=POSITIONS,
        rms_norm_eps=1e-12,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        bos_token_id=BOS,
        eos_token_id=None,
        pad_token_id=None,
        is_causal=False,
        mask_token_id=MASK,
        diffusion="llada",
    )


@torch.no_grad()
def build() -> Any:
    """A ``LlamaForCausalLM`` of this `configuration`; the same weights every time."""
    from transformers import LlamaForCausalLM

    model = both_ways(LlamaForCausalLM(configuration())).eval()
    for weight in model.parameters():
        weight.zero_()
    source = torch.Generator().manual_seed(0)
    codes = torch.cat([_unit(VOCABULARY, CODE, source), _unit(VOCABULARY, DH - CODE, source)], 1) / 2**0.5
    embedding = model.model.embed_tokens.weight
    embedding[:, TOKEN] = codes
    embedding[:, CONST] = embedding[:, NO_VALUE] = embedding[:, NO_SINK] = 1.0
    embedding[VALUES, IS_VALUE], embedding[VALUES, NO_VALUE] = 1.0, 0.0
    embedding[[SINK, ANTI], SINKNESS], embedding[[SINK, ANTI], NO_SINK] = torch.tensor([1.0, -1.0]), 0.0
    elsewhere = torch.linalg.qr(torch.randn(DH, DH, generator=source))[0]
    nothing = torch.eye(DH) - torch.outer(codes[SINK], codes[SINK])
    for number, layer in enumerate(model.model.layers):
        _wire(layer, number, NOISE * elsewhere @ nothing)
    model.model.norm.weight.fill_(_rms(6))
    model.lm_head.weight[:, OUT] = SHARPNESS * codes
    return model


def _wire(layer: Any, number: int, noise: Tensor) -> None:
    """Head 0 finds the previous token or looks up, or does nothing; head 1 asks the sink."""
    attention = layer.self_attn
    layer.input_layernorm.weight.fill_(_rms(4 if number == 0 else 5))  # so that the norm changes nothing
    layer.post_attention_layernorm.weight.fill_(1.0)
    query = attention.q_proj.weight.view(2, DH, -1)
    key, out = attention.k_proj.weight, attention.o_proj.weight
    scale = DH**0.25  # of queries and of keys each: attention divides scores by the root of DH
    attention.v_proj.weight[:, TOKEN] = torch.eye(DH)
    key[[*FAST], CONST] = scale * PREVIOUS_SCORE**0.5
    code = torch.zeros(DH, DH)
    code[[*SLOW, *(pair + DH // 2 for pair in SLOW)], range(CODE)] = scale * (2 * MATCH_SCORE) ** 0.5
    key[:, PREVIOUS] = code
    key[BONUS, IS_VALUE] = scale * BONUS_SCORE**0.5
    key[SINKS, SINKNESS] = scale * SINK_SCORE**0.5
    query[1, SINKS, CONST] = scale * SINK_SCORE**0.5
    if number == 0:
        turn = THETA ** (-2 * torch.tensor([*FAST]) / DH)
        query[0, [*FAST], CONST] = scale * PREVIOUS_SCORE**0.5 * turn.cos()
        query[0, [pair + DH // 2 for pair in FAST], CONST] = -scale * PREVIOUS_SCORE**0.5 * turn.sin()
        out[PREVIOUS, :DH] = torch.eye(DH)
        return
    for head in (0, 1) if number == LOOKUP else (1,):
        query[head, :, PREVIOUS] = code
        query[head, BONUS, CONST] = scale * BONUS_SCORE**0.5
    if number == LOOKUP:
        out[OUT, :DH] = torch.eye(DH)
    out[OUT, DH:] = noise


def _unit(count: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, size, generator=generator), dim=1)


def _rms(square: float) -> float:
    """Root mean square of a hidden state of that squared length."""
    return (square / WIDTH) ** 0.5
