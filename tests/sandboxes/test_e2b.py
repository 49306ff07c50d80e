"""Code as it is written for E2B's SDK, with only its import changed."""

import inspect
import io
import pickle
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from toolgym.errors import SandboxError
from toolgym.sandboxes import (
    SandboxClosed,
    SandboxFileError,
    SandboxLost,
    SandboxUnavailable,
)
from toolgym.sandboxes.base import ProgramError
from toolgym.sandboxes.e2b import (
    AsyncSandbox,
    CommandExitException,
    CommandHandle,
    FileNotFoundException,
    FileType,
    InvalidArgumentException,
    NotEnoughSpaceException,
    NotFoundException,
    OutputMessage,
    Sandbox,
    SandboxException,
    SandboxInfo,
    SandboxNotFoundException,
    SandboxNotRunningException,
    SandboxQuery,
    SandboxState,
    SandboxUnreachableException,
    TemplateException,
    TimeoutException,
    UnsupportedException,
)
from toolgym.sandboxes.e2b.exceptions import translate

PROVIDERS = ["local", pytest.param("docker", marks=[pytest.mark.docker, pytest.mark.slow])]


@pytest.fixture(scope="module", params=PROVIDERS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """One synchronous sandbox for all tests."""
    with Sandbox.create(envs={"WHO": "me"}, metadata={"kind": "test"}, provider=request.param) as opened:
        yield opened


# -- commands


def test_run_gives_the_result(sandbox: Sandbox):
    result = sandbox.commands.run('echo "hello $WHO"; echo oops >&2')
    assert (result.stdout, result.stderr, result.exit_code, result.error) == ("hello me\n", "oops\n", 0, None)


def test_run_has_folder_and_variables(sandbox: Sandbox):
    sandbox.files.make_dir("work")
    lines = sandbox.commands.run("pwd; echo $A", cwd="work", envs={"A": "b"}).stdout.splitlines()
    assert (lines[0].endswith("/work"), lines[1]) == (True, "b")


def test_run_raises_at_an_exit_code(sandbox: Sandbox):
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("echo out; echo err >&2; exit 3")
    error = caught.value
    assert (error.exit_code, error.stdout, error.stderr, error.error) == (3, "out\n", "err\n", "exit status 3")
    assert isinstance(error, SandboxException)
    assert "Command exited with code 3 and error:\nerr\n" in str(error)


def test_run_raises_at_its_deadline(sandbox: Sandbox):
    with pytest.raises(TimeoutException, match="'timeout' sets it"):
        sandbox.commands.run("sleep 600", timeout=0.1)
    assert sandbox.commands.list() == []


def test_run_calls_back_in_the_callers_thread(sandbox: Sandbox):
    out: list[str] = []
    err: list[str] = []

    def on_stdout(text: str) -> None:
        out.append(text + sandbox.files.read("seen"))  # a callback may use the sandbox

    sandbox.files.write("seen", "!")
    sandbox.commands.run("echo a; echo b >&2", on_stdout=on_stdout, on_stderr=err.append)
    assert (out, err) == (["a\n!"], ["b\n"])


def test_run_raises_what_a_callback_raised_and_kills_the_command(sandbox: Sandbox):
    def fail(text: str) -> None:
        raise KeyError(text)

    with pytest.raises(KeyError, match="a"):
        sandbox.commands.run("echo a; sleep 600", on_stdout=fail)
    assert sandbox.commands.list() == []


def test_run_can_drop_the_output(sandbox: Sandbox):
    seen: list[str] = []
    result = sandbox.commands.run("echo a", on_stdout=seen.append, retain_output=False)
    assert (result.stdout, result.stderr, seen) == (None, None, ["a\n"])


def test_run_has_no_input(sandbox: Sandbox):
    assert sandbox.commands.run("cat").stdout == ""


def test_run_refuses_another_user(sandbox: Sandbox):
    with pytest.raises(InvalidArgumentException, match="only user"):
        sandbox.commands.run("id", user="root")
    assert sandbox.commands.run("true", user="user").exit_code == 0


def test_background_command_takes_input_and_is_listed(sandbox: Sandbox):
    handle = sandbox.commands.run("read x; echo got $x; read y", background=True, stdin=True, timeout=0)
    assert isinstance(handle, CommandHandle)
    (info,) = sandbox.commands.list()
    assert (info.pid, info.cmd, info.args[-1]) == (handle.pid, "bash", "read x; echo got $x; read y")
    sandbox.commands.send_stdin(handle.pid, "it\n")
    assert next(iter(handle)) == ("got it\n", None, None)
    handle.send_stdin("end\n")
    assert handle.wait().stdout == "got it\n"
    with pytest.raises(NotFoundException):
        sandbox.commands.send_stdin(handle.pid, "more")


def test_background_command_is_killed(sandbox: Sandbox):
    handle = sandbox.commands.run("sleep 600", background=True)
    assert sandbox.commands.kill(handle.pid) is True
    with pytest.raises(CommandExitException) as caught:
        handle.wait()
    assert caught.value.error == "signal: killed"
    assert handle.kill() is False
    assert sandbox.commands.kill(99999999) is False


def test_background_command_is_connected_to(sandbox: Sandbox):
    handle = sandbox.commands.run("read x; echo $x; exit 2", background=True, stdin=True)
    other = sandbox.commands.connect(handle.pid)
    handle.disconnect()
    with pytest.raises(SandboxException, match="disconnected"):
        handle.wait()
    other.send_stdin("a\n")
    with pytest.raises(CommandExitException, match="code 2"):
        other.wait()
    with pytest.raises(NotFoundException):
        sandbox.commands.connect(other.pid)


def test_input_can_be_closed(sandbox: Sandbox):
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    handle.send_stdin("a")
    handle.close_stdin()
    assert handle.wait().stdout == "a"


# -- files


def test_files_are_written_and_read(sandbox: Sandbox):
    info = sandbox.files.write("data/a.txt", "é")
    assert (info.name, info.type) == ("a.txt", FileType.FILE)
    assert sandbox.files.read("data/a.txt") == "é"
    assert sandbox.files.read("data/a.txt", format="bytes") == bytearray("é".encode())
    assert b"".join(sandbox.files.read("data/a.txt", format="stream")) == "é".encode()
    sandbox.files.write("data/b", io.BytesIO(b"\xff"))
    assert sandbox.files.read("data/b") == "\ufffd"
    written = sandbox.files.write_files([{"path": "data/c", "data": b"1"}, {"path": "data/d/e", "data": "2"}])
    assert [item.name for item in written] == ["c", "e"]
    assert [item.name for item in sandbox.files.list("data")] == ["a.txt", "b", "c", "d"]
    assert [item.name for item in sandbox.files.list("data", depth=2)] == ["a.txt", "b", "c", "d", "e"]
    entry = sandbox.files.get_info("data/a.txt")
    assert (entry.size, entry.permissions, entry.mode, entry.owner) == (2, "-rw-r--r--", 0o644, "user")
    assert sandbox.files.rename("data/c", "data/f").name == "f"
    assert (sandbox.files.exists("data/c"), sandbox.files.exists("data/f")) == (False, True)
    assert (sandbox.files.make_dir("data/g"), sandbox.files.make_dir("data/g")) == (True, False)
    sandbox.files.remove("data")
    assert not sandbox.files.exists("data")
    sandbox.files.remove("data")  # as E2B: nothing happens


@pytest.mark.parametrize("call", ["read", "list", "get_info"])
def test_files_that_are_not_there_are_not_found(sandbox: Sandbox, call: str):
    with pytest.raises(FileNotFoundException):
        getattr(sandbox.files, call)("nothing/here")


def test_files_refuse_what_cannot_be(sandbox: Sandbox):
    with pytest.raises(InvalidArgumentException, match="depth"):
        sandbox.files.list(".", depth=0)
    with pytest.raises(InvalidArgumentException, match="data must be"):
        sandbox.files.write("x", 3)  # pyright: ignore
    with pytest.raises(InvalidArgumentException, match="only user"):
        sandbox.files.read("x", user="root")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.read(".")
    with pytest.raises(UnsupportedException, match="watch_dir"):
        sandbox.files.watch_dir(".")


# -- code


def test_code_keeps_its_variables(sandbox: Sandbox):
    sandbox.run_code("x = 1")
    execution = sandbox.run_code("x += 1; print('out'); import sys; print('err', file=sys.stderr)\nx")
    assert execution.text == "2"
    assert execution.results[0].is_main_result
    assert ("".join(execution.logs.stdout), "".join(execution.logs.stderr)) == ("out\n", "err\n")
    assert execution.error is None
    assert execution.execution_count is not None


def test_code_reports_its_error(sandbox: Sandbox):
    errors: list[str] = []
    execution = sandbox.run_code("1 / 0", on_error=lambda error: errors.append(error.name))
    assert execution.error is not None
    assert (execution.error.name, execution.error.value, errors) == (
        "ZeroDivisionError", "division by zero", ["ZeroDivisionError"],
    )  # fmt: skip
    assert "ZeroDivisionError" in execution.to_json()
    exited = sandbox.run_code("import sys; sys.exit(4)").error
    assert exited is not None
    assert (exited.name, exited.value) == ("SystemExit", "4")


def test_code_streams(sandbox: Sandbox):
    seen: list[OutputMessage] = []
    results: list[str | None] = []
    sandbox.run_code("print('a')\n7", on_stdout=seen.append, on_result=lambda result: results.append(result.text))
    assert [(message.line, message.error) for message in seen] == [("a\n", False)]
    assert results == ["7"]


def test_code_has_variables_for_one_execution(sandbox: Sandbox):
    assert sandbox.run_code("import os; os.environ['COLOUR']", envs={"COLOUR": "red"}).text == "'red'"
    assert sandbox.run_code("os.environ.get('COLOUR', 'none')").text == "'none'"


def test_code_has_contexts(sandbox: Sandbox):
    context = sandbox.create_code_context()
    sandbox.run_code("y = 5", context=context)
    assert sandbox.run_code("y", context=context).text == "5"
    assert sandbox.run_code("y").error is not None
    sandbox.restart_code_context(context)
    assert sandbox.run_code("y", context=context).error is not None
    assert context in sandbox.list_code_contexts()
    sandbox.remove_code_context(context)
    with pytest.raises(NotFoundException):
        sandbox.run_code("y", context=context)


def test_code_has_a_deadline(sandbox: Sandbox):
    with pytest.raises(TimeoutException, match="Execution timed out"):
        sandbox.run_code("while True: pass", timeout=0.2)
    assert sandbox.run_code("1 + 1").text == "2"


def test_code_in_other_languages(sandbox: Sandbox):
    assert sandbox.run_code("echo $((6 * 7))", language="bash").logs.stdout == ["42\n"]
    with pytest.raises(InvalidArgumentException, match="not to be had"):
        sandbox.run_code("1", language="r")
    with pytest.raises(InvalidArgumentException, match="not both"):
        sandbox.run_code("1", language="python", context=sandbox.create_code_context())


# -- the sandbox itself


def test_sandbox_tells_about_itself(sandbox: Sandbox):
    sandbox.set_timeout(1000)
    info = sandbox.get_info()
    assert (info.sandbox_id, info.state, info.metadata) == (sandbox.sandbox_id, "running", {"kind": "test"})
    assert 900 < (info.end_at - info.started_at).total_seconds() < 1100
    (metrics,) = sandbox.get_metrics()
    assert metrics.mem_total == 1024 << 20
    assert Sandbox.get_info(sandbox.sandbox_id).sandbox_id == sandbox.sandbox_id
    mine = Sandbox.list(SandboxQuery(metadata={"kind": "test"}))
    assert [item.sandbox_id for item in mine.next_items()] == [sandbox.sandbox_id]
    assert not mine.has_next


def test_sandbox_pauses_and_connects(sandbox: Sandbox):
    sandbox.run_code("z = 3")
    assert (sandbox.pause(), sandbox.pause()) == (True, False)
    assert not sandbox.is_running()
    assert sandbox.get_info().state is SandboxState.PAUSED
    with pytest.raises(SandboxNotRunningException, match="paused"):
        sandbox.commands.run("true")
    assert Sandbox.connect(sandbox.sandbox_id, timeout=700) is sandbox
    assert sandbox.run_code("z").text == "3"
    info = sandbox.get_info()
    assert (info.end_at - info.started_at).total_seconds() < 3600


def test_what_is_missing_says_so(sandbox: Sandbox):
    assert not hasattr(sandbox, "pty")
    with pytest.raises(UnsupportedException, match=r"docs/e2b\.md"):
        sandbox.get_host(80)
    with pytest.raises(AttributeError, match="no attribute 'comands'"):
        sandbox.comands  # noqa: B018 - the access raises
    with pytest.raises(UnsupportedException, match="mcp"):
        Sandbox.create(provider="local", mcp={"x": {}})
    with pytest.raises(TypeError, match="'tiemout'"):
        Sandbox.create(provider="local", tiemout=3)


def test_killed_sandbox_is_gone():
    sandbox = Sandbox.create(provider="local", api_key="e2b_unused")
    assert sandbox.is_running()
    assert Sandbox.kill(sandbox.sandbox_id) is True
    assert (sandbox.kill(), Sandbox.kill(sandbox.sandbox_id), sandbox.is_running()) == (False, False, False)
    for call in (lambda: sandbox.commands.run("true"), lambda: sandbox.run_code("1"), lambda: sandbox.files.read("x")):
        with pytest.raises(SandboxNotRunningException):
            call()
    with pytest.raises(SandboxNotFoundException):
        sandbox.get_info()
    with pytest.raises(SandboxNotFoundException):
        Sandbox.connect(sandbox.sandbox_id)


# -- exceptions, queries and signatures


def test_query_selects():
    now = datetime.now(UTC)
    info = SandboxInfo(
        sandbox_id="a",
        sandbox_domain=None,
        template_id="base",
        name=None,
        metadata={"k": "v", "l": "w"},
        started_at=now,
        end_at=now,
        state=SandboxState.PAUSED,
        cpu_count=1,
        memory_mb=1,
        envd_version="",
    )
    for query in (
        SandboxQuery(),
        SandboxQuery(metadata={"k": "v"}, state=[SandboxState.PAUSED], started_after=now, template="base"),
    ):
        assert query.matches(info)
    for query in (
        SandboxQuery(metadata={"k": "w"}),
        SandboxQuery(state=[SandboxState.RUNNING]),
        SandboxQuery(started_after=now + timedelta(seconds=1)),
        SandboxQuery(template="other"),
    ):
        assert not query.matches(info)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (SandboxFileError("read x: [Errno 2] No such file or directory"), FileNotFoundException),
        (SandboxFileError("write x: [Errno 28] No space left on device"), NotEnoughSpaceException),
        (SandboxFileError("read .: [Errno 21] Is a directory"), InvalidArgumentException),
        (SandboxClosed("its lifetime is over"), SandboxNotRunningException),
        (SandboxUnavailable("no image"), TemplateException),
        (SandboxUnavailable("no engine answers"), SandboxException),
        (SandboxLost("gone"), SandboxUnreachableException),
        (ProgramError("no such language"), InvalidArgumentException),
        (SandboxError("else"), SandboxException),
        (TimeoutException("is one already"), TimeoutException),
    ],
)
def test_errors_are_translated(error: SandboxError, kind: type[Exception]):
    assert type(translate(error)) is kind


def test_exceptions_are_e2bs_family():
    assert issubclass(FileNotFoundException, NotFoundException)
    assert issubclass(SandboxNotRunningException, TimeoutException)
    error = pickle.loads(pickle.dumps(CommandExitException("e", "o", 2, "exit status 2")))
    assert (error.stderr, error.stdout, error.exit_code, error.error) == ("e", "o", 2, "exit status 2")


def test_both_twins_have_the_same_calls():
    def public(kind: type) -> set[str]:
        return {name for name, value in inspect.getmembers(kind) if not name.startswith("_") and callable(value)}

    assert public(Sandbox) == public(AsyncSandbox)
