"""The weights of panning worlds in this package: they load, go on with what they are given, and stream."""

from __future__ import annotations

import pytest
import torch
from fewstep import UnsupportedModelError, load
from fewstep.families import wan
from fewstep_zoo.worlds import clips, data, measures
from fewstep_zoo.worlds.task import Worlds, WorldsContinuation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def causal():
    return load("worlds-causal-wan")


def test_both_pipelines_have_the_vae_that_is_stored_once(causal):
    vae, teacher = load("worlds-vae").model, load("worlds-wan").model
    for pipe in (causal.model, teacher):
        assert type(pipe).__name__ == "WanPipeline" and pipe.vae.config.latents_mean == vae.config.latents_mean
        assert (pipe.vae_scale_factor_temporal, pipe.vae_scale_factor_spatial) == (4, 8)
    assert causal.weights == "trained" and causal.model.tokenizer.model_max_length == 16


def test_the_vae_keeps_worlds_that_it_never_saw():
    source = generator(5)
    made = clips.make(clips.draw_scenes(2, source), "held-out", source, frames=33).pixels
    vae = load("worlds-vae").model
    pipe = load("worlds-wan").model
    decoded = wan.decode(pipe, data.encode(vae, made))
    assert measures.psnr_by_chunk(decoded, made.transpose(1, 2) / 2 + 0.5).mean() > 26


def test_a_true_beginning_is_gone_on_with_better_than_by_standing_still(causal):
    outcome = WorldsContinuation(clips=4, batch=4, steps=8, show=2).run(causal, generator())
    source = generator()
    truth = clips.make(clips.draw_scenes(4, source), "held-out", source).pixels.transpose(1, 2) / 2 + 0.5
    still = truth.clone()
    still[:, 9:] = truth[:, 8:9]
    without = measures.psnr_by_chunk(still, truth).mean(0)
    for chunk in (1, 2, 3):
        assert outcome.quality[f"psnr_chunk_{chunk}"] > without[chunk] + 1, chunk


def test_another_pipeline_is_refused():
    for task in (Worlds(), WorldsContinuation()):
        with pytest.raises(UnsupportedModelError, match="worlds-wan"):
            task.run(load("digits-wan"), generator())
