"""Sandboxes: isolated places to run commands and code and to keep files."""

from toolgym.sandboxes.base import (
    CommandResult,
    End,
    Execution,
    ExecutionError,
    FileInfo,
    Metrics,
    Process,
    ProgramError,
    Sandbox,
    SandboxClosed,
    SandboxFileError,
    SandboxLost,
    SandboxSpec,
    SandboxTimeout,
    SandboxUnavailable,
)
from toolgym.sandboxes.fake import FakeProvider, FakeSandbox
from toolgym.sandboxes.pool import SandboxPool
from toolgym.sandboxes.provider import Provider, open_sandbox, providers, register_provider

__all__ = [
    "CommandResult",
    "End",
    "Execution",
    "ExecutionError",
    "FakeProvider",
    "FakeSandbox",
    "FileInfo",
    "Metrics",
    "Process",
    "ProgramError",
    "Provider",
    "Sandbox",
    "SandboxClosed",
    "SandboxFileError",
    "SandboxLost",
    "SandboxPool",
    "SandboxSpec",
    "SandboxTimeout",
    "SandboxUnavailable",
    "open_sandbox",
    "providers",
    "register_provider",
]
