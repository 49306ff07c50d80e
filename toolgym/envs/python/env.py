"""The Python environment and its scripted expert."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

from toolgym.envs.experts import Play, ask, choose_way, say
from toolgym.envs.python.arithmetic import Arithmetic
from toolgym.envs.python.questions import questions
from toolgym.envs.registry import register
from toolgym.envs.tool_env import ToolEnv
from toolgym.envs.tools import ToolError, tool
from toolgym.rewards import NumericMatch
from toolgym.sandboxes.base import End, Execution, SandboxSpec
from toolgym.sandboxes.pool import SandboxPool
from toolgym.types import Task

MAX_OUTPUT_CHARS = 2000  # of a program, as the model sees it
MAX_ERROR_CHARS = 200


@register("toolgym/python-v0")
class PythonEnv(ToolEnv):
    """Answer arithmetic and list questions by running Python in a sandbox: "what is 37 * 4 - 12?".

    Each program runs in a fresh interpreter that keeps nothing for the next one, so a few sandboxes serve any number of
    episodes. What a program does wrong is an error message to the model; a sandbox that is gone fails the episode. The
    second tool, ``search``, never finds anything.
    """

    reward = NumericMatch()

    def __init__(
        self, *, sandbox: str = "auto", sandboxes: int = 4, timeout_s: float = 2.0, run_id: str = "", **kwargs: Any
    ) -> None:
        """Make an instance; see `ToolEnv` for the other arguments.

        Args:
            sandbox: provider of the sandboxes ("docker", "local", …); "auto" takes the best there is.
            sandboxes: how many to keep open.
            timeout_s: seconds that one program may run.
            run_id: label of the sandboxes.
            **kwargs: for `ToolEnv`.
        """
        super().__init__(**kwargs)
        self.sandbox = sandbox
        self.sandboxes = sandboxes
        self.timeout_s = timeout_s
        self.run_id = run_id

    def tasks(self, split: str) -> Sequence[Task]:
        """The questions of a split: 4,096 for training, 512 each for validation and test, all of different content."""
        return _tasks(type(self), self.check_split(split))

    @asynccontextmanager
    async def open_shared(self) -> AsyncIterator[SandboxPool]:
        """The pool of sandboxes. Raises SandboxUnavailable: the provider cannot open any here."""
        spec = SandboxSpec(timeout_s=self.timeout_s, memory_mb=256, stateless=True)
        async with SandboxPool(self.sandbox, spec, self.sandboxes, run_id=self.run_id) as pool:
            yield pool

    @asynccontextmanager
    async def open_demonstrations(self) -> AsyncIterator[Arithmetic]:
        """The expert's programs need no sandbox: they are few and known."""
        yield Arithmetic()

    def describe(self, shared: Any = None) -> str:
        """One line: which sandbox runs the programs, and what it isolates."""
        return shared.describe() if shared is not None else f"sandbox {self.sandbox}, not open yet"

    @tool(timeout_s=None, max_output_chars=MAX_OUTPUT_CHARS)
    async def python(self, code: str) -> str:
        """Run a Python program and get what it prints.

        Args:
            code: the program
        """
        # No deadline of the tool's own: the sandbox holds the program's, and a pool that is slow to give a sandbox is
        # no fault of the policy's (it raises SandboxTimeout).
        async with self.shared.acquire() as sandbox:
            return output_of(await sandbox.run_code(code, timeout_s=self.timeout_s))

    @tool(timeout_s=None)
    async def search(self, query: str) -> str:
        """Search the web.

        Args:
            query: words to search for
        """
        del query
        return "nothing found"

    def expert(self, task: Task, rng: random.Random) -> Play:
        """A noisy expert (`toolgym.envs.experts`): it may forget the answer, take the wrong tool or try twice."""
        way = choose_way(rng, ("forget", "wrong tool", "second try"))
        code: str = task.data["code"]
        if way == "wrong tool":
            yield ask("search", query=task.data["question"])
        if way in ("lazy", "wrong tool"):
            yield say("I am not sure.")
            return
        if way == "second try":
            yield ask("python", code=code.replace("print", "show", 1))
        (reply,) = yield ask("python", code=code)
        yield say("I am not sure." if way == "forget" else reply.content)


def output_of(execution: Execution) -> str:
    """What the model sees of a program: what it printed, else its value, else the last line of its error.

    Raises: ToolError: it was killed, at its deadline or at another limit.
    """
    if execution.end is not End.EXITED:
        told = {
            End.TIMEOUT: "took too long",
            End.OUT_OF_MEMORY: "ran out of memory",
            End.OUTPUT_CUT: "printed too much",
        }
        raise ToolError(f"the program {told.get(execution.end, 'was killed')}")
    if execution.error is not None:
        return f"{execution.error.name}: {execution.error.message}"[:MAX_ERROR_CHARS]
    nothing = "(no output)" if execution.exit_code == 0 else f"(no output, exit code {execution.exit_code})"
    return execution.stdout.strip() or execution.result or nothing


@lru_cache(maxsize=4)
def _tasks(env: type[PythonEnv], split: str) -> tuple[Task, ...]:
    return tuple(
        env.make_task(split, number, content=q.key, question=q.text, answer=q.answer, code=q.code)
        for number, q in enumerate(questions(split))
    )
