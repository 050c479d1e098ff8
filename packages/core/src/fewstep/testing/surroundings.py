"""Conformance of an applied model with its surroundings: saving, copies, threads, offloading, memory, wrappers."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ..errors import FewstepError
from .answers import one_sentence, same
from .case import Case, modules
from .wrappers import WrappersSuite

CYCLES = 50
"""Applications and removals after which nothing may have stayed."""
LIBRARIES = ("torch", "safetensors", "transformers", "diffusers", "accelerate", "peft")
OURS = [tracemalloc.Filter(True, "*/fewstep*"), *(tracemalloc.Filter(False, f"*/{name}/*") for name in LIBRARIES)]
"""Memory that lines of fewstep's packages asked for."""


class SurroundingsSuite(WrappersSuite):
    """Each test lets the method do right or refuse in one sentence; a broken model or a wrong answer is neither."""

    def test_a_model_saved_while_applied_loads_whole(self, case: Case, tmp_path: Path):
        """What is saved are the weights as they were, or those that the method put in their place."""
        before = weights(case.model)
        with case.method.apply(case.model):
            applied = weights(case.model)
            try:
                case.model.save_pretrained(tmp_path / "saved")
            except FewstepError as refusal:
                return one_sentence(refusal)
        loaded = weights(type(case.model).from_pretrained(tmp_path / "saved"))
        assert any(
            loaded.keys() == known.keys() and all(torch.equal(loaded[name], known[name]) for name in known)
            for known in (before, applied)
        )

    def test_the_state_dict_while_applied_is_that_of_the_model(self, case: Case):
        before = {prefix: sizes(network) for prefix, network in modules(case.model).items()}
        with case.method.apply(case.model):
            after = {prefix: sizes(network) for prefix, network in modules(case.model).items()}
        assert before == after

    def test_safetensors_written_while_applied_load_into_the_model(self, case: Case, tmp_path: Path):
        from safetensors.torch import load_model, save_model

        with case.method.apply(case.model):
            for number, network in enumerate(modules(case.model).values()):
                save_model(network, str(tmp_path / f"{number}.safetensors"))
        for number, network in enumerate(modules(case.model).values()):
            load_model(network, tmp_path / f"{number}.safetensors")

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_a_copy_of_an_applied_model_is_unapplied_or_refused(self, case: Case, duplicate: Callable):
        dense = case.call(case.model)
        with case.method.apply(case.model):
            applied = case.call(case.model)
            try:
                twin = duplicate(case.model)
            except FewstepError as refusal:
                one_sentence(refusal)
            else:
                assert same(case.call(twin), dense)
            assert same(case.call(case.model), applied)
        assert same(case.call(case.model), dense)

    def test_threads_with_different_inputs_do_not_meet(self, case: Case):
        """Four threads on one applied model; state that one call leaves must not reach another."""
        if not isinstance(case.model, nn.Module):
            return  # pipelines of diffusers keep the state of a call in their scheduler, with and without a method
        calls = (case.call, *case.others)
        with case.method.apply(case.model):
            alone = [call(case.model) for call in calls]
            wrong: list[str] = []

            def work(start: int) -> None:
                try:
                    for turn in range(3 * len(calls)):
                        number = (start + turn) % len(calls)
                        if not same(calls[number](case.model), alone[number]):
                            wrong.append(f"call {number} gave another answer")
                except Exception as error:  # reported by the main thread
                    wrong.append(f"{type(error).__name__}: {error}")

            threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert not wrong, wrong[:3]

    def test_nothing_stays_of_many_applications(self, case: Case):
        """After 50 more there are as many Python objects as before, and no more memory that fewstep's lines asked for.

        What libraries keep is theirs: safetensors 0.8 two Python numbers of each tensor that it reads from a file.
        """
        if isinstance(case.model, nn.Module):
            case.call(case.model)

        def cycles(number: int) -> tuple[int, int]:
            for _ in range(number):
                case.method.apply(case.model).remove()
            gc.collect()
            objects = len(gc.get_objects())  # before the snapshot, which is made of objects too
            if not tracemalloc.is_tracing():
                return objects, 0
            ours = tracemalloc.take_snapshot().filter_traces(OURS)
            return objects, sum(one.size for one in ours.statistics("filename"))

        cycles(5)
        tracemalloc.start()
        try:
            cycles(5)
            objects, memory = cycles(1)
            more, grown = cycles(CYCLES)
        finally:
            tracemalloc.stop()
        assert more - objects < CYCLES and grown - memory < 1000 * CYCLES, (more - objects, grown - memory)

    def test_an_offloaded_model_answers_as_before_or_is_refused(self, case: Case):
        from accelerate import cpu_offload
        from accelerate.hooks import remove_hook_from_submodules

        with case.method.apply(case.model):
            plain = case.call(case.model)
        networks = modules(case.model).values()
        try:
            for network in networks:
                cpu_offload(network, execution_device=torch.device("cpu"))
            try:
                applied = case.method.apply(case.model)
            except FewstepError as refusal:
                one_sentence(refusal)
            else:
                with applied:
                    assert same(case.call(case.model), plain)
        finally:
            for network in networks:
                remove_hook_from_submodules(network)


def sizes(network: nn.Module) -> dict[str, torch.Size]:
    """Shapes of a state dict."""
    return {name: value.shape for name, value in network.state_dict().items()}


def weights(model: Any) -> dict[str, Tensor]:
    """Copies of all weights, by name."""
    states = {prefix: network.state_dict() for prefix, network in modules(model).items()}
    return {prefix + name: value.clone() for prefix, state in states.items() for name, value in state.items()}
