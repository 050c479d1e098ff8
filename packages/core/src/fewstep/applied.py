"""`Applied`: the undo stack that applying a method returns."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

from .errors import FewstepError, SeamConflictError, UnsupportedModelError

_occupied: WeakKeyDictionary[Any, dict[str, str]] = WeakKeyDictionary()
_ABSENT = object()


class Occupant(Protocol):
    """A method, as far as seams are concerned."""

    name: ClassVar[str]
    """Name of its card."""
    seams: ClassVar[frozenset[str]]
    """Parts of a model that it occupies."""


class _CopyRefusal:
    """Stands in for the copying methods of a model while a method is applied to it."""

    def __init__(self, model: str, method: str) -> None:
        self.model, self.method = model, method

    def __call__(self, *_: Any) -> Any:
        raise FewstepError(f"this {self.model} has {self.method} applied: call .remove() before copying or pickling it")


class Applied(ExitStack):
    """An undo stack, as a context manager or with `remove`; pushed while a method changes a model.

    A method opens one, pushes each undo *as it makes each change* and returns ``undo.pop_all()``: an exception
    half-way unwinds what was done, success hands the stack to the caller::

        with Applied() as undo:
            undo.occupy(model, self)
            undo.set(model.model, "forward", fast_forward)
            return undo.pop_all()
    """

    def remove(self) -> None:
        """Undo everything, last change first. Calling it again does nothing."""
        self.close()

    def stats(self) -> Mapping[str, Any]:
        """Figures of what the method did since it was applied, by name; ``fewstep run`` prints them. Empty here."""
        return {}

    def occupy(self, model: Any, method: Occupant) -> None:
        """Claim the seams of `method` on `model` until removed.

        Raises:
            SeamConflictError: a method (perhaps the same one) already holds one of them; the message names both.
        """
        held = _occupied.setdefault(model, {})
        for seam in sorted(method.seams):
            if seam in held:
                again = "it already is" if held[seam] == method.name else f"{held[seam]} is"
                raise SeamConflictError(
                    f"{method.name} cannot be applied to this {type(model).__name__} while {again} applied: "
                    f"both use its seam {seam!r}; call .remove() on what the first apply returned"
                )
        for seam in method.seams:
            held[seam] = method.name
            self.callback(held.pop, seam)
        for name in ("__deepcopy__", "__reduce_ex__"):  # a copy would share hooks and closures with this model
            if name not in vars(model):
                self.set(model, name, _CopyRefusal(type(model).__name__, method.name))

    def needs_weights(self, module: Any, method: Occupant) -> None:
        """Refuse a network whose weights are fetched by hooks when it runs, for methods that read them themselves.

        Raises:
            UnsupportedModelError: weights of `module` are on the meta device.
        """
        if any(weight.is_meta for weight in module.parameters()):
            raise UnsupportedModelError(
                f"weights of this {type(module).__name__} are offloaded, and {method.name} reads them past the hooks "
                "that fetch them: remove the offloading, or move the model as a whole"
            )

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute on `owner` itself; undoing restores it, or deletes it where `owner` had none of its own."""
        before = vars(owner).get(name, _ABSENT)
        if before is _ABSENT:
            self.callback(delattr, owner, name)
        else:
            self.callback(setattr, owner, name, before)
        setattr(owner, name, value)
