"""NewName against the contract, and its own arithmetic."""

from __future__ import annotations

import pytest
import torch
from fewstep.families import causal_lm
from fewstep.testing import Case, MethodSuite
from fewstep_new_name import NewName
from fewstep_new_name.method import rounded


class TestNewName(MethodSuite):
    @pytest.fixture
    def case(self) -> Case:
        ids = causal_lm.tiny_prompt(12)

        def logits(model):
            return model(ids).logits

        return Case(method=NewName(step=0.5), model=causal_lm.tiny(), call=logits, trained=logits)


def test_weights_lie_on_the_grid_of_their_row():
    weight = torch.tensor([[1.0, -0.4, 0.1], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[1.0, -0.5, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(rounded(weight, 0.5), expected)


@pytest.mark.parametrize("step", [-0.1, 1.5])
def test_a_step_off_its_range_is_refused(step: float):
    with pytest.raises(ValueError, match="between 0"):
        NewName(step=step)
