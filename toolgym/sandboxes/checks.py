"""What the conformance suite tries on a sandbox, a function for each promise of `Sandbox` and `Provider.isolation`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import anyio

from toolgym.sandboxes.base import (
    CommandResult,
    End,
    ProgramError,
    Sandbox,
    SandboxClosed,
    SandboxError,
    SandboxFileError,
)

Check: TypeAlias = Callable[[Sandbox], Awaitable[None]]
CHECKS: dict[str, Check] = {}

DAEMONS = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            time.sleep(600)
        os._exit(0)
time.sleep(0.02)
"""


class Failed(Exception):
    """A check did not hold."""


def _same(got: Any, expected: Any, what: str = "") -> None:
    if got != expected:
        raise Failed(f"{what + ': ' if what else ''}got {got!r:.200}, expected {expected!r:.200}")


async def _refused(call: Awaitable[Any], kind: type[SandboxError], what: str) -> None:
    try:
        await call
    except kind:
        return
    raise Failed(f"{what} was not refused with {kind.__name__}")


def _check(name: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        CHECKS[name] = check
        return check

    return add


# -- code


@_check("code: output")
async def _code_output(sandbox: Sandbox) -> None:
    done = await sandbox.run_code("print('zażółć')\nimport os; os.write(1, b'\\xff')")
    _same((done.stdout, done.stderr, done.exit_code, done.end), ("zażółć\n\ufffd", "", 0, End.EXITED))


@_check("code: last expression")
async def _code_result(sandbox: Sandbox) -> None:
    _same((await sandbox.run_code("x = 6\nx * 7")).result, "42")
    _same((await sandbox.run_code("None")).result, None)


@_check("code: error apart from stderr")
async def _code_error(sandbox: Sandbox) -> None:
    done = await sandbox.run_code("import sys\nprint('err', file=sys.stderr)\n{}['k']")
    _same(done.stderr, "err\n", "stderr")
    _same(done.error and (done.error.name, done.error.message), ("KeyError", "'k'"), "error")
    syntax = await sandbox.run_code("print('unfinished'")
    _same(syntax.error and syntax.error.name, "SyntaxError", "error")


@_check("code: exit code")
async def _code_exit(sandbox: Sandbox) -> None:
    for code, status in (("import sys; sys.exit(3)", 3), ("import os; os._exit(4)", 4), ("exit()", 0)):
        done = await sandbox.run_code(code)
        _same((done.exit_code, done.end, done.error), (status, End.EXITED, None), code)


@_check("code: nothing shared")
async def _code_shares_nothing(sandbox: Sandbox) -> None:
    await sandbox.run_code("import builtins, math; builtins.left = 1; math.pi = 3")
    _same((await sandbox.run_code("import math; print(math.pi)\nhasattr(__builtins__, 'left')")).stdout[:6], "3.1415")
    error = (await sandbox.run_code("left")).error
    _same(error and error.name, "NameError", "error")


@_check("code: variables")
async def _code_variables(sandbox: Sandbox) -> None:
    _same((await sandbox.run_code("import os; os.environ['COLOUR']", env={"COLOUR": "red"})).result, "'red'")
    _same((await sandbox.run_code("import os; os.environ.get('COLOUR')")).result, None)


@_check("code: unknown language")
async def _code_language(sandbox: Sandbox) -> None:
    await _refused(sandbox.run_code("1", language="perl"), ProgramError, "an unknown language")


@_check("code: contexts")
async def _code_contexts(sandbox: Sandbox) -> None:
    one, other = await sandbox.create_context(), await sandbox.create_context()
    await sandbox.run_code("x = 5", context=one)
    _same((await sandbox.run_code("x + 1", context=one)).result, "6")
    _same((await sandbox.run_code("x", context=other)).error is None, False, "another context has its own variables")
    late = await sandbox.run_code("while True: pass", context=one, timeout_s=0.2)
    _same(late.end, End.TIMEOUT, "end")
    _same((await sandbox.run_code("x", context=one)).error is None, False, "a killed context is empty")
    await sandbox.remove_context(one)
    await sandbox.remove_context(other)
    await _refused(sandbox.run_code("x", context=one), ProgramError, "a removed context")


# -- commands


@_check("command: input, folder, variables")
async def _command(sandbox: Sandbox) -> None:
    await sandbox.make_dir("work")
    done = await sandbox.run("cat; pwd; echo $A; echo err >&2; exit 7", stdin="in\n", cwd="work", env={"A": "b"})
    lines = done.stdout.splitlines()
    _same((lines[0], lines[1].endswith("/work"), lines[2], done.stderr, done.exit_code), ("in", True, "b", "err\n", 7))
    _same((await sandbox.run(["echo", "$HOME", "a b"])).stdout, "$HOME a b\n", "a list is executed as it is")


@_check("command: not found")
async def _command_missing(sandbox: Sandbox) -> None:
    _same((await sandbox.run(["no-such-program"])).exit_code, 127, "exit code")


@_check("command: another user")
async def _command_user(sandbox: Sandbox) -> None:
    await _refused(sandbox.run("id", user="root"), ProgramError, "another user")


@_check("command: streaming")
async def _streaming(sandbox: Sandbox) -> None:
    pieces: list[tuple[str, str]] = []
    await sandbox.run("echo a; echo b >&2", on_output=lambda name, text: pieces.append((name, text)))
    _same(sorted(pieces), [("stderr", "b\n"), ("stdout", "a\n")], "pieces")


# -- limits, and what is left


@_check("limits: deadline")
async def _deadline(sandbox: Sandbox) -> None:
    done = await sandbox.run_code("print('before')\nwhile True: pass", timeout_s=0.3)
    _same((done.stdout, done.end), ("before\n", End.TIMEOUT))


@_check("limits: output")
async def _output(sandbox: Sandbox) -> None:
    done = await sandbox.run_code("while True: print('x' * 1000)")
    _same((done.end, len(done.stdout)), (End.OUTPUT_CUT, sandbox.spec.output_kb << 10))


@_check("limits: memory")
async def _memory(sandbox: Sandbox) -> None:
    _same((await sandbox.run_code("bytearray(10**10)")).end, End.OUT_OF_MEMORY, "end, at once")
    grown = await sandbox.run_code("x = []\nwhile True: x.append(bytearray(10**6))")
    _same(grown.end, End.OUT_OF_MEMORY, "end, bit by bit")


@_check("limits: file size")
async def _file_size(sandbox: Sandbox) -> None:
    done = await sandbox.run_code("with open('big', 'wb') as f:\n    while True: f.write(b'x' * 2**20)")
    _same(done.error and done.error.name, "OSError", "error")
    _same((await sandbox.file_info("big")).size <= sandbox.spec.file_mb << 20, True, "the file stays within file_mb")
    await sandbox.remove("big")


@_check("limits: signal told apart")
async def _signal(sandbox: Sandbox) -> None:
    done = await sandbox.run_code("import os; os.kill(os.getpid(), 9)")
    _same((done.end, done.exit_code), (End.KILLED, -9))


@_check("leftovers: daemons")
async def _daemons(sandbox: Sandbox) -> None:
    _same((await sandbox.run_code(DAEMONS)).end, End.EXITED, "end")
    _same((await sandbox.metrics()).processes, 0, "processes after an execution")
    await sandbox.run_code(DAEMONS + "\nwhile True: pass", timeout_s=0.3)
    _same((await sandbox.metrics()).processes, 0, "processes after a deadline")


@_check("leftovers: held output")
async def _held_output(sandbox: Sandbox) -> None:
    done = await sandbox.run_code("import os, time\nif os.fork() == 0:\n    time.sleep(600)\nprint('parent')")
    _same(done.stdout, "parent\n")


@_check("leftovers: cancelled execution")
async def _cancelled(sandbox: Sandbox) -> None:
    with anyio.move_on_after(0.1):
        await sandbox.run_code("import time; time.sleep(600)")
    _same((await sandbox.metrics()).processes, 0, "processes")


# -- background, turns


@_check("background: talk and kill")
async def _background(sandbox: Sandbox) -> None:
    process = await sandbox.start("read line; echo got $line; sleep 600")
    _same([info.pid for info in await sandbox.processes()], [process.pid], "processes")
    _same((await sandbox.connect(process.pid)).pid, process.pid, "connected")
    await process.send_stdin("it\n")
    heard = anyio.Event()
    results: list[CommandResult] = []

    async def wait() -> None:
        results.append(await process.wait(on_output=lambda *_: heard.set()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await heard.wait()
        _same(await process.kill(), True, "killed")
    _same((results[0].stdout, results[0].end), ("got it\n", End.KILLED))
    _same((await process.kill(), await sandbox.processes()), (False, []), "afterwards")


@_check("background: unknown process")
async def _connect_unknown(sandbox: Sandbox) -> None:
    await _refused(sandbox.connect(999999), ProgramError, "an unknown process")


@_check("turns: many at once")
async def _turns(sandbox: Sandbox) -> None:
    results: dict[int, str] = {}

    async def one(i: int) -> None:
        results[i] = (await sandbox.run_code(f"print({i})")).stdout

    async with anyio.create_task_group() as tasks:
        for i in range(8):
            tasks.start_soon(one, i)
    _same(results, {i: f"{i}\n" for i in range(8)})


# -- files


@_check("files: round trip")
async def _files(sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 2000
    _same((await sandbox.write("folder/a.bin", data)).size, len(data), "size")
    _same(await sandbox.read_bytes("folder/a.bin") == data, True, "read_bytes")
    _same(b"".join([piece async for piece in sandbox.read_stream("folder/a.bin")]) == data, True, "read_stream")
    await sandbox.write("folder/a.bin", "é")
    _same(await sandbox.read_text("folder/a.bin"), "é", "read_text")
    await sandbox.remove("folder")
    _same(await sandbox.exists("folder"), False, "exists after remove")


@_check("files: many, rename, folders")
async def _files_many(sandbox: Sandbox) -> None:
    await sandbox.write_many({f"many/{i}/f": str(i) for i in range(9)})
    _same([info.name for info in await sandbox.list_dir("many")], [str(i) for i in range(9)], "list_dir")
    _same(len(await sandbox.list_dir("many", depth=2)), 18, "two levels")
    _same((await sandbox.rename("many/0/f", "many/new")).name, "new", "rename")
    _same((await sandbox.make_dir("many/d"), await sandbox.make_dir("many/d")), (True, False), "make_dir")
    _same((await sandbox.file_info("many/d")).kind, "dir", "kind")
    await sandbox.remove("many")


@_check("files: missing")
async def _files_missing(sandbox: Sandbox) -> None:
    for call in (sandbox.read_bytes, sandbox.remove, sandbox.file_info, sandbox.list_dir):
        await _refused(call("nothing/here"), SandboxFileError, f"{call.__name__} of a missing file")


@_check("files: a deep list")
async def _files_deep(sandbox: Sandbox) -> None:
    await sandbox.write_many({"shut/in/x": "", "a/b/c/f": ""})
    await sandbox.run("chmod 0 shut/in")
    deep = {(entry.name, entry.kind) for entry in await sandbox.list_dir(depth=4)}
    expected = {("a", "dir"), ("b", "dir"), ("c", "dir"), ("f", "file"), ("shut", "dir"), ("in", "dir")}
    _same(deep & expected, expected, "the entries, with a folder that cannot be read among them")
    _same({entry.name for entry in await sandbox.list_dir(depth=2)} & {"c", "f"}, set(), "what is deeper than asked")


@_check("files: size limit")
async def _files_large(sandbox: Sandbox) -> None:
    large = b"x" * ((sandbox.spec.file_mb << 20) + 1)
    await _refused(sandbox.write("large", large), SandboxFileError, "a file past file_mb")
    _same(await sandbox.exists("large"), False, "it was written")


@_check("files: links and devices")
async def _files_links(sandbox: Sandbox) -> None:
    await sandbox.run("echo old > target; ln -s target link; mkfifo fifo")
    for path in ("/dev/zero", "fifo", "."):
        await _refused(sandbox.read_bytes(path), SandboxFileError, f"reading {path}")
    await sandbox.write("link", "new")
    _same((await sandbox.read_text("target"), (await sandbox.file_info("link")).kind), ("old\n", "file"))


# -- the sandbox itself


@_check("sandbox: info and metrics")
async def _info(sandbox: Sandbox) -> None:
    info = await sandbox.info()
    _same((info.id, info.provider, info.state), (sandbox.id, sandbox.provider, "running"))
    _same((await sandbox.metrics()).processes, 0, "processes")


@_check("sandbox: pause and resume")
async def _pause(sandbox: Sandbox) -> None:
    await sandbox.pause()
    _same((await sandbox.info()).state, "paused", "state")
    await sandbox.resume()
    _same((await sandbox.info()).state, "running", "state")
    await sandbox.run_code("1 + 1")


@_check("sandbox: lifetime")
async def _lifetime(sandbox: Sandbox) -> None:
    await sandbox.set_timeout(0.2)
    _same((await sandbox.info()).expires_in_s <= 0.2, True, "expires_in_s is the new one")
    with anyio.move_on_after(15):
        while not sandbox.ended:  # noqa: ASYNC110 - it ends by itself and tells nobody
            await anyio.sleep(0.05)
    _same(sandbox.ended, True, "ended 15 s after its lifetime")
    await _refused(sandbox.run_code("1"), SandboxClosed, "code after the lifetime")
    await _refused(sandbox.exists("x"), SandboxClosed, "a file call after the lifetime")


@_check("sandbox: kill")
async def _kill(sandbox: Sandbox) -> None:
    await sandbox.kill()
    await sandbox.kill()
    _same((sandbox.ended, (await sandbox.info()).state), (True, "ended"))
    for call in (sandbox.run_code("1"), sandbox.run("true"), sandbox.read_bytes("x"), sandbox.metrics()):
        await _refused(call, SandboxClosed, "a call to a killed sandbox")


# -- isolation, as far as it is claimed


async def _network(sandbox: Sandbox) -> None:
    code = "print(open('/proc/net/dev').read().count(':'), len(open('/proc/net/route').readlines()))"
    _same((await sandbox.run_code(code)).stdout, "1 1\n", "network devices (loopback alone) and lines of routes (none)")


async def _host_files(sandbox: Sandbox) -> None:
    with tempfile.NamedTemporaryFile(prefix="toolgym-check-") as file:
        _same((await sandbox.run_code(f"import os; print(os.path.exists({file.name!r}))")).stdout, "False\n", file.name)


async def _processes(sandbox: Sandbox) -> None:
    namespace = (await sandbox.run_code("import os; print(os.readlink('/proc/self/ns/pid'))")).stdout.strip()
    _same(namespace == os.readlink("/proc/self/ns/pid"), False, "it has the host's process namespace")


async def _pids(sandbox: Sandbox) -> None:
    code = "import os\nn = 0\nwhile n < 999:\n    if os.fork() == 0:\n        __import__('signal').pause()\n    n += 1"
    done = await sandbox.run_code(code)
    _same(done.error and done.error.name, "BlockingIOError", "forking on and on")
    _same((await sandbox.run_code("1 + 1")).result, "2", "the next execution")


async def _disk(sandbox: Sandbox) -> None:
    code = f"for n in range({sandbox.spec.tmp_mb + 8}):\n    open(f'fill{{n}}', 'wb').write(b'x' * 2**20)"
    done = await sandbox.run_code(code)
    await sandbox.run("rm -f fill*")
    _same((done.error and done.error.name) or done.end, "OSError", "filling the disk")


async def _status(sandbox: Sandbox, field: str) -> str:
    done = await sandbox.run_code("print(open('/proc/self/status').read())")
    lines = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    return lines.get(field, "").strip()


async def _privileges(sandbox: Sandbox) -> None:
    _same(int(await _status(sandbox, "CapEff") or "1", 16), 0, "effective capabilities")
    _same(await _status(sandbox, "NoNewPrivs"), "1", "no_new_privs")


async def _user(sandbox: Sandbox) -> None:
    _same((await sandbox.run_code("import os; os.getuid() != 0")).result, "True", "not root")


async def _system_calls(sandbox: Sandbox) -> None:
    _same(await _status(sandbox, "Seccomp"), "2", "seccomp mode")


ISOLATION: Mapping[str, Check] = {
    "network": _network,
    "files": _host_files,
    "processes": _processes,
    "pids": _pids,
    "disk": _disk,
    "privileges": _privileges,
    "user": _user,
    "system calls": _system_calls,
}
"""How a claim of `Provider.isolation` is tried. Memory has a check of its own; the share of a processor has none."""
