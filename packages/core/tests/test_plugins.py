"""Discovery with real distributions: folders with a dist-info on the path of a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = """
from fewstep.cards import Card, hookimpl

@hookimpl
def fewstep_methods():
    return [Card(name="{card}", summary="a toy", target="{module}.method:Toy")]
"""
METHOD = """
from dataclasses import dataclass
from fewstep import Applied, Method

@dataclass(frozen=True, kw_only=True)
class Toy(Method):
    name = "{card}"
    seams = frozenset()
    layers: tuple[int, ...] = (1,)

    def apply(self, model):
        return Applied()
"""
BROKEN = {
    "on import": ("1 / 0", "ZeroDivisionError"),
    "syntax": ("def (", "SyntaxError"),
    "missing dependency": ("import no_such_module_anywhere", "no_such_module_anywhere"),
    "in its hook": (GOOD.format(card="x", module="x").replace("return", "raise KeyError('oops')\n    return"), "oops"),
    "misspelt hook": (GOOD.format(card="x", module="x").replace("_methods", "_metods"), "fewstep_metods"),
    "wrong argument": (GOOD.format(card="x", module="x").replace("methods()", "methods(model)"), "model"),
}


def install(site: Path, name: str, code: str = GOOD, *, entry: str | None = None, card: str | None = None) -> None:
    """Lay out the distribution `name` as pip would."""
    module = name.replace("-", "_")
    (site / module).mkdir(parents=True)
    (site / module / "__init__.py").write_text("")
    words = {"card": card or name, "module": module}
    (site / module / "plugin.py").write_text(code.format(**words) if code is GOOD else code)
    (site / module / "method.py").write_text(METHOD.format(**words))
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fewstep]\n{entry or name} = {module}.plugin\n")


def python(code: str, *sites: Path, only: str | None = None) -> str:
    """What `code` prints in a fresh interpreter that has `sites` on its path; an exception is its last line."""
    env = {key: value for key, value in os.environ.items() if key != "FEWSTEP_PLUGINS"}
    env["PYTHONPATH"] = os.pathsep.join(map(str, sites))
    if only is not None:
        env["FEWSTEP_PLUGINS"] = only
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    return run.stdout.strip() if run.returncode == 0 else run.stderr.strip().splitlines()[-1]


NAMES = "from fewstep import plugins; print(*plugins.methods())"
FAILED = "from fewstep import plugins; plugins.methods(); print(*plugins.installed().broken)"


def test_a_plug_in_is_found_without_torch(tmp_path: Path):
    install(tmp_path, "toy-one")
    code = "import sys; from fewstep import plugins; print('toy-one' in plugins.methods(), 'torch' in sys.modules)"
    assert python(code, tmp_path) == "True False"


def test_one_distribution_seen_twice_on_the_path_is_one(tmp_path: Path):
    install(tmp_path / "a", "toy-one")
    install(tmp_path / "b", "toy-one")
    assert "toy-one" in python(NAMES, tmp_path / "a", tmp_path / "b").split()


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plug_in_is_reported_by_name_and_the_others_work(tmp_path: Path, kind: str):
    code, reason = BROKEN[kind]
    install(tmp_path, "mid-broken", code)
    install(tmp_path, "a-good")
    install(tmp_path, "z-good")
    assert {"a-good", "z-good"} <= set(python(NAMES, tmp_path).split())
    [failed] = python(FAILED, tmp_path).splitlines()
    assert failed.count("Broken(") == 1 and reason in failed
    assert "name='mid-broken'" in failed and "distribution='mid-broken'" in failed


def test_a_broken_plug_in_is_mentioned_where_its_name_is_asked_for(tmp_path: Path):
    install(tmp_path, "mid-broken", "1 / 0")
    error = python("from fewstep import plugins as p; p.find(p.methods(), 'mid-broken', 'method')", tmp_path)
    assert "no method is called 'mid-broken'" in error and "ZeroDivisionError" in error


def test_two_plug_ins_of_one_name_are_an_error_that_names_both_distributions(tmp_path: Path):
    install(tmp_path, "first-dist", entry="same")
    install(tmp_path, "second-dist", entry="same")
    error = python(NAMES, tmp_path)
    assert "FewstepError" in error and "first-dist" in error and "second-dist" in error and "'same'" in error


def test_two_cards_of_one_name_are_an_error_that_names_both_distributions(tmp_path: Path):
    install(tmp_path, "first-dist", card="same")
    install(tmp_path, "second-dist", card="same")
    error = python(NAMES, tmp_path)
    assert "FewstepError" in error and "first-dist" in error and "second-dist" in error and "'same'" in error
    assert "same" in python(NAMES, tmp_path, only="second-dist").split()  # what the message advises


def test_the_variable_chooses_plug_ins_and_core_stays(tmp_path: Path):
    for name in ("toy-one", "toy-two", "toy-three"):
        install(tmp_path, name)
    assert python(NAMES, tmp_path, only="toy-one,toy-three") == "toy-one toy-three"
    assert {"toy-one", "toy-two", "toy-three"} <= set(python(NAMES, tmp_path, only="").split())
    error = python(NAMES, tmp_path, only="toy-one,toy-fuor")
    assert "FEWSTEP_PLUGINS names toy-fuor" in error and "toy-two" in error
    kernels = "from fewstep import plugins; print(*plugins.kernels())"
    assert "unit-score" in python(kernels, tmp_path, only="toy-one").split()


def test_an_unknown_name_lists_the_nearest(tmp_path: Path):
    install(tmp_path, "toy-one")
    error = python("from fewstep import plugins as p; p.find(p.methods(), 'toyone', 'method')", tmp_path)
    assert error.startswith("fewstep.errors.UnknownNameError: no method is called 'toyone': did you mean toy-one")


def test_a_target_that_does_not_exist_says_so(tmp_path: Path):
    install(tmp_path, "toy-one", GOOD.format(card="toy-one", module="toy_one").replace("Toy", "Tay"))
    error = python("from fewstep import plugins as p; p.methods()['toy-one'].load()", tmp_path)
    assert error == "ImportError: toy_one.method has no 'Tay', which a card names as its target"


def test_a_saved_method_is_found_by_its_name_alone(tmp_path: Path):
    install(tmp_path, "toy-one")
    save = "from toy_one.method import Toy; Toy(layers=(3, 5)).save_pretrained('{}')".format(tmp_path / "saved")
    load = "from fewstep import Method; print(Method.from_pretrained('{}'))".format(tmp_path / "saved")
    assert python(save, tmp_path) == ""
    assert python(load, tmp_path) == "Toy(layers=(3, 5))"
    assert "no method is called 'toy-one'" in python(load)


def test_a_plug_in_may_have_hooks_of_its_own_whatever_the_order(tmp_path):
    spec = """
import pluggy
from fewstep.cards import hookimpl

class hookspecs:
    @pluggy.HookspecMarker("fewstep")
    def fewstep_rewards():
        "Rewards by name."

@hookimpl
def fewstep_rewards():
    return {"own": "zz.method:Toy"}
"""
    other = """
from fewstep.cards import hookimpl

@hookimpl
def fewstep_rewards():
    return {"other": "aa.method:Toy"}
"""
    install(tmp_path, "zz", spec)
    install(tmp_path, "aa", other)  # comes first by name
    code = """
from fewstep import plugins
found = plugins.installed()
print(sorted(name for one in found.manager.hook.fewstep_rewards() for name in one), found.broken)
"""
    assert python(code, tmp_path, only="aa,zz") == "['other', 'own'] []"
