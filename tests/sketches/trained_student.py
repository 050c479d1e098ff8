"""Sketch: a trained student. It learns, in one step, the x0 that the guided teacher finds in two."""

from dataclasses import dataclass

import torch
from fewstep import flow
from fewstep.train.distillation import Distillation
from fewstep.train.dmd2 import DMD2
from fewstep.train.roles import guided


@dataclass(eq=False, kw_only=True)
class TwoInOne(DMD2):
    """``mean (x0_student(x_1) - x0_teacher(x_1 -> x_s))^2`` on the levels of the grid; there is no critic to train."""

    def phases(self, step):
        return ("student",)

    def student_losses(self, batch, step):
        noisy, middle = batch.normal(), float(self.grid.sigmas[1])
        with torch.no_grad():
            velocity = guided(self.roles.teacher, noisy, 1.0, batch.cond, batch.uncond, self.guidance)
            closer = flow.euler(noisy, velocity, 1.0, middle)
            target = self.teacher_x0(closer, torch.tensor(middle), batch)
        return {"distance": (self.roles.student.x0(noisy, 1.0, batch.cond) - target).square().mean()}


@dataclass(frozen=True, kw_only=True)
class TwoInOneRecipe(Distillation):
    """Works on every family that `fewstep.families.denoisers` lists, since it names none."""

    def objective(self, roles):
        return TwoInOne(**self.shared(roles))

    def optimisers(self):
        return {"student": self.student}
