"""``run_code`` and its contexts, of E2B's code interpreter."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TypeAlias

import anyio

from toolgym.sandboxes import base
from toolgym.sandboxes.base import End
from toolgym.sandboxes.e2b.exceptions import InvalidArgumentException, NotFoundException, TimeoutException, translated
from toolgym.sandboxes.e2b.models import Context, Execution, ExecutionError, Logs, OutputMessage, Result
from toolgym.sandboxes.e2b.relay import Handler, relay, tell

DEFAULT_TIMEOUT = 300
HOME = "/home/user"
Contexts: TypeAlias = list[Context]

_SET = """exec('''import json, os
new = json.loads({text!r})
os._toolgym_before = {{name: os.environ.get(name) for name in new}}
os.environ.update(new)''', {{}})"""
_RESTORE = """exec('''import os
for name, value in os.__dict__.pop("_toolgym_before", {}).items():
    os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)''', {})"""

_ENDS = {
    End.OUT_OF_MEMORY: ("MemoryError", "the code ran out of memory"),
    End.OUTPUT_CUT: ("OutputCut", "the code wrote more than the sandbox allows and was killed"),
    End.KILLED: ("Killed", "the code's interpreter was killed"),
}


class AsyncInterpreter:
    """Runs code. Python keeps its variables from call to call, in a default context where none is named."""

    def __init__(self, usable: Callable[[], base.Sandbox]) -> None:
        self._usable = usable
        self._contexts: dict[str, Context] = {}
        self._counts: dict[str, int] = {}
        self._default: Context | None = None
        self._making = anyio.Lock()

    @translated
    async def run_code(
        self,
        code: str,
        language: str | None = None,
        context: Context | None = None,
        on_stdout: Handler[OutputMessage] | None = None,
        on_stderr: Handler[OutputMessage] | None = None,
        on_result: Handler[Result] | None = None,
        on_error: Handler[ExecutionError] | None = None,
        *,
        envs: dict[str, str] | None = None,
        timeout: float | None = None,
        request_timeout: float | None = None,
    ) -> Execution:
        """Run code; what it raises is in ``error`` and not raised here.

        Args:
            code: the text.
            language: "python" (default), or "bash", which keeps no state.
            context: where to run Python; the default context where None.
            on_stdout: called with each piece of output; like all of them it may be a coroutine function.
            on_stderr: the same.
            on_result: called with the value of the last line.
            on_error: called with the error.
            envs: variables set while it runs.
            timeout: seconds, 300 where None; 0: until the sandbox ends. The context is empty after it.
            request_timeout: no effect.

        Raises:
            TimeoutException: the deadline.
            InvalidArgumentException: context and language both, or no such language.
        """
        if context is not None and language is not None:
            raise InvalidArgumentException("You can provide context or language, but not both at the same time.")
        sandbox, logs = self._usable(), Logs()

        async def hear(name: str, text: str) -> None:
            (logs.stdout if name == "stdout" else logs.stderr).append(text)
            message = OutputMessage(text, time.time_ns(), name == "stderr")
            await tell(on_stdout if name == "stdout" else on_stderr, message)

        timeout_s = (await sandbox.info()).expires_in_s + 1 if timeout == 0 else timeout or DEFAULT_TIMEOUT
        if language not in (None, "python"):
            done = await relay(
                lambda heard: sandbox.run_code(code, language=language, timeout_s=timeout_s, env=envs, on_output=heard),
                hear,
            )
            count = None
        else:
            where = context or await self._default_context()
            self._find(where)
            if envs:
                await sandbox.run_code(_SET.format(text=json.dumps(envs)), context=where.id)
            done = await relay(
                lambda heard: sandbox.run_code(code, context=where.id, timeout_s=timeout_s, on_output=heard), hear
            )
            if envs:
                await sandbox.run_code(_RESTORE, context=where.id)
            count = self._counts[where.id] = self._counts[where.id] + 1
        if done.timed_out:
            raise TimeoutException("Execution timed out: the 'timeout' option can be used to increase this timeout")
        results = [] if done.result is None else [Result(text=done.result, is_main_result=True)]
        error = _error(done)
        for result in results:
            await tell(on_result, result)
        if error is not None:
            await tell(on_error, error)
        return Execution(results, logs, error, count)

    async def _default_context(self) -> Context:
        async with self._making:  # calls at the same time share it
            if self._default is None:
                self._default = await self.create_code_context()
            return self._default

    def _find(self, context: Context | str) -> str:
        id = context if isinstance(context, str) else context.id
        if id not in self._contexts:
            raise NotFoundException(f"there is no context {id!r}; there are: {sorted(self._contexts) or '(none)'}")
        return id

    @translated
    async def create_code_context(
        self, cwd: str | None = None, language: str | None = None, request_timeout: float | None = None
    ) -> Context:
        """Make an interpreter that keeps its state, in a folder (the home folder where None). Python only."""
        if language not in (None, "python"):
            raise InvalidArgumentException(f"a context of language {language!r} is not available here, only of python")
        id = await self._usable().create_context(cwd=cwd)
        self._contexts[id] = Context(id, "python", cwd or HOME)
        self._counts[id] = 0
        return self._contexts[id]

    @translated
    async def remove_code_context(self, context: Context | str) -> None:
        """End a context. Raises NotFoundException: there is none."""
        id = self._find(context)
        await self._usable().remove_context(id)
        del self._contexts[id]
        if self._default is not None and self._default.id == id:
            self._default = None

    @translated
    async def list_code_contexts(self) -> Contexts:
        """The contexts that there are."""
        self._usable()
        return list(self._contexts.values())

    @translated
    async def restart_code_context(self, context: Context | str) -> None:
        """Empty a context; it keeps its id. Raises NotFoundException: there is none."""
        id = self._find(context)
        # An interpreter that dies starts again, empty, at the next call.
        await self._usable().run_code("__import__('os')._exit(0)", context=id)
        self._counts[id] = 0


def _error(done: base.Execution) -> ExecutionError | None:
    if done.error is not None:
        return ExecutionError(done.error.name, done.error.message, done.error.traceback)
    if done.end in _ENDS:
        return ExecutionError(*_ENDS[done.end], "")
    return ExecutionError("SystemExit", str(done.exit_code), "") if done.exit_code != 0 else None
