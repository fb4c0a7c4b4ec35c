"""The link: handshake, heartbeats, deadlines, tolerance, backoff."""

import os
import socket
import struct
import time

import pytest

from plane import proto, websocket
from plane.agent import wait_until

MIB = 1 << 20


def gaps(plane):
    """Seconds from the end of each connection to the start of the next."""
    sessions = list(plane.sessions)
    return [after.opened - before.ended for before, after in zip(sessions, sessions[1:])]


def assert_backoff(measured, expected):
    """Each gap is its step ±20 %; 0.3 s more are granted for a busy machine."""
    for gap, step in zip(measured, expected, strict=True):
        assert 0.8 * step - 0.05 <= gap <= 1.2 * step + 0.3, f"gaps {measured}, expected {expected}"


def still_here(plane, session, word="still-here"):
    """The session answers a Ping."""
    session.send("ping", {"ts_ms": 1}, word)
    assert plane.wait_ack(word, 5)["accepted"]
    assert session.alive


def test_register(lab):
    plane = lab.plane(secure=True)
    agent = lab.agent(plane)
    session = plane.session()
    assert session.path == "/v1/agents/connect"
    assert session.headers["authorization"] == f"Bearer {plane.key}"
    assert session.sock.version() == "TLSv1.3"
    register = session.register
    assert session.received[0].kind == "register"
    assert register["os"] == "linux"
    assert register["arch"] == {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, "arm")
    assert register["hostname"] == socket.gethostname()
    assert register["agent_version"] and register["agent_version"] in agent.command("version").stdout
    assert {"durable_acks", "sqlite"} <= set(register["capabilities"])
    assert register["last_known_config_version"] == 0
    assert len(register["store_id"]) >= 16
    assert abs(session.received[0].ts_ms / 1000 - time.time()) < 30
    assert not register.get("_unknown")


def test_store_id_and_seq_survive_kill(lab):
    plane = lab.plane()
    agent = lab.agent(plane)
    ids = set()
    for number in range(4):
        session = plane.session(after=number)
        ids.add(session.register["store_id"])
        still_here(plane, session, f"p{number}")
        agent.kill() if number % 2 else agent.stop()
        if number < 3:
            agent.start()
    assert len(ids) == 1
    plane.check()


@pytest.mark.parametrize(
    "path", ["", "/", "/prefix", "/prefix/", "/prefix/v1/agents/connect", "/v1/agents/connect"]
)
def test_url_path(lab, path):
    plane = lab.plane()
    lab.agent(plane, BACKUPY_SERVER_URL=plane.url + path)
    prefix = "/prefix" if "prefix" in path else ""
    assert plane.session().path == prefix + "/v1/agents/connect"


def test_heartbeats(lab):
    plane = lab.plane()
    plane.heartbeat_interval_sec = 1
    agent = lab.agent(plane)
    session = plane.session()
    beats = lambda: [r for r in session.received if r.kind == "heartbeat"]
    plane.wait(lambda: len(beats()) >= 6, 12, "six heartbeats")
    times = [r.at for r in beats()]
    assert times[0] - session.received[0].at < 1, "the first heartbeat comes right after the handshake"
    for before, after in zip(times, times[1:]):
        assert 0.6 < after - before < 1.6, times
    beat = beats()[-1].body
    metrics, disk = beat["metrics"], os.statvfs(agent.state)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert metrics["mem_total_bytes"] == pytest.approx(memory, rel=0.02)
    assert 0 < metrics["mem_used_bytes"] < metrics["mem_total_bytes"]
    assert metrics["disk_total_bytes"] == pytest.approx(disk.f_frsize * disk.f_blocks, rel=0.02)
    used = disk.f_frsize * (disk.f_blocks - disk.f_bfree)
    assert metrics["disk_used_bytes"] == pytest.approx(used, rel=0.1)
    assert 0 <= metrics["cpu_percent"] <= 100
    assert metrics["queue_depth"] < 100
    assert beat["config_version"] == 1
    assert beat["active_job_ids"] == []


def test_default_heartbeat_interval(lab):
    plane = lab.plane()
    plane.heartbeat_interval_sec = 0
    lab.agent(plane)
    session = plane.session()
    time.sleep(5)
    assert sum(r.kind == "heartbeat" for r in session.received) == 1


