"""Conformance suite for objectives of training methods: subclass `ObjectiveSuite` and give it a ``case`` fixture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from fewstep.train.objective import Batch, Objective


@dataclass(frozen=True, kw_only=True)
class ObjectiveCase:
    """An objective with its roles, and batches for it."""

    objective: Objective
    """On roles that differ from each other, so that no loss is zero by accident."""
    batch: Callable[[int], Batch]
    """The same batch for the same seed, with fresh generators."""
    step: int = 0
    """A step whose phases update every role that is trained."""


class ObjectiveSuite:
    """Requirements on every objective, so that the loop can train, shard, repeat and resume it.

    ::

        class TestMyObjective(ObjectiveSuite):
            @pytest.fixture
            def case(self):
                return ObjectiveCase(objective=..., batch=...)
    """

    @pytest.fixture
    def case(self) -> ObjectiveCase:
        raise NotImplementedError("give the suite a fixture named case that returns an ObjectiveCase")

    def losses(self, case: ObjectiveCase, seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
        """Loss parts of the first phase of each role in the step."""
        by_role: dict[str, dict[str, torch.Tensor]] = {}
        for role in case.objective.phases(case.step):
            parts = case.objective.losses(role, case.batch(seed), case.step)
            by_role.setdefault(role, dict(parts))
        return by_role

    def test_phases_name_roles_that_are_there(self, case: ObjectiveCase):
        phases = case.objective.phases(case.step)
        assert phases and set(phases) <= set(case.objective.roles)
        assert tuple(phases) == tuple(case.objective.phases(case.step))

    def test_parts_are_finite_numbers_with_a_gradient(self, case: ObjectiveCase):
        for parts in self.losses(case).values():
            assert parts and all(part.ndim == 0 and torch.isfinite(part) for part in parts.values())
            assert all(part.dtype in (torch.float32, torch.float64) for part in parts.values())
            assert any(part.requires_grad for part in parts.values())

    def test_names_do_not_depend_on_what_was_drawn(self, case: ObjectiveCase):
        """Ranks draw different samples and must agree on the names."""
        seen: dict[str, set[tuple[frozenset[str], frozenset[str]]]] = {}
        for seed in range(8):
            for role in case.objective.phases(case.step):
                batch = case.batch(seed)
                parts = case.objective.losses(role, batch, case.step)
                seen.setdefault(role, set()).add((frozenset(parts), frozenset(batch.metrics)))
        assert all(len(names) == 1 for names in seen.values()), seen

    def test_only_the_updated_role_gets_a_gradient(self, case: ObjectiveCase):
        roles = case.objective.roles
        for role in case.objective.phases(case.step):
            roles.zero_grad()
            with roles.updating(role):
                torch.stack(list(case.objective.losses(role, case.batch(0), case.step).values())).sum().backward()
            assert any(w.grad is not None and w.grad.abs().sum() > 0 for w in roles[role].parameters()), role
            others = [w for name, other in roles.items() if name != role for w in other.parameters()]
            own = {id(weight) for weight in roles[role].parameters()}
            assert all(weight.grad is None for weight in others if id(weight) not in own), role
        roles.zero_grad()

    def test_all_chance_comes_from_the_batch(self, case: ObjectiveCase):
        first = self.losses(case)
        state = torch.get_rng_state()
        torch.rand(7)
        again = self.losses(case)
        torch.set_rng_state(state)
        other = self.losses(case, seed=1)
        for role, parts in first.items():
            assert all(torch.equal(parts[name], again[role][name]) for name in parts)
            assert any(not torch.equal(parts[name], other[role][name]) for name in parts)

    def test_weights_stay_as_they_are(self, case: ObjectiveCase):
        roles = case.objective.roles.items()  # buffers may move: a batch norm counts what it has seen
        before = {name: {k: v.detach().clone() for k, v in role.named_parameters().items()} for name, role in roles}
        self.losses(case)
        for name, role in roles:
            assert all(torch.equal(value, before[name][key]) for key, value in role.named_parameters().items())
