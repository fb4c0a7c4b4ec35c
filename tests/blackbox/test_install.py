"""`packaging/install.sh` under dash, busybox's ash and bash, with curl, wget and what busybox's wget understands, from a
local server that tells the truth and from one that does not."""

import functools
import hashlib
import http.server
import os
import pathlib
import shutil
import subprocess
import threading

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "packaging/install.sh"
ARCH = {"x86_64": "x86_64", "aarch64": "aarch64"}.get(os.uname().machine, "armv7")
NAME = f"backupy-9.9.9-linux-{ARCH}"
TOOLS = "awk cat chmod cp cut grep head id ls mkdir mktemp mv rm sed sha256sum uname wc openssl".split()


def program(version):
    """Something that runs and says a version, long enough to be cut."""
    return f"#!/bin/sh\necho backupy {version} linux/test\nexit 0\n".encode() + b"#" * 100_000


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a directory; `cut` ends bodies of that name early."""

    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        data = source.read()
        if self.path.rpartition("/")[2] in self.server.cut:
            data = data[: len(data) // 2]
        outputfile.write(data)


class Release:
    """What a project publishes, in a directory and on a server."""

    def __init__(self, directory):
        self.directory = directory
        directory.mkdir()
        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(directory))
        )
        self.server.cut = set()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.key, self.public = directory.parent / "key.pem", directory.parent / "public.pem"
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", self.key)
        openssl("ec", "-in", self.key, "-pubout", "-out", self.public)
        self.publish({NAME: program("9.9.9")})

    def publish(self, files):
        """Files with their checksums and the signature of those."""
        for name, data in files.items():
            (self.directory / name).write_bytes(data)
        sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
        (self.directory / "SHA256SUMS").write_text(sums)
        self.sign()

    def sign(self, base64=True):
        """As `cosign sign-blob` does, or as openssl alone."""
        signature = self.directory / "SHA256SUMS.sig"
        openssl("dgst", "-sha256", "-sign", self.key, "-out", signature, self.directory / "SHA256SUMS")
        if base64:
            openssl("base64", "-A", "-in", signature, "-out", self.directory / "b64")
            (self.directory / "b64").rename(signature)


def openssl(*words):
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


# Takes what busybox's wget takes and no more. The real one of Debian 12 crashes on every download.
WGET = """#!/bin/sh
case $1 in --help) echo "BusyBox v1.35.0 multi-call binary." >&2; exit 1 ;; esac
[ $# = 6 ] && [ "$1 $2 $4" = "-q -T -O" ] || { echo "wget: unrecognized option" >&2; exit 1; }
exec %s --fail --silent --location --max-time "$3" --output "$5" "$6"
"""


def started(shell):
    """The words that start a shell."""
    return [shutil.which(shell[0]), *shell[1:]]


class Host:
    """A machine with one shell and one downloader."""

    def __init__(self, directory, shell, downloader):
        self.directory, self.shell = directory, shell
        self.tools = directory / "tools"
        self.tools.mkdir(parents=True)
        for tool in TOOLS:
            if shell[0] == "busybox" and tool != "openssl":
                (self.tools / tool).symlink_to(shutil.which("busybox"))
            else:
                (self.tools / tool).symlink_to(shutil.which(tool))
        (self.tools / "sh").symlink_to(shutil.which("dash"))
        if downloader == "busybox":
            (self.tools / "wget").write_text(WGET % shutil.which("curl"))
            (self.tools / "wget").chmod(0o755)
        else:
            (self.tools / downloader).symlink_to(shutil.which(downloader))
        self.prefix = directory / "prefix"
        self.binary = self.prefix / "bin/backupy"

    def install(self, *words, **env):
        """Runs the script."""
        shell = started(self.shell)
        return subprocess.run(
            [*shell, str(SCRIPT), "--prefix", str(self.prefix), *map(str, words)],
            capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
            env={"PATH": str(self.tools), "TMPDIR": str(self.directory), **env},
        )

    def refuses(self, *words, saying, code=1, **env):
        """The script fails, says why, and leaves what was there as it was."""
        before = self.binary.read_bytes() if self.binary.exists() else None
        done = self.install(*words, **env)
        assert done.returncode == code, done.stdout + done.stderr
        assert saying in done.stderr, done.stderr
        assert (self.binary.read_bytes() if self.binary.exists() else None) == before
        self.leaves_nothing()

    def leaves_nothing(self):
        """No temporary file is left."""
        there = {path.name for path in self.directory.iterdir()} - {"tools", "prefix"}
        assert there == set(), there
        if self.binary.parent.exists():
            assert {path.name for path in self.binary.parent.iterdir()} <= {"backupy"}


HOSTS = [
    (["dash"], "curl"),
    (["dash"], "wget"),
    (["dash"], "busybox"),
    (["busybox", "ash"], "curl"),
    (["bash", "--posix"], "curl"),
]


@pytest.fixture(params=HOSTS, ids=lambda host: f"{host[0][0]}-{host[1]}")
def host(request, tmp_path):
    return Host(tmp_path / "host", *request.param)


@pytest.fixture
def release(tmp_path):
    release = Release(tmp_path / "release")
    yield release
    release.server.shutdown()
    release.server.server_close()


def test_installs_upgrades_and_goes(host, release):
    done = host.install("--url", release.url)
    assert done.returncode == 0, done.stderr
    assert "no public key" in done.stderr
    assert host.binary.stat().st_mode & 0o777 == 0o755
    assert subprocess.run([host.binary, "version"], capture_output=True, text=True).stdout.startswith("backupy 9.9.9")
    release.publish({NAME.replace("9.9.9", "9.10.0"): program("9.10.0")})
    done = host.install("--public-key", release.public, BACKUPY_INSTALL_URL=release.url + "/")
    assert done.returncode == 0, done.stderr
    assert "9.10.0" in done.stdout and "before: backupy 9.9.9" in done.stdout
    assert host.binary.read_bytes() == program("9.10.0")
    host.leaves_nothing()
    done = host.install("--uninstall")
    assert done.returncode == 0 and "master key" in done.stdout
    assert not host.binary.exists()
    assert host.install("--uninstall").returncode == 0


def test_from_a_directory(host, release):
    release.sign(base64=False)
    done = host.install("--from", release.directory, "--public-key", release.public)
    assert done.returncode == 0, done.stderr
    assert host.binary.read_bytes() == program("9.9.9")


def test_refuses_what_is_not_what_it_should_be(host, release):
    assert host.install("--url", release.url).returncode == 0
    url, key = ("--url", release.url), ("--public-key", release.public)
    signed = (release.directory / "SHA256SUMS.sig").read_bytes()

    release.server.cut = {NAME}
    # curl and wget notice by themselves, some downloaders do not.
    host.refuses(*url, *key, saying=NAME)
    release.server.cut = {"SHA256SUMS"}
    host.refuses(*url, *key, saying="SHA256SUMS")
    release.server.cut = set()

    (release.directory / NAME).write_bytes(program("9.9.9").replace(b"exit 0", b"exit 1"))
    host.refuses(*url, saying="is not what SHA256SUMS says")
    # Checksums that fit the tampered binary, under the old signature.
    release.publish({NAME: program("6.6.6")})
    (release.directory / "SHA256SUMS.sig").write_bytes(signed)
    host.refuses(*url, *key, saying="not signed with that key")
    (release.directory / "SHA256SUMS.sig").write_bytes(b"")
    host.refuses(*url, *key, saying="not signed with that key")
    (release.directory / "SHA256SUMS.sig").unlink()
    host.refuses(*url, *key, saying="failed to get SHA256SUMS.sig")
    host.refuses(*url, "--public-key", "/nowhere", saying="no public key at /nowhere")

    (release.directory / NAME).unlink()
    host.refuses(*url, saying=f"failed to get {NAME}")
    (release.directory / "SHA256SUMS").unlink()
    host.refuses(*url, saying="failed to get SHA256SUMS")


def test_refuses_another_key(host, release):
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", release.key)
    release.sign()
    host.refuses("--url", release.url, "--public-key", release.public, saying="not signed with that key")


def test_refuses_other_machines(host, release):
    host.refuses("--url", release.url, saying="names no binary for armv6", BACKUPY_INSTALL_ARCH="armv6l")
    host.refuses("--url", release.url, saying="no binary for this machine", BACKUPY_INSTALL_ARCH="mips")
    # A binary under the wrong name is noticed before it takes the place of the one that runs.
    assert host.install("--url", release.url).returncode == 0
    release.publish({NAME: b"\x7fELF\x02\x01\x01" + b"\0" * 100})
    host.refuses("--url", release.url, saying="does not run on this machine")


def test_several_versions(host, release):
    other = NAME.replace("9.9.9", "9.10.0")
    release.publish({NAME: program("9.9.9"), other: program("9.10.0"), "backupy-9.9.9-linux-riscv64": b"x"})
    host.refuses("--url", release.url, saying="several versions")
    assert host.install("--url", release.url, "--version", "9.10.0").returncode == 0
    assert host.binary.read_bytes() == program("9.10.0")
    host.refuses("--url", release.url, "--version", "1.0", saying="no binary of version 1.0")


def test_names_cannot_leave_the_directory(host, release):
    evil = "../../x-linux-" + ARCH
    sums = hashlib.sha256(b"x").hexdigest()
    (release.directory / "SHA256SUMS").write_text(f"{sums}  {evil}\n{sums}  backupy-/../y-linux-{ARCH}\n")
    host.refuses("--url", release.url, saying="names no binary")


def test_command_line(host, release):
    host.refuses(saying="where from?", code=2)
    host.refuses("--url", "http://backups.example.org", saying="must be https", code=2)
    host.refuses("--url", "http://localhost.example.org", saying="must be https", code=2)
    host.refuses("--url", "ftp://localhost/", saying="must be https", code=2)
    host.refuses("--from", release.directory, "--url", release.url, saying="exclude each other", code=2)
    host.refuses("--url", saying="needs a value", code=2)
    host.refuses("--frm", saying="what is --frm?", code=2)
    assert "usage" in host.install("--help").stdout


def test_a_wget_that_trusts_everybody(tmp_path):
    host = Host(tmp_path / "host", ["busybox", "ash"], "busybox")
    host.refuses("--url", "https://127.0.0.1:9", saying="does not check whose server it is")
    host.refuses("--url", "https://127.0.0.1:9", "--public-key", SCRIPT, saying="failed to get SHA256SUMS")


def test_a_place_that_cannot_be_written(host, release):
    host.prefix.parent.mkdir(exist_ok=True)
    host.prefix.write_text("a file, not a directory")
    done = host.install("--url", release.url)
    assert done.returncode == 1 and "as root, or give --prefix" in done.stderr
    assert host.prefix.read_text() == "a file, not a directory"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_without_permission(host, release):
    assert host.install("--url", release.url).returncode == 0
    for path in [host.directory, *host.directory.parents]:
        if path.stat().st_uid == 0 and path != pathlib.Path("/") and "pytest" in str(path):
            path.chmod(path.stat().st_mode | 0o055)
    writable = host.directory / "tmp"
    writable.mkdir(mode=0o777)
    writable.chmod(0o777)
    shell = started(host.shell)
    for words in (["--url", release.url], ["--uninstall"]):
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *shell, SCRIPT, "--prefix", host.prefix, *words],
            capture_output=True, text=True, timeout=120,
            env={"PATH": f"{host.tools}", "TMPDIR": str(writable)},
            executable=shutil.which("setpriv"),
        )
        assert done.returncode == 1 and "as root" in done.stderr, done.stderr
        assert host.binary.read_bytes() == program("9.9.9")


def test_a_script_that_was_cut_does_nothing(host, release, tmp_path):
    text = SCRIPT.read_bytes()
    for end in range(len(text) // 10, len(text) - 12, len(text) // 10):
        cut = tmp_path / "cut.sh"
        cut.write_bytes(text[:end])
        shell = started(host.shell)
        subprocess.run(
            [*shell, cut, "--url", release.url, "--prefix", host.prefix],
            capture_output=True, timeout=60, env={"PATH": str(host.tools), "TMPDIR": str(host.directory)},
        )
        assert not host.prefix.exists()
