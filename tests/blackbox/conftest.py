"""The lab: planes, agents and databases of one test, and the promises that hold for every one of them."""

import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from plane import agent as agents  # noqa: E402
from plane import databases, proto, tls  # noqa: E402
from plane.server import Plane  # noqa: E402


class Lab:
    """What a test builds; `close` ends all of it, `check` looks at what may never happen."""

    def __init__(self, directory):
        self.directory = directory
        self.planes = []
        self.agents = []
        self.secrets = set()
        self._authority = None

    @property
    def authority(self):
        """The test's own CA."""
        if self._authority is None:
            self._authority = tls.Authority(self.directory)
        return self._authority

    def plane(self, secure=False, **options):
        """A running control plane; `secure` means TLS for link and store."""
        if secure:
            context, _ = self.authority.server()
            options = {"context": context, "store_context": context, **options}
        directory = self.directory / f"plane{len(self.planes)}"
        directory.mkdir()
        plane = Plane(directory, **options)
        self.planes.append(plane)
        return plane

    def agent(self, plane=None, start=True, **env):
        """An agent for that plane, in a state directory of its own."""
        directory = self.directory / f"agent{len(self.agents)}"
        directory.mkdir()
        authority = self.authority if plane is not None and plane.context else None
        agent = agents.Agent(directory, plane, authority, **env)
        self.agents.append(agent)
        return agent.start() if start else agent

    def sqlite(self, plane, jobs=1, rows=2000, wal=False, blob=400, **job):
        """Configures `jobs` jobs (job0 …), each with a SQLite file of its own; their paths."""
        paths = [self.directory / f"db{i}.sqlite" for i in range(jobs)]
        for path in paths:
            databases.make_sqlite(path, rows, wal, blob)
        plane.config = config(
            [sqlite_target(f"target{i}", path) for i, path in enumerate(paths)],
            [{"id": f"job{i}", "target_id": f"target{i}", **job} for i in range(jobs)],
        )
        return paths

    def close(self):
        """Ends every process and thread."""
        for agent in self.agents:
            if agent.running:
                agent.kill()
        for plane in self.planes:
            plane.close()

    def check(self):
        """Promises of every test: the plane's, and that no secret is in a log or a plain file."""
        secrets = set(self.secrets)
        for plane in self.planes:
            plane.check()
            secrets |= {plane.key[10:], *plane.objects.signatures}
            for key in plane.keys.values():
                # A key of a few bytes, which some tests send, is found anywhere.
                secrets |= {key, key.hex()} if len(key) >= 16 else set()
        for agent in self.agents:
            found = agents.find_secrets(agent.directory, secrets)
            assert not found, found
            assert "panicked" not in agent.log, agent.log


def config(targets, jobs, version=1, **more):
    """An AgentConfig."""
    return {"version": version, "targets": targets, "jobs": jobs, **more}


def sqlite_target(target_id, path, **connection):
    """A SQLite target."""
    return {
        "id": target_id,
        "type": proto.SQLITE,
        "display_name": target_id,
        "connection": {"database": str(path), **connection},
    }


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.when == "call":
        item.passed = report.passed
        lab = getattr(item, "funcargs", {}).get("lab")
        if report.failed and lab:
            for agent in lab.agents:
                report.sections.append((f"log of {agent.directory.name}", agent.log[-8000:]))


@pytest.fixture
def lab(tmp_path, request):
    lab = Lab(tmp_path)
    yield lab
    if getattr(request.node, "passed", False):
        try:
            lab.check()
        finally:
            lab.close()
    else:
        lab.close()


@pytest.fixture(scope="module")
def postgres():
    if databases.postgres_bin() is None:
        pytest.fail("no PostgreSQL server below /usr/lib/postgresql: install postgresql-15")
    server = databases.Postgres()
    yield server
    server.close()


def pytest_collection_modifyitems(config, items):
    if not os.environ.get("BACKUPY_SLOW"):
        skip = pytest.mark.skip(reason="slow: set BACKUPY_SLOW=1")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)
