"""A small environment for tests: every kind of tool that can go right or wrong."""

import threading
from collections.abc import Sequence

import anyio

from toolgym.envs import ToolEnv, ToolError, register, tool
from toolgym.errors import SandboxError
from toolgym.rewards import NumericMatch
from toolgym.sandboxes import ProgramError
from toolgym.types import Message, Task, ToolCall


@tool
def double(number: float) -> float:
    """Double a number, in a thread.

    Args:
        number: to be doubled
    """
    return 2 * number


@register("tests/small-v0")
class Small(ToolEnv):
    """Adds one."""

    tools = (double,)
    reward = NumericMatch()

    def tasks(self, split: str) -> Sequence[Task]:
        start = 10 * self.splits.index(self.check_split(split))
        return [self.make_task(split, i, question=f"{i} + 1?", answer=str(i + 1)) for i in range(start, start + 10)]

    @tool
    async def add(self, a: int, b: int = 1) -> int:
        """Add two numbers.

        Args:
            a: the first
            b: the second
        """
        return a + b

    @tool(timeout_s=0.02)
    async def hang(self) -> str:
        """Never return."""
        await anyio.sleep_forever()
        return ""

    @tool(timeout_s=0.02)
    def hang_in_thread(self) -> str:
        """Never return, in a thread."""
        release.wait(30)
        return ""

    @tool(max_output_chars=10)
    async def flood(self, size: int) -> str:
        """Give much output."""
        return "x" * size

    @tool
    async def fail(self, how: str) -> str:
        """Raise."""
        errors = {
            "tool": ToolError("not like this"),
            "value": ValueError("bad"),
            "exit": SystemExit(1),
            "program": ProgramError("the program is gone"),
            "sandbox": SandboxError("the daemon is gone"),
            "timeout": TimeoutError("slow"),
        }
        raise errors[how]


release = threading.Event()


def call(name: str, /, id: str = "", **arguments: object) -> Message:
    """An assistant message with one tool call."""
    return Message(role="assistant", tool_calls=(ToolCall(name=name, arguments=arguments, id=id),))


def say(text: str) -> Message:
    """An assistant message that ends the episode."""
    return Message(role="assistant", content=text)
