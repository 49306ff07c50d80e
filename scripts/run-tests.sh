#!/bin/sh
# Run the whole test suite, Docker included where that is possible: run-tests.sh [pytest arguments]
set -u
cd "$(dirname "$0")/.."

# On a new Debian machine where we are root, bring Docker; anywhere else use the engine that is there.
if ! .venv/bin/python -m tests.docker_engine; then
    if [ "$(id -u)" = 0 ] && [ -f /etc/debian_version ] && [ "${TOOLGYM_NO_SETUP:-}" = "" ]; then
        sh scripts/setup-docker.sh || echo "Docker could not be set up here; its tests are left out" >&2
    fi
fi
.venv/bin/python -m tests.docker_engine || echo "LEFT OUT: tests that need Docker (no engine answers)"
for module in vllm ray; do
    .venv/bin/python -c "import $module" 2>/dev/null || echo "LEFT OUT: tests that need $module (not installed)"
done

if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest "$@"
fi
# Two at a time; the tests that train a policy use both processors themselves and come after.
.venv/bin/python -m pytest -q -n 2 --dist loadfile -m "not learning" || exit
.venv/bin/python -m pytest -q -m learning
