"""The systemd units: well-formed, tight, and at work under a real systemd (slow) or with the same rights without one."""

import json
import os
import pathlib
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time

import pytest

from plane import agent as agents
from plane import databases, updates
from plane.agent import wait_until

PACKAGING = pathlib.Path(__file__).parents[2] / "packaging" / "systemd"
UNITS = ["backupy", "backupy-agent"]
DROP_INS = [None, *sorted(path.stem for path in (PACKAGING / "examples").glob("*.conf"))]
# Tenths, as systemd-analyze wants them. Root is more exposed by that alone.
THRESHOLD = {"as-root": 22}


def analyze(directory, *arguments):
    """systemd-analyze with nothing but the units of that directory."""
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{directory}:", "SYSTEMD_COLORS": "0"},
    )


def place(directory, unit, drop_in):
    """Unit and drop-in as they would be installed, with a program that exists."""
    text = (PACKAGING / f"{unit}.service").read_text()
    assert "/usr/local/bin/backupy" in text
    program = shutil.which("true")
    (directory / f"{unit}.service").write_text(text.replace("/usr/local/bin/backupy", program))
    if drop_in:
        beside = directory / f"{unit}.service.d"
        beside.mkdir()
        shutil.copy(PACKAGING / "examples" / f"{drop_in}.conf", beside)


@pytest.mark.parametrize("drop_in", DROP_INS)
@pytest.mark.parametrize("unit", UNITS)
def test_well_formed_and_tight(tmp_path, unit, drop_in):
    if shutil.which("systemd-analyze") is None:
        pytest.fail("no systemd-analyze: install systemd")
    place(tmp_path, unit, drop_in)
    verified = analyze(tmp_path, "verify", f"{unit}.service")
    said = [line for line in (verified.stdout + verified.stderr).splitlines() if unit in line or str(tmp_path) in line]
    assert verified.returncode == 0 and not said, said
    threshold = THRESHOLD.get(drop_in, 20)
    judged = analyze(
        tmp_path, "security", "--offline=yes", f"--threshold={threshold}", "--no-pager", f"{unit}.service"
    )
    assert judged.returncode == 0, judged.stdout[-3000:]
    assert "Overall exposure level" in judged.stdout
    loose = analyze(tmp_path, "security", "--offline=yes", "--threshold=1", "--no-pager", f"{unit}.service")
    assert loose.returncode != 0, "the threshold means something"


def settings_of(unit):
    """The unit's lines as a dictionary; the last of each name."""
    lines = (PACKAGING / f"{unit}.service").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_both_units_are_locked_down_alike():
    def sandbox(unit):
        text = (PACKAGING / f"{unit}.service").read_text()
        return text[text.index("User=backupy"):]

    assert sandbox("backupy") == sandbox("backupy-agent")


def confined(directory, *command):
    """A command with the user and the rights that the unit gives it, without systemd."""
    unit = settings_of("backupy")
    assert unit["AmbientCapabilities"] == unit["CapabilityBoundingSet"] == "CAP_DAC_READ_SEARCH"
    assert unit["SecureBits"] == "no-setuid-fixup"
    return [
        "setpriv", "--securebits=+no_setuid_fixup", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs",
        "--bounding-set=-all,+dac_read_search", "--inh-caps=-all,+dac_read_search",
        "--ambient-caps=-all,+dac_read_search", *map(str, command),
    ]


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
@pytest.mark.parametrize("busy", [True, False], ids=["in-use", "at-rest"])
def test_databases_of_other_users_with_the_units_rights(tmp_path, mode, busy):
    if os.getuid() != 0:
        pytest.skip("needs root to become two other users")
    if not os.path.exists("/proc/self/status") or shutil.which("setpriv") is None:
        pytest.fail("no setpriv: install util-linux")
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:3]:
        if parent != pathlib.Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    own = tmp_path / "agent"
    (own / "storage").mkdir(parents=True)
    program = tmp_path / "backupy"
    shutil.copy(agents.COMMAND[0], program)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    database = home / "app.db"
    holder = sqlite3.connect(database)
    holder.execute(f"PRAGMA journal_mode = {mode}")
    holder.execute("CREATE TABLE t(a)")
    holder.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(500)])
    holder.commit()
    if not busy:
        holder.close()
    for path in [home, *home.iterdir()]:
        os.chown(path, 12345, 12345)
        path.chmod(0o700 if path == home else 0o600)
    before = {path.name: (path.stat().st_uid, path.stat().st_mode) for path in home.iterdir()}
    file = own / "backupy.toml"
    file.write_text(
        f'state_dir = "{own}/state"\n[storage]\ndirectory = "{own}/storage"\n'
        f'[[backup]]\nname = "app"\ndatabase = "sqlite://{database}"\nevery = "6h"\n'
    )
    subprocess.run(["chown", "-R", "65534:65534", own], check=True)
    log = open(tmp_path / "log", "wb")
    up = subprocess.Popen(
        confined(tmp_path, program, "up", "--config", file),
        env=agents.clean_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
    )
    try:
        stored = wait_until(lambda: list((own / "storage").rglob("*.json")), 30, "a backup")
        assert stored
    finally:
        up.terminate()
        up.wait(20)
        log.close()
        said = (tmp_path / "log").read_text()
        if busy:
            holder.execute("INSERT INTO t VALUES (1)")
            holder.commit()
            holder.close()
    assert "completed" in said, said
    after = {path.name: (path.stat().st_uid, path.stat().st_mode) for path in home.iterdir()}
    if not busy:
        assert after == before, "nothing was made beside it"
    else:
        assert after["app.db"] == before["app.db"]
        assert set(after) == {"app.db"}, "the application could tidy up"
    restored = own / "restored.db"
    subprocess.run(
        [program, "restore", "app", "--to", restored, "--config", file],
        check=True, env=agents.clean_environment(), capture_output=True, timeout=60,
    )
    rows = sqlite3.connect(restored).execute("SELECT count(*) FROM t").fetchone()
    assert rows == (500,)


