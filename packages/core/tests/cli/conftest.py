"""A whole external plug-in in a folder of its own, and the real command line in a subprocess."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fewstep.testing.cli import run_command_line

PLUGIN = """
from fewstep.cards import Card, hookimpl

@hookimpl
def fewstep_methods():
    inputs, fit = "toy.method:Inputs", "toy.method:Fit"
    return [
        Card(name="skip", summary="leave out layers", target="toy.method:Skip", paper="2401.00001",
             models=("Net",), run=inputs, fit=fit, show="toy.method:describe"),
        Card(name="liar", summary="claims to do nothing", target="toy.method:Liar"),
    ]

@hookimpl
def fewstep_loaders():
    return [
        Card(name="toy-net", summary="four layers", target="toy.model:load"),
        Card(name="toy-noise", summary="four untrained layers", target="toy.model:load_random"),
    ]

@hookimpl
def fewstep_tasks():
    return [Card(name="walk", summary="walk through the layers", target="toy.task:Walk")]
"""
METHOD = '''
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from fewstep import Applied, Card, Method, UnsupportedModelError

@dataclass(frozen=True, kw_only=True)
class Skip(Method):
    """Leave out the last layers."""
    name: ClassVar[str] = "skip"
    seams: ClassVar[frozenset[str]] = frozenset({"layers"})
    formats: ClassVar[tuple[Card, ...]] = (Card(name="text", summary="its fields in words", target="toy.method:Text"),)
    keep: float = 0.5
    """Share of the layers that stays."""
    length: int = 1
    """Never fewer layers than this."""
    order: tuple[int, ...] | None = None
    """Which layers, if not the first."""

    def __post_init__(self):
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be in (0, 1], found {self.keep}")

    def apply(self, model):
        if type(model).__name__ != "Net":
            raise UnsupportedModelError(f"skip needs a Net, found {type(model).__name__}")
        with Applied() as undo:
            undo.occupy(model, self)
            count = max(self.length, round(self.keep * len(model.layers)))
            undo.set(model, "kept", self.order or tuple(range(count)))
            return undo.pop_all()

    def identity(self):
        return Skip(keep=1.0)

def describe(config, folder):
    return [("layers of " + folder.name, str(config["layers"]))]

@dataclass(frozen=True, kw_only=True)
class Liar(Skip):
    """Its identity setting is none."""
    name: ClassVar[str] = "liar"
    formats: ClassVar[tuple[Card, ...]] = ()

    def identity(self):
        return Liar(keep=0.5)

@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What to say."""
    prompt: str
    """Words."""

    def __call__(self, loaded, method):
        with method.apply(loaded.model):
            print(f"{self.prompt}: {len(loaded.model.kept)} layers, {method}")

@dataclass(frozen=True, kw_only=True)
class Fit:
    """How to search."""
    target: float = 0.25
    """Share to find."""

    def __call__(self, loaded, out: Path):
        return Skip(keep=self.target)

@dataclass(frozen=True, kw_only=True)
class Text:
    """How it is written."""
    greeting: str = "hello"
    """First word."""

    def __call__(self, method, folder: Path):
        folder.mkdir(parents=True)
        (folder / "method.txt").write_text(f"{self.greeting} {method}")
        return ["one file"]
'''
MODEL = """
import torch
from fewstep import Loaded

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(256, 256) for _ in range(4))

    def forward(self, x):
        for index in vars(self).get("kept", range(4)):
            x = x + torch.tanh(self.layers[index](x))
        return x

def load(*, dtype="float32", device="cpu", name="toy-net", weights="trained"):
    torch.manual_seed(0)
    model = Net().to(device, getattr(torch, dtype)).eval()
    return Loaded(model=model, name=name, weights=weights)

def load_random(*, dtype="float32", device="cpu"):
    return load(dtype=dtype, device=device, name="toy-noise", weights="random")
"""
TASK = '''
import dataclasses, time
from dataclasses import dataclass
from fewstep.bench.task import Outcome, Sample

@dataclass(frozen=True, kw_only=True)
class Walk:
    """Rows of noise through the layers."""
    length: int = 512
    """Rows."""
    endless: int = -1
    """Seed at which a run never ends."""
    nan: int = -1
    """Seed at which the quality is not a number."""

    def run(self, loaded, generator):
        import torch
        seed = generator.initial_seed()
        while seed == self.endless:
            pass
        x = torch.randn(self.length, 256, generator=generator).to(next(loaded.model.parameters()).dtype)
        start = time.perf_counter()
        with torch.no_grad():
            y = loaded.model(x)
        return Outcome(
            seconds={"forward": time.perf_counter() - start},
            quality={"size": float("nan") if seed == self.nan else y.abs().mean().item()},
            counts={"kv_bytes": float(y.nbytes)},
            evidence=y,
            samples=(Sample(title="first number of the input", text=f"{x[0, 0].item():.6f}"),),
        )

    def compare(self, outcome, baseline):
        return {"gap": (outcome.evidence - baseline.evidence).abs().max().item()}

    def small(self):
        return dataclasses.replace(self, length=8, endless=-1, nan=-1)
'''


def install(site: Path, name: str, files: dict[str, str], entry: str | None = None) -> Path:
    """Lay out the distribution `name` with the package of that name in `site`, as pip would."""
    module = name.replace("-", "_")
    (site / module).mkdir(parents=True)
    for file, code in {"__init__.py": "", **files}.items():
        (site / module / file).write_text(code)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fewstep]\n{entry or name} = {module}.plugin\n")
    return site


@pytest.fixture(name="install")
def install_fixture() -> Callable[..., Path]:
    """`install`, for plug-ins that one test needs."""
    return install


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the distribution ``toy``: two methods, two models, a task."""
    files = {"plugin.py": PLUGIN, "method.py": METHOD, "model.py": MODEL, "task.py": TASK}
    return install(tmp_path_factory.mktemp("site"), "toy", files)


@pytest.fixture
def environment(toy: Path) -> Callable[..., dict[str, str]]:
    """The environment of a subprocess in which ``toy`` (and what else is in `sites`) is installed."""

    def make(*sites: Path, **extra: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("FEWSTEP_")}
        path = os.pathsep.join(map(str, (toy, *sites, *filter(None, [os.environ.get("PYTHONPATH")]))))
        return {**kept, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", **extra}

    return make


@pytest.fixture
def fewstep(tmp_path: Path, toy: Path, environment: Callable) -> Callable[..., subprocess.CompletedProcess]:
    """Run ``fewstep`` in an empty folder, in a process of its own."""

    def run(*words: str | Path, sites: tuple[Path, ...] = (), **extra: str) -> subprocess.CompletedProcess:
        env = environment(*sites, **extra)
        return run_command_line(words, tmp_path, env=env, sites=(*sites, toy))

    return run
