"""`backupy up`: one process, one file, from the schedule to the restore."""

import json
import os
import pathlib
import shutil
import signal
import sqlite3
import subprocess
import threading
import time

import pytest

from plane import agent as agents
from plane import databases
from plane.agent import wait_until

OK, FAILED, USAGE, STATE, BUSY, NOT_RUNNING = 0, 1, 2, 3, 4, 5


class Host:
    """A machine with databases, a file for `up`, and the process."""

    def __init__(self, lab):
        self.lab = lab
        self.directory = lab.directory / "host"
        self.directory.mkdir()
        self.storage = self.directory / "storage"
        self.storage.mkdir()
        self.state = self.directory / "state"
        self.file = self.directory / "backupy.toml"
        self.agent = agents.Agent(self.directory, BACKUPY_STATE_DIR=None, BACKUPY_LOG_LEVEL="debug")
        lab.agents.append(self.agent)
        self.database = self.directory / "app.db"
        self.digest = databases.make_sqlite(self.database)

    def write(self, *backups, top="", storage=None):
        """The file of `up`."""
        text = f'state_dir = "{self.state}"\n{top}\n[storage]\ndirectory = "{storage or self.storage}"\n'
        for backup in backups or (self.app(),):
            text += "\n[[backup]]\n" + "\n".join(f"{k} = {v}" for k, v in backup.items()) + "\n"
        self.file.write_text(text)

    def app(self, name="app", **more):
        """One backup of the SQLite file."""
        return {
            "name": f'"{name}"',
            "database": f'"sqlite://{self.database}"',
            "every": '"6h"',
            "keep": "{ last = 3 }",
            **more,
        }

    def up(self, *arguments, healthy=True):
        """Starts `up` and waits until it is healthy."""
        log = open(self.agent.log_path, "ab")
        self.agent.process = subprocess.Popen(
            [*agents.COMMAND, "up", *(arguments or ("--config", self.file))],
            env=agents.clean_environment(**self.agent.env),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory,
        )
        log.close()
        if healthy:
            wait_until(lambda: self.command("health-check", config=False).returncode == OK, 20, "a healthy `up`")

    def command(self, *arguments, config=True, timeout=60):
        """A subcommand for this file or state directory."""
        place = ("--config", self.file) if config else ("--state-dir", self.state)
        return self.agent.command(*map(str, arguments), *map(str, place), timeout=timeout)

    def ok(self, *arguments, **options):
        """A subcommand that must succeed; its output."""
        done = self.command(*arguments, **options)
        assert done.returncode == OK, (arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def runs(self, *arguments):
        """`runs --json`, newest first."""
        return [json.loads(line) for line in self.ok("runs", *arguments, "--json").splitlines()]

    def stop(self):
        """SIGTERM."""
        assert self.agent.stop() == OK

    def artifacts(self):
        """The stored objects and their manifests."""
        return sorted(p for p in self.storage.rglob("*") if p.is_file() and not p.name.startswith("."))

    def restored(self, what, name="restored.db"):
        """The digest after `restore`."""
        path = self.directory / name
        path.unlink(missing_ok=True)
        self.ok("restore", what, "--to", path)
        return databases.sqlite_digest(path)


@pytest.fixture
def host(lab):
    return Host(lab)


def test_backup_and_restore(host):
    host.write()
    host.up()
    # The first start makes up for never having run; one more by hand.
    host.ok("backup", "app")
    runs = host.runs("app")
    assert runs[0]["state"] == "ok" and runs[0]["backup"] == "app" and runs[0]["sha256"]
    assert host.restored("app") == host.digest
    assert host.restored(runs[0]["run_id"]) == host.digest
    host.ok("verify", runs[0]["run_id"])
    table = host.ok("runs")
    assert "app" in table and "ok" in table
    host.stop()
    assert host.restored("app") == host.digest, "without a running process, too"
    assert host.runs("app")[0]["run_id"] == runs[0]["run_id"]
    host.ok("verify", runs[0]["run_id"])
    for path in host.artifacts():
        data = path.read_bytes()
        assert b"SQLite format 3" not in data and b"title 1" not in data


def test_flags_only(host):
    shutil.rmtree(host.storage)
    host.storage.mkdir()
    host.up(
        "--database", f"sqlite://{host.database}", "--to", host.storage, "--every", "6h",
        "--state-dir", host.state,
    )
    [run, *_] = wait_until(
        lambda: [
            r
            for r in map(json.loads, host.ok("runs", "--json", config=False).splitlines())
            if r["state"] == "ok"
        ],
        20,
        "a first run without being asked",
    )
    target = host.directory / "r.db"
    host.ok("restore", run["run_id"], "--to", target, config=False)
    assert databases.sqlite_digest(target) == host.digest


def test_postgres(host, postgres):
    name = f"up_{time.time_ns()}"
    postgres.fill(name)
    secret = host.directory / "password"
    secret.write_text(postgres.password + "\n")
    secret.chmod(0o600)
    host.write(
        {
            "name": '"shop"',
            "database": f'"postgres://{postgres.superuser}@127.0.0.1:{postgres.port}/{name}"',
            "password": f'"file:{secret}"',
            "cron": '"0 3 * * *"',
            "keep": "{ last = 3 }",
        }
    )
    host.up()
    with agents.Watcher(host.agent, [postgres.password]) as watcher:
        host.ok("backup", "shop")
    assert not watcher.found and "pg_dump" in watcher.seen
    run = host.runs("shop")[0]
    host.ok("verify", run["run_id"], timeout=120)
    dump = host.directory / "shop.dump"
    host.ok("restore", "shop", "--to", dump)
    postgres.restore(dump.read_bytes(), name + "_copy")
    assert postgres.content(name + "_copy") == postgres.content(name)
    assert not agents.find_secrets(host.state, [postgres.password])
    assert not agents.find_secrets(host.storage, [postgres.password])
    assert postgres.password not in host.agent.log


def test_every_mistake_at_once_with_its_line(host):
    host.file.write_text(
        'state_dir = "relative"\n'
        "[storage]\n"
        'directory = "also/relative"\n'
        "[[backup]]\n"
        'name = "a"\n'
        'database = "sqlite:///x.db"\n'
        'cron = "61 * * * *"\n'
        "[[backup]]\n"
        'name = "a"\n'
        'databse = "sqlite:///x.db"\n'
        'every = "often"\n'
    )
    host.up(healthy=False)
    assert host.agent.wait_exit(10) == USAGE
    log = host.agent.log
    for line in (1, 3, 7, 9, 10, 11):
        assert f":{line}:" in log or f"line {line}" in log, (line, log)
    assert not (host.directory / "relative").exists()


def test_kill_in_the_middle(host):
    with sqlite3.connect(host.database) as db:
        db.execute("CREATE TABLE bulk AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 150) SELECT randomblob(1000000) AS data FROM n")
    db.close()
    host.digest = databases.sqlite_digest(host.database)
    host.write(host.app(compression='"none"'))
    host.up()
    for number in range(4):
        host.command("backup", "app", "--no-wait")
        time.sleep(0.15 * number)
        host.agent.kill()
        host.up()
    wait_until(lambda: all(r["state"] in ("ok", "failed", "cancelled") for r in host.runs("app")), 60, "the end of all runs")
    runs = host.runs("app")
    assert runs and all(r["state"] == "ok" for r in runs), runs
    assert len({r["run_id"] for r in runs}) == len(runs)
    assert host.restored("app") == host.digest
    # Every run that is told of has its artifact; nothing half-written is left.
    wait_until(lambda: len(host.artifacts()) == 2 * min(len(runs), 3), 10, f"two files per run: {host.artifacts()}")


def test_unmounted_storage(host):
    host.write()
    host.up()
    host.ok("backup", "app")
    [marker] = [p for p in host.storage.iterdir() if p.name.startswith(".") and p.is_file()]
    marker.rename(host.directory / "marker")
    before = host.artifacts()
    done = host.command("backup", "app")
    assert done.returncode == FAILED
    assert str(host.storage) in done.stderr + done.stdout
    assert host.artifacts() == before
    assert host.command("status", config=False).returncode == FAILED
    (host.directory / "marker").rename(marker)
    host.ok("backup", "app")


def test_master_key_is_made_once(host):
    host.write()
    host.up()
    host.ok("backup", "app")
    host.stop()
    key = host.state / "master.key"
    assert key.stat().st_mode & 0o777 == 0o600
    saved = key.read_bytes()
    key.unlink()
    host.up(healthy=False)
    assert host.agent.wait_exit(10) in (STATE, USAGE)
    assert "key" in host.agent.log and not key.exists(), "no new key over old backups"
    key.write_bytes(saved)
    key.chmod(0o600)
    host.up()
    assert host.restored("app") == host.digest


def test_master_key_inside_the_storage(host):
    host.write()
    host.file.write_text(host.file.read_text().replace("[[backup]]", f'[keys]\nmaster = "{host.storage}/k"\n\n[[backup]]'))
    host.up(healthy=False)
    assert host.agent.wait_exit(10) in (USAGE, STATE)
    assert not (host.storage / "k").exists()


def test_key_export_import_and_a_new_machine(host):
    host.write()
    host.up()
    host.ok("backup", "app")
    status = host.command("status", config=False)
    assert "key export" in status.stdout + status.stderr
    exported = host.directory / "exported"
    host.ok("key", "export", "--out", exported, "--confirm")
    assert exported.stat().st_mode & 0o077 == 0
    status = host.command("status", config=False)
    assert "key export" not in status.stdout + status.stderr, status.stdout
    first = host.runs("app")[0]["run_id"]
    host.stop()
    # The machine is gone: storage and the exported key are all there is. They are enough as they are …
    out = host.directory / "elsewhere.db"
    elsewhere = host.directory / "elsewhere"
    elsewhere.mkdir()
    place = ("--storage", str(host.storage), "--master-key", str(exported), "--scratch", str(elsewhere))
    done = host.agent.command("restore", "app", "--to", str(out), *place)
    assert done.returncode == OK, done.stderr
    assert databases.sqlite_digest(out) == host.digest
    assert host.agent.command("verify", first, *place).returncode == OK
    # … and to go on with.
    shutil.rmtree(host.state)
    host.state = host.directory / "state2"
    host.write()
    host.ok("key", "import", "--in", exported)
    host.ok("runs", "--rebuild")
    assert first in {r["run_id"] for r in host.runs("app")}
    assert host.restored("app") == host.digest
    host.up()
    assert host.restored("app") == host.digest
    host.ok("backup", "app")


def test_key_rotation(host):
    host.write()
    host.up()
    host.ok("backup", "app")
    first = host.runs("app")[0]["run_id"]
    rotated = host.command("key", "rotate")
    if rotated.returncode != OK:
        host.stop()
        host.ok("key", "rotate")
        host.up()
    host.ok("backup", "app")
    assert host.restored(first) == host.digest
    assert host.restored("app") == host.digest
    assert host.runs("app")[0]["run_id"] != first


@pytest.mark.parametrize("what", ["artifact", "manifest", "manifest-field", "artifact-missing"])
def test_damage_in_the_storage(host, what):
    host.write()
    host.up()
    host.ok("backup", "app")
    run = host.runs("app")[0]
    [manifest] = [p for p in host.artifacts() if p.name.endswith(".json") and run["run_id"] in p.read_text()]
    artifact = pathlib.Path(str(manifest).removesuffix(".json"))
    assert artifact.exists()
    if what == "artifact":
        data = bytearray(artifact.read_bytes())
        data[len(data) // 2] ^= 1
        artifact.write_bytes(data)
    elif what == "artifact-missing":
        artifact.unlink()
    elif what == "manifest":
        manifest.write_text("{}")
    else:
        text = manifest.read_text()
        assert "zstd" in text
        manifest.write_text(text.replace("zstd", "gzip"))
    out = host.directory / "x.db"
    restore = host.command("restore", run["run_id"], "--to", out)
    assert restore.returncode == FAILED and restore.stderr.strip()
    assert not out.exists()
    assert host.command("verify", run["run_id"]).returncode == FAILED


def test_keep(host):
    host.write(host.app(keep="{ last = 2 }"))
    host.up()
    for _ in range(4):
        host.ok("backup", "app")
    wait_until(lambda: len(host.artifacts()) == 4, 10, f"two artifacts and manifests: {host.artifacts()}")
    assert host.restored("app") == host.digest


def test_a_failure_is_loud(host):
    told = host.directory / "told"
    host.write(
        host.app(),
        {**host.app("gone"), "database": f'"sqlite://{host.directory}/gone.db"', "retry": "{ attempts = 1 }"},
        top=f'on_failure = "env | grep BACKUPY_ >> {told}; echo called >> {told}"',
    )
    host.up()
    done = host.command("backup", "gone")
    assert done.returncode == FAILED and "gone.db" in done.stderr + done.stdout
    wait_until(lambda: told.exists() and "called" in told.read_text(), 10, "on_failure")
    status = host.command("status", config=False)
    assert status.returncode == FAILED and "gone" in status.stdout
    assert host.command("health-check", config=False).returncode == OK
    host.ok("backup", "app")
    assert "gone" in host.agent.log


def test_schedule(host):
    host.write(host.app(every='"1m"', keep="{ last = 50 }"))
    host.up()
    wait_until(lambda: len([r for r in host.runs("app") if r["state"] == "ok"]) >= 2, 130, "two scheduled runs")
    runs = [r for r in host.runs("app") if r["state"] == "ok"]
    assert not runs[0]["manual"]
    assert 50_000 < runs[0]["created_ms"] - runs[1]["created_ms"] < 75_000


def test_sighup(host):
    host.write()
    host.up()
    host.ok("backup", "app")
    pid = host.agent.pid
    second = host.directory / "second.db"
    databases.make_sqlite(second, 10)
    good = host.app(), {**host.app("second"), "database": f'"sqlite://{second}"'}
    host.write(*good)
    host.agent.process.send_signal(signal.SIGHUP)
    wait_until(lambda: host.command("backup", "second").returncode == OK, 15, "the new backup")
    host.file.write_text(host.file.read_text() + "\nnonsense = 1\n")
    host.agent.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "nonsense" in host.agent.log, 10, "a complaint")
    assert host.agent.running and host.agent.pid == pid
    host.write(*good)
    host.ok("backup", "app")


def test_second_process(host):
    host.write()
    host.up()
    second = host.agent.command("up", "--config", str(host.file), timeout=15)
    assert second.returncode == BUSY and str(host.agent.pid) in second.stderr
    host.ok("backup", "app")


def test_manual_backup_of_nothing(host):
    host.write()
    host.up()
    done = host.command("backup", "nobody")
    assert done.returncode in (FAILED, USAGE) and "nobody" in done.stderr
    assert host.command("restore", "nobody", "--to", host.directory / "x").returncode in (FAILED, USAGE)
    assert host.command("verify", "nobody").returncode in (FAILED, USAGE)
    host.stop()
    assert host.command("backup", "app").returncode == NOT_RUNNING


def test_restore_does_not_overwrite(host):
    host.write()
    host.up()
    host.ok("backup", "app")
    done = host.command("restore", "app", "--to", host.database)
    assert done.returncode != OK
    assert databases.sqlite_digest(host.database) == host.digest


def test_backup_while_writing(host):
    host.write()
    host.up()
    stop = threading.Event()

    def write():
        db = sqlite3.connect(host.database, timeout=30)
        while not stop.is_set():
            with db:
                db.execute("INSERT INTO note (title, body) VALUES ('w', randomblob(500))")
        db.close()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(3):
            host.ok("backup", "app")
    finally:
        stop.set()
        thread.join()
    host.ok("verify", host.runs("app")[0]["run_id"])


@pytest.mark.timeout(180)
def test_idle_cost_of_up(host):
    host.write()
    host.up()
    host.ok("backup", "app")
    host.stop()
    host.up()
    time.sleep(5)
    before = host.agent.context_switches()
    time.sleep(40)
    switches = (host.agent.context_switches() - before) / 40
    print(f"up: RSS {host.agent.memory() / 2**20:.1f} MiB, {switches:.2f} switches/s")
    assert switches < 2
    if "release" in agents.COMMAND[-1]:
        assert host.agent.memory() < 16 * 2**20


def test_nothing_secret_is_left(host):
    host.write()
    host.up()
    host.ok("backup", "app")
    log = host.agent.log
    assert "bkpy_" not in log.replace("bkpy_***", ""), "the loopback's generated key"
    assert "?" not in "".join(line for line in log.splitlines() if "http://" in line)
    for path in host.artifacts():
        assert path.stat().st_mode & 0o007 == 0
    assert os.stat(host.state).st_mode & 0o077 == 0


def test_tables_of_modules_that_only_the_application_has(lab):
    """Full-text and R*Tree tables are copied page by page; our SQLite needs no such modules for that."""
    host = Host(lab)
    with sqlite3.connect(host.database) as db:
        db.executescript(
            """
            CREATE VIRTUAL TABLE five USING fts5(title, body);
            CREATE VIRTUAL TABLE four USING fts4(title);
            CREATE VIRTUAL TABLE places USING rtree(id, x0, x1);
            CREATE TRIGGER follow AFTER INSERT ON note BEGIN
                INSERT INTO five VALUES (new.title, 'by a trigger');
            END;
            INSERT INTO note (title) VALUES ('an albatross');
            INSERT INTO four VALUES ('a booby');
            INSERT INTO places VALUES (1, 2.0, 3.0);
            ANALYZE;
            """
        )
    db.close()
    digest = databases.sqlite_digest(host.database)
    host.write()
    host.up()
    host.ok("backup", "app")
    run = host.runs()[0]
    warnings = [line for line in host.agent.log.splitlines() if "WARN" in line and "run " in line]
    assert not warnings, "nothing about it is worth a warning"
    assert host.restored(run["run_id"]) == digest
    said = host.ok("verify", run["run_id"])
    assert "note: 2001 rows" in said, said
    copy = sqlite3.connect(host.directory / "restored.db")
    assert copy.execute("SELECT title FROM five WHERE five MATCH 'albatross'").fetchall() == [("an albatross",)]
    assert copy.execute("SELECT id FROM places WHERE x0 > 1").fetchall() == [(1,)]
    copy.close()
    host.stop()
