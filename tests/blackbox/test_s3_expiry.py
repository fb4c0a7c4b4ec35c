"""URLs of a real S3 service that end while an upload is under way, or before it."""

import time

import pytest

from plane import artifact, databases, s3
from plane.uploads import MIB
from test_multipart import KEY, prepare

LIFE_SEC = 4


@pytest.fixture(scope="module")
def service():
    server = s3.S3()
    yield server
    server.close()


def part_urls(service, key, upload_id, first, count):
    """URLs of parts that live for a few seconds from now."""
    return [
        {"part_number": n, "url": service.presign("PUT", key, LIFE_SEC, partNumber=n, uploadId=upload_id)}
        for n in range(first, first + count)
    ]


def test_part_urls_that_end_before_their_turn_are_asked_for_again(lab, service):
    plane = lab.plane()
    # About 12 s of upload, three times the life of a URL.
    path = prepare(lab, plane, 24, upload_bytes_per_sec=2 * MIB)
    key = "job0/expiring"
    upload_id = service.create_upload(key)
    asked = []

    def answer(request):
        asked.append((request["first_part"], request["count"]))
        count = min(request["count"], 8)
        return {"parts": part_urls(service, key, upload_id, request["first_part"], count)}

    plane.part_urls = answer
    plane.objects.uploads.part_urls = lambda *_: []
    lab.agent(plane)
    plane.session()
    order = plane.order("job0", "r1", key=KEY, object_key=key)
    creds = order["upload_creds"]
    creds["presigned_put_url"], creds["expires_at_ms"] = "", 0
    creds["multipart"] = {
        "upload_id": upload_id,
        "part_size_bytes": 5 * MIB,
        # More than are needed: whoever trusted them would never ask.
        "parts": part_urls(service, key, upload_id, 1, 20),
        "complete_url": service.presign("POST", key, 600, uploadId=upload_id),
        "abort_url": service.presign("DELETE", key, 600, uploadId=upload_id),
        "expires_at_ms": 0,
    }
    lab.secrets.add("X-Amz-Signature=")
    plane.session().send("run_backup", order, "cmd-r1")
    done = plane.wait(lambda: plane.messages("backup_completed", run_id="r1"), 120, "the result")[0]
    data = service.get(key)
    plane.objects.object_path(key).parent.mkdir(parents=True, exist_ok=True)
    plane.objects.object_path(key).write_bytes(data)
    plane.wait_success("r1")
    assert asked and all(first > 1 for first, _ in asked), asked
    assert len(data) == done["size_bytes"]
    restored = lab.directory / "restored.db"
    restored.write_bytes(artifact.restore(data, done["compression"], KEY))
    assert databases.sqlite_digest(restored) == databases.sqlite_digest(path)
    assert service.etags()[key].strip('"').endswith("-5") and not service.uploads()


@pytest.mark.parametrize("told", [True, False])
def test_a_put_url_that_has_ended(lab, service, told):
    plane = lab.plane()
    prepare(lab, plane, 1)
    key = f"job0/too-late-{told}"
    url = service.presign("PUT", key, 1)
    ended_ms = int((time.time() + 1) * 1000)
    time.sleep(2.5)
    lab.agent(plane)
    plane.session()
    order = plane.order("job0", "r1", key=KEY, object_key=key)
    order["upload_creds"]["presigned_put_url"] = url
    order["upload_creds"]["expires_at_ms"] = ended_ms if told else 0
    lab.secrets.add("X-Amz-Signature=")
    plane.session().send("run_backup", order, "cmd-r1")
    error = plane.wait_failure("r1", 60)
    print(error)
    assert "expired" in error and "X-Amz" not in error
    assert key not in service.objects()
