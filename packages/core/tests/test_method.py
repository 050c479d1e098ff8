"""`Applied`: the undo stack, exact to the attribute; seams and their conflicts."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from fewstep import Applied, FewstepError, Method, SeamConflictError


class Box:
    """Stands for a model: anything that can hold attributes."""

    shared = "of the class"


@dataclass(frozen=True, kw_only=True)
class Toy(Method):
    name: ClassVar[str] = "toy"
    seams: ClassVar[frozenset[str]] = frozenset({"a", "b"})

    def apply(self, model: Any) -> Applied:
        with Applied() as undo:
            undo.occupy(model, self)
            undo.set(model, "value", self.name)
            return undo.pop_all()


@dataclass(frozen=True, kw_only=True)
class Rival(Toy):
    name: ClassVar[str] = "rival"
    seams: ClassVar[frozenset[str]] = frozenset({"b", "c"})


@dataclass(frozen=True, kw_only=True)
class Neighbour(Toy):
    name: ClassVar[str] = "neighbour"
    seams: ClassVar[frozenset[str]] = frozenset({"d"})


def test_undoes_the_last_change_first():
    done = []
    undo = Applied()
    undo.callback(done.append, "first change")
    undo.callback(done.append, "second change")
    undo.remove()
    assert done == ["second change", "first change"]


def test_remove_twice_does_nothing_more():
    box = Box()
    applied = Toy().apply(box)
    applied.remove()
    box.value = "mine"
    applied.remove()
    assert box.value == "mine"


def test_a_context_manager_removes_also_on_an_error():
    box = Box()
    with pytest.raises(RuntimeError), Toy().apply(box):
        assert box.value == "toy"
        raise RuntimeError("out of memory")
    assert vars(box) == {}


def test_pop_all_keeps_the_class_so_that_remove_exists():
    assert type(Toy().apply(Box())) is Applied


@pytest.mark.parametrize("before", [{}, {"value": 1}, {"value": None}])
def test_set_restores_what_was_there_or_deletes(before: dict):
    box = Box()
    vars(box).update(before)
    with Applied() as undo:
        undo.set(box, "value", 2)
        undo.set(box, "value", 3)
        assert box.value == 3
    assert vars(box) == before


def test_set_over_an_attribute_of_the_class_leaves_no_copy_on_the_instance():
    box = Box()
    with Applied() as undo:
        undo.set(box, "shared", "own")
        assert box.shared == "own" and Box.shared == "of the class"
    assert box.shared == "of the class" and vars(box) == {}


def test_an_exception_half_way_leaves_the_model_clean():
    class Failing(Toy):
        def apply(self, model: Any) -> Applied:
            with Applied() as undo:
                undo.occupy(model, self)
                undo.set(model, "first", 1)
                undo.set(model, "second", 2)
                raise MemoryError

    box = Box()
    with pytest.raises(MemoryError):
        Failing().apply(box)
    assert vars(box) == {}
    with Toy().apply(box):  # the seams are free again
        assert box.value == "toy"


def test_applied_twice_names_the_method_and_keeps_the_first():
    box = Box()
    with Toy().apply(box):
        with pytest.raises(SeamConflictError, match="toy.*already") as error:
            Toy().apply(box)
        assert "remove" in str(error.value) and isinstance(error.value, FewstepError)
        assert box.value == "toy"
        with pytest.raises(SeamConflictError):
            Toy().apply(box)
    assert vars(box) == {}


def test_two_methods_on_one_seam_are_an_error_that_names_both_and_the_seam():
    box = Box()
    with Toy().apply(box):
        with pytest.raises(SeamConflictError, match=r"rival.*Box.*toy.*'b'"):
            Rival().apply(box)
        with pytest.raises(SeamConflictError):  # the refused one holds no seam: not even its free one
            Rival().apply(box)
    with Rival().apply(box), pytest.raises(SeamConflictError, match=r"toy.*rival"):
        Toy().apply(box)


def test_methods_on_different_seams_or_models_compose():
    box, other = Box(), Box()
    with Toy().apply(box), Neighbour().apply(box), Toy().apply(other):
        assert box.value == "neighbour" and other.value == "toy"
    assert vars(box) == {} and vars(other) == {}


def test_a_model_that_is_gone_holds_no_seam_for_its_successor():
    for _ in range(3):
        box = Box()
        Toy().apply(box)
        del box
        gc.collect()
    with Toy().apply(Box()):
        pass


def test_a_method_is_a_value():
    assert Toy() == Toy() and hash(Toy()) == hash(Toy()) and Toy() != Rival()
    assert Toy().identity() is None
    with pytest.raises(TypeError, match="abstract"):
        Method()
