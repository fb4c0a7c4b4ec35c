# What is built for which machine, in one place: names, triples, budgets. Sourced after lib.sh.

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")
dist=$target_dir/dist

# ARCH  TRIPLE  BUDGET in bytes (a larger binary fails the build)  EMULATOR
# armv6 is the Pi Zero's and runs on every later ARM with hardware floating point.
targets='
x86_64   x86_64-unknown-linux-musl       7600000  -
aarch64  aarch64-unknown-linux-musl      6700000  qemu-aarch64-static
armv7    armv7-unknown-linux-musleabihf  6700000  qemu-arm-static
armv6    arm-unknown-linux-musleabihf    6700000  qemu-arm-static -cpu arm1176
'

architectures() {
    awk 'NF { print $1 }' <<<"$targets"
}

# target_field ARCH N: the N-th column; fails for an architecture that is not in the table.
target_field() {
    awk -v arch="$1" -v n="$2" '$1 == arch { print $n; found = 1 } END { exit !found }' <<<"$targets"
}

# emulator ARCH: the words that start a binary of it here; none for this CPU.
emulator() {
    awk -v arch="$1" '$1 == arch && $4 != "-" { sub(/.* qemu/, "qemu"); print }' <<<"$targets"
}

# static_binary ARCH: where build-static puts it.
static_binary() {
    echo "$dist/backupy-$version-linux-$1"
}

# What carries a date carries the commit's, and `version` names it, so that the same tree makes the same bytes
# (build.rs finds the commit alone, but not in a copy of the tree). Not of a repository around this one.
if [ "$(git rev-parse --show-prefix 2>/dev/null || echo none)" = "" ]; then
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
    build_commit=${BACKUPY_BUILD_COMMIT-$(git rev-parse --short=12 HEAD)}
fi
build_commit=${build_commit-${BACKUPY_BUILD_COMMIT-}}
# Without git: a date that no tool takes for a mistake, 2000-01-01.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-946684800}
