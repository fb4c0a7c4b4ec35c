"""Runs: accepted once, ended once, in order, in time."""

import sqlite3
import threading
import time

import pytest

from conftest import config, sqlite_target
from plane import artifact, databases, proto
from plane.agent import wait_until

KEY = bytes(range(32))


def restored(lab, plane, done, key=None):
    """The digest of the database that a BackupCompleted brings back."""
    data = plane.objects.object(done["s3_key"])
    path = lab.directory / f"restored-{done['run_id']}"
    path.write_bytes(artifact.restore(data, done["compression"], key))
    return databases.sqlite_digest(path)


@pytest.mark.parametrize("key", [KEY, None], ids=["sealed", "open"])
@pytest.mark.parametrize("compression", ["zstd", "gzip", "none", ""])
def test_sqlite_comes_back(lab, compression, key):
    plane = lab.plane()
    [path] = lab.sqlite(plane, compression=compression, rows=9000)
    lab.agent(plane)
    plane.session()
    began = time.monotonic()
    order = plane.run_backup("job0", "r1", key=key)
    assert plane.wait_ack("cmd-r1")["accepted"]
    done = plane.wait_success("r1")
    took_ms = (time.monotonic() - began) * 1000
    data = plane.objects.object(done["s3_key"])
    assert done["job_id"] == "job0"
    assert done["s3_key"] == order["upload_creds"]["final_s3_key"]
    assert done["size_bytes"] == len(data) and done["sha256"] == artifact.sha256(data)
    assert done["compression"] == (compression or "zstd")
    assert done["encrypted_dek"] == (key or b"")
    assert done["db_engine_version"].startswith("SQLite 3.")
    assert 0 < done["duration_ms"] <= took_ms + 50
    assert restored(lab, plane, done, key) == databases.sqlite_digest(path)
    put = plane.objects.puts[0]
    assert put.headers["content-type"] == "application/octet-stream"
    assert "authorization" not in put.headers and "transfer-encoding" not in put.headers
    # Success is BackupCompleted, then SUCCESS, adjacent and not interrupted.
    kinds = [(r.kind, r.body.get("status")) for r in plane.journal if r.entry_id]
    at = next(i for i, (kind, _) in enumerate(kinds) if kind == "backup_completed")
    assert kinds[at + 1] == ("job_update", proto.SUCCESS)


def test_progress_steps(lab):
    plane = lab.plane()
    lab.sqlite(plane, rows=60000)
    plane.objects.bytes_per_sec = 6_000_000
    plane.heartbeat_interval_sec = 1
    lab.agent(plane)
    plane.run_backup("job0", "r1")
    plane.wait_success("r1")
    updates = [r for r in plane.journal if r.kind == "job_update" and r.body["status"] == proto.RUNNING]
    assert updates
    steps = [r.body["current_step"] for r in updates]
    assert set(steps) <= {"validating", "dumping", "uploading", "verifying"}
    # Progress is a slot that is overwritten: a step may be skipped, but the order never changes.
    order = [list(("validating", "dumping", "uploading", "verifying")).index(s) for s in steps]
    assert order == sorted(order)
    assert "uploading" in steps
    assert all(r.body["progress_percent"] <= 100 and r.body["job_id"] == "job0" for r in updates)
    by_step = {}
    for received in updates:
        by_step.setdefault(received.body["current_step"], []).append(received.at)
    for times in by_step.values():
        assert all(after - before > 0.8 for before, after in zip(times, times[1:])), by_step
    active = [r.body["active_job_ids"] for r in plane.journal if r.kind == "heartbeat"]
    assert ["job0"] in active


