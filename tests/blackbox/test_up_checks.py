"""Health checks of `up`: a failing one runs `on_failure`, so does its recovery, and a restart repeats nothing."""

import json

from plane.agent import wait_until
from test_checks import target  # noqa: F401
from test_up import FAILED, OK, host  # noqa: F401


def checks(host):  # noqa: F811
    done = host.command("status", "--json", config=False)
    return {check["name"]: check for check in json.loads(done.stdout)["control"]["checks"]}


def test_told_once_across_a_restart(host, target):  # noqa: F811
    told = host.directory / "told"
    host.write(top=f'on_failure = "echo $BACKUPY_NAME $BACKUPY_STATUS $BACKUPY_ERROR >> {told}"')
    url = f"http://127.0.0.1:{target.server_port}/health"
    host.file.write_text(host.file.read_text() + f'\n[[check]]\nname = "web"\nurl = "{url}"\ninterval = "5s"\n')
    host.up()
    lines = lambda: told.read_text().splitlines() if told.exists() else []  # noqa: E731
    hits = lambda: len(target.hits)  # noqa: E731
    wait_until(lambda: checks(host)["web"]["ok"], 30, "a good result")
    assert host.command("status", config=False).returncode == OK
    target.status = 503
    wait_until(lines, 40, "on_failure")
    assert len(lines()) == 1 and lines()[0].startswith("web check-failed ") and "503" in lines()[0]
    status = host.command("status", config=False)
    assert status.returncode == FAILED and "the check web fails" in status.stdout
    host.stop()

    seen = hits()
    host.up()
    # At once, and not only after the next result.
    assert checks(host)["web"]["failing"] and "503" in checks(host)["web"]["error"]
    wait_until(lambda: hits() >= seen + 3, 60, "more failures than count")
    assert len(lines()) == 1, lines()
    target.status = 200
    wait_until(lambda: len(lines()) == 2, 40, "the recovery")
    assert lines()[1].strip() == "web check-recovered"
    wait_until(lambda: host.command("status", config=False).returncode == OK, 20, "peace")
    host.stop()

    # Recovered is remembered as well: the next failure is news.
    host.up()
    wait_until(lambda: checks(host)["web"]["ok"], 30, "a good result")
    target.status = 503
    wait_until(lambda: len(lines()) == 3, 40, "on_failure again")
    assert lines()[2].startswith("web check-failed ")
