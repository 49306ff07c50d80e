"""A stand-in for a sandbox that answers the scripted expert's programs, and only those, without running them.

It reads ``print(...)`` of integers, ``+ - *`` and ``sum([...])``. Demonstrations made
with it equal those made with a sandbox (a test proves it) and take microseconds. Whatever else it is given is
refused: it is not for a policy's programs.
"""

import ast
import operator
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from toolgym.errors import EnvError
from toolgym.sandboxes.base import Execution, ExecutionError

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


class Arithmetic:
    """Has the two methods of a sandbox pool and of a sandbox that `PythonEnv` uses."""

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator["Arithmetic"]:
        """Itself: it keeps no state."""
        yield self

    async def run_code(self, code: str, *, timeout_s: float | None = None) -> Execution:
        """What running ``code`` would give. Raises EnvError: it is no program of the expert."""
        del timeout_s
        return execute(code)

    def describe(self) -> str:
        """One line: what this is."""
        return "no sandbox: the scripted expert's own programs, computed in this process"


def execute(code: str) -> Execution:
    """What running one of the expert's programs gives. Raises EnvError: it is none of them."""
    try:
        call = ast.parse(code, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or len(call.args) != 1:
            raise ValueError("not one call")
        if call.func.id == "print":
            return Execution(stdout=f"{_value(call.args[0])}\n")
        if call.func.id == "show":  # the expert's one mistake
            error = ExecutionError(name="NameError", message="name 'show' is not defined")
            return Execution(error=error, exit_code=1)
        raise ValueError(f"a call of {call.func.id}")
    except (SyntaxError, ValueError) as error:
        raise EnvError(f"this is not a program of the scripted expert ({error}): {code[:100]!r}") from error


def _value(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(number)) if type(number) is int:
            return number
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left), _value(right))
        case ast.Call(func=ast.Name(id="sum"), args=[ast.List(elts=items)]):
            return sum(map(_value, items))
        case _:
            raise ValueError(f"unknown expression {ast.dump(node)[:60]}")
