"""What a service manager hears: a notify socket of the test's own, and the watchdog of a process that is wedged."""

import os
import signal
import socket
import time

import pytest

from plane.agent import wait_until
from test_up import Host

LONG = 30


class Manager:
    """The manager's end of sd_notify."""

    def __init__(self, directory, abstract=False):
        path = directory / "notify"
        self.name = f"@backupy-{os.getpid()}-{time.time_ns()}" if abstract else str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + self.name[1:] if abstract else self.name)
        self.heard = []

    def next(self, timeout=LONG):
        """The next message as a dictionary; None if there is none in time."""
        self.socket.settimeout(timeout)
        try:
            text = self.socket.recv(4096).decode()
        except TimeoutError:
            return None
        message = dict(line.split("=", 1) for line in text.splitlines())
        self.heard.append(message)
        return message

    def until(self, found, what):
        """Messages up to the one that fits."""
        deadline = time.monotonic() + LONG
        while time.monotonic() < deadline:
            message = self.next(deadline - time.monotonic())
            if message and found(message):
                return message
        raise AssertionError(f"not heard: {what}; heard {self.heard}")


@pytest.fixture
def manager(tmp_path):
    return Manager(tmp_path)


def test_ready_while_the_control_plane_is_down(lab, manager):
    plane = lab.plane()
    dead = socket.socket()
    dead.bind(("127.0.0.1", 0))
    agent = lab.agent(
        plane,
        NOTIFY_SOCKET=manager.name,
        BACKUPY_SERVER_URL=f"ws://127.0.0.1:{dead.getsockname()[1]}/ws",
    )
    first = manager.next()
    assert "READY" not in first and "EXTEND_TIMEOUT_USEC" in first, first
    ready = manager.until(lambda m: m.get("READY") == "1", "READY")
    # Serving: whoever asks gets an answer, without a control plane.
    assert agent.command("status", "--json").stdout
    assert "connect" in ready["STATUS"]
    if "not connected" not in ready["STATUS"]:
        manager.until(lambda m: "not connected" in m.get("STATUS", ""), "why it is not connected")
    assert agent.stop() == 0
    stopping = manager.until(lambda m: m.get("STOPPING") == "1", "STOPPING")
    assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 8_000_000
    dead.close()


def test_status_follows_link_and_runs(lab, tmp_path):
    manager = Manager(tmp_path, abstract=True)
    plane = lab.plane()
    lab.sqlite(plane, rows=20000)
    lab.agent(plane, NOTIFY_SOCKET=manager.name)
    manager.until(lambda m: m.get("STATUS", "").startswith("connected"), "the session")
    plane.run_backup("job0", "r1")
    manager.until(lambda m: "1 run active: job0" in m.get("STATUS", ""), "the run")
    manager.until(lambda m: m.get("STATUS") == "connected; no run active", "its end")


def test_up_serves_reloads_and_stops(lab, manager):
    host = Host(lab)
    host.write()
    host.agent.env["NOTIFY_SOCKET"] = manager.name
    host.up(healthy=False)
    manager.until(lambda m: m.get("READY") == "1", "READY")
    assert host.runs() is not None, "it answers the moment it says so"
    host.file.write_text(host.file.read_text().replace("last = 3", "last = 5"))
    before = time.monotonic_ns() // 1000
    host.agent.process.send_signal(signal.SIGHUP)
    reloading = manager.until(lambda m: m.get("RELOADING") == "1", "RELOADING")
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    manager.until(lambda m: m.get("READY") == "1", "READY after the reload")
    host.stop()
    manager.until(lambda m: m.get("STOPPING") == "1", "STOPPING")


def test_a_wedged_process_is_not_fed(lab, manager):
    host = Host(lab)
    host.write()
    host.agent.env.update(NOTIFY_SOCKET=manager.name, WATCHDOG_USEC="2000000")
    host.up(healthy=False)
    fed = lambda m: m.get("WATCHDOG") == "1"  # noqa: E731
    patient = manager.until(lambda m: "EXTEND_TIMEOUT_USEC" in m, "patience")
    assert patient["WATCHDOG_USEC"] == patient["EXTEND_TIMEOUT_USEC"], "the service may be up: an update"
    ready = manager.until(lambda m: m.get("READY") == "1", "READY")
    assert ready["WATCHDOG_USEC"] == "2000000"
    for _ in range(3):
        manager.until(fed, "the watchdog")
    host.agent.process.send_signal(signal.SIGSTOP)
    while manager.next(0.5):
        pass
    assert manager.next(3) is None, "fed by a process that stands still"
    host.agent.process.send_signal(signal.SIGCONT)
    manager.until(fed, "the watchdog again")
    host.stop()


def test_somebody_elses_watchdog_is_left_alone(lab, manager):
    agent = lab.agent(
        lab.plane(), NOTIFY_SOCKET=manager.name, WATCHDOG_USEC="500000", WATCHDOG_PID="1"
    )
    ready = manager.until(lambda m: m.get("READY") == "1", "READY")
    if not ready["STATUS"].startswith("connected"):
        manager.until(lambda m: m.get("STATUS", "").startswith("connected"), "the session")
    # Four intervals, in which nothing may come.
    assert manager.next(2) is None
    assert agent.stop() == 0


def test_programs_that_it_starts_hear_of_nothing(lab, manager):
    host = Host(lab)
    seen = host.directory / "environment"
    host.write(host.app(pre_hooks=f'["env > {seen}"]'))
    host.agent.env.update(NOTIFY_SOCKET=manager.name, WATCHDOG_USEC="60000000")
    host.up(healthy=False)
    manager.until(lambda m: m.get("READY") == "1", "READY")
    text = wait_until(lambda: seen.exists() and seen.read_text(), LONG, "the hook")
    assert "BACKUPY_" in text and "NOTIFY_SOCKET" not in text and "WATCHDOG" not in text


def test_a_stop_asks_for_the_time_that_runs_may_take(lab, manager):
    agent = lab.agent(lab.plane(), NOTIFY_SOCKET=manager.name, BACKUPY_STOP_GRACE="600s")
    manager.until(lambda m: m.get("READY") == "1", "READY")
    assert agent.stop() == 0
    stopping = manager.until(lambda m: m.get("STOPPING") == "1", "STOPPING")
    assert int(stopping["EXTEND_TIMEOUT_USEC"]) >= 600_000_000
