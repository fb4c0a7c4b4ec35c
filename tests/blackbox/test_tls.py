"""TLS, proxies, and the environment the agent starts from."""

import socket
import ssl
import threading
import time

import pytest

from plane import websocket
from plane.agent import wait_until

USAGE = 2


def never_up(plane, agent, seconds=4.0):
    """The agent keeps running, tries, and never gets a session."""
    plane.wait(lambda: plane.sessions and plane.sessions[0].ended, 15, "an attempt")
    time.sleep(seconds)
    assert not any(s.register for s in plane.sessions)
    assert agent.running


def test_unknown_authority(lab):
    plane = lab.plane(secure=True)
    agent = lab.agent(plane, BACKUPY_CA_FILE=None)
    never_up(plane, agent)
    assert "certificate" in agent.log.lower()


@pytest.mark.parametrize("what", ["other-host", "expired", "tls12"])
def test_bad_server(lab, what):
    options = {
        "other-host": {"hosts": ["other.example"]},
        "expired": {"days": (-10, -1)},
        "tls12": {"maximum": ssl.TLSVersion.TLSv1_2},
    }[what]
    context, _ = lab.authority.server(**options)
    plane = lab.plane(context=context)
    never_up(plane, lab.agent(plane))


def test_pin(lab):
    context, pin = lab.authority.server()
    _, other = lab.authority.server("other")
    plane = lab.plane(context=context)
    agent = lab.agent(plane, BACKUPY_SERVER_PIN=other)
    never_up(plane, agent)
    agent.stop()
    agent.env["BACKUPY_SERVER_PIN"] = f"{other},{pin}"
    agent.start()
    plane.session()


def test_pin_does_not_replace_validation(lab):
    context, pin = lab.authority.server(days=(-10, -1))
    plane = lab.plane(context=context)
    never_up(plane, lab.agent(plane, BACKUPY_SERVER_PIN=pin))


