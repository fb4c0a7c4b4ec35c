"""MongoDB: a recorded archive through a stand-in for its tools, as MongoDB itself cannot be installed here."""

import pathlib
import shutil

import pytest

from conftest import config
from plane import artifact, proto
from plane.agent import Watcher, wait_until
from test_up import FAILED, Host

KEY = bytes(range(32))
PASSWORD = "p:s@%/hunter2-of-mongo"
ENCODED = "p%3As%40%25%2Fhunter2-of-mongo"
FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
ARCHIVE = (FIXTURES / "mongo.archive").read_bytes()
LOADED = "echo '35 document(s) restored successfully. 0 document(s) failed to restore.' >&2"


class Tools:
    """A directory with stand-ins that do what `behave` last said."""

    def __init__(self, directory, behaviour='cat "$here/archive"'):
        self.directory = directory / "tools"
        self.directory.mkdir()
        for name in ("mongodump", "mongorestore"):
            shutil.copy(FIXTURES / "mongo-tool", self.directory / name)
        (self.directory / "archive").write_bytes(ARCHIVE)
        self.behave(behaviour)

    def behave(self, behaviour):
        (self.directory / "behaviour").write_text(behaviour)

    def noted(self, name):
        """`argv`, `config` or `mode` of the last call."""
        path = self.directory / name
        return path.read_text() if path.exists() else ""


def target(target_id="mongo", **connection):
    login = {"username": "backup", "password_secret_ref": PASSWORD}
    return {
        "id": target_id,
        "type": proto.MONGODB,
        "display_name": target_id,
        "connection": {"host": "127.0.0.1", **login, **connection},
    }


def plane_with(lab, *targets, **job):
    plane = lab.plane()
    jobs = [{"id": f"job{i}", "target_id": t["id"], **job} for i, t in enumerate(targets)]
    plane.config = config(list(targets), jobs)
    lab.secrets |= {PASSWORD, ENCODED}
    return plane


def restored(plane, done):
    return artifact.restore(plane.objects.object(done["s3_key"]), done["compression"], KEY)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "mongodb://127.0.0.1:27018/?replicaSet=rs0", f"mongodb://backup:{ENCODED}@127.0.0.1/"]
)
def test_comes_back(lab, host):
    tools = Tools(lab.directory, 'sleep 0.3; cat "$here/archive"')
    own = {"username": "", "password_secret_ref": ""} if "@" in host else {}
    plane = plane_with(lab, target(host=host, database="shop", **own))
    agent = lab.agent(plane, BACKUPY_MONGO_BIN_DIR=tools.directory)
    assert "mongodump" in plane.session().register["capabilities"]
    with Watcher(agent, [PASSWORD, ENCODED, plane.key, KEY.hex()]) as watcher:
        plane.run_backup("job0", "r1", key=KEY)
        done = plane.wait_success("r1")
    assert not watcher.found
    assert watcher.seen, "the stand-in was seen"
    assert restored(plane, done) == ARCHIVE
    assert done["db_engine_version"] == "MongoDB 6.0.5"
    words = tools.noted("argv").splitlines()
    assert words[0] == "--archive" and not [word for word in words if "hunter2" in word or "gzip" in word]
    assert tools.noted("mode") == "600\n"
    expected = PASSWORD if host == "127.0.0.1" else f"backup:{ENCODED}@"
    assert expected in tools.noted("config")
    path = next(word.partition("=")[2] for word in words if word.startswith("--config="))
    assert not pathlib.Path(path).exists()


def test_no_tool_no_capability(lab):
    empty = lab.directory / "empty"
    empty.mkdir()
    plane = plane_with(lab, target())
    lab.agent(plane, BACKUPY_MONGO_BIN_DIR=empty)
    assert "mongodump" not in plane.session().register["capabilities"]
    plane.run_backup("job0", "r1", key=KEY)
    assert "mongodump" in plane.wait_failure("r1", 20)


