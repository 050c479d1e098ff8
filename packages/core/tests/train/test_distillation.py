"""The DMD2 recipe on a tiny real pipeline: what it leaves loads without us, and says what it would take."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from fewstep import BadFileError, FewstepError, flow
from fewstep.families import wan
from fewstep.train import prompts as cache
from fewstep.train.distillation import DMD2Recipe
from fewstep.train.dry_run import dry_run
from fewstep.train.parallel import World
from PIL import Image

SMALL = {"frames": 5, "height": 32, "width": 32, "tokens": 6, "batch": 2}
CALL = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 6, "guidance_scale": 1.0}


def sampled(pipe: WanPipeline, steps: int = 4) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("a cat walks", num_inference_steps=steps, generator=generator, output_type="latent", **CALL).frames


def test_the_student_is_an_ordinary_pipeline_that_walks_its_steps(whole_run):
    pipe = WanPipeline.from_pretrained(whole_run / "student")
    latents = sampled(pipe)
    torch.testing.assert_close(pipe.scheduler.timesteps, flow.StepGrid().timesteps.float(), rtol=1e-6, atol=0)
    trained = WanTransformer3DModel.from_pretrained(whole_run / "student", subfolder="transformer")
    cond = pipe.encode_prompt("a cat walks", max_sequence_length=6)[0]
    noisy = torch.randn(1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for sigma, following in zip((grid := [*flow.StepGrid().sigmas.tolist(), 0.0]), grid[1:], strict=False):
        timestep = torch.full((1,), 1000 * sigma)
        velocity = trained(hidden_states=noisy, timestep=timestep, encoder_hidden_states=cond, return_dict=False)[0]
        noisy = flow.euler(noisy, velocity.detach(), sigma, following)
    torch.testing.assert_close(latents, noisy, rtol=1e-3, atol=1e-4)


def test_a_student_does_not_tell_where_its_teacher_lay(whole_run, teacher):
    files = list((whole_run / "student").rglob("*.json"))
    assert len(files) > 4
    assert not [path for path in files if str(teacher.parent) in path.read_text()]


def test_a_lora_student_loads_into_the_teacher_pipeline(forks, teacher, tmp_path):
    words = "--lora-rank", "2", "--lora-alpha", "6", "--lora-targets", "to_q", "to_v", "--ema", "0.5"
    ended = forks("--out", tmp_path / "run", *words)
    assert ended.code == 0, ended.said
    student = tmp_path / "run/student"
    assert sorted(path.name for path in student.iterdir()) == ["pytorch_lora_weights.safetensors", "scheduler"]
    pipe = WanPipeline.from_pretrained(
        teacher, scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(student / "scheduler")
    )
    before = sampled(pipe)
    pipe.load_lora_weights(student)
    after = sampled(pipe)
    assert (after - before).abs().max() > 1e-3
    # the same by hand from the averages of the checkpoint, with alpha / rank = 3
    network = wan.tiny()
    from safetensors.torch import load_file

    averages = load_file(tmp_path / "run/checkpoints/step-00000004/average.safetensors")
    for name, a in averages.items():
        if ".lora_A." in name:
            layer = network.get_submodule(name.partition(".lora_A.")[0])
            layer.weight.data += 3 * averages[name.replace(".lora_A.", ".lora_B.")] @ a
    pipe.unload_lora_weights()
    pipe.transformer = network
    torch.testing.assert_close(sampled(pipe), after, rtol=1e-3, atol=1e-4)


def test_folder_of_a_run(whole_run):
    assert sorted(p.name for p in whole_run.iterdir()) == ["checkpoints", "log.jsonl", "run.json", "samples", "student"]
    lines = [json.loads(line) for line in (whole_run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["critic/updates"] for line in lines] == [2, 4, 6, 8]
    assert all(a["seconds"] < b["seconds"] for a, b in zip(lines, lines[1:], strict=False))
    assert json.loads((whole_run / "run.json").read_text())["fields"]["guidance"] == 3.0
    with Image.open(whole_run / "samples/step-00000004.png") as grid:
        assert grid.size == (5 * 64, 4 * 64)


def test_lines_when_piped(forks, tmp_path):
    said = forks("--out", "piped").said.splitlines()
    heads = [line.split()[0] for line in said]
    assert heads[0] == "[1/4]", "between the first and the last step one line every few seconds"
    assert [head for head in heads if head not in ("[2/4]", "[3/4]")] == [
        "[1/4]", "saved", "[4/4]", "saved", "samples:", "the",
    ]  # fmt: skip
    last = next(line for line in said if line.startswith("[4/4]"))
    assert re.fullmatch(r"\[4/4\] student/dmd \d\S+, critic/velocity \d\S+", last)


def test_samples_do_not_disturb_the_training(forks, whole_run, tmp_path):
    assert forks("--out", tmp_path / "run", "--sample-every", "1").code == 0
    assert len(list((tmp_path / "run/samples").iterdir())) == 4
    weights = "checkpoints/step-00000004/student.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (whole_run / weights).read_bytes()


@pytest.mark.parametrize(
    "words", [("--precision", "bfloat16"), ("--recompute",), ("--count", "critic"), ("--eta", "1")]
)
def test_other_ways_to_train(forks, whole_run, tmp_path, words):
    ended = forks("--out", tmp_path / "run", *words)
    assert ended.code == 0, ended.said
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    exact = [json.loads(line) for line in (whole_run / "log.jsonl").read_text().splitlines()]
    if words == ("--recompute",):
        assert lines[-1]["student/dmd"] == pytest.approx(exact[-1]["student/dmd"], rel=1e-3)
    if words == ("--count", "critic"):
        assert [line["student/updates"] for line in lines] == [1, 1, 2, 2]
        assert ["student/dmd" in line for line in lines] == [True, False, True, False]
    if words == ("--precision", "bfloat16"):
        assert lines[0]["critic/velocity"] == pytest.approx(exact[0]["critic/velocity"], rel=0.05)
        assert lines[0]["critic/velocity"] != exact[0]["critic/velocity"]


class TestPrompts:
    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))

    def data(self, prompts: list[str], negative: str = "a") -> cache.PromptData:
        world, shape = World(), (3, 2, 4, 4)
        return cache.embedded(wan.tiny_pipeline(), "tiny", prompts, negative, tokens=6, shape=shape, world=world)

    def test_embeddings_are_those_of_the_pipeline(self):
        data = self.data(["a cat walks", "fast"])
        pipe = wan.tiny_pipeline()
        embeddings, _ = pipe.encode_prompt(["a cat walks", "fast"], max_sequence_length=6)
        torch.testing.assert_close(data.take([0, 1]), embeddings)
        torch.testing.assert_close(data.uncond, pipe.encode_prompt("a", max_sequence_length=6)[0])

    def test_they_are_computed_once(self, monkeypatch):
        prompts = [f"a cat {i}" for i in range(cache.CHUNK + 3)]
        data = self.data(prompts)
        files = {path: path.stat().st_mtime_ns for path in data.folder.iterdir()}
        assert len(files) == 3
        again = self.data(prompts)
        assert again.folder == data.folder
        assert {path: path.stat().st_mtime_ns for path in data.folder.iterdir()} == files
        assert self.data([*prompts, "more"]).folder != data.folder
        assert self.data(prompts, negative="fast").folder != data.folder

    def test_what_an_interrupted_run_embedded_is_kept(self):
        prompts = [f"a cat {i}" for i in range(2 * cache.CHUNK)]
        data = self.data(prompts)
        first, second = sorted(data.folder.glob("0*.safetensors"))
        stamp = first.stat().st_mtime_ns
        second.unlink()
        again = self.data(prompts)
        assert second.exists() and first.stat().st_mtime_ns == stamp
        assert again.take([cache.CHUNK]).shape == (1, 6, 8)

    def test_draws_are_uniform_and_repeatable(self):
        data = self.data(["a", "a cat", "a cat walks"])
        drawn, x0 = data.draw(3000, torch.Generator().manual_seed(0))
        assert x0 is None
        rows = drawn.abs().sum(2).count_nonzero(1).bincount(minlength=4)[1:]
        assert rows.tolist() == pytest.approx([1000, 1000, 1000], abs=120)
        assert torch.equal(drawn, data.draw(3000, torch.Generator().manual_seed(0))[0])

    def test_a_damaged_file_is_named(self):
        data = self.data(["a"])
        file = data.folder / "000000.safetensors"
        file.write_bytes(file.read_bytes()[:20])
        with pytest.raises(BadFileError, match="000000.safetensors are damaged.*remove that file"):
            self.data(["a"]).take([0])

    @pytest.mark.parametrize(
        ("content", "message"), [(b"\n \n", "no prompt"), (b"\xff\xfe", "not UTF-8"), (None, "cannot")]
    )
    def test_bad_prompt_files(self, tmp_path, content, message):
        path = tmp_path / "prompts.txt"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BadFileError, match=message):
            cache.read_prompts(path)


def recipe(teacher: str | Path, **fields) -> DMD2Recipe:
    return DMD2Recipe(teacher=str(teacher), prompts=Path("none.txt"), **fields)


class TestPlan:
    def test_parameters_are_those_of_the_networks(self, teacher):
        plan = dry_run(recipe(teacher, **SMALL))
        count = sum(weight.numel() for weight in wan.tiny().parameters())
        assert plan.roles == {"student": (count, count), "critic": (count, count), "teacher": (count, 0)}
        assert plan.latent == (3, 2, 4, 4)

    def test_memory_of_the_weights_and_what_training_adds(self, teacher):
        count = sum(weight.numel() for weight in wan.tiny().parameters())
        chosen = recipe(teacher, ema=0.9, lora_rank=1, lora_targets=("to_q",), **SMALL)
        plan = {variant.name: variant for variant in dry_run(chosen).variants}
        full, lora = plan["all weights"], plan["LoRA of rank 1"]
        adapter = 2 * 2 * (24 + 24)  # two layers of two attentions, A and B of width 24
        assert full.weights == 3 * 4 * count and lora.weights == 4 * (count + 2 * adapter)
        assert full.training == 4 * (count + 2 * 2 * count + count)
        assert lora.training == 4 * (adapter + 2 * 2 * adapter + adapter)
        for name in ("all weights", "LoRA of rank 1"):
            assert plan[name + ", activations recomputed"].activations < plan[name].activations
        assert full.bytes(1) == full.weights + full.training + full.activations
        assert full.bytes(32) < full.bytes(8) < full.bytes(1)

    def test_activations_are_what_autograd_keeps(self, teacher, make_batch):
        """The same phase with real tensors, its kept tensors counted; only attention is counted another way."""
        chosen = recipe(teacher, **SMALL)
        planned = {variant.name: variant.activations for variant in dry_run(chosen).variants}["all weights"]
        objective = chosen.objective(chosen._roles(wan.tiny()))
        weights = {weight.data_ptr() for weight in objective.roles.student.parameters()}
        weights |= {weight.data_ptr() for weight in objective.roles.critic.parameters()}
        largest = 0
        for role in ("student", "critic"):
            kept: dict[int, int] = {}

            def keep(tensor, kept=kept):
                if tensor.data_ptr() not in weights:
                    kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            batch = make_batch(2, cond=torch.randn(2, 6, 8), uncond=torch.zeros(1, 6, 8))
            with objective.roles.updating(role), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
                losses = objective.losses(role, batch, 0)
            largest = max(largest, sum(kept.values()))
            assert losses
        assert planned == pytest.approx(largest, rel=0.15)

    @pytest.mark.slow
    def test_a_real_model_is_planned_without_it(self):
        plan = dry_run(recipe("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", precision="bfloat16", batch=1))
        assert plan.roles["student"][0] == pytest.approx(1.42e9, rel=0.01)
        assert plan.latent == (16, 21, 60, 104)
        weights = {variant.name: variant.weights for variant in plan.variants}
        assert weights["all weights"] == pytest.approx((4 + 4 + 2) * 1.42e9, rel=0.01)
        assert 2 * 1.42e9 < weights["LoRA of rank 64"] < 1.3 * 2 * 1.42e9

    def test_an_unknown_model_is_refused(self):
        with pytest.raises(FewstepError, match="'me/mine' are not known.*Wan2.1-T2V-1.3B"):
            dry_run(recipe("me/mine"))


def test_dry_run_prints_the_plan_and_touches_nothing(forks, tmp_path):
    ended = forks("--dry-run", "--out", tmp_path / "run")
    assert ended.code == 0, ended.said
    assert not (tmp_path / "run").exists()
    assert re.search(r"student +19,444 +19,444", ended.said)
    for part in (
        "32 GPUs",
        "LoRA of rank 64, activations recomputed",
        "4 steps; every 2 steps a checkpoint",
        "pipeline folder",
    ):
        assert part in ended.said


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--height", "40"), ("5 frames of 40x32", "height a multiple of 16")),
        (("--raw-steps", "750", "500"), ("fall from 1000",)),
        (("--critic-updates", "0"), ("at least one critic update",)),
        (("--batch", "0"), ("batch must be at least 1",)),
        (("--prompts", "nowhere.txt"), ("nowhere.txt", "cannot be read")),
        (("--teacher", "me/mine", "--device", "cpu"), ("me/mine", "offline")),
        (("--threads", "0"), ("threads must be at least 1",)),
        (("--tracker", "wandb"), ("pip install wandb",)),
        (("--student.lr", "0"), ("lr > 0",)),
        (("--precision", "int3"), ("'int3'", "bfloat16")),
        (("--lora-rank", "2", "--lora-targets", "nothing"), ("nothing",)),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_wrong_words_are_one_line(forks, tmp_path, words, parts):
    ended = forks("--out", tmp_path / "run", *words)
    assert ended.code == 2 and ended.said.count("\n") == 1, ended.said
    assert ended.said.startswith("fewstep: ") and all(part in ended.said for part in parts), ended.said
