"""The suite that objectives of plug-ins pass, on those of core."""

from __future__ import annotations

import pytest
from fewstep.testing.objective import ObjectiveCase, ObjectiveSuite
from fewstep.train.dmd2 import DMD2
from fewstep.train.flow_matching import FlowMatching
from fewstep.train.objective import UpdateSchedule
from fewstep.train.roles import Roles


class TestDMD2(ObjectiveSuite):
    @pytest.fixture(params=[UpdateSchedule(2), UpdateSchedule(2, count="critic")], ids=lambda schedule: schedule.count)
    def case(self, request, roles, make_batch):
        objective = DMD2(roles=roles, schedule=request.param)
        return ObjectiveCase(objective=objective, batch=lambda seed: make_batch(seed=seed))


class TestFlowMatching(ObjectiveSuite):
    @pytest.fixture
    def case(self, roles, make_batch):
        def batch(seed):
            made = make_batch(seed=seed)
            return make_batch(seed=seed, x0=made.normal())

        return ObjectiveCase(objective=FlowMatching(roles=Roles(student=roles.student)), batch=batch)
