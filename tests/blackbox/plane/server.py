"""The control plane: accepts agents, records all they say, answers as a test scripts it.

Per connection one reader thread; every envelope is journalled with its time before it is confirmed.
`Plane.check()` holds the promises that every test shares: sequence numbers, entry ids, one kind of
result per run, hashes equal to the stored object.
"""

import dataclasses
import hashlib
import os
import random
import socket
import ssl
import struct
import threading
import time

from . import proto, websocket
from .objects import ObjectStore
from .tls import TlsSocket


@dataclasses.dataclass
class Received:
    """An envelope from the agent."""

    at: float
    connection: int
    seq: int
    entry_id: int
    kind: str
    body: dict
    correlation_id: str
    ts_ms: int
    raw: bytes


class Session:
    """One TCP connection of the agent, from accept to its end."""

    def __init__(self, plane, number, sock):
        self.plane = plane
        self.number = number
        self.sock = sock
        self.channel = None
        self.opened = time.monotonic()
        self.ended = None
        self.end = ""
        self.path = ""
        self.headers = {}
        self.register = None
        self.up = threading.Event()
        self.received = []
        self.pings = 0
        self.pongs = 0
        self.texts = 0
        self.seq = 0
        self.unconfirmed = 0

    @property
    def alive(self):
        """Whether the handshake is done and the connection stands."""
        return self.up.is_set() and self.ended is None

    def send(self, payload, body, correlation_id="", **header):
        """Sends an envelope with the next sequence number."""
        with self.plane.changed:
            self.seq += 1
            seq = self.seq
        self.channel.write(
            websocket.BINARY,
            proto.envelope(
                payload,
                body,
                seq=seq,
                ts_ms=int(time.time() * 1000),
                correlation_id=correlation_id,
                **header,
            ),
        )

    def cut(self, reset=False):
        """Ends the connection without a close frame."""
        try:
            if reset:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


