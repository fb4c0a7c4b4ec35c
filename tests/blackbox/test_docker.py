"""Databases in containers: the way in by the Docker socket."""

import os
import subprocess
import time

import pytest

from conftest import config
from plane import artifact, databases, mariadb, proto, redis
from plane.agent import wait_until
from plane.docker import Docker
from test_up import Host

pytestmark = pytest.mark.skipif(
    os.environ.get("BACKUPY_TEST_NO_DOCKER") == "1", reason="BACKUPY_TEST_NO_DOCKER=1"
)

KEY = bytes(range(32))


@pytest.fixture(scope="module")
def docker():
    daemon = Docker()
    try:
        daemon.run_postgres("db")
        yield daemon
    finally:
        daemon.close()


def target(docker, container, target_id="pg", **connection):
    """The database in that container, over the server's own socket."""
    return {
        "id": target_id,
        "type": proto.POSTGRESQL,
        "display_name": target_id,
        "connection": {
            "database": "postgres",
            "username": "admin",
            "password_secret_ref": docker.password,
            "container_id": container,
            "strategy": proto.DOCKER_EXEC,
            **connection,
        },
    }


def plane_with(lab, docker, *targets):
    lab.secrets.add(docker.password)
    plane = lab.plane()
    jobs = [{"id": f"job{i}", "target_id": t["id"]} for i, t in enumerate(targets)]
    plane.config = config(list(targets), jobs)
    return plane


def test_comes_back(lab, docker, postgres):
    docker.sql("db", "CREATE TABLE item AS SELECT i AS id, md5(i::text) AS name FROM generate_series(1, 50000) i")
    digest = "SELECT count(*) || md5(string_agg(name, ',' ORDER BY id)) FROM item"
    expected = docker.sql("db", digest)
    container = docker.docker("inspect", "-f", "{{.Id}}", "db")
    plane = plane_with(lab, docker, target(docker, "db"), target(docker, container[:12], "id", host="localhost", port=5432))
    lab.agent(plane, BACKUPY_DOCKER_SOCKET=docker.socket, BACKUPY_ALLOW_CONTAINERS="other,db")
    register = plane.session().register
    assert "docker_exec" in register["capabilities"]
    assert register["docker_version"]
    for number in range(2):
        plane.run_backup(f"job{number}", f"r{number}", key=KEY)
        done = plane.wait_success(f"r{number}")
        assert done["db_engine_version"].startswith("PostgreSQL ")
        dump = artifact.restore(plane.objects.object(done["s3_key"]), done["compression"], KEY)
        name = f"restored{time.time_ns()}"
        postgres.restore(dump, name)
        assert postgres.sql(digest, name).strip() == expected
        postgres.sql(f'DROP DATABASE "{name}" WITH (FORCE)')


def test_what_the_host_does_not_allow(lab, docker):
    plane = plane_with(lab, docker, target(docker, "db"))
    lab.agent(plane, BACKUPY_DOCKER_SOCKET=docker.socket, BACKUPY_ALLOW_CONTAINERS="other")
    plane.run_backup("job0", "r1")
    assert "BACKUPY_ALLOW_CONTAINERS" in plane.wait_failure("r1", 20)


def test_no_docker(lab, docker, tmp_path):
    plane = plane_with(lab, docker, target(docker, "db"))
    lab.agent(plane, BACKUPY_DOCKER_SOCKET=tmp_path / "nothing.sock")
    register = plane.session().register
    assert "docker_exec" not in register["capabilities"]
    assert not register.get("docker_version")
    plane.run_backup("job0", "r1")
    assert "BACKUPY_DOCKER_SOCKET" in plane.wait_failure("r1", 20)


@pytest.mark.parametrize("end", ["cancel", "kill"])
def test_the_dump_ends_with_its_run_or_agent(lab, docker, end):
    """A dump that waits for a lock in the container: it ends with a cancel, and when the agent is killed."""
    docker.sql("db", "CREATE TABLE IF NOT EXISTS held (a int)")
    docker.sql("db", "BEGIN; LOCK TABLE held; SELECT pg_sleep(3600)", "-d")
    granted = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation = 'held'::regclass"
    wait_until(lambda: docker.sql("db", granted) == "1", 30)
    try:
        plane = plane_with(lab, docker, target(docker, "db"))
        agent = lab.agent(plane, BACKUPY_DOCKER_SOCKET=docker.socket)
        plane.run_backup("job0", "r1", key=KEY)
        wait_until(lambda: docker.runs("db", "pg_dump"), 30)
        if end == "kill":
            agent.kill()
        else:
            plane.session().send("cancel_job", {"job_id": "job0"}, "c1")
            kind, _ = plane.wait_terminal("r1", 20)
            assert kind == "cancelled"
        wait_until(lambda: not docker.runs("db", "pg_dump"), 20)
        # PostgreSQL is the container's first process; it must not take an orphan of ours for a crash.
        assert docker.sql("db", granted) == "1"
    finally:
        docker.sql(
            "db", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()"
        )
    assert "terminated by signal" not in docker.logs("db")
    if end == "kill":
        agent.start()
        plane.wait_success("r1")


