import threading

import pytest
import torch
from fewstep.families import causal_lm
from fewstep.families.kv_cache import ARGUMENT
from fewstep_slim_infer.method import install
from transformers import TextIteratorStreamer

P = 150


def generate(model, ids, n=24, **options):
    return model.generate(ids, max_new_tokens=n, do_sample=False, eos_token_id=None, **options)


@torch.no_grad()
def steps(model, ids, known):
    """Logits of the prompt and of each known token after it, and the blocks that were active at each of these."""
    out = model(ids, logits_to_keep=1)
    cache, logits, active = out[ARGUMENT], [out.logits[:, -1]], []
    for token in known:
        out = model(torch.tensor([[token]]), **{ARGUMENT: cache}, logits_to_keep=1)
        logits.append(out.logits[:, -1])
        active.append([sorted(s.resident.active[0]) if s.resident else None for s in cache.segments[1:]])
    return torch.cat(logits), active


@pytest.mark.parametrize("overlap", [0.9, 1.1])
def test_fewer_blocks_while_decoding_equals_masking_all_others(model, slim, reference, tokens_of, overlap):
    """The prompt's own rows attended to all survivors, so only the newest token's row sees the smaller active set."""
    ids, known = causal_lm.tiny_prompt(P), causal_lm.tiny_prompt(20, seed=5)[0].tolist()
    with slim(keep=0.6, decode_keep=0.4, overlap=overlap).apply(model) as applied:
        logits, active = steps(model, ids, known)
        assert applied.report.swaps > 0
    whole = _with_all_survivors(model, slim(keep=0.6), ids, known, active, tokens_of)
    torch.testing.assert_close(logits[1:], whole, rtol=0, atol=1e-9)


@torch.no_grad()
def _with_all_survivors(model, method, ids, known, active, tokens_of):
    """Decode over a slim cache that keeps every survivor, masking those that were not active."""
    logits = []
    with method.apply(model):
        cache = model(ids, logits_to_keep=1)[ARGUMENT]
        for token, sets in zip(known, active, strict=True):
            for segment, blocks in zip(cache.segments[1:], sets, strict=True):
                kept = tokens_of(segment.blocks[0], 16, P)
                blocks = segment.blocks[0] if blocks is None else blocks
                seen = set(tokens_of(blocks, 16, P)) | set(range(P - P % 16, P))
                segment.valid = torch.tensor([[t in seen for t in kept]])
            out = model(torch.tensor([[token]]), **{ARGUMENT: cache}, logits_to_keep=1)
            logits.append(out.logits[:, -1])
    return torch.cat(logits)


@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_offloaded_layers_give_the_same_logits_and_little_memory(first, slim):
    model, ids, known = causal_lm.tiny(), causal_lm.tiny_prompt(P), causal_lm.tiny_prompt(90, seed=5)[0].tolist()
    with slim(entry=(first,)).apply(model) as applied:
        resident, _ = steps(model, ids, known)
        before = applied.report
    with slim(entry=(first,), offload=True).apply(model) as applied:
        streamed, _ = steps(model, ids, known)
        assert torch.equal(streamed, resident)
        after = applied.report
    assert after.host_bytes == before.kv_bytes - sum(before.layer_tokens[first:]) * 2 * 2 * 16 * 4
    assert (after.kv_bytes < before.kv_bytes) == (first > 1)  # the copy on its way takes their place
    assert after.layer_tokens == before.layer_tokens


@pytest.mark.parametrize(
    "fields",
    [{"decode_keep": 0.35, "overlap": 1.1}, {"offload": True}, {"decode_from": "recompute", "overlap": 1.1}],
    ids=str,
)
def test_the_copying_thread_follows_the_caller_into_inference_mode(fields, slim):
    model, ids = causal_lm.tiny(), causal_lm.tiny_prompt(P)
    with slim(**fields).apply(model) as applied:
        plain = generate(model, ids, 24)
        assert applied.report.host_bytes > 0  # something waits where the copier fetches it
        with torch.inference_mode():
            assert torch.equal(generate(model, ids, 24), plain)


