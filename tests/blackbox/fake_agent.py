"""A small agent that does just enough to prove the plane itself: SQLite only, nothing durable but seq.

    tests/blackbox/run.sh test_plane.py
"""

import http.client
import os
import platform
import signal
import socket
import sqlite3
import ssl
import sys
import tempfile
import time
import urllib.parse

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from plane import artifact, proto, websocket  # noqa: E402


class FakeAgent:
    def __init__(self):
        self.url = urllib.parse.urlsplit(os.environ["BACKUPY_SERVER_URL"])
        self.key = os.environ["BACKUPY_AGENT_KEY"]
        self.state = os.environ["BACKUPY_STATE_DIR"]
        os.makedirs(self.state, mode=0o700, exist_ok=True)
        self.channel = None
        self.seq = time.time_ns() // 1_000_000 << 20
        self.entry = self.seq
        self.config = {}
        self.pending = []

    def dial(self):
        sock = socket.create_connection((self.url.hostname, self.url.port))
        if self.url.scheme == "https":
            context = ssl.create_default_context(cafile=os.environ["BACKUPY_CA_FILE"])
            sock = context.wrap_socket(sock, server_hostname=self.url.hostname)
        headers = {"Authorization": f"Bearer {self.key}"}
        path = self.url.path + "/v1/agents/connect"
        self.channel = websocket.connect(sock, self.url.netloc, path, headers)
        if isinstance(self.channel, str):
            raise websocket.Closed(self.channel)

    def send(self, kind, body, correlation_id="", durable=False):
        self.seq += 1
        header = {"seq": self.seq, "ts_ms": time.time_ns() // 1_000_000}
        if durable:
            self.entry += 1
            header["entry_id"] = self.entry
        data = proto.envelope(kind, body, correlation_id=correlation_id, **header)
        self.channel.write(websocket.BINARY, data)

    def session(self):
        self.dial()
        self.send(
            "register",
            {
                "agent_version": "fake",
                "hostname": socket.gethostname(),
                "os": "linux",
                "arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "arm"),
                "capabilities": ["durable_acks", "sqlite"],
                "store_id": "00ff",
            },
        )
        while True:
            opcode, data = self.channel.read()
            if opcode == websocket.PING:
                self.channel.write(websocket.PONG, data)
            elif opcode == websocket.CLOSE:
                raise websocket.Closed("bye")
            elif opcode == websocket.BINARY:
                message = proto.decode("Envelope", data)
                self.handle(proto.payload_of(message), message)

    def handle(self, kind, message):
        correlation_id = message["correlation_id"]
        if kind == "register_ack":
            self.config = message[kind]["config"] or self.config
            self.send("heartbeat", {"config_version": self.config.get("version", 0), "metrics": {}})
        elif kind == "ping":
            self.send("ack", {"correlation_id": correlation_id, "accepted": True}, correlation_id)
        elif kind == "run_backup":
            self.send(
                "ack", {"correlation_id": correlation_id, "accepted": True}, correlation_id, True
            )
            self.run(message[kind])

    def run(self, order):
        names = {"job_id": order["job_id"], "run_id": order["run_id"]}
        try:
            self.send("backup_completed", {**names, **self.back_up(order)}, durable=True)
            self.send("job_update", {**names, "status": proto.SUCCESS}, durable=True)
        except Exception as error:
            failure = {**names, "status": proto.FAILED, "error_message": str(error)}
            self.send("job_update", failure, durable=True)

    def back_up(self, order):
        job = next(j for j in self.config["jobs"] if j["id"] == order["job_id"])
        target = next(t for t in self.config["targets"] if t["id"] == job["target_id"])
        with tempfile.NamedTemporaryFile() as copy:
            source, sink = sqlite3.connect(target["connection"]["database"]), sqlite3.connect(copy.name)
            source.backup(sink)
            sink.close()
            dump = copy.read()
        data = artifact.compress(dump, job["compression"] or "zstd")
        if order["encrypted_dek"]:
            data = artifact.seal(data, order["encrypted_dek"])
        url = urllib.parse.urlsplit(order["upload_creds"]["presigned_put_url"])
        connection = http.client.HTTPConnection(url.netloc)
        connection.request("PUT", f"{url.path}?{url.query}", data)
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"the store answered {answer.status}")
        return {
            "s3_key": order["upload_creds"]["final_s3_key"],
            "size_bytes": len(data),
            "sha256": artifact.sha256(data),
            "compression": job["compression"] or "zstd",
            "encrypted_dek": order["encrypted_dek"],
        }


def main():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    agent, pause = FakeAgent(), 1.0
    while True:
        try:
            agent.session()
        except (websocket.Closed, OSError) as error:
            print("session ended:", error, flush=True)
        time.sleep(pause)


if __name__ == "__main__":
    main()
