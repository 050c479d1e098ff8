"""Tiny networks of the real classes, batches for them, and training runs in processes that can be killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from fewstep.families import wan
from fewstep.train.objective import Batch
from fewstep.train.roles import Roles, full_roles, lora_roles

SHAPE = (3, 2, 4, 4)
FORKS = Path(__file__).with_name("forks.py")


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """A batch for the tiny Wan: `size` prompts of 5 tokens, all chance from `seed`."""

    def make(size: int = 3, seed: int = 0, **fields) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        cond, uncond = torch.randn(size, 5, 8, generator=generator), torch.zeros(1, 5, 8)
        shared = torch.Generator().manual_seed(seed)
        chance = {"generator": generator, "shared": shared}
        return Batch(**{"cond": cond, "uncond": uncond, "shape": SHAPE, **chance, **fields})

    return make


@pytest.fixture(params=["full", "lora"])
def roles(request: pytest.FixtureRequest) -> Roles:
    """Student, critic and teacher from one tiny network, with weights of their own or as adapters.

    Student and critic are moved off the teacher, so that no difference is zero by accident.
    """
    made = full_roles(wan.tiny()) if request.param == "full" else lora(wan.tiny())
    torch.manual_seed(1)
    for name in ("student", "critic"):
        for weight in made[name].parameters():
            weight.data += 0.05 * torch.randn_like(weight)
    return made


def lora(network: torch.nn.Module) -> Roles:
    return lora_roles(network, rank=2, alpha=4.0, targets=("to_q", "to_v", "ffn.net.2"))


@dataclass
class Ended:
    """A process that is over: its exit code (negative for a signal) and what it printed."""

    code: int
    said: str


@dataclass
class Forks:
    """A server that forks training processes; see ``forks.py``."""

    folder: Path
    server: subprocess.Popen
    base: list[str] = field(default_factory=list)

    def __call__(self, *words: str | Path, **order) -> Ended:
        """Run ``fewstep train dmd2`` on the tiny teacher in one process."""
        return self.ranks(1, *words, **order)[0]

    def ranks(self, count: int, *words: str | Path, environment: dict[str, str] | None = None, **order) -> list[Ended]:
        """Run it in `count` processes that know each other as torchrun's would."""
        argv = ["train", "dmd2", *self.base, *map(str, words)]
        port = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
        orders = [
            {
                "argv": argv,
                "cwd": str(self.folder),
                "out": str(self.folder / f"said-{rank}.txt"),
                "env": {**(environment or {}), **port, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                **order,
            }
            for rank in range(count)
        ]
        self.server.stdin.write(json.dumps(orders) + "\n")
        self.server.stdin.flush()
        self.server.stdout.readline()
        codes = json.loads(self.server.stdout.readline())
        return [Ended(code, Path(one["out"]).read_text()) for code, one in zip(codes, orders, strict=True)]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random WanPipeline, and ``prompts.txt`` beside it."""
    folder = tmp_path_factory.mktemp("teacher")
    wan.tiny_pipeline().save_pretrained(folder / "wan")
    (folder / "prompts.txt").write_text("a cat walks\n\na dog runs fast\nthree moving right\n")
    return folder / "wan"


@pytest.fixture(scope="session")
def forks(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """The server, with flags that make a run of the tiny teacher quick."""
    folder = tmp_path_factory.mktemp("runs")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FEWSTEP_")}
    environment |= {"FEWSTEP_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "FEWSTEP_PLUGINS": "core"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}  # read when the libraries are imported
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    size = ["--frames", "5", "--height", "32", "--width", "32", "--tokens", "6", "--batch", "2"]
    steps = ["--steps", "4", "--save-every", "2", "--critic-updates", "2", "--threads", "1", "--device", "cpu"]
    rates = ["--student.lr", "1e-3", "--critic.lr", "1e-3"]
    prompts = teacher.with_name("prompts.txt")
    with subprocess.Popen([sys.executable, str(FORKS)], env=environment, **pipes) as server:
        yield Forks(folder, server, ["--teacher", str(teacher), "--prompts", str(prompts), *size, *steps, *rates])
        server.stdin.close()


@pytest.fixture(scope="session")
def whole_run(forks: Forks) -> Path:
    """The folder of an uninterrupted run of four steps."""
    ended = forks("--out", "whole")
    assert ended.code == 0, ended.said
    return forks.folder / "whole"
