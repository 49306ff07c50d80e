"""The sandbox of every provider that runs our supervisor: all calls as frames, whatever carries them.

A provider adds how a supervisor is started, ended, frozen, and what its unexpected end means (`Verdict`).
"""

from __future__ import annotations

import codecs
import json
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import nullcontext
from enum import StrEnum
from typing import Any, Literal

import anyio

from toolgym.sandboxes.base import (
    Command,
    CommandResult,
    End,
    Execution,
    ExecutionError,
    FileInfo,
    Metrics,
    OnOutput,
    Process,
    ProcessInfo,
    ProgramError,
    Sandbox,
    SandboxClosed,
    SandboxError,
    SandboxFileError,
    SandboxInfo,
    SandboxLost,
    SandboxSpec,
)
from toolgym.sandboxes.connection import Connection, ConnectionEnded, Frame
from toolgym.sandboxes.tunnel import PROXY_VARIABLES, Tunnels

ANSWER_S = 30.0  # for the supervisor to answer what needs no program of the sandbox's
GRACE_S = 15.0  # beyond a program's deadline: killing (5 s), wiping (5 s), a busy machine
STREAM_PIECE = 256 * 1024
SHELLS = ("bash", "sh")


class Verdict(StrEnum):
    """Why a sandbox ended that nobody asked to end. Only LOST is an infrastructure failure."""

    OUT_OF_MEMORY = "its memory ran out"
    PROGRAM = "its program brought it down"
    EXPIRED = "its lifetime is over"
    KILLED = "it was killed"
    LOST = "it was taken away, or its engine is gone"


_VERDICT_ENDS = {Verdict.OUT_OF_MEMORY: End.OUT_OF_MEMORY, Verdict.EXPIRED: End.TIMEOUT}


def supervisor_config(spec: SandboxSpec, *, home: str, tmp: list[str], env: Mapping[str, str]) -> dict[str, Any]:
    """What a supervisor is told first.

    Limits, folders (emptied after each stateless execution), the programs' variables.
    """
    defaults = {
        "HOME": home,
        "TMPDIR": tmp[0],
        "USER": "user",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",  # equal programs print equal sets
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        **(PROXY_VARIABLES if spec.allow_hosts else {}),
    }
    return {
        "id": 0,
        "memory_mb": spec.memory_mb,
        "file_mb": spec.file_mb,
        "open_files": spec.open_files,
        "output_kb": spec.output_kb,
        "lifetime_s": spec.lifetime_s,
        "stateless": spec.stateless,
        "preload": list(spec.preload),
        "home": home,
        "folders": [home, *tmp],
        "roots": [],
        "proxy": bool(spec.allow_hosts),
        "env": {**defaults, **env, **spec.env},
    }


class _Output:
    """What an execution wrote, decoded as it comes where somebody listens.

    Untrusted, bounded by the supervisor and here.
    """

    def __init__(self, on_output: OnOutput | None, limit: int) -> None:
        self._on_output = on_output
        self._left = limit
        self._kept = {"out": bytearray(), "err": bytearray()}
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {"out": decoder("replace"), "err": decoder("replace")}

    def add(self, name: Literal["out", "err"], data: bytes, *, final: bool = False) -> None:
        data = data[: self._left]
        self._left -= len(data)
        self._kept[name] += data
        if self._on_output is not None:
            text = self._decoders[name].decode(data, final)
            if text:
                self._on_output("stdout" if name == "out" else "stderr", text)

    def listen(self, on_output: OnOutput | None) -> None:
        self._on_output = on_output

    def text(self, name: Literal["out", "err"]) -> str:
        return self._kept[name].decode("utf-8", "replace")


def _result(frame: Frame, output: _Output) -> dict[str, Any]:
    """The fields of a CommandResult from the last frame of an execution, and its report."""
    header, body = frame
    sizes = header.get("sizes", [0, 0, 0])
    output.add("out", body[: sizes[0]], final=True)
    output.add("err", body[sizes[0] : sizes[0] + sizes[1]], final=True)
    return {
        "stdout": output.text("out"),
        "stderr": output.text("err"),
        "exit_code": int(header["status"]),
        "end": End(header["end"]),
        "duration_s": float(header["s"]),
    }


def _read_report(data: bytes) -> tuple[str | None, ExecutionError | None]:
    """The structured part of an execution, which the program could have forged: only its form is checked."""
    try:
        report = json.loads(data)
        result, error = report.get("result"), report.get("error")
        if error is not None:
            error = ExecutionError(**{key: str(error[key]) for key in ("name", "message", "traceback")})
        return (str(result) if result is not None else None), error
    except (ValueError, AttributeError, KeyError, TypeError):
        return None, None


