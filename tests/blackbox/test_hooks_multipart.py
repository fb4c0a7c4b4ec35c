"""Hooks around an upload in parts: what is given up, what stays, and when."""

import pytest

from plane import databases
from plane.agent import children_of, wait_until
from test_hooks import ALLOWED, TELL, text, warnings
from test_multipart import KEY, only_upload, prepare, restored


def hooked(lab, pre=(), post=()):
    """A plane and an agent with hooks; `LOG` in a command is the path that is returned last."""
    log = lab.directory / "hooks.log"
    plane = lab.plane()
    pre, post = ([command.replace("LOG", str(log)) for command in commands] for commands in (pre, post))
    path = prepare(lab, plane, 12, pre_hooks=pre, post_hooks=post)
    return plane, lab.agent(plane, **ALLOWED), path, log


def test_a_failing_pre_hook_gives_the_upload_up(lab):
    plane, _, path, log = hooked(lab, ["exit 9"], [TELL + "LOG"])
    path.unlink()
    plane.run_backup("job0", "r1", key=KEY, ahead=4)
    assert "pre-hook 1 failed with exit code 9" in plane.wait_failure("r1")
    wait_until(lambda: only_upload(plane).aborted, 20, "the abort")
    uploads = plane.objects.uploads
    assert not only_upload(plane).parts and uploads.count("part", 1) == 0 and uploads.count("complete") == 0
    assert not plane.objects.puts, "nothing else was sent either"
    assert text(log) == "job0 r1 failed 0\n"


@pytest.mark.parametrize("fails", [False, True])
def test_post_hooks_come_after_the_object(lab, fails):
    plane, _, path, log = hooked(lab, post=[TELL + "LOG" + ("; exit 4" if fails else "")])
    held = []
    plane.objects.uploads.choose_fault = lambda what, *_: held.append(text(log)) if what == "complete" else None
    plane.run_backup("job0", "r1", key=KEY, ahead=8)
    done = plane.wait_success("r1")
    assert held == [""], "not before Complete"
    assert text(log) == f"job0 r1 success {done['size_bytes']}\n"
    assert only_upload(plane).completed and not only_upload(plane).aborted
    if fails:
        plane.wait(lambda: any("post-hook 1 failed with exit code 4" in w for w in warnings(plane)), 10)
    assert restored(lab, plane, done) == databases.sqlite_digest(path)


def test_a_cancel_in_a_post_hook_takes_nothing_back(lab):
    plane, agent, path, log = hooked(lab, post=["echo here >> LOG; exec sleep 600"])
    plane.run_backup("job0", "r1", key=KEY, ahead=8)
    wait_until(lambda: text(log) and children_of(agent.pid), 60, "the hook")
    assert only_upload(plane).completed
    for name in ("stop", "stop at once"):
        plane.session().send("cancel_job", {"job_id": "job0"}, name)
        plane.wait_ack(name)
    done = plane.wait_success("r1", 20)
    assert not agent.children()
    # The agent is stopped, so that an abort that it would still send had its time.
    agent.stop(30)
    assert plane.objects.uploads.count("abort") == 0 and not only_upload(plane).aborted
    assert restored(lab, plane, done) == databases.sqlite_digest(path)
