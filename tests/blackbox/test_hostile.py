"""A control plane that reaches for the host: what comes over the wire never becomes more than a name."""

import os
import secrets
import socket

import pytest

from conftest import config, sqlite_target
from plane import databases, proto
from test_postgres import postgres_target


def fails(plane, job_id, run_id, *forbidden):
    """The run fails and its message holds none of `forbidden`."""
    plane.run_backup(job_id, run_id)
    message = plane.wait_failure(run_id, 20)
    for word in forbidden:
        assert word not in message, message
    return message


@pytest.mark.parametrize(
    "reference",
    [
        "env:BACKUPY_AGENT_KEY",
        "env:BACKUP_AGENT_KEY",
        "env:PATH",
        "env:SECRET",
        "env:BACKUPY_SECRET_MISSING",
        "env:",
        "file:/etc/shadow",
        "file:relative",
        "file:SECRETS/../outside",
        "file:SECRETS/link",
        "file:SECRETS",
        "file:/proc/self/environ",
        "file:",
    ],
)
def test_secret_references(lab, reference):
    """Each is refused before anything is sent to the host that the control plane named."""
    allowed = lab.directory / "secrets"
    allowed.mkdir()
    value = secrets.token_hex(12)
    (lab.directory / "outside").write_text(value)
    (allowed / "link").symlink_to(lab.directory / "outside")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    plane = lab.plane()
    target = {
        "id": "t",
        "type": proto.POSTGRESQL,
        "connection": {
            "host": "127.0.0.1",
            "port": listener.getsockname()[1],
            "database": "d",
            "username": "u",
            "password_secret_ref": reference.replace("SECRETS", str(allowed)),
        },
    }
    plane.config = config([target], [{"id": "j", "target_id": "t"}])
    lab.secrets.add(value)
    lab.agent(plane, BACKUPY_SECRETS_DIR=allowed, SECRET=value)
    message = fails(plane, "j", "r1", value, plane.key, "root:")
    assert message
    with pytest.raises(TimeoutError):
        listener.accept()


@pytest.mark.parametrize(
    "database",
    [
        "--file=PWNED",
        "-fPWNED",
        "-f",
        "--help",
        "host=evil.example",
        "dbname=postgres host=evil.example",
        "postgresql://evil.example/x",
        "x' host='evil.example",
        "x\nhost=evil.example",
        "x\0y",
        "x\x1b[31m",
    ],
)
def test_database_names(lab, postgres, database):
    pwned = lab.directory / "pwned"
    plane = lab.plane()
    target = postgres_target(postgres, database.replace("PWNED", str(pwned)), "t")
    plane.config = config([target], [{"id": "j", "target_id": "t"}])
    lab.secrets.add(postgres.password)
    agent = lab.agent(plane)
    fails(plane, "j", "r1", postgres.password)
    assert not pwned.exists()
    assert "could not translate host name" not in agent.log
    assert not plane.objects.puts
    assert agent.running


@pytest.mark.parametrize(
    "connection",
    [
        {"username": "--file=PWNED"},
        {"username": "admin host=evil.example"},
        {"username": "a\nb"},
        {"host": "--file=PWNED"},
        {"host": "127.0.0.1 dbname=template1"},
        {"host": "127.0.0.1,evil.example"},
        {"host": "a\nb"},
        {"host": "|touch PWNED", "strategy": proto.UNIX_SOCKET},
        {"host": "$(touch PWNED)"},
        {"port": 70000},
        {"strategy": 9},
        {"host": "169.254.169.254"},
    ],
)
def test_connection_fields(lab, postgres, connection):
    pwned = lab.directory / "pwned"
    connection = {
        k: v.replace("PWNED", str(pwned)) if isinstance(v, str) else v for k, v in connection.items()
    }
    plane = lab.plane()
    plane.config = config(
        [postgres_target(postgres, "postgres", "t", **connection)], [{"id": "j", "target_id": "t"}]
    )
    lab.secrets.add(postgres.password)
    lab.agent(plane)
    fails(plane, "j", "r1", postgres.password)
    assert not pwned.exists()
    assert not plane.objects.puts


