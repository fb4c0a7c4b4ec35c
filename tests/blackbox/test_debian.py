"""The Debian package in a chroot of its own: installed, upgraded, removed, purged. Needs root and the files
that scripts/test makes: BACKUPY_DEB, the package, and BACKUPY_CHROOT, a Debian in a tar archive."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

DEB, CHROOT = os.environ.get("BACKUPY_DEB"), os.environ.get("BACKUPY_CHROOT")
UNITS = ["backupy-agent.service", "backupy.service"]

pytestmark = pytest.mark.skipif(
    not (DEB and CHROOT and os.geteuid() == 0), reason="needs root, BACKUPY_DEB and BACKUPY_CHROOT"
)


class Machine:
    """A Debian without a running init, of which this process is the administrator."""

    def __init__(self, root):
        self.root = root
        subprocess.run(["tar", "-xf", CHROOT, "--exclude=./dev/*", "-C", root], check=True)
        (root / "dev/null").write_bytes(b"")
        self.calls = root / "calls"

    def run(self, *words, check=True):
        """Runs a command there; what it said."""
        done = subprocess.run(
            ["chroot", self.root, *words], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def install(self, deb):
        """Installs a package from the outside."""
        shutil.copy(deb, self.root / "tmp/backupy.deb")
        return self.run("dpkg", "--install", "/tmp/backupy.deb")

    def path(self, path):
        """A path there, from here."""
        return self.root / path.lstrip("/")

    def write(self, path, text):
        """A file of the administrator's."""
        self.path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path(path).write_text(text)

    def pretend_systemd(self):
        """From now on systemd seems to run; what it is asked for is written down."""
        self.path("/run/systemd/system").mkdir(parents=True)
        for path in ("/usr/bin/systemctl", "/usr/bin/deb-systemd-invoke"):
            self.path(path).unlink(missing_ok=True)
            self.write(path, f'#!/bin/sh\necho "{path.rpartition("/")[2]} $*" >>/calls\n')
            self.path(path).chmod(0o755)

    def asked(self):
        """What systemd was asked for since the last time."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return [line for line in lines if "daemon-reload" not in line]

    def enabled(self):
        """What would start at boot."""
        return list(self.path("/etc/systemd/system").rglob("*backupy*"))


@pytest.fixture
def machine(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    yield Machine(root)
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """The same package with a version that comes after it."""
    place = tmp_path_factory.mktemp("newer")
    subprocess.run(["dpkg-deb", "-R", DEB, place / "p"], check=True)
    control = place / "p/DEBIAN/control"
    control.write_text(re.sub(r"^Version: (.*)$", r"Version: \1+1", control.read_text(), flags=re.M))
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", place / "p", place / "newer.deb"], check=True)
    return place / "newer.deb"


def test_installs_and_starts_nothing(machine):
    machine.pretend_systemd()
    machine.install(DEB)
    assert machine.run("backupy", "version").startswith("backupy ")
    assert "/nonexistent" not in machine.run("getent", "passwd", "backupy")
    settings = machine.path("/etc/backupy")
    assert settings.stat().st_mode & 0o7777 == 0o750
    assert machine.run("stat", "-c", "%U:%G", "/etc/backupy").strip() == "root:backupy"
    assert machine.asked() == [] and machine.enabled() == []
    for unit in UNITS:
        text = machine.path(f"/usr/lib/systemd/system/{unit}").read_text()
        assert "/usr/bin/backupy " in text and "/usr/local" not in text


def test_the_example_is_inert_and_right(machine):
    machine.install(DEB)
    example = machine.path("/etc/backupy/example.toml")
    text = example.read_text()
    assert all(line.startswith("#") for line in text.splitlines() if line)
    machine.write("/etc/backupy/shop.password", "x\n")
    machine.path("/etc/backupy/shop.password").chmod(0o600)
    machine.path("/var/backups/db").mkdir(parents=True)
    machine.write("/etc/backupy/backupy.toml", re.sub(r"^#(?! )", "", text, flags=re.M))
    said = machine.run("backupy", "up", "--check")
    assert "shop" in said and "app" in said


def test_an_upgrade_keeps_what_people_wrote(machine, newer):
    machine.install(DEB)
    machine.write("/etc/backupy/backupy.toml", "mine")
    machine.write("/etc/backupy/example.toml", "mine, too")
    machine.write("/var/lib/backupy/master.key", "key")
    machine.pretend_systemd()
    machine.install(newer)
    assert "+1" in machine.run("dpkg-query", "-W", "backupy")
    assert machine.path("/etc/backupy/backupy.toml").read_text() == "mine"
    assert machine.path("/etc/backupy/example.toml").read_text() == "mine, too"
    assert machine.path("/var/lib/backupy/master.key").read_text() == "key"
    # Whatever runs goes on with the new program; nothing that did not run is started.
    assert machine.asked() == [f"deb-systemd-invoke try-restart {unit}" for unit in UNITS]


def test_a_purge_takes_settings_but_no_key(machine):
    machine.install(DEB)
    kept = {"/var/lib/backupy/master.key": "key", "/etc/backupy/shop.password": "p", "/var/backups/db/a": "backup"}
    for path, text in {**kept, "/etc/backupy/backupy.toml": "mine"}.items():
        machine.write(path, text)
    machine.pretend_systemd()
    machine.run("dpkg", "--remove", "backupy")
    assert machine.asked() == [f"deb-systemd-invoke stop {unit}" for unit in UNITS]
    assert not machine.path("/usr/bin/backupy").exists()
    assert machine.path("/etc/backupy/backupy.toml").exists() and machine.path("/etc/backupy/example.toml").exists()
    said = machine.run("dpkg", "--purge", "backupy")
    assert "/var/lib/backupy is kept" in said and "/etc/backupy is kept" in said
    assert not machine.path("/etc/backupy/backupy.toml").exists()
    assert not machine.path("/etc/backupy/example.toml").exists()
    for path, text in kept.items():
        assert machine.path(path).read_text() == text


def test_an_unused_package_leaves_nothing(machine):
    def files():
        listed = machine.run("find", "/", "-xdev", "-path", "/tmp", "-prune", "-o", "-path", "/proc", "-prune", "-o", "-print")
        return set(listed.splitlines())

    before = files()
    machine.install(DEB)
    said = machine.run("dpkg", "--purge", "backupy")
    assert "is kept" not in said
    left = files() - before
    # What every package leaves: the user, and the notes and backups of dpkg and of the users' files.
    assert {path for path in left if "backupy" in path} == set(), left


def test_comes_back_after_a_removal(machine):
    machine.install(DEB)
    machine.write("/etc/backupy/backupy.toml", "mine")
    machine.run("dpkg", "--remove", "backupy")
    machine.install(DEB)
    assert machine.path("/etc/backupy/backupy.toml").read_text() == "mine"
    assert machine.run("backupy", "version")
