"""The local sandbox in namespaces of its own, through bubblewrap: no engine, no image, no root needed.

It sees this machine's /usr and Python read-only, no network, no other process, and temporary folders of its own. Not
held are the number of processes, processor time, and which system calls may be tried: Docker holds those too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import anyio
import anyio.to_thread

from toolgym.sandboxes.base import Sandbox, SandboxSpec, SandboxUnavailable
from toolgym.sandboxes.connection import Connection, boot_command, supervisor_program
from toolgym.sandboxes.local import PREFIX, LocalProvider, ProcessSandbox, spawn
from toolgym.sandboxes.owner import owner_name
from toolgym.sandboxes.provider import Provider
from toolgym.sandboxes.supervised import supervisor_config
from toolgym.sandboxes.tunnel import check_allow_list

HOME = "/home/user"
_LINKED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # links into /usr where the distribution has merged them
_ETC = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime")


def bubblewrap_command(spec: SandboxSpec) -> list[str]:
    """The bwrap command with all its restrictions; the command to run in them follows."""
    size = ["--size", str(spec.tmp_mb << 20), "--perms", "0700"]
    command = [
        "bwrap", "--unshare-all", "--new-session", "--as-pid-1", "--cap-drop", "ALL", "--uid", "1000", "--gid", "1000",
        "--hostname", "sandbox", "--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev",
        *size, "--tmpfs", "/tmp", *size, "--tmpfs", HOME, *size, "--tmpfs", "/dev/shm", "--chdir", "/",
    ]  # fmt: skip
    for name in _LINKED:
        path = Path("/") / name
        if path.is_symlink():
            command += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            command += ["--ro-bind", str(path), str(path)]
    for name in _ETC:
        command += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for prefix in sorted({sys.prefix, sys.base_prefix}):
        if not prefix.startswith("/usr"):
            command += ["--ro-bind", prefix, prefix]
    return [*command, "--remount-ro", "/"]


class BubblewrapProvider(Provider):
    """Opens sandboxes in namespaces made by bwrap."""

    name = "bubblewrap"

    async def check(self, spec: SandboxSpec) -> None:
        if sys.platform != "linux" or shutil.which("bwrap") is None:
            raise SandboxUnavailable("bubblewrap is not installed (Debian: apt-get install bubblewrap)")
        check_allow_list(spec.allow_hosts)
        if spec.network:
            raise SandboxUnavailable("bubblewrap sandboxes have no network but allow_hosts; use Docker")
        command = [*bubblewrap_command(spec), "true"]
        done = await anyio.to_thread.run_sync(
            lambda: subprocess.run(command, capture_output=True, text=True, timeout=20)
        )
        if done.returncode != 0:
            raise SandboxUnavailable(f"bubblewrap does not work here: {done.stderr.strip()[-300:]}")

    def isolation(self, spec: SandboxSpec) -> Mapping[str, str]:
        return {
            "network": f"only {', '.join(spec.allow_hosts)}" if spec.allow_hosts else "a namespace without interfaces",
            "files": "this machine's /usr and Python read-only, temporary folders of its own",
            "processes": "a process namespace",
            "memory": "RLIMIT_DATA of each process",
            "disk": f"{spec.tmp_mb} MB a folder, {spec.file_mb} MB a file",
            "privileges": "no capabilities, no-new-privileges",
            "user": "a user namespace, uid 1000",
        }

    async def open(self, spec: SandboxSpec, *, run_id: str = "") -> Sandbox:
        root = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{owner_name()}-"))
        try:
            boot = boot_command(sys.executable, supervisor_program())
            process, sock = spawn([*bubblewrap_command(spec), *boot], cwd=root)
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            raise
        sandbox = ProcessSandbox(spec, Connection(sock), process=process, root=root, provider=self.name, run_id=run_id)
        env = {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"}
        await sandbox.greet(supervisor_config(spec, home=HOME, tmp=["/tmp", "/dev/shm"], env=env))
        return sandbox

    async def sweep(self) -> int:
        return await LocalProvider().sweep()
