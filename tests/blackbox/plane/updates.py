"""New versions of the agent: signed binaries that work, hang, crash or lie, and a server that they come from."""

import hashlib
import http.server
import os
import pathlib
import ssl
import subprocess
import threading

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from . import agent as agents

NEXT_VERSION = "9.9.9"
_TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", pathlib.Path(__file__).parents[3] / "target"))
NEXT = pathlib.Path(os.environ.get("BACKUPY_NEXT_BIN", _TARGET / "next" / "backupy"))

# What a stand-in does when it is started as the agent; asked for its version, it answers like a real one.
ACTS = {
    "crash": "abort();",
    "exit": "return 7;",
    "no-store": "return 3;",
    "hang": "signal(SIGTERM, SIG_IGN); signal(SIGINT, SIG_IGN); for (;;) pause();",
}

_STAND_IN = """
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "version")) { puts("{\\"version\\": \\"%s\\"}"); return 0; }
    %s
}
"""


class Signer:
    """A key pair as a release has one."""

    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.pem = (
            self.key.public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode()
        )

    def sign(self, blob):
        """What `cosign sign-blob` signs, as DER."""
        return self.key.sign(blob, ec.ECDSA(hashes.SHA256()))


def stand_in(directory, act, version=NEXT_VERSION):
    """The bytes of a program that says `version` and then does `act`."""
    source, program = directory / f"{act}.c", directory / act
    source.write_text(_STAND_IN % (version, ACTS[act]))
    subprocess.run(["cc", "-O1", "-o", program, source], check=True)
    return program.read_bytes()


def stripped(binary, directory):
    """The bytes of a build of ours without what a debugger wants."""
    path = directory / "stripped"
    subprocess.run(["strip", "-o", path, binary], check=True)
    return path.read_bytes()


class Downloads:
    """HTTPS on a free port: `files[path]` is the body, `how[path]` a fault:

    "truncated" (closes in the middle), "slow" (a little, then nothing until `release`), "404",
    "endless" (no length, as much as anybody takes), "huge" (a length beyond reason), "redirect" (to `path`.moved)
    """

    def __init__(self, authority):
        context, _ = authority.server("downloads")
        self.files, self.how, self.asked = {}, {}, []
        self.release = threading.Event()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                owner.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.socket = context.wrap_socket(
            self.server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.url = f"https://localhost:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request):
        path = request.path.split("?")[0]
        self.asked.append(request.path)
        how, body = self.how.get(path, ""), self.files.get(path)
        try:
            self._answer(request, path, how, body)
        except (OSError, ssl.SSLError):
            request.close_connection = True

    def _answer(self, request, path, how, body):
        if how == "redirect":
            request.send_response(302)
            request.send_header("Location", f"{self.url}{path}.moved?token=1")
            request.send_header("Content-Length", "0")
            return request.end_headers()
        if how == "404" or (body is None and how not in ("huge", "endless")):
            return request.send_error(404)
        request.send_response(200)
        if how == "huge":
            request.send_header("Content-Length", str(10 << 30))
            request.end_headers()
            return self.release.wait(60)
        if how == "endless":
            request.send_header("Connection", "close")
            request.end_headers()
            request.close_connection = True
            while not self.release.is_set():
                request.wfile.write(b"x" * 65536)
            return None
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if how in ("truncated", "slow"):
            request.wfile.write(body[: len(body) // 2])
            request.wfile.flush()
            if how == "slow":
                self.release.wait(120)
            request.close_connection = True
            return None
        return request.wfile.write(body)

    def close(self):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


class Host(agents.Agent):
    """An agent whose binary is installed in a directory of its own, bare or with a supervisor that restarts it."""

    def __init__(self, *arguments, binary=None, command=("run",), **env):
        super().__init__(*arguments, **env)
        self.binary = self.directory / "bin" / "backupy"
        self.words = command
        self.binary.parent.mkdir()
        self.install(binary or agents.COMMAND[0])
        self.supervising = None
        self.stopping = threading.Event()
        self.starts = 0

    def install(self, binary):
        """As a package does: another file under the same name."""
        new = self.binary.with_name("backupy.new")
        try:
            os.link(binary, new)
        except OSError:
            new.write_bytes(pathlib.Path(binary).read_bytes())
            new.chmod(0o755)
        os.replace(new, self.binary)

    def start(self, *arguments):
        assert self.process is None or self.process.poll() is not None, "already running"
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [self.binary, *self.words, *arguments],
                env=agents.clean_environment(**self.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
            )
        self.starts += 1
        return self

    def supervise(self):
        """Starts it whenever it has ended, as Docker and systemd do."""

        def loop():
            while not self.stopping.is_set():
                self.start()
                self.process.wait()
                self.stopping.wait(0.5)

        self.supervising = threading.Thread(target=loop, daemon=True)
        self.supervising.start()
        return self

    def leave(self):
        """No restart any more."""
        self.stopping.set()

    def slots(self):
        """Hashes of the versions in the state directory."""
        versions = self.state / "versions"
        return sorted(p.name for p in versions.iterdir() if p.is_dir()) if versions.exists() else []


def order(program, signer, url, version=NEXT_VERSION, **other):
    """The body of SelfUpdate."""
    return {
        "target_version": version,
        "binary_url": url,
        "sha256": hashlib.sha256(program).hexdigest(),
        "cosign_signature": signer.sign(program),
        **other,
    }
