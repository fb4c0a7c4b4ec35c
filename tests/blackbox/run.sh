#!/usr/bin/env bash
# Runs the black-box tests against BACKUPY_BIN (default: the release build). Arguments go to pytest.
#   tests/blackbox/run.sh -k sqlite
#   BACKUPY_SLOW=1 tests/blackbox/run.sh          also those that take minutes or gigabytes
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$here/../../target}")
BACKUPY_BIN=$(realpath -m "${BACKUPY_BIN:-$target/release/backupy}")
export BACKUPY_BIN
[ -x "$BACKUPY_BIN" ] || { echo "no agent at $BACKUPY_BIN: cargo build --release" >&2; exit 2; }
cd "$here"

venv=$target/blackbox-venv
if ! cmp -s requirements.txt "$venv/requirements.txt"; then
    python=/usr/bin/python3
    [ -x "$python" ] || python=python3
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt "$venv/requirements.txt"
fi
export PYTHONDONTWRITEBYTECODE=1
exec "$venv/bin/python" -m pytest -n "${BLACKBOX_JOBS:-4}" --dist worksteal "$@"
