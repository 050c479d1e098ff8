"""Conformance with what stands around a model or inside it: adapters of PEFT, compiled parts, checkpointing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ..applied import Applied
from ..errors import FewstepError
from .answers import one_sentence, same
from .case import Case, modules


class WrappersSuite:
    """Each test lets the method do right, or refuse in one sentence before anything is changed."""

    def test_a_wrapper_of_peft_is_seen_through_or_refused(self, case: Case):
        """The wrapper may be given or its inside. The answer is that of a model with the adapter merged into it, or of
        one that was adapted after applying, which is another where a method changes weights."""
        if not isinstance(case.model, nn.Module):
            return
        if not hasattr(case.model, "get_input_embeddings"):
            return self._refuses_a_wrapper(case)
        merged, after = adapted(copy.deepcopy(case.model)).merge_and_unload(), copy.deepcopy(case.model)
        with case.method.apply(merged), case.method.apply(after):
            wanted = [case.call(merged), case.call(adapted(after))]
        wrapped = adapted(case.model)
        dense = case.call(wrapped)
        for given in (wrapped, wrapped.get_base_model()):
            with applied_or_refused(case, given) as applied:
                if applied:
                    assert merged_alike(case.call(wrapped), wanted)
            assert torch.equal(case.call(wrapped), dense)
        wrapped.merge_adapter()
        with applied_or_refused(case, wrapped) as applied:
            if applied:
                assert merged_alike(case.call(wrapped), wanted)

    def _refuses_a_wrapper(self, case: Case) -> None:
        """A module around the model, of a class that the method cannot know."""
        with pytest.raises(FewstepError) as refusal:
            case.method.apply(nn.Sequential(case.model))
        one_sentence(refusal.value)

    def test_an_adapter_that_was_there_before_acts_on_top_or_is_refused(self, case: Case):
        """Adapters inside networks, as ``load_lora_weights`` puts them: as if they had been loaded after applying."""
        after = copy.deepcopy(case.model)
        with case.method.apply(after):
            inject(after)
            wanted = _answer_or_refusal(case, after)
        inject(case.model)
        dense = case.call(case.model)
        with applied_or_refused(case, case.model) as applied:
            if applied:
                assert wanted is not None and same(case.call(case.model), wanted)
        assert same(case.call(case.model), dense)

    @pytest.mark.parametrize("parts", ["whole", "inside"])
    def test_parts_in_wrappers_of_compile_are_seen_through_or_refused(
        self, case: Case, parts: str, monkeypatch: pytest.MonkeyPatch
    ):
        """``torch.compile`` around the model (or networks of a pipeline), or around the layers inside."""
        monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # checks of shapes cannot be traced
        with case.method.apply(case.model):
            wanted = case.call(case.model)
        dense = case.call(case.model)
        compiled = wrapped_whole(case.model) if parts == "whole" else wrapped_inside(case.model)
        with applied_or_refused(case, compiled) as applied, not_compiling():
            if applied:
                assert same(case.call(compiled), wanted)
        with not_compiling():
            assert same(case.call(compiled), dense)

    @pytest.mark.slow  # compiles the model twice
    def test_a_model_that_was_compiled_and_called_before_answers_as_applied(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ):
        """Code that was compiled for the unchanged model must not answer for the changed one, nor the other way."""
        monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
        with case.method.apply(case.model):
            wanted = case.call(case.model)
        dense = case.call(case.model)
        torch._dynamo.reset()
        for network in modules(case.model).values():
            network.compile(backend="eager")
        assert same(case.call(case.model), dense)
        with applied_or_refused(case, case.model) as applied:
            if applied:
                assert same(case.call(case.model), wanted)
        assert same(case.call(case.model), dense)

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_gradients_with_checkpointing_are_those_without(self, case: Case, reentrant: bool):
        if case.trained is None:
            pytest.skip("nothing to train")
        model, call = case.model.train(), case.trained
        model.enable_input_require_grads()

        def gradients() -> dict[str, Tensor]:
            model.zero_grad()
            call(model).float().square().mean().backward()
            return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

        with case.method.apply(model):
            plain = gradients()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            try:
                again = gradients()
            except FewstepError as refusal:
                return one_sentence(refusal)
        assert plain and plain.keys() == again.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(again[name], gradient, rtol=1e-3, atol=1e-5)


@contextmanager
def applied_or_refused(case: Case, model: Any) -> Iterator[Applied | None]:
    """Apply the method; None where it refuses in one sentence."""
    try:
        applied = case.method.apply(model)
    except FewstepError as refusal:
        one_sentence(refusal)
        yield None
    else:
        with applied:
            yield applied


def _answer_or_refusal(case: Case, model: Any) -> Tensor | None:
    try:
        return case.call(model)
    except FewstepError as refusal:
        return one_sentence(refusal)


def merged_alike(one: Tensor, wanted: list[Tensor]) -> bool:
    """Equal to one of them but for the rounding of merged weights, as a share of the largest value."""
    return any(one.shape == other.shape and (one - other).abs().max() <= 1e-4 * other.abs().max() for other in wanted)


@contextmanager
def not_compiling() -> Iterator[None]:
    """Run wrappers of ``torch.compile`` without compiling: what they do with a module is tested, not the compiler."""
    with torch.compiler.set_stance("force_eager"):
        yield


def adapted(model: Any) -> Any:
    """A `PeftModel` around `model` with a LoRA of fixed weights on all of its linear layers."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()


def inject(model: Any) -> None:
    """Put a LoRA of fixed weights into linear and convolutional layers of the networks, without a wrapper."""
    from peft import LoraConfig, inject_adapter_in_model

    for network in (part for name, part in modules(model).items() if name in ("", "transformer.")):
        kinds = (nn.Linear, nn.Conv2d)
        names = [name for name, part in network.named_modules() if type(part) in kinds and "lm_head" not in name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            inject_adapter_in_model(LoraConfig(r=2, target_modules=names, init_lora_weights=False), network)
        network.eval()


def wrapped_whole(model: Any) -> Any:
    """The model in a wrapper of ``torch.compile``, or a pipeline whose networks are."""
    if isinstance(model, nn.Module):
        return torch.compile(model, backend="eager")
    for name in modules(model):
        setattr(model, name.rstrip("."), torch.compile(getattr(model, name.rstrip(".")), backend="eager"))
    return model


def wrapped_inside(model: Any) -> Any:
    """The model, with the first module of each list of modules in a wrapper of ``torch.compile``."""
    for network in modules(model).values():
        for part in list(network.modules()):
            if isinstance(part, nn.ModuleList) and len(part):
                compiled: Any = torch.compile(part[0], backend="eager")
                part[0] = compiled
    return model
