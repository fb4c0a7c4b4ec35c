"""PostgreSQL, against a real server of the test's own."""

import os
import subprocess
import threading
import time

import pytest

from conftest import config
from plane import artifact, databases, proto
from plane.agent import Watcher, wait_until

KEY = bytes(range(32))


def postgres_target(server, database, target_id="pg", **connection):
    """A target for that server."""
    return {
        "id": target_id,
        "type": proto.POSTGRESQL,
        "display_name": target_id,
        "connection": {
            "host": "127.0.0.1",
            "port": server.port,
            "database": database,
            "username": server.superuser,
            "password_secret_ref": server.password,
            **connection,
        },
    }


@pytest.fixture
def filled(postgres):
    """A fresh database with content; its name has all that hurts in a connection string."""
    name = "shop 'ü\" \\ = " + str(time.time_ns())
    quoted = name.replace('"', '""')
    postgres.sql(f'CREATE DATABASE "{quoted}"')
    postgres.fill_existing(name)
    yield name
    postgres.sql(f'DROP DATABASE IF EXISTS "{quoted}" WITH (FORCE)')


def plane_with(lab, *targets, **job):
    """A plane whose job0… each back up one of the targets."""
    plane = lab.plane()
    jobs = [{"id": f"job{i}", "target_id": t["id"], **job} for i, t in enumerate(targets)]
    plane.config = config(list(targets), jobs)
    return plane


