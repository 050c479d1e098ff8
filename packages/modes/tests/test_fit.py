"""Calibration and search: results, number of passes, going on after a kill, options (card, tests 23, 24)."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from fewstep.contract import Loaded
from fewstep.errors import FewstepError
from fewstep.families import moe, tiny_moe
from fewstep.families.vlm import TEXT, VISION, special_ids
from fewstep.fitting import Journal
from fewstep_modes import DMT, GMLG, NAEE, Evaluator, MCMoE, MoDES, Reference, Single, calibrate, search
from fewstep_modes.baselines import places, saliency
from fewstep_modes.calibration import Importance, without_layer
from fewstep_modes.fit import FitGMLG, FitMCMoE, FitMoDES, FitReduceK
from fewstep_modes.frontier import bisect, exhaustive, official_grid, quantile_grid

TARGETS = (0.3, 0.6)


def fitted(model, batches, journal=None, size=8):
    reference = Reference(model, batches)
    importance = calibrate(reference, journal=journal)
    evaluate = Evaluator(reference, journal)
    return search(evaluate, MoDES(), TARGETS, importance=importance, size=size), evaluate, importance


def test_experts_of_vision_tokens_in_the_last_layer_are_free(model, batches):
    importance = calibrate(Reference(model, batches))
    # products of fewer rows may round the rows that stay differently, where there are several threads
    assert importance.vision[-1] == pytest.approx(0, abs=1e-6)
    assert min(importance.vision[:-1]) > 1e-4 and min(importance.text) > 1e-4


def test_data_twice_or_in_another_order_gives_the_same(model, batches):
    first, _, before = fitted(model, batches, size=5)
    for data in ([*batches, *batches], batches[::-1]):
        again, _, after = fitted(model, data, size=5)
        assert after.text == pytest.approx(before.text, rel=1e-6) and after.vision == pytest.approx(
            before.vision, rel=1e-6
        )
        for a, b in zip(first.points, again.points, strict=True):
            assert a["tau_text"] == pytest.approx(b["tau_text"], rel=1e-5)
            assert a["tau_vision"] == pytest.approx(b["tau_vision"], rel=1e-5)


def test_all_tokens_at_once_as_in_the_paper(model, batches):
    importance = calibrate(Reference(model, batches), per_modality=False)
    assert importance.text == importance.vision and min(importance.text) > 0


def test_squared_error_is_another_importance(model, batches):
    squared = calibrate(Reference(model, batches, loss="mse"))
    assert squared.text != calibrate(Reference(model, batches)).text and squared.vision[-1] == 0


@pytest.mark.parametrize("disabled", ["zero", "identity"])
@pytest.mark.parametrize("family", ["qwen3_vl_moe", "deepseek_v3", "gpt_oss"])
def test_without_routed_experts_the_shared_ones_run_on(family, disabled, logits):
    model, inputs = tiny_moe.tiny(family), tiny_moe.tiny_inputs(family)
    sites, seen = moe.sites(model), {}
    chosen = sites[0]
    taken = inputs["input_ids"] != tiny_moe.IMAGE
    taken &= (inputs["input_ids"] != tiny_moe.START) & (inputs["input_ids"] != tiny_moe.END)
    chosen.block.register_forward_hook(lambda _, args, out: seen.update(given=args[0], dense=out))
    logits(model, inputs)
    dense = seen["dense"][0] if isinstance(seen["dense"], tuple) else seen["dense"]
    following = model.get_decoder().layers[chosen.layer + 1]
    with without_layer(sites, chosen, TEXT, disabled)(model):
        following.register_forward_pre_hook(lambda _, args: seen.update(after=args[0]))
        chosen.block.register_forward_pre_hook(lambda _, args: seen.update(given=args[0]))
        model.get_decoder().layers[chosen.layer].post_attention_layernorm.register_forward_pre_hook(
            lambda _, args: seen.update(residual=args[0])
        )
        logits(model, inputs)
    output, given = seen["after"] - seen["residual"], seen["given"]
    with torch.no_grad():
        expected = chosen.block.shared_experts(given) if chosen.shared else torch.zeros_like(given)
    expected = expected + given if disabled == "identity" else expected
    torch.testing.assert_close(output[taken], expected[taken], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output[~taken], dense[~taken], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3_moe", "internvl-gpt_oss", "deepseek_v3"])
def test_other_families_are_fitted_too(family):
    model, inputs = tiny_moe.tiny(family), tiny_moe.tiny_inputs(family)
    mask = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    mask[:, -3:] = True
    method, _, importance = fitted(model, [{"inputs": inputs, "score_mask": mask}])
    assert min(importance.text) > 0
    assert all(point["ratio"] >= point["target"] for point in method.points)


def test_the_frontier_needs_few_evaluations_and_is_as_good_as_the_whole_grid(model, batches):
    size = 6
    method, evaluate, importance = fitted(model, batches, size=size)
    assert evaluate.passes <= len(TARGETS) * (2 * size + 1)
    whole = search(evaluate, MoDES(), TARGETS, importance=importance, size=size, best=exhaustive)
    for point, best in zip(method.points, whole.points, strict=True):
        assert point["ratio"] >= point["target"] and point["kl"] >= best["kl"]


class Killed(Exception):
    """Raised in place of a kill."""


class MortalJournal(Journal):
    """Dies after so many lines, leaving half of one."""

    left = 3

    def put(self, key, value):
        if self.left == 0:
            with open(self.path, "a") as file:
                file.write('[["evaluation", "mod')
            raise Killed
        self.left -= 1
        return super().put(key, value)


def test_a_fit_that_is_killed_anywhere_goes_on_where_it_was(model, batches, tmp_path):
    expected, _, _ = fitted(model, batches, size=4)
    lines, times = 0, 0
    while True:
        try:
            journal = MortalJournal(tmp_path / "fit.jsonl", "data")
            resumed, _, _ = fitted(model, batches, journal, size=4)
            break
        except Killed:
            times += 1
            now = (tmp_path / "fit.jsonl").read_text().count("\n")
            assert now == lines + 3
            lines = now
    assert times > 4
    keys = [line.rsplit(', {"kl"')[0] for line in (tmp_path / "fit.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)), "something was measured twice"

    def settings(method):
        return [{k: v for k, v in point.items() if k != "seconds"} for point in method.points]

    assert settings(resumed) == settings(expected)
    assert resumed.alpha_text == expected.alpha_text and resumed.alpha_vision == expected.alpha_vision


def test_another_fit_in_the_same_folder_is_refused(tmp_path):
    Journal(tmp_path / "fit.jsonl", {"seed": 0}).put("a", 1)
    assert Journal(tmp_path / "fit.jsonl", {"seed": 0}).get("a") == 1
    with pytest.raises(FewstepError, match="other settings"):
        Journal(tmp_path / "fit.jsonl", {"seed": 1})
    assert Journal(tmp_path / "fit.jsonl", {"seed": 1}, resume=False).get("a") is None
    (tmp_path / "fit.jsonl").write_text("nonsense\n")
    with pytest.raises(FewstepError, match="fit.jsonl:1 is damaged"):
        Journal(tmp_path / "fit.jsonl", {})


def test_a_ratio_out_of_reach_is_said_in_one_sentence(model, batches):
    evaluate = Evaluator(Reference(model, batches))
    with pytest.raises(FewstepError, match="0.99 cannot be reached: special tokens"):
        search(evaluate, DMT(), (0.99,), size=4)
    (point,) = bisect(evaluate, Single(), (0.99,)).points
    assert point["tau"] == 1 and 0.9 < point["ratio"] < 0.99


def test_baselines_come_close_to_the_ratio_that_is_wanted(model, batches):
    reference = Reference(model, batches)
    evaluate, shared = Evaluator(reference), Importance.normalised(calibrate(reference).shared)
    for method in (Single(), NAEE(), MCMoE(), GMLG(alpha_text=shared, alpha_vision=shared)):
        points = bisect(evaluate, method, TARGETS).points
        assert [point["ratio"] for point in points] == pytest.approx(TARGETS, abs=0.02), method.name
    dmt = search(evaluate, DMT(), TARGETS, size=6)
    assert isinstance(dmt, DMT) and dmt.alpha_text == () and len(dmt.points) == 2


def test_data_without_a_scored_position_is_refused(model, batches):
    empty = [{**batch, "score_mask": torch.zeros_like(batch["score_mask"])} for batch in batches]
    with pytest.raises(FewstepError, match="scores no position"):
        Reference(model, empty)


def test_grids():
    assert official_grid(100, 0.71)[0] == pytest.approx(9.1e-5, rel=0.01)
    assert official_grid(100, 0.71)[-1] == pytest.approx(0.1043, rel=0.01)
    assert official_grid(100, 0.60)[-1] == pytest.approx(0.0360, rel=0.01)
    scores = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    grid = quantile_grid([scores[:300], scores[300:]], 11)
    assert grid[0] == 0 and grid == sorted(grid) and grid[-1] > scores.max()
    assert [(scores < tau).float().mean().item() for tau in grid] == pytest.approx(
        [i / 10 for i in range(11)], abs=0.002
    )
    assert quantile_grid([], 3) == [0.0, 0.0, 0.0]


def test_tokens_are_ranked_within_their_prompt():
    modality = torch.tensor([[-1, 1, 1, 1], [1, 1, 2, 2]], dtype=torch.int8)
    hidden = torch.tensor([9.0, 3, 1, 2, 4, 3, 2, 1])[:, None]
    assert places(hidden, modality).tolist() == [
        [0, pytest.approx(2 / 3), 0, pytest.approx(1 / 3)],
        [0.75, 0.5, 0.25, 0],
    ]


def test_an_expert_that_gives_nothing_has_no_saliency(model, batches):
    scores = saliency(model, batches)
    assert all(of_layer.shape == (8,) and (of_layer >= 0).all() for of_layer in scores.values())
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.experts.down_proj[5] = 0
    assert saliency(model, batches)[1][5] == 0 < scores[1][5]


def test_vision_experts_are_skipped_first(model, batches):
    method, _, importance = fitted(model, batches)
    with method.apply(model) as applied:
        for batch in batches:
            model(**batch["inputs"])
    assert applied.counts.share(layer=2, modality=VISION) >= applied.counts.share(layer=0, modality=VISION)
    assert sum(importance.vision) < sum(importance.text)


OTHER = {
    "samples": 3, "batch": 1, "task": "moe-latency", "seed": 1, "pack": True, "resume": False, "targets": (0.5,),
    "size": 4, "grid": "official", "score": "full_softmax", "per_modality": False, "disabled": "identity",
    "loss": "mse", "prune": False, "special": (11, 12, 14), "data": "other.jsonl", "remove": 0.25,
}  # fmt: skip
"""Another value of every option."""


@pytest.fixture
def folder(tmp_path: Path):
    """A model that reads text, and two files of questions with the same words and other answers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 3, **{f"w{n}": n for n in range(10, 30)}}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    processor = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    for name, shift in (("some.jsonl", 0), ("other.jsonl", 1)):
        asked = [(f"w{10 + n} w12 w13", f"w{14 + n + shift} w16") for n in range(4)]
        text = "\n".join(f'{{"prompt": "{prompt}", "answer": "{answer}"}}' for prompt, answer in asked)
        (tmp_path / name).write_text(text)
    return tmp_path, Loaded(model=tiny_moe.tiny("qwen3_moe"), name="tiny", processor=processor)


