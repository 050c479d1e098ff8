"""``fewstep train`` up to the training: names, flags and defaults of recipes that plug-ins bring."""

from __future__ import annotations

import pytest

PLUGIN = """
from fewstep.cards import Card, hookimpl

@hookimpl
def fewstep_recipes():
    return [
        Card(name="walk", summary="learn to walk", target="gym.recipe:Walk"),
        Card(name="run", summary="learn to run", target="gym.recipe:run"),
    ]
"""
RECIPE = '''
from dataclasses import dataclass
from fewstep.train.optim import AdamW
from fewstep.train.recipe import Recipe

@dataclass(frozen=True, kw_only=True)
class Walk(Recipe):
    """Learn to walk."""
    speed: float = 1.0
    """Of walking."""
    student: AdamW = AdamW(lr=1e-3)
    """Optimiser of the legs."""

    def optimisers(self):
        return {"student": self.student}

    def build(self, world):
        raise ValueError(f"cannot walk at {self.speed} in {self.steps} steps with {self.student}")

    def skeleton(self):
        raise NotImplementedError

def run():
    """Walk, but faster."""
    return Walk(speed=3.0, steps=7, student=AdamW(lr=0.5, warmup=2))
'''


@pytest.fixture
def gym(install, tmp_path):
    return install(tmp_path / "site", "gym", {"plugin.py": PLUGIN, "recipe.py": RECIPE})


def test_recipes_are_listed_and_shown(fewstep, gym):
    listed = fewstep("list", sites=(gym,)).stdout
    assert "recipes" in listed and "dmd2" in listed and "arXiv:2405.14867" in listed and "learn to run" in listed
    shown = fewstep("show", "run", sites=(gym,)).stdout
    assert "run (recipe): learn to run" in shown and "Walk, but faster." in shown
    values = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert values["speed"].split(maxsplit=2)[1:] == ["3.0", "Of walking."] and values["steps"].split()[1] == "7"
    assert "required" in next(line for line in fewstep("show", "dmd2").stdout.splitlines() if "teacher" in line)


def test_defaults_are_those_of_the_named_recipe(fewstep, gym):
    said = fewstep("train", "run", "--help", sites=(gym,)).stdout
    for part in ("--speed FLOAT", "(default: 3.0)", "(default: 7)", "--student.lr FLOAT", "(default: 0.5)", "--resume"):
        assert part in said
    words = "--out", "o", "--device", "cpu", "--student.lr", "0.25"
    ended = fewstep("train", "run", *words, sites=(gym,))
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "cannot walk at 3.0 in 7 steps with AdamW(lr=0.25" in ended.stderr and "warmup=2" in ended.stderr
    ended = fewstep("train", "walk", *words, "--steps", "9", sites=(gym,))
    assert "cannot walk at 1.0 in 9 steps with AdamW(lr=0.25" in ended.stderr and "warmup=0" in ended.stderr


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "needs the name of a recipe first; installed: "),
        (("dmd3",), "no recipe is called 'dmd3': did you mean dmd2"),
        (("dmd2",), "--teacher"),
        (("dmd2", "--lr", "3"), "--lr"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_words(fewstep, words, part):
    ended = fewstep("train", *words)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and part in ended.stderr