# --- a machine with systemd as its first process

CONTAINERS = """[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


class Machine:
    """A booted Debian in a container."""

    def __init__(self, directory):
        self.directory = directory
        self.root = directory / "root"
        self.name = f"backupy-units-{os.getpid()}"
        (directory / "containers.conf").write_text(CONTAINERS)
        subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=systemd,systemd-sysv", "bookworm", self.root],
            check=True, capture_output=True, timeout=900,
        )

    def podman(self, *arguments, check=True, timeout=120):
        """podman with everything of its own below our directory."""
        done = subprocess.run(
            ["podman", f"--root={self.directory}/graph", f"--runroot={self.directory}/run", "--storage-driver=vfs",
             f"--runtime={shutil.which('runc')}", *map(str, arguments)],
            env={**os.environ, "CONTAINERS_CONF": str(self.directory / "containers.conf")},
            capture_output=True, text=True, timeout=timeout,
        )
        assert not check or done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    def boot(self):
        """Starts it and waits until it is up."""
        self.podman(
            "run", "-d", f"--name={self.name}", "--systemd=always", "--network=none",
            "--cap-add=SYS_ADMIN,DAC_READ_SEARCH", "--security-opt=seccomp=unconfined",
            "--security-opt=apparmor=unconfined", "--rootfs", self.root, "/sbin/init",
        )
        wait_until(lambda: "running" in self.run("systemctl", "is-system-running", check=False), 60, "a boot")

    def run(self, *arguments, **options):
        """A command inside; its output."""
        return self.podman("exec", self.name, *arguments, **options)

    def show(self, what, unit="backupy"):
        """A property of the service."""
        return self.run("systemctl", "show", "-p", what, "--value", unit).strip()

    def close(self):
        """Ends it and its files."""
        self.podman("rm", "-f", "-t", "3", self.name, check=False)


@pytest.fixture
def machine():
    if os.getuid() != 0:
        pytest.skip("needs root to boot a container")
    for program in ("debootstrap", "podman", "runc"):
        if shutil.which(program) is None:
            pytest.fail(f"no {program}: install it")
    # podman wants a short path.
    with tempfile.TemporaryDirectory(prefix="bky-", ignore_cleanup_errors=True) as directory:
        machine = Machine(pathlib.Path(directory))
        yield machine
        machine.close()


@pytest.mark.slow
def test_under_systemd(machine):
    root = machine.root
    shutil.copy(agents.COMMAND[0], root / "usr/local/bin/backupy")
    shutil.copy(PACKAGING / "backupy.service", root / "etc/systemd/system")
    shutil.copy(PACKAGING / "sysusers.d/backupy.conf", root / "usr/lib/sysusers.d")
    beside = root / "etc/systemd/system/backupy.service.d"
    beside.mkdir()
    shutil.copy(PACKAGING / "examples/storage.conf", beside)
    (beside / "fast.conf").write_text(
        "[Service]\nWatchdogSec=6\nRestartSec=1\n"
        "Environment=BACKUPY_UPDATE_PUBLIC_KEY=/etc/backupy/update.pem BACKUPY_UPDATE_CONFIRM_TIMEOUT=20s\n"
    )
    (root / "etc/backupy").mkdir()
    signer = updates.Signer()
    (root / "etc/backupy/update.pem").write_text(signer.pem)
    (root / "etc/backupy/backupy.toml").write_text(
        '[storage]\ndirectory = "/srv/backups"\n[[backup]]\nname = "app"\n'
        'database = "sqlite:///home/app/app.db"\nevery = "6h"\n'
        '[[backup]]\nname = "slow"\ndatabase = "sqlite:///home/app/app.db"\ncron = "0 3 1 1 *"\n'
        'pre_hooks = ["exec sleep 12"]\n'
    )
    home = root / "home/app"
    home.mkdir(mode=0o700)
    # An application outside of the service holds the database open, as its own user's.
    holder = sqlite3.connect(home / "app.db")
    holder.execute("PRAGMA journal_mode = WAL")
    holder.execute("CREATE TABLE t(a)")
    holder.execute("INSERT INTO t VALUES (1)")
    holder.commit()
    for path in [home, *home.iterdir()]:
        os.chown(path, 12345, 12345)
    machine.boot()
    machine.run("systemd-sysusers")
    machine.run("install", "-d", "-o", "backupy", "-g", "backupy", "-m", "0700", "/srv/backups")
    machine.run("systemctl", "start", "backupy")
    # Type=notify: whoever waited for the start can use it now.
    assert machine.show("ActiveState") == "active" and machine.show("SubState") == "running"
    wait_until(lambda: list((root / "srv/backups").rglob("*.json")), 30, "a backup")
    wait_until(lambda: machine.show("StatusText") == "connected; no run active", 30, "its status line")
    machine.run("systemctl", "reload", "backupy")
    assert machine.show("ActiveState") == "active"
    assert "was read again" in machine.run("journalctl", "-u", "backupy", "--no-pager")
    # Fed longer than its interval, and no longer once it stands still.
    first = machine.show("MainPID")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        assert machine.show("MainPID") == first and machine.show("NRestarts") == "0"
        threading.Event().wait(1)
    machine.run("sh", "-c", f"kill -STOP {first}")
    wait_until(lambda: machine.show("NRestarts") == "1" and machine.show("SubState") == "running", 60, "a restart")
    journal = machine.run("journalctl", "-u", "backupy", "--no-pager")
    assert "Watchdog timeout" in journal, journal[-2000:]
    holder.execute("INSERT INTO t VALUES (2)")
    holder.commit()
    holder.close()
    machine.run("/usr/local/bin/backupy", "backup", "app")
    # A restart is for the agent to hear of, not for its children: what is under way is resumed, and does not fail.
    machine.run("sh", "-c", "backupy backup slow >/dev/null 2>&1 &")
    wait_until(lambda: "1 run active: slow" in machine.show("StatusText"), 30, "a run")
    machine.run("systemctl", "restart", "backupy")

    def states():
        lines = machine.run("backupy", "runs", "slow", "--json").splitlines()
        return [json.loads(line)["state"] for line in lines]

    wait_until(lambda: states()[0] in ("ok", "failed"), 60, "the run's end")
    assert states() == ["ok"]
    # A version that crashes, one that hangs, and a good one: for systemd it is one service that never stopped.
    before = [machine.show("MainPID"), machine.show("NRestarts")]

    def update(program):
        (root / "opt/new").write_bytes(program)
        (root / "opt/new.sig").write_bytes(signer.sign(program))
        machine.run("env", "BACKUPY_UPDATE_PUBLIC_KEY=/etc/backupy/update.pem", "backupy", "self-update", "/opt/new")

    def status():
        said = machine.run("backupy", "status", "--json", check=False)
        return json.loads(said) if said else {}

    def last():
        return (status().get("dispatch", {}).get("update", {}).get("last") or {}).get("at_ms", 0)

    for act in ("crash", "hang"):
        earlier = last()
        update(updates.stand_in(machine.directory, act))
        wait_until(lambda: last() > earlier, 60, f"the end of a version that does {act}")  # noqa: B023
        assert status()["version"] != updates.NEXT_VERSION
    update(updates.stripped(updates.NEXT, machine.directory))
    wait_until(lambda: status().get("version") == updates.NEXT_VERSION, 60, "the new version")
    wait_until(lambda: machine.show("StatusText") == "connected; no run active", 30, "its status line")
    assert [machine.show("MainPID"), machine.show("NRestarts")] == before
    assert machine.show("ActiveState") == "active" and machine.show("SubState") == "running"
    machine.run("/usr/local/bin/backupy", "backup", "app")
    machine.run("systemctl", "stop", "backupy")
    assert machine.show("Result") == "success" and machine.show("ActiveState") == "inactive"
