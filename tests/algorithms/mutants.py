"""Mutants of the algorithms, made from the syntax tree: does some test notice?

``python -m tests.algorithms.mutants`` runs them all (an hour); ``--module kl`` those of one module, ``--sample 20``
some. A mutant is one small change: a sign, a comparison, a mask, a denominator, a constant, a detach, a reduction.
Each runs in a process of its own against the tests of its module and the battery's cases of its function, with a
package whose one module is replaced in memory: no file changes. Survivors that nothing can notice are listed, with the
reason, in docs/algorithms/mutants.md; any other makes the exit code 1.
"""

from __future__ import annotations

import argparse
import ast
import copy
import functools
import importlib.abc
import importlib.util
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch  # before the fork: each mutant starts from there

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "toolgym" / "algorithms"
PAGE = ROOT / "docs" / "algorithms" / "mutants.md"
PER_FUNCTION = 6
TIMEOUT_S = 240

COMPARE = {ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
BITS = {ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
METHODS = {
    "sum": "mean",
    "amax": "amin",
    "minimum": "maximum",
    "maximum": "minimum",
    "exp": "abs",
    "exp_": "abs_",
    "sqrt": "abs",
    "square": "abs",
    "cumsum": "cumprod",
    "neg": "abs",
    "neg_": "abs_",
    "any": "all",
    "argmin": "argmax",
    "log": "abs",
}
# Their arguments may be swapped, and nobody can tell.
SYMMETRIC = ("min", "max", "minimum", "maximum", "logaddexp", "promote_types")


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One changed place: module, function or class, function or method, what was changed, the module's new source."""

    module: str
    owner: str
    function: str
    what: str
    line: int
    source: str

    @property
    def label(self) -> str:
        """``kl.unbiased_kl:92 Add -> Sub``."""
        return f"{self.module}.{self.function}:{self.line} {self.what}"

    @property
    def key(self) -> tuple[str, str]:
        """``("kl.unbiased_kl", "Add -> Sub")``, which outlives an edit above it."""
        return f"{self.module}.{self.function}", self.what


def equivalents() -> set[tuple[str, str]]:
    """The keys of the mutants that docs/algorithms/mutants.md lists, each with its reason."""
    return set(re.findall(r"^\| `([^`]*)` ([^|]*[^| ]) +\|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))


def mutants(module: str) -> list[Mutant]:
    """Up to `PER_FUNCTION` mutants of each function and method of a module, spread over the kinds of change."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    return [mutant for owner, name, function in functions(tree) for mutant in _of(module, tree, owner, name, function)]


def functions(tree: ast.Module) -> Iterator[tuple[str, str, ast.FunctionDef]]:
    """The functions and methods of a module: the name at its top level, the full name, the node."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node.name, node
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    yield node.name, f"{node.name}.{method.name}", method


def _of(module: str, tree: ast.Module, owner: str, name: str, function: ast.FunctionDef) -> list[Mutant]:
    body = [n for statement in function.body[ast.get_docstring(function) is not None :] for n in _walk(statement)]
    changes = [(node, what, change) for node in body for what, change in _changes(node)]
    random.Random(f"{module}.{name}").shuffle(changes)
    by_kind: dict[str, list] = {}
    for entry in changes:
        by_kind.setdefault(entry[1].split()[0], []).append(entry)
    chosen = [entries[i] for i in range(len(changes)) for entries in by_kind.values() if i < len(entries)]
    found: dict[str, Mutant] = {}  # by source: two changes may come to the same
    for node, what, change in chosen:
        source = _source(tree, node, change)
        found.setdefault(
            source, Mutant(module=module, owner=owner, function=name, what=what, line=node.lineno, source=source)
        )
        if len(found) == PER_FUNCTION:
            break
    return list(found.values())


def _changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    """What can be changed at a node: a description, and a function on the copied node that returns the new one."""
    if isinstance(node, ast.Call):
        yield from _changed_arguments(node)
    if isinstance(node, ast.BinOp):
        table = ARITHMETIC | BITS
        if type(node.op) in table:
            new = table[type(node.op)]
            yield f"{type(node.op).__name__} -> {new.__name__}", lambda n, new=new: _with(n, op=new())
        yield "left operand only", lambda n: n.left
        yield "right operand only", lambda n: n.right
    elif isinstance(node, ast.BoolOp):
        new = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{type(node.op).__name__} -> {new.__name__}", lambda n, new=new: _with(n, op=new())
    elif isinstance(node, ast.If | ast.IfExp):
        yield "not condition", lambda n: _with(n, test=ast.UnaryOp(ast.Not(), n.test))
        if isinstance(node, ast.If) and not node.orelse:
            yield "skip if", lambda n: ast.Pass()
    elif isinstance(node, ast.AugAssign) or (
        isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    ):
        yield "skip update", lambda n: ast.Pass()
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        for i in range(len(node.value.elts)):
            yield f"return item {i} negated", lambda n, i=i: _with(n, value=_negated(n.value, i))
    elif isinstance(node, ast.Return) and node.value is not None:
        yield "return negated", lambda n: _with(n, value=ast.UnaryOp(ast.USub(), n.value))
        yield "return doubled", lambda n: _with(n, value=ast.BinOp(n.value, ast.Mult(), ast.Constant(2)))
        yield "return nothing", lambda n: _with(n, value=ast.Constant(None))
        yield "return plus one", lambda n: _with(n, value=ast.BinOp(n.value, ast.Add(), ast.Constant(1)))
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARE:
        new = COMPARE[type(node.ops[0])]
        yield f"{type(node.ops[0]).__name__} -> {new.__name__}", lambda n, new=new: _with(n, ops=[new(), *n.ops[1:]])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert):
        yield f"drop {type(node.op).__name__}", lambda n: n.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        yield f"constant {node.value} -> {node.value + 1}", lambda n: ast.Constant(n.value + 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield f"text {node.value[:20]!r} changed", lambda n: ast.Constant(n.value + "~")
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        if name in METHODS:
            yield f"{name} -> {METHODS[name]}", lambda n, name=name: _with(n, func=_with(n.func, attr=METHODS[name]))
        if name == "where" and len(node.args) == 3:
            yield "where swapped", lambda n: _with(n, args=[n.args[0], n.args[2], n.args[1]])
        if name in ("detach", "clamp", "clamp_"):
            yield f"drop {name}", lambda n: n.func.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("silence", "hush"):
        yield f"drop {node.func.id}", lambda n: n.args[0]


def _changed_arguments(node: ast.Call) -> Iterator[tuple[str, object]]:
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if len(node.args) > 1 and name not in SYMMETRIC and ast.dump(node.args[0]) != ast.dump(node.args[1]):
        yield "swap arguments", lambda n: _with(n, args=[n.args[1], n.args[0], *n.args[2:]])
    if node.args and not isinstance(node.args[0], ast.Starred | ast.Constant):
        yield "bare argument", lambda n: n.args[0]
    for i, keyword in enumerate(node.keywords):
        if keyword.arg:
            yield f"omit {keyword.arg}", lambda n, i=i: _with(n, keywords=[*n.keywords[:i], *n.keywords[i + 1 :]])


def _with(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below a statement, without the texts of errors and the types of variables."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.Raise) and child is not getattr(node, "annotation", None):
            yield from _walk(child)


def _negated(values: ast.Tuple, index: int) -> ast.Tuple:
    changed = [ast.UnaryOp(ast.USub(), v) if i == index else v for i, v in enumerate(values.elts)]
    return ast.Tuple(changed, ast.Load())


def _source(tree: ast.Module, node: ast.AST, change) -> str:
    class Swap(ast.NodeTransformer):
        def visit(self, n: ast.AST) -> ast.AST:
            return change(n) if n is node else self.generic_visit(copy.copy(n))

        def generic_visit(self, n: ast.AST) -> ast.AST:
            for name, value in ast.iter_fields(n):
                if isinstance(value, list):
                    setattr(n, name, [self.visit(v) if isinstance(v, ast.AST) else v for v in value])
                elif isinstance(value, ast.AST):
                    setattr(n, name, self.visit(value))
            return n

    return "\n".join(
        ast.unparse(ast.fix_missing_locations(Swap().visit(s))) if s.lineno <= node.lineno <= s.end_lineno else _text(s)
        for s in tree.body
    )


@functools.cache
def _text(statement: ast.stmt) -> str:
    """Of a whole function or class: unparsing it anew for each mutant of another one would take most of the time."""
    return ast.unparse(statement)


class _Replaced(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from the mutant's source."""

    def __init__(self, mutant: Mutant) -> None:
        self.name = f"toolgym.algorithms.{mutant.module}"
        self.path = str(PACKAGE / f"{mutant.module}.py")
        self.source = mutant.source

    def find_spec(self, fullname, path, target=None):
        """The spec of that module only."""
        return importlib.util.spec_from_loader(fullname, self, origin=self.path) if fullname == self.name else None

    def create_module(self, spec):
        """The default one."""

    def exec_module(self, module):
        """Run the mutant's source in it."""
        exec(compile(self.source, self.path, "exec"), module.__dict__)


def tests_of(mutant: Mutant) -> list[list[str]]:
    """Arguments of pytest, one list a round: the files that know the module, then the battery's cases of its
    functions.
    """
    here = ROOT / "tests" / "algorithms"
    apart = ("test_battery", "test_docs", "test_mutants", "test_bandit", "test_bias_variance")
    own = [path for path in sorted(here.glob("test_*.py")) if path.stem not in apart]
    knows = [str(path) for path in own if _knows(path.read_text(encoding="utf-8"), mutant)]
    public = ast.parse(mutant.source).body
    names = [n.name for n in public if isinstance(n, ast.FunctionDef | ast.ClassDef) and _has_card(n)]
    chosen = [mutant.owner] if mutant.owner in names else names
    everything = (
        [str(here / "test_battery.py"), "-k", " or ".join(chosen)] if chosen else [str(here / "test_battery.py")]
    )
    defaults = [str(here / "test_published_defaults.py")]  # reads them from the cards, so it imports no module
    return [round for round in (knows, defaults, everything) if round]


def _knows(test: str, mutant: Mutant) -> bool:
    """Whether a test file imports the module, or runs over all cards of a family that the module is of."""
    families = re.findall(r'cards\("(\w+)"\)', test)
    return f"algorithms.{mutant.module} import" in test or any(f"family='{f}'" in mutant.source for f in families)


def _has_card(node: ast.FunctionDef | ast.ClassDef) -> bool:
    return any(isinstance(d, ast.Call) and getattr(d.func, "id", "") == "card" for d in node.decorator_list)


def survives(mutant: Mutant) -> bool:
    """Whether all tests pass on the mutant, in a forked child that has not imported the package yet.

    A mutant that hangs is noticed. Raises `RuntimeError` where this process has imported the package: the child would
    then test the original.
    """
    if "toolgym" in sys.modules:
        raise RuntimeError("toolgym is imported already, so no mutant can take its place: run this in a fresh process")
    pid = os.fork()
    if pid == 0:
        _child(mutant)
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def _child(mutant: Mutant) -> None:
    code = 99
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.meta_path.insert(0, _Replaced(mutant))
        # plain: the hook that rewrites assertions would import a module called test_time itself
        flags = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=no", "--assert=plain"]
        codes = [0]
        for chosen in tests_of(mutant):
            done = pytest.main([*flags, *chosen])
            codes.append(codes[-1] or (0 if done == pytest.ExitCode.NO_TESTS_COLLECTED else int(done)))
        code = codes[-1]
    finally:
        os._exit(code)


def all_modules() -> list[str]:
    """The modules with equations."""
    return sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem not in ("__init__", "registry"))


def main() -> None:
    """Run the mutants and print those that survive; exit with code 1 where one does that is not known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--module", action="append", help="only this module; may be repeated")
    parser.add_argument("--sample", type=int, default=0, help="so many mutants, chosen at random with a fixed seed")
    parser.add_argument("--label", action="append", help="only this mutant, as it is printed; may be repeated")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [m for module in args.module or all_modules() for m in mutants(module)]
    if args.label:
        chosen = [m for m in chosen if m.label in args.label]
    if args.sample:
        chosen = random.Random(0).sample(chosen, min(args.sample, len(chosen)))
    for module in sorted({m.module for m in chosen}):
        same = Mutant(
            module=module,
            owner="",
            function="",
            what="nothing",
            line=0,
            source=(PACKAGE / f"{module}.py").read_text(encoding="utf-8"),
        )
        assert survives(same), f"the tests of {module} fail without any mutant"
    known, count = equivalents(), {"equivalent": 0, "survives": 0}
    for mutant in chosen:
        if survives(mutant):
            verdict = "equivalent" if mutant.key in known else "survives"
            count[verdict] += 1
            print(f"{verdict}: {mutant.label}", flush=True)
    print(f"{len(chosen)} mutants, {count['equivalent']} equivalent, {count['survives']} survive")
    sys.exit(count["survives"] > 0)


if __name__ == "__main__":
    main()
