"""What a supervisor asks the kernel: who descends from whom, who was killed for memory, what is used.

Standard library only, Python 3.8 or later.
"""

import contextlib
import os
import signal

MEMORY_FILES = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")
OOM_FILES = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")  # cgroup v2, v1


def descendants(root, keep=()):
    """All descendants of a process but the ones in ``keep`` and theirs."""
    found, todo = [], [root]
    while todo:
        for pid in children_of(todo.pop()):
            if pid not in keep:
                found.append(pid)
                todo.append(pid)
    return found


def kill_all(pids):
    """Send SIGKILL to each; returns whether there was any."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


class OomCounter:
    """How often the kernel has killed for memory in this container."""

    def __init__(self):
        self.fd = open_first(OOM_FILES) if os.getpid() == 1 else None  # else the counter is the machine's
        self.seen = self.count()

    def count(self):
        """How often so far."""
        if self.fd is None:
            return 0
        for line in os.pread(self.fd, 4096, 0).decode().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        return 0

    def news(self):
        """Whether it has killed since the last time."""
        before, self.seen = self.seen, self.count()
        return self.seen > before


class OomFirst:
    """While it is entered, children are born as the first to be killed when memory is short; their parent is not.

    The file is opened while the supervisor may still be looked into; afterwards it belongs to root.
    """

    def __init__(self):
        try:
            self.fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
            self.own = os.read(self.fd, 16)
        except OSError:
            self.fd = None

    def __enter__(self):
        if self.fd is not None:
            os.write(self.fd, b"1000")

    def __exit__(self, *error):
        if self.fd is not None:
            os.pwrite(self.fd, self.own, 0)


def open_first(paths):
    """A descriptor of the first of these files that can be opened, or None."""
    for path in paths:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            pass
    return None


def memory_used():
    """Bytes that the container uses; 0 where the kernel does not say."""
    fd = open_first(MEMORY_FILES)
    if fd is None:
        return 0
    try:
        return int(os.read(fd, 64))
    finally:
        os.close(fd)


def used_bytes(folder):
    """What the file system of a folder holds."""
    info = os.statvfs(folder)
    return (info.f_blocks - info.f_bfree) * info.f_frsize


def is_empty(folder):
    """Whether a folder, whose permissions are put right first, has nothing in it."""
    try:
        os.chmod(folder, 0o700)
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return False


def children_of(pid):
    """The children of a process, of all its threads."""
    try:
        found = []
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as listing:
                found += [int(child) for child in listing.read(1 << 20).split()]
        return found
    except OSError:
        if os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
            return []  # it has just died
    found = []  # a kernel without those lists
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as listing:
                    if int(listing.read().rpartition(b")")[2].split()[1]) == pid:
                        found.append(int(name))
            except OSError:
                pass
    return found


def memory_file(data):
    """A descriptor from which a child reads all of its standard input."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
