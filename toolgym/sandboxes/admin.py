"""Looking after sandboxes: what is there, what is isolated, what runs, what is left over."""

from __future__ import annotations

import json
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolgym.sandboxes.base import SandboxError, SandboxLost, SandboxSpec
from toolgym.sandboxes.docker import LABEL, LABEL_EXPIRES, LABEL_OWNER, LABEL_RUN, DockerProvider
from toolgym.sandboxes.images import image_reference
from toolgym.sandboxes.owner import owner_is_dead
from toolgym.sandboxes.provider import get_provider, providers

_PROBE = (Path(__file__).parent / "inside" / "probe.py").read_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of `doctor`.

    ``Finding(name="network", ok=True, detail="none")``; ``fix`` says what to do where not ok.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRow:
    """A container of ours on the engine.

    ``SandboxRow(id="6537b770d6a7", run="quickstart-1", state="running", ...)``.
    """

    id: str
    run: str
    state: str
    age_s: float
    expires_in_s: float
    owner: str
    orphan: bool  # its owner on this machine is dead


async def doctor() -> list[Finding]:
    """What is there, and, where Docker answers, what a sandbox of it really isolates, found out from within one."""
    found = [
        Finding(name="python", ok=True, detail=f"{platform.python_version()} on {platform.platform()}"),
        _bubblewrap(),
    ]
    provider = DockerProvider()
    engine = provider.engine
    try:
        info = await engine.call(engine.info)
    except SandboxError as error:
        fix = 'install and start Docker (scripts/setup-docker.sh does on Debian, as root), or use sandbox = "local"'
        return [*found, Finding(name="docker engine", ok=False, detail=str(error), fix=fix)]
    found.append(_engine(info))
    found += _limits(info)
    try:
        tag = await engine.call(image_reference, engine, "python")
    except SandboxError as error:
        return [*found, Finding(name="default image", ok=False, detail=str(error), fix="toolgym sandbox build")]
    found.append(Finding(name="default image", ok=True, detail=tag))
    return [*found, *await _probe(provider)]


def _bubblewrap() -> Finding:
    path = shutil.which("bwrap")
    if path is None:
        return Finding(name="bubblewrap", ok=False, detail="not installed", fix="apt-get install bubblewrap (optional)")
    return Finding(name="bubblewrap", ok=True, detail=path)


def _engine(info: dict[str, Any]) -> Finding:
    cgroups = info.get("CgroupVersion", "1")
    runtimes = ", ".join(sorted(info["Runtimes"]))
    detail = f"{info['ServerVersion']}, cgroup v{cgroups}, {info['Driver']}, runtimes: {runtimes}"
    return Finding(name="docker engine", ok=True, detail=detail)


def _limits(info: dict[str, Any]) -> list[Finding]:
    fix = "boot with the kernel's cgroup controllers enabled (cgroup_enable=memory swapaccount=1)"
    keys = {
        "memory limit": "MemoryLimit",
        "swap limit": "SwapLimit",
        "pids limit": "PidsLimit",
        "cpu limit": "CpuCfsQuota",
    }
    findings = [
        Finding(
            name=name,
            ok=bool(info.get(key)),
            detail="supported" if info.get(key) else "not supported by the kernel",
            fix=fix,
        )
        for name, key in keys.items()
    ]
    seccomp = any("seccomp" in option for option in info.get("SecurityOptions") or [])
    detail = "on" if seccomp else "off"
    return [
        *findings,
        Finding(name="seccomp", ok=seccomp, detail=detail, fix="use an engine with its default seccomp profile"),
    ]


async def _probe(provider: DockerProvider) -> list[Finding]:
    spec = SandboxSpec(memory_mb=128, pids=32, tmp_mb=8)
    try:
        sandbox = await provider.open(spec, run_id="doctor")
        async with sandbox:
            result = await sandbox.run_code(_PROBE(), timeout_s=20)
    except SandboxError as error:
        return [Finding(name="sandbox", ok=False, detail=str(error), fix="see the line above")]
    if result.error is not None:
        return [
            Finding(name="sandbox", ok=False, detail=f"{result.error.name}: {result.error.message}", fix="report this")
        ]
    fix = "this engine does not enforce it: do not run untrusted programs on it"
    return [Finding(name=name, ok=ok, detail=detail, fix=fix) for name, ok, detail in json.loads(result.stdout)]


async def list_sandboxes() -> list[SandboxRow]:
    """Our containers on the engine, oldest first. Raises SandboxUnavailable: no engine answers."""
    engine = DockerProvider().engine
    now = time.time()
    rows = [
        SandboxRow(
            id=container["Id"][:12],
            run=container["Labels"].get(LABEL_RUN, ""),
            state=container["State"],
            age_s=now - container["Created"],
            expires_in_s=float(container["Labels"].get(LABEL_EXPIRES, "0")) - now,
            owner=container["Labels"].get(LABEL_OWNER, ""),
            orphan=owner_is_dead(container["Labels"].get(LABEL_OWNER, "")),
        )
        for container in await engine.call(engine.containers, LABEL)
    ]
    return sorted(rows, key=lambda row: -row.age_s)


async def prune(*, everything: bool = False) -> int:
    """Remove what dead owners left, of every provider; with ``everything`` also containers in use. Returns how many."""
    removed = 0
    for name in providers():
        try:
            removed += await get_provider(name).sweep()
        except SandboxLost:
            continue
    if everything:
        engine = DockerProvider().engine
        for container in await engine.call(engine.containers, LABEL):
            await engine.call(engine.remove, container["Id"])
            removed += 1
    return removed
