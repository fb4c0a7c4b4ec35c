"""Redis and Valkey, against real servers of the test's own: every dump is decrypted, and a second server started on it."""

import os

import pytest

from conftest import config
from plane import artifact, proto
from plane.agent import Watcher, wait_until
from plane.redis import Redis
from test_up import Host

KEY = bytes(range(32))


def redis_target(server, target_id="redis", **connection):
    """A target for that server."""
    return {
        "id": target_id,
        "type": proto.REDIS,
        "display_name": target_id,
        "connection": {
            "host": "127.0.0.1",
            "port": server.port,
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


def check_restore(server, dump):
    """A second server, started on the dump, equals the first."""
    assert dump.startswith(b"VALKEY" if server.valkey else b"REDIS")
    copy = Redis(rdb=dump, valkey=server.valkey)
    try:
        assert copy.digest() == server.digest()
        assert copy.ask("DBSIZE") == server.ask("DBSIZE")
    finally:
        copy.close()


def dump_of(plane, done, key=KEY):
    """The dump in the stored artifact."""
    return artifact.restore(plane.objects.object(done["s3_key"]), done["compression"], key)


@pytest.fixture(params=["redis-diskless", "redis-from-disk", "valkey-diskless", "valkey-from-disk"])
def filled(request):
    diskless = "yes" if request.param.endswith("diskless") else "no"
    server = Redis(f"repl-diskless-sync {diskless}", valkey=request.param.startswith("valkey"))
    server.fill()
    if server.valkey:
        # What only the newest format can hold.
        assert server.ask("HEXPIRE", "hash", "100000", "FIELDS", "1", "field 1") == [1]
    yield server
    server.close()


@pytest.fixture
def server():
    server = Redis()
    server.fill()
    yield server
    server.close()


@pytest.mark.parametrize("way", ["password", "user", "socket", "reference"])
def test_comes_back(lab, filled, way):
    secrets = lab.directory / "secrets"
    secrets.mkdir()
    (secrets / "redis").touch(0o600)
    (secrets / "redis").write_text(filled.password + "\n")
    connection = {
        "password": {},
        "user": {"username": "backup", "password_secret_ref": filled.backup_password},
        "socket": {"host": str(filled.socket_path), "port": 0, "strategy": proto.UNIX_SOCKET},
        "reference": {"password_secret_ref": f"file:{secrets}/redis"},
    }[way]
    lab.secrets |= {filled.password, filled.backup_password}
    plane = plane_with(lab, redis_target(filled, **connection))
    agent = lab.agent(plane, BACKUPY_SECRETS_DIR=secrets)
    assert "redis" in plane.session().register["capabilities"]
    with Watcher(agent, [filled.password, filled.backup_password, KEY.hex()]) as watcher:
        plane.run_backup("job0", "r1", key=KEY)
        done = plane.wait_success("r1")
    assert not watcher.found
    assert done["db_engine_version"].startswith("Valkey 9" if filled.valkey else "Redis 7"), done
    check_restore(filled, dump_of(plane, done))


def test_wrong_password_and_user_without_rights(lab, server):
    server.ask("ACL", "SETUSER", "weak", "on", f">{server.backup_password}", "+ping")
    plane = plane_with(
        lab,
        redis_target(server, "wrong", password_secret_ref="wrong-" + "w0rd" * 4),
        redis_target(server, "none", password_secret_ref=""),
        redis_target(server, "weak", username="weak", password_secret_ref=server.backup_password),
        retry={"max_attempts": 3, "backoff_seconds": [60]},
    )
    lab.secrets |= {"w0rdw0rd", server.backup_password}
    agent = lab.agent(plane)
    for number, word in enumerate(["password", "password", "+psync +replconf +sync +ping"]):
        plane.run_backup(f"job{number}", f"r{number}")
        message = plane.wait_failure(f"r{number}", 20)
        assert word in message and "w0rd" not in message, message
    assert agent.running and not plane.objects.puts


def start_slow_dump(plane, server, run_id):
    """A dump that is under way, and would take a minute."""
    server.ask("CONFIG", "SET", "rdb-key-save-delay", "1000")
    server.ask("DEBUG", "POPULATE", "60000", "slow", "500")
    plane.run_backup("job0", run_id, key=KEY)
    wait_until(lambda: server.info("replication", "connected_slaves") == "1", 20, "the dump")
    wait_until(lambda: server.info("persistence", "rdb_bgsave_in_progress") == "1", 20, "the fork")


@pytest.mark.parametrize("how", ["server", "client"])
def test_cut_while_dumping(lab, server, how):
    plane = plane_with(lab, redis_target(server))
    lab.secrets.add(server.password)
    lab.agent(plane)
    start_slow_dump(plane, server, "r1")
    if how == "server":
        server.kill()
    else:
        assert server.ask("CLIENT", "KILL", "TYPE", "replica") == 1
    message = plane.wait_failure("r1", 30)
    assert "Redis" in message, message
    assert not plane.objects.puts, "nothing of half a dump is stored"


def test_the_next_attempt_succeeds(lab, server):
    plane = plane_with(lab, redis_target(server), retry={"max_attempts": 3, "backoff_seconds": [1]})
    lab.secrets.add(server.password)
    lab.agent(plane)
    start_slow_dump(plane, server, "r1")
    server.ask("CONFIG", "SET", "rdb-key-save-delay", "0")
    assert server.ask("CLIENT", "KILL", "TYPE", "replica") == 1
    check_restore(server, dump_of(plane, plane.wait_success("r1")))


def test_cancel_while_dumping(lab, server):
    plane = plane_with(lab, redis_target(server))
    lab.secrets.add(server.password)
    lab.agent(plane)
    start_slow_dump(plane, server, "r1")
    plane.session().send("cancel_job", {"job_id": "job0"}, "stop")
    kind, _ = plane.wait_terminal("r1", 10)
    assert kind == "cancelled" and not plane.objects.puts
    wait_until(lambda: server.info("replication", "connected_slaves") == "0", 10, "the end of the connection")


def test_a_slow_store_does_not_hold_the_server_up(lab, server):
    server.ask("SET", "noise", os.urandom(24 << 20))
    plane = plane_with(lab, redis_target(server), compression="none")
    plane.objects.bytes_per_sec = 2_000_000
    lab.secrets.add(server.password)
    lab.agent(plane, BACKUPY_SPOOL_MEMORY=1 << 20)
    plane.run_backup("job0", "r1", key=KEY)
    plane.objects.wait_put(lambda put: True, 60)
    # The server is rid of us before the upload is done, give or take its own housekeeping.
    wait_until(lambda: server.info("replication", "connected_slaves") == "0", 4, "the end of the connection")
    wait_until(lambda: server.info("persistence", "rdb_bgsave_in_progress") == "0", 4, "the end of the child")
    assert not plane.terminal("r1")
    check_restore(server, dump_of(plane, plane.wait_success("r1")))


def test_up_backs_up_verifies_and_restores(lab, filled):
    server = filled
    host = Host(lab)
    password = host.directory / "redis-password"
    password.touch(0o600)
    password.write_text(server.password)
    lab.secrets.add(server.backup_password)
    common = {"every": '"6h"', "keep": "{ last = 3 }"}
    host.write(
        {
            "name": '"cache"',
            "database": f'"redis://127.0.0.1:{server.port}/0"',
            "password": f'"file:{password}"',
            **common,
        },
        {
            "name": '"socket"',
            "database": f'"redis://backup@/?host={server.socket_path}"',
            "password": '"env:REDIS_BACKUP"',
            **common,
        },
    )
    host.agent.env["REDIS_BACKUP"] = server.backup_password
    host.up()
    for name in ("cache", "socket"):
        host.ok("backup", name)
        verified = host.ok("verify", name)
        assert "db0" in verified and str(server.ask("DBSIZE")) in verified, verified
        out = host.directory / f"{name}.rdb"
        host.ok("restore", name, "--to", out)
        check_restore(server, out.read_bytes())
    refused = host.command("restore", "cache", "--into", f"redis://127.0.0.1:{server.port}", "--yes")
    assert refused.returncode != 0 and "dbfilename" in refused.stderr, refused
