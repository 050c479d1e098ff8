"""The semigroup defect of causal students, and the task that measures it."""

from __future__ import annotations

import pytest
import torch
from fewstep.applied import Applied
from fewstep.contract import Loaded
from fewstep.families import wan, wan_causal
from fewstep.train.chunk_rollout import CausalStudent, ChunkPlan
from fewstep.train.roles import Role
from fewstep_salt import Salt, defect_of
from fewstep_salt.defect import causal_defect_of
from fewstep_salt.task import SemigroupDefect


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_video_of_one_chunk_has_the_defect_of_the_whole_clip():
    cond, start = torch.randn(2, 5, wan.TEXT_WIDTH, generator=seeded(1)), torch.randn(2, 3, 2, 4, 4, generator=seeded())
    whole = defect_of(Role(wan.tiny()), cond, start)
    causal = wan.tiny()
    wan_causal.make_causal(causal, Applied())
    chunked = causal_defect_of(CausalStudent(Role(causal)), ChunkPlan(chunk=2), cond, start, eta=0.0)
    assert chunked.value == pytest.approx(whole.value, rel=1e-4) and whole.value > 0


def test_later_chunks_count_and_see_those_before():
    cond, start = torch.randn(1, 5, wan.TEXT_WIDTH, generator=seeded(1)), torch.randn(1, 3, 4, 4, 4, generator=seeded())
    network = wan.tiny()
    wan_causal.make_causal(network, Applied())
    student, plan = CausalStudent(Role(network)), ChunkPlan(chunk=2)
    both = causal_defect_of(student, plan, cond, start, eta=0.0)
    first, alone = (causal_defect_of(student, plan, cond, part, eta=0.0) for part in (start[:, :, :2], start[:, :, 2:]))
    triple = next(iter(both.gaps))
    assert both.gaps[triple] > first.gaps[triple]
    assert both.gaps[triple] != pytest.approx(first.gaps[triple] + alone.gaps[triple], rel=1e-6)


def test_the_task_measures_a_pipeline_as_it_makes_its_videos(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat runs\na dog sleeps\n", encoding="utf-8")
    task = SemigroupDefect(prompts=tmp_path / "prompts.txt", clips=2, frames=13, height=32, width=32)
    loaded = Loaded(model=wan.tiny_pipeline(), name="tiny", weights="random")
    whole = task.run(loaded, seeded()).quality["defect"]
    with Salt(chunk=2).apply(loaded.model):
        chunked = task.run(loaded, seeded()).quality["defect"]
    assert 0 < whole < 1 and 0 < chunked < 1 and chunked != whole
    assert task.run(loaded, seeded()).quality["defect"] == whole
