"""Delivery and chaos: crashes, cuts and silent servers; every accepted run has one kind of result."""

import os
import random
import time

import pytest

from plane import proto

KEY = bytes(range(32))


def finals(session, run_id):
    """The terminal messages about a run in one session."""
    return [
        r
        for r in session.received
        if r.body.get("run_id") == run_id
        and (r.kind == "backup_completed" or r.body.get("status") in (3, 4, 5))
    ]


def test_confirmed_results_are_not_sent_again(lab):
    plane = lab.plane()
    lab.sqlite(plane)
    agent = lab.agent(plane)
    plane.run_backup("job0", "r1")
    plane.wait_success("r1")
    time.sleep(1)
    plane.session().cut()
    second = plane.session(after=1)
    time.sleep(1)
    agent.kill()
    agent.start()
    third = plane.session(after=2)
    time.sleep(1)
    assert not finals(second, "r1") and not finals(third, "r1")


def test_unconfirmed_results_are_sent_again(lab):
    """A server that promises durable acks and then crashes before storing gets everything again."""
    plane = lab.plane()
    lab.sqlite(plane)
    agent = lab.agent(plane)
    real = plane._confirm
    plane._confirm = lambda session, received: None
    plane.run_backup("job0", "r1")
    plane.wait_success("r1")
    first = finals(plane.sessions[0], "r1")
    plane.session().cut()
    second = plane.session(after=1)
    plane.wait(lambda: len(finals(second, "r1")) == 2, 10, "the result again")
    assert [r.entry_id for r in finals(second, "r1")] == [r.entry_id for r in first]
    agent.kill()
    agent.start()
    third = plane.session(after=2)
    plane.wait(lambda: len(finals(third, "r1")) == 2, 10, "the result after a crash")
    assert [r.entry_id for r in finals(third, "r1")] == [r.entry_id for r in first]
    plane._confirm = real
    plane.session().cut()
    fourth = plane.session(after=3)
    plane.wait(lambda: len(finals(fourth, "r1")) == 2, 10, "the result once more")
    time.sleep(1)
    plane.session().cut()
    fifth = plane.session(after=4)
    time.sleep(1)
    assert not finals(fifth, "r1")


def test_silent_server_gets_results_twice(lab):
    """A pong proves receipt, not storage: a terminal result is sent once more in the next session."""
    plane = lab.plane()
    plane.acks = "silent"
    lab.sqlite(plane)
    lab.agent(plane)
    plane.run_backup("job0", "r1")
    plane.wait_success("r1")
    time.sleep(1)
    assert plane.sessions[0].pings > 0, "without durable acks the agent pings behind its entries"
    plane.session().cut()
    second = plane.session(after=1)
    plane.wait(lambda: len(finals(second, "r1")) == 2, 10, "the result once more")
    time.sleep(1)
    plane.session().cut()
    third = plane.session(after=2)
    time.sleep(1.5)
    assert not finals(third, "r1"), "twice confirmed is enough"


def test_silent_server_that_loses_what_it_ponged(lab):
    plane = lab.plane()
    plane.acks = "silent"
    lab.sqlite(plane)
    plane.forget = lambda received: received.connection == 0 and received.kind != "ack"
    agent = lab.agent(plane)
    plane.run_backup("job0", "r1")
    first = plane.sessions[0]
    plane.wait(lambda: len(finals(first, "r1")) == 2, 20, "the result")
    time.sleep(1)
    agent.kill()
    agent.start()
    plane.wait_success("r1", 20)


def test_server_that_never_pongs(lab):
    plane = lab.plane()
    plane.acks = "silent"
    plane.answer_pings = False
    lab.sqlite(plane)
    lab.agent(plane)
    for number in range(3):
        plane.run_backup("job0", f"r{number}")
        plane.wait_success(f"r{number}")
        plane.session().cut()
        session = plane.session(after=number + 1)
        for earlier in range(number + 1):
            plane.wait(lambda: len(finals(session, f"r{earlier}")) == 2, 10, "everything again")