@pytest.mark.parametrize(
    "behaviour, says, attempts",
    [
        ("echo 'Failed: auth error: (AuthenticationFailed) Authentication failed.' >&2; exit 1", "refused the login", 1),
        ("echo 'Failed: server selection error: connection refused' >&2; exit 1", "failed to reach MongoDB", 2),
        ('head -c 3000 "$here/archive"; kill -9 $$', "signal 9", 2),
        ('head -c 3000 "$here/archive"', "not whole", 1),
        ("echo nothing like it", "is not a dump", 1),
        ('head -c 3000 "$here/archive"; while :; do echo "0%" >&2; sleep 0.1; done', "said nothing for 4 s", 2),
    ],
    ids=["login", "unreachable", "killed", "short", "nonsense", "stuck"],
)
def test_no_false_success(lab, behaviour, says, attempts):
    tools = Tools(lab.directory, f'echo x >> "$here/calls"\n{behaviour}')
    plane = plane_with(lab, target(), retry={"max_attempts": 2, "backoff_seconds": [1]})
    agent = lab.agent(plane, BACKUPY_MONGO_BIN_DIR=tools.directory, BACKUPY_STUCK_TIMEOUT="4s")
    plane.run_backup("job0", "r1", key=KEY)
    assert says in plane.wait_failure("r1", 40)
    assert len(tools.noted("calls").splitlines()) == attempts
    assert not plane.objects.puts and not agent.children()


def test_cancel(lab):
    tools = Tools(lab.directory, 'head -c 3000 "$here/archive"; echo x > "$here/running"; sleep 600 & wait')
    plane = plane_with(lab, target())
    agent = lab.agent(plane, BACKUPY_MONGO_BIN_DIR=tools.directory)
    plane.run_backup("job0", "r1", key=KEY)
    wait_until(lambda: tools.noted("running"), 20, "the dump")
    plane.session().send("cancel_job", {"job_id": "job0"}, "stop")
    kind, _ = plane.wait_terminal("r1", 10)
    assert kind == "cancelled"
    wait_until(lambda: not agent.children(), 10, "no child left")
    assert not list(agent.state.rglob("driver-*"))


@pytest.mark.parametrize(
    "connection",
    [
        {"host": "169.254.169.254"},
        {"host": "mongodb://127.0.0.1,169.254.169.254/"},
        {"host": "mongodb://127.0.0.1/?tlsCAFile=/etc/shadow"},
        {"host": "mongodb://127.0.0.1/?authMechanism=MONGODB-AWS"},
        {"host": "mongodb+srv://cluster0.example.net/?tls=false"},
        {"host": "--out=/tmp/x"},
        {"database": "--out=x"},
        {"username": "a\nb"},
    ],
)
def test_refused_before_the_tool_runs(lab, connection):
    tools = Tools(lab.directory)
    plane = plane_with(lab, target(**connection))
    lab.agent(plane, BACKUPY_MONGO_BIN_DIR=tools.directory)
    plane.run_backup("job0", "r1", key=KEY)
    plane.wait_failure("r1", 20)
    assert not tools.noted("argv")


def test_up_there_and_back(lab):
    tools = Tools(lab.directory)
    host = Host(lab)
    host.agent.env["BACKUPY_MONGO_BIN_DIR"] = tools.directory
    secret = host.directory / "mongo.password"
    secret.write_text(PASSWORD)
    secret.chmod(0o600)
    url = "mongodb://backup@127.0.0.1:27018,127.0.0.1/shop?replicaSet=rs0"
    host.write(host.app("mongo", database=f'"{url}"', password=f'"file:{secret}"'))
    host.up()
    host.ok("backup", "mongo")
    written = f'uri: "mongodb://backup:{ENCODED}@127.0.0.1:27018,127.0.0.1/shop?replicaSet=rs0&authSource=shop"\n'
    assert tools.noted("config") == written
    copy = host.directory / "copy.archive"
    host.ok("restore", "mongo", "--to", copy)
    assert copy.read_bytes() == ARCHIVE
    told = host.ok("verify", host.runs("mongo")[0]["run_id"])
    assert "shop.orders" in told and "30" in told
    tools.behave(LOADED)
    into = f"mongodb://backup:{ENCODED}@127.0.0.1/other"
    host.ok("restore", "mongo", "--into", into, "--yes")
    words = tools.noted("argv").splitlines()
    assert "--nsFrom=shop.*" in words and "--nsTo=other.*" in words and "--stopOnError" in words
    tools.behave(LOADED.replace("0 doc", "7 doc"))
    done = host.command("restore", "mongo", "--into", into, "--yes")
    assert done.returncode == FAILED and "did not take all" in done.stderr and "hunter2" not in done.stderr
