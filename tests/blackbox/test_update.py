"""Updates of the agent itself: whatever the new version is or does, the host has a working agent in the end."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

from plane import agent as agents
from plane import databases
from plane.agent import wait_until
from plane.updates import NEXT, NEXT_VERSION, Downloads, Host, Signer, order, stand_in, stripped

OK, FAILED, USAGE = 0, 1, 2
BACK_WITHIN = 90


class Fleet:
    """A control plane, a signing key, a server of binaries and what comes from it."""

    def __init__(self, lab):
        assert NEXT.exists(), f"there is no {NEXT}: run scripts/build-next"
        self.lab = lab
        self.signer = Signer()
        self.plane = lab.plane(secure=True)
        self.plane.config = {"version": 1, "advanced": {"auto_update_enabled": True}}
        self.downloads = Downloads(lab.authority)
        self.hosts = []

    def host(self, start=True, **env):
        """An agent with the key."""
        directory = self.lab.directory / f"host{len(self.hosts)}"
        directory.mkdir()
        # Only what must fail waits for it to the end.
        env = {
            "BACKUPY_UPDATE_PUBLIC_KEY": self.signer.pem,
            "BACKUPY_UPDATE_CONFIRM_TIMEOUT": "60s",
            **env,
        }
        host = Host(directory, self.plane, self.lab.authority, **env)
        self.lab.agents.append(host)
        self.hosts.append(host)
        return host.start() if start else host

    def next(self):
        """The real thing, newer."""
        return stripped(NEXT, self.lab.directory)

    def offer(self, program, path="/backupy", **other):
        """Puts it on the server; the order for it."""
        self.downloads.files[path] = program
        self.lab.secrets.add("t0ken-of-a-download")
        return order(program, self.signer, f"{self.downloads.url}{path}?token=t0ken-of-a-download", **other)

    def send(self, body, correlation_id="update", accepted=True):
        """Orders it; the Ack."""
        self.plane.session().send("self_update", body, correlation_id)
        ack = self.plane.wait_ack(correlation_id, 30)
        assert ack["accepted"] == accepted, ack
        return ack

    def said(self, text, level, timeout=60):
        """Waits for a LogEvent."""
        found = lambda body: text in body["message"] and body["level"] == level  # noqa: E731
        return self.plane.wait_message("log", found, timeout).body["message"]

    def version(self, version, after=0, timeout=BACK_WITHIN):
        """Waits for a session of that version."""
        return self.plane.wait(
            lambda: next(
                (
                    s
                    for s in reversed(self.plane.sessions)
                    if s.alive and s.number >= after and s.register["agent_version"] == version
                ),
                None,
            ),
            timeout,
            f"a session of version {version}",
        )

    def settled(self, host, version, timeout=BACK_WITHIN):
        """Waits until that version runs alone, in the process that was started, and has a session."""

        def condition():
            session = next((s for s in reversed(self.plane.sessions) if s.alive), None)
            return session and session.register["agent_version"] == version and not host.children()

        wait_until(condition, timeout, f"version {version} alone")

    def close(self):
        """Ends what the lab does not know."""
        for host in self.hosts:
            host.leave()
        self.downloads.close()


INFO, ERROR = 2, 4
OWN_VERSION = json.loads(subprocess.run([*agents.COMMAND, "version", "--json"], capture_output=True).stdout)["version"]


@pytest.fixture
def fleet(lab):
    fleet = Fleet(lab)
    yield fleet
    fleet.close()


def status(host):
    """`status --json` as a value."""
    return json.loads(host.command("status", "--json").stdout)


# --- a good one


def test_a_good_version_takes_over(fleet):
    host = fleet.host()
    first = fleet.plane.session()
    assert "self_update" in first.register["capabilities"]
    assert first.register["agent_version"] == OWN_VERSION
    installed = host.binary.read_bytes()
    program = fleet.next()
    fleet.downloads.how["/backupy"] = "redirect"
    body = fleet.offer(program)
    fleet.downloads.files["/backupy.moved"] = program
    fleet.send(body)
    fleet.settled(host, NEXT_VERSION)
    message = fleet.said("updated from", INFO)
    assert OWN_VERSION in message and NEXT_VERSION in message
    assert host.running and host.starts == 1, "the same process, bare, without anybody who restarts it"
    assert host.slots() == [body["sha256"]]
    assert host.binary.read_bytes() == installed
    found = status(host)
    assert found["version"] == NEXT_VERSION and found["dispatch"]["update"]["last"]["error"] is None
    text = host.command("status").stdout
    assert f"from {OWN_VERSION} to {NEXT_VERSION}" in text and str(host.binary) in text, text
    exe = pathlib.Path(f"/proc/{host.pid}/exe").resolve()
    assert exe == host.state / "versions" / body["sha256"] / "backupy"

    # Again is not again; a restart starts it at once; what it replaced is not started by name.
    ack = fleet.send(body, "again", accepted=False)
    assert "runs already" in ack["reason"]
    assert host.stop() == OK
    count = len(fleet.plane.sessions)
    host.start()
    assert fleet.plane.session(after=count).register["agent_version"] == NEXT_VERSION
    assert fleet.plane.sessions[count].register["agent_version"] == NEXT_VERSION
    fleet.send(fleet.offer(fleet.next(), "/old", version=OWN_VERSION), "older", accepted=False)


def test_a_step_back_only_by_force_and_a_package_wins(fleet):
    host = fleet.host()
    fleet.plane.session()
    fleet.send(fleet.offer(fleet.next()))
    fleet.settled(host, NEXT_VERSION)
    old = stripped(agents.COMMAND[0], fleet.lab.directory)
    back = fleet.offer(old, "/old", version=OWN_VERSION)
    ack = fleet.send(back, "back", accepted=False)
    assert "older" in ack["reason"]
    fleet.send({**back, "force": True}, "forced")
    fleet.settled(host, OWN_VERSION)
    wait_until(lambda: status(host)["dispatch"]["update"]["slot"] == back["sha256"], 20)
    assert len(host.slots()) == 2, "the one before is kept"
    host.stop()
    count = len(fleet.plane.sessions)
    host.start()
    fleet.version(OWN_VERSION, count)
    assert status(host)["dispatch"]["update"]["slot"] == back["sha256"]
    # A package brings a version that is not older than any slot.
    host.stop()
    host.install(NEXT)
    host.start()
    fleet.settled(host, NEXT_VERSION)
    assert status(host)["dispatch"]["update"]["slot"] is None
    assert host.slots() == []


def test_it_waits_for_a_run_and_starts_no_other(fleet):
    plane = fleet.plane
    fleet.lab.sqlite(plane, jobs=2)
    plane.config["advanced"] = {"auto_update_enabled": True, "max_parallel_jobs": 2}
    host = fleet.host()
    plane.session()
    plane.objects.choose_fault = lambda key, number: "stall" if number == 1 and "r1" in key else None
    plane.run_backup("job0", "r1")
    plane.objects.wait_put(lambda put: put.received, 20)
    fleet.send(fleet.offer(fleet.next()))
    wait_until(lambda: status(host)["dispatch"]["update"].get("phase") == "waiting for runs to end", 60)
    plane.run_backup("job1", "r2")
    plane.wait_ack("cmd-r2")
    assert "waiting for runs to end" in host.command("status").stdout
    session = plane.session()
    assert session.number == 0 and not plane.terminal("r1") and not plane.terminal("r2")
    open_runs = {run["run_id"]: run for run in status(host)["dispatch"]["open_runs"]}
    assert open_runs["r1"]["phase"] == "running"
    assert (open_runs["r2"]["phase"], open_runs["r2"]["attempts"]) == ("queued", 0), "no other run starts"
    plane.objects.release()
    plane.wait_success("r1")
    fleet.settled(host, NEXT_VERSION)
    plane.wait_success("r2")
    assert plane.sessions[0].register["agent_version"] == OWN_VERSION


def test_under_a_supervisor(fleet):
    host = fleet.host(start=False).supervise()
    fleet.plane.session()
    fleet.send(fleet.offer(fleet.next()))
    fleet.settled(host, NEXT_VERSION)
    assert host.starts == 1
    host.kill()
    count = len(fleet.plane.sessions)
    assert fleet.plane.session(after=count).register["agent_version"] == NEXT_VERSION
    host.leave()


# --- never taken


def refused_program(fleet, what):
    """An order that must come to nothing, and what is said about it."""
    good = fleet.next()
    how = fleet.downloads.how
    if what == "wrongly-signed":
        body = fleet.offer(good)
        body["cosign_signature"] = Signer().sign(good)
        return body, "signature"
    if what == "signed-for-another":
        return {**fleet.offer(good), "cosign_signature": fleet.signer.sign(b"another")}, "signature"
    if what == "wrong-hash":
        return {**fleet.offer(good), "sha256": "0" * 64}, "SHA-256"
    if what == "changed":
        body = fleet.offer(good)
        fleet.downloads.files["/backupy"] = good[:-1] + bytes([good[-1] ^ 1])
        return body, "SHA-256"
    if what == "truncated":
        how["/backupy"] = "truncated"
        return fleet.offer(good), "failed to download"
    if what == "cut":
        body = fleet.offer(good)
        fleet.downloads.files["/backupy"] = good[: len(good) // 2]
        return body, "SHA-256"
    if what in ("huge", "endless"):
        how["/backupy"] = what
        return fleet.offer(good), "larger than"
    if what == "404":
        how["/backupy"] = "404"
        return fleet.offer(good), "404"
    if what == "garbage":
        return fleet.offer(os.urandom(100_000)), "no Linux program"
    if what == "garbage-elf":
        return fleet.offer(good[:64] + os.urandom(100_000)), "does not say its version"
    if what == "wrong-cpu":
        other = bytearray(good)
        other[18:20] = b"\x28\x00" if good[18:20] != b"\x28\x00" else b"\x3e\x00"
        return fleet.offer(bytes(other)), "another processor"
    if what == "old-under-new-name":
        old = stripped(agents.COMMAND[0], fleet.lab.directory)
        return fleet.offer(old), f'calls itself "{OWN_VERSION}"'
    if what == "mute":
        return fleet.offer(pathlib.Path(shutil.which("true")).resolve().read_bytes()), "does not say its version"
    raise AssertionError(what)


NEVER = [
    "wrongly-signed", "signed-for-another", "wrong-hash", "changed", "truncated", "cut", "huge", "endless", "404",
    "garbage", "garbage-elf", "wrong-cpu", "old-under-new-name", "mute",
]  # fmt: skip


@pytest.mark.parametrize("what", NEVER)
def test_never_taken(fleet, what):
    host = fleet.host()
    session = fleet.plane.session()
    body, reason = refused_program(fleet, what)
    fleet.send(body)
    message = fleet.said("failed", ERROR, 120)
    assert reason in message, message
    assert fleet.plane.session() is session, "nobody noticed"
    assert host.slots() == [], "nothing is left of it"
    last = status(host)["dispatch"]["update"]["last"]
    assert reason in last["error"] and last["version"] == NEXT_VERSION
    assert reason in host.command("status").stdout


def test_refused_at_once(fleet):
    fleet.host()
    fleet.plane.session()
    good = fleet.offer(fleet.next())
    cases = [
        ({**good, "binary_url": good["binary_url"].replace("https", "http")}, "https"),
        ({**good, "binary_url": ""}, "https"),
        ({**good, "binary_url": "file:///bin/true"}, "https"),
        ({**good, "cosign_signature": b""}, "signature"),
        ({**good, "sha256": "abc"}, "sha256"),
        ({**good, "target_version": "latest"}, "version"),
        ({**good, "target_version": "0.0.1"}, "older"),
        ({**good, "target_version": OWN_VERSION}, "runs already"),
    ]
    for number, (body, reason) in enumerate(cases):
        assert reason in fleet.send(body, f"u{number}", accepted=False)["reason"]
    assert fleet.downloads.asked == []


def test_only_where_the_host_and_its_configuration_want_it(fleet):
    fleet.plane.config = {"version": 1}
    host = fleet.host()
    fleet.plane.session()
    body = fleet.offer(fleet.next())
    assert "auto_update_enabled" in fleet.send(body, "off", accepted=False)["reason"]
    host.stop()
    fleet.plane.config = {"version": 2, "advanced": {"auto_update_enabled": True}}
    del host.env["BACKUPY_UPDATE_PUBLIC_KEY"]
    host.start()
    session = fleet.plane.session(after=1)
    assert "self_update" not in session.register["capabilities"]
    assert "BACKUPY_UPDATE_PUBLIC_KEY" in fleet.send(body, "keyless", accepted=False)["reason"]


# --- taken back


@pytest.mark.slow
def test_taken_back_within_90_s_with_the_time_that_is_the_default(fleet):
    host = fleet.host(BACKUPY_UPDATE_CONFIRM_TIMEOUT=None)
    session = fleet.plane.session()
    fleet.send(fleet.offer(stand_in(fleet.lab.directory, "hang")))
    fleet.plane.wait(lambda: session.ended, 60, "the end of the old version")
    ended = time.monotonic()
    fleet.settled(host, OWN_VERSION)
    assert "within 60 s" in fleet.said("was taken back", ERROR)
    assert 55 < time.monotonic() - ended < 90


@pytest.mark.parametrize("act", ["crash", "exit", "no-store", "hang", "no-session"])
def test_taken_back(fleet, act):
    short = act in ("hang", "no-session")
    host = fleet.host(BACKUPY_UPDATE_CONFIRM_TIMEOUT="8s" if short else "60s")
    fleet.plane.session()
    fleet.plane.ignores = lambda register: register["agent_version"] == NEXT_VERSION
    program = fleet.next() if act == "no-session" else stand_in(fleet.lab.directory, act)
    body = fleet.offer(program)
    reason = {
        "crash": "signal 6",
        "exit": "exit code 7",
        "no-store": "state directory",
        "hang": "no session with the control plane within 8 s",
        "no-session": "no session with the control plane within 8 s",
    }[act]
    fleet.send(body)
    message = fleet.said("was taken back", ERROR, BACK_WITHIN)
    assert reason in message and NEXT_VERSION in message, message
    fleet.settled(host, OWN_VERSION)
    assert host.running and host.starts == 1, "without a human or a supervisor"
    wait_until(lambda: host.slots() == [], 10)
    assert reason in host.command("status").stdout
    # Not again by itself.
    assert "given up" in fleet.send(body, "again", accepted=False)["reason"]
    count = len(fleet.plane.sessions)
    host.stop()
    host.start()
    fleet.version(OWN_VERSION, count)
    if act == "no-session":
        # Nor is it lost for ever: it was the server's fault.
        fleet.plane.ignores = lambda register: False
        fleet.send({**body, "force": True}, "forced")
        fleet.settled(host, NEXT_VERSION)


def test_taken_back_to_the_version_before_not_the_installed_one(fleet):
    host = fleet.host()
    fleet.plane.session()
    fleet.send(fleet.offer(fleet.next()))
    fleet.settled(host, NEXT_VERSION)
    newer = "9.9.10"
    body = fleet.offer(stand_in(fleet.lab.directory, "exit", newer), "/newer", version=newer)
    fleet.send(body, "newer")
    fleet.said("was taken back", ERROR, BACK_WITHIN)
    fleet.settled(host, NEXT_VERSION)
    assert len(host.slots()) == 1


def test_no_permission_to_execute(fleet):
    disk = fleet.lab.directory / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300m,mode=700,noexec", "backupy-test", disk]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no right to mount a file system here")
    try:
        host = fleet.host(BACKUPY_STATE_DIR=disk / "state")
        session = fleet.plane.session()
        fleet.send(fleet.offer(fleet.next()))
        assert "noexec" in fleet.said("failed", ERROR)
        assert fleet.plane.session() is session
        host.stop()
    finally:
        fleet.lab.close()
        subprocess.run(["umount", "-l", disk], check=True)


def test_no_room(fleet):
    disk = fleet.lab.directory / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m,mode=700", "backupy-test", disk]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no right to mount a file system here")
    try:
        host = fleet.host(BACKUPY_STATE_DIR=disk / "state")
        session = fleet.plane.session()
        fleet.send(fleet.offer(fleet.next()))
        assert "MiB are needed" in fleet.said("failed", ERROR)
        assert fleet.plane.session() is session
        assert not [path for path in (disk / "state" / "versions").iterdir() if path.is_dir()]
        host.stop()
    finally:
        fleet.lab.close()
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("damage", ["flip", "delete", "no-permission", "truncate"])
def test_a_slot_that_is_damaged_later(fleet, damage):
    host = fleet.host()
    fleet.plane.session()
    fleet.send(fleet.offer(fleet.next()))
    fleet.settled(host, NEXT_VERSION)
    host.stop()
    [slot] = host.slots()
    path = host.state / "versions" / slot / "backupy"
    if damage == "flip":
        with open(path, "r+b") as file:
            file.seek(4096)
            byte = file.read(1)
            file.seek(4096)
            file.write(bytes([byte[0] ^ 1]))
    elif damage == "delete":
        path.unlink()
    elif damage == "truncate":
        os.truncate(path, 1000)
    else:
        path.chmod(0o600)
    count = len(fleet.plane.sessions)
    host.start()
    fleet.version(OWN_VERSION, count)
    fleet.said("was taken back", ERROR)


def test_a_version_that_never_comes_up_again(fleet):
    """Confirmed, and then it dies at every start: the fifth is the last."""
    host = fleet.host()
    fleet.plane.session()
    fleet.send(fleet.offer(fleet.next()))
    fleet.settled(host, NEXT_VERSION)
    host.stop()
    # A slot with a valid signature and another content, as if the confirmed one had begun to crash.
    program = stand_in(fleet.lab.directory, "exit")
    body = fleet.offer(program)
    versions = host.state / "versions"
    [slot] = host.slots()
    (versions / slot).rename(versions / body["sha256"])
    (versions / body["sha256"] / "backupy").write_bytes(program)
    (versions / body["sha256"] / "backupy.sig").write_bytes(body["cosign_signature"])
    state = versions / "state.json"
    state.write_text(state.read_text().replace(slot, body["sha256"]))
    count = len(fleet.plane.sessions)
    for _ in range(5):
        host.start()
        assert host.wait_exit(20) == 7
    host.start()
    fleet.version(OWN_VERSION, count)
    assert "5 times" in fleet.said("was taken back", ERROR)


# --- killed in between


def trial(host):
    """Waits for the child that is on trial."""
    return wait_until(lambda: next(iter(host.children()), None), 60, "a trial")


def test_kill_the_launcher(fleet):
    """It takes its child along, and counts: the second time is the last."""
    host = fleet.host(BACKUPY_UPDATE_CONFIRM_TIMEOUT="10m")
    fleet.plane.session()
    fleet.send(fleet.offer(stand_in(fleet.lab.directory, "hang")))
    for _ in range(2):
        child = trial(host)
        wait_until(lambda: pathlib.Path(f"/proc/{child}/comm").read_text() == "backupy\n", 10)
        host.kill()
        wait_until(lambda: not pathlib.Path(f"/proc/{child}").exists(), 10, "no second process")
        count = len(fleet.plane.sessions)
        host.start()
    fleet.version(OWN_VERSION, count)
    assert "2 times" in fleet.said("was taken back", ERROR)
    assert host.running and not host.children()


def test_kill_the_child(fleet):
    host = fleet.host(BACKUPY_UPDATE_CONFIRM_TIMEOUT="10m")
    fleet.plane.session()
    fleet.send(fleet.offer(stand_in(fleet.lab.directory, "hang")))
    os.kill(trial(host), signal.SIGKILL)
    assert "signal 9" in fleet.said("was taken back", ERROR)
    fleet.settled(host, OWN_VERSION)


def test_stop_during_a_trial(fleet):
    host = fleet.host(BACKUPY_UPDATE_CONFIRM_TIMEOUT="10m")
    fleet.plane.session()
    fleet.plane.ignores = lambda register: register["agent_version"] == NEXT_VERSION
    fleet.send(fleet.offer(fleet.next()))
    child = trial(host)
    fleet.plane.wait(
        lambda: any(s.register and s.register["agent_version"] == NEXT_VERSION for s in fleet.plane.sessions),
        60,
        "the new version",
    )
    assert host.stop(30) == OK
    assert not pathlib.Path(f"/proc/{child}").exists()
    state = json.loads((host.state / "versions" / "state.json").read_text())
    assert state["trial"]["attempts"] == 0, "a stop says nothing about the version"
    # The next start tries it once more; this time it is let in.
    fleet.plane.ignores = lambda register: False
    host.start()
    fleet.settled(host, NEXT_VERSION)


@pytest.mark.parametrize("how", ["dies", pytest.param("hangs", marks=pytest.mark.slow)])
def test_a_confirmed_version_that_does_not_make_room_for_itself(fleet, how):
    """Once it has proven itself, it is started for good, however its trial ends."""
    host = fleet.host(BACKUPY_UPDATE_CONFIRM_TIMEOUT="15s")
    fleet.plane.session()
    fleet.plane.ignores = lambda register: register["agent_version"] == NEXT_VERSION
    fleet.send(fleet.offer(fleet.next()))
    fleet.plane.wait(
        lambda: any(s.register and s.register["agent_version"] == NEXT_VERSION for s in fleet.plane.sessions),
        60,
        "the new version",
    )
    child = trial(host)
    os.kill(child, signal.SIGSTOP)
    # What it writes down once it has a session.
    path = host.state / "versions" / "state.json"
    state = json.loads(path.read_text())
    state["current"], state["trial"] = state["trial"]["slot"], None
    path.write_text(json.dumps(state))
    fleet.plane.ignores = lambda register: False
    if how == "dies":
        os.kill(child, signal.SIGKILL)
    fleet.settled(host, NEXT_VERSION, 150)
    assert host.running and host.starts == 1
    assert json.loads(path.read_text())["failed"] == []


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_an_end_during_the_download(fleet, how):
    host = fleet.host()
    fleet.plane.session()
    fleet.downloads.how["/backupy"] = "slow"
    fleet.send(fleet.offer(fleet.next()))
    wait_until(lambda: [p for p in host.slots() if p.startswith("new-")], 20)
    if how == "kill":
        host.kill()
    else:
        assert host.stop(10) == OK
        assert host.slots() == []
    fleet.downloads.how.clear()
    host.start()
    fleet.settled(host, NEXT_VERSION)
    assert len(host.slots()) == 1


@pytest.mark.parametrize("act", ["good", "hang"])
def test_kill_at_any_moment(fleet, act):
    """Under a supervisor, with kill -9 at moments that hit download, start, trial and handing over."""
    host = fleet.host(start=False, BACKUPY_UPDATE_CONFIRM_TIMEOUT="8s").supervise()
    fleet.plane.session()
    program = fleet.next() if act == "good" else stand_in(fleet.lab.directory, "hang")
    fleet.send(fleet.offer(program))
    for pause in (0.15, 0.4, 0.7):
        time.sleep(pause)
        if host.running:
            host.process.kill()
    # Two trials may have been killed; then the old one stays, and that is as good.
    versions = (OWN_VERSION, NEXT_VERSION) if act == "good" else (OWN_VERSION,)

    def settled():
        session = next((s for s in reversed(fleet.plane.sessions) if s.alive), None)
        update = session and not host.children() and status(host)["dispatch"].get("update")
        return update and not update.get("phase") and not update["on_trial"] and update["last"] and (
            session.register["agent_version"] in versions
        )

    wait_until(settled, BACK_WITHIN, "peace")
    host.leave()


# --- by hand


def test_by_hand(fleet):
    host = fleet.host()
    fleet.plane.session()
    program = fleet.next()
    path = fleet.lab.directory / "new-backupy"
    path.write_bytes(program)
    missing = host.command("self-update", path)
    assert missing.returncode == FAILED and ".sig" in missing.stderr
    signature = path.with_name("new-backupy.sig")
    signature.write_bytes(Signer().sign(program))
    foreign = host.command("self-update", path)
    assert foreign.returncode == FAILED and "signature" in foreign.stderr
    signature.write_bytes(fleet.signer.sign(program))
    other = host.command("self-update", path, "--sha256", "0" * 64)
    assert other.returncode == FAILED and "SHA-256" in other.stderr
    assert host.slots() == []
    good = host.command("self-update", path)
    assert good.returncode == OK and NEXT_VERSION in good.stdout, good.stderr
    fleet.settled(host, NEXT_VERSION)
    again = host.command("self-update", path)
    assert again.returncode == FAILED and "already" in again.stderr
    keyless = host.command("self-update", path, BACKUPY_UPDATE_PUBLIC_KEY="")
    assert keyless.returncode == USAGE and "BACKUPY_UPDATE_PUBLIC_KEY" in keyless.stderr


def test_by_hand_for_the_next_start(fleet):
    host = fleet.host()
    fleet.plane.session()
    host.stop()
    program = fleet.next()
    fleet.downloads.files["/b"] = program
    fleet.downloads.files["/b.sig"] = fleet.signer.sign(program)
    done = host.command("self-update", f"{fleet.downloads.url}/b")
    assert done.returncode == OK and "next start" in done.stdout, done.stderr
    count = len(fleet.plane.sessions)
    host.start()
    fleet.version(NEXT_VERSION, count)
    fleet.settled(host, NEXT_VERSION)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_by_hand_by_root_for_another_user(fleet):
    """Root reads the file and puts its rights down before it touches what the other user may replace."""
    host = fleet.host(start=False)
    program = fleet.next()
    path = fleet.lab.directory / "new-backupy"
    path.write_bytes(program)
    path.chmod(0o600)
    path.with_name("new-backupy.sig").write_bytes(fleet.signer.sign(program))
    with tempfile.TemporaryDirectory(prefix="backupy-", dir="/tmp") as state:
        state = pathlib.Path(state)
        os.chown(state, 12345, 12346)
        done = host.command("self-update", path, "--state-dir", state)
        assert done.returncode == OK and "next start" in done.stdout, done.stderr
        made = list(state.rglob("*"))
        assert len(made) == 5, made
        assert {(p.stat().st_uid, p.stat().st_gid) for p in made} == {(12345, 12346)}
        # A link to where only root may write.
        shutil.rmtree(state / "versions")
        trap = fleet.lab.directory / "trap"
        trap.mkdir()
        (state / "versions").symlink_to(trap)
        done = host.command("self-update", path, "--state-dir", state)
        assert done.returncode == FAILED and "Permission denied" in done.stderr, done.stderr
        assert list(trap.iterdir()) == []


@pytest.mark.parametrize("act", ["good", "crash", "broken-file"])
def test_up(fleet, act):
    """One process with its own control plane, which counts as the one to reach.

    A file that was broken meanwhile would end both versions at their start, so nothing is restarted then.
    """
    directory = fleet.lab.directory
    databases.make_sqlite(directory / "app.db")
    (directory / "storage").mkdir()
    host = fleet.host(start=False, BACKUPY_STATE_DIR=None)
    host.words = ("up", "--config", directory / "backupy.toml")
    (directory / "backupy.toml").write_text(
        f'state_dir = "{host.state}"\n[storage]\ndirectory = "{directory / "storage"}"\n'
        f'[[backup]]\nname = "app"\ndatabase = "sqlite://{directory / "app.db"}"\nevery = "6h"\n'
        "keep = { last = 3 }\n"
    )
    host.start()
    here = ("--state-dir", host.state)
    wait_until(lambda: host.command("health-check", *here).returncode == OK, 30)
    program = stand_in(directory, act) if act == "crash" else fleet.next()
    if act == "broken-file":
        with open(directory / "backupy.toml", "a") as file:
            file.write("[nonsense\n")
    path = directory / "program"
    path.write_bytes(program)
    path.with_name("program.sig").write_bytes(fleet.signer.sign(program))
    done = host.command("self-update", path, *here)
    assert done.returncode == OK, done.stderr
    version = NEXT_VERSION if act == "good" else OWN_VERSION

    def settled():
        found = host.command("status", "--json", *here)
        value = json.loads(found.stdout) if found.stdout.startswith("{") else {}
        update = (value.get("dispatch") or {}).get("update")
        return (
            update and update["last"] and value["version"] == version and value["connected"] and not host.children()
        )

    wait_until(settled, BACK_WITHIN, f"version {version}")
    assert host.command("backup", "app", *here, timeout=60).returncode == OK
    if act == "broken-file":
        last = json.loads(host.command("status", "--json", *here).stdout)["dispatch"]["update"]["last"]
        assert "settings" in last["error"] and "backupy.toml" in last["error"]
        assert host.log.count("connecting to") == 1, "nothing was restarted"
    assert host.stop() == OK
