"""What `Sandbox` promises, of every provider that works here."""

import anyio
import pytest

from toolgym.sandboxes import CommandResult, End, ProgramError, Sandbox, SandboxFileError
from toolgym.sandboxes.base import CommandFailed, ProgramTimeout

pytestmark = pytest.mark.asyncio(loop_scope="module")

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


async def count_processes(sandbox: Sandbox) -> int:
    """How many processes live in the sandbox besides its supervisor."""
    return (await sandbox.metrics()).processes


async def test_run_code_prints(sandbox: Sandbox):
    result = await sandbox.run_code("print(1 + 1)")
    assert (result.stdout, result.stderr, result.exit_code, result.end) == ("2\n", "", 0, End.EXITED)
    assert result.error is None
    assert result.result is None
    assert 0 < result.duration_s < 20


async def test_run_code_gives_the_last_expression(sandbox: Sandbox):
    assert (await sandbox.run_code("x = 6\nx * 7")).result == "42"
    assert (await sandbox.run_code("'a'")).result == "'a'"
    assert (await sandbox.run_code("None")).result is None


async def test_run_code_keeps_streams_and_error_apart(sandbox: Sandbox):
    result = await sandbox.run_code("import sys\nprint('out')\nprint('err', file=sys.stderr)\n{}['k']")
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
    assert result.error is not None
    assert (result.error.name, result.error.message) == ("KeyError", "'k'")
    assert 'File "<code>", line 4' in result.error.traceback
    assert "{}['k']" in result.error.traceback
    assert "child" not in result.error.traceback


async def test_run_code_reports_a_syntax_error(sandbox: Sandbox):
    result = await sandbox.run_code("print('unfinished'")
    assert result.error is not None
    assert result.error.name == "SyntaxError"
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("code", "status"),
    [("import sys; sys.exit(3)", 3), ("import os; os._exit(4)", 4), ("exit()", 0), ("raise SystemExit('x')", 1)],
)
async def test_run_code_gives_the_exit_code(sandbox: Sandbox, code: str, status: int):
    result = await sandbox.run_code(code)
    assert (result.exit_code, result.end, result.error) == (status, End.EXITED, None)


async def test_run_code_has_utf8_and_replaces_what_is_not(sandbox: Sandbox):
    result = await sandbox.run_code("print('zażółć 🙂'); import os; os.write(1, b'\\xff\\n')")
    assert result.stdout == "zażółć 🙂\n\ufffd\n"


async def test_run_code_shares_nothing_without_a_context(sandbox: Sandbox):
    await sandbox.run_code("import builtins, math; builtins.left = 1; math.pi = 3; x = 1")
    result = await sandbox.run_code("import math\nprint(math.pi)\nleft")
    assert result.stdout == "3.141592653589793\n"
    assert result.error is not None
    assert result.error.name == "NameError"


async def test_run_code_runs_threads_and_exit_functions(sandbox: Sandbox):
    code = (
        "import threading, atexit\natexit.register(print, 'bye')\nthreading.Thread(target=print, args=('hi',)).start()"
    )
    assert sorted((await sandbox.run_code(code)).stdout.split()) == ["bye", "hi"]


async def test_run_code_reports_once_whatever_it_forks(sandbox: Sandbox):
    result = await sandbox.run_code("import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\n'done'")
    assert result.result == "'done'"


async def test_run_code_takes_variables(sandbox: Sandbox):
    assert (await sandbox.run_code("import os; os.environ['COLOUR']", env={"COLOUR": "red"})).result == "'red'"


async def test_run_code_runs_a_shell(sandbox: Sandbox):
    result = await sandbox.run_code("echo $((1 + 1)); exit 5", language="bash")
    assert (result.stdout, result.exit_code) == ("2\n", 5)


async def test_run_code_refuses_an_unknown_language(sandbox: Sandbox):
    with pytest.raises(ProgramError, match="'perl' is not to be had"):
        await sandbox.run_code("1", language="perl")


