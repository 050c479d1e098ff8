"""``fewstep run`` and ``fewstep fit``: a method on the user's own input, and a method made for one model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from .. import plugins
from ..cards import import_target
from ..errors import FewstepError
from .flags import Group, parse
from .options import MethodModelOptions, ModelOptions, chosen_method, method_group, named, quiet
from .table import show_table


@dataclass(frozen=True, kw_only=True)
class FitOptions(ModelOptions):
    """The model, how it runs, and where the method goes."""

    out: Path
    """Folder that the method is saved to; `--method-from` reads it."""


def run(words: list[str]) -> int:
    """Load the model, make the method of its flags, and hand both to the inputs that the method's package defines."""
    quiet(words)
    card, words = named("run", words, "method", plugins.methods())
    if card.run is None:
        raise FewstepError(f"{card.name} has nothing to run on the command line; use it in Python, or `fewstep bench`")
    groups = [Group("model", MethodModelOptions), Group("input", import_target(card.run), "input")]
    options, inputs, method = parse(
        f"fewstep run {card.name}", card.summary, words, [*groups, method_group(card, words)]
    )
    chosen = chosen_method(card, options, method)
    inputs(options.load(), chosen)
    return 0


def fit(words: list[str]) -> int:
    """Load the model, fit the method to it, save what was found and print it."""
    quiet(words)
    card, words = named("fit", words, "method", plugins.methods())
    if card.fit is None:
        fittable = ", ".join(name for name, other in plugins.methods().items() if other.fit) or "none is installed"
        raise FewstepError(f"{card.name} has nothing to fit to a model; methods that do: {fittable}")
    groups = [Group("model", FitOptions), Group("fit", import_target(card.fit), "fit")]
    options, fitting = parse(f"fewstep fit {card.name}", card.summary, words, groups)
    options.out.mkdir(parents=True, exist_ok=True)  # fails before the work, not after it
    method = fitting(options.load(), options.out)
    method.save_pretrained(options.out)
    lines = [(field.name, str(getattr(method, field.name))) for field in dataclasses.fields(method)]
    show_table(f"{card.name} fitted to {options.model}", ("field", "value"), lines)
    print(
        f"saved to {options.out}; use it with: fewstep bench {card.name} --model {options.model} "
        f"--method-from {options.out}"
    )
    return 0
