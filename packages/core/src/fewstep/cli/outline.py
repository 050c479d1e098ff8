"""A class of a card read from its source: doc, fields and constants, without importing it, and so without torch."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOTS = {"Method", "ABC", "object", "Generic", "Protocol"}
"""Bases without fields."""
EMPTY = {"dict": "{}", "list": "[]", "tuple": "()"}


class Unread(Exception):
    """The source cannot be read this way; import the class instead."""


@dataclass
class Outline:
    """What the source of a dataclass says."""

    doc: str = ""
    fields: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Default and meaning by name."""
    constants: dict[str, ast.expr] = field(default_factory=dict)
    """Class variables by name."""

    def words(self, name: str) -> list[str]:
        """The strings in a class variable: the names of seams."""
        value = self.constants.get(name)
        nodes = ast.walk(value) if value is not None else ()
        return sorted(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def outline(target: str) -> Outline:
    """The outline of ``"module:Class"``; fields of bases come first, as in the dataclass.

    Raises:
        Unread: the target is no class, or a base or a default cannot be told from the source.
    """
    module, _, name = target.partition(":")
    tree = _tree(module)
    node = next((one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == name), None)
    if node is None:
        raise Unread(f"{target} is no class of that module")
    found = Outline()
    for base in reversed(node.bases):  # as a dataclass collects them
        if isinstance(base, ast.Subscript):
            base = base.value
        if not isinstance(base, ast.Name):
            raise Unread(f"a base of {target} is an expression")
        if base.id not in ROOTS:
            below = outline(_origin(tree, module, base.id))
            found.fields |= below.fields
            found.constants |= below.constants
    found.doc = inspect.cleandoc(ast.get_docstring(node) or "")
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return found
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            _read(found, tree, statement, _text(after))
    return found


def _read(found: Outline, tree: ast.Module, statement: ast.AnnAssign, meaning: str) -> None:
    name = ast.unparse(statement.target)
    if "ClassVar" in ast.unparse(statement.annotation):
        if statement.value is not None:
            found.constants[name] = statement.value
    else:
        found.fields[name] = _default(tree, statement.value), meaning


def _text(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""


def _default(tree: ast.Module, value: ast.expr | None) -> str:
    """The default as ``repr`` would write it."""
    if value is None:
        return "required"
    if isinstance(value, ast.Name):
        named = [one for one in tree.body if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == value.id]
        if not named:
            raise Unread(f"default {value.id}")
        return _default(tree, named[-1].value)
    if isinstance(value, ast.Call) and ast.unparse(value.func) in ("field", "dataclasses.field"):
        given = {word.arg: word.value for word in value.keywords}
        if "default" in given:
            return _default(tree, given["default"])
        factory = ast.unparse(given["default_factory"]) if "default_factory" in given else ""
        if not given.keys() & {"default", "default_factory"}:
            return "required"
        if factory not in EMPTY:
            raise Unread(f"default {factory}")
        return EMPTY[factory]
    try:
        return repr(ast.literal_eval(value))
    except ValueError as error:
        raise Unread(f"default {ast.unparse(value)}") from error


def _origin(tree: ast.Module, module: str, name: str) -> str:
    """``"module:Class"`` of a name that a module defines or imports."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return f"{module}:{name}"
        if isinstance(node, ast.ImportFrom) and (
            alias := next((a for a in node.names if a.asname in (name, None) and (a.asname or a.name) == name), None)
        ):
            above = "." * node.level + (node.module or "")
            package = module if _is_package(module) else module.rpartition(".")[0]
            return f"{importlib.util.resolve_name(above, package) if node.level else above}:{alias.name}"
    raise Unread(f"{name} of {module}")


def _is_package(module: str) -> bool:
    return _file(module).name == "__init__.py"


@cache
def _tree(module: str) -> ast.Module:
    try:
        return ast.parse(_file(module).read_text(encoding="utf-8"))
    except (OSError, SyntaxError) as error:
        raise Unread(module) from error


def _file(module: str) -> Path:
    """The source of a module; its package is imported, the module itself is not."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise Unread(module) from error
    if found is None or not found.origin or not found.origin.endswith(".py"):
        raise Unread(module)
    return Path(found.origin)
