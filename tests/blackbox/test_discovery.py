"""Which databases an agent finds on its host, what it tells of them, and what it never tells."""

import json
import os
import socket
import threading

import pytest

from conftest import config, sqlite_target
from plane import databases, proto
from plane.agent import wait_until
from plane.docker import Docker

PASSWORD = "never-told-8c1f0f"

needs_docker = pytest.mark.skipif(
    os.environ.get("BACKUPY_TEST_NO_DOCKER") == "1", reason="BACKUPY_TEST_NO_DOCKER=1"
)


@pytest.fixture(scope="module")
def docker():
    daemon = Docker()
    try:
        daemon.import_busybox("postgres:16", "registry.example.org:5000/bitnami/redis", "prom/mysqld-exporter", "acme/own")
        yield daemon
    finally:
        daemon.close()


@pytest.fixture
def containers(docker):
    """A daemon with two databases and an exporter that exposes a database's port."""
    docker.sleep("shop-db", "postgres:16", "-e", f"POSTGRES_PASSWORD={PASSWORD}", "-e", f"OTHER={PASSWORD}")
    docker.sleep("by-port", "acme/own")
    docker.sleep("exporter", "prom/mysqld-exporter")
    yield docker
    docker.docker("rm", "-f", *docker.docker("ps", "-aq").split())


def in_containers(report):
    return {c["name"]: c for c in report.get("containers", []) if c.get("container_id")}


def on_host(report):
    return [c for c in report.get("containers", []) if not c.get("container_id")]


def wait_report(plane, condition, timeout=30):
    """The newest report, once it fulfils the condition."""
    return plane.wait(
        lambda: next((r for r in reversed(plane.journal) if r.kind == "discovery" and condition(r.body)), None),
        timeout,
        "such a report",
    ).body


def names(*wanted):
    return lambda report: set(in_containers(report)) == set(wanted)


def discover(agent):
    done = agent.command("discover", "--json", timeout=120)
    assert done.returncode == 0, done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    return {d.get("name") or d["title"]: d for d in json.loads(done.stdout)["databases"]}


def not_backed_up(agent):
    done = agent.command("status")
    assert PASSWORD not in done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("warning: not backed up: ")]


@needs_docker
def test_containers_come_and_go(lab, containers):
    docker = containers
    lab.secrets.add(PASSWORD)
    plane = lab.plane()
    lab.agent(plane, BACKUPY_DOCKER_SOCKET=docker.socket)
    assert "docker_discovery" in plane.session().register["capabilities"]
    report = wait_report(plane, names("shop-db", "by-port"))
    shop = in_containers(report)["shop-db"]
    assert shop["container_id"] == docker.docker("inspect", "-f", "{{.Id}}", "shop-db")
    assert shop["image"] == "postgres:16" and shop["detected_db_type"] == "postgresql"
    assert shop["networks"] == ["none"]
    assert [(hint["key"], hint["value"]) for hint in shop["env_hints"]] == [("POSTGRES_PASSWORD", "set")]
    assert in_containers(report)["by-port"]["detected_db_type"] == "mysql"
    docker.sleep("cache", "registry.example.org:5000/bitnami/redis")
    report = wait_report(plane, names("shop-db", "by-port", "cache"))
    assert in_containers(report)["cache"]["detected_db_type"] == "redis"
    docker.docker("rename", "shop-db", "store-db")
    wait_report(plane, names("store-db", "by-port", "cache"))
    docker.docker("kill", "store-db", "by-port")
    wait_report(plane, names("cache"))
    docker.docker("start", "store-db")
    wait_report(plane, names("cache", "store-db"))
    # The report is told again to whoever comes next.
    session, told = plane.session(), len(plane.messages("discovery"))
    session.cut()
    plane.session(after=session.number + 1)
    plane.wait(lambda: len(plane.messages("discovery")) > told, 20)
    assert set(in_containers(plane.messages("discovery")[-1])) == {"cache", "store-db"}
    assert PASSWORD not in json.dumps([r.body for r in plane.journal], default=repr)


