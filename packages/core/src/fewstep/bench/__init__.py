"""The benchmark harness of all methods and recipes: paired runs, rows, reports."""

from .rows import Row as Row
from .task import Outcome as Outcome
from .task import Sample as Sample
from .task import Task as Task
from .task import TrainingTask as TrainingTask
