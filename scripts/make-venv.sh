#!/bin/sh
# Make the virtual environment that everything else is installed into: make-venv.sh PYTHON FOLDER
set -eu
python=$1
venv=$2

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "toolgym needs Python 3.11 or newer, $python is $("$python" --version 2>/dev/null || echo missing)." >&2
    echo "Name another one: make PYTHON=/path/to/python3.12 ..." >&2
    exit 2
fi
if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0 # it is there and works; what is installed in it is pip's business
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian keeps these two modules in a package of their own.
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
    else
        echo "$python cannot make virtual environments: install its venv module (Debian: apt install python3-venv)." >&2
        exit 2
    fi
fi
rm -rf "$venv"
"$python" -m venv "$venv"
