"""What the supervisor forks: one execution, one stateful context, one command, or one file call.

Standard library only, Python 3.8 or later. A child is cut off from the supervisor (`enter_child`) before it touches
anything that the sandbox's programs can touch too.
"""

import _signal  # pyright: ignore[reportMissingImports]
import ast
import atexit
import contextlib
import io
import json
import linecache
import os
import resource
import stat
import struct
import sys
import traceback
import types

HEADER = struct.Struct(">II")  # a frame: lengths of a JSON header and of a body, then both
MAX_LIST = 10_000
MAX_RESULT = 16 * 1024  # characters of the repr of a last expression
SHELL = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"


def limit_all(config):
    """Limits that the supervisor takes upon itself, so that each child has them without a word."""
    for name, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, config["file_mb"] << 20),
        (resource.RLIMIT_NOFILE, config["open_files"]),
        (resource.RLIMIT_MEMLOCK, 64 * 1024),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(name)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(name, (value, value))


def enter_child(config, fds):
    """Cut the child off from the supervisor: new session, only ``fds`` (onto 0, 1, 2 ...), signals as for any program.

    Every page touched here is copied, which is most of what an execution costs: so nothing is done here that can be
    done before the fork. Of ``fds`` none is below its place: the supervisor keeps 0 to 4 busy.
    """
    os.setsid()
    _signal.set_wakeup_fd(-1)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
    os.closerange(len(fds), 4096)
    resource.setrlimit(resource.RLIMIT_DATA, (config["memory_mb"] << 20, config["memory_mb"] << 20))


def describe(error):
    """An exception as data, without the supervisor's own frames; what its type does wrong must not matter."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != "<code>":
        trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, trace))
        message = str(error)
    except BaseException:
        text, message = "", "(its message could not be made)"
    return {"name": type(error).__name__, "message": message[:4000], "traceback": text[-8000:]}


def compile_code(code):
    """The program without its last expression, and that expression, compiled; either may be None.

    Raises SyntaxError.
    """
    whole = code.rstrip(" \t\n")
    body, _, last = whole.rpartition("\n")
    if last[:1].isalnum() and "\r" not in code:  # most programs end with an expression on a line of its own
        try:
            value = compile("\n" * whole.count("\n") + last, "<code>", "eval")
            return compile(body, "<code>", "exec") if body else None, value
        except (SyntaxError, ValueError):
            pass  # it is no expression, or a part of something longer: the tree can tell, at twice the price
    tree = ast.parse(code, "<code>")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    body = compile(tree, "<code>", "exec")
    return body, None if last is None else compile(ast.Expression(last.value), "<code>", "eval")


def execute(code, module):
    """Run code in a module's namespace; returns (exit code, what to report)."""
    report = {}
    status = 0
    try:
        linecache.cache["<code>"] = (len(code), None, code.splitlines(True), "<code>")
        body, last = compile_code(code)
        if body is not None:
            exec(body, module.__dict__)
        if last is not None:
            value = eval(last, module.__dict__)
            if value is not None:
                report["result"] = repr(value)[:MAX_RESULT]
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
        if status == 1 and leaving.code is not True and leaving.code != 1:
            print(leaving.code, file=sys.stderr)
    except BaseException as error:
        status, report["error"] = 1, describe(error)
    return status & 0xFF, report


