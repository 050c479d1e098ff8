"""The recipes of panning worlds, two steps each, one on the other's result, through the real loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fewstep import load
from fewstep.train.dry_run import dry_run
from fewstep.train.parallel import World
from fewstep.train.recipe import Recipe
from fewstep.train.reporter import NullReporter
from fewstep.train.run import Run
from fewstep_zoo.worlds import data, model
from fewstep_zoo.worlds.recipes import Causal, Teacher
from fewstep_zoo.worlds.task import Worlds, WorldsContinuation
from fewstep_zoo.worlds.vae import WorldsVAE

SMALL = {"steps": 2, "batch": 2, "clips": 16, "show": 1}


def trained(recipe: Recipe, out: Path) -> str:
    return str(Run(recipe, out, World(), NullReporter()).train())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = tmp_path_factory.mktemp("worlds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_CACHE", str(made / "cache"))
        vae = trained(WorldsVAE(steps=2), made / "vae")
        causal = trained(Causal(**SMALL, vae=vae), made / "causal")
        teacher = trained(Teacher(**SMALL, vae=vae, start=causal), made / "teacher")
    assert len(list((made / "cache" / "worlds").iterdir())) == 1  # the clips were encoded once
    return {"vae": vae, "causal": causal, "teacher": teacher}


def test_an_untrained_vae_keeps_principal_components(folders: dict[str, str]):
    vae = load(folders["vae"]).model
    outcome = data.encoded(vae, 4, "tuning")
    assert (
        outcome.latents.shape == (4, 16, 21, 8, 8) and outcome.chunk.tolist()[1:] == [0, 0, 0] and outcome.chunk[0] > 0
    )
    assert 0.5 < outcome.latents.std() < 2  # normalised by its statistics


def test_the_pipelines_load_and_run_their_tasks(folders: dict[str, str]):
    generator = torch.Generator().manual_seed(0)
    made = Worlds(clips=2, batch=2, steps=2, frames=9, show=1).run(load(folders["teacher"]), generator)
    assert made.evidence.shape == (2, 9, 3, 64, 64) and made.quality["kernel_distance"] > 0
    gone_on = WorldsContinuation(clips=2, batch=2, steps=2, show=1).run(load(folders["causal"]), generator)
    assert gone_on.evidence.shape == (2, 81, 3, 64, 64)
    assert 5 < gone_on.quality["psnr"] < 25 and "psnr_chunk_6" in gone_on.quality
    assert gone_on.samples[0].image[8:12] == b"WEBP"


def test_a_causal_network_is_left_as_it_was_by_a_continuation(folders: dict[str, str]):
    loaded = load(folders["causal"])
    processors = [block.attn1.processor for block in loaded.model.transformer.blocks]
    WorldsContinuation(clips=1, batch=1, steps=1, show=1).run(loaded, torch.Generator().manual_seed(0))
    assert [block.attn1.processor for block in loaded.model.transformer.blocks] == processors


def test_frames_before_a_turn_have_no_weight(folders: dict[str, str]):
    pipe = load(folders["causal"]).model
    worlds = data.TurningWorlds(clips=data.encoded(pipe.vae, 16, "tuning"), embed=data.Embeddings(pipe))
    cond, latents = worlds.draw(64, torch.Generator().manual_seed(0))
    first = cond.weight.argmax(1)
    assert (first % model.CHUNK == 0).all() and len(first.unique()) > 2 and (cond.weight[:, -1] == 1).all()
    assert latents.shape[1:] == worlds.shape and cond.embeddings.shape == (64, model.TOKENS, model.TEXT_WIDTH)


@pytest.mark.parametrize("recipe", [WorldsVAE(), Causal(), Teacher()])
def test_plans_need_no_weights(recipe: Recipe):
    assert "student" in str(dry_run(recipe))
