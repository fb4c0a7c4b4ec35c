"""`backupy up` with its storage in a bucket of an S3 service that checks signatures."""

import json
import shutil

import pytest

from plane import databases, s3
from plane.agent import wait_until
from test_up import FAILED, OK, STATE, USAGE, Host

PREFIX = "hosts/web1/"


@pytest.fixture(scope="module")
def service():
    server = s3.S3()
    yield server
    server.close()


@pytest.fixture
def bucket(service):
    """The service with an empty bucket."""
    for key in service.objects():
        service.delete(key)
    return service


class S3Host(Host):
    """A host whose `up` stores in a bucket."""

    def __init__(self, lab, service):
        super().__init__(lab)
        self.service = service
        self.secret = lab.directory / "s3.secret"
        self.secret.write_text(s3.SECRET_KEY + "\n")
        self.secret.chmod(0o600)
        self.agent.env["S3_ACCESS_KEY"] = s3.ACCESS_KEY
        # A proxy is not for this machine, and must not get in the way.
        self.agent.env["HTTPS_PROXY"] = "http://127.0.0.1:9"
        lab.secrets.add(s3.SECRET_KEY)
        lab.secrets.add("X-Amz-Signature=")

    def write(self, *backups, top="", **settings):
        """The file of `up`."""
        table = {
            "endpoint": self.service.endpoint,
            "bucket": self.service.bucket,
            "prefix": PREFIX,
            "access_key": "env:S3_ACCESS_KEY",
            "secret_key": f"file:{self.secret}",
            **settings,
        }
        inline = ", ".join(f'{key} = "{value}"' for key, value in table.items())
        text = f'state_dir = "{self.state}"\n{top}\n[storage]\ns3 = {{ {inline} }}\n'
        for backup in backups or (self.app(),):
            text += "\n[[backup]]\n" + "\n".join(f"{k} = {v}" for k, v in backup.items()) + "\n"
        self.file.write_text(text)

    def problems(self):
        """What `status` complains of; nothing while nobody answers."""
        done = self.command("status", "--json", config=False)
        return json.loads(done.stdout or "{}").get("problems", [])

    def stopped(self):
        """Whether the process has ended."""
        return self.agent.process.poll() is not None

    def stored(self):
        """The artifacts below the prefix."""
        return sorted(key for key in self.service.objects() if key.startswith(PREFIX) and key.endswith(".bky"))

    def good(self, what="app"):
        """Waits for the first good run."""
        return wait_until(lambda: [run for run in self.runs(what) if run["state"] == "ok"], 30, "a good run")[0]


@pytest.fixture
def host(lab, bucket):
    return S3Host(lab, bucket)


def test_backup_verify_restore(host):
    host.write()
    assert host.service.endpoint in host.agent.command("up", "--check", "--config", str(host.file)).stdout
    host.up()
    host.ok("backup", "app")
    run = host.runs("app")[0]
    assert run["state"] == "ok"
    objects = host.service.objects()
    assert objects[PREFIX + run["object_key"]] == run["size_bytes"]
    assert PREFIX + run["object_key"] + ".json" in objects
    assert PREFIX + ".backupy-storage" in objects
    assert not [key for key in objects if "probe" in key], "the probe is removed"
    assert host.restored("app") == host.digest
    host.ok("verify", "app")
    for key in objects:
        data = host.service.get(key)
        assert b"SQLite format 3" not in data and b"title 1" not in data
    assert host.command("status", config=False).returncode == OK
    host.stop()
    assert host.restored(run["run_id"], "offline.db") == host.digest, "without a running process, too"
    host.ok("verify", "app")