class Plane:
    """A control plane on a free port of the loopback.

    `script(session_number)` decides what happens to a connection before its handshake:
    "accept" (default), "close" (at once), "401", "403", "500", "mute" (never answers the upgrade),
    "no-ack" (upgrades, but never sends RegisterAck), "wrong-first" (sends something else first).
    `ignores(register)` true is "no-ack" for those agents.
    `acks` is "each", "batch", "late", or "silent" (the server does not know the extension).
    `forget(received)` true means that the server crashes before storing that envelope: not journalled.
    """

    def __init__(self, directory, context=None, store_context=None, key=None, receive_buffer=None):
        self.key = key or "bkpy_test_" + "".join(
            random.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", k=32)
        )
        self.context = context
        self.receive_buffer = receive_buffer
        self.objects = ObjectStore(directory / "objects", store_context)
        self.script = lambda number: "accept"
        self.acks = "each"
        self.forget = lambda received: False
        self.answer_pings = True
        self.heartbeat_interval_sec = 30
        self.config = {"version": 1}
        self.session_extra = {}
        self.cut_after = None
        self.part_urls = lambda request: {}
        self.ignores = lambda register: False
        self.sessions = []
        self.journal = []
        self.entries = {}
        self.violations = []
        self.runs = {}
        self.keys = {}
        self.changed = threading.Condition(threading.RLock())
        self.closed = False
        self.listener = None
        self.port = 0
        self.listen()

    # --- life

    def listen(self):
        """Starts (or, after `unlisten`, restarts) to accept on the same port."""
        self.listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        if self.receive_buffer:
            # Before a connection is there: a window once offered cannot be taken back. The kernel would drop what
            # the agent sends into it, and then the agent's own acknowledgements, and both sides stand still.
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def unlisten(self):
        """Refuses connections until `listen()`."""
        # A blocked accept() keeps the socket open in the kernel unless it is shut down first.
        if self.listener.fileno() >= 0:
            self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()

    @property
    def url(self):
        """What the agent gets as BACKUPY_SERVER_URL."""
        return f"{'https' if self.context else 'http'}://localhost:{self.port}"

    def close(self):
        """Ends everything."""
        self.closed = True
        self.unlisten()
        for session in list(self.sessions):
            session.cut()
        self.objects.close()

    # --- waiting

    def wait(self, condition, timeout, what="that"):
        """Waits until `condition()` is true and returns what it gave."""
        deadline = time.monotonic() + timeout
        with self.changed:
            while True:
                found = condition()
                if found:
                    return found
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{what} did not happen within {timeout} s; {self.summary()}")
                self.changed.wait(min(left, 1.0))

    def summary(self):
        """The last messages, for a failing test's text."""
        tail = [
            (r.connection, r.seq, r.entry_id, r.kind, {k: v for k, v in r.body.items() if v})
            for r in self.journal[-25:]
            if r.kind != "heartbeat"
        ]
        ends = [(s.number, s.end) for s in self.sessions[-5:]]
        return f"connections {ends}, journal ends with {tail}"

    def session(self, timeout=20.0, after=0):
        """The newest session that is up (and has a number of at least `after`)."""
        return self.wait(
            lambda: next((s for s in reversed(self.sessions) if s.alive and s.number >= after), None),
            timeout,
            "a session",
        )

    def wait_message(self, kind, condition=lambda body: True, timeout=20.0):
        """The first journalled message of that kind for which `condition(body)` holds."""
        return self.wait(
            lambda: next((r for r in self.journal if r.kind == kind and condition(r.body)), None),
            timeout,
            f"a {kind}",
        )

    def messages(self, kind, **equal):
        """All journalled bodies of a kind whose fields equal the given ones."""
        with self.changed:
            return [
                r.body
                for r in self.journal
                if r.kind == kind and all(r.body.get(name) == value for name, value in equal.items())
            ]

    # --- commands

    def order(self, job_id, run_id, key=None, manual=False, object_key=None, ahead=None, **creds):
        """The body of a RunBackup; remembers key and object for the comparison.

        With `ahead` it is an upload in parts with so many URLs, and nothing else.
        """
        object_key = object_key or f"{job_id}/{run_id}-{os.urandom(3).hex()}"
        ttl_sec = creds.pop("ttl_sec", 600.0)
        url, expires = self.objects.presign(object_key, ttl_sec)
        if ahead is not None:
            uploads = self.objects.uploads
            url, upload = "", uploads.create(object_key, creds.pop("part_bytes", 5 << 20))
            creds["multipart"] = uploads.creds(upload, ahead, ttl_sec)
        if key is not None:
            self.keys[run_id] = key
        return {
            "job_id": job_id,
            "run_id": run_id,
            "manual_trigger": manual,
            "upload_creds": {
                "presigned_put_url": url,
                "expires_at_ms": expires,
                "final_s3_key": object_key,
                **creds,
            },
            "encrypted_dek": key,
        }

    def run_backup(self, job_id, run_id, correlation_id=None, session=None, **options):
        """Sends RunBackup; the body that was sent."""
        body = self.order(job_id, run_id, **options)
        session = session or self.session()
        session.send("run_backup", body, correlation_id or f"cmd-{run_id}")
        return body

    def wait_ack(self, correlation_id, timeout=10.0):
        """The Ack of a command."""
        return self.wait_message(
            "ack", lambda body: body["correlation_id"] == correlation_id, timeout
        ).body

    def terminal(self, run_id):
        """The kinds of result seen for a run: a list of "success", "failed", "cancelled", in order."""
        names = {proto.SUCCESS: "success", proto.FAILED: "failed", proto.CANCELLED: "cancelled"}
        with self.changed:
            return [
                names[r.body["status"]]
                for r in self.journal
                if r.kind == "job_update" and r.body["run_id"] == run_id and r.body["status"] in names
            ]

    def wait_terminal(self, run_id, timeout=60.0):
        """Waits for the result of a run: (kind, JobUpdate)."""
        final = (proto.SUCCESS, proto.FAILED, proto.CANCELLED)
        update = self.wait_message(
            "job_update",
            lambda body: body["run_id"] == run_id and body["status"] in final,
            timeout,
        ).body
        return self.terminal(run_id)[0], update

    def wait_success(self, run_id, timeout=60.0):
        """Waits for success; the BackupCompleted."""
        kind, update = self.wait_terminal(run_id, timeout)
        assert kind == "success", f"{run_id} ended {kind}: {update['error_message']}"
        return self.messages("backup_completed", run_id=run_id)[0]

    def wait_failure(self, run_id, timeout=60.0):
        """Waits for FAILED; the error message."""
        kind, update = self.wait_terminal(run_id, timeout)
        assert kind == "failed", f"{run_id} ended {kind}"
        return update["error_message"]

    # --- promises

    def check(self):
        """Raises AssertionError if any promise that all tests share was broken."""
        with self.changed:
            assert not self.violations, self.violations
            self._check_seq()
            self._check_results()

    def _check_seq(self):
        last = 0
        for session in self.sessions:
            for received in session.received:
                assert received.seq > last, (
                    f"seq {received.seq} after {last} (connection {session.number}, {received.kind})"
                )
                last = received.seq
        for session in self.sessions:
            entries = [r.entry_id for r in session.received if r.entry_id]
            assert entries == sorted(set(entries)), f"entries out of order: {entries}"

    def _check_results(self):
        completed = {}
        for index, received in enumerate(self.journal):
            if received.kind == "backup_completed":
                body = received.body
                first = completed.setdefault(body["run_id"], body)
                assert first == body, f"two different results: {first} {body}"
                stored = self.objects.object_path(body["s3_key"])
                assert stored.exists(), f"{body['s3_key']} is claimed but not stored"
                assert stored.stat().st_size == body["size_bytes"]
                with open(stored, "rb") as file:
                    assert hashlib.file_digest(file, "sha256").hexdigest() == body["sha256"]
        for run_id in {r.body["run_id"] for r in self.journal if r.kind == "job_update"}:
            kinds = set(self.terminal(run_id))
            assert len(kinds) <= 1, f"{run_id} ended as {kinds}"
            assert ("success" in kinds) <= (run_id in completed), f"{run_id}: SUCCESS without result"
            if run_id in completed:
                assert not kinds & {"failed", "cancelled"}, f"{run_id}: a result and {kinds}"

    # --- inside

    def _accept(self, listener):
        while not self.closed:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with self.changed:
                session = Session(self, len(self.sessions), sock)
                self.sessions.append(session)
                self.changed.notify_all()
            threading.Thread(target=self._serve, args=(session,), daemon=True).start()

    def _serve(self, session):
        try:
            self._handshake(session)
            self._read(session)
        except (websocket.Closed, OSError, ssl.SSLError) as error:
            session.end = session.end or str(error)
        except (websocket.ProtocolError, proto.WireError) as error:
            session.end = str(error)
            self.violations.append(f"connection {session.number}: {error}")
        finally:
            session.ended = time.monotonic()
            session.cut()
            session.sock.close()
            with self.changed:
                self.changed.notify_all()

    def _handshake(self, session):
        action = self.script(session.number)
        if action == "close":
            raise websocket.Closed("scripted close")
        session.sock.settimeout(300)
        session.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.context:
            session.sock = TlsSocket(session.sock, self.context)
        line, session.headers = websocket.read_head(session.sock)
        session.path = line.split(" ")[1]
        if action == "mute":
            session.sock.recv(1)
            raise websocket.Closed("scripted silence")
        expected = f"Bearer {self.key}"
        if action == "accept" and session.headers.get("authorization") != expected:
            action = "401"
        if action.isdigit():
            session.end = f"answered {action}"
            session.sock.sendall(
                f"HTTP/1.1 {action} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
            )
            raise websocket.Closed(session.end)
        session.channel = websocket.upgrade(session.sock, session.headers)
        opcode, data = session.channel.read()
        received = self._note(session, opcode, data)
        if received is None or received.kind != "register":
            raise websocket.ProtocolError("the first message is not Register")
        session.register = received.body
        if action == "no-ack" or self.ignores(received.body):
            session.sock.recv(1)
            raise websocket.Closed("scripted silence")
        if action == "wrong-first":
            session.send("ping", {"ts_ms": 1}, "too-early")
        session.send(
            "register_ack",
            {
                "session_id": f"session-{session.number}",
                "config": self.config,
                "heartbeat_interval_sec": self.heartbeat_interval_sec,
                "server_time_iso": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "durable_acks": self.acks != "silent",
                **self.session_extra,
            },
            received.correlation_id,
        )
        session.up.set()
        with self.changed:
            self.changed.notify_all()
        self._confirm(session, received)

    def _read(self, session):
        while True:
            opcode, data = session.channel.read()
            if opcode == websocket.CLOSE:
                session.end = "closed by the agent"
                session.channel.close()
                return
            if opcode == websocket.PING:
                session.pings += 1
                if self.answer_pings:
                    session.channel.write(websocket.PONG, data)
                continue
            if opcode == websocket.PONG:
                session.pongs += 1
                continue
            received = self._note(session, opcode, data)
            if received:
                self._confirm(session, received)
                if received.kind == "part_urls_request":
                    self._part_urls(session, received.body)
            if self.cut_after and self.cut_after(session):
                raise websocket.Closed("scripted cut")

    def _part_urls(self, session, request):
        """`part_urls(request)` may change the answer, or be `None` for none."""
        changes = self.part_urls(request)
        if changes is None:
            return
        upload_id = request["upload_id"]
        parts = self.objects.uploads.part_urls(upload_id, request["first_part"], request["count"])
        session.send(
            "part_urls",
            {"run_id": request["run_id"], "upload_id": upload_id, "parts": parts, **changes},
        )

    def _note(self, session, opcode, data):
        if opcode == websocket.TEXT:
            session.texts += 1
            raise websocket.ProtocolError("a text frame from the agent")
        if opcode != websocket.BINARY:
            raise websocket.Closed("end")
        envelope = proto.decode("Envelope", data)
        kind = proto.payload_of(envelope)
        if kind not in proto.FROM_AGENT:
            raise proto.WireError(f"payload {kind} from an agent")
        received = Received(
            time.monotonic(),
            session.number,
            envelope["seq"],
            envelope["entry_id"],
            kind,
            envelope[kind],
            envelope["correlation_id"],
            envelope["ts_ms"],
            proto.raw_payload(data),
        )
        with self.changed:
            session.received.append(received)
            self._same_entry(session, received)
            if not self.forget(received):
                self.journal.append(received)
            self.changed.notify_all()
        return received

    def _same_entry(self, session, received):
        if not received.entry_id or session.register is None:
            return
        name = (session.register["store_id"], received.entry_id)
        content = (received.kind, received.raw, received.correlation_id)
        if self.entries.setdefault(name, content) != content:
            self.violations.append(f"entry {name} changed: {self.entries[name]} → {content}")

    def _confirm(self, session, received):
        if self.acks == "silent":
            return
        session.unconfirmed += 1
        wanted = {"each": 1, "batch": 5, "late": 1}[self.acks]
        if session.unconfirmed < wanted:
            return
        session.unconfirmed = 0
        if self.acks == "late":
            time.sleep(random.uniform(0, 0.2))
        session.send("ack", {"correlation_id": f"seq-{received.seq}", "accepted": True})
