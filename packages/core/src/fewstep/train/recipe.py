"""`Recipe`: a named training run as a frozen dataclass. `Job`: its loaded parts, for the loop."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..method import Method
from .objective import Data, Objective
from .optim import AdamW
from .parallel import World


def free(default: Any) -> Any:
    """Declare a field that may be changed when a run is resumed: it has no influence on the weights."""
    return field(default=default, metadata={"free": True})


@dataclass(eq=False, kw_only=True)
class Job:
    """The loaded parts of a run."""

    objective: Objective
    data: Data
    pipe: Any = None
    """The diffusers pipeline around the network that is trained; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """Fields of every training run; each is a flag of ``fewstep train``.

    Subclasses add the fields of their objective, say which models and data there are (`build`), which roles are
    trained and how (`optimisers`), and what is left at the end (`finish`).
    """

    steps: int = 1000
    """Steps of the schedule of the objective."""
    batch: int = 8
    """Samples of one micro-batch on each rank."""
    accumulate: int = 1
    """Micro-batches whose gradients are averaged before an update."""
    seed: int = 0
    """Seed of all chance in this run."""
    clip: float = 10.0
    """Gradients of a role are scaled down to this norm."""
    ema: float = 0.0
    """Decay of an average of the first role's weights, which is then what is shown and saved; 0 for none."""
    ema_from: int = 0
    """Updates of that role before the average begins."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Dtype in which networks are run; trained weights, losses and averages are float32."""
    recompute: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    parallel: Literal["shard", "replicate"] = "shard"
    """Weights with several processes: sharded by FSDP2, or a copy in each."""
    largest: float = free(1e6)
    """A loss above this stops the run."""
    save_every: int = free(100)
    """Steps between checkpoints; the last two are kept."""
    sample_every: int = free(0)
    """Steps between sample grids; 0 for none but the last."""
    tracker: str = free("none")
    """Experiment tracker that shows the log too: ``trackio``, or another module with its interface."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.clip <= 0 or self.largest <= 0 or not 0 <= self.ema < 1:
            raise ValueError(f"clip and largest must be positive and ema in [0, 1), found {self}")

    @abstractmethod
    def build(self, world: World) -> Job:
        """Load models and data; networks may stay on the CPU, the run moves them, shard by shard where it can.

        Raises:
            FewstepError: something is missing, damaged or of another kind.
        """

    @abstractmethod
    def skeleton(self) -> Job:
        """The same on the meta device, from configurations alone: nothing is loaded. For ``--dry-run``."""

    @abstractmethod
    def optimisers(self) -> Mapping[str, AdamW]:
        """Optimiser settings of the roles that are trained."""

    def sample_grid(self, job: Job) -> Any:
        """Samples of the first role as one ``PIL.Image``, or None. Called on all ranks; its chance is its own."""
        return None

    def method(self) -> Method | None:
        """Method that runs the job's pipeline with the trained network; None where nothing else changes."""
        return None

    def finish(self, job: Job, network: Any, folder: Path) -> None:
        """Save the trained model to `folder`; on the main rank only.

        Args:
            job: of this run.
            network: that of the first role, with whole weights, averaged where there is an average; with all adapters
                where the role is one.
            folder: does not exist yet, and appears complete.
        """
        network.save_pretrained(folder)

    def what_is_saved(self) -> str:
        """Describe the files that `finish` leaves."""
        return "the trained network in its own format"

    def settings(self, world: World) -> dict[str, Any]:
        """All fields that influence the weights, as JSON has them, by dotted name."""
        fields = [f.name for f in dataclasses.fields(self) if not f.metadata.get("free")]
        if all(chosen.schedule == "constant" for chosen in self.optimisers().values()):
            fields.remove("steps")  # a run may go on for longer, unless its rates depend on the end
        values = {name: _plain(getattr(self, name)) for name in fields}
        return {"recipe": type(self).__name__, "processes": world.size, **dotted(values)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return json.loads(json.dumps(value, default=str))


def dotted(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Flatten nested fields to dotted names: ``student.lr``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= dotted(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: _plain(value)}
    return flat
