"""Named points at which a test can kill the process, to prove that resuming loses nothing.

``TOOLGYM_CRASH="group_written:3"`` makes the third passage of that point send SIGKILL to this process: no cleanup, no
flush, exactly what a power cut or the kernel's out-of-memory killer does.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Literal, TypeAlias

CrashPoint: TypeAlias = Literal["mid_rollout", "group_written", "gradient_step", "checkpoint_written", "publish"]

_passed: Counter[str] = Counter()


def crash_point(name: CrashPoint) -> None:
    """Die here if the environment variable says so; otherwise nothing."""
    wanted = os.environ.get("TOOLGYM_CRASH")
    if wanted is None:
        return
    point, _, count = wanted.partition(":")
    if point == name:
        _passed[name] += 1
        if _passed[name] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)
