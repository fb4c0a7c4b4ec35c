"""MySQL and MariaDB, against a real MariaDB server of the test's own."""

import shutil
import subprocess
import time
import urllib.parse

import pytest

from conftest import config
from plane import artifact, mariadb, proto
from plane.agent import Watcher, wait_until
from test_up import FAILED, OK, Host

KEY = bytes(range(32))


@pytest.fixture(scope="module")
def server():
    if shutil.which("mariadbd", path=mariadb.ENV["PATH"]) is None:
        pytest.fail("no MariaDB server: install mariadb-server")
    server = mariadb.MariaDb()
    yield server
    server.close()


@pytest.fixture
def filled(server):
    """A fresh database with content; its name has what hurts in options, files and SQL.

    Quotes and backslashes are not in it: where there are events, mariadb-dump itself cannot dump such a database.
    """
    name = "shop ü = # ; ` -- %s " + str(time.time_ns())
    server.fill(name)
    yield name
    server.sql(f"DROP DATABASE IF EXISTS {server.quoted(name)}")


def target(server, database, target_id="my", **connection):
    """A target for that server."""
    return {
        "id": target_id,
        "type": connection.pop("type", proto.MARIADB),
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


def plane_with(lab, *targets, **job):
    """A plane whose job0… each back up one of the targets."""
    plane = lab.plane()
    jobs = [{"id": f"job{i}", "target_id": t["id"], **job} for i, t in enumerate(targets)]
    plane.config = config(list(targets), jobs)
    return plane


def check_restore(server, plane, done, original, key=KEY):
    """The stored dump, loaded into a new database, equals the original."""
    dump = artifact.restore(plane.objects.object(done["s3_key"]), done["compression"], key)
    assert dump.rstrip().splitlines()[-1].startswith(b"-- Dump completed on ")
    name = f"restored{time.time_ns()}"
    server.restore(dump, name)
    assert server.content(name) == server.content(original)
    server.sql(f"DROP DATABASE {server.quoted(name)}")


@pytest.mark.parametrize("way", ["tcp", "socket", "as-mysql"])
def test_comes_back(lab, server, filled, way):
    connection = {"tcp": {}, "as-mysql": {"type": proto.MYSQL}}.get(way)
    if connection is None:
        connection = {"host": str(server.socket), "port": 0, "strategy": proto.UNIX_SOCKET}
    plane = plane_with(lab, target(server, filled, **connection))
    lab.secrets.add(server.password)
    agent = lab.agent(plane)
    assert "mysqldump" in plane.session().register["capabilities"]
    with Watcher(agent, [server.password, plane.key, KEY.hex(), "X-Amz-Signature"]) as watcher:
        plane.run_backup("job0", "r1", key=KEY)
        done = plane.wait_success("r1")
    assert not watcher.found
    assert {"mariadb-dump", "mysqldump"} & watcher.seen, f"the watcher saw only {watcher.seen}"
    assert done["db_engine_version"].startswith("MariaDB 1"), done
    check_restore(server, plane, done, filled)


def test_all_databases(lab, server, filled):
    plane = plane_with(lab, target(server, ""))
    lab.secrets.add(server.password)
    lab.agent(plane)
    plane.run_backup("job0", "r1", key=KEY)
    done = plane.wait_success("r1")
    dump = artifact.restore(plane.objects.object(done["s3_key"]), done["compression"], KEY)
    other = mariadb.MariaDb()
    try:
        other.client(input=dump, options=("--binary-mode",))
        # With the databases came the users.
        other.password = server.password
        assert other.content(filled) == server.content(filled)
    finally:
        other.close()


def test_password_references(lab, server, filled):
    secrets = lab.directory / "secrets"
    secrets.mkdir()
    (secrets / "db").write_text(server.password + "\n")
    (secrets / "db").chmod(0o600)
    lab.secrets.add(server.password)
    plane = plane_with(
        lab,
        target(server, filled, "env", password_secret_ref="env:BACKUPY_SECRET_DB"),
        target(server, filled, "file", password_secret_ref=f"file:{secrets}/db"),
    )
    agent = lab.agent(plane, BACKUPY_SECRET_DB=server.password, BACKUPY_SECRETS_DIR=secrets)
    with Watcher(agent, [server.password]) as watcher:
        for number in range(2):
            plane.run_backup(f"job{number}", f"r{number}")
            plane.wait_success(f"r{number}")
    assert not watcher.found


def test_what_is_wrong_is_said(lab, server, filled):
    marker = lab.directory / "marker"
    plane = plane_with(
        lab,
        target(server, filled, "wrong", password_secret_ref="wrong-" + "w0rd" * 4),
        target(server, filled, "newline", password_secret_ref="wrong'pass\\word\nuser=root\n"),
        target(server, "nowhere", "missing"),
        target(server, f"--result-file={marker}", "option"),
        target(server, filled, "nobody", port=1),
    )
    lab.secrets |= {server.password, "w0rdw0rd", "pass\\word"}
    agent = lab.agent(plane)
    for number, word in enumerate(["password", "password", "nowhere", "database", "cannot be reached"]):
        plane.run_backup(f"job{number}", f"r{number}")
        message = plane.wait_failure(f"r{number}", 30)
        assert word in message, message
        assert "w0rd" not in message and "pass\\word" not in message
    assert agent.running and not plane.objects.puts and not marker.exists()


class Lock:
    """A lock on a table, so that the dump waits."""

    def __init__(self, server, database):
        self.server, self.database = server, database

    def __enter__(self):
        self.process = subprocess.Popen(
            [
                "mariadb", "--no-defaults", f"--socket={self.server.socket}", f"--user={self.server.superuser}",
                "--batch", "--skip-column-names", "--unbuffered", "--default-character-set=utf8mb4", "--", self.database,
            ],
            env={**mariadb.ENV, "MYSQL_PWD": self.server.password},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        self.process.stdin.write("LOCK TABLES item WRITE; SELECT 'locked';\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "locked"
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def test_cancel_while_the_tool_hangs(lab, server, filled):
    plane = plane_with(lab, target(server, filled))
    lab.secrets.add(server.password)
    agent = lab.agent(plane)
    with Lock(server, filled):
        plane.run_backup("job0", "r1")
        waiting = "SELECT COUNT(*) FROM information_schema.processlist WHERE state LIKE 'Waiting for table%'"
        wait_until(lambda: server.sql(waiting) != "0", 20, "the dump at the lock")
        began = time.monotonic()
        plane.session().send("cancel_job", {"job_id": "job0"}, "stop")
        kind, _ = plane.wait_terminal("r1", 5)
        assert kind == "cancelled" and time.monotonic() - began < 2
        assert not agent.children(), "its processes are gone, too"


def test_server_is_killed_while_dumping(lab):
    server = mariadb.MariaDb()
    try:
        server.fill("big", 400_000)
        plane = plane_with(lab, target(server, "big"), compression="none")
        lab.secrets.add(server.password)
        agent = lab.agent(plane)
        with Lock(server, "big"):
            plane.run_backup("job0", "r1")
            waiting = "SELECT COUNT(*) FROM information_schema.processlist WHERE state LIKE 'Waiting for table%'"
            wait_until(lambda: server.sql(waiting) != "0", 20, "the dump at the lock")
            server.stop()
        assert "database server" in plane.wait_failure("r1", 30)
        assert not agent.children()
        assert not [p for p in plane.objects.puts if p.status == 200], "no half a dump is stored"
    finally:
        server.close()


def test_a_tool_that_lies(lab, server, filled):
    """Exit code, start mark, end mark: whatever a broken tool does, it is no success."""
    tools = lab.directory / "tools"
    tools.mkdir()
    script = tools / "mariadb-dump"
    lab.secrets.add(server.password)
    plane = plane_with(lab, target(server, filled))
    lab.agent(plane, BACKUPY_MYSQL_BIN_DIR=tools)
    real = shutil.which("mariadb-dump")
    bodies = {
        "no-mark": "echo hello world",
        "empty": "exit 0",
        "cut": f"{real} \"$@\" | head -c 200000",
        "mark-in-the-middle": f"{real} \"$@\" | sed '/^-- Dump completed/a SELECT 1;'",
        "half": f"{real} \"$@\"; exit 1",
        "killed": f"{real} \"$@\"; kill -9 $$",
    }
    for name, body in bodies.items():
        script.write_text(f'#!/bin/sh\n[ "$2" = --version ] && exec {real} --version\n{body}\n')
        script.chmod(0o755)
        plane.run_backup("job0", name)
        assert plane.wait_failure(name, 20)
    assert not [p for p in plane.objects.puts if p.status == 200]


def url(server, database="", scheme="mariadb", way="tcp"):
    """A database URL for `up` and `restore --into`."""
    name = urllib.parse.quote(database, safe="")
    if way == "socket":
        return f"{scheme}://{server.superuser}@/{name}?socket={server.socket}"
    return f"{scheme}://{server.superuser}@127.0.0.1:{server.port}/{name}"


@pytest.mark.parametrize("way", ["tcp", "socket"])
def test_up_verify_and_restore_into(lab, server, filled, way):
    host = Host(lab)
    password = host.directory.parent / "db.password"
    password.write_text(server.password + "\n")
    password.chmod(0o600)
    lab.secrets.add(server.password)
    common = {"password": f'"file:{password}"', "every": '"6h"', "keep": "{ last = 3 }"}
    host.write(
        {"name": '"shop"', "database": f'"{url(server, filled, way=way)}"', **common},
        {"name": '"all"', "database": f'"{url(server, way=way)}"', **common},
    )
    host.up()
    for name in ("shop", "all"):
        host.ok("backup", name)
    host.stop()
    assert "item" in host.ok("verify", "shop")
    assert "mysql.global_priv" in host.ok("verify", "all", "--json")
    copy = f"copy {time.time_ns()}"
    login = ("--password", f"file:{password}", "--yes")
    host.ok("restore", "shop", "--into", url(server, copy, way=way), *login)
    assert server.content(copy) == server.content(filled)
    for what, into, words in [
        ("shop", url(server, copy), "not empty"),
        ("shop", url(server, "other", "mysql"), "cannot go into a MySQL database"),
        ("all", url(server, copy), "users included"),
    ]:
        refused = host.command("restore", what, "--into", into, *login)
        assert refused.returncode != OK and words in refused.stderr, refused
        assert server.password not in refused.stderr + refused.stdout
    assert server.content(copy) == server.content(filled)
    server.sql("CREATE TABLE mine (a INT)", copy)
    host.ok("restore", "shop", "--into", url(server, copy, way=way), "--replace", *login)
    assert server.content(copy) == server.content(filled)
    server.sql(f"DROP DATABASE {server.quoted(copy)}")
    down = url(server, copy).replace(str(server.port), "1")
    refused = host.command("restore", "shop", "--into", down, *login)
    assert refused.returncode == FAILED and "cannot be reached" in refused.stderr, refused
