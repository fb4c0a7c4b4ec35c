"""Notifications of `up`: what arrives where, what happens when it does not, and that no secret gets out."""

import base64
import json
import os
import signal

import pytest

from plane import databases, people
from plane.agent import wait_until
from test_up import FAILED, OK, Host

HOOK, TOKEN, PASSWORD, UUID = "S3CRETHOOKPATH", "4711:S3CRET-BOT_TOKEN", "s3cret mail p4ss", "b5a1-s3cret-uuid"
LOGIN = base64.b64encode(f"\0backupy\0{PASSWORD}".encode()).decode()


class Town(Host):
    """A host whose people can be reached."""

    def __init__(self, lab):
        super().__init__(lab)
        self.web = people.Web()
        context, _ = lab.authority.server()
        self.mail = people.Mail(context, LOGIN)
        lab.secrets |= {HOOK, TOKEN, PASSWORD, UUID, LOGIN, "h34der-s3cret"}
        self.agent.env |= {
            "HOOK_URL": f"{self.web.url}/hook/{HOOK}?token={HOOK}",
            "HOOK_AUTH": "h34der-s3cret",
            "BOT_TOKEN": TOKEN,
            "MAIL_PASSWORD": PASSWORD,
            "PING_URL": f"{self.web.url}/ping/{UUID}",
        }
        self.channels = f"""
[[notify]]
webhook = "env:HOOK_URL"
headers = {{ X-Auth = "env:HOOK_AUTH" }}
template = '{{"what": "{{{{status}}}}", "name": "{{{{name}}}}", "text": "{{{{title}}}}: {{{{text}}}}"}}'
[[notify]]
ca_file = "{lab.authority.path}"
[notify.email]
to = ["ops@example.org"]
from = "backupy@example.org"
server = "smtp://backupy@127.0.0.1:{self.mail.port}"
password = "env:MAIL_PASSWORD"
[[notify]]
telegram = {{ token = "env:BOT_TOKEN", chat = "-1001", api = "{self.web.url}" }}
"""

    def app(self, name="app", **more):
        return super().app(name, **{"ping": '"env:PING_URL"', "retry": "{ attempts = 1 }", **more})

    def write(self, *backups, **options):
        super().write(*backups, **options)
        with open(self.file, "a") as file:
            file.write(self.channels)

    def hooked(self):
        return [said["what"] for said in self.web.bodies("/hook")]

    def chatted(self):
        return [said["text"] for said in self.web.bodies(f"/bot{TOKEN}/sendMessage")]

    def pinged(self):
        return [path.removeprefix(f"/ping/{UUID}") for path in self.web.paths("/ping")]

    def all_heard(self, what, title, count=1):
        """Everybody hears of something so often."""
        wait_until(lambda: self.hooked().count(what) == count, 30, f"the webhook: {what}: {self.hooked()}")
        wait_until(lambda: sum(title in s for s in self.mail.subjects()) == count, 30, f"the mail: {title}")
        wait_until(lambda: sum(title in text for text in self.chatted()) == count, 30, f"the chat: {title}")

    def channel_status(self, name):
        status = json.loads(self.command("status", "--json", config=False).stdout)
        [channel] = [c for c in status["control"]["notify"] if c["channel"] == name]
        return channel, [p for p in status["problems"] if f"through {name} " in p]


@pytest.fixture
def town(lab):
    town = Town(lab)
    yield town
    town.web.close()
    town.mail.close()


def test_failure_and_recovery_arrive_everywhere(town):
    town.write()
    town.up()
    town.ok("backup", "app")
    wait_until(lambda: "" in town.pinged(), 30, "a ping")
    assert town.pinged()[:2] == ["/start", ""]
    assert town.hooked() == [], "good runs are no news"
    aside = town.directory / "aside.db"
    town.database.rename(aside)
    assert town.command("backup", "app").returncode == FAILED
    town.all_heard("failed", "backup app failed")
    wait_until(lambda: town.pinged()[-1] == "/fail", 30, "a ping of the failure")
    [lines, mail] = town.mail.mails[0]
    assert mail["to"] == "ops@example.org" and "app.db" in mail.get_content()
    assert lines[2] == "MAIL FROM:<backupy@example.org>"
    assert all(line.startswith(("EHLO", "STARTTLS")) for line in town.mail.clear), "no more in the clear"
    [(_, headers, _)] = [heard for heard in town.web.heard if heard[0].startswith("/hook")]
    assert headers["x-auth"] == "h34der-s3cret"
    # A recovery after a restart is one, too.
    town.stop()
    aside.rename(town.database)
    town.up()
    town.ok("backup", "app")
    town.all_heard("recovered", "backup app works again")
    town.ok("backup", "app")
    wait_until(lambda: town.pinged().count("") == 3, 30, "three good runs")
    assert town.hooked() == ["failed", "recovered"], "told once"
    assert town.ok("status", config=False).count("notify ") == 4


