#!/bin/sh
# Install and start Docker Engine on a Debian or Ubuntu machine, as root, and build the sandboxes' default image.
# Does nothing that is done already. Needs apt's package index; needs no container registry.
set -u
cd "$(dirname "$0")/.."
LOG=/var/log/toolgym-dockerd.log

answers() { docker version >/dev/null 2>&1; }

wait_for_engine() { # seconds
    for _ in $(seq "$1"); do
        answers && return 0
        sleep 1
    done
    return 1
}

install() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >/dev/null || echo "apt-get update failed; trying with the lists that are here" >&2
    apt-get install -y -q --no-install-recommends docker.io iptables bubblewrap >/tmp/toolgym-apt.log 2>&1 || {
        tail -n 20 /tmp/toolgym-apt.log >&2
        echo "setup-docker: apt-get could not install docker.io" >&2
        exit 1
    }
}

clear_leftovers() { # of an engine that was killed: its containerd, and process ids that may by now be somebody else's
    pgrep -x dockerd >/dev/null 2>&1 && return
    pkill -f /var/run/docker/containerd/containerd.toml 2>/dev/null && sleep 1
    rm -f /var/run/docker.pid /var/run/docker/containerd/containerd.pid
}

start() {
    clear_leftovers
    if [ -d /run/systemd/system ]; then
        systemctl start docker && wait_for_engine 30 && return 0
    fi
    # Without systemd, as in a container or a small virtual machine: in the background, detached from this terminal.
    # Each attempt asks less of the kernel than the one before. Sandboxes use no network of Docker's, so none is needed.
    for options in "" "--iptables=false --bridge=none" "--iptables=false --bridge=none --storage-driver=vfs"; do
        # shellcheck disable=SC2086
        nohup setsid dockerd $options >"$LOG" 2>&1 </dev/null &
        wait_for_engine 20 && return 0
        kill $! 2>/dev/null
        sleep 1
    done
    tail -n 20 "$LOG" >&2
    echo "setup-docker: dockerd does not start here (its log: $LOG)" >&2
    return 1
}

if ! answers; then
    if [ "$(id -u)" != 0 ]; then
        echo "setup-docker: no Docker engine answers, and only root can install one" >&2
        exit 1
    fi
    command -v dockerd >/dev/null 2>&1 || install
    start || exit 1
fi
docker version --format 'Docker Engine {{.Server.Version}} answers'
if [ -x .venv/bin/toolgym ]; then
    .venv/bin/toolgym sandbox build || exit 1
fi
