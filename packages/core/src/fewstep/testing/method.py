"""Conformance suite of methods: inherit `MethodSuite`, and return a `Case` from the fixture ``case``."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .. import plugins
from ..cards import import_target
from ..errors import FewstepError, SeamConflictError, UnsupportedModelError
from ..method import Method


@dataclass(frozen=True, kw_only=True)
class Case:
    """A method at a setting that changes the output, a tiny real model, and a call of it."""

    method: Method
    model: Any
    """An ``nn.Module`` or a ``DiffusionPipeline``."""
    call: Callable[[Any], Tensor]
    """Runs the model and returns its output; must be deterministic for a given model."""
    compiled: Callable[[Any], Tensor] | None = None
    """Call of a compiled model, where it differs from `call`."""


class MethodSuite:
    """Conformance of a method. Every test runs on the tiny model of the fixture ``case``."""

    def test_card_is_complete_and_loads(self, case: Case):
        card = plugins.methods()[case.method.name]
        assert card.load() is type(case.method)
        assert card.summary and not card.summary.endswith(".") and "\n" not in card.summary
        assert re.fullmatch(r"\d{4}\.\d{4,5}", card.paper or "0000.00000")
        assert case.method.seams

    def test_is_a_frozen_dataclass_that_cites_its_source(self, case: Case):
        cls = type(case.method)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(case.method, dataclasses.fields(case.method)[0].name, None)
        assert all(field.kw_only for field in dataclasses.fields(case.method))
        paper, documented = plugins.methods()[cls.name].paper, inspect.getdoc(cls) or ""
        assert documented and (paper is None or f"arXiv:{paper}" in documented)

    def test_apply_changes_the_output(self, case: Case):
        dense = case.call(case.model)
        with case.method.apply(case.model):
            changed = case.call(case.model)
        assert changed.shape != dense.shape or not torch.equal(changed, dense)

    def test_remove_restores_everything_bit_for_bit(self, case: Case):
        dense = case.call(case.model)  # first: what a call itself leaves behind is no business of the method
        before, attributes = _state(case.model), _attributes(case.model)
        applied = case.method.apply(case.model)
        case.call(case.model)
        applied.remove()
        applied.remove()
        after = _state(case.model)
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
        assert _attributes(case.model) == attributes
        assert torch.equal(case.call(case.model), dense)

    def test_identity_equals_the_unchanged_model(self, case: Case):
        if (identity := case.method.identity()) is None:
            pytest.skip("no identity setting")
        dense = case.call(case.model)
        with identity.apply(case.model):
            torch.testing.assert_close(case.call(case.model), dense, rtol=1e-5, atol=1e-5)

    def test_applied_twice_is_an_error_that_leaves_the_first_in_place(self, case: Case):
        with case.method.apply(case.model):
            changed = case.call(case.model)
            with pytest.raises(SeamConflictError, match=case.method.name):
                case.method.apply(case.model)
            assert torch.equal(case.call(case.model), changed)

    def test_an_unsupported_model_is_refused_and_left_alone(self, case: Case):
        stranger = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        attributes = _attributes(stranger)
        with pytest.raises(UnsupportedModelError, match="Sequential"):
            case.method.apply(stranger)
        assert _attributes(stranger) == attributes

    def test_save_then_load_gives_an_equal_method(self, case: Case, tmp_path):
        case.method.save_pretrained(tmp_path)
        assert type(case.method).from_pretrained(tmp_path) == case.method
        assert Method.from_pretrained(tmp_path) == case.method
        assert case.method.name in (tmp_path / "README.md").read_text()

    def test_a_damaged_file_is_a_clear_error(self, case: Case, tmp_path):
        case.method.save_pretrained(tmp_path)
        config = tmp_path / "fewstep.json"
        config.write_text(config.read_text()[:-20])
        with pytest.raises(FewstepError, match="fewstep.json"):
            Method.from_pretrained(tmp_path)

    def test_deterministic(self, case: Case):
        with case.method.apply(case.model):
            assert torch.equal(case.call(case.model), case.call(case.model))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_has_no_nan(self, case: Case, dtype: torch.dtype):
        try:
            with case.method.apply(case.model.to(dtype)):
                assert torch.isfinite(case.call(case.model)).all()
        finally:
            case.model.to(torch.float32)

    def test_survives_compilation(self, case: Case, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # checks of shapes cannot be traced
        call = case.compiled or case.call
        with case.method.apply(case.model):
            eager = call(case.model)
            torch._dynamo.reset()
            with _compiled(case.model) as compiled:
                torch.testing.assert_close(call(compiled), eager)

    def test_offers_keep_their_protocols(self, case: Case):
        card = plugins.methods()[case.method.name]
        for target, parameters in ((card.run, ("loaded", "method")), (card.fit, ("loaded", "out"))):
            if target is not None:
                offered = import_target(target)
                assert dataclasses.is_dataclass(offered)
                assert tuple(inspect.signature(offered.__call__).parameters) == ("self", *parameters)
        if card.show is not None:
            assert tuple(inspect.signature(import_target(card.show)).parameters) == ("config", "folder")
        with case.method.apply(case.model) as applied:
            case.call(case.model)
            assert all(isinstance(name, str) for name in applied.stats())

    def test_every_field_has_a_default_or_is_documented(self, case: Case):
        classes = [cls for cls in type(case.method).__mro__ if dataclasses.is_dataclass(cls)]
        source = "".join(map(inspect.getsource, classes))  # inherited fields are documented where they are declared
        for field in dataclasses.fields(case.method):
            assert re.search(rf'    {field.name}:.*\n    """', source), f"{field.name} has no docstring below it"


def _modules(model: Any) -> dict[str, nn.Module]:
    """The model itself, or the networks of a pipeline."""
    if isinstance(model, nn.Module):
        return {"": model}
    return {f"{name}.": part for name, part in model.components.items() if isinstance(part, nn.Module)}


@contextmanager
def _compiled(model: Any) -> Iterator[Any]:
    if isinstance(model, nn.Module):
        yield torch.compile(model, backend="eager")
        return
    networks = _modules(model).values()
    try:
        for network in networks:
            network.compile(backend="eager")
        yield model
    finally:
        for network in networks:
            network._compiled_call_impl = None


def _state(model: Any) -> dict[str, Tensor]:
    states = {prefix: network.state_dict() for prefix, network in _modules(model).items()}
    return {prefix + name: value.clone() for prefix, state in states.items() for name, value in state.items()}


def _attributes(model: Any) -> dict[str, Any]:
    """Everything an `apply` could leave behind: attribute names, hooks, types and configuration of every module."""
    attributes = {} if isinstance(model, nn.Module) else {"pipeline": _of_pipeline(model)}
    for prefix, network in _modules(model).items():
        attributes |= {prefix + name: _of_module(module) for name, module in network.named_modules()}
    return attributes


def _of_module(module: nn.Module) -> tuple:
    return (
        type(module),
        sorted(k for k in vars(module) if not k.startswith("__")),
        {k: list(v) for k, v in vars(module).items() if k.endswith("_hooks")},
        repr(getattr(module, "config", None)),
        getattr(getattr(module, "config", None), "_attn_implementation", None),
    )


def _of_pipeline(pipe: Any) -> tuple:
    """Its class, its configuration, and which objects it holds."""
    return type(pipe), repr(pipe.config), {name: id(part) for name, part in pipe.components.items()}
