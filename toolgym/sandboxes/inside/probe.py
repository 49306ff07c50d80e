"""What `doctor` runs in a sandbox.

Tries what must not work, and prints ``[[restriction, held, detail], ...]`` as JSON.
"""

import json
import os
import socket

FOUND = []


def report(name, held, detail):
    """Add a finding."""
    FOUND.append([name, bool(held), str(detail)])


def fails(function, *args):
    """Whether a call fails, and how."""
    try:
        function(*args)
    except OSError as error:
        return True, error.strerror or str(error)
    return False, "it worked"


def first(paths):
    """The text of the first file that is there."""
    for path in paths:
        try:
            with open(path) as file:
                return file.read().split()[0]
        except OSError:
            pass
    return "unknown"


with open("/proc/self/status") as status_file:
    STATUS = dict(line.split(":\t", 1) for line in status_file.read().splitlines() if ":\t" in line)
CAPABILITIES = [STATUS[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
MEMORY = first(["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"])
PIDS = first(["/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"])
CPU = first(["/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"])
SPACE = os.statvfs("/tmp")

report("network", os.listdir("/sys/class/net") == ["lo"], "interfaces: " + " ".join(os.listdir("/sys/class/net")))
report("connecting out", *fails(socket.create_connection, ("1.1.1.1", 53), 2))
report("user", os.getuid() != 0, f"uid {os.getuid()}")
report("capabilities", all(int(value, 16) == 0 for value in CAPABILITIES), "bounding set " + CAPABILITIES[3])
report("no new privileges", STATUS["NoNewPrivs"].strip() == "1", STATUS["NoNewPrivs"].strip())
report("seccomp filter", STATUS["Seccomp"].strip() == "2", "mode " + STATUS["Seccomp"].strip())
report("read-only image", *fails(open, "/usr/x", "w"))
report("process namespace", os.getppid() == 1, f"{sum(name.isdigit() for name in os.listdir('/proc'))} processes")
report("supervisor's memory", *fails(open, "/proc/1/mem", "rb"))
report("signals to the supervisor", os.kill(1, 19) is None and os.kill(1, 9) is None, "ignored")
report("memory in force", MEMORY.isdigit() and int(MEMORY) < 1 << 40, f"{MEMORY} bytes")
report("processes in force", PIDS.isdigit(), PIDS)
report("cpu in force", CPU not in ("max", "-1", "unknown"), f"quota {CPU} us")
report(
    "temporary files in force",
    SPACE.f_blocks * SPACE.f_frsize < 1 << 34,
    f"{SPACE.f_blocks * SPACE.f_frsize >> 20} MB",
)
report("kernel settings", *fails(open, "/proc/sys/kernel/hostname", "w"))
report(
    "host devices",
    not [name for name in os.listdir("/dev") if name.startswith(("sd", "vd", "nvme", "kmsg", "mem"))],
    "none",
)
print(json.dumps(FOUND))
