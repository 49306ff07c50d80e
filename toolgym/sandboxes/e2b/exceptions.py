"""E2B's exceptions by their names, and which of them says what ours mean."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from toolgym.errors import ConfigError
from toolgym.sandboxes.base import (
    ProgramError,
    SandboxClosed,
    SandboxError,
    SandboxFileError,
    SandboxLost,
    SandboxUnavailable,
)

P = ParamSpec("P")
T = TypeVar("T")


class SandboxException(SandboxError):
    """Base of all of them. ``status_code`` is always None: no HTTP is involved."""

    status_code: int | None = None


class TimeoutException(SandboxException, TimeoutError):
    """A command, a piece of code or the sandbox ran into its deadline."""


class InvalidArgumentException(SandboxException, ValueError):
    """An argument that cannot be used."""


class NotEnoughSpaceException(SandboxException):
    """The sandbox's disk is full."""


class NotFoundException(SandboxException):
    """No such file, process or sandbox."""


class FileNotFoundException(NotFoundException):
    """No such file or folder in the sandbox."""


class SandboxNotFoundException(NotFoundException):
    """No such sandbox, or one that has ended."""


class SandboxNotRunningException(TimeoutException):
    """The sandbox was killed, is paused, or its lifetime is over."""


class SandboxUnreachableException(TimeoutException):
    """The sandbox's engine does not answer."""


class AuthenticationException(Exception):
    """Never raised: there is nobody to authenticate to. For code that catches it."""


class RateLimitException(SandboxException):
    """Never raised: there is no rate limit. For code that catches it."""


class TemplateException(SandboxException):
    """The template (image) cannot be used."""


class UnsupportedException(SandboxException, AttributeError):
    """A call or an argument of E2B's that this facade does not have; ``docs/e2b.md`` lists them."""


class CommandExitException(SandboxException):
    """A command ended with another exit code than 0. Has the fields of `CommandResult`."""

    def __init__(self, stderr: str | None, stdout: str | None, exit_code: int, error: str | None) -> None:
        super().__init__(f"Command exited with code {exit_code} and error:\n{stderr or ''}")
        self.stderr, self.stdout, self.exit_code, self.error = stderr, stdout, exit_code, error

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.stderr, self.stdout, self.exit_code, self.error)


def translate(error: SandboxError | ConfigError) -> SandboxException:
    """The exception of E2B's that says what ``error`` means."""
    text = str(error)
    if isinstance(error, SandboxException):
        return error
    if isinstance(error, SandboxFileError):
        if "No such file" in text or "no such file" in text:
            return FileNotFoundException(text)
        return NotEnoughSpaceException(text) if "No space left" in text else InvalidArgumentException(text)
    if isinstance(error, SandboxClosed):
        return SandboxNotRunningException(text)
    if isinstance(error, SandboxUnavailable):
        return TemplateException(text) if "image" in text else SandboxException(text)
    if isinstance(error, SandboxLost):
        return SandboxUnreachableException(text)
    return InvalidArgumentException(text) if isinstance(error, ProgramError | ConfigError) else SandboxException(text)


def translated(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The coroutine function with E2B's exceptions instead of ours."""

    @wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await method(*args, **kwargs)
        except (SandboxError, ConfigError) as error:
            translation = translate(error)
            raise translation from (None if translation is error else error)

    return call