class Proxy:
    """An HTTP CONNECT proxy that notes where it was asked to go."""

    def __init__(self, authorization=None):
        self.asked = []
        self.authorization = authorization
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        try:
            line, headers = websocket.read_head(sock)
            method, target, _ = line.split(" ")
            self.asked.append(target)
            if self.authorization and headers.get("proxy-authorization") != self.authorization:
                sock.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            if method != "CONNECT":
                sock.sendall(b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n")
                return
            host, _, port = target.rpartition(":")
            host = "127.0.0.1" if host.endswith(".example") else host
            upstream = socket.create_connection((host, int(port)))
            sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            threading.Thread(target=self._copy, args=(upstream, sock), daemon=True).start()
            self._copy(sock, upstream)
        except (OSError, websocket.Closed):
            pass
        finally:
            sock.close()

    @staticmethod
    def _copy(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def test_proxy(lab):
    """The proxy resolves the name: the agent itself could not."""
    context, _ = lab.authority.server(hosts=["plane.example", "store.example"])
    plane = lab.plane(context=context, store_context=context)
    plane.objects.host = "store.example"
    lab.sqlite(plane)
    proxy = Proxy(authorization="Basic dXNlcjpwJXNz")
    url = f"https://plane.example:{plane.port}"
    lab.secrets |= {"dXNlcjpwJXNz", "p%25ss", "p%ss"}
    with_password = proxy.url.replace("http://", "http://user:p%25ss@")
    lab.agent(plane, BACKUPY_SERVER_URL=url, HTTPS_PROXY=with_password)
    plane.session()
    assert proxy.asked == [f"plane.example:{plane.port}"]
    plane.run_backup("job0", "r1")
    plane.wait_success("r1")
    assert proxy.asked[-1] == f"store.example:{plane.objects.port}", "uploads go through it too"


def test_no_proxy(lab):
    plane = lab.plane(secure=True)
    lab.agent(plane, HTTPS_PROXY="http://127.0.0.1:9", NO_PROXY="example.org,localhost")
    plane.session()


def test_older_names_and_key_file(lab):
    plane = lab.plane()
    older = {"BACKUP_SERVER_URL": plane.url, "BACKUP_AGENT_KEY": plane.key}
    agent = lab.agent(plane, BACKUPY_SERVER_URL=None, BACKUPY_AGENT_KEY=None, **older)
    plane.session()
    assert agent.stop() == 0
    key_file = lab.directory / "key"
    key_file.write_text(plane.key + "\n")
    key_file.chmod(0o600)
    lab.agent(plane, BACKUPY_AGENT_KEY=None, BACKUPY_AGENT_KEY_FILE=key_file)
    plane.session(after=1)


@pytest.mark.parametrize(
    "env, word",
    [
        ({"BACKUPY_SERVER_URL": None}, "BACKUPY_SERVER_URL"),
        ({"BACKUPY_SERVER_URL": "ftp://example.org"}, "BACKUPY_SERVER_URL"),
        ({"BACKUPY_SERVER_URL": "https://"}, "BACKUPY_SERVER_URL"),
        ({"BACKUPY_SERVER_URL": "not a url"}, "BACKUPY_SERVER_URL"),
        ({"BACKUPY_SERVER_URL": "http://example.org", "BACKUPY_DEV_ALLOW_INSECURE": None}, "BACKUPY_SERVER_URL"),
        ({"BACKUPY_SERVER_URL": "ws://example.org", "BACKUPY_DEV_ALLOW_INSECURE": None}, "BACKUPY_SERVER_URL"),
        ({"BACKUPY_AGENT_KEY": None}, "BACKUPY_AGENT_KEY"),
        ({"BACKUPY_AGENT_KEY": "bkpy_test_short0secret"}, "BACKUPY_AGENT_KEY"),
        ({"BACKUPY_AGENT_KEY": "bkpy_prod_" + "a" * 32}, "BACKUPY_AGENT_KEY"),
        ({"BACKUPY_AGENT_KEY": "bkpy_test_" + "é" * 16}, "BACKUPY_AGENT_KEY"),
        ({"BACKUPY_LOG_LEVEL": "loud"}, "BACKUPY_LOG_LEVEL"),
        ({"BACKUPY_SERVER_PIN": "not-a-pin"}, "BACKUPY_SERVER_PIN"),
        ({"BACKUPY_CA_FILE": "/nonexistent/ca.pem"}, "BACKUPY_CA_FILE"),
        ({"BACKUPY_AGENT_KEY_PREVIOUS": "nope0secret"}, "BACKUPY_AGENT_KEY_PREVIOUS"),
        ({"HTTPS_PROXY": "gopher://user:hunter0secret@x"}, "HTTPS_PROXY"),
    ],
)
def test_bad_environment(lab, env, word):
    plane = lab.plane()
    agent = lab.agent(plane, start=False, **env)
    for name, value in env.items():
        if value is None:
            agent.env.pop(name, None)
    agent.start()
    assert agent.wait_exit(10) == USAGE, agent.log
    assert word in agent.log
    for value in env.values():
        assert not value or "0secret" not in value or "0secret" not in agent.log
    assert not plane.sessions


def test_all_problems_at_once(lab):
    plane = lab.plane()
    agent = lab.agent(plane, BACKUPY_SERVER_URL="ftp://x", BACKUPY_LOG_LEVEL="loud", BACKUPY_AGENT_KEY="x")
    assert agent.wait_exit(10) == USAGE
    for word in ("BACKUPY_SERVER_URL", "BACKUPY_LOG_LEVEL", "BACKUPY_AGENT_KEY"):
        assert word in agent.log, agent.log


def test_http_upload_needs_the_insecure_flag(lab):
    context, _ = lab.authority.server()
    plane = lab.plane(context=context)
    lab.sqlite(plane)
    lab.agent(plane, BACKUPY_DEV_ALLOW_INSECURE=None)
    plane.run_backup("job0", "r1")
    assert "https" in plane.wait_failure("r1").lower()
    assert not plane.objects.puts


def test_secure_all_the_way(lab):
    plane = lab.plane(secure=True)
    lab.sqlite(plane)
    agent = lab.agent(plane)
    assert "BACKUPY_DEV_ALLOW_INSECURE" not in agent.env
    plane.run_backup("job0", "r1", key=b"k" * 32)
    plane.wait_success("r1")
    wait_until(lambda: agent.running, 1)