@needs_docker
def test_what_is_protected_is_said_alike_everywhere(lab, containers, tmp_path):
    docker = containers
    lab.secrets.add(PASSWORD)
    path = tmp_path / "data" / "app.db"
    path.parent.mkdir()
    databases.make_sqlite(path, 10, False, 10)
    other = tmp_path / "data" / "other.db"
    databases.make_sqlite(other, 10, False, 10)
    plane = lab.plane()
    target = {
        "id": "shop", "type": proto.POSTGRESQL, "display_name": "shop",
        "connection": {"database": "shop", "container_id": "shop-db", "strategy": proto.DOCKER_EXEC},
    }
    plane.config = config([target, sqlite_target("app", path)], [{"id": "j1", "target_id": "shop"}, {"id": "j2", "target_id": "app"}])
    agent = lab.agent(plane, BACKUPY_DOCKER_SOCKET=docker.socket, BACKUPY_DISCOVER_PATHS=tmp_path / "data")
    report = wait_report(plane, lambda r: "shop-db" in in_containers(r))
    files = [c["name"] for c in on_host(report) if c["detected_db_type"] == "sqlite"]
    assert sorted(files) == [str(path), str(other)]
    found = discover(agent)
    assert (found["shop-db"]["protected"], found["shop-db"]["backups"]) == (True, ["j1"])
    assert (found["by-port"]["protected"], found["by-port"]["backups"]) == (False, [])
    assert found[f"SQLite file {path}"]["protected"] and not found[f"SQLite file {other}"]["protected"]
    warnings = "\n".join(not_backed_up(agent))
    assert "by-port" in warnings and str(other) in warnings
    assert "shop-db" not in warnings and str(path) not in warnings
    status = json.loads(agent.command("status", "--json").stdout)["discovery"]
    assert status["unprotected_count"] == sum(not d["protected"] for d in found.values())
    # The table, and what to paste.
    text = agent.command("discover").stdout
    assert 'container = "by-port"' in text and 'container = "shop-db"' not in text
    assert PASSWORD not in text


@needs_docker
def test_what_discover_prints_is_a_file_for_up(lab, containers, tmp_path):
    agent = lab.agent(start=False, BACKUPY_DOCKER_SOCKET=containers.socket)
    done = agent.command("discover", timeout=120)
    assert done.returncode == 0, done.stderr
    assert "not known" in done.stderr
    pasted = done.stdout.partition("\n\n")[2]
    file = tmp_path / "backupy.toml"
    file.write_text(f'state_dir = "{tmp_path}/st"\n[storage]\ndirectory = "{tmp_path}/sto"\n\n{pasted}')
    checked = agent.command("up", "--check", "--config", file)
    assert checked.returncode == 0, checked.stderr
    assert "shop-db (PostgreSQL)" in checked.stdout


@needs_docker
def test_a_daemon_that_restarts(lab, docker):
    docker.sleep("restarted", "postgres:16")
    plane = lab.plane()
    lab.sqlite(plane)
    lab.agent(plane, BACKUPY_DOCKER_SOCKET=docker.socket)
    wait_report(plane, names("restarted"))
    docker.stop_daemon()
    plane.run_backup("job0", "r1")
    plane.wait_success("r1")
    docker.start_daemon()
    wait_report(plane, names(), 90)
    docker.docker("start", "restarted")
    wait_report(plane, names("restarted"), 90)
    assert len(plane.sessions) == 1
    docker.docker("rm", "-f", "restarted")


def test_switched_off(lab, tmp_path):
    databases.make_sqlite(tmp_path / "app.db", 10, False, 10)
    plane = lab.plane()
    lab.sqlite(plane)
    agent = lab.agent(plane, BACKUPY_DISABLE_DISCOVERY="true", BACKUPY_DISCOVER_PATHS=tmp_path)
    assert "docker_discovery" not in plane.session().register["capabilities"]
    plane.run_backup("job0", "r1")
    plane.wait_success("r1")
    assert "discover" not in agent.thread_names()
    assert not plane.messages("discovery")
    # A person may look; nobody looks again, so that is no reason to warn from then on.
    assert discover(agent)
    assert not_backed_up(agent) == []


def test_a_daemon_that_hangs_disturbs_nobody(lab, tmp_path):
    """It takes connections and says nothing: backups run, the agent stops in time, and does not spin."""
    path = tmp_path / "hangs.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    held = []

    def hold():
        while True:
            try:
                held.append(listener.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    try:
        plane = lab.plane()
        lab.sqlite(plane)
        agent = lab.agent(plane, BACKUPY_DOCKER_SOCKET=path)
        plane.run_backup("job0", "r1")
        plane.wait_success("r1")
        wait_report(plane, lambda report: True)
        wait_until(lambda: len(held) > 1, 30)
        assert agent.stop() == 0
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in held:
            connection.close()


def test_services_of_the_host(lab, postgres):
    plane = lab.plane()
    agent = lab.agent(plane, BACKUPY_DOCKER_SOCKET="/nonexistent/docker.sock")
    report = wait_report(plane, lambda report: True)
    # Other tests have servers of their own.
    mine = [c for c in on_host(report) if any(p["host_port"] == postgres.port for p in c["ports"])]
    assert [(c["detected_db_type"], c["name"], c.get("image", "")) for c in mine] == [("postgresql", "postgres", "")]
    assert any(f":{postgres.port}" in line for line in not_backed_up(agent))
    plane.config = config(
        [{"id": "pg", "type": proto.POSTGRESQL, "display_name": "pg",
          "connection": {"host": "127.0.0.1", "port": postgres.port, "database": "postgres"}}],
        [{"id": "pg", "target_id": "pg"}], version=2,
    )
    plane.session().send("config_update", {"config": plane.config})
    wait_until(lambda: not any(f":{postgres.port}" in line for line in not_backed_up(agent)), 20)
