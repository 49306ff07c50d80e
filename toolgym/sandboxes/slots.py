"""A limit on sandboxes that all runs of a machine share: numbered files, each locked by whoever uses a slot.

The kernel frees the locks of a process that dies, so nothing needs to be swept.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

import anyio

from toolgym.errors import ConfigError

DEFAULT_LIMIT = 512
LIMIT_VARIABLE = "TOOLGYM_MAX_SANDBOXES"
_POLL_S = 0.05


class Slot:
    """A held slot, until `release`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        """Free it. May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class EngineSlots:
    """The slots of one engine on this machine: ``TOOLGYM_MAX_SANDBOXES`` of them (512 where unset) for each user."""

    def __init__(self, engine: str) -> None:
        text = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT))
        if not text.isdigit() or int(text) < 1:
            raise ConfigError(f"{LIMIT_VARIABLE} must be a whole number above 0, got {text!r}")
        self._limit = int(text)
        self._folder = Path(tempfile.gettempdir()) / f"toolgym-slots-{os.getuid()}" / engine
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._hint = os.getpid() % self._limit  # where the search begins: runs keep out of each other's way

    def try_acquire(self) -> Slot | None:
        """A free slot, or None."""
        for i in range(self._limit):
            number = (self._hint + i) % self._limit
            fd = os.open(self._folder / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
            else:
                self._hint = number + 1
                return Slot(fd)
        return None

    async def acquire(self) -> Slot:
        """A slot, as soon as one is free; bound it with a deadline."""
        while (slot := self.try_acquire()) is None:  # noqa: ASYNC110 - other processes free it, which no event tells
            await anyio.sleep(_POLL_S)
        return slot