class SupervisedSandbox(Sandbox):
    """A sandbox whose work is done by our supervisor at the other end of a `Connection`."""

    def __init__(self, spec: SandboxSpec, connection: Connection, *, id: str, provider: str, run_id: str) -> None:
        self.spec = spec
        self.id = id
        self.provider = provider
        self.run_id = run_id
        self.clean = True  # False: files of a stateless execution could not be removed
        self._connection = connection
        self._verdict: Verdict | None = None
        self._paused = False
        self._expires = anyio.current_time() + spec.lifetime_s
        self._processes: dict[int, SupervisedProcess] = {}
        self._tunnels = Tunnels(connection, spec.allow_hosts) if spec.allow_hosts else None
        self._asked: dict[int, float] = {}  # deadlines in s of the foreground executions under way, which run in turn

    # -- what a provider adds

    @abstractmethod
    async def _judge(self) -> Verdict:
        """Why the supervisor's stream has ended, or it does not answer. Ends within seconds, never raises."""

    @abstractmethod
    async def _destroy(self) -> None:
        """Remove all that is left of the sandbox. May raise, may hang: it is called with a deadline."""

    @abstractmethod
    async def _freeze(self, frozen: bool) -> None:
        """Freeze or thaw all processes."""

    # -- exchanges

    @property
    def ended(self) -> bool:
        return self._verdict is not None or self._connection.hung_up()

    def _closed(self) -> SandboxError:
        verdict = self._verdict or Verdict.KILLED
        kind = SandboxLost if verdict is Verdict.LOST else SandboxClosed
        return kind(f"{self.provider} sandbox {self.id} has ended: {verdict}; open another")

    async def _must_live(self) -> None:
        """Raise SandboxClosed or SandboxLost where it has ended already, as far as can be seen without waiting."""
        if self.ended:
            await self._end()
            raise self._closed()

    async def _end(self) -> Verdict:
        """Find out why the supervisor is gone, and clean up after it."""
        if self._verdict is None:
            with anyio.CancelScope(shield=True), anyio.move_on_after(20):
                verdict = await self._judge()
                if self._verdict is None:
                    self._verdict = verdict
            if self._verdict is None:
                self._verdict = Verdict.LOST
            await self._clean_up()
        return self._verdict

    async def _ask(self, header: dict[str, Any], body: bytes = b"", *, timeout_s: float = ANSWER_S) -> Frame:
        """One request, one answer. Raises SandboxClosed, SandboxLost, SandboxFileError (what ``failed`` says)."""
        if self._verdict is not None:
            raise self._closed()
        box = self._connection.open_box()
        try:
            with anyio.fail_after(timeout_s):
                await self._connection.send({**header, "id": box}, body)
                answer = await self._connection.receive(box)
        except (ConnectionEnded, TimeoutError):
            await self._end()
            raise self._closed() from None
        finally:
            self._connection.close_box(box)
        if "failed" in answer[0]:
            raise SandboxFileError(
                f"{header.get('call', header['op'])} {header.get('path', '')}: {answer[0]['failed']}"
            )
        return answer

    async def _execute(
        self, header: dict[str, Any], body: bytes, timeout_s: float, on_output: OnOutput | None
    ) -> tuple[dict[str, Any], bytes]:
        """One foreground execution: the fields of its result, and its report. Killed where the caller is cancelled."""
        await self._must_live()  # else it would look as if it had ended under this execution
        output = _Output(on_output, self.spec.output_kb << 10)
        box = self._connection.open_box()
        header = {**header, "id": box, "timeout_s": timeout_s, "stream": on_output is not None}
        self._asked[box] = timeout_s + GRACE_S
        try:
            with anyio.fail_after(sum(self._asked.values())):
                async with self._tunnels.open() if self._tunnels else nullcontext():
                    await self._connection.send(header, body)
                    while (frame := await self._connection.receive(box))[0].get("ev") in ("out", "err"):
                        output.add(frame[0]["ev"], frame[1])
        except (ConnectionEnded, TimeoutError) as error:
            return await self._ended_during(output, late=isinstance(error, TimeoutError)), b""
        except anyio.get_cancelled_exc_class():
            await self._cancel(box)
            raise
        finally:
            self._connection.close_box(box)
            del self._asked[box]
        if "failed" in frame[0]:
            raise ProgramError(str(frame[0]["failed"]))
        self.clean = self.clean and frame[0].get("clean") is True
        fields = _result(frame, output)
        return fields, frame[1][sum(frame[0]["sizes"][:2]) :]

    async def _ended_during(self, output: _Output, *, late: bool = False) -> dict[str, Any]:
        """The result of an execution whose sandbox ended under it, or raise where that is not its own doing."""
        verdict = await self._end()
        if verdict in (Verdict.LOST, Verdict.KILLED):
            raise self._closed()
        end = _VERDICT_ENDS.get(verdict, End.TIMEOUT if late else End.KILLED)
        return {"stdout": output.text("out"), "stderr": output.text("err"), "exit_code": -9, "end": end}

    async def _cancel(self, box: int) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(10):
            try:
                await self._ask({"op": "kill", "job": box}, timeout_s=8)
            except SandboxError:
                return

    # -- code and commands

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
        timeout_s = self.spec.timeout_s if timeout_s is None else timeout_s
        if language in SHELLS and context is None:
            result = await self.run([language, "-c", code], timeout_s=timeout_s, env=env, on_output=on_output)
            return Execution(**{name: getattr(result, name) for name in CommandResult.__slots__})
        if language != "python":
            raise ProgramError(f"language {language!r} is not to be had; there are: python, {', '.join(SHELLS)}")
        header: dict[str, Any] = {"op": "code"}
        if context is not None:
            header["context"] = _number(context)
        if env:
            header["env"] = dict(env)
        fields, report = await self._execute(header, code.encode("utf-8", "surrogatepass"), timeout_s, on_output)
        result, error = _read_report(report)
        if error is not None and error.name == "MemoryError" and fields["end"] is End.EXITED:
            fields["end"] = End.OUT_OF_MEMORY
        return Execution(**fields, result=result, error=error)

    async def create_context(self, *, cwd: str | None = None) -> str:
        answer, _ = await self._ask({"op": "context", "cwd": cwd})
        return str(answer["id"])

    async def remove_context(self, context: str) -> None:
        await self._ask({"op": "drop_context", "context": _number(context)})

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
        header = _command(command, cwd, env, user)
        timeout_s = self.spec.timeout_s if timeout_s is None else timeout_s
        fields, _ = await self._execute(header, _bytes(stdin), timeout_s, on_output)
        return CommandResult(**fields)

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
        if self._verdict is not None:
            raise self._closed()
        header = {**_command(command, cwd, env, user), "background": True, "stream": True, "timeout_s": timeout_s}
        process = SupervisedProcess(self, self._connection.open_box(), on_output)
        try:
            with anyio.fail_after(ANSWER_S):
                await self._connection.send({**header, "id": process.box})
                await process.started()
        except (ConnectionEnded, TimeoutError):
            await self._end()
            raise self._closed() from None
        except BaseException:
            await self._cancel(process.box)
            raise
        self._processes[process.pid] = process
        return process

    async def processes(self) -> list[ProcessInfo]:
        answer, _ = await self._ask({"op": "processes"})
        return [
            ProcessInfo(pid=p["pid"], command=p["command"] if isinstance(p["command"], str) else " ".join(p["command"]))
            for p in answer["processes"]
        ]

    async def connect(self, pid: int) -> Process:
        if pid not in self._processes:
            raise ProgramError(f"no background process {pid}; there are: {sorted(self._processes) or '(none)'}")
        return self._processes[pid]

    # -- files

    async def _file(self, call: str, path: str, body: bytes = b"", **more: Any) -> Frame:
        return await self._ask({"op": "file", "call": call, "path": path, **more}, body, timeout_s=90)

    async def read_bytes(self, path: str) -> bytes:
        return (await self._file("read", path))[1]

    async def read_stream(self, path: str) -> AsyncIterator[bytes]:
        offset = 0
        while data := (await self._file("read", path, offset=offset, length=STREAM_PIECE))[1]:
            yield data
            offset += len(data)

    async def write_many(self, files: Mapping[str, str | bytes]) -> list[FileInfo]:
        contents = [_bytes(data) for data in files.values()]
        limit = self.spec.file_mb << 20
        for path, data in zip(files, contents, strict=True):
            if len(data) > limit:
                raise SandboxFileError(
                    f"write {path}: {len(data)} bytes are more than file_mb ({self.spec.file_mb} MB)"
                )
        sizes = [len(data) for data in contents]
        answer, _ = await self._file("write", "", b"".join(contents), paths=list(files), sizes=sizes)
        return [FileInfo(**entry) for entry in answer["entries"]]

    async def list_dir(self, path: str = ".", *, depth: int = 1) -> list[FileInfo]:
        return [FileInfo(**entry) for entry in (await self._file("list", path, depth=depth))[0]["entries"]]

    async def exists(self, path: str) -> bool:
        return bool((await self._file("exists", path))[0]["value"])

    async def file_info(self, path: str) -> FileInfo:
        return FileInfo(**(await self._file("info", path))[0]["entries"][0])

    async def rename(self, old: str, new: str) -> FileInfo:
        return FileInfo(**(await self._file("rename", old, new=new))[0]["entries"][0])

    async def remove(self, path: str) -> None:
        await self._file("remove", path)

    async def make_dir(self, path: str) -> bool:
        return bool((await self._file("mkdir", path))[0]["value"])

    # -- the sandbox itself

    async def set_timeout(self, lifetime_s: float) -> None:
        # There is no answer to wait for: a pool's sandbox is had at once, and whatever is asked next comes after this.
        await self._must_live()
        try:
            await self._connection.send({"op": "lifetime", "lifetime_s": lifetime_s})
        except (ConnectionEnded, TimeoutError):
            await self._end()
            raise self._closed() from None
        self._expires = anyio.current_time() + lifetime_s

    async def info(self) -> SandboxInfo:
        state: Literal["running", "paused", "ended"] = (
            "ended" if self.ended else "paused" if self._paused else "running"
        )
        left = 0.0 if self.ended else max(0.0, self._expires - anyio.current_time())
        return SandboxInfo(
            id=self.id,
            provider=self.provider,
            state=state,
            expires_in_s=left,
            image=self.spec.image,
            run_id=self.run_id,
        )

    async def metrics(self) -> Metrics:
        answer, _ = await self._ask({"op": "metrics"})
        return Metrics(**answer["metrics"], memory_limit_bytes=self.spec.memory_mb << 20)

    async def pause(self) -> None:
        if self._verdict is not None:
            raise self._closed()
        await self._freeze(True)
        self._paused = True

    async def resume(self) -> None:
        if self._verdict is not None:
            raise self._closed()
        await self._freeze(False)
        self._paused = False

    async def kill(self) -> None:
        if self._verdict is None:
            self._verdict = Verdict.KILLED
            await self._clean_up()

    async def _clean_up(self) -> None:
        self._connection.close()
        with anyio.CancelScope(shield=True), anyio.move_on_after(10):
            try:
                await self._destroy()
            except (SandboxError, OSError):
                return  # the engine is gone: its supervisor ends with its input, and the next start sweeps


