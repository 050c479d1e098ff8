"""One benchmark harness for every method: paired runs, rows, reports."""

from .rows import Row as Row
from .task import Outcome as Outcome
from .task import Sample as Sample
from .task import Task as Task