def flush_output():
    """Write out what the program left in its streams, whatever it did to them."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()


def open_streams():
    """The standard streams of all children, made in the supervisor, which never uses them itself."""
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    for name, fd in (("stdout", 1), ("stderr", 2)):
        raw = io.BufferedWriter(io.FileIO(fd, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(raw, "utf-8", "replace", line_buffering=True))
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr


def new_main(home):
    """A fresh ``__main__``, with the folder first on the path, as for a script.

    Made in the supervisor like the streams.
    """
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    sys.path.insert(0, home)
    sys.argv = [""]


def warm_up():
    """Run a little of everything once: what the interpreter makes at first use, it then need not make in each child."""
    for code in ("x = [1]\nx", "def f(x): return x\nf('a')", "x = (1 +\n2)", "import math\nmath.no_such_name"):
        execute(code, types.ModuleType("__main__"))


def finish_threads():
    """What the interpreter would do before it ends; the rest of its finalisation is not worth its milliseconds."""
    try:
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()


def read_request():
    """The next request on descriptor 4.

    Where and with which variables to run, and the code. None where there is none.
    """
    sizes = read_exactly(8)
    if len(sizes) < 8:
        return None, ""
    head, body = HEADER.unpack(sizes)
    return json.loads(read_exactly(head)) if head else {}, read_exactly(body).decode("utf-8", "surrogatepass")


def read_exactly(size):
    """That many bytes of descriptor 4, or fewer where it ends."""
    parts, left = [], size
    while left:
        parts.append(os.read(4, left))
        left -= len(parts[-1])
        if not parts[-1]:
            break
    return b"".join(parts)


def child_code(job):
    """The life of a single execution (often forked ahead).

    It waits for its request, runs it, and reports on descriptor 3.
    """
    own = os.getpid()
    execute("0", types.ModuleType("__main__"))  # pages that every program touches are copied while it waits
    request, code = read_request()
    if request is None:
        return 0
    os.chdir(job["home"])
    if request.get("env"):
        os.environ.update(request["env"])
    status, report = execute(code, sys.modules["__main__"])
    finish_threads()
    flush_output()
    if os.getpid() == own:  # what the code forked and let run on must not report a second time
        os.write(3, json.dumps(report).encode() if report else b"{}")
    return status


def child_context(job):
    """The life of a stateful context: one request after another, a report after each."""
    own = os.getpid()
    os.chdir(os.path.join(job["home"], job["cwd"] or ""))
    sys.path[0] = os.getcwd()
    while True:
        request, code = read_request()
        if request is None:
            return 0
        status, report = execute(code, sys.modules["__main__"])
        flush_output()
        if os.getpid() != own:
            return status
        text = json.dumps(report).encode()
        os.write(3, struct.pack(">II", len(text), status) + text)


def child_command(job):
    """Become the command; what cannot be executed ends with 126 or 127, as in a shell."""
    _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
    os.chdir(os.path.join(job["home"], job["cwd"] or ""))
    os.environ.update(job["env"] or {})
    command = job["command"]
    argv = [SHELL, "-c", command] if isinstance(command, str) else command
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        return 127 if isinstance(error, FileNotFoundError) else 126


# -- file calls, each in a forked child


def locate(job, path, follow=True):
    """The absolute path that is meant.

    Refuses what lies outside ``roots`` (where a provider set them), links resolved.
    """
    path = os.path.join(job["home"], path)
    folder, name = os.path.split(os.path.normpath(path))
    path = os.path.join(os.path.realpath(folder), name)
    if follow:
        path = os.path.realpath(path)
    roots = job["roots"]
    if roots and not any(path == root or path.startswith(root + "/") for root in roots):
        raise PermissionError(1, "outside the sandbox's folders", path)
    return path


def entry(path):
    """What a file call tells of one path; a link is not followed."""
    info = os.lstat(path)
    kind = "other"
    for name, test in (("file", stat.S_ISREG), ("dir", stat.S_ISDIR), ("symlink", stat.S_ISLNK)):
        if test(info.st_mode):
            kind = name
    target = None
    if kind == "symlink":
        with contextlib.suppress(OSError):  # links below /proc, of other processes
            target = os.readlink(path)
    return {
        "path": path, "name": os.path.basename(path), "kind": kind, "size": info.st_size,
        "mode": stat.S_IMODE(info.st_mode), "modified": info.st_mtime, "target": target,
    }  # fmt: skip


def open_regular(path):
    """Open a regular file for reading, never waiting for a pipe or a device; its descriptor and size."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise OSError(22, "not a regular file", path)
    return fd, info.st_size


def file_read(job, body):
    """A stretch of a regular file, and whether there is more; the whole of it where no length is given."""
    fd, size = open_regular(locate(job, job["path"]))
    offset, length, limit = job.get("offset", 0), job.get("length"), job["file_mb"] << 20
    if length is None:
        if size > limit:
            raise OSError(27, f"larger than file_mb ({job['file_mb']} MB): {size} bytes", job["path"])
        length = limit + 1
    parts, left = [], length
    while left > 0:
        data = os.pread(fd, min(left, 1 << 20), offset + length - left)
        if not data:
            break
        parts.append(data)
        left -= len(data)
    data = b"".join(parts)
    if len(data) > limit:
        raise OSError(27, f"larger than file_mb ({job['file_mb']} MB)", job["path"])
    return {}, data