def check_restore(postgres, plane, done, original, key=KEY):
    """The stored dump, loaded into a new database, equals the original."""
    dump = artifact.restore(plane.objects.object(done["s3_key"]), done["compression"], key)
    assert dump[:5] == b"PGDMP"
    name = f"restored{time.time_ns()}"
    postgres.restore(dump, name)
    assert postgres.content(name) == postgres.content(original)
    postgres.sql(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.mark.parametrize("way", ["tcp", "socket"])
def test_comes_back(lab, postgres, filled, way):
    connection = {}
    if way == "socket":
        connection = {"host": str(postgres.socket_dir), "strategy": proto.UNIX_SOCKET}
    plane = plane_with(lab, postgres_target(postgres, filled, **connection))
    lab.secrets.add(postgres.password)
    agent = lab.agent(plane)
    assert "pg_dump" in plane.session().register["capabilities"]
    with Watcher(agent, [postgres.password, plane.key, KEY.hex(), "X-Amz-Signature"]) as watcher:
        plane.run_backup("job0", "r1", key=KEY)
        done = plane.wait_success("r1")
    assert not watcher.found
    assert "pg_dump" in watcher.seen, f"the watcher saw only {watcher.seen}"
    assert done["db_engine_version"].startswith("PostgreSQL ")
    check_restore(postgres, plane, done, filled)


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_compression(lab, postgres, filled, compression):
    plane = plane_with(lab, postgres_target(postgres, filled), compression=compression)
    lab.secrets.add(postgres.password)
    lab.agent(plane)
    plane.run_backup("job0", "r1")
    check_restore(postgres, plane, plane.wait_success("r1"), filled, key=None)


def test_password_references(lab, postgres, filled):
    secrets = lab.directory / "secrets"
    secrets.mkdir()
    for name, mode in (("pg", 0o600), ("open", 0o644)):
        (secrets / name).write_text(postgres.password + "\n")
        (secrets / name).chmod(mode)
    lab.secrets.add(postgres.password)
    plane = plane_with(
        lab,
        postgres_target(postgres, filled, "env", password_secret_ref="env:BACKUPY_SECRET_PG"),
        postgres_target(postgres, filled, "file", password_secret_ref=f"file:{secrets}/pg"),
        postgres_target(postgres, filled, "open", password_secret_ref=f"file:{secrets}/open"),
    )
    agent = lab.agent(plane, BACKUPY_SECRET_PG=postgres.password, BACKUPY_SECRETS_DIR=secrets)
    with Watcher(agent, [postgres.password]) as watcher:
        for number in range(2):
            plane.run_backup(f"job{number}", f"r{number}")
            plane.wait_success(f"r{number}")
    assert not watcher.found
    plane.run_backup("job2", "r2")
    assert f"{secrets}/open" in plane.wait_failure("r2", 10), "a password that everybody can read is refused"
    # The secrets directory is the operator's own; only what the agent wrote is looked at by the lab.


def test_wrong_password(lab, postgres, filled):
    wrong = "wrong'pass\\word\nline"
    plane = plane_with(
        lab,
        postgres_target(postgres, filled, password_secret_ref="wrong-" + "w0rd" * 4),
        postgres_target(postgres, filled, "newline", password_secret_ref=wrong),
        postgres_target(postgres, filled, "none", password_secret_ref=""),
        retry={"max_attempts": 3, "backoff_seconds": [60]},
    )
    lab.secrets |= {"w0rdw0rd", "pass\\word"}
    agent = lab.agent(plane)
    for number in range(3):
        plane.run_backup(f"job{number}", f"r{number}")
        message = plane.wait_failure(f"r{number}", 20)
        assert "password" in message, message
        assert "w0rd" not in message and "pass\\word" not in message
    assert agent.running and not plane.objects.puts


def test_missing_database(lab, postgres):
    plane = plane_with(lab, postgres_target(postgres, "nowhere"))
    lab.secrets.add(postgres.password)
    lab.agent(plane)
    plane.run_backup("job0", "r1")
    assert "nowhere" in plane.wait_failure("r1", 20)


def test_missing_pg_dump(lab, postgres, filled):
    empty = lab.directory / "empty"
    empty.mkdir()
    plane = plane_with(lab, postgres_target(postgres, filled))
    lab.secrets.add(postgres.password)
    # Versioned directories are searched too, so the tool is hidden behind a directory that wins.
    fake = empty / "pg_dump"
    fake.write_text("#!/bin/sh\nexit 127\n")
    fake.chmod(0o755)
    lab.agent(plane, BACKUPY_PG_BIN_DIR=empty, PATH=str(empty))
    plane.run_backup("job0", "r1")
    assert "pg_dump" in plane.wait_failure("r1", 20)


def test_refused_then_retried(lab, postgres):
    """Connection refused can pass: the policy's next attempt finds a listener."""
    port = databases.free_port()
    server_down = postgres_target(postgres, "postgres", port=port)
    plane = plane_with(lab, server_down, retry={"max_attempts": 3, "backoff_seconds": [1, 2]})
    lab.secrets.add(postgres.password)
    lab.agent(plane)
    plane.session()
    began = time.monotonic()
    plane.run_backup("job0", "r1")
    assert plane.wait_failure("r1", 30)
    assert 2.8 < time.monotonic() - began < 12, "three attempts with pauses of 1 s and 2 s"
    queued = [u for u in plane.messages("job_update", run_id="r1") if u["status"] == proto.QUEUED]
    assert len(queued) <= 3

    plane.run_backup("job0", "r2")
    time.sleep(0.5)
    relay = subprocess.Popen(
        ["python3", "-c", RELAY, str(port), str(postgres.port)], stdin=subprocess.DEVNULL
    )
    try:
        plane.wait_success("r2", 30)
    finally:
        relay.kill()
        relay.wait()


RELAY = """
import socket, sys, threading
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
def copy(a, b):
    while data := a.recv(65536):
        b.sendall(data)
    b.shutdown(socket.SHUT_WR)
while True:
    one, _ = listener.accept()
    two = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
    for pair in ((one, two), (two, one)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
"""


class Lock:
    """An exclusive lock on a table, so that pg_dump waits."""

    def __init__(self, postgres, database):
        self.postgres, self.database = postgres, database

    def __enter__(self):
        env = {**os.environ, "PGPASSWORD": self.postgres.password}
        self.process = subprocess.Popen(
            [
                f"{self.postgres.bin}/psql", "-qAtX", "-h", "127.0.0.1", "-p", str(self.postgres.port),
                "-U", self.postgres.superuser, "-d", self.postgres.conninfo(self.database),
            ],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        self.process.stdin.write("BEGIN; LOCK TABLE item IN ACCESS EXCLUSIVE MODE; SELECT 'locked';\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "locked"
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def test_cancel_while_the_tool_hangs(lab, postgres, filled):
    plane = plane_with(lab, postgres_target(postgres, filled))
    lab.secrets.add(postgres.password)
    agent = lab.agent(plane)
    with Lock(postgres, filled):
        plane.run_backup("job0", "r1")
        wait_until(agent.children, 10, "a child")
        time.sleep(0.5)
        began = time.monotonic()
        plane.session().send("cancel_job", {"job_id": "job0"}, "stop")
        kind, _ = plane.wait_terminal("r1", 5)
        assert kind == "cancelled" and time.monotonic() - began < 2
        assert not agent.children(), "its processes are gone, too"


def test_timeout_while_the_tool_hangs(lab, postgres, filled):
    plane = plane_with(lab, postgres_target(postgres, filled), timeout_sec=2)
    lab.secrets.add(postgres.password)
    agent = lab.agent(plane)
    with Lock(postgres, filled):
        plane.run_backup("job0", "r1")
        assert "time" in plane.wait_failure("r1", 8).lower()
        assert not agent.children()


def test_kill_leaves_no_tool_and_no_secret(lab, postgres, filled):
    plane = plane_with(lab, postgres_target(postgres, filled))
    lab.secrets.add(postgres.password)
    agent = lab.agent(plane)
    with Lock(postgres, filled):
        plane.run_backup("job0", "r1", key=KEY)
        [child, *_] = wait_until(agent.children, 10, "a child")
        time.sleep(0.5)
        agent.kill()
    agent.start()
    done = plane.wait_success("r1")
    check_restore(postgres, plane, done, filled)
    wait_until(lambda: not alive(child), 10, "the end of the orphan")


def alive(pid):
    """Whether a process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_server_stops_while_dumping(lab):
    server = databases.Postgres()
    try:
        server.fill("big", 400_000)
        plane = plane_with(lab, postgres_target(server, "big"), compression="none")
        lab.secrets.add(server.password)
        # A slow store holds the dump back, so that it is under way when the server dies.
        plane.objects.bytes_per_sec = 3_000_000
        agent = lab.agent(plane, BACKUPY_SPOOL_MEMORY=1 << 20)
        with Lock(server, "big"):
            plane.run_backup("job0", "r1")
            wait_until(agent.children, 10, "a child")
            time.sleep(1)
            server.stop()
        message = plane.wait_failure("r1", 30)
        assert "PostgreSQL" in message or "pg_dump" in message
        assert not [p for p in plane.objects.puts if p.status == 200], "no half a dump is stored"
    finally:
        server.close()


def test_a_tool_that_lies(lab, postgres, filled):
    """Exit code, start mark: whatever a broken pg_dump does, it is no success."""
    tools = lab.directory / "tools"
    tools.mkdir()
    script = tools / "pg_dump"
    lab.secrets.add(postgres.password)
    plane = plane_with(lab, postgres_target(postgres, filled))
    lab.agent(plane, BACKUPY_PG_BIN_DIR=tools)
    real = f"{postgres.bin}/pg_dump"
    bodies = {
        "no-mark": "echo hello world",
        "empty": "exit 0",
        "half": f"{real} \"$@\" | head -c 2000; exit 1",
        "killed": f"{real} \"$@\" | head -c 2000; kill -9 $$",
    }
    for name, body in bodies.items():
        script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec {real} --version\n{body}\n')
        script.chmod(0o755)
        plane.run_backup("job0", name)
        assert plane.wait_failure(name, 20)
    assert not [p for p in plane.objects.puts if p.status == 200]


@pytest.mark.parametrize("connections", [5])
def test_parallel_runs(lab, postgres, filled, connections):
    plane = plane_with(lab, *[postgres_target(postgres, filled, f"t{i}") for i in range(connections)])
    lab.secrets.add(postgres.password)
    plane.config["advanced"] = {"max_parallel_jobs": connections}
    agent = lab.agent(plane)
    for number in range(connections):
        plane.run_backup(f"job{number}", f"r{number}", key=KEY)
    for number in range(connections):
        check_restore(postgres, plane, plane.wait_success(f"r{number}"), filled)
    assert not agent.children()
    assert threading.active_count() < 200
