"""Who may import whom: package levels, no cycles, heavy packages in one module each and only when they are needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.sources import PACKAGE, modules, where

# A package may import packages of a lower level and itself; those of level 0 may import each other.
LEVELS = {
    0: ["types", "errors", "toolcalls", "config"],
    1: ["algorithms", "sandboxes", "engines", "store"],
    2: ["rewards"],
    3: ["envs"],
    4: ["agents"],
    5: ["trainer"],
    6: ["cli", "web", "recipes"],
    7: ["__main__"],
}
LEVEL = {name: level for level, names in LEVELS.items() for name in names}
HEAVY = ("docker", "vllm", "ray", "wandb")  # each is imported in one module, inside a function
# What environments, sandboxes and rewards must do without, so that they install and start quickly on a laptop.
NOT_ON_A_LAPTOP = (*HEAVY, "torch", "transformers", "matplotlib", "peft", "rich")


def imported(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Every module that a tree imports, by statement or by ``import_module("name")``, with the node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            module = node.module or ""
            for alias in node.names:
                name = f"{module}.{alias.name}"
                yield node, name if name in modules() else module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield node, argument.value


def package_of(module: str) -> str:
    """``toolgym.envs.python.env`` is of package ``envs``; the root package is the empty string."""
    return [*module.split("."), ""][1]


def test_every_package_has_a_level():
    found = {package_of(name) for name in modules()} - {""}
    assert found <= LEVEL.keys()


def test_packages_import_only_lower_ones():
    wrong = []
    for name, (path, tree) in modules().items():
        own = package_of(name)
        for node, target in imported(tree):
            other = package_of(target)
            if not target.startswith("toolgym.") or other == own:
                continue
            if own == "":
                allowed = target == "toolgym.envs.registry"  # `import toolgym` registers the environments
            else:
                allowed = LEVEL[other] < LEVEL[own] or LEVEL[other] == LEVEL[own] == 0
            if not allowed:
                wrong.append(f"{where(path, node)}: {own or 'toolgym'} imports {target}")
    assert wrong == []


def test_algorithms_know_no_other_package_but_errors():
    wrong = [
        f"{where(path, node)}: {target}"
        for name, (path, tree) in modules().items()
        if package_of(name) == "algorithms"
        for node, target in imported(tree)
        if target.startswith("toolgym.") and package_of(target) not in ("algorithms", "errors")
    ]
    assert wrong == []


def run_time_imports(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """The imports that happen when a module is imported."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Try):
            yield from imported(node)


def test_no_module_imports_itself_through_others():
    graph = {
        name: {target for _, target in run_time_imports(tree) if target in modules() and target != name}
        for name, (_, tree) in modules().items()
    }
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            pytest.fail(" -> ".join([*path[path.index(name) :], name]))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_imports_stand_at_the_top_except_by_name():
    wrong = [
        where(path, node)
        for path, tree in modules().values()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
        and "inside" not in path.parts  # programs that run alone in a sandbox import what they need when they need it
    ]
    assert wrong == []


@pytest.mark.parametrize("heavy", HEAVY)
def test_heavy_packages_are_imported_in_one_module_and_lazily(heavy: str):
    users = {
        name for name, (_, tree) in modules().items() for _, target in imported(tree) if target.split(".")[0] == heavy
    }
    assert len(users) <= 1
    at_import = {
        name
        for name, (_, tree) in modules().items()
        for _, target in run_time_imports(tree)
        if target.split(".")[0] == heavy
    }
    assert at_import == set()


@pytest.mark.parametrize("package", ["toolgym", "toolgym.envs", "toolgym.sandboxes", "toolgym.rewards", "toolgym.cli"])
def test_light_packages_need_nothing_heavy(package: str):
    light = [
        name
        for name in modules()
        if (name + ".").startswith(package + ".")
        and package not in ("toolgym", "toolgym.cli")
        and ".inside" not in name
    ] or [package]
    code = (
        f"import importlib, sys\nfor name in {light!r}: importlib.import_module(name)\n"
        f"print(*[m for m in {NOT_ON_A_LAPTOP!r} if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=60
    )
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "", "")
