"""A method saved and read again: all of its fields, its weights, and what damaged files say."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from fewstep import Applied, BadFileError, Method, hub
from safetensors.torch import load_file, save_file


@dataclass(frozen=True, kw_only=True)
class Toy(Method):
    """A toy with one field of every kind."""

    name: ClassVar[str] = "toy"
    seams: ClassVar[frozenset[str]] = frozenset({"toy"})

    keep: float = 0.25
    steps: int = 4
    mode: str = "dot"
    flag: bool = False
    limit: int | None = None
    layers: tuple[int, ...] = (15, 21, 28)
    budgets: tuple[tuple[str, float], ...] = ()
    policy: str | Path | None = hub.weights()

    def apply(self, model: Any) -> Applied:
        return Applied()


@dataclass(frozen=True, kw_only=True)
class Other(Toy):
    name: ClassVar[str] = "other"


FIELDS = [
    {},
    {"keep": 0.1 + 0.2, "steps": -1, "mode": 'ü "quoted"\n', "flag": True, "limit": 2**40},
    {"layers": (), "budgets": (("a", 0.5), ("b", 1e-9))},
]


@pytest.mark.parametrize("fields", FIELDS)
def test_every_field_comes_back_equal_and_hashable(tmp_path: Path, fields: dict):
    method = Toy(**fields)
    method.save_pretrained(tmp_path / "new" / "folder")
    again = Toy.from_pretrained(tmp_path / "new" / "folder")
    assert again == method and hash(again) == hash(method)
    assert type(again.layers) is tuple and all(type(b) is tuple for b in again.budgets)


def test_the_file_says_what_it_is_and_holds_the_defaults_too(tmp_path: Path):
    Toy().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "fewstep.json").read_text())
    assert config["method"] == "toy" and config["package"] and config["core"]
    assert config["fields"].keys() == {"keep", "steps", "mode", "flag", "limit", "layers", "budgets"}


def test_a_field_that_a_newer_version_added_takes_its_default(tmp_path: Path):
    Toy(keep=0.5).save_pretrained(tmp_path)
    edit(tmp_path, lambda config: config["fields"].pop("steps"))
    assert Toy.from_pretrained(tmp_path) == Toy(keep=0.5)


def test_weights_travel_with_the_method_but_not_in_its_equality(tmp_path: Path):
    source = tmp_path / "elsewhere.safetensors"
    save_file({"w": torch.arange(3.0)}, source)
    method = Toy(policy=source)
    method.save_pretrained(tmp_path / "saved")
    source.unlink()
    again = Toy.from_pretrained(tmp_path / "saved")
    assert again.policy == tmp_path / "saved" / "policy.safetensors"
    assert torch.equal(load_file(again.policy)["w"], torch.arange(3.0))
    assert again == method == replace(method, policy=None)
    assert "elsewhere" not in (tmp_path / "saved" / "fewstep.json").read_text()


def test_saving_over_a_saved_one_replaces_it_and_leaves_no_parts(tmp_path: Path):
    Toy(keep=0.1).save_pretrained(tmp_path)
    Toy(keep=0.9).save_pretrained(tmp_path)
    assert Toy.from_pretrained(tmp_path).keep == 0.9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "fewstep.json"]


def test_the_model_card_shows_name_summary_fields_and_how_to_load(tmp_path: Path):
    Toy(keep=0.125).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: fewstep\n")
    for part in ("# toy", "A toy with one field", "| `keep` | `0.125` |", "Toy.from_pretrained("):
        assert part in text


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '"text"', "null", '{"method": "toy"}', '{"method": "toy", "fields": 3}']
)
def test_a_damaged_file_names_itself(tmp_path: Path, damage: str):
    Toy().save_pretrained(tmp_path)
    (tmp_path / "fewstep.json").write_text(damage)
    with pytest.raises(BadFileError, match=r"fewstep\.json is damaged"):
        Toy.from_pretrained(tmp_path)


def test_a_file_that_is_not_utf8_is_damaged(tmp_path: Path):
    (tmp_path / "fewstep.json").write_bytes(b'{"method": "\xff\xfe"}')
    with pytest.raises(BadFileError, match="damaged"):
        Toy.from_pretrained(tmp_path)


def test_another_class_is_refused_with_both_names(tmp_path: Path):
    Other().save_pretrained(tmp_path)
    with pytest.raises(BadFileError, match="holds a other method, not toy"):
        Toy.from_pretrained(tmp_path)


def test_an_unknown_field_is_named(tmp_path: Path):
    Toy().save_pretrained(tmp_path)
    edit(tmp_path, lambda config: config["fields"].update(sparkle=1))
    with pytest.raises(BadFileError, match="sparkle"):
        Toy.from_pretrained(tmp_path)


def test_fields_and_weights_that_have_another_name_now_still_load(tmp_path: Path):
    class Younger(Toy):
        name: ClassVar[str] = "toy"
        renamed: ClassVar = {"share": "keep", "scorer": "policy"}

    save_file({"w": torch.arange(3.0)}, tmp_path / "scorer.safetensors")
    Toy().save_pretrained(tmp_path)
    edit(tmp_path, lambda config: config["fields"].update(share=config["fields"].pop("keep") / 2))
    again = Younger.from_pretrained(tmp_path)
    assert again.keep == 0.125 and again.policy == tmp_path / "scorer.safetensors"


def test_a_folder_without_a_method_is_refused(tmp_path: Path):
    with pytest.raises(BadFileError, match=r"is not a saved fewstep method: it has no fewstep\.json"):
        Toy.from_pretrained(tmp_path)


def edit(folder: Path, change: Any) -> None:
    config = json.loads((folder / "fewstep.json").read_text())
    change(config)
    (folder / "fewstep.json").write_text(json.dumps(config))


def test_weights_that_are_in_the_folder_already_are_not_copied(tmp_path: Path):
    (tmp_path / "model").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "model" / "big.safetensors")
    hub.save(Toy(policy=tmp_path / "elsewhere"), tmp_path, files={"policy": "model/big.safetensors"})
    assert Toy.from_pretrained(tmp_path).policy == tmp_path / "model" / "big.safetensors"
    assert not (tmp_path / "policy.safetensors").exists()
    Toy.from_pretrained(tmp_path).save_pretrained(tmp_path / "copy")
    assert torch.equal(load_file(tmp_path / "copy" / "policy.safetensors")["a"], torch.ones(2))
    (tmp_path / "model" / "big.safetensors").unlink()
    with pytest.raises(BadFileError, match="model/big.safetensors are missing"):
        Toy.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["../big.safetensors", "/big.safetensors", "model.bin", 3])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, name: Any):
    hub.save(Toy(), tmp_path, files={"policy": name})
    with pytest.raises(BadFileError, match="fewstep.json is damaged"):
        Toy.from_pretrained(tmp_path)