def test_ping_is_answered(lab):
    plane = lab.plane()
    lab.agent(plane)
    session = plane.session()
    for number in range(50):
        session.send("ping", {"ts_ms": number}, f"ping-{number}")
    for number in range(50):
        received = plane.wait_message("ack", lambda b: b["correlation_id"] == f"ping-{number}", 5)
        assert received.body["accepted"]
        assert received.correlation_id == f"ping-{number}", "under the same correlation id"


def test_websocket_ping(lab):
    plane = lab.plane()
    lab.agent(plane)
    session = plane.session()
    session.channel.write(websocket.PING, b"hello")
    wait_until(lambda: session.pongs == 1, 5, "a pong")


def test_tolerance(lab):
    plane = lab.plane()
    agent = lab.agent(plane)
    session = plane.session()
    channel = session.channel
    channel.write(websocket.TEXT, b'{"not": "for agents"}')
    still_here(plane, session, "after-text")
    channel.write(websocket.BINARY, b"")
    still_here(plane, session, "after-empty")
    channel.write(websocket.BINARY, proto.encode("Envelope", {"seq": 900, "ts_ms": 1}))
    unknown = proto.encode("Envelope", {"seq": 901}) + b"\xaa\x06\x03abc" + b"\xf8\x07\x07"
    channel.write(websocket.BINARY, unknown)
    still_here(plane, session, "after-unknown")
    session.send("self_update", {"target_version": "9.9.9"}, "update")
    session.send("run_health_check", {"check_id": "none"}, "check")
    session.send("cancel_job", {"job_id": "none"}, "cancel")
    still_here(plane, session, "after-odd-commands")
    # An answer to nothing, and a message that only an agent may send.
    session.send("ack", {"correlation_id": "seq-99999999999999999999", "accepted": True})
    session.send("ack", {"correlation_id": "seq-", "accepted": True})
    session.send("heartbeat", {"config_version": 3}, "mine")
    still_here(plane, session, "after-misdirected")
    assert "text" in agent.log.lower(), "a text frame is worth a warning"
    assert len(plane.sessions) == 1


def test_fragments(lab):
    plane = lab.plane()
    # No confirmations: they would come between the fragments.
    plane.acks = "silent"
    lab.agent(plane)
    session = plane.session()
    data = proto.envelope("ping", {"ts_ms": 1}, correlation_id="in-pieces", seq=77)
    pieces = [data[:5], data[5:6], data[6:]]
    for at, piece in enumerate(pieces):
        opcode = websocket.BINARY if at == 0 else websocket.CONTINUATION
        session.channel.write_raw(websocket.frame(opcode, piece, final=at == 2))
        session.channel.write(websocket.PING, b"between")
        time.sleep(0.05)
    assert plane.wait_ack("in-pieces")["accepted"]


def padded_ping(size, word):
    """A Ping envelope of exactly `size` bytes, padded with an unknown field."""
    data = proto.envelope("ping", {"ts_ms": 1}, correlation_id=word, seq=88)
    room = size - len(data) - 2 - 4
    padding = b"\xc2\x3e" + proto._varint(room) + b"x" * room
    assert len(data + padding) == size
    return data + padding


def test_largest_message(lab):
    plane = lab.plane()
    lab.agent(plane)
    session = plane.session()
    session.channel.write(websocket.BINARY, padded_ping(4 * MIB, "large"))
    assert plane.wait_ack("large", 15)["accepted"]
    try:
        session.channel.write(websocket.BINARY, padded_ping(4 * MIB + 1, "too-large"))
    except websocket.Closed:
        pass
    plane.session(after=1, timeout=15)
    assert session.ended is not None
    assert not plane.messages("ack", correlation_id="too-large")


def test_garbage_does_not_kill(lab):
    plane = lab.plane()
    agent = lab.agent(plane)
    for at, garbage in enumerate([b"\xff" * 50, b"\x0a\x7f", os.urandom(4000)]):
        session = plane.session()
        try:
            session.channel.write(websocket.BINARY, garbage)
            session.channel.write_raw(b"\x83\x01\xff")
        except websocket.Closed:
            pass
        plane.wait(lambda: session.ended, 10, "the end of a broken session")
    plane.session()
    assert agent.running