def test_with_storage_and_master_key_alone(host):
    host.write()
    host.up()
    run = host.good()
    host.stop()
    key = host.directory / "master.key"
    shutil.copy(host.state / "master.key", key)
    key.chmod(0o600)
    shutil.rmtree(host.state)
    host.file.unlink()
    env = {**host.agent.env, "AWS_ACCESS_KEY_ID": s3.ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": s3.SECRET_KEY}
    host.agent.env = env
    place = f"s3://{host.service.bucket}/{PREFIX}?endpoint={host.service.endpoint}"
    common = ("--storage", place, "--master-key", str(key), "--state-dir", str(host.directory / "nowhere"))
    target = host.directory / "elsewhere.db"
    done = host.agent.command("restore", "app", "--to", str(target), *common)
    assert done.returncode == OK, done.stderr
    assert databases.sqlite_digest(target) == host.digest
    done = host.agent.command("verify", run["run_id"], *common)
    assert done.returncode == OK, done.stderr
    done = host.agent.command("verify", "app", "--storage", place + "&secret_key=abc", *common[2:])
    assert done.returncode == USAGE and "must not hold a key" in done.stderr


def test_rebuild_on_a_new_machine(host):
    host.write()
    host.up()
    run = host.good()
    host.stop()
    key = (host.state / "master.key").read_bytes()
    shutil.rmtree(host.state)
    host.state.mkdir(mode=0o700)
    (host.state / "master.key").write_bytes(key)
    (host.state / "master.key").chmod(0o600)
    host.ok("runs", "--rebuild")
    assert [one["run_id"] for one in host.runs("app")] == [run["run_id"]]
    assert host.restored("app") == host.digest
    host.up()
    host.ok("backup", "app")
    assert len([one for one in host.runs("app") if one["state"] == "ok"]) == 2


def test_keep_rules_remove_objects(host):
    host.write(host.app(keep="{ last = 2 }"))
    host.up()
    host.good()
    for _ in range(3):
        host.ok("backup", "app")
    kept = wait_until(lambda: len(host.stored()) == 2 and host.stored(), 30, "two artifacts")
    newest = sorted(PREFIX + run["object_key"] for run in host.runs("app")[:2])
    assert kept == newest
    manifests = sorted(key for key in host.service.objects() if key.endswith(".json"))
    assert manifests == [key + ".json" for key in newest]


def test_a_large_dump_goes_in_parts(host):
    """Streamed in more parts than come with the order, and the store really made one object of them."""
    digest = databases.make_sqlite(host.database.with_name("large.db"), rows=2400, blob=20_000)
    large = {**host.app("large", compression='"none"'), "database": f'"sqlite://{host.database.with_name("large.db")}"'}
    host.write(large)
    host.up()
    run = host.good("large")
    assert run["size_bytes"] > 45 * 1024 * 1024
    etag = host.service.etags()[PREFIX + run["object_key"]]
    assert int(etag.strip('"').rsplit("-", 1)[1]) >= 6, etag
    assert host.restored("large") == digest
    host.ok("verify", "large")
    assert host.service.uploads() == []


def test_a_kill_in_the_middle_of_an_upload(host):
    """The upload of an open run is not given up at the start; afterwards nothing is left of it."""
    digest = databases.make_sqlite(host.database.with_name("large.db"), rows=1500, blob=20_000)
    large = {**host.app("large", compression='"none"'), "database": f'"sqlite://{host.database.with_name("large.db")}"'}
    host.write(large)
    host.agent.env["BACKUPY_UPLOAD_LIMIT"] = "6MiB/s"
    host.up()
    wait_until(host.service.uploads, 30, "an upload")
    run_id = host.runs("large")[0]["run_id"]
    host.agent.kill()
    assert host.service.uploads(), "it was killed before the end"
    host.agent.env["BACKUPY_UPLOAD_LIMIT"] = "100MiB/s"
    host.up()
    run = host.good("large")
    assert run["run_id"] == run_id
    assert host.restored("large") == digest
    wait_until(lambda: host.service.uploads() == [], 30, "no upload that is left")
    assert len(host.stored()) == 1


def test_what_a_crash_left_of_uploads_is_given_up(host):
    host.write()
    host.up()
    run_id = host.good()["run_id"]
    host.stop()
    ours = PREFIX + f"app/20260101T000000Z-{run_id}-2.bky"
    # Another host's that uses the same prefix, and what is not an artifact at all.
    foreign = [PREFIX + "app/20260101T000000Z-0123456789ab-1.bky", PREFIX + "somebody/else.bin"]
    for key in (ours, *foreign):
        assert host.service.request("POST", f"/{host.service.bucket}/{key}", {"uploads": ""})[0] == 200
    assert len(host.service.uploads()) == 3
    host.up()
    left = sorted(key.encode() for key in foreign)
    wait_until(lambda: sorted(host.service.uploads()) == left, 30, "only the foreign uploads")


def test_damage_in_the_bucket(host):
    host.write()
    host.up()
    run = host.good()
    key = PREFIX + run["object_key"]
    data = bytearray(host.service.get(key))
    data[len(data) // 2] ^= 1
    host.service.put(key, bytes(data))
    done = host.command("verify", "app")
    assert done.returncode == FAILED and "is bad" in done.stderr
    assert not (host.directory / "restored.db").exists()
    assert host.command("restore", "app", "--to", host.directory / "restored.db").returncode == FAILED
    assert not (host.directory / "restored.db").exists()


@pytest.mark.parametrize(
    "settings, secret, words",
    [
        ({"access_key": "AKNOBODY000000000009"}, None, "access_key"),
        ({}, "another-secret", "secret_key"),
        ({"bucket": "nobodys"}, None, "no such bucket"),
    ],
)
def test_wrong_settings_are_told_at_the_start(host, settings, secret, words):
    if secret:
        host.secret.write_text(secret)
    host.write(**settings)
    done = host.agent.command("up", "--config", str(host.file), timeout=60)
    assert done.returncode == STATE, (done.returncode, done.stderr)
    assert words in done.stderr and "s3://" in done.stderr, done.stderr
    assert "AKNOBODY" not in done.stderr and "another-secret" not in done.stderr


def test_a_service_that_is_away_is_waited_for(lab):
    """Known and away at the start: `up` runs, says so, and goes on by itself when it is back."""
    service = s3.S3("away")
    try:
        host = S3Host(lab, service)
        host.write()
        host.up()
        host.good()
        host.stop()
        service.stop()
        host.up(healthy=False)
        away = lambda: [p for p in host.problems() if "failed to read from s3://away" in p]  # noqa: E731
        wait_until(away, 60, "a status that says what is wrong")
        assert host.runs("app"), "the catalogue answers"
        assert not host.stopped(), "`up` runs on"
        service.start()
        wait_until(lambda: not away(), 120, "a status that is calm again without anybody's help")
        host.ok("backup", "app")
        assert len(host.stored()) == 2
        assert host.restored("app") == host.digest
    finally:
        service.close()


def test_every_mistake_has_its_line(host):
    host.file.write_text(
        f'state_dir = "{host.state}"\n[storage]\ndirectory = "/x"\n[storage.s3]\nbucket = "b"\n'
        '[[backup]]\nname = "a"\ndatabase = "sqlite:///a.db"\nevery = "1h"\nkeep = { last = 1 }\n'
    )
    done = host.agent.command("up", "--check", "--config", str(host.file))
    assert done.returncode == USAGE and ":4: both `directory` and `s3`" in done.stderr, done.stderr
    host.write(endpoint="http://minio.lan:9000", prefix="../x", buckett="b", secret_key="clear-text-s3cret")
    done = host.agent.command("up", "--check", "--config", str(host.file))
    assert done.returncode == USAGE
    for words in ("insecure_http", "`prefix`", "did you mean `bucket`?"):
        assert words in done.stderr, done.stderr
    assert "clear-text-s3cret" not in done.stderr
    host.write(secret_key="clear-text-s3cret")
    done = host.agent.command("up", "--check", "--config", str(host.file))
    assert done.returncode == OK and "`secret_key` is written in the clear" in done.stdout, done.stdout
    assert "clear-text-s3cret" not in done.stdout + done.stderr
