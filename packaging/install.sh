#!/bin/sh
# Installs the static binary of backupy, or upgrades it: fetches it with its checksums and signature from
# where BACKUPY_INSTALL_URL says (or takes a directory that holds them), verifies, and puts it in place in one
# step. Nothing that was not verified is ever executed or left in place. Needs a POSIX shell, sha256sum and,
# for a URL, curl or wget; for the signature openssl.
set -eu

usage() {
    cat <<'END'
usage: install.sh [--url URL | --from DIR] [--version VERSION] [--public-key FILE] [--prefix DIR]
       install.sh --uninstall [--prefix DIR]

  --url URL           where SHA256SUMS and the binaries are (BACKUPY_INSTALL_URL); https, or http to this machine
  --from DIR          a directory that holds them, instead of a URL
  --version VERSION   the version to install, where there are several
  --public-key FILE   PEM, ECDSA P-256: SHA256SUMS must be signed with its key (BACKUPY_INSTALL_PUBLIC_KEY).
                      The signature is SHA256SUMS.sig, as `cosign sign-blob` or `openssl dgst -sha256 -sign` make it
  --prefix DIR        default /usr/local: the program is DIR/bin/backupy (BACKUPY_INSTALL_PREFIX)
  --uninstall         removes the program, but no settings, no state, no key and no backup
END
}

say() {
    printf 'backupy: %s\n' "$*"
}

fail() {
    printf 'backupy: %s\n' "$*" >&2
    exit 1
}

wrong() {
    printf 'backupy: %s\n' "$*" >&2
    usage >&2
    exit 2
}

have() {
    command -v "$1" >/dev/null 2>&1
}

work=
new=
clean() {
    [ -z "$work" ] || rm -rf "$work"
    [ -z "$new" ] || rm -f "$new"
}

# fetch NAME LIMIT: NAME from the source to $work/NAME; fails if it is longer than LIMIT bytes.
fetch() {
    if [ -n "$from" ]; then
        [ -f "$from/$1" ] || return 1
        cp "$from/$1" "$work/$1"
    elif have curl; then
        # From https only to https again.
        case $url in https:*) only='=https' ;; *) only='=http,https' ;; esac
        curl --fail --silent --show-error --location --proto "$only" --proto-redir "$only" --max-redirs 5 \
            --connect-timeout 20 --speed-limit 1 --speed-time 60 --retry 2 --max-filesize "$2" --output "$work/$1" "$url/$1"
    elif busybox_wget; then
        wget -q -T 30 -O "$work/$1" "$url/$1"
    else
        wget -q -T 30 -t 2 -O "$work/$1" "$url/$1"
    fi || return 1
    [ "$(wc -c <"$work/$1")" -le "$2" ] || { say "$1 is larger than $2 bytes" >&2; return 1; }
}

# Whether the source is known to be the one that was named, or the signature tells.
trusted() {
    if [ -n "$key$from" ] || have curl; then return 0; fi
    case $url in http:*) return 0 ;; esac
    ! busybox_wget
}

busybox_wget() {
    wget --help 2>&1 | grep -qi busybox
}

architecture() {
    case ${BACKUPY_INSTALL_ARCH:-$(uname -m)} in
    x86_64 | amd64) echo x86_64 ;;
    aarch64 | arm64) echo aarch64 ;;
    armv7* | armv8l) echo armv7 ;;
    armv6*) echo armv6 ;;
    *) return 1 ;;
    esac
}

# What SHA256SUMS calls the binary: the only line for this machine, and for this version if one is wanted.
choose() {
    awk -v end="-linux-$arch" -v version="$version" '
        NF == 2 && length($1) == 64 && $2 ~ /^\*?backupy-[0-9A-Za-z_.+~-]+$/ {
            name = $2
            sub(/^\*/, "", name)
            if (substr(name, length(name) - length(end) + 1) != end) next
            if (version != "" && name != "backupy-" version end) next
            print $1, name
        }' "$work/SHA256SUMS"
}

verify_signature() {
    if [ -z "$key" ]; then
        say "no public key was given: the checksums are taken as they are" >&2
        return 0
    fi
    [ -f "$key" ] || fail "there is no public key at $key"
    have openssl || fail "a public key was given, and there is no openssl to verify with: install it"
    fetch SHA256SUMS.sig 4096 || fail "failed to get SHA256SUMS.sig: not signed, or not for you"
    # cosign writes base64, openssl what it means.
    if openssl base64 -d -A <"$work/SHA256SUMS.sig" >"$work/signature" 2>/dev/null && [ -s "$work/signature" ] &&
        signed "$work/signature"; then
        return 0
    fi
    signed "$work/SHA256SUMS.sig" || fail "SHA256SUMS is not signed with that key: nothing was installed"
}