class SupervisedProcess(Process):
    """A background process at the other end of a connection; its frames wait in a box of their own."""

    def __init__(self, sandbox: SupervisedSandbox, box: int, on_output: OnOutput | None) -> None:
        self.box = box
        self._sandbox = sandbox
        self._output = _Output(on_output, sandbox.spec.output_kb << 10)
        self._result: CommandResult | None = None
        self._waiting = anyio.Lock(fast_acquire=True)

    async def started(self) -> None:
        """Wait until the supervisor has forked it. Raises ProgramError where it could not."""
        header, body = await self._sandbox._connection.receive(self.box)
        if header.get("ev") != "started":
            raise ProgramError(f"cannot start: {body.decode('utf-8', 'replace')}")
        self.pid = int(header["pid"])

    async def wait(self, *, on_output: OnOutput | None = None) -> CommandResult:
        if on_output is not None:
            self._output.listen(on_output)
        async with self._waiting:
            while self._result is None:
                try:
                    frame = await self._sandbox._connection.receive(self.box)
                except ConnectionEnded:
                    self._result = CommandResult(**await self._sandbox._ended_during(self._output))
                    break
                if frame[0]["ev"] in ("out", "err"):
                    self._output.add(frame[0]["ev"], frame[1])
                else:
                    self._result = CommandResult(**_result(frame, self._output))
                    self._sandbox._connection.close_box(self.box)
                    self._sandbox._processes.pop(self.pid, None)
        return self._result

    async def send_stdin(self, data: str | bytes, *, eof: bool = False) -> None:
        answer, _ = await self._sandbox._ask({"op": "stdin", "job": self.box, "eof": eof}, _bytes(data))
        if not answer.get("value"):
            raise ProgramError(f"background process {self.pid} has ended, or its standard input is closed")

    async def kill(self) -> bool:
        answer, _ = await self._sandbox._ask({"op": "kill", "job": self.box})
        return bool(answer.get("value"))


def _command(command: Command, cwd: str | None, env: Mapping[str, str] | None, user: str | None) -> dict[str, Any]:
    if user not in (None, "user"):
        raise ProgramError(f"user {user!r}: everything in a sandbox runs as its only user, 'user'")
    text = command if isinstance(command, str) else list(command)
    return {"op": "command", "command": text, "cwd": cwd, "env": dict(env or {})}


def _bytes(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else bytes(data)


def _number(context: str) -> int:
    if not context.isdigit():
        raise ProgramError(f"there is no context {context!r}")
    return int(context)
