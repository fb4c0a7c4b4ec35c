"""The container image in a real Docker daemon: loaded, run without root, healthy, and it backs up. Needs root and
BACKUPY_IMAGE, the archive that scripts/build-image makes."""

import json
import os
import pathlib
import shutil
import tarfile

import pytest

from plane import artifact, databases
from plane.agent import wait_until
from plane.docker import Docker

IMAGE = os.environ.get("BACKUPY_IMAGE")
KEY = bytes(range(32))
HOST_USER = 65532

pytestmark = [
    pytest.mark.skipif(os.environ.get("BACKUPY_TEST_NO_DOCKER") == "1", reason="BACKUPY_TEST_NO_DOCKER=1"),
    pytest.mark.skipif(not (IMAGE and os.geteuid() == 0), reason="needs root and BACKUPY_IMAGE"),
]


@pytest.fixture(scope="module")
def docker():
    daemon = Docker()
    try:
        yield daemon
    finally:
        daemon.close()


@pytest.fixture(scope="module")
def image(docker):
    said = docker.docker("load", "-i", IMAGE)
    return said.rpartition("Loaded image: ")[2].strip()


def health(docker, name):
    return docker.docker("inspect", "-f", "{{.State.Health.Status}}", name)


def test_runs_without_root_and_is_healthy(lab, docker, image):
    # Below /tmp, where a user without a name may go.
    shared = docker.directory / "shared"
    shared.mkdir()
    path = shared / "app.sqlite"
    plane = lab.plane()
    [made] = lab.sqlite(plane)
    shutil.copy(made, path)
    plane.config["targets"][0]["connection"]["database"] = "/data/app.sqlite"
    os.chown(shared, HOST_USER, HOST_USER)
    os.chown(path, HOST_USER, HOST_USER)
    docker.docker(
        "run", "-d", "--name", "agent", "--network=host", "--read-only", "--cap-drop=ALL",
        "-v", f"{shared}:/data", "-v", "state:/var/lib/backupy",
        "-e", f"BACKUPY_SERVER_URL={plane.url}", "-e", f"BACKUPY_AGENT_KEY={plane.key}",
        "-e", "BACKUPY_DEV_ALLOW_INSECURE=true", "--health-interval=1s", image,
    )
    plane.session()
    wait_until(lambda: health(docker, "agent") == "healthy", 60, "a healthy container")
    assert docker.docker("top", "agent", "-eo", "pid,uid,comm").split()[-2:] == [str(HOST_USER), "backupy"]
    plane.run_backup("job0", "r1", key=KEY)
    done = plane.wait_success("r1")
    dump = artifact.restore(plane.objects.object(done["s3_key"]), done["compression"], KEY)
    copy = pathlib.Path(lab.directory) / "copy.sqlite"
    copy.write_bytes(dump)
    assert databases.sqlite_digest(copy) == databases.sqlite_digest(path)
    docker.docker("stop", "-t", "20", "agent")
    assert docker.docker("inspect", "-f", "{{.State.ExitCode}}", "agent") == "0"
    # The next container goes on with the volume of the one before: the same agent.
    docker.docker("start", "agent")
    wait_until(lambda: len(plane.sessions) >= 2, 60, "a second session")


def test_unhealthy_without_its_process(docker, image):
    docker.docker(
        "run", "-d", "--name", "idle", "--network=none", "--entrypoint=/busybox", "--health-interval=1s",
        "--health-start-period=1s", "--health-retries=2", "-v", "/bin/busybox:/busybox:ro", image, "sleep", "600",
    )
    wait_until(lambda: health(docker, "idle") == "unhealthy", 60, "an unhealthy container")


def test_the_dockerfile_says_the_same(docker, image):
    root = pathlib.Path(__file__).resolve().parents[2]
    context = pathlib.Path(IMAGE).parent / "image-x86_64"
    docker.docker(
        "build", "-q", "-f", root / "packaging/container/Dockerfile", "-t", "built", context,
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
    )
    ours, theirs = (json.loads(docker.docker("inspect", name))[0] for name in (image, "built"))
    wanted = ("User", "Entrypoint", "Cmd", "Volumes", "StopSignal", "Healthcheck", "Env")
    assert [ours["Config"][key] for key in wanted] == [theirs["Config"][key] for key in wanted]
    listings = []
    for name in (image, "built"):
        container = docker.docker("create", name)
        docker.docker("export", container, "-o", docker.directory / "export.tar")
        with tarfile.open(docker.directory / "export.tar") as tar:
            files = {m.name: (m.mode & 0o7777, m.uid, m.gid, m.size) for m in tar if m.name.startswith(("usr", "var"))}
        docker.docker("rm", "-v", container)
        listings.append(files)
    assert listings[0]["usr/bin/backupy"][:3] == (0o755, 0, 0)
    assert listings[0]["var/lib/backupy"][:3] == (0o700, HOST_USER, HOST_USER)
    assert listings[0] == listings[1]