def test_backoff_doubles_and_resets(lab):
    plane = lab.plane()
    # Four refusals, a good session, then refusals again: the pause must start over at 1 s.
    plane.script = lambda number: "accept" if number == 4 else "close"
    lab.agent(plane)
    good = plane.session(timeout=40, after=4)
    assert_backoff(gaps(plane), [1, 2, 4, 8])
    good.cut()
    plane.wait(lambda: len(plane.sessions) >= 8, 20, "three more attempts")
    assert_backoff(gaps(plane)[4:7], [1, 2, 4])


def test_backoff_after_server_errors(lab):
    plane = lab.plane()
    plane.script = lambda number: ["503", "500"][number] if number < 2 else "accept"
    lab.agent(plane)
    plane.session(timeout=20, after=2)
    assert_backoff(gaps(plane), [1, 2])


@pytest.mark.parametrize("end", ["close-frame", "reset", "fin"])
def test_session_end_then_one_second(lab, end):
    plane = lab.plane()
    lab.agent(plane)
    for number in range(3):
        session = plane.session(after=number)
        if end == "close-frame":
            session.channel.write(websocket.CLOSE, struct.pack(">H", 1001))
        else:
            session.cut(reset=end == "reset")
        plane.session(after=number + 1)
    assert_backoff(gaps(plane), [1, 1, 1])


@pytest.mark.parametrize("status", ["401", "403"])
def test_wrong_key_waits_at_the_cap(lab, status):
    plane = lab.plane()
    plane.script = lambda number: status
    agent = lab.agent(plane)
    plane.wait(lambda: plane.sessions and plane.sessions[0].ended, 10, "the refusal")
    time.sleep(12)
    assert len(plane.sessions) == 1, "the next attempt is a minute away"
    assert agent.running
    assert "key" in agent.log.lower()


@pytest.mark.parametrize("action", ["mute", "no-ack"])
def test_handshake_deadline(lab, action):
    plane = lab.plane()
    plane.script = lambda number: action if number == 0 else "accept"
    lab.agent(plane)
    plane.session(timeout=40, after=1)
    first = plane.sessions[0]
    assert 13 < first.ended - first.opened < 18


def test_first_message_must_be_register_ack(lab):
    plane = lab.plane()
    plane.script = lambda number: "wrong-first" if number == 0 else "accept"
    lab.agent(plane)
    plane.session(timeout=20, after=1)
    assert not plane.messages("ack", correlation_id="too-early")


def test_connects_when_the_server_appears(lab):
    plane = lab.plane()
    plane.unlisten()
    agent = lab.agent(plane)
    time.sleep(2)
    assert agent.running
    plane.listen()
    plane.session(timeout=10)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_idle_deadline(lab):
    plane = lab.plane()
    plane.answer_pings = False
    plane.acks = "silent"
    plane.heartbeat_interval_sec = 20
    lab.agent(plane)
    first = plane.session()
    plane.session(timeout=120, after=1)
    assert 85 < first.ended - first.opened < 97


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_server_pings_keep_a_quiet_link(lab):
    plane = lab.plane()
    plane.acks = "silent"
    lab.agent(plane)
    session = plane.session()
    for _ in range(5):
        time.sleep(25)
        session.channel.write(websocket.PING, b"")
    assert session.alive and len(plane.sessions) == 1


def test_peer_that_stops_reading(lab):
    """A peer that sends but never reads ends by the write deadline, not by memory or a deadlock."""
    plane = lab.plane(receive_buffer=4096)
    agent = lab.agent(plane)
    session = plane.session()
    plane.cut_after = lambda s: s is session and plane.wait(lambda: s.end, 60)
    session.send("ping", {"ts_ms": 1}, "stop reading")
    time.sleep(0.3)
    before = agent.memory()
    ping = websocket.frame(
        websocket.BINARY, proto.envelope("ping", {"ts_ms": 1}, correlation_id="f" * 2000)
    )
    began = time.monotonic()
    try:
        session.sock.settimeout(30)
        while time.monotonic() - began < 30:
            session.channel.write_raw(ping * 50)
    except (websocket.Closed, TimeoutError):
        pass
    took = time.monotonic() - began
    session.end = "stopped"
    with plane.changed:
        plane.changed.notify_all()
    plane.session(timeout=20, after=1)
    assert took < 20, "a blocked write ends the link after 10 s"
    assert agent.memory() - before < 32 * MIB