def test_environment_of_the_host_is_not_libpqs(lab, postgres):
    """PG* variables of the agent's own environment never steer a dump."""
    plane = lab.plane()
    plane.config = config([postgres_target(postgres, "postgres", "t")], [{"id": "j", "target_id": "t"}])
    lab.secrets.add(postgres.password)
    lab.agent(
        plane, PGHOST="evil.example", PGDATABASE="template1", PGSERVICE="none", PGOPTIONS="-c search_path=x",
        PGSSLMODE="verify-full", PGPASSFILE="/nonexistent", HOME="/nonexistent",
    )
    plane.run_backup("j", "r1")
    plane.wait_success("r1")


def test_sqlite_paths(lab):
    allowed, other = lab.directory / "allowed", lab.directory / "other"
    allowed.mkdir()
    other.mkdir()
    for path in (allowed / "a.db", other / "b.db"):
        databases.make_sqlite(path, 10)
    (allowed / "link.db").symlink_to(other / "b.db")
    (allowed / "dirlink").symlink_to(other)
    paths = {
        "good": allowed / "a.db",
        "outside": other / "b.db",
        "dots": f"{allowed}/../other/b.db",
        "link": allowed / "link.db",
        "dirlink": allowed / "dirlink" / "b.db",
        "sibling": f"{allowed}-evil/x.db",
    }
    plane = lab.plane()
    plane.config = config(
        [sqlite_target(name, path) for name, path in paths.items()],
        [{"id": name, "target_id": name} for name in paths],
    )
    lab.agent(plane, BACKUPY_ALLOW_PATHS=allowed)
    for name in paths:
        plane.run_backup(name, f"r-{name}")
    plane.wait_success("r-good")
    for name in paths:
        if name != "good":
            assert plane.wait_failure(f"r-{name}", 10)
    assert len(plane.objects.puts) == 1


@pytest.mark.parametrize(
    "path", ["relative.db", "", "file:/etc/passwd?mode=rw", ":memory:", "-x", "/dev/zero", "/dev/stdin", "/proc/kcore"]
)
def test_odd_sqlite_paths(lab, path):
    plane = lab.plane()
    plane.config = config([sqlite_target("t", path)], [{"id": "j", "target_id": "t"}])
    agent = lab.agent(plane)
    fails(plane, "j", "r1")
    assert not plane.objects.puts and agent.running
    assert not os.path.exists(agent.directory / "relative.db")


def test_the_agents_own_state_is_not_a_database(lab):
    plane = lab.plane()
    agent = lab.agent(plane, start=False)
    agent.state.mkdir(mode=0o700)
    databases.make_sqlite(agent.state / "inside.db", 10)
    plane.config = config([sqlite_target("t", "/etc/shadow")], [{"id": "j", "target_id": "t"}])
    agent.start()
    message = fails(plane, "j", "r1", "root:")
    assert message


def test_names_that_are_paths(lab):
    """Ids from the wire never become file names."""
    plane = lab.plane()
    [path] = lab.sqlite(plane)
    for odd in (["../../../../tmp/x", "/etc/x", "a\nb", "ü" * 300, "a" * 5000, "%s%n"]):
        plane.config["targets"].append(sqlite_target(odd, path))
        plane.config["jobs"].append({"id": odd, "target_id": odd})
    agent = lab.agent(plane)
    for number, job in enumerate([j["id"] for j in plane.config["jobs"]]):
        run_id = f"../{number}/\n{job[:200]}"
        plane.run_backup(job, run_id, correlation_id=f"c{number}", object_key=f"k{number}")
        answer = plane.wait_ack(f"c{number}")
        if answer["accepted"]:
            plane.wait_terminal(run_id, 20)
        else:
            assert len(job) > 200 and answer["reason"]
    assert agent.running
    assert not list(lab.directory.glob("*x"))
