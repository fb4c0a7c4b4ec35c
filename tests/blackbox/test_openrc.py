"""The OpenRC scripts, run by OpenRC itself: unpacked into a root of its own, not installed, this machine's init untouched."""

import os
import pathlib
import shutil
import sqlite3
import subprocess

import pytest

from plane import agent as agents
from plane.agent import wait_until

HERE = pathlib.Path(__file__).parent
PACKAGING = HERE.parents[1] / "packaging" / "openrc"
SCRIPTS = sorted(PACKAGING.glob("*.initd"))
CACHE = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parents[1] / "target")).resolve() / "openrc"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_well_formed(script):
    assert len(SCRIPTS) == 2 and os.access(script, os.X_OK)
    subprocess.run(["sh", "-n", script], check=True)
    subprocess.run(["sh", "-n", script.with_suffix(".confd")], check=True)
    if shutil.which("shellcheck") is None:
        pytest.fail("no shellcheck: install it")
    done = subprocess.run(["shellcheck", "-s", "sh", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def openrc():
    """OpenRC's files, downloaded once."""
    if not (CACHE / "x/sbin/openrc-run").exists():
        shutil.rmtree(CACHE, ignore_errors=True)
        CACHE.mkdir(parents=True)
        subprocess.run(
            ["apt-get", "download", "-q", "openrc", "librc1", "libeinfo1"],
            cwd=CACHE, check=True, capture_output=True, timeout=120,
        )
        for package in CACHE.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, CACHE / "x"], check=True)
    return CACHE / "x"


class Box:
    """A root directory where OpenRC lives, over this machine's /usr."""

    MOUNTS = """
set -e
mount --make-rprivate /
cd "$0"
mount --bind -o ro /usr usr
mount -t proc proc proc
mount --bind /dev dev
exec chroot . /usr/bin/env -i PATH=/sbin:/usr/sbin:/usr/bin:/lib/rc/bin "$@"
"""

    def __init__(self, directory):
        self.root = directory / "box"
        shutil.copytree(openrc(), self.root, symlinks=True)
        shutil.rmtree(self.root / "usr")
        shutil.rmtree(self.root / "bin", ignore_errors=True)
        needed = "usr proc dev run/openrc tmp var/lib var/log etc/backupy etc/conf.d srv/backups"
        state = "starting started stopping inactive wasinactive failed hotplugged scheduled exclusive options daemons tmp"
        for name in needed.split() + [f"run/openrc/{name}" for name in state.split()]:
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for name in ("bin", "lib64"):
            (self.root / name).symlink_to(f"usr/{name}")
        (self.root / "var/run").symlink_to("../run")
        # The loader looks in /lib as well; the rest of the libraries come with /usr.
        for library in (self.root / "lib/x86_64-linux-gnu").glob("*.so.*"):
            shutil.move(library, self.root / "lib" / library.name)
        shutil.rmtree(self.root / "lib/x86_64-linux-gnu")
        (self.root / "lib/x86_64-linux-gnu").symlink_to("../usr/lib/x86_64-linux-gnu")
        (self.root / "run/openrc/softlevel").touch()
        (self.root / "etc/passwd").write_text(
            "root:x:0:0::/:/bin/sh\nbackupy:x:64001:64001::/var/lib/backupy:/usr/sbin/nologin\n"
        )
        (self.root / "etc/group").write_text("root:x:0:\nbackupy:x:64001:\n")
        (self.root / "etc/pam.d").mkdir(exist_ok=True)
        (self.root / "etc/pam.d/other").write_text(
            "".join(f"{kind} required pam_permit.so\n" for kind in ("auth", "account", "session", "password"))
        )
        for name in (self.root / "etc/init.d").iterdir():
            name.unlink()
        for name in ("net", "localmount"):
            script = self.root / "etc/init.d" / name
            script.write_text("#!/sbin/openrc-run\nstart() { return 0; }\n")
            script.chmod(0o755)
        for name in ("backupy", "backupy-agent"):
            shutil.copy(PACKAGING / f"{name}.initd", self.root / "etc/init.d" / name)
            shutil.copy(PACKAGING / f"{name}.confd", self.root / "etc/conf.d" / name)
        shutil.copy(agents.COMMAND[0], self.root / "backupy")
        with open(self.root / "etc/conf.d/backupy", "a") as conf:
            conf.write("command=/backupy\nready_sec=30\n")
        os.chmod(self.root, 0o755)

    def run(self, *command, check=True):
        """A command inside; output and errors together."""
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", self.MOUNTS, self.root, *command],
            capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
        )
        said = done.stdout + done.stderr
        assert not check or done.returncode == 0, (command, said, self.log())
        return done.returncode, said

    def service(self, verb, name="backupy", **options):
        """rc-service NAME VERB, without looking at what it needs."""
        return self.run("/sbin/rc-service", "--nodeps", name, verb, **options)

    def log(self):
        """What the service said."""
        path = self.root / "var/log/backupy/backupy.log"
        return path.read_text() if path.exists() else ""

    def pid(self):
        """The pid of `up`, found by its program."""
        for entry in pathlib.Path("/proc").iterdir():
            try:
                program = os.readlink(entry / "exe") if entry.name.isdigit() else ""
            except OSError:
                continue
            if program == str(self.root / "backupy") or (
                program == "/backupy" and os.readlink(entry / "root") == str(self.root)
            ):
                if b"up" in (entry / "cmdline").read_bytes().split(b"\0"):
                    return int(entry.name)
        return None


