"""Clocks that are set, under libfaketime: only the wall clock is moved, while the process runs."""

import glob
import time

import pytest

from plane.agent import wait_until
from test_up import Host

DAY = 86_400


class Clock:
    """The wall clock of one process, by an offset in a file that is read again at every look."""

    def __init__(self, directory):
        libraries = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
        if not libraries:
            pytest.fail("no libfaketime: install faketime")
        self.file = directory / "clock"
        self.set(0)
        self.env = {
            "LD_PRELOAD": libraries[0],
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }

    def set(self, seconds):
        """So far from the real time."""
        aside = self.file.with_suffix(".new")
        aside.write_text(f"{seconds:+d}\n")
        aside.rename(self.file)


def begun(host):
    """How many runs the schedule has begun."""
    return host.agent.log.count(" of app is due")


def finished(host, count):
    """Waits until so many runs were stored, and no other one is open."""
    wait_until(lambda: host.agent.log.count("of app is stored") >= count, 90, f"{count} runs")


@pytest.fixture
def clock(tmp_path):
    return Clock(tmp_path)


@pytest.fixture
def host(lab, clock):
    host = Host(lab)
    host.agent.env.update(clock.env)
    host.write(host.app(keep="{ days = 30 }"))
    return host


def look(host):
    """Makes the scheduler look at the clock; by itself it does so within a minute."""
    host.agent.process.send_signal(1)


def test_a_day_forward_is_one_run_and_a_day_back_is_none(host, clock):
    host.up()
    finished(host, 1)
    clock.set(DAY)
    # Nobody has to tell it: it looks within a minute.
    finished(host, 2)
    assert begun(host) == 2 and "it makes up for 3 missed ones" in host.agent.log
    assert "the clock jumped by 86" in host.agent.log
    clock.set(0)
    look(host)
    wait_until(lambda: "the clock jumped by -86" in host.agent.log, 90, "the jump back")
    # Brought back to now: the next one is due after its interval, not after a day.
    time.sleep(2)
    assert begun(host) == 2, "a clock that went back makes nothing due"
    clock.set(6 * 3600 + 120)
    look(host)
    finished(host, 3)
    assert begun(host) == 3, "one interval later there is one run"
    assert not [line for line in host.agent.log.splitlines() if " failed: " in line or "late" in line]


def test_decades_ahead_delete_nothing(host, clock):
    host.up()
    finished(host, 1)
    first = {path.name for path in host.artifacts()}
    # 2038 and a bit: by its rule (30 days) everything is old.
    clock.set(12 * 365 * DAY)
    look(host)
    finished(host, 2)
    host.ok("backup", "app")
    assert first <= {path.name for path in host.artifacts()}, "nothing is deleted by a clock that is not believed"
    clock.set(0)
    look(host)
    wait_until(lambda: host.agent.log.count("the clock jumped by -") == 1, 90, "the jump back")
    host.ok("backup", "app")
    assert first <= {path.name for path in host.artifacts()}
    assert host.restored("app") == host.digest


def test_a_board_that_boots_in_1970(host, clock):
    clock.set(-int(time.time()) + 60)
    host.up()
    done = host.command("status", config=False)
    assert done.returncode == 1 and "the clock of this host is not set" in done.stdout + done.stderr
    host.ok("backup", "app")
    finished(host, 1)
    # It hears of the time.
    clock.set(0)
    look(host)
    finished(host, 2)
    assert begun(host) == 1, "one run makes up for half a century"
    done = host.command("status", config=False)
    assert "not set" not in done.stdout + done.stderr
    assert host.restored("app") == host.digest


def test_tls_says_what_the_clock_says_and_recovers(lab, clock):
    plane = lab.plane(secure=True)
    clock.set(-int(time.time()) + 60)
    agent = lab.agent(plane, **clock.env)
    wait_until(lambda: "the clock of this host says 1970-01-01" in agent.log, 30, "a hint at the clock")
    clock.set(0)
    plane.session()
    assert agent.stop() == 0


def test_an_open_run_survives_a_jump(host, clock):
    """A run under way when the clock jumps is neither given up nor told to be late."""
    slow = host.directory / "go"
    host.write(host.app(pre_hooks=f'["while ! test -e {slow}; do sleep 0.1; done"]', timeout='"30m"'))
    host.up(healthy=False)
    wait_until(lambda: "starts, attempt 1" in host.agent.log, 30, "a run")
    clock.set(DAY // 4 - 600)
    look(host)
    wait_until(lambda: "the clock jumped by" in host.agent.log, 90, "the jump")
    time.sleep(1)
    assert "given up" not in host.agent.log and "is late" not in host.agent.log
    slow.touch()
    wait_until(lambda: "of app is stored" in host.agent.log or " failed: " in host.agent.log, 60, "its end")
    assert begun(host) == 1