def all_but_block_3(settings, query, keys, number, prompt, segment):
    """Survivors at the first boundary, whatever their scores."""
    blocks = torch.arange(-(-number.numel() // 16))
    return blocks[blocks != 3] if segment == 0 else blocks


def test_a_recomputed_block_has_the_keys_it_would_have_had(model, slim):
    """Everything before the first boundary is dense, and block 3 sees only blocks before it, so its keys are dense."""
    ids = causal_lm.tiny_prompt(P)
    dense = model(ids, use_cache=True)[ARGUMENT]
    method = slim(entry=(2, 5), keep=1.0, decode_keep=1.0, overlap=1.1, decode_from="recompute")
    with install(model, method, method.resolve(model.config), all_but_block_3):
        cache = model(ids, use_cache=True)[ARGUMENT]
        segment = cache.segments[1]
        assert segment.resident.missing(0, [2, 3]) == [3]
        segment.resident._slots = [9]
        model(causal_lm.tiny_prompt(1, seed=3), **{ARGUMENT: cache})
    assert segment.resident.missing(0, [2, 3]) == []
    for i, layer in enumerate(segment.layers):
        held, wanted = segment.resident._host[0][3][i], dense.layers[layer]
        torch.testing.assert_close(held[0], wanted.keys[0, :, 48:64], rtol=0, atol=1e-12)
        torch.testing.assert_close(held[1], wanted.values[0, :, 48:64], rtol=0, atol=1e-12)
    assert 3 in cache.segments[2].hidden


def test_recomputing_brings_dropped_blocks_back(slim):
    model, ids = causal_lm.tiny(), causal_lm.tiny_prompt(P)
    with slim(decode_from="recompute", overlap=1.1).apply(model) as applied:
        generate(model, ids, 40)
        report, segment = applied.report, applied.decoder.last.segments[1]
    assert report.swaps > 0 and set(segment.resident._host[0]) > set(report.blocks[0][0][:-1])


def test_a_second_long_prompt_warns_unless_blocks_can_be_recomputed(slim, recwarn):
    model, ids = causal_lm.tiny(), causal_lm.tiny_prompt(P)
    with slim().apply(model):
        cache = model(ids, use_cache=True)[ARGUMENT]
        model(causal_lm.tiny_prompt(4), **{ARGUMENT: cache})
        assert not recwarn.list
        with pytest.warns(UserWarning, match="more prompt tokens over a slim cache"):
            model(causal_lm.tiny_prompt(9), **{ARGUMENT: cache})
    with slim(decode_from="recompute").apply(model):
        cache = model(ids, use_cache=True)[ARGUMENT]
        recwarn.clear()
        model(causal_lm.tiny_prompt(9), **{ARGUMENT: cache})
        assert not recwarn.list


def test_several_tokens_at_once_equal_one_by_one(model, slim):
    ids, more = causal_lm.tiny_prompt(P), causal_lm.tiny_prompt(4, seed=2)
    with slim().apply(model):
        one_by_one, _ = steps(model, ids, more[0].tolist())
        cache = model(ids, use_cache=True)[ARGUMENT]
        together = model(more, **{ARGUMENT: cache}).logits[0]
        behind = model(torch.cat([ids, more], 1), logits_to_keep=5).logits[0]
    torch.testing.assert_close(together, one_by_one[1:], rtol=0, atol=1e-9)
    torch.testing.assert_close(behind, one_by_one, rtol=0, atol=1e-9)


def test_guesses_are_verified_and_cropped(model, slim):
    ids = causal_lm.tiny_prompt(50).repeat(1, 3)
    with slim().apply(model):
        assert torch.equal(generate(model, ids, prompt_lookup_num_tokens=3), generate(model, ids))


def test_cropped_guesses_do_not_ask_for_blocks(model, slim):
    """The blocks of the next token are those that it and the accepted tokens ask for."""
    ids, more, last = causal_lm.tiny_prompt(P), causal_lm.tiny_prompt(6, seed=2), causal_lm.tiny_prompt(1, seed=3)
    settings = {"entry": (2,), "keep": 0.5, "decode_keep": 0.3, "overlap": 1.1, "window": 4}
    active = []
    with slim(**settings).apply(model), torch.no_grad():
        for guesses in (0, 1, 4):
            cache = model(ids, use_cache=True)[ARGUMENT]
            model(more[:, : 2 + guesses], **{ARGUMENT: cache})
            if guesses:
                cache.crop(-guesses)
            model(last, **{ARGUMENT: cache})
            active.append(sorted(cache.segments[1].resident.active[0]))
    assert active[0] == active[1] == active[2]


def test_the_prompt_of_a_slim_cache_cannot_be_cropped(slim):
    model = causal_lm.tiny()
    with slim().apply(model):
        cache = model(causal_lm.tiny_prompt(P), use_cache=True)[ARGUMENT]
        model(causal_lm.tiny_prompt(2), **{ARGUMENT: cache})
        cache.crop(-2)
        assert cache.get_seq_length() == P
        for bad in (-1, 5):
            with pytest.raises(ValueError, match="only the 0 generated tokens"):
                cache.crop(bad)


def test_streaming(slim):
    class Digits:
        def decode(self, ids, **options):
            return " ".join(map(str, list(ids))) + " "

    model, ids = causal_lm.tiny(), causal_lm.tiny_prompt(P)
    with slim().apply(model), torch.inference_mode():
        whole = generate(model, ids, 12)[0, P:].tolist()
        streamer = TextIteratorStreamer(Digits(), skip_prompt=True)
        worker = threading.Thread(target=generate, args=(model, ids, 12), kwargs={"streamer": streamer})
        worker.start()
        said = "".join(streamer)
        worker.join()
    assert said.split() == [str(t) for t in whole]


def test_guesses_beside_plain_generation_in_four_threads(model, slim):
    """Prompt lookup and plain generation of several prompts on one model, all at once: each as if it were alone."""
    prompts = [causal_lm.tiny_prompt(40 + 7 * n, seed=n).repeat(1, 3) for n in range(4)]
    options = [{}, {"prompt_lookup_num_tokens": 3}, {}, {"prompt_lookup_num_tokens": 2}]
    wrong: list[str] = []
    with slim().apply(model):
        alone = [generate(model, ids) for ids in prompts]

        def work(first: int) -> None:
            try:
                for turn in range(4):
                    number = (first + turn) % 4
                    made = generate(model, prompts[number], **options[(first + 2 * turn + turn // 2) % 4])
                    if not torch.equal(made, alone[number]):
                        wrong.append(f"prompt {number} was answered in another way")
            except Exception as error:  # reported by the main thread
                wrong.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert not wrong, wrong


def test_a_pause_is_of_its_thread(slim):
    model, ids, apart = causal_lm.tiny(), causal_lm.tiny_prompt(P), []
    with slim().apply(model) as applied:
        pruned = generate(model, ids)
        with applied.paused():
            worker = threading.Thread(target=lambda: apart.append(generate(model, ids)))
            worker.start()
            worker.join()
    assert torch.equal(apart[0], pruned)


def test_logits_wanted_once_are_not_wanted_again(slim):
    model, ids = causal_lm.tiny(), causal_lm.tiny_prompt(P)
    with slim().apply(model), torch.no_grad():
        first = model.model(ids).last_hidden_state
        model(ids, logits_to_keep=5)
        assert torch.equal(model.model(ids).last_hidden_state, first)


def test_paused_runs_the_dense_model(slim):
    model, ids = causal_lm.tiny(), causal_lm.tiny_prompt(P)
    dense = generate(model, ids)
    with slim().apply(model) as applied:
        pruned = generate(model, ids)
        with applied.paused():
            assert torch.equal(generate(model, ids), dense)
        assert torch.equal(generate(model, ids), pruned)
    assert not torch.equal(pruned, dense)