def file_write(job, body):
    """Several files one after another: each is written beside its place and renamed into it."""
    made, start = [], 0
    for path, size in zip(job["paths"], job["sizes"]):  # noqa: B905 - Python 3.8 has no strict
        path = locate(job, path, follow=False)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        beside = os.path.join(os.path.dirname(path), f".{os.getpid()}.{os.path.basename(path)[:100]}")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            view = memoryview(body)[start : start + size]
            while view:
                view = view[os.write(fd, view) :]
            os.rename(beside, path)
        except BaseException:
            os.unlink(beside)
            raise
        finally:
            os.close(fd)
        start += size
        made.append(entry(path))
    return {"entries": made}, b""


def file_list(job, body):
    """The entries of a folder, as deep as asked, at most `MAX_LIST`."""
    found, folders = [], [(locate(job, job["path"]), 1)]
    while folders and len(found) < MAX_LIST:
        folder, level = folders.pop(0)
        try:
            entries = list(os.scandir(folder))
        except OSError:
            if level == 1:
                raise
            continue  # gone, or not to be read: it is listed itself, and what is below is not to be seen
        for item in entries[: MAX_LIST - len(found)]:
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile, as processes under /proc are
                found.append(entry(item.path))
                if found[-1]["kind"] == "dir" and level < job["depth"]:
                    folders.append((item.path, level + 1))
    return {"entries": sorted(found, key=lambda e: e["path"])}, b""


def file_info(job, body):
    """About one entry."""
    return {"entries": [entry(locate(job, job["path"], follow=False))]}, b""


def file_exists(job, body):
    """Whether something has this path."""
    return {"value": os.path.lexists(locate(job, job["path"], follow=False))}, b""


def file_rename(job, body):
    """Move an entry, making the folders above its new place."""
    new = locate(job, job["new"], follow=False)
    os.makedirs(os.path.dirname(new), exist_ok=True)
    os.rename(locate(job, job["path"], follow=False), new)
    return {"entries": [entry(new)]}, b""


def file_remove(job, body):
    """Remove an entry with all that is in it."""
    path = locate(job, job["path"], follow=False)
    if stat.S_ISDIR(os.lstat(path).st_mode):
        remove_tree(path)
    else:
        os.unlink(path)
    return {}, b""


def file_mkdir(job, body):
    """Make a folder; whether it was not there."""
    path = locate(job, job["path"])
    existed = os.path.isdir(path)
    os.makedirs(path, exist_ok=True)
    return {"value": not existed}, b""


FILE_CALLS = {
    "read": file_read, "write": file_write, "list": file_list, "info": file_info,
    "exists": file_exists, "rename": file_rename, "remove": file_remove, "mkdir": file_mkdir,
}  # fmt: skip


def child_file(job):
    """One file call; its answer is a frame on descriptor 1."""
    try:
        answer, data = FILE_CALLS[job["call"]](job, job["body"])
    except (OSError, ValueError) as error:
        answer, data = {"failed": str(error), "kind": type(error).__name__}, b""
    head = json.dumps(answer).encode()
    view = memoryview(HEADER.pack(len(head), len(data)) + head + data)
    while view:
        view = view[os.write(1, view) :]
    return 0


def remove_tree(path, itself=True):
    """Remove all that is in a folder, whatever its permissions, and the folder ``itself``; links are not followed."""
    os.chmod(path, 0o700)
    with os.scandir(path) as entries:
        for item in list(entries):
            if item.is_dir(follow_symlinks=False):
                remove_tree(item.path)
            else:
                os.unlink(item.path)
    if itself:
        os.rmdir(path)


def child_wipe(folders):
    """Empty folders as far as that goes; who asked looks whether it went."""
    for folder in folders:
        with contextlib.suppress(OSError, RecursionError):
            remove_tree(folder, itself=False)
