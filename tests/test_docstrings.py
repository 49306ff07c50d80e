"""Every public name is documented, and nothing has grown past the size at which it can be understood and tested."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.sources import modules, where

FILE_LINES = 700
FUNCTION_LINES = 80
PARAMETERS = 7

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions(tree: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    """The classes and functions defined directly in a module or class body."""
    for node in tree.body:
        if isinstance(node, Definition):
            yield node


def classes() -> dict[str, list[ast.ClassDef]]:
    """All classes of the package by bare name."""
    result: dict[str, list[ast.ClassDef]] = {}
    for _, tree in modules().values():
        for node in definitions(tree):
            if isinstance(node, ast.ClassDef):
                result.setdefault(node.name, []).append(node)
    return result


def inherits_doc(cls: ast.ClassDef, method: str, known: dict[str, list[ast.ClassDef]]) -> bool:
    """Whether a base class of the package documents the method: the contract stands there."""
    for base in cls.bases:
        bare = ast.unparse(base).split("[")[0].split(".")[-1]
        for parent in known.get(bare, []):
            if parent is cls:
                continue
            own = [d for d in definitions(parent) if d.name == method]
            if any(ast.get_docstring(d) for d in own) or inherits_doc(parent, method, known):
                return True
    return False


def needs_none(node: Definition) -> bool:
    """Private names, overloads and setters need no docstring."""
    decorators = {ast.unparse(d).split("(")[0].split(".")[-1] for d in node.decorator_list}
    return node.name.startswith("_") or bool(decorators & {"overload", "setter"})


def undocumented(path: Path, tree: ast.Module, known: dict[str, list[ast.ClassDef]]) -> Iterator[str]:
    """Places of public names without docstring."""
    if tree.body and not ast.get_docstring(tree):
        yield f"{where(path, tree)}: the module"
    if "inside" in path.parts:  # programs that run alone in a sandbox: nobody imports their names
        return
    for node in definitions(tree):
        if needs_none(node):
            continue
        if not ast.get_docstring(node):
            yield f"{where(path, node)}: {node.name}"
        if isinstance(node, ast.ClassDef):
            for method in definitions(node):
                if not (needs_none(method) or ast.get_docstring(method) or inherits_doc(node, method.name, known)):
                    yield f"{where(path, method)}: {node.name}.{method.name}"


def test_every_public_name_is_documented():
    known = classes()
    assert [line for path, tree in modules().values() for line in undocumented(path, tree, known)] == []


def test_files_and_functions_stay_small():
    too_big = []
    for path, tree in modules().values():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > FILE_LINES:
            too_big.append(f"{where(path, tree)}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES:
                    too_big.append(f"{where(path, node)}: {node.name} has {length} lines")
    assert too_big == []


def test_functions_take_few_positional_parameters():
    wrong = []
    for path, tree in modules().values():
        if "e2b" in path.parts:  # its signatures are those of the SDK that it stands in for
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                positional = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
                if len(positional) > PARAMETERS:
                    wrong.append(f"{where(path, node)}: {node.name} takes {len(positional)} positional parameters")
    assert wrong == []
