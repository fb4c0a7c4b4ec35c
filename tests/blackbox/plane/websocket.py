"""RFC 6455 with blocking sockets: the server's side, and a client for the tests' own fake agent."""

import base64
import hashlib
import os
import socket
import struct
import threading

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


class Closed(Exception):
    """The connection is over: closed, cut, or broken beyond use."""


class ProtocolError(Exception):
    """The peer broke RFC 6455 or HTTP."""


def read_head(sock, limit=65536):
    """Reads an HTTP head byte by byte (nothing after it is consumed): first line and headers."""
    data = bytearray()
    while not data.endswith(b"\r\n\r\n"):
        try:
            piece = sock.recv(1)
        except OSError as error:
            raise Closed(str(error)) from error
        if not piece:
            raise Closed("the peer closed before its HTTP head was complete")
        data += piece
        if len(data) > limit:
            raise ProtocolError("HTTP head too long")
    lines = bytes(data[:-4]).decode("latin-1").split("\r\n")
    headers = {}
    for line in lines[1:]:
        name, separator, value = line.partition(":")
        if not separator:
            raise ProtocolError(f"header line {line!r}")
        headers[name.strip().lower()] = value.strip()
    return lines[0], headers


def accept_key(key):
    """The answer to a Sec-WebSocket-Key."""
    return base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()


def frame(opcode, payload, final=True, mask=None):
    """One frame as bytes."""
    out = bytearray([opcode | (0x80 if final else 0)])
    flag = 0x80 if mask else 0
    if len(payload) < 126:
        out.append(flag | len(payload))
    elif len(payload) < 65536:
        out += bytes([flag | 126]) + struct.pack(">H", len(payload))
    else:
        out += bytes([flag | 127]) + struct.pack(">Q", len(payload))
    if mask:
        out += mask
        payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return bytes(out) + payload


class Channel:
    """Frames over an upgraded connection. One reader, any number of writers."""

    def __init__(self, sock, server):
        self.sock = sock
        self.server = server
        self.lock = threading.Lock()

    def _exactly(self, size):
        data = bytearray()
        while len(data) < size:
            try:
                piece = self.sock.recv(size - len(data))
            except OSError as error:
                raise Closed(str(error)) from error
            if not piece:
                raise Closed("end of stream")
            data += piece
        return bytes(data)

    def read_frame(self):
        """(opcode, final, payload)"""
        first, second = self._exactly(2)
        if first & 0x70:
            raise ProtocolError("reserved bits are set")
        masked, size = second & 0x80, second & 0x7F
        if size == 126:
            size = struct.unpack(">H", self._exactly(2))[0]
        elif size == 127:
            size = struct.unpack(">Q", self._exactly(8))[0]
        if bool(masked) != self.server:
            raise ProtocolError("a client must mask its frames and a server must not")
        mask = self._exactly(4) if masked else None
        payload = self._exactly(size)
        if mask:
            stretched = (mask * (size // 4 + 1))[:size]
            payload = (
                int.from_bytes(payload, "big") ^ int.from_bytes(stretched, "big")
            ).to_bytes(size, "big")
        return first & 0x0F, bool(first & 0x80), payload

    def read(self):
        """The next message or control frame: (opcode, payload). Fragments are joined."""
        joined, kind = bytearray(), None
        while True:
            opcode, final, payload = self.read_frame()
            if opcode >= 8:
                if not final or len(payload) > 125:
                    raise ProtocolError("a control frame is fragmented or too long")
                return opcode, payload
            if (opcode == CONTINUATION) != (kind is not None):
                raise ProtocolError("fragments out of order")
            kind = kind if kind is not None else opcode
            joined += payload
            if final:
                return kind, bytes(joined)

    def write_raw(self, data):
        """Bytes as they are: for frames that break the rules on purpose."""
        with self.lock:
            try:
                self.sock.sendall(data)
            except OSError as error:
                raise Closed(str(error)) from error

    def write(self, opcode, payload):
        """One frame with the right masking."""
        self.write_raw(frame(opcode, payload, mask=None if self.server else os.urandom(4)))

    def close(self, code=1000):
        """Says goodbye and shuts the socket."""
        try:
            self.write(CLOSE, struct.pack(">H", code))
        except Closed:
            pass
        self.cut()

    def cut(self):
        """Ends the TCP connection without a word."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def upgrade(sock, headers):
    """Answers an upgrade request; the channel of it."""
    if headers.get("upgrade", "").lower() != "websocket" or headers.get("sec-websocket-version") != "13":
        raise ProtocolError("not a WebSocket upgrade")
    if "upgrade" not in headers.get("connection", "").lower():
        raise ProtocolError("Connection lacks `Upgrade`")
    key = headers.get("sec-websocket-key", "")
    if len(base64.b64decode(key)) != 16:
        raise ProtocolError("Sec-WebSocket-Key is not 16 bytes")
    sock.sendall(
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n"
        ).encode()
    )
    return Channel(sock, server=True)


def connect(sock, host, path, headers):
    """The client's side: upgrades `sock`; the channel, or the refusing status line."""
    key = base64.b64encode(os.urandom(16)).decode()
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    sock.sendall(
        (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{extra}\r\n"
        ).encode()
    )
    line, answer = read_head(sock)
    if " 101 " not in line:
        return line
    if answer.get("sec-websocket-accept") != accept_key(key):
        raise ProtocolError("wrong Sec-WebSocket-Accept")
    return Channel(sock, server=False)
