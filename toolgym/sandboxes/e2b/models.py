"""What E2B's calls give back, by E2B's names and in the order of its fields."""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, StrEnum
from typing import Any

from toolgym.sandboxes import base


class FileType(Enum):
    """What a path is."""

    FILE = "file"
    DIR = "dir"
    SYMLINK = "symlink"


class SandboxState(StrEnum):
    """Whether a sandbox runs."""

    RUNNING = "running"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class WriteInfo:
    """A file that was written. ``WriteInfo("a.txt", FileType.FILE, "/home/user/a.txt")``."""

    name: str
    type: FileType | None
    path: str


@dataclass(frozen=True, slots=True)
class EntryInfo(WriteInfo):
    """A file or folder. ``size`` in bytes, ``permissions`` as ``ls -l`` shows them."""

    size: int
    mode: int
    permissions: str
    owner: str
    group: str
    modified_time: datetime
    symlink_target: str | None = None


_FORMATS = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "symlink": stat.S_IFLNK, "other": 0}


def entry_info(info: base.FileInfo) -> EntryInfo:
    """E2B's description of a path from ours."""
    return EntryInfo(
        info.name,
        None if info.kind == "other" else FileType(info.kind),
        info.path,
        size=info.size,
        mode=info.mode,
        permissions=stat.filemode(_FORMATS[info.kind] | info.mode),
        owner="user",
        group="user",
        modified_time=datetime.fromtimestamp(info.modified, UTC),
        symlink_target=info.target,
    )


@dataclass(frozen=True, slots=True)
class CommandResult:
    r"""What a command did. ``CommandResult("", "hi\n", 0, None)``; None for output that was not retained."""

    stderr: str | None
    stdout: str | None
    exit_code: int
    error: str | None


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A running command. ``ProcessInfo(7, None, "bash", ["-c", "sleep 5"], {}, None)``."""

    pid: int
    tag: str | None
    cmd: str
    args: list[str]
    envs: dict[str, str]
    cwd: str | None


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """A sandbox: which, since when, until when, with what. ``memory_mb`` in MiB."""

    sandbox_id: str
    sandbox_domain: str | None
    template_id: str
    name: str | None
    metadata: dict[str, str]
    started_at: datetime
    end_at: datetime
    state: SandboxState
    cpu_count: int
    memory_mb: int
    envd_version: str
    allow_internet_access: bool | None = None


@dataclass(frozen=True, slots=True)
class SandboxQuery:
    """Which sandboxes to list: with this metadata, one of these states, started since then, of this template."""

    metadata: dict[str, str] | None = None
    state: list[SandboxState] | None = None
    started_after: datetime | None = None
    template: str | None = None

    def matches(self, info: SandboxInfo) -> bool:
        """Whether a sandbox is asked for."""
        return (
            (self.metadata or {}).items() <= info.metadata.items()
            and (not self.state or info.state in self.state)
            and (self.started_after is None or info.started_at >= self.started_after.astimezone())
            and self.template in (None, info.template_id)
        )


@dataclass(frozen=True, slots=True)
class SandboxMetrics:
    """What a sandbox uses now; sizes in bytes. What its provider cannot tell is 0."""

    cpu_count: int
    cpu_used_pct: float
    disk_total: int
    disk_used: int
    mem_total: int
    mem_used: int
    mem_cache: int
    timestamp: datetime


@dataclass(frozen=True, slots=True)
class OutputMessage:
    """A piece of output of code; ``timestamp`` in nanoseconds since the epoch, ``error`` where it is of stderr."""

    line: str
    timestamp: int
    error: bool = False

    def __str__(self) -> str:
        return self.line


@dataclass(frozen=True, slots=True)
class ExecutionError:
    """What ended code early. ``ExecutionError("ZeroDivisionError", "division by zero", "Traceback …")``."""

    name: str
    value: str
    traceback: str

    def to_json(self) -> str:
        """As a JSON object."""
        return json.dumps({"name": self.name, "value": self.value, "traceback": self.traceback})


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """The value of the last line, as text. The other formats of E2B's are always None: there is no Jupyter here."""

    text: str | None = None
    html: str | None = None
    markdown: str | None = None
    svg: str | None = None
    png: str | None = None
    jpeg: str | None = None
    pdf: str | None = None
    latex: str | None = None
    json: dict[str, Any] | None = None
    javascript: str | None = None
    data: dict[str, Any] | None = None
    chart: Any = None
    is_main_result: bool = False
    extra: dict[str, Any] | None = None

    def __getitem__(self, item: str) -> Any:
        return getattr(self, item)

    def __repr__(self) -> str:
        return f"Result({self.text})"

    def formats(self) -> list[str]:
        """The formats that it has."""
        names = [name for name in self.__slots__ if name not in ("is_main_result", "extra")]
        return [name for name in names if getattr(self, name)]


@dataclass(frozen=True, slots=True)
class Logs:
    """What code printed, in the pieces in which it came."""

    stdout: list[str] = field(default_factory=list[str])
    stderr: list[str] = field(default_factory=list[str])

    def to_json(self) -> str:
        """As a JSON object."""
        return json.dumps({"stdout": self.stdout, "stderr": self.stderr})


@dataclass(frozen=True, slots=True)
class Execution:
    """What a piece of code did."""

    results: list[Result] = field(default_factory=list[Result])
    logs: Logs = field(default_factory=Logs)
    error: ExecutionError | None = None
    execution_count: int | None = None

    @property
    def text(self) -> str | None:
        """The value of the last line."""
        return next((result.text for result in self.results if result.is_main_result), None)

    def to_json(self) -> str:
        """As a JSON object."""
        return json.dumps(
            {
                "results": [{name: result[name] for name in result.formats()} for result in self.results],
                "logs": self.logs.to_json(),
                "error": self.error.to_json() if self.error else None,
            }
        )


@dataclass(frozen=True, slots=True)
class Context:
    """An interpreter that keeps its state."""

    id: str
    language: str
    cwd: str
