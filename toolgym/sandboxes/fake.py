"""A scripted sandbox for tests: no process, no file, no clock."""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from toolgym.sandboxes.base import (
    Command,
    CommandResult,
    Execution,
    FileInfo,
    Metrics,
    OnOutput,
    Process,
    ProcessInfo,
    ProgramError,
    Sandbox,
    SandboxClosed,
    SandboxFileError,
    SandboxInfo,
    SandboxSpec,
)
from toolgym.sandboxes.provider import Provider

Script = Mapping[str, Execution | Exception] | Callable[[str], Execution | Exception] | Sequence[Execution | Exception]
HOME = "/home/user"


class FakeSandbox(Sandbox):
    r"""Answers code and commands from a script, keeps files in memory, and records what it was asked.

    Args:
        script: answers by text (a command given as a list is joined by spaces), or a function of it, or a sequence
            to be used up in order. An exception is raised instead of returned. What is not in a mapping gives an empty
            `Execution`.

    Example: ``FakeSandbox({"print(1+1)": Execution(stdout="2\n")})``; ``sandbox.asked`` is then ``["print(1+1)"]``.
    """

    def __init__(self, script: Script = (), *, spec: SandboxSpec | None = None) -> None:
        self.id = "fake"
        self.provider = "fake"
        self.spec = spec or SandboxSpec()
        self.asked: list[str] = []
        self.files: dict[str, bytes] = {}
        self.killed = False
        self.paused = False
        self._script = script
        self._contexts = 0

    @property
    def ended(self) -> bool:
        return self.killed

    def _answer(self, text: str) -> Execution:
        self._open()
        self.asked.append(text)
        if callable(self._script):
            answer = self._script(text)
        elif isinstance(self._script, Mapping):
            answer = self._script.get(text, Execution())
        elif len(self.asked) <= len(self._script):
            answer = self._script[len(self.asked) - 1]
        else:
            raise AssertionError(
                f"the script has {len(self._script)} answers, and this is question {len(self.asked)}: {text!r}"
            )
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _open(self) -> None:
        if self.killed:
            raise SandboxClosed("the fake sandbox was killed")

    async def run_code(
        self,
        code: str,
        *,
        language: str = "python",
        context: str | None = None,
        timeout_s: float | None = None,
        env: Mapping[str, str] | None = None,
        on_output: OnOutput | None = None,
    ) -> Execution:
        answer = self._answer(code)
        if on_output is not None and answer.stdout:
            on_output("stdout", answer.stdout)
        return answer

    async def create_context(self, *, cwd: str | None = None) -> str:
        self._open()
        self._contexts += 1
        return str(self._contexts)

    async def remove_context(self, context: str) -> None:
        self._open()

    async def run(
        self,
        command: Command,
        *,
        timeout_s: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stdin: str | bytes = b"",
        on_output: OnOutput | None = None,
    ) -> CommandResult:
        return await self.run_code(command if isinstance(command, str) else " ".join(command), on_output=on_output)

    async def start(
        self,
        command: Command,
        *,
        timeout_s: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        on_output: OnOutput | None = None,
    ) -> Process:
        raise ProgramError("a fake sandbox has no background processes")

    async def processes(self) -> list[ProcessInfo]:
        self._open()
        return []

    async def connect(self, pid: int) -> Process:
        raise ProgramError(f"no background process {pid}")

    def _path(self, path: str) -> str:
        self._open()
        return posixpath.normpath(posixpath.join(HOME, path))

    def _info(self, path: str) -> FileInfo:
        folder = any(name.startswith(f"{path}/") for name in self.files)
        if path not in self.files and not folder:
            raise SandboxFileError(f"no such file: {path}")
        size = len(self.files.get(path, b""))
        name = posixpath.basename(path)
        return FileInfo(path=path, name=name, kind="dir" if folder else "file", size=size, mode=0o644, modified=0.0)

    async def read_bytes(self, path: str) -> bytes:
        path = self._path(path)
        if path not in self.files:
            raise SandboxFileError(f"no such file: {path}")
        return self.files[path]

    async def read_stream(self, path: str) -> AsyncIterator[bytes]:
        yield await self.read_bytes(path)

    async def write_many(self, files: Mapping[str, str | bytes]) -> list[FileInfo]:
        for path, data in files.items():
            self.files[self._path(path)] = data.encode() if isinstance(data, str) else data
        return [self._info(self._path(path)) for path in files]

    async def list_dir(self, path: str = ".", *, depth: int = 1) -> list[FileInfo]:
        folder = self._path(path)
        if path != ".":
            self._info(folder)  # it must be there
        below = [name.removeprefix(f"{folder}/").split("/") for name in self.files if name.startswith(f"{folder}/")]
        found = {
            "/".join([folder, *parts[:level]]) for parts in below for level in range(1, min(depth, len(parts)) + 1)
        }
        return [self._info(name) for name in sorted(found)]

    async def exists(self, path: str) -> bool:
        path = self._path(path)
        return path in self.files or any(name.startswith(f"{path}/") for name in self.files)

    async def file_info(self, path: str) -> FileInfo:
        return self._info(self._path(path))

    async def rename(self, old: str, new: str) -> FileInfo:
        data = await self.read_bytes(old)
        del self.files[self._path(old)]
        return await self.write(new, data)

    async def remove(self, path: str) -> None:
        path = self._info(self._path(path)).path
        self.files = {
            name: data for name, data in self.files.items() if name != path and not name.startswith(f"{path}/")
        }

    async def make_dir(self, path: str) -> bool:
        return not await self.exists(path)

    async def set_timeout(self, lifetime_s: float) -> None:
        self._open()

    async def info(self) -> SandboxInfo:
        state = "ended" if self.killed else "paused" if self.paused else "running"
        return SandboxInfo(id=self.id, provider="fake", state=state, expires_in_s=self.spec.lifetime_s)

    async def metrics(self) -> Metrics:
        self._open()
        return Metrics(executions=len(self.asked))

    async def pause(self) -> None:
        self._open()
        self.paused = True

    async def resume(self) -> None:
        self._open()
        self.paused = False

    async def kill(self) -> None:
        self.killed = True


class FakeProvider(Provider):
    """Opens `FakeSandbox` objects with one script, and keeps them in ``opened``.

    ``failure`` is raised by `open` instead.
    """

    name = "fake"

    def __init__(self, script: Script = (), *, failure: Exception | None = None) -> None:
        self.script = script
        self.failure = failure
        self.opened: list[FakeSandbox] = []

    async def check(self, spec: SandboxSpec) -> None:
        return None

    async def open(self, spec: SandboxSpec, *, run_id: str = "") -> FakeSandbox:
        if self.failure is not None:
            raise self.failure
        self.opened.append(FakeSandbox(self.script, spec=spec))
        return self.opened[-1]

    def isolation(self, spec: SandboxSpec) -> Mapping[str, str]:
        return {"network": "there is none", "files": "kept in memory"}