@pytest.mark.parametrize("option", [field.name for field in fields(FitMoDES)])
def test_no_stored_result_is_used_under_another_setting(folder, option):
    path, loaded = folder
    default = FitMoDES(data=path / "some.jsonl", samples=2, targets=(0.4,), size=3)
    if option == "batch":  # data of a file come one by one
        default = replace(default, data=None, task="moe-latency")
    changed = replace(default, **{option: path / OTHER[option] if option == "data" else OTHER[option]})
    if option == "task":
        changed = replace(changed, data=None)
    before, fresh = default(loaded, path / "one"), changed(loaded, path / "two")
    try:
        again = changed(loaded, path / "one")
    except FewstepError as error:
        assert "was made with other settings" in str(error)
    else:
        assert without_seconds(again) == without_seconds(fresh)
    assert without_seconds(default(loaded, path / "three")) == without_seconds(before)


def without_seconds(method):
    points = tuple({k: v for k, v in point.items() if k != "seconds"} for point in method.points)
    return replace(method, points=points)


def test_special_ids_are_those_of_tokenizer_and_configuration_unless_given(folder):
    path, loaded = folder
    loaded.processor.eos_token = "w16"
    options = FitReduceK(data=path / "some.jsonl", samples=2, targets=(0.1,))
    assert options(loaded, path / "one").special == (*special_ids(loaded.model), 3, 16)
    assert replace(options, special=(5,))(loaded, path / "two").special == (5,)
    with pytest.raises(FewstepError, match="was made with other settings"):
        replace(options, special=(5,))(loaded, path / "one")


def test_experts_of_special_tokens_are_not_taken_away(model, batches):
    reference = Reference(model, batches)
    every = calibrate(reference, special=range(97))
    assert every.text == (0.0,) * 3 and every.vision == calibrate(reference).vision


@pytest.mark.parametrize("fit", [FitReduceK, FitMCMoE, FitGMLG])
def test_fits_of_baselines_resume(folder, fit):
    path, loaded = folder
    options = fit(data=path / "some.jsonl", samples=2, targets=(0.3, 0.5))
    first = options(loaded, path / "out")
    log = (path / "out/fit.jsonl").read_text()
    assert options(loaded, path / "out") == first and (path / "out/fit.jsonl").read_text() == log
    assert [point["ratio"] for point in first.points] == pytest.approx([0.3, 0.5], abs=0.1)


def test_another_type_of_numbers_is_another_setting(folder):
    path, loaded = folder
    options = FitMoDES(data=path / "some.jsonl", samples=2, targets=(0.4,), size=3)
    options(loaded, path / "out")
    half = replace(loaded, model=loaded.model.to(torch.bfloat16))
    with pytest.raises(FewstepError, match="was made with other settings"):
        options(half, path / "out")