class Others:
    """MariaDB, Redis and a stand-in for MongoDB in containers, and what their dumps must give."""

    def __init__(self, docker):
        self.server = mariadb.MariaDb()
        self.maria_password = self.server.password
        self.server.fill("app")
        self.content = self.server.content("app")
        docker.run_mariadb("maria", self.server)
        self.port, self.redis_password = databases.free_port(), "r'w \\\" :" + os.urandom(8).hex()
        docker.run_redis("cache", self.port, self.redis_password)
        wait_until(lambda: self.redis("PING") == "PONG", 30)
        self.redis("DEBUG", "POPULATE", "5000")
        self.digest = self.redis("DEBUG", "DIGEST")
        self.archive = docker.run_mongo_stand_in("mongo")

    def redis(self, *words):
        """Asks the server in the container."""
        done = subprocess.run(
            ["redis-cli", "-p", str(self.port), *words],
            env={**os.environ, "REDISCLI_AUTH": self.redis_password}, capture_output=True, text=True, timeout=60,
        )
        return done.stdout.strip()

    def check_maria(self, dump):
        """Loaded into a server on this host, it is what was there."""
        other = mariadb.MariaDb()
        try:
            other.restore(dump, "app")
            assert other.content("app") == self.content
        finally:
            other.close()

    def check_redis(self, dump):
        """A server that starts on it has the same keys."""
        other = redis.Redis(rdb=dump)
        try:
            assert other.ask("DEBUG", "DIGEST") == self.digest
        finally:
            other.close()


@pytest.fixture(scope="module")
def others(docker):
    others = Others(docker)
    yield others
    others.server.close()


def test_other_engines_come_back(lab, docker, others):
    lab.secrets |= {others.maria_password, others.redis_password}
    common = {"port": 0, "host": ""}
    maria = target(docker, "maria", "maria", database="app", password_secret_ref=others.maria_password, **common)
    maria["type"] = proto.MARIADB
    cache = target(
        docker, "cache", "cache", database="", username="", password_secret_ref=others.redis_password, host="localhost",
        port=others.port,
    )
    cache["type"] = proto.REDIS
    docs = target(docker, "mongo", "docs", database="", username="backup", **common)
    docs["type"] = proto.MONGODB
    plane = plane_with(lab, docker, maria, cache, docs)
    lab.agent(plane, BACKUPY_DOCKER_SOCKET=docker.socket, BACKUPY_ALLOW_CONTAINERS="maria,cache,mongo")
    dumps = []
    for number, version in enumerate(("MariaDB 1", "Redis ", "MongoDB 6.0.5")):
        plane.run_backup(f"job{number}", f"r{number}", key=KEY)
        done = plane.wait_success(f"r{number}")
        assert done["db_engine_version"].startswith(version), done
        dumps.append(artifact.restore(plane.objects.object(done["s3_key"]), done["compression"], KEY))
    others.check_maria(dumps[0])
    others.check_redis(dumps[1])
    assert dumps[2] == others.archive


def test_up_takes_containers(lab, docker, others):
    lab.secrets |= {others.maria_password, others.redis_password, docker.password}
    host = Host(lab)

    def backup(name, url, container, password):
        file = lab.directory / f"{name}-password"
        file.touch(0o600)
        file.write_text(password)
        return {
            "name": f'"{name}"', "database": f'"{url}"', "container": f'"{container}"',
            "password": f'"file:{file}"', "every": '"6h"', "keep": "{ last = 3 }",
        }

    host.write(
        backup("pg", "postgres://admin@/postgres", "db", docker.password),
        backup("maria", "mariadb://admin@/app", "maria", others.maria_password),
        backup("all", "mysql://admin@/", "maria", others.maria_password),
        backup("cache", f"redis://localhost:{others.port}", "cache", others.redis_password),
        backup("docs", "mongodb://backup@/", "mongo", docker.password),
    )
    host.agent.env["BACKUPY_DOCKER_SOCKET"] = str(docker.socket)
    host.up()
    dumps = {}
    for name in ("pg", "maria", "all", "cache", "docs"):
        host.ok("backup", name)
        host.ok("verify", name)
        out = host.directory / f"{name}.dump"
        host.ok("restore", name, "--to", out)
        dumps[name] = out.read_bytes()
    assert dumps["pg"].startswith(b"PGDMP")
    others.check_maria(dumps["maria"])
    assert b"-- Current Database: `mysql`" in dumps["all"]
    others.check_redis(dumps["cache"])
    assert dumps["docs"] == others.archive
