"""How a program is compiled: the quick way must mean what the syntax tree says."""

import ast
import dis
import random
import warnings
from types import CodeType, SimpleNamespace

import pytest

from toolgym.sandboxes.inside import child
from toolgym.sandboxes.inside.child import compile_code

PIECES = (
    "x = 1", "\n", "f()", '"""', "# c", "\r", "\u2028", "\\\n", "(", ")", "  ", "if x:\n  y", "lambda: 0", "a; b",
    "\x0c", "y", "1", '"s"', "@d\n", "def g(): pass", "x\n=\n2", "else:", "await", "print(1)\n", "\n\n", "x\n",
)  # fmt: skip


def by_tree(code: str) -> tuple[CodeType | None, CodeType | None]:
    """Body and last expression as the syntax tree has them."""
    tree = ast.parse(code, "<code>")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    body = compile(tree, "<code>", "exec") if tree.body else None
    return body, None if last is None else compile(ast.Expression(last.value), "<code>", "eval")


def meaning(code: CodeType | None) -> object:
    """Instructions with their lines; None for a body that does nothing."""
    if code is None:
        return None
    steps = [
        (i.opname, i.argrepr.split(" at 0x")[0], i.positions and i.positions.lineno) for i in dis.get_instructions(code)
    ]
    done = [step for step in steps if step[0] not in ("RESUME", "NOP")]
    return (
        None
        if [s[0] for s in done] in (["LOAD_CONST", "RETURN_VALUE"], ["RETURN_CONST"]) and "None" in str(done)
        else steps
    )


@pytest.mark.slow
def test_compile_code_means_what_the_tree_says(monkeypatch: pytest.MonkeyPatch):
    slow = 0

    def parse(code: str, name: str) -> ast.Module:
        nonlocal slow
        slow += 1
        return ast.parse(code, name)

    monkeypatch.setattr(child, "ast", SimpleNamespace(parse=parse, Expr=ast.Expr, Expression=ast.Expression))
    compiled = quick = 0
    for seed in range(60_000):
        chosen = random.Random(seed)
        code = "".join(chosen.choice(PIECES) for _ in range(chosen.randint(1, 5)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = by_tree(code)
            except (SyntaxError, ValueError):
                with pytest.raises((SyntaxError, ValueError)):
                    compile_code(code)
                continue
            before = slow
            body, last = compile_code(code)
        compiled += 1
        quick += slow == before
        assert meaning(last) == meaning(expected[1]), code
        assert meaning(body) == meaning(expected[0]), code
    assert compiled - quick > 1_000  # both ways were gone often
    assert quick > 1_000


@pytest.mark.parametrize(
    ("code", "has_body", "has_value"),
    [
        ("print(1 + 1)", False, True),
        ("x = 6\nx * 7\n\n", True, True),
        ("x = 1 # a\u2028f()", True, False),  # one line to Python, two to str.splitlines
        ("x = (1 +\n2)", True, False),
        ("for i in range(3):\n    i", True, False),
        ("", True, False),
    ],
)
def test_compile_code_parts(code: str, has_body: bool, has_value: bool):
    body, value = compile_code(code)
    assert (body is not None, value is not None) == (has_body, has_value)
