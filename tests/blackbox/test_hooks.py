"""Hooks: in their order, within their bounds, with nothing that they must not know."""

import os
import time

import pytest

from plane.agent import children_of, wait_until

ALLOWED = {"BACKUPY_ALLOW_HOOKS": "true"}
TELL = 'echo "$BACKUPY_JOB_ID $BACKUPY_RUN_ID $BACKUPY_STATUS $BACKUPY_SIZE_BYTES" >> '


def hooked(lab, pre=(), post=(), env=ALLOWED, **job):
    """A plane and an agent with one job; `LOG` in a command is the path that is returned last."""
    log = lab.directory / "hooks.log"
    plane = lab.plane()
    lists = [[command.replace("LOG", str(log)) for command in commands] for commands in (pre, post)]
    lab.sqlite(plane, pre_hooks=lists[0], post_hooks=lists[1], **job)
    return plane, lab.agent(plane, **env), log


def text(log):
    return log.read_text() if log.exists() else ""


def warnings(plane):
    return [body["message"] for body in plane.messages("log")]


def test_order_and_what_they_are_told(lab):
    plane, _, log = hooked(lab, ["echo one >> LOG", TELL + "LOG"], [TELL + "LOG", "echo last >> LOG"])
    assert "hooks" in plane.session().register["capabilities"]
    plane.objects.choose_fault = lambda key, number: "stall-answer"
    plane.run_backup("job0", "r1")
    plane.objects.wait_put(lambda put: put.received, 20)
    assert text(log) == "one\njob0 r1 running 0\n"
    plane.objects.choose_fault = lambda key, number: None
    plane.objects.release()
    done = plane.wait_success("r1")
    assert text(log) == f"one\njob0 r1 running 0\njob0 r1 success {done['size_bytes']}\nlast\n"


def test_a_failing_pre_hook_leaves_the_database_alone(lab):
    plane, _, log = hooked(lab, ["echo no room >&2; exit 9", "echo never >> LOG"], [TELL + "LOG"])
    # A database that is looked at would be another error.
    os.remove(plane.config["targets"][0]["connection"]["database"])
    plane.run_backup("job0", "r1")
    error = plane.wait_failure("r1", 20)
    assert "pre-hook 1 failed with exit code 9: no room" in error and "not touched" in error
    assert text(log) == "job0 r1 failed 0\n"
    assert not plane.objects.puts


def test_a_failing_post_hook_is_a_warning(lab):
    plane, _, log = hooked(lab, post=["echo oops >&2; exit 4", "echo next >> LOG"])
    plane.run_backup("job0", "r1")
    plane.wait_success("r1")
    plane.wait(lambda: any("post-hook 1 failed with exit code 4: oops" in w for w in warnings(plane)), 10)
    assert text(log) == "next\n"


@pytest.mark.parametrize("where", ["pre", "post"])
def test_cancel_ends_a_hook_and_its_grandchildren(lab, where):
    slow = "trap '' TERM; (sleep 987 & sleep 986) & echo here >> LOG; sleep 985; sleep 984"
    lists = {where: [slow], "post": [*([slow] if where == "post" else []), TELL + "LOG"]}
    plane, agent, log = hooked(lab, **lists)
    plane.run_backup("job0", "r1")
    wait_until(lambda: text(log) and len(children_of(agent.pid)) >= 4, 20, "the hook")
    plane.session().send("cancel_job", {"job_id": "job0"}, "stop")
    plane.wait_ack("stop")
    if where == "post":
        # The store had it already: the cancel loses, and the hook goes on until somebody insists.
        time.sleep(1)
        assert len(children_of(agent.pid)) >= 4 and not plane.terminal("r1")
        plane.session().send("cancel_job", {"job_id": "job0"}, "stop at once")
        plane.wait_ack("stop at once")
    kind, _ = plane.wait_terminal("r1", 10)
    assert kind == ("cancelled" if where == "pre" else "success")
    wait_until(lambda: not agent.children(), 10, f"no child left of {agent.children()}")
    last = text(log).splitlines()[-1]
    assert last.startswith("job0 r1 cancelled 0") if where == "pre" else last == "here"


