"""Health checks through a control plane: rhythm, on request, after a cut, within the host's list, without secrets."""

import http.server
import pathlib
import threading
import time

import pytest

from conftest import config

SECRET = "s3cr3tqu3ryv4lue"


class Target(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.hits.append((time.monotonic(), self.path, self.headers.get("authorization")))
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def target():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Target)
    server.hits, server.status = [], 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def check(check_id, url, kind=0, **more):
    return {"id": check_id, "name": check_id, "type": kind, "target": url, "interval_sec": 5, "timeout_sec": 5, **more}


def results(plane, check_id):
    return [body for body in plane.messages("health_result") if body["check_id"] == check_id]


def test_rhythm_status_and_secrets(lab, target):
    lab.secrets |= {SECRET}
    plane = lab.plane()
    url = f"http://user:{SECRET}@127.0.0.1:{target.server_port}/health?token={SECRET}"
    plane.config = config([], [], health_checks=[check("web", url), check("port", f"127.0.0.1:{target.server_port}", 2)])
    agent = lab.agent(plane)
    plane.wait(lambda: len(results(plane, "web")) >= 3, 40, "three results")
    assert all(r["ok"] and r["status_code"] == 200 and r["error"] == "" for r in results(plane, "web"))
    assert all(r["ok"] and r["status_code"] == 0 for r in results(plane, "port"))
    times = [r["ts_ms"] for r in results(plane, "web")]
    assert all(b - a > 2500 for a, b in zip(times, times[1:])), "never much sooner than its interval"
    assert all(path.endswith(SECRET) and auth.startswith("Basic ") for _, path, auth in target.hits)
    target.status = 503
    plane.wait(lambda: not results(plane, "web")[-1]["ok"], 40, "a failure")
    last = results(plane, "web")[-1]
    assert last["status_code"] == 503 and "503" in last["error"] and SECRET not in last["error"]
    status = agent.command("status", "--json")
    assert '"check_id": "web"' in status.stdout and SECRET not in status.stdout + status.stderr


def test_on_request(lab, target):
    plane = lab.plane()
    slow = check("web", f"http://127.0.0.1:{target.server_port}/", interval_sec=86400)
    plane.config = config([], [], health_checks=[slow])
    lab.agent(plane)
    plane.wait(lambda: results(plane, "web"), 40, "the first result")
    plane.session().send("run_health_check", {"check_id": "web"}, correlation_id="now")
    assert plane.wait_ack("now")["accepted"]
    plane.wait(lambda: len(results(plane, "web")) == 2, 20, "the result of the request")
    plane.session().send("run_health_check", {"check_id": "nobody"}, correlation_id="none")
    ack = plane.wait_ack("none")
    assert not ack["accepted"] and "nobody" in ack["reason"]


def test_results_wait_for_the_link(lab, target):
    plane = lab.plane()
    plane.config = config([], [], health_checks=[check("web", f"http://127.0.0.1:{target.server_port}/")])
    lab.agent(plane)
    plane.wait(lambda: results(plane, "web"), 40, "the first result")
    plane.unlisten()
    plane.session().cut()
    before, seen = len(target.hits), len(results(plane, "web"))
    plane.wait(lambda: len(target.hits) >= before + 2, 40, "checks while the link is cut")
    plane.listen()
    plane.wait(lambda: len(results(plane, "web")) >= seen + 2, 60, "the results of that time")
    times = [r["ts_ms"] for r in results(plane, "web")]
    assert times == sorted(times)


def test_the_list_of_the_host_is_kept(lab, target):
    plane = lab.plane()
    port = target.server_port
    checks = [
        check("listed", f"http://127.0.0.1:{port}/"),
        check("other", "http://127.0.0.1:1/"),
        check("meta", "http://169.254.169.254/latest/meta-data"),
    ]
    plane.config = config([], [], health_checks=checks)
    lab.agent(plane, BACKUPY_ALLOW_CHECKS=f"127.0.0.1:{port}")
    plane.wait(lambda: all(results(plane, c["id"]) for c in checks), 40, "a result of each")
    assert results(plane, "listed")[0]["ok"]
    assert "BACKUPY_ALLOW_CHECKS" in results(plane, "other")[0]["error"]
    assert "metadata" in results(plane, "meta")[0]["error"]


def test_no_checks_no_thread(lab, target):
    plane = lab.plane()
    plane.config = config([], [])
    agent = lab.agent(plane)
    plane.session()

    def threads():
        tasks = f"/proc/{agent.process.pid}/task"
        return {(p / "comm").read_text().strip() for p in pathlib.Path(tasks).iterdir()}

    assert "checks" not in threads()
    new = config([], [], 2, health_checks=[check("web", f"http://127.0.0.1:{target.server_port}/")])
    plane.session().send("config_update", {"config": new}, correlation_id="on")
    assert plane.wait_ack("on")["accepted"]
    plane.wait(lambda: "checks" in threads(), 10, "the thread")
    plane.session().send("config_update", {"config": config([], [], 3)}, correlation_id="off")
    assert plane.wait_ack("off")["accepted"]
    plane.wait(lambda: "checks" not in threads(), 10, "the end of the thread")
