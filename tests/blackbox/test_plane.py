"""The plane proves itself first: codec, frames, artifact, store, and a session with the fake agent."""

import http.client
import os
import sys
import urllib.parse

import pytest

from plane import artifact, proto

KEY = bytes(range(32))


def test_codec_known_bytes():
    assert proto.encode("Ping", {"ts_ms": 300}) == b"\x08\xac\x02"
    assert proto.encode("Envelope", {"seq": 1, "entry_id": 2, "ping": {}}) == bytes.fromhex("0801a00602ca0300")
    message = {"version": 7, "jobs": [{"id": "j", "retry": {"backoff_seconds": [1, 300]}}]}
    decoded = proto.decode("AgentConfig", proto.encode("AgentConfig", message))
    assert decoded["version"] == 7
    assert decoded["jobs"][0]["retry"]["backoff_seconds"] == [1, 300]
    assert decoded["maintenance"] is None


@pytest.mark.parametrize("data", [b"\x08", b"\x0a\x05ab", b"\x08" + b"\xff" * 11, b"\x0b", b"\x00"])
def test_codec_refuses(data):
    with pytest.raises(proto.WireError):
        proto.decode("Envelope", data)


@pytest.mark.parametrize("size", [0, 1, artifact.FRAME, artifact.FRAME + 1])
def test_artifact_round_trip(size):
    plain = os.urandom(size)
    sealed = artifact.seal(plain, KEY)
    assert artifact.unseal(sealed, KEY) == plain
    for bad in (sealed[:-1], sealed + b"x", sealed[:-4]):
        with pytest.raises(artifact.BadArtifact):
            artifact.unseal(bad, KEY)
    for name in ("zstd", "gzip", "none"):
        assert artifact.decompress(artifact.compress(plain, name), name) == plain


def put(plane, key, body, ttl_sec=60.0, tamper=False):
    url, _ = plane.objects.presign(key, ttl_sec)
    url = urllib.parse.urlsplit(url + ("0" if tamper else ""))
    connection = http.client.HTTPConnection(url.netloc, timeout=10)
    connection.request("PUT", f"{url.path}?{url.query}", body)
    return connection.getresponse().status


def test_store(lab):
    plane = lab.plane()
    assert put(plane, "a/b", b"x" * 100) == 200
    assert plane.objects.object("a/b") == b"x" * 100
    assert put(plane, "a/c", b"x", ttl_sec=-1) == 403
    assert put(plane, "a/c", b"x", tamper=True) == 403
    plane.objects.faults.extend(["503", "reset", "lost-answer"])
    assert put(plane, "a/c", b"x") == 503
    for expected in (None, b"x" * 10):
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            put(plane, "a/c", b"x" * 10)
        assert plane.objects.object("a/c") == expected


@pytest.fixture
def fake(monkeypatch):
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake_agent.py")
    monkeypatch.setattr("plane.agent.COMMAND", [sys.executable, path])


@pytest.mark.parametrize("secure", [False, True])
def test_fake_session(lab, fake, secure):
    plane = lab.plane(secure)
    plane.objects.context = None
    [path] = lab.sqlite(plane)
    agent = lab.agent(plane)
    session = plane.session()
    session.send("ping", {"ts_ms": 1}, "p1")
    assert plane.wait_ack("p1")["accepted"]
    plane.run_backup("job0", "r1", key=KEY)
    done = plane.wait_success("r1")
    data = plane.objects.object(done["s3_key"])
    assert artifact.restore(data, "zstd", KEY)[:15] == b"SQLite format 3"
    plane.run_backup("no such job", "r2")
    assert plane.wait_failure("r2") == ""
    session.cut()
    plane.session(after=session.number + 1)
    assert agent.stop() == 0


def test_check_notices(lab, fake):
    plane = lab.plane()
    lab.sqlite(plane)
    lab.agent(plane)
    plane.run_backup("job0", "r1")
    done = plane.wait_success("r1")
    stored = plane.objects.object_path(done["s3_key"])
    good = stored.read_bytes()
    stored.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(AssertionError):
        plane.check()
    stored.write_bytes(good)
    plane.check()
    received = plane.sessions[0].received
    received.append(received[-1])
    with pytest.raises(AssertionError):
        plane.check()
    received.pop()
