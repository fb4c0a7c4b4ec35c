"""Configuration: applied, kept across restarts, never rolled back except by RegisterAck."""

import time

from plane.agent import wait_until


def held_version(plane, session):
    """The version in the newest heartbeat of a session."""
    beats = [r.body["config_version"] for r in session.received if r.kind == "heartbeat"]
    return beats[-1] if beats else None


def test_update_is_applied_and_persisted(lab):
    plane = lab.plane()
    plane.heartbeat_interval_sec = 1
    agent = lab.agent(plane)
    session = plane.session()
    [path] = lab.sqlite(plane)
    session.send("config_update", {"config": {**plane.config, "version": 5}}, "cfg")
    plane.wait(lambda: held_version(plane, session) == 5, 10, "version 5 in a heartbeat")
    plane.run_backup("job0", "r1")
    plane.wait_success("r1")
    for number, end in enumerate([agent.stop, agent.kill], 1):
        end()
        plane.config = None
        agent.start()
        session = plane.session(after=number)
        assert session.register["last_known_config_version"] == 5
        plane.run_backup("job0", f"again-{number}")
        plane.wait_success(f"again-{number}")


def test_older_update_is_ignored(lab):
    plane = lab.plane()
    plane.heartbeat_interval_sec = 1
    lab.sqlite(plane)
    plane.config["version"] = 5
    lab.agent(plane)
    session = plane.session()
    session.send("config_update", {"config": {"version": 3}}, "old")
    session.send("config_update", {}, "none")
    time.sleep(2.5)
    assert held_version(plane, session) == 5
    plane.run_backup("job0", "r1")
    plane.wait_success("r1")


def test_register_ack_may_go_back(lab):
    plane = lab.plane()
    plane.heartbeat_interval_sec = 1
    lab.sqlite(plane)
    good = plane.config
    plane.config = {"version": 9}
    agent = lab.agent(plane)
    session = plane.session()
    plane.wait(lambda: held_version(plane, session) == 9, 10)
    plane.config = {**good, "version": 2}
    session.cut()
    session = plane.session(after=1)
    plane.wait(lambda: held_version(plane, session) == 2, 10)
    plane.run_backup("job0", "r1")
    plane.wait_success("r1")
    agent.stop()
    agent.start()
    assert plane.session(after=2).register["last_known_config_version"] == 2


def test_log_level_from_config(lab):
    plane = lab.plane()
    plane.config = {"version": 1, "advanced": {"log_level": "error"}}
    agent = lab.agent(plane)
    session = plane.session()
    time.sleep(1)
    before = len(agent.log)
    session.cut()
    plane.session(after=1)
    time.sleep(0.5)
    assert len(agent.log) == before, agent.log[before:]
    plane.session().send("config_update", {"config": {"version": 2, "advanced": {"log_level": "debug"}}})
    time.sleep(0.5)
    plane.session().cut()
    plane.session(after=2)
    wait_until(lambda: len(agent.log) > before, 5, "a log line")


def test_one_bad_target_spoils_nothing_else(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    plane.config["targets"] += [
        {"id": "odd", "type": 77, "connection": {"host": "x", "port": 999999}},
        {"id": "bare"},
    ]
    plane.config["jobs"] += [
        {"id": "odd-job", "target_id": "odd", "compression": "lzma", "cron": "not cron"},
        {"id": "bare-job", "target_id": "bare"},
        {"id": "lost-job", "target_id": "nowhere"},
        {"id": "squeezed-job", "target_id": "target0", "compression": "lzma"},
    ]
    lab.agent(plane)
    for job in ("odd-job", "bare-job", "lost-job", "squeezed-job"):
        plane.run_backup(job, f"r-{job}")
        assert plane.wait_failure(f"r-{job}", 15)
    plane.run_backup("job0", "r1")
    plane.wait_success("r1")