async def test_deadline_kills_and_keeps_the_output(sandbox: Sandbox):
    result = await sandbox.run_code("print('before')\nwhile True: pass", timeout_s=0.2)
    assert (result.stdout, result.end, result.timed_out) == ("before\n", End.TIMEOUT, True)
    with pytest.raises(ProgramTimeout):
        result.check()


async def test_flood_is_cut_at_its_limit(sandbox: Sandbox):
    result = await sandbox.run_code("while True: print('x' * 1000)")
    assert result.output_cut
    assert len(result.stdout) == sandbox.spec.output_kb << 10


async def test_memory_is_bounded(sandbox: Sandbox):
    result = await sandbox.run_code("x = bytearray(10**10)")
    assert result.oom
    result = await sandbox.run_code("x = []\nwhile True: x.append(bytearray(10**6))")
    assert result.oom


async def test_a_signal_to_itself_is_told_apart(sandbox: Sandbox):
    result = await sandbox.run_code("import os; os.kill(os.getpid(), 9)")
    assert (result.end, result.exit_code, result.killed) == (End.KILLED, -9, True)


async def test_file_size_is_bounded(sandbox: Sandbox):
    result = await sandbox.run_code("with open('big', 'wb') as f:\n    while True: f.write(b'x' * 2**20)")
    assert result.error is not None
    assert result.error.name == "OSError"
    await sandbox.remove("big")


async def test_nothing_of_an_execution_is_left(sandbox: Sandbox):
    result = await sandbox.run_code(DAEMONS)
    assert result.end is End.EXITED
    assert await count_processes(sandbox) == 0
    result = await sandbox.run_code(DAEMONS + "\nwhile True: pass", timeout_s=0.2)
    assert result.timed_out
    assert await count_processes(sandbox) == 0


async def test_held_output_does_not_hold_the_result(sandbox: Sandbox):
    result = await sandbox.run_code("import os, time\nif os.fork() == 0:\n    time.sleep(600)\nprint('parent')")
    assert result.stdout == "parent\n"
    assert result.duration_s < 10


async def test_run_takes_input_folder_and_variables(sandbox: Sandbox):
    await sandbox.make_dir("work")
    result = await sandbox.run("cat; pwd; echo $A", stdin="in\n", cwd="work", env={"A": "b"})
    lines = result.stdout.splitlines()
    assert (lines[0], lines[2], result.exit_code) == ("in", "b", 0)
    assert lines[1].endswith("/work")


async def test_run_executes_a_list_as_it_is(sandbox: Sandbox):
    assert (await sandbox.run(["echo", "$HOME", "a b"])).stdout == "$HOME a b\n"


async def test_run_reports_what_it_cannot_find(sandbox: Sandbox):
    result = await sandbox.run(["no-such-program"])
    assert (result.exit_code, result.stderr) == (127, "no-such-program: No such file or directory\n")
    with pytest.raises(CommandFailed, match="exit code 127"):
        result.check()
    missing = await sandbox.run("true", cwd="no-such-folder")
    assert missing.exit_code != 0
    assert "no-such-folder" in missing.stderr


async def test_run_refuses_another_user(sandbox: Sandbox):
    with pytest.raises(ProgramError, match="only user"):
        await sandbox.run("id", user="root")
    assert (await sandbox.run("true", user="user")).exit_code == 0


async def test_output_streams_as_it_comes(sandbox: Sandbox):
    pieces: list[tuple[str, str]] = []
    code = "import sys, time\nprint('é')\nsys.stdout.flush()\nprint('b', file=sys.stderr)"
    result = await sandbox.run_code(code, on_output=lambda name, text: pieces.append((name, text)))
    assert sorted(pieces) == [("stderr", "b\n"), ("stdout", "é\n")]
    assert (result.stdout, result.stderr) == ("é\n", "b\n")


