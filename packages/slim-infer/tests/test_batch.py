import pytest
import torch
from fewstep.families import causal_lm
from fewstep.families.kv_cache import ARGUMENT
from torch import nn

LENGTHS = (40, 128, 77)


def padded(lengths=LENGTHS):
    """Prompts padded on the left to one length, and their mask."""
    prompts = [causal_lm.tiny_prompt(n, seed=n)[0] for n in lengths]
    longest = max(lengths)
    ids = torch.stack([nn.functional.pad(p, (longest - p.numel(), 0)) for p in prompts])
    mask = torch.stack([nn.functional.pad(torch.ones_like(p), (longest - p.numel(), 0)) for p in prompts])
    return prompts, ids, mask


def answer(model, ids, mask=None, **options):
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, **options}
    return model.generate(ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **options)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(
    "fields",
    [{"keep": 0.5}, {"keep": (80, 48)}, {"keep": 0.6, "decode_keep": 0.4, "overlap": 1.1}, {"offload": True}],
    ids=["share", "tokens", "resident", "offload"],
)
def test_a_row_gives_what_it_gives_alone(family, fields, slim):
    model = causal_lm.tiny(family).double()
    prompts, ids, mask = padded()
    with slim(**fields).apply(model) as applied:
        together, report = answer(model, ids, mask), applied.report
        for row, prompt in enumerate(prompts):
            alone, own = answer(model, prompt[None]), applied.report
            assert report.blocks[0][row] == own.blocks[0][0]
            for a, b in zip(together.logits, alone.logits, strict=True):
                torch.testing.assert_close(a[row], b[0], rtol=0, atol=1e-5)
            assert torch.equal(together.sequences[row, -10:], alone.sequences[0, -10:])


def test_padding_does_not_shift_blocks(slim):
    model = causal_lm.tiny()
    _, ids, mask = padded((70, 71, 150))
    with slim().apply(model) as applied:
        model(ids, attention_mask=mask)
        tokens = applied.report.tokens
    assert tokens[0] == (70, 71, 150) and all(n % 16 == p % 16 for n, p in zip(tokens[1], tokens[0], strict=True))


@pytest.mark.parametrize("fields", [{}, {"decode_keep": 0.4, "overlap": 1.1}, {"offload": True}], ids=str)
def test_beams_have_the_score_of_their_own_tokens(fields, slim):
    model, ids = causal_lm.tiny().double(), causal_lm.tiny_prompt(150)
    with slim(**fields).apply(model):
        out = answer(model, ids, num_beams=3, num_return_sequences=3, output_scores=True, length_penalty=0.0)
        for sequence, score in zip(out.sequences, out.sequences_scores, strict=True):
            cache, step, total = None, ids, 0.0
            for token in sequence[150:]:
                forward = model(step, **{ARGUMENT: cache}, use_cache=True, logits_to_keep=1)
                total += forward.logits[0, -1].log_softmax(-1)[token].item()
                cache, step = forward[ARGUMENT], token[None, None]
            assert total == pytest.approx(score.item(), abs=1e-4)


def test_several_samples_of_one_prompt(slim):
    model = causal_lm.tiny()
    with slim().apply(model), torch.random.fork_rng():
        torch.manual_seed(0)
        out = model.generate(causal_lm.tiny_prompt(150), do_sample=True, num_return_sequences=3, max_new_tokens=5)
    assert out.shape[0] == 3


def test_rows_of_a_cache_can_be_chosen_and_repeated(slim):
    model = causal_lm.tiny().double()
    _, ids, mask = padded()
    token = torch.tensor([[5], [5], [5]])
    with slim().apply(model), torch.no_grad():
        cache = model(ids, attention_mask=mask, use_cache=True)[ARGUMENT]
        wanted = model(token, **{ARGUMENT: cache}, attention_mask=mask).logits
        cache.crop(-1)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([4, 0, 2]))
        chosen = model(token, **{ARGUMENT: cache}).logits
        cache.reset()
        assert cache.get_seq_length() == 0
    torch.testing.assert_close(chosen, wanted[[2, 0, 1]], rtol=0, atol=1e-9)