def test_repeat_of_a_finished_run(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    agent = lab.agent(plane)
    plane.run_backup("job0", "r1", key=KEY)
    done = plane.wait_success("r1")
    for number in range(2):
        plane.run_backup("job0", "r1", f"again-{number}", key=KEY)
        assert plane.wait_ack(f"again-{number}")["accepted"]
        plane.wait(lambda: len(plane.terminal("r1")) >= number + 2, 10, "the result again")
        agent.kill()
        agent.start()
        plane.session(after=number + 1)
    assert plane.messages("backup_completed", run_id="r1")[-1] == done
    assert len(plane.messages("backup_completed", run_id="r1")) >= 3
    assert len(plane.objects.puts) == 1, "nothing is uploaded twice"


def test_repeat_of_a_failed_run(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    lab.agent(plane)
    plane.run_backup("nobody", "r1")
    first = plane.wait_failure("r1")
    plane.run_backup("job0", "r1", "again")
    plane.wait(lambda: len(plane.terminal("r1")) == 2, 10, "the result again")
    assert {u["error_message"] for u in plane.messages("job_update", run_id="r1", status=proto.FAILED)} == {first}
    assert not plane.objects.puts


def test_repeat_of_an_unfinished_run_replaces_its_credentials(lab):
    plane = lab.plane()
    lab.sqlite(plane, jobs=2)
    lab.agent(plane)
    plane.objects.choose_fault = lambda key, number: "stall-answer" if key.startswith("job0") else None
    plane.run_backup("job0", "busy")
    plane.objects.wait_put(lambda put: put.key.startswith("job0"), 10)
    # Queued behind it: its credentials are replaced before it starts.
    plane.run_backup("job1", "r1", key=KEY, object_key="job1/old")
    plane.wait_ack("cmd-r1")
    plane.run_backup("job1", "r1", "again", key=KEY, object_key="job1/new")
    assert plane.wait_ack("again")["accepted"]
    plane.objects.choose_fault = lambda key, number: None
    plane.objects.release()
    done = plane.wait_success("r1")
    assert done["s3_key"] == "job1/new"
    plane.wait_terminal("busy")
    assert len(plane.messages("backup_completed", run_id="r1")) == 1
    assert not [put for put in plane.objects.puts if put.key == "job1/old"]


def test_unknown_job(lab):
    plane = lab.plane()
    lab.agent(plane)
    plane.run_backup("nobody", "r1")
    assert plane.wait_ack("cmd-r1")["accepted"], "a run with an id is accepted and then fails"
    assert "nobody" in plane.wait_failure("r1", 10)


@pytest.mark.parametrize("length", [1, 16, 31, 33, 64])
def test_key_of_another_length(lab, length):
    plane = lab.plane()
    lab.sqlite(plane)
    lab.agent(plane)
    plane.run_backup("job0", "r1", key=b"q" * length)
    assert "32" in plane.wait_failure("r1", 10)
    assert not plane.objects.puts


def test_encryption_without_a_key(lab):
    plane = lab.plane()
    lab.sqlite(plane, encryption_enabled=True)
    lab.agent(plane)
    plane.run_backup("job0", "r1")
    assert "key" in plane.wait_failure("r1", 10)
    plane.run_backup("job0", "r2", key=KEY)
    assert artifact.unseal(plane.objects.object(plane.wait_success("r2")["s3_key"]), KEY)
    assert len(plane.objects.puts) == 1


@pytest.mark.parametrize("url", [None, "", "not a url", "ftp://127.0.0.1/x", "file:///etc/passwd"])
def test_missing_or_odd_url(lab, url):
    plane = lab.plane()
    lab.sqlite(plane)
    lab.agent(plane)
    session = plane.session()
    order = plane.order("job0", "r1")
    if url is None:
        del order["upload_creds"]
    else:
        order["upload_creds"]["presigned_put_url"] = url
    session.send("run_backup", order, "c")
    assert plane.wait_failure("r1", 10)


def test_expired_url(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    lab.agent(plane)
    plane.run_backup("job0", "r1", ttl_sec=-5)
    message = plane.wait_failure("r1", 10)
    assert "expire" in message.lower()
    assert "X-Amz" not in message and "?" not in message
    assert not plane.objects.puts


def test_unknown_expiry_is_not_expired(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    lab.agent(plane)
    plane.run_backup("job0", "r1", expires_at_ms=0)
    plane.wait_success("r1")


def test_no_run_id(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    lab.agent(plane)
    session = plane.session()
    session.send("run_backup", plane.order("job0", ""), "no-id")
    answer = plane.wait_ack("no-id")
    assert not answer["accepted"] and answer["reason"]
    time.sleep(1)
    assert not plane.objects.puts


def test_no_correlation_id(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    lab.agent(plane)
    plane.session().send("run_backup", plane.order("job0", "r1"))
    plane.wait_success("r1")


@pytest.mark.parametrize("fault", ["stall", "stall-answer"])
def test_cancel(lab, fault):
    plane = lab.plane()
    lab.sqlite(plane)
    agent = lab.agent(plane)
    plane.objects.faults.append(fault)
    plane.run_backup("job0", "r1")
    plane.objects.wait_put(lambda put: put.received, 10)
    plane.run_backup("job0", "r2")
    plane.wait_ack("cmd-r2")
    began = time.monotonic()
    plane.session().send("cancel_job", {"job_id": "job0"}, "stop")
    assert plane.wait_ack("stop")["accepted"]
    for run_id in ("r1", "r2"):
        kind, _ = plane.wait_terminal(run_id, 5)
        assert kind == "cancelled"
    assert time.monotonic() - began < 2
    plane.run_backup("job0", "r3")
    plane.wait_success("r3")
    agent.kill()
    agent.start()
    plane.session(after=1)
    time.sleep(1.5)
    assert set(plane.terminal("r1")) == {"cancelled"}


def test_cancel_of_nothing(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    lab.agent(plane)
    plane.session().send("cancel_job", {"job_id": "job0"}, "stop")
    plane.wait_ack("stop")
    plane.run_backup("job0", "r1")
    plane.wait_success("r1")


def window(before_min, after_min):
    """A window around now, and the second (Unix) at which it ends."""
    now = int(time.time())
    end = (now // 60 + after_min) * 60
    text = lambda at: time.strftime("%H:%M", time.gmtime(at))
    return {"start_utc": text(now - before_min * 60), "end_utc": text(end)}, end


def test_maintenance_window(lab):
    plane = lab.plane()
    lab.sqlite(plane, jobs=3)
    if time.time() % 60 > 45:
        time.sleep(16)
    plane.config["maintenance"], end = window(2, 1)
    plane.config["advanced"] = {"max_parallel_jobs": 4}
    agent = lab.agent(plane)
    plane.run_backup("job0", "scheduled")
    plane.run_backup("job1", "manual", manual=True)
    plane.run_backup("job2", "hopeless", ttl_sec=2)
    plane.wait_success("manual", 10)
    assert "window" in plane.wait_failure("hopeless", 10) or time.time() > end
    if time.time() < end - 8:
        agent.kill()
        agent.start()
    plane.wait_success("scheduled", 90)
    assert time.time() >= end
    put = plane.objects.wait_put(lambda put: put.key.startswith("job0"), 1)
    started = time.time() - (time.monotonic() - put.started)
    assert end - 0.1 <= started < end + 5


def test_window_over_midnight(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    outside, _ = window(-120, 180)
    plane.config["maintenance"] = outside
    lab.agent(plane)
    plane.run_backup("job0", "r1")
    plane.wait_success("r1", 10)
    # From two hours ahead to one hour ago: everything but the hours around now.
    now = time.time()
    text = lambda at: time.strftime("%H:%M", time.gmtime(at))
    around = {"start_utc": text(now + 7200), "end_utc": text(now - 3600)}
    plane.config = {**plane.config, "version": 2, "maintenance": around}
    plane.session().send("config_update", {"config": plane.config}, "cfg")
    plane.run_backup("job0", "r2")
    plane.wait_success("r2", 10)


def stalled(plane):
    """The keys of uploads that are under way."""
    return [put.key for put in plane.objects.puts if put.received and not put.ended]


@pytest.mark.parametrize("limit, expected", [(0, 1), (1, 1), (3, 3)])
def test_max_parallel_jobs(lab, limit, expected):
    plane = lab.plane()
    lab.sqlite(plane, jobs=4)
    plane.config["advanced"] = {"max_parallel_jobs": limit}
    lab.agent(plane)
    first = {"left": expected}

    def fault(key, number):
        first["left"] -= 1
        return "stall-answer" if first["left"] >= 0 else None

    plane.objects.choose_fault = fault
    for number in range(4):
        plane.run_backup(f"job{number}", f"r{number}")
    wait_until(lambda: len(stalled(plane)) == expected, 15, f"{expected} uploads")
    time.sleep(1.5)
    assert len(plane.objects.puts) == expected
    plane.objects.release()
    for number in range(4):
        plane.wait_success(f"r{number}")


def test_no_overlap_of_one_job(lab):
    plane = lab.plane()
    lab.sqlite(plane, jobs=2)
    plane.config["advanced"] = {"max_parallel_jobs": 8}
    lab.agent(plane)
    plane.objects.faults.append("stall-answer")
    plane.run_backup("job0", "r0")
    plane.objects.wait_put(lambda put: put.received, 10)
    for number in range(1, 4):
        plane.run_backup("job0", f"r{number}")
    plane.run_backup("job1", "other")
    plane.wait_success("other")
    time.sleep(1)
    assert sum(p.key.startswith("job0") for p in plane.objects.puts) == 1
    plane.objects.release()
    for number in range(4):
        plane.wait_success(f"r{number}")
    ranges = sorted((p.started, p.ended) for p in plane.objects.puts if p.key.startswith("job0"))
    assert all(before[1] <= after[0] + 0.01 for before, after in zip(ranges, ranges[1:]))


def test_store_faults_are_retried_with_the_same_bytes(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    lab.agent(plane)
    plane.objects.faults.extend(["503", "reset", "lost-answer"])
    plane.run_backup("job0", "r1", key=KEY)
    plane.wait_success("r1", 90)
    whole = {p.sha256 for p in plane.objects.puts if p.fault != "reset"}
    assert len(whole) == 1, "one attempt, one dump, the same sealed bytes"
    assert len(plane.objects.puts) == 4


def test_too_many_requests(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    lab.agent(plane)
    plane.objects.faults.extend(["429", "500"])
    plane.run_backup("job0", "r1")
    plane.wait_success("r1", 60)


@pytest.mark.parametrize("fault, word", [("403", "403"), ("404", "404"), ("redirect", "307")])
def test_refusals_are_final(lab, fault, word):
    plane = lab.plane()
    lab.sqlite(plane, retry={"max_attempts": 3, "backoff_seconds": [1]})
    lab.agent(plane)
    plane.objects.choose_fault = lambda key, number: fault
    plane.run_backup("job0", "r1")
    message = plane.wait_failure("r1", 20)
    assert word in message and "X-Amz" not in message and "?" not in message
    assert len(plane.objects.puts) == 1
    assert not [p for p in plane.objects.puts if p.key == "elsewhere"]


def test_early_success_is_not_believed(lab):
    """A 200 before the body was taken says nothing about the object."""
    plane = lab.plane()
    lab.sqlite(plane, rows=40000)
    lab.agent(plane)
    plane.objects.faults.append("early-200")
    plane.run_backup("job0", "r1")
    kind, _ = plane.wait_terminal("r1", 90)
    if kind == "success":
        done = plane.messages("backup_completed", run_id="r1")[0]
        assert plane.objects.object(done["s3_key"]) is not None, "a false success"


@pytest.mark.parametrize("fault", ["early-503", "reset-head"])
def test_early_answers(lab, fault):
    plane = lab.plane()
    lab.sqlite(plane, rows=40000)
    lab.agent(plane)
    plane.objects.faults.append(fault)
    plane.run_backup("job0", "r1")
    plane.wait_success("r1", 60)


def test_permanent_errors_are_not_retried(lab):
    plane = lab.plane()
    plane.config = config(
        [sqlite_target("t", "/nonexistent/x.db")],
        [{"id": "j", "target_id": "t", "retry": {"max_attempts": 5, "backoff_seconds": [60]}}],
    )
    lab.agent(plane)
    plane.run_backup("j", "r1")
    assert "/nonexistent/x.db" in plane.wait_failure("r1", 10)


def test_timeout(lab):
    plane = lab.plane()
    lab.sqlite(plane, timeout_sec=3)
    lab.agent(plane)
    plane.session()
    plane.objects.choose_fault = lambda key, number: "stall-answer"
    began = time.monotonic()
    plane.run_backup("job0", "r1")
    message = plane.wait_failure("r1", 15)
    assert "time" in message.lower()
    assert 2.5 < time.monotonic() - began < 6


def test_link_loss_does_not_touch_a_run(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    lab.agent(plane)
    plane.objects.faults.append("stall")
    plane.objects.faults.append(None)
    plane.run_backup("job0", "r1")
    put = plane.objects.wait_put(lambda put: put.received, 10)
    for number in range(2):
        plane.session(after=number).cut(reset=True)
    session = plane.session(after=2)
    assert put.ended == 0, "the upload goes on"
    beat = plane.wait(lambda: next((r for r in session.received if r.kind == "heartbeat"), None), 5)
    assert beat.body["active_job_ids"] == ["job0"]
    plane.objects.release()
    plane.wait_success("r1")
    assert len(plane.messages("backup_completed")) == 1


def test_result_while_the_server_is_away(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    agent = lab.agent(plane)
    plane.objects.bytes_per_sec = 400_000
    plane.run_backup("job0", "r1")
    plane.objects.wait_put(lambda put: put.received, 10)
    plane.unlisten()
    plane.session().cut()
    plane.objects.wait_put(lambda put: put.status == 200, 20)
    time.sleep(0.5)
    agent.kill()
    agent.start()
    plane.listen()
    plane.wait_success("r1", 30)
    assert len(plane.objects.puts) == 1


def test_restart_resumes_as_a_new_attempt(lab):
    plane = lab.plane()
    [path] = lab.sqlite(plane)
    agent = lab.agent(plane)
    plane.objects.faults.append("stall")
    plane.run_backup("job0", "r1", key=KEY)
    plane.objects.wait_put(lambda put: put.received, 10)
    agent.kill()
    agent.start()
    done = plane.wait_success("r1")
    assert restored(lab, plane, done, KEY) == databases.sqlite_digest(path)


def test_clean_stop_resumes_too(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    agent = lab.agent(plane)
    plane.objects.faults.append("stall")
    plane.run_backup("job0", "r1", key=KEY)
    plane.objects.wait_put(lambda put: put.received, 10)
    assert agent.stop(timeout=60) == 0
    assert not plane.terminal("r1")
    agent.start()
    plane.wait_success("r1")


def test_restart_with_an_expired_url(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    agent = lab.agent(plane)
    plane.objects.faults.append("stall")
    plane.run_backup("job0", "r1", ttl_sec=4)
    plane.objects.wait_put(lambda put: put.received, 4)
    agent.kill()
    time.sleep(4)
    agent.start()
    assert "expire" in plane.wait_failure("r1", 15).lower()


def test_restarts_are_bounded(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    agent = lab.agent(plane)
    plane.objects.choose_fault = lambda key, number: "stall"
    plane.run_backup("job0", "r1")
    for number in range(8):
        try:
            plane.objects.wait_put(lambda put: put.number == number + 1 and put.received, 15)
        except TimeoutError:
            break
        agent.kill()
        agent.start()
    assert plane.wait_failure("r1", 15)
    assert 5 <= len(plane.objects.puts) <= 7


def test_concurrent_writers(lab):
    plane = lab.plane()
    for wal in (True, False):
        path = lab.directory / f"busy-{wal}.db"
        databases.make_sqlite(path, 20000, wal)
        plane.config = config([sqlite_target("t", path)], [{"id": "j", "target_id": "t"}], int(wal) + 1)
        agent = lab.agent(plane)
        plane.session(after=len(plane.sessions))
        stop = threading.Event()

        def write():
            db = sqlite3.connect(path, timeout=30)
            db.execute("PRAGMA synchronous=OFF")
            while not stop.is_set():
                with db:
                    db.execute("INSERT INTO note (title, body) VALUES ('a', randomblob(900))")
                    db.execute("INSERT INTO note (title, body) VALUES ('b', randomblob(900))")
            db.close()

        thread = threading.Thread(target=write)
        thread.start()
        try:
            plane.run_backup("j", f"r{wal}")
            done = plane.wait_success(f"r{wal}", 60)
        finally:
            stop.set()
            thread.join()
        restored(lab, plane, done)
        copy = sqlite3.connect(lab.directory / f"restored-r{wal}")
        pairs = copy.execute("SELECT sum(title = 'a'), sum(title = 'b') FROM note").fetchone()
        assert pairs[0] == pairs[1], "a transaction is in the copy as a whole or not at all"
        agent.stop()


@pytest.mark.parametrize("what", ["missing", "empty", "garbage", "corrupt", "directory", "truncated"])
def test_broken_databases(lab, what):
    path = lab.directory / "broken.db"
    if what == "empty":
        path.write_bytes(b"")
    elif what == "garbage":
        path.write_bytes(b"\x93" * 100_000)
    elif what == "directory":
        path.mkdir()
    elif what in ("corrupt", "truncated"):
        databases.make_sqlite(path, 3000)
        data = bytearray(path.read_bytes())
        if what == "truncated":
            data = data[: len(data) // 2]
        else:
            # Every page of the tree loses its header.
            for at in range(4096 * 3, len(data), 4096):
                data[at : at + 16] = b"\xee" * 16
        path.write_bytes(data)
    plane = lab.plane()
    plane.config = config([sqlite_target("t", path)], [{"id": "j", "target_id": "t"}])
    lab.agent(plane)
    plane.run_backup("j", "r1")
    message = plane.wait_failure("r1", 20)
    assert str(path) in message
    assert not plane.objects.puts


def test_read_only_file(lab):
    plane = lab.plane()
    [path] = lab.sqlite(plane, wal=True)
    path.chmod(0o400)
    lab.agent(plane)
    plane.run_backup("job0", "r1")
    assert restored(lab, plane, plane.wait_success("r1")) == databases.sqlite_digest(path)
