"""The supervisor as a program of its own: other Python versions, and an owner that says nothing or goes."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from toolgym.sandboxes import SandboxSpec
from toolgym.sandboxes.connection import Connection, boot_command, supervisor_program
from toolgym.sandboxes.local import start_supervisor
from toolgym.sandboxes.supervised import supervisor_config


def other_pythons() -> list[str]:
    """The interpreters from 3.8 on that are here and work."""
    found = [name for minor in range(8, 16) if (name := shutil.which(f"python3.{minor}")) is not None]
    check = "import ctypes, select, resource"
    return [name for name in found if subprocess.run([name, "-c", check], capture_output=True).returncode == 0]


@contextmanager
def running(python: str, program: bytes, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Connection]]:
    """A supervisor and the connection to it, which is closed on leaving."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            boot_command(python, program), stdin=theirs.fileno(), stdout=theirs.fileno(), cwd=folder
        )
    connection = Connection(ours)
    try:
        yield process, connection
    finally:
        connection.close()
        assert process.wait(30) == 0


async def greet(connection: Connection, folder: Path, **changes: object) -> None:
    """Configure the supervisor and run one program in it."""
    spec = SandboxSpec()
    config = supervisor_config(
        spec, home=str(folder / "home"), tmp=[str(folder / "tmp")], env={"PATH": "/usr/bin:/bin"}
    )
    with anyio.fail_after(30):
        ready = await start_supervisor(connection, {**config, **changes})
        assert ready["ev"] == "ready"
        box = connection.open_box()
        await connection.send({"op": "code", "id": box, "timeout_s": 20.0}, b"print('hello')\n6 * 7")
        header, body = await connection.receive(box)
    assert (header["status"], header["end"]) == (0, "exited")
    assert body == b'hello\n{"result": "42"}'


async def test_supervisor_compiles_itself_for_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = json.dumps(["0000", json.loads(supervisor_program())[1]]).encode()
    monkeypatch.setattr("toolgym.sandboxes.local.supervisor_program", lambda: program)
    with running(sys.executable, program, tmp_path) as (_, connection):
        await greet(connection, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("python", other_pythons())
async def test_supervisor_runs_on_other_pythons(python: str, tmp_path: Path):
    with running(python, supervisor_program(), tmp_path) as (_, connection):
        await greet(connection, tmp_path)


async def test_supervisor_ignores_a_module_that_it_cannot_preload(tmp_path: Path):
    with running(sys.executable, supervisor_program(), tmp_path) as (_, connection):
        await greet(connection, tmp_path, preload=["no_such_module"])


def test_supervisor_ends_when_its_owner_says_nothing(tmp_path: Path):
    with running(sys.executable, supervisor_program(), tmp_path):
        pass
