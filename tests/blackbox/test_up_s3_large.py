"""A stream that is much larger than the memory that it may take, from the dump to a bucket and back."""

import hashlib
import subprocess

import pytest

from plane import agent as agents
from plane.agent import wait_until
from plane.uploads import MIB
from test_multipart import SpoolWatch
from test_up_s3 import OK, S3Host, bucket, service  # noqa: F401

GIB = 1 << 30
# Noise without end, the same in every run.
NOISE = "openssl enc -aes-128-ctr -nosalt -K 000102030405060708090a0b0c0d0e0f -iv 00000000000000000000000000000000 -in /dev/zero"


def dump_command(size):
    """A shell line with what a dump of that size looks like from outside."""
    return f"printf PGDMP; {NOISE} 2>/dev/null | head -c {size - 5}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_gigabytes_without_a_spool(lab, bucket):  # noqa: F811
    host, size = S3Host(lab, bucket), 3 * GIB
    # In place of pg_dump: what is measured here is the way behind it.
    tools = lab.directory / "tools"
    tools.mkdir()
    tool = tools / "pg_dump"
    version = "echo 'pg_dump (PostgreSQL) 16.4'; exit"
    tool.write_text(f"#!/bin/sh\ncase $* in --version) {version};; esac\n{dump_command(size)}\n")
    tool.chmod(0o755)
    host.agent.env["BACKUPY_PG_BIN_DIR"] = str(tools)
    host.write({
        "name": '"large"',
        "database": '"postgres://nobody@127.0.0.1:1/large"',
        "every": '"6h"',
        "keep": "{ last = 1 }",
    })
    with SpoolWatch(host.agent) as watch:
        host.up()
        host.ok("backup", "large", timeout=1500)
        [run] = host.runs("large")
    peak, spooled = host.agent.memory("VmHWM"), sum(f.stat().st_size for f in host.state.rglob("*") if f.is_file())
    print(f"{run['size_bytes'] / GIB:.2f} GiB stored, peak RSS {peak / MIB:.1f} MiB, {watch.looks} looks for a spool")
    assert run["state"] == "ok" and run["size_bytes"] > size
    key = next(key for key in bucket.objects() if key.endswith(run["object_key"]))
    assert bucket.objects()[key] == run["size_bytes"]
    assert int(bucket.etags()[key].strip('"').rpartition("-")[2]) > 300, "in parts"
    assert watch.looks and not watch.found
    assert spooled < 256 * MIB
    assert peak < 64 * MIB
    assert not bucket.uploads()

    expected = subprocess.run(f"{{ {dump_command(size)}; }} | sha256sum", shell=True, capture_output=True, check=True)
    restore = subprocess.Popen(
        [*agents.COMMAND, "restore", "large", "--to", "-", "--config", host.file],
        env=agents.clean_environment(**host.agent.env), stdout=subprocess.PIPE, cwd=host.directory,
    )
    digest = hashlib.file_digest(restore.stdout, "sha256").hexdigest()
    assert restore.wait(60) == OK
    assert digest == expected.stdout.split()[0].decode()
    wait_until(lambda: host.command("status", config=False).returncode == OK, 20, "peace")
