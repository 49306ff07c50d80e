"""The program that runs in every sandbox and forks a warmed interpreter for each execution.

It is sent as text to any Python from 3.8 on, and imports the standard library only. In a container it is process 1.
Frames come in on one stream and go out on another (`Channel`). It holds no secret, and its owner believes nothing that
it says beyond the output of the programs. It ends, with all its descendants, when its input ends or its lifetime is
over.

One foreground job runs at a time; when it ends, every descendant that does not belong to a background job is killed
until none is left. Nothing here may block: files are touched in forked children only.
"""

import collections
import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import struct
import sys
import time

from toolgym.sandboxes.inside.child import (
    HEADER,
    child_code,
    child_command,
    child_context,
    child_file,
    child_wipe,
    enter_child,
    limit_all,
    new_main,
    open_streams,
    warm_up,
)
from toolgym.sandboxes.inside.jobs import Channel, Job
from toolgym.sandboxes.inside.processes import (
    OomCounter,
    OomFirst,
    descendants,
    is_empty,
    kill_all,
    memory_file,
    memory_used,
    used_bytes,
)
from toolgym.sandboxes.inside.proxy import Proxy

PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
PIECE = 1 << 16
PROXY_BOX = -1  # the id of frames about programs' connections
EXPIRED, TERMINATED = 75, 143  # exit codes
PATIENCE_S = 5.0  # for everything to die after SIGKILL
FORK_ATTEMPTS = 30  # 0.4 s in all
WIPE_S = 5.0  # for the files of a stateless execution to be removed
# Modules that most programs want. Not threading and random: what they do after each fork costs more than their import.
PRELOAD = (
    "bisect",
    "collections",
    "datetime",
    "functools",
    "heapq",
    "itertools",
    "json",
    "math",
    "operator",
    "re",
    "string",
)
CHILDREN = {
    "code": child_code, "command": child_command, "context": child_context, "file": child_file,
}  # fmt: skip


