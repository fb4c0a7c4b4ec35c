"""Uploads in parts: streamed without a spool, through lost links, killed agents and failing stores."""

import os
import pathlib
import threading

import pytest

from plane import artifact, databases
from plane.agent import wait_until
from plane.uploads import MIB

KEY = bytes(range(32))


class SpoolWatch:
    """Looks for open files of the spool, which have no name, as fast as it can."""

    def __init__(self, agent):
        self.agent = agent
        self.found = set()
        self.looks = 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()

    def _run(self):
        while not self.stopping.wait(0.005):
            if not self.agent.running:
                continue
            self.looks += 1
            for fd in pathlib.Path(f"/proc/{self.agent.pid}/fd").glob("*"):
                try:
                    target = os.readlink(fd)
                except OSError:
                    continue
                if "/spool/" in target:
                    self.found.add(target)


def prepare(lab, plane, megabytes=40, compression="none", **job):
    """A database that no compressor makes smaller; its path."""
    [path] = lab.sqlite(plane, rows=megabytes * 50, blob=20_000, compression=compression, **job)
    return path


def restored(lab, plane, done):
    """The digest of the database that a BackupCompleted brings back."""
    path = lab.directory / f"restored-{done['run_id']}"
    data = plane.objects.object(done["s3_key"])
    path.write_bytes(artifact.restore(data, done["compression"], KEY))
    return databases.sqlite_digest(path)


def only_upload(plane):
    [upload] = plane.objects.uploads.uploads.values()
    return upload


def test_the_agent_says_that_it_can(lab):
    plane = lab.plane()
    lab.agent(plane)
    assert "multipart" in plane.session().register["capabilities"]


@pytest.mark.parametrize("part_mib, compression", [(5, "none"), (8, "zstd")])
def test_parts_come_back_as_a_database_though_the_link_is_cut(lab, part_mib, compression):
    plane = lab.plane()
    path = prepare(lab, plane, part_mib * 8, compression=compression)
    asked = []

    def answer(request):
        asked.append(request["first_part"])
        if len(asked) == 2:
            # The request is lost together with the session.
            plane.sessions[-1].cut(reset=True)
            return None
        urls = plane.objects.uploads.part_urls(request["upload_id"], request["first_part"], 2)
        return {"parts": urls}

    plane.part_urls = answer
    agent = lab.agent(plane)
    with SpoolWatch(agent) as watch:
        plane.run_backup("job0", "r1", key=KEY, ahead=2, part_bytes=part_mib * MIB)
        done = plane.wait_success("r1", 120)
    peak = agent.memory("VmHWM")
    print(f"peak RSS {peak / MIB:.1f} MiB, asked for parts from {asked}")
    assert len(plane.sessions) >= 2 and asked[1] in asked[2:]
    upload = only_upload(plane)
    sizes = [len(body) for _, body in upload.parts.values()]
    assert len(sizes) >= 8 and sum(sizes) == done["size_bytes"]
    assert plane.objects.uploads.count("complete") == 1
    assert plane.objects.uploads.count("abort") == 0
    assert not plane.objects.puts
    assert restored(lab, plane, done) == databases.sqlite_digest(path)
    assert watch.looks and not watch.found
    assert peak < 64 * MIB


def test_each_part_survives_what_a_store_does(lab):
    plane = lab.plane()
    path = prepare(lab, plane, 20)
    troubles = {("part", 1, 1): "503", ("part", 2, 1): "reset", ("part", 3, 1): "lost-answer",
                ("complete", None, 1): "hidden-error", ("complete", None, 2): "lost-answer"}
    plane.objects.uploads.choose_fault = lambda *request: troubles.get(request)
    lab.agent(plane)
    plane.run_backup("job0", "r1", key=KEY, ahead=20)
    done = plane.wait_success("r1", 120)
    assert [plane.objects.uploads.count("part", number) for number in (1, 2, 3)] == [2, 2, 2]
    assert plane.objects.uploads.count("complete") == 3
    assert restored(lab, plane, done) == databases.sqlite_digest(path)


def test_a_killed_agent_uses_the_same_upload_again(lab):
    plane = lab.plane()
    path = prepare(lab, plane)
    plane.objects.bytes_per_sec = 20_000_000
    agent = lab.agent(plane)
    plane.run_backup("job0", "r1", key=KEY, ahead=4)
    upload = only_upload(plane)
    wait_until(lambda: len(upload.parts) >= 3, 60, "some parts")
    agent.kill()
    assert not upload.completed
    plane.objects.bytes_per_sec = 0
    agent.start()
    done = plane.wait_success("r1", 120)
    assert len(plane.objects.uploads.uploads) == 1
    assert plane.objects.uploads.count("part", 1) >= 2
    assert plane.objects.uploads.count("complete") == 1
    assert restored(lab, plane, done) == databases.sqlite_digest(path)


def test_a_cancel_gives_the_upload_up(lab):
    plane = lab.plane()
    prepare(lab, plane, 20)
    plane.objects.uploads.choose_fault = lambda what, number, count: "stall" if number == 2 else None
    lab.agent(plane)
    plane.run_backup("job0", "r1", key=KEY, ahead=20)
    wait_until(lambda: plane.objects.uploads.count("part", 2), 60, "part 2")
    plane.session().send("cancel_job", {"job_id": "job0"}, "cancel")
    kind, _ = plane.wait_terminal("r1", 20)
    assert kind == "cancelled"
    wait_until(lambda: only_upload(plane).aborted, 20, "the abort")
    assert plane.objects.uploads.count("complete") == 0


@pytest.mark.parametrize("part", [1, 3])
def test_a_refused_part_fails_the_run_and_gives_the_upload_up(lab, part):
    plane = lab.plane()
    prepare(lab, plane, 20)
    plane.objects.uploads.choose_fault = lambda what, number, count: "403" if number == part else None
    lab.agent(plane)
    plane.run_backup("job0", "r1", key=KEY, ahead=20)
    assert "403" in plane.wait_failure("r1")
    wait_until(lambda: only_upload(plane).aborted, 20, "the abort")
    assert plane.objects.uploads.count("complete") == 0


def test_a_plane_without_urls_for_the_run_ends_it(lab):
    plane = lab.plane()
    prepare(lab, plane, 20)
    plane.part_urls = lambda request: {"parts": [], "error": "nobody knows this run"}
    lab.agent(plane)
    plane.run_backup("job0", "r1", key=KEY, ahead=1)
    assert "nobody knows this run" in plane.wait_failure("r1")
    wait_until(lambda: only_upload(plane).aborted, 20, "the abort")


def test_urls_that_expire_on_the_way_are_replaced(lab):
    plane = lab.plane()
    path = prepare(lab, plane, 30)
    agent = lab.agent(plane)
    order = plane.order("job0", "r1", key=KEY, ahead=20)
    multipart = order["upload_creds"]["multipart"]
    # The store's clock is ahead of what the control plane said.
    multipart["parts"] = plane.objects.uploads.part_urls(multipart["upload_id"], 1, 2) + \
        plane.objects.uploads.part_urls(multipart["upload_id"], 3, 18, ttl_sec=-1)
    plane.session().send("run_backup", order, "cmd-r1")
    done = plane.wait_success("r1", 120)
    assert plane.messages("part_urls_request")
    assert restored(lab, plane, done) == databases.sqlite_digest(path)
    assert agent.running
