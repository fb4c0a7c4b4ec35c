"""Prometheus: what is counted, that it is honest, that nobody can hurt the agent there, and the files that use it."""

import json
import pathlib
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request

import pytest

from conftest import config
from plane.agent import wait_until
from test_up import Host

PACKAGING = pathlib.Path(__file__).parents[2] / "packaging"
ANY_PORT = "127.0.0.1:0"
SAMPLE = re.compile(r"^([a-z_]+)(?:\{(.*)\})? ([0-9.e+-]+)$")


def promtool(*arguments, text=None):
    """Runs promtool, which must be content; what it says."""
    assert shutil.which("promtool"), "no promtool: install Debian's package prometheus"
    done = subprocess.run(
        ["promtool", *map(str, arguments)], input=text, capture_output=True, text=True, timeout=60
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


class Scraper:
    """Asks an agent where its log says."""

    def __init__(self, agent):
        said = wait_until(lambda: re.findall(r"metrics at (http://\S+)/metrics", agent.log), 20, "an address")
        self.base = said[-1]
        self.address = self.base.rpartition("/")[2].split(":")

    def get(self, path="/metrics", method="GET"):
        """Status, headers and body of one request."""
        request = urllib.request.Request(self.base + path, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def page(self):
        """The text of a scrape."""
        status, headers, body = self.get()
        assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4"), body
        return body

    def values(self):
        """`name{labels}` → value."""
        samples = (SAMPLE.match(line) for line in self.page().splitlines() if not line.startswith("#"))
        return {f"{m[1]}{{{m[2]}}}" if m[2] else m[1]: float(m[3]) for m in samples}

    def value(self, name, **labels):
        """One sample, or None."""
        labels = ",".join(f'{k}="{v}"' for k, v in labels.items())
        name = f"backupy_agent_{name}"
        return self.values().get(f"{name}{{{labels}}}" if labels else name)

    def wait(self, expected, name, **labels):
        """Waits until a sample has that value."""
        wait_until(lambda: self.value(name, **labels) == expected, 30, f"{name} {labels} {expected}")

    def connect(self, *pieces):
        """A raw connection to which these bytes were sent."""
        client = socket.create_connection((self.address[0], int(self.address[1])), timeout=30)
        for piece in pieces:
            client.sendall(piece)
        return client


def families(page):
    """Name → type."""
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M))


def busy_agent(lab):
    """An agent with a job that succeeded, one that failed, and a check that passed and one that did not."""
    plane = lab.plane()
    paths = lab.sqlite(plane, jobs=2, cron="0 * * * *")
    web = {"id": "web", "name": "web", "type": 2, "target": f"127.0.0.1:{plane.port}", "interval_sec": 5}
    gone = {"id": "gone", "name": "gone", "type": 2, "target": "127.0.0.1:9", "interval_sec": 5}
    plane.config = {**plane.config, "health_checks": [web, gone]}
    paths[1].unlink()
    agent = lab.agent(plane, BACKUPY_METRICS_LISTEN_ADDR=ANY_PORT)
    plane.session()
    plane.run_backup("job0", "r1")
    plane.run_backup("job1", "r2")
    plane.wait_failure("r2")
    return plane, agent, plane.wait_success("r1")


def test_runs_checks_and_promtool(lab):
    plane, agent, done = busy_agent(lab)
    scraper = Scraper(agent)
    scraper.wait(1, "health_check_up", check_id="web")
    scraper.wait(0, "health_check_up", check_id="gone")
    value = scraper.value
    assert value("up") == 1 and value("config_version") == 1
    assert value("runs_total", job_id="job0", status="success") == 1
    assert value("runs_total", job_id="job0", status="failed") == 0
    assert value("runs_total", job_id="job1", status="failed") == 1
    assert value("run_size_bytes_count", job_id="job0") == 1
    assert value("run_size_bytes_sum", job_id="job0") == done["size_bytes"]
    assert value("run_size_bytes_bucket", job_id="job0", le="10485760") == 1
    assert value("run_duration_seconds_sum", job_id="job0") == done["duration_ms"] / 1000
    assert value("run_duration_seconds_bucket", job_id="job0", le="+Inf") == 1
    assert value("run_duration_seconds_count", job_id="job1") == 0, "only successes have a duration"
    assert value("health_check_duration_seconds", check_id="web") < 5
    success = value("last_success_timestamp_seconds", job_id="job0")
    overdue = value("job_overdue_after_timestamp_seconds", job_id="job0")
    assert 3600 < overdue - success <= 7200 and overdue % 3600 == 0
    assert value("last_success_timestamp_seconds", job_id="job1") == 0
    assert value("job_overdue_after_timestamp_seconds", job_id="job1") > success
    assert re.search(r'build_info\{version="\d+\.\d+\.\d+",commit="(unknown|[0-9a-f]{12,40})"\} 1$', scraper.page(), re.M)
    said = promtool("check", "metrics", text=scraper.page())
    assert said.strip() == "", said
    assert plane.key[10:] not in scraper.page()

    # What a restart must not forget, and what it may.
    assert agent.stop() == 0
    agent.start()
    plane.session(after=1)
    scraper = Scraper(agent)
    assert scraper.value("last_success_timestamp_seconds", job_id="job0") == success
    assert scraper.value("runs_total", job_id="job0", status="success") == 0
    plane.run_backup("nobody", "r3")
    plane.wait_failure("r3")
    scraper.wait(1, "runs_total", job_id="", status="failed")

    # What is no longer configured is no longer shown.
    plane.session().send("config_update", {"config": {**plane.config, "version": 2, "jobs": plane.config["jobs"][:1], "health_checks": []}}, correlation_id="less")
    assert plane.wait_ack("less")["accepted"]
    page = scraper.page()
    assert "job1" not in page and 'check_id="' not in page and 'job_id="job0"' in page


