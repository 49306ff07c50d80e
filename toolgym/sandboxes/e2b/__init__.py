r"""E2B's Python SDK on sandboxes of ours: code written for it runs by changing its import.

    from toolgym.sandboxes.e2b import Sandbox  # was: from e2b_code_interpreter import Sandbox

    with Sandbox.create() as sandbox:
        print(sandbox.run_code("x = 20\nx + 1").text)
        print(sandbox.commands.run("echo hello").stdout)

What is here, what differs and what is missing: ``docs/e2b.md``.
"""

from toolgym.sandboxes.e2b.commands import AsyncCommandHandle
from toolgym.sandboxes.e2b.exceptions import (
    AuthenticationException,
    CommandExitException,
    FileNotFoundException,
    InvalidArgumentException,
    NotEnoughSpaceException,
    NotFoundException,
    RateLimitException,
    SandboxException,
    SandboxNotFoundException,
    SandboxNotRunningException,
    SandboxUnreachableException,
    TemplateException,
    TimeoutException,
    UnsupportedException,
)
from toolgym.sandboxes.e2b.models import (
    CommandResult,
    Context,
    EntryInfo,
    Execution,
    ExecutionError,
    FileType,
    Logs,
    OutputMessage,
    ProcessInfo,
    Result,
    SandboxInfo,
    SandboxMetrics,
    SandboxQuery,
    SandboxState,
    WriteInfo,
)
from toolgym.sandboxes.e2b.sandbox_async import AsyncSandbox, AsyncSandboxPaginator
from toolgym.sandboxes.e2b.sandbox_sync import CommandHandle, Sandbox, SandboxPaginator

__all__ = [
    "AsyncCommandHandle",
    "AsyncSandbox",
    "AsyncSandboxPaginator",
    "AuthenticationException",
    "CommandExitException",
    "CommandHandle",
    "CommandResult",
    "Context",
    "EntryInfo",
    "Execution",
    "ExecutionError",
    "FileNotFoundException",
    "FileType",
    "InvalidArgumentException",
    "Logs",
    "NotEnoughSpaceException",
    "NotFoundException",
    "OutputMessage",
    "ProcessInfo",
    "RateLimitException",
    "Result",
    "Sandbox",
    "SandboxException",
    "SandboxInfo",
    "SandboxMetrics",
    "SandboxNotFoundException",
    "SandboxNotRunningException",
    "SandboxPaginator",
    "SandboxQuery",
    "SandboxState",
    "SandboxUnreachableException",
    "TemplateException",
    "TimeoutException",
    "UnsupportedException",
    "WriteInfo",
]
