"""The sandbox contract: what can be asked of an isolated place, its limits with units, and each error and when.

Every call is a coroutine. A sandbox belongs to the event loop in which it was opened. What the *program inside* does
wrong (fails, hangs, floods, eats its memory, kills itself) is part of the result and never an exception, so that a
policy cannot crash its way out of a score; what a program cannot cause (the engine is gone) raises `SandboxLost`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Literal, Self, TypeAlias

from toolgym.errors import ConfigError, SandboxError

OnOutput: TypeAlias = Callable[[Literal["stdout", "stderr"], str], None]
Command: TypeAlias = str | Sequence[str]


class SandboxLost(SandboxError):
    """The engine, or the sandbox through no fault of its program, is gone. An infrastructure failure: never a score.

    ``status`` is the HTTP status that the engine answered with, where it answered.
    """

    status: int | None = None


class SandboxUnavailable(SandboxLost):
    """A provider cannot open sandboxes here (no engine answers, no image, a limit is used up). Says what to do."""


class SandboxTimeout(SandboxLost, TimeoutError):
    """The engine or the pool did not do its part within the deadline. (A program's own deadline is a result.)"""


class ProgramError(SandboxError):
    """What the program inside caused or asked for wrongly: the policy's own fault, to be told to the model."""


class SandboxClosed(ProgramError):
    """The sandbox has ended: killed, its lifetime over, or its program brought it down (the message says which)."""


class SandboxFileError(ProgramError, OSError):
    """A file call failed inside the sandbox: no such file, not a regular file, past ``file_mb``, outside its folder."""


class CommandFailed(ProgramError):
    """`CommandResult.check`: the command ended with another exit code than 0. Has ``result``."""

    def __init__(self, message: str, result: CommandResult | Execution | None = None) -> None:
        super().__init__(message)
        self.result = result


class ProgramTimeout(CommandFailed, TimeoutError):
    """`check`: the program was killed at its deadline."""


class ProgramOutOfMemory(CommandFailed, MemoryError):
    """`check`: the program ran into ``memory_mb``."""


class ProgramOutputCut(CommandFailed):
    """`check`: the program wrote more than ``output_kb`` and was killed."""


class ProgramKilled(CommandFailed):
    """`check`: the program died of a signal, by itself or by `Process.kill`."""


class End(StrEnum):
    """How an execution ended. All but EXITED leave no process of it behind, and neither does EXITED."""

    EXITED = "exited"  # by itself, with an exit code
    TIMEOUT = "timeout"  # killed at its deadline
    OUT_OF_MEMORY = "out_of_memory"  # killed by the kernel at memory_mb, or an uncaught MemoryError
    OUTPUT_CUT = "output_cut"  # killed for writing more than output_kb
    KILLED = "killed"  # died of a signal (exit_code is minus its number)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What a sandbox is made of and its limits. Example: ``SandboxSpec(memory_mb=256, timeout_s=5, stateless=True)``.

    Past a limit: ``memory_mb`` the program gets a MemoryError or is killed (`End.OUT_OF_MEMORY`); ``pids`` fork fails
    with EAGAIN; ``tmp_mb`` and ``files`` writing fails with ENOSPC; ``file_mb`` with EFBIG; ``open_files`` opening
    fails with EMFILE; ``output_kb`` and ``timeout_s`` the program and all it started are killed (`End.OUTPUT_CUT`,
    `End.TIMEOUT`); ``lifetime_s`` the sandbox ends, whatever runs in it. Which limits a provider enforces,
    `Provider.isolation` tells.
    """

    image: str = "python"  # an image of ours, or any reference with python3 >= 3.8 in it
    memory_mb: int = 512  # of all processes together (Docker; temporary files count), else of each
    cpus: float = 1.0
    pids: int = 64  # processes and threads at once
    tmp_mb: int = 64  # of the home folder, and again of /tmp
    files: int = 4096  # files and folders in the home folder, and again in /tmp
    file_mb: int = 16  # one file, also through the file calls
    open_files: int = 256  # per process
    output_kb: int = 64  # stdout and stderr of one execution together
    timeout_s: float = 10.0  # default deadline of one execution
    lifetime_s: float = 3600.0  # of the sandbox
    network: bool = False  # True: the engine's default network
    allow_hosts: tuple[str, ...] = ()  # "host:port" to be reached through HTTPS_PROXY while an execution is under way
    runtime: str | None = None  # of the engine: "runsc" (gVisor), "kata"
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    preload: tuple[str, ...] = ()  # modules imported before the first execution, shared by all
    stateless: bool = False  # executions share nothing: all files are wiped after each
    needs_isolation: bool = False  # refuse a provider that isolates neither files nor network

    def __post_init__(self) -> None:
        for name in ("memory_mb", "cpus", "pids", "tmp_mb", "files", "file_mb", "open_files", "output_kb"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"SandboxSpec.{name} must be above 0, got {getattr(self, name)!r}")
        for name in ("timeout_s", "lifetime_s"):
            if not 0 < getattr(self, name) < 10**7:
                raise ConfigError(f"SandboxSpec.{name} must be above 0 and finite, got {getattr(self, name)!r}")
        if self.network and self.allow_hosts:
            raise ConfigError("SandboxSpec: allow_hosts restricts a sandbox without network; leave network False")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionError:
    """The uncaught exception of an execution.

    ``ExecutionError(name="ZeroDivisionError", message="division by zero", ...)``.
    """

    name: str
    message: str
    traceback: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    r"""What a command did. Example: ``CommandResult(stdout="hi\n", exit_code=0)``.

    Text is UTF-8 with undecodable bytes replaced. ``exit_code`` is minus the signal's number where a signal ended it.
    ``duration_s`` differs between equal runs: keep it out of anything compared.
    """

    stdout: str = ""
    stderr: str = ""
    exit_code: int = 0
    end: End = End.EXITED
    duration_s: float = 0.0

    @property
    def timed_out(self) -> bool:
        """It was killed at its deadline."""
        return self.end is End.TIMEOUT

    @property
    def output_cut(self) -> bool:
        """It wrote more than ``output_kb``; what came before that is here."""
        return self.end is End.OUTPUT_CUT

    @property
    def oom(self) -> bool:
        """It ran out of memory."""
        return self.end is End.OUT_OF_MEMORY

    @property
    def killed(self) -> bool:
        """It died of a signal that was none of the limits'."""
        return self.end is End.KILLED

    def check(self) -> Self:
        """Itself where it ended well, else raise a `CommandFailed` of the kind of its end."""
        if self.end is End.EXITED and self.exit_code == 0:
            return self
        kinds = {
            End.TIMEOUT: ProgramTimeout,
            End.OUT_OF_MEMORY: ProgramOutOfMemory,
            End.OUTPUT_CUT: ProgramOutputCut,
            End.KILLED: ProgramKilled,
        }
        kind = kinds.get(self.end, CommandFailed)
        raise kind(f"the program ended with {self.end} (exit code {self.exit_code}): {self.stderr[-500:]}", self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution(CommandResult):
    r"""What a piece of code did. ``Execution(stdout="2\n")``, or with ``result="2"`` where the last line was ``1 + 1``.

    ``error`` is the uncaught exception; it is not in ``stderr``, which holds what the code itself wrote.
    """

    result: str | None = None  # repr of the last expression, where there is one and it is not None
    error: ExecutionError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """One entry of a folder.

    ``FileInfo(path="/home/user/a.txt", name="a.txt", kind="file", size=3, mode=0o644, ...)``.
    """

    path: str
    name: str
    kind: Literal["file", "dir", "symlink", "other"]
    size: int  # bytes
    mode: int  # permission bits
    modified: float  # seconds since the epoch
    target: str | None = None  # of a symlink


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """A background process. ``ProcessInfo(pid=7, command="sleep 5")``."""

    pid: int
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What a sandbox uses now. Bytes and seconds; a provider that cannot tell gives 0."""

    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    cpu_s: float = 0.0
    processes: int = 0
    disk_bytes: int = 0
    executions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxInfo:
    """What a sandbox is. ``SandboxInfo(id="…", provider="docker", state="running", expires_in_s=3599.0)``."""

    id: str
    provider: str
    state: Literal["running", "paused", "ended"]
    expires_in_s: float
    image: str = ""
    run_id: str = ""


class Process(ABC):
    """A background process of a sandbox. It ends with its sandbox at the latest, and at ``output_kb`` of output."""

    pid: int

    @abstractmethod
    async def wait(self, *, on_output: OnOutput | None = None) -> CommandResult:
        """Its result, once it has ended.

        ``on_output`` gets what it writes from now on. May be called more than once.
        """

    @abstractmethod
    async def send_stdin(self, data: str | bytes, *, eof: bool = False) -> None:
        """Write to its standard input, which ``eof`` then closes. Raises ProgramError: it has ended."""

    @abstractmethod
    async def kill(self) -> bool:
        """Kill it and all that it started, and see it dead. False: it had ended before."""


class Sandbox(ABC):
    """An isolated place to run commands and code and to keep files; the same user and folder for all of them.

    Foreground executions of one sandbox run one after another; when one ends, everything that it started and that is
    not a background process is killed. Relative paths start at the home folder. Every method raises `SandboxClosed`
    once the sandbox has ended and `SandboxLost` (or its subclass `SandboxTimeout`) when its engine does not do its
    part. Leaving its ``async with`` kills it.
    """

    id: str
    provider: str
    spec: SandboxSpec
    clean: bool = True  # False: a stateless execution left something that could not be removed; do not use it again

    @property
    def ended(self) -> bool:
        """Whether it is known to have ended; asks nobody."""
        return False

    # -- code and commands

    @abstractmethod
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
        """Run code in an interpreter of its own, or in the ``context`` that keeps its variables.

        Args:
            code: the program's text.
            language: "python", or "bash" / "sh" (without a context).
            context: from `create_context`. One that is killed at its deadline starts again empty at the next call.
            timeout_s: deadline; the specification's where None.
            env: variables added to the sandbox's (not with a context).
            on_output: called with each piece of output as it comes.

        Raises:
            ProgramError: no such context, or no such language.
        """

    @abstractmethod
    async def create_context(self, *, cwd: str | None = None) -> str:
        """Make an interpreter that keeps its state between executions; returns its id."""

    @abstractmethod
    async def remove_context(self, context: str) -> None:
        """End a context. Nothing happens where there is none."""

    @abstractmethod
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
        """Run a command (text goes to a shell, a list is executed as it is) and wait for its end.

        ``stdin`` is all of its standard input. ``user`` may only be None or "user": there is no other in a sandbox.

        Raises:
            ProgramError: another user was asked for.
        """

    @abstractmethod
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
        """Start a command in the background, by default with no deadline but the sandbox's."""

    @abstractmethod
    async def processes(self) -> list[ProcessInfo]:
        """The background processes that run now."""

    @abstractmethod
    async def connect(self, pid: int) -> Process:
        """The background process with this id. Raises ProgramError where there is none."""

    # -- files

    @abstractmethod
    async def read_bytes(self, path: str) -> bytes:
        """A regular file's content, at most ``file_mb``. Raises SandboxFileError, also for devices and pipes."""

    async def read_text(self, path: str) -> str:
        """As `read_bytes`, decoded from UTF-8. Raises UnicodeDecodeError where it is none."""
        return (await self.read_bytes(path)).decode()

    @abstractmethod
    def read_stream(self, path: str) -> AsyncIterator[bytes]:
        """A regular file's content in pieces of up to 256 KiB; its size is not limited."""

    async def write(self, path: str, data: str | bytes) -> FileInfo:
        """Write a file, making its folders; an existing one is replaced, a symlink in its place is not followed."""
        return (await self.write_many({path: data}))[0]

    @abstractmethod
    async def write_many(self, files: Mapping[str, str | bytes]) -> list[FileInfo]:
        """Write several files in one exchange, in order. Raises SandboxFileError at the first that fails."""

    @abstractmethod
    async def list_dir(self, path: str = ".", *, depth: int = 1) -> list[FileInfo]:
        """The entries of a folder, sorted by path, ``depth`` levels deep, at most 10,000; symlinks are not entered."""

    @abstractmethod
    async def exists(self, path: str) -> bool:
        """Whether something has this path."""

    @abstractmethod
    async def file_info(self, path: str) -> FileInfo:
        """About one entry; a symlink is not followed. Raises SandboxFileError where there is none."""

    @abstractmethod
    async def rename(self, old: str, new: str) -> FileInfo:
        """Give a file or folder another path, replacing a file there."""

    @abstractmethod
    async def remove(self, path: str) -> None:
        """Remove a file, or a folder with all that is in it. Raises SandboxFileError where there is none."""

    @abstractmethod
    async def make_dir(self, path: str) -> bool:
        """Make a folder and those above it; False where it existed."""

    # -- the sandbox itself

    @abstractmethod
    async def set_timeout(self, lifetime_s: float) -> None:
        """Let the sandbox end this many seconds from now."""

    @abstractmethod
    async def info(self) -> SandboxInfo:
        """Which sandbox this is and when it ends. Never raises for one that has ended."""

    @abstractmethod
    async def metrics(self) -> Metrics:
        """What it uses now."""

    @abstractmethod
    async def pause(self) -> None:
        """Freeze all its processes; its lifetime goes on, but ends a frozen one only at the next sweep or `resume`."""

    @abstractmethod
    async def resume(self) -> None:
        """Thaw it."""

    @abstractmethod
    async def kill(self) -> None:
        """End the sandbox with all that runs in it. Never raises; takes at most 10 s; may be called again."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()