def test_any_id_makes_a_page_that_parses(lab):
    plane = lab.plane()
    [_] = lab.sqlite(plane)
    ids = ['a"b', "back\\slash", "new\nline", "ü" * 500, "ü" * 499 + "x", "{}", "\u0001"]
    [job] = plane.config["jobs"]
    plane.config = {**plane.config, "jobs": [{**job, "id": i} for i in ids]}
    agent = lab.agent(plane, BACKUPY_METRICS_LISTEN_ADDR=ANY_PORT)
    plane.session()
    scraper = Scraper(agent)
    wait_until(lambda: scraper.page().count("backupy_agent_last_success_timestamp_seconds{") == len(ids), 20)
    promtool("check", "metrics", text=scraper.page())


def test_the_connection_is_seen_to_come_and_go(lab):
    plane = lab.plane()
    agent = lab.agent(plane, BACKUPY_METRICS_LISTEN_ADDR=ANY_PORT)
    plane.session()
    scraper = Scraper(agent)
    scraper.wait(1, "wss_connection_state", state="connected")
    assert scraper.value("wss_reconnects_total") == 0
    plane.unlisten()
    plane.session().cut()
    scraper.wait(1, "wss_connection_state", state="disconnected")
    assert scraper.value("wss_connection_state", state="connected") == 0
    assert scraper.get("/healthz")[0] == 200, "alive without a control plane"
    plane.script = lambda number: "mute"
    plane.listen()
    scraper.wait(1, "wss_connection_state", state="connecting")
    plane.script = lambda number: "accept"
    for session in list(plane.sessions):
        session.cut()
    scraper.wait(1, "wss_connection_state", state="connected")
    scraper.wait(1, "wss_reconnects_total")
    states = [v for k, v in scraper.values().items() if "connection_state" in k]
    assert sorted(states) == [0, 0, 1]


def test_what_waits_and_what_was_dropped(lab):
    plane = lab.plane()
    agent = lab.agent(plane, BACKUPY_METRICS_LISTEN_ADDR=ANY_PORT)
    session = plane.session()
    scraper = Scraper(agent)
    wait_until(lambda: scraper.value("dispatch_pending") == 0, 20, "an empty queue")
    plane.acks, plane.answer_pings = "silent", False
    for n in range(60):
        session.send("run_health_check", {"check_id": "nobody"}, correlation_id=f"{n}-" + "x" * 100_000)
    wait_until(lambda: (scraper.value("outbox_dropped_total", kind="ack") or 0) > 0, 60, "a full queue")
    values = scraper.values()
    assert values["backupy_agent_dispatch_pending"] > 10
    assert values['backupy_agent_outbox_dropped_total{kind="log"}'] > 0, "log events go first"
    assert values['backupy_agent_outbox_dropped_total{kind="health"}'] == 0
    assert agent.running


