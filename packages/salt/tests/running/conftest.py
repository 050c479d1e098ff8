"""Tiny pipelines and students of the real classes, saved as files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from fewstep.families import wan
from safetensors.torch import save_file

SMALL = {"num_frames": 13, "height": 32, "width": 32, "max_sequence_length": 8}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Give back the number of threads: the command line sets it, and tiny models are slow with more than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def sample():
    """Latents ``[1, 3, 4, 4, 4]`` of one prompt from a fixed seed, as a user would ask for them."""

    def call(pipe, prompt="a cat runs", **options):
        made = {"generator": torch.Generator().manual_seed(0), "output_type": "latent", **SMALL, **options}
        answer = pipe(prompt, **made)
        return answer.frames if made.get("return_dict", True) else answer[0]

    return call


@pytest.fixture
def pipe():
    return wan.tiny_pipeline()


@pytest.fixture(scope="session")
def student():
    """A transformer with other weights than the pipeline's."""
    return wan.tiny(seed=1)


@pytest.fixture(scope="session")
def full_file(student, tmp_path_factory):
    """All weights of the student, in diffusers' names."""
    path = tmp_path_factory.mktemp("student") / "full.safetensors"
    save_file(dict(student.state_dict()), path)
    return path
