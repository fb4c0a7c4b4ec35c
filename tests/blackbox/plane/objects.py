"""An object store with presigned PUT URLs: checks signature, expiry and length, stores atomically, and
fails on demand.

A fault is a word in `faults` (taken one per request) or the answer of `choose_fault(key, number)`:

    "503" "429" "500" "403" "404"   read the body, then answer so
    "early-503" "early-200"         answer without reading the body, then close
    "reset"                         read half of the body, then reset the connection
    "reset-head"                    reset right after the head
    "lost-answer"                   store the object, then reset instead of answering
    "stall"                         read a little, then nothing until `release()`
    "stall-answer"                  read everything, store nothing, answer nothing until `release()`
    "redirect"                      307 to another key
"""

import collections
import dataclasses
import hashlib
import hmac
import os
import pathlib
import secrets
import socket
import ssl
import struct
import threading
import time
import urllib.parse

from . import websocket
from .uploads import Uploads


@dataclasses.dataclass
class Put:
    """One PUT request as it went."""

    key: str
    number: int
    headers: dict
    fault: str = ""
    status: int = 0
    received: int = 0
    sha256: str = ""
    started: float = 0.0
    ended: float = 0.0


class ObjectStore:
    """Listens on a free port of the loopback until `close()`."""

    def __init__(self, directory, context=None):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.context = context
        self.secret = secrets.token_bytes(32)
        self.signatures = set()
        self.faults = collections.deque()
        self.choose_fault = lambda key, number: None
        self.bytes_per_sec = 0
        self.host = "127.0.0.1"
        self.puts = []
        self.committed = {}
        self.uploads = Uploads(self)
        self.changed = threading.Condition()
        self.released = threading.Event()
        self.closed = False
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    # --- for tests

    def presign(self, key, ttl_sec=600.0):
        """(url, expires_at_ms)"""
        expires = int((time.time() + ttl_sec) * 1000)
        signature = self._sign(key, expires)
        self.signatures.add(signature)
        scheme = "https" if self.context else "http"
        quoted = urllib.parse.quote(key)
        return (
            f"{scheme}://{self.host}:{self.port}/bucket/{quoted}?X-Amz-Algorithm=AWS4-HMAC-SHA256"
            f"&X-Amz-Date={expires}&X-Amz-SignedHeaders=host&X-Amz-Signature={signature}",
            expires,
        )

    def object(self, key):
        """The stored bytes; `None` if there are none."""
        path = self._path(key)
        return path.read_bytes() if path.exists() else None

    def object_path(self, key):
        """The file of an object, for those that are too large to read."""
        return self._path(key)

    def wait_put(self, condition, timeout):
        """The first request for which `condition` holds."""
        deadline = time.monotonic() + timeout
        with self.changed:
            while True:
                for put in self.puts:
                    if condition(put):
                        return put
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"no such PUT within {timeout} s; there were {self.puts}")
                self.changed.wait(left)

    def release(self):
        """Lets everything that stalls end with a reset."""
        self.released.set()

    def close(self):
        """Stops listening."""
        self.closed = True
        self.release()
        self.listener.close()

    # --- inside

    def _sign(self, key, expires):
        text = f"PUT\n{key}\n{expires}".encode()
        return hmac.new(self.secret, text, hashlib.sha256).hexdigest()

    def _path(self, key):
        return self.directory / hashlib.sha256(key.encode()).hexdigest()

    def _accept(self):
        while not self.closed:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        sock.settimeout(120)
        try:
            if self.context:
                sock = self.context.wrap_socket(sock, server_side=True)
            while self._one(sock):
                pass
        except (OSError, ssl.SSLError, websocket.Closed, websocket.ProtocolError):
            pass
        finally:
            sock.close()

    def _one(self, sock):
        line, headers = websocket.read_head(sock)
        method, target, _ = line.split(" ", 2)
        url = urllib.parse.urlsplit(target)
        key = urllib.parse.unquote(url.path).removeprefix("/bucket/")
        query = urllib.parse.parse_qs(url.query)
        if "uploadId" in query:
            return self.uploads.handle(sock, method, key, query, headers)
        with self.changed:
            put = Put(key, sum(p.key == key for p in self.puts) + 1, headers, started=time.monotonic())
            self.puts.append(put)
            put.fault = (self.faults.popleft() if self.faults else self.choose_fault(key, put.number)) or ""
            self.changed.notify_all()
        try:
            return self._put(sock, put, method, query)
        finally:
            put.ended = time.monotonic()
            with self.changed:
                self.changed.notify_all()

    def _put(self, sock, put, method, query):
        refusal = self._refusal(put, method, query)
        if put.fault == "reset-head":
            return self._reset(sock)
        if put.fault.startswith("early-"):
            return self._answer(sock, put, int(put.fault[6:]), close=True)
        if put.headers.get("expect", "").lower() == "100-continue":
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if refusal == 411:
            return self._answer(sock, put, 411, close=True)
        size = int(put.headers["content-length"])
        part = self.directory / f"part-{secrets.token_hex(8)}"
        limit = size // 2 if put.fault == "reset" else min(size, 1000) if put.fault == "stall" else size
        self._receive(sock, put, part, limit)
        if put.fault == "reset":
            return self._reset(sock)
        if put.fault in ("stall", "stall-answer"):
            self._stall(sock)
            return self._reset(sock)
        if put.fault.isdigit():
            refusal = int(put.fault)
        elif put.fault == "redirect":
            refusal = 307
        if refusal:
            part.unlink()
            return self._answer(sock, put, refusal)
        self._commit(put, part)
        if put.fault == "lost-answer":
            put.status = 200
            return self._reset(sock)
        return self._answer(sock, put, 200)

    def _commit(self, put, part):
        # The last request wins, also where an older one with the same key was slower to end.
        with self.changed:
            if put.number > self.committed.get(put.key, 0):
                self.committed[put.key] = put.number
                os.replace(part, self._path(put.key))
            else:
                part.unlink()

    def _refusal(self, put, method, query):
        if method != "PUT":
            return 405
        if "content-length" not in put.headers:
            return 411
        expires = int(query.get("X-Amz-Date", ["0"])[0])
        signature = query.get("X-Amz-Signature", [""])[0]
        if not hmac.compare_digest(signature, self._sign(put.key, expires)):
            return 403
        return 403 if time.time() * 1000 > expires else 0

    def _receive(self, sock, put, part, limit):
        digest = hashlib.sha256()
        with open(part, "wb") as out:
            while put.received < limit:
                piece = sock.recv(min(65536, limit - put.received))
                if not piece:
                    part.unlink()
                    raise websocket.Closed("the body is cut off")
                out.write(piece)
                digest.update(piece)
                put.received += len(piece)
                if self.bytes_per_sec:
                    self.released.wait(len(piece) / self.bytes_per_sec)
        put.sha256 = digest.hexdigest()

    def _stall(self, sock):
        with self.changed:
            self.changed.notify_all()
        deadline = time.monotonic() + 120
        while not self.released.wait(0.05) and time.monotonic() < deadline:
            sock.setblocking(False)
            try:
                if isinstance(sock, ssl.SSLSocket):
                    continue
                if sock.recv(1, socket.MSG_PEEK) == b"":
                    return
            except (BlockingIOError, ssl.SSLWantReadError):
                pass
            finally:
                sock.settimeout(120)

    def _reset(self, sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def _answer(self, sock, put, status, close=False):
        put.status = status
        extra = "Connection: close\r\n" if close else ""
        if status == 307:
            extra += f"Location: http://127.0.0.1:{self.port}/bucket/elsewhere\r\n"
        body = b"" if status == 200 else b"<Error><Code>Fault</Code></Error>"
        sock.sendall(
            f"HTTP/1.1 {status} Answer\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body
        )
        if close:
            # The peer may still be sending; a plain close would turn the answer into a reset.
            sock.shutdown(socket.SHUT_WR)
        return not close
