"""``sandbox.files`` of E2B's asynchronous sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import IO, Any, Literal, TypeAlias, overload

from toolgym.sandboxes import base
from toolgym.sandboxes.base import SandboxError
from toolgym.sandboxes.e2b.exceptions import (
    FileNotFoundException,
    InvalidArgumentException,
    UnsupportedException,
    translate,
    translated,
)
from toolgym.sandboxes.e2b.models import EntryInfo, WriteInfo, entry_info

WriteData: TypeAlias = str | bytes | bytearray | IO[Any]
Entries: TypeAlias = list[EntryInfo]
Written: TypeAlias = list[WriteInfo]


class AsyncFilesystem:
    """Reads and writes files; relative paths start at the home folder. ``request_timeout`` has no effect anywhere.

    All calls raise FileNotFoundException (a NotFoundException) where there is no such path, InvalidArgumentException
    where it cannot be used, NotEnoughSpaceException, and SandboxNotRunningException.
    """

    def __init__(self, usable: Callable[[], base.Sandbox]) -> None:
        self._usable = usable

    def _sandbox(self, user: str | None) -> base.Sandbox:
        if user not in (None, "user"):
            raise InvalidArgumentException(f"user {user!r}: the only user of a sandbox is 'user'")
        return self._usable()

    @overload
    async def read(self, path: str, format: Literal["text"] = "text", *args: Any, **kwargs: Any) -> str: ...

    @overload
    async def read(self, path: str, format: Literal["bytes"], *args: Any, **kwargs: Any) -> bytearray: ...

    @overload
    async def read(self, path: str, format: Literal["stream"], *args: Any, **kwargs: Any) -> AsyncIterator[bytes]: ...

    @translated
    async def read(
        self,
        path: str,
        format: Literal["text", "bytes", "stream"] = "text",
        user: str | None = None,
        request_timeout: float | None = None,
        gzip: bool = False,
        stream_idle_timeout: float | None = None,
    ) -> str | bytearray | AsyncIterator[bytes]:
        """A file's content: text (UTF-8, what is none replaced), a bytearray, or an iterator of pieces."""
        sandbox = self._sandbox(user)
        if format == "stream":
            await sandbox.file_info(path)
            return _pieces(sandbox, path)
        if format not in ("text", "bytes"):
            raise InvalidArgumentException(f"format must be text, bytes or stream, got {format!r}")
        data = await sandbox.read_bytes(path)
        return data.decode("utf-8", "replace") if format == "text" else bytearray(data)

    async def write(
        self,
        path: str,
        data: WriteData,
        user: str | None = None,
        request_timeout: float | None = None,
        gzip: bool = False,
        use_octet_stream: bool | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> WriteInfo:
        """Write a file, making its folders and replacing what was there."""
        return (await self.write_files([{"path": path, "data": data}], user, metadata=metadata))[0]

    @translated
    async def write_files(
        self,
        files: Sequence[Mapping[str, Any]],
        user: str | None = None,
        request_timeout: float | None = None,
        gzip: bool = False,
        use_octet_stream: bool | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Written:
        """Write several files, each ``{"path": ..., "data": ...}``."""
        if metadata:
            raise UnsupportedException("files.write: metadata is not available here")
        contents = {entry["path"]: _content(entry["data"], entry["path"]) for entry in files}
        infos = [entry_info(info) for info in await self._sandbox(user).write_many(contents)] if contents else []
        return [WriteInfo(info.name, info.type, info.path) for info in infos]

    @translated
    async def list(
        self, path: str, depth: int | None = 1, user: str | None = None, request_timeout: float | None = None
    ) -> Entries:
        """The entries of a folder, ``depth`` levels deep."""
        depth = 1 if depth is None else depth
        if depth < 1:
            raise InvalidArgumentException(f"depth should be at least 1, got {depth}")
        return [entry_info(info) for info in await self._sandbox(user).list_dir(path, depth=depth)]

    @translated
    async def exists(self, path: str, user: str | None = None, request_timeout: float | None = None) -> bool:
        """Whether something has this path."""
        return await self._sandbox(user).exists(path)

    @translated
    async def get_info(self, path: str, user: str | None = None, request_timeout: float | None = None) -> EntryInfo:
        """About a file or folder."""
        return entry_info(await self._sandbox(user).file_info(path))

    @translated
    async def remove(self, path: str, user: str | None = None, request_timeout: float | None = None) -> None:
        """Remove a file or folder; nothing happens where there is none."""
        try:
            await self._sandbox(user).remove(path)
        except SandboxError as error:
            if not isinstance(translate(error), FileNotFoundException):
                raise

    @translated
    async def rename(
        self, old_path: str, new_path: str, user: str | None = None, request_timeout: float | None = None
    ) -> EntryInfo:
        """Give a file or folder another path."""
        return entry_info(await self._sandbox(user).rename(old_path, new_path))

    @translated
    async def make_dir(self, path: str, user: str | None = None, request_timeout: float | None = None) -> bool:
        """Make a folder and those above it; False where it existed."""
        return await self._sandbox(user).make_dir(path)

    def watch_dir(self, path: str, *args: object, **kwargs: object) -> None:
        """Not there."""
        raise UnsupportedException("files.watch_dir is not available here; list the folder again")


async def _pieces(sandbox: base.Sandbox, path: str) -> AsyncIterator[bytes]:
    try:
        async for piece in sandbox.read_stream(path):
            yield piece
    except SandboxError as error:
        raise translate(error) from error


def _content(data: WriteData, path: str) -> str | bytes:
    if isinstance(data, str | bytes):
        return data
    if isinstance(data, bytearray):
        return bytes(data)
    if not hasattr(data, "read"):
        raise InvalidArgumentException(f"{path}: data must be str, bytes or an open file, got {type(data).__name__}")
    return data.read()