def test_many_runs_in_order(lab):
    plane = lab.plane()
    plane.acks = "batch"
    lab.sqlite(plane, jobs=3, rows=50)
    plane.config["advanced"] = {"max_parallel_jobs": 3}
    lab.agent(plane)
    for number in range(60):
        plane.run_backup(f"job{number % 3}", f"r{number}", key=KEY if number % 2 else None)
    for number in range(60):
        plane.wait_success(f"r{number}", 60)


class Chaos:
    """A server that repeats unacknowledged commands, and somebody who pulls plugs."""

    def __init__(self, lab, acks, seed):
        self.random = random.Random(seed)
        self.plane = lab.plane()
        self.plane.acks = acks
        self.plane.heartbeat_interval_sec = 1
        lab.sqlite(self.plane, jobs=3, rows=400)
        self.plane.config["advanced"] = {"max_parallel_jobs": 2}
        self.plane.objects.choose_fault = self.fault
        self.agent = lab.agent(self.plane, BACKUPY_LOG_LEVEL="info")
        self.orders = {}
        self.accepted = set()

    def fault(self, key, number):
        roll = self.random.random()
        return "503" if roll < 0.1 else "reset" if roll < 0.2 else "lost-answer" if roll < 0.3 else None

    def send_open(self):
        """Every command without an Ack goes out (again), with fresh credentials."""
        session = next((s for s in reversed(self.plane.sessions) if s.alive), None)
        acked = {
            r.body["correlation_id"] for r in list(self.plane.journal) if r.kind == "ack" and r.body["accepted"]
        }
        for run_id, (job_id, key) in self.orders.items():
            if f"cmd-{run_id}" in acked:
                self.accepted.add(run_id)
            elif session is not None:
                try:
                    self.plane.run_backup(job_id, run_id, session=session, key=key)
                except Exception:
                    return

    def step(self, number):
        for _ in range(self.random.randint(1, 3)):
            run_id = f"run-{len(self.orders)}"
            job_id = self.random.choice(["job0", "job1", "job2", "no-such-job"])
            self.orders[run_id] = (job_id, os.urandom(32) if self.random.random() < 0.7 else None)
        self.send_open()
        time.sleep(self.random.uniform(0, 0.8))
        roll = self.random.random()
        if roll < 0.45:
            self.agent.kill()
            time.sleep(self.random.uniform(0, 0.2))
            self.agent.start()
        elif roll < 0.9:
            for session in self.plane.sessions[-1:]:
                session.cut(reset=self.random.random() < 0.5)
        time.sleep(self.random.uniform(0, 1.5))

    def settle(self):
        """No more faults; all that was accepted must end."""
        self.plane.objects.choose_fault = lambda key, number: None
        deadline = time.monotonic() + 150
        while True:
            self.send_open()
            done = {run_id for run_id in self.orders if self.plane.terminal(run_id)}
            if done >= set(self.orders):
                return
            assert time.monotonic() < deadline, (
                f"no result for {sorted(set(self.orders) - done)}; accepted {sorted(self.accepted)}; "
                f"{self.plane.summary()}"
            )
            assert self.agent.running, f"the agent died: {self.agent.log[-3000:]}"
            time.sleep(0.5)


STEPS = int(os.environ.get("BLACKBOX_CHAOS_STEPS", "20"))


@pytest.mark.timeout(150 + 150 + STEPS * 4)
@pytest.mark.parametrize("acks", ["each", "batch", "late", "silent"])
def test_chaos(lab, acks):
    seed = int(os.environ.get("BLACKBOX_SEED", time.time_ns() % 1_000_000))
    print(f"BLACKBOX_SEED={seed}")
    chaos = Chaos(lab, acks, seed)
    chaos.plane.session()
    for number in range(STEPS):
        chaos.step(number)
    chaos.settle()
    plane = chaos.plane
    outcomes = {run_id: set(plane.terminal(run_id)) for run_id in chaos.orders}
    assert all(len(kinds) == 1 for kinds in outcomes.values()), outcomes
    for run_id, (job_id, _) in chaos.orders.items():
        expected = {"failed"} if job_id == "no-such-job" else {"success"}
        if outcomes[run_id] != expected:
            errors = plane.messages("job_update", run_id=run_id, status=proto.FAILED)
            assert "restart" in errors[0]["error_message"], (run_id, outcomes[run_id], errors)
    plane.check()