def test_post_hooks_run_after_a_cancelled_dump(lab):
    plane, _, log = hooked(lab, post=[TELL + "LOG"])
    plane.objects.choose_fault = lambda key, number: "stall-answer"
    plane.run_backup("job0", "r1")
    plane.objects.wait_put(lambda put: put.received, 20)
    plane.session().send("cancel_job", {"job_id": "job0"}, "stop")
    kind, _ = plane.wait_terminal("r1", 20)
    assert kind == "cancelled" and text(log) == "job0 r1 cancelled 0\n"


def test_a_hook_has_its_time(lab):
    plane, agent, log = hooked(lab, ["exec sleep 600"], [TELL + "LOG"], {**ALLOWED, "BACKUPY_HOOK_TIMEOUT": "4s"})
    plane.run_backup("job0", "r1")
    assert "did not end within 4 s" in plane.wait_failure("r1", 20)
    assert text(log) == "job0 r1 failed 0\n"
    assert not agent.children()


def test_a_flood_is_bounded(lab):
    flood = "head -c 100000000 /dev/zero | tr '\\0' y; head -c 100000000 /dev/zero | tr '\\0' z >&2; exit 1"
    plane, agent, _ = hooked(lab, [flood])
    plane.run_backup("job0", "r1")
    error = plane.wait_failure("r1", 60)
    assert "exit code 1" in error and len(error) < 2000
    told = [w for w in warnings(plane) if "said on" in w]
    assert 4 <= len(told) <= 6 and sum(map(len, told)) < 18_000
    assert agent.memory() < 64 << 20


def test_the_environment_has_no_secret(lab):
    marker = "s3cret-of-the-host"
    lab.secrets.add(marker)
    env = {**ALLOWED, "BACKUPY_SECRET_DB": marker, "PGPASSWORD": marker, "AWS_SECRET_ACCESS_KEY": marker}
    seen = lab.directory / "seen"
    plane, _, _ = hooked(lab, [f"env > {seen}; tr '\\0' '\\n' < /proc/$$/environ >> {seen}"], env=env)
    plane.run_backup("job0", "r1")
    plane.wait_success("r1")
    names = {line.split("=")[0] for line in seen.read_text().splitlines()}
    passed = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR"}
    told = {"BACKUPY_JOB_ID", "BACKUPY_RUN_ID", "BACKUPY_STATUS", "BACKUPY_SIZE_BYTES"}
    assert told <= names <= passed | told | {"PWD", "OLDPWD", "SHLVL", "_"}
    for secret in (marker, plane.key):
        assert secret not in seen.read_text()


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_refused_unless_the_host_allows_it(lab, kind):
    plane, _, log = hooked(lab, **{kind: ["echo ran >> LOG"]}, env={})
    assert "hooks" not in plane.session().register["capabilities"]
    plane.run_backup("job0", "r1")
    assert "BACKUPY_ALLOW_HOOKS" in plane.wait_failure("r1", 20)
    assert not text(log) and not plane.objects.puts


def test_a_list_that_is_too_long(lab):
    plane, _, log = hooked(lab, ["echo ran >> LOG"] * 17)
    plane.run_backup("job0", "r1")
    assert "17 pre-hooks" in plane.wait_failure("r1", 20)
    assert not text(log)


def test_a_stop_ends_post_hooks_and_the_result_stays(lab):
    plane, agent, log = hooked(
        lab, post=["echo here >> LOG; exec sleep 600"], env={**ALLOWED, "BACKUPY_STOP_GRACE": "1s"}
    )
    plane.run_backup("job0", "r1")
    wait_until(lambda: text(log), 20, "the post-hook")
    began = time.monotonic()
    agent.stop(30)
    assert time.monotonic() - began < 20
    plane.wait_success("r1", 10)
