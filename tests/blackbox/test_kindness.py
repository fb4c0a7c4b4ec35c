"""Kindness to the host and to whoever reads along: priority, upload rate, events of the log."""

import pathlib
import time

import pytest


def nice_of_threads(agent):
    """{name: nice} of the agent's threads."""
    found = {}
    for task in pathlib.Path(f"/proc/{agent.pid}/task").iterdir():
        try:
            name, rest = task.joinpath("stat").read_text().rsplit(")", 1)
        except FileNotFoundError:
            continue
        found[name.split("(", 1)[1]] = int(rest.split()[16])
    return found


@pytest.mark.parametrize("setting, expected", [(None, 10), ("3", 3), ("0", 0)])
def test_a_run_has_a_low_priority_and_the_agent_has_not(lab, setting, expected):
    plane = lab.plane()
    lab.sqlite(plane)
    plane.objects.faults.append("stall-answer")
    own = int(pathlib.Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[16])
    agent = lab.agent(plane, **({"BACKUPY_NICE": setting} if setting else {}))
    plane.run_backup("job0", "r1")
    plane.objects.wait_put(lambda put: put.received, 20)
    threads = nice_of_threads(agent)
    runs = {nice for name, nice in threads.items() if name.startswith("run-")}
    assert runs == {max(own, expected)}, threads
    assert threads["dispatch"] == threads["link-read"] == own, threads
    plane.objects.release()
    plane.wait_success("r1")


def test_an_upload_keeps_to_its_limit(lab):
    plane = lab.plane()
    lab.sqlite(plane, rows=3000, compression="none")
    lab.agent(plane, BACKUPY_UPLOAD_LIMIT="512KiB/s")
    plane.run_backup("job0", "r1")
    done = plane.wait_success("r1")
    put = plane.objects.puts[0]
    # Never faster: what the limit allows in that time, and a burst with what fits into the first piece.
    allowed = (put.ended - put.started + 0.25) * 512 * 1024 + 256 * 1024
    assert 1_000_000 < done["size_bytes"] <= allowed


def test_a_job_has_a_limit_of_its_own(lab):
    plane = lab.plane()
    lab.sqlite(plane, rows=3000, compression="none", upload_bytes_per_sec=512 * 1024)
    lab.agent(plane)
    plane.run_backup("job0", "r1")
    done = plane.wait_success("r1")
    put = plane.objects.puts[0]
    allowed = (put.ended - put.started + 0.25) * 512 * 1024 + 256 * 1024
    assert 1_000_000 < done["size_bytes"] <= allowed


def test_a_cancel_does_not_wait_for_the_limit(lab):
    plane = lab.plane()
    lab.sqlite(plane, rows=3000, compression="none")
    lab.agent(plane, BACKUPY_UPLOAD_LIMIT="16KiB/s")
    plane.run_backup("job0", "r1")
    plane.objects.wait_put(lambda put: put.received, 20)
    plane.session().send("cancel_job", {"job_id": "job0"}, "stop")
    asked = time.monotonic()
    kind, _ = plane.wait_terminal("r1", 20)
    assert kind == "cancelled"
    assert time.monotonic() - asked < 10, "a minute's worth of bytes was still to go"


def test_runs_tell_of_their_start_and_their_end(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    plane.objects.choose_fault = lambda key, number: "403" if "r2" in key else None
    lab.agent(plane)
    plane.run_backup("job0", "r1")
    plane.wait_success("r1")
    plane.run_backup("job0", "r2")
    plane.wait_failure("r2")

    def said(run_id):
        field = [{"key": "run_id", "value": run_id}]
        return [(e["level"], e["job_id"], e["message"]) for e in plane.messages("log") if e["fields"] == field]

    info, error = 2, 4
    assert [(level, job) for level, job, _ in said("r1")] == [(info, "job0"), (info, "job0")]
    assert "starts" in said("r1")[0][2] and "completed" in said("r1")[1][2]
    assert [level for level, _, _ in said("r2")] == [info, error]
    assert "403" in said("r2")[1][2]


def test_a_warning_of_the_process_reaches_the_plane(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    plane.objects.faults.append("503")
    agent = lab.agent(plane)
    plane.run_backup("job0", "r1")
    plane.wait_success("r1")
    event = plane.wait_message("log", lambda body: "upload try 1 failed" in body["message"]).body
    warn = 3
    assert event["level"] == warn and "upload try 1 failed" in agent.log
    assert len([e for e in plane.messages("log") if "upload try" in e["message"]]) == 1