class Supervisor:
    """The event loop; ``alone`` where it is process 1 of its own process namespace."""

    def __init__(self, config, channel, oom_first):
        self.config, self.channel = config, channel
        self.alone = os.getpid() == 1
        self.poll = select.epoll()
        self.expires = time.monotonic() + config["lifetime_s"]
        self.jobs = {}  # pid -> job
        self.dead = collections.deque()  # jobs to finish
        self.fd_jobs = {}  # descriptor -> job
        self.contexts = {}  # id -> job or None where it has died
        self.context_requests = {}  # id -> the request that made it
        self.queue = collections.deque()
        self.foreground = None
        self.spare = None  # an interpreter that was forked ahead and waits for code
        self.executions = 0
        self.leaving = None
        self.oom = OomCounter()
        self.oom_first = oom_first
        self.wake, wake_write = os.pipe()
        for fd in (self.wake, wake_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Programs may signal process 1, their owner closes its input: so there only the kernel can end it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN if self.alone else lambda *_: setattr(self, "leaving", TERMINATED))
        self.poll.register(self.wake, select.EPOLLIN)
        self.poll.register(channel.fd_in, select.EPOLLIN)
        self.out_watched = False
        self.proxy = None
        if config["proxy"]:
            self.proxy = Proxy(self.poll, self.send_proxy, lambda: len(channel.pending))
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

    # -- the loop

    def serve(self):
        """Serve until the input ends, the lifetime is over, or a signal says so; returns the exit code."""
        self.make_spare()
        while self.leaving is None:
            deadlines = [job.deadline for job in self.jobs.values()]
            left = min([self.expires, *deadlines]) - time.monotonic()
            for fd, _ in self.poll.poll(max(0.0, min(left + 0.001, 3600.0))):
                self.on_event(fd)
            self.reap()
            now = time.monotonic()
            for job in [job for job in self.jobs.values() if job.deadline <= now]:
                self.end_job(job, "timeout")
            self.finish_dead()
            if now >= self.expires:
                self.leaving = EXPIRED
            self.start_next()
            self.watch_output()
        self.kill_strays(keep=False)
        return self.leaving

    def finish_dead(self):
        """Answer for every job that has died."""
        while self.dead:
            self.finish(self.dead.popleft())

    def on_event(self, fd):
        """Something is to be read, or can be written, at a descriptor."""
        if fd == self.channel.fd_in:
            try:
                for header, body in self.channel.read():
                    self.on_request(header, body)
            except EOFError:
                self.leaving = 0
        elif fd == self.channel.fd_out:
            try:
                self.channel.flush()
            except OSError:
                self.leaving = 0
        elif fd == self.wake:
            self.clear_wake()
        elif self.proxy is not None and self.proxy.owns(fd):
            self.proxy.on_event(fd)
        elif fd in self.fd_jobs:
            job = self.fd_jobs[fd]
            if fd == job.stdin:
                self.feed(job)
            else:
                self.read_output(job, fd)

    def watch_output(self):
        """Ask to be told when the owner reads on, while something waits for it."""
        wanted = bool(self.channel.pending)
        if wanted and not self.out_watched:
            self.poll.register(self.channel.fd_out, select.EPOLLOUT)
        elif self.out_watched and not wanted:
            self.poll.unregister(self.channel.fd_out)
        self.out_watched = wanted

    # -- requests

    def on_request(self, header, body):
        """A frame has come: start, queue or do what it asks."""
        op = header["op"]
        if op in ("code", "command", "file"):
            header["body"] = body
            if op == "file":
                header.update(home=self.config["home"], roots=self.config["roots"], file_mb=self.config["file_mb"])
                header["timeout_s"] = 60.0
            job = Job(header)
            if job.background:
                self.drop_spare()
                self.fork(job)
            else:
                self.queue.append(job)
        elif op == "context":
            self.contexts[header["id"]] = None
            self.context_requests[header["id"]] = header
            self.channel.send({"id": header["id"], "ev": "done"})
        else:
            getattr(self, "do_" + op)(header, body)

    def do_drop_context(self, header, body):
        """End a context."""
        job = self.contexts.pop(header["context"], None)
        self.context_requests.pop(header["context"], None)
        if job is not None:
            self.end_job(job, "killed")
        self.channel.send({"id": header["id"], "ev": "done"})

    def do_stdin(self, header, body):
        """Write to a background command's input."""
        job = next((j for j in self.jobs.values() if j.id == header["job"] and j.stdin is not None), None)
        if job is not None:
            job.to_stdin += body
            job.stdin_eof = job.stdin_eof or header["eof"]
            self.feed(job)
        self.channel.send({"id": header["id"], "ev": "done", "value": job is not None})

    def do_kill(self, header, body):
        """Kill a job that runs or waits, by its id; answered once it is dead."""
        target = header["job"]
        waiting = [job for job in self.queue if job.id == target]
        running = [job for job in self.jobs.values() if job.id == target or (job.turn and job.turn.id == target)]
        for job in waiting:
            self.queue.remove(job)
        for job in running:
            self.end_job(job, "killed")
        self.finish_dead()
        self.channel.send({"id": header["id"], "ev": "done", "value": bool(waiting or running)})

    def do_processes(self, header, body):
        """List the background commands."""
        listed = [
            {"pid": job.pid, "job": job.id, "command": job.request["command"]}
            for job in self.jobs.values()
            if job.kind == "command" and job.background
        ]
        self.channel.send({"id": header["id"], "ev": "done", "processes": listed})

    def do_metrics(self, header, body):
        """Tell what is used."""
        usage = os.times()
        values = {
            "cpu_s": usage.user + usage.system + usage.children_user + usage.children_system,
            "processes": len(descendants(os.getpid())) - (self.spare is not None),
            "executions": self.executions,
            "disk_bytes": sum(used_bytes(folder) for folder in self.config["folders"]) if self.alone else 0,
            "memory_bytes": memory_used() if self.alone else 0,
        }
        self.channel.send({"id": header["id"], "ev": "done", "metrics": values})

    def do_lifetime(self, header, body):
        """Set the time left; there is no answer."""
        self.expires = time.monotonic() + header["lifetime_s"]

    def send_proxy(self, header, body=b""):
        """Send a frame about a program's connection."""
        self.channel.send(dict(header, id=PROXY_BOX), body)

    def do_proxy(self, header, body):
        """Something about a program's connection."""
        if self.proxy is not None:
            self.proxy.answer(header["conn"], header["state"], body)

    def do_freeze(self, header, body):
        """Stop or continue all descendants, where no engine can."""
        number = signal.SIGSTOP if header["value"] else signal.SIGCONT
        for pid in descendants(os.getpid()):
            os.kill(pid, number)
        self.channel.send({"id": header["id"], "ev": "done"})

    # -- jobs

    def start_next(self):
        """Start what has waited longest, if nothing is in the foreground."""
        while self.foreground is None and self.queue:
            job = self.queue.popleft()
            context = job.request.get("context")
            if context is not None and context not in self.contexts:
                self.channel.send({"id": job.id, "ev": "done", "failed": f"there is no context {context}"})
                continue
            job.start()
            if context is not None:
                self.start_turn(context, job)
            elif job.kind == "code":
                self.start_code(job)
            else:
                self.drop_spare()
                self.foreground = job
                self.fork(job)

    def start_code(self, wanted):
        """Hand code to an interpreter of its own: the spare one, or one that is forked now."""
        job, self.spare = self.spare, None
        if job is None:
            job = self.fork(Job({"id": wanted.id, "op": "code"}))
        job.id, job.request, job.stream = wanted.id, wanted.request, wanted.stream
        job.started, job.deadline = wanted.started, wanted.deadline
        self.foreground = job
        self.give(job, wanted)

    def start_turn(self, context, turn):
        """Hand code to the interpreter of a context, which is forked here at its first use and after its death."""
        self.drop_spare()
        job = self.contexts[context]
        if job is None:
            job = self.contexts[context] = self.fork(Job(dict(self.context_requests[context], timeout_s=None)))
        job.turn, job.deadline, job.size = turn, turn.deadline, 0
        self.foreground = turn
        self.give(job, turn)

    def give(self, worker, job):
        """Send a job's code to the interpreter that is to run it."""
        head = json.dumps({"env": job.request["env"]}).encode() if job.request.get("env") else b""
        code = job.request["body"]
        worker.to_stdin += HEADER.pack(len(head), len(code)) + head + code
        if worker.stdin is not None:
            self.feed(worker)

    def make_spare(self):
        """Fork the next interpreter ahead, but only while no program runs that could tamper with it."""
        if self.spare is None and self.foreground is None and not self.jobs and self.leaving is None:
            self.spare = self.fork(Job({"id": 0, "op": "code"}))

    def drop_spare(self):
        """Kill the spare before anything else runs here."""
        if self.spare is not None:
            job, self.spare = self.spare, None
            job.background = True  # nobody is to be answered
            self.end_job(job, "dropped")

    def fork(self, job):
        """Start a job's child with pipes on 0, 1, 2 and, for code, 3 (its report) and 4 (a context's input)."""
        request = job.request
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range({"code": 4, "context": 4}.get(job.kind, 2))]
        for (read, _), name in zip(pipes, ("out", "err", "report")):  # noqa: B905 - there may be fewer pipes, and Python 3.8 has no strict
            job.fds[read] = name
        ends = [write for _, write in pipes[:3]]
        stdin = self.null
        if len(pipes) == 4:
            job.stdin = pipes[3][1]
            ends.append(pipes[3][0])
        elif job.kind == "command" and job.background:
            stdin, job.stdin = os.pipe2(os.O_CLOEXEC)
        elif request.get("body") and job.kind == "command":
            stdin = memory_file(request["body"])
        request["home"] = self.config["home"]
        job.pid = self.try_fork()
        if job.pid == 0:
            self.become(job, [stdin, *ends])
        if job.pid < 0:
            job.got["err"] += b"cannot fork: too many processes\n"
        for fd in ends + ([stdin] if stdin != self.null else []):
            os.close(fd)
        for fd in job.fds:
            os.set_blocking(fd, False)
            self.poll.register(fd, select.EPOLLIN)
            self.fd_jobs[fd] = job
        if job.stdin is not None:
            os.set_blocking(job.stdin, False)
        if job.pid > 0:
            self.jobs[job.pid] = job
            if job.kind == "command" and job.background:
                self.channel.send({"id": job.id, "ev": "started", "pid": job.pid})
        else:
            self.dead.append(job)
        return job

    def try_fork(self):
        """Fork; -1 where there are too many processes, even after a while: the kernel counts the dead for some time."""
        for attempt in range(FORK_ATTEMPTS):
            try:
                with self.oom_first:
                    return os.fork()
            except OSError:
                self.reap()
                time.sleep(0.001 * attempt)
        return -1

    def become(self, job, fds):
        """The child's side of `fork`: never returns."""
        status = 70
        try:
            enter_child(self.config, fds)
            status = CHILDREN[job.kind](job.request)
        except OSError as error:
            os.write(2, f"{error}\n".encode())
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)

    def feed(self, job):
        """Write what waits for a child's input as far as its pipe takes it."""
        try:
            while job.to_stdin:
                del job.to_stdin[: os.write(job.stdin, memoryview(job.to_stdin)[:PIECE].tobytes())]
        except BlockingIOError:
            if job.stdin not in self.fd_jobs:
                self.poll.register(job.stdin, select.EPOLLOUT)
                self.fd_jobs[job.stdin] = job
            return
        except BrokenPipeError:
            job.to_stdin.clear()
        if self.fd_jobs.pop(job.stdin, None) is not None:
            self.poll.unregister(job.stdin)
        if job.stdin_eof:
            os.close(job.stdin)
            job.stdin = None

    def read_output(self, job, fd):
        """Take what a child wrote; past its limit it is killed, and what is beyond is dropped."""
        try:
            data = os.read(fd, PIECE)
        except BlockingIOError:
            return
        if not data:
            self.forget(job, fd)
            return
        name = job.fds[fd]
        if job.kind == "file" or name == "report":
            limit = (self.config["file_mb"] + 8) << 20 if job.kind == "file" else 1 << 20
            if len(job.got[name]) + len(data) <= limit:
                job.got[name] += data
            if job.kind == "context" and name == "report":
                self.end_turn(job)
            return
        limit = self.config["output_kb"] << 10
        kept = data[: max(0, limit - job.size)]
        job.size += len(data)
        owner = job.turn or job
        if owner.stream and kept:
            self.channel.send({"id": owner.id, "ev": name}, kept)
        else:
            owner.got[name] += kept
        if job.size > limit and job.end is None:
            self.end_job(job, "output_cut")

    def forget(self, job, fd):
        """Close one of a job's pipes."""
        del job.fds[fd]
        del self.fd_jobs[fd]
        self.poll.unregister(fd)
        os.close(fd)

    def drain(self, job, names=("out", "err", "report")):
        """Read what is left in a child's pipes now."""
        for fd in [fd for fd, name in job.fds.items() if name in names]:
            while fd in job.fds and select.select([fd], [], [], 0)[0]:
                self.read_output(job, fd)

    def end_turn(self, job):
        """A context has reported: answer the request that it was busy with."""
        report = job.got["report"]
        if job.turn is None or len(report) < 8 or len(report) < 8 + struct.unpack(">I", report[:4])[0]:
            return
        self.drain(job, ("out", "err"))
        self.kill_tree(job.pid, root=False)
        turn, job.turn, job.deadline = job.turn, None, float("inf")
        turn.got["report"], job.got["report"] = report[8:], bytearray()
        self.foreground = None
        self.kill_strays()
        self.answer(turn, struct.unpack(">I", report[4:8])[0])

    def end_job(self, job, why):
        """Kill a job and all that it started, and see it dead; it is answered by `finish`."""
        job.end = job.end or why
        job.deadline = float("inf")
        if job.background:
            self.kill_tree(job.pid)
        else:
            self.kill_strays()

    def reap(self):
        """Take the exit status of every dead child; jobs among them wait in ``dead`` for `finish`."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            job = self.jobs.pop(pid, None)
            if job is not None:
                job.status = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                self.dead.append(job)

    def finish(self, job):
        """A job's child is dead: kill what it left, take the rest of its output, answer."""
        if job is self.spare:
            self.spare = None  # somebody killed it
            job.background = True
        if self.foreground in (None, job):
            self.kill_strays()
        if job is self.foreground:
            self.foreground = None
            self.make_spare()  # it warms up while we answer
        self.drain(job)
        for fd in list(job.fds):
            self.forget(job, fd)
        if job.stdin is not None:
            if self.fd_jobs.pop(job.stdin, None) is not None:
                self.poll.unregister(job.stdin)
            os.close(job.stdin)
            job.stdin = None
        if job.kind == "context":
            if job.id in self.contexts:
                self.contexts[job.id] = None
            if job.turn is None:
                return
            job.turn.end, job.turn.status, job = job.end, job.status, job.turn
            if job is self.foreground:
                self.foreground = None
        if job.kind == "file":
            self.answer_file(job)
        elif job.id:
            self.answer(job, job.status)

    def answer(self, job, status):
        """Send what came of an execution; its files are wiped before that, where nothing may stay."""
        self.executions += 1
        end = job.end
        if self.oom.news() and status != 0 and end in (None, "timeout"):
            end = "out_of_memory"
        if end is None:
            end = "killed" if status < 0 else "exited"
        clean = self.wipe() if self.config["stateless"] and not job.background else True
        sizes = [len(job.got[name]) for name in ("out", "err", "report")]
        spent = round(time.monotonic() - job.started, 6)
        header = {"id": job.id, "ev": "done", "status": status, "end": end, "s": spent, "sizes": sizes, "clean": clean}
        self.channel.send(header, bytes(job.got["out"] + job.got["err"] + job.got["report"]))

    def answer_file(self, job):
        """Send what came of a file call."""
        got = bytes(job.got["out"])
        if len(got) < HEADER.size:
            self.channel.send({"id": job.id, "ev": "done", "failed": f"it ended early: {job.end or 'killed'}"})
            return
        head, _ = HEADER.unpack_from(got)
        header = json.loads(got[HEADER.size : HEADER.size + head])
        self.channel.send(dict(header, id=job.id, ev="done"), got[HEADER.size + head :])

    # -- cleaning

    def kill_strays(self, keep=True):
        """Kill every descendant that is of no background job, until none is left; returns whether it succeeded."""
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up:
            self.reap()
            kept = [pid for pid, job in self.jobs.items() if keep and job.background]
            if self.alone and not kept:
                try:
                    os.kill(-1, signal.SIGKILL)  # atomic: no fork can slip through
                except ProcessLookupError:
                    return True
            elif not kill_all(descendants(os.getpid(), kept)):
                return True
            self.await_deaths()
        return False

    def kill_tree(self, pid, root=True):
        """Kill the descendants of a job's child, and itself where ``root``, until they are dead."""
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up and pid in self.jobs:
            if not kill_all(descendants(pid) + ([pid] if root else [])):
                return
            self.await_deaths()
            self.reap()

    def await_deaths(self):
        """Wait a moment for children to die."""
        select.select([self.wake], [], [], 0.002)
        self.clear_wake()

    def clear_wake(self):
        """Forget the wake-ups so far."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake, 512)

    def wipe(self):
        """Empty the folders after a stateless execution.

        False where that fails, and the sandbox must not be used again.
        """
        folders = [folder for folder in self.config["folders"] if not is_empty(folder)]
        if not folders:
            return True
        pid = self.try_fork()
        if pid < 0:
            return False
        if pid == 0:
            try:
                child_wipe(folders)
            finally:
                os._exit(0)
        give_up = time.monotonic() + WIPE_S
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > give_up:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return False
            self.await_deaths()
        return all(is_empty(folder) for folder in folders)


def main():
    """Read the configuration, warm up, serve."""
    os.umask(0o022)
    oom_first = OomFirst()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # no ptrace, no /proc/1/mem, no /proc/1/fd for the programs
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    while os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) < 5:
        pass  # 3 and 4 stay busy, so that no pipe gets them
    channel = Channel(os.dup(0), os.dup(1))
    frames = []
    while not frames:
        select.select([channel.fd_in], [], [])
        frames = channel.read()
    config = frames[0][0]
    limit_all(config)
    open_streams()
    new_main(config["home"])
    warm_up()
    os.environ.clear()
    os.environ.update(config["env"])
    missing = []
    for name in (*PRELOAD, *config["preload"]):
        try:
            importlib.import_module(name)
        except Exception:
            missing.append(name)
    for folder in config["folders"]:
        os.makedirs(folder, exist_ok=True)
    supervisor = Supervisor(config, channel, oom_first)
    for header, body in frames[1:]:
        supervisor.on_request(header, body)
    channel.send({"id": config["id"], "ev": "ready", "python": sys.version.split()[0], "missing": missing})
    gc.collect()
    gc.freeze()
    status = supervisor.serve()
    os._exit(status)
