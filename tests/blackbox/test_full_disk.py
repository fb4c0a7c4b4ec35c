"""A full disk: runs fail clearly, nothing that was stored is lost, and service resumes with the room."""

import os
import subprocess
import time

import pytest

from plane.agent import wait_until

MIB = 1 << 20


@pytest.fixture
def small_disk(lab):
    """A file system of 24 MiB for the state directory."""
    path = lab.directory / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "backupy-test", path], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("no right to mount a file system here")
    yield path
    lab.close()
    subprocess.run(["umount", "-l", path], check=True)


def fill(path):
    """Takes the rest of the room; the file to remove."""
    filler = path / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 65536)
        except OSError:
            pass
        try:
            while True:
                file.write(b"x" * 512)
        except OSError:
            return filler


def test_full_disk(lab, small_disk):
    plane = lab.plane()
    lab.sqlite(plane, rows=500)
    agent = lab.agent(
        plane,
        start=False,
        BACKUPY_STATE_DIR=small_disk / "state",
        BACKUPY_MIN_FREE=1 * MIB,
        BACKUPY_MIN_FREE_PERCENT=1,
    )
    agent.start()
    plane.run_backup("job0", "before")
    plane.wait_success("before")

    filler = fill(small_disk)
    for number in range(5):
        plane.run_backup("job0", f"full-{number}", f"full-{number}")
    time.sleep(3)
    # Whatever was accepted ends; what cannot be made durable is not accepted.
    accepted = [
        n for n in range(5) if any(a["accepted"] for a in plane.messages("ack", correlation_id=f"full-{n}"))
    ]
    assert agent.running, agent.log[-3000:]
    assert plane.session().alive
    plane.session().send("ping", {"ts_ms": 1}, "alive")
    assert plane.wait_ack("alive")["accepted"]

    os.unlink(filler)
    for number in accepted:
        plane.wait_terminal(f"full-{number}", 60)
    wait_until(lambda: agent.running, 1)
    plane.run_backup("job0", "after")
    plane.wait_success("after", 60)
    plane.run_backup("job0", "before", "again")
    plane.wait(lambda: len(plane.terminal("before")) == 2, 20, "the stored result")
    agent.kill()
    agent.start()
    plane.session(after=1)
    plane.run_backup("job0", "last")
    plane.wait_success("last")
