"""What every static build has to do before it leaves the machine that made it, under an emulator if it is for
another CPU (BACKUPY_RUNNER): say what it is, come up over TLS, back up a database that comes back."""

import json
import pathlib
import subprocess

import pytest

from plane import agent as agents
from plane import artifact, databases

KEY = bytes(range(32))

# e_machine of the ELF header.
MACHINES = {0x3E: "amd64", 0xB7: "arm64", 0x28: "arm"}


def test_says_what_it_is():
    header = pathlib.Path(agents.COMMAND[-1]).read_bytes()[:20]
    done = subprocess.run([*agents.COMMAND, "version", "--json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["arch"] == MACHINES[int.from_bytes(header[18:20], "little")]


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_backs_up_over_tls(lab, compression):
    plane = lab.plane(secure=True)
    [path] = lab.sqlite(plane, rows=9000, compression=compression)
    agent = lab.agent(plane)
    plane.session(60)
    plane.run_backup("job0", "r1", key=KEY)
    done = plane.wait_success("r1", 120)
    dump = artifact.restore(plane.objects.object(done["s3_key"]), done["compression"], KEY)
    copy = pathlib.Path(lab.directory) / "copy.sqlite"
    copy.write_bytes(dump)
    assert databases.sqlite_digest(copy) == databases.sqlite_digest(path)
    assert agent.command("health-check", timeout=60).returncode == 0
    assert agent.stop(60) == 0
