"""What the source of a factory says without being executed: parameters, and whether it takes rectangles."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

from longvis_bench.errors import CardError, UnknownName

if TYPE_CHECKING:
    from longvis_bench.registry.registry import Variant

NO_FACTORY = "{name} is a {kind}, not a factory; name a function or class that builds the model."


def check_source(file: Path, variant: Variant) -> None:
    """Parse the file of a factory to find it, and compare its parameters with the user's arguments.

    Raises:
        CardError: the file is no Python, or has no such callable.
        UnknownName: the factory lacks an argument.
    """
    name = variant.factory.rpartition(":")[2]
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CardError(f"the factory's file {file} does not exist.") from error
    except (SyntaxError, ValueError) as error:
        raise CardError(f"the factory's file {file.name} is not valid Python: {error}.") from error
    if name in _imported_modules(tree):
        raise CardError(NO_FACTORY.format(name=variant.factory, kind="module"))
    signature = _signature(tree, name)
    if signature is None:
        if not any(name in ast.dump(node) or "'*'" in ast.dump(node) for node in tree.body):
            raise CardError(f"{file.name} has no callable named {name!r}.")
        return
    takes = [argument.arg for argument in (*signature.args, *signature.kwonlyargs)]
    unknown = [] if signature.kwarg else [key for key in variant.overrides if key not in takes]
    if unknown:
        own = [key for key in takes if key not in ("self", "resolution", "num_classes", "in_chans")]
        raise UnknownName(f"argument of {variant.name}", unknown[0], own)


def _imported_modules(tree: ast.Module) -> set[str]:
    """Names that a file's `import ...` statements give to modules."""
    aliases = [alias for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    return {alias.asname or alias.name.partition(".")[0] for alias in aliases}


def _signature(tree: ast.Module, name: str) -> ast.arguments | None:
    """Parameters of a function of the module, or of a class's constructor; None if there is neither."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node.args
        if isinstance(node, ast.ClassDef) and node.name == name:
            own = (inner for inner in node.body if isinstance(inner, ast.FunctionDef))
            return next((inner.args for inner in own if inner.name == "__init__"), None)
    return None


def declares_a_pair(file: Path, name: str) -> bool:
    """Whether the callable annotates `resolution` with a tuple, so that it takes (height, width)."""
    try:
        signature = _signature(ast.parse(file.read_text(encoding="utf-8")), name)
    except (OSError, SyntaxError, ValueError):
        return False
    found = [*signature.args, *signature.kwonlyargs] if signature else []
    notes = [one.annotation for one in found if one.arg == "resolution" and one.annotation]
    return any("tuple" in ast.unparse(note).lower() for note in notes)