@pytest.fixture
def box(tmp_path):
    if os.getuid() != 0:
        pytest.skip("needs root for a chroot")
    for parent in [tmp_path, *list(tmp_path.parents)[:3]]:
        if parent != pathlib.Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    box = Box(tmp_path)
    yield box
    box.service("stop", check=False)
    # A start that failed may have left its supervisor, of which OpenRC knows nothing any more.
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "root") == str(box.root):
                os.kill(int(entry.name), 9)
        except OSError:
            pass


def test_start_status_reload_and_stop(box):
    home = box.root / "home"
    home.mkdir()
    holder = sqlite3.connect(home / "app.db")
    holder.execute("PRAGMA journal_mode = WAL")
    holder.execute("CREATE TABLE t(a)")
    holder.commit()
    os.chown(box.root / "srv/backups", 64001, 64001)
    file = box.root / "etc/backupy/backupy.toml"
    file.write_text("[storage]\ndirectory = 7\n")
    code, said = box.service("start", check=False)
    assert code != 0 and "directory" in said, "what is wrong is said where it was started"
    file.write_text(
        '[storage]\ndirectory = "/srv/backups"\n[[backup]]\nname = "app"\n'
        'database = "sqlite:///home/app.db"\nevery = "6h"\n'
    )
    box.service("start")
    pid = box.pid()
    assert pid, "started means that it answers"
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    assert "Uid:\t64001\t64001" in status and "CapEff:\t0000000000000000" in status, status
    wait_until(lambda: list((box.root / "srv/backups").rglob("*.json")), 30, f"a backup: {box.log()}")
    holder.close()
    code, said = box.service("status")
    assert "started" in said
    box.service("reload")
    wait_until(lambda: "was read again" in box.log(), 30, "the reload")
    assert (box.root / "var/lib/backupy").stat().st_mode & 0o777 == 0o700
    # One that dies is started again.
    os.kill(pid, 9)
    wait_until(lambda: box.pid() not in (None, pid), 30, "a restart")
    box.service("stop")
    assert box.pid() is None
    assert box.log().rstrip().endswith("stopped"), box.log()[-500:]


def test_the_agent_without_settings_says_what_is_missing(box):
    code, said = box.service("start", "backupy-agent", check=False)
    assert code != 0 and "server_url is not set" in said
    conf = box.root / "etc/conf.d/backupy-agent"
    conf.write_text(conf.read_text().replace('server_url=""', 'server_url="wss://backups.example"'))
    code, said = box.service("start", "backupy-agent", check=False)
    assert code != 0 and "cannot read /etc/backupy/agent.key" in said