def test_a_taken_port_is_a_warning_and_an_empty_one_is_off(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        agent = lab.agent(plane, BACKUPY_METRICS_LISTEN_ADDR=address)
        plane.run_backup("job0", "r1")
        plane.wait_success("r1")
        assert f"failed to serve metrics at {address}" in agent.log and "WARN" in agent.log
        assert "metrics" not in agent.thread_names()
    assert agent.stop() == 0
    off = lab.agent(plane, BACKUPY_METRICS_LISTEN_ADDR="")
    plane.session(after=1)
    assert "metrics" not in off.log and "metrics" not in off.thread_names()
    assert off.stop() == 0
    wrong = lab.agent(plane, BACKUPY_METRICS_LISTEN_ADDR="nonsense")
    assert wrong.wait_exit(20) == 2 and "BACKUPY_METRICS_LISTEN_ADDR must be" in wrong.log


def test_hostile_clients(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    agent = lab.agent(plane, BACKUPY_METRICS_LISTEN_ADDR=ANY_PORT)
    plane.session()
    scraper = Scraper(agent)
    for path in ("/", "/metrics/", "/metrics/../healthz", "/debug/pprof", "//metrics", "/objects/x"):
        assert scraper.get(path)[0] == 404, path
    assert scraper.get("/metrics?name=x")[0] == 200
    for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
        assert scraper.get("/metrics", method)[0] == 405, method
    for request, status in (
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"431"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"400"),
    ):
        client = scraper.connect()
        try:
            client.sendall(request)
            assert client.recv(4096).split(b" ")[1] == status, request[:60]
        finally:
            client.close()
    # Four that hold the line, one of them a byte at a time, and a fifth that is told so at once.
    wait_until(lambda: "metrics-conn" not in agent.thread_names(), 20, "nobody left from before")
    held = [scraper.connect(b"GET /metrics HT") for _ in range(4)]
    wait_until(lambda: agent.thread_names().count("metrics-conn") == 4, 20, "four connections")
    fifth = scraper.connect(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert fifth.recv(100).startswith(b"HTTP/1.1 503 ")
    plane.run_backup("job0", "r1")
    plane.wait_success("r1")
    # The deadline frees their places while they still hold on.
    wait_until(lambda: scraper.get()[0] == 200, 30, "a free place")
    for client in (*held, fifth):
        client.close()
    silent = scraper.connect(b"GET")
    assert agent.stop(timeout=5) == 0, "a client that holds on does not hold up the stop"
    silent.close()


def test_idle_costs_nothing(lab):
    plane = lab.plane()
    agent = lab.agent(plane, BACKUPY_METRICS_LISTEN_ADDR=ANY_PORT)
    plane.session()
    scraper = Scraper(agent)
    scraper.page()
    task = next(p for p in pathlib.Path(f"/proc/{agent.pid}/task").iterdir() if (p / "comm").read_text() == "metrics\n")
    switches = lambda: re.findall(r"ctxt_switches:\s+(\d+)", (task / "status").read_text())[0]
    before = switches()
    beats = len(plane.messages("heartbeat"))
    plane.heartbeat_interval_sec = 1
    plane.session().cut()
    plane.wait(lambda: len(plane.messages("heartbeat")) > beats + 3, 40, "some time")
    assert switches() == before, "the thread woke up without a client"


def test_up_knows_intervals_without_a_cron_line(lab):
    host = Host(lab)
    host.write(top=f'metrics_listen = "{ANY_PORT}"')
    host.up()
    scraper = Scraper(host.agent)
    host.ok("backup", "app")
    scraper.wait(1, "runs_total", job_id="app", status="success")
    success = scraper.value("last_success_timestamp_seconds", job_id="app")
    overdue = scraper.value("job_overdue_after_timestamp_seconds", job_id="app")
    assert abs(overdue - success - 2 * 6 * 3600) < 1
    host.stop()
    host.write(top='metrics_listen = "nowhere"')
    checked = host.command("up", "--check")
    assert checked.returncode == 2 and "`metrics_listen` must be" in checked.stderr
    host.write(top='metrics_listen = "off"')
    host.agent.env["BACKUPY_METRICS_LISTEN_ADDR"] = ANY_PORT
    host.up()
    assert "metrics" not in host.agent.thread_names()
    host.stop()


def test_alert_rules():
    rules = PACKAGING / "prometheus" / "alerts.yml"
    promtool("check", "rules", rules)
    promtool("test", "rules", PACKAGING / "prometheus" / "alerts_test.yml")


def names(expression):
    """The metrics of an expression."""
    quoted = re.sub(r'"[^"]*"|\{[^}]*\}', "", expression)
    return set(re.findall(r"\bbackupy_\w+", quoted))


def test_dashboard_and_rules_name_only_what_exists(lab, tmp_path):
    _, agent, _ = busy_agent(lab)
    exists = set()
    scraper = Scraper(agent)
    wait_until(lambda: "unprotected_databases" in scraper.page(), 30, "the first look for databases")
    for name, kind in families(scraper.page()).items():
        exists |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    dashboard = json.loads((PACKAGING / "grafana" / "backupy.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) and dashboard["uid"] == "backupy"
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    variables = [v["definition"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    rules = re.findall(r"^\s+expr: (.*)$", (PACKAGING / "prometheus" / "alerts.yml").read_text(), re.M)
    used = set().union(*map(names, expressions + variables + rules))
    assert used and used <= exists, used - exists
    assert len(rules) == 8 and len(expressions) > 15
    for panel in panels:
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    # Grafana's own variables apart, each is an expression that Prometheus accepts.
    filled = [e.replace("$__rate_interval", "5m").replace("$instance", ".*") for e in expressions]
    groups = [{"name": "panels", "rules": [{"record": f"panel:{n}", "expr": e} for n, e in enumerate(filled)]}]
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": groups}))
    promtool("check", "rules", file)
