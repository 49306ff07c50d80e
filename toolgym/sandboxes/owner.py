"""Who owns a sandbox: this process, named so that a later start can tell whether it still lives."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


def _start_time(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


@cache
def _machine() -> str:
    """This boot of this machine, and the process namespace in which our process ids mean something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return "unknown"


def owner_name() -> str:
    """This process: machine, process id and its start time. Example: ``"3fa1c2d4.4026531836.812.40213"``."""
    return f"{_machine()}.{os.getpid()}.{_start_time(os.getpid())}"


def owner_is_dead(name: str) -> bool:
    """Whether the named owner is known to have ended. Of another machine or namespace nothing is known: False."""
    machine, _, rest = name.rpartition(".")
    machine, _, pid = machine.rpartition(".")
    return machine == _machine() and pid.isdigit() and _start_time(int(pid)) != rest