signed() {
    openssl dgst -sha256 -verify "$key" -signature "$1" "$work/SHA256SUMS" >/dev/null 2>&1
}

place() {
    mkdir -p "$bin" 2>/dev/null || fail "failed to make $bin: run this as root, or give --prefix"
    new=$bin/.backupy.$$
    # In the same directory, so that the last step is a rename: a running program is not disturbed.
    (umask 022 && cp "$work/$name" "$new" && chmod 755 "$new") 2>/dev/null ||
        fail "failed to write to $bin: run this as root, give --prefix, or make room"
    [ "$(sum_of "$new")" = "$sum" ] || fail "what was written to $bin is not what was verified: is the disk full?"
    said=$("$new" version 2>&1) || fail "the program does not run on this machine: $said"
    mv -f "$new" "$bin/backupy" || fail "failed to replace $bin/backupy"
    new=
}

sum_of() {
    sha256sum "$1" | cut -d ' ' -f 1
}

install_it() {
    [ -z "$url" ] || [ -z "$from" ] || wrong "--url and --from exclude each other"
    [ -n "$url$from" ] || wrong "where from? Give --url, BACKUPY_INSTALL_URL or --from"
    url=${url%/}
    case $url in
    '' | https://*) ;;
    http://127.0.0.1[:/]* | http://localhost[:/]* | http://127.0.0.1 | http://localhost) ;;
    *) wrong "the URL must be https://…" ;;
    esac
    have sha256sum || fail "there is no sha256sum to verify with: install coreutils or busybox"
    [ -n "$from" ] || have curl || have wget || fail "there is neither curl nor wget: install one, or use --from"
    trusted || fail "busybox's wget does not check whose server it is: install curl, or give --public-key"
    arch=$(architecture) || fail "there is no binary for this machine ($(uname -m)): build it from source"
    work=$(mktemp -d)

    fetch SHA256SUMS 65536 || fail "failed to get SHA256SUMS from ${url:-$from}"
    verify_signature
    chosen=$(choose)
    case $chosen in
    '') fail "SHA256SUMS names no binary ${version:+of version $version }for $arch" ;;
    *"
"*) fail "SHA256SUMS names several versions for $arch: choose one with --version" ;;
    esac
    sum=${chosen%% *}
    name=${chosen#* }
    fetch "$name" 50000000 || fail "failed to get $name from ${url:-$from}"
    [ "$(sum_of "$work/$name")" = "$sum" ] ||
        fail "$name is not what SHA256SUMS says: damaged, cut short or tampered with; nothing was installed"

    before=
    [ ! -x "$bin/backupy" ] || before=$("$bin/backupy" version 2>/dev/null) || before="a version that does not run"
    place
    if [ -n "$before" ]; then
        say "$bin/backupy: $said (before: $before)"
        say "restart the service to use it"
    else
        say "$bin/backupy: $said"
        say "next: backupy up --help"
    fi
}

uninstall() {
    if [ ! -e "$bin/backupy" ]; then
        say "there is no $bin/backupy"
        return 0
    fi
    rm -f "$bin/backupy" 2>/dev/null || fail "failed to remove $bin/backupy: run this as root"
    say "removed $bin/backupy; kept: settings in /etc/backupy, state and master key in /var/lib/backupy, all backups"
}

main() {
    url=${BACKUPY_INSTALL_URL:-} from='' version='' key=${BACKUPY_INSTALL_PUBLIC_KEY:-}
    prefix=${BACKUPY_INSTALL_PREFIX:-/usr/local} action=install_it
    while [ $# -gt 0 ]; do
        case $1 in
        --url | --from | --version | --public-key | --prefix)
            [ -n "${2:-}" ] || wrong "$1 needs a value"
            ;;
        esac
        case $1 in
        --url) url=$2 && shift ;;
        --from) from=$2 url='' && shift ;;
        --version) version=$2 && shift ;;
        --public-key) key=$2 && shift ;;
        --prefix) prefix=$2 && shift ;;
        --uninstall) action=uninstall ;;
        --help | -h) usage && exit 0 ;;
        *) wrong "what is $1?" ;;
        esac
        shift
    done
    bin=${prefix%/}/bin
    trap clean EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    $action
}

# Last, so that a script that was cut short on its way does nothing.
main "$@"