def test_a_missed_run_is_told(town):
    town.write(town.app(every='"5s"'))
    town.up()
    wait_until(lambda: town.pinged().count("") >= 1, 30, "a first run")
    marker = town.storage / ".backupy-storage"
    marker.rename(town.directory / "marker")
    town.all_heard("late", "backup app is late")
    (town.directory / "marker").rename(marker)
    # The storage is looked for again every minute.
    wait_until(lambda: "recovered" in town.hooked(), 90, "the recovery")


def test_a_shrunk_run_is_told_and_still_good(town):
    town.write(town.app(keep="{ last = 1 }", compression='"none"'))
    town.up()
    for _ in range(3):
        town.ok("backup", "app")
    town.database.unlink()
    databases.make_sqlite(town.database, 10)
    town.ok("backup", "app")
    town.all_heard("shrunk", "backup app is far smaller than before")
    town.ok("backup", "app")
    wait_until(lambda: town.pinged().count("") >= 5, 30, "the last run")
    assert town.hooked() == ["shrunk"], "told once"
    assert town.runs("app")[0]["state"] == "ok"


def test_a_channel_that_fails_is_a_problem_and_tried_again(town):
    town.write({**town.app(), "database": f'"sqlite://{town.directory}/gone.db"'})
    town.web.refuse["/hook"] = 503
    town.up()
    wait_until(lambda: town.hooked().count("failed") == 2, 60, "a second try")
    channel, problems = town.channel_status("webhook")
    assert channel["failing"] and channel["waiting"] == 1 and problems and "503" in problems[0], channel
    status = town.command("status", config=False)
    assert status.returncode == FAILED and "through webhook do not arrive" in status.stdout
    wait_until(lambda: len(town.mail.mails) == 1, 30, "the others are not held up")
    # What waits is sent by the next process.
    town.stop()
    town.web.refuse.clear()
    town.database.rename(town.directory / "gone.db")
    town.up()
    wait_until(lambda: town.hooked().count("failed") == 3, 30, "the third try")
    wait_until(lambda: town.channel_status("webhook")[1] == [], 30, "no problem any more")
    assert town.mail.subjects()[0].startswith("backup app failed")


def test_notify_test_says_what_works(town):
    town.write()
    offline = town.ok("notify-test", timeout=90)
    assert [line for line in offline.splitlines()] == ["webhook: ok", "email: ok", "telegram: ok", "pings: ok"]
    assert town.pinged() == ["/log"], "no monitor takes it for a run"
    town.up()
    assert town.ok("notify-test", "email", config=False) == "email: ok\n"
    assert [subject.startswith("test message") for subject in town.mail.subjects()] == [True, True]
    town.web.refuse["/bot"] = 401
    done = town.command("notify-test", config=False)
    assert done.returncode == FAILED
    [line] = [line for line in done.stdout.splitlines() if "failed" in line]
    assert line.startswith("telegram: failed: 127.0.0.1 answered 401")
    assert TOKEN not in done.stdout + done.stderr
    assert town.channel_status("telegram")[1]
    town.web.refuse.clear()
    town.ok("notify-test", "telegram", config=False)
    assert not town.channel_status("telegram")[1], "a good test is a good message"
    assert town.command("notify-test", "nobody", config=False).returncode == FAILED


def test_another_file_and_no_secret_anywhere(town):
    town.write()
    check = town.agent.command("up", "--check", "--config", str(town.file))
    assert check.returncode == OK and "email: mail to ops@example.org through 127.0.0.1" in check.stdout
    shown = check.stdout + check.stderr
    town.web.refuse |= {"/hook": 404, "/bot": 400, "/ping": 500}
    town.agent.env["MAIL_PASSWORD"] = PASSWORD + "x"
    # From the start: its first run begins by itself.
    town.database.rename(town.directory / "aside.db")
    town.up()
    town.command("backup", "app")
    wait_until(lambda: len(town.agent.log.split("gave up telling")) >= 4, 60, "three channels are given up")
    town.channels = town.channels.replace('"env:HOOK_URL"', f'"{town.web.url}/other/{HOOK}"')
    town.write()
    os.kill(town.agent.pid, signal.SIGHUP)
    wait_until(lambda: "the file was applied" in town.agent.log or "read again" in town.agent.log, 30, "SIGHUP")
    town.command("backup", "app")
    wait_until(lambda: town.web.paths("/other"), 30, "the new address")
    for arguments in (("status",), ("status", "--json"), ("runs",), ("notify-test",)):
        done = town.command(*arguments, config=False)
        shown += done.stdout + done.stderr
    shown += town.agent.log
    for secret in town.lab.secrets | {PASSWORD + "x", base64.b64encode((PASSWORD + "x").encode()).decode()}:
        assert secret not in shown, secret
    # The file itself holds one now, for this test.
    town.file.unlink()


def test_an_up_that_cannot_start_is_told_once_and_that_it_works_again(town):
    town.write()
    town.up()
    town.stop()
    key = town.state / "agent.key"
    good = key.read_text()
    key.write_text("no key\n")
    for _ in range(3):
        assert town.command("up").returncode not in (OK, FAILED)
    key.write_text(good)
    town.up()
    town.all_heard("up", "backupy runs again")
    town.all_heard("down", "backupy cannot start")
    town.stop()
    town.up()
    town.stop()
    assert town.hooked() == ["down", "up"], "told once"