async def test_context_keeps_its_state(sandbox: Sandbox):
    context = await sandbox.create_context()
    other = await sandbox.create_context()
    await sandbox.run_code("x = 5\ndef f(): return x", context=context)
    assert (await sandbox.run_code("print('out')\nf() + 1", context=context)).result == "6"
    assert (await sandbox.run_code("x", context=other)).error is not None
    failed = await sandbox.run_code("x = 7\n1 / 0", context=context)
    assert failed.error is not None
    assert (await sandbox.run_code("x", context=context)).result == "7"
    await sandbox.remove_context(context)
    await sandbox.remove_context(other)
    with pytest.raises(ProgramError, match="no context"):
        await sandbox.run_code("x", context=context)


async def test_context_starts_empty_after_its_deadline(sandbox: Sandbox):
    context = await sandbox.create_context()
    await sandbox.run_code("x = 5", context=context)
    result = await sandbox.run_code("print('in')\nwhile True: pass", context=context, timeout_s=0.2)
    assert (result.end, result.stdout) == (End.TIMEOUT, "in\n")
    again = await sandbox.run_code("x", context=context)
    assert again.error is not None
    await sandbox.remove_context(context)
    assert await count_processes(sandbox) == 0


async def test_background_process_lives_until_it_is_killed(sandbox: Sandbox):
    process = await sandbox.start("cat; sleep 600")
    await sandbox.run_code("print('meanwhile')")
    assert [(p.pid, p.command) for p in await sandbox.processes()] == [(process.pid, "cat; sleep 600")]
    assert (await sandbox.connect(process.pid)).pid == process.pid
    await process.send_stdin("hello\n")
    seen = anyio.Event()
    result: list[CommandResult] = []

    async def wait() -> None:
        result.append(await process.wait(on_output=lambda *_: seen.set()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        with anyio.fail_after(20):
            await seen.wait()
        assert await process.kill() is True
    assert (result[0].stdout, result[0].end) == ("hello\n", End.KILLED)
    assert await process.kill() is False
    assert await sandbox.processes() == []
    assert await count_processes(sandbox) == 0


async def test_background_process_ends_by_itself(sandbox: Sandbox):
    process = await sandbox.start(["sh", "-c", "read line; echo got $line; exit 3"])
    await process.send_stdin("it", eof=True)
    result = await process.wait()
    assert (result.stdout, result.exit_code, result.end) == ("got it\n", 3, End.EXITED)
    assert (await process.wait()) == result
    with pytest.raises(ProgramError, match="has ended"):
        await process.send_stdin("more")


async def test_background_process_has_a_deadline_where_asked(sandbox: Sandbox):
    process = await sandbox.start("sleep 600", timeout_s=0.1)
    assert (await process.wait()).end is End.TIMEOUT


async def test_connect_refuses_an_unknown_process(sandbox: Sandbox):
    with pytest.raises(ProgramError, match="no background process 999999"):
        await sandbox.connect(999999)


async def test_executions_take_turns(sandbox: Sandbox):
    results: dict[int, str] = {}

    async def one(i: int) -> None:
        results[i] = (await sandbox.run_code(f"print({i})")).stdout

    async with anyio.create_task_group() as tasks:
        for i in range(12):
            tasks.start_soon(one, i)
    assert results == {i: f"{i}\n" for i in range(12)}


async def test_cancelled_execution_is_killed(sandbox: Sandbox):
    with anyio.move_on_after(0.1):
        await sandbox.run_code("import time; time.sleep(600)")
    assert (await sandbox.run_code("print('next')")).stdout == "next\n"
    assert await count_processes(sandbox) == 0


async def test_pause_and_resume(sandbox: Sandbox):
    process = await sandbox.start("sleep 600")
    await sandbox.pause()
    assert (await sandbox.info()).state == "paused"
    await sandbox.resume()
    assert (await sandbox.info()).state == "running"
    assert (await sandbox.run_code("1 + 1")).result == "2"
    await process.kill()


async def test_info_and_metrics(sandbox: Sandbox):
    await sandbox.set_timeout(1000)
    info = await sandbox.info()
    assert (info.provider, info.state, info.run_id) == (sandbox.provider, "running", "tests")
    assert 900 < info.expires_in_s <= 1000
    metrics = await sandbox.metrics()
    assert metrics.executions > 0
    assert metrics.cpu_s > 0
    assert metrics.memory_limit_bytes == sandbox.spec.memory_mb << 20


async def test_files_round_trip(sandbox: Sandbox):
    info = await sandbox.write("folder/a.txt", "text é")
    assert (info.name, info.kind, info.size, info.mode) == ("a.txt", "file", 7, 0o644)
    assert await sandbox.read_text("folder/a.txt") == "text é"
    data = bytes(range(256)) * 2000
    await sandbox.write("folder/b.bin", data)
    assert await sandbox.read_bytes("folder/b.bin") == data
    assert b"".join([piece async for piece in sandbox.read_stream("folder/b.bin")]) == data
    assert [item.name for item in await sandbox.list_dir("folder")] == ["a.txt", "b.bin"]
    assert (await sandbox.run("cat folder/a.txt")).stdout == "text é"
    await sandbox.write("folder/a.txt", "")
    assert await sandbox.read_bytes("folder/a.txt") == b""
    await sandbox.remove("folder")
    assert not await sandbox.exists("folder")


async def test_files_many_at_once(sandbox: Sandbox):
    infos = await sandbox.write_many({f"many/{i}/f": str(i) * i for i in range(20)})
    assert [info.size for info in infos] == [len(str(i)) * i for i in range(20)]
    assert await sandbox.read_text("many/3/f") == "333"
    assert len(await sandbox.list_dir("many")) == 20
    assert len(await sandbox.list_dir("many", depth=2)) == 40
    await sandbox.remove("many")


async def test_files_rename_make_exists(sandbox: Sandbox):
    assert await sandbox.make_dir("d/e") is True
    assert await sandbox.make_dir("d/e") is False
    await sandbox.write("d/f", "1")
    assert (await sandbox.rename("d/f", "d/new/g")).name == "g"
    assert await sandbox.exists("d/new/g")
    assert not await sandbox.exists("d/f")
    assert (await sandbox.file_info("d")).kind == "dir"
    await sandbox.remove("d")


async def test_files_list_the_whole_machine_but_what_cannot_be_read(sandbox: Sandbox):
    """Folders that the program may not read are listed, and what goes away meanwhile (under /proc) does not matter."""
    found = await sandbox.list_dir("/" if sandbox.provider != "local" else ".", depth=3)
    assert all(entry.kind in ("file", "dir", "symlink", "other") for entry in found)
    assert sandbox.provider == "local" or {"/proc", "/usr"} <= {entry.path for entry in found}


@pytest.mark.parametrize("call", ["read_bytes", "remove", "file_info", "list_dir"])
async def test_files_that_are_not_there(sandbox: Sandbox, call: str):
    with pytest.raises(SandboxFileError, match="No such file"):
        await getattr(sandbox, call)("nothing/here")


async def test_files_too_large_are_refused(sandbox: Sandbox):
    with pytest.raises(SandboxFileError, match="file_mb"):
        await sandbox.write("large", b"x" * ((sandbox.spec.file_mb << 20) + 1))
    assert not await sandbox.exists("large")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin", "fifo", "."])
async def test_files_that_are_no_files_are_not_read(sandbox: Sandbox, path: str):
    await sandbox.run("rm -f fifo; mkfifo fifo")
    with pytest.raises(SandboxFileError):
        await sandbox.read_bytes(path)


async def test_files_do_not_follow_a_link_when_writing(sandbox: Sandbox):
    await sandbox.run("rm -f link target; echo old > target; ln -s target link")
    await sandbox.write("link", "new")
    assert await sandbox.read_text("target") == "old\n"
    assert (await sandbox.file_info("link")).kind == "file"
    await sandbox.run("rm -f link; ln -s target link")
    assert ((await sandbox.file_info("link")).kind, (await sandbox.file_info("link")).target) == ("symlink", "target")
    await sandbox.remove("link")
    assert await sandbox.exists("target")
    await sandbox.remove("target")
