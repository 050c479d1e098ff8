"""Text, tokenizer, the n-gram model and the bound that it is compared with."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from fewstep_zoo.dllm import diffusion, model, quality, text
from fewstep_zoo.dllm.ngram import KneserNey
from fewstep_zoo.dllm.text import EOS, MASK, TextCrops


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_text_comes_back_byte_for_byte():
    tokenizer = text.tokenizer()
    for said in ("def f(x):\n\treturn  x  # é ☃ \0 <m>", "", " leading and trailing \n\n"):
        ids = tokenizer(said).input_ids
        assert ids == list(said.encode()) and tokenizer.decode(ids) == said
    assert (tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (MASK, EOS, EOS)
    assert tokenizer("a<|mask|>b").input_ids == [97, MASK, 98] and len(tokenizer) == text.VOCABULARY


@pytest.mark.parametrize("kind", ["english", "source"])
def test_what_is_held_out_is_not_trained_on(kind: str):
    train, held_out = text.corpus(kind, "train"), text.corpus(kind, "held-out")
    assert 0.02 < len(held_out) / (len(train) + len(held_out)) < 0.15
    lines = {line.strip() for line in held_out.splitlines() if len(line.strip()) >= text.SAME}
    assert len(lines) > 300 and not lines & {line.strip() for line in train.splitlines()}


def test_batches_have_one_length_and_the_same_number_of_tokens():
    crops = TextCrops(lengths=(8, 32), english=0.5)
    shapes = Counter(tuple(crops.draw(3, generator(seed))[0].shape) for seed in range(30))
    assert set(shapes) == {(12, 8), (3, 32)}
    whole = text.corpus("english", "train"), text.corpus("source", "train")
    rows = crops.draw(4, generator(5))[0]
    assert all(any(bytes(row.tolist()) in part for part in whole) for row in rows)


def plain_kneser_ney(train: bytes, context: bytes, order: int) -> list[float]:
    """Probabilities of all bytes after `context`, from the definition; no clever indexing."""
    counts = Counter(train[i : i + order] for i in range(len(train) - order + 1))
    levels = []
    for _ in range(order):
        levels.insert(0, counts)
        counts = Counter(gram[1:] for gram in counts)
    p = [1 / 256] * 256
    for n, counts in enumerate(levels, 1):
        n1, n2, n3, n4 = (sum(c == k for c in counts.values()) for k in (1, 2, 3, 4))
        y = n1 / max(1, n1 + 2 * n2)
        d = [min(max(0.0, k - (k + 1) * y * b / max(1, a)), k) for k, a, b in ((1, n1, n2), (2, n2, n3), (3, n3, n4))]
        history = context[len(context) - n + 1 :]
        here = {gram[-1]: c for gram, c in counts.items() if gram[:-1] == history}
        if total := sum(here.values()):
            freed = sum(d[min(c, 3) - 1] for c in here.values())
            seen = {byte: c - d[min(c, 3) - 1] for byte, c in here.items()}
            p = [(seen.get(byte, 0.0) + freed * p[byte]) / total for byte in range(256)]
    return p


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_n_gram_model_is_kneser_ney(order: int):
    train = b"the cat sat on the mat; the rat sat on the cat. " * 3 + bytes(generator().get_state()[:60].tolist())
    fast = KneserNey(train, order)
    for context in (b"xthe ", b"on t", b"zzzz", b" cat"):
        expected = plain_kneser_ney(train, context, order)
        assert sum(expected) == pytest.approx(1)
        told = [2.0 ** -fast.bits((context + bytes([byte]))[-order:])[0] for byte in range(256)]
        assert np.allclose(told, expected, rtol=1e-9)


@pytest.mark.parametrize(("order", "size"), [(0, 200), (8, 200), (5, 50)])
def test_an_impossible_n_gram_model_is_refused(order: int, size: int):
    with pytest.raises(ValueError, match="order 1 to 7 and 100 bytes"):
        KneserNey(b"a" * size, order)


class Knows:
    """Probability `p` for the right token wherever it is asked, so the bound is ``-log2 p``."""

    def __init__(self, tokens: torch.Tensor, p: float) -> None:
        self.config = type("Config", (), {"mask_token_id": MASK})
        rest = math.log((1 - p) / (text.VOCABULARY - 1))
        self.logits = torch.full((*tokens.shape, text.VOCABULARY), rest)
        self.logits.scatter_(2, tokens[..., None], math.log(p))
        self.masked: list[float] = []

    def __call__(self, tokens: torch.Tensor, use_cache: bool) -> object:
        self.masked += (tokens == MASK).sum(1).tolist()
        return type("Out", (), {"logits": self.logits})


def test_the_bound_of_a_known_model_is_exact():
    tokens = TextCrops(lengths=(16,), english=1.0).draw(8, generator())[0]
    known = Knows(tokens, 0.25)
    assert diffusion.bound(known, tokens, generator(), draws=4) == pytest.approx(2.0, abs=1e-5)
    assert min(known.masked) >= 1 and max(known.masked) <= 16 and len(set(known.masked)) > 6


def test_loss_and_bound_agree_on_average():
    """One is drawn with a mask for each token, the other with a number of masks: LLaDA equations 3 and 6."""
    from fewstep.train.objective import Batch
    from fewstep.train.roles import Role, Roles

    network = model.network(0, n_layers=1, d_model=32)
    objective = diffusion.MaskedDiffusion(
        roles=Roles(student=Role(network, predict=diffusion.tokens_to_logits)), mask=MASK
    )
    tokens = TextCrops(lengths=(8,), english=1.0).draw(64, generator())[0]
    with torch.no_grad():
        network.lm_head.weight *= 20  # away from uniform, where every estimate is the same
        source = generator(1)
        batches = [
            Batch(cond=tokens, uncond=None, shape=(8,), generator=source, shared=source, metrics={}) for _ in range(40)
        ]
        mean = sum(float(objective.losses("student", batch, 0)["bound"]) for batch in batches) / len(batches)
    expected = diffusion.bound(network, tokens, generator(2), draws=40) * math.log(2)
    assert mean == pytest.approx(expected, rel=0.03)


def test_masked_bytes_are_told_from_the_bytes_directly_before_them():
    ngrams = [KneserNey(text.corpus("english", "train")[:20000], order) for order in (1, 2, 3)]
    tokens = quality.pieces("english", 40, 2)
    metrics, source = quality.of_ngrams(ngrams, tokens, draws=2), generator()
    for rate in quality.RATES:
        bits = []
        for _ in range(2):
            masked = torch.rand(tokens.shape, generator=source) < rate
            for row, hidden in zip(tokens.tolist(), masked.tolist(), strict=True):
                for at in (i for i in range(40) if hidden[i]):
                    start = at
                    while start > max(0, at - 2) and not hidden[start - 1]:
                        start -= 1
                    bits += ngrams[at - start].bits(bytes(row[start : at + 1])).tolist()
        assert metrics[f"masked {rate:.0%}"] == pytest.approx(sum(bits) / len(bits))
    assert metrics["left"] == pytest.approx(np.mean([ngrams[2].bits(bytes(row)).mean() for row in tokens.tolist()]))
