"""Grading apart from doing: what cheats, fails; what computes, passes."""

import math
from contextlib import AbstractAsyncContextManager

import pytest

from toolgym.sandboxes import FakeSandbox, Sandbox, SandboxLost, SandboxSpec, open_sandbox
from toolgym.sandboxes.grading import (
    Case,
    Grade,
    IOCase,
    Verdict,
    close,
    equal,
    grade_function,
    grade_program,
    same_lines,
    take_files,
)

CASES = [Case(args=[2, 3], expected=5), Case(args=[-1], kwargs={"b": 1}, expected=0)]


def fresh() -> AbstractAsyncContextManager[Sandbox]:
    """A fresh local sandbox."""
    return open_sandbox("local", SandboxSpec(timeout_s=20))


async def grade(source: str, **files: bytes) -> Grade:
    """The grade of a source text for an adding function."""
    return await grade_function(fresh, {"solution.py": source.encode(), **files}, "solution:add", CASES)


async def test_grade_function_passes_what_computes():
    result = await grade("print('noise')\ndef add(a, b):\n    print('more')\n    return a + b")
    assert result.verdicts == (Verdict(passed=True), Verdict(passed=True))
    assert result.passed
    assert result.share == 1.0


async def test_grade_function_counts_each_case():
    result = await grade("def add(a, b):\n    return 5")
    assert [verdict.passed for verdict in result.verdicts] == [True, False]
    assert result.share == 0.5
    assert not result.passed


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "def add(a, b):\n    import os; print('passed'); os._exit(0)",
        "import json\njson.dumps = lambda *a, **k: 'true'\ndef add(a, b): return 1",
        "class Same:\n    def __eq__(self, other): return True\ndef add(a, b): return Same()",
        "class Same(str):\n    def __eq__(self, other): return True\ndef add(a, b): return Same('x')",
        "import builtins\nbuiltins.isinstance = lambda *a: True\ndef add(a, b): return None",
        "import sys\ndef add(a, b): return [str(v) for v in sys._getframe(1).f_globals.values()]",
        "def add(a, b): return float('nan')",
        "def add(a, b):\n    while True: pass",
        "def add(a, b):\n    x = bytearray(10**10)",
        "def add(a, b):\n    while True: print('5')",
        "def add(a, b): return [[]] * 3",
        "open('result.json', 'w').write('[{\"passed\": true}]')\ndef add(a, b): return True",
        "def add(a, b):\n    x = []\n    for _ in range(3000): x = [x]\n    return x",
        "def nothing(): pass",
        "not python",
    ],
)
async def test_grade_function_fails_what_cheats(source: str):
    result = await grade_function(fresh, {"solution.py": source.encode()}, "solution:add", CASES, timeout_s=1.0)
    assert [verdict.passed for verdict in result.verdicts] == [False, False]


async def test_grade_function_writes_the_files_again_for_each_case():
    source = "def add(a, b):\n    open('solution.py', 'w').write('def add(a, b): return 0')\n    return a + b"
    assert (await grade(source)).passed


async def test_grade_function_refuses_a_strange_entry():
    with pytest.raises(ValueError, match="module:function"):
        await grade_function(fresh, {}, "solution", CASES)


async def test_grade_function_does_not_know_without_an_engine():
    lost = FakeSandbox(lambda text: SandboxLost("gone"))
    with pytest.raises(SandboxLost):
        await grade_function(lambda: lost, {"solution.py": b""}, "solution:add", CASES)


async def test_grade_program_compares_output_and_ignores_the_exit_code():
    files = {"p.py": b"import sys\na, b = map(int, input().split())\nprint(a + b, ' ')\nsys.exit(3)"}
    cases = [IOCase(stdin="2 3", expected="5\n\n"), IOCase(stdin="1 1", expected="3")]
    result = await grade_program(fresh, files, ["python3", "p.py"], cases)
    assert [verdict.passed for verdict in result.verdicts] == [True, False]


async def test_take_files_takes_what_is_named_and_there():
    sandbox = FakeSandbox()
    await sandbox.write_many({"solution.py": "x", "conftest.py": "y"})
    assert await take_files(sandbox, ["solution.py", "missing.py"]) == {"solution.py": b"x"}


def test_equal_looks_at_types():
    assert equal({"a": [1, "x", None]}, {"a": [1, "x", None]})
    for got, expected in ((1, True), (1, 1.0), ("1", 1), ([1], [1, 2]), ({"a": 1}, {"b": 1}), (math.nan, math.nan)):
        assert not equal(got, expected)


def test_close_allows_for_rounding_in_numbers_only():
    assert close([0.1 + 0.2, 3], [0.3, 3.0])
    assert close({"a": 1e9}, {"a": 1e9 + 1})
    for got, expected in ((True, 1), ("0.3", 0.3), (1.0, 1.1), (math.nan, 1.0), (math.inf, 1.0)):
        assert not close(got, expected)


def test_same_lines_forgives_trailing_blanks_only():
    assert same_lines("a \nb\n\n", "a\nb")
    assert not same_lines(" a", "a")
    assert not same_lines("a\n\nb", "a\nb")
